//! `hrm trace`: one guess, segment by segment.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::ValueEnum;
use hrm_core::iterate::{Policy, Segment};
use hrm_core::solve::{Options, Perturb, Select};
use hrm_embedded::{Model, Workspace};
use serde::Serialize;

use super::board::{self, Mark};
use super::models::{Models, text};
use super::solve::halt_name;
use super::{colours, input};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The puzzle: one character a cell, `.` or `0` for a blank.
    puzzle: String,
    /// Model file [default: the embedded model of the puzzle's size].
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Output: boards, or one JSON object a segment.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Most segments.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    segments: u16,
    /// Which guess to show, from 0.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..u16::MAX as i64))]
    guess: u16,
    /// Seed of starts and symmetries.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Jsonl,
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
    fn new(model: &Model, guess: u16, segment: &Segment, tokens: &[u8]) -> Self {
        let halt = if segment.verified { Some("verified".into()) } else { segment.halt.map(halt_name) };
        Self {
            guess,
            segment: segment.index,
            answer: text(model, tokens),
            changed: segment.changed,
            q: [segment.q.0, segment.q.1],
            q_logit: (f64::from(segment.q.0) - f64::from(segment.q.1)) as f32 * model.view().heads().q_scale,
            residual: segment.residual.map(|r| r.ratio()),
            conflicts: model.sudoku().map(|s| s.conflicts(tokens)),
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

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let models = Models::new(args.model.as_deref())?;
    let puzzle = input::single(&args.puzzle, models.reader())?;
    let model = models.for_tokens(puzzle.tokens.len())?;
    let mut out = io::stdout().lock();
    let done = show(args, model, &puzzle.tokens, &mut out)?;
    if args.format == Format::Text {
        writeln!(out, "{done}")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the segments of the guess; returns how it ended. It ends where `hrm solve` would end it: at the first verified answer.
fn show(args: &Args, model: &Model, puzzle: &[u8], out: &mut impl Write) -> anyhow::Result<String> {
    // With the verifier an earlier guess may end the run before the one that is asked for; a vote runs them all.
    let select = match (args.guess, model.sudoku()) {
        (0, Some(_)) => Select::Verify,
        _ => Select::Vote,
    };
    let policy = Policy::budget(args.segments);
    // The guesses are those of `hrm solve`, whoever selects.
    let perturb = if model.sudoku().is_some() { Perturb::Assume } else { Perturb::Auto };
    let options = Options { policy, guesses: args.guess + 1, select, seed: args.seed, perturb, ..model.default_options() };
    let colour = colours(&io::stdout());
    let mut before = puzzle.to_vec();
    let (mut end, mut failed) = (None, None);
    if args.format == Format::Text {
        writeln!(out, "{}\n", paint(model, puzzle, puzzle, puzzle, colour))?;
    }
    model.solve_in(&mut Workspace::default(), puzzle, &options, |solver, event| {
        if event.guess != args.guess || end.is_some() || failed.is_some() {
            return;
        }
        let tokens = solver.answer_now().to_vec();
        let verified = model.sudoku().is_some_and(|s| s.verify(puzzle, &tokens).is_valid());
        let segment = Segment { verified, ..event.segment };
        let line = Line::new(model, event.guess, &segment, &tokens);
        let written = match args.format {
            Format::Jsonl => serde_json::to_string(&line).map_err(io::Error::from).and_then(|json| writeln!(out, "{json}")),
            Format::Text => writeln!(out, "{}\n{}\n", line.heading(), paint(model, puzzle, &before, &tokens, colour)),
        };
        failed = written.err();
        before = tokens;
        end = line.halt.map(|halt| (halt, line.segment));
    })?;
    match (failed, end) {
        (Some(e), _) => Err(e.into()),
        (None, Some((halt, segments))) => Ok(format!("guess {} ended after {segments} segments: {halt}", args.guess)),
        (None, None) => bail!("guess {} did not run", args.guess),
    }
}

fn paint(model: &Model, puzzle: &[u8], before: &[u8], now: &[u8], colour: bool) -> String {
    let conflicts = model.sudoku().map(|s| board::conflicts(s, now)).unwrap_or_default();
    let marks: Vec<Mark> = (0..now.len())
        .map(|i| Mark {
            given: model.sudoku().is_some_and(|s| s.digit(puzzle[i]).is_some()),
            changed: before[i] != now[i],
            conflict: conflicts.get(i).copied().unwrap_or(false),
        })
        .collect();
    board::marked(model, now, &marks, colour)
}
