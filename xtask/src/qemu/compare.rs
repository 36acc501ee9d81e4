//! What an image computes against what the host computes: the hash of the state after every segment, and of each layer where they differ.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hrm_core::format::AlignedBytes;
use hrm_core::iterate::Policy;
use hrm_core::solve::{Options, Perturb, Select, Solver};
use hrm_core::task::Sudoku;
use hrm_core::{Kernel, ModelView, Network, Plan, Run};

use super::emulator;
use super::machine::Machine;
use crate::cargo;
use crate::memories::Memory;

/// A model with the puzzles it is run on.
#[derive(Clone)]
pub struct Case {
    /// Rows of the puzzle.
    pub size: usize,
    /// The model file.
    pub model: PathBuf,
    /// The puzzles.
    pub puzzles: Vec<String>,
    /// Segments of each.
    pub segments: u16,
    /// The memory of another board, in place of the machine's own.
    pub memory: Option<Memory>,
}

impl Case {
    /// The first `count` puzzles of this size with the repository's model.
    ///
    /// # Errors
    /// The file of puzzles cannot be read.
    pub fn new(size: usize, count: usize, segments: u16) -> Result<Self> {
        let file = cargo::root().join(format!("firmware/puzzles/{size}x{size}.txt"));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let puzzles: Vec<_> = text.lines().take(count).map(str::to_owned).collect();
        ensure!(puzzles.len() == count, "{} has {} puzzles, {count} are needed", file.display(), puzzles.len());
        Ok(Self { size, model: cargo::root().join(format!("models/sudoku-{size}x{size}.hrm")), puzzles, segments, memory: None })
    }

    /// `4x4`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{0}x{0}", self.size)
    }

    /// The request for this memory, before all others.
    fn preface(&self) -> String {
        self.memory.map_or_else(String::new, |m| format!("memory {} {} {}\n", 8 * m.arena, m.plan.tile, m.packed))
    }
}

/// What a machine did with a case.
pub struct Outcome {
    /// Name of the kernel.
    pub kernel: String,
    /// Hash after every segment of every puzzle.
    pub hashes: Vec<Vec<u64>>,
    /// Checksum of the model.
    pub crc: u64,
    /// Instructions of the slowest segment.
    pub instructions: u64,
    /// Bytes of the arena.
    pub arena: u64,
    /// Bytes of the stack at its most.
    pub stack: u64,
    /// The first difference from the host: machine, puzzle, segment, layer.
    pub difference: Option<String>,
}

/// Runs `case` on `machine` and compares it with `host`, the hashes of [`host`].
///
/// # Errors
/// The emulator or the image fails.
pub fn run(machine: &Machine, case: &Case, host: &[Vec<u64>]) -> Result<Outcome> {
    let runs: String = case.puzzles.iter().map(|p| format!("run {} {p}\n", case.segments)).collect();
    let said = emulator::ask(machine, Some(&case.model), &(case.preface() + &runs))?;
    let field = |name: &str| said.lines.iter().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    if let Some(error) = field("error") {
        bail!("{} {}: the image says: {error}", machine.name, case.label());
    }
    let last = said.lines.last().map_or("nothing", String::as_str);
    ensure!(
        said.code == Some(0),
        "{} {}: the image ended with {:?}, last said {last:?}; {}",
        machine.name,
        case.label(),
        said.code,
        said.errors
    );
    let number = |name: &str| field(name).and_then(|v| v.parse().ok()).with_context(|| format!("{} does not say its {name}", machine.name));
    // A name may hold spaces.
    let crc = field("model").and_then(|v| u64::from_str_radix(v.rsplit(' ').next()?, 16).ok());
    let mut outcome = Outcome {
        kernel: field("kernel").unwrap_or("?").to_owned(),
        hashes: Vec::new(),
        crc: crc.with_context(|| format!("{} does not say its model", machine.name))?,
        instructions: 0,
        arena: number("memory")?,
        stack: number("stack")?,
        difference: None,
    };
    for puzzle in said.lines.split(|l| l == "done").take(case.puzzles.len()) {
        let mut hashes = Vec::new();
        for line in puzzle.iter().filter_map(|l| l.strip_prefix("segment ")) {
            let mut words = line.split(' ').skip(1);
            let hash = words.next().and_then(|h| u64::from_str_radix(h, 16).ok()).with_context(|| format!("unreadable: {line:?}"))?;
            outcome.instructions = outcome.instructions.max(words.next().and_then(|i| i.parse().ok()).unwrap_or(u64::MAX));
            hashes.push(hash);
        }
        outcome.hashes.push(hashes);
    }
    if let Some(memory) = case.memory {
        let bytes = 8 * memory.arena as u64;
        ensure!(outcome.arena <= bytes, "{}: the arena takes {} bytes, the image has {bytes}", case.label(), outcome.arena);
    }
    outcome.difference = difference(machine, case, host, &outcome.hashes)?;
    Ok(outcome)
}

fn difference(machine: &Machine, case: &Case, host: &[Vec<u64>], found: &[Vec<u64>]) -> Result<Option<String>> {
    for (p, puzzle) in case.puzzles.iter().enumerate() {
        for segment in 0..usize::from(case.segments) {
            let (Some(&expected), found) = (host[p].get(segment), found.get(p).and_then(|h| h.get(segment)).copied()) else { continue };
            if found == Some(expected) {
                continue;
            }
            let found = found.map_or("nothing".into(), |h| format!("{h:016x}"));
            let place = layer(machine, case, puzzle, segment as u16 + 1)?;
            let (machine, label, segment) = (machine.name, case.label(), segment + 1);
            return Ok(Some(format!(
                "{machine}, {label} puzzle {puzzle}, segment {segment}, layer {place}: {found}, the host has {expected:016x}"
            )));
        }
    }
    Ok(None)
}

/// The first layer of a segment after which machine and host differ.
fn layer(machine: &Machine, case: &Case, puzzle: &str, segment: u16) -> Result<String> {
    let said = emulator::ask(machine, Some(&case.model), &format!("{}layers {segment} {puzzle}\n", case.preface()))?;
    let found: Vec<_> = said.lines.iter().filter_map(|l| l.strip_prefix("layer ")?.split_once(' ')).collect();
    let mut expected = Vec::new();
    with_run(&host_model(case.size), |run| {
        start(run, puzzle)?;
        for _ in 1..segment {
            run.segment()?;
        }
        run.segment_watched(Some(&mut |place, hash| expected.push((place.to_string(), format!("{hash:016x}")))))?;
        Ok(())
    })?;
    let first = expected.iter().enumerate().find(|(i, e)| found.get(*i) != Some(&(e.0.as_str(), e.1.as_str())));
    Ok(first.map_or_else(|| "not found: all layers agree in a second run".to_owned(), |(_, e)| e.0.clone()))
}

fn host_model(size: usize) -> PathBuf {
    cargo::root().join(format!("models/sudoku-{size}x{size}.hrm"))
}

/// The hashes that the host finds, with the repository's model of this size, whatever file the case gives the machine.
///
/// # Errors
/// The model or a puzzle cannot be read.
pub fn host(case: &Case) -> Result<Vec<Vec<u64>>> {
    with_run(&host_model(case.size), |run| {
        case.puzzles
            .iter()
            .map(|puzzle| {
                start(run, puzzle)?;
                (0..case.segments)
                    .map(|_| {
                        run.segment()?;
                        Ok(run.hash())
                    })
                    .collect()
            })
            .collect()
    })
}

fn with_run<T>(model: &Path, f: impl FnOnce(&mut Run<'_, '_>) -> Result<T>) -> Result<T> {
    let bytes = fs::read(model).with_context(|| format!("cannot read {}", model.display()))?;
    let aligned = AlignedBytes::new(&bytes);
    let view = ModelView::new_checked(aligned.as_slice()).with_context(|| model.display().to_string())?;
    let mut packed = vec![0; Network::packed_words(&view, Kernel::best())];
    let network = Network::new(view, Kernel::best(), &mut packed)?;
    let mut arena = vec![0; network.required_bytes(Plan::HOST) / 8];
    f(&mut Run::new(network, &mut arena, Plan::HOST)?)
}

fn start(run: &mut Run<'_, '_>, puzzle: &str) -> Result<()> {
    let mut tokens = vec![0; usize::from(run.network().view().config().tokens)];
    let sudoku = Sudoku::new(tokens.len().isqrt()).context("the model solves no Sudoku")?;
    sudoku.parse(puzzle, &mut tokens)?;
    run.start(&tokens, 0, 0)?;
    Ok(())
}

/// A puzzle that the host has solved.
pub struct Solved {
    /// Tokens of the answer.
    pub answer: Vec<u8>,
    /// Segments it took.
    pub segments: u32,
    /// State hash at the end.
    pub hash: u64,
}

/// Solves a puzzle on the host as a device does by default; none if its answer is not verified.
///
/// # Errors
/// The model or the puzzle cannot be read.
pub fn solve(size: usize, puzzle: &str) -> Result<Option<Solved>> {
    let options = Options { policy: Policy::budget(16), guesses: 16, select: Select::Verify, perturb: Perturb::Auto, noise: 0, seed: 0 };
    with_run(&host_model(size), |run| {
        start(run, puzzle)?;
        let tokens = run.tokens().to_vec();
        let mut memory = vec![0; Solver::required_bytes(tokens.len(), &options)];
        let mut solver = Solver::new(run, &tokens, options, &mut memory)?;
        let outcome = solver.finish()?;
        let solved = |answer: &[u8]| Solved { answer: answer.to_vec(), segments: outcome.segments, hash: outcome.hash };
        Ok(outcome.answer.filter(|_| outcome.verified).map(solved))
    })
}
