//! Developer tasks: `cargo xtask TASK`. Each task is one module; nothing here does the work.
use anyhow::Result;
use clap::{Parser, Subcommand};
// What the module shared with the firmware names so.
use hrm_core::Plan;

mod bare;
mod boards;
mod budgets;
mod callgrind;
mod cargo;
mod cuda;
mod devices;
mod figures;
mod fuzz;
mod libtorch;
mod line;
#[path = "../../firmware/common/src/memories.rs"]
mod memories;
mod qemu;
mod sanitize;
mod size;
mod test;
mod totals;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of this workspace")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the x86 kernels under AddressSanitizer.
    Asan,
    /// Count the instructions of a segment on this host with Valgrind and compare them with the committed ones; installs Valgrind where it
    /// is missing.
    Callgrind {
        /// Write the counts instead.
        #[arg(long)]
        bless: bool,
    },
    /// Compare random work of a target with what the law says, for as long as wanted.
    Fuzz(fuzz::Options),
    /// Put the libtorch that `hrm-train --features tch` links into target/libtorch (from the Python wheel, CPU only, about 550 MB to download).
    Libtorch,
    /// Run the firmware of every emulated board and compare its states with the host's; installs QEMU where it is missing.
    Qemu(qemu::Options),
    /// Print flash and RAM of the images of all boards and compare them with their budgets.
    Size(size::Options),
    /// Run all tests, or the steps whose name contains FILTER; installs what they need and prints what it skipped and why.
    Test {
        /// Part of a step's name, such as `parity`.
        filter: Option<String>,
    },
    /// Run `hrm-train ARGS` with libtorch found or fetched.
    Train {
        /// Arguments of hrm-train.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Asan => sanitize::run().map(|done| done.report()),
        Task::Callgrind { bless } => callgrind::run(bless).map(|done| done.report()),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Libtorch => libtorch::ensure().map(|dir| println!("libtorch {} in {}", libtorch::VERSION, dir.display())),
        Task::Qemu(options) => qemu::run(&options).map(|done| done.report()),
        Task::Size(options) => size::run(&options).map(|done| done.report()),
        Task::Test { filter } => test::run(filter.as_deref()),
        Task::Train { args } => cargo::train(&args),
    }
}
