//! Structured cells on CPUs: a `group-sum` network trained puzzle by puzzle, each small enough to stay in the caches of one core.
//!
//! A batch is cut into chunks of `CHUNK` puzzles, whatever the number of threads. Each chunk has a gradient of its own and the chunks
//! are added in pairs, halves of the batch last, so the result is the same, bit for bit, on any number of threads, and on two ranks that have
//! half of the chunks each.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{bail, ensure};

use super::{EngineOptions, Tensors};
use crate::parallel::Group;
use crate::spec::ModelSpec;

mod accelerated;
mod block;
mod carry;
pub mod device;
mod layout;
mod loss;
mod muon;
mod optim;
pub(crate) mod random;
pub mod reference;
mod rounding;
mod segment;
mod simd;
mod state;
#[cfg(test)]
mod tests;
mod train;

use device::{Accelerator, Operand};
use layout::{Dims, Init, Packed};
use optim::Optimizer;
use random::{Purpose, Stream};
use rounding::BlockSteps;
use segment::Workspace;
use simd::Isa;

/// Puzzles that share one gradient buffer and are worked on by one thread.
const CHUNK: usize = 4;

/// A `group-sum` network, its optimizer and the carries of its batch.
pub struct FusedEngine {
    isa: Isa,
    d: Dims,
    opts: EngineOptions,
    /// Seed of the random streams; `opts.seed` unless a restored run had another.
    seed: u64,
    /// Trained weights, flat.
    weights: Vec<f32>,
    /// Their running mean; empty without one.
    mean: Vec<f32>,
    optimizer: Optimizer,
    /// Fixed starts of z_H and z_L, `[Cp]` each.
    init: [Vec<f32>; 2],
    packed: Packed,
    /// Steps of each block's int8 values; `None`: nothing is rounded.
    rounding: Option<Vec<BlockSteps>>,
    /// Those that train together, and the rows of the batch that are this one's.
    group: Rc<Group>,
    rows: Range<usize>,
    /// `[rows][R][Cp]` each.
    carry_h: Vec<f32>,
    carry_l: Vec<f32>,
    /// Random starts handed out so far.
    starts: u64,
    /// Training segments begun so far.
    segments: u64,
    workspaces: Vec<Workspace>,
    /// One padded gradient a chunk.
    grads: Vec<Vec<f32>>,
    /// How to reach the device that training steps and inference run on; `None`: they run here.
    open: Option<(Operand, device::Open)>,
    /// The device at work, from the first step on. What is trained is there then.
    accelerator: Option<Accelerator>,
}

impl FusedEngine {
    /// A fresh model: LeCun truncated-normal weights, zero biases, halt bias -5.
    ///
    /// # Errors
    /// The model is not a valid `group-sum` model, or an option is out of range.
    pub fn new(spec: &ModelSpec, opts: &EngineOptions) -> anyhow::Result<Self> {
        let d = Dims::new(spec)?;
        let mut weights = vec![0.0; d.len];
        for (number, p) in d.params.iter().enumerate() {
            let stream = Stream::new(opts.seed, Purpose::Weights, number as u64);
            for (i, w) in weights[p.offset..p.offset + p.len].iter_mut().enumerate() {
                *w = match p.init {
                    Init::Normal(std) => std as f32 * stream.truncated(i as u64),
                    Init::Constant(value) => value,
                };
            }
        }
        let init = [0, 1].map(|z| {
            let stream = Stream::new(opts.seed, Purpose::Weights, (d.params.len() + z) as u64);
            (0..d.cp).map(|c| if c < d.c { stream.truncated(c as u64) } else { 0.0 }).collect()
        });
        Self::build(d, opts, weights, init)
    }

    /// A model with the given weights (names of docs/architecture.md) and a fresh optimizer.
    ///
    /// # Errors
    /// As [`FusedEngine::new`]; a tensor is missing or has another shape.
    pub fn from_weights(spec: &ModelSpec, opts: &EngineOptions, weights: &Tensors) -> anyhow::Result<Self> {
        let d = Dims::new(spec)?;
        let flat = d.read_tensors(weights, "")?;
        let init = state::read_init(&d, weights)?;
        Self::build(d, opts, flat, init)
    }

    fn build(d: Dims, opts: &EngineOptions, weights: Vec<f32>, init: [Vec<f32>; 2]) -> anyhow::Result<Self> {
        ensure!(opts.batch > 0, "the batch is 0, expected at least 1");
        ensure!(opts.threads > 0, "the number of threads is 0, expected at least 1");
        ensure!((0.0..1.0).contains(&opts.ema), "the decay of the running mean is {}, expected 0 to below 1", opts.ema);
        let (b1, b2) = opts.betas;
        ensure!((0.0..1.0).contains(&b1) && (0.0..1.0).contains(&b2), "the betas are {b1} and {b2}, expected 0 to below 1");
        ensure!(
            opts.carry_noise >= 0.0 && opts.clip >= 0.0 && opts.q_weight >= 0.0,
            "carry noise {}, clip {} and q weight {} must not be negative",
            opts.carry_noise,
            opts.clip,
            opts.q_weight
        );
        let packed = Packed::new(&d, &weights, None);
        let carry = vec![0.0; opts.batch * d.r * d.cp];
        let mut engine = Self {
            isa: Isa::detect(),
            opts: opts.clone(),
            seed: opts.seed,
            mean: if opts.ema > 0.0 { weights.clone() } else { Vec::new() },
            optimizer: Optimizer::new(d.len),
            init,
            packed,
            rounding: None,
            group: Rc::new(Group::alone()),
            rows: 0..opts.batch,
            carry_l: carry.clone(),
            carry_h: carry,
            starts: 0,
            segments: 0,
            workspaces: Vec::new(),
            grads: Vec::new(),
            open: None,
            accelerator: None,
            weights,
            d,
        };
        let state = engine.d.r * engine.d.cp;
        for (h, l) in engine.carry_h.chunks_exact_mut(state).zip(engine.carry_l.chunks_exact_mut(state)) {
            fresh(engine.isa, &engine.d, &engine.init, Stream::new(engine.seed, Purpose::Start, engine.starts), h, l);
            engine.starts += 1;
        }
        Ok(engine)
    }

    /// Name of the instruction set in use, for reports.
    #[must_use]
    pub fn isa(&self) -> &'static str {
        self.isa.name()
    }

    fn check_tokens(&self, what: &str, tokens: &[u8]) -> anyhow::Result<()> {
        let vocab = self.d.spec.config.vocab;
        if let Some(at) = tokens.iter().position(|&t| u16::from(t) >= vocab) {
            bail!("{what}: token {} in puzzle {}, cell {}, expected below {vocab}", tokens[at], at / self.d.s, at % self.d.s);
        }
        Ok(())
    }

    fn check_labels(&self, labels: &[u8]) -> anyhow::Result<()> {
        self.check_tokens("labels", labels)?;
        if self.d.f > 1
            && let Some(at) = labels.iter().position(|&t| t == 1)
        {
            bail!("labels: token 1 (blank) in puzzle {}, cell {}, expected a symbol or 0", at / self.d.s, at % self.d.s);
        }
        Ok(())
    }
}

/// Fills the carry of one puzzle with its start.
fn fresh(isa: Isa, d: &Dims, init: &[Vec<f32>; 2], stream: Stream, h: &mut [f32], l: &mut [f32]) {
    match d.spec.config.start {
        hrm_core::Start::Fixed => {
            for (z, init) in [h, l].into_iter().zip(init) {
                z.chunks_exact_mut(d.cp).for_each(|row| row.copy_from_slice(init));
            }
        }
        hrm_core::Start::Random => {
            for (half, z) in [h, l].into_iter().enumerate() {
                simd::truncated(isa, z, d.cp, d.c, stream, (half * d.r * d.c) as u64);
            }
        }
    }
}
