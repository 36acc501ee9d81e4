//! The service under abuse: random and mutated frames. It must not panic nor hang, answer every whole request exactly once, write whole frames only, and
//! answer the next valid request. `HRM_FUZZ_FRAMES` sets how many frames, `HRM_FUZZ_SEED` which; `docs/protocol.md` has a long run.

mod common;
#[path = "common/device.rs"]
mod device;

use std::time::Instant;

use device::{BOARD, FRAME, Memory, decode, ping};
use hrm_core::format::AlignedBytes;
use hrm_core::rng::{Purpose, Stream};
use hrm_core::task::Sudoku;
use hrm_core::task::sudoku::BLANK;
use hrm_core::{ModelView, Network, Plan};
use hrm_embedded::protocol::frame::Outbox;
use hrm_embedded::protocol::{Cancel, Event, Header, Ping, Puzzle, Report, Request, Select, Solve, Versions};
use hrm_embedded::service::Service;

/// Tags of pings that must be answered; other requests have smaller ones.
const PING_TAGS: u16 = 0x8000;

struct Random(Stream);

impl Random {
    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most + 1);
        // Zeros are as frequent as in real frames, so that many frames end.
        (0..len).map(|_| if self.below(24) == 0 { 0 } else { self.0.next_u32() as u8 }).collect()
    }

    /// A request as a host may send it, with few tags, so that cancelling meets what is under way.
    fn request(&mut self) -> (u16, Vec<u8>) {
        let tag = self.below(4) as u16;
        let puzzles = [
            common::EASY,
            common::EASY,
            common::TWO_WAYS,
            "4..11..33.......",
            "..12.4......3...",
            "................",
            "1..1............",
            "12",
            "é2..............",
        ];
        let count = [16, 16, 16, 15, 60][self.below(5)];
        let vocab = [2, 2, 2, 6, 7][self.below(5)];
        let tokens: Vec<u8> = (0..count).map(|_| self.below(vocab).max(usize::from(vocab < 7)) as u8).collect();
        let small = |r: &mut Self| [0, 1, 2, 5, u16::MAX][r.below(5)];
        let request = match self.below(8) {
            0 => Request::Info(Versions { min: self.below(3) as u8, max: self.below(4) as u8 }),
            1 => Request::Ping(Ping { value: self.0.next_u32() }),
            2 => Request::SelfTest,
            3 | 4 => Request::Cancel(Cancel { tag: self.below(4) as u16 }),
            _ => Request::Solve(Solve {
                puzzle: if self.below(2) == 0 { Puzzle::Text(puzzles[self.below(puzzles.len())]) } else { Puzzle::Tokens(&tokens) },
                segments: small(self),
                guesses: small(self),
                time_ms: [0, 0, 3, 1000][self.below(4)],
                seed: self.0.next_u64(),
                select: [None, Some(Select::Verify), Some(Select::Vote), Some(Select::Q), Some(Select::Residual), Some(Select::First)]
                    [self.below(6)],
                report: [Report::Outcome, Report::Progress, Report::Trace][self.below(3)],
            }),
        };
        let mut out = Outbox::<1024>::default();
        out.put(Header::new(request.kind(), tag), &request).unwrap();
        (tag, out.rest().to_vec())
    }

    /// Bytes that are no longer what they were.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let byte = self.0.next_u32() as u8;
            match self.below(6) {
                0 => bytes.insert(at, byte),
                1 => bytes.truncate(at),
                2 => bytes.extend_from_within(at..),
                _ if at == bytes.len() => bytes.push(byte),
                3 => drop(bytes.remove(at)),
                4 => bytes[at] ^= 1 << (byte & 7),
                _ => bytes[at] = byte,
            }
        }
    }

    /// The frame of a message that is wrong in itself: its CRC is right.
    fn sealed(&mut self) -> Vec<u8> {
        let mut message = if self.below(2) == 0 {
            let tag = self.below(4) as u8;
            let head = [[1, 1, 1, 0, 2, 255][self.below(6)], [1, 2, 3, 3, 3, 4, 5, 6, 0, 129, 200][self.below(11)], tag, 0];
            [&head[..], &self.bytes(FRAME)].concat()
        } else {
            let (_, frame) = self.request();
            let mut message = cobs::decode_vec(&frame[1..frame.len() - 1]).unwrap();
            message.truncate(message.len() - 4);
            self.mutate(&mut message);
            message
        };
        let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&message);
        message.extend_from_slice(&crc.to_le_bytes());
        [&[0][..], &cobs::encode_vec(&message), &[0]].concat()
    }

    fn frame(&mut self) -> Vec<u8> {
        match self.below(8) {
            0 => self.bytes(2 * FRAME),
            1 | 2 => self.sealed(),
            3 | 4 => self.request().1,
            5 => [self.bytes(12), self.request().1, self.bytes(12)].concat(),
            _ => {
                let mut frame = self.request().1;
                self.mutate(&mut frame);
                frame
            }
        }
    }
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

#[test]
fn random_and_mutated_frames() {
    let (frames, seed) = (variable("HRM_FUZZ_FRAMES", 200_000), variable("HRM_FUZZ_SEED", 1));
    let begin = Instant::now();
    let mut random = Random(Stream::new(seed, Purpose::Noise, 0));
    // A model of a few weights that guesses: a segment costs a microsecond, and answers, right and wrong, come often.
    let file = AlignedBytes::new(&common::guesser());
    let network = Network::reference(ModelView::new_checked(file.as_slice()).unwrap());
    let mut memory = Memory::of(&network, Plan::DEVICE);
    let mut service = Service::<FRAME>::new(network, &mut memory.arena, Plan::DEVICE, &mut memory.solver, BOARD).unwrap();
    let sudoku = Sudoku::new(4).unwrap();
    let mut answered = 0u64;
    let mut kinds = [0u64; 256];
    let mut out = Vec::new();
    for number in 0..frames {
        let (tag, value) = (PING_TAGS | number as u16, number as u32);
        let pong = Event::Pong(Ping { value });
        let stream = [random.frame(), ping(tag, value)].concat();
        let (mut rest, mut steps) = (&stream[..], 0);
        out.clear();
        let mut said;
        loop {
            let taken = service.feed(&rest[..random.below(rest.len() + 1)]);
            rest = &rest[taken..];
            service.step(number, &mut |b| {
                let taken = random.below(3 * b.len()).min(b.len());
                out.extend_from_slice(&b[..taken]);
                taken
            });
            steps += 1;
            assert!(steps < 10_000, "frame {number} of seed {seed}: no answer to the ping");
            // A frame ends with a zero, and the last one may be half written.
            if rest.is_empty() && out.last() == Some(&0) && out.len() > 1 {
                said = decode(&out);
                if said.iter().any(|s| s.header.tag == tag && s.event() == pong) {
                    break;
                }
            }
        }
        said.retain(|s| {
            kinds[usize::from(s.header.kind)] += 1;
            let event = s.event();
            if let Event::Answer(a) = event {
                assert!(a.verified && sudoku.verify(&[BLANK; 16], a.cells).is_valid(), "frame {number} of seed {seed}: {a:?}");
            }
            answered += u64::from(event.is_last());
            // A mutated request may have got the tag of the ping and run for long: its answers are others.
            s.header.tag == tag && matches!(event, Event::Pong(_))
        });
        assert_eq!(said.len(), 1, "frame {number} of seed {seed}: {said:?}");
        // Every whole request got one last answer, or is under way, or its answer waits to be written.
        let open = u64::from(service.counters().good) - answered - u64::from(service.is_busy());
        assert!(open <= 1, "frame {number} of seed {seed}: {open} requests without an answer");
    }
    let c = service.counters();
    println!(
        "{frames} frames, seed {seed}: {} whole, {} damaged, {} too long; answers by kind {:?}; {:.0} s",
        c.good,
        c.damaged,
        c.oversized,
        (129..=137).map(|k| kinds[k]).collect::<Vec<_>>(),
        begin.elapsed().as_secs_f64()
    );
    // The abuse reached everything.
    assert!((129..=137).all(|k| kinds[k] > 0) && c.damaged > frames as u32 / 8 && c.oversized > 0, "{kinds:?}");
}
