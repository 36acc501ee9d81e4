//! Speed of the fused engine on a 9x9 grid: training segments a second and useful GFLOP/s.
//!
//! `cargo run --release -p hrm-train --example fused_bench -- [channels] [threads] [steps] [h_cycles] [l_cycles] [noise: 0 or 1]`

use std::time::Instant;

use hrm_core::{Config, Mixer, Start};
use hrm_train::engine::fused::FusedEngine;
use hrm_train::engine::{Engine, EngineOptions, Gradient, Loss, OptimizerKind};
use hrm_train::spec::{Grouping, ModelSpec};

const LAYERS: u8 = 2;
const BATCH: usize = 32;

fn sudoku(channels: u16, h_cycles: u8, l_cycles: u8) -> ModelSpec {
    let ids = |f: fn(u16, u16) -> u16| (0..81).map(|t| f(t / 9, t % 9)).collect();
    let groupings = vec![
        Grouping { ids: ids(|r, _| r), merge_fields: false },
        Grouping { ids: ids(|_, c| c), merge_fields: false },
        Grouping { ids: ids(|r, c| r / 3 * 3 + c / 3), merge_fields: false },
        Grouping { ids: ids(|r, c| r * 9 + c), merge_fields: true },
    ];
    let config = Config {
        shared: true,
        mixer: Mixer::GroupSum,
        start: Start::Random,
        rope: false,
        tokens: 81,
        prefix: 0,
        vocab: 11,
        fields: 9,
        channels,
        inner: 2 * channels,
        token_inner: 0,
        heads: 0,
        groupings: 4,
        h_layers: LAYERS,
        l_layers: LAYERS,
        h_cycles,
        l_cycles,
    };
    ModelSpec { config, groupings }
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<u16>());
    let mut next = |default: u16| arguments.next().unwrap_or(Ok(default));
    let (channels, threads, steps) = (next(40)?, usize::from(next(1)?), usize::from(next(8)?));
    let (h_cycles, l_cycles) = (u8::try_from(next(2)?)?, u8::try_from(next(2)?)?);
    let carry_noise = 0.1 * f64::from(next(0)?);
    let spec = sudoku(channels, h_cycles, l_cycles);
    let opts = EngineOptions {
        batch: BATCH,
        loss: Loss::Softmax,
        gradient: Gradient::LastRecursion,
        optimizer: OptimizerKind::AdamW,
        betas: (0.9, 0.95),
        weight_decay: 0.1,
        ema: 0.999,
        q_weight: 0.5,
        carry_noise,
        clip: 0.0,
        threads,
        seed: 1,
    };
    let mut engine = FusedEngine::new(&spec, &opts)?;
    // A made-up grid: the time does not depend on the symbols.
    let solution = |b: usize, t: usize| (2 + ((t / 9) * 3 + t / 27 + t % 9 + b) % 9) as u8;
    let labels: Vec<u8> = (0..BATCH * 81).map(|i| solution(i / 81, i % 81)).collect();
    let inputs: Vec<u8> = labels.iter().enumerate().map(|(i, &l)| if i * 7 % 10 < 4 { l } else { 1 }).collect();
    let reset = vec![false; BATCH];
    engine.train_segment(&inputs, &labels, &reset, 1e-3)?;
    let start = Instant::now();
    for _ in 0..steps {
        engine.train_segment(&inputs, &labels, &reset, 1e-3)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let (c, i) = (f64::from(channels), 2.0 * f64::from(channels));
    // A block: W_up once a row and once a group, W_down once a row; the backward pass costs twice the forward.
    let block = 2.0 * ((729.0 + 4.0 * 81.0) * 2.0 * i * c + 729.0 * i * c);
    let (h, l) = (f64::from(h_cycles), f64::from(l_cycles));
    let flop = block * f64::from(LAYERS) * (h * (l + 1.0) + 2.0 * (l + 1.0));
    let rate = (steps * BATCH) as f64 / seconds;
    println!(
        "{} C={channels} H={h_cycles} L={l_cycles} threads={threads}: {rate:.1} segments/s, {:.1} GFLOP/s ({:.1} MFLOP a segment)",
        engine.isa(),
        rate * flop * 1e-9,
        flop * 1e-6
    );
    Ok(())
}
