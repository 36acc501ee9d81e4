//! Why a request cannot be met, in numbers that every version of the protocol keeps.

use core::fmt;

use hrm_core::FormatError;
use hrm_core::format::MAGIC;
use hrm_core::{solve, task};
use serde::{Deserialize, Serialize};

use super::Versions;

/// A row, column or box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Unit {
    /// A row.
    Row,
    /// A column.
    Column,
    /// A box.
    Box,
}

/// Why a request cannot be met: what was found, what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Fault {
    /// The header names a version that the device does not speak, or no version is common. This variant never changes.
    Version {
        /// The version found.
        found: u8,
        /// The versions spoken.
        spoken: Versions,
    },
    /// The header names no request.
    Kind {
        /// The kind found.
        found: u8,
    },
    /// The payload is not that of its kind.
    Payload {
        /// The kind.
        kind: u8,
        /// Bytes of the payload.
        bytes: u16,
    },
    /// The puzzle has another number of tokens, cells or characters.
    Length {
        /// Number found.
        found: u32,
        /// Number expected.
        expected: u32,
    },
    /// A token that the task does not have.
    Token {
        /// Position, from 0 for tokens; column, from 1, for text.
        index: u32,
        /// The token.
        found: u32,
        /// Smallest accepted.
        min: u16,
        /// Largest accepted.
        max: u16,
    },
    /// A character that stands for no token.
    Character {
        /// Column, from 1.
        column: u32,
        /// Its code point.
        found: u32,
    },
    /// Two givens contradict each other.
    Givens {
        /// The digit, from 1.
        digit: u8,
        /// Row and column of the first cell, from 1.
        first: (u8, u8),
        /// Row and column of the second cell, from 1.
        second: (u8, u8),
        /// Where both stand.
        unit: Unit,
    },
    /// The device has too little memory for this request (a vote among many guesses).
    Memory {
        /// Bytes there are.
        found: u32,
        /// Bytes needed.
        needed: u32,
    },
    /// The task has no verifier to select with.
    NoVerifier,
    /// The device keeps no residuals to select with.
    NoResidual,
    /// The model file has no self-test.
    NoSelfTest,
    /// Something that this version of the protocol has no word for.
    Other,
    /// The device holds no model that it may use: its place in flash is empty or damaged.
    NoModel {
        /// Offset in the model file of what differs.
        offset: u32,
        /// What was found there.
        found: u64,
        /// What was expected.
        expected: u64,
    },
}

impl From<FormatError> for Fault {
    fn from(error: FormatError) -> Self {
        let (offset, found, expected) = match error {
            FormatError::Truncated { found, needed } | FormatError::Trailing { found, needed } => (12, found as u64, needed as u64),
            FormatError::Checksum { found, expected } => (16, u64::from(found), u64::from(expected)),
            FormatError::Field { offset, found, expected, .. } => (offset, found, expected),
            FormatError::Value { offset, found, max, .. } => (offset, found as u64, max as u64),
            // No file begins there.
            FormatError::Magic => (0, 0, u64::from_le_bytes(MAGIC)),
            _ => return Self::Other,
        };
        Self::NoModel { offset: offset as u32, found, expected }
    }
}

impl From<solve::SolveError> for Fault {
    fn from(error: solve::SolveError) -> Self {
        use hrm_core::InputError;
        use solve::SolveError;
        match error {
            SolveError::Input(InputError::Length { found, expected }) => Self::Length { found: found as u32, expected: expected as u32 },
            SolveError::Input(InputError::Token { position, found, vocab }) => {
                Self::Token { index: position as u32, found: found.into(), min: 0, max: vocab.saturating_sub(1) }
            }
            SolveError::Puzzle(e) => e.into(),
            SolveError::Memory(e) => Self::Memory { found: e.found as u32, needed: e.needed as u32 },
            SolveError::NoVerifier => Self::NoVerifier,
            SolveError::NoResidual => Self::NoResidual,
            _ => Self::Other,
        }
    }
}

impl From<task::PuzzleError> for Fault {
    fn from(error: task::PuzzleError) -> Self {
        use task::PuzzleError;
        match error {
            PuzzleError::Tokens { found, expected } => Self::Length { found: found as u32, expected: expected as u32 },
            PuzzleError::Character { column, found, .. } => Self::Character { column: column as u32, found: found.into() },
            PuzzleError::Integer { column, found, vocab } => {
                Self::Token { index: column as u32, found, min: 0, max: vocab.saturating_sub(1) }
            }
            PuzzleError::Token { index, found, min, max } => {
                Self::Token { index: index as u32, found: found.into(), min: min.into(), max: max.into() }
            }
            PuzzleError::Givens { digit, first, second, unit } => {
                let unit = match unit {
                    "row" => Unit::Row,
                    "column" => Unit::Column,
                    _ => Unit::Box,
                };
                Self::Givens { digit, first, second, unit }
            }
            PuzzleError::Buffer { found, expected } => Self::Memory { found: found as u32, needed: expected as u32 },
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Version { found, spoken: Versions { min, max } } => {
                write!(f, "protocol version {found}, expected {min} to {max}")
            }
            Self::Kind { found } => write!(f, "message of unknown kind {found}"),
            Self::Payload { kind, bytes } => write!(f, "message of kind {kind} whose {bytes} bytes cannot be read"),
            Self::Length { found, expected } => write!(f, "the puzzle has {found} tokens, expected {expected}"),
            Self::Token { index, found, min, max } => write!(f, "token {found} at {index}, expected {min} to {max}"),
            Self::Character { column, found } => {
                write!(f, "column {column}: found {:?}", char::from_u32(found).unwrap_or(char::REPLACEMENT_CHARACTER))
            }
            Self::Givens { digit, first, second, unit } => {
                let unit = match unit {
                    Unit::Row => "row",
                    Unit::Column => "column",
                    Unit::Box => "box",
                };
                task::PuzzleError::Givens { digit, first, second, unit }.fmt(f)
            }
            Self::Memory { found, needed } => write!(f, "the device has {found} bytes of memory for guesses, {needed} are needed"),
            Self::NoVerifier => f.write_str("the task has no verifier to select with"),
            Self::NoResidual => f.write_str("the device keeps no residuals to select with"),
            Self::NoSelfTest => f.write_str("the model file has no self-test"),
            Self::NoModel { offset, found, expected } => {
                write!(f, "the device holds no model that it may use: its file has {found:#x} at offset {offset}, expected {expected:#x}")
            }
            Self::Other => f.write_str("the device refuses the request for a reason that this program does not know"),
        }
    }
}

impl core::error::Error for Fault {}
