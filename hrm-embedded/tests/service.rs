//! The solver service in this process: every request, every refusal, slow transports, cancelling at every segment, noise.

#[path = "common/device.rs"]
mod device;

use device::{BOARD, FRAME, Memory, Said, decode, exchange, expected, ping, puzzle, request};
use hrm_core::iterate::Policy;
use hrm_core::solve::{Options, Perturb};
use hrm_core::task::Sudoku;
use hrm_core::{Plan, solve, testing};
use hrm_embedded::protocol::{
    Busy, Cancel, Cancelled, Event, Fault, Header, Ping, Puzzle, Reason, Report, Request, Select, Solve, Task, Unit, Versions,
};
use hrm_embedded::service::{Activity, Service, ServiceError};

/// Made by this project's generator: one solution, hard for the 4x4 model in one guess of one segment.
const PUZZLE: &str = "4..11..33.......";
const INFO: Request<'_> = Request::Info(Versions::OURS);

fn tokens(text: &str) -> Vec<u8> {
    let mut tokens = vec![0; 16];
    Sudoku::new(4).unwrap().parse(text, &mut tokens).unwrap();
    tokens
}

fn options() -> Options {
    Options { policy: Policy::budget(16), guesses: 16, select: solve::Select::Verify, perturb: Perturb::Auto, noise: 0, seed: 0 }
}

/// Asks a fresh device.
fn ask(requests: &[u8]) -> Vec<Said> {
    let mut memory = Memory::new(Plan::DEVICE);
    decode(&exchange(&mut memory.service(Plan::DEVICE), &mut 0, requests))
}

#[track_caller]
fn one(said: &[Said]) -> Event<'_> {
    assert_eq!(said.len(), 1, "{said:?}");
    said[0].event()
}

#[test]
fn info_names_model_and_memory() {
    let said = ask(&request(7, &INFO));
    assert_eq!(said[0].header, Header::new(129, 7));
    let Event::Info(info) = one(&said) else { panic!("{said:?}") };
    let network = device::network();
    let view = network.view();
    let mut arena = vec![0; network.required_bytes(Plan::DEVICE) / 8];
    let macs = hrm_core::Run::new(network, &mut arena, Plan::DEVICE).unwrap().segment_macs();
    assert_eq!((info.protocol, info.versions, info.firmware, info.model), (1, Versions::OURS, BOARD.firmware, view.header().name()));
    assert_eq!((info.crc, info.task, info.tokens, info.vocab), (view.crc(), Task::Sudoku(4), 16, 6));
    assert_eq!((info.model_bytes as usize, info.macs), (view.bytes().len(), macs));
    assert_eq!((info.arena_bytes as usize, info.solver_bytes), (network.required_bytes(Plan::DEVICE), 112));
    assert_eq!((info.flash_bytes, info.ram_bytes, usize::from(info.frame_bytes)), (1000, 2000, FRAME));
    assert_eq!((info.self_test, info.busy, info.frames, info.kernel), (view.self_test().is_some(), false, (1, 0, 0), "reference"));
}

#[test]
fn versions_are_negotiated() {
    let both = Request::Info(Versions { min: 0, max: 9 });
    assert!(matches!(one(&ask(&request(1, &both))), Event::Info(i) if i.protocol == 1));
    let newer = Request::Info(Versions { min: 2, max: 9 });
    assert_eq!(one(&ask(&request(1, &newer))), Event::Error(Fault::Version { found: 9, spoken: Versions::OURS }));
    // A header of another version, with any payload.
    let mut out = hrm_embedded::protocol::frame::Outbox::<64>::default();
    out.put(Header { version: 3, kind: 1, tag: 500 }, &[1u8, 2, 3]).unwrap();
    let said = ask(out.rest());
    assert_eq!((said[0].header, one(&said)), (Header::new(137, 500), Event::Error(Fault::Version { found: 3, spoken: Versions::OURS })));
}

#[test]
fn trace_is_that_of_the_host() {
    for (plan, segments, guesses) in [(Plan::DEVICE, 16, 16), (Plan::HOST, 1, 3), (Plan::DEVICE, 2, 4)] {
        let settings = Options { policy: Policy::budget(segments), guesses, ..options() };
        let host = expected(&tokens(PUZZLE), settings, plan);
        for wire in [Puzzle::Text(PUZZLE), Puzzle::Tokens(&tokens(PUZZLE))] {
            let mut memory = Memory::new(plan);
            let solve = Solve { puzzle: wire, segments, guesses, ..puzzle(PUZZLE, Report::Trace) };
            let out = exchange(&mut memory.service(plan), &mut 0, &request(3, &Request::Solve(solve)));
            let said = decode(&out);
            assert_eq!(said.len(), host.segments.len() + 1);
            assert!(said.iter().all(|s| s.header.tag == 3));
            for (s, (event, cells)) in said.iter().zip(&host.segments) {
                let Event::Segment(got) = s.event() else { panic!("{s:?}") };
                assert_eq!(
                    (got.guess, got.segment, got.changed, got.q),
                    (event.guess, event.segment.index, event.segment.changed, event.segment.q)
                );
                assert_eq!((got.hash, got.verified, got.cells), (event.segment.hash, event.segment.verified, &cells[..]));
                assert_eq!(got.residual, event.segment.residual.map(|r| (r.change, r.size)));
                assert_eq!(got.residual.is_some(), plan.residual);
            }
            let last = said.last().unwrap().event();
            match &host.answer {
                Some(cells) => {
                    let Event::Answer(a) = last else { panic!("{last:?}") };
                    assert_eq!((a.cells, a.verified, a.hash, a.guesses), (&cells[..], true, host.hash, host.guesses));
                    assert_eq!(a.segments as usize, host.segments.len());
                }
                None => assert!(matches!(last, Event::Declined(d) if d.reason == Reason::Unsolved && d.hash == host.hash)),
            }
        }
    }
}

#[test]
fn faults_name_what_was_found() {
    let refuse = |solve: Solve<'_>, fault: Fault| {
        // A refused puzzle leaves the device free for the next.
        let both = [request(1, &Request::Solve(solve)), ping(2, 5)].concat();
        let said = ask(&both);
        assert_eq!((said.len(), said[0].event()), (2, Event::Error(fault)));
    };
    let text = |text| puzzle(text, Report::Outcome);
    refuse(text("123"), Fault::Length { found: 3, expected: 16 });
    refuse(text("12x............."), Fault::Character { column: 3, found: u32::from('x') });
    refuse(text("1..1............"), Fault::Givens { digit: 1, first: (1, 1), second: (1, 4), unit: Unit::Row });
    refuse(Solve { puzzle: Puzzle::Tokens(&[1; 15]), ..text("") }, Fault::Length { found: 15, expected: 16 });
    let mut wrong = [1; 16];
    wrong[9] = 6;
    refuse(Solve { puzzle: Puzzle::Tokens(&wrong), ..text("") }, Fault::Token { index: 9, found: 6, min: 0, max: 5 });
    wrong[9] = 0;
    refuse(Solve { puzzle: Puzzle::Tokens(&wrong), ..text("") }, Fault::Token { index: 9, found: 0, min: 1, max: 5 });
    refuse(Solve { select: Some(Select::Residual), ..text(PUZZLE) }, Fault::NoResidual);
    refuse(Solve { select: Some(Select::Vote), guesses: 5, ..text(PUZZLE) }, Fault::Memory { found: 112, needed: 128 });
    let mut out = hrm_embedded::protocol::frame::Outbox::<64>::default();
    out.put(Header::new(99, 1), &()).unwrap();
    assert_eq!(one(&ask(out.rest())), Event::Error(Fault::Kind { found: 99 }));
    // Too few bytes, then too many.
    for payload in [&[1u8][..], &[1, 2, 3]] {
        let mut message = Vec::from(Header::new(1, 1).to_bytes());
        message.extend_from_slice(payload);
        assert_eq!(one(&ask(&raw(&message))), Event::Error(Fault::Payload { kind: 1, bytes: payload.len() as u16 }));
    }
}

/// The frame of any message.
fn raw(message: &[u8]) -> Vec<u8> {
    let crc = crc32(message);
    let mut coded = vec![0; cobs::max_encoding_length(message.len() + 4)];
    let n = cobs::encode(&[message, &crc.to_le_bytes()].concat(), &mut coded);
    [&[0], &coded[..n], &[0]].concat()
}

/// CRC-32 by its definition.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, &b| (0..8).fold(crc ^ u32::from(b), step))
}

#[test]
fn unverified_grids_are_declined_however_they_were_selected() {
    // Nothing fits into the first cell.
    let unsolvable = "..12.4......3...";
    for select in [Select::Verify, Select::Vote, Select::Q, Select::First] {
        let solve = Solve { select: Some(select), guesses: 3, segments: 4, ..puzzle(unsolvable, Report::Outcome) };
        let said = ask(&request(1, &Request::Solve(solve)));
        assert!(matches!(one(&said), Event::Declined(d) if d.reason == Reason::Unsolved && d.segments > 0), "{said:?}");
    }
    // The other selections find what the verifier accepts, too.
    for select in [Select::Vote, Select::Q, Select::First] {
        let solve = Solve { select: Some(select), guesses: 3, ..puzzle(PUZZLE, Report::Outcome) };
        assert!(matches!(one(&ask(&request(1, &Request::Solve(solve)))), Event::Answer(a) if a.verified));
    }
}

#[test]
fn token_grids_are_answered_unverified() {
    let config = testing::configs().into_iter().find(|(name, _)| *name == "attention").unwrap().1;
    let file = testing::random_model(&config, 2).unwrap();
    let view = hrm_core::ModelView::new_checked(file.as_slice()).unwrap();
    let network = hrm_core::Network::reference(view);
    let (mut arena, mut memory) = (vec![0; network.required_bytes(Plan::DEVICE) / 8], [0; 45]);
    let mut service = Service::<FRAME>::new(network, &mut arena, Plan::DEVICE, &mut memory, BOARD).unwrap();
    let mut ask = |solve| decode(&exchange(&mut service, &mut 0, &request(1, &Request::Solve(solve))));
    let text = "1 2 3 4 5 1 2 3 4 5 1 2 3 4 5";
    assert!(matches!(one(&ask(puzzle(text, Report::Outcome))), Event::Answer(a) if !a.verified && a.cells.len() == 15 && a.guesses == 1));
    assert_eq!(one(&ask(puzzle("1 2 9", Report::Outcome))), Event::Error(Fault::Token { index: 5, found: 9, min: 0, max: 5 }));
    let verify = Solve { select: Some(Select::Verify), ..puzzle(text, Report::Outcome) };
    assert_eq!(one(&ask(verify)), Event::Error(Fault::NoVerifier));
}

#[test]
fn self_test_runs_in_steps_and_can_be_stopped() {
    let test = device::network().view().self_test().unwrap();
    assert!(test.segments > 1);
    let said = ask(&request(9, &Request::SelfTest));
    let Event::SelfTest(result) = one(&said) else { panic!("{said:?}") };
    assert!(result.passed() && result.expected == test.hash && result.segments == test.segments);
    let mut memory = Memory::new(Plan::DEVICE);
    let mut service = memory.service(Plan::DEVICE);
    let mut out = Vec::new();
    let mut step = |service: &mut Service<'_, '_, FRAME>, bytes: &[u8]| {
        assert_eq!(service.feed(bytes), bytes.len());
        service.step(0, &mut |b| {
            out.extend_from_slice(b);
            b.len()
        })
    };
    step(&mut service, &request(1, &Request::SelfTest));
    step(&mut service, &request(2, &Request::SelfTest));
    step(&mut service, &request(3, &Request::Cancel(Cancel { tag: 1 })));
    let said = decode(&out);
    assert_eq!(said[0].event(), Event::Busy(Busy { tag: 1, segments: 1 }));
    assert_eq!(said[1].event(), Event::Cancelled(Cancelled { active: true }));
    assert!(matches!(said[2].event(), Event::Declined(d) if d.reason == Reason::Cancelled && d.segments == 2) && said[2].header.tag == 1);
}

#[test]
fn cancel_at_every_segment() {
    let unsolvable = "..12.4......3...";
    let solve = Solve { segments: 3, guesses: 4, ..puzzle(unsolvable, Report::Progress) };
    let whole = decode(&{
        let mut memory = Memory::new(Plan::DEVICE);
        exchange(&mut memory.service(Plan::DEVICE), &mut 0, &request(1, &Request::Solve(solve)))
    });
    let all = whole.len() as u32 - 1;
    assert!(all > 3);
    for at in 1..=all + 2 {
        let mut memory = Memory::new(Plan::DEVICE);
        let mut service = memory.service(Plan::DEVICE);
        let (mut out, mut segments) = (Vec::new(), 0);
        let mut write = |b: &[u8]| {
            out.extend_from_slice(b);
            b.len()
        };
        service.feed(&request(1, &Request::Solve(solve)));
        while segments < at {
            service.step(0, &mut write);
            segments += 1;
        }
        service.feed(&request(2, &Request::Cancel(Cancel { tag: 1 })));
        while service.step(0, &mut write) != Activity::Idle {}
        // The device is free again at once.
        service.feed(&ping(3, 8));
        service.step(0, &mut write);
        let said = decode(&out);
        let cancelled = said.iter().find(|s| s.header.tag == 2).unwrap().event();
        let last = said.iter().rfind(|s| s.header.tag == 1).unwrap().event();
        assert_eq!(said.last().unwrap().event(), Event::Pong(Ping { value: 8 }));
        let Event::Declined(d) = last else { panic!("{at}: {last:?}") };
        let active = at <= all;
        let (reason, segments) = if active { (Reason::Cancelled, at) } else { (Reason::Unsolved, all) };
        assert_eq!((cancelled, d.reason, d.segments), (Event::Cancelled(Cancelled { active }), reason, segments));
    }
}

#[test]
fn time_is_a_budget() {
    let unsolvable = "..12.4......3...";
    // One step is one millisecond, the first segment runs in the step that reads the request.
    let solve = Solve { time_ms: 5, guesses: 100, ..puzzle(unsolvable, Report::Outcome) };
    let said = ask(&request(1, &Request::Solve(solve)));
    assert!(matches!(one(&said), Event::Declined(d) if d.reason == Reason::Time && d.segments == 5 && d.ms == 5), "{said:?}");
    let enough = Solve { time_ms: 10_000, ..puzzle(PUZZLE, Report::Outcome) };
    assert!(matches!(one(&ask(&request(1, &Request::Solve(enough)))), Event::Answer(_)));
}

#[test]
fn one_puzzle_at_a_time() {
    let mut memory = Memory::new(Plan::DEVICE);
    let mut service = memory.service(Plan::DEVICE);
    let alone = decode(&exchange(&mut service, &mut 0, &request(1, &Request::Solve(puzzle(PUZZLE, Report::Trace)))));
    // Requests at every segment change nothing in the trace.
    let (mut out, mut tag) = (Vec::new(), 100);
    let mut write = |b: &[u8]| {
        out.extend_from_slice(b);
        b.len()
    };
    service.feed(&request(1, &Request::Solve(puzzle(PUZZLE, Report::Trace))));
    while service.step(0, &mut write) != Activity::Idle {
        let other = [Request::Solve(puzzle(PUZZLE, Report::Outcome)), Request::SelfTest, INFO][usize::from(tag) % 3];
        service.feed(&request(tag, &other));
        tag += 1;
    }
    let said = decode(&out);
    let mine: Vec<_> = said.iter().filter(|s| s.header.tag == 1).collect();
    assert_eq!(mine.len(), alone.len());
    for (a, b) in mine.iter().zip(&alone).take(alone.len() - 1) {
        assert_eq!(*a, b);
    }
    for s in said.iter().filter(|s| s.header.tag >= 100) {
        assert!(matches!(s.event(), Event::Busy(Busy { tag: 1, .. })) || matches!(s.event(), Event::Info(i) if i.busy), "{s:?}");
    }
}

#[test]
fn a_slow_transport_delays_but_never_damages() {
    let stream: Vec<u8> = [request(1, &INFO), request(2, &Request::Solve(puzzle(PUZZLE, Report::Trace))), ping(3, 1), ping(4, 2)].concat();
    let mut fast: Vec<Said> = Vec::new();
    for (per_step, every) in [(usize::MAX, 1), (1, 1), (3, 2), (7, 5), (64, 50)] {
        let mut memory = Memory::new(Plan::DEVICE);
        let mut service = memory.service(Plan::DEVICE);
        let (mut rest, mut out, mut steps) = (&stream[..], Vec::new(), 0u64);
        loop {
            let taken = service.feed(rest);
            rest = &rest[taken..];
            let mut room = if steps % every == 0 { per_step } else { 0 };
            steps += 1;
            let activity = service.step(0, &mut |b| {
                let taken = b.len().min(room);
                room -= taken;
                out.extend_from_slice(&b[..taken]);
                taken
            });
            if activity == Activity::Idle && rest.is_empty() {
                break;
            }
            assert!(steps < 1_000_000);
        }
        let mut said = decode(&out);
        // Answers overtake segments when the network waits, but nothing is lost or changed.
        said.sort_by_key(|s| (s.header.tag, s.header.kind));
        if fast.is_empty() {
            assert!(said.len() > 4, "{said:?}");
            fast = said;
        } else {
            assert_eq!(said, fast, "{per_step} bytes in every {every} steps");
        }
    }
}

#[test]
fn progress_is_left_out_and_the_outcome_kept_when_the_host_does_not_read() {
    let mut memory = Memory::new(Plan::DEVICE);
    let mut service = memory.service(Plan::DEVICE);
    service.feed(&request(1, &Request::Solve(puzzle("..12.4......3...", Report::Progress))));
    for _ in 0..10_000 {
        service.step(0, &mut |_| 0);
    }
    assert_eq!(service.step(0, &mut |_| 0), Activity::Blocked);
    let mut out = Vec::new();
    while service.step(0, &mut |b: &[u8]| {
        out.extend_from_slice(b);
        b.len()
    }) != Activity::Idle
    {}
    let said = decode(&out);
    assert!(said.len() <= 4 && matches!(said.last().unwrap().event(), Event::Declined(d) if d.segments > 16), "{said:?}");
    // A trace makes the network wait; the host may go.
    service.feed(&request(1, &Request::Solve(puzzle(PUZZLE, Report::Trace))));
    for _ in 0..100 {
        service.step(0, &mut |_| 0);
    }
    assert!(service.is_busy());
    service.reset();
    assert!(!service.is_busy());
    let said = decode(&exchange(&mut service, &mut 0, &ping(9, 9)));
    assert_eq!(one(&said), Event::Pong(Ping { value: 9 }));
}

#[test]
fn noise_and_half_frames_are_silent_and_counted() {
    let good = ping(1, 7);
    let mut noise = Vec::new();
    // A frame cut at every byte, then a whole one.
    for cut in 1..good.len() - 1 {
        noise.extend_from_slice(&good[..cut]);
        noise.extend_from_slice(&good);
    }
    let said = ask(&[&noise[..], &request(2, &INFO)].concat());
    assert_eq!(said.len(), good.len() - 2 + 1);
    let Event::Info(info) = said.last().unwrap().event() else { panic!() };
    // The leading zero alone is an empty frame, no damaged one.
    assert_eq!(info.frames, ((good.len() - 2 + 1) as u32, (good.len() - 3) as u32, 0));
    // Every single bit of a frame.
    for bit in 0..8 * good.len() {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let said = ask(&[&bad[..], &good].concat());
        let pongs = said.iter().filter(|s| s.event() == Event::Pong(Ping { value: 7 })).count();
        // A flipped delimiter spoils at most its own frame: the next begins with another.
        assert!((1..=2).contains(&pongs) && pongs == said.len(), "bit {bit}: {said:?}");
    }
    // Longer than any frame.
    let said = ask(&[&[1; 5000][..], &request(2, &INFO)].concat());
    assert!(matches!(one(&said), Event::Info(i) if i.frames == (1, 0, 1)));
}

#[test]
fn a_service_wants_enough_memory() {
    let network = device::network();
    let mut arena = vec![0; network.required_bytes(Plan::DEVICE) / 8];
    let mut memory = [0; 47];
    let small = Service::<FRAME>::new(network, &mut arena, Plan::DEVICE, &mut memory, BOARD);
    assert_eq!(small.unwrap_err().to_string(), "solver memory has 47 bytes, 48 are needed");
    let mut memory = [0; 48];
    let frames = Service::<100>::new(network, &mut arena, Plan::DEVICE, &mut memory, BOARD).unwrap_err();
    assert_eq!(frames, ServiceError::Frame { found: 100, needed: FRAME });
    assert!(Service::<FRAME>::new(network, &mut arena[1..], Plan::DEVICE, &mut memory, BOARD).is_err());
    let board = hrm_embedded::service::Board { firmware: "a name that is longer than forty-eight bytes, which is not allowed", ..BOARD };
    assert!(matches!(Service::<FRAME>::new(network, &mut arena, Plan::DEVICE, &mut memory, board), Err(ServiceError::Firmware { .. })));
}
