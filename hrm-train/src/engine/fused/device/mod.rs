//! Training on a device: gradients, inference and the optimizer by the kernels of `step.cu` and `optimizer.cu`. The host hands out puzzles and starts, and
//! reads outcomes and the length of the gradient.
//!
//! A [`Device`] is what runs the kernels. With feature `cuda` there is `Gpu`, an NVIDIA GPU; the tests have another: the same source compiled for
//! the host.

use std::cell::RefCell;

use anyhow::ensure;

use super::layout::Dims;
use super::random::Stream;
use crate::engine::{Depth, EngineOptions, Loss, OptimizerKind, RowOutcome, muon};

#[cfg(feature = "cuda")]
mod gpu;
mod packing;
mod program;

#[cfg(feature = "cuda")]
pub use gpu::{Gpu, compile};
pub use program::{Operand, Program, SOURCE, THREADS};

use program::{COMMAND_HEAD, GRID, RESULT_HEAD};

/// Bits of a command's action.
const RUN: u32 = 1;
const START: u32 = 2;
const LEARN: u32 = 4;
const STABLEMAX: u32 = 8;

/// Memory of a device that the host writes or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// [`Program::command_words`] words a slot.
    Commands,
    /// Carries and scratch memory: [`Program::work_bytes`] a slot.
    Work,
    /// [`Program::result_words`] words a slot.
    Results,
    /// Weights, their running mean, first and second moments, gradient, update: [`Program::len`] values each.
    State,
    /// [`RATES`] numbers of a step of the optimizer.
    Rates,
    /// The norm of the gradient.
    Measured,
}

/// The kernels of `step.cu` and `optimizer.cu`.
#[allow(missing_docs, reason = "the sources say what each does")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Step,
    Reduce,
    Measure,
    Moments,
    Normalise,
    Multiply,
    Apply,
    MeasureChannels,
    Pack,
}

impl Kernel {
    /// All, each at the place of its number.
    pub const ALL: [Self; 9] = [
        Self::Step,
        Self::Reduce,
        Self::Measure,
        Self::Moments,
        Self::Normalise,
        Self::Multiply,
        Self::Apply,
        Self::MeasureChannels,
        Self::Pack,
    ];

    /// Its name in the source.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Reduce => "reduce",
            Self::Measure => "measure",
            Self::Moments => "moments",
            Self::Normalise => "normalise",
            Self::Multiply => "multiply",
            Self::Apply => "apply",
            Self::MeasureChannels => "measure_channels",
            Self::Pack => "pack",
        }
    }

    /// Threads of a block.
    #[must_use]
    pub const fn threads(self) -> u32 {
        match self {
            Self::Step | Self::Measure | Self::Normalise => THREADS,
            Self::MeasureChannels => 32,
            Self::Reduce | Self::Moments | Self::Multiply | Self::Apply | Self::Pack => 256,
        }
    }
}

/// Something that runs the kernels. What is launched runs in order, and before what is read after it.
pub trait Device {
    /// What it is, for reports.
    fn name(&self) -> String;

    /// bf16 operations a second at most, a multiplication and an addition counted as two; `None` if that is not known.
    fn peak(&self) -> Option<f64> {
        None
    }

    /// Gives the first `slots` slots room for the backward pass of `calls` module calls.
    ///
    /// # Errors
    /// It has not that much memory.
    fn reserve(&mut self, slots: usize, calls: usize) -> anyhow::Result<()>;

    /// Copies `bytes` to byte `at` of a buffer.
    ///
    /// # Errors
    /// The device fails.
    fn write(&mut self, buffer: Buffer, at: usize, bytes: &[u8]) -> anyhow::Result<()>;

    /// Copies from byte `at` of a buffer, after everything that was begun is done.
    ///
    /// # Errors
    /// The device fails.
    fn read(&mut self, buffer: Buffer, at: usize, bytes: &mut [u8]) -> anyhow::Result<()>;

    /// Begins a kernel on so many blocks.
    ///
    /// # Errors
    /// The device fails.
    fn launch(&mut self, kernel: Kernel, blocks: usize, parameters: [u32; 3]) -> anyhow::Result<()>;
}

/// Makes a device for a program and this number of slots.
pub type Open = Box<dyn Fn(&Program, usize) -> anyhow::Result<Box<dyn Device>>>;

/// A row of a batch to be trained on.
pub(super) struct Row<'a> {
    pub input: &'a [u8],
    pub labels: &'a [u8],
    /// Stream of the start; `None`: the carry goes on.
    pub start: Option<Stream>,
    pub noise: Stream,
    pub weight: f32,
}

/// Numbers of a step of the optimizer.
pub const RATES: usize = 8;
/// Blocks of a grid that share out a matrix.
const MATRIX_BLOCKS: usize = 32;

/// Vectors of [`Buffer::State`].
const WEIGHTS: usize = 0;
const MEAN: usize = 1;
const GRADIENT: usize = 4;

/// A device at work for an engine: its first `batch` slots hold the rows of the batch, as many others are for inference.
pub(super) struct Accelerator {
    program: Program,
    device: RefCell<Box<dyn Device>>,
    batch: usize,
    /// Calls that the slots of the batch have room for.
    calls: usize,
    /// Operations a sample-segment of the last step.
    work: f64,
}

/// All that an engine trains.
pub(super) struct Parameters {
    pub weights: Vec<f32>,
    /// Empty without a running mean.
    pub mean: Vec<f32>,
    pub m: Vec<f32>,
    pub v: Vec<f32>,
    /// Of the batch, `[batch][R][Cp]` each.
    pub carry: [Vec<f32>; 2],
}

/// Operations of a sample-segment: the products of every call, and those of the backward pass, twice as many, of the kept ones. Longer segments count as
/// several.
fn work(d: &Dims, depth: Depth, kept: usize) -> f64 {
    let products = (d.r + d.groups()) * 2 * d.i * d.c + d.r * d.i * d.c;
    let layers = d.blocks.len() as f64 / d.layers.len() as f64;
    let calls = usize::from(depth.h_cycles) * (usize::from(depth.l_cycles) + 1);
    let segments = f64::from(depth.h_cycles) / f64::from(d.spec.config.h_cycles);
    2.0 * products as f64 * layers * (calls + 2 * kept) as f64 / segments.max(1.0)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read_floats(device: &mut dyn Device, buffer: Buffer, at: usize, len: usize) -> anyhow::Result<Vec<f32>> {
    let mut bytes = vec![0; 4 * len];
    device.read(buffer, at, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

impl Accelerator {
    /// Opens the device and takes everything there.
    pub fn new(program: Program, open: &Open, d: &Dims, [weights, mean, m, v]: [&[f32]; 4], carry: [&[f32]; 2]) -> anyhow::Result<Self> {
        let state = d.r * d.cp;
        let batch = carry[0].len() / state;
        let mut device = open(&program, 2 * batch)?;
        eprintln!("training steps on {}: {batch} puzzles at once", device.name());
        for (i, values) in [weights, mean, m, v].into_iter().enumerate() {
            device.write(Buffer::State, 4 * i * program.len, &floats(values))?;
        }
        for (slot, (h, l)) in carry[0].chunks_exact(state).zip(carry[1].chunks_exact(state)).enumerate() {
            device.write(Buffer::Work, slot * program.work_bytes, &floats(&[h, l].concat()))?;
        }
        let accelerator = Self { program, device: RefCell::new(device), batch, calls: 0, work: 0.0 };
        accelerator.pack(accelerator.device.borrow_mut().as_mut(), WEIGHTS)?;
        Ok(accelerator)
    }

    /// All that is trained, as it is now.
    pub fn parameters(&self, d: &Dims, mean: bool) -> anyhow::Result<Parameters> {
        let mut device = self.device.borrow_mut();
        let device = device.as_mut();
        let (state, len) = (d.r * d.cp, self.program.len);
        let mut carry = [Vec::new(), Vec::new()];
        for slot in 0..self.batch {
            let both = read_floats(device, Buffer::Work, slot * self.program.work_bytes, 2 * state)?;
            carry[0].extend(&both[..state]);
            carry[1].extend(&both[state..]);
        }
        let mut vector = |i: usize| read_floats(device, Buffer::State, 4 * i * len, len);
        Ok(Parameters {
            weights: vector(WEIGHTS)?,
            mean: if mean { vector(MEAN)? } else { Vec::new() },
            m: vector(2)?,
            v: vector(3)?,
            carry,
        })
    }

    /// Makes the products' operands of a vector of the state.
    fn pack(&self, device: &mut dyn Device, vector: usize) -> anyhow::Result<()> {
        device.launch(Kernel::MeasureChannels, self.program.channels, [vector as u32, 0, 0])?;
        device.launch(Kernel::Pack, GRID, [vector as u32, 0, 0])
    }

    fn command(&self, action: u32, depth: Depth, head: [u32; COMMAND_HEAD - 3], tokens: [&[u8]; 2]) -> Vec<u32> {
        let mut command = vec![action, depth.h_cycles.into(), depth.l_cycles.into()];
        command.extend(head);
        let half = (self.program.command_words - COMMAND_HEAD) / 2;
        for tokens in tokens {
            let end = command.len() + half;
            command.extend(tokens.chunks(4).map(|four| four.iter().rev().fold(0, |word, &t| word << 8 | u32::from(t))));
            command.resize(end, 0);
        }
        command
    }

    /// Operations a sample-segment of the last training step, and operations a second at most.
    pub fn arithmetic(&self) -> Option<(f64, f64)> {
        Some((self.work, self.device.borrow().peak()?))
    }

    /// Computes the gradient of the batch, which stays on the device; outcomes of the rows. `kept`: calls at the end of the segment that carry
    /// gradient.
    pub fn gradient(
        &mut self,
        d: &Dims,
        opts: &EngineOptions,
        (depth, kept): (Depth, usize),
        rows: &[Row<'_>],
    ) -> anyhow::Result<Vec<RowOutcome>> {
        self.work = work(d, depth, kept);
        ensure!(rows.len() == self.batch, "{} rows, the device was made for {}", rows.len(), self.batch);
        let mut device = self.device.borrow_mut();
        let device = device.as_mut();
        if kept > self.calls {
            device.reserve(self.batch, kept)?;
            self.calls = kept;
        }
        let stablemax = if opts.loss == Loss::Stablemax { STABLEMAX } else { 0 };
        let commands: Vec<u32> = rows
            .iter()
            .flat_map(|row| {
                let action = RUN | LEARN | stablemax | if row.start.is_some() { START } else { 0 };
                let [start_low, start_high] = row.start.map_or([0; 2], Stream::words);
                let [noise_low, noise_high] = row.noise.words();
                let weight = f64::from(row.weight) / opts.batch as f64;
                let bits = |v: f64| (v as f32).to_bits();
                let head = [
                    kept as u32,
                    start_low,
                    start_high,
                    noise_low,
                    noise_high,
                    bits(opts.carry_noise),
                    bits(weight),
                    bits(weight * opts.q_weight),
                ];
                self.command(action, depth, head, [row.input, row.labels])
            })
            .collect();
        device.write(Buffer::Commands, 0, &words(&commands))?;
        device.launch(Kernel::Step, self.batch, [0; 3])?;
        device.launch(Kernel::Reduce, GRID, [self.batch as u32, 0, 0])?;
        let results = self.results(device, 0, self.batch)?;
        let outcomes = results.chunks_exact(self.program.result_words).map(|r| {
            let q_halt = f32::from_bits(r[1]);
            RowOutcome { loss: f32::from_bits(r[0]), q_halt, halt: q_halt > 0.0, cells: r[2] as u16, exact: r[3] != 0 }
        });
        Ok(outcomes.collect())
    }

    /// The gradient that was computed last.
    pub fn read_gradient(&self) -> anyhow::Result<Vec<f32>> {
        let len = self.program.len;
        read_floats(self.device.borrow_mut().as_mut(), Buffer::State, 4 * GRADIENT * len, len)
    }

    /// Puts another in its place: the sum over several ranks.
    pub fn write_gradient(&self, gradient: &[f32]) -> anyhow::Result<()> {
        self.device.borrow_mut().write(Buffer::State, 4 * GRADIENT * self.program.len, &floats(gradient))
    }

    /// The length of the gradient; not finite if an element is not.
    pub fn norm(&self) -> anyhow::Result<f32> {
        let mut device = self.device.borrow_mut();
        device.launch(Kernel::Measure, 1, [0; 3])?;
        Ok(read_floats(device.as_mut(), Buffer::Measured, 0, 1)?[0])
    }

    /// Step number `number` of the optimizer along the gradient, which is `norm` long, as `Optimizer::step` makes it; then the running mean.
    pub fn step(&self, opts: &EngineOptions, number: u64, norm: f32, lr: f64) -> anyhow::Result<()> {
        let mut device = self.device.borrow_mut();
        let device = device.as_mut();
        let (b1, b2) = opts.betas;
        let root2 = (1.0 - b2.powf(number as f64)).sqrt();
        let shrink = if opts.clip > 0.0 && f64::from(norm) > opts.clip { opts.clip / f64::from(norm) } else { 1.0 };
        let rate = lr / (1.0 - b1.powf(number as f64));
        let rates = [shrink, b1, b2, 1.0 / root2, rate, lr, 1.0 - lr * opts.weight_decay, opts.ema].map(|r| r as f32);
        device.write(Buffer::Rates, 0, &floats(&rates))?;
        let kind = match opts.optimizer {
            OptimizerKind::AdamAtan2 => 0,
            OptimizerKind::AdamW => 1,
            OptimizerKind::Muon => 2,
        };
        device.launch(Kernel::Moments, GRID, [kind, 0, 0])?;
        let (matrices, blocks) = (self.program.matrices, MATRIX_BLOCKS as u32);
        if matrices > 0 {
            device.launch(Kernel::Normalise, matrices, [0; 3])?;
            for turn in 0..muon::STEPS as u32 {
                for product in 0..3 {
                    device.launch(Kernel::Multiply, matrices * MATRIX_BLOCKS, [product, turn, blocks])?;
                }
            }
            device.launch(Kernel::Apply, matrices * MATRIX_BLOCKS, [muon::STEPS as u32, blocks, 0])?;
        }
        self.pack(device, WEIGHTS)
    }

    fn results(&self, device: &mut dyn Device, first: usize, slots: usize) -> anyhow::Result<Vec<u32>> {
        let mut bytes = vec![0; 4 * slots * self.program.result_words];
        device.read(Buffer::Results, 4 * first * self.program.result_words, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect())
    }

    /// Runs puzzles for `segments` segments from fresh starts, with the running mean if there is one: answers `[n][segments][S]` and halt logits
    /// `[n][segments]`.
    pub fn infer(
        &self,
        d: &Dims,
        mean: bool,
        inputs: &[u8],
        segments: usize,
        start: impl Fn(u64) -> Stream,
    ) -> anyhow::Result<(Vec<u8>, Vec<f32>)> {
        let mut device = self.device.borrow_mut();
        let device = device.as_mut();
        if mean {
            self.pack(device, MEAN)?;
        }
        let n = inputs.len() / d.s;
        let (mut tokens, mut halts) = (vec![0u8; n * segments * d.s], vec![0.0f32; n * segments]);
        let depth = Depth::of(&d.spec.config);
        for first in (0..n).step_by(self.batch) {
            let count = self.batch.min(n - first);
            for segment in 0..segments {
                let commands: Vec<u32> = (first..first + count)
                    .flat_map(|b| {
                        let [low, high] = start(b as u64).words();
                        let action = RUN | if segment == 0 { START } else { 0 };
                        self.command(action, depth, [0, low, high, 0, 0, 0, 0, 0], [&inputs[b * d.s..(b + 1) * d.s], &[]])
                    })
                    .collect();
                device.write(Buffer::Commands, 4 * self.batch * self.program.command_words, &words(&commands))?;
                device.launch(Kernel::Step, count, [self.batch as u32, 0, 0])?;
                let results = self.results(device, self.batch, count)?;
                for (b, result) in (first..).zip(results.chunks_exact(self.program.result_words)) {
                    let at = b * segments + segment;
                    halts[at] = f32::from_bits(result[1]);
                    let answer = words(&result[RESULT_HEAD..]);
                    tokens[at * d.s..(at + 1) * d.s].copy_from_slice(&answer[..d.s]);
                }
            }
        }
        if mean {
            self.pack(device, WEIGHTS)?;
        }
        Ok((tokens, halts))
    }
}
