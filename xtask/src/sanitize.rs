//! `cargo xtask asan`: the comparisons of the x86 kernels under AddressSanitizer; every buffer there is of the exact size.

use anyhow::Result;

use crate::cargo;
use crate::test::{Done, must};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds and runs the tests in a folder of their own.
///
/// # Errors
/// The sanitizer finds an access out of bounds or after freeing, or a test fails.
pub fn run() -> Result<Done> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Ok(Done::Skipped(format!("it is built for {TARGET} alone")));
    }
    let mut command = cargo::command();
    // The option is not stable: this lets the stable compiler take it.
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    // With a target named, build scripts and derive macros are spared.
    command.args(["test", "-p", "hrm-core", "--features", "std", "--target", TARGET, "--target-dir", "target/asan"]);
    must(command.args(["--test", "kernels"]))?;
    Ok(Done::Passed)
}
