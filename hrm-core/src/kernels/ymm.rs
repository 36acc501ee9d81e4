//! Matrix products in registers of 256 bits: `avx2` and `vnni256` differ in what a 32-bit lane multiplies at a time ([`Dot`]).
//!
//! Packed weights of a block of 8 channels: `[K / COLUMNS][8][COLUMNS]`, then 8 corrections if the products need them.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::{Bases, Columns, Requant, front, reference};
use crate::parts::Broken;

/// Channels of a block: 32-bit lanes of a register.
pub(super) const LANES: usize = 8;
/// Rows of the largest register tile: with [`WIDE`] 12 accumulators, 2 weights, 1 activation and 1 product, all 16 registers.
const TALL: usize = 6;
/// Blocks of 8 channels of the largest register tile.
const WIDE: usize = 2;
/// Columns whose activations are arranged at a time, a multiple of four.
const DEPTH: usize = 512;

/// Arranged activations of the rows of a tile, `[TALL][DEPTH / COLUMNS]`.
type Arranged = [i32; TALL * DEPTH / 2];

/// The products of an instruction set.
pub(super) trait Dot {
    /// Columns that a lane multiplies at a time: 2 or 4.
    const COLUMNS: usize;
    /// Whether a block of weights ends with what its sums begin with.
    const CORRECTED: bool;

    /// Arranges a row of activations, at most [`DEPTH`], as the lanes read them; a last incomplete lane is filled up with zeros.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn arrange(row: &[i8], out: &mut [i32]);

    /// `sum` and the products of the lanes of `a` and `w`.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn add(sum: __m256i, a: __m256i, w: __m256i) -> __m256i;

    /// [`multiply`], compiled for the instruction set.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn multiply(a: &[i8], w: &Columns<'_>, rows: usize, target: &Target<'_>);
}

/// Words of the packed form of `n` x `k` weights.
pub(super) const fn packed_words<D: Dot>(n: usize, k: usize) -> usize {
    n.div_ceil(LANES) * block_words::<D>(k)
}

/// Words of the packed form of a block.
pub(super) const fn block_words<D: Dot>(k: usize) -> usize {
    LANES * (k.div_ceil(D::COLUMNS) + D::CORRECTED as usize)
}

/// What becomes of the accumulators of a call.
pub(super) enum Target<'a> {
    Wide(*mut i32),
    Narrow(*mut i16, Requant<'a>, Bases<'a>),
}

/// `out[r][n] = W a + bases`.
pub(super) fn accumulate<D: Dot>(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
    let Some(rows) = front::rows(a, w, packed_words::<D>(w.n, w.k), out.len()) else { return reference::accumulate(a, w, bases, out) };
    // SAFETY: the CPU has the instruction set (`Kernel` is the proof); `out` has `rows * n` elements and the packed form is complete, just checked.
    unsafe { D::multiply(a, w, rows, &Target::Wide(out.as_mut_ptr())) }
    reference::add_bases(bases, w.n, out)
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub(super) fn project<D: Dot>(
    a: &[i8],
    w: &Columns<'_>,
    q: &Requant<'_>,
    bases: Option<&Bases<'_>>,
    out: &mut [i16],
) -> Result<(), Broken> {
    let b = bases.unwrap_or(&front::NONE);
    let Some(rows) = front::rows(a, w, packed_words::<D>(w.n, w.k), out.len()).filter(|&rows| front::scaled(w, q, b, rows)) else {
        return reference::project(a, w, q, bases, out);
    };
    // SAFETY: as in `accumulate`; bias, multipliers, index and table are what the tiles read of them, all just checked.
    unsafe { D::multiply(a, w, rows, &Target::Narrow(out.as_mut_ptr(), *q, *b)) }
    Ok(())
}

/// Goes over the output in row tiles, whose arranged activations every panel of channels uses.
///
/// # Safety
/// The caller is compiled for the instruction set, and the CPU has it; the packed form is complete, the target is as [`tile`] says.
#[inline(always)]
pub(super) unsafe fn multiply<D: Dot>(a: &[i8], w: &Columns<'_>, rows: usize, target: &Target<'_>) {
    let blocks = w.n.div_ceil(LANES);
    let mut arranged = [0i32; TALL * DEPTH / 2];
    let mut first = 0;
    while first < rows {
        let tall = match rows - first {
            TALL.. => TALL,
            3.. => 3,
            _ => 1,
        };
        let deep = w.k > DEPTH;
        if !deep {
            let rows = a[first * w.k..(first + tall) * w.k].chunks_exact(w.k);
            for (row, out) in rows.zip(arranged.chunks_exact_mut(DEPTH / D::COLUMNS)) {
                // SAFETY: passed on.
                unsafe { D::arrange(row, out) };
            }
        }
        let mut block = 0;
        while block < blocks {
            let wide = (blocks - block).min(WIDE);
            let at = (first, block);
            // SAFETY: passed on; rows and blocks exist.
            unsafe {
                match (tall, wide) {
                    (TALL, WIDE) => tile::<D, TALL, WIDE>(a, w, at, &mut arranged, target),
                    (TALL, _) => tile::<D, TALL, 1>(a, w, at, &mut arranged, target),
                    (3, WIDE) => tile::<D, 3, WIDE>(a, w, at, &mut arranged, target),
                    (3, _) => tile::<D, 3, 1>(a, w, at, &mut arranged, target),
                    (_, WIDE) => tile::<D, 1, WIDE>(a, w, at, &mut arranged, target),
                    (_, _) => tile::<D, 1, 1>(a, w, at, &mut arranged, target),
                }
            }
            block += wide;
        }
        first += tall;
    }
}

/// The first lanes of a register of channels `at..` of `n`, as a mask of `vpmaskmovd`.
///
/// # Safety
/// The caller is compiled for AVX2, and the CPU has it.
#[inline(always)]
unsafe fn lanes(n: usize, at: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let count = _mm256_set1_epi32((n - at).min(LANES) as i32);
        _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    }
}

/// One register tile: `MR` rows from `row`, `NR` blocks of channels from `first`. `arranged` holds the rows if `k <= DEPTH`, else it
/// is filled here piece by piece.
///
/// # Safety
/// The caller is compiled for the instruction set, and the CPU has it; the rows exist in `a` and in the target, the blocks in the packed weights;
/// bias, multipliers and the rows of the bases' table that the index names have `n` elements.
#[inline(always)]
unsafe fn tile<D: Dot, const MR: usize, const NR: usize>(
    a: &[i8],
    w: &Columns<'_>,
    (row, first): (usize, usize),
    arranged: &mut Arranged,
    target: &Target<'_>,
) {
    let (k, steps, stride) = (w.k, w.k.div_ceil(D::COLUMNS), block_words::<D>(w.k));
    let mut weights = w.packed()[first * stride..].as_ptr();
    // SAFETY: `stride` words of each block, of which the loop over pieces has used those before; `arranged` has `TALL` rows.
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); NR]; MR];
        if D::CORRECTED {
            for j in 0..NR {
                let correction = _mm256_loadu_si256(weights.add(j * stride + steps * LANES).cast());
                acc.iter_mut().for_each(|row| row[j] = correction);
            }
        }
        for piece in (0..k).step_by(DEPTH) {
            let depth = (k - piece).min(DEPTH);
            if k > DEPTH {
                for i in 0..MR {
                    let from = (row + i) * k + piece;
                    D::arrange(&a[from..from + depth], &mut arranged[i * DEPTH / D::COLUMNS..]);
                }
            }
            // A copy that only this loop knows stays in registers; `acc` itself, which the loops below index, would be stored at every step.
            let mut sums = acc;
            for p in 0..depth.div_ceil(D::COLUMNS) {
                let mut b = [_mm256_setzero_si256(); NR];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = _mm256_loadu_si256(weights.add(j * stride).cast());
                }
                for (i, row) in sums.iter_mut().enumerate() {
                    let lane = _mm256_set1_epi32(*arranged.as_ptr().add(i * DEPTH / D::COLUMNS + p));
                    for (sum, b) in row.iter_mut().zip(b) {
                        *sum = D::add(*sum, lane, b);
                    }
                }
                weights = weights.add(LANES);
            }
            acc = sums;
        }
        match target {
            Target::Wide(out) => store(&acc, w.n, (row, first), *out),
            Target::Narrow(out, q, bases) => narrow(&acc, w.n, (row, first), *out, q, bases),
        }
    }
}

/// Writes sums of 32 bits.
///
/// # Safety
/// As [`lanes`]; row and channels exist in the output.
#[inline(always)]
unsafe fn store<const MR: usize, const NR: usize>(acc: &[[__m256i; NR]; MR], n: usize, (row, first): (usize, usize), out: *mut i32) {
    for (i, accs) in acc.iter().enumerate() {
        for (j, &acc) in accs.iter().enumerate() {
            let at = (first + j) * LANES;
            // SAFETY: the caller's promise; the mask cuts off the channels that do not exist.
            unsafe { _mm256_maskstore_epi32(out.add((row + i) * n + at), lanes(n, at), acc) };
        }
    }
}

/// Adds bias and bases and requantises.
///
/// # Safety
/// As [`tile`], of the target.
#[inline(always)]
unsafe fn narrow<const MR: usize, const NR: usize>(
    acc: &[[__m256i; NR]; MR],
    n: usize,
    (row, first): (usize, usize),
    out: *mut i16,
    q: &Requant<'_>,
    bases: &Bases<'_>,
) {
    // SAFETY: bias and multipliers are read of existing channels only. The index has an entry for the row, the entry a row in the table. Row and
    // channel exist in the output; where a block is not full only existing channels are copied.
    unsafe {
        let shift = _mm_cvtsi32_si128(q.shift as i32);
        for j in 0..NR {
            let at = (first + j) * LANES;
            let mask = lanes(n, at);
            let bias = _mm256_maskload_epi32(q.bias.as_ptr().add(at), mask);
            let even = _mm256_maskload_epi32(q.mult.as_ptr().add(at), mask);
            let odd = _mm256_srli_epi64::<32>(even);
            let count = (n - at).min(LANES);
            for (i, accs) in acc.iter().enumerate() {
                let mut x = _mm256_add_epi32(accs[j], bias);
                for g in 0..bases.groupings {
                    let group = usize::from(*bases.index.as_ptr().add((row + i) * bases.groupings + g));
                    x = _mm256_add_epi32(x, _mm256_maskload_epi32(bases.table.as_ptr().add(group * n + at), mask));
                }
                let x = _mm256_sll_epi32(x, shift);
                let high = _mm256_mul_epi32(_mm256_srli_epi64::<32>(x), odd);
                let low = _mm256_srli_epi64::<32>(_mm256_mul_epi32(x, even));
                let y = _mm256_blend_epi32::<0b1010_1010>(low, high);
                let y = _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256::<1>(y));
                let to = out.add((row + i) * n + at);
                if count == LANES {
                    _mm_storeu_si128(to.cast(), y);
                } else {
                    let mut values = [0i16; LANES];
                    _mm_storeu_si128(values.as_mut_ptr().cast(), y);
                    core::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
                }
            }
        }
    }
}

/// Multiply-accumulates in registers alone, to learn the peak: `rounds` of 12 independent sums. Returns the MACs and something that depends on
/// all of them.
///
/// # Safety
/// The caller is compiled for the instruction set, and the CPU has it.
#[inline(always)]
pub(super) unsafe fn multiply_only<D: Dot>(rounds: usize) -> (u64, i32) {
    // SAFETY: the caller's promise; `lanes` has eight words.
    unsafe {
        let mut acc = [_mm256_setzero_si256(); 12];
        for (i, acc) in acc.iter_mut().enumerate() {
            *acc = _mm256_set1_epi32(core::hint::black_box(i as i32));
        }
        let a = _mm256_set1_epi32(core::hint::black_box(0x0001_0002));
        for _ in 0..rounds {
            for acc in &mut acc {
                // A product with the sum itself, which no other step shares.
                *acc = D::add(*acc, a, *acc);
            }
        }
        let mut lanes = [0i32; LANES];
        let sum = acc.into_iter().fold(_mm256_setzero_si256(), |sum, x| _mm256_add_epi32(sum, x));
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum);
        ((rounds * acc.len() * LANES * D::COLUMNS) as u64, lanes.iter().fold(0, |s: i32, &x| s.wrapping_add(x)))
    }
}
