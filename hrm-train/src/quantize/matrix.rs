//! One matrix to int8: scale of each output channel, rounding, requantisation.

use anyhow::{bail, ensure};

use super::observe::SiteStats;
use super::weights::Linear;

/// An int8 matrix with its requantisation, as the file stores it.
#[derive(Clone, Debug)]
pub struct QuantMatrix {
    /// `[n, k]`, -127..127.
    pub weights: Vec<i8>,
    /// Value of one accumulator unit, `[n]`.
    pub sigma: Vec<f64>,
    /// `l`.
    pub shift: u32,
    /// `m`, `[n]`.
    pub mult: Vec<i32>,
    /// Bias with the rounding of the requantisation, accumulator units, `[n]`.
    pub bias: Vec<i32>,
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug)]
pub struct WeightOptions {
    /// Clip each channel where the expected squared error of the output is least, instead of at its largest weight.
    pub mse: bool,
    /// Correct the bias by the mean error of the rounded weights.
    pub correct_bias: bool,
}

/// Largest shift that the loader accepts.
const MAX_SHIFT: u32 = 24;

/// What is known of the inputs of a matrix: one site per block of columns, in order.
pub type Inputs<'a> = [&'a SiteStats];

/// Rounds `linear`. `steps` `[k]`: value of one unit of each int8 input; `gains` `[n]`: units of the 16-bit output per unit of value.
///
/// # Errors
/// No shift keeps the accumulators and multipliers of a channel in range.
pub fn quantize_matrix(
    linear: &Linear,
    steps: &[f64],
    gains: &[f64],
    inputs: &Inputs<'_>,
    options: WeightOptions,
) -> anyhow::Result<QuantMatrix> {
    ensure!(
        steps.len() == linear.inp && gains.len() == linear.out,
        "matrix `{}`: {} input steps for {} columns",
        linear.name,
        steps.len(),
        linear.inp
    );
    let moments = moments(inputs, linear.inp);
    // Expected square of each int8 input.
    let importance: Vec<f64> = (0..linear.inp).map(|k| moments[k].1 / (steps[k] * steps[k]) + 1e-6).collect();
    let rows: Vec<Row<'_>> = linear
        .w
        .chunks_exact(linear.inp)
        .enumerate()
        .map(|(n, w)| {
            let folded: Vec<f64> = w.iter().zip(steps).map(|(&w, s)| f64::from(w) * s).collect();
            let sigma = channel_scale(&folded, &importance, options.mse);
            Row { folded, sigma, gain: gains[n], bias: f64::from(linear.bias[n]), moments: &moments, steps, correct: options.correct_bias }
        })
        .collect();
    // The smallest shift leaves the multipliers the most bits.
    for shift in 0..=MAX_SHIFT {
        let fitted: Option<Vec<Fitted>> = rows.iter().map(|row| row.fit(shift)).collect();
        if let Some(fitted) = fitted {
            return Ok(QuantMatrix {
                weights: fitted.iter().flat_map(|f| f.weights.iter().copied()).collect(),
                sigma: fitted.iter().map(|f| f.sigma).collect(),
                shift,
                mult: fitted.iter().map(|f| f.mult).collect(),
                bias: fitted.iter().map(|f| f.bias).collect(),
            });
        }
    }
    bail!("matrix `{}`: no shift from 0 to {MAX_SHIFT} keeps multipliers and accumulators in range", linear.name)
}

/// Mean and mean square of each column of the concatenated inputs.
fn moments(inputs: &Inputs<'_>, columns: usize) -> Vec<(f64, f64)> {
    let mut moments: Vec<_> = inputs.iter().flat_map(|s| (0..s.width).map(|k| (s.mean(k), s.mean_square(k)))).collect();
    moments.resize(columns, (0.0, 0.0));
    moments
}

/// Rounded weights of one row at `sigma`.
pub(super) fn round_row(folded: &[f64], sigma: f64) -> Vec<i8> {
    folded.iter().map(|v| (v / sigma).round().clamp(-127.0, 127.0) as i8).collect()
}

/// Value of one unit: the largest weight at 127, or what minimises the expected squared error.
pub(super) fn channel_scale(folded: &[f64], importance: &[f64], mse: bool) -> f64 {
    let max = folded.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    // A channel without weights: any scale will do, its bias decides below.
    let whole = (max / 127.0).max(1e-12);
    if !mse || max == 0.0 {
        return whole;
    }
    let error = |sigma: f64| -> f64 {
        folded.iter().zip(importance).map(|(v, h)| h * (v - (v / sigma).round().clamp(-127.0, 127.0) * sigma).powi(2)).sum()
    };
    let mut best = (f64::INFINITY, whole);
    for i in 0..=40 {
        let sigma = whole * (1.0 - 0.0125 * f64::from(i));
        let e = error(sigma);
        if e < best.0 {
            best = (e, sigma);
        }
    }
    best.1
}

struct Row<'a> {
    folded: Vec<f64>,
    sigma: f64,
    gain: f64,
    bias: f64,
    moments: &'a [(f64, f64)],
    steps: &'a [f64],
    correct: bool,
}

struct Fitted {
    weights: Vec<i8>,
    sigma: f64,
    mult: i32,
    bias: i32,
}

impl Row<'_> {
    /// The row at this shift, with a coarser scale where the finest would overflow; `None` if no scale fits.
    fn fit(&self, shift: u32) -> Option<Fitted> {
        let limit = (1u64 << (31 - shift)) as f64;
        let mut sigma = self.sigma;
        // Each round doubles the unit at most; 2^64 covers all of f32's range that can matter.
        for _ in 0..256 {
            let scaled = sigma * self.gain;
            let mult = (scaled * f64::from(32 - shift).exp2()).round();
            if mult >= f64::from(1u32 << 31) {
                return None;
            }
            let weights = round_row(&self.folded, sigma);
            let mut bias = self.bias;
            if self.correct {
                let drift: f64 = weights
                    .iter()
                    .zip(&self.folded)
                    .zip(self.moments.iter().zip(self.steps))
                    .map(|((&w, v), ((mean, _), step))| (f64::from(w) * sigma - v) * mean / step)
                    .sum();
                bias -= drift;
            }
            // Half an output step, so that the flooring requantisation rounds. A channel whose output is always 0 needs none.
            let half = if mult > 0.0 { 0.5 / scaled } else { 0.0 };
            let bias = (bias / sigma + half).round();
            let sum: f64 = weights.iter().map(|w| f64::from(w.unsigned_abs())).sum();
            let bound = 128.0 * sum + bias.abs();
            if bound < limit {
                return Some(Fitted { weights, sigma, mult: mult as i32, bias: bias as i32 });
            }
            sigma *= (bound / limit * 1.01).clamp(1.01, 2.0);
        }
        None
    }
}

impl QuantMatrix {
    /// The float matrix that this one stands for, `[n, k]`, for inputs of the given steps.
    #[must_use]
    pub fn dequantized(&self, steps: &[f64]) -> Vec<f32> {
        self.weights
            .chunks_exact(steps.len())
            .zip(&self.sigma)
            .flat_map(|(row, sigma)| row.iter().zip(steps).map(move |(&w, step)| (f64::from(w) * sigma / step) as f32))
            .collect()
    }
}
