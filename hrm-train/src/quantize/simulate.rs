//! int8 one tensor kind at a time, in the float network: which rounding costs how much.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::float::{FloatNet, Part, Site, Sublayer, Tap};
use super::plan::{GatedPlan, ModelPlan, output_gain};
use super::weights::NetWeights;

/// A kind of tensor that the integer network rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rounding {
    /// First matrices of the gated MLPs.
    UpWeights,
    /// Second matrices of the gated MLPs.
    DownWeights,
    /// Both matrices of attention.
    AttentionWeights,
    /// int8 views of the sublayers' inputs.
    Inputs,
    /// int8 views of the group sums.
    Sums,
    /// Hidden channels.
    Hidden,
    /// int8 views of q, k, v.
    QueryKeyValue,
    /// int8 view of the attention output.
    AttentionOutput,
    /// 16 bits of the stream, the gates and the sublayers' outputs.
    Stream,
}

impl Rounding {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::UpWeights,
        Self::DownWeights,
        Self::AttentionWeights,
        Self::Inputs,
        Self::Sums,
        Self::Hidden,
        Self::QueryKeyValue,
        Self::AttentionOutput,
        Self::Stream,
    ];

    pub(super) const fn of(part: Part) -> Option<Self> {
        Some(match part {
            Part::AttentionInput | Part::Input => Self::Inputs,
            Part::Sum(_) => Self::Sums,
            Part::Hidden => Self::Hidden,
            Part::Query | Part::Key | Part::Value => Self::QueryKeyValue,
            Part::AttentionOutput => Self::AttentionOutput,
            Part::Gate | Part::Delta | Part::Residual | Part::Stream => Self::Stream,
            Part::Up | Part::HeadInput => return None,
        })
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::UpWeights => "up weights",
            Self::DownWeights => "down weights",
            Self::AttentionWeights => "attention weights",
            Self::Inputs => "input views",
            Self::Sums => "group-sum views",
            Self::Hidden => "hidden",
            Self::QueryKeyValue => "q, k, v views",
            Self::AttentionOutput => "attention output",
            Self::Stream => "16-bit stream",
        })
    }
}

/// Unit of the stream.
pub(super) const Q10: f64 = 1.0 / 1024.0;

/// Rounds at the sites of some kinds.
#[derive(Clone, Debug)]
pub struct FakeQuant {
    kinds: BTreeSet<Rounding>,
    /// Value of one unit of each column; one entry: of all columns. Stream sites that are not here are in Q5.10.
    steps: BTreeMap<Site, Vec<f64>>,
}

impl FakeQuant {
    /// Value of one unit at each int8 site: of each column, or one entry for all columns.
    #[must_use]
    pub const fn steps(&self) -> &BTreeMap<Site, Vec<f64>> {
        &self.steps
    }
}

impl Tap for FakeQuant {
    fn tap(&mut self, site: Site, width: usize, values: &mut [f32]) {
        let Some(kind) = Rounding::of(site.part).filter(|k| self.kinds.contains(k)) else { return };
        if kind == Rounding::Stream {
            let unit = self.steps.get(&site).map_or(Q10, |s| s[0]) as f32;
            values.iter_mut().for_each(|v| *v = (*v / unit).round().clamp(-32768.0, 32767.0) * unit);
            return;
        }
        let Some(steps) = self.steps.get(&site) else { return };
        for row in values.chunks_exact_mut(width) {
            for (v, step) in row.iter_mut().zip(steps.iter().cycle()) {
                let step = *step as f32;
                *v = (*v / step).round().clamp(-128.0, 127.0) * step;
            }
        }
    }
}

/// The float network with the rounding of `kinds`, and the tap to run it with.
#[must_use]
pub fn simulated(weights: &NetWeights, plan: &ModelPlan, kinds: &[Rounding]) -> (FloatNet, FakeQuant) {
    let kinds: BTreeSet<Rounding> = kinds.iter().copied().collect();
    let mut weights = weights.clone();
    let mut steps = BTreeMap::new();
    for (m, (blocks, plans)) in weights.modules.iter_mut().zip(&plan.modules).enumerate() {
        for (i, (block, plan)) in blocks.iter_mut().zip(plans).enumerate() {
            let at = |sublayer, part| Site { module: m as u8, layer: i as u8, sublayer, part };
            let mut gated = |weights: &mut super::weights::Gated, p: &GatedPlan, sublayer| {
                steps.insert(at(sublayer, Part::Input), vec![p.input.step]);
                for (g, view) in p.sums.iter().enumerate() {
                    steps.insert(at(sublayer, Part::Sum(g as u8)), vec![view.step]);
                }
                steps.insert(at(sublayer, Part::Hidden), p.hidden.clone());
                steps.insert(at(sublayer, Part::Gate), vec![1.0 / output_gain(p.gate_shift)]);
                for part in [Part::Delta, Part::Residual] {
                    steps.insert(at(sublayer, part), vec![1.0 / output_gain(p.residual_shift)]);
                }
                if kinds.contains(&Rounding::UpWeights) {
                    let width = weights.up.inp / (1 + p.sums.len());
                    weights.up.w = p.up.dequantized(&p.columns(width));
                    weights.up.bias = p.up.real_bias(output_gain(p.gate_shift), &p.hidden);
                }
                if kinds.contains(&Rounding::DownWeights) {
                    weights.down.w = p.down.dequantized(&p.hidden);
                    weights.down.bias = p.down.real_bias(output_gain(p.residual_shift), &[]);
                }
            };
            if let (Some(token), Some(p)) = (&mut block.token, &plan.token) {
                gated(token, p, Sublayer::Token);
            }
            gated(&mut block.mlp, &plan.mlp, Sublayer::Mlp);
            if let (Some((qkv, out)), Some(p)) = (&mut block.attention, &plan.attention) {
                steps.insert(at(Sublayer::Attention, Part::AttentionInput), vec![p.input.step]);
                for (part, view) in [Part::Query, Part::Key, Part::Value].into_iter().zip(&p.qkv_views) {
                    steps.insert(at(Sublayer::Attention, part), vec![view.step]);
                }
                steps.insert(at(Sublayer::Attention, Part::AttentionOutput), vec![p.output.step]);
                for part in [Part::Delta, Part::Residual] {
                    steps.insert(at(Sublayer::Attention, part), vec![1.0 / output_gain(p.residual_shift)]);
                }
                if kinds.contains(&Rounding::AttentionWeights) {
                    qkv.w = p.qkv.dequantized(&vec![p.input.step; qkv.inp]);
                    out.w = p.out.dequantized(&vec![p.output.step; out.inp]);
                }
            }
        }
    }
    (FloatNet::new(weights), FakeQuant { kinds, steps })
}

impl super::matrix::QuantMatrix {
    /// The float bias that the integer one stands for, without the rounding half. Rows are the gate at `gain`, then (where `hidden` is
    /// not empty) the other half at `2^15 / gain / hidden`.
    fn real_bias(&self, gain: f64, hidden: &[f64]) -> Vec<f32> {
        let gates = self.sigma.len() - hidden.len();
        let gain = |n: usize| if n < gates { gain } else { 32768.0 / gain / hidden[n - gates] };
        self.bias.iter().zip(&self.sigma).enumerate().map(|(n, (&b, sigma))| (f64::from(b) * sigma - 0.5 / gain(n)) as f32).collect()
    }
}
