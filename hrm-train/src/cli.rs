//! Command line of `hrm-train`.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use hrm_core::Start;
use hrm_core::format::TaskKind;
use hrm_core::solve::Select;
use hrm_train::analyze::{self, Analyze};
use hrm_train::cuda;
use hrm_train::data::grid::GridKind;
use hrm_train::data::{PuzzleSet, csv, grid_npy};
use hrm_train::evaluate::{Float, Model, evaluate};
use hrm_train::evaluate_grid;
use hrm_train::evaluate_int8::Int8;
use hrm_train::examples;
use hrm_train::export::export;
use hrm_train::guesses::{self, GuessOptions, GuessReport};
use hrm_train::model_file::FloatModel;
use hrm_train::parallel::Group;
use hrm_train::quantize::command::{self, Quantize};
use hrm_train::queue::{self, Queue, State};
use hrm_train::run_config::{EngineKind, RunConfig, find_config, resolve_threads};
use hrm_train::train::{StartOptions, train};

mod data;

#[derive(Parser)]
#[command(name = "hrm-train", version, about = "Train, quantise and analyse Hierarchical Reasoning Models")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model from a TOML config; started by torchrun, srun or mpirun, together with the other ranks (docs/training.md).
    Train(Train),
    /// List the planned runs, or train the next of them for one slice of time.
    Queue(QueueArguments),
    /// Score a trained model on puzzles with answers.
    Eval(Eval),
    /// Repeat the experiments of "Reasoning or Guessing" (arXiv 2601.10679) on a model, float or int8.
    Analyze(Box<Analyze>),
    /// Turn a float model into an int8 `.hrm` file.
    Quantize(Quantize),
    /// Write one segment of an int8 model as standard ONNX: tokens and carry in, carry, logits and Q out, all in integers.
    Export(Export),
    /// Make, convert and filter puzzle files.
    #[command(subcommand)]
    Data(data::Data),
    /// Print a config with every field documented: the defaults, or a file with its overrides resolved.
    Config {
        /// The TOML file; none: the defaults.
        config: Option<PathBuf>,
        /// Override a field: section.key=value.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
}

#[derive(Args)]
struct Train {
    /// The TOML file of the run, such as configs/sudoku-4x4.toml.
    config: PathBuf,
    /// Go on from the last checkpoint.
    #[arg(long)]
    resume: bool,
    /// Resume although the config or the data would have led to other weights.
    #[arg(long, requires = "resume")]
    accept_changes: bool,
    /// Stop with a checkpoint at this step; the learning rate still follows train.steps.
    #[arg(long, value_name = "STEP")]
    stop_after: Option<u64>,
    /// Stop with a checkpoint after about so many seconds; --resume goes on, here or on another machine.
    #[arg(long, value_name = "N", value_parser = seconds)]
    seconds: Option<f64>,
    /// Folder of the run [default: runs/NAME of the config].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// With several ranks: seconds that one waits for the others before it gives up.
    #[arg(long, value_name = "N", value_parser = seconds, default_value_t = 600.0)]
    rank_timeout: f64,
    /// Override a field: section.key=value (see `hrm-train config`).
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args)]
struct QueueArguments {
    /// The queue file.
    #[arg(default_value = queue::DEFAULT)]
    file: PathBuf,
    /// Train the first open run that needs nothing, from its last checkpoint in runs/NAME, for one slice.
    #[arg(long)]
    run: bool,
    /// With --run: this run instead.
    #[arg(long, requires = "run")]
    name: Option<String>,
    /// With --run: length of the slice; it ends at a checkpoint. The default leaves a minute of ten for what comes before and after.
    #[arg(long, value_name = "N", value_parser = seconds, default_value_t = 540.0, requires = "run")]
    seconds: f64,
    /// With --run: override a field, such as the data's place on this machine: section.key=value.
    #[arg(long, value_name = "KEY=VALUE", requires = "run")]
    set: Vec<String>,
    /// With --run and several ranks: seconds that one waits for the others before it gives up.
    #[arg(long, value_name = "N", value_parser = seconds, default_value_t = 600.0, requires = "run")]
    rank_timeout: f64,
}

#[derive(Args)]
struct Eval {
    /// A run folder (its best model), a .safetensors file or an int8 .hrm file.
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// With an int8 --model: the float model it was made from, to score too and to compare states with.
    #[arg(long, value_name = "DIR|FILE")]
    reference: Option<PathBuf>,
    /// With --reference: how many puzzles' states are compared.
    #[arg(long, value_name = "N", default_value = "64", requires = "reference")]
    states: NonZeroUsize,
    /// Puzzles with answers: source,question,answer,rating; plain or .gz. For models of mazes and ARC also a folder in the public npy layout,
    /// of which the split `test` is taken.
    #[arg(long, value_name = "CSV|DIR")]
    data: PathBuf,
    /// Only the first N puzzles.
    #[arg(long)]
    n: Option<usize>,
    /// Segments to run; figures are given after 1, 2, 4, .. and this many.
    #[arg(long, default_value_t = 16)]
    segments: usize,
    /// Seed of the random starts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Worker threads [default: all cores].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// fused or torch.
    #[arg(long, value_enum, default_value_t = Engine::Fused)]
    engine: Engine,
    /// cpu or cuda:N: device of a float model, and of an int8 model that is scored without --reference (structured cells, feature cuda).
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Solve with up to so many guesses a puzzle of up to --segments segments each, as `hrm solve` does, instead of scoring by segment.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    guesses: Option<u16>,
    /// With --guesses: how the answer is chosen.
    #[arg(long, value_enum, default_value_t = SelectArgument::Verify, requires = "guesses")]
    select: SelectArgument,
    /// With --guesses: write one JSON object a puzzle (answer, segments, guesses, state hash).
    #[arg(long, value_name = "FILE", requires = "guesses")]
    puzzles: Option<PathBuf>,
    /// Write the figures as JSON to stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum SelectArgument {
    /// The first grid that the rules accept.
    Verify,
    /// The answer that most guesses end with.
    Vote,
    /// The answer of the largest halt output.
    Q,
    /// The answer of the smallest residual (int8 only).
    Residual,
    /// The first guess.
    First,
}

impl From<SelectArgument> for Select {
    fn from(s: SelectArgument) -> Self {
        match s {
            SelectArgument::Verify => Self::Verify,
            SelectArgument::Vote => Self::Vote,
            SelectArgument::Q => Self::Q,
            SelectArgument::Residual => Self::Residual,
            SelectArgument::First => Self::First,
        }
    }
}

#[derive(Args)]
struct Export {
    /// The `.hrm` file.
    #[arg(long, value_name = "HRM")]
    onnx: PathBuf,
    /// The ONNX file to write. `hrm solve --backend tract --model X.hrm` looks for X.onnx.
    #[arg(long, value_name = "ONNX")]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    Fused,
    Torch,
}

/// Parses the arguments and runs the command; errors go to stderr as one line, the exit status is 1 then.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train(args) => run_train(&args),
        Command::Queue(args) => run_queue(&args),
        Command::Eval(args) => run_eval(&args),
        Command::Analyze(args) => analyze::run(&args).and_then(|text| print_out(&text)),
        Command::Quantize(args) => command::run(&args).and_then(|text| print_out(&text)),
        Command::Export(Export { onnx, out }) => export(&onnx, &out).map(|bytes| eprintln!("{bytes} bytes in {}", out.display())),
        Command::Data(args) => data::run(args),
        Command::Config { config, set } => run_config(config.as_deref(), &set),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hrm-train: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_train(args: &Train) -> anyhow::Result<()> {
    let config = RunConfig::load(&args.config, &args.set)?;
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => Path::new("runs").join(find_config(&args.config)?.file_stem().context("the config has no file name")?),
    };
    let group = Rc::new(Group::from_environment(&config, Duration::from_secs_f64(args.rank_timeout))?);
    if group.is_first() {
        print_out(&format!("{}\n", toml::to_string(&config)?))?;
    }
    let start =
        StartOptions { resume: args.resume, accept_changes: args.accept_changes, stop_after: args.stop_after, seconds: args.seconds };
    let summary = train(&config, &folder, start, &group)?;
    if !group.is_first() {
        return Ok(());
    }
    let best = summary.best.map_or("no evaluation yet".to_owned(), |b| {
        format!("best on held-out training puzzles: {}/{} exact at step {}", b.exact, b.puzzles, b.step)
    });
    eprintln!("done after {:.0} s; {best}; model in {}", summary.seconds, folder.join("model.safetensors").display());
    Ok(())
}

fn run_queue(args: &QueueArguments) -> anyhow::Result<()> {
    let queue = Queue::load(&args.file)?;
    let here = Path::new("");
    if !args.run {
        return print_out(&queue.list(here)?);
    }
    let run = queue.next(here, args.name.as_deref())?;
    eprintln!("{}: {}", run.name, run.hypothesis);
    queue::slice(run, here, args.seconds, &args.set, Duration::from_secs_f64(args.rank_timeout))?;
    let state = run.state(here)?;
    eprintln!("{}: {state}", run.name);
    if state == State::Trained {
        eprintln!("predicted: {}\nthe figure: {}\nwrite it into {} as the outcome", run.predicted, run.command, args.file.display());
    }
    Ok(())
}

/// A time above 0.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e9 => Ok(seconds),
        _ => Err("expected seconds, more than 0 and at most 1e9".to_owned()),
    }
}

/// The model of `eval`.
enum Loaded {
    Int8(Int8),
    Float(Box<FloatModel>),
}

impl Loaded {
    fn load(args: &Eval) -> anyhow::Result<Self> {
        if args.model.extension().is_some_and(|e| e == "hrm") {
            return Ok(Self::Int8(Int8::load(&args.model, args.seed)?));
        }
        Ok(Self::Float(Box::new(FloatModel::load(&args.model)?)))
    }

    /// What its tokens mean if it is one of mazes or ARC, which an int8 file tells by the size of its vocabulary.
    fn grid(&self) -> anyhow::Result<Option<GridKind>> {
        Ok(match self {
            Self::Int8(int8) => {
                let view = int8.view()?;
                let (task, vocab) = (view.header().task, usize::from(view.config().vocab));
                [GridKind::Maze, GridKind::Arc].into_iter().find(|k| task == TaskKind::Grid && k.vocab() == vocab)
            }
            Self::Float(model) => model.record.as_ref().and_then(|r| r.config.task.kind.grid()),
        })
    }

    fn tokens(&self) -> anyhow::Result<u16> {
        Ok(match self {
            Self::Int8(int8) => int8.view()?.config().tokens,
            Self::Float(model) => model.spec.config.tokens,
        })
    }
}

/// A report on standard output, as text or JSON.
fn print_report(json: bool, report: &(impl serde::Serialize + std::fmt::Display)) -> anyhow::Result<()> {
    print_out(&if json { format!("{}\n", serde_json::to_string_pretty(report)?) } else { report.to_string() })
}

/// `eval --guesses`.
fn run_guesses(args: &Eval, model: &Loaded, set: &PuzzleSet, kind: EngineKind, most: u16) -> anyhow::Result<()> {
    ensure!(args.reference.is_none(), "--reference goes without --guesses");
    let segments = u16::try_from(args.segments).context("--segments is too large with --guesses, expected at most 65535")?;
    let options = GuessOptions { guesses: most, segments, select: args.select.into(), seed: args.seed };
    let (n, threads) = (args.n.unwrap_or(set.len()), resolve_threads(args.threads));
    fits(args, model.tokens()?, set)?;
    let (label, guessed) = match model {
        Loaded::Int8(int8) => {
            let guess = || match args.device.as_str() {
                "cpu" => guesses::int8(int8, set, n, options),
                device => cuda::with(int8, device, |batched| batched.guess(set, n, options)),
            };
            ("int8", rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(guess)?)
        }
        Loaded::Float(model) => {
            let mut engine = model.engine(kind, &args.device, threads)?;
            let symmetric = model.spec.config.start == Start::Fixed;
            ("float", guesses::float(&mut Float(engine.as_mut()), set, n, symmetric, options)?)
        }
    };
    if let Some(path) = &args.puzzles {
        guesses::write_puzzles(path, set, &guessed)?;
    }
    print_report(args.json, &GuessReport::new(label, set, &guessed, options))
}

/// Calls `score` with an int8 model on the threads and the device that were asked for.
fn score_int8<T: Send>(args: &Eval, int8: &mut Int8, score: impl FnOnce(&mut dyn Model) -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(resolve_threads(args.threads)).build()?;
    // States are compared with those of the reference on the CPU: --device is that of the reference then.
    pool.install(|| match args.device.as_str() {
        device if device != "cpu" && args.reference.is_none() => cuda::with(int8, device, |batched| score(batched)),
        _ => score(int8),
    })
}

/// Whether a model of `tokens` cells can be asked the puzzles of `--data`.
fn fits(args: &Eval, tokens: u16, set: &PuzzleSet) -> anyhow::Result<()> {
    let cells = set.sudoku.cells();
    ensure!(usize::from(tokens) == cells, "the model is made for {tokens} cells, {} holds puzzles of {cells}", args.data.display());
    Ok(())
}

/// `eval` of a model of mazes or ARC.
fn run_grid(args: &Eval, model: Loaded, grid: GridKind, kind: EngineKind, at: &[usize]) -> anyhow::Result<()> {
    ensure!(args.reference.is_none() && args.guesses.is_none(), "--reference and --guesses are for Sudoku models");
    let (mut set, _) = examples::read(&args.data, "test", grid)?;
    let (found, tokens) = (set.cells(), model.tokens()?);
    ensure!(found == usize::from(tokens), "the model is made for {tokens} cells, {} holds grids of {found}", args.data.display());
    let names = if args.data.is_dir() { grid_npy::read_names(&args.data)? } else { Vec::new() };
    if let Some(n) = args.n {
        set = set.select(0..n.min(set.len()));
    }
    let score = |model: &mut dyn Model| {
        let report = evaluate_grid::evaluate(model, &set, &names, at, args.seed, &mut |done| eprint!("\r{done} examples"))?;
        eprintln!();
        print_report(args.json, &report)
    };
    match model {
        Loaded::Int8(mut int8) => score_int8(args, &mut int8, score),
        Loaded::Float(model) => score(&mut Float(model.engine(kind, &args.device, resolve_threads(args.threads))?.as_mut())),
    }
}

fn run_eval(args: &Eval) -> anyhow::Result<()> {
    ensure!(args.segments >= 1, "--segments is 0, expected at least 1");
    let kind = match args.engine {
        Engine::Fused => EngineKind::Fused,
        Engine::Torch => EngineKind::Torch,
    };
    let mut at: Vec<usize> = (0..).map(|i| 1 << i).take_while(|&s| s < args.segments).collect();
    at.push(args.segments);
    let model = Loaded::load(args)?;
    if let Some(grid) = model.grid()? {
        return run_grid(args, model, grid, kind, &at);
    }
    let set = csv::read(&args.data)?;
    if let Some(most) = args.guesses {
        return run_guesses(args, &model, &set, kind, most);
    }
    let threads = resolve_threads(args.threads);
    let score = |model: &mut dyn Model, tokens: u16| {
        fits(args, tokens, &set)?;
        let report = evaluate(model, &set, args.n.unwrap_or(set.len()), &at, args.seed, &mut |done| eprint!("\r{done} puzzles"));
        eprintln!();
        report
    };
    let float = |model: &FloatModel| {
        let mut engine = model.engine(kind, &args.device, threads)?;
        score(&mut Float(engine.as_mut()), model.spec.config.tokens)
    };
    let (mut reports, mut fidelity, mut record) = (Vec::new(), None, None);
    match model {
        Loaded::Int8(mut int8) => {
            let tokens = int8.view()?.config().tokens;
            reports.push(score_int8(args, &mut int8, |model| score(model, tokens))?);
            if let Some(path) = &args.reference {
                let model = FloatModel::load(path)?;
                reports.push(float(&model)?);
                let n = args.n.unwrap_or(set.len()).min(args.states.get());
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
                fidelity = Some(pool.install(|| command::compare(&model, &int8, &set, n, args.segments, args.seed))?);
                record = model.record;
            }
        }
        Loaded::Float(model) => {
            ensure!(args.reference.is_none(), "--reference goes with an int8 --model (.hrm), {} is none", args.model.display());
            reports.push(float(&model)?);
            record = model.record;
        }
    }
    if args.json {
        let value = serde_json::json!({
            "model_file": args.model, "data_file": args.data, "protocol": record.as_ref().map(|r| &r.protocol),
            "step": record.as_ref().map(|r| r.step), "report": reports[0], "reference": reports.get(1), "fidelity": fidelity,
        });
        print_out(&format!("{}\n", serde_json::to_string_pretty(&value)?))
    } else {
        print_out(&format!("{} on {}\n", args.model.display(), args.data.display()))?;
        for report in &reports {
            print_out(&report.to_string())?;
        }
        fidelity.map_or(Ok(()), |f| print_out(&f.to_string()))
    }
}

fn run_config(path: Option<&Path>, set: &[String]) -> anyhow::Result<()> {
    let config = match path {
        Some(path) => RunConfig::load(path, set)?,
        None if set.is_empty() => RunConfig::default(),
        None => RunConfig::parse("", set)?,
    };
    print_out(&config.to_toml()?)
}

/// Writes to stdout; a reader that has gone away (`| head`) is no error.
fn print_out(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}
