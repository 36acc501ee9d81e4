//! The training loop: deep supervision over a streaming batch.
//!
//! Each row of the batch holds a puzzle and its carry. A step runs one segment for every row and one optimizer step; rows that halted get
//! a new puzzle and a fresh carry in the next step (HRM section 2, adaptive computation).
//! Everything random is a pure function of the seed and a counter, so a run that is killed and resumed ends with the same weights, bit
//! for bit, as one that was not (on the CPU). Several ranks ([`crate::parallel`]) go through the same loop: all know all rows of the batch, each
//! computes its own.

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::checkpoint::{self, Checkpoints, write_atomic};
use crate::data::rng::{below, generator, mix, unit};
use crate::engine::{Advice, Course, Engine, RowOutcome, Tensors};
use crate::evaluate::{self, HoldoutScore};
use crate::examples::{self, Examples};
use crate::grow;
use crate::model_file::{DataRecord, FloatModel, TrainingRecord, build_engine};
use crate::monitor::{Metrics, Progress, Window, write_report};
use crate::parallel::Group;
use crate::puzzles::Kept;
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

/// Trains one model in `folder` until its last step, together with the other ranks of `group`. Rank 0 writes `config.toml`, `metrics.jsonl`, a TensorBoard event file, generated puzzles, checkpoints, `report.html`, and `model.safetensors` with
/// `model.json`: the weights that were best on the held-out puzzles so far. Progress goes to stderr.
///
/// # Errors
/// The data cannot be read, the folder holds another run, the disk is full, or the loss is no longer finite. The last checkpoint and the
/// best model stay as they are. With several ranks: what stops one of them, or weights that differ between them.
pub fn train(config: &RunConfig, folder: &Path, start: StartOptions, group: &Rc<Group>) -> anyhow::Result<Summary> {
    let begun = Instant::now();
    let first = group.is_first();
    let spec = config.spec()?;
    let own = group.rows(config.train.batch)?;
    let mut checkpoints = group.settle(if first { open(config, folder, start.resume).map(Some) } else { Ok(None) })?;
    same_config(config, group)?;
    let puzzles = group.settle(examples::load(config, Some(Kept { folder, write: first })))?;
    group.agree("the training data", crc32fast::hash(&serde_json::to_vec(&puzzles.record)?))?;
    if first {
        eprintln!(
            "{} puzzles to train on, {} held out to choose the checkpoint, {} dropped",
            puzzles.record.train, puzzles.record.holdout, puzzles.record.dropped
        );
    }
    let placed = group.place(config)?;
    let (mut teacher, mut engine) = group.settle(Teacher::load(&placed, &spec).and_then(|teacher| {
        let mut engine = first_engine(&placed, &spec, &puzzles.train)?;
        engine.join(Rc::clone(group))?;
        Ok((teacher, engine))
    }))?;
    let mut advice = Vec::new();

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
    if start.resume {
        match saved_run(checkpoints.as_ref(), group)? {
            Some(saved) => {
                (run, advice) = group.settle(resume(saved, config, &puzzles.record, engine.as_mut(), start.accept_changes))?;
                if first {
                    eprintln!("resumed at step {} of {}", run.step, config.train.steps);
                }
            }
            None if first => eprintln!("{} holds no checkpoint yet: starting from the beginning", folder.display()),
            None => {}
        }
    }
    group.agree("the weights at the start", engine.checksum()?)?;
    let mut metrics = group.settle(if first { open_metrics(config, folder, run.step).map(Some) } else { Ok(None) })?;

    let t = &config.train;
    let sampler = puzzles.train.draws(config, puzzles.generated, mix(t.seed ^ mix(SAMPLER)))?;
    let tokens = usize::from(spec.config.tokens);
    let (mut inputs, mut labels) = (vec![0; t.batch * tokens], vec![0; t.batch * tokens]);
    let (mut reset, mut identifiers) = (vec![false; t.batch], vec![0; t.batch]);
    let supervision = config.supervision();
    let mut weights = Vec::new();
    // Other ranks' puzzles are not needed, but for their places in the table of puzzle embeddings, whose rows all ranks step together.
    let drawn = |b: usize| own.contains(&b) || config.model.identifiers > 1;
    for (b, row) in run.rows.iter().enumerate().filter(|(b, row)| !row.halted && drawn(*b)) {
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

    let mut progress = Progress::new(run.seconds, t.steps, tokens, first);
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
                if drawn(b) {
                    identifiers[b] = sampler.draw(row.draw, &mut inputs[b * tokens..][..tokens], &mut labels[b * tokens..][..tokens])?;
                }
            }
        }

        if let Some(teacher) = &mut teacher {
            let mine: Vec<bool> = reset.iter().enumerate().map(|(b, &reset)| reset && own.contains(&b)).collect();
            teacher.advise(&mine, &run.rows.iter().map(|row| row.draw).collect::<Vec<_>>(), &inputs, &mut advice)?;
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
            row.steps += u32::from(t.unroll);
            row.halted = halts(config, row, outcome);
            run.window.add(t.unroll, row.steps, row.halted, outcome);
            progress.row(t.unroll, row.steps, row.halted, outcome);
        }

        let last = run.step == t.steps;
        run.seconds = progress.seconds();
        progress.step(run.step, lr);
        if run.step.is_multiple_of(t.log_every) || last {
            // Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B).
            let mfu = engine.arithmetic().map(|(work, peak)| work * progress.rate() / peak);
            if let Some(metrics) = &mut metrics {
                metrics.write(&run.window.record(run.step, lr, tokens, run.seconds, progress.rate(), mfu))?;
            }
            if let Some(mfu) = mfu.filter(|_| last) {
                progress.say(&format!("{:.0} sample-segments/s, {:.1} % of the device's arithmetic (MFU)", progress.rate(), 100.0 * mfu));
            }
            run.window = Window::default();
        }
        let e = &config.eval;
        if last || (e.every > 0 && run.step.is_multiple_of(e.every)) {
            let n = if e.n == 0 { puzzles.holdout.len() } else { e.n };
            group.agree(&format!("the weights after step {}", run.step), engine.checksum()?)?;
            let score =
                evaluate::holdout(engine.as_mut(), group, &puzzles.holdout, n, e.segments, mix(t.seed ^ mix(EVALUATION)), run.step)?;
            let better = run.best.is_none_or(|best| score.at_least(&best));
            run.seconds = progress.seconds();
            if better {
                run.best = Some(score);
                group.settle(if first { shipped(&spec, engine.as_ref(), &run, score).save(folder, "model") } else { Ok(()) })?;
            }
            if let Some(metrics) = &mut metrics {
                metrics.write(&json!({ "kind": "eval", "step": run.step, "seconds": run.seconds, "score": score, "best": better }))?;
            }
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
        if first && c.snapshot_every > 0 && run.step.is_multiple_of(c.snapshot_every) {
            snapshot(&spec, engine.as_ref(), &run, folder)?;
        }
        let by_steps = c.steps > 0 && run.step.is_multiple_of(c.steps);
        let mut by_time = c.seconds > 0.0 && checkpointed.elapsed().as_secs_f64() >= c.seconds;
        let mut out_of_time = start.seconds.is_some_and(|limit| begun.elapsed().as_secs_f64() >= limit);
        if c.seconds > 0.0 || start.seconds.is_some() {
            [by_time, out_of_time] = group.decide([by_time, out_of_time])?;
        }
        if run.step == end || out_of_time || by_steps || by_time {
            group.agree(&format!("the weights after step {}", run.step), engine.checksum()?)?;
            let mut state = engine.state()?;
            if teacher.is_some() {
                let width = advice.len() / t.batch;
                let all = group.gather_floats(&advice[own.start * width..own.end * width])?;
                state.insert(ADVICE.to_owned(), (vec![t.batch, width], all));
            }
            group.settle(checkpoints.as_mut().map_or(Ok(()), |checkpoints| checkpoints.save(&run, &state)))?;
            saved = run.step;
            checkpointed = Instant::now();
        }
        if out_of_time {
            break;
        }
    }
    if first {
        write_report(folder, config, run.best.as_ref(), run.seconds)?;
    }
    // Nobody leaves before the others are done with it.
    group.settle(Ok(()))?;
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
    let weights = grow::weights_for(model, config, spec).with_context(|| format!("train.init: {path}"))?;
    let mut engine = build_engine(config, spec, Some(&weights)).with_context(|| format!("train.init: {path}"))?;
    if config.train.quantize {
        let n = CALIBRATION.min(train.len());
        let (inputs, tokens) = (train.tokens().0, usize::from(spec.config.tokens));
        let puzzles: Vec<&[u8]> = (0..n).map(|i| &inputs[i * train.len() / n * tokens..][..tokens]).collect();
        let net = FloatNet::new(NetWeights::new(spec, &weights)?);
        let (plan, _) = quantize::calibrate(&net, &puzzles, &QuantizeOptions::default()).context("train.quantize")?;
        engine.round_as(&plan)?;
    }
    Ok(engine)
}

/// Name of the teacher's probabilities of the batch in a checkpoint.
const ADVICE: &str = "teacher";

/// The checkpoints of a folder that may hold a run only if it is to go on.
fn open(config: &RunConfig, folder: &Path, resume: bool) -> anyhow::Result<Checkpoints> {
    let checkpoints = Checkpoints::open(folder, config.checkpoint.keep)?;
    ensure!(
        resume || !checkpoints.exists(),
        "{} already holds a run: --resume goes on with it, --out takes another folder",
        folder.display()
    );
    Ok(checkpoints)
}

fn open_metrics(config: &RunConfig, folder: &Path, step: u64) -> anyhow::Result<Metrics> {
    write_atomic(&folder.join("config.toml"), config.to_toml()?.as_bytes())?;
    Metrics::open(folder, step)
}

/// Checks that all ranks were started with the config of rank 0.
fn same_config(config: &RunConfig, group: &Group) -> anyhow::Result<()> {
    let text = group.of_first(|| Ok(config.to_toml()?.into_bytes()))?;
    let compare = || {
        let changed = config.differences(&RunConfig::parse(std::str::from_utf8(&text)?, &[])?)?;
        ensure!(changed.is_empty(), "its config is not that of rank 0: {}", changed.join("; "));
        Ok(())
    };
    group.settle(compare())
}

/// The last checkpoint of rank 0's folder, on every rank; `None`: there is none.
fn saved_run(checkpoints: Option<&Checkpoints>, group: &Group) -> anyhow::Result<Option<(Position, Tensors)>> {
    let read = || match checkpoints.filter(|c| c.exists()) {
        None => Ok(Vec::new()),
        Some(checkpoints) => {
            let (run, state) = checkpoints.load::<Position>()?;
            checkpoint::encode_tensors(&state, Some((POSITION, serde_json::to_string(&run)?)))
        }
    };
    let bytes = group.of_first(read)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let (state, mut metadata) = checkpoint::decode_tensors(&bytes)?;
    Ok(Some((serde_json::from_str(&metadata.remove(POSITION).unwrap_or_default())?, state)))
}

/// Name of the position beside the tensors on their way to the other ranks.
const POSITION: &str = "position";

/// Puts a checkpoint into the engine, and gives the teacher's probabilities if it has any; refuses if config or data decide other weights.
fn resume(
    saved: (Position, Tensors),
    config: &RunConfig,
    data: &DataRecord,
    engine: &mut dyn Engine,
    accept_changes: bool,
) -> anyhow::Result<(Position, Vec<f32>)> {
    let (mut run, mut state) = saved;
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
