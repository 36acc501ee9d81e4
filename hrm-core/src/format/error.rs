//! Why a `.hrm` file is refused.

use core::fmt;

use crate::config::ConfigError;

/// Why a model file is refused. Offsets count bytes from the start of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than the header or than the header announces.
    Truncated {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// More bytes than the header announces.
    Trailing {
        /// Bytes given.
        found: usize,
        /// Bytes announced.
        needed: usize,
    },
    /// The bytes do not start at a multiple of 16 in memory.
    Misaligned {
        /// Address modulo 16.
        remainder: usize,
    },
    /// The first eight bytes are not those of a `.hrm` file.
    Magic,
    /// The checksum over the file does not match: it was damaged.
    Checksum {
        /// Computed over the bytes given.
        found: u32,
        /// Stored in the file.
        expected: u32,
    },
    /// A header or table field has a value that cannot be read.
    Field {
        /// The field.
        field: &'static str,
        /// Its offset.
        offset: usize,
        /// What was found.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// The architecture is impossible.
    Config(ConfigError),
    /// A value inside a tensor is outside its range.
    Value {
        /// The tensor.
        tensor: &'static str,
        /// Offset of the value.
        offset: usize,
        /// What was found.
        found: i64,
        /// Smallest allowed value.
        min: i64,
        /// Largest allowed value.
        max: i64,
    },
    /// An accumulator could overflow: `128 * sum|w| + |bias|` does not stay below `2^(31 - shift)`.
    Overflow {
        /// The matrix.
        tensor: &'static str,
        /// Output channel.
        channel: usize,
        /// The bound reached.
        bound: u64,
        /// The bound allowed.
        allowed: u64,
    },
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { found, needed } => write!(f, "model file has {found} bytes, {needed} are needed: it is cut off"),
            Self::Trailing { found, needed } => write!(f, "model file has {found} bytes, its header announces {needed}"),
            Self::Misaligned { remainder } => write!(f, "model bytes start {remainder} past a multiple of 16, expected 16-byte alignment"),
            Self::Magic => write!(f, "not a .hrm file: the first eight bytes are not its magic"),
            Self::Checksum { found, expected } => write!(f, "checksum is {found:08x}, the file says {expected:08x}: it is damaged"),
            Self::Field { field, offset, found, expected } => {
                write!(f, "field `{field}` at offset {offset} is {found}, expected {expected}")
            }
            Self::Config(e) => write!(f, "{e}"),
            Self::Value { tensor, offset, found, min, max } => {
                write!(f, "tensor `{tensor}` holds {found} at offset {offset}, expected {min} to {max}")
            }
            Self::Overflow { tensor, channel, bound, allowed } => {
                write!(f, "matrix `{tensor}`, channel {channel}: accumulators reach {bound}, allowed are {allowed}")
            }
        }
    }
}

impl core::error::Error for FormatError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Config(e) => Some(e),
            _ => None,
        }
    }
}
