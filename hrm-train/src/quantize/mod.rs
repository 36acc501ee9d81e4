//! Float weights to an int8 `.hrm` file: calibration on training puzzles, scales, rounding, and what it cost.
//!
//! 1. [`weights`]: structured and public models in one form.
//! 2. [`float`]: the float network in plain loops, with a tap wherever the integer network rounds.
//! 3. [`observe`]: what passes the taps on some training puzzles.
//! 4. [`plan`], [`matrix`]: scales, int8 weights, multipliers and shifts (docs/numerics.md); [`tune`] tries the ranges out.
//! 5. [`mod@write`]: the file. [`simulate`] and [`report`] tell what each rounding costs and how the integer network follows the float one.

use anyhow::{Context as _, ensure};
use hrm_core::format::{AlignedBytes, SelfTest, TaskKind};
use hrm_core::{ModelView, Network, Plan, Run};

use crate::engine::Tensors;
use crate::spec::ModelSpec;

pub mod command;
pub mod float;
pub mod matrix;
pub mod observe;
pub mod plan;
pub mod report;
pub mod simulate;
#[cfg(test)]
mod tests;
pub mod tune;
pub mod weights;
pub mod write;

use float::{FloatNet, Part, Site};
use observe::Statistics;
use plan::ModelPlan;
use weights::NetWeights;

/// Where the range of an int8 view ends.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// At the largest magnitude seen.
    Absmax,
    /// At this share (0 to 1) of the magnitudes.
    Percentile(f64),
    /// Where the squared error is least.
    Mse,
}

/// How to quantise. `Default` is what measured best.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// Ranges of the int8 views.
    pub clip: Clip,
    /// Choose each weight channel's scale for the least expected output error instead of its largest weight.
    pub weight_mse: bool,
    /// Correct biases by the mean error of the rounded weights.
    pub correct_bias: bool,
    /// A scale for each hidden channel instead of one for all.
    pub hidden_channels: bool,
    /// Try narrower and wider ranges on the simulated integer network and keep the best.
    pub tune: bool,
    /// Segments of each calibration puzzle.
    pub segments: usize,
    /// Seed of random starts in calibration and of the self-test.
    pub seed: u64,
    /// Name in the file, at most 32 bytes.
    pub name: String,
    /// Task in the file.
    pub task: TaskKind,
    /// Training record (JSON) to put into the file.
    pub record: Option<serde_json::Value>,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self {
            clip: Clip::Mse,
            weight_mse: true,
            correct_bias: true,
            hidden_channels: true,
            tune: true,
            segments: 16,
            seed: 1,
            name: "hrm".into(),
            task: TaskKind::Grid,
            record: None,
        }
    }
}

/// A quantised model with all that led to it.
#[derive(Debug)]
pub struct Quantized {
    /// The `.hrm` file.
    pub file: AlignedBytes,
    /// The float weights.
    pub weights: NetWeights,
    /// Scales and integers.
    pub plan: ModelPlan,
    /// What calibration saw.
    pub statistics: Statistics,
}

/// How much of a site's values the int8 range cuts off.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Saturation {
    /// The site, as text.
    pub site: String,
    /// Largest magnitude seen.
    pub max: f32,
    /// Largest magnitude represented.
    pub clip: f64,
    /// Share of the sampled values outside.
    pub share: f64,
}

/// Segments of the self-test vector.
const SELF_TEST_SEGMENTS: u16 = 4;

/// The scales and integers of a float model: calibration on `puzzles` (tokens `[S]` each), then ranges tried out if the options say so.
///
/// # Errors
/// As [`quantize`].
pub fn calibrate(net: &FloatNet, puzzles: &[&[u8]], options: &QuantizeOptions) -> anyhow::Result<(ModelPlan, Statistics)> {
    ensure!(!puzzles.is_empty() && options.segments > 0, "calibration needs at least one puzzle and one segment");
    let statistics = observe::observe(net, puzzles, options.segments, options.seed).context("calibration")?;
    for (site, s) in &statistics {
        let finite = s.column_square.iter().all(|v| v.is_finite());
        ensure!(finite, "the float network is not finite at {site:?} in calibration");
    }
    let plan = if options.tune {
        tune::tune(net, &statistics, puzzles, options)?
    } else {
        plan::plan(net.weights(), &statistics, &plan::ranges(&statistics, options), options)?
    };
    Ok((plan, statistics))
}

/// Quantises a float model. `puzzles`: tokens `[S]` each, of training puzzles; the first is also the file's self-test.
///
/// # Errors
/// The model or a puzzle is not valid (a tensor that is missing or not finite is named), or a matrix does not fit into int8 arithmetic.
pub fn quantize(spec: &ModelSpec, weights: &Tensors, puzzles: &[&[u8]], options: &QuantizeOptions) -> anyhow::Result<Quantized> {
    let net = FloatNet::new(NetWeights::new(spec, weights)?);
    let (plan, statistics) = calibrate(&net, puzzles, options)?;
    let file = assemble(net.weights(), &plan, puzzles[0], options)?;
    Ok(Quantized { file, weights: net.weights().clone(), plan, statistics })
}

/// Writes the file, runs the self-test on it and writes it again with the outcome.
fn assemble(weights: &NetWeights, plan: &ModelPlan, tokens: &[u8], options: &QuantizeOptions) -> anyhow::Result<AlignedBytes> {
    let mut writer = write::write(weights, plan, options.task, &options.name)?;
    if let Some(record) = &options.record {
        writer.set_record(&serde_json::to_string(record)?);
    }
    let file = writer.finish().context("the quantised model")?;
    let view = ModelView::new_checked(file.as_slice())?;
    let network = Network::reference(view);
    let mut arena = vec![0u64; network.required_bytes(Plan::DEVICE).div_ceil(8)];
    let mut run = Run::new(network, &mut arena, Plan::DEVICE)?;
    run.start(tokens, options.seed, 0)?;
    for _ in 0..SELF_TEST_SEGMENTS {
        run.segment()?;
    }
    writer.set_self_test(&SelfTest { seed: options.seed, segments: SELF_TEST_SEGMENTS, hash: run.hash(), tokens });
    writer.finish().context("the quantised model")
}

impl Quantized {
    /// Share of the calibration values that each int8 view and the 16-bit stream cut off.
    #[must_use]
    pub fn saturation(&self) -> Vec<Saturation> {
        use simulate::{Q10, Rounding};
        let (_, fake) = simulate::simulated(&self.weights, &self.plan, &[]);
        let known = |site: Site| match site.part {
            Part::HeadInput => Some(vec![self.plan.head.input.step]),
            part => fake.steps().get(&site).cloned().or_else(|| (Rounding::of(part) == Some(Rounding::Stream)).then(|| vec![Q10])),
        };
        let report = |(&site, s): (&Site, &observe::SiteStats)| {
            let steps = known(site)?;
            let end = if Rounding::of(site.part) == Some(Rounding::Stream) { 32767.5 } else { 127.5 };
            let step = |k: u32| steps[k as usize % steps.len()];
            let outside = s.samples.iter().filter(|s| !(-end - 1.0..end).contains(&(f64::from(s.value) / step(s.column)))).count();
            Some(Saturation {
                site: describe(site),
                max: s.max(),
                clip: end * steps.iter().copied().fold(0.0, f64::max),
                share: outside as f64 / s.samples.len().max(1) as f64,
            })
        };
        self.statistics.iter().filter_map(report).collect()
    }
}

/// A site as text: `module.layer sublayer part`.
fn describe(site: Site) -> String {
    match site.part {
        Part::HeadInput => "head input".into(),
        part => format!("{}.{} {:?} {part:?}", site.module, site.layer, site.sublayer).to_lowercase(),
    }
}
