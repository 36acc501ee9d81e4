//! `hrm bench`: how fast kernels and models are on this machine.

mod parts;

use std::hint::black_box;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::ensure;
use hrm_core::format::TaskKind;
use hrm_core::iterate::Policy;
use hrm_core::kernels::{Columns, Requant};
use hrm_core::solve::{Options, Perturb, Select};
use hrm_core::{Aligned, Broken, Kernel, Schedule, testing};
use hrm_embedded::engine::chosen_kernel;
use hrm_embedded::{Model, Workspace, builtin};
use serde::Serialize;

use parts::{PartFigure, breakdown};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Model file to measure [default: the embedded models, or a random one of the usual shape where there are none].
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Time for each figure, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    time: u64,
}

/// Everything that is printed.
#[derive(Serialize)]
struct Report {
    machine: Machine,
    chosen: Chosen,
    kernels: Vec<KernelFigure>,
    models: Vec<ModelFigure>,
}

#[derive(Serialize)]
struct Machine {
    cpu: String,
    /// Clock while this ran, from a chain of dependent instructions.
    ghz: f64,
    arch: &'static str,
    cores: usize,
    version: &'static str,
}

#[derive(Serialize)]
struct Chosen {
    kernel: &'static str,
    why: &'static str,
}

/// A matrix product with its requantisation, `[m, k]` times `[n, k]` transposed, on one thread.
#[derive(Serialize)]
struct KernelFigure {
    name: &'static str,
    m: usize,
    k: usize,
    n: usize,
    gmacs: f64,
    macs_per_cycle: f64,
    /// Of the kernel's multiply instruction on registers alone, measured beside it. None: the kernel has no such loop.
    percent_of_peak: Option<f64>,
    vs_reference: f64,
}

/// A model on one kernel and one thread, always the full number of segments.
#[derive(Serialize)]
struct ModelFigure {
    name: String,
    kernel: &'static str,
    segments: u16,
    puzzles: usize,
    puzzles_per_second: f64,
    ms_p50: f64,
    ms_p99: f64,
    gmacs: f64,
    /// Time that the model's MACs would take at the best rate measured for this kernel above, of the time taken.
    percent_of_mac_time: f64,
    /// Where the time goes, in microseconds a segment, for the kernel in use.
    parts: Vec<PartFigure>,
}

/// The shapes of the matrix figures, and those of the structured 9x9 models.
const SHAPES: [(usize, usize, usize); 5] = [(81, 128, 128), (81, 512, 512), (81, 512, 1536), (729, 48, 192), (729, 96, 48)];
/// Segments of a model run.
const SEGMENTS: u16 = 16;

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let budget = Duration::from_millis(args.time);
    let chosen = chosen_kernel()?;
    let forced = env::var_os("HRM_KERNEL").is_some_and(|v| !v.is_empty());
    let why = match forced {
        true => "HRM_KERNEL names it",
        false if chosen == Kernel::REFERENCE => "this build knows no faster one for this CPU",
        false => "the fastest that this CPU's features allow",
    };
    let kernels: Vec<Kernel> = if forced { vec![chosen] } else { Kernel::available().collect() };
    let mut figures = Vec::new();
    let ghz = clock(budget);
    let peaks: Vec<Option<f64>> = kernels.iter().map(|&k| peak(k, budget)).collect();
    for (m, k, n) in SHAPES {
        let reference = rate(Kernel::REFERENCE, m, k, n, budget)?;
        for (&kernel, peak) in kernels.iter().zip(&peaks) {
            let gmacs = if kernel == Kernel::REFERENCE { reference } else { rate(kernel, m, k, n, budget)? };
            figures.push(KernelFigure {
                name: kernel.name(),
                m,
                k,
                n,
                gmacs,
                macs_per_cycle: gmacs / ghz,
                percent_of_peak: peak.map(|peak| 100.0 * gmacs / peak),
                vs_reference: gmacs / reference,
            });
        }
    }
    let mut models = Vec::new();
    for (name, model) in measured_models(args.model.as_deref())? {
        for &kernel in &kernels {
            let best = figures.iter().filter(|f| f.name == kernel.name()).map(|f| f.gmacs).fold(0.0, f64::max);
            models.push(figure(&name, &model.with_kernel(kernel)?, best, budget, kernel == chosen)?);
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let machine = Machine { cpu: cpu(), ghz, arch: env::consts::ARCH, cores, version: env!("CARGO_PKG_VERSION") };
    let report = Report { machine, chosen: Chosen { kernel: chosen.name(), why }, kernels: figures, models };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?
    } else {
        report.text(&mut out)?
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let Machine { cpu, ghz, arch, cores, .. } = &self.machine;
        writeln!(out, "{cpu}, {arch}, {cores} cores, {ghz:.2} GHz; one thread for all figures")?;
        writeln!(out, "kernel in use: {} ({})\n", self.chosen.kernel, self.chosen.why)?;
        let head = ["kernel", "m", "k", "n", "GMAC/s", "MAC/cycle", "of peak", "vs reference"];
        let [kernel, m, k, n, gmacs, cycle, peak, vs] = head;
        writeln!(out, "{kernel:12} {m:>5} {k:>5} {n:>5} {gmacs:>9} {cycle:>10} {peak:>8} {vs:>13}")?;
        for f in &self.kernels {
            let peak = f.percent_of_peak.map_or_else(|| "-".to_owned(), |p| format!("{p:.1} %"));
            let (name, rate, cycle, vs) = (f.name, f.gmacs, f.macs_per_cycle, f.vs_reference);
            writeln!(out, "{name:12} {:>5} {:>5} {:>5} {rate:>9.2} {cycle:>10.2} {peak:>8} {vs:>12.1}x", f.m, f.k, f.n)?;
        }
        writeln!(
            out,
            "\n{:24} {:12} {:>9} {:>9} {:>10} {:>9} {:>12}",
            "model", "kernel", "ms p50", "ms p99", "puzzles/s", "GMAC/s", "of MAC time"
        )?;
        for m in &self.models {
            writeln!(
                out,
                "{:24} {:12} {:>9.3} {:>9.3} {:>10.1} {:>9.2} {:>10.1} %",
                m.name, m.kernel, m.ms_p50, m.ms_p99, m.puzzles_per_second, m.gmacs, m.percent_of_mac_time
            )?;
        }
        for m in self.models.iter().filter(|m| !m.parts.is_empty()) {
            writeln!(out, "\nTime of a segment of {} with {}:", m.name, m.kernel)?;
            m.parts.iter().try_for_each(|part| writeln!(out, "{}", part.text()))?;
        }
        writeln!(out, "\nA model figure is one guess of {SEGMENTS} segments, without stopping at an answer.")
    }
}

/// Clock in GHz, from the fastest of many rounds of a chain of rotations and additions: two cycles a link on every CPU of today.
fn clock(budget: Duration) -> f64 {
    const LINKS: u32 = 10_000;
    let seconds = fastest(budget, || {
        let mut x = black_box(1u64);
        for _ in 0..LINKS {
            x = x.rotate_left(7).wrapping_add(0x9E37);
        }
        black_box(x);
    });
    2.0 * f64::from(LINKS) / seconds / 1e9
}

/// GMAC/s of the kernel's multiply instruction on registers alone.
fn peak(kernel: Kernel, budget: Duration) -> Option<f64> {
    let (macs, _) = kernel.multiply_only(500)?;
    let seconds = fastest(budget, || {
        black_box(kernel.multiply_only(black_box(500)));
    });
    Some(macs as f64 / seconds / 1e9)
}

/// Seconds of the fastest of the rounds that fill the budget: short rounds, some of which nothing interrupts.
fn fastest(budget: Duration, mut f: impl FnMut()) -> f64 {
    let mut seconds = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed() < budget {
        let round = Instant::now();
        f();
        seconds = seconds.min(round.elapsed().as_secs_f64());
    }
    seconds
}

/// GMAC/s of one product with its requantisation: the best of several rounds that fill the budget.
fn rate(kernel: Kernel, m: usize, k: usize, n: usize, budget: Duration) -> Result<f64, Broken> {
    let byte = |i: usize| ((i * 2_654_435_761) >> 13) as i8;
    let a: Vec<i8> = (0..m * k).map(byte).collect();
    let weights: Vec<i8> = (0..n * k).map(|i| byte(i + 7).max(-127)).collect();
    let mut packed = Aligned::new(kernel.packed_words(n, k));
    kernel.pack(&Columns::new(&weights, n, 0, k, &[]), &mut packed)?;
    let columns = Columns::new(&weights, n, 0, k, &packed);
    let (mult, bias) = (vec![1 << 20; n], vec![0; n]);
    let requant = Requant { shift: 4, mult: &mult, bias: &bias };
    let mut out = vec![0i16; m * n];
    let mut done = Ok(());
    let seconds = fastest(budget, || {
        done = kernel.project(black_box(&a), &columns, &requant, None, &mut out);
        black_box(&out);
    });
    done?;
    Ok((m * k * n) as f64 / seconds / 1e9)
}

/// Latencies over starts of a nearly empty puzzle (what a puzzle says does not matter for the time), and where it goes if `parts` are asked
/// for.
fn figure(name: &str, model: &Model, best_gmacs: f64, budget: Duration, parts: bool) -> anyhow::Result<ModelFigure> {
    // One given, so that the grid stays legal.
    let mut puzzle = vec![1; usize::from(model.config().tokens)];
    puzzle[0] = 2.min(model.config().vocab as u8 - 1);
    let policy = Policy { fixed_point: false, ..Policy::budget(SEGMENTS) };
    let of = |seed| Options { policy, guesses: 1, select: Select::First, perturb: Perturb::Auto, noise: 0, seed };
    let mut workspace = Workspace::default();
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < 3 || begin.elapsed() < budget {
        let solved = model.solve_in(&mut workspace, &puzzle, &of(times.len() as u64), |_, _| {})?;
        ensure!(solved.segments == u32::from(SEGMENTS), "{name}: {} segments were run, not {SEGMENTS}", solved.segments);
        times.push(solved.time.as_secs_f64());
    }
    let total: f64 = times.iter().sum();
    times.sort_by(f64::total_cmp);
    // The nearest rank.
    let percentile = |p: f64| times[((p * times.len() as f64).ceil() as usize).clamp(1, times.len()) - 1] * 1e3;
    let macs = f64::from(SEGMENTS) * model.view().segment_macs(Schedule::Cached) as f64;
    let gmacs = macs * times.len() as f64 / total / 1e9;
    Ok(ModelFigure {
        name: name.to_owned(),
        kernel: model.kernel().name(),
        segments: SEGMENTS,
        puzzles: times.len(),
        puzzles_per_second: times.len() as f64 / total,
        ms_p50: percentile(0.5),
        ms_p99: percentile(0.99),
        gmacs,
        percent_of_mac_time: 100.0 * gmacs / best_gmacs,
        parts: if parts { breakdown(model, &puzzle, &of(0), budget)? } else { Vec::new() },
    })
}

fn measured_models(path: Option<&Path>) -> anyhow::Result<Vec<(String, Model)>> {
    if let Some(path) = path {
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        return Ok(vec![(name, Model::open(path)?)]);
    }
    let mut models = Vec::new();
    for size in builtin::sizes() {
        models.push((format!("sudoku-{size}x{size}"), Model::builtin(usize::from(size))?));
    }
    if models.is_empty() {
        let file = testing::random_model(&testing::sudoku_config(), 1)?;
        let model = Model::from_bytes(file.as_slice())?;
        debug_assert_eq!(model.view().header().task, TaskKind::Sudoku(9));
        models.push(("random sudoku-9x9".to_owned(), model));
    }
    Ok(models)
}

/// The CPU's name where the system tells it.
fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()));
    name.unwrap_or_else(|| "unknown CPU".to_owned())
}
