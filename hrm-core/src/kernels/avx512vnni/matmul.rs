//! A whole matrix product.

use core::arch::x86_64::*;

use super::tile::{Scale, Shifts, Tile, multiply, requant, shift, swap, unrolled};
use super::{LANES, block_words, packed_words};
use crate::kernels::{Bases, Columns, Requant, front, reference};
use crate::parts::Broken;

/// Rows of the largest register tile: with [`WIDE`] it holds 27 accumulators, 3 weights and 1 activation.
const TALL: usize = 9;
/// Blocks of 16 channels of the largest register tile.
const WIDE: usize = 3;
/// Columns whose activations are flipped at a time, a multiple of 64.
const DEPTH: usize = 2048;
/// Bytes from one flipped row to the next: not a power of two, which would put all rows into the same few sets of the cache.
const PITCH: usize = DEPTH + 64;

/// What becomes of the accumulators of a call.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// Accumulators, `[R, N]`.
    Wide(*mut i32),
    /// Requantised, `[R, N]`.
    Narrow(*mut i16, Requant<'a>, Shifts, Bases<'a>),
}

/// `out[r][n] = sum_k a[r][k] * w[n][k]`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    let Some(rows) = front::rows(a, w, packed_words(w.n, w.k), out.len()) else { return reference::accumulate(a, w, out) };
    // SAFETY: the CPU has the instruction set (`Kernel` is the proof); `out` has `rows * n` elements and the packed form is complete, just checked.
    unsafe { product(a, w, rows, Target::Wide(out.as_mut_ptr())) }
    Ok(())
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) -> Result<(), Broken> {
    let b = bases.unwrap_or(&front::NONE);
    let Some(rows) = front::rows(a, w, packed_words(w.n, w.k), out.len()).filter(|&rows| front::scaled(w, q, b, rows)) else {
        return reference::project(a, w, q, bases, out);
    };
    // SAFETY: as in `accumulate`; bias, multipliers, index and table are what the tiles read of them, all just checked.
    unsafe { product(a, w, rows, Target::Narrow(out.as_mut_ptr(), *q, Shifts::new(q), *b)) }
    Ok(())
}

/// Goes over the output in row tiles, whose flipped activations every panel of channels uses.
///
/// # Safety
/// The CPU has the features; the packed form is complete, the target is as [`finish`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn product(a: &[i8], w: &Columns<'_>, rows: usize, target: Target<'_>) {
    let mut flipped = [0u8; TALL * PITCH];
    let blocks = w.n.div_ceil(LANES);
    let mut row = 0;
    while row < rows {
        let tall = match rows - row {
            TALL.. => TALL,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        if w.k <= DEPTH {
            flip(&a[row * w.k..(row + tall) * w.k], w.k, &mut flipped);
        }
        let mut block = 0;
        while block < blocks {
            let wide = (blocks - block).min(WIDE);
            let at = (row, block);
            // SAFETY: passed on; rows and blocks exist.
            unsafe {
                match (tall, wide) {
                    (TALL, WIDE) => tile::<TALL, WIDE>(a, w, at, &mut flipped, target),
                    (TALL, 2) => tile::<TALL, 2>(a, w, at, &mut flipped, target),
                    (TALL, _) => tile::<TALL, 1>(a, w, at, &mut flipped, target),
                    (4, WIDE) => tile::<4, WIDE>(a, w, at, &mut flipped, target),
                    (4, 2) => tile::<4, 2>(a, w, at, &mut flipped, target),
                    (4, _) => tile::<4, 1>(a, w, at, &mut flipped, target),
                    (2, WIDE) => tile::<2, WIDE>(a, w, at, &mut flipped, target),
                    (2, 2) => tile::<2, 2>(a, w, at, &mut flipped, target),
                    (2, _) => tile::<2, 1>(a, w, at, &mut flipped, target),
                    (_, WIDE) => tile::<1, WIDE>(a, w, at, &mut flipped, target),
                    (_, 2) => tile::<1, 2>(a, w, at, &mut flipped, target),
                    (_, _) => tile::<1, 1>(a, w, at, &mut flipped, target),
                }
            }
            block += wide;
        }
        row += tall;
    }
}

/// `a ^ 0x80` of rows of `width` bytes, at multiples of [`PITCH`] of `out`; up to three bytes behind a row are whatever they were, and
/// meet weights of 0.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn flip(a: &[i8], width: usize, out: &mut [u8; TALL * PITCH]) {
    let sign = _mm512_set1_epi8(i8::MIN);
    for (row, out) in a.chunks_exact(width).zip(out.chunks_exact_mut(PITCH)) {
        let (from, from_left) = row.as_chunks::<64>();
        let (to, to_left) = out.as_chunks_mut::<64>();
        for (from, to) in from.iter().zip(&mut *to) {
            // SAFETY: 64 bytes each.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_xor_si512(_mm512_loadu_si512(from.as_ptr().cast()), sign)) };
        }
        debug_assert!(to_left.is_empty());
        if let Some(to) = to.get_mut(from.len()) {
            let mask = (1u64 << from_left.len()) - 1;
            // SAFETY: the mask cuts off what is behind the row; the output has whole chunks.
            unsafe {
                let from = _mm512_maskz_loadu_epi8(mask, from_left.as_ptr());
                _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_xor_si512(from, sign));
            }
        }
    }
}

/// The channels of block `block` of `n` that exist.
const fn existing(n: usize, block: usize) -> u16 {
    if n - block * LANES >= LANES { u16::MAX } else { (1 << (n % LANES)) - 1 }
}

/// One register tile: `MR` rows from `row`, `NR` blocks of channels from `first`. `flipped` holds the rows if `k <= DEPTH`, else it is
/// filled here piece by piece.
///
/// # Safety
/// The CPU has the features; the rows exist in `a`, the blocks in the packed weights; the target is as [`finish`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const MR: usize, const NR: usize>(
    a: &[i8],
    w: &Columns<'_>,
    (row, first): (usize, usize),
    flipped: &mut [u8; TALL * PITCH],
    target: Target<'_>,
) {
    let stride = block_words(w.k);
    // SAFETY: the caller's promise.
    let weights = unsafe { w.packed().as_ptr().add(first * stride) };
    let mut acc = [[_mm512_setzero_si512(); NR]; MR];
    let mut start = [_mm512_setzero_si512(); NR];
    for (j, start) in start.iter_mut().enumerate() {
        // SAFETY: the corrections are the last words of a block.
        *start = unsafe { _mm512_loadu_si512(weights.add(j * stride + stride - LANES).cast()) };
        if let Target::Narrow(_, q, _, _) = &target {
            // SAFETY: the bias is read as far as channels exist.
            let bias = unsafe { _mm512_maskz_loadu_epi32(existing(w.n, first + j), q.bias.as_ptr().add((first + j) * LANES)) };
            *start = _mm512_add_epi32(*start, swap(bias));
        }
    }
    acc.fill(start);
    if let Target::Narrow(_, _, _, bases) = &target
        && bases.groupings > 0
    {
        // A copy: whose address is taken does not stay in registers.
        let mut with_bases = acc;
        // SAFETY: passed on.
        unsafe { add_bases(&mut with_bases, w.n, (row, first), bases) };
        acc = with_bases;
    }
    for piece in (0..w.k).step_by(DEPTH) {
        let depth = (w.k - piece).min(DEPTH);
        if w.k > DEPTH {
            for i in 0..MR {
                let from = (row + i) * w.k + piece;
                let to: &mut [u8] = &mut flipped[i * PITCH..];
                // One row at a time: the rows of a piece do not lie together.
                flip_row(&a[from..from + depth], to);
            }
        }
        // SAFETY: the piece's groups are inside the block; `flipped` has `TALL` rows of `DEPTH` bytes.
        unsafe { multiply::<MR, NR, false>(&mut acc, flipped.as_ptr(), PITCH, weights.add(piece / 4 * LANES), stride, depth.div_ceil(4)) };
    }
    // SAFETY: passed on.
    unsafe { finish(&acc, w.n, (row, first), target) }
}

fn flip_row(a: &[i8], out: &mut [u8]) {
    for (to, &from) in out.iter_mut().zip(a) {
        *to = from as u8 ^ 0x80;
    }
}

/// Both registers saturated to int16, one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn join(a: __m512i, b: __m512i) -> __m512i {
    _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packs_epi32(a, b))
}

/// Writes a tile's accumulators to the target.
///
/// # Safety
/// The CPU has the features; rows and channels exist in the target; bias, multipliers and the rows of the bases' table that the index
/// names have `n` elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub unsafe fn finish<const MR: usize, const NR: usize>(acc: &Tile<MR, NR>, n: usize, (row, first): (usize, usize), target: Target<'_>) {
    match target {
        Target::Wide(out) => {
            for (i, accs) in acc.iter().enumerate() {
                for (j, &acc) in accs.iter().enumerate() {
                    // SAFETY: row and channel exist in the output, the mask cuts the channels off that do not.
                    unsafe {
                        let to = out.add((row + i) * n + (first + j) * LANES);
                        match existing(n, first + j) {
                            u16::MAX => _mm512_storeu_si512(to.cast(), swap(acc)),
                            mask => _mm512_mask_storeu_epi32(to, mask, swap(acc)),
                        }
                    }
                }
            }
        }
        Target::Narrow(out, q, shifts, _) => {
            let mut y = *acc;
            if shifts.acc > 0 {
                let mut shifted = y;
                shift(&mut shifted, shifts.acc);
                y = shifted;
            }
            unrolled!(NR, |j| {
                // SAFETY: bias and multipliers of existing channels only.
                let scale = unsafe { Scale::load(&q, shifts, (first + j) * LANES, existing(n, first + j)) };
                unrolled!(MR, |i| y[i][j] = requant(y[i][j], &scale));
            });
            let last = existing(n, first + NR - 1);
            // SAFETY: row and channels exist in the output; where the last block is not full the mask cuts it off.
            unsafe {
                let to = |i: usize, j: usize| out.add((row + i) * n + (first + j) * LANES);
                if last != u16::MAX {
                    unrolled!(MR, |i| {
                        unrolled!(NR - 1, |j| _mm256_storeu_si256(to(i, j).cast(), _mm512_cvtsepi32_epi16(y[i][j])));
                        _mm256_mask_storeu_epi16(to(i, NR - 1), last, _mm512_cvtsepi32_epi16(y[i][NR - 1]));
                    });
                    return;
                }
                if NR >= 2 {
                    unrolled!(MR, |i| _mm512_storeu_si512(to(i, 0).cast(), join(y[i][0], y[i][1 % NR])));
                }
                if NR % 2 == 1 {
                    unrolled!(MR, |i| {
                        let row = join(y[i][NR - 1], y[i][NR - 1]);
                        _mm256_storeu_si256(to(i, NR - 1).cast(), _mm512_castsi512_si256(row));
                    });
                }
            }
        }
    }
}

/// Adds the bases of each row to the accumulators that a tile starts with.
///
/// # Safety
/// As [`finish`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn add_bases<const MR: usize, const NR: usize>(acc: &mut Tile<MR, NR>, n: usize, (row, first): (usize, usize), bases: &Bases<'_>) {
    for (i, accs) in acc.iter_mut().enumerate() {
        for g in 0..bases.groupings {
            // SAFETY: the index has an entry, and the entry a row in the table.
            unsafe {
                let group = usize::from(*bases.index.as_ptr().add((row + i) * bases.groupings + g));
                let base = bases.table.as_ptr().add(group * n + first * LANES);
                for (j, acc) in accs.iter_mut().enumerate() {
                    let base = _mm512_maskz_loadu_epi32(existing(n, first + j), base.add(j * LANES));
                    *acc = _mm512_add_epi32(*acc, swap(base));
                }
            }
        }
    }
}
