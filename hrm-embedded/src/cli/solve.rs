//! `hrm solve`: answers, one a puzzle, in input order.

use std::io::{self, IsTerminal as _, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use hrm_core::iterate::{Halt, Policy};
use hrm_core::solve::{Options, Select};
use hrm_core::task::{Solutions, count_solutions};
use hrm_embedded::parallel::ordered;
use hrm_embedded::{Model, Solved, Workspace};
use serde::Serialize;

use super::backend::Engine;
use super::input::{self, Origin, Puzzle};
use super::models::{Models, text};
use super::{Backend, board};

/// Placements that the exact solver may spend to tell whether a puzzle has one solution: about a twentieth of a second at most.
const CHECK_BUDGET: u32 = 20_000;
/// Exit status of `--strict` when a puzzle was declined.
const DECLINED: u8 = 3;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A file of puzzles, `-` for standard input, or one puzzle. One puzzle a line (`.` or `0` for a blank), or a CSV with the header
    /// source,question,answer,rating, whose answers are then compared; either may be compressed with gzip.
    #[arg(value_name = "FILE|-|PUZZLE")]
    input: Option<String>,
    /// Model file [default: the embedded model of the puzzle's size].
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Output, on standard output; csv has the columns question,status,answer,segments,guesses,ms.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Most segments of the first guess. With the verifier the others get half as many, else as many.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    segments: u16,
    /// Most guesses a puzzle [default: 64 with a verifier, else 1].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    guesses: Option<u16>,
    /// How the answer is chosen among the guesses [default: verify, or first for tasks without a verifier].
    #[arg(long, value_enum)]
    select: Option<SelectArg>,
    /// Seed of starts and symmetries: the same seed gives the same answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Worker threads [default: all cores].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// What computes the segments; answers and state hashes are the same.
    #[arg(long, value_enum, default_value_t = Backend::Core)]
    backend: Backend,
    /// For --backend tract: what `hrm-train export --onnx MODEL.hrm --out FILE` wrote [default: --model with the extension .onnx].
    #[arg(long, value_name = "FILE")]
    onnx: Option<PathBuf>,
    /// Exit with status 3 if a puzzle was declined.
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Csv,
    Jsonl,
}

/// [`Select`] on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SelectArg {
    /// The first answer that the task's verifier accepts.
    Verify,
    /// The answer that most guesses end with.
    Vote,
    /// The answer of the largest halt output.
    Q,
    /// The answer of the smallest residual.
    Residual,
    /// The first guess.
    First,
}

impl From<SelectArg> for Select {
    fn from(s: SelectArg) -> Self {
        match s {
            SelectArg::Verify => Self::Verify,
            SelectArg::Vote => Self::Vote,
            SelectArg::Q => Self::Q,
            SelectArg::Residual => Self::Residual,
            SelectArg::First => Self::First,
        }
    }
}

/// What the workers need of the arguments.
#[derive(Clone, Copy)]
struct Settings {
    segments: u16,
    guesses: Option<u16>,
    select: Option<SelectArg>,
    seed: u64,
}

impl Settings {
    fn options(&self, model: &Model) -> Options {
        let default = model.default_options();
        Options {
            policy: Policy::budget(self.segments),
            guesses: self.guesses.unwrap_or(default.guesses),
            select: self.select.map_or(default.select, Select::from),
            seed: self.seed,
            ..default
        }
    }
}

/// One puzzle's outcome.
struct Row {
    puzzle: Puzzle,
    solved: Solved,
    /// The answer as text, where it may be shown.
    answer: Option<String>,
    /// Whether it is the answer of the CSV.
    correct: Option<bool>,
    /// How many solutions the puzzle has; none without rules to count by.
    solutions: Option<Solutions>,
    /// The board, for a puzzle from the command line.
    board: String,
}

/// A line of `--format jsonl`.
#[derive(Serialize)]
struct Json<'a> {
    line: u64,
    question: &'a str,
    status: &'a str,
    answer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correct: Option<bool>,
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    solutions: Option<&'a str>,
    segments: u32,
    guesses: u16,
    guess: u16,
    halt: Option<String>,
    confidence: f32,
    hash: String,
    ms: f64,
}

impl Row {
    fn new(models: &Models, engine: &Engine, workspace: &mut Workspace, settings: &Settings, puzzle: Puzzle) -> anyhow::Result<Self> {
        let model = models.for_tokens(puzzle.tokens.len())?;
        let options = settings.options(model);
        let solved = engine.solve(model, workspace, &puzzle.tokens, &options)?;
        let trusted = solved.trusted(model);
        let answer = trusted.map(|tokens| text(model, tokens));
        let correct = puzzle.answer.as_ref().zip(trusted).map(|(right, found)| right == found);
        let solutions = model.sudoku().and_then(|s| count_solutions(s, &puzzle.tokens, 2, CHECK_BUDGET, &mut [0; 81]).ok());
        let board = board::marked(model, trusted.unwrap_or(&puzzle.tokens), &[], false);
        Ok(Self { answer, correct, solutions, board, puzzle, solved })
    }

    fn status(&self) -> &'static str {
        if self.answer.is_some() { "solved" } else { "declined" }
    }

    fn ms(&self) -> f64 {
        (self.solved.time.as_secs_f64() * 1e6).round() / 1e3
    }

    /// What should be known about the puzzle beside the outcome.
    fn note(&self) -> Option<&'static str> {
        match (self.solutions?, self.answer.is_some()) {
            (Solutions::Exactly(0), _) => Some("the puzzle has no solution"),
            (Solutions::AtLeast(2..), true) => Some("the puzzle has two or more solutions; this is one of them"),
            (Solutions::AtLeast(2..), false) => Some("the puzzle has two or more solutions"),
            _ => None,
        }
    }

    fn text(&self, out: &mut impl Write, origin: &Origin) -> io::Result<()> {
        if matches!(origin, Origin::Puzzle) {
            writeln!(out, "{}", self.board)?;
        }
        let (segments, guesses) =
            (count(self.solved.segments, "segment", "segments"), count(self.solved.guesses.into(), "guess", "guesses"));
        let dash = "-".repeat(self.puzzle.question.chars().count());
        write!(out, "{:8}  {}  {segments}, {guesses}, {} ms", self.status(), self.answer.as_ref().unwrap_or(&dash), self.ms())?;
        if self.correct == Some(false) {
            write!(out, ", not the answer given")?;
        }
        match self.note() {
            Some(note) => writeln!(out, ": {note}"),
            None => writeln!(out),
        }
    }

    fn json(&self) -> Json<'_> {
        let solutions = self.solutions.map(|s| match s {
            Solutions::Exactly(0) => "none",
            Solutions::Exactly(1) => "one",
            Solutions::Exactly(_) | Solutions::AtLeast(_) | Solutions::Unknown(2..) => "several",
            Solutions::Unknown(_) => "unknown",
        });
        Json {
            line: self.puzzle.line,
            question: &self.puzzle.question,
            status: self.status(),
            answer: self.answer.as_deref(),
            correct: self.correct,
            verified: self.solved.verified,
            solutions,
            segments: self.solved.segments,
            guesses: self.solved.guesses,
            guess: self.solved.guess,
            halt: self.solved.halt.map(halt_name),
            confidence: self.solved.confidence,
            hash: format!("{:016x}", self.solved.hash),
            ms: self.ms(),
        }
    }
}

fn count(n: u32, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Why a guess stopped, in a word or two.
pub(super) fn halt_name(halt: Halt) -> String {
    match halt {
        Halt::Verified => "verified".into(),
        Halt::Cycle { period: 1 } => "fixed point".into(),
        Halt::Cycle { period } => format!("cycle of {period}"),
        Halt::QHead => "q head".into(),
        Halt::Stable => "stable".into(),
        Halt::Budget => "budget".into(),
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.input.is_some() || !io::stdin().is_terminal(), "give a FILE, a PUZZLE, or - for standard input (see `hrm solve --help`)");
    let models = Models::new(args.model.as_deref())?;
    let given = args.model.as_deref().zip(models.given().map(AsRef::as_ref));
    let engine = Engine::new(args.backend, args.onnx.as_deref(), given)?;
    if models.given().is_some_and(|m| m.sudoku().is_none() && args.select == Some(SelectArg::Verify)) {
        bail!("{}", hrm_core::solve::SolveError::NoVerifier);
    }
    let (puzzles, origin) = input::open(args.input.as_deref(), models.reader())?;
    let threads = args.threads.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let threads = if matches!(origin, Origin::Puzzle) { NonZeroUsize::MIN } else { threads };
    let settings = Settings { segments: args.segments, guesses: args.guesses, select: args.select, seed: args.seed };
    let models = Arc::new(models);
    let rows = ordered(puzzles, threads, move |workspace: &mut Workspace, puzzle: anyhow::Result<Puzzle>| {
        let puzzle = puzzle?;
        let line = puzzle.line;
        Row::new(&models, &engine, workspace, &settings, puzzle).map_err(|e| e.context(format!("line {line}")))
    });
    let mut out = io::stdout().lock();
    if args.format == Format::Csv {
        writeln!(out, "question,status,answer,segments,guesses,ms")?;
    }
    let (mut all, mut solved, mut wrong, mut scored) = (0u64, 0u64, 0u64, false);
    for row in rows {
        let row = row?;
        all += 1;
        solved += u64::from(row.answer.is_some());
        scored |= row.puzzle.answer.is_some();
        wrong += u64::from(row.correct == Some(false));
        match args.format {
            Format::Text => row.text(&mut out, &origin)?,
            Format::Csv => csv(&row, &mut out)?,
            Format::Jsonl => writeln!(out, "{}", serde_json::to_string(&row.json())?)?,
        }
        // The text has it beside the answer; a csv has no column for it.
        if let Some(note) = row.note().filter(|_| args.format == Format::Csv) {
            eprintln!("note: line {}: {note}", row.puzzle.line);
        }
    }
    out.flush()?;
    let declined = all - solved;
    let wrong = if scored { format!(", wrong {wrong}") } else { String::new() };
    eprintln!("solved {solved} of {all}, declined {declined}{wrong}");
    Ok(if args.strict && declined > 0 { ExitCode::from(DECLINED) } else { ExitCode::SUCCESS })
}

fn csv(row: &Row, out: &mut impl Write) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let (segments, guesses, ms) = (row.solved.segments.to_string(), row.solved.guesses.to_string(), format!("{:.3}", row.ms()));
    writer.write_record([&row.puzzle.question, row.status(), row.answer.as_deref().unwrap_or(""), &segments, &guesses, &ms])?;
    out.write_all(&writer.into_inner()?)?;
    Ok(())
}
