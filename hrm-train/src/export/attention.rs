//! The attention sublayer as a graph.

use hrm_core::ModelView;
use hrm_core::config::Mixer;
use hrm_core::format;
use hrm_core::kernels::reference;

use super::graph::{Attr, Graph, Value};
use super::proto::Type;
use super::segment::{Norm, Projection};

/// Distances (Q8, base 2) from which on a softmax weight is 0.
const FAR: usize = 14 << 8;

pub(super) struct Attention {
    m_in: i16,
    m_qkv: [i16; 3],
    m_out: i16,
    m_score: u32,
    residual_shift: u32,
    qkv: Projection,
    out: Projection,
    rows: usize,
    heads: usize,
    channels: usize,
    /// Q15 cosines and sines, `[R, d / 2]`.
    rope: Option<[Value; 2]>,
    /// `[H, R, R]`, where a row must not look: a number far below any score (else 0), and `FAR` (else 0).
    mask: Option<[Value; 2]>,
    /// Softmax weight (Q13) by distance, `[FAR + 1]`.
    weights: Value,
}

impl Attention {
    pub(super) fn new(g: &mut Graph, view: &ModelView<'_>, a: &format::Attention<'_>) -> Self {
        let c = view.config();
        let (rows, heads, channels) = (c.rows(), usize::from(c.heads), usize::from(c.channels));
        let rope = c.rope.then(|| {
            let (cos, sin) = view.rope();
            [cos, sin].map(|t| g.constant(Type::Int64, &[rows, t.len() / rows], t.iter().map(|&v| i64::from(v))))
        });
        let mask = (c.mixer == Mixer::GroupAttention).then(|| {
            let apart = |i: usize| {
                let ids = view.groups(i / (rows * rows) % usize::from(c.groupings));
                ids[i / rows % rows] != ids[i % rows]
            };
            let mut table = |ty: Type, value: i64| {
                g.constant(ty, &[heads, rows, rows], (0..heads * rows * rows).map(|i| if apart(i) { value } else { 0 }))
            };
            [table(Type::Int32, -(1 << 29)), table(Type::Int64, FAR as i64)]
        });
        Self {
            m_in: a.m_in,
            m_qkv: a.m_qkv,
            m_out: a.m_out,
            m_score: a.m_score,
            residual_shift: a.residual_shift,
            qkv: Projection::new(g, &a.qkv, channels),
            out: Projection::new(g, &a.out, channels),
            rows,
            heads,
            channels,
            rope,
            mask,
            // A distance of t is (t << 16) times a multiplier of 1.
            weights: g.constant(Type::Int32, &[FAR + 1], (0..=FAR).map(|t| i64::from(reference::softmax_weight((t as u32) << 16, 1)))),
        }
    }

    /// The sublayer on `x` `[R, C]`.
    pub(super) fn apply(&self, g: &mut Graph, x: &Value, norm: &Norm) -> Value {
        let d = self.channels / self.heads;
        let a = g.view8(x, self.m_in);
        let qkv = self.qkv.apply(g, &a);
        let [q, k, v] = [0, 1, 2].map(|i| {
            let part = g.slice(&qkv, 1, i * self.channels, (i + 1) * self.channels);
            let part = g.reshape(&part, &[self.rows, self.heads, d]);
            let part = g.transpose(&part, &[1, 0, 2]);
            let part = if i < 2 { self.rotate(g, part, d) } else { part };
            g.view8(&part, self.m_qkv[i])
        });
        let k = g.transpose(&k, &[0, 2, 1]);
        let scores = g.matmul(&q, &k);
        let p = self.softmax(g, &scores);
        let total = g.reduce_sum(&p, 2);
        // A weight has 14 bits: two 7-bit halves, each a matmul of bytes.
        let high = g.div_scalar(Type::Int32, &p, 128);
        let high_part = g.mul_scalar(Type::Int32, &high, -128);
        let low = g.add(&p, &high_part);
        let [high, low] = [high, low].map(|half| {
            let half = g.cast(&half, Type::Int8);
            g.matmul(&half, &v)
        });
        let high = g.mul_scalar(Type::Int32, &high, 128);
        let sum = g.add(&high, &low);
        let sum = g.cast(&sum, Type::Int64);
        let total = g.cast(&total, Type::Int64);
        let one = g.scalar(Type::Int64, 1 << 40);
        let reciprocal = g.div(&one, &total);
        let average = g.mul(&sum, &reciprocal);
        // Averages of bytes: below 2^47.
        let average = g.shift_down(Type::Int64, &average, 1 << 32, 33, 48);
        let average = g.cast(&average, Type::Int32);
        let average = g.view8(&average, self.m_out);
        let average = g.transpose(&average, &[1, 0, 2]);
        let average = g.reshape(&average, &[self.rows, self.channels]);
        let out = self.out.apply(g, &average);
        norm.apply(g, x, self.residual_shift, &out, self.channels)
    }

    /// RoPE on `[H, R, d]`.
    fn rotate(&self, g: &mut Graph, x: Value, d: usize) -> Value {
        let Some([cos, sin]) = &self.rope else { return x };
        let wide = g.cast(&x, Type::Int64);
        let (a, b) = (g.slice(&wide, 2, 0, d / 2), g.slice(&wide, 2, d / 2, d));
        let negative_b = g.mul_scalar(Type::Int64, &b, -1);
        let [first, second] = [(&a, &negative_b), (&b, &a)].map(|(x, y)| {
            let (x, y) = (g.mul(x, cos), g.mul(y, sin));
            let sum = g.add(&x, &y);
            let sum = g.shift_down(Type::Int64, &sum, 1 << 14, 15, 32);
            g.sat16(Type::Int64, &sum)
        });
        let both = g.concat(&[&first, &second], 2);
        g.cast(&both, Type::Int32)
    }

    /// Weights (Q13) of scores `[H, R, R]`.
    fn softmax(&self, g: &mut Graph, scores: &Value) -> Value {
        let visible = match &self.mask {
            Some([hide, _]) => g.add(scores, hide),
            None => scores.clone(),
        };
        let max = g.op("ReduceMax", &[&visible], &[Attr::Ints("axes", &[2]), Attr::Int("keepdims", 1)]);
        let below = g.op("Sub", &[&max, scores], &[]);
        let below = g.cast(&below, Type::Int64);
        // Below 0 only where the mask decides.
        let t = g.at_least(Type::Int64, &below, 0);
        let t = g.mul_scalar(Type::Int64, &t, i64::from(self.m_score));
        let t = g.div_scalar(Type::Int64, &t, 1 << 16);
        let mut t = g.at_most(Type::Int64, &t, FAR as i64);
        if let Some([_, far]) = &self.mask {
            t = g.op("Max", &[&t, far], &[]);
        }
        g.gather(&self.weights, &t)
    }
}
