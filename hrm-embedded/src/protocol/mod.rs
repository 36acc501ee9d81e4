//! The wire protocol between a host and a device that solves: `docs/protocol.md` is the specification, with test vectors.
//!
//! A message is a four byte [`Header`] and a payload in [postcard](https://postcard.jamesmunns.com); [`frame`] puts a CRC-32 behind it and
//! COBS around it. Everything borrows from the frame, nothing allocates: the same code runs on both sides.

mod fault;
pub mod frame;
mod message;

pub use fault::{Fault, Unit};
pub use message::{
    Answer, Busy, Cancel, Cancelled, Declined, Event, Info, Ping, Puzzle, Reason, Report, Request, Segment, Select, SelfTest, Solve, Stop,
    Task, Versions,
};

/// Version of the protocol that this code speaks.
pub const VERSION: u8 = 1;

/// Longest firmware name in bytes.
pub const MAX_FIRMWARE: usize = 48;
/// Longest kernel name in bytes.
pub const MAX_KERNEL: usize = 16;

/// First bytes of every message, of the same form in every version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Header {
    /// Version of the protocol that the payload is written in.
    pub version: u8,
    /// What the payload is: [`Request::kind`] or [`Event::kind`].
    pub kind: u8,
    /// Chosen by the host, repeated in every answer to a request.
    pub tag: u16,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 4;

    /// A header of this version of the protocol.
    #[must_use]
    pub const fn new(kind: u8, tag: u16) -> Self {
        Self { version: VERSION, kind, tag }
    }

    /// The bytes on the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; Self::LEN] {
        let [low, high] = self.tag.to_le_bytes();
        [self.version, self.kind, low, high]
    }

    /// Splits a message into header and payload; none if it is shorter than a header.
    #[must_use]
    pub const fn split(message: &[u8]) -> Option<(Self, &[u8])> {
        match message {
            [version, kind, low, high, payload @ ..] => {
                Some((Self { version: *version, kind: *kind, tag: u16::from_le_bytes([*low, *high]) }, payload))
            }
            _ => None,
        }
    }
}

/// Bytes that the buffer of a frame must have for a model of `tokens` tokens: the largest message with its CRC, COBS and delimiters.
#[must_use]
pub const fn frame_capacity(tokens: usize) -> usize {
    // A trace of a segment is the largest message with cells, 68 bytes beside them; the model's info is the largest without.
    let message = if tokens + 68 > INFO { tokens + 68 } else { INFO };
    let body = message + frame::CRC_LEN;
    body + body / 254 + 1 + 2
}

/// Largest info: header, 32 + [`MAX_FIRMWARE`] + [`MAX_KERNEL`] bytes of text, and numbers.
const INFO: usize = Header::LEN + 32 + MAX_FIRMWARE + MAX_KERNEL + 84;
