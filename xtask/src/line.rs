//! The whole line as a test: train a small model, quantise it, solve unseen puzzles with the `hrm` command.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;
use crate::test::{Done, must};

/// One run: a shipped config at a size that fits a test, and what the int8 model must reach on puzzles it has not seen.
struct Run {
    size: u32,
    settings: &'static [&'static str],
    puzzles: u32,
    /// Minimal 4x4 puzzles have too few classes to test on: givens are added, as in training.
    extra_givens: &'static str,
    /// Fewest puzzles solved and verified by `hrm solve` in one pass.
    solved: u32,
}

const RUNS: [Run; 2] = [
    Run { size: 4, settings: &[], puzzles: 1000, extra_givens: "6", solved: 995 },
    Run { size: 6, settings: &["--set", "train.steps=800"], puzzles: 500, extra_givens: "0", solved: 350 },
];

/// Trains, quantises and solves.
///
/// # Errors
/// A command fails, a count is too low, or a grid was called solved that is not.
pub fn run() -> Result<Done> {
    must(cargo::command().args(["build", "--release", "-p", "hrm-train", "-p", "hrm-embedded"]))?;
    let folder = cargo::root().join("target/line");
    for run in &RUNS {
        one(run, &folder)?;
    }
    Ok(Done::Passed)
}

fn one(run: &Run, folder: &Path) -> Result<()> {
    let out = folder.join(format!("{0}x{0}", run.size));
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (csv, model) = (folder.join(format!("{}.csv", run.size)), out.join("model.hrm"));
    let train = |args: &[&str]| {
        let mut command = binary("hrm-train");
        command.args(args);
        command
    };
    let (size, puzzles) = (run.size.to_string(), run.puzzles.to_string());
    let generate =
        ["data", "generate", "--size", &size, "--n", &puzzles, "--seed", "77", "--side", "test", "--extra-givens", run.extra_givens];
    must(train(&generate).arg("--out").arg(&csv))?;
    let config = format!("configs/sudoku-{0}x{0}.toml", run.size);
    must(train(&["train", &config]).args(run.settings).arg("--out").arg(&out))?;
    must(train(&["quantize"]).arg("--model").arg(&out).arg("--out").arg(&model))?;
    let output = binary("hrm")
        .args(["solve", "--format", "csv", "--guesses", "1", "--model"])
        .arg(&model)
        .arg(&csv)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .output()
        .context("hrm cannot be started")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_default();
    println!("{0}x{0}: {last}", run.size);
    ensure!(output.status.success(), "hrm solve failed: {text}");
    let Some((solved, wrong)) = counts(last) else { bail!("hrm solve ended with {last:?}") };
    ensure!(wrong == 0, "{wrong} wrong grids were called solved");
    ensure!(solved >= run.solved, "{solved} of {} were solved, expected at least {}", run.puzzles, run.solved);
    Ok(())
}

/// S and W of `solved S of N, declined D, wrong W`.
fn counts(line: &str) -> Option<(u32, u32)> {
    let mut words = line.split([' ', ',']).filter(|w| !w.is_empty());
    let mut after = |name: &str| words.find(|w| *w == name).and_then(|_| words.next()?.parse().ok());
    Some((after("solved")?, after("wrong")?))
}

fn binary(name: &str) -> Command {
    let mut command = Command::new(cargo::built(name));
    command.current_dir(cargo::root());
    command
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn reads_the_last_line() {
        assert_eq!(counts("solved 995 of 1000, declined 5, wrong 0"), Some((995, 0)));
        assert_eq!(counts("solved 995 of 1000, declined 5"), None);
        assert_eq!(counts("error: no such file"), None);
    }
}
