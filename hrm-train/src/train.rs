//! The training loop: deep supervision over a streaming batch.
//!
//! Each row of the batch holds a puzzle and its carry. A step runs one segment for every row and one optimizer step; rows that halted get
//! a new puzzle and a fresh carry in the next step (HRM section 2, adaptive computation; here a row halts on `q_halt > 0`, as in TRM).
//! Everything random is a pure function of the seed and a counter, so a run that is killed and resumed ends with the same weights, bit
//! for bit, as one that was not (on the CPU).

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::checkpoint::{Checkpoints, write_atomic};
use crate::data::rng::{below, generator, mix, unit};
use crate::data::{Sampler, SamplerOptions};
use crate::engine::{Engine, RowOutcome};
use crate::evaluate::{self, HoldoutScore};
use crate::model_file::{DataRecord, FloatModel, TrainingRecord, build_engine};
use crate::puzzles;
use crate::run_config::RunConfig;
use crate::spec::ModelSpec;

/// Streams of the seed, so that the same counter means another number in each.
const SAMPLER: u64 = 1;
const EXPLORATION: u64 = 2;
const EVALUATION: u64 = 3;

/// Time between lines for people.
const REPORT: Duration = Duration::from_secs(10);

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Best score on the held-out training puzzles.
    pub best: Option<HoldoutScore>,
    /// Wall time over all resumes, in seconds.
    pub seconds: f64,
}

/// How to start.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartOptions {
    /// Go on from the last checkpoint of the folder, if there is one.
    pub resume: bool,
    /// Go on although the config decides other weights than the one the run was started with.
    pub accept_changes: bool,
    /// Stop (with a checkpoint) when this step is reached, as if the process had been ended there.
    pub stop_after: Option<u64>,
}

/// One row of the batch. Its puzzle follows from `draw`, its carry is the engine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// Number of the sampler's draw.
    draw: u64,
    /// Segments it has had.
    steps: u32,
    /// Segments it must have before it may halt on its Q logit.
    min_steps: u32,
    /// It gets a new puzzle in the next step.
    halted: bool,
}

/// Sums since the last record of metrics.jsonl.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Window {
    segments: u64,
    loss: f64,
    cells: u64,
    halted: u64,
    halted_exact: u64,
    halted_steps: u64,
}

/// Everything of a run that is not in the engine: the content of a checkpoint's JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Position {
    config: RunConfig,
    data: DataRecord,
    /// Optimizer steps done.
    step: u64,
    /// Puzzles drawn.
    draws: u64,
    rows: Vec<Row>,
    best: Option<HoldoutScore>,
    /// Wall time so far.
    seconds: f64,
    window: Window,
}

/// Trains one model in `folder` until its last step. Writes `config.toml`, `metrics.jsonl`, checkpoints, and `model.safetensors` with
/// `model.json`: the weights that were best on the held-out puzzles so far. Progress goes to stderr.
///
/// # Errors
/// The data cannot be read, the folder holds another run, the disk is full, or the loss is no longer finite. The last checkpoint and the
/// best model stay as they are.
pub fn train(config: &RunConfig, folder: &Path, start: StartOptions) -> anyhow::Result<Summary> {
    let spec = config.spec()?;
    let mut checkpoints = Checkpoints::open(folder, config.checkpoint.keep)?;
    ensure!(
        start.resume || !checkpoints.exists(),
        "{} already holds a run: --resume goes on with it, --out takes another folder",
        folder.display()
    );
    let puzzles = puzzles::load(config)?;
    eprintln!(
        "{} puzzles to train on, {} held out to choose the checkpoint, {} dropped",
        puzzles.record.train, puzzles.record.holdout, puzzles.record.dropped
    );
    let mut engine = match config.train.init.as_str() {
        "" => build_engine(config, &spec, None)?,
        path => {
            let model = FloatModel::load(Path::new(path)).context("train.init")?;
            ensure!(
                model.spec == spec,
                "train.init: {path} has another architecture than [model]: {:?}, expected {:?}",
                model.spec.config,
                spec.config
            );
            build_engine(config, &spec, Some(&model.weights)).with_context(|| format!("train.init: {path}"))?
        }
    };

    let mut run = Position {
        config: config.clone(),
        data: puzzles.record.clone(),
        step: 0,
        draws: 0,
        rows: vec![Row { halted: true, ..Row::default() }; config.train.batch],
        best: None,
        seconds: 0.0,
        window: Window::default(),
    };
    if start.resume && checkpoints.exists() {
        run = resume(&checkpoints, config, &puzzles.record, engine.as_mut(), start.accept_changes)?;
        eprintln!("resumed at step {} of {}", run.step, config.train.steps);
    } else if start.resume {
        eprintln!("{} holds no checkpoint yet: starting from the beginning", folder.display());
    }
    write_atomic(&folder.join("config.toml"), config.to_toml()?.as_bytes())?;
    let mut metrics = Metrics::open(folder, run.step)?;

    let t = &config.train;
    let sampler = Sampler::new(
        &puzzles.train,
        SamplerOptions {
            seed: mix(t.seed ^ mix(SAMPLER)),
            easier: config.data.easier,
            symmetries: config.data.symmetries,
            ..SamplerOptions::default()
        },
    )?;
    let tokens = usize::from(spec.config.tokens);
    let (mut inputs, mut labels) = (vec![0; t.batch * tokens], vec![0; t.batch * tokens]);
    let mut reset = vec![false; t.batch];
    for (b, row) in run.rows.iter().enumerate().filter(|(_, row)| !row.halted) {
        sampler.draw(row.draw, &mut inputs[b * tokens..][..tokens], &mut labels[b * tokens..][..tokens])?;
    }

    let mut clock = Clock::new(run.seconds);
    let end = start.stop_after.map_or(t.steps, |s| s.min(t.steps));
    let mut saved = run.step;
    while run.step < end {
        // Halted rows get the next puzzles, in row order.
        for (b, row) in run.rows.iter_mut().enumerate() {
            reset[b] = row.halted;
            if row.halted {
                *row = Row { draw: run.draws, steps: 0, min_steps: min_steps(config, run.draws), halted: false };
                run.draws += 1;
                sampler.draw(row.draw, &mut inputs[b * tokens..][..tokens], &mut labels[b * tokens..][..tokens])?;
            }
        }

        let lr = config.learning_rate(run.step);
        let outcomes = engine.train_segment(&inputs, &labels, &reset, lr).with_context(|| {
            format!("training stopped in step {}; the last checkpoint (step {saved}) in {} is still valid", run.step + 1, folder.display())
        })?;
        run.step += 1;
        for (row, outcome) in run.rows.iter_mut().zip(&outcomes) {
            row.steps += 1;
            row.halted = halts(config, row, outcome);
            run.window.add(row, outcome);
            clock.window.add(row, outcome);
        }

        let last = run.step == t.steps;
        clock.steps += 1;
        run.seconds = clock.total();
        if clock.report_due() {
            eprintln!("{}", clock.line(run.step, t.steps, lr, tokens));
        }
        if run.step.is_multiple_of(t.log_every) || last {
            metrics.write(run.window.record(run.step, lr, tokens, run.seconds, clock.rate()))?;
            run.window = Window::default();
        }
        let e = &config.eval;
        if last || (e.every > 0 && run.step.is_multiple_of(e.every)) {
            let n = if e.n == 0 { puzzles.holdout.len() } else { e.n };
            let score = evaluate::holdout(engine.as_mut(), &puzzles.holdout, n, e.segments, mix(t.seed ^ mix(EVALUATION)), run.step)?;
            let better = run.best.is_none_or(|best| score.at_least(&best));
            run.seconds = clock.total();
            if better {
                run.best = Some(score);
                shipped(&spec, engine.as_ref(), &run, score).save(folder, "model")?;
            }
            metrics.write(json!({ "kind": "eval", "step": run.step, "seconds": run.seconds, "score": score, "best": better }))?;
            eprintln!(
                "step {}: held-out puzzles exact {}/{} ({:.2} %) after {} segments, cells {:.2} %{}",
                run.step,
                score.exact,
                score.puzzles,
                100.0 * score.exact as f64 / score.puzzles as f64,
                score.segments,
                100.0 * score.cells,
                if better { ", best so far" } else { "" }
            );
        }
        let c = &config.checkpoint;
        if c.snapshot_every > 0 && run.step.is_multiple_of(c.snapshot_every) {
            snapshot(&spec, engine.as_ref(), &run, folder)?;
        }
        let by_steps = c.steps > 0 && run.step.is_multiple_of(c.steps);
        let by_time = c.seconds > 0.0 && clock.since_checkpoint() >= c.seconds;
        if run.step == end || by_steps || by_time {
            checkpoints.save(&run, &engine.state())?;
            saved = run.step;
            clock.checkpoint = Instant::now();
        }
    }
    Ok(Summary { best: run.best, seconds: run.seconds })
}

/// Reads the last checkpoint into the engine; refuses if config or data decide other weights.
fn resume(
    checkpoints: &Checkpoints,
    config: &RunConfig,
    data: &DataRecord,
    engine: &mut dyn Engine,
    accept_changes: bool,
) -> anyhow::Result<Position> {
    let (mut run, state) = checkpoints.load::<Position>()?;
    let changed = config.differences(&run.config)?;
    if !changed.is_empty() && !accept_changes {
        bail!("the config is not the one this run was started with: {}; --accept-changes goes on anyway", changed.join("; "));
    }
    if *data != run.data && !accept_changes {
        bail!(
            "the training data are not those this run was started with ({} puzzles, CRC-32 {:08x}; then {} and {:08x}); \
             --accept-changes goes on anyway",
            data.train,
            data.crc32,
            run.data.train,
            run.data.crc32
        );
    }
    ensure!(
        run.rows.len() == config.train.batch,
        "train.batch is {}, the checkpoint has {} rows: the batch cannot change within a run",
        config.train.batch,
        run.rows.len()
    );
    engine.restore(&state).context("the checkpoint does not fit to [model]")?;
    run.config = config.clone();
    run.data = data.clone();
    Ok(run)
}

/// Segments puzzle `draw` must have: with probability `halt_exploration` U{2..halt_max_steps}, else none.
fn min_steps(config: &RunConfig, draw: u64) -> u32 {
    let t = &config.train;
    let mut rng = generator(mix(t.seed ^ mix(EXPLORATION)), draw);
    if t.halt_max_steps >= 2 && unit(&mut rng) < t.halt_exploration { 2 + below(&mut rng, t.halt_max_steps as usize - 1) as u32 } else { 0 }
}

/// Whether a row that has just had its segment number `row.steps` is done.
fn halts(config: &RunConfig, row: &Row, outcome: &RowOutcome) -> bool {
    let t = &config.train;
    row.steps >= t.halt_max_steps || (t.q_weight > 0.0 && outcome.q_halt > 0.0 && row.steps >= row.min_steps)
}

/// The model to ship at this point of the run.
fn shipped(spec: &ModelSpec, engine: &dyn Engine, run: &Position, score: HoldoutScore) -> FloatModel {
    let weights = engine.weights();
    // Fixed starts are stored but not trained.
    let parameters = weights.iter().filter(|(name, _)| !name.starts_with("init.")).map(|(_, (_, values))| values.len()).sum();
    let record = TrainingRecord {
        protocol: run.config.data.protocol.clone(),
        data: run.data.clone(),
        seed: run.config.train.seed,
        step: run.step,
        steps: run.config.train.steps,
        seconds: run.seconds,
        holdout: score,
        parameters,
        hrm_version: env!("CARGO_PKG_VERSION").to_owned(),
        config: run.config.without_folders(),
    };
    FloatModel { spec: spec.clone(), weights, record: Some(record) }
}

fn snapshot(spec: &ModelSpec, engine: &dyn Engine, run: &Position, folder: &Path) -> anyhow::Result<()> {
    let folder = folder.join("snapshots");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // The score of a snapshot is not known unless this step was evaluated.
    let none = HoldoutScore { step: run.step, puzzles: 0, segments: 0, exact: 0, cells: 0.0 };
    let score = run.best.filter(|b| b.step == run.step).unwrap_or(none);
    shipped(spec, engine, run, score).save(&folder, &format!("step-{}", run.step))
}

impl Window {
    fn add(&mut self, row: &Row, outcome: &RowOutcome) {
        self.segments += 1;
        self.loss += f64::from(outcome.loss);
        self.cells += u64::from(outcome.cells);
        if row.halted {
            self.halted += 1;
            self.halted_exact += u64::from(outcome.exact);
            self.halted_steps += u64::from(row.steps);
        }
    }

    fn loss(&self) -> f64 {
        self.loss / self.segments.max(1) as f64
    }

    fn cell_accuracy(&self, tokens: usize) -> f64 {
        self.cells as f64 / (self.segments.max(1) * tokens as u64) as f64
    }

    /// Share of exact answers among the halted rows, and their mean number of segments; nothing if none halted.
    fn at_halt(&self) -> Option<(f64, f64)> {
        let n = self.halted as f64;
        (self.halted > 0).then(|| (self.halted_exact as f64 / n, self.halted_steps as f64 / n))
    }

    fn record(&self, step: u64, lr: f64, tokens: usize, seconds: f64, rate: f64) -> serde_json::Value {
        json!({
            "kind": "train", "step": step, "seconds": seconds, "lr": lr, "sample_segments": self.segments, "loss": self.loss(),
            "cells": self.cell_accuracy(tokens), "halted": self.halted, "exact_at_halt": self.at_halt().map(|h| h.0),
            "segments_at_halt": self.at_halt().map(|h| h.1), "sample_segments_per_second": rate,
        })
    }
}

/// `metrics.jsonl`: one JSON object a line.
struct Metrics {
    file: fs::File,
}

impl Metrics {
    /// Opens the file and drops what was written after `step`, the step the run goes on from.
    fn open(folder: &Path, step: u64) -> anyhow::Result<Self> {
        let path = folder.join("metrics.jsonl");
        if let Ok(text) = fs::read_to_string(&path) {
            let keep = |line: &&str| {
                let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
                value.and_then(|v| v.get("step")?.as_u64()).is_some_and(|s| s <= step)
            };
            let kept: String = text.lines().filter(keep).flat_map(|line| [line, "\n"]).collect();
            write_atomic(&path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self { file: file.with_context(|| format!("cannot write {}", path.display()))? })
    }

    fn write(&mut self, record: serde_json::Value) -> anyhow::Result<()> {
        self.file.write_all(format!("{record}\n").as_bytes()).context("cannot write metrics.jsonl")
    }
}

/// Wall time, speed and what is shown to people; nothing of it enters the weights.
struct Clock {
    start: Instant,
    before: f64,
    report: Instant,
    checkpoint: Instant,
    /// Sums and steps since the last line.
    window: Window,
    steps: u64,
    /// Sample-segments a second up to the last line.
    rate: f64,
}

impl Clock {
    fn new(before: f64) -> Self {
        let now = Instant::now();
        Self { start: now, before, report: now, checkpoint: now, window: Window::default(), steps: 0, rate: 0.0 }
    }

    fn total(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    fn since_checkpoint(&self) -> f64 {
        self.checkpoint.elapsed().as_secs_f64()
    }

    fn report_due(&self) -> bool {
        self.report.elapsed() >= REPORT
    }

    /// Sample-segments a second since the last line, or of the time before it if it has just been written.
    fn rate(&self) -> f64 {
        let seconds = self.report.elapsed().as_secs_f64();
        if seconds > 1.0 || self.rate == 0.0 { self.window.segments as f64 / seconds.max(1e-9) } else { self.rate }
    }

    fn line(&mut self, step: u64, steps: u64, lr: f64, tokens: usize) -> String {
        self.rate = self.rate();
        let left = self.report.elapsed().as_secs_f64() / self.steps.max(1) as f64 * (steps - step) as f64;
        let window = std::mem::take(&mut self.window);
        self.report = Instant::now();
        self.steps = 0;
        let halted = window.at_halt().map_or("none halted".to_owned(), |(exact, segments)| {
            format!("at halt {:.1} % exact after {segments:.1} segments", 100.0 * exact)
        });
        format!(
            "step {step}/{steps} ({}, {} left): loss {:.4}, cells {:.2} %, {halted}, lr {lr:.2e}, {:.0} sample-segments/s",
            minutes(self.total()),
            minutes(left),
            window.loss(),
            100.0 * window.cell_accuracy(tokens),
            self.rate
        )
    }
}

fn minutes(seconds: f64) -> String {
    let s = seconds.round() as u64;
    if s >= 3600 { format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60) } else { format!("{}:{:02}", s / 60, s % 60) }
}
