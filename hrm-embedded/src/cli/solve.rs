//! `hrm solve`: answers, one a puzzle, in input order.

use std::io::{self, IsTerminal as _};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use hrm_core::iterate::Policy;
use hrm_core::solve::{Options, Select};
use hrm_embedded::parallel::ordered;
use hrm_embedded::{Model, Workspace};

use super::Backend;
use super::backend::Engine;
use super::input::{self, Origin, Puzzle};
use super::models::Models;
use super::rows::{self, Format, Row};

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
    #[command(flatten)]
    effort: Effort,
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

/// How much to try.
#[derive(Clone, Copy, clap::Args)]
pub(super) struct Effort {
    /// Most segments of the first guess. With the verifier the others get half as many, else as many.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub segments: u16,
    /// Most guesses a puzzle [default: 64 with a verifier, else 1].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub guesses: Option<u16>,
    /// How the answer is chosen among the guesses [default: verify, or first for tasks without a verifier].
    #[arg(long, value_enum)]
    pub select: Option<SelectArg>,
    /// Seed of starts and symmetries: the same seed gives the same answers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl Effort {
    pub(super) fn options(&self, model: &Model) -> Options {
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

/// [`Select`] on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SelectArg {
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

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.input.is_some() || !io::stdin().is_terminal(), "give a FILE, a PUZZLE, or - for standard input (see `hrm solve --help`)");
    let models = Models::new(args.model.as_deref())?;
    let given = args.model.as_deref().zip(models.given().map(AsRef::as_ref));
    let engine = Engine::new(args.backend, args.onnx.as_deref(), given)?;
    if models.given().is_some_and(|m| m.sudoku().is_none() && args.effort.select == Some(SelectArg::Verify)) {
        bail!("{}", hrm_core::solve::SolveError::NoVerifier);
    }
    let (puzzles, origin) = input::open(args.input.as_deref(), models.reader())?;
    let threads = args.threads.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let threads = if matches!(origin, Origin::Puzzle) { NonZeroUsize::MIN } else { threads };
    let effort = args.effort;
    let models = Arc::new(models);
    let rows = ordered(puzzles, threads, move |workspace: &mut Workspace, puzzle: anyhow::Result<Puzzle>| {
        let puzzle = puzzle?;
        let (line, model) = (puzzle.line, models.for_tokens(puzzle.tokens.len())?);
        let solved =
            engine.solve(model, workspace, &puzzle.tokens, &effort.options(model)).map_err(|e| e.context(format!("line {line}")))?;
        Ok(Row::new(model.sudoku(), puzzle, solved))
    });
    rows::print(rows, args.format, &origin, args.strict)
}
