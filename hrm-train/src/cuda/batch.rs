//! Puzzles on a device: as many at a time as it has slots, and a new one wherever one is done.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use hrm_core::solve::Guesses;
use hrm_core::{Broken, Machine as _};
use rayon::prelude::*;

use super::{Device, LANES, Program, Slot, Starts};
use crate::data::PuzzleSet;
use crate::evaluate::Model;
use crate::evaluate_int8::Int8;
use crate::guesses::{GuessOptions, Guessed};

/// What is done with a puzzle, segment by segment.
pub trait Job: Send {
    /// What comes out.
    type Output: Send;

    /// The command for the next segment; `None` once the puzzle is done.
    ///
    /// # Errors
    /// The network is broken.
    fn next(&mut self) -> Result<Option<&[u32]>, Broken>;

    /// Takes in the result of that segment.
    ///
    /// # Errors
    /// As [`Job::next`].
    fn take(&mut self, result: &[u32]) -> Result<(), Broken>;

    /// What came out.
    fn finish(self) -> Self::Output;
}

/// Does `count` jobs; `begin` makes them by number. The outputs are in the order of the numbers and do not depend on the number of slots.
///
/// # Errors
/// The device fails, or the first error of `begin` or of a job.
pub fn drive<J: Job>(
    device: &mut dyn Device,
    program: &Program,
    count: usize,
    begin: &(dyn Fn(usize) -> anyhow::Result<J> + Sync),
) -> anyhow::Result<Vec<J::Output>> {
    let (slots, command_words, result_words) = (device.slots(), program.command_words(), program.result_words());
    ensure!(slots > 0, "the device has no room for a puzzle");
    let mut outputs: Vec<Option<J::Output>> = (0..count).map(|_| None).collect();
    let begun = AtomicUsize::new(0);
    let mut lanes: Vec<Vec<Option<(usize, J)>>> = (0..LANES).map(|_| (0..slots).map(|_| None).collect()).collect();
    let mut commands = vec![0u32; slots * command_words];
    let mut at_work = [false; LANES];
    loop {
        for (lane, jobs) in lanes.iter_mut().enumerate() {
            let results = if at_work[lane] { device.wait(lane)? } else { vec![0; slots * result_words] };
            let each = jobs.par_iter_mut().zip(results.par_chunks_exact(result_words)).zip(commands.par_chunks_exact_mut(command_words));
            let done = each.map(|((job, result), command)| step(job, result, command, count, &begun, begin));
            for (number, output) in done.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten() {
                outputs[number] = Some(output);
            }
            at_work[lane] = jobs.iter().any(Option::is_some);
            if at_work[lane] {
                device.launch(lane, &commands)?;
            }
        }
        if at_work == [false; LANES] {
            return outputs.into_iter().collect::<Option<_>>().context("a puzzle has no outcome");
        }
    }
}

/// Moves one slot on: takes in what its job was told, and writes the command of its next segment, or of another job's first one. Returns the jobs
/// that are done.
fn step<J: Job>(
    slot: &mut Option<(usize, J)>,
    result: &[u32],
    command: &mut [u32],
    count: usize,
    begun: &AtomicUsize,
    begin: &(dyn Fn(usize) -> anyhow::Result<J> + Sync),
) -> anyhow::Result<Vec<(usize, J::Output)>> {
    let mut done = Vec::new();
    if let Some((_, job)) = slot {
        job.take(result)?;
    }
    loop {
        if let Some((number, mut job)) = slot.take() {
            if let Some(next) = job.next()? {
                command.copy_from_slice(next);
                *slot = Some((number, job));
                return Ok(done);
            }
            done.push((number, job.finish()));
        }
        let number = begun.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            command.fill(0);
            return Ok(done);
        }
        *slot = Some((number, begin(number)?));
    }
}

/// Guesses of one puzzle.
struct Guessing<'s, 'm> {
    slot: Slot<'s, 'm>,
    guesses: Guesses,
    memory: Vec<u8>,
}

impl Job for Guessing<'_, '_> {
    type Output = Guessed;

    fn next(&mut self) -> Result<Option<&[u32]>, Broken> {
        Ok(self.guesses.prepare(&mut self.slot, &mut self.memory)?.then(|| self.slot.command()))
    }

    fn take(&mut self, result: &[u32]) -> Result<(), Broken> {
        let changed = self.slot.take(result);
        self.guesses.conclude(&self.slot, changed, &mut self.memory).map(|_| ())
    }

    fn finish(self) -> Guessed {
        self.guesses.outcome(&self.memory).into()
    }
}

/// One start, so many segments: answer and halt output after each.
struct Pass<'s, 'm> {
    slot: Slot<'s, 'm>,
    segments: usize,
    seen: Vec<(Vec<u8>, i32)>,
}

impl Job for Pass<'_, '_> {
    type Output = Vec<(Vec<u8>, i32)>;

    fn next(&mut self) -> Result<Option<&[u32]>, Broken> {
        Ok((self.seen.len() < self.segments).then(|| self.slot.command()))
    }

    fn take(&mut self, result: &[u32]) -> Result<(), Broken> {
        self.slot.take(result);
        self.seen.push((self.slot.answer().to_vec(), self.slot.q().0));
        Ok(())
    }

    fn finish(self) -> Self::Output {
        self.seen
    }
}

/// An int8 model on a device: what [`Int8`] is on the CPU.
pub struct Batched<'d> {
    model: &'d Int8,
    program: Program,
    device: &'d mut dyn Device,
}

impl<'d> Batched<'d> {
    /// `model`, whose `program` runs on `device`.
    pub fn new(model: &'d Int8, program: Program, device: &'d mut dyn Device) -> Self {
        Self { model, program, device }
    }

    /// Solves the first `n` puzzles: what [`crate::guesses::int8`] does.
    ///
    /// # Errors
    /// A puzzle does not fit to the model or breaks the rules; failures of the device.
    pub fn guess(&mut self, set: &PuzzleSet, n: usize, options: GuessOptions) -> anyhow::Result<Vec<Guessed>> {
        let starts = Starts::new(self.model.view()?);
        let options = options.of_solver();
        let bytes = Guesses::required_bytes(set.sudoku.cells(), &options);
        drive(self.device, &self.program, n.min(set.len()), &|i| {
            let (mut slot, mut memory) = (Slot::new(&starts), vec![0; bytes]);
            let guesses = Guesses::begin(&mut slot, set.input(i), options, &mut memory).with_context(|| format!("puzzle {}", i + 1))?;
            Ok(Guessing { slot, guesses, memory })
        })
    }
}

impl Model for Batched<'_> {
    fn kind(&self) -> &'static str {
        "int8"
    }

    fn infer(&mut self, inputs: &[u8], segments: usize, _: u64, observe: &mut dyn FnMut(usize, &[u8], &[f32])) -> anyhow::Result<()> {
        let (view, seed) = (self.model.view()?, self.model.seed());
        let (tokens, scale, starts) = (self.program.tokens, view.heads().q_scale, Starts::new(view));
        ensure!(inputs.len().is_multiple_of(tokens), "{} tokens are not a whole number of puzzles of {tokens}", inputs.len());
        let passes = drive(self.device, &self.program, inputs.len() / tokens, &|i| {
            let mut slot = Slot::new(&starts);
            slot.start(&inputs[i * tokens..(i + 1) * tokens], seed, 0).with_context(|| format!("puzzle {i}"))?;
            Ok(Pass { slot, segments, seen: Vec::with_capacity(segments) })
        })?;
        for segment in 0..segments {
            let answers: Vec<u8> = passes.iter().flat_map(|seen| seen[segment].0.iter().copied()).collect();
            let q: Vec<f32> = passes.iter().map(|seen| seen[segment].1 as f32 * scale).collect();
            observe(segment, &answers, &q);
        }
        Ok(())
    }
}
