//! The `hrm-train` command: train, evaluate, make and convert data.
mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
