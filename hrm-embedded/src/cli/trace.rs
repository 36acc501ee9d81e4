//! `hrm trace`: one guess, segment by segment.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::ValueEnum;
use hrm_core::iterate::{Policy, Segment};
use hrm_core::solve::{Options, Perturb, Select};
use hrm_core::task::Sudoku;
use hrm_embedded::Workspace;
use serde::Serialize;

use super::board::{self, Mark};
use super::models::{Models, text};
use super::rows::halt_name;
use super::{colours, input};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The puzzle: one character a cell, `.` or `0` for a blank.
    puzzle: String,
    /// Model file [default: the embedded model of the puzzle's size].
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    look: Look,
}

/// What to look at, and how it is printed.
#[derive(Clone, Copy, clap::Args)]
pub(super) struct Look {
    /// Output: boards, or one JSON object a segment.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Most segments.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub segments: u16,
    /// Which guess to show, from 0.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..u16::MAX as i64))]
    pub guess: u16,
    /// Seed of starts and symmetries.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl Look {
    /// With the verifier an earlier guess may end the run before the one that is asked for; the largest halt output is known after all.
    pub(super) fn select(&self, sudoku: Option<Sudoku>) -> Select {
        if self.guess == 0 && sudoku.is_some() { Select::Verify } else { Select::Q }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Jsonl,
}

/// What is known about the model.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub sudoku: Option<Sudoku>,
    /// Value of one unit of a Q output.
    pub q_scale: f32,
}

/// One segment as JSON.
#[derive(Serialize)]
struct Line {
    guess: u16,
    segment: u16,
    answer: String,
    changed: u16,
    /// Halt and continue outputs as the network gives them, and the halt output (less the continue output) as a logit.
    q: [i32; 2],
    q_logit: f32,
    residual: Option<f32>,
    /// Surplus digits over all rows, columns and boxes; none without rules.
    conflicts: Option<u32>,
    verified: bool,
    halt: Option<String>,
    hash: String,
}

impl Line {
    fn new(task: &Task, guess: u16, segment: &Segment, tokens: &[u8]) -> Self {
        let halt = if segment.verified { Some("verified".into()) } else { segment.halt.map(halt_name) };
        Self {
            guess,
            segment: segment.index,
            answer: text(task.sudoku, tokens),
            changed: segment.changed,
            q: [segment.q.0, segment.q.1],
            q_logit: (f64::from(segment.q.0) - f64::from(segment.q.1)) as f32 * task.q_scale,
            residual: segment.residual.map(|r| r.ratio()),
            conflicts: task.sudoku.map(|s| s.conflicts(tokens)),
            verified: segment.verified,
            halt,
            hash: format!("{:016x}", segment.hash),
        }
    }

    fn heading(&self) -> String {
        let mut out = format!("segment {}: {} changed, Q {:+.2}", self.segment, self.changed, self.q_logit);
        if let Some(r) = self.residual {
            out += &format!(", residual {r:.4}");
        }
        if let Some(c) = self.conflicts {
            out += &format!(", conflicts {c}");
        }
        out + &format!(", state {}", self.hash)
    }
}

/// Prints the segments of one guess as they come.
pub(super) struct Printer<'a, W> {
    task: Task,
    puzzle: &'a [u8],
    look: Look,
    colour: bool,
    before: Vec<u8>,
    /// How the guess ended, and after how many segments.
    end: Option<(String, u16)>,
    failed: Option<io::Error>,
    out: W,
}

impl<'a, W: Write> Printer<'a, W> {
    pub(super) fn new(task: Task, puzzle: &'a [u8], look: Look, colour: bool, mut out: W) -> io::Result<Self> {
        if look.format == Format::Text {
            writeln!(out, "{}\n", paint(task.sudoku, puzzle, puzzle, puzzle, colour))?;
        }
        Ok(Self { task, puzzle, look, colour, before: puzzle.to_vec(), end: None, failed: None, out })
    }

    /// Prints a segment, unless it is of another guess. The guess ends where `hrm solve` would end it: at the first verified answer.
    pub(super) fn segment(&mut self, guess: u16, segment: &Segment, tokens: &[u8]) {
        if guess != self.look.guess || self.end.is_some() || self.failed.is_some() {
            return;
        }
        let verified = self.task.sudoku.is_some_and(|s| s.verify(self.puzzle, tokens).is_valid());
        let line = Line::new(&self.task, guess, &Segment { verified, ..*segment }, tokens);
        let written = match self.look.format {
            Format::Jsonl => serde_json::to_string(&line).map_err(io::Error::from).and_then(|json| writeln!(self.out, "{json}")),
            Format::Text => {
                let board = paint(self.task.sudoku, self.puzzle, &self.before, tokens, self.colour);
                writeln!(self.out, "{}\n{board}\n", line.heading())
            }
        };
        self.failed = written.err();
        self.before = tokens.to_vec();
        self.end = line.halt.map(|halt| (halt, line.segment));
    }

    /// Says how the guess ended.
    ///
    /// # Errors
    /// The output failed, or the guess did not run to its end.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let guess = self.look.guess;
        match (self.failed, self.end) {
            (Some(e), _) => return Err(e.into()),
            (None, None) => bail!("guess {guess} did not run"),
            (None, Some((halt, segments))) if self.look.format == Format::Text => {
                writeln!(self.out, "guess {guess} ended after {segments} segments: {halt}")?;
            }
            (None, Some(_)) => {}
        }
        Ok(self.out.flush()?)
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let models = Models::new(args.model.as_deref())?;
    let puzzle = input::single(&args.puzzle, models.reader())?;
    let model = models.for_tokens(puzzle.tokens.len())?;
    let task = Task { sudoku: model.sudoku(), q_scale: model.view().heads().q_scale };
    let Look { segments, guess, seed, .. } = args.look;
    let options = Options {
        policy: Policy::budget(segments),
        guesses: guess + 1,
        select: args.look.select(task.sudoku),
        // The guesses are those of `hrm solve`, whoever selects.
        perturb: if task.sudoku.is_some() { Perturb::Assume } else { Perturb::Auto },
        seed,
        ..model.default_options()
    };
    let mut printer = Printer::new(task, &puzzle.tokens, args.look, colours(&io::stdout()), io::stdout().lock())?;
    model.solve_in(&mut Workspace::default(), &puzzle.tokens, &options, |solver, event| {
        printer.segment(event.guess, &event.segment, &solver.answer_now().to_vec());
    })?;
    printer.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn paint(sudoku: Option<Sudoku>, puzzle: &[u8], before: &[u8], now: &[u8], colour: bool) -> String {
    let conflicts = sudoku.map(|s| board::conflicts(s, now)).unwrap_or_default();
    let marks: Vec<Mark> = (0..now.len())
        .map(|i| Mark {
            given: sudoku.is_some_and(|s| s.digit(puzzle[i]).is_some()),
            changed: before[i] != now[i],
            conflict: conflicts.get(i).copied().unwrap_or(false),
        })
        .collect();
    board::marked(sudoku, now, &marks, colour)
}
