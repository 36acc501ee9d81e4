//! What the kernels of small machines share: an ISA's file gives the inner loop over a tile of rows and channels, the rest is here.
//!
//! Activations of a tile of rows are arranged once for all channels; accumulators start at bias and bases, go through the inner loop in
//! a buffer of [`CHUNK`] channels, and are requantised from there, so that neither 32-bit accumulators nor, in [`gated`], 16-bit gates
//! ever leave the stack.
#![cfg_attr(not(hrm_isa = "dsp"), allow(dead_code, reason = "each instruction set uses some"))]

use core::mem::MaybeUninit;

use super::lines::{LINES, glu};
use super::{Bases, Columns, Requant, reference};
use crate::parts::{Broken, OrBroken, Parts, holds};

/// Most input columns that a tile is arranged for; wider matrices go to the scalar kernel.
pub(super) const MOST_COLUMNS: usize = 512;
/// Channels whose accumulators are held at a time.
pub(super) const CHUNK: usize = 96;
/// Accumulators of the largest tile.
pub(super) const MOST_SUMS: usize = 4 * CHUNK;

/// The calls of a kernel that are its [`Tile`] and nothing else.
macro_rules! calls {
    ($tile:ty) => {
        /// `out[r][n] = W a + bases`.
        pub fn accumulate(
            a: &[i8],
            w: &super::Columns<'_>,
            bases: Option<&super::Bases<'_>>,
            out: &mut [i32],
        ) -> Result<(), crate::parts::Broken> {
            super::tiled::accumulate::<$tile>(a, w, bases, out)
        }

        /// `out[r][n] = requant(W a + bases + bias)`.
        pub fn project(
            a: &[i8],
            w: &super::Columns<'_>,
            q: &super::Requant<'_>,
            bases: Option<&super::Bases<'_>>,
            out: &mut [i16],
        ) -> Result<(), crate::parts::Broken> {
            super::tiled::project::<$tile>(a, w, q, bases, out)
        }

        /// [`project`], then the hidden values of the gated MLP.
        pub fn gated(
            a: &[i8],
            w: &super::Columns<'_>,
            q: &super::Requant<'_>,
            bases: Option<&super::Bases<'_>>,
            shift: u32,
            gate_up: &mut [i16],
            out: &mut [i8],
        ) -> Result<(), crate::parts::Broken> {
            super::tiled::gated::<$tile>(a, w, q, bases, shift, gate_up, out)
        }
    };
}
pub(super) use calls;

/// The inner loop of an ISA.
pub(super) trait Tile {
    /// Activation rows of a tile.
    const ROWS: usize;
    /// Channels of a panel; divides [`CHUNK`].
    const CHANNELS: usize;
    /// An arranged activation.
    type Input;
    /// Room for a tile of [`MOST_COLUMNS`].
    type Buffer: AsMut<[Self::Input]>;
    /// An empty buffer.
    const BUFFER: Self::Buffer;

    /// Fills a buffer for arranged activations of `k` columns: with zeros, which nothing relies on.
    #[inline(always)]
    fn clear_input(buffer: &mut MaybeUninit<Self::Buffer>, _k: usize) -> &mut [Self::Input] {
        buffer.write(Self::BUFFER).as_mut()
    }

    /// Fills a buffer for sums: with zeros, which nothing relies on.
    #[inline(always)]
    fn clear_sums<const N: usize>(buffer: &mut MaybeUninit<[i32; N]>) -> &mut [i32; N] {
        buffer.write([0; N])
    }

    /// Zeroes the sums of `panels` panels.
    #[inline(always)]
    fn zero(sums: &mut [i32], panels: usize) -> Result<(), Broken> {
        sums.part_mut(..panels * Self::ROWS * Self::CHANNELS)?.fill(0);
        Ok(())
    }

    /// Whether the inner loop can work on this block: its packed form is complete, or not needed.
    fn ready(w: &Columns<'_>) -> bool;

    /// Arranges `rows` (at most [`Tile::ROWS`] rows of `k` values, at least one).
    fn arrange(rows: &[i8], k: usize, out: &mut [Self::Input]) -> Result<(), Broken>;

    /// Adds the products of `panels` panels from channel `first` on to `sums`, which are `[panels][ROWS][CHANNELS]`; those of rows behind the
    /// first `rows` are of no account.
    fn dot(input: &[Self::Input], w: &Columns<'_>, rows: usize, first: usize, panels: usize, sums: &mut [i32]) -> Result<(), Broken>;

    /// `sums[row of every panel] = bias + bases` of as many channels as `bias` has; what stands behind the last channel is of no account.
    #[inline(always)]
    fn begin(sums: &mut [i32], row: usize, bias: &[i32], bases: &Starts<'_>) -> Result<(), Broken> {
        begin::<Self>(sums, row, bias, bases)
    }

    /// The first rows of [`accumulate`], as many as it says, if there is a way without a copy of their sums; `_input` has room for a tile.
    #[inline(always)]
    fn accumulate(
        _a: &[i8],
        _w: &Columns<'_>,
        _bases: Option<&Bases<'_>>,
        _input: &mut [Self::Input],
        _out: &mut [i32],
    ) -> Result<usize, Broken> {
        Ok(0)
    }

    /// Copies the sums of row `row` to `out`, whose length says how many.
    #[inline(always)]
    fn copy(sums: &[i32], row: usize, out: &mut [i32]) -> Result<(), Broken> {
        copy::<Self>(sums, row, out)
    }

    /// Requantises the sums of row `row` into `out`; `mult` is as long.
    #[inline(always)]
    fn narrow(sums: &[i32], row: usize, shift: u32, mult: &[i32], out: &mut [i16]) -> Result<(), Broken> {
        narrow::<Self>(sums, row, shift, mult, out)
    }

    /// Hidden values of row `row` from the sums of gates and of ups, a chunk behind them; `mults` are those of gates and ups, each
    /// as long as `out`, a multiple of [`Tile::CHANNELS`].
    #[inline(always)]
    fn hidden(
        sums: &[i32; 2 * MOST_SUMS],
        row: usize,
        shift: u32,
        mults: [&[i32]; 2],
        gate_shift: u32,
        out: &mut [i8],
    ) -> Result<(), Broken> {
        hidden::<Self>(sums, row, shift, mults, gate_shift, out)
    }
}

/// Calls `f` with the place and the sums of each whole four channels of row `row` up to channel `n`; then `g` for each single one left.
#[inline(always)]
fn for_each_channel<T: Tile + ?Sized>(
    sums: &[i32],
    row: usize,
    n: usize,
    mut f: impl FnMut(usize, &[i32; 4]) -> Result<(), Broken>,
    mut g: impl FnMut(usize, i32) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let mut at = 0;
    for panel in sums.chunks_exact(T::ROWS * T::CHANNELS) {
        for quad in panel.part(row * T::CHANNELS..(row + 1) * T::CHANNELS)?.as_chunks::<4>().0 {
            if at + 4 <= n {
                f(at, quad)?;
            } else {
                (at..n).zip(quad).try_for_each(|(at, &sum)| g(at, sum))?;
            }
            at += 4;
        }
        if at >= n {
            return Ok(());
        }
    }
    holds(at >= n)
}

/// [`Tile::copy`] for any tile of a multiple of four channels.
#[inline(always)]
pub(super) fn copy<T: Tile + ?Sized>(sums: &[i32], row: usize, out: &mut [i32]) -> Result<(), Broken> {
    let n = out.len();
    let (quads, tail) = out.as_chunks_mut::<4>();
    let four = |at: usize, sums: &[i32; 4]| {
        *quads.part_mut(at / 4)? = *sums;
        Ok(())
    };
    for_each_channel::<T>(sums, row, n, four, |at, sum| {
        *tail.part_mut(at % 4)? = sum;
        Ok(())
    })
}

/// [`Tile::narrow`] for any tile of a multiple of four channels.
#[inline(always)]
pub(super) fn narrow<T: Tile + ?Sized>(sums: &[i32], row: usize, shift: u32, mult: &[i32], out: &mut [i16]) -> Result<(), Broken> {
    let n = out.len();
    let (mults, mult_tail) = mult.as_chunks::<4>();
    let (quads, tail) = out.as_chunks_mut::<4>();
    let four = |at: usize, sums: &[i32; 4]| {
        let (out, mults) = (quads.part_mut(at / 4)?, mults.part(at / 4)?);
        for i in 0..4 {
            out[i] = requant(sums[i], shift, mults[i]) as i16;
        }
        Ok(())
    };
    for_each_channel::<T>(sums, row, n, four, |at, sum| {
        *tail.part_mut(at % 4)? = requant(sum, shift, *mult_tail.part(at % 4)?) as i16;
        Ok(())
    })
}

/// [`Tile::hidden`] for any tile.
#[inline(always)]
pub(super) fn hidden<T: Tile + ?Sized>(
    sums: &[i32; 2 * MOST_SUMS],
    row: usize,
    shift: u32,
    [gate_mult, up_mult]: [&[i32]; 2],
    gate_shift: u32,
    out: &mut [i8],
) -> Result<(), Broken> {
    let lines = LINES.part(gate_shift as usize)?;
    holds(gate_mult.len() == out.len() && up_mult.len() == out.len() && out.len() <= CHUNK && out.len().is_multiple_of(T::CHANNELS))?;
    let (gates, ups) = sums.split_at_checked(T::ROWS * CHUNK).or_broken()?;
    let mults = gate_mult.as_chunks::<4>().0.iter().zip(up_mult.as_chunks::<4>().0);
    let panels = gates.chunks_exact(T::ROWS * T::CHANNELS).zip(ups.chunks_exact(T::ROWS * T::CHANNELS));
    let mut places = out.as_chunks_mut::<4>().0.iter_mut().zip(mults);
    for (gates, ups) in panels.take(gate_mult.len() / T::CHANNELS) {
        let own = row * T::CHANNELS..(row + 1) * T::CHANNELS;
        let (gates, ups) = (gates.part(own.clone())?, ups.part(own)?);
        let quads = gates.as_chunks::<4>().0.iter().zip(ups.as_chunks::<4>().0);
        for ((gates, ups), (out, (gate_mults, up_mults))) in quads.zip(&mut places) {
            for i in 0..4 {
                let (gate, up) = (requant(gates[i], shift, gate_mults[i]), requant(ups[i], shift, up_mults[i]));
                out[i] = glu(gate, up, gate_shift, lines);
            }
        }
    }
    Ok(())
}

/// [`Tile::begin`] for any tile of a multiple of four channels.
#[inline(always)]
pub(super) fn begin<T: Tile + ?Sized>(sums: &mut [i32], row: usize, bias: &[i32], bases: &Starts<'_>) -> Result<(), Broken> {
    holds(bias.len().div_ceil(T::CHANNELS) * T::ROWS * T::CHANNELS <= sums.len())?;
    if let ((bias, []), Some([a, b, c, d])) = (bias.as_chunks::<4>(), bases.four().map(|b| b.map(|b| b.as_chunks::<4>().0))) {
        // All in one go: sums in memory cost more than additions.
        let mut starts = bias.iter().zip(a.iter().zip(b)).zip(c.iter().zip(d));
        for sums in sums.chunks_exact_mut(T::ROWS * T::CHANNELS).take(bias.len().div_ceil(T::CHANNELS / 4)) {
            let own = sums.part_mut(row * T::CHANNELS..(row + 1) * T::CHANNELS)?.as_chunks_mut::<4>().0;
            for (sums, ((bias, (a, b)), (c, d))) in own.iter_mut().zip(&mut starts) {
                *sums = core::array::from_fn(|i| bias[i] + a[i] + b[i] + c[i] + d[i]);
            }
        }
        return Ok(());
    }
    for (i, start) in core::iter::once(Ok(bias)).chain(bases.rows()).enumerate() {
        for (sums, start) in sums.chunks_exact_mut(T::ROWS * T::CHANNELS).zip(start?.chunks(T::CHANNELS)) {
            let (sums, _) = sums.part_mut(row * T::CHANNELS..(row + 1) * T::CHANNELS)?.as_chunks_mut::<4>();
            let (quads, tail) = start.as_chunks::<4>();
            for (sums, quad) in sums.iter_mut().zip(quads) {
                *sums = if i == 0 { *quad } else { core::array::from_fn(|c| sums[c] + quad[c]) };
            }
            if let Some(sums) = sums.get_mut(quads.len()) {
                sums.iter_mut().zip(tail).for_each(|(s, t)| *s = if i == 0 { *t } else { *s + t });
            }
        }
    }
    Ok(())
}

/// [`reference::requant`], for a shift below 32.
#[inline(always)]
pub(super) fn requant(acc: i32, shift: u32, mult: i32) -> i32 {
    (((i64::from(acc << shift) * i64::from(mult)) >> 32) as i32).clamp(-32768, 32767)
}

/// Channels of a panel of weights packed as pairs.
const PAIR_CHANNELS: usize = 4;

/// Words of `n` x `k` weights packed as pairs of 16-bit values.
pub const fn pair_words(n: usize, k: usize) -> usize {
    n.div_ceil(PAIR_CHANNELS) * PAIR_CHANNELS * k.div_ceil(2)
}

/// Two values as the halves of a word.
#[inline(always)]
pub(super) const fn pair_of(low: i8, high: i8) -> i32 {
    (low as i32 & 0xffff) | (high as i32) << 16
}

/// Arranges up to `SIDE` rows as `[K][SIDE]`; places of rows that are not there keep what they had.
#[inline(always)]
pub(super) fn interleave<const SIDE: usize>(rows: &[i8], k: usize, out: &mut [i8]) -> Result<(), Broken> {
    let places = out.part_mut(..SIDE * k)?.as_chunks_mut::<SIDE>().0;
    for (r, row) in rows.rows(k)?.enumerate() {
        for (to, &a) in places.iter_mut().zip(row) {
            to[r % SIDE] = a;
        }
    }
    Ok(())
}

/// Calls `f` with each tile of rows: its first row, how many, and the arranged activations.
#[inline(always)]
fn for_each_tile<T: Tile>(a: &[i8], k: usize, f: impl FnMut(usize, usize, &[T::Input]) -> Result<(), Broken>) -> Result<(), Broken> {
    let mut buffer = MaybeUninit::uninit();
    for_each_tile_in::<T>(T::clear_input(&mut buffer, k), a, k, f)
}

/// The same with memory for the arranged activations.
#[inline(always)]
fn for_each_tile_in<T: Tile>(
    input: &mut [T::Input],
    a: &[i8],
    k: usize,
    mut f: impl FnMut(usize, usize, &[T::Input]) -> Result<(), Broken>,
) -> Result<(), Broken> {
    holds(k > 0 && k <= MOST_COLUMNS)?;
    for (i, rows) in a.chunks(T::ROWS * k).enumerate() {
        T::arrange(rows, k, input)?;
        f(i * T::ROWS, rows.len() / k, input)?;
    }
    Ok(())
}

/// What the sums of a row start with beside the bias: the products of its groups, `count` channels from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Starts<'a> {
    table: &'a [i32],
    groups: &'a [u16],
    n: usize,
    first: usize,
    count: usize,
}

impl<'a> Starts<'a> {
    /// Those of row `r` of a block of `n` channels.
    #[inline(always)]
    pub(super) fn of(bases: Option<&Bases<'a>>, r: usize, n: usize, (first, count): (usize, usize)) -> Result<Self, Broken> {
        let (table, groups): (&[i32], &[u16]) = match bases {
            Some(b) => (b.table, b.of(r)?),
            None => (&[], &[]),
        };
        Ok(Self { table, groups, n, first, count })
    }

    #[inline(always)]
    fn row(&self, group: u16) -> Result<&'a [i32], Broken> {
        let at = usize::from(group) * self.n + self.first;
        self.table.part(at..at + self.count)
    }

    /// A slice for each group.
    #[inline(always)]
    pub(super) fn rows(&self) -> impl Iterator<Item = Result<&'a [i32], Broken>> {
        self.groups.iter().map(|&group| self.row(group))
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The first, and the others.
    #[inline(always)]
    fn split_first(mut self) -> Result<Option<(&'a [i32], Self)>, Broken> {
        let Some((&first, rest)) = self.groups.split_first() else { return Ok(None) };
        self.groups = rest;
        Ok(Some((self.row(first)?, self)))
    }

    /// Those of four groups, if there are so many.
    #[inline(always)]
    pub(super) fn four(&self) -> Option<[&'a [i32]; 4]> {
        let &[a, b, c, d] = self.groups.as_array::<4>()?;
        Some([self.row(a).ok()?, self.row(b).ok()?, self.row(c).ok()?, self.row(d).ok()?])
    }
}

/// Fills `sums` with the accumulators of `count` channels from `first` on for the rows of a tile. Without a bias the first base is one.
#[inline(always)]
fn accumulators<T: Tile>(
    input: &[T::Input],
    w: &Columns<'_>,
    bias: Option<&[i32]>,
    bases: Option<&Bases<'_>>,
    (row, rows): (usize, usize),
    (first, count): (usize, usize),
    sums: &mut [i32],
) -> Result<(), Broken> {
    let panels = count.div_ceil(T::CHANNELS);
    if bias.is_none() && bases.is_none() {
        T::zero(sums, panels)?;
    } else {
        for r in 0..rows {
            let bases = Starts::of(bases, row + r, w.n, (first, count))?;
            let (start, bases) = match bias {
                Some(bias) => (bias.part(first..first + count)?, bases),
                None => bases.split_first()?.or_broken()?,
            };
            T::begin(sums, r, start, &bases)?;
        }
    }
    T::dot(input, w, rows, first, panels, sums)
}

/// `out[r][n] = W a + bases`.
pub(super) fn accumulate<T: Tile>(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
    if w.k > MOST_COLUMNS || !T::ready(w) {
        return reference::accumulate(a, w, bases, out);
    }
    let bases = bases.filter(|b| b.groupings > 0);
    let mut buffer = MaybeUninit::uninit();
    let input = T::clear_input(&mut buffer, w.k);
    let done = T::accumulate(a, w, bases, input, out)?;
    let a = a.part(done * w.k..)?;
    if a.is_empty() {
        return Ok(());
    }
    let mut buffer = MaybeUninit::<[i32; MOST_SUMS]>::uninit();
    let sums = T::clear_sums(&mut buffer);
    for_each_tile_in::<T>(input, a, w.k, |row, rows, input| {
        let row = done + row;
        for first in (0..w.n).step_by(CHUNK) {
            let count = CHUNK.min(w.n - first);
            accumulators::<T>(input, w, None, bases, (row, rows), (first, count), sums)?;
            for r in 0..rows {
                let at = (row + r) * w.n + first;
                T::copy(sums, r, out.part_mut(at..at + count)?)?;
            }
        }
        Ok(())
    })
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub(super) fn project<T: Tile>(
    a: &[i8],
    w: &Columns<'_>,
    q: &Requant<'_>,
    bases: Option<&Bases<'_>>,
    out: &mut [i16],
) -> Result<(), Broken> {
    if w.k > MOST_COLUMNS || !T::ready(w) {
        return reference::project(a, w, q, bases, out);
    }
    let mut buffer = MaybeUninit::<[i32; MOST_SUMS]>::uninit();
    let sums = T::clear_sums(&mut buffer);
    let shift = q.shift & 31;
    for_each_tile::<T>(a, w.k, |row, rows, input| {
        for first in (0..w.n).step_by(CHUNK) {
            let count = CHUNK.min(w.n - first);
            accumulators::<T>(input, w, Some(q.bias), bases, (row, rows), (first, count), sums)?;
            let mult = q.mult.part(first..first + count)?;
            for r in 0..rows {
                let at = (row + r) * w.n + first;
                T::narrow(sums, r, shift, mult, out.part_mut(at..at + count)?)?;
            }
        }
        Ok(())
    })
}

/// [`project`], then the hidden values of the gated MLP: half a chunk of gates and the ups of the same channels at a time.
pub(super) fn gated<T: Tile>(
    a: &[i8],
    w: &Columns<'_>,
    q: &Requant<'_>,
    bases: Option<&Bases<'_>>,
    gate_shift: u32,
    gate_up: &mut [i16],
    out: &mut [i8],
) -> Result<(), Broken> {
    let inner = w.n / 2;
    if w.k > MOST_COLUMNS || !T::ready(w) || !inner.is_multiple_of(T::CHANNELS) {
        project::<T>(a, w, q, bases, gate_up)?;
        return reference::glu_rows(gate_up, inner, gate_shift, out);
    }
    let mut buffer = MaybeUninit::<[i32; 2 * MOST_SUMS]>::uninit();
    let sums = T::clear_sums(&mut buffer);
    let (shift, gate_shift) = (q.shift & 31, gate_shift.min(4));
    for_each_tile::<T>(a, w.k, |row, rows, input| {
        for first in (0..inner).step_by(CHUNK) {
            let count = CHUNK.min(inner - first);
            let of = |first: usize, count: usize, sums: &mut [i32]| {
                accumulators::<T>(input, w, Some(q.bias), bases, (row, rows), (first, count), sums)
            };
            if inner == CHUNK {
                of(0, w.n, sums)?;
            } else {
                let (gates, ups) = sums.split_at_mut_checked(T::ROWS * CHUNK).or_broken()?;
                of(first, count, gates)?;
                of(inner + first, count, ups)?;
            }
            let mults = [q.mult.part(first..first + count)?, q.mult.part(inner + first..inner + first + count)?];
            for r in 0..rows {
                let at = (row + r) * inner + first;
                T::hidden(sums, r, shift, mults, gate_shift, out.part_mut(at..at + count)?)?;
            }
        }
        Ok(())
    })
}
