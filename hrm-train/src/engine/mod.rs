//! What the training loop needs from a float network: one interface, two engines.
//!
//! `fused` is written for structured cells on CPUs and needs no library; `torch` (feature `tch`) runs every member of the family on CPU
//! or CUDA. Both are deterministic on the CPU for a given seed and thread count does not change the result.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::parallel::Group;
use crate::quantize::plan::ModelPlan;

pub mod fused;
mod muon;
#[cfg(feature = "tch")]
pub mod torch;

/// Loss over the symbols of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Cross entropy of the softmax.
    Softmax,
    /// Cross entropy of stablemax, `s(x) = x + 1` for `x >= 0`, else `1 / (1 - x)`, in f64 (HRM).
    Stablemax,
}

/// Which module calls of a segment carry gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gradient {
    /// The last L and the last H call (HRM).
    OneStep,
    /// Every call of the last H cycle (TRM).
    LastRecursion,
    /// Every call.
    Segment,
}

/// Update rule. All use decoupled weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// `p -= lr / (1 - b1^t) * atan2(m, sqrt(v) / sqrt(1 - b2^t))`.
    AdamAtan2,
    /// AdamW with epsilon 1e-8.
    AdamW,
    /// Muon (Jordan et al. 2024) for the matrices of the modules, with the root mean square of AdamW's steps; AdamW for everything else.
    Muon,
}

/// Fixed settings of one run, as the engines see them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineOptions {
    /// Puzzles trained at once.
    pub batch: usize,
    /// Loss over symbols.
    pub loss: Loss,
    /// Extent of the gradient.
    pub gradient: Gradient,
    /// Update rule.
    pub optimizer: OptimizerKind,
    /// First and second moment decay.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the running mean of the weights; 0 switches it off.
    pub ema: f64,
    /// Weight of the halting loss (0.5 in the papers; 0: no Q head is trained).
    pub q_weight: f64,
    /// Standard deviation of Gaussian noise added to the carry before each segment (0: none).
    pub carry_noise: f64,
    /// Largest norm of the gradient; 0: no clipping.
    pub clip: f64,
    /// Worker threads.
    pub threads: usize,
    /// Seed of initial weights, starts and noise.
    pub seed: u64,
}

/// How deep a segment runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// H updates.
    pub h_cycles: u8,
    /// L updates for each H update.
    pub l_cycles: u8,
}

impl Depth {
    /// The depth the model is made for, at which it is evaluated and shipped.
    #[must_use]
    pub fn of(config: &hrm_core::Config) -> Self {
        Self { h_cycles: config.h_cycles, l_cycles: config.l_cycles }
    }

    /// # Errors
    /// This depth is none, or has more L cycles than the model. Of H cycles there may be more: several segments in one.
    fn check(self, config: &hrm_core::Config) -> anyhow::Result<()> {
        anyhow::ensure!(self.h_cycles > 0, "a segment of 0 h_cycles, expected at least 1");
        let most = config.l_cycles;
        anyhow::ensure!((1..=most).contains(&self.l_cycles), "a segment of {} l_cycles, expected 1 to the model's {most}", self.l_cycles);
        Ok(())
    }
}

/// What a training step may ask for besides puzzles. The default asks for nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Course<'a> {
    /// Depth of this segment; `None`: the model's.
    pub depth: Option<Depth>,
    /// Factor of each row's loss, `[batch]`; empty: 1.
    pub weights: &'a [f32],
    /// What a teacher answers; `None`: the labels alone count.
    pub teacher: Option<Advice<'a>>,
    /// Rows of the table of puzzle embeddings, `[batch]`; empty: row 0.
    pub identifiers: &'a [usize],
}

/// What a teacher answers: the loss is the cross entropy against `(1 - share) * label + share * probabilities`.
#[derive(Clone, Copy, Debug)]
pub struct Advice<'a> {
    /// Probabilities of the symbols, `[batch, S, F]` with fields, else `[batch, S, vocab]`.
    pub probabilities: &'a [f32],
    /// Its share of the target, 0 to 1.
    pub share: f64,
}

impl Course<'_> {
    /// # Errors
    /// The weights are not `batch` finite numbers of 0 or more, the depth is none of this model, or the teacher's answers have another size.
    fn check(&self, config: &hrm_core::Config, batch: usize) -> anyhow::Result<()> {
        let found = self.weights.len();
        anyhow::ensure!(found == 0 || found == batch, "weights: {found} values, expected {batch} for a batch of {batch}");
        if let Some(b) = self.weights.iter().position(|w| !(0.0..=f32::MAX).contains(w)) {
            anyhow::bail!("weights: {} in batch row {b}, expected a number of 0 or more", self.weights[b]);
        }
        if let Some(Advice { probabilities, share }) = self.teacher {
            let (found, expected) = (probabilities.len(), batch * usize::from(config.tokens) * symbols(config).0);
            anyhow::ensure!(found == expected, "teacher: {found} probabilities, expected {expected} for a batch of {batch}");
            anyhow::ensure!((0.0..=1.0).contains(&share), "teacher: a share of {share}, expected 0 to 1");
        }
        self.depth.map_or(Ok(()), |depth| depth.check(config))
    }
}

/// What one training segment did to one row of the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowOutcome {
    /// Cross entropy averaged over the cells.
    pub loss: f32,
    /// Halt logit.
    pub q_halt: f32,
    /// The Q head says halt: `q_halt > q_continue` where a continue output is trained (HRM), else `q_halt > 0` (TRM).
    pub halt: bool,
    /// Cells answered correctly (givens included).
    pub cells: u16,
    /// Whether all cells are right.
    pub exact: bool,
}

/// Named tensors: shape and row-major values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// States of `n` puzzles between two segments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Carry {
    /// Slow state, `[n, R, C]`.
    pub h: Vec<f32>,
    /// Fast state, `[n, R, C]`.
    pub l: Vec<f32>,
}

/// What the heads read from `n` states.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Logits of the symbols: `[n, S, F]` with fields (symbol `f` is token `f + 2`), else `[n, S, vocab]`.
    pub logits: Vec<f32>,
    /// Answers, tokens `[n, S]`.
    pub tokens: Vec<u8>,
    /// Halt logits, `[n]`.
    pub q_halt: Vec<f32>,
    /// Logits of going on, `[n]`; empty for models with one Q output.
    pub q_continue: Vec<f32>,
}

/// Names the random start of one puzzle: a function of these two numbers and the model's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartOf {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the start within the seed.
    pub number: u64,
}

/// A counter as four floats of 16 bits each, lowest first: exact, where one f32 holds 24 bits only.
fn split(counter: u64) -> impl Iterator<Item = f32> {
    (0..4).map(move |i| (counter >> (16 * i) & 0xffff) as f32)
}

/// The counter that [`split`] took apart.
fn join(parts: &[f32]) -> anyhow::Result<u64> {
    parts.iter().rev().try_fold(0, |value, &part| {
        anyhow::ensure!(
            (0.0..65_536.0).contains(&part) && part.fract() == 0.0,
            "tensor `counters` holds {part}, expected integers of 16 bits"
        );
        Ok(value << 16 | part as u64)
    })
}

/// Symbols that a cell can be answered with, and the token of the first: one for each field, or the vocabulary.
pub(crate) fn symbols(config: &hrm_core::Config) -> (usize, usize) {
    if config.fields > 1 { (usize::from(config.fields), 2) } else { (usize::from(config.vocab), 0) }
}

/// For engines without puzzle embeddings.
fn no_identifiers(identifiers: &[usize]) -> anyhow::Result<()> {
    match identifiers.iter().find(|&&id| id > 0) {
        Some(id) => anyhow::bail!("puzzle identifier {id}: this engine has no puzzle embeddings, take train.engine = \"torch\""),
        None => Ok(()),
    }
}

/// A float network with its optimizer and the carries of its batch.
pub trait Engine {
    /// One deep-supervision step: one segment for every row of the batch, loss, gradient, one optimizer step. The carry is kept, detached.
    ///
    /// `inputs`, `labels`: tokens `[batch, S]`; `reset[b]`: row `b` holds a new puzzle, its carry starts afresh. Labels equal to 0 do not
    /// count in the loss.
    ///
    /// # Errors
    /// Non-finite loss or gradient (the weights are left as they were), library failures.
    fn train_segment(&mut self, inputs: &[u8], labels: &[u8], reset: &[bool], lr: f64) -> anyhow::Result<Vec<RowOutcome>> {
        self.train_course(inputs, labels, reset, &Course::default(), lr)
    }

    /// [`Engine::train_segment`] with a course: how deep the segment runs and how much each row counts.
    ///
    /// # Errors
    /// As [`Engine::train_segment`]; a course that does not fit to the model or the batch.
    fn train_course(
        &mut self,
        inputs: &[u8],
        labels: &[u8],
        reset: &[bool],
        course: &Course<'_>,
        lr: f64,
    ) -> anyhow::Result<Vec<RowOutcome>>;

    /// Runs `segments` segments from fresh starts without gradient, with the averaged weights where there are any, and calls
    /// `observe(segment, tokens [n, S], q_halt [n])` after each. Starts depend on `seed` and the puzzle's index only.
    ///
    /// # Errors
    /// Library failures.
    fn infer(&mut self, inputs: &[u8], segments: usize, seed: u64, observe: &mut dyn FnMut(usize, &[u8], &[f32])) -> anyhow::Result<()>;

    /// [`Engine::infer`] of puzzles that have rows of their own in the table of puzzle embeddings: `identifiers` `[n]`.
    ///
    /// # Errors
    /// As [`Engine::infer`]; the model has no such rows.
    fn infer_as(
        &mut self,
        identifiers: &[usize],
        inputs: &[u8],
        segments: usize,
        seed: u64,
        observe: &mut dyn FnMut(usize, &[u8], &[f32]),
    ) -> anyhow::Result<()> {
        no_identifiers(identifiers)?;
        self.infer(inputs, segments, seed, observe)
    }

    /// Carries of as many puzzles as there are starts: random where the model starts so or where `random` asks for it, else its fixed start.
    /// [`Engine::infer`] begins puzzle `b` at `StartOf { seed, number: b }`.
    ///
    /// # Errors
    /// Library failures.
    fn begin(&mut self, starts: &[StartOf], random: bool) -> anyhow::Result<Carry>;

    /// One segment without gradient from given carries, with the weights of [`Engine::infer`]; `inputs` are tokens `[n, S]`.
    ///
    /// # Errors
    /// Tokens or carries that do not fit, library failures.
    fn advance(&mut self, inputs: &[u8], carry: &mut Carry) -> anyhow::Result<Reading>;

    /// What the heads read from `z_H`, without a segment.
    ///
    /// # Errors
    /// Carries that do not fit, library failures.
    fn read(&mut self, carry: &Carry) -> anyhow::Result<Reading>;

    /// Floating-point operations that training takes for each sample-segment, by the last step, and how many the device can do in a second; `None`
    /// where that is not known.
    fn arithmetic(&self) -> Option<(f64, f64)> {
        None
    }

    /// From now on rounds as the integer network of `plan` does, in training (straight-through gradient) and in inference.
    ///
    /// # Errors
    /// This engine cannot, or the plan is one of another architecture.
    fn round_as(&mut self, plan: &ModelPlan) -> anyhow::Result<()>;

    /// From now on computes the rows of this rank only, and steps along the gradient of all ranks. Tokens, resets and outcomes stay those of the
    /// whole batch; tokens of other ranks' rows are not looked at.
    ///
    /// # Errors
    /// The ranks cannot share the batch.
    fn join(&mut self, group: Rc<Group>) -> anyhow::Result<()>;

    /// The weights to use and ship (averaged where there is an average), by public name.
    fn weights(&self) -> Tensors;

    /// CRC-32 of all that must be the same on every rank: weights, their average, moments, and what else training changes but the carries.
    ///
    /// # Errors
    /// Library failures.
    fn checksum(&self) -> anyhow::Result<u32>;

    /// Everything an exact resume needs: weights, averages, moments, carries of the whole batch, step count, random state (integers as exact
    /// bit patterns). All ranks must ask for it together.
    ///
    /// # Errors
    /// Library failures; a rank is gone.
    fn state(&self) -> anyhow::Result<Tensors>;

    /// Restores what [`Engine::state`] gave.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; nothing is changed then.
    fn restore(&mut self, state: &Tensors) -> anyhow::Result<()>;
}
