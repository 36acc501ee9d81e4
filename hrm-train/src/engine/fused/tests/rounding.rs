//! Training that rounds as the integer network does.

use super::*;

#[test]
fn rounding_is_that_of_the_simulated_integer_network() {
    use crate::quantize::float::{Carry as FloatCarry, FloatNet};
    use crate::quantize::simulate::{Rounding, simulated};
    use crate::quantize::weights::NetWeights;
    use crate::quantize::{QuantizeOptions, calibrate};

    for channels in [16, 21] {
        let spec = spec(4, true, channels, Start::Random);
        let opts = options(1, Gradient::LastRecursion, Loss::Softmax);
        let mut engine = awake(&spec, &opts);
        let (tokens, labels) = puzzles(1);
        let net = FloatNet::new(NetWeights::new(&spec, &engine.weights()).unwrap());
        // The engine rounds weights by their largest value.
        let options = QuantizeOptions { weight_mse: false, correct_bias: false, tune: false, segments: 4, ..QuantizeOptions::default() };
        let (plan, _) = calibrate(&net, &[&tokens], &options).unwrap();
        engine.round_as(&plan).unwrap();

        let after = |packed: &Packed| {
            let d = &engine.d;
            let (mut h, mut l) = (vec![0.0; d.r * d.cp], vec![0.0; d.r * d.cp]);
            fresh(engine.isa, d, &engine.init, Stream::new(11, Purpose::InferenceStart, 0), &mut h, &mut l);
            let mut ws = Workspace::new(d, Some(Gradient::LastRecursion));
            let mut carry = Carry { h: &mut h, l: &mut l };
            Net { isa: engine.isa, d, w: packed }.train(
                &opts,
                &tokens,
                Target { labels: &labels, weight: 1.0, teacher: None },
                &mut carry,
                &mut vec![0.0; d.grad_len],
                &mut ws,
            );
            h.chunks_exact(d.cp).flat_map(|row| &row[..d.c]).copied().collect::<Vec<f32>>()
        };
        let simulation = |kinds: &[Rounding]| {
            let (simulation, mut fake) = simulated(net.weights(), &plan, kinds);
            let start = Reference::<f32>::new(&spec, &engine.weights()).unwrap().start(11, 0);
            let mut carry = FloatCarry { z_h: start.z_h, z_l: start.z_l };
            simulation.segment(&simulation.embed(&tokens).unwrap(), &mut carry, &mut fake);
            carry.z_h
        };
        let plain = Packed::new(&engine.d, &engine.weights, None);
        // Values and weights apart: a value on the border between two units falls to either side, and the next call makes much of it.
        let (mut values, mut weights) = (plain.clone(), engine.packed.clone());
        for (value, weight) in values.blocks.iter_mut().zip(&mut weights.blocks) {
            value.rounding = weight.rounding.take();
        }
        let kinds = [Rounding::Inputs, Rounding::Sums, Rounding::Hidden, Rounding::UpWeights, Rounding::DownWeights];
        for (packed, kinds) in [(values, &kinds[..3]), (weights, &kinds[3..])] {
            let expected = simulation(kinds);
            let (found, unrounded) = (relative(&after(&packed), &expected), relative(&after(&plain), &expected));
            // The simulation rounds the biases as well.
            assert!(found < 0.05 * unrounded, "{channels} channels, {kinds:?}: {found}, unrounded {unrounded}");
        }
    }
}

#[test]
fn no_gradient_passes_where_hidden_values_are_clipped() {
    let spec = spec(4, true, 16, Start::Random);
    let opts = options(2, Gradient::LastRecursion, Loss::Softmax);
    let mut engine = awake(&spec, &opts);
    let (inputs, labels) = puzzles(2);
    let steps = |hidden: f32| {
        let d = &engine.d;
        (0..d.blocks.len()).map(|_| BlockSteps::new(d, 0.03, &vec![0.1; d.g], &vec![hidden; d.i])).collect::<Vec<_>>()
    };
    let (wide, narrow) = (steps(0.05), steps(1e-12));
    let mut up_gradient = |steps: Vec<BlockSteps>| {
        engine.packed = Packed::new(&engine.d, &engine.weights, Some(&steps));
        let (_, grad) = engine.gradient(&inputs, &labels, &[true, true], &Course::default()).unwrap();
        let up = engine.d.params.iter().find(|p| p.name == "module.0.1.up.weight").unwrap();
        grad[up.offset..up.offset + up.len].iter().fold(0.0f32, |m, g| m.max(g.abs()))
    };
    let passed = up_gradient(wide);
    let stopped = up_gradient(narrow);
    assert!(passed > 1e-4 && stopped < 1e-6 * passed, "{passed}, clipped {stopped}");
}
