//! `cargo xtask fuzz TARGET`: random comparisons with ever new values.

use anyhow::Result;
use clap::ValueEnum;

use crate::cargo;
use crate::test::must;

/// What is compared.
#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// All kernels of this CPU with the scalar law: shapes with tails, extremes among the values.
    Kernels,
}

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Options {
    target: Target,
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Where the seeds begin: that of a finding repeats it [default: another in every run].
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs the target's ignored test.
///
/// # Errors
/// A comparison failed; the seed is printed.
pub fn run(options: &Options) -> Result<()> {
    let Target::Kernels = options.target;
    let mut command = cargo::command();
    command.args(["test", "--release", "-p", "hrm-core", "--features", "std", "--test", "kernels", "--"]);
    command.args(["--ignored", "--exact", "fuzz_for_a_while", "--nocapture"]).env("HRM_FUZZ_SECONDS", options.seconds.to_string());
    if let Some(seed) = options.seed {
        command.env("HRM_FUZZ_SEED", seed.to_string());
    }
    must(&mut command)
}
