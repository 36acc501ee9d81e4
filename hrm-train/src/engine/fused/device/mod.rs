//! Training steps on a device: the gradient of a batch, and inference, by the kernels of `step.cu`; everything else stays on the host.
//!
//! A [`Device`] is what runs the kernels. With feature `cuda` there is `Gpu`, an NVIDIA GPU; the tests have another: the same source compiled for
//! the host.

use std::cell::RefCell;

use anyhow::ensure;

use super::layout::{Dims, Packed};
use super::random::Stream;
use crate::engine::{Depth, EngineOptions, Loss, RowOutcome};

#[cfg(feature = "cuda")]
mod gpu;
mod program;

#[cfg(feature = "cuda")]
pub use gpu::{Gpu, compile};
pub use program::{Operand, Program, SOURCE, THREADS};

use program::{COMMAND_HEAD, RESULT_HEAD};

/// Bits of a command's action.
const RUN: u32 = 1;
const START: u32 = 2;
const LEARN: u32 = 4;
const STABLEMAX: u32 = 8;

/// Memory of a device that the host writes or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// Operands of the products: [`Program::weight_bytes`].
    Weights,
    /// Other weights and factors: [`Program::float_len`] values.
    Floats,
    /// [`Program::command_words`] words a slot.
    Commands,
    /// Carries and scratch memory: [`Program::work_bytes`] a slot.
    Work,
    /// [`Program::result_words`] words a slot.
    Results,
    /// The gradient of a batch: [`Program::gradient_len`] values.
    Sum,
}

/// Something that runs the kernels of `step.cu`. Its memory for weights, commands and results is whatever the host last wrote.
pub trait Device {
    /// What it is, for reports.
    fn name(&self) -> String;

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

    /// Begins `step` for `slots` slots from `first` on.
    ///
    /// # Errors
    /// The device fails.
    fn step(&mut self, first: usize, slots: usize) -> anyhow::Result<()>;

    /// Begins to add the gradients of the first `slots` slots.
    ///
    /// # Errors
    /// The device fails.
    fn reduce(&mut self, slots: usize) -> anyhow::Result<()>;
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

/// A device at work for an engine: its first `batch` slots hold the rows of the batch, as many others are for inference.
pub(super) struct Accelerator {
    program: Program,
    device: RefCell<Box<dyn Device>>,
    batch: usize,
    /// Calls that the slots of the batch have room for.
    calls: usize,
    /// Threads of this host, which has the optimizer.
    pool: rayon::ThreadPool,
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
    pub fn new(program: Program, open: &Open, batch: usize, threads: usize) -> anyhow::Result<Self> {
        let device = open(&program, 2 * batch)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        eprintln!("training steps on {}: {batch} puzzles at once", device.name());
        Ok(Self { program, device: RefCell::new(device), batch, calls: 0, pool })
    }

    /// Threads of this host.
    pub const fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Both halves of the batch's carries, `[batch][R][Cp]` each.
    pub fn carry(&self, d: &Dims) -> anyhow::Result<[Vec<f32>; 2]> {
        let (state, mut out) = (d.r * d.cp, [Vec::new(), Vec::new()]);
        for slot in 0..self.batch {
            let both = read_floats(self.device.borrow_mut().as_mut(), Buffer::Work, slot * self.program.work_bytes, 2 * state)?;
            out[0].extend(&both[..state]);
            out[1].extend(&both[state..]);
        }
        Ok(out)
    }

    /// Puts carries of the batch there.
    pub fn set_carry(&self, d: &Dims, h: &[f32], l: &[f32]) -> anyhow::Result<()> {
        let state = d.r * d.cp;
        for (slot, (h, l)) in h.chunks_exact(state).zip(l.chunks_exact(state)).enumerate() {
            self.device.borrow_mut().write(Buffer::Work, slot * self.program.work_bytes, &floats(&[h, l].concat()))?;
        }
        Ok(())
    }

    fn load(&self, device: &mut dyn Device, d: &Dims, packed: &Packed, init: &[Vec<f32>; 2]) -> anyhow::Result<()> {
        device.write(Buffer::Weights, 0, &self.program.weights(d, packed))?;
        device.write(Buffer::Floats, 0, &floats(&self.program.floats(d, packed, init)))
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

    /// Outcomes of the rows, and the padded gradient of the batch. `kept`: calls at the end of the segment that carry gradient.
    pub fn gradient(
        &mut self,
        d: &Dims,
        (packed, init): (&Packed, &[Vec<f32>; 2]),
        opts: &EngineOptions,
        (depth, kept): (Depth, usize),
        rows: &[Row<'_>],
    ) -> anyhow::Result<(Vec<RowOutcome>, Vec<f32>)> {
        ensure!(rows.len() == self.batch, "{} rows, the device was made for {}", rows.len(), self.batch);
        let mut device = self.device.borrow_mut();
        let device = device.as_mut();
        if kept > self.calls {
            device.reserve(self.batch, kept)?;
            self.calls = kept;
        }
        self.load(device, d, packed, init)?;
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
        device.step(0, self.batch)?;
        device.reduce(self.batch)?;
        let results = self.results(device, 0, self.batch)?;
        let outcomes = results.chunks_exact(self.program.result_words).map(|r| {
            let q_halt = f32::from_bits(r[1]);
            RowOutcome { loss: f32::from_bits(r[0]), q_halt, halt: q_halt > 0.0, cells: r[2] as u16, exact: r[3] != 0 }
        });
        let outcomes = outcomes.collect();
        Ok((outcomes, read_floats(device, Buffer::Sum, 0, self.program.gradient_len)?))
    }

    fn results(&self, device: &mut dyn Device, first: usize, slots: usize) -> anyhow::Result<Vec<u32>> {
        let mut bytes = vec![0; 4 * slots * self.program.result_words];
        device.read(Buffer::Results, 4 * first * self.program.result_words, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect())
    }

    /// Runs puzzles for `segments` segments from fresh starts: answers `[n][segments][S]` and halt logits `[n][segments]`.
    pub fn infer(
        &self,
        d: &Dims,
        (packed, init): (&Packed, &[Vec<f32>; 2]),
        inputs: &[u8],
        segments: usize,
        start: impl Fn(u64) -> Stream,
    ) -> anyhow::Result<(Vec<u8>, Vec<f32>)> {
        let mut device = self.device.borrow_mut();
        let device = device.as_mut();
        self.load(device, d, packed, init)?;
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
                device.step(self.batch, count)?;
                let results = self.results(device, self.batch, count)?;
                for (b, result) in (first..).zip(results.chunks_exact(self.program.result_words)) {
                    let at = b * segments + segment;
                    halts[at] = f32::from_bits(result[1]);
                    let answer = words(&result[RESULT_HEAD..]);
                    tokens[at * d.s..(at + 1) * d.s].copy_from_slice(&answer[..d.s]);
                }
            }
        }
        Ok((tokens, halts))
    }
}
