//! The wire protocol on a serial port, until the power goes.

use hrm_embedded::hrm_core::{Kernel, ModelView, Network};
use hrm_embedded::protocol::frame::{Inbox, Outbox};
use hrm_embedded::protocol::{Event, Fault, Header, Request, frame_capacity};
use hrm_embedded::service::{self, Service};

use crate::{Board, region, stack};

/// Bytes of a frame for the largest Sudoku.
pub const FRAME: usize = frame_capacity(81);
/// Memory of guesses: what a Sudoku of 81 cells needs, and a vote among 16 guesses.
pub const GUESSES: usize = (3 + 16) * 81;

/// Answers requests for ever. The arena may lie in two memories; `packed` is as in [`network`].
pub fn main<B: Board>(arenas: [&'static mut [u64]; 2], packed: &'static mut [i32], guesses: &'static mut [u8]) -> ! {
    stack::guard();
    B::start();
    let fault = match region::model() {
        Ok(view) => match service::<B>(network(view, packed), arenas, guesses) {
            Ok(service) => run::<B>(service),
            Err(fault) => fault,
        },
        Err(error) => error.into(),
    };
    refuse::<B>(fault)
}

/// The network on the best kernel if its form of the weights fits into `packed`, else on the best of those that read them in place.
#[must_use]
pub fn network(view: ModelView<'static>, packed: &'static mut [i32]) -> Network<'static> {
    Network::new(view, Kernel::best(), packed).unwrap_or_else(|_| Network::in_place(view))
}

/// Bytes of an arena in two pieces.
pub(crate) fn bytes_of(arenas: &[&'_ mut [u64]; 2]) -> usize {
    arenas.iter().map(|arena| size_of_val(&**arena)).sum()
}

fn service<B: Board>(
    network: Network<'static>,
    arenas: [&'static mut [u64]; 2],
    guesses: &'static mut [u8],
) -> Result<Service<'static, 'static, FRAME>, Fault> {
    let (flash_bytes, ram_bytes) = B::SIZES;
    #[cfg(feature = "boards")]
    let firmware = crate::last_run::name(B::NAME);
    #[cfg(not(feature = "boards"))]
    let firmware = B::NAME;
    let board = service::Board { firmware, flash_bytes, ram_bytes };
    let plan = network.fitting(B::PLAN, bytes_of(&arenas));
    Service::new_in(network, arenas, plan, guesses, board).map_err(|error| match error {
        service::ServiceError::Memory(e) => Fault::Memory { found: e.found as u32, needed: e.needed as u32 },
        _ => Fault::Other,
    })
}

fn run<B: Board>(mut service: Service<'static, 'static, FRAME>) -> ! {
    let mut clock = Clock::new::<B>();
    // A byte that the service did not take: it holds a whole request.
    let mut waiting = None;
    loop {
        B::feed();
        if B::host_left() {
            waiting = None;
            service.reset();
        }
        while let Some(byte) = waiting.take().or_else(B::receive) {
            if service.feed(&[byte]) == 0 {
                waiting = Some(byte);
                break;
            }
        }
        let now = clock.milliseconds::<B>();
        service.step(now, &mut write::<B>);
    }
}

/// Says to every request why none can be met; a ping is answered.
fn refuse<B: Board>(fault: Fault) -> ! {
    let (mut inbox, mut outbox) = (Inbox::<FRAME>::default(), Outbox::<FRAME>::default());
    loop {
        B::feed();
        if let Some(byte) = B::receive() {
            inbox.feed(&[byte]);
        }
        if let Some((header, payload)) = inbox.message().and_then(Header::split) {
            let event = match Request::read(header.kind, payload) {
                Ok(Request::Ping(ping)) => Event::Pong(ping),
                Ok(_) => Event::Error(fault),
                Err(fault) => Event::Error(fault),
            };
            let fits = outbox.put(Header::new(event.kind(), header.tag), &event).is_ok();
            inbox.clear();
            while fits && !outbox.is_empty() {
                B::feed();
                outbox.flush(&mut write::<B>);
            }
        }
    }
}

fn write<B: Board>(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&b| B::send(b)).count()
}

/// Milliseconds out of ticks; right as long as it is asked before the ticks have wrapped.
struct Clock {
    last: u32,
    ticks: u64,
}

impl Clock {
    fn new<B: Board>() -> Self {
        Self { last: B::ticks(), ticks: 0 }
    }

    fn milliseconds<B: Board>(&mut self) -> u64 {
        let now = B::ticks();
        self.ticks += u64::from(now.wrapping_sub(self.last));
        self.last = now;
        let (nanoseconds, ticks) = B::NANOSECONDS_OF_TICKS;
        self.ticks.saturating_mul(u64::from(nanoseconds)) / (u64::from(ticks) * 1_000_000)
    }
}
