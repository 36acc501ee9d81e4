//! Guesses: several runs on one puzzle, and the choice among their answers. One segment a call, so the caller keeps control.
//!
//! A guess differs from the others by its start, by a symmetry of the task, or by latent noise (Ren and Liu, arXiv 2601.10679, call
//! this scaling the number of guesses). A network that is exactly equivariant to a symmetry gives the same guess again under
//! it, so [`Perturb::Auto`] uses symmetries only where they change something.

use core::fmt;

use crate::config::{Mixer, Start};
use crate::format::TaskKind;
use crate::iterate::{Halt, Iteration, Policy, Segment};
use crate::memory::MemoryError;
use crate::network::{InputError, Run};
use crate::rng::{Purpose, Stream};
use crate::task::{PuzzleError, Sudoku, Symmetry};

/// How the answer is chosen among the guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
pub enum Select {
    /// The first answer that the task's verifier accepts; it is looked for after every segment.
    Verify,
    /// The answer that most guesses end with; the earliest on ties.
    Vote,
    /// The answer of the guess with the largest halt output at its end.
    Q,
    /// The answer of the guess with the smallest residual at its end.
    Residual,
    /// The answer of the first guess.
    First,
}

/// What makes guesses differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Perturb {
    /// [`Perturb::Starts`] for models with random starts or equivariant fields, else [`Perturb::Symmetries`].
    Auto,
    /// Random starts.
    Starts,
    /// Random symmetries of the task, from the model's own start; guess 0 is the puzzle as it is.
    Symmetries,
    /// Both.
    Both,
}

/// Settings of a [`Solver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Options {
    /// When a guess stops.
    pub policy: Policy,
    /// Most guesses, at least 1.
    pub guesses: u16,
    /// Choice among the answers.
    pub select: Select,
    /// What makes guesses differ.
    pub perturb: Perturb,
    /// Standard deviation (Q5.10) of the noise added to the carry before each segment; 0: none.
    pub noise: u16,
    /// Seed: a run is a pure function of model, puzzle, settings and seed.
    pub seed: u64,
}

/// Why a puzzle cannot be solved with these settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SolveError {
    /// The tokens are not the model's.
    Input(InputError),
    /// The puzzle breaks the rules of its task.
    Puzzle(PuzzleError),
    /// The caller's memory is too small.
    Memory(MemoryError),
    /// The task has no verifier to select with.
    NoVerifier,
    /// The run's plan does not keep residuals.
    NoResidual,
}

impl fmt::Display for SolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(e) => e.fmt(f),
            Self::Puzzle(e) => e.fmt(f),
            Self::Memory(e) => e.fmt(f),
            Self::NoVerifier => f.write_str("this model's task has no verifier: select by vote, q, residual or first"),
            Self::NoResidual => f.write_str("selection by residual needs a memory plan that keeps residuals"),
        }
    }
}

impl core::error::Error for SolveError {}

/// One segment of one guess.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Event {
    /// Number of the guess, from 0.
    pub guess: u16,
    /// What the segment did.
    pub segment: Segment,
    /// Segments run so far, all guesses together.
    pub segments: u32,
    /// Whether this was the last event.
    pub finished: bool,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Outcome<'a> {
    /// The chosen answer, `[S]` tokens; `None` before the first guess has ended, and when [`Select::Verify`] found no valid answer.
    pub answer: Option<&'a [u8]>,
    /// Whether the task's verifier accepts it, however it was selected.
    pub verified: bool,
    /// Guess that it came from.
    pub guess: u16,
    /// Guesses begun.
    pub guesses: u16,
    /// Segments run, all guesses together.
    pub segments: u32,
    /// Why the last guess stopped.
    pub halt: Option<Halt>,
    /// Share of the guesses that ended with this answer ([`Select::Vote`]; else 1 or 0).
    pub confidence: f32,
    /// State hash after the last segment.
    pub hash: u64,
}

/// Solves one puzzle at a time on a [`Run`].
#[derive(Debug)]
pub struct Solver<'r, 'a, 'm> {
    run: &'r mut Run<'a, 'm>,
    options: Options,
    task: Option<Sudoku>,
    puzzle: &'r mut [u8],
    best: &'r mut [u8],
    view: &'r mut [u8],
    votes: &'r mut [u8],
    symmetry: Option<Symmetry>,
    iteration: Option<Iteration>,
    guess: u16,
    segments: u32,
    /// Score of the best guess so far: larger is better.
    score: Option<i64>,
    best_guess: u16,
    verified: bool,
    finished: bool,
    halt: Option<Halt>,
    hash: u64,
    votes_for_best: u16,
}

impl<'r, 'a, 'm> Solver<'r, 'a, 'm> {
    /// Bytes of memory that [`Solver::new`] needs beside the run, for `tokens` tokens.
    #[must_use]
    pub const fn required_bytes(tokens: usize, options: &Options) -> usize {
        let votes = if matches!(options.select, Select::Vote) { options.guesses as usize } else { 0 };
        (3 + votes) * tokens
    }

    /// Begins the puzzle `tokens` `[S]` in `memory` of at least [`Solver::required_bytes`].
    ///
    /// # Errors
    /// Tokens that are not the model's, contradicting givens, too little memory, or a selection that model or plan do not offer.
    pub fn new(run: &'r mut Run<'a, 'm>, tokens: &[u8], options: Options, memory: &'r mut [u8]) -> Result<Self, SolveError> {
        let options = Options { guesses: options.guesses.max(1), ..options };
        let view = *run.network().view();
        let task = match view.header().task {
            TaskKind::Sudoku(n) => Sudoku::new(usize::from(n)),
            TaskKind::Grid => None,
        };
        let needed = Self::required_bytes(tokens.len(), &options);
        if memory.len() < needed {
            return Err(SolveError::Memory(MemoryError { what: "solver memory", needed, found: memory.len() }));
        }
        if task.is_none() && options.select == Select::Verify {
            return Err(SolveError::NoVerifier);
        }
        run.start(tokens, options.seed, 0).map_err(SolveError::Input)?;
        if options.select == Select::Residual && run.residual().is_none() {
            return Err(SolveError::NoResidual);
        }
        if let Some(task) = task {
            task.check_givens(tokens).map_err(SolveError::Puzzle)?;
        }
        let (puzzle, rest) = memory.split_at_mut(tokens.len());
        let (best, rest) = rest.split_at_mut(tokens.len());
        let (scratch, votes) = rest.split_at_mut(tokens.len());
        puzzle.copy_from_slice(tokens);
        Ok(Self {
            run,
            options,
            task,
            puzzle,
            best,
            view: scratch,
            votes,
            symmetry: None,
            iteration: None,
            guess: 0,
            segments: 0,
            score: None,
            best_guess: 0,
            verified: false,
            finished: false,
            halt: None,
            hash: 0,
            votes_for_best: 0,
        })
    }

    /// The run: its answer and carry are those of the last segment, of the puzzle as the guess saw it.
    #[must_use]
    pub const fn run(&self) -> &Run<'a, 'm> {
        self.run
    }

    /// The answer of the last segment in the orientation of the puzzle, `[S]`.
    pub fn answer_now(&mut self) -> &[u8] {
        restore(self.symmetry.as_ref(), self.run.answer(), self.view);
        self.view
    }

    /// Runs one segment; `None` once the puzzle is finished.
    pub fn step(&mut self) -> Option<Event> {
        self.step_by(Run::segment)
    }

    /// As [`Solver::step`], with `segment` in place of [`Run::segment`]: see [`Run::segment_by`].
    pub fn step_by(&mut self, segment: impl FnOnce(&mut Run<'a, 'm>) -> u16) -> Option<Event> {
        if self.finished {
            return None;
        }
        let mut iteration = match self.iteration.take() {
            Some(i) => i,
            None => self.begin_guess()?,
        };
        if self.options.noise > 0 {
            self.run.add_noise(self.options.seed, u64::from(self.guess), iteration.done(), self.options.noise);
        }
        let (task, symmetry, puzzle, view) = (self.task, &self.symmetry, &*self.puzzle, &mut *self.view);
        // Only `Select::Verify` lets the verifier stop a guess: the other selections must not profit from it.
        let by_verifier = self.options.select == Select::Verify;
        let mut valid = false;
        let segment = iteration.next_by(self.run, segment, |answer| {
            restore(symmetry.as_ref(), answer, view);
            valid = task.is_some_and(|t| t.verify(puzzle, view).is_valid());
            valid && by_verifier
        })?;
        self.segments += 1;
        self.hash = segment.hash;
        let guess = self.guess;
        match segment.halt {
            Some(halt) => {
                self.halt = Some(halt);
                self.end_guess(&segment, valid);
                self.guess += 1;
                let enough = (valid && by_verifier) || self.options.select == Select::First;
                self.finished = enough || self.guess >= self.options.guesses;
            }
            None => self.iteration = Some(iteration),
        }
        Some(Event { guess, segment, segments: self.segments, finished: self.finished })
    }

    /// Runs until the puzzle is finished.
    pub fn finish(&mut self) -> Outcome<'_> {
        while self.step().is_some() {}
        self.outcome()
    }

    /// What has come out so far.
    #[must_use]
    pub fn outcome(&self) -> Outcome<'_> {
        let decided = self.score.is_some() && (self.verified || self.options.select != Select::Verify);
        let ended = self.guess.max(1);
        let confidence = match self.options.select {
            Select::Vote if decided => f32::from(self.votes_for_best) / f32::from(ended),
            _ => f32::from(u8::from(decided)),
        };
        Outcome {
            answer: decided.then_some(&*self.best),
            verified: self.verified,
            guess: self.best_guess,
            guesses: if self.iteration.is_some() { self.guess + 1 } else { self.guess },
            segments: self.segments,
            halt: self.halt,
            confidence,
            hash: self.hash,
        }
    }

    fn begin_guess(&mut self) -> Option<Iteration> {
        let Options { seed, perturb, policy, noise, .. } = self.options;
        let c = *self.run.network().view().config();
        let equivariant = c.fields > 1 && c.mixer == Mixer::GroupSum;
        let (starts, symmetries) = match perturb {
            Perturb::Auto if c.start == Start::Random || equivariant => (true, false),
            Perturb::Auto | Perturb::Symmetries => (false, true),
            Perturb::Starts => (true, false),
            Perturb::Both => (true, true),
        };
        let guess = u64::from(self.guess);
        self.symmetry = match self.task {
            Some(task) if symmetries && guess > 0 => {
                let mut stream = Stream::new(seed, Purpose::Symmetry, guess);
                Some(Symmetry::random(&mut || stream.next_u32(), task))
            }
            _ => None,
        };
        match &self.symmetry {
            Some(s) => s.apply(self.puzzle, self.view).ok()?,
            None => self.view.copy_from_slice(self.puzzle),
        }
        // The tokens were accepted before, and a symmetry maps tokens to tokens.
        self.run.start(self.view, seed, if starts { guess } else { 0 }).ok()?;
        if starts && guess > 0 && c.start == Start::Fixed {
            self.run.start_randomly(seed, guess);
        }
        // With noise an equal state does not mean an equal future.
        let policy = Policy { fixed_point: policy.fixed_point && noise == 0, ..policy };
        Some(Iteration::new(policy, self.run))
    }

    /// Weighs the answer in `self.view`, which the verifier has just seen.
    fn end_guess(&mut self, segment: &Segment, valid: bool) {
        let s = self.puzzle.len();
        let score = match self.options.select {
            Select::Verify if valid => i64::MAX,
            Select::Verify | Select::First => -i64::from(self.guess),
            Select::Q => i64::from(segment.q.0) - i64::from(segment.q.1),
            // At least 2^31 steps of the ratio are told apart.
            Select::Residual => segment.residual.map_or(i64::MIN, |r| -(((r.change as i128) << 31) / i128::from(r.size.max(1))) as i64),
            Select::Vote => {
                let at = usize::from(self.guess) * s;
                self.votes[at..at + s].copy_from_slice(self.view);
                let count = self.votes[..at + s].chunks_exact(s).filter(|v| *v == &*self.view).count() as u16;
                self.votes_for_best = self.votes_for_best.max(count);
                i64::from(count)
            }
        };
        if self.score.is_none_or(|best| score > best) {
            self.score = Some(score);
            self.best_guess = self.guess;
            self.verified = valid;
            self.best.copy_from_slice(self.view);
        }
    }
}

/// Undoes `symmetry` on an answer; without one it is a copy.
fn restore(symmetry: Option<&Symmetry>, answer: &[u8], out: &mut [u8]) {
    let undone = symmetry.is_some_and(|s| s.inverse().apply(answer, out).is_ok());
    if !undone {
        out.copy_from_slice(answer);
    }
}
