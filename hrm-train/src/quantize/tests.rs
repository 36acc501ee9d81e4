use hrm_core::format::{AlignedBytes, TaskKind};
use hrm_core::{Config, Kernel, Mixer, ModelView, Network, Plan, Run, Start};

use super::float::{FloatNet, Tap};
use super::report::{agreement, rounding_costs};
use super::weights::NetWeights;
use super::{Clip, QuantizeOptions, Quantized, quantize};
use crate::data::{GeneratorOptions, PuzzleSet, generate};
use crate::engine::Tensors;
use crate::engine::fused::random::{Purpose, Stream};
use crate::engine::fused::reference;
use crate::evaluate_int8::Int8;
use crate::spec::{Grouping, ModelSpec};

/// Rows, columns, boxes of 4x4, and the cell where there are fields.
fn groupings(fields: bool) -> Vec<Grouping> {
    let ids = |f: fn(u16) -> u16| (0..16).map(f).collect();
    let mut all = vec![
        Grouping { ids: ids(|t| t / 4), merge_fields: false },
        Grouping { ids: ids(|t| t % 4), merge_fields: false },
        Grouping { ids: ids(|t| t / 8 * 2 + t % 4 / 2), merge_fields: false },
    ];
    if fields {
        all.push(Grouping { ids: ids(|t| t), merge_fields: true });
    }
    all
}

fn spec(mixer: Mixer, fields: u16, shared: bool) -> ModelSpec {
    let groupings = if matches!(mixer, Mixer::GroupSum | Mixer::GroupAttention) { groupings(fields > 1) } else { Vec::new() };
    let attention = matches!(mixer, Mixer::Attention | Mixer::GroupAttention);
    let public = matches!(mixer, Mixer::Attention | Mixer::TokenMlp);
    let config = Config {
        shared,
        mixer,
        start: if public { Start::Fixed } else { Start::Random },
        rope: mixer == Mixer::Attention,
        tokens: 16,
        prefix: if public { 2 } else { 0 },
        vocab: 6,
        fields,
        channels: 24,
        inner: 40,
        token_inner: if mixer == Mixer::TokenMlp { 32 } else { 0 },
        heads: if attention { 3 } else { 0 },
        groupings: groupings.len() as u8,
        h_layers: 2,
        l_layers: 2,
        h_cycles: 2,
        l_cycles: 2,
    };
    ModelSpec { config, groupings }
}

/// Random weights of half of LeCun's scale under the names of the model's kind: at the full scale a random network is chaotic, and its gain
/// drowns what is tested.
fn random_weights(spec: &ModelSpec, seed: u64) -> Tensors {
    let c = &spec.config;
    let [ch, inner, token_inner, vocab] = [c.channels, c.inner, c.token_inner, c.vocab].map(usize::from);
    let rows = usize::from(c.tokens + c.prefix);
    let public = c.prefix > 0;
    let mut shapes: Vec<(String, Vec<usize>, f32)> = Vec::new();
    let mut matrix = |name: String, out: usize, inp: usize| shapes.push((name, vec![out, inp], 0.5 / (inp as f32).sqrt()));
    for m in 0..c.modules() {
        for i in 0..c.layers(m) {
            let layer = if public { format!("model.inner.{}_level.layers.{i}", ["L", "H"][m]) } else { format!("module.{m}.{i}") };
            let name = |p: &str, ours: &str| format!("{layer}.{}.weight", if public { p } else { ours });
            if c.has_attention() {
                matrix(name("self_attn.qkv_proj", "qkv"), 3 * ch, ch);
                matrix(name("self_attn.o_proj", "out"), ch, ch);
            }
            if token_inner > 0 {
                matrix(name("mlp_t.gate_up_proj", ""), 2 * token_inner, rows);
                matrix(name("mlp_t.down_proj", ""), rows, token_inner);
            }
            matrix(name("mlp.gate_up_proj", "up"), 2 * inner, c.mix_width());
            matrix(name("mlp.down_proj", "down"), ch, inner);
        }
    }
    if public {
        let p = "model.inner";
        matrix(format!("{p}.lm_head.weight"), vocab, ch);
        shapes.push((format!("{p}.embed_tokens.embedding_weight"), vec![vocab, ch], 1.0 / (ch as f32).sqrt()));
        shapes.push((format!("{p}.puzzle_emb.weights"), vec![1, ch], 0.1));
        shapes.push((format!("{p}.q_head.weight"), vec![2, ch], 0.1));
        shapes.push((format!("{p}.q_head.bias"), vec![2], 1.0));
        shapes.push((format!("{p}.H_init"), vec![ch], 1.0));
        shapes.push((format!("{p}.L_init"), vec![ch], 1.0));
    } else {
        matrix("head.weight".into(), c.head_width(), ch);
        shapes.push(("embed".into(), vec![c.input_classes(), ch], 1.0));
        shapes.push(("q.weight".into(), vec![1, ch], 0.1));
        shapes.push(("q.bias".into(), vec![1], 1.0));
        for m in 0..c.modules() {
            for i in 0..c.layers(m) {
                shapes.push((format!("module.{m}.{i}.up.bias"), vec![2 * inner], 0.2));
            }
        }
        shapes.push(("init.H".into(), vec![ch], 1.0));
        shapes.push(("init.L".into(), vec![ch], 1.0));
    }
    let tensors = shapes.into_iter().enumerate();
    tensors
        .map(|(number, (name, shape, std))| {
            let stream = Stream::new(seed, Purpose::Weights, number as u64);
            let len: usize = shape.iter().product();
            (name, (shape, (0..len as u64).map(|i| stream.truncated(i) * std).collect()))
        })
        .collect()
}

fn puzzles(n: usize) -> PuzzleSet {
    generate(&GeneratorOptions { size: 4, seed: 9, ..GeneratorOptions::default() }, n).unwrap()
}

fn quantized(spec: &ModelSpec, weights: &Tensors, options: &QuantizeOptions) -> anyhow::Result<Quantized> {
    let set = puzzles(8);
    let inputs: Vec<&[u8]> = (0..set.len()).map(|i| set.input(i)).collect();
    quantize(spec, weights, &inputs, options)
}

fn options() -> QuantizeOptions {
    QuantizeOptions { segments: 4, task: TaskKind::Sudoku(4), ..QuantizeOptions::default() }
}

/// Least mean cosine of z_H after one segment.
const LEAST_COSINE: f64 = 0.995;

/// All kinds of models of the family.
fn family() -> Vec<ModelSpec> {
    vec![
        spec(Mixer::GroupSum, 1, true),
        spec(Mixer::GroupSum, 4, true),
        spec(Mixer::GroupSum, 4, false),
        spec(Mixer::Attention, 1, false),
        spec(Mixer::Attention, 1, true),
        spec(Mixer::TokenMlp, 1, true),
        spec(Mixer::GroupAttention, 1, false),
    ]
}

/// One segment of these models is 12 blocks. The integer network must be as close as the simulation of its roundings, and close.
#[test]
fn integer_network_follows_the_float_one() {
    let mut told = String::new();
    let mut ok = true;
    for spec in family() {
        let model = quantized(&spec, &random_weights(&spec, 3), &options()).unwrap();
        let int8 = Int8::new(model.file.as_slice(), Kernel::best(), 5).unwrap();
        let set = puzzles(24);
        // Puzzles that calibration has not seen.
        let inputs: Vec<&[u8]> = (8..24).map(|i| set.input(i)).collect();
        let agreement = agreement(&FloatNet::new(model.weights.clone()), &int8, &inputs, 1, 5).unwrap();
        let simulated = rounding_costs(&model, &inputs, 1, 5).unwrap().last().unwrap().first;
        let a = &agreement[0];
        ok &= a.z_h.mean >= LEAST_COSINE && a.tokens > 0.9 && 1.0 - a.z_h.mean < 1.5 * simulated + 1e-4;
        told += &format!(
            "{:?}, {} fields, shared {}: z_H {} z_L {} tokens {:.3}, simulated {simulated:.2e}\n",
            spec.config.mixer, spec.config.fields, spec.config.shared, a.z_h, a.z_l, a.tokens
        );
    }
    println!("{told}");
    assert!(ok, "{told}");
}

#[test]
fn plain_float_network_agrees_with_the_engine_s_oracle() {
    for spec in &family()[..3] {
        let weights = random_weights(spec, 4);
        let net = FloatNet::new(NetWeights::new(spec, &weights).unwrap());
        let oracle = reference::Reference::<f32>::new(spec, &weights).unwrap();
        let set = puzzles(1);
        let x = net.embed(set.input(0)).unwrap();
        assert_eq!(x, oracle.embed(set.input(0)).unwrap());
        let mut expected = oracle.start(3, 0);
        let mut carry = super::float::Carry { z_h: expected.z_h.clone(), z_l: expected.z_l.clone() };
        for _ in 0..2 {
            let (a, b) = (net.segment(&x, &mut carry, &mut ()), oracle.segment(&x, &mut expected, &mut ()));
            let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-3);
            assert!(close(&carry.z_h, &expected.z_h) && close(&carry.z_l, &expected.z_l) && close(&a.logits, &b.logits));
            assert!((a.q[0] - b.q_halt).abs() < 1e-3);
        }
    }
}

#[test]
fn q_outputs_and_logits_are_in_real_units() {
    for spec in family() {
        let model = quantized(&spec, &random_weights(&spec, 6), &options()).unwrap();
        let int8 = Int8::new(model.file.as_slice(), Kernel::REFERENCE, 2).unwrap();
        let net = FloatNet::new(model.weights.clone());
        let set = puzzles(1);
        let scale = int8.view().unwrap().heads().q_scale;
        let q = int8
            .each(&[set.input(0)], |_, run| {
                run.start(set.input(0), 2, 0)?;
                run.segment().unwrap();
                let carry = (run.carry().0.to_vec(), run.carry().1.to_vec());
                Ok((run.q(), carry))
            })
            .unwrap();
        // The heads of the float network on the integer network's own state.
        let ((halt, go_on), (h, l)) = &q[0];
        let float = net.heads(&net.start(Some((h, l))).z_h);
        assert!((f64::from(*halt as f32 * scale) - f64::from(float.q[0])).abs() < 0.02, "{halt} {float:?}");
        if let Some(expected) = float.q.get(1) {
            assert!((*go_on as f32 * scale - expected).abs() < 0.02);
        }
    }
}

#[test]
fn files_round_trip_and_hold_record_and_self_test() {
    let spec = spec(Mixer::GroupSum, 4, true);
    let record = serde_json::json!({"seed": 7});
    let model =
        quantized(&spec, &random_weights(&spec, 1), &QuantizeOptions { name: "test".into(), record: Some(record.clone()), ..options() })
            .unwrap();
    let copy = AlignedBytes::new(model.file.as_slice());
    let view = ModelView::new_checked(copy.as_slice()).unwrap();
    assert_eq!((view.config(), view.header().name(), view.header().task), (&spec.config, "test", TaskKind::Sudoku(4)));
    assert_eq!(serde_json::from_str::<serde_json::Value>(view.record().unwrap()).unwrap(), record);
    let up = &model.plan.modules[0][1].mlp.up;
    let stored = view.block(0, 1).mlp.up;
    assert_eq!(
        (stored.weights, stored.mult, stored.bias, stored.shift),
        (up.weights.as_slice(), up.mult.as_slice(), up.bias.as_slice(), up.shift)
    );
    let test = view.self_test().unwrap();
    for plan in [Plan::HOST, Plan::DEVICE] {
        let network = Network::reference(view);
        let mut arena = vec![0u64; network.required_bytes(plan).div_ceil(8)];
        let mut run = Run::new(network, &mut arena, plan).unwrap();
        run.start(test.tokens, test.seed, 0).unwrap();
        for _ in 0..test.segments {
            run.segment().unwrap();
        }
        assert_eq!(run.hash(), test.hash);
    }
}

#[test]
fn a_scale_that_would_overflow_is_reduced() {
    let spec = spec(Mixer::GroupSum, 1, true);
    let mut weights = random_weights(&spec, 1);
    // A channel whose weights are nothing beside its bias: at the finest scale the bias alone would not fit into 32 bits.
    let inputs = spec.config.mix_width();
    weights.get_mut("module.0.0.up.weight").unwrap().1[..inputs].iter_mut().for_each(|w| *w *= 1e-9);
    weights.get_mut("module.0.0.up.bias").unwrap().1[0] = 3.0;
    let model = quantized(&spec, &weights, &options()).unwrap();
    let up = &model.plan.modules[0][0].mlp.up;
    assert!((f64::from(up.bias[0]) * up.sigma[0] - 3.0 - 0.5 / 1024.0).abs() < 1e-3);
    // The same channel with large weights: the shift makes room for the multiplier.
    weights.get_mut("module.0.0.up.weight").unwrap().1[..inputs].iter_mut().for_each(|w| *w *= 1e12);
    let model = quantized(&spec, &weights, &options()).unwrap();
    assert!(model.plan.modules[0][0].mlp.up.shift > 0);
    assert!(ModelView::new_checked(model.file.as_slice()).is_ok());
}

#[test]
fn faulty_weights_are_refused_by_name() {
    let spec = spec(Mixer::GroupSum, 4, false);
    let error = |weights: &Tensors| format!("{:#}", quantized(&spec, weights, &options()).unwrap_err());
    let good = random_weights(&spec, 1);
    let mut bad = good.clone();
    bad.get_mut("module.1.0.down.weight").unwrap().1[7] = f32::NAN;
    assert!(error(&bad).contains("`module.1.0.down.weight` holds NaN at element 7"), "{}", error(&bad));
    let mut bad = good.clone();
    bad.remove("head.weight");
    assert!(error(&bad).contains("`head.weight` is missing"));
    let mut bad = good.clone();
    bad.get_mut("embed").unwrap().1[0] = 40.0;
    assert!(error(&bad).contains("the embedding holds 40"));
    let mut bad = good;
    bad.get_mut("q.weight").unwrap().0 = vec![2, 12];
    assert!(error(&bad).contains("`q.weight` has shape [2, 12]"));
}

#[test]
fn clipping_and_roundings_are_told() {
    let spec = spec(Mixer::Attention, 1, false);
    let weights = random_weights(&spec, 2);
    let share = |clip| {
        let model = quantized(&spec, &weights, &QuantizeOptions { clip, tune: false, ..options() }).unwrap();
        model.saturation().iter().map(|s| s.share).sum::<f64>()
    };
    assert!(share(Clip::Percentile(0.9)) > 0.05);
    assert!(share(Clip::Absmax) < 1e-6);
    let model = quantized(&spec, &weights, &options()).unwrap();
    let set = puzzles(4);
    let inputs: Vec<&[u8]> = (0..4).map(|i| set.input(i)).collect();
    let costs = rounding_costs(&model, &inputs, 1, 1).unwrap();
    let of = |name: &str| costs.iter().find(|c| c.rounding == name).unwrap().first;
    assert!(of("all") > of("16-bit stream") && of("attention weights") > of("16-bit stream"), "{costs:?}");
    assert!(of("all") < 0.01);
}

#[test]
fn results_do_not_depend_on_threads() {
    let spec = spec(Mixer::GroupSum, 4, true);
    let weights = random_weights(&spec, 8);
    let set = puzzles(12);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let model = quantized(&spec, &weights, &options()).unwrap();
            let int8 = Int8::new(model.file.as_slice(), Kernel::best(), 3).unwrap();
            (model.file.as_slice().to_vec(), int8.outcomes(&set, 12, 3).unwrap())
        })
    };
    let (one, two) = (on(1), on(2));
    assert_eq!(one, two);
    // Different puzzles, different states.
    assert_ne!(one.1[0].hash, one.1[1].hash);
}

/// Changes nothing, so a run with it is the run without.
struct Count(usize);

impl Tap for Count {
    fn tap(&mut self, _: super::float::Site, width: usize, values: &mut [f32]) {
        assert!(values.len().is_multiple_of(width));
        self.0 += 1;
    }
}

#[test]
fn every_rounding_is_tapped() {
    let spec = spec(Mixer::Attention, 1, false);
    let net = FloatNet::new(NetWeights::new(&spec, &random_weights(&spec, 2)).unwrap());
    let x = net.embed(puzzles(1).input(0)).unwrap();
    let mut count = Count(0);
    net.segment(&x, &mut net.start(None), &mut count);
    // 4 L and 2 H calls of two blocks: attention 8 taps, gated MLP 7; the head 1.
    assert_eq!(count.0, 6 * 2 * 15 + 1);
}
