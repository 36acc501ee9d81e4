//! The sublayers: integer stream in, integer stream out, in place.

use core::num::NonZeroUsize;
use core::ops::Range;

use crate::format::{Attention, GatedMlp, Matrix};
use crate::groups::Groups;
use crate::kernels::{Bases, Columns, GroupInputs, Kernel, Mlp, MlpScratch, Requant, reference};
use crate::lean::{self, Caching, Rows};
use crate::memory::Schedule;
use crate::parts::{Broken, OrBroken, Parts, holds};

/// Scratch shared by all sublayers, carved from the arena.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    /// int8 view of the stream, in the lean schedule only with much memory; attention keeps `[q, k, v]` views here.
    pub view: &'a mut [i8],
    pub transposed: &'a mut [i16],
    pub sums: &'a mut [i16],
    pub sum_views: &'a mut [i8],
    pub bases: &'a mut [i32],
    /// [`Groups::fill_index`]: `[R, kept]`, then what is folded; in the lean schedule mostly for the rows of a tile.
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

/// Hands out the packed forms of a block's matrices in order.
pub(crate) struct Packed<'a> {
    pub words: &'a [i32],
    pub kernel: Kernel,
}

impl<'a> Packed<'a> {
    /// Columns `first..first + k` of `m` with their packed form, which is empty where there are no packed weights.
    pub(crate) fn columns(&mut self, m: &Matrix<'a>, first: usize, k: usize) -> Columns<'a> {
        let (front, rest) = self.words.split_at_checked(self.kernel.packed_words(m.n, k)).unwrap_or_default();
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
) -> Result<(), Broken> {
    let kernel = p.kernel;
    let (wide, inner) = (mlp.up.n, mlp.up.n / 2);
    let g_count = groups.map_or(0, |g| g.count);
    let own = p.columns(&mlp.up, 0, width);
    let mut of_sums = [own; 8];
    let of_sums = of_sums.part_mut(..g_count)?;
    for (g, columns) in of_sums.iter_mut().enumerate() {
        *columns = p.columns(&mlp.up, (1 + g) * width, width);
    }
    let down = p.columns(&mlp.down, 0, inner);
    let kept = groups.map_or(0, |g| g.kept);
    let columns = NonZeroUsize::new(width).or_broken()?;
    let (index, folded) = match groups {
        Some(groups) => groups.split_index(x.len() / columns, s.index)?,
        None => Default::default(),
    };
    let inputs = match groups {
        Some(groups) => Some(GroupInputs {
            columns: of_sums,
            m: &mlp.m_group,
            starts: groups.starts.part(..=g_count)?,
            folded: folded.part(..g_count)?,
            index,
            kept,
            members: s.members,
            ends: s.ends,
        }),
        None => None,
    };
    let (up_scale, down_scale) = (requant(&mlp.up), requant(&mlp.down));
    let (gate_shift, residual_shift) = (mlp.gate_shift, mlp.residual_shift);
    let whole = Mlp { own, up_scale, down, down_scale, m_in: mlp.m_in, gate_shift, residual_shift, groups: inputs };
    let (view, sum_views) = (&mut *s.view, &mut *s.sum_views);
    let mut scratch = MlpScratch { view, sum_views, table: s.bases, hidden: s.tile_hidden, delta: s.tile_delta };
    // Without sums the rows are independent: a tile at a time finds its values in the cache.
    let together = if g_count > 0 { x.len() } else { s.tile * width };
    let tile = s.tile * width;
    holds(together > 0 && tile > 0)?;
    let mut tiles = x.chunks_mut(together);
    if tiles.all(|x| kernel.gated_mlp(&whole, x, &mut scratch)) {
        return Ok(());
    }
    let view = s.view.part_mut(..x.len())?;
    kernel.view8(x, mlp.m_in, view)?;
    if let Some(groups) = groups {
        s.sums.fill(0);
        kernel.group_sums(view, width, index, kept, s.sums)?;
        groups.add_folded(s.sums, width, kernel)?;
        for (g, ((weights, &m), around)) in of_sums.iter().zip(&mlp.m_group).zip(folded).enumerate() {
            let Range { start, end } = groups.range(g)?;
            let views = s.sum_views.part_mut(start * width..end * width)?;
            kernel.view8(s.sums.part(start * width..end * width)?, m, views)?;
            let (before, products) = s.bases.split_at_mut_checked(start * wide).or_broken()?;
            let bases = Bases { table: before, index: around, groupings: groups.folded(g) };
            kernel.accumulate(views, weights, Some(&bases), products.part_mut(..(end - start) * wide)?)?;
        }
    }
    for (t, x) in x.chunks_mut(tile).enumerate() {
        let (first, rows) = (t * s.tile, x.len() / columns);
        let view = s.view.part(first * width..(first + rows) * width)?;
        let index = index.part(first * kept..(first + rows) * kept)?;
        let bases = (kept > 0).then_some(Bases { table: s.bases, index, groupings: kept });
        let (gate_up, hidden) = (s.tile_wide.part_mut(..rows * wide)?, s.tile_hidden.part_mut(..rows * inner)?);
        kernel.gated(view, &own, &requant(&mlp.up), bases.as_ref(), mlp.gate_shift, gate_up, hidden)?;
        let delta = s.tile_delta.part_mut(..rows * width)?;
        kernel.project(hidden, &down, &requant(&mlp.down), None, delta)?;
        kernel.scale_down(x, mlp.residual_shift);
        kernel.add_norm(x, delta, width)?;
    }
    Ok(())
}

/// Gated MLP over the tokens: the same sublayer on the transposed stream.
pub(crate) fn token_mlp<'m>(
    mlp: &GatedMlp<'m>,
    x: &mut [i16],
    channels: usize,
    s: &mut Scratch<'_>,
    p: &mut Packed<'m>,
) -> Result<(), Broken> {
    let rows = x.rows(channels)?.len();
    // Taken out for the call: the sublayer uses the other regions.
    let transposed = core::mem::take(&mut s.transposed);
    let mut over_tokens = || {
        transpose(x, channels, transposed)?;
        match s.schedule {
            Schedule::Cached => gated_mlp(mlp, transposed, rows, None, s, p)?,
            Schedule::Lean => lean::gated_mlp(mlp, &mut Rows::new(transposed, &mut [], rows)?, None, s, p)?,
        }
        transpose(transposed, rows, x)
    };
    let done = over_tokens();
    s.transposed = transposed;
    done
}

/// `[n, width]` to `[width, n]`.
fn transpose(from: &[i16], width: usize, to: &mut [i16]) -> Result<(), Broken> {
    let rows = from.rows(width)?;
    let n = rows.len();
    for (r, row) in rows.enumerate() {
        for (c, &v) in row.iter().enumerate() {
            *to.part_mut(c * n + r)? = v;
        }
    }
    Ok(())
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
pub(crate) fn attention<'m>(
    a: &Attention<'m>,
    x: &mut [i16],
    shape: &AttentionShape<'_>,
    s: &mut Scratch<'_>,
    p: &mut Packed<'m>,
) -> Result<(), Broken> {
    let (c, kernel) = (shape.channels, p.kernel);
    let (rows, d) = (x.rows(c)?.len(), c.checked_div(shape.heads).or_broken()?);
    let qkv = p.columns(&a.qkv, 0, c);
    let out = p.columns(&a.out, 0, c);
    let tile = s.tile * c;
    holds(tile > 0)?;
    for (t, x) in x.chunks(tile).enumerate() {
        let n = x.len() / c;
        let input = s.tile_input.part_mut(..n * c)?;
        kernel.view8(x, a.m_in, input)?;
        let wide = s.tile_wide.part_mut(..n * 3 * c)?;
        kernel.project(input, &qkv, &requant(&a.qkv), None, wide)?;
        let views = s.view.part_mut(t * s.tile * 3 * c..(t * s.tile + n) * 3 * c)?;
        for ((i, row), views) in wide.rows_mut(3 * c)?.enumerate().zip(views.rows_mut(3 * c)?) {
            let (cos, sin) = shape.rope;
            if !cos.is_empty() {
                let r = t * s.tile + i;
                let table = r * d / 2..(r + 1) * d / 2;
                let (cos, sin) = (cos.part(table.clone())?, sin.part(table)?);
                for head in row.part_mut(..2 * c)?.rows_mut(d)? {
                    reference::rope(head, cos, sin);
                }
            }
            for ((row, views), m) in row.rows(c)?.zip(views.rows_mut(c)?).zip(a.m_qkv) {
                kernel.view8(row, m, views)?;
            }
        }
    }
    for (t, x) in x.chunks_mut(tile).enumerate() {
        let n = x.len() / c;
        for i in 0..n {
            let r = t * s.tile + i;
            for h in 0..shape.heads {
                let keys = keys(rows, r, (shape.group_ids)(h), s.keys)?;
                let (at, head) = (r * 3 * c + h * d, h * d);
                let (q8, output) = (s.view.part(at..at + d)?, s.tile_input.part_mut(i * c + head..i * c + head + d)?);
                let (k8, v8) = (s.view.part(c..)?, s.view.part(2 * c..)?);
                reference::attend(q8, k8, v8, (3 * c, head), keys, a.m_score, a.m_out, s.scores, output)?;
            }
        }
        let delta = s.tile_delta.part_mut(..n * c)?;
        kernel.project(s.tile_input.part(..n * c)?, &out, &requant(&a.out), None, delta)?;
        kernel.scale_down(x, a.residual_shift);
        kernel.add_norm(x, delta, c)?;
    }
    Ok(())
}

/// Rows that row `r` attends to, in the beginning of `out`.
fn keys<'k>(rows: usize, r: usize, ids: Option<&[u16]>, out: &'k mut [u16]) -> Result<&'k [u16], Broken> {
    let own = match ids {
        Some(ids) => Some((ids, *ids.part(r)?)),
        None => None,
    };
    let mut count = 0;
    for k in 0..rows {
        let together = match own {
            Some((ids, own)) => *ids.part(k)? == own,
            None => true,
        };
        if together {
            *out.part_mut(count)? = k as u16;
            count += 1;
        }
    }
    out.part(..count)
}
