//! AVX2 kernels, bit-identical to [`super::reference`].
//!
//! Bytes are widened to 16 bits and multiplied by `vpmaddwd`, which is exact; `vpmaddubsw` would saturate. Packed weights of a block of 8
//! channels: `[K / 2][8][2]` int16.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::ymm::{self, Dot, LANES, Target};
use super::{Bases, Columns, Requant, reference};
use crate::parts::{Broken, Parts};

pub use super::reference::{add, inject, scale_down};

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    ymm::packed_words::<Madd>(n, k)
}

/// Packs a block of columns into `out`.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    for (b, block) in out.chunks_exact_mut(ymm::block_words::<Madd>(w.k)).enumerate() {
        block.fill(0);
        for lane in 0..LANES.min(w.n - b * LANES) {
            for (pair, bytes) in block[lane..].iter_mut().step_by(LANES).zip(w.row(b * LANES + lane)?.chunks(2)) {
                *pair = pair_word(bytes);
            }
        }
    }
    Ok(())
}

/// Two bytes as two 16-bit halves of a word; a missing second is 0.
fn pair_word(bytes: &[i8]) -> i32 {
    let second = bytes.get(1).copied().unwrap_or(0);
    i32::from(bytes[0]) & 0xffff | i32::from(second) << 16
}

/// Pairs of 16 bits.
struct Madd;

impl Dot for Madd {
    const COLUMNS: usize = 2;
    const CORRECTED: bool = false;

    #[inline(always)]
    unsafe fn arrange(row: &[i8], out: &mut [i32]) {
        // SAFETY: the caller's promise.
        unsafe { widen(row, out) }
    }

    #[inline(always)]
    unsafe fn add(sum: __m256i, a: __m256i, w: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, w)) }
    }

    unsafe fn multiply(a: &[i8], w: &Columns<'_>, rows: usize, target: &Target<'_>) {
        #[target_feature(enable = "avx2")]
        unsafe fn compiled(a: &[i8], w: &Columns<'_>, rows: usize, target: &Target<'_>) {
            // SAFETY: the caller's promise.
            unsafe { ymm::multiply::<Madd>(a, w, rows, target) }
        }
        // SAFETY: the caller's promise.
        unsafe { compiled(a, w, rows, target) }
    }
}

/// Widens a row to pairs of 16 bits.
#[target_feature(enable = "avx2")]
fn widen(row: &[i8], out: &mut [i32]) {
    let whole = row.len() / 16;
    for (from, to) in row.chunks_exact(16).zip(out.chunks_exact_mut(8)) {
        // SAFETY: 16 bytes in, 8 words out.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_cvtepi8_epi16(_mm_loadu_si128(from.as_ptr().cast()))) };
    }
    for (from, to) in row[16 * whole..].chunks(2).zip(&mut out[8 * whole..]) {
        *to = pair_word(from);
    }
}

/// `out[r][n] = W a + bases`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
    ymm::accumulate::<Madd>(a, w, bases, out)
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) -> Result<(), Broken> {
    ymm::project::<Madd>(a, w, q, bases, out)
}

/// int8 views of a slice.
pub fn view8_slice(x: &[i16], m: i16, out: &mut [i8]) {
    // SAFETY: the CPU has AVX2 (`Kernel` is the proof).
    unsafe { view8_simd(x, m, out) }
}

#[target_feature(enable = "avx2")]
fn view8_simd(x: &[i16], m: i16, out: &mut [i8]) {
    let wide = _mm256_set1_epi16(m);
    let (x, x_left) = x.as_chunks::<16>();
    let (out, out_left) = out.as_chunks_mut::<16>();
    for (x, out) in x.iter().zip(out) {
        // SAFETY: 16 elements each. `vpmulhrsw` is the view's multiply, round and shift; it cannot overflow as `m` is positive.
        unsafe { store8(out, _mm256_mulhrs_epi16(_mm256_loadu_si256(x.as_ptr().cast()), wide)) };
    }
    reference::view8_slice(x_left, m, out_left);
}

/// Stores 16 values saturated to int8.
#[target_feature(enable = "avx2")]
fn store8(out: &mut [i8; 16], x: __m256i) {
    let y = _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    // SAFETY: 16 bytes.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), y) };
}

/// Hidden values of the gated MLP.
pub fn glu_rows(gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) -> Result<(), Broken> {
    // SAFETY: the CPU has AVX2 (`Kernel` is the proof).
    unsafe { glu_simd(gate_up, inner, shift, out) }
    Ok(())
}

/// The table is read element by element, the arithmetic around it is that of 16 lanes.
#[target_feature(enable = "avx2")]
fn glu_simd(gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) {
    let count = _mm_cvtsi32_si128(shift as i32);
    let (end, half) = (_mm256_set1_epi16(8191 >> shift), _mm256_set1_epi16((1 << shift) >> 1));
    for (row, out) in gate_up.chunks_exact(2 * inner).zip(out.chunks_exact_mut(inner)) {
        let (gate, up) = row.split_at(inner);
        let ((gate, gate_left), (up, up_left)) = (gate.as_chunks::<16>(), up.as_chunks::<16>());
        let (out, out_left) = out.as_chunks_mut::<16>();
        for ((g, u), out) in gate.iter().zip(up).zip(out) {
            // SAFETY: 16 elements each.
            let (g, u) = unsafe { (_mm256_loadu_si256(g.as_ptr().cast()), _mm256_loadu_si256(u.as_ptr().cast())) };
            let t = _mm256_sll_epi16(_mm256_min_epu16(_mm256_abs_epi16(g), end), count);
            // `(slope * f + 64) >> 7` is `vpmulhrsw` with `f << 8`.
            let f = _mm256_slli_epi16::<8>(_mm256_and_si256(t, _mm256_set1_epi16(127)));
            let [base, slope] = look_up(_mm256_srli_epi16::<7>(t));
            let sum = _mm256_add_epi16(_mm256_mulhrs_epi16(slope, f), base);
            let d = _mm256_srai_epi16::<4>(_mm256_add_epi16(sum, _mm256_set1_epi16(8)));
            let d = _mm256_sra_epi16(_mm256_add_epi16(d, half), count);
            let silu = _mm256_add_epi16(_mm256_max_epi16(g, _mm256_setzero_si256()), d);
            store8(out, _mm256_mulhrs_epi16(silu, u));
        }
        for ((o, &g), &u) in out_left.iter_mut().zip(gate_left).zip(up_left) {
            *o = reference::glu(g, u, shift);
        }
    }
}

/// Base and slope as the two halves of a word, so that one load brings both.
const SILU_PAIRS: [u32; 64] = {
    let mut pairs = [0; 64];
    let mut i = 0;
    while i < 64 {
        pairs[i] = super::tables::SILU_BASE[i] as u16 as u32 | (super::tables::SILU_SLOPE[i] as u16 as u32) << 16;
        i += 1;
    }
    pairs
};

/// Bases and slopes of 16 indices 0..63.
#[target_feature(enable = "avx2")]
fn look_up(index: __m256i) -> [__m256i; 2] {
    let mut indices = [0u16; 16];
    // SAFETY: 16 indices.
    unsafe { _mm256_storeu_si256(indices.as_mut_ptr().cast(), index) };
    let mut pairs = [0u32; 16];
    for (pair, i) in pairs.iter_mut().zip(indices) {
        *pair = SILU_PAIRS[usize::from(i & 63)];
    }
    // SAFETY: eight words each.
    let (a, b) = unsafe { (_mm256_loadu_si256(pairs.as_ptr().cast()), _mm256_loadu_si256(pairs.as_ptr().add(8).cast())) };
    // Signed 16-bit values pack without saturation; the packing interleaves halves of 128 bits.
    let low = _mm256_packs_epi32(_mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(a)), _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(b)));
    let high = _mm256_packs_epi32(_mm256_srai_epi32::<16>(a), _mm256_srai_epi32::<16>(b));
    [_mm256_permute4x64_epi64::<0b1101_1000>(low), _mm256_permute4x64_epi64::<0b1101_1000>(high)]
}

/// `x <- norm(sat16(x + d))` for each row of `width` elements.
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) -> Result<(), Broken> {
    // SAFETY: the CPU has AVX2 (`Kernel` is the proof).
    unsafe { add_norm_simd(x, d, width) }
    Ok(())
}

#[target_feature(enable = "avx2")]
fn add_norm_simd(x: &mut [i16], d: &[i16], width: usize) {
    for (x, d) in x.chunks_exact_mut(width).zip(d.chunks_exact(width)) {
        let (x, x_left) = x.as_chunks_mut::<16>();
        let (d, d_left) = d.as_chunks::<16>();
        let mut sum = 0u64;
        for (x, &d) in x_left.iter_mut().zip(d_left) {
            *x = x.saturating_add(d);
            sum += u64::from(x.unsigned_abs()) * u64::from(x.unsigned_abs());
        }
        let mut sums = _mm256_setzero_si256();
        for (x, d) in x.iter_mut().zip(d) {
            // SAFETY: 16 elements each.
            unsafe {
                let to = x.as_mut_ptr().cast();
                let y = _mm256_adds_epi16(_mm256_loadu_si256(to), _mm256_loadu_si256(d.as_ptr().cast()));
                _mm256_storeu_si256(to, y);
                // Two squares reach 2^31, so the pair sums are unsigned.
                let pairs = _mm256_madd_epi16(y, y);
                let halves = _mm256_add_epi64(_mm256_and_si256(pairs, _mm256_set1_epi64x(0xffff_ffff)), _mm256_srli_epi64::<32>(pairs));
                sums = _mm256_add_epi64(sums, halves);
            }
        }
        let mut lanes = [0u64; 4];
        // SAFETY: four words.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
        sum += lanes.iter().sum::<u64>();
        let (r, shift) = norm_factor(sum, width);
        // `vpmaddwd` of (x, 32) with (r, 2^(shift - 6)) is product and rounding; 6 <= shift <= 20.
        let factor = _mm256_set1_epi32(i32::from(r) | 1 << (shift - 6 + 16));
        let (count, rounding) = (_mm_cvtsi32_si128(shift as i32), _mm256_set1_epi16(32));
        for x in &mut *x {
            // SAFETY: 16 elements.
            unsafe {
                let to = x.as_mut_ptr().cast();
                let y = _mm256_loadu_si256(to);
                let low = _mm256_sra_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(y, rounding), factor), count);
                let high = _mm256_sra_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(y, rounding), factor), count);
                _mm256_storeu_si256(to, _mm256_packs_epi32(low, high));
            }
        }
        for x in x_left {
            *x = reference::sat16((i32::from(*x) * i32::from(r) + (1 << (shift - 1))) >> shift);
        }
    }
}

/// [`reference::norm_factor`] in binary64: quotients and roots of such integers are never so near below an integer that rounding reaches
/// it (the distance is at least 2^-41 of the value, binary64 rounds by 2^-53), so truncation is exact.
#[target_feature(enable = "avx2")]
fn norm_factor(sum: u64, width: usize) -> (i16, u32) {
    let v = (sum as f64 / width as f64) as u32 + 10;
    let e = v.ilog2() / 2;
    let scaled = _mm_set_sd(f64::from(v << (30 - 2 * e)));
    let root = _mm_cvttsd_si32(_mm_sqrt_sd(scaled, scaled));
    let r = (1_073_741_824.0 / f64::from(root)) as i32;
    (r.min(32767) as i16, e + 5)
}

/// Adds each row of `a` (`[R, C]`) to the sums (`[group rows, C]`) of its groups; `index` is `[R, G]`.
pub fn group_sums(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) -> Result<(), Broken> {
    // SAFETY: the CPU has AVX2 (`Kernel` is the proof).
    unsafe { group_sums_simd(a, channels, index, groupings, sums) }
}

#[target_feature(enable = "avx2")]
fn group_sums_simd(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) -> Result<(), Broken> {
    for (row, groups) in a.rows(channels)?.zip(index.rows(groupings)?) {
        for &group in groups {
            let at = usize::from(group) * channels;
            let (sum, sum_left) = sums.part_mut(at..at + channels)?.as_chunks_mut::<16>();
            let (row, row_left) = row.as_chunks::<16>();
            for (s, x) in sum.iter_mut().zip(row) {
                // SAFETY: 16 elements each.
                unsafe {
                    let to = s.as_mut_ptr().cast();
                    let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
                    _mm256_storeu_si256(to, _mm256_add_epi16(_mm256_loadu_si256(to), x));
                }
            }
            for (s, &x) in sum_left.iter_mut().zip(row_left) {
                *s = s.wrapping_add(i16::from(x));
            }
        }
    }
    Ok(())
}

/// As [`ymm::multiply_only`].
pub fn multiply_only(rounds: usize) -> (u64, i32) {
    #[target_feature(enable = "avx2")]
    unsafe fn compiled(rounds: usize) -> (u64, i32) {
        // SAFETY: the caller's promise.
        unsafe { ymm::multiply_only::<Madd>(rounds) }
    }
    // SAFETY: the CPU has AVX2 (`Kernel` is the proof).
    unsafe { compiled(rounds) }
}
