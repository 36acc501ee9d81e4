//! The guesses of one puzzle as a value of its own: run and memory are lent to it for every call, so that a program that is called
//! back (firmware, a solver service) can keep it between calls.

use crate::config::{Mixer, Start};
use crate::format::TaskKind;
use crate::iterate::{Halt, Iteration, Machine, Policy, Segment};
use crate::memory::MemoryError;
use crate::network::{InputError, Run};
use crate::parts::{Broken, OrBroken};
use crate::rng::{Purpose, Stream};
use crate::schedule;
use crate::solve::{Event, Options, Outcome, Perturb, Select, SolveError};
use crate::task::{Sudoku, Symmetry};

/// One puzzle under way. Every call must be given the run and the memory that [`Guesses::begin`] was given: with others the answers are
/// wrong, never the behaviour undefined. [`crate::Solver`] holds the three together.
#[derive(Clone, Debug)]
pub struct Guesses {
    options: Options,
    task: Option<Sudoku>,
    /// `S`.
    tokens: usize,
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
    /// Confidence in the best answer, if it is not verified.
    confidence: f32,
}

/// The memory of one puzzle, divided.
struct Buffers<'b> {
    /// `[S]`.
    puzzle: &'b mut [u8],
    /// Answer of the best guess; with [`Select::Verify`], until there is a valid one, that of the guess before the last; `[S]`.
    best: &'b mut [u8],
    /// The puzzle as the guess sees it, then its answer as the puzzle sees it, `[S]`.
    view: &'b mut [u8],
    /// Answers of all guesses, `[guesses, S]`, for [`Select::Vote`]; else empty or unused.
    votes: &'b mut [u8],
}

impl<'b> Buffers<'b> {
    fn split(memory: &'b mut [u8], tokens: usize) -> Option<Self> {
        let (puzzle, rest) = memory.split_at_mut_checked(tokens)?;
        let (best, rest) = rest.split_at_mut_checked(tokens)?;
        let (view, votes) = rest.split_at_mut_checked(tokens)?;
        Some(Self { puzzle, best, view, votes })
    }
}

impl Guesses {
    /// Bytes of memory for `tokens` tokens.
    #[must_use]
    pub const fn required_bytes(tokens: usize, options: &Options) -> usize {
        let votes = if matches!(options.select, Select::Vote) { options.guesses as usize } else { 0 };
        (3 + votes) * tokens
    }

    /// Begins the puzzle `tokens` `[S]` in `memory` of at least [`Guesses::required_bytes`].
    ///
    /// # Errors
    /// Tokens that are not the model's, contradicting givens, too little memory, or a selection that model or plan do not offer.
    pub fn begin(run: &mut impl Machine, tokens: &[u8], options: Options, memory: &mut [u8]) -> Result<Self, SolveError> {
        let options = Options { guesses: options.guesses.max(1), ..options };
        let task = match run.view().header().task {
            TaskKind::Sudoku(n) => Sudoku::new(usize::from(n)),
            TaskKind::Grid => None,
        };
        let (needed, found) = (Self::required_bytes(tokens.len(), &options), memory.len());
        let too_small = SolveError::Memory(MemoryError { what: "solver memory", needed, found });
        let buffers = Buffers::split(memory, tokens.len()).filter(|_| found >= needed).ok_or(too_small)?;
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
        copy(tokens, buffers.puzzle);
        Ok(Self {
            options,
            task,
            tokens: tokens.len(),
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
            confidence: 0.0,
        })
    }

    /// The answer of the last segment in the orientation of the puzzle, `[S]`.
    pub fn answer_now<'b>(&self, run: &impl Machine, memory: &'b mut [u8]) -> &'b [u8] {
        let Some(Buffers { view, .. }) = Buffers::split(memory, self.tokens) else { return &[] };
        restore(self.symmetry.as_ref(), run.answer(), view);
        view
    }

    /// Runs one segment; `None` once the puzzle is finished.
    ///
    /// # Errors
    /// As [`Run::segment`], or run or memory are not those of [`Guesses::begin`]; the puzzle is finished then, without an answer.
    pub fn step(&mut self, run: &mut Run<'_, '_>, memory: &mut [u8]) -> Result<Option<Event>, Broken> {
        self.step_by(run, memory, Run::segment)
    }

    /// As [`Guesses::step`], with `segment` in place of [`Run::segment`]: see [`Run::segment_by`].
    ///
    /// # Errors
    /// Those of `segment`, and as [`Guesses::step`].
    pub fn step_by<'a, 'm, E: From<Broken>>(
        &mut self,
        run: &mut Run<'a, 'm>,
        memory: &mut [u8],
        segment: impl FnOnce(&mut Run<'a, 'm>) -> Result<u16, E>,
    ) -> Result<Option<Event>, E> {
        if !self.prepare(run, memory)? {
            return Ok(None);
        }
        let changed = segment(run).inspect_err(|_| self.abandon())?;
        Ok(Some(self.conclude(run, changed, memory)?))
    }

    /// Readies `run` for the next segment: the first half of [`Guesses::step`], for machines that run many puzzles at once. `false` once the
    /// puzzle is finished.
    ///
    /// # Errors
    /// As [`Guesses::step`].
    pub fn prepare(&mut self, run: &mut impl Machine, memory: &mut [u8]) -> Result<bool, Broken> {
        if self.finished {
            return Ok(false);
        }
        let prepared = self.try_prepare(run, memory);
        prepared.inspect_err(|_| self.abandon()).map(|()| true)
    }

    /// Judges the segment that `run` has done since [`Guesses::prepare`], which has changed so many cells of its answer: the other half.
    ///
    /// # Errors
    /// As [`Guesses::step`].
    pub fn conclude(&mut self, run: &impl Machine, changed: u16, memory: &mut [u8]) -> Result<Event, Broken> {
        let concluded = self.try_conclude(run, changed, memory);
        concluded.inspect_err(|_| self.abandon())
    }

    /// Whatever the guesses before have answered: it is not trusted any more.
    fn abandon(&mut self) {
        (self.finished, self.score, self.verified, self.iteration) = (true, None, false, None);
    }

    fn try_prepare(&mut self, run: &mut impl Machine, memory: &mut [u8]) -> Result<(), Broken> {
        let mut buffers = Buffers::split(memory, self.tokens).or_broken()?;
        let iteration = match self.iteration.take() {
            Some(i) => i,
            None => self.begin_guess(run, &mut buffers)?,
        };
        if self.options.noise > 0 {
            run.add_noise(self.options.seed, u64::from(self.guess), iteration.done(), self.options.noise);
        }
        self.iteration = Some(iteration);
        Ok(())
    }

    fn try_conclude(&mut self, run: &impl Machine, changed: u16, memory: &mut [u8]) -> Result<Event, Broken> {
        let mut buffers = Buffers::split(memory, self.tokens).or_broken()?;
        let mut iteration = self.iteration.take().or_broken()?;
        let (task, symmetry, puzzle, view) = (self.task, &self.symmetry, &*buffers.puzzle, &mut *buffers.view);
        // Only `Select::Verify` lets the verifier stop a guess: the other selections must not profit from it.
        let by_verifier = self.options.select == Select::Verify;
        let mut valid = false;
        let segment = iteration.judge(run, changed, |answer| {
            restore(symmetry.as_ref(), answer, view);
            valid = task.is_some_and(|t| t.verify(puzzle, view).is_valid());
            valid && by_verifier
        });
        // A guess that has ended is never kept.
        let segment = segment.or_broken()?;
        self.segments = self.segments.saturating_add(1);
        self.hash = segment.hash;
        let guess = self.guess;
        match segment.halt {
            Some(halt) => {
                self.halt = Some(halt);
                let q_scale = run.view().heads().q_scale;
                self.end_guess(&segment, valid, q_scale, &mut buffers);
                self.guess += 1;
                let enough = (valid && by_verifier) || self.options.select == Select::First;
                self.finished = enough || self.guess >= self.options.guesses;
            }
            None => self.iteration = Some(iteration),
        }
        Ok(Event { guess, segment, segments: self.segments, finished: self.finished })
    }

    /// Whether the last segment has been run.
    #[must_use]
    pub const fn finished(&self) -> bool {
        self.finished
    }

    /// What has come out so far.
    #[must_use]
    pub fn outcome<'b>(&self, memory: &'b [u8]) -> Outcome<'b> {
        let decided = self.score.is_some() && (self.verified || self.options.select != Select::Verify);
        let confidence = match self.options.select {
            _ if !decided => 0.0,
            _ if self.verified => 1.0,
            Select::Vote => f32::from(self.votes_for_best) / f32::from(self.guess.max(1)),
            _ => self.confidence,
        };
        Outcome {
            answer: memory.get(self.tokens..2 * self.tokens).filter(|_| decided),
            verified: self.verified,
            guess: self.best_guess,
            guesses: if self.iteration.is_some() { self.guess + 1 } else { self.guess },
            segments: self.segments,
            halt: self.halt,
            confidence,
            hash: self.hash,
        }
    }

    /// Whether guesses work under assumptions.
    fn assumes(&self) -> bool {
        self.options.perturb.assumes(self.options.select) && self.task.is_some()
    }

    fn begin_guess(&mut self, run: &mut impl Machine, buffers: &mut Buffers<'_>) -> Result<Iteration, Broken> {
        let Options { seed, perturb, policy, noise, .. } = self.options;
        let c = *run.view().config();
        let equivariant = c.fields > 1 && c.mixer == Mixer::GroupSum;
        let assume = self.assumes();
        let (starts, symmetries) = match perturb {
            // A fixed start is what the model was trained from, and assumptions alone make guesses differ.
            _ if assume => (c.start == Start::Random, false),
            Perturb::Auto if c.start == Start::Random || equivariant => (true, false),
            Perturb::Auto | Perturb::Symmetries => (false, true),
            Perturb::Starts | Perturb::Assume | Perturb::AssumeAny => (true, false),
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
        let mut differs = starts;
        match (&self.symmetry, self.task) {
            (Some(s), _) => s.apply(buffers.puzzle, buffers.view).ok().or_broken()?,
            // `view` still holds the answer of the guess before.
            (None, Some(task)) if assume && guess > 0 => {
                let cells = match perturb {
                    Perturb::AssumeAny => 0,
                    _ => schedule::differing(buffers.view, buffers.best),
                };
                if self.options.select == Select::Verify {
                    copy(buffers.view, buffers.best);
                }
                let some = schedule::assume(task, buffers.puzzle, buffers.view, cells, Stream::new(seed, Purpose::Assumption, guess));
                // Without assumptions only the start can make the guess another one.
                differs |= !some;
            }
            _ => copy(buffers.puzzle, buffers.view),
        }
        let policy = Policy {
            segments: policy.depth.limit(policy.segments, self.guess, assume),
            // With noise an equal state does not mean an equal future.
            fixed_point: policy.fixed_point && noise == 0,
            ..policy
        };
        // The tokens were accepted before, and a symmetry maps tokens to tokens.
        run.start(buffers.view, seed, if differs { guess } else { 0 }).map_err(|e| match e {
            InputError::Broken(broken) => broken,
            _ => Broken::here(),
        })?;
        if differs && guess > 0 && c.start == Start::Fixed {
            run.start_randomly(seed, guess);
        }
        Ok(Iteration::new(policy, run))
    }

    /// Weighs the answer in `buffers.view`, which the verifier has just seen.
    fn end_guess(&mut self, segment: &Segment, valid: bool, q_scale: f32, buffers: &mut Buffers<'_>) {
        let score = match self.options.select {
            Select::Verify if valid => i64::MAX,
            Select::Verify | Select::First => -i64::from(self.guess),
            Select::Q => i64::from(segment.q.0) - i64::from(segment.q.1),
            // At least 2^31 steps of the ratio are told apart.
            Select::Residual => segment.residual.map_or(i64::MIN, |r| -(((r.change as i128) << 31) / i128::from(r.size.max(1))) as i64),
            Select::Vote => {
                let ended = usize::from(self.guess);
                let answers = buffers.votes.chunks_exact_mut(self.tokens.max(1));
                let mut count = 0u16;
                for (guess, answer) in answers.enumerate().take(ended + 1) {
                    if guess == ended {
                        copy(buffers.view, answer);
                    }
                    count += u16::from(answer == buffers.view);
                }
                self.votes_for_best = self.votes_for_best.max(count);
                i64::from(count)
            }
        };
        if self.score.is_none_or(|best| score > best) {
            self.score = Some(score);
            self.best_guess = self.guess;
            self.verified = valid;
            self.confidence = match (self.options.select, segment.residual) {
                (Select::Q, _) => logistic((segment.q.0 as f32 - segment.q.1 as f32) * q_scale),
                (_, Some(residual)) => (1.0 - residual.ratio()).max(0.0),
                (_, None) => 0.5,
            };
            copy(buffers.view, buffers.best);
        }
    }
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}

/// Undoes `symmetry` on an answer; without one it is a copy.
fn restore(symmetry: Option<&Symmetry>, answer: &[u8], out: &mut [u8]) {
    let undone = symmetry.is_some_and(|s| s.inverse().apply(answer, out).is_ok());
    if !undone {
        copy(answer, out);
    }
}

/// Copies tokens; both have `[S]`. (`copy_from_slice` would keep a panic in the program for lengths that it cannot prove equal.)
fn copy(from: &[u8], to: &mut [u8]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = from;
    }
}
