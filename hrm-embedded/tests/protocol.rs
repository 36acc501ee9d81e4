//! The test vectors of `docs/protocol.md`, byte for byte, both ways.

#[path = "common/device.rs"]
mod device;

use device::{decode, puzzle};
use hrm_embedded::protocol::frame::Outbox;
use hrm_embedded::protocol::{
    Answer, Busy, Cancel, Cancelled, Declined, Event, Fault, Header, Info, Ping, Puzzle, Reason, Report, Request, Segment, Select,
    SelfTest, Solve, Stop, Task, Unit, Versions,
};

const SPECIFICATION: &str = include_str!("../../docs/protocol.md");
const CELLS: [u8; 16] = [5, 4, 3, 2, 2, 3, 5, 4, 4, 5, 2, 3, 3, 2, 4, 5];

fn requests() -> Vec<(&'static str, u16, Request<'static>)> {
    let text = puzzle("4..11..33.......", Report::Outcome);
    let tokens = Solve {
        puzzle: Puzzle::Tokens(&[5, 1, 1, 2, 2, 1, 1, 4, 4, 1, 1, 1, 1, 1, 1, 1]),
        segments: 300,
        guesses: 4,
        time_ms: 60_000,
        seed: 7,
        select: Some(Select::Vote),
        report: Report::Trace,
    };
    vec![
        ("request info", 1, Request::Info(Versions::OURS)),
        ("request ping", 0x1234, Request::Ping(Ping { value: 300 })),
        ("request solve, text", 2, Request::Solve(text)),
        ("request solve, tokens", 3, Request::Solve(tokens)),
        ("request cancel", 4, Request::Cancel(Cancel { tag: 3 })),
        ("request self-test", 5, Request::SelfTest),
    ]
}

fn events() -> Vec<(&'static str, u16, Event<'static>)> {
    let info = Info {
        protocol: 1,
        versions: Versions::OURS,
        firmware: "board 1.0",
        model: "sudoku-4x4",
        crc: 0xB256_B52B,
        task: Task::Sudoku(4),
        tokens: 16,
        vocab: 6,
        q_scale: 0.25,
        kernel: "reference",
        macs: 6_686_752,
        model_bytes: 50_176,
        arena_bytes: 15_968,
        solver_bytes: 48,
        flash_bytes: 0,
        ram_bytes: 65_536,
        frame_bytes: 192,
        self_test: true,
        busy: false,
        frames: (9, 1, 0),
    };
    let segment = Segment {
        guess: 0,
        segment: 1,
        changed: 12,
        q: (23_250_648, -1),
        residual: Some((300, 70_000)),
        hash: 0x94BE_C3FC_502E_9577,
        verified: true,
        halt: Some(Stop::Verified),
        cells: &CELLS,
    };
    let answer = Answer {
        cells: &CELLS,
        verified: true,
        guess: 0,
        guesses: 1,
        segments: 1,
        halt: Some(Stop::Cycle(2)),
        confidence: 1.0,
        hash: 0x94BE_C3FC_502E_9577,
        ms: 150,
    };
    let declined = Declined { reason: Reason::Time, guesses: 4, segments: 50, halt: None, hash: 1, ms: 60_001 };
    let test = SelfTest { expected: 0xAB41_7300_4AC0_E0AE, found: 0xAB41_7300_4AC0_E0AE, segments: 4, ms: 12 };
    let givens = Fault::Givens { digit: 1, first: (1, 1), second: (1, 4), unit: Unit::Row };
    vec![
        ("event info", 1, Event::Info(info)),
        ("event pong", 0x1234, Event::Pong(Ping { value: 300 })),
        ("event segment", 3, Event::Segment(segment)),
        ("event answer", 3, Event::Answer(answer)),
        ("event declined", 3, Event::Declined(declined)),
        ("event cancelled", 4, Event::Cancelled(Cancelled { active: true })),
        ("event self-test", 5, Event::SelfTest(test)),
        ("event busy", 6, Event::Busy(Busy { tag: 3, segments: 50 })),
        ("event error, version", 7, Event::Error(Fault::Version { found: 2, spoken: Versions::OURS })),
        ("event error, givens", 8, Event::Error(givens)),
    ]
}

/// The frame that the specification gives for this name.
fn specified(name: &str) -> Option<Vec<u8>> {
    let line = SPECIFICATION.lines().find_map(|l| l.strip_prefix(&format!("    {name}: ")))?;
    line.split(' ').map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
}

#[test]
fn vectors_of_the_specification() {
    let mut differing = Vec::new();
    let mut compare = |name: &str, out: &Outbox<512>| {
        let frame = out.rest();
        if specified(name).as_deref() != Some(frame) {
            let hex: Vec<String> = frame.iter().map(|b| format!("{b:02x}")).collect();
            differing.push(format!("    {name}: {}", hex.join(" ")));
        }
        let said = decode(frame);
        assert_eq!(said.len(), 1, "{name}");
        said
    };
    for (name, tag, message) in requests() {
        let mut out = Outbox::default();
        out.put(Header::new(message.kind(), tag), &message).unwrap();
        let said = compare(name, &out);
        assert_eq!(said[0].header, Header::new(message.kind(), tag));
        assert_eq!(Request::read(said[0].header.kind, &said[0].payload), Ok(message), "{name}");
    }
    for (name, tag, message) in events() {
        let mut out = Outbox::default();
        out.put(Header::new(message.kind(), tag), &message).unwrap();
        let said = compare(name, &out);
        assert_eq!((said[0].header, said[0].event()), (Header::new(message.kind(), tag), message), "{name}");
    }
    assert!(differing.is_empty(), "docs/protocol.md should say\n{}", differing.join("\n"));
}

/// The largest messages fit into the frames that are promised for them.
#[test]
fn frames_hold_the_largest_messages() {
    fn check<const N: usize>(cells: &[u8]) {
        let longest = |length| "x".repeat(length);
        let (firmware, model, kernel) = (longest(48), longest(32), longest(16));
        let Event::Info(info) = events()[0].2 else { panic!() };
        let most = Info {
            firmware: &firmware,
            model: &model,
            kernel: &kernel,
            task: Task::Sudoku(255),
            tokens: u16::MAX,
            vocab: u16::MAX,
            macs: u64::MAX,
            model_bytes: u32::MAX,
            arena_bytes: u32::MAX,
            solver_bytes: u32::MAX,
            flash_bytes: u32::MAX,
            ram_bytes: u32::MAX,
            frame_bytes: u16::MAX,
            frames: (u32::MAX, u32::MAX, u32::MAX),
            ..info
        };
        let segment = Segment {
            guess: u16::MAX,
            segment: u16::MAX,
            changed: u16::MAX,
            q: (i32::MIN, i32::MIN),
            residual: Some((u64::MAX, u64::MAX)),
            hash: u64::MAX,
            verified: true,
            halt: Some(Stop::Cycle(u16::MAX)),
            cells,
        };
        let answer = Answer {
            cells,
            verified: true,
            guess: u16::MAX,
            guesses: u16::MAX,
            segments: u32::MAX,
            halt: Some(Stop::Cycle(u16::MAX)),
            confidence: 1.0,
            hash: u64::MAX,
            ms: u32::MAX,
        };
        let solve = Solve {
            puzzle: Puzzle::Tokens(cells),
            segments: u16::MAX,
            guesses: u16::MAX,
            time_ms: u32::MAX,
            seed: u64::MAX,
            select: Some(Select::First),
            report: Report::Trace,
        };
        let mut out = Outbox::<N>::default();
        for event in [Event::Info(most), Event::Segment(segment), Event::Answer(answer)] {
            out.put(Header::new(event.kind(), u16::MAX), &event).unwrap();
        }
        let request = Request::Solve(solve);
        out.put(Header::new(request.kind(), u16::MAX), &request).unwrap();
        // A byte less would be too few for one of them.
        assert!(Outbox::<32>::default().put(Header::new(131, 0), &Event::Segment(segment)).is_err());
    }
    use hrm_embedded::protocol::frame_capacity;
    check::<{ frame_capacity(16) }>(&[255; 16]);
    check::<{ frame_capacity(81) }>(&[255; 81]);
    check::<{ frame_capacity(255) }>(&[255; 255]);
    check::<{ frame_capacity(4096) }>(&[255; 4096]);
}
