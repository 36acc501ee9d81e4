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

use super::lines::{LINES, glu};
use super::tables::{SILU_BASE, SILU_SLOPE};
use super::tiled::{self, CHUNK, MOST_COLUMNS, Starts};
use super::{Bases, Columns, Requant, reference};
use crate::parts::{Broken, OrBroken, Parts, holds};

pub use super::reference::glu_rows;
pub use elements::{add, add_norm, group_sums, inject, scale_down, view8_slice};

/// Rows that go together.
const ROWS: usize = 2;
/// Channels that the hidden values are taken of at a time.
const EIGHT: usize = 8;
/// Groupings whose bases are added at a time.
const GROUPS: usize = 4;

static BASE: [i16; 64] = SILU_BASE;
static SLOPE: [i16; 64] = SILU_SLOPE;

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    if k.is_multiple_of(STEP) { 0 } else { n * k.next_multiple_of(STEP) / 4 }
}

/// Packs a block of columns into `out`: rows padded with zeros.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    if out.is_empty() {
        return Ok(());
    }
    let bytes: &mut [i8] = bytemuck::cast_slice_mut(out);
    for (n, row) in bytes.rows_mut(w.k.next_multiple_of(STEP))?.enumerate() {
        row.fill(0);
        row.part_mut(..w.k)?.copy_of(w.row(n)?)?;
    }
    Ok(())
}

/// Whether [`Run`] can work on this block.
fn ready(w: &Columns<'_>) -> bool {
    w.k > 0 && w.n > 0 && w.k <= MOST_COLUMNS && w.packed().len() >= packed_words(w.n, w.k)
}

/// Calls `f` with each two rows of `a`, whole steps long, the first one's number, and how many there are. A missing second row is the first
/// again.
#[inline(always)]
fn for_each_two(a: &[i8], k: usize, mut f: impl FnMut(usize, usize, [&[i8]; ROWS]) -> Result<(), Broken>) -> Result<(), Broken> {
    holds(ROWS * k > 0)?;
    let padded = k.next_multiple_of(STEP);
    let mut copies = MaybeUninit::<[i8; ROWS * MOST_COLUMNS]>::uninit();
    let mut copies = if padded == k { None } else { Some(copies.write([0; ROWS * MOST_COLUMNS])) };
    for (i, two) in a.chunks(ROWS * k).enumerate() {
        let (first, second) = two.split_at_checked(k).or_broken()?;
        let (rows, second) = if second.len() < k { (1, first) } else { (ROWS, second) };
        if let Some(copies) = &mut copies {
            let (to_first, to_second) = copies.split_at_mut_checked(padded).or_broken()?;
            to_first.part_mut(..k)?.copy_of(first)?;
            to_second.part_mut(..k)?.copy_of(second)?;
            f(ROWS * i, rows, [to_first, to_second.part(..padded)?])?;
        } else {
            f(ROWS * i, rows, [first, second])?;
        }
    }
    Ok(())
}

/// What sums start with.
#[derive(Clone, Copy)]
enum From<'a> {
    /// With what they are.
    Themselves,
    Zero,
    /// With these, one for each row.
    Rows([&'a [i32]; ROWS]),
}

/// Channels `first..first + n` of a block of weights, ready to be multiplied with rows.
struct Run<'a> {
    block: &'a Columns<'a>,
    first: usize,
    n: usize,
    /// Of the whole fours of channels, `stride` bytes from one to the next.
    weights: &'a [i8],
    stride: usize,
    steps: usize,
}

impl<'a> Run<'a> {
    fn new(block: &'a Columns<'a>, first: usize, n: usize) -> Result<Self, Broken> {
        let (steps, fours) = (block.k.div_ceil(STEP), n / FOUR);
        let in_place = block.k.is_multiple_of(STEP);
        let (weights, stride) = if in_place { block.in_place() } else { (bytemuck::cast_slice(block.packed()), steps * STEP) };
        let end = if fours == 0 { first * stride } else { (first + FOUR * fours - 1) * stride + steps * STEP };
        Ok(Self { block, first, n, weights: weights.part(first * stride..end)?, stride, steps })
    }

    /// `sums[r][c] = from[r][c] + sum_k rows[r][k] * w[c][k]`. Without a second row of sums only those of the first row.
    #[inline(always)]
    fn multiply(&self, rows: [&[i8]; ROWS], sums: &mut [i32], second: Option<&mut [i32]>, from: From<'_>) -> Result<(), Broken> {
        let Self { n, stride, steps, .. } = *self;
        let [one, other] = rows;
        let rows = [one.part(..steps * STEP)?, other.part(..steps * STEP)?];
        let two = second.is_some();
        let sums = sums.part_mut(..n)?.as_mut_ptr();
        let sums = match second {
            Some(second) => [sums, second.part_mut(..n)?.as_mut_ptr()],
            None => [sums; ROWS],
        };
        let inputs = if two { rows } else { [rows[0]; ROWS] }.map(<[i8]>::as_ptr);
        let fours = n / FOUR;
        let (passes, starts) = match from {
            From::Themselves => (dot::GO_ON, sums.map(<*mut i32>::cast_const)),
            From::Zero => (dot::FRESH, sums.map(<*mut i32>::cast_const)),
            From::Rows([first, second]) => {
                let first = first.part(..n)?.as_ptr();
                (dot::START, [first, if two { second.part(..n)?.as_ptr() } else { first }])
            }
        };
        if fours > 0 {
            let mut what = Dot { sums, starts, rows: inputs, weights: self.weights.as_ptr(), stride, fours };
            let (mut left, mut passes) = (steps, &dot::PASSES[passes]);
            while left > 0 {
                let steps = left.min(STEPS);
                let pass = passes.part(steps - 1)?;
                // SAFETY: `new` has cut the weights to `steps` steps of `4 * fours` channels, the rows have as many, just checked, and this
                // takes the next of them; both rows of sums and of starts have `n` words, and are one only if the rows of activations are.
                unsafe { pass(&what) }
                what.rows = what.rows.map(|row| row.wrapping_add(steps * STEP));
                what.weights = what.weights.wrapping_add(steps * STEP);
                (left, passes) = (left - steps, &dot::PASSES[dot::GO_ON]);
            }
        }
        for c in FOUR * fours..n {
            let weights = self.block.row(self.first + c)?;
            for ((row, sums), start) in rows.iter().zip(sums).zip(starts).take(if two { ROWS } else { 1 }) {
                let products = weights.iter().zip(*row).map(|(&w, &a)| i32::from(w) * i32::from(a));
                // SAFETY: `c` is below `n`, and so long are the rows of sums and of starts.
                unsafe { *sums.add(c) = products.sum::<i32>() + if matches!(from, From::Zero) { 0 } else { *start.add(c) } }
            }
        }
        Ok(())
    }

    /// Starts the sums of `rows` rows, 1 or 2, from `row` on at `bias + bases`.
    #[inline(always)]
    fn begin(&self, sums: [&mut [i32]; ROWS], bias: &[i32], bases: Option<&Bases<'_>>, row: usize, rows: usize) -> Result<(), Broken> {
        let (n, [first, second]) = (self.n, sums);
        let (bias, first, second) = (bias.part(..n)?, first.part_mut(..n)?, second.part_mut(..n)?);
        if let Some(b) = bases.filter(|b| b.groupings == GROUPS) {
            // A missing second row is the first again.
            let index = [b.of(row)?, b.of(row + rows - 1)?];
            let ([Some(&one), Some(&other)], true) = (index.map(|i| i.as_array::<GROUPS>()), rows <= ROWS) else {
                return Err(Broken::here());
            };
            let last = one.into_iter().chain(other).max().map_or(0, usize::from);
            holds(self.first + n <= self.block.n && (last + 1) * self.block.n <= b.table.len())?;
            let base = |group| b.table.as_ptr().wrapping_add(usize::from(group) * self.block.n + self.first);
            let bases = [one.map(base), other.map(base)];
            let sums = [first.as_mut_ptr(), if rows == ROWS { second.as_mut_ptr() } else { first.as_mut_ptr() }];
            // SAFETY: `n` words of the sums, the bias and each base, the last of which was checked; a row that stands twice has the same bases twice.
            unsafe { rows::begin_two(&rows::Begin { sums, bias: bias.as_ptr(), bases, n }) };
            return Ok(());
        }
        for (r, sums) in [first, second].into_iter().enumerate().take(rows) {
            sums.copy_of(bias)?;
            self.add_bases(sums, bases, row + r)?;
        }
        Ok(())
    }

    /// Adds the bases of row `row` to its sums.
    #[inline(always)]
    fn add_bases(&self, sums: &mut [i32], bases: Option<&Bases<'_>>, row: usize) -> Result<(), Broken> {
        for base in Starts::of(bases, row, self.block.n, (self.first, self.n))?.rows() {
            sums.iter_mut().zip(base?).for_each(|(s, b)| *s += b);
        }
        Ok(())
    }
}

/// `out[r][n] = W a + bases`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
    if !ready(w) {
        return reference::accumulate(a, w, bases, out);
    }
    let run = Run::new(w, 0, w.n)?;
    let only = bases.filter(|b| b.groupings == 1);
    for_each_two(a, w.k, |row, rows, input| {
        let (first, second) = out.part_mut(row * w.n..(row + rows) * w.n)?.split_at_mut_checked(w.n).or_broken()?;
        let from = match only {
            Some(b) => {
                let start = |row| Starts::of(Some(b), row, w.n, (0, w.n))?.rows().next().or_broken()?;
                From::Rows([start(row)?, start(row + rows - 1)?])
            }
            None => From::Zero,
        };
        run.multiply(input, first, (rows == ROWS).then_some(second), from)
    })?;
    reference::add_bases(bases.filter(|_| only.is_none()), w.n, out)
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) -> Result<(), Broken> {
    if !ready(w) {
        return reference::project(a, w, q, bases, out);
    }
    let mut sums = [[0; CHUNK]; ROWS];
    for first in (0..w.n).step_by(CHUNK) {
        let n = CHUNK.min(w.n - first);
        let run = Run::new(w, first, n)?;
        let (bias, mult) = (q.bias.part(first..first + n)?, q.mult.part(first..first + n)?);
        for_each_two(a, w.k, |row, rows, input| {
            let [one, two] = &mut sums;
            run.multiply(input, one, Some(two), From::Zero)?;
            for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                if bases.is_some() {
                    run.add_bases(sums.part_mut(..n)?, bases, row + r)?;
                }
                let at = (row + r) * w.n + first;
                let out = out.part_mut(at..at + n)?;
                // SAFETY: four slices of `n` elements.
                unsafe { rows::narrow_row(sums.as_ptr(), bias.as_ptr(), mult.as_ptr(), out.as_mut_ptr(), n, q.shift & 31) }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// [`project`], then the hidden values of the gated MLP: a chunk of gates and the ups of the same channels at a time.
pub fn gated(
    a: &[i8],
    w: &Columns<'_>,
    q: &Requant<'_>,
    bases: Option<&Bases<'_>>,
    shift: u32,
    gate_up: &mut [i16],
    out: &mut [i8],
) -> Result<(), Broken> {
    let inner = w.n / 2;
    if !ready(w) || w.n % 2 != 0 {
        reference::project(a, w, q, bases, gate_up)?;
        return glu_rows(gate_up, inner, shift, out);
    }
    let mut sums = [[0; 2 * CHUNK]; ROWS];
    for first in (0..inner).step_by(CHUNK) {
        let n = CHUNK.min(inner - first);
        // A whole chunk of gates has the ups right behind it, in the weights and in the sums.
        let runs = if inner == CHUNK { [Some((0, w.n)), None] } else { [Some((first, n)), Some((inner + first, n))] };
        let part = |(from, n): (usize, usize)| Ok((Run::new(w, from, n)?, q.bias.part(from..from + n)?));
        let runs = [runs[0].map(part).transpose()?, runs[1].map(part).transpose()?];
        let hidden = HiddenRow::new(q, [first, inner + first], n, shift)?;
        for_each_two(a, w.k, |row, rows, input| {
            let [one, two] = &mut sums;
            for ((run, bias), at) in runs.iter().flatten().zip([0, CHUNK]) {
                let (one, two) = (one.part_mut(at..at + run.n)?, two.part_mut(at..at + run.n)?);
                run.begin([one, two], bias, bases, row, rows)?;
                run.multiply(input, one, Some(two), From::Themselves)?;
            }
            for (r, sums) in sums.iter().enumerate().take(rows) {
                let at = (row + r) * inner + first;
                hidden.take(sums, out.part_mut(at..at + n)?)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What makes hidden values of the sums of a row.
struct HiddenRow<'a> {
    mults: [&'a [i32]; 2],
    shift: u32,
    gate_shift: u32,
    n: usize,
}

impl<'a> HiddenRow<'a> {
    /// Of `n` channels, at most a chunk, from two places on.
    fn new(q: &Requant<'a>, [gate, up]: [usize; 2], n: usize, gate_shift: u32) -> Result<Self, Broken> {
        let n = n.min(CHUNK);
        let mults = [q.mult.part(gate..gate + n)?, q.mult.part(up..up + n)?];
        Ok(Self { mults, shift: q.shift & 31, gate_shift: gate_shift.min(4), n })
    }

    /// From the sums of the gates, and of the ups a chunk behind them.
    #[inline(always)]
    fn take(&self, sums: &[i32; 2 * CHUNK], out: &mut [i8]) -> Result<(), Broken> {
        let &Self { mults, shift, gate_shift, n } = self;
        let (eights, out) = (n / EIGHT, out.part_mut(..n)?);
        if eights > 0 {
            let tables = [BASE.as_ptr(), SLOPE.as_ptr()];
            let (sums, mults, out) = (sums.as_ptr(), mults.map(<[i32]>::as_ptr), out.as_mut_ptr());
            let hidden = if shift > 0 { rows::hidden_eights::<true> } else { rows::hidden_eights::<false> };
            // SAFETY: so many eights are there of gates, ups, both multipliers and `out`; the tables have 64 entries; the shift is at most 4.
            unsafe { hidden(&rows::Hidden { sums, mults, out, shift, gate_shift, tables, eights }) }
        }
        for c in EIGHT * eights..n {
            let requant = |at: usize, mult: &[i32]| Ok(tiled::requant(*sums.part(at)?, shift, *mult.part(c)?));
            let (gate, up) = (requant(c, mults[0])?, requant(CHUNK + c, mults[1])?);
            *out.part_mut(c)? = glu(gate, up, gate_shift, LINES.part(gate_shift as usize)?);
        }
        Ok(())
    }
}
