//! From statistics to integers: the views, scales and matrices of every sublayer.

use std::collections::BTreeMap;

use anyhow::Context as _;
use hrm_core::Mixer;
use rayon::prelude::*;

use super::float::{Part, Site, Sublayer};
use super::matrix::{QuantMatrix, WeightOptions, channel_scale, quantize_matrix, round_row};
use super::observe::{Sample, SiteStats, Statistics};
use super::simulate::Rounding;
use super::weights::{BlockWeights, Gated, Linear, NetWeights};
use super::{Clip, QuantizeOptions};

/// Q5.10.
const STREAM: f64 = 1024.0;

/// An int8 view of a 16-bit value: its multiplier, and what one int8 unit is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Multiplier, 1..=32767.
    pub m: i16,
    /// Value of one unit.
    pub step: f64,
}

impl View {
    /// The view nearest to `step` of values kept at `gain` 16-bit units per unit of value: `view8` divides by `2^15 / m`.
    fn new(step: f64, gain: f64) -> Self {
        let m = (32768.0 / (step * gain)).round().clamp(1.0, 32767.0);
        Self { m: m as i16, step: 32768.0 / (m * gain) }
    }
}

/// A gated MLP in integers.
#[derive(Clone, Debug)]
pub struct GatedPlan {
    /// View of the input.
    pub input: View,
    /// Views of the group sums.
    pub sums: Vec<View>,
    /// Value of one unit of each hidden channel.
    pub hidden: Vec<f64>,
    /// `t`: the output has the unit `2^(t - 10)`.
    pub residual_shift: u32,
    /// `k`: the gate has the unit `2^(k - 10)`.
    pub gate_shift: u32,
    /// First matrix.
    pub up: QuantMatrix,
    /// Second matrix.
    pub down: QuantMatrix,
}

impl GatedPlan {
    /// Steps of the columns of `up`: the row, then its sums.
    #[must_use]
    pub fn columns(&self, width: usize) -> Vec<f64> {
        core::iter::once(&self.input).chain(&self.sums).flat_map(|v| core::iter::repeat_n(v.step, width)).collect()
    }
}

/// Attention in integers.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    /// View of the input.
    pub input: View,
    /// Views of q, k, v.
    pub qkv_views: [View; 3],
    /// View of the output.
    pub output: View,
    /// Softmax multiplier.
    pub m_score: i64,
    /// `t`: the output has the unit `2^(t - 10)`.
    pub residual_shift: u32,
    /// q, k, v.
    pub qkv: QuantMatrix,
    /// Output matrix.
    pub out: QuantMatrix,
}

/// One block in integers.
#[derive(Clone, Debug)]
pub struct BlockPlan {
    /// Attention.
    pub attention: Option<AttentionPlan>,
    /// Gated MLP over tokens.
    pub token: Option<GatedPlan>,
    /// Gated MLP over channels.
    pub mlp: GatedPlan,
}

/// The heads in integers.
#[derive(Clone, Debug)]
pub struct HeadPlan {
    /// View of z_H.
    pub input: View,
    /// `[head width, C]`.
    pub weights: Vec<i8>,
    /// `[head width]`.
    pub bias: Vec<i64>,
    /// Value of one unit of a weight.
    pub sigma: f64,
    /// `[Q outputs, C]`.
    pub q_weights: Vec<i8>,
    /// `[Q outputs]`.
    pub q_bias: Vec<i64>,
    /// Right shift of the Q accumulators.
    pub q_shift: u32,
    /// Value of one unit of a Q output after the shift.
    pub q_scale: f64,
}

/// The whole model in integers.
#[derive(Clone, Debug)]
pub struct ModelPlan {
    /// Blocks by stored module.
    pub modules: Vec<Vec<BlockPlan>>,
    /// The heads.
    pub head: HeadPlan,
}

struct Planner<'a> {
    stats: &'a Statistics,
    options: &'a QuantizeOptions,
    ranges: &'a Ranges,
}

/// Chooses all scales and rounds all weights, with these ranges of the int8 values.
///
/// # Errors
/// A site was never reached in calibration, or a matrix does not fit.
pub fn plan(weights: &NetWeights, stats: &Statistics, ranges: &Ranges, options: &QuantizeOptions) -> anyhow::Result<ModelPlan> {
    let planner = Planner { stats, options, ranges };
    let modules = weights.modules.iter().enumerate().map(|(m, blocks)| {
        blocks.iter().enumerate().map(|(i, block)| planner.block(weights, block, m as u8, i as u8)).collect::<anyhow::Result<Vec<_>>>()
    });
    Ok(ModelPlan { modules: modules.collect::<anyhow::Result<_>>()?, head: planner.head(weights)? })
}

impl Planner<'_> {
    fn stats(&self, site: Site) -> anyhow::Result<&SiteStats> {
        self.stats.get(&site).with_context(|| format!("calibration did not reach {site:?}"))
    }

    fn weight_options(&self) -> WeightOptions {
        WeightOptions { mse: self.options.weight_mse, correct_bias: self.options.correct_bias }
    }

    fn range(&self, site: Site) -> anyhow::Result<&[f64]> {
        self.ranges.get(&site).map(Vec::as_slice).with_context(|| format!("calibration did not reach {site:?}"))
    }

    fn view(&self, site: Site, gain: f64) -> anyhow::Result<View> {
        Ok(View::new(self.range(site)?[0] / 127.0, gain))
    }

    fn block(&self, w: &NetWeights, block: &BlockWeights, module: u8, layer: u8) -> anyhow::Result<BlockPlan> {
        let site = |sublayer| Site { module, layer, sublayer, part: Part::Input };
        let groupings = if w.spec.config.mixer == Mixer::GroupSum { w.spec.groupings.len() } else { 0 };
        Ok(BlockPlan {
            attention: match &block.attention {
                Some((qkv, out)) => Some(self.attention(w, qkv, out, site(Sublayer::Attention))?),
                None => None,
            },
            token: block.token.as_ref().map(|g| self.gated(g, 0, site(Sublayer::Token))).transpose()?,
            mlp: self.gated(&block.mlp, groupings, site(Sublayer::Mlp))?,
        })
    }

    fn gated(&self, g: &Gated, groupings: usize, site: Site) -> anyhow::Result<GatedPlan> {
        let at = |part| self.stats(Site { part, ..site });
        let input_stats = at(Part::Input)?;
        let input = self.view(Site { part: Part::Input, ..site }, STREAM)?;
        let sum_stats = (0..groupings).map(|j| at(Part::Sum(j as u8))).collect::<anyhow::Result<Vec<_>>>()?;
        // Sums are formed in units of the input's view.
        let sum = |j: usize| self.view(Site { part: Part::Sum(j as u8), ..site }, 1.0 / input.step);
        let sums = (0..groupings).map(sum).collect::<anyhow::Result<Vec<View>>>()?;

        let (hidden_stats, up_stats) = (at(Part::Hidden)?, at(Part::Up)?);
        let inner = g.down.inp;
        let gate_shift = gate_shift(at(Part::Gate)?);
        let up_gain = 32.0 * f64::from(gate_shift).exp2();
        // 32000 units of the 16-bit `up` keep clear of saturation.
        let ranges = self.range(Site { part: Part::Hidden, ..site })?.iter().cycle().zip(&up_stats.column_max);
        let hidden: Vec<f64> = ranges.map(|(range, &max)| (range / 127.0).max(f64::from(max) * up_gain / 32000.0).max(1e-9)).collect();

        let residual_shift = residual_shift(at(Part::Residual)?);
        let mut plan = GatedPlan { input, sums, hidden, residual_shift, gate_shift, up: QuantMatrix::empty(), down: QuantMatrix::empty() };
        let gains: Vec<f64> = core::iter::repeat_n(output_gain(gate_shift), inner).chain(plan.hidden.iter().map(|h| up_gain / h)).collect();
        let inputs: Vec<&SiteStats> = core::iter::once(input_stats).chain(sum_stats).collect();
        plan.up = quantize_matrix(&g.up, &plan.columns(input_stats.width), &gains, &inputs, self.weight_options())?;
        plan.down =
            quantize_matrix(&g.down, &plan.hidden, &vec![output_gain(residual_shift); g.down.out], &[hidden_stats], self.weight_options())?;
        Ok(plan)
    }

    fn attention(&self, w: &NetWeights, qkv: &Linear, out: &Linear, site: Site) -> anyhow::Result<AttentionPlan> {
        let c = &w.spec.config;
        let (ch, heads) = (usize::from(c.channels), usize::from(c.heads));
        let at = |part| self.stats(Site { part, ..site });
        let input_stats = at(Part::AttentionInput)?;
        let input = self.view(Site { part: Part::AttentionInput, ..site }, STREAM)?;
        let mut gains = [STREAM; 3];
        let mut qkv_views = [input; 3];
        for (j, part) in [Part::Query, Part::Key, Part::Value].into_iter().enumerate() {
            let stats = at(part)?;
            // RoPE turns pairs: before it a value can be sqrt(2) larger. Beyond the range of Q5.10 the unit is coarser.
            gains[j] = STREAM.min(22_000.0 / f64::from(stats.max()).max(1e-9));
            qkv_views[j] = self.view(Site { part, ..site }, gains[j])?;
        }
        // The kernel gives the output in 1/128 of a unit of v.
        let output = self.view(Site { part: Part::AttentionOutput, ..site }, 128.0 / qkv_views[2].step)?;
        let head_width = (ch / heads) as f64;
        let score = qkv_views[0].step * qkv_views[1].step / head_width.sqrt() * core::f64::consts::LOG2_E * 256.0 * 65536.0;
        let steps = vec![input.step; ch];
        let per_channel: Vec<f64> = gains.iter().flat_map(|&g| core::iter::repeat_n(g, ch)).collect();
        let out_steps = vec![output.step; ch];
        let residual_shift = residual_shift(at(Part::Residual)?);
        Ok(AttentionPlan {
            input,
            qkv_views,
            output,
            residual_shift,
            m_score: score.round().clamp(1.0, f64::from(i32::MAX)) as i64,
            qkv: quantize_matrix(qkv, &steps, &per_channel, &[input_stats], self.weight_options())?,
            out: quantize_matrix(
                out,
                &out_steps,
                &vec![output_gain(residual_shift); ch],
                &[at(Part::AttentionOutput)?],
                self.weight_options(),
            )?,
        })
    }

    fn head(&self, w: &NetWeights) -> anyhow::Result<HeadPlan> {
        let stats = self.stats(Site::HEAD)?;
        let input = self.view(Site::HEAD, STREAM)?;
        let importance: Vec<f64> = (0..stats.width).map(|k| stats.mean_square(k) + 1e-9).cycle().take(w.head.w.len()).collect();
        let values: Vec<f64> = w.head.w.iter().map(|&v| f64::from(v)).collect();
        let sigma = channel_scale(&values, &importance, self.options.weight_mse);
        // A logit bias must stay clear of the 32-bit accumulator as well.
        let bias = w.head.bias.iter().map(|&b| (f64::from(b) / (sigma * input.step)).round().clamp(-1e9, 1e9) as i64);

        let q: Vec<f64> = w.q.w.iter().map(|&v| f64::from(v)).collect();
        let q_sigma = channel_scale(&q, &vec![1.0; q.len()], false);
        let q_sigma = if q_sigma > 1e-9 { q_sigma } else { 1.0 };
        let q_weights = round_row(&q, q_sigma);
        // One unit of the accumulator: the mean over the rows and Q5.10 are part of it.
        let unit = q_sigma / (w.q_rows() as f64 * STREAM);
        let q_bias: Vec<i64> = w.q.bias.iter().map(|&b| (f64::from(b) / unit).round() as i64).collect();
        let ch = usize::from(w.spec.config.channels);
        let bound = q_weights.chunks_exact(ch).zip(&q_bias).map(|(row, b)| {
            row.iter().map(|&w| f64::from(w.unsigned_abs())).sum::<f64>() * w.q_rows() as f64 * 32768.0 + b.unsigned_abs() as f64
        });
        let bound = bound.fold(1.0, f64::max);
        let q_shift = (bound.log2() - 30.5).ceil().clamp(0.0, 48.0) as u32;
        Ok(HeadPlan {
            input,
            weights: round_row(&values, sigma),
            bias: bias.collect(),
            sigma,
            q_weights,
            q_bias,
            q_shift,
            q_scale: unit * f64::from(q_shift).exp2(),
        })
    }
}

impl QuantMatrix {
    const fn empty() -> Self {
        Self { weights: Vec::new(), sigma: Vec::new(), shift: 0, mult: Vec::new(), bias: Vec::new() }
    }
}

/// Units per unit of value of what is kept in the unit `2^(shift - 10)`.
pub(super) fn output_gain(shift: u32) -> f64 {
    STREAM / f64::from(shift).exp2()
}

/// The smallest shift at which all gates fit into 16 bits, at most 4: beside the int8 noise of a gate its unit is small even then.
fn gate_shift(gate: &SiteStats) -> u32 {
    (f64::from(gate.max()) / 31.9).log2().ceil().clamp(0.0, 4.0) as u32
}

/// The shift with the least squared error of the sums of stream and output, each weighted by what it is worth after the norm.
fn residual_shift(residual: &SiteStats) -> u32 {
    let error = |shift: u32| -> f64 {
        let gain = output_gain(shift);
        let one = |s: &Sample| {
            let v = f64::from(s.value);
            f64::from(s.weight) * (v - (v * gain).round().clamp(-32768.0, 32767.0) / gain).powi(2)
        };
        residual.samples.iter().map(one).sum()
    };
    (0..=12).map(|shift| (error(shift), shift)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |best| best.1)
}

/// Largest magnitude that int8 represents at each site: one for all columns, or (hidden channels) one for each.
pub type Ranges = BTreeMap<Site, Vec<f64>>;

/// The ranges that follow from the values alone.
#[must_use]
pub fn ranges(stats: &Statistics, options: &QuantizeOptions) -> Ranges {
    let int8 = |site: &Site| !matches!(Rounding::of(site.part), None | Some(Rounding::Stream)) || *site == Site::HEAD;
    let range = |site: Site, s: &SiteStats| {
        if site.part == Part::Hidden && options.hidden_channels { channel_ranges(s, options.clip) } else { vec![clip(s, options.clip)] }
    };
    stats.par_iter().filter(|(site, _)| int8(site)).map(|(&site, s)| (site, range(site, s))).collect()
}

/// A range for each channel. The multipliers of `up` and the columns of `down` can carry a scale for each hidden channel, for nothing.
fn channel_ranges(stats: &SiteStats, method: Clip) -> Vec<f64> {
    let all = clip(stats, method);
    let mut channels = vec![Vec::new(); stats.width];
    for s in &stats.samples {
        channels[s.column as usize].push((s.value, s.weight));
    }
    // A channel that is hardly ever on must not get weights beyond all others.
    let one = |(samples, &max): (&Vec<(f32, f32)>, &f32)| clip_samples(samples.iter().copied(), max, method).max(all / 256.0);
    channels.iter().zip(&stats.column_max).map(one).collect()
}

/// Where to clip: the largest magnitude that int8 represents.
fn clip(stats: &SiteStats, method: Clip) -> f64 {
    clip_samples(stats.samples.iter().map(|s| (s.value, s.weight)), stats.max(), method)
}

fn clip_samples(samples: impl Iterator<Item = (f32, f32)> + Clone, max: f32, method: Clip) -> f64 {
    let max = f64::from(max).max(1e-9);
    match method {
        Clip::Absmax => max,
        Clip::Percentile(share) => {
            let mut magnitudes: Vec<f64> = samples.map(|(v, _)| f64::from(v).abs()).collect();
            if magnitudes.is_empty() {
                return max;
            }
            magnitudes.sort_by(f64::total_cmp);
            let at = ((magnitudes.len() - 1) as f64 * share.clamp(0.0, 1.0)).round() as usize;
            magnitudes[at].max(max / 256.0)
        }
        Clip::Mse => {
            let error = |t: f64| -> f64 {
                let (step, scale) = ((t / 127.0) as f32, (127.0 / t) as f32);
                samples.clone().map(|(v, w)| w * (v - (v * scale).round().clamp(-128.0, 127.0) * step).powi(2)).map(f64::from).sum()
            };
            let mut best = (f64::INFINITY, max);
            for i in 0..64 {
                // Down to a 50th of the maximum, in equal ratios.
                let t = max * (-f64::from(i) / 16.0).exp();
                let e = error(t);
                if e < best.0 {
                    best = (e, t);
                }
            }
            best.1
        }
    }
}
