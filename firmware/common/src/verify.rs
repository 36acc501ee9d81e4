//! The run that is compared with the host: puzzles come in through semihosting, a hash of the state goes out after every segment.
//!
//! One request a line on the emulator's standard input, its answer on standard output, ending with `done`:
//!
//! | request | answer |
//! |---|---|
//! | `memory BYTES TILE WORDS`, as the first | nothing: the run uses so much of the arena and so many words of packed weights, as a board with less memory does |
//! | `run N PUZZLE` | `N` lines `segment I HASH INSTRUCTIONS`, then `answer TOKENS` as digits |
//! | `self-test` | `self-test HASH`, if the model's own test vector gives the state that its file says |
//! | `overflow` | recursion without end, which must end in a fault |
//! | `layers N PUZZLE` | for the `N`-th segment a line `layer PLACE HASH` after every layer |
//!
//! The first lines are `machine NAME`, `kernel NAME`, `model NAME CRC`, `memory BYTES` (arena used), the last is
//! `stack BYTES` (the most it took); in place of any of them may be `error ..`.

use core::fmt::Display;

use hrm_embedded::hrm_core::format::TaskKind;
use hrm_embedded::hrm_core::task::{PuzzleError, Sudoku};
use hrm_embedded::hrm_core::{Broken, FormatError, InputError, MemoryError, ModelView, Place, Plan, Run};
use semihosting::io::{self, Read as _};
use semihosting::{println, process};

use crate::{Board, faults, region, serve, stack};

/// Runs until the requests end, then leaves the emulator with exit code 0. The arena may lie in two memories; `packed` is as in
/// [`serve::network`].
pub fn main<B: Board>(arenas: [&mut [u64]; 2], packed: &'static mut [i32]) -> ! {
    stack::guard();
    stack::paint();
    faults::tell_the_emulator();
    B::start();
    let Err(error) = requests::<B>(arenas, packed) else { process::exit(0) };
    println!("error {}", error);
    process::exit(faults::code::ERROR)
}

/// What ends the run.
enum Error {
    Message(&'static str),
    Depth(usize),
    Model(FormatError),
    Memory(MemoryError),
    Input(InputError),
    Puzzle(PuzzleError),
    Broken(Broken),
}

impl Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Message(m) => f.write_str(m),
            Self::Depth(d) => write!(f, "the stack held {d} calls"),
            Self::Model(e) => e.fmt(f),
            Self::Memory(e) => e.fmt(f),
            Self::Input(e) => e.fmt(f),
            Self::Puzzle(e) => e.fmt(f),
            Self::Broken(e) => e.fmt(f),
        }
    }
}

fn requests<B: Board>(arenas: [&mut [u64]; 2], packed: &'static mut [i32]) -> Result<(), Error> {
    let view = region::model().map_err(Error::Model)?;
    let mut lines = Lines::new()?;
    let memory = memory::<B>(&mut lines, (serve::bytes_of(&arenas), packed.len()))?;
    let network = serve::network(view, packed.get_mut(..memory.words).unwrap_or_default());
    let plan = network.fitting(memory.plan, memory.bytes);
    println!("machine {}\nkernel {}\nmodel {} {:08x}", B::NAME, network.kernel().name(), view.header().name(), view.crc());
    println!("memory {}", network.required_bytes(plan));
    let mut run = Run::new_in(network, arenas, plan).map_err(Error::Memory)?;
    while let Some(line) = lines.next()? {
        match line {
            "self-test" => {
                self_test(&view, &mut run)?;
                continue;
            }
            "overflow" => return Err(Error::Depth(stack::overflow(0))),
            _ => {}
        }
        let mut words = line.split(' ');
        let (Some(command), Some(Ok(segments)), Some(text)) = (words.next(), words.next().map(str::parse), words.next()) else {
            return Err(Error::Message("a request has a command, a number of segments and a puzzle"));
        };
        start(&view, &mut run, text)?;
        match command {
            "run" => hashes::<B>(&mut run, segments)?,
            "layers" => layers(&mut run, segments)?,
            _ => return Err(Error::Message("the commands are run and layers")),
        }
        println!("done");
    }
    println!("stack {}", stack::most());
    Ok(())
}

/// What a run may take.
struct Memory {
    plan: Plan,
    /// Of the arena.
    bytes: usize,
    /// Of packed weights.
    words: usize,
}

/// The memory that the first request asks for, else the board's own: bytes of the arena and words of packed weights.
fn memory<B: Board>(lines: &mut Lines, all: (usize, usize)) -> Result<Memory, Error> {
    let Some(request) = lines.next()?.and_then(|line| line.strip_prefix("memory ")) else {
        lines.used = 0;
        return Ok(Memory { plan: B::PLAN, bytes: all.0, words: all.1 });
    };
    let mut numbers = request.split(' ').map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(bytes)), Some(Ok(tile)), Some(Ok(words))) if bytes <= all.0 && words <= all.1 => {
            Ok(Memory { plan: Plan { products: usize::MAX, tile, ..Plan::DEVICE }, bytes, words })
        }
        _ => Err(Error::Message("memory has bytes of the arena, rows of a tile and words of packed weights, no more than the board has")),
    }
}

/// Runs the model's own test vector.
fn self_test(view: &ModelView<'_>, run: &mut Run<'_, '_>) -> Result<(), Error> {
    let Some(test) = view.self_test() else { return Err(Error::Message("the model has no self-test vector")) };
    run.start(test.tokens, test.seed, 0).map_err(Error::Input)?;
    for _ in 0..test.segments {
        run.segment().map_err(Error::Broken)?;
    }
    if run.hash() != test.hash {
        return Err(Error::Message("the self-test of the model gives another state than its file says"));
    }
    println!("self-test {:016x}\ndone", test.hash);
    Ok(())
}

fn start(view: &ModelView<'_>, run: &mut Run<'_, '_>, text: &str) -> Result<(), Error> {
    let mut tokens = [0; 81];
    let count = usize::from(view.config().tokens);
    let sudoku = match view.header().task {
        TaskKind::Sudoku(n) => Sudoku::new(usize::from(n)),
        TaskKind::Grid => None,
    };
    let (Some(sudoku), Some(tokens)) = (sudoku, tokens.get_mut(..count)) else { return Err(Error::Message("the model solves no Sudoku")) };
    sudoku.parse(text, tokens).map_err(Error::Puzzle)?;
    run.start(tokens, 0, 0).map_err(Error::Input)
}

fn hashes<B: Board>(run: &mut Run<'_, '_>, segments: u16) -> Result<(), Error> {
    let (instructions, ticks) = B::NANOSECONDS_OF_TICKS;
    for i in 1..=segments {
        let before = B::ticks();
        run.segment().map_err(Error::Broken)?;
        let passed = u64::from(B::ticks().wrapping_sub(before));
        println!("segment {} {:016x} {}", i, run.hash(), passed * u64::from(instructions) / u64::from(ticks));
    }
    print_answer(run);
    Ok(())
}

fn print_answer(run: &Run<'_, '_>) {
    semihosting::print!("answer ");
    for &t in run.answer() {
        semihosting::print!("{}", char::from(b'0' + t.saturating_sub(1)));
    }
    println!();
}

fn layers(run: &mut Run<'_, '_>, segment: u16) -> Result<(), Error> {
    for _ in 1..segment {
        run.segment().map_err(Error::Broken)?;
    }
    run.segment_watched(Some(&mut |place: Place, hash| println!("layer {} {:016x}", place, hash))).map_err(Error::Broken)?;
    Ok(())
}

/// Lines of the standard input.
struct Lines {
    input: io::Stdin,
    buffer: [u8; 256],
    filled: usize,
    used: usize,
}

impl Lines {
    fn new() -> Result<Self, Error> {
        let input = io::stdin().map_err(|_| Error::Message("the emulator has no standard input"))?;
        Ok(Self { input, buffer: [0; 256], filled: 0, used: 0 })
    }

    /// The next line without its end; `None` at the end of the input.
    fn next(&mut self) -> Result<Option<&str>, Error> {
        self.buffer.copy_within(self.used..self.filled, 0);
        self.filled -= self.used;
        self.used = 0;
        loop {
            if let Some(end) = self.buffer[..self.filled].iter().position(|&b| b == b'\n') {
                self.used = end + 1;
                return core::str::from_utf8(&self.buffer[..end]).map(Some).map_err(|_| Error::Message("a request is text"));
            }
            if self.filled == self.buffer.len() {
                return Err(Error::Message("a request is longer than 255 bytes"));
            }
            match self.input.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Ok(None),
                Ok(n) => self.filled += n,
                Err(_) => return Err(Error::Message("the standard input cannot be read")),
            }
        }
    }
}
