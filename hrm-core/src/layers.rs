//! The sublayers: integer stream in, integer stream out, in place.

use crate::format::{Attention, GatedMlp, Matrix};
use crate::kernels::{Bases, Columns, GroupInputs, Kernel, Mlp, MlpScratch, Requant, reference};
use crate::lean::{self, Caching, Rows};
use crate::memory::Schedule;

/// Scratch shared by all sublayers, carved from the arena.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    /// int8 view of the stream; attention keeps `[q, k, v]` views here.
    pub view: &'a mut [i8],
    pub transposed: &'a mut [i16],
    pub sums: &'a mut [i16],
    pub sum_views: &'a mut [i8],
    pub bases: &'a mut [i32],
    /// `[R, G]`: stacked group row of each row in each grouping; in the lean schedule only for the rows of a tile.
    pub index: &'a mut [u16],
    /// Rows of each stacked group row, one after the other, and where each group row ends.
    pub members: &'a mut [u16],
    pub ends: &'a mut [u32],
    /// Lean schedule: group sums, then their views and products.
    pub mixing: &'a mut [u64],
    /// Lean schedule: colour of each token, `[G, S]`.
    pub colours: &'a mut [u16],
    /// Lean schedule: which group's products a colour holds.
    pub tags: &'a mut [u16],
    pub caching: Caching,
    pub tile_input: &'a mut [i8],
    pub tile_wide: &'a mut [i16],
    pub tile_hidden: &'a mut [i8],
    pub tile_delta: &'a mut [i16],
    pub keys: &'a mut [u16],
    pub scores: &'a mut [i32],
    pub tile: usize,
    pub schedule: Schedule,
}

/// The groupings of a model. Grouping `g` owns the stacked group rows `starts[g]..starts[g + 1]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups<'m> {
    pub count: usize,
    pub starts: [usize; 9],
    /// Group id of each token.
    pub ids: [&'m [u16]; 8],
    /// Whether the fields of a token are one row.
    pub merged: [bool; 8],
    pub fields: usize,
}

impl Groups<'_> {
    /// Stacked group row of (`token`, `field`) in grouping `g`.
    #[inline]
    pub(crate) fn row(&self, g: usize, token: usize, field: usize) -> usize {
        let id = usize::from(self.ids[g][token]);
        self.starts[g] + if self.merged[g] { id } else { id * self.fields + field }
    }

    /// Group rows of one group of grouping `g` while `fields` fields are looked at.
    pub(crate) fn rows_of(&self, g: usize, fields: usize) -> usize {
        if self.merged[g] { 1 } else { fields }
    }

    /// Group rows of all groupings.
    pub(crate) const fn rows(&self) -> usize {
        self.starts[self.count]
    }
}

/// Hands out the packed forms of a block's matrices in order.
pub(crate) struct Packed<'a> {
    pub words: &'a [i32],
    pub kernel: Kernel,
}

impl<'a> Packed<'a> {
    /// Columns `first..first + k` of `m` with their packed form.
    pub(crate) fn columns(&mut self, m: &Matrix<'a>, first: usize, k: usize) -> Columns<'a> {
        let (front, rest) = self.words.split_at(self.kernel.packed_words(m.n, k).min(self.words.len()));
        self.words = rest;
        Columns::new(m.weights, m.n, first, k, front)
    }
}

pub(crate) fn requant<'a>(m: &Matrix<'a>) -> Requant<'a> {
    Requant { shift: m.shift, mult: m.mult, bias: m.bias }
}

/// Gated MLP on the rows of `x` (`[rows, width]`) in the cached schedule, with group sums if `groups` is given.
pub(crate) fn gated_mlp<'m>(
    mlp: &GatedMlp<'m>,
    x: &mut [i16],
    width: usize,
    groups: Option<&Groups<'_>>,
    s: &mut Scratch<'_>,
    p: &mut Packed<'m>,
) {
    let kernel = p.kernel;
    let (wide, inner) = (mlp.up.n, mlp.up.n / 2);
    let g_count = groups.map_or(0, |g| g.count);
    let own = p.columns(&mlp.up, 0, width);
    let mut of_sums = [own; 8];
    for (g, columns) in of_sums[..g_count].iter_mut().enumerate() {
        *columns = p.columns(&mlp.up, (1 + g) * width, width);
    }
    let down = p.columns(&mlp.down, 0, inner);
    let inputs = groups.map(|groups| GroupInputs {
        columns: &of_sums[..g_count],
        m: &mlp.m_group,
        starts: &groups.starts[..=g_count],
        index: s.index,
        members: s.members,
        ends: s.ends,
    });
    let (up_scale, down_scale) = (requant(&mlp.up), requant(&mlp.down));
    let (gate_shift, residual_shift) = (mlp.gate_shift, mlp.residual_shift);
    let whole = Mlp { own, up_scale, down, down_scale, m_in: mlp.m_in, gate_shift, residual_shift, groups: inputs };
    let (view, sum_views) = (&mut *s.view, &mut *s.sum_views);
    let mut scratch = MlpScratch { view, sum_views, table: s.bases, hidden: s.tile_hidden, delta: s.tile_delta };
    // Without sums the rows are independent: a tile at a time finds its values in the cache.
    let together = if g_count > 0 { x.len() } else { s.tile * width };
    let mut tiles = x.chunks_mut(together);
    if tiles.all(|x| kernel.gated_mlp(&whole, x, &mut scratch)) {
        return;
    }
    kernel.view8(x, mlp.m_in, &mut s.view[..x.len()]);
    if let Some(groups) = groups {
        s.sums.fill(0);
        kernel.group_sums(&s.view[..x.len()], width, s.index, g_count, s.sums);
        for (g, columns) in of_sums[..g_count].iter().enumerate() {
            let (from, to) = (groups.starts[g], groups.starts[g + 1]);
            let views = &mut s.sum_views[from * width..to * width];
            kernel.view8(&s.sums[from * width..to * width], mlp.m_group[g], views);
            kernel.accumulate(views, columns, &mut s.bases[from * wide..to * wide]);
        }
    }
    for (t, x) in x.chunks_mut(s.tile * width).enumerate() {
        let (first, rows) = (t * s.tile, x.len() / width);
        let view = &s.view[first * width..(first + rows) * width];
        let index = &s.index[first * g_count..(first + rows) * g_count];
        let bases = (g_count > 0).then_some(Bases { table: s.bases, index, groupings: g_count });
        let (gate_up, hidden) = (&mut s.tile_wide[..rows * wide], &mut s.tile_hidden[..rows * inner]);
        kernel.gated(view, &own, &requant(&mlp.up), bases.as_ref(), mlp.gate_shift, gate_up, hidden);
        let delta = &mut s.tile_delta[..rows * width];
        kernel.project(hidden, &down, &requant(&mlp.down), None, delta);
        kernel.scale_down(x, mlp.residual_shift);
        kernel.add_norm(x, delta, width);
    }
}

/// Gated MLP over the tokens: the same sublayer on the transposed stream.
pub(crate) fn token_mlp<'m>(mlp: &GatedMlp<'m>, x: &mut [i16], channels: usize, s: &mut Scratch<'_>, p: &mut Packed<'m>) {
    let rows = x.len() / channels;
    // Taken out for the call: the sublayer uses the other regions.
    let transposed = core::mem::take(&mut s.transposed);
    transpose(x, channels, transposed);
    match s.schedule {
        Schedule::Cached => gated_mlp(mlp, transposed, rows, None, s, p),
        Schedule::Lean => lean::gated_mlp(mlp, &mut Rows::whole(transposed, rows), None, s, p),
    }
    transpose(transposed, rows, x);
    s.transposed = transposed;
}

/// `[n, width]` to `[width, n]`.
fn transpose(from: &[i16], width: usize, to: &mut [i16]) {
    let n = from.len() / width;
    for (r, row) in from.chunks_exact(width).enumerate() {
        for (c, &v) in row.iter().enumerate() {
            to[c * n + r] = v;
        }
    }
}

/// What attention needs beside its weights.
pub(crate) struct AttentionShape<'a> {
    pub channels: usize,
    pub heads: usize,
    /// Q15 cosines and sines, `[R, d/2]`; empty without rope.
    pub rope: (&'a [i16], &'a [i16]),
    /// Group ids of a grouping, or `None` for attention of all to all.
    pub group_ids: &'a dyn Fn(usize) -> Option<&'a [u16]>,
}

/// Attention on the rows of `x` (`[R, C]`).
pub(crate) fn attention<'m>(a: &Attention<'m>, x: &mut [i16], shape: &AttentionShape<'_>, s: &mut Scratch<'_>, p: &mut Packed<'m>) {
    let (c, kernel) = (shape.channels, p.kernel);
    let (rows, d) = (x.len() / c, c / shape.heads);
    let qkv = p.columns(&a.qkv, 0, c);
    let out = p.columns(&a.out, 0, c);
    for (t, x) in x.chunks(s.tile * c).enumerate() {
        let n = x.len() / c;
        let input = &mut s.tile_input[..n * c];
        kernel.view8(x, a.m_in, input);
        let wide = &mut s.tile_wide[..n * 3 * c];
        kernel.project(input, &qkv, &requant(&a.qkv), None, wide);
        for (i, row) in wide.chunks_exact_mut(3 * c).enumerate() {
            let r = t * s.tile + i;
            if !shape.rope.0.is_empty() {
                let table = r * d / 2..(r + 1) * d / 2;
                for head in row[..2 * c].chunks_exact_mut(d) {
                    reference::rope(head, &shape.rope.0[table.clone()], &shape.rope.1[table.clone()]);
                }
            }
            let views = &mut s.view[r * 3 * c..(r + 1) * 3 * c];
            for (j, m) in a.m_qkv.into_iter().enumerate() {
                kernel.view8(&row[j * c..(j + 1) * c], m, &mut views[j * c..(j + 1) * c]);
            }
        }
    }
    for (t, x) in x.chunks_mut(s.tile * c).enumerate() {
        let n = x.len() / c;
        for i in 0..n {
            let r = t * s.tile + i;
            for h in 0..shape.heads {
                let count = keys(rows, r, (shape.group_ids)(h), s.keys);
                let (at, head) = (r * 3 * c + h * d, h * d);
                let (q8, output) = (&s.view[at..at + d], &mut s.tile_input[i * c + head..i * c + head + d]);
                let (k8, v8) = (&s.view[c..], &s.view[2 * c..]);
                reference::attend(q8, k8, v8, (3 * c, head), &s.keys[..count], a.m_score, a.m_out, s.scores, output);
            }
        }
        let delta = &mut s.tile_delta[..n * c];
        kernel.project(&s.tile_input[..n * c], &out, &requant(&a.out), None, delta);
        kernel.scale_down(x, a.residual_shift);
        kernel.add_norm(x, delta, c);
    }
}

/// Rows that row `r` attends to; returns how many.
fn keys(rows: usize, r: usize, ids: Option<&[u16]>, out: &mut [u16]) -> usize {
    let mut count = 0;
    for k in 0..rows {
        if ids.is_none_or(|ids| ids[k] == ids[r]) {
            out[count] = k as u16;
            count += 1;
        }
    }
    count
}
