//! What the kernels of x86-64 check once a call, before loops that check nothing.

use super::{Bases, Columns, Requant};

/// No bases.
pub(super) const NONE: Bases<'static> = Bases { table: &[], index: &[], groupings: 0 };

/// Rows that `a` and an output of `out` elements both have, if the block has columns and all of its `packed` words.
pub(super) fn rows(a: &[i8], w: &Columns<'_>, packed: usize, out: usize) -> Option<usize> {
    (w.packed().len() >= packed && w.n > 0 && w.k > 0).then(|| (a.len() / w.k).min(out / w.n))
}

/// Whether bias and multipliers have all channels, the index an entry for each of `rows` and grouping, and every entry names a row
/// inside the table.
pub(super) fn scaled(w: &Columns<'_>, q: &Requant<'_>, b: &Bases<'_>, rows: usize) -> bool {
    q.bias.len() >= w.n
        && q.mult.len() >= w.n
        && b.index.len() >= rows * b.groupings
        && b.index[..rows * b.groupings].iter().max().is_none_or(|&g| (usize::from(g) + 1) * w.n <= b.table.len())
}
