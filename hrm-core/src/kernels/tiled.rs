//! What the kernels of small machines share: an ISA's file gives the inner loop over a tile of rows and channels, the rest is here.
//!
//! Activations of a tile of rows are arranged once for all channels; accumulators start at bias and bases, go through the inner loop in
//! a buffer of [`CHUNK`] channels, and are requantised from there, so that neither 32-bit accumulators nor, in [`gated`], 16-bit gates
//! ever leave the stack.

use super::{Bases, Columns, Requant, reference};

/// Most input columns that a tile is arranged for; wider matrices go to the scalar kernel.
pub(super) const MOST_COLUMNS: usize = 512;
/// Channels whose accumulators are held at a time.
const CHUNK: usize = 64;
/// Elements of the largest arranged tile.
const MOST_INPUTS: usize = 4 * MOST_COLUMNS;
/// Accumulators of the largest tile.
const MOST_SUMS: usize = 4 * CHUNK;

/// The inner loop of an ISA.
pub(super) trait Tile {
    /// Activation rows of a tile.
    const ROWS: usize;
    /// Channels of a panel; divides [`CHUNK`].
    const CHANNELS: usize;
    /// An arranged activation.
    type Input: Copy + Default;

    /// Whether the inner loop can work on this block: its packed form is complete, or not needed.
    fn ready(w: &Columns<'_>) -> bool;

    /// Arranges `rows` (at most [`Tile::ROWS`] rows of `k` values, at least one).
    fn arrange(rows: &[i8], k: usize, out: &mut [Self::Input]);

    /// Adds the products of `panels` panels from channel `first` on to `sums`, which are `[panels][ROWS][CHANNELS]`.
    fn dot(input: &[Self::Input], w: &Columns<'_>, first: usize, panels: usize, sums: &mut [i32]);

    /// `sums[row of every panel] = bias + bases` of the `n` channels from `first` on; what stands behind the last channel is of no account.
    #[inline(always)]
    fn begin(sums: &mut [i32], row: usize, bias: &[i32], bases: &[&[i32]]) {
        let rows = sums.chunks_exact_mut(Self::CHANNELS).skip(row).step_by(Self::ROWS);
        for (p, sums) in rows.enumerate() {
            let at = p * Self::CHANNELS;
            let n = Self::CHANNELS.min(bias.len() - at);
            for (c, sum) in sums[..n].iter_mut().enumerate() {
                *sum = bases.iter().fold(bias[at + c], |sum, base| sum + base[at + c]);
            }
        }
    }
}

/// Calls `f` with each tile of rows: its first row, how many, and the arranged activations.
#[inline(always)]
fn for_each_tile<T: Tile>(a: &[i8], k: usize, mut f: impl FnMut(usize, usize, &[T::Input])) {
    let mut input = [T::Input::default(); MOST_INPUTS];
    for (i, rows) in a.chunks(T::ROWS * k).enumerate() {
        T::arrange(rows, k, &mut input);
        f(i * T::ROWS, rows.len() / k, &input);
    }
}

/// Base rows of row `r` from channel `first` on, `n` channels.
#[inline(always)]
fn bases_of<'a>(bases: Option<&Bases<'a>>, r: usize, n: usize, first: usize, count: usize, out: &mut [&'a [i32]; 8]) -> usize {
    let Some(b) = bases else { return 0 };
    for (o, &group) in out.iter_mut().zip(b.of(r)) {
        let at = usize::from(group) * n + first;
        *o = &b.table[at..at + count];
    }
    b.groupings
}

/// Fills `sums` with the accumulators of `count` channels from `first` on for the rows of a tile.
#[inline(always)]
fn accumulators<T: Tile>(
    input: &[T::Input],
    w: &Columns<'_>,
    bias: Option<&[i32]>,
    bases: Option<&Bases<'_>>,
    (row, rows): (usize, usize),
    (first, count): (usize, usize),
    sums: &mut [i32],
) {
    let panels = count.div_ceil(T::CHANNELS);
    let sums = &mut sums[..panels * T::ROWS * T::CHANNELS];
    match bias {
        None => sums.fill(0),
        Some(bias) => {
            for r in 0..rows {
                let mut list: [&[i32]; 8] = [&[]; 8];
                let groupings = bases_of(bases, row + r, w.n, first, count, &mut list);
                T::begin(sums, r, &bias[first..first + count], &list[..groupings]);
            }
        }
    }
    T::dot(input, w, first, panels, sums);
}

/// `out[r][n] = sum_k a[r][k] * w[n][k]`.
pub(super) fn accumulate<T: Tile>(a: &[i8], w: &Columns<'_>, out: &mut [i32]) {
    if w.k > MOST_COLUMNS || !T::ready(w) {
        return reference::accumulate(a, w, out);
    }
    let mut sums = [0; MOST_SUMS];
    for_each_tile::<T>(a, w.k, |row, rows, input| {
        for first in (0..w.n).step_by(CHUNK) {
            let count = CHUNK.min(w.n - first);
            accumulators::<T>(input, w, None, None, (row, rows), (first, count), &mut sums);
            for (p, sums) in sums.chunks_exact(T::ROWS * T::CHANNELS).take(count.div_ceil(T::CHANNELS)).enumerate() {
                let n = T::CHANNELS.min(count - p * T::CHANNELS);
                for (r, sums) in sums.chunks_exact(T::CHANNELS).take(rows).enumerate() {
                    let at = (row + r) * w.n + first + p * T::CHANNELS;
                    out[at..at + n].copy_from_slice(&sums[..n]);
                }
            }
        }
    });
}

/// Calls `f` with (row, channel offset, sums of one panel of that row).
#[inline(always)]
fn for_each_panel<T: Tile>(sums: &[i32], rows: usize, count: usize, mut f: impl FnMut(usize, usize, &[i32])) {
    for (p, sums) in sums.chunks_exact(T::ROWS * T::CHANNELS).take(count.div_ceil(T::CHANNELS)).enumerate() {
        let n = T::CHANNELS.min(count - p * T::CHANNELS);
        for (r, sums) in sums.chunks_exact(T::CHANNELS).take(rows).enumerate() {
            f(r, p * T::CHANNELS, &sums[..n]);
        }
    }
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub(super) fn project<T: Tile>(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) {
    if w.k > MOST_COLUMNS || !T::ready(w) {
        return reference::project(a, w, q, bases, out);
    }
    let mut sums = [0; MOST_SUMS];
    let shift = q.shift & 31;
    for_each_tile::<T>(a, w.k, |row, rows, input| {
        for first in (0..w.n).step_by(CHUNK) {
            let count = CHUNK.min(w.n - first);
            accumulators::<T>(input, w, Some(q.bias), bases, (row, rows), (first, count), &mut sums);
            for_each_panel::<T>(&sums, rows, count, |r, c, sums| {
                let at = first + c;
                let out = &mut out[(row + r) * w.n + at..][..sums.len()];
                for ((o, &sum), &mult) in out.iter_mut().zip(sums).zip(&q.mult[at..at + sums.len()]) {
                    *o = reference::requant(sum, shift, mult);
                }
            });
        }
    });
}

/// [`project`], then the hidden values of the gated MLP: half a chunk of gates and the ups of the same channels at a time.
#[expect(clippy::too_many_arguments, reason = "two operations in one")]
pub(super) fn gated<T: Tile>(
    a: &[i8],
    w: &Columns<'_>,
    q: &Requant<'_>,
    bases: Option<&Bases<'_>>,
    gate_shift: u32,
    gate_up: &mut [i16],
    out: &mut [i8],
) {
    let inner = w.n / 2;
    if w.k > MOST_COLUMNS || !T::ready(w) || !inner.is_multiple_of(T::CHANNELS) {
        project::<T>(a, w, q, bases, gate_up);
        return reference::glu_rows(gate_up, inner, gate_shift, out);
    }
    let (mut gates, mut ups) = ([0; MOST_SUMS], [0; MOST_SUMS]);
    let shift = q.shift & 31;
    for_each_tile::<T>(a, w.k, |row, rows, input| {
        for first in (0..inner).step_by(CHUNK) {
            let count = CHUNK.min(inner - first);
            accumulators::<T>(input, w, Some(q.bias), bases, (row, rows), (first, count), &mut gates);
            accumulators::<T>(input, w, Some(q.bias), bases, (row, rows), (inner + first, count), &mut ups);
            let mut up_panels = ups.chunks_exact(T::ROWS * T::CHANNELS);
            let mut up: &[i32] = &[];
            for_each_panel::<T>(&gates, rows, count, |r, c, gates| {
                if r == 0 {
                    up = up_panels.next().unwrap_or(&[]);
                }
                let (at, n) = (first + c, gates.len());
                let out = &mut out[(row + r) * inner + at..][..n];
                let ups = &up[r * T::CHANNELS..][..n];
                let (gate_mult, up_mult) = (&q.mult[at..at + n], &q.mult[inner + at..inner + at + n]);
                for (((o, (&g, &u)), &gm), &um) in out.iter_mut().zip(gates.iter().zip(ups)).zip(gate_mult).zip(up_mult) {
                    *o = reference::glu(reference::requant(g, shift, gm), reference::requant(u, shift, um), gate_shift);
                }
            });
        }
    });
}
