//! Helium (Cortex-M55, M85), bit-identical to [`super::reference`].
//!
//! `VMLADAVA.S8` adds sixteen products to a general register with an even number. Two rows of 48 activations stay in vector registers while
//! the weights of four channels pass by, for eight sums. Activations and weights are read in place where `K` is a multiple of 16, else
//! from copies padded to it.
#![allow(unsafe_code)]

mod dot;
mod elements;
mod rows;

use core::mem::MaybeUninit;

use dot::{Dot, FOUR, STEP, STEPS};

use super::tables::{SILU_BASE, SILU_SLOPE};
use super::tiled::{self, CHUNK, LINES, MOST_COLUMNS, Starts};
use super::{Bases, Columns, Requant, reference};

pub use super::reference::{add, glu_rows, inject};
pub use elements::{add_norm, group_sums, scale_down, view8_slice};

/// Rows that go together.
const ROWS: usize = 2;
/// Channels that the hidden values are taken of at a time.
const EIGHT: usize = 8;

static BASE: [i16; 64] = SILU_BASE;
static SLOPE: [i16; 64] = SILU_SLOPE;

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    if k.is_multiple_of(STEP) { 0 } else { n * k.next_multiple_of(STEP) / 4 }
}

/// Packs a block of columns into `out`: rows padded with zeros.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) {
    if out.is_empty() {
        return;
    }
    let bytes: &mut [i8] = bytemuck::cast_slice_mut(out);
    for (n, row) in bytes.chunks_exact_mut(w.k.next_multiple_of(STEP)).take(w.n).enumerate() {
        row.fill(0);
        row[..w.k].copy_from_slice(w.row(n));
    }
}

/// Whether [`dot`] can work on this block.
fn ready(w: &Columns<'_>) -> bool {
    w.k > 0 && w.n > 0 && w.k <= MOST_COLUMNS && w.packed().len() >= packed_words(w.n, w.k)
}

/// Calls `f` with each two rows of `a`, whole steps long, and the first one's number. A missing second row is the first again.
#[inline(always)]
fn for_each_two(a: &[i8], k: usize, mut f: impl FnMut(usize, usize, [&[i8]; ROWS])) {
    let padded = k.next_multiple_of(STEP);
    let mut copies = MaybeUninit::<[i8; ROWS * MOST_COLUMNS]>::uninit();
    let mut copies = if padded == k { None } else { Some(copies.write([0; ROWS * MOST_COLUMNS])) };
    for (i, two) in a.chunks(ROWS * k).enumerate() {
        let rows = two.len() / k;
        let last = (rows - 1) * k;
        if let Some(copies) = &mut copies {
            let (first, second) = copies.split_at_mut(padded);
            first[..k].copy_from_slice(&two[..k]);
            second[..k].copy_from_slice(&two[last..last + k]);
            f(ROWS * i, rows, [first, &second[..padded]]);
        } else {
            f(ROWS * i, rows, [&two[..k], &two[last..last + k]]);
        }
    }
}

/// `sums[r][c] += sum_k rows[r][k] * w[first + c][k]`, or `=` if `fresh`, for as many channels as the sums are long. The second row of sums
/// is the first again if there is none.
#[inline(always)]
fn dot(rows: [&[i8]; ROWS], w: &Columns<'_>, first: usize, sums: &mut [i32], second: Option<&mut [i32]>, fresh: bool) {
    let in_place = w.k.is_multiple_of(STEP);
    let (weights, stride) = if in_place { w.in_place() } else { (bytemuck::cast_slice(w.packed()), w.k.next_multiple_of(STEP)) };
    let (n, steps) = (sums.len(), w.k.div_ceil(STEP));
    let fours = n / FOUR;
    let sums_at = sums.as_mut_ptr();
    let second_at = second.map_or(sums_at, |second| second[..n].as_mut_ptr());
    if fours > 0 {
        let weights = &weights[first * stride..(first + FOUR * fours - 1) * stride + steps * STEP];
        let rows = rows.map(|row| &row[..steps * STEP]);
        for step in (0..steps).step_by(STEPS) {
            let at = step * STEP;
            let sums = [sums_at, second_at];
            let what = Dot { sums, rows: rows.map(|row| row[at..].as_ptr()), weights: weights[at..].as_ptr(), stride, fours };
            // SAFETY: rows and weights were just cut to what is read: `steps` steps of two rows and of `4 * fours` channels, of which this
            // takes at most `STEPS` from `step` on; both rows of sums have `n` words, and are one only if there is one row of activations.
            unsafe { dot::pass((steps - step).min(STEPS), fresh && step == 0)(&what) }
        }
    }
    for c in FOUR * fours..n {
        for (row, sums) in rows.iter().zip([sums_at, second_at]).take(if sums_at == second_at { 1 } else { ROWS }) {
            let products = w.row(first + c).iter().zip(*row).map(|(&w, &a)| i32::from(w) * i32::from(a));
            // SAFETY: `c` is below `n`, and so long are both rows of sums.
            unsafe { *sums.add(c) = products.sum::<i32>() + if fresh { 0 } else { *sums.add(c) } }
        }
    }
}

/// `sums = bias + bases`.
#[inline(always)]
fn begin(sums: &mut [i32], bias: &[i32], bases: &Starts<'_>) {
    let n = bias.len();
    let sums = &mut sums[..n];
    if let Some(bases) = bases.four().filter(|bases| bases.iter().all(|base| base.len() >= n)) {
        // SAFETY: `n` words of the sums, the bias and each base, just checked.
        unsafe { rows::begin_row(sums.as_mut_ptr(), bias.as_ptr(), &bases.map(<[i32]>::as_ptr), n) }
    } else {
        // SAFETY: `n` words of both.
        unsafe { rows::copy_words(bias.as_ptr(), sums.as_mut_ptr(), n) }
        for base in bases.rows() {
            sums.iter_mut().zip(base).for_each(|(s, b)| *s += b);
        }
    }
}

/// `out[r][n] = sum_k a[r][k] * w[n][k]`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, out: &mut [i32]) {
    if !ready(w) {
        return reference::accumulate(a, w, out);
    }
    for_each_two(a, w.k, |row, rows, input| {
        let (first, second) = out[row * w.n..(row + rows) * w.n].split_at_mut(w.n);
        dot(input, w, 0, first, (rows == ROWS).then_some(second), true);
    });
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) {
    if !ready(w) {
        return reference::project(a, w, q, bases, out);
    }
    let mut sums = [[0; CHUNK]; ROWS];
    for_each_two(a, w.k, |row, rows, input| {
        for first in (0..w.n).step_by(CHUNK) {
            let count = CHUNK.min(w.n - first);
            let (bias, mult) = (&q.bias[first..first + count], &q.mult[first..first + count]);
            for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                begin(sums, bias, &Starts::of(bases, row + r, w.n, (first, count)));
            }
            let [one, two] = &mut sums;
            dot(input, w, first, &mut one[..count], Some(&mut two[..count]), false);
            for (r, sums) in sums.iter().enumerate().take(rows) {
                let out = &mut out[(row + r) * w.n + first..][..count];
                // SAFETY: three slices of `count` elements.
                unsafe { rows::narrow_row(sums[..count].as_ptr(), mult.as_ptr(), out.as_mut_ptr(), count, q.shift & 31) }
            }
        }
    });
}

/// [`project`], then the hidden values of the gated MLP: a chunk of gates and the ups of the same channels at a time.
pub fn gated(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, shift: u32, gate_up: &mut [i16], out: &mut [i8]) {
    let inner = w.n / 2;
    if !ready(w) || w.n % 2 != 0 {
        reference::project(a, w, q, bases, gate_up);
        return glu_rows(gate_up, inner, shift, out);
    }
    let shift = shift.min(4);
    let mut sums = [[0; 2 * CHUNK]; ROWS];
    for_each_two(a, w.k, |row, rows, input| {
        for first in (0..inner).step_by(CHUNK) {
            let count = CHUNK.min(inner - first);
            // A whole chunk of gates has the ups right behind it, in the weights and in the sums.
            let runs = if inner == CHUNK { [(0, 0, w.n), (0, 0, 0)] } else { [(first, 0, count), (inner + first, CHUNK, count)] };
            for (from, at, n) in runs.into_iter().filter(|run| run.2 > 0) {
                for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                    begin(&mut sums[at..], &q.bias[from..from + n], &Starts::of(bases, row + r, w.n, (from, n)));
                }
                let [one, two] = &mut sums;
                dot(input, w, from, &mut one[at..at + n], Some(&mut two[at..at + n]), false);
            }
            let mults = [&q.mult[first..first + count], &q.mult[inner + first..inner + first + count]];
            for (r, sums) in sums.iter().enumerate().take(rows) {
                hidden(sums, q.shift & 31, mults, shift, &mut out[(row + r) * inner + first..][..count]);
            }
        }
    });
}

/// Hidden values of a row from the sums of its gates, and of its ups a chunk behind them; both multipliers are as long as `out`.
#[inline(always)]
fn hidden(sums: &[i32; 2 * CHUNK], shift: u32, [gate_mult, up_mult]: [&[i32]; 2], gate_shift: u32, out: &mut [i8]) {
    let n = out.len().min(CHUNK).min(gate_mult.len()).min(up_mult.len());
    let eights = n / EIGHT;
    if eights > 0 {
        let mults = [gate_mult.as_ptr(), up_mult.as_ptr()];
        let tables = [BASE.as_ptr(), SLOPE.as_ptr()];
        let what = rows::Hidden { sums: sums.as_ptr(), mults, out: out.as_mut_ptr(), shift, gate_shift, tables, eights };
        // SAFETY: so many eights are there of gates, ups, both multipliers and `out`; the tables have 64 entries; the shift is at most 4.
        unsafe { rows::hidden_eights(&what) }
    }
    for c in EIGHT * eights..n {
        let (gate, up) = (tiled::requant(sums[c], shift, gate_mult[c]), tiled::requant(sums[CHUNK + c], shift, up_mult[c]));
        out[c] = tiled::glu(gate, up, gate_shift, &LINES[gate_shift as usize]);
    }
}
