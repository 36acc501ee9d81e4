//! The solver service of a device: bytes of [`crate::protocol`] in, bytes out, one segment at a time.
//!
//! The caller owns transport, clock and memory. Its loop gives received bytes to [`Service::feed`] and calls [`Service::step`], which answers at
//! most one request, runs at most one segment and writes what the transport takes, then returns: a watchdog is fed and other work
//! is done between two calls.
//!
//! ```
//! use hrm_embedded::hrm_core::{ModelView, Network, Plan, testing};
//! use hrm_embedded::protocol::{Header, Ping, Request, frame::Outbox, frame_capacity};
//! use hrm_embedded::service::{Board, Service};
//!
//! let file = testing::random_model(&testing::sudoku_config(), 1)?;
//! let network = Network::reference(ModelView::new_checked(file.as_slice())?);
//! let (mut arena, mut memory) = (vec![0; network.required_bytes(Plan::DEVICE) / 8], [0; 3 * 81]);
//! let board = Board { firmware: "example 1.0", flash_bytes: 0, ram_bytes: 0 };
//! let mut service = Service::<{ frame_capacity(81) }>::new(network, &mut arena, Plan::DEVICE, &mut memory, board)?;
//!
//! let mut request = Outbox::<64>::default();
//! let ping = Request::Ping(Ping { value: 5 });
//! request.put(Header::new(ping.kind(), 1), &ping)?;
//! let mut answer = Vec::new();
//! assert_eq!(service.feed(request.rest()), request.rest().len());
//! service.step(0, &mut |bytes| {
//!     answer.extend_from_slice(bytes);
//!     bytes.len()
//! });
//! assert_eq!(answer, [0, 4, 1, 130, 1, 6, 5, 0xa5, 0x3e, 0xba, 0xcd, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Slow transports.** At most one frame waits to be written. While it waits no request is answered, and `feed` takes no bytes behind a whole
//! request, so a transport with flow control holds them back (without it they are lost, and the cut frame is dropped by its CRC).
//! Solving goes on: a [`Report::Progress`] event that finds the frame of the one before still waiting replaces its successor, a
//! [`Report::Trace`] makes the network wait. The outcome is kept until it can be written. [`Service::reset`] is for a transport that
//! knows that the host has gone.
//!
//! [`Report::Progress`]: crate::protocol::Report::Progress
//! [`Report::Trace`]: crate::protocol::Report::Trace

mod engine;

use core::fmt;

use hrm_core::{MemoryError, Network, Plan};

use crate::fmt::debug;
use crate::protocol::frame::{Counters, Inbox, Outbox};
use crate::protocol::{Event, Fault, Header, MAX_FIRMWARE, Request, VERSION, Versions, frame_capacity};
use engine::Engine;

/// What the firmware knows about itself, for [`crate::protocol::Info`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Board {
    /// Name and version, at most [`MAX_FIRMWARE`] bytes.
    pub firmware: &'static str,
    /// Flash of the image without the model, in bytes; 0: unknown.
    pub flash_bytes: u32,
    /// RAM of the image, in bytes; 0: unknown.
    pub ram_bytes: u32,
}

/// Why a service cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ServiceError {
    /// Arena or solver memory is too small.
    Memory(MemoryError),
    /// The buffer of a frame is too small for the model: [`frame_capacity`].
    Frame {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The firmware's name is too long.
    Firmware {
        /// Its bytes.
        found: usize,
    },
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(e) => e.fmt(f),
            Self::Frame { found, needed } => write!(f, "frames have {found} bytes, this model needs {needed}"),
            Self::Firmware { found } => write!(f, "the firmware's name has {found} bytes, at most {MAX_FIRMWARE} fit"),
        }
    }
}

impl core::error::Error for ServiceError {}

/// What a service is doing, for a loop that may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Activity {
    /// Nothing until bytes arrive.
    Idle,
    /// Another step has something to do.
    Working,
    /// Nothing until the transport takes bytes (or the budget of time is spent).
    Blocked,
}

/// A device's side of the protocol. `N`: bytes of a frame, at least [`frame_capacity`] of the model's tokens.
#[derive(Debug)]
pub struct Service<'a, 'm, const N: usize> {
    inbox: Inbox<N>,
    outbox: Outbox<N>,
    engine: Engine<'a, 'm>,
}

impl<'a, 'm, const N: usize> Service<'a, 'm, N> {
    /// A service for one network, in `arena` of at least [`Network::required_bytes`] of `plan`, and in `memory` of at least three bytes a
    /// token: each further `S` bytes let [`crate::protocol::Select::Vote`] choose among one guess more.
    ///
    /// # Errors
    /// Too little memory, too small frames, too long a name.
    pub fn new(network: Network<'m>, arena: &'a mut [u64], plan: Plan, memory: &'a mut [u8], board: Board) -> Result<Self, ServiceError> {
        Self::new_in(network, [arena, &mut []], plan, memory, board)
    }

    /// As [`Service::new`] with an arena in two places: see [`hrm_core::Run::new_in`].
    ///
    /// # Errors
    /// As [`Service::new`].
    pub fn new_in(
        network: Network<'m>,
        arenas: [&'a mut [u64]; 2],
        plan: Plan,
        memory: &'a mut [u8],
        board: Board,
    ) -> Result<Self, ServiceError> {
        let needed = frame_capacity(usize::from(network.view().config().tokens));
        if N < needed {
            return Err(ServiceError::Frame { found: N, needed });
        }
        if board.firmware.len() > MAX_FIRMWARE {
            return Err(ServiceError::Firmware { found: board.firmware.len() });
        }
        let engine = Engine::new(network, arenas, plan, memory, board, N).map_err(ServiceError::Memory)?;
        Ok(Self { inbox: Inbox::default(), outbox: Outbox::default(), engine })
    }

    /// Takes received bytes; returns how many. Fewer than given means that a whole request waits: call [`Service::step`], then go on with
    /// the rest.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        self.inbox.feed(bytes)
    }

    /// Answers at most one request, runs at most one segment, writes what there is to write.
    ///
    /// `now_ms` counts milliseconds from any start and never goes back. `write` is offered bytes and returns how many it has taken; 0 means
    /// none now, and the rest is offered again in the next step.
    pub fn step(&mut self, now_ms: u64, write: &mut impl FnMut(&[u8]) -> usize) -> Activity {
        self.write_owed(write);
        if self.outbox.is_empty()
            && let Some(message) = self.inbox.message()
        {
            let counters = self.inbox.counters();
            answer(&mut self.engine, message, now_ms, counters, &mut self.outbox);
            self.inbox.clear();
            self.write_owed(write);
        }
        self.engine.work(now_ms);
        self.write_owed(write);
        if !self.outbox.is_empty() && !self.engine.can_work() {
            Activity::Blocked
        } else if self.engine.can_work() || self.inbox.message().is_some() || !self.outbox.is_empty() {
            Activity::Working
        } else {
            Activity::Idle
        }
    }

    /// Writes the waiting frame, then those that the work under way owes, as long as the transport takes them.
    fn write_owed(&mut self, write: &mut impl FnMut(&[u8]) -> usize) {
        loop {
            self.outbox.flush(write);
            if !self.outbox.is_empty() {
                return;
            }
            let outbox = &mut self.outbox;
            if !self.engine.offer(|tag, event| put(outbox, tag, event)) {
                return;
            }
        }
    }

    /// The host has gone: forgets the puzzle under way, half a request and what has not been written.
    pub fn reset(&mut self) {
        self.inbox.reset();
        self.outbox.clear();
        self.engine.stop();
    }

    /// What has been read so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.inbox.counters()
    }

    /// Whether a puzzle or test is under way.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.engine.is_busy()
    }
}

fn answer<const N: usize>(engine: &mut Engine<'_, '_>, message: &[u8], now_ms: u64, counters: Counters, outbox: &mut Outbox<N>) {
    let Some((header, payload)) = Header::split(message) else { return };
    let request = match header.version {
        VERSION => Request::read(header.kind, payload),
        found => Err(Fault::Version { found, spoken: Versions::OURS }),
    };
    match request {
        Ok(request) => {
            let mut scratch = [0; N];
            engine.handle((header.tag, &request), now_ms, counters, &mut scratch, |event| put(outbox, header.tag, event));
        }
        Err(fault) => put(outbox, header.tag, &Event::Error(fault)),
    }
}

/// The frames were measured: every event fits.
fn put<const N: usize>(outbox: &mut Outbox<N>, tag: u16, event: &Event<'_>) {
    if outbox.put(Header::new(event.kind(), tag), event).is_err() {
        debug!("an event of kind {} does not fit into a frame", event.kind());
    }
}
