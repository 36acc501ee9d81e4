//! Training with the roundings of the integer network (quantisation-aware training): every int8 value and weight of the forward pass is rounded
//! and clipped as `hrm-core` would, the gradient passes through the rounding as if it were not there (Bengio, Leonard and Courville,
//! arXiv 1308.3432, section 4: the straight-through estimator).

use super::layout::Dims;
use super::simd::{self, Isa};

/// Largest int8 weight.
const WEIGHT_MAX: f32 = 127.0;

/// Values of one unit of everything that a block holds in int8, one a column and padded with ones.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSteps {
    /// `[Cp]`.
    input: Vec<f32>,
    /// `[G][Cp]`, of plain sums.
    sums: Vec<Vec<f32>>,
    /// `[Ip]`.
    hidden: Vec<f32>,
}

impl BlockSteps {
    /// Steps of the input, of the sums of each grouping, and of each of the `I` hidden channels.
    pub fn new(d: &Dims, input: f32, sums: &[f32], hidden: &[f32]) -> Self {
        let mut padded = hidden.to_vec();
        padded.resize(d.ip, 1.0);
        Self { input: vec![input; d.cp], sums: sums.iter().map(|&s| vec![s; d.cp]).collect(), hidden: padded }
    }

    /// The int8 view of the input rows.
    pub fn input(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        simd::round_int8(isa, out, &self.input);
    }

    /// The int8 views of the sums of grouping `j`, in place.
    pub fn sums(&self, isa: Isa, j: usize, sums: &mut [f32]) {
        simd::round_int8(isa, sums, &self.sums[j]);
    }

    /// Value of one unit of each hidden channel, `[Ip]`.
    pub fn hidden_steps(&self) -> &[f32] {
        &self.hidden
    }

    /// Value of one unit of the input, then of the sums of each grouping: `[1 + G]`.
    pub fn input_steps(&self) -> Vec<f32> {
        core::iter::once(self.input[0]).chain(self.sums.iter().map(|s| s[0])).collect()
    }

    /// The int8 hidden values, in place.
    pub fn hidden(&self, isa: Isa, hidden: &mut [f32]) {
        simd::round_int8(isa, hidden, &self.hidden);
    }

    /// Rounds row `n` of `W_up`, `[(1 + G) C]`: one scale for the output channel, each column in the unit of its input.
    pub fn up(&self, d: &Dims, row: &mut [f32]) {
        // alpha_g is part of the integer weights.
        let alphas = core::iter::once(1.0).chain(d.alpha.iter().copied());
        let units: Vec<f32> = self.input_steps().into_iter().zip(alphas).flat_map(|(s, a)| core::iter::repeat_n(s * a, d.c)).collect();
        round_channel(row, &units);
    }

    /// Rounds a row of `W_down`, `[I]`.
    pub fn down(&self, row: &mut [f32]) {
        round_channel(row, &self.hidden);
    }
}

/// `w[k] <- round(w[k] u[k] / s) s / u[k]`, `s` such that the largest product is 127.
fn round_channel(row: &mut [f32], units: &[f32]) {
    let largest = row.iter().zip(units).map(|(w, u)| (w * u).abs()).fold(0.0, f32::max);
    if largest > 0.0 {
        let scale = largest / WEIGHT_MAX;
        for (w, u) in row.iter_mut().zip(units) {
            *w = (*w * u / scale).round() * scale / u;
        }
    }
}
