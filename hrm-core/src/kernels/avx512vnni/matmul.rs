//! A whole matrix product.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

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
/// Bytes of flipped activations: a whole tile of `DEPTH`, or 81 rows of 512 columns.
const FLIPPED: usize = 81 * (512 + 64);
const _: () = assert!(TALL * Flipped::pitch(DEPTH) <= FLIPPED);

/// What becomes of the accumulators of a call.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// Accumulators, `[R, N]`.
    Wide(*mut i32),
    /// Requantised, `[R, N]`.
    Narrow(*mut i16, Requant<'a>, Shifts, Bases<'a>),
}

/// `out[r][n] = W a + bases`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
    let Some(rows) = front::rows(a, w, packed_words(w.n, w.k), out.len()) else { return reference::accumulate(a, w, bases, out) };
    // SAFETY: the CPU has the instruction set (`Kernel` is the proof); `out` has `rows * n` elements and the packed form is complete, just checked.
    unsafe { product(a, w, rows, Target::Wide(out.as_mut_ptr())) }
    reference::add_bases(bases, w.n, out)
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

/// Goes over the output in panels of channels, whose weights all row tiles use while they are in the first cache.
///
/// # Safety
/// The CPU has the features; the packed form is complete, the target is as [`finish`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn product(a: &[i8], w: &Columns<'_>, rows: usize, target: Target<'_>) {
    let mut flipped = Flipped::new(w.k.min(DEPTH));
    // Columns beyond `DEPTH` are flipped piece by piece, for one tile at a time.
    let most = if w.k <= DEPTH { FLIPPED / flipped.pitch / TALL * TALL } else { TALL };
    let blocks = w.n.div_ceil(LANES);
    for group in (0..rows).step_by(most) {
        let end = rows.min(group + most);
        if w.k <= DEPTH {
            for row in group..end {
                flipped.put(row - group, &a[row * w.k..(row + 1) * w.k]);
            }
        }
        for block in (0..blocks).step_by(WIDE) {
            let wide = (blocks - block).min(WIDE);
            let mut row = group;
            while row < end {
                let tall = match end - row {
                    TALL.. => TALL,
                    4.. => 4,
                    2.. => 2,
                    _ => 1,
                };
                let at = (row, row - group, block);
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
                row += tall;
            }
        }
    }
}

/// Rows of activations as `a ^ 0x80`.
struct Flipped {
    /// Zeroing them would cost small products a twentieth of their time.
    bytes: [MaybeUninit<u8>; FLIPPED],
    /// Bytes from one row to the next: an odd number of cache lines, because others would put the rows of a tile into few sets of the cache.
    pitch: usize,
}

impl Flipped {
    const fn new(width: usize) -> Self {
        Self { bytes: [MaybeUninit::uninit(); FLIPPED], pitch: Self::pitch(width) }
    }

    const fn pitch(width: usize) -> usize {
        (width.div_ceil(64) | 1) * 64
    }

    /// Puts a row of at most `width` bytes at place `place`, and behind it what its last 64 bytes need: those meet weights of 0.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn put(&mut self, place: usize, row: &[i8]) {
        let sign = _mm512_set1_epi8(i8::MIN);
        let at = place * self.pitch;
        for (from, to) in row.chunks(64).zip(self.bytes[at..at + self.pitch].as_chunks_mut::<64>().0) {
            // SAFETY: the mask cuts off what is behind the row.
            let from = unsafe { _mm512_maskz_loadu_epi8(u64::MAX >> (64 - from.len()), from.as_ptr()) };
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_xor_si512(from, sign)) };
        }
    }

    fn from(&self, place: usize) -> *const u8 {
        self.bytes[place * self.pitch..].as_ptr().cast()
    }
}

/// The channels of block `block` of `n` that exist.
const fn existing(n: usize, block: usize) -> u16 {
    if n - block * LANES >= LANES { u16::MAX } else { (1 << (n % LANES)) - 1 }
}

/// One register tile: `MR` rows from `row`, `NR` blocks of channels from `first`. `flipped` holds the rows from its row `place` on if `k <= DEPTH`,
/// else it is filled here piece by piece, and `place` is 0.
///
/// # Safety
/// The CPU has the features; the rows exist in `a`, the blocks in the packed weights; the target is as [`finish`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const MR: usize, const NR: usize>(
    a: &[i8],
    w: &Columns<'_>,
    (row, place, first): (usize, usize, usize),
    flipped: &mut Flipped,
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
                flipped.put(i, &a[from..from + depth]);
            }
        }
        // SAFETY: the piece's groups are inside the block; `flipped` has `MR` rows of `depth` bytes from there on.
        unsafe {
            multiply::<MR, NR, false>(
                &mut acc,
                flipped.from(place),
                flipped.pitch,
                weights.add(piece / 4 * LANES),
                stride,
                depth.div_ceil(4),
            )
        };
    }
    // SAFETY: passed on.
    unsafe { finish(&acc, w.n, (row, first), target) }
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
