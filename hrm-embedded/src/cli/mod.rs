//! The command line: one file a command.

mod backend;
mod bench;
mod board;
mod device;
mod devices;
mod example;
mod input;
mod inspect;
mod models;
mod rows;
mod serve;
mod solve;
mod trace;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Solve puzzles with a quantised Hierarchical Reasoning Model. Without a command it solves a built-in example.
#[derive(Parser)]
#[command(
    name = "hrm",
    version,
    after_help = "Exit status: 0 done; 1 bad input; 2 wrong usage; 3 with `--strict` if a puzzle was declined.\n\
                  HRM_KERNEL=reference|avx2|avx512vnni forces a kernel (`hrm bench` lists those of this machine)."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Solve puzzles from a file, from standard input or from the command line.
    Solve(solve::Args),
    /// Show how the network reaches its answer, segment by segment.
    Trace(trace::Args),
    /// Print what a model file holds, what it costs, and whether it passes its self-test.
    Inspect(inspect::Args),
    /// Solve on a device: a board on a serial port, or a program behind tcp:HOST:PORT.
    Device(device::Args),
    /// Be a device: the service of the firmware on a TCP port of this machine, for `hrm device --port tcp:HOST:PORT`.
    Serve(serve::Args),
    /// Measure kernels and models on this machine.
    Bench(bench::Args),
}

/// Exit status of every error but those of the command line's grammar.
const BAD_INPUT: u8 = 1;

pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Some(Command::Solve(args)) => solve::run(&args),
        Some(Command::Trace(args)) => trace::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Device(args)) => device::run(&args),
        Some(Command::Serve(args)) => serve::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        None => example::run(),
    };
    match done {
        Ok(code) => code,
        // Whoever reads our output has read enough.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(BAD_INPUT)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// What computes the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The integer core of this program.
    Core,
    /// The exported ONNX network in tract.
    Tract,
}

/// Whether `out` shows colours: a terminal, unless `NO_COLOR` is set or the terminal is dumb.
fn colours(out: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    out.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|t| t != "dumb")
}
