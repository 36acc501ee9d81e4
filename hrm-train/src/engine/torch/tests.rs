//! Structured cells against the fused engine, exact resume, and the mixers that no published model has.

use anyhow::Result;
use hrm_core::{Config, Mixer, Start};

use super::{Batch, TorchEngine, TorchOptions};
use crate::engine::fused::FusedEngine;
use crate::engine::{Advice, Course, Depth, Engine, EngineOptions, Gradient, Loss, OptimizerKind, RowOutcome, Tensors};
use crate::spec::{Grouping, ModelSpec};

const BATCH: usize = 3;
const SIDE: usize = 4;
const CELLS: usize = SIDE * SIDE;

fn config(mixer: Mixer) -> Config {
    let attention = matches!(mixer, Mixer::Attention | Mixer::GroupAttention);
    Config {
        shared: false,
        mixer,
        start: Start::Random,
        rope: attention,
        tokens: CELLS as u16,
        prefix: 0,
        vocab: 6,
        fields: 1,
        channels: 12,
        inner: 20,
        token_inner: if mixer == Mixer::TokenMlp { 24 } else { 0 },
        heads: if attention { 3 } else { 0 },
        groupings: 0,
        h_layers: 1,
        l_layers: 2,
        h_cycles: 2,
        l_cycles: 2,
    }
}

/// Rows, columns, boxes and, with fields, the cell: the groupings of a 4x4 Sudoku.
fn structured(fields: bool, shared: bool, start: Start) -> ModelSpec {
    let ids = |f: fn(usize) -> usize| (0..CELLS).map(|t| f(t) as u16).collect();
    let mut groupings: Vec<Grouping> =
        [ids(|t| t / SIDE), ids(|t| t % SIDE), ids(|t| t / 8 * 2 + t % 4 / 2)].map(|ids| Grouping { ids, merge_fields: false }).into();
    if fields {
        groupings.push(Grouping { ids: ids(|t| t), merge_fields: true });
    }
    let config = Config {
        shared,
        start,
        fields: if fields { 4 } else { 1 },
        groupings: groupings.len() as u8,
        h_layers: if shared { 2 } else { 1 },
        ..config(Mixer::GroupSum)
    };
    ModelSpec { config, groupings }
}

fn options() -> EngineOptions {
    EngineOptions {
        batch: BATCH,
        loss: Loss::Stablemax,
        gradient: Gradient::LastRecursion,
        optimizer: OptimizerKind::AdamAtan2,
        betas: (0.9, 0.95),
        weight_decay: 0.1,
        ema: 0.9,
        q_weight: 0.5,
        carry_noise: 0.0,
        clip: 0.0,
        threads: 1,
        seed: 5,
    }
}

fn torch(spec: &ModelSpec) -> TorchOptions {
    TorchOptions::new(spec, "cpu", false, 0.1)
}

/// Puzzles that need not be Sudokus: tokens of a fixed pattern, some cells without a label.
fn puzzles() -> (Vec<u8>, Vec<u8>) {
    let labels: Vec<u8> = (0..BATCH * CELLS).map(|i| if i % 11 == 3 { 0 } else { 2 + (i * 7 % 13 % 4) as u8 }).collect();
    let inputs = labels.iter().enumerate().map(|(i, &t)| if i % 3 == 0 { t.max(1) } else { 1 }).collect();
    (inputs, labels)
}

fn close(what: &str, found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= bound * largest, "{what}, element {i}: {a} expected {b}, of up to {largest}");
    }
}

fn rows_close(what: &str, found: &[RowOutcome], expected: &[RowOutcome]) {
    for (a, b) in found.iter().zip(expected) {
        assert!((a.loss - b.loss).abs() < 2e-5 && (a.q_halt - b.q_halt).abs() < 2e-4, "{what}: {a:?} expected {b:?}");
        assert_eq!((a.cells, a.exact), (b.cells, b.exact), "{what}");
    }
}

/// Shallow at first, and rows of different weight.
fn course(step: usize) -> Course<'static> {
    let depth = Depth { h_cycles: 1 + (step / 2 % 2) as u8, l_cycles: 1 + (step % 2) as u8 };
    let weights: &[f32] = [&[0.5, 2.0, 0.75], &[1.5, 0.0, 1.0]][step % 2];
    Course { depth: Some(depth), weights, ..Course::default() }
}

/// A teacher that is of two minds, of models with four fields.
fn advised(step: usize) -> Course<'static> {
    const ANSWERS: [f32; BATCH * CELLS * 4] = {
        let mut answers = [0.125; BATCH * CELLS * 4];
        let mut cell = 0;
        while cell < BATCH * CELLS {
            answers[4 * cell + cell % 4] = 0.625;
            cell += 1;
        }
        answers
    };
    Course { teacher: Some(Advice { probabilities: &ANSWERS, share: 0.75 }), ..course(step) }
}

/// Runs both engines from the same weights through `steps` training segments and compares all they remember.
fn compare(what: &str, spec: &ModelSpec, options: &EngineOptions, steps: usize, course: fn(usize) -> Course<'static>) -> Result<()> {
    let mut weights = FusedEngine::new(spec, options)?.weights();
    // A fresh Q head is zero, and its gradient then misses the state's part.
    for (i, v) in weights.get_mut("q.weight").map(|(_, v)| v.iter_mut()).into_iter().flatten().enumerate() {
        *v = 0.3 - 0.05 * i as f32;
    }
    let mut fused = FusedEngine::from_weights(spec, options, &weights)?;
    let mut own = TorchEngine::from_weights(spec, options, &torch(spec), &weights)?;
    let (inputs, labels) = puzzles();
    for step in 0..steps {
        let reset = [step == 0, step == 0, step % 2 == 0];
        let course = course(step);
        let expected = fused.train_course(&inputs, &labels, &reset, &course, 1e-3)?;
        rows_close(what, &own.train_course(&inputs, &labels, &reset, &course, 1e-3)?, &expected);
    }
    let (expected, found) = (fused.state().unwrap(), own.state().unwrap());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, (shape, values)) in &expected {
        assert_eq!(&found[name].0, shape, "{what}: {name}");
        // Moments after one step are the gradient and its square; weights move by lr times an angle, which rounding can turn where the
        // gradient is nearly zero.
        let bound = if name.starts_with("weights.") || name.starts_with("mean.") { 2e-4 } else { 2e-3 };
        close(&format!("{what}: {name}"), &found[name].1, values, bound);
    }
    let mut answers = Vec::new();
    fused.infer(&inputs, 4, 9, &mut |_, tokens, q| answers.push((tokens.to_vec(), q.to_vec())))?;
    own.infer(&inputs, 4, 9, &mut |segment, tokens, q| {
        let (expected, expected_q) = &answers[segment];
        let equal = tokens.iter().zip(expected).filter(|(a, b)| a == b).count();
        assert!(equal + 1 >= tokens.len(), "{what}: {equal} of {} answers are the same in segment {segment}", tokens.len());
        close(&format!("{what}: q of segment {segment}"), q, expected_q, 2e-3);
    })?;
    Ok(())
}

#[test]
fn structured_cells_are_those_of_the_fused_engine() -> Result<()> {
    let base = options();
    let plain = |_| Course::default();
    compare("fields", &structured(true, false, Start::Random), &base, 1, plain)?;
    compare("fields, shared, several steps", &structured(true, true, Start::Fixed), &base, 4, plain)?;
    let one_step = EngineOptions { loss: Loss::Softmax, gradient: Gradient::OneStep, optimizer: OptimizerKind::AdamW, ..base.clone() };
    compare("one field, one step, softmax, AdamW", &structured(false, false, Start::Fixed), &one_step, 3, plain)?;
    let rough = EngineOptions { carry_noise: 0.1, clip: 0.05, ema: 0.0, ..base.clone() };
    compare("noise, clipping", &structured(true, false, Start::Random), &rough, 2, plain)?;
    compare("a course, shared", &structured(true, true, Start::Random), &base, 4, course)?;
    compare("a teacher", &structured(true, true, Start::Random), &base, 3, advised)?;
    let whole = EngineOptions { gradient: Gradient::Segment, ..base.clone() };
    compare("gradient through a segment", &structured(true, true, Start::Random), &whole, 1, plain)?;
    let unrolled = |_| Course { depth: Some(Depth { h_cycles: 4, l_cycles: 2 }), ..Course::default() };
    // One step: small differences grow along twelve calls.
    compare("gradient through two segments, two modules", &structured(false, false, Start::Fixed), &whole, 1, unrolled)?;
    let muon = EngineOptions { optimizer: OptimizerKind::Muon, clip: 0.05, ..base.clone() };
    compare("Muon", &structured(true, false, Start::Random), &muon, 3, plain)?;
    compare("a course, one step", &structured(false, false, Start::Fixed), &one_step, 3, course)
}

#[test]
fn fresh_models_are_those_of_the_fused_engine() -> Result<()> {
    let spec = structured(true, false, Start::Random);
    let (fused, own) = (FusedEngine::new(&spec, &options())?.weights(), TorchEngine::new(&spec, &options(), &torch(&spec))?.weights());
    assert_eq!(own, fused);
    Ok(())
}

/// A model of every mixer.
fn models() -> Vec<ModelSpec> {
    let grouped = structured(false, false, Start::Random);
    let attention = ModelSpec { config: Config { groupings: 3, ..config(Mixer::GroupAttention) }, groupings: grouped.groupings.clone() };
    let public = |config: Config| ModelSpec { config, groupings: Vec::new() };
    vec![
        grouped,
        attention,
        public(Config { prefix: 1, start: Start::Fixed, ..config(Mixer::Attention) }),
        public(Config { prefix: 2, shared: true, h_layers: 2, ..config(Mixer::TokenMlp) }),
    ]
}

#[test]
fn resumed_runs_are_the_same_bit_for_bit() -> Result<()> {
    let (inputs, labels) = puzzles();
    let options = EngineOptions { carry_noise: 0.05, ..options() };
    for spec in models() {
        let step = |engine: &mut TorchEngine, i: u32| {
            engine.train_course(&inputs, &labels, &[i == 0, i.is_multiple_of(3), i.is_multiple_of(2)], &course(i as usize), 1e-2)
        };
        let mut whole = TorchEngine::new(&spec, &options, &torch(&spec))?;
        (0..3).try_for_each(|i| step(&mut whole, i).map(drop))?;
        let saved = whole.state().unwrap();
        (3..6).try_for_each(|i| step(&mut whole, i).map(drop))?;
        let mut resumed = TorchEngine::new(&spec, &EngineOptions { seed: 77, ..options.clone() }, &torch(&spec))?;
        resumed.restore(&saved)?;
        assert_eq!(resumed.state().unwrap(), saved, "{:?}", spec.config.mixer);
        (3..6).try_for_each(|i| step(&mut resumed, i).map(drop))?;
        assert_eq!(resumed.state().unwrap(), whole.state().unwrap(), "{:?}", spec.config.mixer);
    }
    Ok(())
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() -> Result<()> {
    let spec = structured(true, false, Start::Fixed);
    let mut engine = TorchEngine::new(&spec, &options(), &torch(&spec))?;
    let before = engine.state().unwrap();
    let mut broken = before.clone();
    broken.remove("v.head.weight");
    let error = engine.restore(&broken).unwrap_err().to_string();
    assert!(error.contains("v.head.weight"), "{error}");
    assert_eq!(engine.state().unwrap(), before);
    Ok(())
}

/// Trains on three fixed puzzles and gives the loss before and after.
fn learn(spec: &ModelSpec, options: &EngineOptions, torch: &TorchOptions) -> Result<(f32, f32)> {
    let (inputs, labels) = puzzles();
    let mut engine = TorchEngine::new(spec, options, torch)?;
    let mean = |rows: &[RowOutcome]| rows.iter().map(|r| r.loss).sum::<f32>() / rows.len() as f32;
    let first = mean(&engine.train_segment(&inputs, &labels, &[true; BATCH], 1e-2)?);
    for i in 0..60 {
        engine.train_segment(&inputs, &labels, &[i % 8 == 0; BATCH], 1e-2)?;
    }
    let last = mean(&engine.train_segment(&inputs, &labels, &[true; BATCH], 1e-2)?);
    Ok((first, last))
}

#[test]
fn every_mixer_learns() -> Result<()> {
    for spec in models() {
        for bf16 in [false, true] {
            let (first, last) = learn(&spec, &options(), &TorchOptions { bf16, ..torch(&spec) })?;
            println!("{:?}, bf16 {bf16}: loss {first} before, {last} after", spec.config.mixer);
            // Group sums know no positions beyond the groups, so they cannot learn these labels by heart.
            assert!(last < 0.75 * first, "{:?}, bf16 {bf16}: loss {first} before, {last} after", spec.config.mixer);
        }
    }
    Ok(())
}

/// Attention inside groups sees no row outside them: what a token answers after one L and one H call depends on its groups' members only.
#[test]
fn group_attention_stays_in_its_groups() -> Result<()> {
    let rows = structured(false, false, Start::Fixed).groupings[..1].to_vec();
    let config = Config { groupings: 1, start: Start::Fixed, ..config(Mixer::GroupAttention) };
    let spec = ModelSpec { config, groupings: rows };
    let engine = TorchEngine::new(&spec, &options(), &torch(&spec))?;
    let logits = |inputs: &[u8]| -> Result<Vec<f32>> {
        let mut out = Vec::new();
        engine.trace(inputs, &[], 2, 0, 0, &mut |_, seen| {
            out = seen.logits;
            Ok(())
        })?;
        Ok(out)
    };
    let (inputs, _) = puzzles();
    let mut other = inputs[..CELLS].to_vec();
    other[0] = if other[0] == 2 { 3 } else { 2 };
    let (a, b) = (logits(&inputs[..CELLS])?, logits(&other)?);
    let row = a.len() / SIDE;
    assert_ne!(a[row / SIDE..row], b[row / SIDE..row], "the other cells of row 0 see the change");
    close("cells of the other rows", &b[row..], &a[row..], 1e-6);
    Ok(())
}

/// One input with three answers: which is meant, the identifier alone tells.
#[test]
fn identifiers_tell_puzzles_apart() -> Result<()> {
    let config = Config { prefix: 2, shared: true, h_layers: 2, start: Start::Fixed, ..config(Mixer::Attention) };
    let spec = ModelSpec { config, groupings: Vec::new() };
    let mut torch = TorchOptions { puzzle_emb_lr_ratio: 10.0, ..torch(&spec) };
    torch.public.as_mut().expect("attention has the public form").puzzle_identifiers = 4;
    let mut engine = TorchEngine::new(&spec, &EngineOptions { ema: 0.0, ..options() }, &torch)?;
    let inputs = puzzles().0[..CELLS].repeat(BATCH);
    let labels: Vec<u8> = (0..BATCH * CELLS).map(|i| 2 + ((i + i / CELLS) % 4) as u8).collect();
    let course = Course { identifiers: &[1, 2, 3], ..Course::default() };
    for i in 0..200 {
        engine.train_course(&inputs, &labels, &[i % 4 == 0; BATCH], &course, 5e-3)?;
    }
    let right = |engine: &mut TorchEngine, identifiers: &[usize]| -> Result<usize> {
        let mut right = 0;
        engine.infer_as(identifiers, &inputs, 4, 0, &mut |_, answers, _| {
            right = answers.iter().zip(&labels).filter(|(a, l)| a == l).count()
        })?;
        Ok(right)
    };
    let (own, swapped) = (right(&mut engine, &[1, 2, 3])?, right(&mut engine, &[2, 3, 1])?);
    // By chance a quarter is right, and as much of both.
    assert!(own > BATCH * CELLS / 2 && swapped < BATCH * CELLS / 3, "{own} and {swapped} of {} cells", BATCH * CELLS);
    assert!(right(&mut engine, &[4, 0, 0]).unwrap_err().to_string().contains("puzzle identifier 4, expected below 4"));
    assert!(right(&mut engine, &[1]).unwrap_err().to_string().contains("1 values, expected 3"));
    Ok(())
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let spec = structured(true, false, Start::Fixed);
    let (mut inputs, labels) = puzzles();
    let mut engine = TorchEngine::new(&spec, &options(), &torch(&spec))?;
    let before = engine.state().unwrap();
    inputs[CELLS + 2] = 6;
    let message = |result: Result<super::SegmentReport>| result.unwrap_err().to_string();
    let batch = Batch { inputs: &inputs, labels: &labels, identifiers: &[], reset: &[true; BATCH], course: Course::default() };
    assert!(message(engine.train(&batch, 1e-3)).contains("token 6 in puzzle 1, cell 2"));
    assert!(message(engine.train(&Batch { reset: &[true], ..batch }, 1e-3)).contains("reset: 1 values"));
    assert_eq!(engine.state().unwrap(), before);

    let no_device = TorchOptions { device: "tpu".into(), ..torch(&spec) };
    assert!(TorchEngine::new(&spec, &options(), &no_device).err().is_some_and(|e| e.to_string().contains("tpu")));
    let mut weights: Tensors = engine.weights();
    weights.insert("extra".into(), (vec![1], vec![0.0]));
    let error = TorchEngine::from_weights(&spec, &options(), &torch(&spec), &weights).err();
    assert!(error.is_some_and(|e| e.to_string().contains("extra")));
    Ok(())
}

/// bf16 often gives a logit of exactly 1, where the branch of stablemax that is not taken has its pole.
#[test]
fn stablemax_has_a_gradient_at_one() -> Result<()> {
    let logits = tch::Tensor::f_from_slice(&[1.0f32, -0.5, 0.25])?.f_reshape([1, 1, 3])?.f_set_requires_grad(true)?;
    let (halt, labels) = (tch::Tensor::f_from_slice(&[0.0f32])?, tch::Tensor::f_from_slice(&[1i64])?.f_reshape([1, 1])?);
    let parts = super::loss::losses(Loss::Stablemax, &logits, &halt, &labels, 0, None, None)?;
    parts.cells.f_sum(tch::Kind::Double)?.f_backward()?;
    // s = (2, 1/1.5, 1.25): d(-log p_1)/dx_0 = 1 / sum s, d/dx_1 = s_1^2 (1 / sum s - 1 / s_1), d/dx_2 = 1 / sum s.
    let sum = 2.0 + 1.0 / 1.5 + 1.25f32;
    close("gradient", &super::host(&logits.grad())?, &[1.0 / sum, (1.0 / sum - 1.5) / 2.25, 1.0 / sum], 1e-6);
    Ok(())
}

#[test]
fn a_loss_that_is_no_number_leaves_the_weights() -> Result<()> {
    let spec = structured(true, false, Start::Fixed);
    let mut weights = TorchEngine::new(&spec, &options(), &torch(&spec))?.weights();
    weights.insert("head.weight".into(), (vec![1, 12], vec![f32::NAN; 12]));
    let mut engine = TorchEngine::from_weights(&spec, &options(), &torch(&spec), &weights)?;
    let before = engine.state().unwrap();
    let (inputs, labels) = puzzles();
    let error = engine.train_segment(&inputs, &labels, &[true; BATCH], 1e-3).unwrap_err().to_string();
    assert!(error.contains("NaN"), "{error}");
    let (after, bits) =
        (engine.state().unwrap(), |t: &Tensors| t.values().flat_map(|(_, v)| v.iter().map(|x| x.to_bits())).collect::<Vec<_>>());
    assert_eq!(bits(&after), bits(&before));
    Ok(())
}
