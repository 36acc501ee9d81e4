//! `hrm device` from outside, over TCP: against `hrm serve`, and against devices that are silent, old, damaged or lie.

mod common;
#[path = "common/device.rs"]
mod device;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{Folder, NO_WAY};
use device::{decode, ping, puzzle, request};
use hrm_embedded::protocol::frame::{Inbox, Outbox};
use hrm_embedded::protocol::{Answer, Event, Fault, Header, Ping, Report, Request, Versions};

/// Made by this project's generator: one solution.
const PUZZLE: &str = "4..11..33.......";
const ANSWER: &str = "4321124334122134";

/// A running `hrm serve` with the embedded 4x4 model.
struct Served {
    child: Child,
    port: String,
}

impl Served {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hrm"));
        command.args(["serve", "--size", "4", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("listening at ").unwrap().to_owned();
        Self { child, port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.port.strip_prefix("tcp:").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(f: &Folder, port: &str, args: &[&str]) -> common::Ran {
    f.hrm(&[&["device", "--port", port, "--timeout", "20"], args].concat())
}

/// Reads until a whole frame of this tag has come.
fn receive(stream: &mut TcpStream, tag: u16) -> Vec<device::Said> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "closed after {bytes:?}");
        bytes.extend_from_slice(&buffer[..n]);
        if bytes.last() == Some(&0) {
            let said = decode(&bytes);
            if said.iter().any(|s| s.header.tag == tag && s.event().is_last()) {
                return said;
            }
        }
    }
}

#[test]
fn a_device_answers_as_the_host_does() {
    let (f, served) = (Folder::new(), Served::start());
    let info = run(&f, &served.port, &["info", "--format", "json"]);
    let info: serde_json::Value = serde_json::from_str(&info.out).unwrap();
    assert_eq!((&info["sudoku"], &info["protocol"], &info["frames_damaged"]), (&4.into(), &1.into(), &0.into()));
    assert!(run(&f, &served.port, &["info"]).out.contains("Sudoku 4x4, crc32 "));
    let test = run(&f, &served.port, &["selftest"]);
    assert!(test.code == 0 && test.out.starts_with("self-test passed: expected "), "{test:?}");

    // Everything but the time, with answers to compare, and one puzzle without a solution.
    let other = "1234341221434321";
    f.write(
        "p.csv",
        format!("source,question,answer,rating\na,{PUZZLE},{ANSWER},0\nb,{NO_WAY},{ANSWER},0\nc,{PUZZLE},{other},1\n").as_bytes(),
    );
    let rows = |ran: &common::Ran| -> Vec<serde_json::Value> {
        let without_time = |l: &str| format!("{}}}", &l[..l.rfind(",\"ms\"").unwrap()]);
        ran.out.lines().map(|l| serde_json::from_str(&without_time(l)).unwrap()).collect()
    };
    for args in
        [&["p.csv"][..], &["p.csv", "--segments", "2", "--guesses", "3", "--seed", "9"], &[PUZZLE, "--select", "vote", "--guesses", "4"]]
    {
        let args = [&["solve", "--format", "jsonl"], args].concat();
        let (here, there) = (f.hrm(&args), run(&f, &served.port, &args));
        assert_eq!(rows(&here), rows(&there), "{args:?}");
        assert_eq!((here.code, &here.err), (there.code, &there.err));
    }
    let csv = run(&f, &served.port, &["solve", "p.csv", "--format", "csv", "--strict"]);
    let lines: Vec<&str> = csv.out.lines().collect();
    assert!(lines[0] == "question,status,answer,segments,guesses,ms" && lines[1].starts_with(&format!("{PUZZLE},solved,{ANSWER},")));
    assert_eq!((csv.code, csv.last()), (3, "solved 2 of 3, declined 1, wrong 1"));
    let text = run(&f, &served.port, &["solve", PUZZLE]);
    assert!(text.out.starts_with("4 3 | 2 1\n") && text.out.contains(&format!("solved    {ANSWER}  ")), "{text:?}");

    for more in [&[][..], &["--format", "jsonl"], &["--guess", "1", "--segments", "3"]] {
        let here = f.hrm(&[&["trace", PUZZLE], more].concat());
        let there = run(&f, &served.port, &[&["trace", PUZZLE], more].concat());
        assert_eq!((here.code, &here.out), (there.code, &there.out), "{more:?}");
    }

    // With the model at hand every state hash is compared; another model is refused.
    f.write("same.hrm", hrm_embedded::builtin::bytes(4).unwrap());
    let ran = run(&f, &served.port, &["solve", "p.csv", "--model", "same.hrm"]);
    assert_eq!((ran.code, ran.last()), (0, "solved 2 of 3, declined 1, wrong 1"));
    run(&f, &served.port, &["solve", "p.csv", "--model", "guesser.hrm"]).refused(&["the device's model has the checksum"]);
    // Bad puzzles are found before they are sent.
    run(&f, &served.port, &["solve", "1..1............"]).refused(&["column 4", "contradict"]);
    run(&f, &served.port, &["solve", "12"]).refused(&["no such file"]);
}

#[test]
fn a_host_that_vanishes_leaves_the_device_free() {
    let (f, served) = (Folder::new(), Served::start());
    let long = hrm_embedded::protocol::Solve { segments: u16::MAX, guesses: u16::MAX, ..puzzle(NO_WAY, Report::Trace) };
    for cut in [usize::MAX, 7] {
        let mut stream = served.connect();
        stream.write_all(&request(1, &Request::Solve(long))).unwrap();
        let mut byte = [0; 40];
        stream.read_exact(&mut byte).unwrap();
        // It goes in the middle of an answer, and of a request.
        let half = ping(2, 3);
        stream.write_all(&half[..cut.min(half.len())]).unwrap();
        drop(stream);
        let ran = run(&f, &served.port, &["solve", PUZZLE]);
        assert_eq!((ran.code, ran.last()), (0, "solved 1 of 1, declined 0"));
    }
}

#[test]
fn requests_while_busy_noise_and_half_frames_over_tcp() {
    let served = Served::start();
    let mut stream = served.connect();
    let long = hrm_embedded::protocol::Solve { segments: u16::MAX, guesses: u16::MAX, ..puzzle(NO_WAY, Report::Outcome) };
    stream.write_all(&request(1, &Request::Solve(long))).unwrap();
    stream.write_all(&request(2, &Request::Solve(puzzle(PUZZLE, Report::Outcome)))).unwrap();
    let busy = receive(&mut stream, 2);
    assert!(matches!(busy.last().unwrap().event(), Event::Busy(b) if b.tag == 1), "{busy:?}");
    stream.write_all(b"noise\0and more noise").unwrap();
    stream.write_all(&ping(3, 33)[..6]).unwrap();
    stream.write_all(&ping(4, 44)).unwrap();
    assert_eq!(receive(&mut stream, 4).last().unwrap().event(), Event::Pong(Ping { value: 44 }));
    let cancel = hrm_embedded::protocol::Cancel { tag: 1 };
    stream.write_all(&request(5, &Request::Cancel(cancel))).unwrap();
    let said = receive(&mut stream, 1);
    assert!(matches!(said.last().unwrap().event(), Event::Declined(d) if d.reason == hrm_embedded::protocol::Reason::Cancelled));
    stream.write_all(&request(6, &Request::Info(Versions::OURS))).unwrap();
    // The noise gave two broken frames ("noise" and what stood before the zero of the half ping), the half ping itself the third.
    let said = receive(&mut stream, 6);
    assert!(matches!(said.last().unwrap().event(), Event::Info(i) if i.frames.1 == 3 && !i.busy), "{said:?}");
}

/// A device that answers each request as `f` says, with any bytes; none: it closes the connection.
fn fake(mut f: impl FnMut(Header, &[u8]) -> Option<Vec<u8>> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("tcp:{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut inbox = Inbox::<512>::default();
        let mut buffer = [0; 512];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                rest = &rest[inbox.feed(rest)..];
                let Some((header, payload)) = inbox.message().and_then(Header::split) else { continue };
                let Some(answer) = f(header, payload) else { return };
                inbox.clear();
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        }
    });
    port
}

fn event(tag: u16, event: &Event<'_>) -> Vec<u8> {
    let mut out = Outbox::<512>::default();
    out.put(Header::new(event.kind(), tag), event).unwrap();
    out.rest().to_vec()
}

/// What the real service says about itself.
fn info(tag: u16) -> Vec<u8> {
    let mut memory = device::Memory::new(hrm_core::Plan::DEVICE);
    let mut service = memory.service(hrm_core::Plan::DEVICE);
    device::exchange(&mut service, &mut 0, &request(tag, &Request::Info(Versions::OURS)))
}

#[test]
fn devices_that_fail_are_named() {
    let f = Folder::new();
    let ask = |port: &str, args: &[&str]| f.hrm(&[&["device", "--port", port, "--timeout", "1"], args].concat());
    ask("tcp:127.0.0.1:1", &["info"]).refused(&["cannot open tcp:127.0.0.1:1"]);
    ask("/dev/no-such-port", &["info"]).refused(&["cannot open /dev/no-such-port"]);
    for wrong in ["tcp:1234", "tcp:host:port", "tcp:127.0.0.1:99999", ""] {
        ask(wrong, &["info"]).refused(&["expected tcp:HOST:PORT or the path of a serial port"]);
    }
    // Silent, or talking nonsense.
    ask(&fake(|_, _| Some(Vec::new())), &["info"]).refused(&["does not answer for 1 s"]);
    ask(&fake(|_, _| Some(b"login: \0\xff\xff\0".to_vec())), &["info"]).refused(&["does not answer for 1 s"]);
    ask(&fake(|_, _| None), &["info"]).refused(&["the device has gone"]);
    let newer = Versions { min: 4, max: 6 };
    let port = fake(move |h, _| Some(event(h.tag, &Event::Error(Fault::Version { found: 1, spoken: newer }))));
    ask(&port, &["info"]).refused(&["speaks protocol version 4 to 6, this program 1 to 1"]);
    // Noise around a sound answer does no harm.
    let noisy = fake(|h, _| Some([b"boot\0\x05\x01".to_vec(), info(h.tag), b"\x30".to_vec()].concat()));
    assert_eq!(ask(&noisy, &["info"]).code, 0);

    // It goes after the first segments, or falls silent.
    let segment = |tag| {
        let cells = [2; 16];
        let s = hrm_embedded::protocol::Segment {
            guess: 0,
            segment: 1,
            changed: 2,
            q: (0, 0),
            residual: None,
            hash: 1,
            verified: false,
            halt: None,
            cells: &cells,
        };
        event(tag, &Event::Segment(s))
    };
    let mut solves = 0;
    let vanishing = fake(move |h, _| match h.kind {
        1 => Some(info(h.tag)),
        3 if solves == 0 => {
            solves += 1;
            Some(segment(h.tag))
        }
        _ => None,
    });
    ask(&vanishing, &["solve", PUZZLE]).refused(&["the device has gone"]);
    let stuck = fake(move |h, _| {
        Some(if h.kind == 1 {
            info(h.tag)
        } else if h.kind == 3 {
            segment(h.tag)
        } else {
            Vec::new()
        })
    });
    ask(&stuck, &["solve", PUZZLE]).refused(&["does not answer for 1 s"]);
    ask(&fake(|h, _| Some(if h.kind == 1 { info(h.tag) } else { event(h.tag, &Event::Error(Fault::NoSelfTest)) })), &["selftest"])
        .refused(&["the device refuses: the model file has no self-test"]);
}

#[test]
fn a_device_that_lies_is_found_out() {
    let f = Folder::new();
    let answer = |cells: [u8; 16], verified| {
        move |h: Header, _: &[u8]| {
            let a = Answer { cells: &cells, verified, guess: 0, guesses: 1, segments: 1, halt: None, confidence: 1.0, hash: 5, ms: 1 };
            Some(if h.kind == 1 { info(h.tag) } else { event(h.tag, &Event::Answer(a)) })
        }
    };
    let right = ANSWER.bytes().map(|b| b - b'0' + 1).collect::<Vec<_>>().try_into().unwrap();
    let ask = |port: &str, more: &[&str]| run(&f, port, &[&["solve", PUZZLE], more].concat());
    assert_eq!(ask(&fake(answer(right, true)), &[]).code, 0);
    // A grid by the rules of another puzzle, one that breaks them, one that the device did not verify.
    let mut other = right;
    other.reverse();
    ask(&fake(answer(other, true)), &[]).refused(&["calls a grid solved that is not", "Given"]);
    let mut open = right;
    open[15] = 1;
    ask(&fake(answer(open, true)), &[]).refused(&["calls a grid solved that is not", "Open"]);
    ask(&fake(answer(right, false)), &[]).refused(&["calls a grid solved that is not"]);
    // A right answer from another network.
    f.write("same.hrm", hrm_embedded::builtin::bytes(4).unwrap());
    ask(&fake(answer(right, true)), &["--model", "same.hrm"]).refused(&["the device computes something else: state 0000000000000005"]);
}
