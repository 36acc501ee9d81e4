//! Guesses: several runs on one puzzle, and the choice among their answers. One segment a call, so the caller keeps control.
//!
//! A guess differs from the others by its start, by a symmetry of the task, or by latent noise (Ren and Liu, arXiv 2601.10679, call
//! this scaling the number of guesses). A network that is exactly equivariant to a symmetry gives the same guess again under
//! it, so [`Perturb::Auto`] uses symmetries only where they change something.

use core::fmt;

pub use crate::guesses::Guesses;
use crate::iterate::{Halt, Policy, Segment};
use crate::memory::MemoryError;
use crate::network::{InputError, Run};
use crate::parts::Broken;
use crate::task::PuzzleError;

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
    /// With [`Select::Verify`] [`Perturb::Assume`]; else [`Perturb::Starts`] for models with random starts or equivariant fields, and
    /// [`Perturb::Symmetries`] for the others: a choice by vote wants guesses that do not know of each other.
    Auto,
    /// Random starts.
    Starts,
    /// Random symmetries of the task, from the model's own start; guess 0 is the puzzle as it is.
    Symmetries,
    /// Both.
    Both,
    /// Random starts, and a few cells in which the last two answers differ taken for granted as the last has them; see [`crate::schedule`]. For
    /// tasks with rules; for others as [`Perturb::Starts`].
    Assume,
    /// As [`Perturb::Assume`], but any cells of the last answer: a policy to compare with.
    AssumeAny,
}

impl Perturb {
    /// Whether guesses that are selected so work under assumptions, if their task has rules.
    #[must_use]
    pub const fn assumes(self, select: Select) -> bool {
        match self {
            Self::Assume | Self::AssumeAny => true,
            Self::Auto => matches!(select, Select::Verify),
            Self::Starts | Self::Symmetries | Self::Both => false,
        }
    }
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
    /// The network could not go on.
    Broken(Broken),
}

impl fmt::Display for SolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(e) => e.fmt(f),
            Self::Puzzle(e) => e.fmt(f),
            Self::Memory(e) => e.fmt(f),
            Self::NoVerifier => f.write_str("this model's task has no verifier: select by vote, q, residual or first"),
            Self::NoResidual => f.write_str("selection by residual needs a memory plan that keeps residuals"),
            Self::Broken(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for SolveError {}

impl From<Broken> for SolveError {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

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
    /// How far the answer may be trusted, 0 to 1. Verified: 1. [`Select::Vote`]: share of the guesses that ended with it; [`Select::Q`]: the
    /// logistic function of the Q head's output, the probability of being right that it was trained to give; others: 1 less the residual if
    /// the plan keeps it (a state that still moves is no answer), else 0.5.
    pub confidence: f32,
    /// State hash after the last segment.
    pub hash: u64,
}

/// Solves one puzzle at a time on a [`Run`]: a [`Guesses`] with the run and the memory that it works in.
#[derive(Debug)]
pub struct Solver<'r, 'a, 'm> {
    run: &'r mut Run<'a, 'm>,
    memory: &'r mut [u8],
    guesses: Guesses,
}

impl<'r, 'a, 'm> Solver<'r, 'a, 'm> {
    /// Bytes of memory that [`Solver::new`] needs beside the run, for `tokens` tokens.
    #[must_use]
    pub const fn required_bytes(tokens: usize, options: &Options) -> usize {
        Guesses::required_bytes(tokens, options)
    }

    /// Begins the puzzle `tokens` `[S]` in `memory` of at least [`Solver::required_bytes`].
    ///
    /// # Errors
    /// Tokens that are not the model's, contradicting givens, too little memory, or a selection that model or plan do not offer.
    pub fn new(run: &'r mut Run<'a, 'm>, tokens: &[u8], options: Options, memory: &'r mut [u8]) -> Result<Self, SolveError> {
        let guesses = Guesses::begin(run, tokens, options, memory)?;
        Ok(Self { run, memory, guesses })
    }

    /// The run: its answer and carry are those of the last segment, of the puzzle as the guess saw it.
    #[must_use]
    pub const fn run(&self) -> &Run<'a, 'm> {
        self.run
    }

    /// The answer of the last segment in the orientation of the puzzle, `[S]`.
    pub fn answer_now(&mut self) -> &[u8] {
        self.guesses.answer_now(self.run, self.memory)
    }

    /// Runs one segment; `None` once the puzzle is finished.
    ///
    /// # Errors
    /// As [`Run::segment`]; the puzzle is finished then, without an answer.
    pub fn step(&mut self) -> Result<Option<Event>, Broken> {
        self.step_by(Run::segment)
    }

    /// As [`Solver::step`], with `segment` in place of [`Run::segment`]: see [`Run::segment_by`].
    ///
    /// # Errors
    /// Those of `segment`, and as [`Solver::step`].
    pub fn step_by<E: From<Broken>>(&mut self, segment: impl FnOnce(&mut Run<'a, 'm>) -> Result<u16, E>) -> Result<Option<Event>, E> {
        self.guesses.step_by(self.run, self.memory, segment)
    }

    /// Runs until the puzzle is finished.
    ///
    /// # Errors
    /// As [`Solver::step`].
    pub fn finish(&mut self) -> Result<Outcome<'_>, Broken> {
        while self.step()?.is_some() {}
        Ok(self.outcome())
    }

    /// What has come out so far.
    #[must_use]
    pub fn outcome(&self) -> Outcome<'_> {
        self.guesses.outcome(self.memory)
    }
}
