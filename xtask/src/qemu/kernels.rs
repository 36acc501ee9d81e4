//! `cargo xtask qemu bench`: the kernels of every emulated core against the scalar law, and their instructions per multiply-accumulate.
//!
//! The image is `firmware/kernels`. Instructions are exact and the same on every host, so the totals of a whole segment are committed beside
//! it, and one that grows by more than 2 % is an error. `CMSIS_NN_DIR`, a checkout of CMSIS-NN, has its product counted beside ours.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::install;
use crate::test::{Done, must};
use crate::{bare, cargo, totals};

/// An emulated core.
struct Core {
    name: &'static str,
    /// Feature of the image, which names the memory of the machine.
    feature: Option<&'static str>,
    target: &'static str,
    flags: &'static str,
    qemu: (&'static str, &'static [&'static str]),
}

const ARM: &str = "qemu-system-arm";
const CORES: [Core; 7] = [
    Core { name: "Cortex-M3", feature: Some("an385"), target: "thumbv7m-none-eabi", flags: "", qemu: (ARM, &["mps2-an385"]) },
    Core { name: "Cortex-M4F", feature: Some("an386"), target: "thumbv7em-none-eabihf", flags: "", qemu: (ARM, &["mps2-an386"]) },
    Core { name: "Cortex-M7", feature: Some("an500"), target: "thumbv7em-none-eabihf", flags: "", qemu: (ARM, &["mps2-an500"]) },
    Core {
        name: "Cortex-M33",
        feature: Some("an505"),
        target: "thumbv8m.main-none-eabihf",
        flags: "-C target-cpu=cortex-m33",
        qemu: (ARM, &["mps2-an505"]),
    },
    Core {
        name: "Cortex-M55",
        feature: Some("an547"),
        target: "thumbv8m.main-none-eabihf",
        flags: "-C target-cpu=cortex-m55",
        qemu: (ARM, &["mps3-an547"]),
    },
    Core {
        name: "RV32IMC",
        feature: None,
        target: "riscv32imc-unknown-none-elf",
        flags: "",
        qemu: ("qemu-system-riscv32", &["virt", "-bios", "none"]),
    },
    Core {
        name: "RV32IMC with V",
        feature: None,
        target: "riscv32imc-unknown-none-elf",
        flags: "-C target-feature=+v",
        qemu: ("qemu-system-riscv32", &["virt", "-cpu", "rv32,v=true,vlen=128", "-bios", "none"]),
    },
];

/// What runs the image where it only checks: user-mode emulation, or an engine of WebAssembly. They have no exact counter.
struct Checker {
    name: &'static str,
    kernels: &'static [&'static str],
    target: &'static str,
    flags: &'static str,
    /// Name of the built program.
    file: &'static str,
    program: &'static str,
    args: &'static [&'static str],
}

/// Calls the exported function of a module and prints its result as the other images do.
const NODE: &str = "const fs = require('fs'); WebAssembly.instantiate(fs.readFileSync(process.argv[1]), {})\
    .then(m => { const n = m.instance.exports.check(); console.log('kernel simd128\\ncheck ' + n); process.exit(n > 0 ? 0 : 1); })";

const CHECKERS: [Checker; 2] = [
    Checker {
        name: "AArch64",
        kernels: &["neon", "i8mm"],
        target: "aarch64-unknown-none",
        flags: "-C target-feature=+dotprod,+i8mm",
        file: "hrm-kernels-image",
        program: "qemu-aarch64",
        args: &[],
    },
    Checker {
        name: "WebAssembly",
        kernels: &["simd128"],
        target: "wasm32-unknown-unknown",
        flags: "-C target-feature=+simd128",
        file: "hrm-kernels-image.wasm",
        program: "node",
        args: &["-e", NODE],
    },
];

/// What an image counted: by kernel and plan of memory, instructions and MACs of a segment; by kernel and part, those of a part.
#[derive(Default)]
struct Counts {
    segments: BTreeMap<(String, String), (u64, u64)>,
    parts: Vec<(String, String, u64, u64)>,
    comparisons: u64,
}

/// Builds and runs the image on every core; prints the tables unless `quiet`. With `bless` the totals are written anew.
///
/// # Errors
/// A kernel differs from the law, a state differs between kernels, a total has grown, or an image cannot be built or run.
pub fn run(bless: bool, quiet: bool) -> Result<Done> {
    if let Some(why) = install::ensure()? {
        return Ok(Done::Skipped(why));
    }
    let mut found = BTreeMap::new();
    for core in &CORES {
        let cmsis = core.feature.filter(|_| env::var_os("CMSIS_NN_DIR").is_some()).map(|machine| format!("{machine},cmsis-nn"));
        let Some(image) = build(core.target, core.flags, cmsis.as_deref().or(core.feature), "hrm-kernels-image")? else {
            return Ok(Done::Skipped(format!("no standard library for {}", core.target)));
        };
        let counts = read(&execute(core, &image)?).with_context(|| format!("what the image said on {}", core.name))?;
        println!("{}: {} comparisons with the scalar law, all equal", core.name, counts.comparisons);
        if !quiet {
            print(&counts);
        }
        for ((kernel, plan), (instructions, _)) in &counts.segments {
            found.insert(format!("{} {kernel} {plan}", core.name), *instructions);
        }
    }
    for checker in &CHECKERS {
        check(checker)?;
    }
    let head = "Instructions of one segment of the 9x9 model (`wide`: of models/sudoku-9x9-wide.hrm, roomy): core, kernel, memory. `cargo xtask qemu bench --bless` writes this.";
    totals::settle(&cargo::root().join("firmware/kernels/totals.txt"), head, &found, bless)?;
    Ok(Done::Passed)
}

/// Builds the image for a target; `None` where no standard library can be had.
fn build(target: &str, flags: &str, feature: Option<&str>, file: &str) -> Result<Option<PathBuf>> {
    let manifest = cargo::root().join("firmware/kernels/Cargo.toml");
    let mut args = vec!["build", "--release", "--quiet", "--manifest-path", manifest.to_str().context("a path that is not UTF-8")?];
    if let Some(feature) = feature {
        args.extend(["--features", feature]);
    }
    let Some(mut command) = bare::cargo_for(target, &args)? else { return Ok(None) };
    must(command.env("RUSTFLAGS", flags))?;
    Ok(Some(bare::target_dir().join(target).join("release").join(file)))
}

/// Runs a checker; says why where it cannot.
fn check(c: &Checker) -> Result<()> {
    let there = Command::new(c.program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !there {
        println!("{}: skipped, {} is not installed", c.name, c.program);
        return Ok(());
    }
    let Some(image) = build(c.target, c.flags, None, c.file)? else {
        println!("{}: skipped, no standard library for {}", c.name, c.target);
        return Ok(());
    };
    let output = Command::new(c.program).args(c.args).arg(image).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{} cannot be started", c.program))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {text}{}", c.name, String::from_utf8_lossy(&output.stderr));
    for kernel in c.kernels {
        ensure!(text.lines().any(|l| l.strip_prefix("kernel ") == Some(kernel)), "{} does not run {kernel}: {text}", c.name);
    }
    let comparisons: u64 = text.lines().find_map(|l| l.strip_prefix("check ")).and_then(|n| n.parse().ok()).unwrap_or(0);
    ensure!(comparisons > 0, "{} compared nothing: {text}", c.name);
    println!("{}: {comparisons} comparisons with the scalar law, all equal", c.name);
    Ok(())
}

fn execute(core: &Core, image: &PathBuf) -> Result<String> {
    let (program, machine) = core.qemu;
    let mut command = Command::new(program);
    command.arg("-M").args(machine).args(["-display", "none", "-monitor", "none", "-serial", "null", "-icount", "shift=0"]);
    command.args(["-semihosting-config", "enable=on,target=native", "-kernel"]).arg(image).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("{program} cannot be started"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}: {}{}", core.name, text, String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

fn read(text: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut hashes = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["check", n] => counts.comparisons = n.parse()?,
            ["part", kernel, instructions, work, what @ ..] => {
                counts.parts.push(((*kernel).to_owned(), what.join(" "), instructions.parse()?, work.parse()?));
            }
            ["segment", kernel, plan, instructions, macs, hash] => {
                if *plan != "wide" {
                    hashes.insert((*hash).to_owned(), format!("{kernel} {plan}"));
                }
                counts.segments.insert(((*kernel).to_owned(), (*plan).to_owned()), (instructions.parse()?, macs.parse()?));
            }
            ["kernel", _] | ["done"] => {}
            _ => bail!("{line}"),
        }
    }
    ensure!(text.lines().last() == Some("done"), "the image stopped early");
    ensure!(hashes.len() == 1, "states differ: {hashes:?}");
    ensure!(counts.comparisons > 0, "nothing was compared");
    Ok(counts)
}

fn print(counts: &Counts) {
    for ((kernel, plan), (instructions, macs)) in &counts.segments {
        let ratio = *instructions as f64 / *macs as f64;
        println!("  {kernel:<10} segment, memory {plan:<7} {:>8.2} M instructions, {ratio:.3} a MAC", *instructions as f64 / 1e6);
    }
    for (kernel, what, instructions, work) in counts.parts.iter().filter(|p| p.0 != "reference") {
        println!("  {kernel:<10} {what:<30} {:.3}", *instructions as f64 / *work as f64);
    }
}
