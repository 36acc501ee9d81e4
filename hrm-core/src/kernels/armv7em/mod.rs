//! Cortex-M4, M7 and M33: `SMLAD`, two products an instruction, bit-identical to [`super::reference`].
//!
//! Two tiles. With packed weights (pairs of 16-bit values, `[N / 4][K / 2][4]` words) 2 rows by 4 channels: eight accumulators, two
//! activations and two weights fill the fourteen registers there are, and the inner loop loads and multiplies and does nothing else, 3
//! `LDM` and 8 `SMLAD` for 16 products. Without a packed form 4 rows by 1 channel: weights are widened where they are used; 25 instructions
//! for 32 products. `SXTB16` widens the even, then the odd columns of four: activations and packed weights keep that order.
#![allow(unsafe_code)]

mod accumulate;
mod dot;
mod elements;
mod panels;
mod project;

use core::mem::MaybeUninit;

use super::lines::LINES;
use super::tiled::{self, CHUNK, MOST_COLUMNS, MOST_SUMS, Starts, Tile};
use super::{Bases, Columns, Requant, scalar};
use crate::parts::{Broken, OrBroken, Parts, holds};

pub use super::reference::glu_rows;
pub use super::tiled::pair_words as packed_words;
pub use elements::{add, add_norm, group_sums, inject, scale_down, view8_slice};

/// Channels whose sums the loops over rows of sums take at a time.
const FOUR: usize = 4;

/// Packs a block of columns into `out`: pairs of 16-bit values in the order that `SXTB16` gives activations in, `[N / 4][K / 2][4]` words.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    for (p, panel) in out.rows_mut(FOUR * w.k.div_ceil(2))?.enumerate() {
        panel.fill(0);
        for channel in 0..FOUR.min(w.n.saturating_sub(p * FOUR)) {
            let (fours, tail) = w.row(p * FOUR + channel)?.as_chunks::<FOUR>();
            let pairs = fours.iter().flat_map(|&[a, b, c, d]| [[a, c], [b, d]]);
            let rest = tail.chunks(2).map(|pair| [first_or_zero(pair), first_or_zero(pair.get(1..).unwrap_or_default())]);
            for (words, [low, high]) in panel.as_chunks_mut::<FOUR>().0.iter_mut().zip(pairs.chain(rest)) {
                words[channel] = tiled::pair_of(low, high);
            }
        }
    }
    Ok(())
}

/// The first column of what is left of a row, 0 behind its end.
#[inline(always)]
fn first_or_zero(columns: &[i8]) -> i8 {
    columns.first().copied().unwrap_or(0)
}

/// Of every four columns a pair of the even and one of the odd, `[K / 2][2 rows]`; with weights in place `[K / 2][4 rows]`.
struct Smlad<const IN_PLACE: bool>;

impl<const IN_PLACE: bool> Tile for Smlad<IN_PLACE> {
    const ROWS: usize = if IN_PLACE { 4 } else { 2 };
    const CHANNELS: usize = if IN_PLACE { 1 } else { FOUR };
    type Input = i32;
    /// Two packed rows, or four in place of half as many columns.
    type Buffer = [i32; MOST_COLUMNS];
    const BUFFER: Self::Buffer = [0; MOST_COLUMNS];

    #[inline(always)]
    fn clear_input(buffer: &mut MaybeUninit<Self::Buffer>, _k: usize) -> &mut [i32] {
        Self::clear_sums(buffer)
    }

    #[inline(always)]
    fn clear_sums<const N: usize>(buffer: &mut MaybeUninit<[i32; N]>) -> &mut [i32; N] {
        const { assert!(N.is_multiple_of(32) && N > 0 && MOST_SUMS.is_multiple_of(32)) }
        // SAFETY: the buffer has `N` words, a multiple of 32 that is not 0; after the call all of them are initialised.
        unsafe {
            panels::clear_words(buffer.as_mut_ptr().cast(), N / 32);
            buffer.assume_init_mut()
        }
    }

    #[inline(always)]
    fn zero(sums: &mut [i32], panels: usize) -> Result<(), Broken> {
        let blocks = (panels * Self::ROWS * Self::CHANNELS).div_ceil(32);
        holds(blocks <= sums.len() / 32)?;
        if blocks > 0 {
            // SAFETY: so many words are there, as was just seen.
            unsafe { panels::clear_words(sums.as_mut_ptr(), blocks) }
        }
        Ok(())
    }

    fn ready(w: &Columns<'_>) -> bool {
        if IN_PLACE {
            w.k > 0 && w.n > 0 && w.k <= MOST_COLUMNS / 2 && w.k.is_multiple_of(4) && w.n.is_multiple_of(FOUR)
        } else {
            w.k > 0 && w.packed().len() >= packed_words(w.n, w.k)
        }
    }

    #[inline(always)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i32]) -> Result<(), Broken> {
        // A missing row is the first again: its sums are not looked at.
        let first = rows.part(..k)?;
        let row = |r: usize| rows.get(r * k..(r + 1) * k).unwrap_or(first);
        let fours = k / FOUR;
        if IN_PLACE {
            let out = out.part_mut(..2 * k)?;
            if fours > 0 {
                // SAFETY: four rows of `fours` fours, and room for so many pairs of the four.
                unsafe { dot::arrange_four(&[row(0), row(1), row(2), row(3)].map(<[i8]>::as_ptr), out.as_mut_ptr(), fours) }
            }
            return Ok(());
        }
        let second = row(1);
        let (out, rest) = out.part_mut(..2 * k.div_ceil(2))?.split_at_mut_checked(FOUR * fours).or_broken()?;
        if fours > 0 {
            // SAFETY: two rows of `fours` fours, and room for so many pairs of the two.
            unsafe { dot::arrange_two(first.as_ptr(), second.as_ptr(), out.as_mut_ptr(), fours) }
        }
        let tail = first.part(FOUR * fours..)?.chunks(2).zip(second.part(FOUR * fours..)?.chunks(2));
        for (to, (a, b)) in rest.as_chunks_mut::<2>().0.iter_mut().zip(tail) {
            let pair = |p: &[i8]| tiled::pair_of(first_or_zero(p), first_or_zero(p.get(1..).unwrap_or_default()));
            *to = [pair(a), pair(b)];
        }
        Ok(())
    }

    #[inline(always)]
    fn dot(input: &[i32], w: &Columns<'_>, rows: usize, first: usize, panels: usize, sums: &mut [i32]) -> Result<(), Broken> {
        let sums = sums.part_mut(..panels * Self::ROWS * Self::CHANNELS)?;
        if panels == 0 || w.k == 0 {
            return Ok(());
        }
        if IN_PLACE {
            let (weights, stride) = w.in_place();
            let (input, weights) = (input.part(..2 * w.k)?, weights.part(first * stride..(first + panels - 1) * stride + w.k)?);
            let what = dot::InPlace {
                sums: sums.as_mut_ptr(),
                input: input.as_ptr(),
                weights: weights.as_ptr(),
                step: stride - w.k,
                k: w.k,
                channels: panels,
            };
            let aligned = w.k.is_multiple_of(8) && stride.is_multiple_of(4) && weights.as_ptr().addr().is_multiple_of(4);
            // SAFETY: the slices were just cut to what is read and written: sums of `panels` channels, `k` columns of four rows, `k` weights of
            // each channel, `stride` bytes from one to the next; `k` and `panels` are not 0, `k` is a multiple of 4 (`ready`).
            unsafe {
                match (aligned, rows) {
                    (true, 1) => dot::dot_in_place::<true, 1>(&what),
                    (true, 2) => dot::dot_in_place::<true, 2>(&what),
                    (true, _) => dot::dot_in_place::<true, 4>(&what),
                    (false, 1) => dot::dot_in_place::<false, 1>(&what),
                    (false, 2) => dot::dot_in_place::<false, 2>(&what),
                    (false, _) => dot::dot_in_place::<false, 4>(&what),
                }
            }
        } else {
            let pairs = w.k.div_ceil(2);
            let at = first / FOUR * FOUR * pairs;
            let weights = w.packed().part(at..at + panels * FOUR * pairs)?;
            let input = input.part(..2 * pairs)?;
            // SAFETY: the slices were just cut to what the loop reads and writes: `pairs` pairs of two rows, `panels` panels of `pairs`
            // times four words, eight sums a panel; it runs for at least one of each.
            unsafe { dot::dot_panels(sums.as_mut_ptr(), input.as_ptr(), weights.as_ptr(), pairs, panels) }
        }
        Ok(())
    }

    #[inline(always)]
    fn begin(sums: &mut [i32], row: usize, bias: &[i32], bases: &Starts<'_>) -> Result<(), Broken> {
        let n = bias.len();
        let fours = fours_in::<IN_PLACE>(sums, row, n);
        let sums = sums.part_mut(row * Self::CHANNELS..)?;
        match (fours, bases.four()) {
            (Some(fours), Some(bases)) if bases.iter().all(|b| b.len() >= n) => {
                let bases = bases.map(<[i32]>::as_ptr);
                // SAFETY: bias and bases have `n` elements, the row's sums are there for as many: all just checked.
                unsafe { panels::begin_panels::<IN_PLACE>(sums.as_mut_ptr(), bias.as_ptr(), bases.as_ptr(), fours) }
            }
            // SAFETY: as above, without bases.
            (Some(fours), None) if bases.is_empty() => unsafe {
                panels::spread_panels::<IN_PLACE>(bias.as_ptr(), sums.as_mut_ptr(), fours);
            },
            _ => {
                let whole = sums.chunks_mut(Self::ROWS * Self::CHANNELS);
                holds(whole.len() >= n.div_ceil(Self::CHANNELS))?;
                for (p, (sums, bias)) in whole.zip(bias.chunks(Self::CHANNELS)).enumerate() {
                    for (c, (sum, &bias)) in sums.iter_mut().zip(bias).enumerate() {
                        *sum = bias;
                        for base in bases.rows() {
                            *sum += *base?.part(p * Self::CHANNELS + c)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn accumulate(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, input: &mut [i32], out: &mut [i32]) -> Result<usize, Broken> {
        if IN_PLACE { Ok(0) } else { accumulate::accumulate(a, w, bases, input, out) }
    }

    #[inline(always)]
    fn copy(sums: &[i32], row: usize, out: &mut [i32]) -> Result<(), Broken> {
        match fours_in::<IN_PLACE>(sums, row, out.len()) {
            Some(fours) => {
                let sums = first_of::<IN_PLACE>(sums, row)?;
                // SAFETY: `fours_in` has seen that the row's sums are there for all of `out`.
                unsafe { panels::copy_panels::<IN_PLACE>(sums, out.as_mut_ptr(), fours) }
                Ok(())
            }
            None => tiled::copy::<Self>(sums, row, out),
        }
    }

    #[inline(always)]
    fn narrow(sums: &[i32], row: usize, shift: u32, mult: &[i32], out: &mut [i16]) -> Result<(), Broken> {
        match fours_in::<IN_PLACE>(sums, row, out.len()) {
            Some(fours) if mult.len() == out.len() => {
                let sums = first_of::<IN_PLACE>(sums, row)?;
                // SAFETY: `fours_in` has seen that the row's sums are there for all of `out`; `mult` is as long.
                unsafe { panels::narrow_panels::<IN_PLACE>(sums, mult.as_ptr(), out.as_mut_ptr(), shift, fours) }
                Ok(())
            }
            _ => tiled::narrow::<Self>(sums, row, shift, mult, out),
        }
    }

    #[inline(always)]
    fn hidden(
        sums: &[i32; 2 * MOST_SUMS],
        row: usize,
        shift: u32,
        mults: [&[i32]; 2],
        gate_shift: u32,
        out: &mut [i8],
    ) -> Result<(), Broken> {
        match fours_in::<IN_PLACE>(sums.part(..Self::ROWS * CHUNK)?, row, out.len()) {
            Some(fours) if mults.iter().all(|m| m.len() == out.len()) => {
                let (sums, mults, out) = (first_of::<IN_PLACE>(sums, row)?, mults.map(<[i32]>::as_ptr), out.as_mut_ptr());
                let lines = LINES.part(gate_shift as usize)?.as_ptr();
                let what = panels::Hidden { sums, mults, out, shift, lines, fours };
                let run = match (gate_shift, shift > 0) {
                    (0, true) => panels::hidden_panels::<IN_PLACE, true, 0>,
                    (1, true) => panels::hidden_panels::<IN_PLACE, true, 1>,
                    (2, true) => panels::hidden_panels::<IN_PLACE, true, 2>,
                    (3, true) => panels::hidden_panels::<IN_PLACE, true, 3>,
                    (_, true) => panels::hidden_panels::<IN_PLACE, true, 4>,
                    (0, false) => panels::hidden_panels::<IN_PLACE, false, 0>,
                    (1, false) => panels::hidden_panels::<IN_PLACE, false, 1>,
                    (2, false) => panels::hidden_panels::<IN_PLACE, false, 2>,
                    (3, false) => panels::hidden_panels::<IN_PLACE, false, 3>,
                    (_, false) => panels::hidden_panels::<IN_PLACE, false, 4>,
                };
                // SAFETY: `fours_in` has seen that the sums of the row's gates are there for all of `out`, and those of the ups stand a
                // chunk behind them; both multipliers are as long as `out`; the lines are those of the function's shift.
                unsafe { run(&what) }
                Ok(())
            }
            _ => tiled::hidden::<Self>(sums, row, shift, mults, gate_shift, out),
        }
    }
}

/// How many whole fours make `n` channels of row `row`; `None` if their sums are not all there, or `n` is no multiple of four.
#[inline(always)]
fn fours_in<const IN_PLACE: bool>(sums: &[i32], row: usize, n: usize) -> Option<usize> {
    let rows = Smlad::<IN_PLACE>::ROWS;
    let there = n > 0 && n.is_multiple_of(FOUR) && row < rows && sums.len() >= n * rows;
    there.then_some(n / FOUR)
}

/// Where the sums of row `row` start.
#[inline(always)]
fn first_of<const IN_PLACE: bool>(sums: &[i32], row: usize) -> Result<*const i32, Broken> {
    sums.part(row * Smlad::<IN_PLACE>::CHANNELS..).map(<[i32]>::as_ptr)
}

/// `out[r][n] = W a + bases`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
    if Smlad::<false>::ready(w) {
        tiled::accumulate::<Smlad<false>>(a, w, bases, out)
    } else if Smlad::<true>::ready(w) {
        tiled::accumulate::<Smlad<true>>(a, w, bases, out)
    } else {
        scalar::accumulate(a, w, bases, out)
    }
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) -> Result<(), Broken> {
    if bases.is_none() && project::project(a, w, q, out)? {
        return Ok(());
    }
    if Smlad::<false>::ready(w) {
        tiled::project::<Smlad<false>>(a, w, q, bases, out)
    } else if Smlad::<true>::ready(w) {
        tiled::project::<Smlad<true>>(a, w, q, bases, out)
    } else {
        scalar::project(a, w, q, bases, out)
    }
}

/// [`project`], then the hidden values of the gated MLP.
pub fn gated(
    a: &[i8],
    w: &Columns<'_>,
    q: &Requant<'_>,
    bases: Option<&Bases<'_>>,
    shift: u32,
    gate_up: &mut [i16],
    out: &mut [i8],
) -> Result<(), Broken> {
    if Smlad::<false>::ready(w) {
        tiled::gated::<Smlad<false>>(a, w, q, bases, shift, gate_up, out)
    } else if Smlad::<true>::ready(w) && w.n.is_multiple_of(2 * FOUR) {
        tiled::gated::<Smlad<true>>(a, w, q, bases, shift, gate_up, out)
    } else {
        scalar::gated(a, w, q, bases, shift, gate_up, out)
    }
}
