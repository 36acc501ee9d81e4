//! Update rules: AdamW (Loshchilov and Hutter 2019), Adam-atan2 (Everett et al. 2024) and Muon (Jordan et al. 2024), clipping, and the running mean of the weights.

use crate::engine::{EngineOptions, OptimizerKind};

use super::layout::Param;
use super::muon;
use super::simd::Isa;

/// Moments and step count.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// Running mean of the gradient.
    pub m: Vec<f32>,
    /// Running mean of its square.
    pub v: Vec<f32>,
    /// Steps done.
    pub step: u64,
}

impl Optimizer {
    /// Moments of zero.
    pub fn new(len: usize) -> Self {
        Self { m: vec![0.0; len], v: vec![0.0; len], step: 0 }
    }

    /// One step with learning rate `lr`. The gradient must be finite.
    pub fn step(&mut self, isa: Isa, opts: &EngineOptions, params: &[Param], weights: &mut [f32], grad: &[f32], lr: f64) {
        let norm = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        let shrink = if opts.clip > 0.0 && norm > opts.clip { (opts.clip / norm) as f32 } else { 1.0 };
        self.step += 1;
        let (b1, b2) = opts.betas;
        let exponent = self.step as f64;
        let c1 = 1.0 - b1.powf(exponent);
        let root2 = (1.0 - b2.powf(exponent)).sqrt();
        let (rate, inverse, b1, b2) = ((lr / c1) as f32, (1.0 / root2) as f32, b1 as f32, b2 as f32);
        let mut update = Vec::new();
        for p in params {
            let own = p.offset..p.offset + p.len;
            let keep = if p.decay { (1.0 - lr * opts.weight_decay) as f32 } else { 1.0 };
            let matrix = p.matrix.filter(|_| opts.optimizer == OptimizerKind::Muon);
            let rate = if matrix.is_some() { lr as f32 } else { rate };
            update.clear();
            for ((m, v), g) in self.m[own.clone()].iter_mut().zip(&mut self.v[own.clone()]).zip(&grad[own.clone()]) {
                let g = g * shrink;
                *m = b1 * *m + (1.0 - b1) * g;
                *v = b2 * *v + (1.0 - b2) * g * g;
                let denominator = v.sqrt() * inverse;
                update.push(match opts.optimizer {
                    OptimizerKind::AdamAtan2 => m.atan2(denominator),
                    // Nesterov's momentum: the gradient counts once more than in the mean.
                    OptimizerKind::Muon if matrix.is_some() => b1 * *m + (1.0 - b1) * g,
                    OptimizerKind::AdamW | OptimizerKind::Muon => *m / (denominator + 1e-8),
                });
            }
            if let Some((rows, columns)) = matrix {
                muon::orthogonalize(isa, &mut update, rows, columns);
            }
            for (w, u) in weights[own].iter_mut().zip(&update) {
                *w = *w * keep - rate * u;
            }
        }
    }
}

/// `mean = decay * mean + (1 - decay) * weights`.
pub fn average(mean: &mut [f32], weights: &[f32], decay: f64) {
    let (keep, add) = (decay as f32, (1.0 - decay) as f32);
    for (m, w) in mean.iter_mut().zip(weights) {
        *m = keep * *m + add * w;
    }
}
