//! `hrm-train analyze`: the experiments of Ren and Liu, "Are Your Reasoning Models Reasoning or Guessing?" (arXiv 2601.10679), and those
//! that came after, on any model: float checkpoints through the engines, `.hrm` files through the deployed core.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checkpoint::write_atomic;
use crate::data::rng::mix;
use crate::data::{GeneratorOptions, PuzzleSet, Side, csv, generate};
use crate::engine::StartOf;
use crate::evaluate_int8::Int8;
use crate::model_file::FloatModel;
use crate::puzzles::Kept;
use crate::run_config::{EngineKind, RunConfig, resolve_threads};

mod attractors;
mod dynamics;
mod easy;
mod fixed_point;
mod grokking;
mod guesses;
pub mod report;
mod schedule;
pub mod stats;
pub mod subject;
pub mod svg;
#[cfg(test)]
mod tests;
pub mod trace;

use report::Section;
use subject::{Float, Integer, Subject};
use trace::{Job, Trace};

/// Arguments of `hrm-train analyze`.
#[derive(Args, Clone, Debug)]
pub struct Analyze {
    /// Which experiment.
    #[arg(value_enum)]
    pub experiment: Experiment,
    /// A run folder, a .safetensors file or an int8 .hrm file.
    #[arg(long, value_name = "DIR|FILE")]
    pub model: PathBuf,
    /// Puzzles with answers; none: generated ones of classes never trained on.
    #[arg(long, value_name = "CSV")]
    pub data: Option<PathBuf>,
    /// Held-out training puzzles to choose a schedule on, never a test set [default: those that the model's record names, if its training
    /// data lies beside --data or in the working folder; generated ones without --data].
    #[arg(long, value_name = "CSV")]
    pub holdout: Option<PathBuf>,
    /// Reveal cells of each puzzle, in random order, until so many are unknown: for models that solve no hard ones.
    #[arg(long, value_name = "CELLS")]
    pub unknown: Option<usize>,
    /// Puzzles of the plain runs; the costly experiments take a part of them.
    #[arg(long, default_value_t = 240)]
    pub n: usize,
    /// Folder of the results.
    #[arg(long, value_name = "DIR", default_value = "analysis")]
    pub out: PathBuf,
    /// Late snapshots of the run (safetensors), for bootstrapping over checkpoints.
    #[arg(long, value_name = "DIR")]
    pub snapshots: Option<PathBuf>,
    /// With an int8 --model: the float model it was made from, to compare carries with.
    #[arg(long, value_name = "DIR|FILE")]
    pub reference: Option<PathBuf>,
    /// Seed of starts, choices and noise.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Worker threads [default: all cores].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Engine of float models: fused or torch.
    #[arg(long, value_enum, default_value_t = EngineArgument::Fused)]
    pub engine: EngineArgument,
    /// Device of the torch engine.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Do again what an earlier run of the same command has left in --out.
    #[arg(long)]
    pub fresh: bool,
    /// Also write the report as Markdown to this file, with the plots in a folder of the same name beside it.
    #[arg(long, value_name = "FILE.md")]
    pub markdown: Option<PathBuf>,
}

/// The experiments, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Experiment {
    /// Failures on easy puzzles.
    Easy,
    /// Does a state that decodes to the answer stay?
    FixedPoint,
    /// Loss of single puzzles over segments.
    Grokking,
    /// Modes, trajectories, landscape, how many attractors.
    Attractors,
    /// More guesses, perturbed in different ways, selected in different ways.
    Guesses,
    /// Q head, rating, one bit, float against int8.
    Dynamics,
    /// How the guesses of a verified task are best scheduled (int8).
    Schedule,
    /// All of them, in one report.
    All,
}

/// [`EngineKind`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineArgument {
    /// Own engine for structured cells.
    Fused,
    /// libtorch.
    Torch,
}

impl Experiment {
    const EACH: [Self; 7] = [Self::Easy, Self::FixedPoint, Self::Grokking, Self::Attractors, Self::Guesses, Self::Dynamics, Self::Schedule];

    fn name(self) -> &'static str {
        match self {
            Self::Easy => "easy",
            Self::FixedPoint => "fixed-point",
            Self::Grokking => "grokking",
            Self::Attractors => "attractors",
            Self::Guesses => "guesses",
            Self::Dynamics => "dynamics",
            Self::Schedule => "schedule",
            Self::All => "all",
        }
    }
}

/// Segments of the plain runs. The papers stop at 16; what comes after shows whether answers stay.
const SEGMENTS: usize = 64;
/// Segments of the papers.
const PAPER: usize = 16;

/// A model, puzzles, and the plain runs, which several experiments read.
struct Lab {
    subject: Box<dyn Subject>,
    int8: Option<Int8>,
    set: PuzzleSet,
    holdout: Option<PuzzleSet>,
    n: usize,
    seed: u64,
    args: Analyze,
    plain: Option<Vec<Trace>>,
    progress: Progress,
    fingerprint: String,
}

/// Segments done, on the terminal.
struct Progress {
    what: &'static str,
    done: usize,
    of: usize,
}

impl Progress {
    fn add(&mut self, segments: usize) {
        let before = self.done * 100 / self.of.max(1);
        self.done += segments;
        let now = self.done * 100 / self.of.max(1);
        if now != before && std::io::stderr().is_terminal() {
            eprint!("\r{:12} {:3} %  ({} of {} segments)", self.what, now.min(100), self.done, self.of);
        }
    }
}

impl Lab {
    fn new(args: &Analyze) -> anyhow::Result<Self> {
        ensure!(args.n >= 1, "--n is 0, expected at least 1");
        let threads = resolve_threads(args.threads);
        let is_int8 = args.model.extension().is_some_and(|e| e == "hrm");
        let (subject, int8): (Box<dyn Subject>, _) = if is_int8 {
            let load = || Int8::load(&args.model, args.seed);
            (Box::new(Integer::new(load()?)?), Some(load()?))
        } else {
            (Box::new(Float::load(&args.model, args.engine_kind(), &args.device, threads)?), None)
        };
        let c = subject.config();
        let size = usize::from(c.vocab) - 2;
        ensure!(size * size == usize::from(c.tokens), "a model of {} tokens and {} symbols is no Sudoku model", c.tokens, c.vocab);
        let read = |path: &Path| -> anyhow::Result<PuzzleSet> {
            let set = csv::read(path)?;
            ensure!(
                set.sudoku.size() == size,
                "{} holds puzzles of size {}, the model reads size {size}",
                path.display(),
                set.sudoku.size()
            );
            ensure!(!set.is_empty(), "{} holds no puzzle", path.display());
            Ok(set)
        };
        // There are only a few dozen minimal puzzles of size 4.
        let extra_givens = if size == 4 { 6 } else { 0 };
        let generated = |side, seed| generate(&GeneratorOptions { size, seed, extra_givens, side, ..GeneratorOptions::default() }, args.n);
        let mut set = args.data.as_deref().map_or_else(|| generated(Side::Test, 77), read)?;
        if let Some(unknown) = args.unknown {
            ensure!((1..=set.sudoku.cells()).contains(&unknown), "--unknown is {unknown}, expected 1 to {}", set.sudoku.cells());
            let mut random = random(args.seed, 2);
            let cells = set.sudoku.cells();
            for (puzzle, label) in set.inputs.chunks_exact_mut(cells).zip(set.labels.chunks_exact(cells)) {
                reveal(puzzle, label, unknown, &mut random);
            }
        }
        let holdout = match (&args.holdout, &args.data) {
            (Some(path), _) => Some(read(path)?),
            (None, None) => Some(generated(Side::Train, 78)?),
            (None, Some(data)) => record(args).and_then(|r| held_out(&r, data, &args.model)),
        };
        Ok(Self {
            subject,
            int8,
            n: args.n.min(set.len()),
            set,
            holdout,
            seed: args.seed,
            args: args.clone(),
            plain: None,
            progress: Progress { what: "", done: 0, of: 0 },
            fingerprint: args.fingerprint()?,
        })
    }

    fn record(&self) -> Option<RunConfig> {
        record(&self.args)
    }

    fn begin(&mut self, what: &'static str, segments: usize) {
        self.progress = Progress { what, done: 0, of: segments };
    }

    fn end(&self) {
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
    }

    /// The start of puzzle `i` as guess `guess`: guess 0 of the seed for all, as `hrm solve` starts.
    const fn start(&self, guess: usize) -> StartOf {
        StartOf { seed: self.seed, number: guess as u64 }
    }

    const fn job<'a>(&self, inputs: &'a [u8], labels: &'a [u8], segments: usize) -> Job<'a> {
        Job { sudoku: self.set.sudoku, inputs, labels, segments, noise: 0.0 }
    }

    /// Runs puzzles from given starts.
    fn trace(&mut self, inputs: &[u8], labels: &[u8], segments: usize, starts: &[StartOf]) -> anyhow::Result<Vec<Trace>> {
        let job = self.job(inputs, labels, segments);
        let Self { subject, progress, .. } = self;
        trace::run_from(subject.as_mut(), job, starts, false, &mut |k| progress.add(k))
    }

    /// The first `n` puzzles of the set.
    fn puzzles(&self, n: usize) -> (Vec<u8>, Vec<u8>) {
        let s = self.set.sudoku.cells();
        (self.set.inputs[..n * s].to_vec(), self.set.labels[..n * s].to_vec())
    }

    /// The plain runs: [`SEGMENTS`] segments of the first `n` puzzles from guess 0.
    fn plain(&mut self) -> anyhow::Result<Vec<Trace>> {
        if let Some(plain) = &self.plain {
            return Ok(plain.clone());
        }
        let (inputs, labels) = self.puzzles(self.n);
        let starts = vec![self.start(0); self.n];
        let plain = self.kept("plain", |lab| {
            lab.begin("plain runs", lab.n * SEGMENTS);
            let plain = lab.trace(&inputs, &labels, SEGMENTS, &starts);
            lab.end();
            plain
        })?;
        self.plain = Some(plain.clone());
        Ok(plain)
    }

    /// A costly part of an experiment: what an interrupted run of the same command has left in the folder, or made and left there.
    fn kept<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        make: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let path = self.args.out.join(format!("{name}.part.json"));
        if let Some(value) = if self.args.fresh { None } else { report::kept(&path, &self.fingerprint) } {
            return Ok(value);
        }
        let value = make(self)?;
        report::keep(&path, &value, &self.fingerprint)?;
        Ok(value)
    }

    /// A stream of numbers for choices of an experiment.
    fn random(&self, purpose: u64) -> impl FnMut(usize) -> usize + use<> {
        random(self.seed, purpose)
    }
}

/// A stream of numbers below what it is asked for.
fn random(seed: u64, purpose: u64) -> impl FnMut(usize) -> usize + use<> {
    let mut state = mix(mix(seed) ^ purpose);
    move |n| {
        state = mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
        ((u128::from(state) * n as u128) >> 64) as usize
    }
}

/// Fills blank cells of `puzzle` from its answer, in random order, until `unknown` are left.
fn reveal(puzzle: &mut [u8], label: &[u8], unknown: usize, random: &mut impl FnMut(usize) -> usize) {
    let mut open: Vec<usize> = (0..puzzle.len()).filter(|&c| puzzle[c] == 1).collect();
    while open.len() > unknown {
        let cell = open.swap_remove(random(open.len()));
        puzzle[cell] = label[cell];
    }
}

/// The config that the model says it was trained with.
fn record(args: &Analyze) -> Option<RunConfig> {
    if args.model.extension().is_none_or(|e| e != "hrm") {
        return FloatModel::load(&args.model).ok()?.record.map(|r| r.config);
    }
    let int8 = Int8::load(&args.model, 0).ok()?;
    let text: serde_json::Value = serde_json::from_str(int8.view().ok()?.record()?).ok()?;
    serde_json::from_value(text["training"]["config"].clone()).ok()
}

/// The training puzzles that were held out, if the files are found under the names of the record in the folder of `data`.
fn held_out(config: &RunConfig, data: &Path, model: &Path) -> Option<PuzzleSet> {
    let mut config = config.clone();
    let beside = |paths: &mut crate::run_config::Paths| {
        for p in &mut paths.0 {
            if let Some(found) = Path::new(p).file_name().and_then(|name| Some(data.parent()?.join(name))).filter(|f| f.exists()) {
                *p = found.to_string_lossy().into_owned();
            }
        }
    };
    beside(&mut config.data.train);
    beside(&mut config.data.meta);
    beside(&mut config.data.exclude_meta);
    let puzzles =
        crate::puzzles::load(&config, Kept::of(model)).inspect_err(|e| eprintln!("note: no held-out training puzzles: {e:#}")).ok()?;
    (!puzzles.holdout.is_empty()).then_some(puzzles.holdout)
}

impl Analyze {
    const fn engine_kind(&self) -> EngineKind {
        match self.engine {
            EngineArgument::Fused => EngineKind::Fused,
            EngineArgument::Torch => EngineKind::Torch,
        }
    }

    /// What the figures depend on: the model's bytes, the data's, and the settings.
    fn fingerprint(&self) -> anyhow::Result<String> {
        let crc = |path: &Path| -> anyhow::Result<u32> {
            let path = if path.is_dir() { path.join("model.safetensors") } else { path.to_owned() };
            Ok(crc32fast::hash(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?))
        };
        let parts: Vec<Option<&PathBuf>> = vec![Some(&self.model), self.data.as_ref(), self.holdout.as_ref(), self.reference.as_ref()];
        let files = parts.into_iter().map(|p| p.map_or(Ok(0), |p| crc(p))).collect::<anyhow::Result<Vec<u32>>>()?;
        Ok(format!("{files:08x?} {:?} unknown {:?} n {} seed {} {:?}", self.snapshots, self.unknown, self.n, self.seed, self.engine))
    }

    /// The command that does the same again, with file names in place of paths.
    fn command(&self) -> String {
        let name = |p: &PathBuf| p.file_name().map_or_else(|| p.display().to_string(), |n| n.to_string_lossy().into_owned());
        let mut out =
            format!("hrm-train analyze {} --model {} --n {} --seed {}", self.experiment.name(), name(&self.model), self.n, self.seed);
        if let Some(unknown) = self.unknown {
            out += &format!(" --unknown {unknown}");
        }
        if self.engine == EngineArgument::Torch {
            out += " --engine torch";
        }
        let options = [("data", &self.data), ("holdout", &self.holdout), ("snapshots", &self.snapshots), ("reference", &self.reference)];
        for (option, path) in options {
            if let Some(path) = path {
                out += &format!(" --{option} {}", name(path));
            }
        }
        out
    }
}

/// Runs the command; returns what to print.
///
/// # Errors
/// Bad input; the sentence names it.
pub fn run(args: &Analyze) -> anyhow::Result<String> {
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let mut lab = Lab::new(args)?;
    let wanted: Vec<Experiment> = if args.experiment == Experiment::All { Experiment::EACH.to_vec() } else { vec![args.experiment] };
    let mut sections = Vec::new();
    for experiment in wanted {
        let kept = if args.fresh { None } else { report::kept(&args.out.join(format!("{}.json", experiment.name())), &lab.fingerprint) };
        let section: Section = match kept {
            Some(section) => section,
            None => {
                let Some(mut section) = (match experiment {
                    Experiment::Easy => Some(easy::run(&mut lab)?),
                    Experiment::FixedPoint => Some(fixed_point::run(&mut lab)?),
                    Experiment::Grokking => Some(grokking::run(&mut lab)?),
                    Experiment::Attractors => Some(attractors::run(&mut lab)?),
                    Experiment::Guesses => Some(guesses::run(&mut lab)?),
                    Experiment::Dynamics => Some(dynamics::run(&mut lab)?),
                    Experiment::Schedule | Experiment::All => schedule::run(&mut lab)?,
                }) else {
                    ensure!(
                        args.experiment == Experiment::All,
                        "`schedule` needs an int8 --model and held-out training puzzles (--holdout)"
                    );
                    continue;
                };
                section.name = experiment.name().to_owned();
                section.save(&args.out, &lab.fingerprint)?;
                section
            }
        };
        sections.push(section);
    }
    let title = if args.experiment == Experiment::All { "Reasoning or guessing" } else { args.experiment.name() };
    let about = about(args, &lab);
    let page = args.out.join(if args.experiment == Experiment::All {
        "report.html".to_owned()
    } else {
        format!("{}.html", args.experiment.name())
    });
    write_atomic(&page, report::html(title, &about, &sections).as_bytes())?;
    if let Some(file) = &args.markdown {
        let stem = file.file_stem().context("--markdown names no file")?.to_string_lossy().into_owned();
        let pictures = file.with_extension("");
        fs::create_dir_all(&pictures).with_context(|| format!("cannot make the folder {}", pictures.display()))?;
        for plot in sections.iter().flat_map(|s| &s.plots) {
            write_atomic(&pictures.join(format!("{}.svg", plot.name)), plot.svg.as_bytes())?;
        }
        write_atomic(
            file,
            report::markdown("Reasoning or guessing: the paper's experiments on our models", &about, &sections, &stem).as_bytes(),
        )?;
    }
    let mut text = String::new();
    for s in &sections {
        text += &format!("{}\n", s.title);
        s.findings.iter().for_each(|f| text += &format!("  {f}\n"));
    }
    Ok(text + &format!("report: {}\n", page.display()))
}

fn about(args: &Analyze, lab: &Lab) -> Vec<String> {
    let c = lab.subject.config();
    let trained = lab.record().map_or(String::new(), |r| {
        let (steps, batch) = (r.train.steps, r.train.batch);
        format!(" Trained with data protocol {}, a run of {steps} steps of {batch} puzzles, seed {}.", r.data.protocol, r.train.seed)
    });
    let data = args.data.as_ref().and_then(|p| p.file_name()).map_or("generated puzzles".into(), |n| n.to_string_lossy().into_owned());
    let data = args.unknown.map_or_else(|| data.clone(), |u| format!("{data}, cells revealed until {u} are unknown"));
    vec![
        "Ren and Liu, \"Are Your Reasoning Models Reasoning or Guessing?\" (arXiv 2601.10679), say of the Hierarchical Reasoning Model that it fails on very \
         easy puzzles, that it finds answers in leaps, that it has several fixed points, and that more guesses cure it. This page repeats their \
         experiments on a model of this project. Where our figures cannot be compared with theirs, it says so: their model has 27 million parameters, two \
         modules and attention, and was trained on 1,000 original puzzles of Sudoku-Extreme with symmetric copies; all their figures are on its test set."
            .into(),
        format!(
            "Model: {}, {}, {} channels, {} field(s), {:.1} million multiplications a segment.{trained} Puzzles: the first {} of {data}. Every share has its 95 % Wilson \
             interval.",
            args.model.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            lab.subject.kind(),
            c.channels,
            c.fields,
            lab.subject.segment_macs() as f64 / 1e6,
            lab.n
        ),
        format!("Command: `{}`", args.command()),
    ]
}

/// `12.3 % (10.1 to 14.9)`.
fn percent(count: usize, of: usize) -> String {
    if of == 0 {
        return "none".into();
    }
    crate::evaluate::Share::new(count, of).to_string().trim().to_owned()
}

/// Repeats the tokens of each puzzle `k` times in a row.
fn repeat(tokens: &[u8], cells: usize, k: usize) -> Vec<u8> {
    tokens.chunks_exact(cells).flat_map(|t| std::iter::repeat_n(t, k).flatten().copied()).collect()
}
