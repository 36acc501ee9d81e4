//! Frames: `00`, COBS(message, CRC-32 little endian), `00`.
//!
//! Zero bytes stand nowhere but between frames, so a reader that has lost its place finds the next frame behind the next zero, and empty
//! frames mean nothing. The CRC is that of zip and Ethernet (ISO-HDLC): a damaged frame is dropped and counted, never answered.

use cobs::{DecodeResult, DecoderState};
use heapless::Vec;
use serde::Serialize;

use super::Header;

/// Bytes of the checksum.
pub const CRC_LEN: usize = 4;

const CRC: crc::Crc<u32, crc::NoTable> = crc::Crc::<u32, crc::NoTable>::new(&crc::CRC_32_ISO_HDLC);

/// What a reader has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Counters {
    /// Whole frames.
    pub good: u32,
    /// Frames dropped: broken COBS, a wrong checksum, or shorter than a header.
    pub damaged: u32,
    /// Frames dropped because they are longer than the buffer.
    pub oversized: u32,
}

/// Puts frames together from bytes; holds one whole frame until it is cleared. `N`: longest message with its checksum.
#[derive(Debug)]
pub struct Inbox<const N: usize> {
    bytes: Vec<u8, N>,
    state: DecoderState,
    overflow: bool,
    complete: bool,
    counters: Counters,
}

impl<const N: usize> Default for Inbox<N> {
    fn default() -> Self {
        Self { bytes: Vec::new(), state: DecoderState::Idle, overflow: false, complete: false, counters: Counters::default() }
    }
}

impl<const N: usize> Inbox<N> {
    /// Takes bytes up to the end of the next whole frame; returns how many. While a frame waits to be cleared, it takes none.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        for &byte in bytes {
            if self.complete {
                break;
            }
            taken += 1;
            match self.state.feed(byte) {
                Ok(DecodeResult::NoData) => {}
                Ok(DecodeResult::DataContinue(byte)) => self.overflow |= self.bytes.push(byte).is_err(),
                Ok(DecodeResult::DataComplete) => self.end(),
                // A zero inside a block: the frame was cut off, the next one begins.
                Err(_) => self.drop_frame(),
            }
        }
        taken
    }

    fn end(&mut self) {
        if !self.overflow && self.bytes.len() >= Header::LEN + CRC_LEN && CRC.checksum(&self.bytes) == RESIDUE {
            self.counters.good = self.counters.good.wrapping_add(1);
            self.complete = true;
        } else {
            self.drop_frame();
        }
    }

    fn drop_frame(&mut self) {
        let counter = if self.overflow { &mut self.counters.oversized } else { &mut self.counters.damaged };
        *counter = counter.wrapping_add(1);
        self.clear();
    }

    /// The message of the whole frame, if there is one.
    #[must_use]
    pub fn message(&self) -> Option<&[u8]> {
        self.bytes.split_last_chunk::<CRC_LEN>().filter(|_| self.complete).map(|(message, _)| message)
    }

    /// Makes room for the next frame.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.overflow = false;
        self.complete = false;
    }

    /// Forgets a half frame too: what comes next begins a frame.
    pub fn reset(&mut self) {
        self.clear();
        self.state = DecoderState::Idle;
    }

    /// What has been read so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }
}

/// The CRC over any message and its own CRC, little endian.
const RESIDUE: u32 = 0x2144_DF1C;

/// One frame on its way out, written as fast as the transport takes it. `N`: its longest form, [`super::frame_capacity`].
#[derive(Debug)]
pub struct Outbox<const N: usize> {
    bytes: Vec<u8, N>,
    sent: usize,
}

impl<const N: usize> Default for Outbox<N> {
    fn default() -> Self {
        Self { bytes: Vec::new(), sent: 0 }
    }
}

impl<const N: usize> Outbox<N> {
    /// Whether everything has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes that are still to be written.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or(&[])
    }

    /// Offers the rest to `write`, which returns how many bytes it took (0: none now), until it takes no more.
    pub fn flush(&mut self, write: &mut impl FnMut(&[u8]) -> usize) {
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return self.clear();
            }
            let taken = write(rest).min(rest.len());
            if taken == 0 {
                return;
            }
            self.sent += taken;
        }
    }

    /// Replaces the content by the frame of a message.
    ///
    /// # Errors
    /// It does not fit into `N` bytes; nothing is left to be written.
    pub fn put(&mut self, header: Header, payload: &impl Serialize) -> Result<(), TooLong> {
        self.clear();
        let done = self.encode(header, payload);
        if done.is_none() {
            self.clear();
        }
        done.ok_or(TooLong)
    }

    fn encode(&mut self, header: Header, payload: &impl Serialize) -> Option<()> {
        let mut body = [0; N];
        let (head, rest) = body.split_first_chunk_mut::<{ Header::LEN }>()?;
        *head = header.to_bytes();
        let written = postcard::to_slice(payload, rest).ok()?.len();
        let (message, rest) = body.split_at_mut_checked(Header::LEN + written)?;
        *rest.first_chunk_mut::<CRC_LEN>()? = CRC.checksum(message).to_le_bytes();
        let body = body.get(..Header::LEN + written + CRC_LEN)?;
        self.bytes.resize_default(N).ok()?;
        let coded = cobs::try_encode(body, self.bytes.get_mut(1..)?).ok()?;
        // Behind the leading zero and the coded bytes comes the closing zero, which must fit as well.
        *self.bytes.get_mut(1 + coded)? = 0;
        self.bytes.truncate(1 + coded + 1);
        Some(())
    }

    /// Drops what has not been written.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }
}

/// A message is longer than the buffer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooLong;

impl core::fmt::Display for TooLong {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the message is longer than the buffer of a frame")
    }
}

impl core::error::Error for TooLong {}
