//! The training loop: deep supervision over a streaming batch.
//!
//! Each row of the batch holds a puzzle and its carry. A step runs one segment for every row and one optimizer step; rows that halted get
//! a new puzzle and a fresh carry in the next step (HRM section 2, adaptive computation).
//! Everything random is a pure function of the seed and a counter, so a run that is killed and resumed ends with the same weights, bit
//! for bit, as one that was not (on the CPU).

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::checkpoint::{self, Checkpoints, write_atomic};
use crate::data::rng::{below, generator, mix, unit};
use crate::engine::{Advice, Course, Engine, RowOutcome};
use crate::evaluate::{self, HoldoutScore};
use crate::examples::{self, Examples};
use crate::model_file::{DataRecord, FloatModel, TrainingRecord, build_engine};
use crate::monitor::{Metrics, Progress, Window, write_report};
use crate::quantize::float::FloatNet;
use crate::quantize::weights::NetWeights;
use crate::quantize::{self, QuantizeOptions};
use crate::run_config::RunConfig;
use crate::spec::ModelSpec;
use crate::teacher::Teacher;

/// Streams of the seed, so that the same counter means another number in each.
const SAMPLER: u64 = 1;
const EXPLORATION: u64 = 2;
const EVALUATION: u64 = 3;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Best score on the held-out training puzzles.
    pub best: Option<HoldoutScore>,
    /// Wall time over all resumes, in seconds.
    pub seconds: f64,
    /// Optimizer steps done.
    pub step: u64,
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
    /// Stop (with a checkpoint) after the first step that ends so many seconds or more after the start of this process's part of the run.
    pub seconds: Option<f64>,
}

/// One row of the batch. Its puzzle follows from `draw`, its carry is the engine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// Number of the sampler's draw.
    draw: u64,
    /// Segments it has had.
    steps: u32,
    /// Segments it must have before the Q head may halt it.
    min_steps: u32,
    /// It gets a new puzzle in the next step.
    halted: bool,
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

/// Steps done and steps planned of the run in `folder`, by its last checkpoint; `None` if it has none.
///
/// # Errors
/// The checkpoint cannot be read.
pub fn position(folder: &Path) -> anyhow::Result<Option<(u64, u64)>> {
    if !folder.join("last.json").exists() {
        return Ok(None);
    }
    let run: Position = checkpoint::content(folder)?;
    Ok(Some((run.step, run.config.train.steps)))
}

/// Trains one model in `folder` until its last step. Writes `config.toml`, `metrics.jsonl`, a TensorBoard event file, checkpoints, `report.html`, and `model.safetensors` with
/// `model.json`: the weights that were best on the held-out puzzles so far. Progress goes to stderr.
///
/// # Errors
/// The data cannot be read, the folder holds another run, the disk is full, or the loss is no longer finite. The last checkpoint and the
/// best model stay as they are.
pub fn train(config: &RunConfig, folder: &Path, start: StartOptions) -> anyhow::Result<Summary> {
    let begun = Instant::now();
    let spec = config.spec()?;
    let mut checkpoints = Checkpoints::open(folder, config.checkpoint.keep)?;
    ensure!(
        start.resume || !checkpoints.exists(),
        "{} already holds a run: --resume goes on with it, --out takes another folder",
        folder.display()
    );
    let puzzles = examples::load(config)?;
    eprintln!(
        "{} puzzles to train on, {} held out to choose the checkpoint, {} dropped",
        puzzles.record.train, puzzles.record.holdout, puzzles.record.dropped
    );
    let mut teacher = Teacher::load(config, &spec)?;
    let mut advice = Vec::new();
    let mut engine = first_engine(config, &spec, &puzzles.train)?;

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
        (run, advice) = resume(&checkpoints, config, &puzzles.record, engine.as_mut(), start.accept_changes)?;
        eprintln!("resumed at step {} of {}", run.step, config.train.steps);
    } else if start.resume {
        eprintln!("{} holds no checkpoint yet: starting from the beginning", folder.display());
    }
    write_atomic(&folder.join("config.toml"), config.to_toml()?.as_bytes())?;
    let mut metrics = Metrics::open(folder, run.step)?;

    let t = &config.train;
    let sampler = puzzles.train.draws(config, mix(t.seed ^ mix(SAMPLER)))?;
    let tokens = usize::from(spec.config.tokens);
    let (mut inputs, mut labels) = (vec![0; t.batch * tokens], vec![0; t.batch * tokens]);
    let (mut reset, mut identifiers) = (vec![false; t.batch], vec![0; t.batch]);
    let supervision = config.supervision();
    let mut weights = Vec::new();
    for (b, row) in run.rows.iter().enumerate().filter(|(_, row)| !row.halted) {
        identifiers[b] = sampler.draw(row.draw, &mut inputs[b * tokens..][..tokens], &mut labels[b * tokens..][..tokens])?;
    }

    if let Some(teacher) = &mut teacher {
        let expected = t.batch * tokens * teacher.symbols();
        ensure!(
            advice.len() == expected || run.step == 0,
            "the checkpoint holds {} of the teacher's probabilities, expected {expected}: a teacher cannot be given within a run",
            advice.len()
        );
        advice.resize(expected, 0.0);
    }

    let mut progress = Progress::new(run.seconds, t.steps, tokens);
    let mut checkpointed = Instant::now();
    let end = start.stop_after.map_or(t.steps, |s| s.min(t.steps));
    let mut saved = run.step;
    while run.step < end {
        // Halted rows get the next puzzles, in row order.
        for (b, row) in run.rows.iter_mut().enumerate() {
            reset[b] = row.halted;
            if row.halted {
                *row = Row { draw: run.draws, steps: 0, min_steps: min_steps(config, run.draws), halted: false };
                run.draws += 1;
                identifiers[b] = sampler.draw(row.draw, &mut inputs[b * tokens..][..tokens], &mut labels[b * tokens..][..tokens])?;
            }
        }

        if let Some(teacher) = &mut teacher {
            teacher.advise(&reset, &run.rows.iter().map(|row| row.draw).collect::<Vec<_>>(), &inputs, &mut advice)?;
        }

        let lr = config.learning_rate(run.step);
        if !supervision.is_empty() {
            weights.clear();
            weights.extend(run.rows.iter().map(|row| supervision[(row.steps as usize).min(supervision.len() - 1)]));
        }
        let teacher = teacher.as_ref().map(|_| Advice { probabilities: &advice, share: t.teacher_share });
        let course = Course { depth: config.depth(run.step), weights: &weights, teacher, identifiers: &identifiers };
        let outcomes = engine.train_course(&inputs, &labels, &reset, &course, lr).with_context(|| {
            format!("training stopped in step {}; the last checkpoint (step {saved}) in {} is still valid", run.step + 1, folder.display())
        })?;
        run.step += 1;
        for (row, outcome) in run.rows.iter_mut().zip(&outcomes) {
            row.steps += 1;
            row.halted = halts(config, row, outcome);
            run.window.add(row.steps, row.halted, outcome);
            progress.row(row.steps, row.halted, outcome);
        }

        let last = run.step == t.steps;
        run.seconds = progress.seconds();
        progress.step(run.step, lr);
        if run.step.is_multiple_of(t.log_every) || last {
            metrics.write(&run.window.record(run.step, lr, tokens, run.seconds, progress.rate()))?;
            run.window = Window::default();
        }
        let e = &config.eval;
        if last || (e.every > 0 && run.step.is_multiple_of(e.every)) {
            let n = if e.n == 0 { puzzles.holdout.len() } else { e.n };
            let score = evaluate::holdout(engine.as_mut(), &puzzles.holdout, n, e.segments, mix(t.seed ^ mix(EVALUATION)), run.step)?;
            let better = run.best.is_none_or(|best| score.at_least(&best));
            run.seconds = progress.seconds();
            if better {
                run.best = Some(score);
                shipped(&spec, engine.as_ref(), &run, score).save(folder, "model")?;
            }
            metrics.write(&json!({ "kind": "eval", "step": run.step, "seconds": run.seconds, "score": score, "best": better }))?;
            progress.say(&format!(
                "step {}: held-out puzzles exact {}/{} ({:.2} %) after {} segments, cells {:.2} %{}",
                run.step,
                score.exact,
                score.puzzles,
                100.0 * score.exact as f64 / score.puzzles as f64,
                score.segments,
                100.0 * score.cells,
                if better { ", best so far" } else { "" }
            ));
        }
        let c = &config.checkpoint;
        if c.snapshot_every > 0 && run.step.is_multiple_of(c.snapshot_every) {
            snapshot(&spec, engine.as_ref(), &run, folder)?;
        }
        let by_steps = c.steps > 0 && run.step.is_multiple_of(c.steps);
        let by_time = c.seconds > 0.0 && checkpointed.elapsed().as_secs_f64() >= c.seconds;
        let out_of_time = start.seconds.is_some_and(|limit| begun.elapsed().as_secs_f64() >= limit);
        if run.step == end || out_of_time || by_steps || by_time {
            let mut state = engine.state();
            if teacher.is_some() {
                state.insert(ADVICE.to_owned(), (vec![t.batch, advice.len() / t.batch], advice.clone()));
            }
            checkpoints.save(&run, &state)?;
            saved = run.step;
            checkpointed = Instant::now();
        }
        if out_of_time {
            break;
        }
    }
    write_report(folder, config, run.best.as_ref(), run.seconds)?;
    Ok(Summary { best: run.best, seconds: run.seconds, step: run.step })
}

/// Training puzzles that choose the ranges of `train.quantize`.
const CALIBRATION: usize = 64;

/// The engine at step 0: fresh, or with the weights of `train.init`.
fn first_engine(config: &RunConfig, spec: &ModelSpec, train: &Examples) -> anyhow::Result<Box<dyn Engine>> {
    let path = config.train.init.as_str();
    if path.is_empty() {
        return build_engine(config, spec, None);
    }
    let model = FloatModel::load(Path::new(path)).context("train.init")?;
    ensure!(
        model.spec == *spec,
        "train.init: {path} has another architecture than [model]: {:?}, expected {:?}",
        model.spec.config,
        spec.config
    );
    let mut engine = build_engine(config, spec, Some(&model.weights)).with_context(|| format!("train.init: {path}"))?;
    if config.train.quantize {
        let n = CALIBRATION.min(train.len());
        let (inputs, tokens) = (train.tokens().0, usize::from(spec.config.tokens));
        let puzzles: Vec<&[u8]> = (0..n).map(|i| &inputs[i * train.len() / n * tokens..][..tokens]).collect();
        let net = FloatNet::new(NetWeights::new(spec, &model.weights)?);
        let (plan, _) = quantize::calibrate(&net, &puzzles, &QuantizeOptions::default()).context("train.quantize")?;
        engine.round_as(&plan)?;
    }
    Ok(engine)
}

/// Name of the teacher's probabilities of the batch in a checkpoint.
const ADVICE: &str = "teacher";

/// Reads the last checkpoint into the engine, and the teacher's probabilities if it has any; refuses if config or data decide other weights.
fn resume(
    checkpoints: &Checkpoints,
    config: &RunConfig,
    data: &DataRecord,
    engine: &mut dyn Engine,
    accept_changes: bool,
) -> anyhow::Result<(Position, Vec<f32>)> {
    let (mut run, mut state) = checkpoints.load::<Position>()?;
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
    Ok((run, state.remove(ADVICE).map(|(_, values)| values).unwrap_or_default()))
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
    row.steps >= t.halt_max_steps || (t.q_weight > 0.0 && outcome.halt && row.steps >= row.min_steps)
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
