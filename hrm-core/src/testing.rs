//! Random models for tests and benchmarks (feature `std`): every mixer, with scales as a trained model has them.
//!
//! Views use about a quarter of their range, gates and sublayer outputs have a standard deviation near 1, so that states neither
//! saturate nor die and a difference of one bit anywhere spreads. Everything comes from the seed by integer and [`libm`] arithmetic: the same
//! file on every machine.

use std::vec::Vec;

use crate::config::{Config, Mixer, Start};
use crate::format::layout::params;
use crate::format::{AlignedBytes, Expected, FormatError, Header, Kind, ModelView, ModelWriter, TaskKind};
use crate::rng::{Purpose, Stream};
use crate::{Kernel, MemoryError, Network, Plan, Run};

/// View multiplier of a stream of standard deviation 1: the int8 range is +-4.
const M_UNIT: i64 = 1016;
/// Standard deviation of an int8 view under [`M_UNIT`].
const VIEW: f64 = 31.75;
/// Standard deviation of the random int8 weights.
const WEIGHT: f64 = 41.0;

/// Small models of every kind, by name: each mixer, one and two modules, both starts, prefix tokens, rope, fields, merged groupings.
#[must_use]
pub fn configs() -> Vec<(&'static str, Config)> {
    let base = Config {
        shared: false,
        mixer: Mixer::GroupSum,
        start: Start::Random,
        rope: false,
        tokens: 16,
        prefix: 0,
        vocab: 6,
        fields: 1,
        channels: 20,
        inner: 26,
        token_inner: 0,
        heads: 0,
        groupings: 0,
        h_layers: 1,
        l_layers: 2,
        h_cycles: 2,
        l_cycles: 2,
    };
    std::vec![
        (
            "attention",
            Config { mixer: Mixer::Attention, start: Start::Fixed, rope: true, prefix: 1, channels: 32, heads: 4, tokens: 15, ..base },
        ),
        (
            "token-mlp",
            Config { mixer: Mixer::TokenMlp, shared: true, l_layers: 1, prefix: 16, tokens: 81, vocab: 11, token_inner: 22, ..base },
        ),
        ("group-sum", Config { shared: true, h_layers: 2, fields: 4, groupings: 4, ..base }),
        ("group-sum-tokens", Config { start: Start::Fixed, tokens: 36, vocab: 8, channels: 48, inner: 48, groupings: 3, ..base }),
        ("group-sum-folded", Config { shared: true, l_layers: 1, fields: 4, channels: 16, groupings: 7, ..base }),
        ("group-attention", Config { mixer: Mixer::GroupAttention, shared: true, l_layers: 1, heads: 5, groupings: 3, ..base }),
    ]
}

/// The smallest model of the same kind: for interpreters such as Miri, and where every byte of a file is tried.
#[must_use]
pub const fn tiny(config: Config) -> Config {
    let fields = if config.fields > 1 { 2 } else { 1 };
    Config {
        tokens: 4,
        vocab: 4,
        fields,
        prefix: if config.prefix > 2 { 2 } else { config.prefix },
        channels: 4,
        inner: 4,
        token_inner: if config.token_inner > 0 { 4 } else { 0 },
        heads: if config.heads > 2 { 2 } else { config.heads },
        groupings: match config.groupings {
            0..=2 => config.groupings,
            3 | 4 => 2,
            _ => 5,
        },
        h_cycles: 1,
        l_cycles: 1,
        ..config
    }
}

/// The 9x9 Sudoku shape that speed is measured on: fields, `C` = 48, `I` = 96, four groupings, two shared layers.
#[must_use]
pub const fn sudoku_config() -> Config {
    Config {
        shared: true,
        mixer: Mixer::GroupSum,
        start: Start::Random,
        rope: false,
        tokens: 81,
        prefix: 0,
        vocab: 11,
        fields: 9,
        channels: 48,
        inner: 96,
        token_inner: 0,
        heads: 0,
        groupings: 4,
        h_layers: 2,
        l_layers: 2,
        h_cycles: 2,
        l_cycles: 2,
    }
}

/// A model file of this architecture with random tensors. With fields and at least two groupings the last is merged. Two Q outputs
/// unless the module is shared.
///
/// # Errors
/// The architecture is impossible.
pub fn random_model(config: &Config, seed: u64) -> Result<AlignedBytes, FormatError> {
    random_writer(config, seed)?.finish()
}

/// As [`random_model`], to be changed before it is finished.
///
/// # Errors
/// The architecture is impossible.
pub fn random_writer(config: &Config, seed: u64) -> Result<ModelWriter, FormatError> {
    let c = config;
    let task = match (c.tokens, c.vocab) {
        (16, 6) => TaskKind::Sudoku(4),
        (36, 8) => TaskKind::Sudoku(6),
        (81, 11) => TaskKind::Sudoku(9),
        _ => TaskKind::Grid,
    };
    let merge_fields = if c.fields > 1 && c.groupings > 1 { 1 << (c.groupings - 1) } else { 0 };
    let mut name = [0; 32];
    name[..6].copy_from_slice(b"random");
    let header = Header { config: *c, task, q_continue: !c.shared, merge_fields, tensors: 0, crc: 0, name };
    let mut writer = ModelWriter::new(header)?;
    let mut random = Random(Stream::new(seed, Purpose::Start, u64::MAX));
    let expected: Vec<Expected> = writer.expected().copied().collect();
    let group_rows: Vec<usize> = (0..usize::from(c.groupings)).map(|g| rows_of_group(c, g, merge_fields)).collect();
    // Of the matrix being written: its weights, until multipliers and bias are made from them.
    let mut shift = [0i64; 2];
    let mut mult_and_bias = (Vec::new(), Vec::new());
    let mut at_params = None;
    for e in &expected {
        let [rows, columns] = e.dims;
        let count = rows * columns;
        let (module, layer) = (usize::from(e.module), usize::from(e.layer));
        let (residual_shift, gate_shift) = unit_shifts(layer);
        let mut matrix = |target: &dyn Fn(usize) -> f64, input: f64, which: usize| {
            let weights = random.weights(count);
            let (l, mult, bias) = random.requantisation(&weights, columns, target, input);
            shift[which] = l;
            mult_and_bias = (mult, bias);
            weights
        };
        let values: Vec<i64> = match e.kind {
            Kind::Embed | Kind::Prefix | Kind::Init => random.normals(count, 1024.0),
            Kind::Groups => (0..count).map(|i| group_of(c, i / columns, i % columns) as i64).collect(),
            Kind::Rope => rope(rows / 2, columns),
            Kind::HeadWeight | Kind::QWeight => random.weights(count),
            Kind::HeadBias | Kind::QBias => random.normals(count, 2000.0),
            Kind::Global => std::vec![M_UNIT, 10, 0, 0],
            Kind::Scales => std::vec![i64::from(0.001f32.to_bits()); 2],
            // The shifts are known after the matrices.
            Kind::AttentionParams | Kind::TokenParams | Kind::MlpParams => {
                at_params = Some(e.kind);
                continue;
            }
            Kind::QkvWeight => matrix(&|_| 1024.0, VIEW, 0),
            Kind::OutWeight => matrix(&|_| f64::from(700 >> residual_shift), VIEW, 1),
            // Gate rows first, then up rows: h = silu(g) u / 32 has a standard deviation near 36.
            Kind::UpWeight | Kind::TokenUpWeight => {
                matrix(&|n| f64::from(if n < rows / 2 { 1024 >> gate_shift } else { 2048 << gate_shift }), VIEW, 0)
            }
            Kind::DownWeight | Kind::TokenDownWeight => matrix(&|_| f64::from(700 >> residual_shift), 36.0, 1),
            Kind::QkvMult | Kind::OutMult | Kind::UpMult | Kind::DownMult | Kind::TokenUpMult | Kind::TokenDownMult => {
                core::mem::take(&mut mult_and_bias.0)
            }
            Kind::QkvBias | Kind::OutBias | Kind::UpBias | Kind::DownBias | Kind::TokenUpBias | Kind::TokenDownBias => {
                core::mem::take(&mut mult_and_bias.1)
            }
            Kind::Record | Kind::SelfTest => continue,
        };
        writer.set(e.kind, module, layer, &values)?;
        let last = matches!(e.kind, Kind::OutBias | Kind::DownBias | Kind::TokenDownBias);
        if let Some(kind) = at_params.take_if(|_| last) {
            writer.set(kind, module, layer, &parameters(c, kind, shift, layer, &group_rows))?;
        }
    }
    Ok(writer)
}

/// Random puzzle tokens for a model, without the padding token 0.
#[must_use]
pub fn random_tokens(config: &Config, seed: u64) -> Vec<u8> {
    let mut stream = Stream::new(seed, Purpose::Symmetry, u64::MAX);
    let symbols = u64::from(config.vocab.min(256) - 1);
    (0..config.tokens).map(|_| 1 + ((u64::from(stream.next_u32()) * symbols) >> 32) as u8).collect()
}

/// State hashes after each of `segments` segments from guess 0 of `seed`.
///
/// # Errors
/// None in practice: the memory is measured here.
pub fn hashes(view: ModelView<'_>, kernel: Kernel, plan: Plan, tokens: &[u8], seed: u64, segments: usize) -> Result<Vec<u64>, MemoryError> {
    let mut packed = std::vec![0; Network::packed_words(&view, kernel)];
    let network = Network::new(view, kernel, &mut packed)?;
    let mut arena = std::vec![0; network.required_bytes(plan).div_ceil(8)];
    let mut run = Run::new(network, &mut arena, plan)?;
    if run.start(tokens, seed, 0).is_err() {
        return Ok(Vec::new());
    }
    // A run that cannot go on has fewer hashes.
    Ok((0..segments).map_while(|_| run.segment().ok().map(|_| run.hash())).collect())
}

/// Takes away memory that every layer of `run` works in: for tests of what follows, which must be an error and never an answer.
pub fn damage(run: &mut Run<'_, '_>) {
    run.damage();
}

/// Residual and gate shift of a block: other units than the stream's in every second one.
const fn unit_shifts(layer: usize) -> (u32, u32) {
    if layer.is_multiple_of(2) { (0, 0) } else { (2, 1) }
}

fn parameters(c: &Config, kind: Kind, shift: [i64; 2], layer: usize, group_rows: &[usize]) -> Vec<i64> {
    let mut p = std::vec![0; params::LEN];
    p[params::M_IN] = M_UNIT;
    p[params::FIRST_SHIFT] = shift[0];
    p[params::SECOND_SHIFT] = shift[1];
    let (residual_shift, gate_shift) = unit_shifts(layer);
    p[params::RESIDUAL_SHIFT] = i64::from(residual_shift);
    if kind != Kind::AttentionParams {
        p[params::GATE_SHIFT] = i64::from(gate_shift);
    }
    match kind {
        Kind::AttentionParams => {
            p[params::M_QKV..params::M_QKV + 3].fill(M_UNIT);
            // Averages over keys are smaller than values: their view is twice as fine.
            p[params::M_OUT] = 512;
            let d = f64::from(c.channels / c.heads);
            p[params::M_SCORE] = (core::f64::consts::LOG2_E / (d.sqrt() * VIEW * VIEW) * 16_777_216.0) as i64;
        }
        Kind::MlpParams if c.mixer == Mixer::GroupSum => {
            for (m, &rows) in p[params::M_GROUP..].iter_mut().zip(group_rows) {
                *m = ((32768.0 / (rows as f64).sqrt()) as i64).min(32767);
            }
        }
        _ => {}
    }
    p
}

/// Width and height of a box of a square grid of `side` cells.
fn box_shape(side: usize) -> (usize, usize) {
    let height = (1..=side).rev().find(|h| h * h <= side && side.is_multiple_of(*h)).unwrap_or(1);
    (side / height, height)
}

/// Group of token `t` in grouping `g`: rows, columns, boxes, cells of the square grid, rows in a box, columns in a box, then again.
fn group_of(c: &Config, g: usize, t: usize) -> usize {
    let side = usize::from(c.tokens).isqrt();
    let (row, column) = (t / side, t % side);
    let (width, height) = box_shape(side);
    match g % 6 {
        0 => row,
        1 => column,
        2 => row / height * (side / width) + column / width,
        3 => t,
        4 => row * (side / width) + column / width,
        _ => column * (side / height) + row / height,
    }
}

/// Rows of the largest group of grouping `g`.
fn rows_of_group(c: &Config, g: usize, merge_fields: u8) -> usize {
    let tokens = usize::from(c.tokens);
    let mut counts = std::vec![0usize; tokens];
    for t in 0..tokens {
        counts[group_of(c, g, t)] += 1;
    }
    let merged = merge_fields >> g & 1 == 1;
    counts.into_iter().max().unwrap_or(1) * if merged { usize::from(c.fields) } else { 1 }
}

/// Q15 cosines then sines, `[positions, half]` each, theta 10,000.
fn rope(rows: usize, half: usize) -> Vec<i64> {
    let table = |f: fn(f64) -> f64| {
        (0..rows * half).map(move |i| {
            let angle = (i / half) as f64 * libm::pow(10_000.0, -((i % half) as f64) / half as f64);
            (libm::round(f(angle) * 32768.0) as i64).min(32767)
        })
    };
    table(libm::cos).chain(table(libm::sin)).collect()
}

struct Random(Stream);

impl Random {
    /// Normal values of this standard deviation.
    fn normals(&mut self, count: usize, deviation: f64) -> Vec<i64> {
        let mut next = || (f64::from(self.0.next_normals()[0]) / 1024.0 * deviation) as i64;
        (0..count).map(|_| next()).collect()
    }

    fn weights(&mut self, count: usize) -> Vec<i64> {
        let mut w = self.normals(count, WEIGHT);
        w.iter_mut().for_each(|w| *w = (*w).clamp(-127, 127));
        w
    }

    /// Shift, multipliers and bias that bring inputs of standard deviation `input` to outputs of `target(channel)`, a quarter more or
    /// less from channel to channel.
    fn requantisation(&mut self, weights: &[i64], k: usize, target: &dyn Fn(usize) -> f64, input: f64) -> (i64, Vec<i64>, Vec<i64>) {
        let deviation = WEIGHT * input * (k as f64).sqrt();
        let (mut ratios, mut bias, mut bound) = (Vec::new(), Vec::new(), 0);
        for (n, row) in weights.chunks_exact(k).enumerate() {
            let ratio = target(n) / deviation * (1.0 + f64::from(self.0.next_normals()[0]) / 16384.0);
            let b = self.normals(1, 0.1 * deviation)[0] + (0.5 / ratio) as i64;
            bound = bound.max(128 * row.iter().map(|w| w.abs()).sum::<i64>() + b.abs());
            ratios.push(ratio);
            bias.push(b);
        }
        // The largest shift with bound < 2^(31 - l) for which the multipliers fit.
        let fits = |l: &i64| bound < 1 << (31 - l) && ratios.iter().all(|r| r * (1i64 << (32 - l)) as f64 <= 2_147_483_647.0);
        let l = (0..=24).rev().find(fits).unwrap_or(0);
        let mult = ratios.iter().map(|r| (r * (1i64 << (32 - l)) as f64) as i64).collect();
        (l, mult, bias)
    }
}
