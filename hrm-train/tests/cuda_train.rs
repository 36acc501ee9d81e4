//! Training steps by the CUDA kernels against the engine on this host: as C++, and on a GPU where there is one.
//!
//! `cargo xtask test cuda` runs them with NVRTC and ptxas in reach.

#[path = "cuda/train_host.rs"]
mod host;
#[path = "cuda/ptxas.rs"]
mod ptxas;

use std::sync::{Arc, Mutex};

use hrm_core::{Config, Mixer, Start};
use hrm_train::engine::fused::FusedEngine;
use hrm_train::engine::fused::device::{Device, Gpu, Kernel, Open, Operand, Program, compile};
use hrm_train::engine::{Course, Depth, Engine, EngineOptions, Gradient, Loss, OptimizerKind, RowOutcome, Tensors};
use hrm_train::quantize::float::FloatNet;
use hrm_train::quantize::weights::NetWeights;
use hrm_train::quantize::{QuantizeOptions, calibrate};
use hrm_train::spec::{Grouping, ModelSpec};

use host::HostDevice;

/// A 4x4 grid with rows, columns, boxes and, with fields, cells.
fn spec(fields: u16, shared: bool, channels: u16, inner: u16, start: Start) -> ModelSpec {
    let by = |of: fn(u16) -> u16, merge_fields| Grouping { ids: (0..16).map(of).collect(), merge_fields };
    let mut groupings = vec![by(|t| t / 4, false), by(|t| t % 4, false), by(|t| t / 8 * 2 + t % 4 / 2, false)];
    if fields > 1 {
        groupings.push(by(|t| t, true));
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
        inner,
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
        optimizer: OptimizerKind::Muon,
        betas: (0.9, 0.95),
        weight_decay: 0.1,
        ema: 0.9,
        q_weight: 0.5,
        carry_noise: 0.02,
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

/// Fresh weights whose zero tensors are not zero, so that every gradient is exercised.
fn awake(spec: &ModelSpec, options: &EngineOptions) -> Tensors {
    let mut weights = FusedEngine::new(spec, options).unwrap().weights();
    for (name, (_, values)) in &mut weights {
        if name.ends_with("bias") || name.starts_with('q') {
            values.iter_mut().enumerate().for_each(|(i, v)| *v = 0.3 * (i as f32 * 1.7 + name.len() as f32).sin());
        }
    }
    weights
}

/// One L and one H call.
const SHALLOW: Option<Depth> = Some(Depth { h_cycles: 1, l_cycles: 1 });

fn on_host_with(flags: &'static [&'static str]) -> Open {
    Box::new(|program, slots| Ok(Box::new(HostDevice::start(program, slots, flags)?) as Box<dyn Device>))
}

fn on_host() -> Open {
    on_host_with(&[])
}

/// Distance of two vectors as a part of the length of the second.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    square(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / square(&mut expected.iter().copied()).max(1e-12)
}

/// One training step of `engine` from its start, and what the state says then.
fn step(engine: &mut FusedEngine, batch: usize, depth: Option<Depth>, reset: &[bool]) -> (Vec<RowOutcome>, Tensors) {
    let (inputs, labels) = puzzles(batch);
    let weights: Vec<f32> = (0..batch).map(|b| 1.0 + b as f32 / 4.0).collect();
    let course = Course { depth, weights: &weights, ..Course::default() };
    let outcomes = engine.train_course(&inputs, &labels, reset, &course, 1e-3).unwrap();
    (outcomes, engine.state().unwrap())
}

/// What a step added to the weights or to their mean.
fn moved(state: &Tensors, prefix: &str, from: &Tensors) -> Vec<f32> {
    let tensors = state.iter().filter_map(|(name, (_, values))| Some((name.strip_prefix(prefix)?, values)));
    tensors.flat_map(|(name, values)| values.iter().zip(&from[name].1).map(|(now, then)| now - then)).collect()
}

/// Compares two engines after a step: first moments, which are a tenth of the gradient, carries, outcomes.
fn compare(name: &str, found: &(Vec<RowOutcome>, Tensors), expected: &(Vec<RowOutcome>, Tensors), tolerance: f64) {
    for (tensor, (_, values)) in expected.1.iter().filter(|(t, _)| t.starts_with("m.") || t.starts_with("carry.") || *t == "counters") {
        let off = distance(&found.1[tensor].1, values);
        assert!(off < tolerance, "{name}: `{tensor}` is {off} off");
    }
    for (found, expected) in found.0.iter().zip(&expected.0) {
        let off = f64::from((found.loss - expected.loss).abs().max((found.q_halt - expected.q_halt).abs()));
        assert!(off < 4.0 * tolerance, "{name}: {found:?}, expected {expected:?}");
        assert!(tolerance > 1e-3 || (found.cells, found.exact, found.halt) == (expected.cells, expected.exact, expected.halt), "{name}");
    }
}

/// Steps on the device and on this host from the same weights: with operands in f32 two, one that starts all puzzles and one that goes on with some.
/// In bf16 each call loses digits, and networks that were never trained make more of it with every call: few calls are close then.
fn agree(name: &str, spec: &ModelSpec, options: &EngineOptions, depth: Option<Depth>, operand: Operand, open: Open) {
    let (rounds, tolerance) = if operand == Operand::F32 { (2, 2e-4) } else { (1, 0.1) };
    let weights = awake(spec, options);
    let batch = options.batch;
    let mut here = FusedEngine::from_weights(spec, options, &weights).unwrap();
    let mut there = FusedEngine::from_weights(spec, options, &weights).unwrap().on(operand, open);
    let mut reset = vec![true; batch];
    for round in 0..rounds {
        let (found, expected) = (step(&mut there, batch, depth, &reset), step(&mut here, batch, depth, &reset));
        compare(&format!("{name}, step {round}"), &found, &expected, tolerance * f64::from(1 + 9 * round));
        for prefix in ["weights.", "mean."] {
            // Where a gradient is small against its own error, a step of a whole learning rate goes the other way.
            let off = distance(&moved(&found.1, prefix, &weights), &moved(&expected.1, prefix, &weights));
            assert!(off < 100.0 * tolerance, "{name}: the change of {prefix} is {off} off");
        }
        reset = (0..batch).map(|b| b % 2 == 1).collect();
    }
    let (inputs, _) = puzzles(batch + 1);
    let answers = |engine: &mut FusedEngine| {
        let mut out = Vec::new();
        engine.infer(&inputs, 2, 9, &mut |_, _, q| out.extend_from_slice(q)).unwrap();
        out
    };
    let off = distance(&answers(&mut there), &answers(&mut here));
    assert!(off < 4.0 * tolerance, "{name}: halt logits in use are {off} off");
    // The carries come back, and go on.
    let state = there.state().unwrap();
    there.restore(&state).unwrap();
    assert_eq!(there.state().unwrap(), state, "{name}");
}

#[test]
fn steps_are_those_of_the_engine_on_this_host() {
    let two_segments = Some(Depth { h_cycles: 4, l_cycles: 2 });
    let muon = |gradient, loss| options(3, gradient, loss);
    let atan2 = EngineOptions { optimizer: OptimizerKind::AdamAtan2, clip: 0.05, ..muon(Gradient::LastRecursion, Loss::Stablemax) };
    let adam = EngineOptions { optimizer: OptimizerKind::AdamW, ema: 0.0, ..muon(Gradient::OneStep, Loss::Softmax) };
    for (name, spec, options, depth) in [
        ("fields", spec(4, true, 16, 16, Start::Random), muon(Gradient::Segment, Loss::Softmax), two_segments),
        ("wide", spec(1, true, 16, 80, Start::Random), muon(Gradient::OneStep, Loss::Softmax), None),
        ("odd widths", spec(4, true, 21, 35, Start::Random), atan2, None),
        ("two modules, no fields", spec(1, false, 24, 8, Start::Fixed), adam, None),
    ] {
        agree(name, &spec, &options, depth, Operand::F32, on_host());
        agree(&format!("{name}, bf16"), &spec, &options, SHALLOW, Operand::Bf16, on_host());
    }
}

/// A small step under a sanitizer: with and without rounding, fields and shared modules.
fn sanitized(flags: &'static [&'static str]) {
    let (small, plain) = (spec(4, true, 17, 16, Start::Random), spec(1, false, 16, 20, Start::Fixed));
    let options = options(2, Gradient::OneStep, Loss::Softmax);
    for engine in [rounding(&small, &options), FusedEngine::new(&plain, &options).unwrap()] {
        let mut engine = engine.on(Operand::Bf16, on_host_with(flags));
        step(&mut engine, 2, SHALLOW, &[true, false]);
    }
}

#[test]
fn no_thread_meets_another_without_a_barrier() {
    sanitized(&["-g", "-fsanitize=thread"]);
}

#[test]
fn no_access_is_out_of_bounds_and_no_operation_undefined() {
    sanitized(&["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
}

/// An engine that rounds as int8 does, calibrated on its own puzzles.
fn rounding(spec: &ModelSpec, options: &EngineOptions) -> FusedEngine {
    let weights = awake(spec, options);
    let net = FloatNet::new(NetWeights::new(spec, &weights).unwrap());
    let (tokens, _) = puzzles(1);
    let calibration = QuantizeOptions { weight_mse: false, correct_bias: false, tune: false, segments: 4, ..QuantizeOptions::default() };
    let (plan, _) = calibrate(&net, &[&tokens], &calibration).unwrap();
    let mut engine = FusedEngine::from_weights(spec, options, &weights).unwrap();
    engine.round_as(&plan).unwrap();
    engine
}

#[test]
fn steps_with_rounding_are_those_of_the_engine_on_this_host() {
    let spec = spec(4, true, 21, 24, Start::Random);
    let options = EngineOptions { carry_noise: 0.0, ..options(2, Gradient::OneStep, Loss::Softmax) };
    let expected = step(&mut rounding(&spec, &options), 2, SHALLOW, &[true; 2]);
    for operand in [Operand::F32, Operand::Bf16] {
        let found = step(&mut rounding(&spec, &options).on(operand, on_host()), 2, SHALLOW, &[true; 2]);
        // Whole numbers of int8 units are exact in bf16 too, so the forward pass hardly differs: what bf16 rounds is the gradient.
        compare(&format!("{operand:?}"), &found, &expected, 2e-2);
        let carry = distance(&found.1["carry.H"].1, &expected.1["carry.H"].1);
        assert!(carry < 2e-3, "{operand:?}: z_H is {carry} off");
    }
    let plain = step(&mut FusedEngine::from_weights(&spec, &options, &awake(&spec, &options)).unwrap(), 2, SHALLOW, &[true; 2]);
    let unrounded = distance(&plain.1["carry.H"].1, &expected.1["carry.H"].1);
    assert!(unrounded > 1e-2, "rounding makes no difference: {unrounded}");
}

/// The macros, tables and sizes of the kernels that an engine asks for.
fn program(spec: &ModelSpec, engine: Option<FusedEngine>, operand: Operand) -> Program {
    let kept = Arc::new(Mutex::new(None));
    let out = Arc::clone(&kept);
    let open: Open = Box::new(move |program, _| {
        *out.lock().unwrap() = Some(program.clone());
        anyhow::bail!("no device")
    });
    let options = options(1, Gradient::Segment, Loss::Softmax);
    let engine = engine.unwrap_or_else(|| FusedEngine::new(spec, &options).unwrap());
    assert!(engine.on(operand, open).infer(&puzzles(1).0, 1, 0, &mut |_, _, _| ()).is_err());
    let program = kept.lock().unwrap().take();
    program.unwrap()
}

#[test]
fn nvrtc_and_ptxas_accept_the_source() {
    let Some(tools) = ptxas::tools() else { return };
    let small = spec(4, true, 48, 96, Start::Random);
    let rounded = rounding(&small, &options(1, Gradient::Segment, Loss::Softmax));
    for (name, program) in [
        ("rounded", program(&small, Some(rounded), Operand::Bf16)),
        ("wide", program(&spec(1, false, 96, 256, Start::Fixed), None, Operand::Bf16)),
    ] {
        for capability in [(8, 0), (9, 0)] {
            let ptx = compile(&program, capability).unwrap();
            let told = ptxas::accept(&tools, &format!("train-{name}"), &ptx, capability, Kernel::ALL.len());
            println!("{name}, {capability:?}: {told:#?}");
        }
    }
}

/// Compares training steps on a real GPU with this host's.
#[test]
fn a_gpu_agrees() {
    let open = || -> Open { Box::new(|program, slots| Ok(Box::new(Gpu::open("cuda:0", program, slots)?) as Box<dyn Device>)) };
    let spec = spec(4, true, 48, 96, Start::Random);
    let options = options(8, Gradient::Segment, Loss::Softmax);
    let mut probe = FusedEngine::new(&spec, &options).unwrap().on(Operand::Bf16, open());
    if let Err(error) = probe.infer(&puzzles(1).0, 1, 0, &mut |_, _, _| ()) {
        println!("skipped: no CUDA device ({error:#})");
        assert!(std::env::var_os("HRM_NEED_GPU").is_none(), "HRM_NEED_GPU is set, but there is no CUDA device: {error:#}");
        return;
    }
    agree("a GPU", &spec, &options, SHALLOW, Operand::Bf16, open());
}
