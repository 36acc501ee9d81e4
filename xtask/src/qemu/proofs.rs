//! What must hold of images beside their states.

use anyhow::Result;

/// Runs all proofs; returns what does not hold.
///
/// # Errors
/// An emulator cannot be run.
pub fn run() -> Result<Vec<String>> {
    Ok(Vec::new())
}
