//! What must hold of images beside their states. Each proof prints a line, and returns what does not hold.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hrm_core::format::AlignedBytes;
use hrm_core::rng::{Purpose, Stream};
use hrm_core::{FormatError, ModelView};
use hrm_embedded::protocol::{Cancel, Event, Fault, Ping, Puzzle, Report, Request, Solve, Versions};

use super::compare::{self, Case};
use super::emulator;
use super::machine::{Image, Machine};
use super::serial::{Device, frame};
use crate::budgets::Budgets;
use crate::test::Done;
use crate::{bare, cargo, size, test};

/// The board whose image most proofs run on, one whose processor has a limit of the stack, and the one with the least memory.
const BOARD: &str = "mps2-an386";
const LIMITED: &str = "mps2-an505";
const SMALL: &str = "stm32f405";

/// Builds the images that proofs run on, and runs them.
///
/// # Errors
/// Something does not hold, or an image or an emulator cannot be run.
pub fn alone() -> Result<Done> {
    for name in [BOARD, LIMITED, SMALL] {
        if let Some(why) = Machine::by_name(name)?.build()? {
            return Ok(Done::Skipped(why));
        }
    }
    let wrong = run()?;
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(Done::Passed)
}

/// Runs all proofs; returns what does not hold.
///
/// # Errors
/// An emulator cannot be run.
pub fn run() -> Result<Vec<String>> {
    let machine = Machine::by_name(BOARD)?;
    let proofs: [(&str, fn(&Machine) -> Result<String>); 7] = [
        ("no panic", no_panic),
        ("panic symbols", panics),
        ("stack overflow", overflow),
        ("damaged model", damaged),
        ("altered model", altered),
        ("noise", noise),
        ("9x9 within 192 KiB", hard),
    ];
    let mut wrong = Vec::new();
    for (name, proof) in proofs {
        match proof(&machine) {
            Ok(found) => println!("{name}: {found}"),
            Err(e) => wrong.push(format!("{name}: {e:#}")),
        }
    }
    Ok(wrong)
}

/// All that a device runs links with a panic handler that does not link: it has no way to panic. With a panic it does not link.
fn no_panic(machine: &Machine) -> Result<String> {
    let build = ["build", "--quiet", "--release", "--locked"];
    let command = |args: &[&str]| -> Result<_> {
        let mut command = bare::cargo_for(machine.target, args)?.context("the toolchain has gone")?;
        command.current_dir(cargo::root().join("firmware/no-panic"));
        Ok(command)
    };
    test::must(&mut command(&build)?)?;
    let broken = command(&[&build[..], &["--features", "panic"]].concat())?.output()?;
    let said = String::from_utf8_lossy(&broken.stderr);
    anyhow::ensure!(!broken.status.success() && said.contains("something_can_panic"), "a panic links, or fails otherwise: {said}");
    Ok("protocol, model file, network, guesses and service link without a panic handler; with a panic they do not".to_owned())
}

/// Functions of `core::panicking` in the service image, and the panic handler: as many as its budget says, which is none.
fn panics(machine: &Machine) -> Result<String> {
    let found = size::panic_symbols(&machine.image(Image::Serve))?;
    let measured = [("panic-symbols".to_owned(), found.len() as u64)].into();
    let more = Budgets::read()?.compare(machine.name, &measured);
    anyhow::ensure!(more.is_empty(), "{}: {}", more.join(", "), found.join(", "));
    Ok(format!("{} symbols of core::panicking in {}, no more than its budget", found.len(), machine.name))
}

/// A stack that overflows ends in a fault that says so: by the memory protection unit and by the stack limit of ARMv8-M.
fn overflow(machine: &Machine) -> Result<String> {
    let limited = Machine::by_name(LIMITED)?;
    for machine in [machine, &limited] {
        let said = emulator::ask(machine, Some(&model(4)), "overflow\n")?;
        let told = said.errors.contains("the stack has overflowed");
        anyhow::ensure!(said.code == Some(102) && told, "{} ended with {:?}: {}", machine.name, said.code, said.errors);
    }
    Ok(format!("{} and {} fault, and say that the stack has overflowed", machine.name, limited.name))
}

/// One bit of the region differs: the device refuses to solve and says why, in both images. An empty region is refused as well.
fn damaged(machine: &Machine) -> Result<String> {
    let mut bytes = fs::read(model(4))?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    let file = scratch(machine, "damaged.hrm", &bytes)?;
    let said = emulator::ask(machine, Some(&file), "")?;
    let told = said.lines.iter().any(|l| l.starts_with("error "));
    anyhow::ensure!(said.code == Some(103) && told, "{} runs a damaged model: {:?}", machine.name, said.lines);
    let fault = refusal(machine, &file)?;
    anyhow::ensure!(matches!(fault, Fault::NoModel { offset: 16, .. }), "a damaged model is answered by {fault:?}");
    let none = refusal(machine, &scratch(machine, "empty.hrm", &[0xff; 4096])?)?;
    anyhow::ensure!(matches!(none, Fault::NoModel { offset: 0, .. }), "an empty region is answered by {none:?}");
    Ok(format!("refused by {} ({fault})", machine.name))
}

/// What a device answers to a puzzle that it must not solve; a ping is answered all the same.
fn refusal(machine: &Machine, file: &Path) -> Result<Fault> {
    let mut device = Device::start(machine, file)?;
    device.send(&frame(1, &Request::Ping(Ping { value: 7 })))?;
    device.wait(|_, event| matches!(event, Event::Pong(p) if p.value == 7).then_some(()))?;
    device.send(&frame(2, &solve(".234341221434321")))?;
    device.wait(|header, event| match event {
        Event::Error(fault) if header.tag == 2 => Some(*fault),
        _ => None,
    })
}

/// A model with one other weight gives other states, and the comparison says where they begin to differ.
fn altered(machine: &Machine) -> Result<String> {
    let mut bytes = fs::read(model(4))?;
    // A weight in the middle of a matrix: neither -127 nor one whose change could overflow an accumulator.
    let view = AlignedBytes::new(&bytes);
    let weights = ModelView::new_checked(view.as_slice())?.block(0, 0).mlp.up.weights.as_ptr() as usize;
    let at = weights - view.as_slice().as_ptr() as usize + 100;
    bytes[at] = if bytes[at] == 0 { 1 } else { 0 };
    if let Err(FormatError::Checksum { found, .. }) = ModelView::new_checked(AlignedBytes::new(&bytes).as_slice()) {
        bytes[16..20].copy_from_slice(&found.to_le_bytes());
    }
    let case = Case { model: scratch(machine, "altered.hrm", &bytes)?, ..Case::new(4, 1, 1)? };
    let outcome = compare::run(machine, &case, &compare::host(&case)?)?;
    outcome.difference.filter(|d| d.contains("segment 1, layer H0.L0.0")).context("a weight was altered, and nobody saw where")
}

/// Random and mutated frames: after each lot the next valid request is answered. `HRM_QEMU_FRAMES` says how many (2,000).
fn noise(machine: &Machine) -> Result<String> {
    let count = std::env::var("HRM_QEMU_FRAMES").map_or(Ok(2000), |n| n.parse::<u32>()).context("HRM_QEMU_FRAMES")?;
    let mut random = Stream::new(1, Purpose::Noise, 0);
    let mut device = Device::start(machine, &model(4))?;
    for lot in 0..count.div_ceil(20) {
        let mut bytes = Vec::new();
        for _ in 0..20 {
            bytes.extend(abuse(&mut random));
        }
        // What was begun by a frame that came through unharmed is stopped, and a zero ends what was cut off.
        bytes.push(0);
        bytes.extend(frame(1, &Request::Cancel(Cancel { tag: 1 })));
        bytes.extend(frame(0xffff, &Request::Ping(Ping { value: lot })));
        device.send(&bytes)?;
        let pong = device.wait(|header, event| matches!(event, Event::Pong(p) if header.tag == 0xffff && p.value == lot).then_some(()));
        pong.with_context(|| format!("after {} frames", 20 * (lot + 1)))?;
    }
    Ok(format!("{count} random and mutated frames, {} still answers", machine.name))
}

fn abuse(random: &mut Stream) -> Vec<u8> {
    let puzzle = solve(".234341221434321");
    let valid =
        [Request::Info(Versions::OURS), Request::Ping(Ping { value: 1 }), puzzle, Request::Cancel(Cancel { tag: 1 }), Request::SelfTest];
    let mut pick = |below: usize| random.next_u32() as usize % below;
    let mut bytes = frame(1, &valid[pick(valid.len())]);
    match pick(4) {
        0 => bytes = (0..pick(300)).map(|_| pick(256) as u8).collect(),
        1 => bytes.truncate(pick(bytes.len())),
        _ => {
            for _ in 0..=pick(4) {
                let at = pick(bytes.len());
                bytes[at] = pick(256) as u8;
            }
        }
    }
    bytes
}

/// The emulated STM32F405 solves a hard puzzle within its true memories, in as many segments and with the state that the host has.
fn hard(_: &Machine) -> Result<String> {
    let machine = Machine::by_name(SMALL)?;
    let text = fs::read_to_string(cargo::root().join("firmware/puzzles/hard-9x9.txt"))?;
    let solved = text.lines().filter_map(|p| compare::solve(9, p).ok().flatten().map(|s| (s, p))).min_by_key(|(s, _)| s.segments);
    let (expected, puzzle) = solved.context("the host solves none of the hard puzzles")?;
    let mut device = Device::start(&machine, &model(9))?;
    device.send(&frame(3, &solve(puzzle)))?;
    let (answer, segments, hash) = device.wait(|header, event| match event {
        Event::Answer(a) if header.tag == 3 => Some(Ok((a.cells.to_vec(), a.segments, a.hash))),
        Event::Declined(d) if header.tag == 3 => Some(Err(anyhow::anyhow!("declined: {d:?}"))),
        Event::Error(fault) if header.tag == 3 => Some(Err(anyhow::anyhow!("{fault}"))),
        _ => None,
    })??;
    anyhow::ensure!((&answer, segments, hash) == (&expected.answer, expected.segments, expected.hash), "another answer than the host's");
    Ok(format!("{} solves {puzzle} in {segments} segments, as the host does", machine.name))
}

fn solve(text: &str) -> Request<'_> {
    Request::Solve(Solve {
        puzzle: Puzzle::Text(text),
        segments: 0,
        guesses: 0,
        time_ms: 0,
        seed: 0,
        select: None,
        report: Report::Outcome,
    })
}

fn model(size: usize) -> PathBuf {
    cargo::root().join(format!("models/sudoku-{size}x{size}.hrm"))
}

fn scratch(machine: &Machine, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let file = machine.folder().join("target").join(name);
    fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
