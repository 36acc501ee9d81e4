//! The float models against vectors made by the public PyTorch implementations of HRM and TRM.
//!
//! Every folder of `../shared/parity` beside the repository, and every folder named by `HRM_PARITY_DIR` (one folder of vectors, or a folder
//! of them). A folder holds `config.json` (public key names), `weights.safetensors`, `trace.safetensors` (a batch, outputs of evaluation
//! segments, gradients of the first training segment, all tensors after three) and `train_history.json`.
//!
//! Errors are relative: the largest difference over the largest value of the expected tensor. The vectors are f32, so each side rounds its
//! sums in another order (which the CPU decides), and a network that iterates amplifies that. How much is measured: the same is run with weights that
//! are changed in their last place, and what that changes, times [`AMPLIFIED`], is allowed beside the bounds below.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hrm_train::engine::torch::{Batch, SegmentReport, TorchEngine, TorchOptions};
use hrm_train::engine::{Course, EngineOptions, Gradient, Loss, OptimizerKind, Tensors};
use hrm_train::import::{self, PublicModel};
use serde_json::Value;

/// Learning rate of the weights and of the puzzle embeddings, and weight decay of both, that the vectors were made with.
const LR: f64 = 1e-3;
const PUZZLE_LR: f64 = 1e-2;
const DECAY: f64 = 0.1;

/// Bound on logits, Q and states after an evaluation segment.
const EVALUATION: f64 = 1e-4;
/// Orders of summation differ in every product, the weights of [`Vectors::rounded`] once.
const AMPLIFIED: f64 = 4.0;
/// Draws of weights changed in their last place.
const DRAWS: u64 = 6;

/// Bound on gradients of the first training segment.
const GRADIENT: f64 = 1e-4;
/// Bound on losses of the first, second and third training segment.
const LOSSES: [f64; 3] = [1e-5, 2e-5, 5e-5];
/// Bound on the root mean square error of what three steps changed, over the root mean square of the change. Elements whose gradient is
/// lost in rounding still move by up to the learning rate, which is why this is no bound on the largest error.
const STEPS: f64 = 5e-4;

/// One folder of vectors.
struct Vectors {
    name: String,
    model: PublicModel,
    weights: Tensors,
    trace: Tensors,
    history: Vec<Value>,
    batch: usize,
    inputs: Vec<u8>,
    labels: Vec<u8>,
    identifiers: Vec<usize>,
}

impl Vectors {
    fn load(dir: &Path) -> Result<Self> {
        let (model, weights) = import::load(&dir.join("config.json"), &dir.join("weights.safetensors"))?;
        let read = |name: &str| std::fs::read(dir.join(name)).with_context(|| format!("cannot read {}", dir.join(name).display()));
        let trace = import::parse(&read("trace.safetensors")?)?;
        let history: Vec<Value> = serde_json::from_slice(&read("train_history.json")?)?;
        let (shape, inputs) = trace.get("inputs").context("the trace has no inputs")?;
        let (_, labels) = trace.get("labels").context("the trace has no labels")?;
        let tokens = |values: &[f32]| values.iter().map(|&v| v.max(0.0) as u8).collect::<Vec<u8>>();
        let identifiers = trace.get("puzzle_identifiers").map(|(_, ids)| ids.iter().map(|&id| id as usize).collect()).unwrap_or_default();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, batch: shape[0], inputs: tokens(inputs), labels: tokens(labels), identifiers, model, weights, trace, history })
    }

    fn engine(&self, change: &dyn Fn(&mut Settings)) -> Result<TorchEngine> {
        self.engine_of(change, &self.weights)
    }

    /// Engines with weights that are changed in their last place, up or down at random.
    fn rounded(&self, change: &dyn Fn(&mut Settings)) -> Result<Vec<TorchEngine>> {
        let engine = |draw: u64| {
            let mut state = draw;
            let mut sign = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if state >> 63 == 0 { f32::EPSILON } else { -f32::EPSILON }
            };
            let mut weights = self.weights.clone();
            weights.values_mut().flat_map(|(_, values)| values).for_each(|v| *v += *v * sign());
            self.engine_of(change, &weights)
        };
        (1..=DRAWS).map(engine).collect()
    }

    fn engine_of(&self, change: &dyn Fn(&mut Settings), weights: &Tensors) -> Result<TorchEngine> {
        let mut settings = Settings {
            model: self.model.clone(),
            options: EngineOptions {
                batch: self.batch,
                loss: self.model.loss,
                gradient: self.model.gradient,
                optimizer: OptimizerKind::AdamAtan2,
                betas: (0.9, 0.95),
                weight_decay: DECAY,
                ema: 0.0,
                q_weight: 0.5,
                carry_noise: 0.0,
                clip: 0.0,
                threads: 1,
                seed: 0,
            },
            puzzle_lr: PUZZLE_LR,
        };
        change(&mut settings);
        let torch = TorchOptions {
            device: "cpu".into(),
            bf16: settings.model.bf16,
            public: Some(settings.model.options),
            puzzle_emb_lr_ratio: settings.puzzle_lr / LR,
            puzzle_emb_weight_decay: DECAY,
        };
        TorchEngine::from_weights(&settings.model.spec, &settings.options, &torch, weights)
    }

    fn expected(&self, name: &str) -> Result<&[f32]> {
        Ok(&self.trace.get(name).with_context(|| format!("the trace has no `{name}`"))?.1)
    }

    /// Segments whose outputs the trace holds.
    fn segments(&self) -> Vec<usize> {
        let mut found: Vec<usize> =
            self.trace.keys().filter_map(|k| k.strip_prefix("eval.")?.strip_suffix(".logits")?.parse().ok()).collect();
        found.sort_unstable();
        found
    }
}

/// What a test of the test may change.
struct Settings {
    model: PublicModel,
    options: EngineOptions,
    puzzle_lr: f64,
}

/// Largest difference over largest expected value.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let largest = expected.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
    let difference = found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    // A NaN must not hide in a maximum.
    let worst = difference.fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
    if worst == 0.0 { 0.0 } else { worst / largest.max(1e-12) }
}

fn within(what: &str, found: f64, bound: f64) -> Result<()> {
    ensure!(found <= bound, "{what}: relative error {found:.1e}, expected at most {bound:.0e}");
    Ok(())
}

/// The larger of `bound` and what rounding may do, of which `measured` are samples.
fn allowed(bound: f64, measured: impl IntoIterator<Item = f64>) -> f64 {
    bound.max(AMPLIFIED * measured.into_iter().fold(0.0, f64::max))
}

/// Logits, Q and states after the wanted segments.
fn outputs(v: &Vectors, engine: &TorchEngine, wanted: &[usize]) -> Result<Vec<(usize, &'static str, Vec<f32>)>> {
    let mut found = Vec::new();
    engine.trace(&v.inputs, &v.identifiers, wanted[wanted.len() - 1] + 1, 0, 0, &mut |s, seen| {
        if wanted.contains(&s) {
            let seen = [
                ("logits", &seen.logits),
                ("q_halt", &seen.q_halt),
                ("q_continue", &seen.q_continue),
                ("z_H", &seen.z_h),
                ("z_L", &seen.z_l),
            ];
            found.extend(seen.map(|(name, values)| (s, name, values.clone())));
        }
        Ok(())
    })?;
    Ok(found)
}

fn check_eval(v: &Vectors, change: &dyn Fn(&mut Settings)) -> Result<String> {
    let wanted = v.segments();
    ensure!(!wanted.is_empty(), "the trace has no evaluation segments");
    let found = outputs(v, &v.engine(change)?, &wanted)?;
    let rounded: Vec<_> = v.rounded(change)?.iter().map(|engine| outputs(v, engine, &wanted)).collect::<Result<_>>()?;
    let mut worst = vec![0.0f64; wanted.len()];
    for (i, (s, name, values)) in found.iter().enumerate() {
        let e = error(values, v.expected(&format!("eval.{s}.{name}"))?);
        let bound = allowed(EVALUATION, rounded.iter().map(|outputs| error(&outputs[i].2, values)));
        within(&format!("{name} after segment {s}"), e, bound)?;
        let at = wanted.iter().position(|w| w == s).unwrap_or_default();
        worst[at] = worst[at].max(e);
    }
    Ok(wanted.iter().zip(worst).map(|(s, worst)| format!(" {s}: {worst:.0e}")).collect())
}

fn first_batch<'a>(v: &'a Vectors, reset: &'a [bool]) -> Batch<'a> {
    Batch { inputs: &v.inputs, labels: &v.labels, identifiers: &v.identifiers, reset, course: Course::default() }
}

fn check_gradients(v: &Vectors, change: &dyn Fn(&mut Settings)) -> Result<String> {
    let mut engine = v.engine(change)?;
    let (_, found) = engine.gradients(&first_batch(v, &vec![true; v.batch]))?;
    let (mut worst, mut compared) = (0.0f64, 0);
    for (name, (_, expected)) in v.trace.iter().filter_map(|(k, t)| Some((k.strip_prefix("grad.")?, t))) {
        let (_, values) = found.get(name).with_context(|| format!("no gradient of `{name}`"))?;
        let e = error(values, expected);
        within(&format!("gradient of `{name}`"), e, GRADIENT)?;
        worst = worst.max(e);
        compared += 1;
    }
    ensure!(compared == found.len(), "{compared} gradients were compared, the model has {}", found.len());
    Ok(format!(" {compared} tensors, {worst:.0e}"))
}

fn number(record: &Value, key: &str) -> Result<f64> {
    record.get(key).and_then(Value::as_f64).with_context(|| format!("train_history.json: no number `{key}`"))
}

/// Which rows halt by the published rule.
fn halted(v: &Vectors, seen: &SegmentReport) -> Vec<bool> {
    let public = &v.model.options;
    let halts = |b: usize| {
        let threshold = if public.q_continue { seen.q_continue[b] } else { 0.0 };
        seen.steps[b] >= public.halt_max_steps || (public.halt_max_steps > 1 && seen.rows[b].q_halt > threshold)
    };
    (0..v.batch).map(halts).collect()
}

fn losses(seen: &SegmentReport) -> Vec<(&'static str, f64)> {
    let mut losses = vec![("loss", seen.loss), ("lm_loss", seen.cells_loss), ("q_halt_loss", seen.halt_loss)];
    losses.extend(seen.continue_loss.map(|value| ("q_continue_loss", value)));
    losses
}

fn check_training(v: &Vectors, change: &dyn Fn(&mut Settings)) -> Result<String> {
    let mut engine = v.engine(change)?;
    let mut reset = vec![true; v.batch];
    let mut rounded: Vec<_> = v.rounded(change)?.into_iter().map(|engine| (engine, vec![true; v.batch])).collect();
    let s = v.inputs.len() / v.batch;
    let labelled: Vec<f64> = v.labels.chunks(s).map(|row| row.iter().filter(|&&t| t > 0).count() as f64).collect();
    let mut worst = 0.0f64;
    for (step, record) in v.history.iter().enumerate() {
        let seen = engine.train(&first_batch(v, &reset), LR)?;
        let halted = halted(v, &seen);
        let losses = losses(&seen);
        let mut others = Vec::new();
        for (engine, reset) in &mut rounded {
            let seen = engine.train(&first_batch(v, reset), LR)?;
            *reset = self::halted(v, &seen);
            others.push(self::losses(&seen));
        }
        ensure!(
            record.get("q_continue_loss").is_some() == seen.continue_loss.is_some(),
            "only one side has a q_continue_loss in training segment {step}"
        );
        for (i, (name, found)) in losses.into_iter().enumerate() {
            let expected = number(record, name)?;
            let e = (found - expected).abs() / expected.abs().max(1e-12);
            let bound = allowed(LOSSES[step.min(2)], others.iter().map(|losses| (losses[i].1 - found).abs() / found.abs().max(1e-12)));
            within(&format!("{name} of training segment {step} ({found} instead of {expected})"), e, bound)?;
            worst = worst.max(e);
        }
        for (name, found) in [("steps", serde_json::json!(seen.steps)), ("halted", serde_json::json!(halted))] {
            if let Some(expected) = record.get(name).filter(|value| value.is_array()) {
                ensure!(&found == expected, "{name} of training segment {step}: {found}, expected {expected}");
            }
        }
        // The published metrics: sums over the rows that halted.
        let counted = || (0..v.batch).filter(|&b| halted[b] && labelled[b] > 0.0);
        let exact = |b: usize| seen.rows[b].exact;
        for (name, found) in [
            ("count", counted().count() as f64),
            ("accuracy", counted().map(|b| f64::from(seen.rows[b].cells) / labelled[b]).sum()),
            ("exact_accuracy", counted().filter(|&b| exact(b)).count() as f64),
            ("q_halt_accuracy", counted().filter(|&b| (seen.rows[b].q_halt >= 0.0) == exact(b)).count() as f64),
        ] {
            let expected = number(record, name)?;
            ensure!((found - expected).abs() < 1e-5, "{name} of training segment {step}: {found}, expected {expected}");
        }
        reset = halted;
    }
    let found = hrm_train::engine::Engine::weights(&engine);
    let others: Vec<Tensors> = rounded.iter().map(|(engine, _)| hrm_train::engine::Engine::weights(engine)).collect();
    let (mut step_error, mut compared) = (0.0f64, 0);
    for (name, (_, expected)) in v.trace.iter().filter_map(|(k, t)| Some((k.strip_prefix("after3.")?, t))) {
        let values = &found.get(name).with_context(|| format!("no tensor `{name}`"))?.1;
        let before = &v.weights.get(name).with_context(|| format!("no tensor `{name}` before training"))?.1;
        ensure!(values.len() == expected.len(), "`{name}` has {} values, expected {}", values.len(), expected.len());
        let square = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>();
        let (difference, change) = (square(values, expected).sqrt(), square(expected, before).sqrt());
        let e = if difference == 0.0 { 0.0 } else { difference / change.max(1e-12) };
        let bound = allowed(STEPS, others.iter().map(|other| square(&other[name].1, values).sqrt() / change.max(1e-12)));
        within(&format!("change of `{name}` by {} steps", v.history.len()), e, bound)?;
        step_error = step_error.max(e);
        compared += 1;
    }
    ensure!(compared == found.len(), "{compared} tensors were compared after training, the model has {}", found.len());
    Ok(format!(" losses {worst:.0e}, change of {compared} tensors {step_error:.0e}"))
}

/// All folders of vectors there are, with or without those named by the environment; prints which places have none.
fn folders(with_named: bool) -> Result<Vec<PathBuf>> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/parity");
    let mut places = vec![(shared, false)];
    if let Some(named) = std::env::var_os("HRM_PARITY_DIR").filter(|named| with_named && !named.is_empty()) {
        places.extend(std::env::split_paths(&named).map(|path| (path, true)));
    }
    let mut found = Vec::new();
    for (place, named) in places {
        if !place.is_dir() {
            ensure!(!named, "HRM_PARITY_DIR names {}, which is no folder", place.display());
            println!("skipped: no reference vectors in {}", place.display());
            continue;
        }
        if place.join("config.json").is_file() {
            found.push(place);
            continue;
        }
        let mut inside: Vec<PathBuf> = std::fs::read_dir(&place)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        inside.retain(|path| path.join("config.json").is_file());
        inside.sort();
        ensure!(!inside.is_empty() || !named, "HRM_PARITY_DIR names {}, where no folder has a config.json", place.display());
        found.extend(inside);
    }
    Ok(found)
}

type Check = fn(&Vectors, &dyn Fn(&mut Settings)) -> Result<String>;

/// Runs a check on every folder and fails with all that was wrong.
fn on_all(what: &str, check: Check) -> Result<()> {
    let mut failures = Vec::new();
    for folder in folders(true)? {
        let result = Vectors::load(&folder).and_then(|v| Ok((v.name.clone(), check(&v, &|_| ())?)));
        match result {
            Ok((name, report)) => println!("{name}: {what}:{report}"),
            Err(error) => failures.push(format!("{}: {what}: {error:#}", folder.display())),
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

#[test]
fn evaluation() -> Result<()> {
    on_all("relative error after segment", check_eval)
}

#[test]
fn gradients() -> Result<()> {
    on_all("gradients", check_gradients)
}

#[test]
fn training() -> Result<()> {
    on_all("three training segments", check_training)
}

/// Changes of training so small that they drown where a model amplifies rounding, as `trm_mlp` does.
const SMALL: [&str; 3] = ["weight decay", "decay of the second moment", "rate of the puzzle embedding"];

/// The checks above would notice a wrong model: each change of the loss, the extent of the gradient, the optimizer or the positions fails
/// the check that is there for it, [`SMALL`] ones on some vectors at least. Only on the vectors of the repository: in others a change may
/// rightly have no effect (one cycle has one extent of the gradient).
#[test]
fn changes_are_noticed() -> Result<()> {
    type Change = (&'static str, Check, fn(&mut Settings));
    let changes: [Change; 11] = [
        ("loss", check_gradients, |s| s.options.loss = if s.options.loss == Loss::Stablemax { Loss::Softmax } else { Loss::Stablemax }),
        ("weight of the Q loss", check_gradients, |s| s.options.q_weight = 0.25),
        ("extent of the gradient", check_gradients, |s| {
            s.options.gradient = if s.options.gradient == Gradient::OneStep { Gradient::LastRecursion } else { Gradient::OneStep };
        }),
        ("optimizer", check_training, |s| s.options.optimizer = OptimizerKind::AdamW),
        ("weight decay", check_training, |s| s.options.weight_decay = 0.0),
        ("decay of the second moment", check_training, |s| s.options.betas.1 = 0.999),
        ("rate of the puzzle embedding", check_training, |s| s.puzzle_lr *= 1.01),
        ("value of going on", check_training, |s| s.model.options.q_continue = !s.model.options.q_continue),
        ("rotary embedding", check_eval, |s| s.model.spec.config.rope = false),
        ("base of the rotary embedding", check_eval, |s| s.model.options.rope_theta *= 1.1),
        ("epsilon of the norm", check_eval, |s| s.model.options.rms_eps = 1e-3),
    ];
    let folders = folders(false)?;
    let mut noticed = std::collections::BTreeSet::new();
    for folder in &folders {
        let v = Vectors::load(folder)?;
        for (what, check, change) in changes {
            let rotary = what.contains("rotary");
            let puzzle = what.contains("puzzle");
            if (rotary && !v.model.spec.config.rope) || (puzzle && v.model.options.puzzle_emb_ndim == 0) {
                continue;
            }
            match check(&v, &change) {
                Err(error) => {
                    noticed.insert(what);
                    println!("{}: a changed {what} fails: {error:#}", v.name);
                }
                Ok(_) => ensure!(SMALL.contains(&what), "{}: a changed {what} passes", v.name),
            }
        }
    }
    for (what, ..) in changes {
        ensure!(folders.is_empty() || noticed.contains(what), "a changed {what} is noticed nowhere");
    }
    Ok(())
}
