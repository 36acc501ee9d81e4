//! Runs of many puzzles, segment by segment, and what is kept of them.

use hrm_core::task::Sudoku;
use serde::{Deserialize, Serialize};

use super::subject::Subject;
use crate::data::rng::mix;
use crate::engine::{Carry, Reading, StartOf};

/// Puzzles iterated together: few enough that their states stay small.
const BATCH: usize = 64;

/// What is kept of one puzzle; each list has one entry a segment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// All cells right.
    pub exact: Vec<bool>,
    /// The verifier accepts the answer.
    pub valid: Vec<bool>,
    /// Cross entropy of the softmax, mean over the cells.
    pub loss: Vec<f64>,
    /// Halt logit, less the logit of going on where there is one.
    pub q: Vec<f64>,
    /// `||z_H' - z_H|| / ||z_H'||`.
    pub residual: Vec<f64>,
    /// Mean over the rows of `||z_H' - z_H||`.
    pub drift: Vec<f64>,
    /// Hash of the state; equal states of an integer network have equal futures.
    pub hash: Vec<u64>,
    /// The answer differs from that of the segment before.
    pub changed: Vec<bool>,
    /// Answer after the last segment.
    pub answer: Vec<u8>,
    /// Smallest period at which the state was seen to repeat, and the segment from which on.
    pub cycle: Option<(usize, usize)>,
}

impl Trace {
    /// First segment, from 1, whose answer is right.
    #[must_use]
    pub fn first_right(&self) -> Option<usize> {
        self.exact.iter().position(|&e| e).map(|s| s + 1)
    }

    /// Whether the answer is right after segment `s` (from 1) and after all that were run behind it.
    #[must_use]
    pub fn stays_right_from(&self, s: usize) -> bool {
        self.exact[s - 1..].iter().all(|&e| e)
    }

    /// Mean drift of segments `from..=to` (from 1; cut off at the end).
    #[must_use]
    pub fn late_drift(&self, from: usize, to: usize) -> f64 {
        let part = &self.drift[(from - 1).min(self.drift.len())..to.min(self.drift.len())];
        part.iter().sum::<f64>() / part.len().max(1) as f64
    }

    /// Whether the last `k` segments gave the same answer.
    #[must_use]
    pub fn is_stable(&self, k: usize) -> bool {
        self.changed.len() >= k && self.changed[self.changed.len() + 1 - k..].iter().all(|&c| !c)
    }

    fn find_cycle(&mut self) {
        let mut seen = std::collections::HashMap::new();
        for (s, &h) in self.hash.iter().enumerate() {
            if let Some(before) = seen.insert(h, s) {
                self.cycle = Some((s - before, before + 1));
                return;
            }
        }
    }
}

/// What to run.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The rules.
    pub sudoku: Sudoku,
    /// Tokens `[n, S]` as the network sees them.
    pub inputs: &'a [u8],
    /// Answers `[n, S]` in the same orientation.
    pub labels: &'a [u8],
    /// Segments.
    pub segments: usize,
    /// Standard deviation of the noise added to the carry before each segment.
    pub noise: f32,
}

/// Runs `job` from the carries that `begin(range of puzzles)` gives; `progress(segments done)`.
///
/// # Errors
/// Failures of the engine.
pub fn run(
    subject: &mut dyn Subject,
    job: Job<'_>,
    begin: &mut dyn FnMut(&mut dyn Subject, std::ops::Range<usize>) -> anyhow::Result<Carry>,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Trace>> {
    let s = job.sudoku.cells();
    let n = job.inputs.len() / s;
    let mut all = Vec::with_capacity(n);
    for first in (0..n).step_by(BATCH) {
        let range = first..(first + BATCH).min(n);
        let (inputs, labels) = (&job.inputs[range.start * s..range.end * s], &job.labels[range.start * s..range.end * s]);
        let mut carry = begin(subject, range.clone())?;
        let mut traces = vec![Trace::default(); range.len()];
        for segment in 0..job.segments {
            if job.noise > 0.0 {
                add_noise(&mut carry, job.noise, mix(first as u64) ^ segment as u64);
            }
            let before = carry.h.clone();
            let reading = subject.advance(inputs, &mut carry)?;
            for (i, trace) in traces.iter_mut().enumerate() {
                trace.push(
                    job.sudoku,
                    i,
                    (&inputs[i * s..(i + 1) * s], &labels[i * s..(i + 1) * s]),
                    &reading,
                    &before,
                    &carry,
                    usize::from(subject.config().channels),
                );
            }
            progress(range.len());
        }
        traces.iter_mut().for_each(Trace::find_cycle);
        all.extend(traces);
    }
    Ok(all)
}

/// As [`run`], from the model's own starts.
///
/// # Errors
/// Failures of the engine.
pub fn run_from(
    subject: &mut dyn Subject,
    job: Job<'_>,
    starts: &[StartOf],
    random: bool,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Trace>> {
    run(subject, job, &mut |subject, range| subject.begin(&starts[range], random), progress)
}

impl Trace {
    #[allow(clippy::too_many_arguments)]
    fn push(
        &mut self,
        sudoku: Sudoku,
        i: usize,
        (input, label): (&[u8], &[u8]),
        reading: &Reading,
        before: &[f32],
        carry: &Carry,
        channels: usize,
    ) {
        let s = sudoku.cells();
        let answer = &reading.tokens[i * s..(i + 1) * s];
        self.exact.push(answer == label);
        self.valid.push(sudoku.verify(input, answer).is_valid());
        self.changed.push(self.answer != answer);
        self.answer = answer.to_vec();
        let width = reading.logits.len() / reading.tokens.len();
        self.loss.push(loss(&reading.logits[i * s * width..(i + 1) * s * width], label, sudoku.size() == width));
        self.q.push(f64::from(reading.q_halt[i]) - reading.q_continue.get(i).map_or(0.0, |&c| f64::from(c)));
        let len = carry.h.len() / (reading.tokens.len() / s);
        let (old, h, l) = (&before[i * len..(i + 1) * len], &carry.h[i * len..(i + 1) * len], &carry.l[i * len..(i + 1) * len]);
        let (mut change, mut size, mut drift, mut rows) = (0.0, 0.0, 0.0, 0);
        for (old, new) in old.chunks_exact(channels).zip(h.chunks_exact(channels)) {
            let row: f64 = old.iter().zip(new).map(|(o, n)| f64::from(n - o).powi(2)).sum();
            change += row;
            drift += row.sqrt();
            size += new.iter().map(|&n| f64::from(n).powi(2)).sum::<f64>();
            rows += 1;
        }
        self.residual.push((change / size.max(1e-30)).sqrt());
        self.drift.push(drift / f64::from(rows.max(1)));
        self.hash.push(hash(h, l));
    }
}

fn hash(h: &[f32], l: &[f32]) -> u64 {
    mix(h.iter().chain(l).fold(0u64, |x, v| (x.rotate_left(23) ^ u64::from(v.to_bits())).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// Mean cross entropy of the cells; `fields`: symbol `f` is token `f + 2`.
fn loss(logits: &[f32], label: &[u8], fields: bool) -> f64 {
    let width = logits.len() / label.len();
    let cell = |(logits, &label): (&[f32], &u8)| {
        let at = usize::from(label) - if fields { 2 } else { 0 };
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter().map(|&v| f64::from(v - max).exp()).sum::<f64>().ln() - f64::from(logits[at] - max)
    };
    logits.chunks_exact(width).zip(label).map(cell).sum::<f64>() / label.len() as f64
}

/// Adds normal noise (sum of four uniforms), rounded to the integer stream's unit, so that int8 and float get the same.
fn add_noise(carry: &mut Carry, deviation: f32, seed: u64) {
    for (half, z) in [&mut carry.h, &mut carry.l].into_iter().enumerate() {
        for (i, v) in z.iter_mut().enumerate() {
            let bits = mix(mix(seed.wrapping_add(half as u64)) ^ i as u64);
            let sum: f32 = (0..4).map(|k| f32::from((bits >> (16 * k)) as u16) / 65_536.0).sum::<f32>() - 2.0;
            *v += (sum * 3f32.sqrt() * deviation * 1024.0).round() / 1024.0;
        }
    }
}

/// Relative distance `||a - b|| / ||b||`.
#[must_use]
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    let d: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (d / b.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>().max(1e-30)).sqrt()
}

/// Cosine of two vectors.
#[must_use]
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-30)
}
