//! The network of `hrm_core::network` and its gated MLP as a graph.

use hrm_core::ModelView;
use hrm_core::config::{Config, Mixer};
use hrm_core::format::{Block, GatedMlp, Matrix};
use hrm_core::kernels::reference;

use super::attention::Attention;
use super::graph::{Graph, Value};
use super::proto::{GraphProto, Type};

/// Weights of one matrix and its requantisation, made once and used in every cycle.
pub(super) struct Projection {
    /// `[k, n]` for each block of columns of the matrix: ONNX multiplies from the left.
    columns: Vec<Value>,
    /// `mult << shift`, `[n]`.
    mult: Value,
    /// `[n]`.
    bias: Value,
}

/// One grouping of `group-sum`.
struct Grouping {
    /// `[groups, R]` of 0 and 1.
    members: Value,
    /// `[R]`: group of each row.
    index: Value,
}

struct Mlp {
    m_in: i16,
    m_group: [i16; 8],
    residual_shift: u32,
    inner: usize,
    /// `silu` of every 16-bit gate, `[65536]`.
    silu: Value,
    up: Projection,
    down: Projection,
}

struct Layer {
    attention: Option<Attention>,
    token_mlp: Option<Mlp>,
    mlp: Mlp,
}

/// Constants of `norm`, `[1, 15]` or `[16]`, by `e`.
pub(super) struct Norm {
    /// `4^k - 1`, `k` from 1 to 15.
    below_powers: Value,
    /// `2^(30 - 2e)`.
    widen: Value,
    /// `2^(e + 4)` plus the offset that makes the dividend non-negative.
    half: Value,
    /// `2^(e + 5)`.
    divisor: Value,
    /// The offset divided by `2^(e + 5)`.
    restore: Value,
}

/// The graph of one segment.
pub(super) fn graph(view: &ModelView<'_>) -> GraphProto {
    let c = *view.config();
    let (rows, channels) = (c.rows(), usize::from(c.channels));
    let g = &mut Graph::default();
    let tokens = g.input("tokens", Type::Int64, &[usize::from(c.tokens)]);
    let mut z_h = g.input("z_h", Type::Int32, &[rows, channels]);
    let mut z_l = g.input("z_l", Type::Int32, &[rows, channels]);
    let network = Network::new(g, view);
    let e = embedding(g, view, &tokens);
    for _ in 0..c.h_cycles {
        for _ in 0..c.l_cycles {
            let injected = g.add(&z_h, &e);
            let injected = g.sat16(Type::Int32, &injected);
            let sum = g.add(&z_l, &injected);
            z_l = g.sat16(Type::Int32, &sum);
            z_l = network.module(g, 0, z_l);
        }
        let sum = g.add(&z_h, &z_l);
        z_h = g.sat16(Type::Int32, &sum);
        z_h = network.module(g, 1, z_h);
    }
    g.output(&z_h, "z_h_next", Type::Int32, &[rows, channels]);
    g.output(&z_l, "z_l_next", Type::Int32, &[rows, channels]);
    heads(g, view, &z_h);
    std::mem::take(g).finish("segment")
}

struct Network {
    config: Config,
    norm: Norm,
    groupings: Vec<Grouping>,
    modules: Vec<Vec<Layer>>,
}

impl Network {
    fn new(g: &mut Graph, view: &ModelView<'_>) -> Self {
        let config = *view.config();
        let norm = Norm::new(g);
        let mut silu: [Option<Value>; 5] = Default::default();
        let groupings = match config.mixer {
            Mixer::GroupSum => (0..usize::from(config.groupings)).map(|i| Grouping::new(g, view, i)).collect(),
            _ => Vec::new(),
        };
        let mut layer = |block: &Block<'_>| Layer {
            attention: block.attention.as_ref().map(|a| Attention::new(g, view, a)),
            token_mlp: block.token_mlp.as_ref().map(|m| Mlp::new(g, m, &mut silu, config.rows())),
            mlp: Mlp::new(g, &block.mlp, &mut silu, usize::from(config.channels)),
        };
        let modules = (0..config.modules()).map(|m| (0..config.layers(m)).map(|l| layer(&view.block(m, l))).collect()).collect();
        Self { config, norm, groupings, modules }
    }

    /// Module `which` (0 = L, 1 = H) on its carry `[R, C]`.
    fn module(&self, g: &mut Graph, which: usize, mut x: Value) -> Value {
        let stored = if self.config.shared { 0 } else { which };
        for layer in &self.modules[stored] {
            if let Some(a) = &layer.attention {
                x = a.apply(g, &x, &self.norm);
            }
            if let Some(t) = &layer.token_mlp {
                x = g.transpose(&x, &[1, 0]);
                x = t.apply(g, &x, &[], &self.norm, self.config.rows());
                x = g.transpose(&x, &[1, 0]);
            }
            x = layer.mlp.apply(g, &x, &self.groupings, &self.norm, usize::from(self.config.channels));
        }
        x
    }
}

impl Projection {
    /// `matrix` cut into blocks of `width` columns.
    pub(super) fn new(g: &mut Graph, matrix: &Matrix<'_>, width: usize) -> Self {
        let (n, k) = (matrix.n, matrix.k);
        let mut block = |first: usize| {
            let element = |i: usize| i64::from(matrix.weights[i % n * k + first + i / n]);
            g.constant(Type::Int8, &[width, n], (0..width * n).map(element))
        };
        let columns = (0..k / width).map(|i| block(i * width)).collect();
        Self {
            columns,
            // `(acc << l) * m` is `acc * (m << l)`: below 2^62 in size, as the loader has shown.
            mult: g.constant(Type::Int64, &[n], matrix.mult.iter().map(|&m| i64::from(m) << matrix.shift)),
            bias: g.constant(Type::Int32, &[n], matrix.bias.iter().map(|&b| i64::from(b))),
        }
    }

    /// Accumulators of the first block of columns.
    fn accumulate(&self, g: &mut Graph, a: &Value, block: usize) -> Value {
        g.matmul(a, &self.columns[block])
    }

    /// Adds the bias and requantises.
    fn requant(&self, g: &mut Graph, acc: &Value) -> Value {
        let acc = g.add(acc, &self.bias);
        let wide = g.cast(&acc, Type::Int64);
        let product = g.mul(&wide, &self.mult);
        let shifted = g.shift_down(Type::Int64, &product, 0, 32, 62);
        let shifted = g.sat16(Type::Int64, &shifted);
        g.cast(&shifted, Type::Int32)
    }

    pub(super) fn apply(&self, g: &mut Graph, a: &Value) -> Value {
        let acc = self.accumulate(g, a, 0);
        self.requant(g, &acc)
    }
}

impl Grouping {
    fn new(g: &mut Graph, view: &ModelView<'_>, grouping: usize) -> Self {
        let c = view.config();
        let (rows, fields) = (c.rows(), usize::from(c.fields));
        let ids = view.groups(grouping);
        let group = |row: usize| {
            let id = usize::from(ids[row / fields]);
            if view.merges_fields(grouping) { id } else { id * fields + row % fields }
        };
        let count = (0..rows).map(group).max().map_or(0, |m| m + 1);
        Self {
            members: g.constant(Type::Int8, &[count, rows], (0..count * rows).map(|i| i64::from(group(i % rows) == i / rows))),
            index: g.constant(Type::Int64, &[rows], (0..rows).map(|r| group(r) as i64)),
        }
    }
}

impl Mlp {
    fn new(g: &mut Graph, mlp: &GatedMlp<'_>, silu: &mut [Option<Value>; 5], width: usize) -> Self {
        let shift = mlp.gate_shift;
        let table = silu[shift as usize].get_or_insert_with(|| {
            g.constant(Type::Int32, &[1 << 16], (i16::MIN..=i16::MAX).map(|gate| i64::from(reference::silu(gate, shift))))
        });
        Self {
            m_in: mlp.m_in,
            m_group: mlp.m_group,
            residual_shift: mlp.residual_shift,
            inner: mlp.up.n / 2,
            silu: table.clone(),
            up: Projection::new(g, &mlp.up, width),
            down: Projection::new(g, &mlp.down, mlp.up.n / 2),
        }
    }

    /// The sublayer on `x` `[rows, width]`.
    fn apply(&self, g: &mut Graph, x: &Value, groupings: &[Grouping], norm: &Norm, width: usize) -> Value {
        let a = g.view8(x, self.m_in);
        let mut acc = self.up.accumulate(g, &a, 0);
        for (i, grouping) in groupings.iter().enumerate() {
            // A product of the groups' sums, handed to their rows: the matrix sees each group once.
            let sums = g.matmul(&grouping.members, &a);
            let views = g.view8(&sums, self.m_group[i]);
            let base = self.up.accumulate(g, &views, 1 + i);
            let base = g.gather(&base, &grouping.index);
            acc = g.add(&acc, &base);
        }
        let gate_up = self.up.requant(g, &acc);
        let gate = g.slice(&gate_up, 1, 0, self.inner);
        let up = g.slice(&gate_up, 1, self.inner, 2 * self.inner);
        let index = g.add_scalar(Type::Int32, &gate, 1 << 15);
        let index = g.cast(&index, Type::Int64);
        let silu = g.gather(&self.silu, &index);
        let hidden = g.mul(&silu, &up);
        let hidden = g.narrow8(&hidden);
        let d = self.down.apply(g, &hidden);
        norm.apply(g, x, self.residual_shift, &d, width)
    }
}

impl Norm {
    /// Offset exponent: products of the norm are below `2^30` and rounding adds at most `2^19`.
    const OFFSET: u32 = 32;

    fn new(g: &mut Graph) -> Self {
        let mut by_e = |f: &dyn Fn(u32) -> i64| g.constant(Type::Int64, &[16], (0..16).map(f));
        Self {
            widen: by_e(&|e| 1 << (30 - 2 * e)),
            half: by_e(&|e| (1 << (e + 4)) + (1 << Self::OFFSET)),
            divisor: by_e(&|e| 1 << (e + 5)),
            restore: by_e(&|e| -(1 << (Self::OFFSET - e - 5))),
            below_powers: g.constant(Type::Int64, &[1, 15], (1..16).map(|k| 1 - (1i64 << (2 * k)))),
        }
    }

    /// `norm(sat16(down(x, shift) + d))` of each row of `width` elements.
    pub(super) fn apply(&self, g: &mut Graph, x: &Value, shift: u32, d: &Value, width: usize) -> Value {
        let x = if shift > 0 { g.shift_down(Type::Int32, x, 1 << (shift - 1), shift, 15) } else { x.clone() };
        let sum = g.add(&x, d);
        let sum = g.sat16(Type::Int32, &sum);
        let x = g.cast(&sum, Type::Int64);
        // x times -x, not x times x: tract makes a `Square` of that, which it has for floats only.
        let negative = g.mul_scalar(Type::Int64, &x, -1);
        let squares = g.mul(&x, &negative);
        let v = g.wide_sum(&squares, 1, 32);
        let v = g.mul_scalar(Type::Int64, &v, -1);
        let v = g.div_scalar(Type::Int64, &v, width as i64);
        let v = g.add_scalar(Type::Int64, &v, 10);
        // e = floor(log2 v) / 2 counts the powers of 4 that v reaches: v - (4^k - 1) clamped to 0 or 1.
        let reached = g.add(&v, &self.below_powers);
        let reached = g.clamp(Type::Int64, &reached, 0, 1);
        let e = g.reduce_sum(&reached, 1);
        let [widen, half, divisor, restore] = [&self.widen, &self.half, &self.divisor, &self.restore].map(|table| g.gather(table, &e));
        let wide = g.mul(&v, &widen);
        let root = g.cast(&wide, Type::Double);
        let root = g.op("Sqrt", &[&root], &[]);
        let root = g.cast(&root, Type::Int64);
        let one = g.scalar(Type::Int64, 1 << 30);
        let r = g.div(&one, &root);
        let r = g.at_most(Type::Int64, &r, 32767);
        let y = g.mul(&x, &r);
        let y = g.add(&y, &half);
        let y = g.div(&y, &divisor);
        let y = g.add(&y, &restore);
        let y = g.sat16(Type::Int64, &y);
        g.cast(&y, Type::Int32)
    }
}

/// `e` of the rows, `[R, C]`: prefix vectors, then the vectors of the input classes.
fn embedding(g: &mut Graph, view: &ModelView<'_>, tokens: &Value) -> Value {
    let c = view.config();
    let (ch, fields) = (usize::from(c.channels), usize::from(c.fields));
    let embed = view.embed();
    // With fields 0 is blank, 1 this symbol, 2 another; else the class is the token.
    let class = |token: usize, field: usize| match (fields > 1, token) {
        (false, t) => t,
        (true, 0 | 1) => 0,
        (true, t) if t == field + 2 => 1,
        _ => 2,
    };
    let vocab = usize::from(c.vocab);
    let element = |i: usize| i64::from(embed[class(i / ch / fields, i / ch % fields) * ch + i % ch]);
    let table = g.constant(Type::Int32, &[vocab, fields * ch], (0..vocab * fields * ch).map(element));
    let e = g.gather(&table, tokens);
    let e = g.reshape(&e, &[usize::from(c.tokens) * fields, ch]);
    let prefix = usize::from(c.prefix);
    if prefix == 0 {
        return e;
    }
    let rows = g.constant(Type::Int32, &[prefix, ch], view.prefix().iter().map(|&v| i64::from(v)));
    g.concat(&[&rows, &e], 0)
}

/// `logits` and `q` from z_H.
fn heads(g: &mut Graph, view: &ModelView<'_>, z_h: &Value) {
    let c = view.config();
    let (ch, prefix, rows) = (usize::from(c.channels), usize::from(c.prefix), c.rows());
    let heads = view.heads();
    let width = heads.bias.len();
    let cells = if prefix > 0 { g.slice(z_h, 0, prefix, rows) } else { z_h.clone() };
    let a = g.view8(&cells, heads.m_head);
    let weights = g.constant(Type::Int8, &[ch, width], (0..ch * width).map(|i| i64::from(heads.weights[i % width * ch + i / width])));
    let bias = g.constant(Type::Int32, &[width], heads.bias.iter().map(|&b| i64::from(b)));
    let logits = g.matmul(&a, &weights);
    let logits = g.add(&logits, &bias);
    g.output(&logits, "logits", Type::Int32, &[rows - prefix, width]);

    let first = if prefix > 0 { g.slice(z_h, 0, 0, 1) } else { z_h.clone() };
    let first = g.cast(&first, Type::Int64);
    let sums = g.wide_sum(&first, 0, 16);
    let outputs = heads.q_bias.len();
    let weights = g.constant(Type::Int64, &[outputs, ch], heads.q_weights.iter().map(|&w| i64::from(w)));
    let products = g.mul(&sums, &weights);
    let acc = g.wide_sum(&products, 1, 40);
    let acc = g.reshape(&acc, &[outputs]);
    // The sums are below 2^48, the bias below 2^61 (checked before).
    let bias = g.constant(Type::Int64, &[outputs], heads.q_bias.iter().copied());
    let acc = g.add(&acc, &bias);
    let q = g.shift_down(Type::Int64, &acc, 0, heads.q_shift, 62);
    let q = g.clamp(Type::Int64, &q, i64::from(i32::MIN), i64::from(i32::MAX));
    let q = g.cast(&q, Type::Int32);
    g.output(&q, "q", Type::Int32, &[outputs]);
}
