//! `cargo xtask callgrind`: instructions of a segment on this host, counted by Valgrind.
//!
//! They are exact and independent of the machine's load, but not of the compiler. Valgrind knows no AVX-512, so what is counted are the
//! other kernels.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::test::{Done, must};
use crate::{cargo, totals};

const KERNELS: [&str; 3] = ["reference", "scalar", "avx2"];
const MODEL: &str = "models/sudoku-9x9.hrm";

/// Counts the segments of all kernels and compares them with `xtask/callgrind.txt`; with `bless` the totals are written anew.
///
/// # Errors
/// Kernels reach different states, a total has grown, or the program cannot be built or run.
pub fn run(bless: bool) -> Result<Done> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Done::Skipped("the totals are those of x86_64".into()));
    }
    if let Some(why) = ensure_valgrind()? {
        return Ok(Done::Skipped(why));
    }
    must(cargo::command().args(["build", "--release", "--quiet", "-p", "hrm-embedded"]))?;
    let program = cargo::built("hrm");
    let mut found = BTreeMap::new();
    let mut state = None;
    for kernel in KERNELS {
        // Loading, self-test and start are in both.
        let (one, two) = (count(&program, kernel, 1)?, count(&program, kernel, 2)?);
        let instructions = two.0.checked_sub(one.0).context("two segments have fewer instructions than one")?;
        println!("{kernel:<10} {:>8.2} M instructions a segment", instructions as f64 / 1e6);
        ensure!(*state.get_or_insert(two.1.clone()) == two.1, "{kernel} reaches another state");
        found.insert(kernel.to_owned(), instructions);
    }
    let head = format!("Instructions of one segment of {MODEL} on x86_64. `cargo xtask callgrind --bless` writes this.");
    totals::settle(&cargo::root().join("xtask/callgrind.txt"), &head, &found, bless)?;
    Ok(Done::Passed)
}

/// Instructions of the whole program for a guess of `segments`, and the hash of its state.
fn count(program: &Path, kernel: &str, segments: u32) -> Result<(u64, String)> {
    let puzzle = "1".to_owned() + &".".repeat(80);
    let mut command = Command::new("valgrind");
    command.current_dir(cargo::root()).env("HRM_KERNEL", kernel).args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    command.args(["solve", "--model", MODEL, "--guesses", "1", "--select", "first", "--threads", "1", "--format", "jsonl"]);
    let output = command.args(["--segments", &segments.to_string(), &puzzle]).stdin(Stdio::null()).output().context("valgrind")?;
    let (answer, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let what = || format!("{kernel}, {segments} segments: {answer}{told}");
    let value: serde_json::Value = serde_json::from_str(answer.lines().next().unwrap_or_default()).with_context(what)?;
    ensure!(value["segments"] == segments, "another number of segments: {}", what());
    let collected = told.lines().find_map(|l| l.split_once("Collected : ")).with_context(what)?;
    Ok((collected.1.trim().parse().with_context(what)?, value["hash"].to_string()))
}

/// Makes sure that Valgrind is there; the reason if it cannot be.
fn ensure_valgrind() -> Result<Option<String>> {
    let there =
        || Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if there() {
        return Ok(None);
    }
    if !cargo::may_install_packages() {
        return Ok(Some("valgrind is not installed".into()));
    }
    cargo::install_packages(&["valgrind"])?;
    Ok((!there()).then(|| "valgrind is not installed, and its package does not bring it".into()))
}
