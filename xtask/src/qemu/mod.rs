//! `cargo xtask qemu`: the firmware of every emulated board against the host, hash by hash, and what must hold of images beside that.

mod compare;
mod emulator;
mod install;
pub mod kernels;
pub mod machine;
mod proofs;
mod serial;

use std::fmt::Write as _;
use std::fs;

use anyhow::{Result, ensure};

use crate::boards::{BOARDS, Board};
use crate::budgets::{Budgets, CRC, Measured};
use crate::test::Done;
use compare::{Case, Outcome};
use machine::{MACHINES, Machine};

/// How much is run.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// `bench`: the kernels of every core against the scalar law, and their instructions per MAC, instead of the images. `proofs`: what must
    /// hold beside the states, alone.
    #[arg(value_parser = ["bench", "proofs"])]
    task: Option<String>,
    /// 200 puzzles of every size, instead of a few.
    #[arg(long)]
    full: bool,
    /// Write the expected hashes beside each image and the table of budgets anew, instead of comparing with them.
    #[arg(long)]
    bless: bool,
    /// This board only. A real one: its memory, on the emulated board with such a processor.
    #[arg(long)]
    machine: Option<String>,
}

/// Builds and runs the images; prints a line a machine.
///
/// # Errors
/// A machine differs from the host, from what is committed beside its image, or from its budget; an image fails.
pub fn run(options: &Options) -> Result<Done> {
    if options.task.as_deref() == Some("bench") {
        return kernels::run(options.bless, false);
    }
    if let Some(why) = install::ensure()? {
        return Ok(Done::Skipped(why));
    }
    if options.task.is_some() {
        return proofs::alone();
    }
    let wanted = |name: &str| options.machine.as_ref().is_none_or(|n| n == name);
    let boards: Vec<_> = BOARDS.iter().filter(|board| wanted(board.name)).collect();
    let machines: Vec<_> = match &options.machine {
        Some(name) if boards.is_empty() => vec![Machine::by_name(name)?],
        Some(_) => Vec::new(),
        None => MACHINES.to_vec(),
    };
    let needed = |machine: &&Machine| wanted(machine.name) || boards.iter().any(|board| board.like == machine.name);
    for machine in MACHINES.iter().filter(needed) {
        if let Some(why) = machine.build()? {
            return Ok(Done::Skipped(why));
        }
    }
    // Puzzles and segments: an emulated segment of a 9x9 is some 10^8 instructions, most of a second.
    let amounts = if options.full { [(4, 200, 4), (6, 200, 2), (9, 200, 1)] } else { [(4, 3, 3), (6, 1, 2), (9, 1, 1)] };
    let cases = amounts.into_iter().map(|(size, count, segments)| Case::new(size, count, segments)).collect::<Result<Vec<_>>>()?;
    let hosts = cases.iter().map(compare::host).collect::<Result<Vec<_>>>()?;
    for case in &cases {
        println!("{}: {} puzzles, {} segments each", case.label(), case.puzzles.len(), case.segments);
    }
    let mut budgets = Budgets::read()?;
    let mut wrong = Vec::new();
    for machine in &machines {
        let outcomes = cases.iter().zip(&hosts).map(|(case, host)| compare::run(machine, case, host)).collect::<Result<Vec<_>>>()?;
        let mut problems: Vec<String> = outcomes.iter().filter_map(|o| o.difference.clone()).collect();
        println!("{}", line(machine.name, machine.core, &cases, &outcomes, problems.is_empty()));
        if !options.full {
            problems.extend(golden(machine, &cases, &outcomes, options.bless)?);
        }
        let measured = measured(&cases, &outcomes);
        if options.bless {
            budgets.set(machine.name, &measured);
        } else {
            problems.extend(budgets.compare(machine.name, &measured));
        }
        wrong.extend(problems);
    }
    for board in boards {
        wrong.extend(imitate(board, &cases, &hosts, options.bless, &mut budgets)?);
    }
    if options.bless {
        budgets.write()?;
    }
    if options.machine.is_none() && !options.bless {
        wrong.extend(proofs::run()?);
    }
    for problem in &wrong {
        println!("{problem}");
    }
    ensure!(wrong.is_empty(), "{} differences", wrong.len());
    Ok(Done::Passed)
}

/// One puzzle of every size with the memory of a real board, on the emulated board with such a processor.
fn imitate(board: &Board, cases: &[Case], hosts: &[Vec<Vec<u64>>], bless: bool, budgets: &mut Budgets) -> Result<Vec<String>> {
    let machine = Machine::by_name(board.like)?;
    let one = |case: &Case| Case { puzzles: case.puzzles[..1].to_vec(), segments: 1, memory: Some(board.memory), ..case.clone() };
    let cases: Vec<_> = cases.iter().map(one).collect();
    let outcomes = cases.iter().zip(hosts).map(|(case, host)| compare::run(&machine, case, host)).collect::<Result<Vec<_>>>()?;
    let mut problems: Vec<String> = outcomes.iter().filter_map(|o| o.difference.clone()).collect();
    println!("{}", line(board.name, &format!("(on {})", board.like), &cases, &outcomes, problems.is_empty()));
    let measured = measured(&cases, &outcomes);
    if bless {
        budgets.set(board.name, &measured);
    } else {
        problems.extend(budgets.compare(board.name, &measured));
    }
    Ok(problems)
}

fn line(name: &str, core: &str, cases: &[Case], outcomes: &[Outcome], equal: bool) -> String {
    let mut line = format!("{name:<13} {core:<23} {:<10}", outcomes.last().map_or("", |o| &o.kernel));
    for (case, outcome) in cases.iter().zip(outcomes) {
        let millions = outcome.instructions as f64 / 1e6;
        let _ = write!(line, "  {}: {} puzzles, {millions:.2} M instructions a segment", case.label(), case.puzzles.len());
    }
    line + if equal { "  equal" } else { "  NOT EQUAL" }
}

fn measured(cases: &[Case], outcomes: &[Outcome]) -> Measured {
    let mut measured = Measured::default();
    for (case, outcome) in cases.iter().zip(outcomes) {
        measured.insert(format!("instructions-{}", case.label()), outcome.instructions);
        measured.insert(format!("arena-{}", case.label()), outcome.arena);
        measured.insert(format!("{CRC}{}", case.label()), outcome.crc);
    }
    measured.insert("stack".to_owned(), outcomes.iter().map(|o| o.stack).max().unwrap_or(0));
    measured
}

/// Compares with the hashes beside the image, or writes them.
fn golden(machine: &Machine, cases: &[Case], outcomes: &[Outcome], bless: bool) -> Result<Option<String>> {
    let mut text = String::from("# State hash after every segment. `cargo xtask qemu` compares, `cargo xtask qemu --bless` writes.\n");
    for (case, outcome) in cases.iter().zip(outcomes) {
        for (puzzle, hashes) in case.puzzles.iter().zip(&outcome.hashes) {
            let hashes: Vec<_> = hashes.iter().map(|h| format!("{h:016x}")).collect();
            let _ = writeln!(text, "{puzzle} {}", hashes.join(" "));
        }
    }
    let file = machine.folder().join("golden.txt");
    if bless {
        fs::write(&file, text)?;
        return Ok(None);
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    let first = text.lines().zip(committed.lines().chain(std::iter::repeat(""))).find(|(a, b)| a != b);
    Ok(first.map(|(found, expected)| format!("{}: found {found:?}, {} has {expected:?}", machine.name, file.display())))
}
