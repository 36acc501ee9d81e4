//! The `group-sum` network in plain loops: the oracle of the fused kernels, and the float model that calibration looks into.
//!
//! It shares nothing with the kernels but the random starts. In f32 it is some thirty times slower than [`FusedEngine`]; in f64 it is
//! exact enough for finite differences.
//!
//! [`FusedEngine`]: super::FusedEngine

use anyhow::{Context, ensure};
use hrm_core::Start;
use num_traits::Float;

use super::layout::{Dims, tensor};
use super::random::{Purpose, Stream};
use crate::engine::Tensors;
use crate::spec::ModelSpec;

/// Which state a module call updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Update {
    /// `z_L <- module_L(z_L + (z_H + x))`.
    L,
    /// `z_H <- module_H(z_H + z_L)`.
    H,
}

/// All that one block computed for one puzzle.
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a, T> {
    /// The call the block is part of.
    pub update: Update,
    /// Stored module: 0 = L or shared, 1 = H.
    pub module: usize,
    /// Block inside the module.
    pub block: usize,
    /// Input `[R][C]`.
    pub x: &'a [T],
    /// `s_g` of each grouping, times `alpha_g`, one row a group: `[groups of g][C]`.
    pub sums: &'a [Vec<T>],
    /// Pre-activations `[R][2 I]`: the gate `a`, then `b`.
    pub pre: &'a [T],
    /// `silu(a) * b`, `[R][I]`.
    pub hidden: &'a [T],
    /// `W_down hidden`, `[R][C]`.
    pub delta: &'a [T],
    /// `rms(x + delta)`, `[R][C]`.
    pub output: &'a [T],
}

/// Looks at every block as it runs: collects maxima and percentiles for quantisation.
pub trait Probe<T> {
    /// A block has run.
    fn block(&mut self, view: &BlockView<'_, T>);
}

/// Looks at nothing.
impl<T> Probe<T> for () {
    fn block(&mut self, _view: &BlockView<'_, T>) {}
}

/// The two states of one puzzle, `[R][C]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Carry<T> {
    /// Slow state.
    pub z_h: Vec<T>,
    /// Fast state.
    pub z_l: Vec<T>,
}

/// What the heads read from `z_H`.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<T> {
    /// `[R][head width]`; with fields this is `[S][F]`.
    pub logits: Vec<T>,
    /// Answered tokens `[S]`.
    pub tokens: Vec<u8>,
    /// Halt logit.
    pub q_halt: T,
}

struct Block<T> {
    /// Transposed, `[(1 + G) C][2 I]`, unscaled.
    up: Vec<T>,
    bias: Vec<T>,
    /// Transposed, `[I][C]`.
    down: Vec<T>,
}

/// A float network.
pub struct Reference<T> {
    d: Dims,
    modules: Vec<Vec<Block<T>>>,
    embed: Vec<T>,
    head: Vec<T>,
    q: Vec<T>,
    q_bias: T,
    init: [Vec<T>; 2],
}

fn cast<T: Float>(x: f32) -> T {
    T::from(x).unwrap_or_else(T::nan)
}

fn casts<T: Float>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| cast(x)).collect()
}

fn transpose<T: Float>(x: &[f32], columns: usize) -> Vec<T> {
    let rows = x.len() / columns;
    (0..x.len()).map(|i| cast(x[i % rows * columns + i / rows])).collect()
}

/// `out[r] += x[r] w` for `w` of `[in][out]`.
fn multiply<T: Float>(x: &[T], w: &[T], inputs: usize, outputs: usize, out: &mut [T]) {
    for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(outputs)) {
        for (&x, w) in x.iter().zip(w.chunks_exact(outputs)) {
            for (o, &w) in out.iter_mut().zip(w) {
                *o = *o + x * w;
            }
        }
    }
}

impl<T: Float> Reference<T> {
    /// Reads a model from its tensors (docs/architecture.md).
    ///
    /// # Errors
    /// The specification is not a valid `group-sum` model; a tensor is missing or has another shape.
    pub fn new(spec: &ModelSpec, weights: &Tensors) -> anyhow::Result<Self> {
        let d = Dims::new(spec)?;
        let width = (1 + d.g) * d.c;
        let modules = d
            .layers
            .iter()
            .enumerate()
            .map(|(m, &layers)| {
                (0..layers)
                    .map(|i| {
                        let name = format!("module.{m}.{i}");
                        let up = tensor(weights, &format!("{name}.up.weight"), &[2 * d.i, width])?;
                        let down = tensor(weights, &format!("{name}.down.weight"), &[d.c, d.i])?;
                        let bias = casts(tensor(weights, &format!("{name}.up.bias"), &[2 * d.i])?);
                        Ok(Block { up: transpose(up, width), bias, down: transpose(down, d.i) })
                    })
                    .collect::<anyhow::Result<Vec<_>>>()
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let read = |name: &str, shape: &[usize]| tensor(weights, name, shape).map(casts);
        Ok(Self {
            modules,
            embed: read("embed", &[d.classes, d.c])?,
            head: read("head.weight", &[d.head, d.c])?,
            q: read("q.weight", &[1, d.c])?,
            q_bias: read("q.bias", &[1])?[0],
            init: [read("init.H", &[d.c])?, read("init.L", &[d.c])?],
            d,
        })
    }

    /// Start of puzzle `index` of a run with this seed, the same as in `Engine::infer` of the fused engine.
    #[must_use]
    pub fn start(&self, seed: u64, index: u64) -> Carry<T> {
        let n = self.d.r * self.d.c;
        let stream = Stream::new(seed, Purpose::InferenceStart, index);
        let state = |half: usize| match self.d.spec.config.start {
            Start::Fixed => self.init[half].iter().copied().cycle().take(n).collect(),
            Start::Random => (0..n).map(|i| cast(stream.truncated((half * n + i) as u64))).collect(),
        };
        Carry { z_h: state(0), z_l: state(1) }
    }

    /// Embedded input of one puzzle, `[R][C]`.
    ///
    /// # Errors
    /// The number of tokens is not S, or a token is outside the vocabulary.
    pub fn embed(&self, tokens: &[u8]) -> anyhow::Result<Vec<T>> {
        let (s, f, c) = (self.d.s, self.d.f, self.d.c);
        ensure!(tokens.len() == s, "the puzzle has {} tokens, expected {s}", tokens.len());
        let mut x = Vec::with_capacity(s * f * c);
        for (t, &token) in tokens.iter().enumerate() {
            ensure!(u16::from(token) < self.d.spec.config.vocab, "token {token} in cell {t}, expected below {}", self.d.spec.config.vocab);
            for field in 0..f {
                let class = if f == 1 {
                    usize::from(token)
                } else if token < 2 {
                    0
                } else if usize::from(token) - 2 == field {
                    1
                } else {
                    2
                };
                x.extend_from_slice(&self.embed[class * c..(class + 1) * c]);
            }
        }
        Ok(x)
    }

    fn block(&self, update: Update, module: usize, block: usize, x: &[T], probe: &mut dyn Probe<T>) -> Vec<T> {
        let Dims { r, c, i: inner, g, .. } = self.d;
        let w = &self.modules[module][block];
        let mut pre: Vec<T> = w.bias.iter().copied().cycle().take(r * 2 * inner).collect();
        multiply(x, &w.up[..c * 2 * inner], c, 2 * inner, &mut pre);
        let mut sums = Vec::with_capacity(g);
        for j in 0..g {
            let base = self.d.group_base[j];
            let groups = self.d.group_base[j + 1] - base;
            let group = |row: usize| self.d.ids[row * g + j] as usize - base;
            let mut sum = vec![T::zero(); groups * c];
            for (row, x) in x.chunks_exact(c).enumerate() {
                for (s, &x) in sum[group(row) * c..].iter_mut().zip(x) {
                    *s = *s + x;
                }
            }
            let alpha = cast(self.d.alpha[j]);
            sum.iter_mut().for_each(|s| *s = *s * alpha);
            let mut product = vec![T::zero(); groups * 2 * inner];
            multiply(&sum, &w.up[(1 + j) * c * 2 * inner..][..c * 2 * inner], c, 2 * inner, &mut product);
            for (row, pre) in pre.chunks_exact_mut(2 * inner).enumerate() {
                for (o, &p) in pre.iter_mut().zip(&product[group(row) * 2 * inner..]) {
                    *o = *o + p;
                }
            }
            sums.push(sum);
        }
        let silu = |a: T| a / (T::one() + (-a).exp());
        let hidden: Vec<T> = pre.chunks_exact(2 * inner).flat_map(|pre| (0..inner).map(move |i| silu(pre[i]) * pre[inner + i])).collect();
        let mut delta = vec![T::zero(); r * c];
        multiply(&hidden, &w.down, inner, c, &mut delta);
        let mut output: Vec<T> = x.iter().zip(&delta).map(|(&x, &d)| x + d).collect();
        for row in output.chunks_exact_mut(c) {
            let mean = row.iter().fold(T::zero(), |s, &v| s + v * v) / cast(c as f32);
            // 1e-5 as the f32 the kernels use would differ from f64's by 1e-13 only.
            let scale = T::one() / (mean + cast(1e-5)).sqrt();
            row.iter_mut().for_each(|v| *v = *v * scale);
        }
        probe.block(&BlockView { update, module, block, x, sums: &sums, pre: &pre, hidden: &hidden, delta: &delta, output: &output });
        output
    }

    /// One module call: replaces `z_L` or `z_H`. `x` is the embedded input.
    pub fn update(&self, update: Update, x: &[T], carry: &mut Carry<T>, probe: &mut dyn Probe<T>) {
        let module = if update == Update::L { 0 } else { self.d.h_module() };
        let input = carry.z_l.iter().zip(&carry.z_h).zip(x).map(|((&l, &h), &x)| if update == Update::L { l + (h + x) } else { h + l });
        let mut z: Vec<T> = input.collect();
        for block in 0..self.d.layers[module] {
            z = self.block(update, module, block, &z, probe);
        }
        match update {
            Update::L => carry.z_l = z,
            Update::H => carry.z_h = z,
        }
    }

    /// The heads.
    #[must_use]
    pub fn answer(&self, z_h: &[T]) -> Answer<T> {
        let Dims { s, f, c, r, .. } = self.d;
        let dot = |a: &[T], b: &[T]| a.iter().zip(b).fold(T::zero(), |s, (&a, &b)| s + a * b);
        let logits: Vec<T> = z_h.chunks_exact(c).flat_map(|row| self.head.chunks_exact(c).map(move |w| dot(w, row))).collect();
        let tokens = logits
            .chunks_exact(logits.len() / s)
            .map(|l| (0..l.len()).fold(0, |best, i| if l[i] > l[best] { i } else { best }))
            .map(|best| (best + if f > 1 { 2 } else { 0 }) as u8)
            .collect();
        let total = z_h.chunks_exact(c).fold(T::zero(), |s, row| s + dot(&self.q, row));
        Answer { logits, tokens, q_halt: total / cast(r as f32) + self.q_bias }
    }

    /// One segment: all module calls, then the heads.
    pub fn segment(&self, x: &[T], carry: &mut Carry<T>, probe: &mut dyn Probe<T>) -> Answer<T> {
        for _ in 0..self.d.spec.config.h_cycles {
            for _ in 0..self.d.spec.config.l_cycles {
                self.update(Update::L, x, carry, probe);
            }
            self.update(Update::H, x, carry, probe);
        }
        self.answer(&carry.z_h)
    }
}

/// Runs one puzzle for `segments` segments from start `index` of `seed` and gives the carry and the answer after each.
///
/// # Errors
/// As [`Reference::new`] and [`Reference::embed`].
pub fn run(
    spec: &ModelSpec,
    weights: &Tensors,
    tokens: &[u8],
    segments: usize,
    seed: u64,
    index: u64,
    probe: &mut dyn Probe<f32>,
) -> anyhow::Result<Vec<(Carry<f32>, Answer<f32>)>> {
    let network = Reference::new(spec, weights)?;
    let x = network.embed(tokens).with_context(|| format!("puzzle {index}"))?;
    let mut carry = network.start(seed, index);
    Ok((0..segments)
        .map(|_| {
            let answer = network.segment(&x, &mut carry, probe);
            (carry.clone(), answer)
        })
        .collect())
}
