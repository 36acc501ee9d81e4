//! Every member of the family through libtorch, on CPU or CUDA: HRM and TRM as published, and the structured cells.
//!
//! Numbers: weights, moments and the Q head's output are f32; the network computes in f32 or bf16, norms and rotary embedding always in
//! f32, stablemax in f64. On the CPU a run is the same, bit for bit, for one seed and one number of threads.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{bail, ensure};
use hrm_core::{Mixer, Start};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::fused::random::{Purpose, Stream};
use super::{Course, Engine, EngineOptions, RowOutcome, Tensors};
use crate::import::PublicOptions;
use crate::parallel::{Group, checksum};
use crate::quantize::plan::ModelPlan;
use crate::spec::ModelSpec;

mod block;
mod carry;
mod device;
mod layout;
mod loss;
mod net;
mod optim;
mod state;
mod step;
#[cfg(test)]
mod tests;

use layout::{Layout, device_tensor, host};
use net::{Carry, Net, Weights};
use optim::Optimizer;
pub use step::{Batch, SegmentReport};

/// What this engine needs to know beyond [`EngineOptions`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorchOptions {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Compute in bf16 (weights stay f32).
    pub bf16: bool,
    /// For models of the public HRM and TRM shapes; `None` for structured ones.
    pub public: Option<PublicOptions>,
    /// Learning rate of the puzzle embeddings, as a multiple of the weights' (100 for ARC, 1 for Sudoku in HRM).
    pub puzzle_emb_lr_ratio: f64,
    /// Decoupled weight decay of the puzzle embeddings.
    pub puzzle_emb_weight_decay: f64,
}

impl TorchOptions {
    /// Options for a model of the family on a device (`cpu`, `cuda:N`).
    ///
    /// Attention and token-mlp models get the public form: a puzzle embedding that fills the prefix tokens, one identifier, a trained
    /// value of going on if there are two modules (HRM). `weight_decay` is the decay of the puzzle embedding.
    #[must_use]
    pub fn new(spec: &ModelSpec, device: &str, bf16: bool, weight_decay: f64) -> Self {
        let c = &spec.config;
        let public = matches!(c.mixer, Mixer::Attention | Mixer::TokenMlp).then(|| PublicOptions {
            // One vector of C fills the first prefix token; TRM leaves the rest of its 16 at zero.
            puzzle_emb_ndim: if c.prefix > 0 { usize::from(c.channels) } else { 0 },
            puzzle_identifiers: usize::from(c.prefix > 0),
            learned_positions: c.mixer == Mixer::Attention && !c.rope,
            q_continue: !c.shared,
            halt_max_steps: 16,
            rope_theta: 10_000.0,
            rms_eps: 1e-5,
        });
        Self { device: device.into(), bf16, public, puzzle_emb_lr_ratio: 1.0, puzzle_emb_weight_decay: weight_decay }
    }
}

/// Outputs of one segment of evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentTrace {
    /// `[n, S, vocab]`, or `[n, S, F]` with fields.
    pub logits: Vec<f32>,
    /// `[n]`.
    pub q_halt: Vec<f32>,
    /// `[n]`; empty for models with one Q output.
    pub q_continue: Vec<f32>,
    /// `[n, R, C]`.
    pub z_h: Vec<f32>,
    /// `[n, R, C]`.
    pub z_l: Vec<f32>,
}

/// A float network of the family with its optimizer and the carries of its batch.
pub struct TorchEngine {
    net: Net,
    options: EngineOptions,
    torch: TorchOptions,
    seed: u64,
    /// Trained weights.
    flat: Tensor,
    /// Views of `flat`.
    weights: Weights,
    /// Table of puzzle embeddings.
    puzzle: Option<Tensor>,
    optimizer: Optimizer,
    /// Those that train together, and the rows of the batch that are this one's: those of the carry and of `steps`.
    group: Rc<Group>,
    rows: Range<usize>,
    carry: Carry,
    /// Segments since each row's reset.
    steps: Vec<u32>,
    /// Random starts handed out so far.
    starts: u64,
    /// Training segments so far.
    segments: u64,
}

impl TorchEngine {
    /// A fresh model: weights by the public recipe (truncated LeCun normal, Q head zero with bias -5).
    ///
    /// # Errors
    /// An invalid model or option, no such device.
    pub fn new(spec: &ModelSpec, options: &EngineOptions, torch: &TorchOptions) -> anyhow::Result<Self> {
        check(spec, options, torch)?;
        let weights = Layout::new(spec, torch).fresh(options.seed);
        Self::from_weights(spec, options, torch, &weights)
    }

    /// A model with the given weights (public names, or docs/architecture.md's for structured models) and a fresh optimizer.
    ///
    /// # Errors
    /// As [`TorchEngine::new`]; a tensor is missing, has another shape, or belongs to no part of the model.
    pub fn from_weights(spec: &ModelSpec, options: &EngineOptions, torch: &TorchOptions, weights: &Tensors) -> anyhow::Result<Self> {
        check(spec, options, torch)?;
        let device = device::open(&torch.device)?;
        tch::set_num_threads(i32::try_from(options.threads).unwrap_or(i32::MAX));
        let net = Net::new(spec, torch, device, weights)?;
        let flat = net.layout.flat(weights, "", device)?;
        let leaves = net.weights(&flat, true)?;
        let puzzle = net.layout.buffers.iter().find(|b| b.name.ends_with("puzzle_emb.weights"));
        let puzzle = puzzle.map(|b| device_tensor(weights, &b.name, &b.shape, device)).transpose()?;
        let optimizer = Optimizer::new(options, &net.layout, &flat)?;
        let batch = options.batch as i64;
        let carry = net.fixed_start(batch)?;
        let mut engine = Self {
            net,
            options: options.clone(),
            torch: torch.clone(),
            seed: options.seed,
            flat,
            weights: leaves,
            puzzle,
            optimizer,
            group: Rc::new(Group::alone()),
            rows: 0..options.batch,
            carry,
            steps: vec![0; options.batch],
            starts: 0,
            segments: 0,
        };
        let streams: Vec<Stream> = (0..options.batch as u64).map(|number| Stream::new(engine.seed, Purpose::Start, number)).collect();
        engine.carry = engine.fresh(&streams)?;
        engine.starts = options.batch as u64;
        Ok(engine)
    }

    fn check_tokens(&self, what: &str, tokens: &[u8]) -> anyhow::Result<()> {
        let (vocab, s) = (self.net.config.vocab, usize::from(self.net.config.tokens));
        ensure!(tokens.len().is_multiple_of(s), "{what}: {} tokens, expected a multiple of {s}", tokens.len());
        if let Some(at) = tokens.iter().position(|&t| u16::from(t) >= vocab) {
            bail!("{what}: token {} in puzzle {}, cell {}, expected below {vocab}", tokens[at], at / s, at % s);
        }
        Ok(())
    }

    /// Carries of `streams.len()` puzzles, element `i` of half 0 (z_H) or 1 (z_L) from `value`.
    fn random_carry(&self, streams: &[Stream], value: impl Fn(Stream, u64, u64) -> f32) -> anyhow::Result<Carry> {
        let (len, [rows, channels]) = (self.net.config.state_len() as u64, self.net.state());
        let half = |half: u64| -> anyhow::Result<Tensor> {
            let values: Vec<f32> =
                streams.iter().flat_map(|&stream| (0..len).map(move |i| (stream, i))).map(|(s, i)| value(s, half, i)).collect();
            let tensor = Tensor::f_from_slice(&values)?.f_reshape([streams.len() as i64, rows, channels])?;
            Ok(tensor.f_to_device(self.net.device)?.f_to_kind(self.net.kind)?)
        };
        Ok(Carry { h: half(0)?, l: half(1)? })
    }

    /// Starts of as many puzzles as there are streams.
    fn fresh(&self, streams: &[Stream]) -> anyhow::Result<Carry> {
        let len = self.net.config.state_len() as u64;
        match self.net.config.start {
            Start::Fixed => Ok(self.net.fixed_start(streams.len() as i64)?),
            Start::Random => self.random_carry(streams, |stream, half, i| stream.truncated(half * len + i)),
        }
    }

    /// Runs `segments` segments of `inputs` `[n, S]` from fresh starts and gives logits, Q and states after each to `observe`, with the
    /// averaged weights where there are any. `identifiers`: rows of the table of puzzle embeddings, empty for row 0. Starts depend on
    /// `seed` and the puzzle's index in this call, counted from `first`.
    ///
    /// # Errors
    /// Tokens or identifiers out of range, libtorch's errors.
    pub fn trace(
        &self,
        inputs: &[u8],
        identifiers: &[usize],
        segments: usize,
        seed: u64,
        first: u64,
        observe: &mut dyn FnMut(usize, SegmentTrace) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.run(inputs, identifiers, segments, seed, first, &mut |segment, net, weights, carry| {
            let (logits, q) = net.heads(weights, &carry.h)?;
            let q_continue = if q.size()[1] == 2 { host(&q.f_select(1, 1)?)? } else { Vec::new() };
            let (logits, q_halt) = (host(&logits)?, host(&q.f_select(1, 0)?)?);
            observe(segment, SegmentTrace { logits, q_halt, q_continue, z_h: host(&carry.h)?, z_l: host(&carry.l)? })
        })
    }

    fn run(
        &self,
        inputs: &[u8],
        identifiers: &[usize],
        segments: usize,
        seed: u64,
        first: u64,
        observe: &mut dyn FnMut(usize, &Net, &Weights, &Carry) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.check_tokens("inputs", inputs)?;
        let n = inputs.len() / usize::from(self.net.config.tokens);
        ensure!(identifiers.is_empty() || identifiers.len() == n, "puzzle identifiers: {} values, expected {n}", identifiers.len());
        let identifiers = self.identifiers(identifiers, n)?;
        let averaged = self.optimizer.average.as_ref().map(|flat| self.net.weights(flat, false)).transpose()?;
        let weights = averaged.as_ref().unwrap_or(&self.weights);
        no_grad(|| {
            let tokens = self.tokens(inputs)?;
            let x = self.net.embed(weights, &tokens, self.puzzle_rows(&identifiers)?.as_ref())?;
            let streams: Vec<Stream> = (first..).take(n).map(|number| Stream::new(seed, Purpose::InferenceStart, number)).collect();
            let mut carry = self.fresh(&streams)?;
            for segment in 0..segments {
                carry = self.net.advance(weights, &carry, &x)?;
                observe(segment, &self.net, weights, &carry)?;
            }
            Ok(())
        })
    }
}

fn check(spec: &ModelSpec, options: &EngineOptions, torch: &TorchOptions) -> anyhow::Result<()> {
    spec.validate()?;
    let public = matches!(spec.config.mixer, Mixer::Attention | Mixer::TokenMlp);
    ensure!(
        public == torch.public.is_some(),
        "a model that mixes by {:?} {} the options of public models",
        spec.config.mixer,
        if public { "needs" } else { "has none of" }
    );
    if let Some(public) = &torch.public {
        let room = usize::from(spec.config.prefix) * usize::from(spec.config.channels);
        ensure!(public.puzzle_emb_ndim <= room, "puzzle_emb_ndim is {}, the prefix tokens hold {room}", public.puzzle_emb_ndim);
        ensure!(public.puzzle_emb_ndim > 0 || room == 0, "puzzle_emb_ndim is 0, but the model has {} prefix tokens", spec.config.prefix);
        ensure!(public.puzzle_emb_ndim == 0 || public.puzzle_identifiers > 0, "puzzle_identifiers is 0, expected at least 1");
    }
    ensure!(options.batch > 0, "the batch is 0, expected at least 1");
    ensure!(options.threads > 0, "the number of threads is 0, expected at least 1");
    ensure!((0.0..1.0).contains(&options.ema), "the decay of the running mean is {}, expected 0 to below 1", options.ema);
    let (b1, b2) = options.betas;
    ensure!((0.0..1.0).contains(&b1) && (0.0..1.0).contains(&b2), "the betas are {b1} and {b2}, expected 0 to below 1");
    ensure!(
        options.carry_noise >= 0.0 && options.clip >= 0.0 && options.q_weight >= 0.0,
        "carry noise {}, clip {} and q weight {} must not be negative",
        options.carry_noise,
        options.clip,
        options.q_weight
    );
    Ok(())
}

/// A lost GPU must end the run here: a checkpoint of anything less than all weights would replace a good one.
fn copied<T>(result: anyhow::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("the weights cannot be copied from the device: {error:#}"))
}

impl Engine for TorchEngine {
    fn train_course(
        &mut self,
        inputs: &[u8],
        labels: &[u8],
        reset: &[bool],
        course: &Course<'_>,
        lr: f64,
    ) -> anyhow::Result<Vec<RowOutcome>> {
        Ok(self.train(&Batch { inputs, labels, identifiers: course.identifiers, reset, course: *course }, lr)?.rows)
    }

    fn infer(&mut self, inputs: &[u8], segments: usize, seed: u64, observe: &mut dyn FnMut(usize, &[u8], &[f32])) -> anyhow::Result<()> {
        self.infer_as(&[], inputs, segments, seed, observe)
    }

    fn infer_as(
        &mut self,
        identifiers: &[usize],
        inputs: &[u8],
        segments: usize,
        seed: u64,
        observe: &mut dyn FnMut(usize, &[u8], &[f32]),
    ) -> anyhow::Result<()> {
        self.check_tokens("inputs", inputs)?;
        let s = usize::from(self.net.config.tokens);
        let n = inputs.len() / s;
        ensure!(identifiers.is_empty() || identifiers.len() == n, "puzzle identifiers: {} values, expected {n}", identifiers.len());
        // A batch runs all its segments before the next, so that few states are held; the answers wait for the others'.
        let (mut tokens, mut halts) = (vec![0u8; segments * n * s], vec![0.0f32; segments * n]);
        for (i, chunk) in inputs.chunks(self.options.batch * s).enumerate() {
            let first = i * self.options.batch;
            let identifiers = if identifiers.is_empty() { &[] } else { &identifiers[first..first + chunk.len() / s] };
            self.run(chunk, identifiers, segments, seed, first as u64, &mut |segment, net, weights, carry| {
                let (logits, q) = net.heads(weights, &carry.h)?;
                let answer = net.answer(&logits)?.f_to_kind(Kind::Uint8)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
                let at = (segment * n + first) * s;
                answer.f_copy_data(&mut tokens[at..at + chunk.len()], chunk.len())?;
                let q = host(&q.f_select(1, 0)?)?;
                halts[segment * n + first..][..q.len()].copy_from_slice(&q);
                Ok(())
            })?;
        }
        for segment in 0..segments {
            observe(segment, &tokens[segment * n * s..][..n * s], &halts[segment * n..][..n]);
        }
        Ok(())
    }

    fn begin(&mut self, starts: &[super::StartOf], random: bool) -> anyhow::Result<super::Carry> {
        self.begin_at(starts, random)
    }

    fn advance(&mut self, inputs: &[u8], carry: &mut super::Carry) -> anyhow::Result<super::Reading> {
        self.advance_from(inputs, carry)
    }

    fn read(&mut self, carry: &super::Carry) -> anyhow::Result<super::Reading> {
        self.read_from(carry)
    }

    fn round_as(&mut self, _plan: &ModelPlan) -> anyhow::Result<()> {
        anyhow::bail!("the torch engine does not train with the roundings of the integer network: take train.engine = \"fused\"")
    }

    fn weights(&self) -> Tensors {
        let mut out = Tensors::new();
        let flat = self.optimizer.average.as_ref().unwrap_or(&self.flat);
        copied(self.net.layout.named(flat, "", &mut out).and_then(|()| self.put_buffers(&mut out)));
        out
    }

    fn join(&mut self, group: Rc<Group>) -> anyhow::Result<()> {
        ensure!(self.rows.len() == self.options.batch, "this engine has joined a group already");
        self.rows = group.rows(self.options.batch)?;
        let (first, count) = (self.rows.start as i64, self.rows.len() as i64);
        self.carry = self.carry.map(|z| Ok(z.f_narrow(0, first, count)?.copy()))?;
        self.steps.truncate(self.rows.len());
        self.group = group;
        Ok(())
    }

    fn checksum(&self) -> anyhow::Result<u32> {
        let shared =
            [Some(&self.flat), self.optimizer.average.as_ref(), Some(&self.optimizer.m), Some(&self.optimizer.v), self.puzzle.as_ref()];
        let values = shared.into_iter().flatten().map(host).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(checksum(values.iter().map(Vec::as_slice)))
    }

    fn state(&self) -> anyhow::Result<Tensors> {
        self.save()
    }

    fn restore(&mut self, state: &Tensors) -> anyhow::Result<()> {
        self.load(state)
    }
}
