//! `cargo xtask qemu`: the firmware of every emulated board against the host, hash by hash.

mod install;

use anyhow::Result;

use crate::test::Done;

/// Runs.
///
/// # Errors
/// Fails.
pub fn run() -> Result<Done> {
    if let Some(why) = install::ensure()? {
        return Ok(Done::Skipped(why));
    }
    Ok(Done::Passed)
}
