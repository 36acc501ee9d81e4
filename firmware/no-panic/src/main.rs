//! Everything that a device runs, with a panic handler that does not link: frames, requests and events, puzzles and answers, model files,
//! the network in both schedules and on every kernel of the processor, guesses and the service. What the linker takes has no way to
//! panic, whatever the bytes are. `cargo xtask qemu` builds it; nobody runs it.
#![no_std]
#![no_main]

use core::hint::black_box;

use hrm_embedded::hrm_core::task::{Grid, Sudoku};
use hrm_embedded::hrm_core::{Kernel, ModelView, Network, Plan, Run};
use hrm_embedded::protocol::frame::{Inbox, Outbox};
use hrm_embedded::protocol::{Event, Header, Puzzle, Request, frame_capacity};
use hrm_embedded::service::{Board, Service};

/// Bytes of a frame for the largest Sudoku.
const FRAME: usize = frame_capacity(81);

unsafe extern "C" {
    /// Nowhere.
    fn something_can_panic() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: it has no effects, for there is no such function.
    unsafe { something_can_panic() }
}

/// # Safety
/// `bytes` points to so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn _start(bytes: *const u8, length: usize) -> u32 {
    // SAFETY: as the caller promises.
    let bytes = unsafe { core::slice::from_raw_parts(bytes, length) };
    #[cfg(feature = "panic")]
    black_box(bytes[7]);
    model(bytes);
    let (mut inbox, mut outbox) = (Inbox::<FRAME>::default(), Outbox::<FRAME>::default());
    let mut rest = bytes;
    while let Some(more) = rest.get(inbox.feed(rest).max(1)..) {
        rest = more;
        if let Some((header, payload)) = inbox.message().and_then(Header::split) {
            message(header, payload, &mut outbox);
            inbox.clear();
        }
    }
    let counters = inbox.counters();
    counters.good ^ counters.damaged ^ counters.oversized
}

/// A model file, its tables and its test vector.
fn model(bytes: &[u8]) {
    if let Ok(view) = ModelView::in_region(bytes) {
        black_box((view.header(), view.crc(), view.embed(), view.prefix(), view.init(), view.rope(), view.record(), view.self_test()));
        black_box((view.heads(), view.groups(length(bytes)), view.block(length(bytes), length(bytes))));
        let (mut packed, mut again) = ([0; 256], [0; 256]);
        for kernel in Kernel::available() {
            if let Ok(network) = Network::new(view, kernel, unknown(&mut packed)) {
                network_runs(network, bytes);
            }
            if let Ok(network) = Network::with_packed(view, kernel, unknown(&mut again)) {
                network_serves(network, bytes);
            }
        }
        network_serves(Network::in_place(view), bytes);
    }
}

/// All that a program may do with a run itself.
fn network_runs(network: Network<'_>, bytes: &[u8]) {
    let (mut arena, mut more) = ([0; 256], [0; 256]);
    let plan = black_box(Plan::HOST);
    black_box(network.required_bytes(plan));
    let Ok(mut run) = Run::new_in(network, [unknown(&mut arena), unknown(&mut more)], plan) else { return };
    let started = run.start(bytes, length(bytes) as u64, 1);
    run.add_noise(1, 2, length(bytes) as u16, length(bytes) as u16);
    let watched = run.segment_watched(Some(&mut |place, hash| _ = black_box((place, hash))));
    let told = run.segment_parts(&mut |part| _ = black_box(part));
    let set = run.segment_by(|tokens, h, l| _ = black_box((tokens, h, l)));
    let _ = black_box((started, watched, told, set, run.segment_macs(), run.hash(), run.residual(), run.q(), run.answer(), run.carry()));
}

/// The service, which runs every other way to solve.
fn network_serves(network: Network<'_>, bytes: &[u8]) {
    let (mut arena, mut memory) = ([0; 256], [0; 256]);
    let board = Board { firmware: "", flash_bytes: 0, ram_bytes: 0 };
    let plan = black_box(Plan::DEVICE);
    if let Ok(mut service) = Service::<FRAME>::new(network, unknown(&mut arena), plan, unknown(&mut memory), board) {
        let mut rest = bytes;
        while let Some(more) = rest.get(service.feed(rest).max(1)..) {
            rest = more;
            service.step(length(rest) as u64, &mut |bytes| length(black_box(bytes)));
        }
        service.reset();
        black_box((service.counters(), service.is_busy()));
    }
}

/// Memory whose length the compiler does not know.
fn unknown<T>(memory: &mut [T]) -> &mut [T] {
    black_box(memory)
}

/// A message of either side, and the event that answers it.
fn message(header: Header, payload: &[u8], outbox: &mut Outbox<FRAME>) {
    match Request::read(header.kind, payload) {
        Ok(Request::Solve(request)) => {
            if let Puzzle::Text(text) = request.puzzle {
                puzzle(text);
            }
        }
        Ok(request) => {
            black_box(request);
        }
        Err(fault) => answer(header, &Event::Error(fault), outbox),
    }
    if let Ok(event) = Event::read(header.kind, payload) {
        answer(header, &event, outbox);
    }
}

fn answer(header: Header, event: &Event<'_>, outbox: &mut Outbox<FRAME>) {
    if outbox.put(Header::new(event.kind(), header.tag), event).is_ok() {
        outbox.flush(&mut |bytes| length(black_box(bytes)));
    }
}

/// A puzzle, and whatever is said to be its answer.
fn puzzle(text: &str) {
    let (mut given, mut solved) = ([0; 81], black_box([0; 81]));
    if let Some(sudoku) = Sudoku::new(length(text.as_bytes()))
        && let (Some(given), Some(solved)) = (given.get_mut(..sudoku.cells()), solved.get_mut(..sudoku.cells()))
    {
        let _ = black_box((sudoku.parse(text, given), sudoku.check_givens(given), sudoku.verify(given, solved)));
    }
    if let Some(grid) = Grid::new(length(text.as_bytes()) as u16, 11) {
        let _ = black_box((grid.parse_integers(text, &mut solved), grid.check(&solved)));
    }
    black_box((given, solved));
}

/// A number that the compiler knows nothing of.
fn length(bytes: &[u8]) -> usize {
    black_box(bytes.len())
}
