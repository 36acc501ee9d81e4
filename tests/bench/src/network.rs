//! One segment of a model: the core, and the exported graph in ONNX Runtime.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hrm_core::kernels::Kernel;
use hrm_core::{Aligned, ModelView, Network, Plan, Run};
use ort::environment::Environment;
use ort::memory::Allocator;
use ort::value::Tensor;

use crate::onnxruntime;
use crate::race::{Call, race};

/// Names and least seconds of the engines, the best kernel first; all start from one state and must reach the same.
pub(crate) fn segment(runtime: &Environment, view: ModelView<'_>, onnx: &[u8], budget: Duration) -> Result<Vec<(String, f64)>> {
    let c = *view.config();
    let mut tokens = vec![1; usize::from(c.tokens)];
    tokens[0] = 2;
    let kernels: Vec<Kernel> = [Kernel::best()].into_iter().chain(Kernel::by_name("avx2")).collect();
    let mut packed: Vec<Aligned<i32>> = kernels.iter().map(|&kernel| Aligned::new(Network::packed_words(&view, kernel))).collect();
    let bound = kernels.iter().zip(&mut packed).map(|(&kernel, packed)| Network::new(view, kernel, packed));
    let networks = bound.collect::<Result<Vec<_>, _>>()?;
    let words = networks[0].required_bytes(Plan::HOST).div_ceil(8);
    let mut arenas: Vec<Aligned<u64>> = networks.iter().map(|_| Aligned::new(words)).collect();
    let mut pair = [0, 1].map(|_| Aligned::new(words));
    let (mut names, mut engines) = (Vec::new(), Vec::<Option<Call<'_>>>::new());
    let (mut start, mut reached) = (None, None);
    for (&network, arena) in networks.iter().zip(&mut arenas) {
        let mut run = Run::new(network, arena, Plan::HOST)?;
        run.start(&tokens, 1, 0)?;
        start = start.or_else(|| Some(run.carry()).map(|(h, l)| (h.to_vec(), l.to_vec())));
        run.segment()?;
        let state = Some(run.carry()).map(|(h, l)| (h.to_vec(), l.to_vec()));
        ensure!(reached.is_none() || reached == state, "the kernels reach different states");
        reached = state;
        names.push(format!("hrm, {}", network.kernel().name()));
        engines.push(Some(Box::new(move || {
            black_box(run.segment()?);
            Ok(())
        })));
    }
    // Two puzzles at once, a segment each in turns: what a batch on one thread would do with the caches.
    let mut runs = Vec::new();
    for (guess, arena) in pair.iter_mut().enumerate() {
        let mut run = Run::new(networks[0], arena, Plan::HOST)?;
        run.start(&tokens, 1, guess as u64)?;
        runs.push(run);
    }
    let mut turn = 0;
    names.push(format!("hrm, {}, two puzzles in turns", networks[0].kernel().name()));
    engines.push(Some(Box::new(move || {
        turn ^= 1;
        black_box(runs[turn].segment()?);
        Ok(())
    })));
    let (Some((z_h, z_l)), Some(reached)) = (start, reached) else { bail!("no kernel") };

    let channels = usize::from(c.channels);
    let rows = z_h.len() / channels;
    let mut session = onnxruntime::session(runtime, onnx)?;
    let mut binding = session.create_binding()?;
    let wide = |z: &[i16]| z.iter().map(|&x| i32::from(x)).collect::<Vec<i32>>();
    binding.bind_input("tokens", &Tensor::from_array(([tokens.len()], tokens.iter().map(|&t| i64::from(t)).collect::<Vec<_>>()))?)?;
    for (name, z) in [("z_h", &z_h), ("z_l", &z_l)] {
        binding.bind_input(name, &Tensor::from_array(([rows, channels], wide(z)))?)?;
        binding.bind_output(format!("{name}_next"), Tensor::<i32>::new(&Allocator::default(), [rows, channels])?)?;
    }
    for name in ["logits", "q"] {
        binding.bind_output_to_device(name, &Allocator::default().memory_info())?;
    }
    let outputs = session.run_binding(&binding)?;
    let state = ["z_h_next", "z_l_next"].map(|name| outputs[name].try_extract_tensor::<i32>().map(|z| z.1.to_vec()));
    let [h, l] = state;
    ensure!((h?, l?) == (wide(&reached.0), wide(&reached.1)), "ONNX Runtime reaches another state");
    drop(outputs);
    names.push("ONNX Runtime".to_owned());
    engines.push(Some(Box::new(move || {
        session.run_binding(&binding)?;
        Ok(())
    })));

    Ok(names.into_iter().zip(race(engines, budget)?.into_iter().flatten()).collect())
}
