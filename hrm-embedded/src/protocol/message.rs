//! The messages. Integers are varints of postcard unless said otherwise; hashes and checksums have a fixed width, little endian.

use hrm_core::iterate::Halt;
use hrm_core::solve;
use serde::{Deserialize, Serialize};

use super::Fault;

/// What a host may ask.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Request<'a> {
    /// What are you? Answered by [`Event::Info`].
    Info(Versions),
    /// Are you there? Answered by [`Event::Pong`].
    Ping(Ping),
    /// Solve a puzzle. Answered by [`Event::Segment`]s, if asked for, then [`Event::Answer`] or [`Event::Declined`].
    Solve(Solve<'a>),
    /// Stop a [`Request::Solve`] or [`Request::SelfTest`], which then ends with [`Event::Declined`]. Answered by [`Event::Cancelled`].
    Cancel(Cancel),
    /// Run the self-test of the model file. Answered by [`Event::SelfTest`].
    SelfTest,
}

/// What a device says. Every request gets exactly one last answer with its tag; any but [`Event::Segment`] is the last.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Event<'a> {
    /// Model, firmware and memory.
    Info(Info<'a>),
    /// The value of the ping.
    Pong(Ping),
    /// A segment has been run.
    Segment(Segment<'a>),
    /// The puzzle has an answer.
    Answer(Answer<'a>),
    /// The puzzle has no answer that may be shown.
    Declined(Declined),
    /// The answer to [`Request::Cancel`].
    Cancelled(Cancelled),
    /// The outcome of the self-test.
    SelfTest(SelfTest),
    /// One puzzle or test at a time: this one is still under way.
    Busy(Busy),
    /// The request cannot be met.
    Error(Fault),
}

impl<'a> Request<'a> {
    /// Number of the message on the wire, below 128.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Info(_) => 1,
            Self::Ping(_) => 2,
            Self::Solve(_) => 3,
            Self::Cancel(_) => 4,
            Self::SelfTest => 5,
        }
    }

    /// Reads the payload of a message.
    ///
    /// # Errors
    /// [`Fault::Kind`] or [`Fault::Payload`].
    pub fn read(kind: u8, payload: &'a [u8]) -> Result<Self, Fault> {
        Ok(match kind {
            1 => Self::Info(whole(kind, payload)?),
            2 => Self::Ping(whole(kind, payload)?),
            3 => Self::Solve(whole(kind, payload)?),
            4 => Self::Cancel(whole(kind, payload)?),
            5 => whole(kind, payload).map(|()| Self::SelfTest)?,
            found => return Err(Fault::Kind { found }),
        })
    }
}

impl Serialize for Request<'_> {
    /// The payload alone: the kind stands in the header.
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Info(m) => m.serialize(s),
            Self::Ping(m) => m.serialize(s),
            Self::Solve(m) => m.serialize(s),
            Self::Cancel(m) => m.serialize(s),
            Self::SelfTest => ().serialize(s),
        }
    }
}

impl<'a> Event<'a> {
    /// Number of the message on the wire, from 128.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Info(_) => 129,
            Self::Pong(_) => 130,
            Self::Segment(_) => 131,
            Self::Answer(_) => 132,
            Self::Declined(_) => 133,
            Self::Cancelled(_) => 134,
            Self::SelfTest(_) => 135,
            Self::Busy(_) => 136,
            Self::Error(_) => 137,
        }
    }

    /// Reads the payload of a message.
    ///
    /// # Errors
    /// [`Fault::Kind`] or [`Fault::Payload`].
    pub fn read(kind: u8, payload: &'a [u8]) -> Result<Self, Fault> {
        Ok(match kind {
            129 => Self::Info(whole(kind, payload)?),
            130 => Self::Pong(whole(kind, payload)?),
            131 => Self::Segment(whole(kind, payload)?),
            132 => Self::Answer(whole(kind, payload)?),
            133 => Self::Declined(whole(kind, payload)?),
            134 => Self::Cancelled(whole(kind, payload)?),
            135 => Self::SelfTest(whole(kind, payload)?),
            136 => Self::Busy(whole(kind, payload)?),
            137 => Self::Error(whole(kind, payload)?),
            found => return Err(Fault::Kind { found }),
        })
    }

    /// Whether no other answer to the same request follows.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        !matches!(self, Self::Segment(_))
    }
}

impl Serialize for Event<'_> {
    /// The payload alone: the kind stands in the header.
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Info(m) => m.serialize(s),
            Self::Pong(m) => m.serialize(s),
            Self::Segment(m) => m.serialize(s),
            Self::Answer(m) => m.serialize(s),
            Self::Declined(m) => m.serialize(s),
            Self::Cancelled(m) => m.serialize(s),
            Self::SelfTest(m) => m.serialize(s),
            Self::Busy(m) => m.serialize(s),
            Self::Error(m) => m.serialize(s),
        }
    }
}

/// A payload that fills its message to the last byte.
fn whole<'a, T: Deserialize<'a>>(kind: u8, payload: &'a [u8]) -> Result<T, Fault> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        _ => Err(Fault::Payload { kind, bytes: payload.len() as u16 }),
    }
}

/// The versions of the protocol that one side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Versions {
    /// Oldest.
    pub min: u8,
    /// Newest.
    pub max: u8,
}

impl Versions {
    /// Those of this code.
    pub const OURS: Self = Self { min: super::VERSION, max: super::VERSION };

    /// The newest version that both sides speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u8> {
        let version = self.max.min(other.max);
        (version >= self.min.max(other.min)).then_some(version)
    }
}

/// A number that comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Ping {
    /// The number.
    pub value: u32,
}

/// A puzzle and what may be spent on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Solve<'a> {
    /// The puzzle.
    #[serde(borrow)]
    pub puzzle: Puzzle<'a>,
    /// Most segments of the first guess; 0: 16.
    pub segments: u16,
    /// Most guesses; 0: 64 for a task with a verifier, else 1.
    pub guesses: u16,
    /// Most time in milliseconds, looked at before every segment; 0: no limit.
    pub time_ms: u32,
    /// Seed of starts and symmetries.
    pub seed: u64,
    /// How the answer is chosen among the guesses; none: by the verifier, or the first guess of a task without one.
    pub select: Option<Select>,
    /// What is told on the way.
    pub report: Report,
}

/// A puzzle on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Puzzle<'a> {
    /// One byte a token, `[S]`.
    Tokens(&'a [u8]),
    /// As people write it: one character a cell for a Sudoku, decimal integers for a token grid.
    Text(&'a str),
}

/// [`solve::Select`] on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Select {
    /// The first answer that the verifier accepts.
    Verify,
    /// The answer of most guesses; each guess takes `S` bytes of the device's memory.
    Vote,
    /// The answer of the largest halt output.
    Q,
    /// The answer of the smallest residual, where the device keeps residuals.
    Residual,
    /// The first guess.
    First,
}

impl From<Select> for solve::Select {
    fn from(select: Select) -> Self {
        match select {
            Select::Verify => Self::Verify,
            Select::Vote => Self::Vote,
            Select::Q => Self::Q,
            Select::Residual => Self::Residual,
            Select::First => Self::First,
        }
    }
}

impl From<solve::Select> for Select {
    fn from(select: solve::Select) -> Self {
        match select {
            solve::Select::Verify => Self::Verify,
            solve::Select::Vote => Self::Vote,
            solve::Select::Q => Self::Q,
            solve::Select::Residual => Self::Residual,
            solve::Select::First => Self::First,
        }
    }
}

/// What a device tells while it solves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Report {
    /// The outcome only.
    Outcome,
    /// A [`Segment`] without cells after each segment; some are left out where the transport is slower than the network.
    Progress,
    /// Every [`Segment`] with its cells: the network waits for the transport. Guesses are those of a verified solve, whoever selects.
    Trace,
}

/// Which request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Cancel {
    /// Its tag.
    pub tag: u16,
}

/// Whether there was something to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Cancelled {
    /// The request with this tag was under way and now ends with [`Declined`]; else it had ended, or never begun.
    pub active: bool,
}

/// A task on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Task {
    /// A grid of tokens without a verifier.
    Grid,
    /// Sudoku of this size.
    Sudoku(u8),
}

/// What a device is. Sizes in bytes; 0 where the device does not know.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Info<'a> {
    /// Version of the protocol to go on with.
    pub protocol: u8,
    /// The versions that the device speaks.
    pub versions: Versions,
    /// Name and version of the firmware, at most [`super::MAX_FIRMWARE`] bytes.
    pub firmware: &'a str,
    /// Name of the model, at most 32 bytes.
    pub model: &'a str,
    /// Checksum of the model file: it identifies the model.
    #[serde(with = "postcard::fixint::le")]
    pub crc: u32,
    /// The task.
    pub task: Task,
    /// `S`.
    pub tokens: u16,
    /// Size of the vocabulary.
    pub vocab: u16,
    /// Value of one unit of a Q output.
    pub q_scale: f32,
    /// Kernel in use, at most [`super::MAX_KERNEL`] bytes.
    pub kernel: &'a str,
    /// int8 multiply-accumulates of one segment.
    pub macs: u64,
    /// Bytes of the model file.
    pub model_bytes: u32,
    /// Bytes of the arena of the network.
    pub arena_bytes: u32,
    /// Bytes of the memory of guesses.
    pub solver_bytes: u32,
    /// Flash of the image without the model.
    pub flash_bytes: u32,
    /// RAM of the image, everything included.
    pub ram_bytes: u32,
    /// Longest frame that the device reads and writes, with its delimiters.
    pub frame_bytes: u16,
    /// Whether the model file has a self-test.
    pub self_test: bool,
    /// Whether a puzzle or test is under way.
    pub busy: bool,
    /// Frames read, dropped as damaged, dropped as too long, since the device started.
    pub frames: (u32, u32, u32),
}

/// What one segment did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Segment<'a> {
    /// Number of the guess, from 0.
    pub guess: u16,
    /// Number of the segment in its guess, from 1.
    pub segment: u16,
    /// Cells whose answer differs from that of the segment before.
    pub changed: u16,
    /// Halt and continue outputs of the Q head.
    pub q: (i32, i32),
    /// `sum |z_H' - z_H|` and `sum |z_H'|`, where the device keeps them.
    pub residual: Option<(u64, u64)>,
    /// Hash of the state.
    #[serde(with = "postcard::fixint::le")]
    pub hash: u64,
    /// Whether the verifier stopped the guess here.
    pub verified: bool,
    /// Why the guess stopped here, if it did.
    pub halt: Option<Stop>,
    /// The answer after the segment, `[S]` tokens, for [`Report::Trace`]; else empty.
    pub cells: &'a [u8],
}

/// [`Halt`] on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Stop {
    /// The verifier accepted the answer.
    Verified,
    /// The state repeats after so many segments.
    Cycle(u16),
    /// The Q head said halt.
    QHead,
    /// The answer did not change any more.
    Stable,
    /// The budget of segments is spent.
    Budget,
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Verified => Self::Verified,
            Halt::Cycle { period } => Self::Cycle(period),
            Halt::QHead => Self::QHead,
            Halt::Stable => Self::Stable,
            Halt::Budget => Self::Budget,
        }
    }
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Verified => Self::Verified,
            Stop::Cycle(period) => Self::Cycle { period },
            Stop::QHead => Self::QHead,
            Stop::Stable => Self::Stable,
            Stop::Budget => Self::Budget,
        }
    }
}

/// An answer that may be shown. For a task with a verifier it is a complete grid by the rules.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Answer<'a> {
    /// `[S]` tokens.
    pub cells: &'a [u8],
    /// Whether the verifier accepts it: true for every task that has one.
    pub verified: bool,
    /// Guess that it came from, from 0.
    pub guess: u16,
    /// Guesses begun.
    pub guesses: u16,
    /// Segments run, all guesses together.
    pub segments: u32,
    /// Why the last guess stopped.
    pub halt: Option<Stop>,
    /// Share of the guesses that ended with this answer ([`Select::Vote`]; else 1).
    pub confidence: f32,
    /// Hash of the state after the last segment.
    #[serde(with = "postcard::fixint::le")]
    pub hash: u64,
    /// Milliseconds from the request to the end of the last segment.
    pub ms: u32,
}

/// No answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Declined {
    /// Why.
    pub reason: Reason,
    /// Guesses begun.
    pub guesses: u16,
    /// Segments run, all guesses together.
    pub segments: u32,
    /// Why the last guess that has ended stopped.
    pub halt: Option<Stop>,
    /// Hash of the state after the last segment.
    #[serde(with = "postcard::fixint::le")]
    pub hash: u64,
    /// Milliseconds from the request to the end of the last segment.
    pub ms: u32,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Reason {
    /// No guess came to an answer that the verifier accepts.
    Unsolved,
    /// The budget of time is spent.
    Time,
    /// [`Request::Cancel`].
    Cancelled,
}

/// The outcome of the self-test: a state hash after the segments that the model file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SelfTest {
    /// Hash in the model file.
    #[serde(with = "postcard::fixint::le")]
    pub expected: u64,
    /// Hash that the device found: equal, or the device computes something else.
    #[serde(with = "postcard::fixint::le")]
    pub found: u64,
    /// Segments run.
    pub segments: u16,
    /// Milliseconds.
    pub ms: u32,
}

impl SelfTest {
    /// Whether it passed.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.expected == self.found
    }
}

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Busy {
    /// Tag of the request under way.
    pub tag: u16,
    /// Segments that it has run.
    pub segments: u32,
}
