//! `cargo xtask size`: flash and RAM of every image, read from its ELF file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags, SectionKind};

use crate::boards::BOARDS;
use crate::budgets::{Budgets, Measured};
use crate::qemu::machine::{Image, MACHINES};
use crate::test::Done;

/// Which images, and what is done with their sizes.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// Only the images of real boards, not those of emulated ones.
    #[arg(long)]
    pub boards: bool,
    /// Write the budgets instead.
    #[arg(long)]
    pub bless: bool,
}

/// Prints the table, and compares it with the budgets or writes them.
///
/// # Errors
/// An image cannot be built or read, or takes more than its budget.
pub fn run(options: &Options) -> Result<Done> {
    println!("{:<13} {:>12} {:>12} {:>14}", "image", "flash (code)", "flash (all)", "RAM (static)");
    let mut budgets = Budgets::read()?;
    let mut wrong = Vec::new();
    let mut judge = |name: &str, measured: &Measured| {
        println!("{name:<13} {:>12} {:>12} {:>14}", measured["code"], measured["flash"], measured["ram"]);
        if options.bless {
            budgets.set(name, measured);
        } else {
            wrong.extend(budgets.compare(name, measured));
        }
    };
    for machine in MACHINES.iter().filter(|_| !options.boards) {
        if let Some(why) = machine.build()? {
            return Ok(Done::Skipped(why));
        }
        let image = machine.image(Image::Serve);
        let mut measured = sizes(&image)?;
        measured.insert("panic-symbols".to_owned(), panic_symbols(&image)?.len() as u64);
        judge(machine.name, &measured);
    }
    for board in &BOARDS {
        if let Some(why) = board.build()? {
            return Ok(Done::Skipped(why));
        }
        judge(board.name, &sizes(&board.image())?);
    }
    println!("The model comes on top of flash, and lies in a region of its own. Static RAM holds the arena.");
    if options.bless {
        budgets.write()?;
    }
    wrong.iter().for_each(|w| println!("{w}"));
    ensure!(wrong.is_empty(), "{} budgets exceeded", wrong.len());
    Ok(Done::Passed)
}

/// Bytes of code, of everything in flash, and of RAM that the program has from the start, without the stack.
fn sizes(elf: &Path) -> Result<Measured> {
    let bytes = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| elf.display().to_string())?;
    let (mut code, mut flash, mut ram) = (0, 0, 0);
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & u64::from(object::elf::SHF_ALLOC) == 0 {
            continue;
        }
        let writable = sh_flags & u64::from(object::elf::SHF_WRITE) != 0;
        let stored = section.kind() != SectionKind::UninitializedData;
        code += if section.kind() == SectionKind::Text { section.size() } else { 0 };
        flash += if stored { section.size() } else { 0 };
        // The stack of a RISC-V image is a section, which on an ESP32-C3 takes what the rest leaves.
        ram += if writable && section.name() != Ok(".stack") { section.size() } else { 0 };
    }
    Ok([("code", code), ("flash", flash), ("ram", ram)].map(|(n, v)| (n.to_owned(), v)).into())
}

/// The functions of `core::panicking`, and the panic handler, that an image has.
///
/// # Errors
/// It cannot be read, or has no symbols.
pub fn panic_symbols(elf: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| elf.display().to_string())?;
    let names: Vec<_> = file.symbols().filter_map(|s| s.name().ok()).collect();
    ensure!(names.iter().any(|n| n.contains("main")), "{} has no symbols to look at", elf.display());
    Ok(names.iter().filter(|n| n.contains("9panicking") || n.contains("rust_begin_unwind")).map(|n| (*n).to_owned()).collect())
}
