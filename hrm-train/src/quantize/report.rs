//! How closely the integer network follows the float one: cosines of the carry, equal answers, and the cost of each rounding alone.

use std::fmt;

use anyhow::{Context as _, ensure};
use rayon::prelude::*;
use serde::Serialize;

use super::float::{FloatNet, Tap};
use super::observe::random_start;
use super::simulate::{Rounding, simulated};
use super::{Quantized, Saturation};
use crate::evaluate_int8::Int8;

/// Distribution of a cosine over puzzles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cosine {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// 5th percentile.
    pub low: f64,
}

impl Cosine {
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        Self { mean: values.iter().sum::<f64>() / values.len() as f64, median: at(0.5), low: at(0.05) }
    }
}

impl fmt::Display for Cosine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.5} {:.5} {:.5}", self.mean, self.median, self.low)
    }
}

/// Float and integer network after the same number of segments from the same start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentAgreement {
    /// Segments run.
    pub segment: usize,
    /// Cosine of z_H.
    pub z_h: Cosine,
    /// Cosine of z_L.
    pub z_l: Cosine,
    /// Share of tokens answered alike.
    pub tokens: f64,
    /// Share of puzzles answered alike in every token.
    pub answers: f64,
    /// Cosine of z_H over the puzzles that both answer alike in every token; `None` if there is none.
    pub z_h_alike: Option<Cosine>,
}

/// One rounding alone, or all but none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundingCost {
    /// What was rounded.
    pub rounding: String,
    /// Mean of `1 - cosine` of z_H after one segment.
    pub first: f64,
    /// The same after the last.
    pub last: f64,
    /// Share of tokens answered as in float after the last.
    pub tokens: f64,
}

/// What quantisation did to a model.
#[derive(Clone, Debug, Serialize)]
pub struct FidelityReport {
    /// Puzzles compared.
    pub puzzles: usize,
    /// By segment.
    pub segments: Vec<SegmentAgreement>,
    /// Each rounding alone in the float network; empty if it was not asked for.
    pub roundings: Vec<RoundingCost>,
    /// What the int8 ranges cut off in calibration.
    pub saturation: Vec<Saturation>,
}

/// Both states and the answer after a segment.
struct State {
    z_h: Vec<f32>,
    z_l: Vec<f32>,
    tokens: Vec<u8>,
}

/// Cosines of z_H and z_L, and equal tokens.
type Likeness = (f64, f64, usize);

pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    if aa * bb > 0.0 { ab / (aa * bb).sqrt() } else { f64::from(aa == bb) }
}

fn likeness(a: &State, b: &State) -> Likeness {
    (cosine(&a.z_h, &b.z_h), cosine(&a.z_l, &b.z_l), a.tokens.iter().zip(&b.tokens).filter(|(a, b)| a == b).count())
}

fn float_states(net: &FloatNet, tokens: &[u8], segments: usize, start: (u64, u64), tap: &mut dyn Tap) -> anyhow::Result<Vec<State>> {
    let x = net.embed(tokens)?;
    let start = random_start(&net.weights().spec.config, start.0, start.1);
    let mut carry = net.start(start.as_ref().map(|(h, l)| (h.as_slice(), l.as_slice())));
    Ok((0..segments)
        .map(|_| {
            let answer = net.segment(&x, &mut carry, tap);
            State { z_h: carry.z_h.clone(), z_l: carry.z_l.clone(), tokens: answer.tokens }
        })
        .collect())
}

/// Runs both networks from the same starts (those of guess `i` of `seed` for puzzle `i`) for `segments` segments and compares them.
///
/// # Errors
/// A puzzle does not fit to the model, or float and integer model have different shapes.
pub fn agreement(net: &FloatNet, int8: &Int8, puzzles: &[&[u8]], segments: usize, seed: u64) -> anyhow::Result<Vec<SegmentAgreement>> {
    ensure!(!puzzles.is_empty() && segments > 0, "a comparison needs at least one puzzle and one segment");
    ensure!(
        *int8.view()?.config() == net.weights().spec.config,
        "the int8 model has another architecture than the float model: {:?}, expected {:?}",
        int8.view()?.config(),
        net.weights().spec.config
    );
    let each: Vec<Vec<Likeness>> = int8.each(puzzles, |i, run| {
        let float = float_states(net, puzzles[i], segments, (seed, i as u64), &mut ())?;
        run.start(puzzles[i], seed, i as u64).with_context(|| format!("puzzle {i}"))?;
        let real = |z: &[i16]| z.iter().map(|&z| f32::from(z) / 1024.0).collect();
        float
            .iter()
            .map(|state| {
                run.segment()?;
                let (h, l) = run.carry();
                Ok(likeness(state, &State { z_h: real(h), z_l: real(l), tokens: run.answer().to_vec() }))
            })
            .collect()
    })?;
    let tokens = puzzles[0].len();
    Ok((0..segments)
        .map(|s| {
            let at = || each.iter().map(|puzzle| puzzle[s]);
            let alike: Vec<f64> = at().filter(|l| l.2 == tokens).map(|l| l.0).collect();
            SegmentAgreement {
                segment: s + 1,
                z_h: Cosine::new(at().map(|l| l.0).collect()),
                z_l: Cosine::new(at().map(|l| l.1).collect()),
                tokens: at().map(|l| l.2).sum::<usize>() as f64 / (each.len() * tokens) as f64,
                answers: alike.len() as f64 / each.len() as f64,
                z_h_alike: (!alike.is_empty()).then(|| Cosine::new(alike)),
            }
        })
        .collect())
}

/// Rounds one kind of tensor at a time in the float network, then all of them.
///
/// # Errors
/// A puzzle does not fit to the model.
pub fn rounding_costs(model: &Quantized, puzzles: &[&[u8]], segments: usize, seed: u64) -> anyhow::Result<Vec<RoundingCost>> {
    ensure!(!puzzles.is_empty() && segments > 0, "a comparison needs at least one puzzle and one segment");
    let net = FloatNet::new(model.weights.clone());
    let run = |net: &FloatNet, tap: &(dyn Fn() -> Box<dyn Tap> + Sync)| -> anyhow::Result<Vec<Vec<State>>> {
        puzzles.par_iter().enumerate().map(|(i, p)| float_states(net, p, segments, (seed, i as u64), tap().as_mut())).collect()
    };
    let exact = run(&net, &|| Box::new(()))?;
    let cost = |name: String, kinds: &[Rounding]| -> anyhow::Result<RoundingCost> {
        let (rounded, fake) = simulated(&model.weights, &model.plan, kinds);
        let states = run(&rounded, &|| Box::new(fake.clone()))?;
        let mean = |s: usize| exact.iter().zip(&states).map(|(a, b)| 1.0 - likeness(&a[s], &b[s]).0).sum::<f64>() / exact.len() as f64;
        let same: usize = exact.iter().zip(&states).map(|(a, b)| likeness(&a[segments - 1], &b[segments - 1]).2).sum();
        let tokens = same as f64 / (exact.len() * puzzles[0].len()) as f64;
        Ok(RoundingCost { rounding: name, first: mean(0), last: mean(segments - 1), tokens })
    };
    let mut costs = Vec::new();
    for kind in Rounding::ALL {
        let one = cost(kind.to_string(), &[kind])?;
        if one.first > 0.0 {
            costs.push(one);
        }
    }
    costs.push(cost("all".into(), &Rounding::ALL)?);
    Ok(costs)
}

impl fmt::Display for FidelityReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "float against int8 from the same starts, {} puzzles; cosines: mean, median, 5th percentile", self.puzzles)?;
        writeln!(f, "segment  z_H                      z_L                      tokens     answers    z_H where answers agree")?;
        for s in self.segments.iter().filter(|s| s.segment.is_power_of_two() || s.segment == self.segments.len()) {
            let alike = s.z_h_alike.map_or_else(|| "-".to_owned(), |c| c.to_string());
            writeln!(f, "{:7}  {}  {}  {:7.3} %  {:7.2} %  {alike}", s.segment, s.z_h, s.z_l, 100.0 * s.tokens, 100.0 * s.answers)?;
        }
        if let (Some(_), Some(last)) = (self.roundings.first(), self.segments.last()) {
            writeln!(f, "one rounding alone: 1 - cosine of z_H after segment 1 and {}, tokens as in float", last.segment)?;
            for r in &self.roundings {
                writeln!(f, "{:18}  {:.2e}  {:.2e}  {:7.3} %", r.rounding, r.first, r.last, 100.0 * r.tokens)?;
            }
        }
        if !self.saturation.is_empty() {
            writeln!(f, "int8 ranges in calibration: largest value, end of the range, share cut off")?;
            for s in &self.saturation {
                writeln!(f, "{:28}  {:9.3}  {:9.3}  {:.4} %", s.site, s.max, s.clip, 100.0 * s.share)?;
            }
        }
        Ok(())
    }
}
