//! The fixed-point iteration, one segment at a time, driven by the caller: firmware can feed a watchdog or yield between segments.

use crate::format::ModelView;
use crate::network::{InputError, Residual, Run};
use crate::parts::Broken;
use crate::schedule::Depth;

/// A puzzle under way, wherever its carry is: a [`Run`] in this memory, or one whose segments an accelerator computes. What the methods
/// do and return is what those of [`Run`] of the same name do.
pub trait Machine {
    /// The model file.
    fn view(&self) -> &ModelView<'_>;

    /// Begins a puzzle.
    ///
    /// # Errors
    /// Tokens that the model cannot read.
    fn start(&mut self, tokens: &[u8], seed: u64, guess: u64) -> Result<(), InputError>;

    /// Replaces the carry by a random start.
    fn start_randomly(&mut self, seed: u64, guess: u64);

    /// Adds Gaussian noise to the carry.
    fn add_noise(&mut self, seed: u64, guess: u64, segment: u16, amplitude: u16);

    /// Tokens read from z_H, `[S]`.
    fn answer(&self) -> &[u8];

    /// Hash of the whole carry.
    fn hash(&self) -> u64;

    /// Halt and continue outputs of the Q head.
    fn q(&self) -> (i32, i32);

    /// Whether the Q head says halt: `q_halt > q_continue`, or `q_halt > 0` without a continue output.
    fn q_says_halt(&self) -> bool {
        self.q().0 > self.q().1
    }

    /// Change of z_H over the last segment, if it is known.
    fn residual(&self) -> Option<Residual>;
}

impl Machine for Run<'_, '_> {
    fn view(&self) -> &ModelView<'_> {
        self.network().view()
    }

    fn start(&mut self, tokens: &[u8], seed: u64, guess: u64) -> Result<(), InputError> {
        Run::start(self, tokens, seed, guess)
    }

    fn start_randomly(&mut self, seed: u64, guess: u64) {
        Run::start_randomly(self, seed, guess);
    }

    fn add_noise(&mut self, seed: u64, guess: u64, segment: u16, amplitude: u16) {
        Run::add_noise(self, seed, guess, segment, amplitude);
    }

    fn answer(&self) -> &[u8] {
        Run::answer(self)
    }

    fn hash(&self) -> u64 {
        Run::hash(self)
    }

    fn q(&self) -> (i32, i32) {
        Run::q(self)
    }

    fn residual(&self) -> Option<Residual> {
        Run::residual(self)
    }
}

/// When to stop a guess. Conditions are looked at after every segment, in the order of [`Halt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Policy {
    /// Most segments of the first guess; at least one is run.
    pub segments: u16,
    /// Most segments of the others.
    pub depth: Depth,
    /// Stop once the answer has not changed for this many segments; 0: never.
    pub stable: u16,
    /// Stop at an exact fixed point or limit cycle of the state: nothing new can come, unless noise is added.
    pub fixed_point: bool,
    /// Stop when the Q head says halt.
    pub q_head: bool,
    /// Give up once z_H has settled on an answer that the verifier refuses: its residual is below this many 1/1024; 0: never. Needs a plan that
    /// keeps residuals, else it does nothing.
    pub settled: u16,
}

impl Policy {
    /// Up to `segments` segments, stopped early only by a verified answer or by an exact fixed point.
    #[must_use]
    pub const fn budget(segments: u16) -> Self {
        Self { segments, depth: Depth::Auto, stable: 0, fixed_point: true, q_head: false, settled: 0 }
    }
}

/// Why a guess stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
pub enum Halt {
    /// The verifier accepted the answer.
    Verified,
    /// The state repeats: a fixed point (period 1) or a limit cycle.
    Cycle {
        /// Segments between equal states.
        period: u16,
    },
    /// The Q head said halt.
    QHead,
    /// The answer has not changed for as long as the policy asks, or z_H has settled.
    Stable,
    /// The budget of segments is spent.
    Budget,
}

/// What one segment did.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Segment {
    /// Number of the segment, from 1.
    pub index: u16,
    /// Cells whose answer differs from that of the segment before.
    pub changed: u16,
    /// Halt and continue outputs of the Q head.
    pub q: (i32, i32),
    /// Change of z_H, if the run's plan keeps it.
    pub residual: Option<Residual>,
    /// Hash of the state.
    pub hash: u64,
    /// Whether the verifier accepted the answer.
    pub verified: bool,
    /// Set if this was the last segment.
    pub halt: Option<Halt>,
}

/// Number of past state hashes kept: limit cycles up to this period are found.
pub const HISTORY: usize = 16;

/// The progress of one guess: counts segments and applies the [`Policy`]. The state itself lives in the [`Run`].
#[derive(Clone, Debug)]
pub struct Iteration {
    policy: Policy,
    done: u16,
    unchanged: u16,
    history: [u64; HISTORY],
    halted: bool,
}

impl Iteration {
    /// Begins counting for a run that has just been started.
    #[must_use]
    pub fn new(policy: Policy, run: &impl Machine) -> Self {
        let mut history = [0; HISTORY];
        history[0] = run.hash();
        Self { policy, done: 0, unchanged: 0, history, halted: false }
    }

    /// Runs one segment, unless the policy has stopped the guess. `verify` judges the answer, `[S]` tokens; pass `|_| false` for tasks
    /// without a verifier.
    ///
    /// # Errors
    /// As [`Run::segment`]; the guess has ended without an answer.
    pub fn next(&mut self, run: &mut Run<'_, '_>, verify: impl FnOnce(&[u8]) -> bool) -> Result<Option<Segment>, Broken> {
        self.next_by(run, Run::segment, verify)
    }

    /// As [`Iteration::next`], with `segment` in place of [`Run::segment`]: see [`Run::segment_by`].
    ///
    /// # Errors
    /// Those of `segment`, as in [`Iteration::next`].
    pub fn next_by<'a, 'm, E>(
        &mut self,
        run: &mut Run<'a, 'm>,
        segment: impl FnOnce(&mut Run<'a, 'm>) -> Result<u16, E>,
        verify: impl FnOnce(&[u8]) -> bool,
    ) -> Result<Option<Segment>, E> {
        if self.halted {
            return Ok(None);
        }
        // What fails has ended.
        self.halted = true;
        let changed = segment(run)?;
        self.halted = false;
        Ok(self.judge(run, changed, verify))
    }

    /// Counts a segment that `run` has just done and that has changed so many cells of the answer: what [`Iteration::next`] does after it.
    pub fn judge(&mut self, run: &impl Machine, changed: u16, verify: impl FnOnce(&[u8]) -> bool) -> Option<Segment> {
        if self.halted {
            return None;
        }
        self.done = self.done.saturating_add(1);
        let hash = run.hash();
        self.unchanged = if changed == 0 { self.unchanged.saturating_add(1) } else { 0 };
        let verified = verify(run.answer());
        let halt = if verified {
            Some(Halt::Verified)
        } else if let Some(period) = self.period(hash).filter(|_| self.policy.fixed_point) {
            Some(Halt::Cycle { period })
        } else if self.policy.q_head && run.q_says_halt() {
            Some(Halt::QHead)
        } else if self.policy.stable > 0 && self.unchanged >= self.policy.stable || self.has_settled(run) {
            Some(Halt::Stable)
        } else {
            (self.done >= self.policy.segments).then_some(Halt::Budget)
        };
        self.history[usize::from(self.done) % HISTORY] = hash;
        self.halted = halt.is_some();
        Some(Segment { index: self.done, changed, q: run.q(), residual: run.residual(), hash, verified, halt })
    }

    /// Segments run so far.
    #[must_use]
    pub const fn done(&self) -> u16 {
        self.done
    }

    fn has_settled(&self, run: &impl Machine) -> bool {
        let below = |r: Residual| r.change.saturating_mul(1024) < r.size.saturating_mul(u64::from(self.policy.settled));
        self.policy.settled > 0 && run.residual().is_some_and(below)
    }

    /// How many segments ago the state had this hash, if it did.
    fn period(&self, hash: u64) -> Option<u16> {
        let known = usize::from(self.done).min(HISTORY);
        (1..=known).find(|&ago| self.history[(usize::from(self.done) - ago) % HISTORY] == hash).map(|p| p as u16)
    }
}
