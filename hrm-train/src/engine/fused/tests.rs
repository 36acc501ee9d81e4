//! Kernels against plain loops, gradients against finite differences, threads and resumption bit by bit.

mod rounding;

use std::iter::repeat_n;

use hrm_core::{Config, Mixer, Start};

use super::loss::Target;
use super::reference::{Carry as PlainCarry, Reference, Update};
use super::segment::{Carry, Net, Workspace};
use super::*;
use crate::engine::{Advice, Course, Depth, Engine, Gradient, Loss, OptimizerKind};
use crate::spec::Grouping;

/// A 4x4 grid with rows, columns and, with fields, cells.
fn spec(fields: u16, shared: bool, channels: u16, start: Start) -> ModelSpec {
    let mut groupings = vec![
        Grouping { ids: (0..16).map(|t| t / 4).collect(), merge_fields: false },
        Grouping { ids: (0..16).map(|t| t % 4).collect(), merge_fields: false },
    ];
    if fields > 1 {
        groupings.push(Grouping { ids: (0..16).collect(), merge_fields: true });
    }
    let config = Config {
        shared,
        mixer: Mixer::GroupSum,
        start,
        rope: false,
        tokens: 16,
        prefix: 0,
        vocab: 6,
        fields,
        channels,
        inner: channels + 2,
        token_inner: 0,
        heads: 0,
        groupings: groupings.len() as u8,
        h_layers: if shared { 2 } else { 1 },
        l_layers: 2,
        h_cycles: 2,
        l_cycles: 2,
    };
    ModelSpec { config, groupings }
}

fn options(batch: usize, gradient: Gradient, loss: Loss) -> EngineOptions {
    EngineOptions {
        batch,
        loss,
        gradient,
        optimizer: OptimizerKind::AdamW,
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

/// Latin squares with some cells blank; one label does not count.
fn puzzles(batch: usize) -> (Vec<u8>, Vec<u8>) {
    let mut labels: Vec<u8> = (0..batch * 16).map(|i| (2 + (i % 4 + i / 4 % 4 + i / 16) % 4) as u8).collect();
    let inputs = labels.iter().enumerate().map(|(i, &l)| if i * 7 % 5 < 2 { l } else { 1 }).collect();
    labels[3] = 0;
    (inputs, labels)
}

/// A fresh model whose zero tensors are not zero, so that every gradient is exercised.
fn awake(spec: &ModelSpec, opts: &EngineOptions) -> FusedEngine {
    let mut weights = FusedEngine::new(spec, opts).unwrap().weights();
    for (number, (name, (_, values))) in weights.iter_mut().enumerate() {
        if name.ends_with("bias") || name.starts_with('q') {
            let stream = Stream::new(9, Purpose::Noise, number as u64);
            values.iter_mut().enumerate().for_each(|(i, v)| *v = 0.3 * stream.truncated(i as u64));
        }
    }
    FusedEngine::from_weights(spec, opts, &weights).unwrap()
}

fn relative(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    found.iter().zip(expected).fold(0.0f32, |m, (f, e)| m.max((f - e).abs())) / largest
}

#[test]
fn forward_is_the_reference_on_every_instruction_set() {
    for (fields, shared, channels) in [(1, true, 8), (4, true, 40), (4, false, 21), (4, true, 96), (1, false, 64)] {
        let spec = spec(fields, shared, channels, Start::Random);
        let opts = options(1, Gradient::LastRecursion, Loss::Softmax);
        let engine = awake(&spec, &opts);
        let (tokens, labels) = puzzles(1);
        let plain = Reference::<f64>::new(&spec, &engine.weights()).unwrap();
        let mut carry = plain.start(11, 0);
        let answer = plain.segment(&plain.embed(&tokens).unwrap(), &mut carry, &mut ());
        let narrow = |z: &[f64]| z.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let d = &engine.d;
        for isa in Isa::all() {
            for train in [false, true] {
                let (mut h, mut l) = (vec![0.0; d.r * d.cp], vec![0.0; d.r * d.cp]);
                fresh(isa, d, &engine.init, Stream::new(11, Purpose::InferenceStart, 0), &mut h, &mut l);
                let net = Net { isa, d, w: &engine.packed };
                let mut ws = Workspace::new(d, train.then_some(Gradient::LastRecursion));
                let mut found = vec![0; d.s];
                let mut both = Carry { h: &mut h, l: &mut l };
                let q = if train {
                    net.train(
                        &opts,
                        &tokens,
                        Target { labels: &labels, weight: 1.0, teacher: None },
                        &mut both,
                        &mut vec![0.0; d.grad_len],
                        &mut ws,
                    )
                    .q_halt
                } else {
                    let q = net.infer(&tokens, &mut both, &mut found, &mut ws);
                    assert_eq!(found, answer.tokens);
                    q
                };
                let strip = |z: &[f32]| z.chunks_exact(d.cp).flat_map(|row| row[..d.c].to_vec()).collect::<Vec<_>>();
                for (name, found, expected) in [("z_H", &h, &carry.z_h), ("z_L", &l, &carry.z_l)] {
                    let error = relative(&strip(found), &narrow(expected));
                    assert!(error < 1e-5, "{name} differs by {error} ({}, C={channels}, F={fields}, train {train})", isa.name());
                }
                assert!((f64::from(q) - answer.q_halt).abs() < 1e-5, "q {q} expected {}", answer.q_halt);
                assert!(h.chunks_exact(d.cp).all(|row| row[d.c..].iter().all(|&v| v == 0.0)), "padding is not zero");
            }
        }
    }
}

/// Loss of one puzzle in f64, its module calls before `frozen` replaced by the states they gave.
#[allow(clippy::too_many_arguments)]
fn plain_loss(
    net: &Reference<f64>,
    opts: &EngineOptions,
    f: usize,
    tokens: &[u8],
    labels: &[u8],
    frozen: &PlainCarry<f64>,
    calls: &[Update],
    exact: bool,
) -> f64 {
    let x = net.embed(tokens).unwrap();
    let mut carry = frozen.clone();
    for &call in calls {
        net.update(call, &x, &mut carry, &mut ());
    }
    let answer = net.answer(&carry.z_h);
    let width = answer.logits.len() / labels.len();
    let (mut total, mut count) = (0.0, 0.0);
    for (logits, &label) in answer.logits.chunks_exact(width).zip(labels).filter(|(_, l)| **l != 0) {
        let label = usize::from(label) - if f > 1 { 2 } else { 0 };
        let s = |x: f64| match opts.loss {
            Loss::Softmax => x.exp(),
            Loss::Stablemax => {
                if x >= 0.0 {
                    x + 1.0
                } else {
                    1.0 / (1.0 - x)
                }
            }
        };
        total -= (s(logits[label]) / logits.iter().map(|&x| s(x)).sum::<f64>()).ln();
        count += 1.0;
    }
    let q = 1.0 / (1.0 + (-answer.q_halt).exp());
    (total / count - opts.q_weight * (if exact { q } else { 1.0 - q }).ln()) / opts.batch as f64
}

#[test]
fn gradients_are_the_finite_differences() {
    let cases = [
        (1, true, Gradient::LastRecursion, Loss::Softmax),
        (1, false, Gradient::OneStep, Loss::Stablemax),
        (4, true, Gradient::OneStep, Loss::Softmax),
        (4, true, Gradient::LastRecursion, Loss::Stablemax),
        (4, false, Gradient::LastRecursion, Loss::Softmax),
        (4, true, Gradient::Segment, Loss::Softmax),
        (1, false, Gradient::Segment, Loss::Softmax),
    ];
    for (fields, shared, gradient, loss) in cases {
        let batch = 6;
        let spec = spec(fields, shared, 5, Start::Fixed);
        let opts = options(batch, gradient, loss);
        let mut engine = awake(&spec, &opts);
        let (inputs, labels) = puzzles(batch);
        let weights = engine.weights();
        let (outcomes, found) = engine.gradient(&inputs, &labels, &vec![true; batch], &Course::default()).unwrap();

        let (h_cycles, l_cycles) = (usize::from(spec.config.h_cycles), usize::from(spec.config.l_cycles));
        let cycle = repeat_n(Update::L, l_cycles).chain([Update::H]);
        let calls: Vec<_> = repeat_n(cycle, h_cycles).flatten().collect();
        let with_gradient = match gradient {
            Gradient::OneStep => 2,
            Gradient::LastRecursion => l_cycles + 1,
            Gradient::Segment => calls.len(),
        };
        let (before, calls) = calls.split_at(calls.len() - with_gradient);
        let base = Reference::<f64>::new(&spec, &weights).unwrap();
        let frozen: Vec<_> = inputs
            .chunks_exact(16)
            .map(|tokens| {
                let (x, mut carry) = (base.embed(tokens).unwrap(), base.start(0, 0));
                before.iter().for_each(|&call| base.update(call, &x, &mut carry, &mut ()));
                carry
            })
            .collect();
        let total = |weights: &Tensors| -> f64 {
            let net = Reference::<f64>::new(&spec, weights).unwrap();
            (0..batch)
                .map(|b| {
                    let cells = b * 16..(b + 1) * 16;
                    let exact = outcomes[b].exact;
                    plain_loss(&net, &opts, usize::from(fields), &inputs[cells.clone()], &labels[cells], &frozen[b], calls, exact)
                })
                .sum()
        };
        let reported: f64 = outcomes
            .iter()
            .map(|o| {
                let q = 1.0 / (1.0 + (-f64::from(o.q_halt)).exp());
                (f64::from(o.loss) - opts.q_weight * (if o.exact { q } else { 1.0 - q }).ln()) / batch as f64
            })
            .sum();
        assert!((reported - total(&weights)).abs() < 1e-5, "loss {reported} expected {}", total(&weights));
        for p in &engine.d.params {
            let mut expected = Vec::with_capacity(p.len);
            for i in 0..p.len {
                let mut moved = weights.clone();
                // The two points as f32 holds them, so that the step is exact.
                let mut at = |delta: f32| {
                    let value = weights[&p.name].1[i] + delta;
                    moved.get_mut(&p.name).unwrap().1[i] = value;
                    (f64::from(value), total(&moved))
                };
                let ((x1, y1), (x0, y0)) = (at(1e-3), at(-1e-3));
                expected.push(((y1 - y0) / (x1 - x0)) as f32);
            }
            let error = relative(&found[p.offset..p.offset + p.len], &expected);
            assert!(error < 1e-3, "gradient of {} is off by {error} (F={fields}, shared {shared}, {gradient:?}, {loss:?})", p.name);
        }
    }
}

#[test]
fn instruction_sets_agree() {
    let spec = spec(4, true, 40, Start::Random);
    let opts = EngineOptions { carry_noise: 0.1, ..options(5, Gradient::LastRecursion, Loss::Softmax) };
    let (inputs, labels) = puzzles(5);
    let run = |isa| {
        let mut engine = awake(&spec, &opts);
        engine.isa = isa;
        let mut z = vec![0.0; engine.d.r * engine.d.cp];
        fresh(isa, &engine.d, &engine.init, Stream::new(3, Purpose::Start, 8), &mut z, &mut vec![0.0; engine.d.r * engine.d.cp]);
        (z, engine.gradient(&inputs, &labels, &[true; 5], &Course::default()).unwrap().1)
    };
    let (starts, gradient) = run(Isa::all()[0]);
    assert!(starts.iter().any(|&v| v != 0.0));
    for &isa in &Isa::all()[1..] {
        let (other_starts, other) = run(isa);
        assert_eq!(starts, other_starts, "{} draws other numbers", isa.name());
        let error = relative(&other, &gradient);
        assert!(error < 1e-4, "{}: gradient differs by {error}", isa.name());
    }
}

#[test]
fn a_segment_of_another_depth_is_that_of_another_model() {
    let shallow = Depth { h_cycles: 1, l_cycles: 1 };
    let two_segments = Depth { h_cycles: 4, l_cycles: 2 };
    let cases = [(true, Gradient::LastRecursion, shallow), (false, Gradient::OneStep, shallow), (true, Gradient::Segment, two_segments)];
    for (shared, gradient, depth) in cases {
        let full = spec(4, shared, 16, Start::Random);
        let mut small = full.clone();
        (small.config.h_cycles, small.config.l_cycles) = (depth.h_cycles, depth.l_cycles);
        let opts = EngineOptions { threads: 2, ..options(5, gradient, Loss::Softmax) };
        let (inputs, labels) = puzzles(5);
        let mut deep = awake(&full, &opts);
        let mut shallow = FusedEngine::from_weights(&small, &opts, &deep.weights()).unwrap();
        let course = Course { depth: Some(depth), ..Course::default() };
        // At full depth before and after: workspaces follow the depth.
        let mut twin = awake(&full, &opts);
        for engine in [&mut deep, &mut twin] {
            engine.gradient(&inputs, &labels, &[true; 5], &Course::default()).unwrap();
        }
        shallow.restore(&deep.state().unwrap()).unwrap();
        let found = deep.gradient(&inputs, &labels, &[false; 5], &course).unwrap();
        assert_eq!(found, shallow.gradient(&inputs, &labels, &[false; 5], &Course::default()).unwrap());
        assert_ne!(found, twin.gradient(&inputs, &labels, &[false; 5], &Course::default()).unwrap());
        twin.restore(&deep.state().unwrap()).unwrap();
        let again = Course { depth: Some(Depth { h_cycles: 2, l_cycles: 2 }), weights: &[1.0; 5], ..Course::default() };
        assert_eq!(
            deep.gradient(&inputs, &labels, &[false; 5], &again).unwrap(),
            twin.gradient(&inputs, &labels, &[false; 5], &Course::default()).unwrap()
        );
    }
}

#[test]
fn each_row_counts_by_its_weight() {
    let spec = spec(4, true, 16, Start::Random);
    let opts = options(5, Gradient::LastRecursion, Loss::Stablemax);
    let (inputs, labels) = puzzles(5);
    let run =
        |weights: &[f32]| awake(&spec, &opts).gradient(&inputs, &labels, &[true; 5], &Course { weights, ..Course::default() }).unwrap();
    let weights = [0.5, 0.0, 2.0, 1.25, 3.0];
    let (outcomes, found) = run(&weights);
    let mut expected = vec![0.0; found.len()];
    for (b, &weight) in weights.iter().enumerate() {
        let mut only = [0.0; 5];
        only[b] = 1.0;
        let (alone, gradient) = run(&only);
        // What is reported does not depend on the weight.
        assert_eq!(alone, outcomes);
        expected.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += weight * g);
    }
    let error = relative(&found, &expected);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn a_teacher_is_a_mixture_of_labels() {
    for (fields, loss) in [(4, Loss::Softmax), (1, Loss::Stablemax), (4, Loss::Stablemax)] {
        let spec = spec(fields, true, 16, Start::Random);
        let opts = options(2, Gradient::LastRecursion, loss);
        let (inputs, labels) = puzzles(2);
        let other: Vec<u8> = labels.iter().map(|&l| if l == 0 { 0 } else { 2 + (l - 1) % 4 }).collect();
        // The halting loss asks whether the answer is right, which another label changes.
        let opts = EngineOptions { q_weight: 0.0, ..opts };
        let run = |labels: &[u8], teacher| {
            awake(&spec, &opts).gradient(&inputs, labels, &[true; 2], &Course { teacher, ..Course::default() }).unwrap()
        };
        let (width, first) = if fields > 1 { (4, 2) } else { (6, 0) };
        let mut probabilities = vec![0.0; 2 * 16 * width];
        for (cell, &label) in probabilities.chunks_exact_mut(width).zip(&other) {
            cell[usize::from(label).saturating_sub(first)] = 1.0;
        }
        let (outcomes, found) = run(&labels, Some(Advice { probabilities: &probabilities, share: 0.25 }));
        let ((own, a), (_, b)) = (run(&labels, None), run(&other, None));
        assert_eq!(outcomes, own);
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.75 * a + 0.25 * b).collect();
        let error = relative(&found, &expected);
        assert!(error < 1e-5, "{error}");
    }
}

fn noisy(threads: usize) -> EngineOptions {
    EngineOptions { threads, carry_noise: 0.1, clip: 1.0, ..options(11, Gradient::LastRecursion, Loss::Softmax) }
}

fn bits(tensors: &Tensors) -> Vec<(String, Vec<u32>)> {
    tensors.iter().map(|(name, (_, values))| (name.clone(), values.iter().map(|v| v.to_bits()).collect())).collect()
}

fn steps(engine: &mut FusedEngine, from: usize, count: usize) {
    let (inputs, labels) = puzzles(11);
    for step in from..from + count {
        let reset: Vec<bool> = (0..11).map(|b| (b + step) % 4 == 0).collect();
        engine.train_segment(&inputs, &labels, &reset, 1e-2).unwrap();
    }
}

#[test]
fn threads_change_no_bit() {
    let spec = spec(4, true, 24, Start::Random);
    let run = |threads| {
        let mut engine = FusedEngine::new(&spec, &noisy(threads)).unwrap();
        steps(&mut engine, 0, 4);
        bits(&engine.state().unwrap())
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn resumption_changes_no_bit() {
    let spec = spec(4, false, 24, Start::Random);
    for optimizer in [OptimizerKind::AdamW, OptimizerKind::AdamAtan2, OptimizerKind::Muon] {
        let opts = EngineOptions { optimizer, ..noisy(1) };
        let mut through = FusedEngine::new(&spec, &opts).unwrap();
        steps(&mut through, 0, 3);
        let state = through.state().unwrap();
        steps(&mut through, 3, 3);
        let mut resumed = FusedEngine::new(&spec, &EngineOptions { seed: 77, ..opts }).unwrap();
        resumed.restore(&state).unwrap();
        assert_eq!(bits(&resumed.state().unwrap()), bits(&state));
        steps(&mut resumed, 3, 3);
        assert_eq!(bits(&resumed.state().unwrap()), bits(&through.state().unwrap()));
        assert_eq!(bits(&resumed.weights()), bits(&through.weights()));
    }
}

#[test]
fn a_broken_state_changes_nothing() {
    let mut engine = FusedEngine::new(&spec(4, true, 8, Start::Fixed), &noisy(1)).unwrap();
    let state = engine.state().unwrap();
    for name in state.keys() {
        let mut broken = state.clone();
        broken.remove(name);
        let error = format!("{:#}", engine.restore(&broken).unwrap_err());
        assert!(error.contains(name.as_str()), "`{error}` does not name {name}");
        broken.insert(name.clone(), (vec![1, 2, 3], vec![0.5; 6]));
        assert!(engine.restore(&broken).is_err(), "{name} of another shape was taken");
        assert_eq!(bits(&engine.state().unwrap()), bits(&state));
    }
}

#[test]
fn a_few_puzzles_are_learnt_and_inferred() {
    for (fields, optimizer) in [(4, OptimizerKind::AdamAtan2), (1, OptimizerKind::AdamW)] {
        let spec = spec(fields, true, 16, Start::Fixed);
        let opts = EngineOptions { optimizer, weight_decay: 0.0, ..options(6, Gradient::LastRecursion, Loss::Softmax) };
        let mut engine = FusedEngine::new(&spec, &opts).unwrap();
        let (_, mut labels) = puzzles(6);
        labels[3] = 2 + 3;
        // One or two blanks a row, so that the solution is unique: an equivariant network cannot learn a choice between two.
        let blank = |i: usize| i % 4 == (i / 4 + i / 16) % 4 || i % 16 == 7;
        let inputs: Vec<u8> = labels.iter().enumerate().map(|(i, &l)| if blank(i) { 1 } else { l }).collect();
        for step in 0..700 {
            engine.train_segment(&inputs, &labels, &[step % 2 == 0; 6], 5e-3).unwrap();
        }
        let mut answers = Vec::new();
        engine.infer(&inputs, 2, 0, &mut |_, tokens, q| answers.push((tokens.to_vec(), q.to_vec()))).unwrap();
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[0].0, labels, "F={fields}");
        assert!(answers[0].1.iter().all(|&q| q > 0.0), "halt logits {:?}", answers[0].1);
    }
}

#[test]
fn the_reference_runs_what_the_engine_infers() {
    let spec = spec(4, true, 16, Start::Random);
    let mut engine = awake(&spec, &options(2, Gradient::OneStep, Loss::Softmax));
    let (inputs, _) = puzzles(3);
    let mut found = Vec::new();
    engine.infer(&inputs, 2, 42, &mut |_, tokens, q| found.push((tokens.to_vec(), q.to_vec()))).unwrap();
    for b in 0..3 {
        let run = reference::run(&spec, &engine.weights(), &inputs[b * 16..(b + 1) * 16], 2, 42, b as u64, &mut ()).unwrap();
        for ((_, answer), (tokens, q)) in run.iter().zip(&found) {
            assert_eq!(answer.tokens, tokens[b * 16..(b + 1) * 16]);
            assert!((answer.q_halt - q[b]).abs() < 1e-4);
        }
    }
}

#[test]
fn non_finite_losses_leave_the_weights() {
    let (spec, opts) = (spec(4, true, 8, Start::Fixed), options(2, Gradient::OneStep, Loss::Softmax));
    let mut weights = FusedEngine::new(&spec, &opts).unwrap().weights();
    weights.get_mut("head.weight").unwrap().1[0] = f32::INFINITY;
    let mut engine = FusedEngine::from_weights(&spec, &opts, &weights).unwrap();
    let (inputs, labels) = puzzles(2);
    assert!(engine.train_segment(&inputs, &labels, &[true; 2], 1e-3).is_err());
    assert_eq!(bits(&engine.weights()), bits(&weights));
}

#[test]
fn bad_input_is_refused() {
    let (mut model, opts) = (spec(4, true, 8, Start::Fixed), options(2, Gradient::OneStep, Loss::Softmax));
    let mut engine = FusedEngine::new(&model, &opts).unwrap();
    let (inputs, labels) = puzzles(2);
    let mut bad = |inputs: &[u8], labels: &[u8], reset: &[bool]| engine.train_segment(inputs, labels, reset, 1e-3).unwrap_err().to_string();
    assert!(bad(&inputs[1..], &labels, &[true; 2]).contains("inputs"));
    assert!(bad(&inputs, &labels, &[true; 3]).contains("reset"));
    let mut course = |course: Course<'_>| engine.train_course(&inputs, &labels, &[true; 2], &course, 1e-3).unwrap_err().to_string();
    assert!(course(Course { weights: &[1.0; 3], ..Course::default() }).contains("weights: 3 values, expected 2"));
    assert!(course(Course { weights: &[1.0, f32::NAN], ..Course::default() }).contains("NaN in batch row 1"));
    let advice = Advice { probabilities: &[0.25; 64], share: 0.5 };
    assert!(course(Course { teacher: Some(advice), ..Course::default() }).contains("64 probabilities, expected 128"));
    assert!(course(Course { identifiers: &[0, 2], ..Course::default() }).contains("puzzle identifier 2: this engine"));
    let deep = Depth { h_cycles: 1, l_cycles: 3 };
    assert!(course(Course { depth: Some(deep), ..Course::default() }).contains("3 l_cycles, expected 1 to the model's 2"));
    let mut bad = |inputs: &[u8], labels: &[u8], reset: &[bool]| engine.train_segment(inputs, labels, reset, 1e-3).unwrap_err().to_string();
    let with = |tokens: &[u8], token| [&tokens[..31], &[token]].concat();
    assert!(bad(&with(&inputs, 6), &labels, &[true; 2]).contains("token 6 in puzzle 1, cell 15"));
    assert!(bad(&inputs, &with(&labels, 1), &[true; 2]).contains("blank"));
    assert!(FusedEngine::new(&model, &EngineOptions { threads: 0, ..opts.clone() }).is_err());
    model.groupings.pop();
    assert!(FusedEngine::new(&model, &opts).is_err());
    model.config.mixer = Mixer::TokenMlp;
    model.config.groupings = 0;
    model.config.fields = 1;
    model.config.token_inner = 8;
    model.groupings.clear();
    assert!(FusedEngine::new(&model, &opts).err().unwrap().to_string().contains("TokenMlp"));
}
