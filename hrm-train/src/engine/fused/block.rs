//! One `group-sum` block, forward and backward, panel of rows by panel of rows so that the wide hidden rows stay in the first-level cache.

use super::layout::{BlockOffsets, Dims, PackedBlock};
use super::rounding::BlockSteps;
use super::simd::{self, Isa, Left, Shape};

/// Rows handled at once: their hidden rows and the matrices they meet fit the caches together.
const PANEL: usize = 54;

/// What the backward pass of one block needs.
#[derive(Clone, Debug)]
pub struct BlockTape {
    /// Pre-activations `[R][2 Ip]`; the backward pass overwrites them.
    pre: Vec<f32>,
    /// Group sums of the input `[groups][Cp]`.
    sums: Vec<f32>,
    /// `1 / rms` of every row.
    scale: Vec<f32>,
}

impl BlockTape {
    /// Room for one block.
    pub fn new(d: &Dims) -> Self {
        Self { pre: vec![0.0; d.r * 2 * d.ip], sums: vec![0.0; d.groups() * d.cp], scale: vec![0.0; d.r] }
    }
}

/// Buffers of one thread.
#[derive(Clone, Debug)]
pub struct Scratch {
    pre: Vec<f32>,
    hidden: Vec<f32>,
    sums: Vec<f32>,
    products: Vec<f32>,
    scale: Vec<f32>,
    /// The int8 view of the input, if there is one: `[R][Cp]`.
    view: Vec<f32>,
}

impl Scratch {
    /// Room for any block of the model.
    pub fn new(d: &Dims) -> Self {
        Self {
            pre: vec![0.0; PANEL * 2 * d.ip],
            hidden: vec![0.0; PANEL * d.ip],
            sums: vec![0.0; d.groups() * d.cp],
            products: vec![0.0; d.groups() * 2 * d.ip],
            scale: vec![0.0; PANEL],
            view: vec![0.0; d.r * d.cp],
        }
    }
}

const fn rows(data: &[f32], stride: usize) -> Left<'_> {
    Left { data, stride, transposed: false }
}

const fn columns(data: &[f32], stride: usize) -> Left<'_> {
    Left { data, stride, transposed: true }
}

/// What the matrices see of `x`: its int8 view (in `buffer`) if the block rounds, else `x` itself.
fn viewed<'a>(isa: Isa, w: &PackedBlock, x: &'a [f32], buffer: &'a mut [f32]) -> &'a [f32] {
    match &w.rounding {
        Some(steps) => {
            steps.input(isa, x, buffer);
            buffer
        }
        None => x,
    }
}

/// `y = block(x)`, both `[R][Cp]`; with a tape everything for [`backward`] is kept there.
pub fn forward(isa: Isa, d: &Dims, w: &PackedBlock, x: &[f32], y: &mut [f32], tape: Option<&mut BlockTape>, scratch: &mut Scratch) {
    let (cp, ip, n) = (d.cp, d.ip, 2 * d.ip);
    let Scratch { pre: panel_pre, hidden, sums, products, scale: panel_scale, view } = scratch;
    let view = viewed(isa, w, x, view);
    let (sums, mut kept) = match tape {
        Some(t) => (&mut t.sums, Some((&mut t.pre, &mut t.scale))),
        None => (sums, None),
    };
    simd::group_sums(isa, view, cp, &d.starts, &d.members, sums);
    // Every row is in exactly one group of the first grouping: the bias enters there.
    products[..d.group_base[1] * n].chunks_exact_mut(n).for_each(|row| row.copy_from_slice(&w.bias));
    for (j, range) in d.group_base.windows(2).enumerate() {
        let shape = Shape { m: range[1] - range[0], n, k: d.c };
        let weights = &w.up_t[(1 + j) * d.c * n..][..d.c * n];
        if let Some(steps) = &w.rounding {
            steps.sums(isa, j, &mut sums[range[0] * cp..range[1] * cp]);
        }
        simd::gemm(isa, shape, rows(&sums[range[0] * cp..], cp), weights, n, &mut products[range[0] * n..], n, j == 0);
    }
    for from in (0..d.r).step_by(PANEL) {
        let m = PANEL.min(d.r - from);
        let (pre, scale) = match &mut kept {
            Some((pre, scale)) => (&mut pre[from * n..][..m * n], &mut scale[from..from + m]),
            None => (&mut panel_pre[..m * n], &mut panel_scale[..m]),
        };
        let hidden = &mut hidden[..m * ip];
        let (x, y) = (&x[from * cp..][..m * cp], &mut y[from * cp..][..m * cp]);
        simd::gather_add(isa, pre, n, &d.ids[from * d.g..][..m * d.g], d.g, products, false);
        simd::gemm(isa, Shape { m, n, k: d.c }, rows(&view[from * cp..][..m * cp], cp), &w.up_t[..d.c * n], n, pre, n, true);
        simd::swiglu(isa, pre, hidden, ip);
        if let Some(steps) = &w.rounding {
            steps.hidden(isa, hidden);
        }
        y.copy_from_slice(x);
        simd::gemm(isa, Shape { m, n: cp, k: d.i }, rows(hidden, ip), &w.down_t, cp, y, cp, true);
        simd::rms(isa, y, cp, d.c, scale);
    }
}

/// Turns `dy`, the gradient of the output `y`, into the gradient of the input `x` and adds the weights' gradient to `grad`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    isa: Isa,
    d: &Dims,
    w: &PackedBlock,
    at: BlockOffsets,
    x: &[f32],
    y: &[f32],
    tape: &mut BlockTape,
    dy: &mut [f32],
    grad: &mut [f32],
    scratch: &mut Scratch,
) {
    let (cp, ip, n) = (d.cp, d.ip, 2 * d.ip);
    let Scratch { hidden, sums, products, view, .. } = scratch;
    let view = viewed(isa, w, x, view);
    for from in (0..d.r).step_by(PANEL) {
        let m = PANEL.min(d.r - from);
        let pre = &mut tape.pre[from * n..][..m * n];
        let hidden = &mut hidden[..m * ip];
        let (view, y, dv) = (&view[from * cp..][..m * cp], &y[from * cp..][..m * cp], &mut dy[from * cp..][..m * cp]);
        simd::rms_backward(isa, dv, y, cp, d.c, &tape.scale[from..from + m]);
        simd::gemm(isa, Shape { m, n: ip, k: d.c }, rows(dv, cp), &w.down, ip, hidden, ip, false);
        simd::swiglu_backward(isa, pre, hidden, ip, w.rounding.as_ref().map_or(&[], BlockSteps::hidden_steps));
        if let Some(steps) = &w.rounding {
            steps.hidden(isa, hidden);
        }
        simd::gemm(isa, Shape { m: d.c, n: ip, k: m }, columns(dv, cp), hidden, ip, &mut grad[at.down..at.end], ip, true);
        simd::gemm(isa, Shape { m: d.c, n, k: m }, columns(view, cp), pre, n, &mut grad[at.up..], n, true);
        simd::gemm(isa, Shape { m, n: cp, k: n }, rows(pre, n), &w.up[..n * cp], cp, dv, cp, true);
    }
    simd::group_sums(isa, &tape.pre, n, &d.starts, &d.members, products);
    for (j, range) in d.group_base.windows(2).enumerate() {
        let m = range[1] - range[0];
        let (dp, s) = (&products[range[0] * n..range[1] * n], &tape.sums[range[0] * cp..]);
        simd::gemm(isa, Shape { m: d.c, n, k: m }, columns(s, cp), dp, n, &mut grad[at.up + (1 + j) * d.c * n..], n, true);
        let weights = &w.up[(1 + j) * n * cp..][..n * cp];
        simd::gemm(isa, Shape { m, n: cp, k: n }, rows(dp, n), weights, cp, &mut sums[range[0] * cp..], cp, false);
    }
    // The sums of the first grouping's groups add up to the sum over all rows.
    let bias = &mut grad[at.bias..at.bias + n];
    for row in products[..d.group_base[1] * n].chunks_exact(n) {
        for (b, p) in bias.iter_mut().zip(row) {
            *b += p;
        }
    }
    simd::gather_add(isa, dy, cp, &d.ids, d.g, sums, true);
}
