//! Heads and losses of one puzzle: symbols of the cells, and whether to halt.

use crate::engine::{EngineOptions, Loss, RowOutcome};

use super::layout::{Dims, Packed};

/// Answers from `z_H` of one puzzle, `[R][Cp]`: tokens `[S]` and the halt logit. `logits` has room for `[S][symbols]`.
pub fn answer(d: &Dims, w: &Packed, z: &[f32], logits: &mut [f32], tokens: &mut [u8]) -> f32 {
    head(d, w, z, logits);
    let width = logits.len() / d.s;
    for (token, logits) in tokens.iter_mut().zip(logits.chunks_exact(width)) {
        *token = token_of(d, largest(logits));
    }
    halt(d, w, z)
}

/// Symbols a cell can be answered with: fields, or the vocabulary.
pub fn symbols(d: &Dims) -> usize {
    if d.f > 1 { d.f } else { d.head }
}

fn token_of(d: &Dims, symbol: usize) -> u8 {
    (if d.f > 1 { symbol + 2 } else { symbol }) as u8
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for (l, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *l += a * b;
        }
    }
    lanes.iter().sum()
}

fn head(d: &Dims, w: &Packed, z: &[f32], logits: &mut [f32]) {
    for (row, out) in z.chunks_exact(d.cp).zip(logits.chunks_exact_mut(d.head)) {
        for (weights, out) in w.head.chunks_exact(d.cp).zip(out) {
            *out = dot(weights, row);
        }
    }
}

/// Sum of all rows.
fn pool(d: &Dims, z: &[f32]) -> Vec<f32> {
    let mut sum = vec![0.0; d.cp];
    for row in z.chunks_exact(d.cp) {
        for (s, v) in sum.iter_mut().zip(row) {
            *s += v;
        }
    }
    sum
}

fn halt(d: &Dims, w: &Packed, z: &[f32]) -> f32 {
    dot(&pool(d, z), &w.q) / d.r as f32 + w.q_bias
}

/// Index of the first largest value.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

/// Cross entropy of one cell against its label in f64; the logits become the gradient of that against the whole target, times `scale`.
/// `teacher`: probabilities of the symbols, and their share of the target.
pub fn cell(loss: Loss, logits: &mut [f32], label: usize, teacher: Option<(&[f32], f64)>, scale: f64) -> f64 {
    let target = |i: usize| {
        let own = f64::from(u8::from(i == label));
        teacher.map_or(own, |(p, share)| (1.0 - share) * own + share * f64::from(p[i]))
    };
    match loss {
        Loss::Softmax => {
            let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
            let total: f64 = logits.iter().map(|&v| f64::from(v - max).exp()).sum();
            let value = total.ln() - f64::from(logits[label] - max);
            for (i, v) in logits.iter_mut().enumerate() {
                let p = f64::from(*v - max).exp() / total;
                *v = (scale * (p - target(i))) as f32;
            }
            value
        }
        Loss::Stablemax => {
            let s = |x: f64| if x >= 0.0 { x + 1.0 } else { 1.0 / (1.0 - x) };
            let total: f64 = logits.iter().map(|&v| s(f64::from(v))).sum();
            let chosen = s(f64::from(logits[label]));
            for (i, v) in logits.iter_mut().enumerate() {
                let x = f64::from(*v);
                let slope = if x >= 0.0 { 1.0 } else { (1.0 - x).powi(-2) };
                let outer = 1.0 / total - target(i) / s(x);
                *v = (scale * outer * slope) as f32;
            }
            total.ln() - chosen.ln()
        }
    }
}

/// What the loss compares an answer with.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Tokens `[S]`; 0 does not count.
    pub labels: &'a [u8],
    /// Factor of the puzzle's loss.
    pub weight: f64,
    /// A teacher's probabilities, `[S][symbols]`, and their share of the target.
    pub teacher: Option<(&'a [f32], f64)>,
}

/// Loss and outcome of one puzzle; writes the gradient of `z_H` to `dz` and adds that of the heads to `grad` (padded).
#[allow(clippy::too_many_arguments)]
pub fn loss(
    d: &Dims,
    w: &Packed,
    opts: &EngineOptions,
    z: &[f32],
    target: Target<'_>,
    logits: &mut [f32],
    dz: &mut [f32],
    grad: &mut [f32],
) -> RowOutcome {
    let Target { labels, weight, teacher } = target;
    let q_halt = halt(d, w, z);
    head(d, w, z, logits);
    let width = symbols(d);
    let labelled = labels.iter().filter(|&&l| l != 0).count();
    let batch = opts.batch as f64;
    let scale = weight / (labelled.max(1) as f64 * batch);
    let (mut total, mut right) = (0.0, 0u16);
    for (i, (logits, &label)) in logits.chunks_exact_mut(width).zip(labels).enumerate() {
        if label == 0 {
            logits.fill(0.0);
            continue;
        }
        right += u16::from(token_of(d, largest(logits)) == label);
        let index = usize::from(label) - if d.f > 1 { 2 } else { 0 };
        let teacher = teacher.map(|(p, share)| (&p[i * width..(i + 1) * width], share));
        total += cell(opts.loss, logits, index, teacher, scale);
    }
    let exact = usize::from(right) == labelled;
    let sigmoid = 1.0 / (1.0 + (-f64::from(q_halt)).exp());
    let dq = (weight * opts.q_weight / batch * (sigmoid - f64::from(u8::from(exact)))) as f32;
    let share = dq / d.r as f32;
    for (dz, q) in dz.chunks_exact_mut(d.cp).flat_map(|row| row.iter_mut().zip(&w.q)) {
        *dz = share * q;
    }
    let (dhead, dq_out) = grad[d.grad_head..].split_at_mut(d.grad_q - d.grad_head);
    for ((z, dz), dlogits) in z.chunks_exact(d.cp).zip(dz.chunks_exact_mut(d.cp)).zip(logits.chunks_exact(d.head)) {
        for ((&g, weights), dw) in dlogits.iter().zip(w.head.chunks_exact(d.cp)).zip(dhead.chunks_exact_mut(d.cp)) {
            for (((dz, dw), w), z) in dz.iter_mut().zip(dw).zip(weights).zip(z) {
                *dz += g * w;
                *dw += g * z;
            }
        }
    }
    for (g, sum) in dq_out.iter_mut().zip(pool(d, z)) {
        *g += share * sum;
    }
    dq_out[d.cp] += dq;
    RowOutcome { loss: (total / labelled.max(1) as f64) as f32, q_halt, halt: q_halt > 0.0, cells: right, exact }
}
