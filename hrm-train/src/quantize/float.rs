//! The float network in plain loops, for every mixer, with a tap at each place where the integer network rounds.
//!
//! A tap sees the values and may change them: calibration only looks, the simulation of int8 rounds. Unlike the engines it mirrors the
//! *integer* network's steps (plain group sums of the view, RoPE before the views of q and k), so each tap has an exact counterpart.

use anyhow::ensure;

use super::weights::{BlockWeights, Gated, Linear, NetWeights};
use hrm_core::Mixer;

/// What is tapped inside a sublayer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Input of attention, `[R, C]`.
    AttentionInput,
    /// Queries after RoPE, `[R, C]`.
    Query,
    /// Keys after RoPE, `[R, C]`.
    Key,
    /// Values, `[R, C]`.
    Value,
    /// What attention reads before its output matrix, `[R, C]`.
    AttentionOutput,
    /// Input of a gated MLP: `[R, C]`, or `[C, R]` over tokens.
    Input,
    /// Plain sums of the input over the groups of one grouping, `[groups, C]`.
    Sum(u8),
    /// Gate before silu, `[rows, I]`.
    Gate,
    /// The other half, `[rows, I]`.
    Up,
    /// `silu(gate) * up`, `[rows, I]`.
    Hidden,
    /// Output of a sublayer's last matrix, `[rows, width]`.
    Delta,
    /// The stream plus the sublayer's output, before the norm, `[rows, width]`.
    Residual,
    /// The stream after the norm, `[rows, width]`.
    Stream,
    /// z_H as the head reads it, `[R, C]`.
    HeadInput,
}

/// Which sublayer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sublayer {
    /// Attention.
    Attention,
    /// Gated MLP over tokens.
    Token,
    /// Gated MLP over channels.
    Mlp,
    /// The heads.
    Head,
}

/// A place in the network. A shared module's places serve both updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Stored module: 0 = L or shared, 1 = H.
    pub module: u8,
    /// Block of the module.
    pub layer: u8,
    /// Sublayer of the block.
    pub sublayer: Sublayer,
    /// Where in the sublayer.
    pub part: Part,
}

impl Site {
    /// The head's input.
    pub const HEAD: Self = Self { module: 0, layer: 0, sublayer: Sublayer::Head, part: Part::HeadInput };
}

/// Looks at values on their way, and may change them.
pub trait Tap {
    /// `values` is `[rows, width]`.
    fn tap(&mut self, site: Site, width: usize, values: &mut [f32]);
}

/// Changes nothing.
impl Tap for () {
    fn tap(&mut self, _: Site, _: usize, _: &mut [f32]) {}
}

/// Both states, `[R, C]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Carry {
    /// Slow state.
    pub z_h: Vec<f32>,
    /// Fast state.
    pub z_l: Vec<f32>,
}

/// What the heads read.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `[R of the task's tokens, head width]`.
    pub logits: Vec<f32>,
    /// Tokens `[S]`.
    pub tokens: Vec<u8>,
    /// Halt output and, where there is one, the continue output.
    pub q: Vec<f32>,
}

/// A matrix transposed for rows of inputs, `[in, out]`.
struct Transposed {
    w: Vec<f32>,
    bias: Vec<f32>,
    inp: usize,
    out: usize,
}

impl Transposed {
    fn new(l: &Linear) -> Self {
        let w = (0..l.w.len()).map(|i| l.w[(i % l.out) * l.inp + i / l.out]).collect();
        Self { w, bias: l.bias.clone(), inp: l.inp, out: l.out }
    }

    /// `out[r] += x[r] W[first..first + k]`, four rows at a time.
    fn accumulate(&self, x: &[f32], first: usize, k: usize, out: &mut [f32]) {
        let n = self.out;
        let w = &self.w[first * n..(first + k) * n];
        let whole = x.len() / k / 4 * 4;
        let (x4, x1) = x.split_at(whole * k);
        let (out4, out1) = out.split_at_mut(whole * n);
        for (x, out) in x4.chunks_exact(4 * k).zip(out4.chunks_exact_mut(4 * n)) {
            let (o0, rest) = out.split_at_mut(n);
            let (o1, rest) = rest.split_at_mut(n);
            let (o2, o3) = rest.split_at_mut(n);
            for (j, w) in w.chunks_exact(n).enumerate() {
                let (a, b, c, d) = (x[j], x[k + j], x[2 * k + j], x[3 * k + j]);
                for ((((o0, o1), o2), o3), &w) in o0.iter_mut().zip(o1.iter_mut()).zip(o2.iter_mut()).zip(o3.iter_mut()).zip(w) {
                    *o0 += a * w;
                    *o1 += b * w;
                    *o2 += c * w;
                    *o3 += d * w;
                }
            }
        }
        for (x, out) in x1.chunks_exact(k).zip(out1.chunks_exact_mut(n)) {
            for (&x, w) in x.iter().zip(w.chunks_exact(n)) {
                for (o, &w) in out.iter_mut().zip(w) {
                    *o += x * w;
                }
            }
        }
    }

    fn biased(&self, rows: usize) -> Vec<f32> {
        self.bias.repeat(rows)
    }

    fn project(&self, x: &[f32]) -> Vec<f32> {
        let mut out = self.biased(x.len() / self.inp);
        self.accumulate(x, 0, self.inp, &mut out);
        out
    }
}

struct GatedNet {
    up: Transposed,
    down: Transposed,
}

impl GatedNet {
    fn new(g: &Gated) -> Self {
        Self { up: Transposed::new(&g.up), down: Transposed::new(&g.down) }
    }
}

struct BlockNet {
    attention: Option<(Transposed, Transposed)>,
    token: Option<GatedNet>,
    mlp: GatedNet,
}

/// The float network.
pub struct FloatNet {
    weights: NetWeights,
    modules: Vec<Vec<BlockNet>>,
    /// `[G][R]` group of each row, and the number of groups.
    groups: Vec<(Vec<usize>, usize)>,
}

impl FloatNet {
    /// Prepares a model's weights.
    #[must_use]
    pub fn new(weights: NetWeights) -> Self {
        let block = |b: &BlockWeights| BlockNet {
            attention: b.attention.as_ref().map(|(qkv, out)| (Transposed::new(qkv), Transposed::new(out))),
            token: b.token.as_ref().map(GatedNet::new),
            mlp: GatedNet::new(&b.mlp),
        };
        let modules = weights.modules.iter().map(|blocks| blocks.iter().map(block).collect()).collect();
        let fields = usize::from(weights.spec.config.fields);
        let groups = weights.spec.groupings.iter().map(|grouping| {
            let count = grouping.ids.iter().max().map_or(0, |&id| usize::from(id) + 1);
            let merged = grouping.merge_fields;
            let of = (0..weights.spec.config.rows()).map(|r| {
                let id = usize::from(grouping.ids[r / fields]);
                if merged { id } else { id * fields + r % fields }
            });
            (of.collect(), if merged { count } else { count * fields })
        });
        Self { modules, groups: groups.collect(), weights }
    }

    /// The weights.
    #[must_use]
    pub const fn weights(&self) -> &NetWeights {
        &self.weights
    }

    /// The fixed start, or that of the given Q5.10 states (`[R, C]`; the integer network's own random start).
    #[must_use]
    pub fn start(&self, states: Option<(&[i16], &[i16])>) -> Carry {
        let rows = self.weights.spec.config.rows();
        match states {
            Some((h, l)) => {
                let real = |z: &[i16]| z.iter().map(|&z| f32::from(z) / 1024.0).collect();
                Carry { z_h: real(h), z_l: real(l) }
            }
            None => Carry { z_h: self.weights.init[0].repeat(rows), z_l: self.weights.init[1].repeat(rows) },
        }
    }

    /// Embedded input, `[R, C]`.
    ///
    /// # Errors
    /// The number of tokens is wrong, or a token is outside the vocabulary.
    pub fn embed(&self, tokens: &[u8]) -> anyhow::Result<Vec<f32>> {
        let c = &self.weights.spec.config;
        let (ch, fields) = (usize::from(c.channels), usize::from(c.fields));
        ensure!(tokens.len() == usize::from(c.tokens), "the puzzle has {} tokens, the model reads {}", tokens.len(), c.tokens);
        let mut x = self.weights.prefix.clone();
        for (t, &token) in tokens.iter().enumerate() {
            ensure!(u16::from(token) < c.vocab, "token {token} at position {t}, expected 0 to {}", c.vocab - 1);
            for f in 0..fields {
                let class = match usize::from(token) {
                    t if fields == 1 => t,
                    0 | 1 => 0,
                    t if t == f + 2 => 1,
                    _ => 2,
                };
                x.extend_from_slice(&self.weights.embed[class * ch..(class + 1) * ch]);
            }
        }
        Ok(x)
    }

    /// One segment; `x` is the embedded input.
    pub fn segment(&self, x: &[f32], carry: &mut Carry, tap: &mut dyn Tap) -> Answer {
        let c = self.weights.spec.config;
        for _ in 0..c.h_cycles {
            for _ in 0..c.l_cycles {
                for ((l, &h), &x) in carry.z_l.iter_mut().zip(&carry.z_h).zip(x) {
                    *l += h + x;
                }
                self.module(0, &mut carry.z_l, tap);
            }
            for (h, &l) in carry.z_h.iter_mut().zip(&carry.z_l) {
                *h += l;
            }
            self.module(c.modules() - 1, &mut carry.z_h, tap);
        }
        self.answer(&carry.z_h, tap)
    }

    fn module(&self, module: usize, z: &mut Vec<f32>, tap: &mut dyn Tap) {
        let ch = usize::from(self.weights.spec.config.channels);
        for (layer, block) in self.modules[module].iter().enumerate() {
            let site = |sublayer| Site { module: module as u8, layer: layer as u8, sublayer, part: Part::Input };
            if let Some((qkv, out)) = &block.attention {
                self.attention(qkv, out, z, site(Sublayer::Attention), tap);
            }
            if let Some(token) = &block.token {
                let rows = z.len() / ch;
                let mut transposed = transpose(z, ch);
                gated(token, &[], &mut transposed, rows, site(Sublayer::Token), tap);
                *z = transpose(&transposed, rows);
            }
            let groups: &[_] = if self.weights.spec.config.mixer == Mixer::GroupSum { &self.groups } else { &[] };
            gated(&block.mlp, groups, z, ch, site(Sublayer::Mlp), tap);
        }
    }

    fn attention(&self, qkv: &Transposed, out: &Transposed, z: &mut [f32], site: Site, tap: &mut dyn Tap) {
        let c = &self.weights.spec.config;
        let (ch, heads) = (usize::from(c.channels), usize::from(c.heads));
        let (rows, d) = (z.len() / ch, ch / heads);
        let mut tap = |part, values: &mut [f32]| tap.tap(Site { part, ..site }, ch, values);
        let mut input = z.to_vec();
        tap(Part::AttentionInput, &mut input);
        let all = qkv.project(&input);
        let mut views =
            [0, 1, 2].map(|j| all.chunks_exact(3 * ch).flat_map(|row| row[j * ch..(j + 1) * ch].iter().copied()).collect::<Vec<f32>>());
        if c.rope {
            for view in &mut views[..2] {
                for (r, row) in view.chunks_exact_mut(ch).enumerate() {
                    let table = r * d / 2..(r + 1) * d / 2;
                    let (cos, sin) = (&self.weights.rope.0[table.clone()], &self.weights.rope.1[table]);
                    for head in row.chunks_exact_mut(d) {
                        let (a, b) = head.split_at_mut(d / 2);
                        for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                        }
                    }
                }
            }
        }
        for (view, part) in views.iter_mut().zip([Part::Query, Part::Key, Part::Value]) {
            tap(part, view);
        }
        let [q, k, v] = views;
        let scale = 1.0 / (d as f32).sqrt();
        let mut output = vec![0.0; rows * ch];
        let mut scores = vec![0.0f32; rows];
        for h in 0..heads {
            let group = (c.mixer == Mixer::GroupAttention).then(|| &self.groups[h % self.groups.len()].0);
            for r in 0..rows {
                let at = |row: usize| row * ch + h * d..row * ch + (h + 1) * d;
                let mut max = f32::NEG_INFINITY;
                for (key, score) in scores.iter_mut().enumerate() {
                    let same = group.is_none_or(|g| g[key] == g[r]);
                    *score =
                        if same { q[at(r)].iter().zip(&k[at(key)]).map(|(a, b)| a * b).sum::<f32>() * scale } else { f32::NEG_INFINITY };
                    max = max.max(*score);
                }
                let mut total = 0.0;
                for score in &mut scores {
                    *score = (*score - max).exp();
                    total += *score;
                }
                let out = &mut output[at(r)];
                for (key, &p) in scores.iter().enumerate().filter(|(_, p)| **p > 0.0) {
                    for (o, &v) in out.iter_mut().zip(&v[at(key)]) {
                        *o += p / total * v;
                    }
                }
            }
        }
        tap(Part::AttentionOutput, &mut output);
        let mut delta = out.project(&output);
        tap(Part::Delta, &mut delta);
        add(z, &delta);
        tap(Part::Residual, z);
        norm(z, ch);
        tap(Part::Stream, z);
    }

    /// The heads on a state of z_H, `[R, C]`.
    #[must_use]
    pub fn heads(&self, z_h: &[f32]) -> Answer {
        self.answer(z_h, &mut ())
    }

    fn answer(&self, z_h: &[f32], tap: &mut dyn Tap) -> Answer {
        let w = &self.weights;
        let c = &w.spec.config;
        let (ch, fields) = (usize::from(c.channels), usize::from(c.fields));
        let mut view = z_h.to_vec();
        tap.tap(Site::HEAD, ch, &mut view);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let task_rows = &view[usize::from(c.prefix) * ch..];
        let logits: Vec<f32> = task_rows
            .chunks_exact(ch)
            .flat_map(|row| w.head.w.chunks_exact(ch).zip(&w.head.bias).map(move |(w, b)| dot(w, row) + b))
            .collect();
        let tokens = logits
            .chunks_exact(logits.len() / usize::from(c.tokens))
            .map(|l| (0..l.len()).fold(0, |best, i| if l[i] > l[best] { i } else { best }))
            .map(|best| (best + if fields > 1 { 2 } else { 0 }) as u8);
        let rows = w.q_rows();
        let q =
            w.q.w
                .chunks_exact(ch)
                .zip(&w.q.bias)
                .map(|(w, b)| z_h[..rows * ch].chunks_exact(ch).map(|z| dot(w, z)).sum::<f32>() / rows as f32 + b);
        Answer { tokens: tokens.collect(), q: q.collect(), logits }
    }
}

/// Gated MLP on the rows of `x` (`[rows, width]`), in place, with the norm.
fn gated(net: &GatedNet, groups: &[(Vec<usize>, usize)], x: &mut [f32], width: usize, site: Site, tap: &mut dyn Tap) {
    let inner = net.down.inp;
    let rows = x.len() / width;
    let at = |part| Site { part, ..site };
    let mut input = x.to_vec();
    tap.tap(at(Part::Input), width, &mut input);
    let mut pre = net.up.biased(rows);
    net.up.accumulate(&input, 0, width, &mut pre);
    for (g, (of, count)) in groups.iter().enumerate() {
        let mut sums = vec![0.0; count * width];
        for (row, &group) in input.chunks_exact(width).zip(of) {
            for (s, &x) in sums[group * width..].iter_mut().zip(row) {
                *s += x;
            }
        }
        tap.tap(at(Part::Sum(g as u8)), width, &mut sums);
        let mut product = vec![0.0; count * 2 * inner];
        net.up.accumulate(&sums, (1 + g) * width, width, &mut product);
        for (pre, &group) in pre.chunks_exact_mut(2 * inner).zip(of) {
            for (o, &p) in pre.iter_mut().zip(&product[group * 2 * inner..]) {
                *o += p;
            }
        }
    }
    let half = |j: usize| pre.chunks_exact(2 * inner).flat_map(|row| row[j * inner..(j + 1) * inner].iter().copied()).collect::<Vec<f32>>();
    let (mut gate, mut up) = (half(0), half(1));
    tap.tap(at(Part::Gate), inner, &mut gate);
    tap.tap(at(Part::Up), inner, &mut up);
    let mut hidden: Vec<f32> = gate.iter().zip(&up).map(|(&g, &u)| g / (1.0 + (-g).exp()) * u).collect();
    tap.tap(at(Part::Hidden), inner, &mut hidden);
    let mut delta = net.down.project(&hidden);
    tap.tap(at(Part::Delta), width, &mut delta);
    add(x, &delta);
    tap.tap(at(Part::Residual), width, x);
    norm(x, width);
    tap.tap(at(Part::Stream), width, x);
}

fn add(x: &mut [f32], delta: &[f32]) {
    for (x, d) in x.iter_mut().zip(delta) {
        *x += d;
    }
}

/// `x <- rms(x)` row by row.
fn norm(x: &mut [f32], width: usize) {
    for x in x.chunks_exact_mut(width) {
        let sum: f32 = x.iter().map(|x| x * x).sum();
        let scale = 1.0 / (sum / width as f32 + 1e-5).sqrt();
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

/// `[n, width]` to `[width, n]`.
fn transpose(x: &[f32], width: usize) -> Vec<f32> {
    let n = x.len() / width;
    (0..x.len()).map(|i| x[(i % n) * width + i / n]).collect()
}
