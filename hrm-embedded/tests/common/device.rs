//! A device in this process: the service on the shipped 4x4 model, a transport that may be slow, and what it said, decoded.
#![allow(dead_code, reason = "each test file uses a part")]

use hrm_core::iterate::Halt;
use hrm_core::{ModelView, Network, Plan, Run, solve};
use hrm_embedded::builtin;
use hrm_embedded::protocol::frame::{Inbox, Outbox};
use hrm_embedded::protocol::{Event, Header, Ping, Puzzle, Report, Request, Solve, frame_capacity};
use hrm_embedded::service::{Activity, Board, Service};

/// Bytes of a frame for a 4x4.
pub const FRAME: usize = frame_capacity(16);
pub const BOARD: Board = Board { firmware: "test 0", flash_bytes: 1000, ram_bytes: 2000 };

/// An event with its header, as text to compare and as bytes to read again.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub header: Header,
    pub payload: Vec<u8>,
}

impl Said {
    pub fn event(&self) -> Event<'_> {
        Event::read(self.header.kind, &self.payload).unwrap()
    }
}

/// The bytes of a request.
pub fn request(tag: u16, request: &Request<'_>) -> Vec<u8> {
    let mut out = Outbox::<1024>::default();
    out.put(Header::new(request.kind(), tag), request).unwrap();
    out.rest().to_vec()
}

pub fn ping(tag: u16, value: u32) -> Vec<u8> {
    request(tag, &Request::Ping(Ping { value }))
}

/// A puzzle as text with default budgets.
pub fn puzzle(text: &str, report: Report) -> Solve<'_> {
    Solve { puzzle: Puzzle::Text(text), segments: 0, guesses: 0, time_ms: 0, seed: 0, select: None, report }
}

/// Everything decoded from bytes that must be whole frames.
#[track_caller]
pub fn decode(mut bytes: &[u8]) -> Vec<Said> {
    let mut inbox = Inbox::<1024>::default();
    let mut said = Vec::new();
    while !bytes.is_empty() {
        let taken = inbox.feed(bytes);
        bytes = &bytes[taken..];
        if let Some((header, payload)) = inbox.message().and_then(Header::split) {
            said.push(Said { header, payload: payload.to_vec() });
            inbox.clear();
        }
    }
    let counters = inbox.counters();
    assert_eq!((counters.damaged, counters.oversized), (0, 0), "the device wrote a damaged frame");
    said
}

/// The shipped 4x4 model on the scalar kernel.
pub fn network() -> Network<'static> {
    Network::reference(ModelView::new_checked(builtin::bytes(4).unwrap()).unwrap())
}

/// Memory of a device, to borrow from.
pub struct Memory {
    pub arena: Vec<u64>,
    pub solver: Vec<u8>,
}

impl Memory {
    pub fn new(plan: Plan) -> Self {
        Self::of(&network(), plan)
    }

    pub fn of(network: &Network<'_>, plan: Plan) -> Self {
        Self { arena: vec![0; network.required_bytes(plan) / 8], solver: vec![0; (3 + 4) * 16] }
    }

    pub fn service(&mut self, plan: Plan) -> Service<'_, 'static, FRAME> {
        Service::new(network(), &mut self.arena, plan, &mut self.solver, BOARD).unwrap()
    }
}

/// Gives all bytes to the service and steps until nothing more happens. One step is one millisecond. Returns what it wrote.
pub fn exchange<const N: usize>(service: &mut Service<'_, '_, N>, now: &mut u64, mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..100_000 {
        let taken = service.feed(bytes);
        bytes = &bytes[taken..];
        *now += 1;
        let activity = service.step(*now, &mut |b| {
            out.extend_from_slice(b);
            b.len()
        });
        assert_ne!(activity, Activity::Blocked, "the transport takes everything");
        if activity == Activity::Idle && bytes.is_empty() {
            return out;
        }
    }
    panic!("the service does not come to rest");
}

/// What the host computes: every segment and the outcome.
pub struct Expected {
    pub segments: Vec<(solve::Event, Vec<u8>)>,
    pub answer: Option<Vec<u8>>,
    pub verified: bool,
    pub hash: u64,
    pub halt: Option<Halt>,
    pub guesses: u16,
}

/// Solves on the host in the same steps.
pub fn expected(tokens: &[u8], options: solve::Options, plan: Plan) -> Expected {
    let mut arena = vec![0; network().required_bytes(plan) / 8];
    let mut run = Run::new(network(), &mut arena, plan).unwrap();
    let mut memory = vec![0; solve::Solver::required_bytes(16, &options)];
    let mut solver = solve::Solver::new(&mut run, tokens, options, &mut memory).unwrap();
    let mut segments = Vec::new();
    while let Some(event) = solver.step().unwrap() {
        segments.push((event, solver.answer_now().to_vec()));
    }
    let o = solver.outcome();
    let (answer, verified, hash, halt, guesses) = (o.answer.map(<[u8]>::to_vec), o.verified, o.hash, o.halt, o.guesses);
    Expected { segments, answer, verified, hash, halt, guesses }
}
