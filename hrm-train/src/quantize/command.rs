//! `hrm-train quantize`.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use hrm_core::format::TaskKind;
use hrm_core::task::Sudoku;

use super::float::FloatNet;
use super::report::{FidelityReport, agreement, rounding_costs};
use super::weights::NetWeights;
use super::{Clip, QuantizeOptions, Quantized, quantize};
use crate::checkpoint::write_atomic;
use crate::data::{GeneratorOptions, PuzzleSet, Side, csv, generate};
use crate::evaluate::{Float, evaluate};
use crate::evaluate_int8::{Int8, kernel};
use crate::examples::{self, Examples};
use crate::model_file::FloatModel;
use crate::puzzles::Kept;
use crate::run_config::{EngineKind, resolve_threads};

/// Arguments of `hrm-train quantize`.
#[derive(Args, Debug)]
pub struct Quantize {
    /// A run folder (its best model) or a .safetensors file.
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// Puzzles to calibrate on: a CSV of training puzzles, or `generated` [default: those the model was trained on].
    #[arg(long, value_name = "CSV|generated")]
    data: Option<String>,
    /// The int8 file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Name in the file, at most 32 bytes [default: the stem of the file].
    #[arg(long)]
    name: Option<String>,
    /// Puzzles to calibrate on.
    #[arg(long, default_value_t = 128)]
    puzzles: usize,
    /// Segments of each.
    #[arg(long, default_value_t = 16)]
    segments: usize,
    /// Seed of generated puzzles and random starts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the int8 ranges end.
    #[arg(long, value_enum, default_value_t = ClipArgument::Mse)]
    clip: ClipArgument,
    /// Do not try out the ranges: quicker.
    #[arg(long)]
    untuned: bool,
    /// One scale for all hidden channels of a sublayer.
    #[arg(long)]
    one_hidden_scale: bool,
    /// Clip no weights.
    #[arg(long)]
    plain_weights: bool,
    /// Tell how closely int8 follows float, and which rounding costs what.
    #[arg(long)]
    report: bool,
    /// With --report: also score both on these puzzles with answers.
    #[arg(long, value_name = "CSV", requires = "report")]
    eval: Option<PathBuf>,
    /// Puzzles of --eval to score.
    #[arg(long, default_value_t = 1000)]
    n: usize,
    /// Write the report as JSON to this file too.
    #[arg(long, value_name = "FILE", requires = "report")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClipArgument {
    Absmax,
    P999,
    P9999,
    Mse,
}

impl ClipArgument {
    const fn clip(self) -> Clip {
        match self {
            Self::Absmax => Clip::Absmax,
            Self::P999 => Clip::Percentile(0.999),
            Self::P9999 => Clip::Percentile(0.9999),
            Self::Mse => Clip::Mse,
        }
    }
}

/// The Sudoku whose tokens the model reads.
///
/// # Errors
/// There is none of that shape.
pub fn sudoku_of(model: &FloatModel) -> anyhow::Result<Sudoku> {
    let c = &model.spec.config;
    let size = usize::from(c.vocab).saturating_sub(2);
    ensure!(size * size == usize::from(c.tokens), "a model of {} tokens and {} symbols is no Sudoku model", c.tokens, c.vocab);
    Sudoku::new(size).with_context(|| format!("a Sudoku of size {size}"))
}

/// Puzzles to calibrate on, `[n, S]`, and the task of the file.
fn calibration(args: &Quantize, model: &FloatModel) -> anyhow::Result<(Vec<u8>, TaskKind)> {
    let grid = model.record.as_ref().and_then(|r| r.config.task.kind.grid());
    let sudoku = || sudoku_of(model);
    let examples = match (args.data.as_deref(), &model.record) {
        (Some("generated"), _) => {
            let options = GeneratorOptions { size: sudoku()?.size(), seed: args.seed, side: Side::Train, ..GeneratorOptions::default() };
            Examples::Sudoku(generate(&options, args.puzzles)?)
        }
        (Some(path), _) => match grid {
            Some(kind) => Examples::Grid(examples::read(path.as_ref(), "train", kind)?.0),
            None => Examples::Sudoku(csv::read(path.as_ref())?),
        },
        (None, Some(record)) => {
            let puzzles = examples::load(&record.config, Kept::of(&args.model));
            puzzles.context("the puzzles the model was trained on (others: --data)")?.train
        }
        (None, None) => bail!("the model does not say what it was trained on: name training puzzles with --data"),
    };
    let (inputs, tokens) = (examples.tokens().0, usize::from(model.spec.config.tokens));
    let task = match &examples {
        Examples::Sudoku(set) => {
            let (found, expected) = (set.sudoku, sudoku()?);
            ensure!(found == expected, "the calibration puzzles are of size {}, the model reads size {}", found.size(), expected.size());
            TaskKind::Sudoku(expected.size() as u8)
        }
        Examples::Grid(set) => {
            ensure!(set.cells() == tokens, "the calibration grids have {} cells, the model reads {tokens}", set.cells());
            TaskKind::Grid
        }
    };
    ensure!(!examples.is_empty(), "there is no puzzle to calibrate on");
    // Spread over the set: files are often sorted by source or rating.
    let n = args.puzzles.clamp(1, examples.len());
    Ok(((0..n).flat_map(|i| &inputs[i * examples.len() / n * tokens..][..tokens]).copied().collect(), task))
}

/// Runs the command and returns what to print.
///
/// # Errors
/// Bad input; the sentence names it.
pub fn run(args: &Quantize) -> anyhow::Result<String> {
    let model = FloatModel::load(&args.model)?;
    let (inputs, task) = calibration(args, &model)?;
    ensure!(args.eval.is_none() || task != TaskKind::Grid, "--eval is for Sudoku models; `hrm-train eval` scores others");
    let puzzles: Vec<&[u8]> = inputs.chunks_exact(usize::from(model.spec.config.tokens)).collect();
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args.out.file_stem().context("--out has no file name")?.to_string_lossy().into_owned(),
    };
    let mut options = QuantizeOptions {
        clip: args.clip.clip(),
        weight_mse: !args.plain_weights,
        hidden_channels: !args.one_hidden_scale,
        tune: !args.untuned,
        segments: args.segments,
        seed: args.seed,
        name,
        task,
        ..QuantizeOptions::default()
    };
    options.record = Some(serde_json::json!({
        "training": model.record,
        "quantization": {
            "clip": options.clip, "weight_mse": options.weight_mse, "bias_correction": options.correct_bias,
            "hidden_channels": options.hidden_channels, "tuned": options.tune, "puzzles": puzzles.len(), "segments": options.segments, "seed": options.seed,
            "hrm_version": env!("CARGO_PKG_VERSION"),
        },
    }));
    let quantized = quantize(&model.spec, &model.weights, &puzzles, &options)?;
    write_atomic(&args.out, quantized.file.as_slice())?;
    let mut text = format!("{}: {} bytes, calibrated on {} puzzles\n", args.out.display(), quantized.file.as_slice().len(), puzzles.len());
    if args.report {
        text += &report(args, &model, &quantized, &puzzles)?;
    }
    Ok(text)
}

/// Compares the states of an int8 model with those of the float model it was made from, on the first `n` puzzles of a set. The float network is
/// run in plain loops.
///
/// # Errors
/// The architectures differ, or a puzzle does not fit.
pub fn compare(float: &FloatModel, int8: &Int8, set: &PuzzleSet, n: usize, segments: usize, seed: u64) -> anyhow::Result<FidelityReport> {
    let puzzles: Vec<&[u8]> = (0..set.len().min(n)).map(|i| set.input(i)).collect();
    let net = FloatNet::new(NetWeights::new(&float.spec, &float.weights)?);
    let segments = agreement(&net, int8, &puzzles, segments, seed)?;
    Ok(FidelityReport { puzzles: puzzles.len(), segments, roundings: Vec::new(), saturation: Vec::new() })
}

/// Puzzles of the slower comparisons.
const COMPARED: usize = 64;
/// Puzzles of the table of single roundings.
const SIMULATED: usize = 16;

fn report(args: &Quantize, model: &FloatModel, quantized: &Quantized, puzzles: &[&[u8]]) -> anyhow::Result<String> {
    let mut int8 = Int8::new(quantized.file.as_slice(), kernel()?, args.seed)?;
    let evaluated = args.eval.as_deref().map(csv::read).transpose()?;
    let compared: Vec<&[u8]> = match &evaluated {
        Some(set) => (0..set.len().min(COMPARED)).map(|i| set.input(i)).collect(),
        None => puzzles.iter().copied().take(COMPARED).collect(),
    };
    let net = FloatNet::new(quantized.weights.clone());
    let fidelity = FidelityReport {
        puzzles: compared.len(),
        segments: agreement(&net, &int8, &compared, args.segments, args.seed)?,
        roundings: rounding_costs(quantized, &compared[..compared.len().min(SIMULATED)], args.segments, args.seed)?,
        saturation: quantized.saturation(),
    };
    let mut text = fidelity.to_string();
    let mut scores = Vec::new();
    if let Some(set) = &evaluated {
        let at = [1, 2, 4, 8, 16, 32, 64];
        let mut engine = model.engine(EngineKind::Fused, "cpu", resolve_threads(0))?;
        scores.push(evaluate(&mut Float(engine.as_mut()), set, args.n, &at, args.seed, &mut |_| {})?);
        scores.push(evaluate(&mut int8, set, args.n, &at, args.seed, &mut |_| {})?);
        for score in &scores {
            text += &score.to_string();
        }
    }
    if let Some(path) = &args.json {
        write_atomic(path, &serde_json::to_vec_pretty(&serde_json::json!({ "fidelity": fidelity, "scores": scores }))?)?;
    }
    Ok(text)
}
