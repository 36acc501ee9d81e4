//! `hrm device`: a device solves, this program asks, checks and prints.

use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Subcommand, ValueEnum};
use hrm_core::iterate;
use hrm_core::network::Residual;
use hrm_core::task::{Grid, Sudoku};
use hrm_embedded::client::{Client, Port};
use hrm_embedded::protocol::{Event, Puzzle as Wire, Reason, Report, Segment, Solve, Task as WireTask};
use hrm_embedded::{Model, Solved};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::input::{self, Origin, Puzzle};
use super::models::Reader;
use super::rows::{self, Format, Row};
use super::solve::Effort;
use super::{colours, trace};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Serial port (`/dev/ttyACM0`, `COM3`), or `tcp:HOST:PORT` for QEMU or `hrm serve`.
    #[arg(long, value_name = "PORT")]
    port: String,
    /// Bits a second of a serial port; USB ignores it.
    #[arg(long, default_value_t = 115_200)]
    baud: u32,
    /// Seconds of silence after which the device counts as gone; a segment must take less.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    timeout: f32,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What the device is: model, memory, firmware.
    Info(InfoArgs),
    /// Solve puzzles on the device. Answers are checked here again.
    Solve(SolveArgs),
    /// Let the device run the self-test of its model file.
    Selftest,
    /// Show how the network on the device reaches its answer, segment by segment.
    Trace(TraceArgs),
}

#[derive(clap::Args)]
struct InfoArgs {
    /// Output.
    #[arg(long, value_enum, default_value_t = InfoFormat::Text)]
    format: InfoFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InfoFormat {
    Text,
    Json,
}

#[derive(clap::Args)]
struct SolveArgs {
    /// A file of puzzles, `-` for standard input, or one puzzle, as for `hrm solve`.
    #[arg(value_name = "FILE|-|PUZZLE")]
    input: Option<String>,
    /// Output, on standard output; csv has the columns question,status,answer,segments,guesses,ms. Times are those of the device.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    effort: Effort,
    /// Most milliseconds a puzzle, by the device's clock; 0: no limit.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    time: u32,
    /// The device's model file: every puzzle is solved here too, and a state hash that differs is an error.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Exit with status 3 if a puzzle was declined.
    #[arg(long)]
    strict: bool,
}

#[derive(clap::Args)]
struct TraceArgs {
    /// The puzzle: one character a cell, `.` or `0` for a blank.
    puzzle: String,
    #[command(flatten)]
    look: trace::Look,
}

fn seconds(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.1..=86_400.0).contains(&value) { Ok(value) } else { Err("expected 0.1 to 86400".to_owned()) }
}

/// [`hrm_embedded::protocol::Info`], owned.
#[derive(Clone, Serialize)]
struct About {
    firmware: String,
    protocol: u8,
    model: String,
    crc32: String,
    /// 0: a token grid.
    sudoku: u8,
    tokens: u16,
    vocab: u16,
    kernel: String,
    macs_per_segment: u64,
    model_bytes: u32,
    arena_bytes: u32,
    solver_bytes: u32,
    flash_bytes: u32,
    ram_bytes: u32,
    frame_bytes: u16,
    self_test: bool,
    frames_good: u32,
    frames_damaged: u32,
    frames_oversized: u32,
    #[serde(skip)]
    q_scale: f32,
}

impl About {
    fn read(client: &mut Client) -> anyhow::Result<Self> {
        Ok(client.info(|i| Self {
            firmware: i.firmware.to_owned(),
            protocol: i.protocol,
            model: i.model.to_owned(),
            crc32: format!("{:08x}", i.crc),
            sudoku: if let WireTask::Sudoku(n) = i.task { n } else { 0 },
            tokens: i.tokens,
            vocab: i.vocab,
            kernel: i.kernel.to_owned(),
            macs_per_segment: i.macs,
            model_bytes: i.model_bytes,
            arena_bytes: i.arena_bytes,
            solver_bytes: i.solver_bytes,
            flash_bytes: i.flash_bytes,
            ram_bytes: i.ram_bytes,
            frame_bytes: i.frame_bytes,
            self_test: i.self_test,
            frames_good: i.frames.0,
            frames_damaged: i.frames.1,
            frames_oversized: i.frames.2,
            q_scale: i.q_scale,
        })?)
    }

    /// The rules, and how puzzles are to be read.
    fn task(&self) -> anyhow::Result<(Option<Sudoku>, Reader)> {
        if self.sudoku > 0 {
            let sudoku = Sudoku::new(self.sudoku.into()).filter(|s| s.cells() == usize::from(self.tokens));
            let sudoku =
                sudoku.with_context(|| format!("the device solves Sudoku of size {}, this program knows 4, 6 and 9", self.sudoku))?;
            return Ok((Some(sudoku), Reader::Sudoku(sudoku)));
        }
        let grid = Grid::new(self.tokens, self.vocab);
        let grid =
            grid.with_context(|| format!("the device's grid of {} tokens below {} cannot be written down", self.tokens, self.vocab))?;
        Ok((None, Reader::Grid(grid)))
    }

    fn text(&self, port: &Port, out: &mut impl Write) -> io::Result<()> {
        let task = if self.sudoku > 0 { format!("Sudoku {0}x{0}", self.sudoku) } else { "token grid".to_owned() };
        let known = |bytes: u32| if bytes == 0 { "unknown".to_owned() } else { format!("{bytes} bytes") };
        writeln!(out, "{port}: {}, protocol {}", self.firmware, self.protocol)?;
        writeln!(out, "model            {}: {task}, crc32 {}, {} bytes of flash", self.model, self.crc32, self.model_bytes)?;
        writeln!(out, "code             {} of flash", known(self.flash_bytes))?;
        writeln!(out, "RAM              {}: arena {}, solver {}", known(self.ram_bytes), self.arena_bytes, self.solver_bytes)?;
        writeln!(out, "MACs a segment   {}, kernel {}", self.macs_per_segment, self.kernel)?;
        writeln!(out, "self-test        {}", if self.self_test { "in the model file" } else { "none in the model file" })?;
        writeln!(
            out,
            "frames           {} read, {} damaged, {} too long; at most {} bytes",
            self.frames_good, self.frames_damaged, self.frames_oversized, self.frame_bytes
        )
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let port = Port::parse(&args.port, args.baud)?;
    let mut client = Client::connect(port.clone(), Duration::from_secs_f32(args.timeout))?;
    let about = About::read(&mut client)?;
    match &args.command {
        Command::Info(format) => {
            let mut out = io::stdout().lock();
            match format.format {
                InfoFormat::Text => about.text(&port, &mut out)?,
                InfoFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(&about)?)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Selftest => self_test(&mut client),
        Command::Solve(args) => solve(client, &about, args),
        Command::Trace(args) => show(&mut client, &about, args),
    }
}

fn self_test(client: &mut Client) -> anyhow::Result<ExitCode> {
    let mut result = None;
    client.self_test(|event| {
        if let Event::SelfTest(test) = event {
            result = Some(*test);
        }
    })?;
    let test = result.context("the device stopped the self-test")?;
    let text = format!("expected {:016x}, found {:016x} after {} segments, {} ms", test.expected, test.found, test.segments, test.ms);
    ensure!(test.passed(), "the self-test failed: {text}");
    println!("self-test passed: {text}");
    Ok(ExitCode::SUCCESS)
}

/// A line on a terminal while a puzzle is solved; it goes when the row is printed.
struct Progress(ProgressBar);

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Progress {
    fn new() -> Self {
        let bar = if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template("{spinner} {msg} [{elapsed}]").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Self(bar)
    }

    fn show(&self, line: u64, segment: &Segment<'_>) {
        let Segment { guess, segment, changed, .. } = segment;
        self.0.set_message(format!("line {line}: guess {}, segment {segment}, {changed} changed", guess + 1));
        self.0.tick();
    }
}

fn solve(mut client: Client, about: &About, args: &SolveArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.input.is_some() || !io::stdin().is_terminal(), "give a FILE, a PUZZLE, or - for standard input");
    let (sudoku, reader) = about.task()?;
    let model = args.model.as_deref().map(Model::open).transpose()?;
    if let Some(model) = &model {
        let crc = format!("{:08x}", model.view().crc());
        ensure!(crc == about.crc32, "the device's model has the checksum {}, the model of --model {crc}", about.crc32);
    }
    let (puzzles, origin): (_, Origin) = input::open(args.input.as_deref(), reader)?;
    let rows = puzzles.map(move |puzzle| {
        let puzzle = puzzle?;
        let line = puzzle.line;
        let solved = ask(&mut client, sudoku, &puzzle, args).with_context(|| format!("line {line}"))?;
        if let Some(model) = &model {
            check(model, &puzzle, &solved, args).with_context(|| format!("line {line}"))?;
        }
        Ok(Row::new(sudoku, puzzle, solved))
    });
    rows::print(rows, args.format, &origin, args.strict)
}

/// Solves one puzzle on the device. Its answer is verified here, too.
fn ask(client: &mut Client, sudoku: Option<Sudoku>, puzzle: &Puzzle, args: &SolveArgs) -> anyhow::Result<Solved> {
    let effort = &args.effort;
    let request = Solve {
        puzzle: Wire::Tokens(&puzzle.tokens),
        segments: effort.segments,
        guesses: effort.guesses.unwrap_or(0),
        time_ms: args.time,
        seed: effort.seed,
        select: effort.select.map(|s| hrm_core::solve::Select::from(s).into()),
        report: Report::Progress,
    };
    let (progress, mut solved) = (Progress::new(), None);
    client.solve(&request, |event| match event {
        Event::Segment(segment) => progress.show(puzzle.line, segment),
        Event::Answer(a) => {
            solved = Some(Solved {
                answer: Some(a.cells.to_vec()),
                verified: a.verified,
                guess: a.guess,
                guesses: a.guesses,
                segments: a.segments,
                halt: a.halt.map(Into::into),
                confidence: a.confidence,
                hash: a.hash,
                time: Duration::from_millis(a.ms.into()),
            });
        }
        Event::Declined(d) => {
            solved = (d.reason != Reason::Cancelled).then_some(Solved {
                answer: None,
                verified: false,
                guess: 0,
                guesses: d.guesses,
                segments: d.segments,
                halt: d.halt.map(Into::into),
                confidence: 0.0,
                hash: d.hash,
                time: Duration::from_millis(d.ms.into()),
            });
        }
        _ => {}
    })?;
    let solved = solved.context("the device stopped the puzzle")?;
    if let Some(answer) = &solved.answer {
        ensure!(answer.len() == puzzle.tokens.len(), "the device answers with {} tokens, expected {}", answer.len(), puzzle.tokens.len());
        let verdict = sudoku.map(|s| s.verify(&puzzle.tokens, answer));
        ensure!(
            verdict.is_none_or(|v| v.is_valid()) && solved.verified == verdict.is_some(),
            "the device calls a grid solved that is not ({verdict:?}): do not trust its firmware"
        );
    }
    Ok(solved)
}

/// Solves the puzzle here, too: the same model, settings and seed give the same states.
fn check(model: &Model, puzzle: &Puzzle, solved: &Solved, args: &SolveArgs) -> anyhow::Result<()> {
    let here = model.solve(&puzzle.tokens, &args.effort.options(model))?;
    if solved.segments < here.segments && args.time > 0 {
        // Cut short by its clock: there is nothing to compare with.
        return Ok(());
    }
    ensure!(
        here.hash == solved.hash && here.segments == solved.segments,
        "the device computes something else: state {:016x} after {} segments, here {:016x} after {}",
        solved.hash,
        solved.segments,
        here.hash,
        here.segments
    );
    Ok(())
}

fn show(client: &mut Client, about: &About, args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let (sudoku, reader) = about.task()?;
    let puzzle = input::single(&args.puzzle, reader)?;
    let request = Solve {
        puzzle: Wire::Tokens(&puzzle.tokens),
        segments: args.look.segments,
        guesses: args.look.guess + 1,
        time_ms: 0,
        seed: args.look.seed,
        select: Some(args.look.select(sudoku).into()),
        report: Report::Trace,
    };
    let task = trace::Task { sudoku, q_scale: about.q_scale };
    let mut printer = trace::Printer::new(task, &puzzle.tokens, args.look, colours(&io::stdout()), io::stdout().lock())?;
    let mut wrong = None;
    client.solve(&request, |event| {
        if let Event::Segment(s) = event {
            if s.cells.len() == puzzle.tokens.len() {
                printer.segment(s.guess, &segment(s), s.cells);
            } else {
                wrong = Some(s.cells.len());
            }
        }
    })?;
    if let Some(found) = wrong {
        bail!("the device traces {found} cells, expected {}", puzzle.tokens.len());
    }
    printer.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn segment(s: &Segment<'_>) -> iterate::Segment {
    iterate::Segment {
        index: s.segment,
        changed: s.changed,
        q: s.q,
        residual: s.residual.map(|(change, size)| Residual { change, size }),
        hash: s.hash,
        verified: s.verified,
        halt: s.halt.map(Into::into),
    }
}
