//! The fixed header of a `.hrm` file.

use super::layout::HEADER_LEN;
use super::{CRC, FormatError};
use crate::config::{Config, Mixer, Start};

/// First bytes of every file. As in PNG, the bytes catch transfers that change line ends or cut the eighth bit.
pub const MAGIC: [u8; 8] = [0x89, b'H', b'R', b'M', b'\r', b'\n', 0x1a, b'\n'];
/// Version of the format that this code reads and writes.
pub const VERSION: u16 = 1;
/// Layout id of row-major weights, the only one of this version.
pub const LAYOUT_ROW_MAJOR: u16 = 0;

/// Which task's tokens and verifier belong to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TaskKind {
    /// A grid of tokens without a verifier.
    Grid,
    /// Sudoku of this size (4, 6 or 9).
    Sudoku(u8),
}

/// The header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The architecture.
    pub config: Config,
    /// The task.
    pub task: TaskKind,
    /// Whether the file has a second Q output (continue).
    pub q_continue: bool,
    /// Bit `g`: grouping `g` merges the fields of a token.
    pub merge_fields: u8,
    /// Entries of the tensor table.
    pub tensors: u16,
    /// Checksum stored in the file.
    pub crc: u32,
    /// UTF-8, padded with zeros.
    pub name: [u8; 32],
}

const CRC_AT: usize = 16;

/// The checksum of a file: over all bytes, with the field of the checksum itself read as zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&bytes[..CRC_AT]);
    digest.update(&[0; 4]);
    digest.update(&bytes[CRC_AT + 4..]);
    digest.finalize()
}

impl Header {
    /// Number of Q outputs.
    #[must_use]
    pub const fn q_outputs(&self) -> usize {
        1 + self.q_continue as usize
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|&b| b == 0).unwrap_or(self.name.len());
        core::str::from_utf8(&self.name[..end]).unwrap_or("")
    }

    /// Reads and checks the header, the file's length and its checksum.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() < HEADER_LEN {
            return Err(FormatError::Truncated { found: bytes.len(), needed: HEADER_LEN });
        }
        if bytes[..8] != MAGIC {
            return Err(FormatError::Magic);
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let expect = |field, offset, found: u64, expected: u64| {
            if found == expected { Ok(()) } else { Err(FormatError::Field { field, offset, found, expected }) }
        };
        expect("version", 8, u64::from(half(8)), u64::from(VERSION))?;
        expect("layout", 10, u64::from(half(10)), u64::from(LAYOUT_ROW_MAJOR))?;
        let len = word(12) as usize;
        if bytes.len() < len {
            return Err(FormatError::Truncated { found: bytes.len(), needed: len });
        }
        if bytes.len() > len {
            return Err(FormatError::Trailing { found: bytes.len(), needed: len });
        }
        let (found, expected) = (checksum(bytes), word(CRC_AT));
        if found != expected {
            return Err(FormatError::Checksum { found, expected });
        }
        expect("header length", 20, u64::from(half(20)), HEADER_LEN as u64)?;
        let flag = |field, at: usize| match bytes[at] {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(FormatError::Field { field, offset: at, found: u64::from(found), expected: 1 }),
        };
        let config = Config {
            shared: flag("shared", 24)?,
            mixer: match bytes[25] {
                0 => Mixer::Attention,
                1 => Mixer::TokenMlp,
                2 => Mixer::GroupSum,
                3 => Mixer::GroupAttention,
                found => return Err(FormatError::Field { field: "mixer", offset: 25, found: u64::from(found), expected: 3 }),
            },
            start: if flag("start", 26)? { Start::Random } else { Start::Fixed },
            rope: flag("rope", 27)?,
            tokens: half(28),
            prefix: half(30),
            vocab: half(32),
            fields: half(34),
            channels: half(36),
            inner: half(38),
            token_inner: half(40),
            heads: half(42),
            groupings: bytes[44],
            h_layers: bytes[45],
            l_layers: bytes[46],
            h_cycles: bytes[47],
            l_cycles: bytes[48],
        };
        config.validate().map_err(FormatError::Config)?;
        let task = match (bytes[51], bytes[52]) {
            (0, 0) => TaskKind::Grid,
            (1, n @ (4 | 6 | 9)) => {
                expect("tokens", 28, u64::from(config.tokens), u64::from(n) * u64::from(n))?;
                expect("vocab", 32, u64::from(config.vocab), u64::from(n) + 2)?;
                TaskKind::Sudoku(n)
            }
            (kind, size) => {
                return Err(FormatError::Field {
                    field: "task",
                    offset: 51,
                    found: u64::from(kind) << 8 | u64::from(size),
                    expected: 0x109,
                });
            }
        };
        let merge_fields = bytes[50];
        expect("merge_fields", 50, u64::from(merge_fields) >> config.groupings, 0)?;
        for (at, &b) in bytes.iter().enumerate().take(HEADER_LEN).skip(88).chain(bytes.iter().enumerate().take(56).skip(53)) {
            expect("reserved", at, u64::from(b), 0)?;
        }
        let mut name = [0; 32];
        name.copy_from_slice(&bytes[56..88]);
        if core::str::from_utf8(&name).is_err() {
            return Err(FormatError::Field { field: "name", offset: 56, found: u64::from(name[0]), expected: 0 });
        }
        Ok(Self { config, task, q_continue: flag_q(bytes[49])?, merge_fields, tensors: half(22), crc: expected, name })
    }

    /// Writes the header; length and checksum are filled in by the writer.
    #[cfg(feature = "std")]
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        let c = &self.config;
        let mut half = |at: usize, v: u16| out[at..at + 2].copy_from_slice(&v.to_le_bytes());
        half(8, VERSION);
        half(10, LAYOUT_ROW_MAJOR);
        half(20, HEADER_LEN as u16);
        half(22, self.tensors);
        let wide = [c.tokens, c.prefix, c.vocab, c.fields, c.channels, c.inner, c.token_inner, c.heads];
        for (i, v) in wide.into_iter().enumerate() {
            half(28 + 2 * i, v);
        }
        let (kind, size) = match self.task {
            TaskKind::Grid => (0, 0),
            TaskKind::Sudoku(n) => (1, n),
        };
        let mixer = match c.mixer {
            Mixer::Attention => 0,
            Mixer::TokenMlp => 1,
            Mixer::GroupSum => 2,
            Mixer::GroupAttention => 3,
        };
        out[24..28].copy_from_slice(&[u8::from(c.shared), mixer, u8::from(c.start == Start::Random), u8::from(c.rope)]);
        out[44..53].copy_from_slice(&[
            c.groupings,
            c.h_layers,
            c.l_layers,
            c.h_cycles,
            c.l_cycles,
            self.q_outputs() as u8,
            self.merge_fields,
            kind,
            size,
        ]);
        out[56..88].copy_from_slice(&self.name);
        out
    }
}

fn flag_q(found: u8) -> Result<bool, FormatError> {
    match found {
        1 => Ok(false),
        2 => Ok(true),
        _ => Err(FormatError::Field { field: "Q outputs", offset: 49, found: u64::from(found), expected: 1 }),
    }
}
