//! `cargo xtask test [FILTER]`: everything that must hold, step by step.
//!
//! A step is skipped only for what the machine cannot have (another architecture, a missing toolchain component that cannot be
//! installed); every skip is printed with its reason, and the last line counts. What is emulated waits for one core, and builds in folders of its
//! own: such steps run beside the others.

use std::env;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};

use crate::{bare, boards, callgrind, cargo, cuda, line, qemu, sanitize};

/// What became of a step that did not fail.
pub enum Done {
    /// It ran and held.
    Passed,
    /// It could not run here, for this reason.
    Skipped(String),
}

/// Steps that only run when they are named: they take longer than all others together.
const ON_REQUEST: [&str; 1] = ["tract"];

/// Steps that share no folder of build products with the rest.
const BESIDE: [&str; 7] = ["lint-firmware", "bare", "qemu", "kernels-foreign", "boards", "asan", "miri"];

impl Done {
    /// Says so if it was skipped.
    pub fn report(&self) {
        if let Self::Skipped(why) = self {
            println!("skipped: {why}");
        }
    }
}

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Done>,
}

const STEPS: &[Step] = &[
    Step { name: "format", about: "rustfmt", run: || cargo_step(&["fmt", "--all", "--check"]) },
    Step {
        name: "core",
        about: "hrm-core: kernels, format, network, tasks",
        run: || cargo_step(&["test", "-p", "hrm-core", "--features", "std,serde"]),
    },
    Step {
        name: "edge",
        about: "hrm-embedded: the hrm command and its models",
        run: || cargo_step(&["test", "--release", "-p", "hrm-embedded"]),
    },
    Step {
        name: "train",
        about: "hrm-train: data, engines, resume, quantisation",
        run: || trainer(&["--lib", "--bins", "--test", "resume"]),
    },
    Step {
        name: "xtask",
        about: "xtask and the cross-crate tests",
        run: || cargo_step(&["test", "--release", "-p", "xtask", "-p", "hrm-tests"]),
    },
    Step {
        name: "tract",
        about: "the ONNX export, run by tract, against the core",
        run: || cargo_step(&["test", "--release", "-p", "hrm-tests", "--features", "tract", "--test", "tract"]),
    },
    Step { name: "line", about: "the whole line: train, quantise, solve (4x4 and 6x6)", run: line::run },
    Step { name: "parity", about: "float models against the public implementations (libtorch)", run: || trainer(&["--test", "parity"]) },
    Step { name: "parallel", about: "several ranks train what one process trains, over gloo; NCCL where there is a GPU", run: parallel },
    Step { name: "cuda", about: "the CUDA kernels: as C++ against the core, through NVRTC, on a GPU if there is one", run: cuda::run },
    Step { name: "lint", about: "clippy without warnings", run: lint },
    Step { name: "lint-firmware", about: "clippy without warnings on the firmware of every board", run: bare::lint },
    Step { name: "docs", about: "rustdoc without warnings", run: docs },
    Step { name: "bare", about: "hrm-core on bare metal targets", run: bare::build },
    Step { name: "qemu", about: "firmware of every emulated board against the host", run: || qemu::run(&qemu::Options::default()) },
    Step {
        name: "kernels-foreign",
        about: "kernels of other processors, emulated, against the scalar law",
        run: || qemu::kernels::run(false, true),
    },
    Step { name: "boards", about: "firmware of real boards: builds, and is no larger than its budget", run: boards::run },
    Step { name: "callgrind", about: "instructions of a segment on this host, counted", run: || callgrind::run(false) },
    Step { name: "asan", about: "the x86 kernels under AddressSanitizer", run: sanitize::run },
    Step { name: "miri", about: "parser and scalar path under Miri", run: miri },
];

/// Runs the steps whose name contains `filter` (all without one).
///
/// # Errors
/// A step failed, or no step has such a name.
pub fn run(filter: Option<&str>) -> Result<()> {
    let wanted = |s: &&Step| filter.map_or(!ON_REQUEST.contains(&s.name), |f| s.name.contains(f));
    let chosen: Vec<_> = STEPS.iter().filter(wanted).collect();
    ensure!(
        !chosen.is_empty(),
        "no step is named {:?}: the steps are {}",
        filter,
        STEPS.iter().map(|s| s.name).collect::<Vec<_>>().join(", ")
    );
    let several = filter.is_none() && thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    let (beside, here): (Vec<&Step>, Vec<&Step>) = chosen.into_iter().partition(|s| several && BESIDE.contains(&s.name));
    if !beside.is_empty() {
        println!("beside the others, shown at the end: {}", BESIDE.join(", "));
    }
    let mut report = Report::default();
    thread::scope(|scope| {
        let lane = scope.spawn(|| beside.iter().map(|step| apart(step.name)).collect::<Vec<_>>());
        for step in here {
            println!("== {}: {}", step.name, step.about);
            let start = Instant::now();
            let done = (step.run)();
            match &done {
                Ok(Done::Passed) => println!("== {}: passed in {:.0} s", step.name, start.elapsed().as_secs_f64()),
                Ok(Done::Skipped(why)) => println!("== {}: skipped, {why}", step.name),
                Err(error) => println!("== {}: FAILED: {error:#}", step.name),
            }
            report.add(step.name, done);
        }
        let apart = lane.join().map_err(|_| anyhow!("the steps beside the others panicked"))?;
        for (step, (said, done)) in beside.iter().zip(apart) {
            print!("{said}");
            report.add(step.name, done);
        }
        Ok::<_, Error>(())
    })?;
    if filter.is_none() {
        println!("not asked for: {} (cargo xtask test NAME)", ON_REQUEST.join(", "));
    }
    report.finish()
}

/// Runs a step in a process of its own, which keeps what it prints together; that, and what became of it.
fn apart(name: &str) -> (String, Result<Done>) {
    let output = env::current_exe().and_then(|xtask| Command::new(xtask).args(["test", name]).stdin(Stdio::null()).output());
    let output = match output.with_context(|| format!("{name} cannot be started")) {
        Ok(output) => output,
        Err(error) => return (format!("{error:#}\n"), Err(error)),
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let why = said.lines().find_map(|line| line.strip_prefix("skipped ")?.strip_prefix(name)?.strip_prefix(": "));
    let done = match why {
        _ if !output.status.success() => Err(anyhow!("{}", output.status)),
        Some(why) => Ok(Done::Skipped(why.to_owned())),
        None => Ok(Done::Passed),
    };
    (said, done)
}

/// What became of all steps.
#[derive(Default)]
struct Report {
    passed: usize,
    failed: Vec<&'static str>,
    skipped: Vec<(&'static str, String)>,
}

impl Report {
    fn add(&mut self, name: &'static str, done: Result<Done>) {
        match done {
            Ok(Done::Passed) => self.passed += 1,
            Ok(Done::Skipped(why)) => self.skipped.push((name, why)),
            Err(_) => self.failed.push(name),
        }
    }

    fn finish(self) -> Result<()> {
        for (name, why) in &self.skipped {
            println!("skipped {name}: {why}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len());
        if self.failed.is_empty() { Ok(()) } else { bail!("failed: {}", self.failed.join(", ")) }
    }
}

/// Runs a command that must succeed.
///
/// # Errors
/// It cannot be started or fails.
pub fn must(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{} cannot be started", command.get_program().to_string_lossy()))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

fn cargo_step(args: &[&str]) -> Result<Done> {
    must(cargo::command().args(args))?;
    Ok(Done::Passed)
}

/// Tests of the trainer. That it builds without libtorch the steps `line` and `lint` show.
fn trainer(args: &[&str]) -> Result<Done> {
    must(&mut cargo::test_trainer(args)?)?;
    Ok(Done::Passed)
}

fn parallel() -> Result<Done> {
    trainer(&["--test", "parallel"])?;
    trainer(&["--lib", "parallel::", "--", "--nocapture"])
}

fn lint() -> Result<Done> {
    must(cargo::command().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    must(cargo::command().args(["clippy", "-p", "hrm-core", "--all-targets", "--features", "std,serde", "--", "-D", "warnings"]))?;
    must(cargo::command().args(["clippy", "-p", "hrm-train", "--features", "cuda", "--", "-D", "warnings"]))?;
    must(cargo::with_libtorch()?.args([
        "clippy",
        "-p",
        "hrm-train",
        "--release",
        "--features",
        cargo::EVERYTHING,
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    Ok(Done::Passed)
}

fn docs() -> Result<Done> {
    must(cargo::command().env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps"]))?;
    Ok(Done::Passed)
}

/// The integration tests: they cover parser and scalar path with models small enough for an interpreter.
fn miri() -> Result<Done> {
    let probe = cargo::plain("cargo").args(["+nightly", "miri", "--version"]).output();
    if !probe.is_ok_and(|o| o.status.success()) {
        return Ok(Done::Skipped("no nightly toolchain with Miri (rustup toolchain install nightly --component miri)".into()));
    }
    let mut tests = cargo::plain("cargo");
    tests.env("MIRIFLAGS", "-Zmiri-disable-isolation").args(["+nightly", "miri", "test", "-p", "hrm-core", "--features", "std"]);
    must(tests.args(["format", "kernels", "network", "numerics"].iter().flat_map(|name| ["--test", name])))?;
    Ok(Done::Passed)
}
