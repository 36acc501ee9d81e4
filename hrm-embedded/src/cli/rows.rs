//! What came out of the puzzles: text, CSV or JSON lines, the count and the exit status.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::ValueEnum;
use hrm_core::iterate::Halt;
use hrm_core::task::{Solutions, Sudoku, count_solutions};
use hrm_embedded::Solved;
use serde::Serialize;

use super::board;
use super::input::{Origin, Puzzle};
use super::models::text;

/// Placements that the exact solver may spend to tell whether a puzzle has one solution: about a twentieth of a second at most.
const CHECK_BUDGET: u32 = 20_000;
/// Exit status of `--strict` when a puzzle was declined.
const DECLINED: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Csv,
    Jsonl,
}

/// One puzzle's outcome.
pub(super) struct Row {
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
    /// `sudoku`: the task's rules, if it has any. An answer that they do not accept is not shown.
    pub(super) fn new(sudoku: Option<Sudoku>, puzzle: Puzzle, solved: Solved) -> Self {
        let trusted = solved.answer.as_deref().filter(|_| solved.verified || sudoku.is_none());
        let answer = trusted.map(|tokens| text(sudoku, tokens));
        let correct = puzzle.answer.as_ref().zip(trusted).map(|(right, found)| right == found);
        let solutions = sudoku.and_then(|s| count_solutions(s, &puzzle.tokens, 2, CHECK_BUDGET, &mut [0; 81]).ok());
        let board = board::marked(sudoku, trusted.unwrap_or(&puzzle.tokens), &[], false);
        Self { answer, correct, solutions, board, puzzle, solved }
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

/// Prints the rows as they come, then the count on standard error; returns the exit status.
///
/// # Errors
/// The first row that is an error; those before it are printed.
pub(super) fn print(
    rows: impl Iterator<Item = anyhow::Result<Row>>,
    format: Format,
    origin: &Origin,
    strict: bool,
) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    if format == Format::Csv {
        writeln!(out, "question,status,answer,segments,guesses,ms")?;
    }
    let (mut all, mut solved, mut wrong, mut scored) = (0u64, 0u64, 0u64, false);
    for row in rows {
        let row = row?;
        all += 1;
        solved += u64::from(row.answer.is_some());
        scored |= row.puzzle.answer.is_some();
        wrong += u64::from(row.correct == Some(false));
        match format {
            Format::Text => row.text(&mut out, origin)?,
            Format::Csv => csv(&row, &mut out)?,
            Format::Jsonl => writeln!(out, "{}", serde_json::to_string(&row.json())?)?,
        }
        // The text has it beside the answer; a csv has no column for it.
        if let Some(note) = row.note().filter(|_| format == Format::Csv) {
            eprintln!("note: line {}: {note}", row.puzzle.line);
        }
    }
    out.flush()?;
    let declined = all - solved;
    let wrong = if scored { format!(", wrong {wrong}") } else { String::new() };
    eprintln!("solved {solved} of {all}, declined {declined}{wrong}");
    Ok(if strict && declined > 0 { ExitCode::from(DECLINED) } else { ExitCode::SUCCESS })
}

fn csv(row: &Row, out: &mut impl Write) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let (segments, guesses, ms) = (row.solved.segments.to_string(), row.solved.guesses.to_string(), format!("{:.3}", row.ms()));
    writer.write_record([&row.puzzle.question, row.status(), row.answer.as_deref().unwrap_or(""), &segments, &guesses, &ms])?;
    out.write_all(&writer.into_inner()?)?;
    Ok(())
}
