//! What can be wrong with a puzzle.

use core::fmt;

/// Why a puzzle cannot be read. Rows, columns and text positions count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PuzzleError {
    /// The text has the wrong number of characters (or of integers).
    Length {
        /// Characters or integers found.
        found: usize,
        /// The accepted lengths.
        expected: &'static str,
    },
    /// The text has the wrong number of tokens for a task of any size.
    Tokens {
        /// Tokens found.
        found: usize,
        /// Tokens of the task.
        expected: usize,
    },
    /// A character that stands for no token.
    Character {
        /// Position in the text, from 1.
        column: usize,
        /// The character.
        found: char,
        /// The accepted ones.
        expected: &'static str,
    },
    /// An integer that is no token of the task.
    Integer {
        /// Position of its first character in the text, from 1.
        column: usize,
        /// The integer, or `u32::MAX` if it is larger than that.
        found: u32,
        /// One more than the largest accepted token.
        vocab: u16,
    },
    /// A token outside the task's vocabulary.
    Token {
        /// Index of the token, from 0.
        index: usize,
        /// The token.
        found: u8,
        /// Smallest accepted token.
        min: u8,
        /// Largest accepted token.
        max: u8,
    },
    /// Two givens of one row, column or box hold the same digit.
    Givens {
        /// The digit, from 1.
        digit: u8,
        /// Row and column of the first cell, from 1.
        first: (u8, u8),
        /// Row and column of the second cell, from 1.
        second: (u8, u8),
        /// `"row"`, `"column"` or `"box"`.
        unit: &'static str,
    },
    /// A buffer of the caller is too short.
    Buffer {
        /// Its length.
        found: usize,
        /// The length needed.
        expected: usize,
    },
}

impl fmt::Display for PuzzleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length { found, expected } => write!(f, "the puzzle has {found} characters, expected {expected}"),
            Self::Tokens { found, expected } => write!(f, "the puzzle has {found} tokens, expected {expected}"),
            Self::Character { column, found, expected } => write!(f, "column {column}: found {found:?}, expected {expected}"),
            Self::Integer { column, found, vocab } => {
                write!(f, "column {column}: found {found}, expected a token from 0 to {}", vocab.saturating_sub(1))
            }
            Self::Token { index, found, min, max } => write!(f, "token {index} is {found}, expected {min} to {max}"),
            Self::Givens { digit, first, second, unit } => write!(
                f,
                "the givens contradict each other: digit {digit} stands twice in a {unit}, at row {} column {} and at row {} column {}",
                first.0, first.1, second.0, second.1
            ),
            Self::Buffer { found, expected } => write!(f, "the buffer holds {found} elements, expected at least {expected}"),
        }
    }
}

impl core::error::Error for PuzzleError {}
