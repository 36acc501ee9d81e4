//! The fused engine's side of `tests/bench/train.py`: the 9x9 model with one H cycle and AdamW, as that script has it.
//!
//! Both with `BATCH` puzzles at once, and `time` on `DEVICE`, `cpu` or `cuda:N` (feature `cuda`).
//!
//! `train_bench export FILE BATCH`: fresh weights, a batch of puzzles, its carry before and after a segment, and what the heads read then, as safetensors.
//! `train_bench time THREADS STEPS BATCH DEVICE`: sample-segments a second of training.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use hrm_train::checkpoint::{encode_tensors, write_atomic};
use hrm_train::engine::fused::FusedEngine;
use hrm_train::engine::{Engine, StartOf};
use hrm_train::run_config::RunConfig;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["export", file, batch] => run(1, batch, "cpu", |engine, inputs, labels| export(engine, inputs, labels, Path::new(file))),
        ["time", threads, steps, batch, device] => {
            run(threads.parse()?, batch, device, |engine, inputs, labels| time(engine, inputs, labels, steps.parse()?))
        }
        _ => bail!("expected `export FILE BATCH` or `time THREADS STEPS BATCH DEVICE`"),
    }
}

fn run(
    threads: usize,
    batch: &str,
    device: &str,
    work: impl FnOnce(&mut FusedEngine, &[u8], &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // PyTorch has AdamW fused, and no Muon. Noise on the carry is left out on both sides.
    let batch = format!("train.batch={batch}");
    let overrides = [
        batch.as_str(),
        "model.h_cycles=1",
        "train.optimizer=adam-w",
        "train.lr=1e-3",
        "train.weight_decay=0.3",
        "train.carry_noise=0.0",
        "train.gradient=last-recursion",
        "train.unroll=1",
    ];
    let config = RunConfig::load(Path::new("configs/sudoku-9x9.toml"), &overrides.map(str::to_owned))?;
    let mut options = config.engine_options();
    options.threads = threads;
    // A made-up grid: the time does not depend on the symbols.
    let solution = |b: usize, t: usize| (2 + ((t / 9) * 3 + t / 27 + t % 9 + b) % 9) as u8;
    let labels: Vec<u8> = (0..options.batch * 81).map(|i| solution(i / 81, i % 81)).collect();
    let inputs: Vec<u8> = labels.iter().enumerate().map(|(i, &l)| if i * 7 % 10 < 4 { l } else { 1 }).collect();
    let engine = FusedEngine::new(&config.spec()?, &options)?;
    work(&mut if device == "cpu" { engine } else { engine.on_gpu(device)? }, &inputs, &labels)
}

fn export(engine: &mut FusedEngine, inputs: &[u8], labels: &[u8], file: &Path) -> anyhow::Result<()> {
    let batch = inputs.len() / 81;
    let starts: Vec<StartOf> = (0..batch as u64).map(|number| StartOf { seed: 1, number }).collect();
    let mut carry = engine.begin(&starts, false)?;
    let mut out = engine.weights();
    let mut put = |name: &str, shape: &[usize], values: Vec<f32>| out.insert(name.to_owned(), (shape.to_vec(), values));
    let state = [batch, 729, 48];
    put("before.H", &state, carry.h.clone());
    put("before.L", &state, carry.l.clone());
    let read = engine.advance(inputs, &mut carry)?;
    put("after.H", &state, carry.h);
    put("after.L", &state, carry.l);
    put("logits", &[batch, 81, 9], read.logits);
    put("q_halt", &[batch], read.q_halt);
    for (name, tokens) in [("inputs", inputs), ("labels", labels)] {
        put(name, &[batch, 81], tokens.iter().map(|&t| f32::from(t)).collect());
    }
    write_atomic(file, &encode_tensors(&out, None)?).context("the export")
}

fn time(engine: &mut FusedEngine, inputs: &[u8], labels: &[u8], steps: usize) -> anyhow::Result<()> {
    let reset = vec![false; inputs.len() / 81];
    engine.train_segment(inputs, labels, &reset, 1e-3)?;
    let begin = Instant::now();
    for _ in 0..steps {
        engine.train_segment(inputs, labels, &reset, 1e-3)?;
    }
    println!("{}", (steps * reset.len()) as f64 / begin.elapsed().as_secs_f64());
    Ok(())
}
