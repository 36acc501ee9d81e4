//! Ranges tried out: the squared error of single values says little about what a range does to the state after thousands of products, so
//! each range is narrowed or widened as long as the simulated integer network stays closer to the float one.

use rayon::prelude::*;

use super::QuantizeOptions;
use super::float::{Carry, FloatNet, Site};
use super::observe::{Statistics, random_start};
use super::plan::{ModelPlan, plan, ranges};
use super::report::cosine;
use super::simulate::{Rounding, simulated};

/// Segments (from 0) whose starts are compared from: both networks leave from the float state, so that errors do not add up into chaos.
const SEGMENTS: [usize; 5] = [0, 1, 3, 7, 15];
/// Puzzles compared.
const PUZZLES: usize = 8;

/// A state on the float network's way, and where it is one segment later.
struct Step {
    x: Vec<f32>,
    from: Carry,
    to: Carry,
}

fn steps(net: &FloatNet, puzzles: &[&[u8]], segments: usize, seed: u64) -> anyhow::Result<Vec<Step>> {
    let n = puzzles.len().min(PUZZLES);
    let chosen: Vec<usize> = (0..n).map(|i| i * puzzles.len() / n).collect();
    let one = |&i: &usize| -> anyhow::Result<Vec<Step>> {
        let x = net.embed(puzzles[i])?;
        let start = random_start(&net.weights().spec.config, seed, i as u64);
        let mut carry = net.start(start.as_ref().map(|(h, l)| (h.as_slice(), l.as_slice())));
        let mut steps = Vec::new();
        for segment in 0..segments.min(16) {
            let from = carry.clone();
            net.segment(&x, &mut carry, &mut ());
            if SEGMENTS.contains(&segment) {
                steps.push(Step { x: x.clone(), from, to: carry.clone() });
            }
        }
        Ok(steps)
    };
    let all: anyhow::Result<Vec<_>> = chosen.par_iter().map(one).collect();
    Ok(all?.into_iter().flatten().collect())
}

/// Mean of `1 - cosine` of both states after one segment with all roundings.
fn error(net: &FloatNet, plan: &ModelPlan, steps: &[Step]) -> f64 {
    let (rounded, fake) = simulated(net.weights(), plan, &Rounding::ALL);
    let one = |step: &Step| {
        let mut carry = step.from.clone();
        rounded.segment(&step.x, &mut carry, &mut fake.clone());
        2.0 - cosine(&carry.z_h, &step.to.z_h) - cosine(&carry.z_l, &step.to.z_l)
    };
    // Collected first: a parallel sum would depend on the number of threads.
    let each: Vec<f64> = steps.par_iter().map(one).collect();
    each.iter().sum::<f64>() / steps.len().max(1) as f64
}

/// Tries the ranges of all views one after the other and gives the plan with the best.
///
/// # Errors
/// As [`plan`]; a puzzle does not fit to the model.
pub fn tune(net: &FloatNet, stats: &Statistics, puzzles: &[&[u8]], options: &QuantizeOptions) -> anyhow::Result<ModelPlan> {
    let steps = steps(net, puzzles, options.segments, options.seed)?;
    let mut ranges = ranges(stats, options);
    let mut best = plan(net.weights(), stats, &ranges, options)?;
    let mut least = error(net, &best, &steps);
    let sites: Vec<Site> = ranges.keys().copied().filter(|&site| site != Site::HEAD).collect();
    for site in sites {
        // Down as long as it helps; up only if down did not.
        for ratio in [0.8, 1.25] {
            let mut helped = false;
            for _ in 0..4 {
                let mut tried = ranges.clone();
                tried.entry(site).or_default().iter_mut().for_each(|r| *r *= ratio);
                let candidate = plan(net.weights(), stats, &tried, options)?;
                let e = error(net, &candidate, &steps);
                if e >= least {
                    break;
                }
                (helped, least, best, ranges) = (true, e, candidate, tried);
            }
            if helped {
                break;
            }
        }
    }
    Ok(best)
}
