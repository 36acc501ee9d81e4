//! AVX-512 VNNI kernels, bit-identical to [`super::reference`].
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, so activations are read as `a ^ 0x80 = a + 128` and every channel starts at
//! `-128 * sum(w)`. Packed weights of a block of 16 channels: `[K / 4][16][4]` int8, then 16 of those corrections.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::tables::{SILU_BASE, SILU_SLOPE};
use super::{Bases, Columns, Requant, reference};

/// Channels of a block: 32-bit lanes of a register.
const LANES: usize = 16;
/// Rows of the largest register tile. With [`WIDE`] it holds 27 accumulators, 3 weights, 1 activation and the sign mask: all 32.
const TALL: usize = 9;
/// Blocks of 16 channels of the largest register tile.
const WIDE: usize = 3;

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    n.div_ceil(LANES) * block_words(k)
}

const fn block_words(k: usize) -> usize {
    LANES * (k.div_ceil(4) + 1)
}

/// Packs a block of columns into `out`.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) {
    for (b, block) in out.chunks_exact_mut(block_words(w.k)).enumerate() {
        block.fill(0);
        let (quads, corrections) = block.split_at_mut(LANES * w.k.div_ceil(4));
        for lane in 0..LANES.min(w.n - b * LANES) {
            let row = w.row(b * LANES + lane);
            for (quad, bytes) in quads[lane..].iter_mut().step_by(LANES).zip(row.chunks(4)) {
                let mut word = [0u8; 4];
                for (to, &from) in word.iter_mut().zip(bytes) {
                    *to = from as u8;
                }
                *quad = i32::from_le_bytes(word);
            }
            corrections[lane] = -128 * row.iter().map(|&w| i32::from(w)).sum::<i32>();
        }
    }
}

/// What becomes of the accumulators of a call.
#[derive(Clone, Copy)]
enum Target<'a> {
    Wide(*mut i32),
    Narrow(*mut i16, Requant<'a>, Bases<'a>),
}

/// `out[r][n] = sum_k a[r][k] * w[n][k]`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, out: &mut [i32]) {
    if w.packed().len() < packed_words(w.n, w.k) || w.n == 0 || w.k == 0 {
        return reference::accumulate(a, w, out);
    }
    let rows = (a.len() / w.k).min(out.len() / w.n);
    // SAFETY: the CPU has the features (`Kernel` is the proof); `a` has `rows * k`, `out` `rows * n` elements and the packed form is
    // complete, all just checked.
    unsafe { multiply::<false>(a, w, rows, Target::Wide(out.as_mut_ptr())) }
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) {
    let packed = w.packed().len() >= packed_words(w.n, w.k) && w.n > 0 && w.k > 0;
    let none = Bases { table: &[], index: &[], groupings: 0 };
    let b = bases.unwrap_or(&none);
    let rows = if packed { (a.len() / w.k).min(out.len() / w.n) } else { 0 };
    let inside = q.bias.len() >= w.n
        && q.mult.len() >= w.n
        && b.index.len() >= rows * b.groupings
        && b.index[..rows * b.groupings].iter().max().is_none_or(|&g| (usize::from(g) + 1) * w.n <= b.table.len());
    if !packed || !inside {
        return reference::project(a, w, q, bases, out);
    }
    // SAFETY: as in `accumulate`; bias and multipliers have `n` elements, the index has an entry for each row and grouping and every
    // entry names a row inside the table, all just checked.
    unsafe { multiply::<true>(a, w, rows, Target::Narrow(out.as_mut_ptr(), *q, *b)) }
}

/// Goes over the output in tiles: panels of up to 48 channels outside, so that their weights stay in the first cache.
///
/// # Safety
/// The CPU has the features; `a` has `rows * k` elements, the packed form is complete, the target is as [`tile`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply<const NARROW: bool>(a: &[i8], w: &Columns<'_>, rows: usize, target: Target<'_>) {
    let blocks = w.n.div_ceil(LANES);
    let mut block = 0;
    while block < blocks {
        let wide = (blocks - block).min(WIDE);
        // SAFETY: passed on.
        unsafe {
            match wide {
                1 => panel::<1, NARROW>(a, w, block, rows, target),
                2 => panel::<2, NARROW>(a, w, block, rows, target),
                _ => panel::<WIDE, NARROW>(a, w, block, rows, target),
            }
        }
        block += wide;
    }
}

/// All rows of one panel of `NR` blocks of channels.
///
/// # Safety
/// As [`multiply`]; `first + NR` blocks exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn panel<const NR: usize, const NARROW: bool>(a: &[i8], w: &Columns<'_>, first: usize, rows: usize, target: Target<'_>) {
    let mut row = 0;
    while row < rows {
        // SAFETY: passed on; the tile's rows are inside.
        row += unsafe {
            match rows - row {
                TALL.. => tile::<TALL, NR, NARROW>(a, w, first, row, target),
                3.. => tile::<3, NR, NARROW>(a, w, first, row, target),
                _ => tile::<1, NR, NARROW>(a, w, first, row, target),
            }
        };
    }
}

/// One register tile: rows `row..row + MR`, blocks of channels `first..first + NR`. Returns `MR`.
///
/// # Safety
/// The CPU has the features; the rows exist in `a` and in the target, the blocks in the packed weights; bias, multipliers and the
/// rows of the bases' table that the index names have `n` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const MR: usize, const NR: usize, const NARROW: bool>(
    a: &[i8],
    w: &Columns<'_>,
    first: usize,
    row: usize,
    target: Target<'_>,
) -> usize {
    let (n, k) = (w.n, w.k);
    let sign = _mm512_set1_epi32(0x8080_8080u32 as i32);
    let stride = block_words(k);
    // SAFETY: the caller's promise; all offsets below stay inside these slices.
    let (mut input, mut weights) = unsafe { (a.as_ptr().add(row * k), w.packed().as_ptr().add(first * stride)) };
    let mask = |j: usize| if n - (first + j) * LANES >= LANES { u16::MAX } else { (1 << (n % LANES)) - 1 };

    let mut acc = [[_mm512_setzero_si512(); NR]; MR];
    for j in 0..NR {
        // SAFETY: the corrections are the last words of a block; the bias is read under the mask of existing channels.
        let start = unsafe {
            let correction = _mm512_loadu_si512(weights.add(j * stride + stride - LANES).cast());
            match target {
                Target::Narrow(_, q, _) if NARROW => {
                    let bias = _mm512_maskz_loadu_epi32(mask(j), q.bias.as_ptr().add((first + j) * LANES));
                    _mm512_add_epi32(correction, bias)
                }
                _ => correction,
            }
        };
        for row in &mut acc {
            row[j] = start;
        }
    }
    for _ in 0..k / 4 {
        // SAFETY: block `first + j` and four bytes of each of the rows, as the loop counts whole groups of four.
        unsafe {
            let mut b = [sign; NR];
            for (j, b) in b.iter_mut().enumerate() {
                *b = _mm512_loadu_si512(weights.add(j * stride).cast());
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let quad = _mm512_xor_si512(_mm512_set1_epi32(input.add(i * k).cast::<i32>().read_unaligned()), sign);
                for (acc, b) in row.iter_mut().zip(b) {
                    *acc = _mm512_dpbusd_epi32(*acc, quad, b);
                }
            }
            input = input.add(4);
            weights = weights.add(LANES);
        }
    }
    if !k.is_multiple_of(4) {
        for (i, row) in acc.iter_mut().enumerate() {
            let mut bytes = [0u8; 4];
            let left = k % 4;
            for (b, from) in bytes.iter_mut().zip(0..left) {
                // SAFETY: `left` bytes of the row are left after the groups of four.
                *b = unsafe { *input.add(i * k + from) } as u8;
            }
            let quad = _mm512_xor_si512(_mm512_set1_epi32(i32::from_le_bytes(bytes)), sign);
            for (j, acc) in row.iter_mut().enumerate() {
                // SAFETY: the packed form has a last group of four, padded with zeros.
                let b = unsafe { _mm512_loadu_si512(weights.add(j * stride).cast()) };
                *acc = _mm512_dpbusd_epi32(*acc, quad, b);
            }
        }
    }
    match target {
        Target::Wide(out) => {
            for (i, accs) in acc.iter().enumerate() {
                for (j, &acc) in accs.iter().enumerate() {
                    // SAFETY: row and channel exist in the output, the mask cuts the channels off that do not.
                    unsafe { _mm512_mask_storeu_epi32(out.add((row + i) * n + (first + j) * LANES), mask(j), acc) };
                }
            }
        }
        Target::Narrow(out, q, bases) => {
            for (i, accs) in acc.iter_mut().enumerate() {
                for g in 0..bases.groupings {
                    // SAFETY: the index has an entry, and the entry a row in the table.
                    unsafe {
                        let group = usize::from(*bases.index.as_ptr().add((row + i) * bases.groupings + g));
                        let base = bases.table.as_ptr().add(group * n + first * LANES);
                        for (j, acc) in accs.iter_mut().enumerate() {
                            *acc = _mm512_add_epi32(*acc, _mm512_maskz_loadu_epi32(mask(j), base.add(j * LANES)));
                        }
                    }
                }
            }
            let shift = _mm_cvtsi32_si128(q.shift as i32);
            for j in 0..NR {
                // SAFETY: multipliers of existing channels only.
                let even = unsafe { _mm512_maskz_loadu_epi32(mask(j), q.mult.as_ptr().add((first + j) * LANES)) };
                let odd = _mm512_srli_epi64::<32>(even);
                for (i, accs) in acc.iter().enumerate() {
                    let x = _mm512_sll_epi32(accs[j], shift);
                    let high = _mm512_mul_epi32(_mm512_srli_epi64::<32>(x), odd);
                    let low = _mm512_srli_epi64::<32>(_mm512_mul_epi32(x, even));
                    let y = _mm512_cvtsepi32_epi16(_mm512_mask_blend_epi32(0xAAAA, low, high));
                    // SAFETY: row and channel exist in the output; where a block is not full the mask cuts it off.
                    unsafe {
                        let to = out.add((row + i) * n + (first + j) * LANES);
                        if mask(j) == u16::MAX {
                            _mm256_storeu_si256(to.cast(), y);
                        } else {
                            _mm256_mask_storeu_epi16(to, mask(j), y);
                        }
                    }
                }
            }
        }
    }
    MR
}

/// Calls `$body` with the offset and the mask of each 32 of `$n` elements.
macro_rules! by_32 {
    ($n:expr, |$at:ident, $mask:ident| $body:expr) => {{
        let n = $n;
        let mut $at = 0;
        while $at + 32 <= n {
            let $mask = u32::MAX;
            $body;
            $at += 32;
        }
        if $at < n {
            let $mask = (1u32 << (n - $at)) - 1;
            $body;
        }
    }};
}

/// int8 views of a slice.
pub fn view8_slice(x: &[i16], m: i16, out: &mut [i8]) {
    // SAFETY: the CPU has the features (`Kernel` is the proof).
    unsafe { view8_simd(x, m, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn view8_simd(x: &[i16], m: i16, out: &mut [i8]) {
    let m = _mm512_set1_epi16(m);
    by_32!(x.len().min(out.len()), |at, mask| {
        // SAFETY: the mask cuts off what is outside either slice.
        unsafe {
            let x = _mm512_maskz_loadu_epi16(mask, x.as_ptr().add(at));
            // `vpmulhrsw` is the view's multiply, round and shift; it cannot overflow as `m` is positive.
            let y = _mm512_cvtsepi16_epi8(_mm512_mulhrs_epi16(x, m));
            _mm256_mask_storeu_epi8(out.as_mut_ptr().add(at), mask, y);
        }
    });
}

/// Hidden values of the gated MLP.
pub fn glu_rows(gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) {
    // SAFETY: the CPU has the features (`Kernel` is the proof).
    unsafe { glu_simd(gate_up, inner, shift, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn glu_simd(gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) {
    let count = _mm_cvtsi32_si128(shift as i32);
    let (end, half) = (_mm512_set1_epi16(8191 >> shift), _mm512_set1_epi16((1 << shift) >> 1));
    // SAFETY: 32 of 64 elements each.
    let tables = unsafe {
        let load = |t: &[i16; 64], at: usize| _mm512_loadu_epi16(t.as_ptr().add(at));
        [load(&SILU_BASE, 0), load(&SILU_BASE, 32), load(&SILU_SLOPE, 0), load(&SILU_SLOPE, 32)]
    };
    let [base_low, base_high, slope_low, slope_high] = tables;
    for (row, out) in gate_up.chunks_exact(2 * inner).zip(out.chunks_exact_mut(inner)) {
        let (gate, up) = row.split_at(inner);
        by_32!(inner, |at, mask| {
            // SAFETY: the mask cuts off what is outside gate, up and out, which are all `inner` long.
            unsafe {
                let g = _mm512_maskz_loadu_epi16(mask, gate.as_ptr().add(at));
                let u = _mm512_maskz_loadu_epi16(mask, up.as_ptr().add(at));
                let t = _mm512_sll_epi16(_mm512_min_epu16(_mm512_abs_epi16(g), end), count);
                let i = _mm512_srli_epi16::<7>(t);
                // `(slope * f + 64) >> 7` is `vpmulhrsw` with `f << 8`.
                let f = _mm512_slli_epi16::<8>(_mm512_and_si512(t, _mm512_set1_epi16(127)));
                let base = _mm512_permutex2var_epi16(base_low, i, base_high);
                let slope = _mm512_permutex2var_epi16(slope_low, i, slope_high);
                let sum = _mm512_add_epi16(_mm512_mulhrs_epi16(slope, f), base);
                let d = _mm512_srai_epi16::<4>(_mm512_add_epi16(sum, _mm512_set1_epi16(8)));
                let d = _mm512_sra_epi16(_mm512_add_epi16(d, half), count);
                let silu = _mm512_add_epi16(_mm512_max_epi16(g, _mm512_setzero_si512()), d);
                let h = _mm512_cvtsepi16_epi8(_mm512_mulhrs_epi16(silu, u));
                _mm256_mask_storeu_epi8(out.as_mut_ptr().add(at), mask, h);
            }
        });
    }
}

/// `x <- norm(sat16(x + d))` for each row of `width` elements.
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) {
    // SAFETY: the CPU has the features (`Kernel` is the proof).
    unsafe { add_norm_simd(x, d, width) }
}

/// Eight rows at a time, so that their divisions and roots share registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512cd,avx512dq")]
fn add_norm_simd(x: &mut [i16], d: &[i16], width: usize) {
    for (x, d) in x.chunks_mut(8 * width).zip(d.chunks(8 * width)) {
        let mut sums = [0u64; 8];
        for ((x, d), sum) in x.chunks_exact_mut(width).zip(d.chunks_exact(width)).zip(&mut sums) {
            *sum = add_rows(x, d);
        }
        let (factors, shifts) = norm_factors(sums, width);
        for ((x, factor), shift) in x.chunks_exact_mut(width).zip(factors).zip(shifts) {
            scale_row(x, factor, shift);
        }
    }
}

/// `x <- sat16(x + d)`, returns the sum of squares.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512cd,avx512dq")]
fn add_rows(x: &mut [i16], d: &[i16]) -> u64 {
    let mut sum = _mm512_setzero_si512();
    let low = _mm512_set1_epi64(0xffff_ffff);
    by_32!(x.len().min(d.len()), |at, mask| {
        // SAFETY: the mask cuts off what is outside either slice.
        unsafe {
            let to = x.as_mut_ptr().add(at);
            let y = _mm512_adds_epi16(_mm512_maskz_loadu_epi16(mask, to), _mm512_maskz_loadu_epi16(mask, d.as_ptr().add(at)));
            _mm512_mask_storeu_epi16(to, mask, y);
            // Two squares reach 2^31, so the pair sums are unsigned.
            let pairs = _mm512_madd_epi16(y, y);
            sum = _mm512_add_epi64(sum, _mm512_add_epi64(_mm512_and_si512(pairs, low), _mm512_srli_epi64::<32>(pairs)));
        }
    });
    _mm512_reduce_add_epi64(sum) as u64
}

/// [`reference::norm_factor`] of eight sums, in binary64: quotients and roots of such integers are never so near below an integer that
/// rounding reaches it (the distance is at least 2^-41 of the value, binary64 rounds by 2^-53), so truncation is exact.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512cd,avx512dq")]
fn norm_factors(sums: [u64; 8], width: usize) -> ([i32; 8], [i64; 8]) {
    // SAFETY: eight words.
    let sums = unsafe { _mm512_loadu_epi64(sums.as_ptr().cast()) };
    let mean = _mm512_cvttpd_epi64(_mm512_div_pd(_mm512_cvtepi64_pd(sums), _mm512_set1_pd(width as f64)));
    let v = _mm512_add_epi64(mean, _mm512_set1_epi64(10));
    let e = _mm512_srli_epi64::<1>(_mm512_sub_epi64(_mm512_set1_epi64(63), _mm512_lzcnt_epi64(v)));
    let scaled = _mm512_sllv_epi64(v, _mm512_sub_epi64(_mm512_set1_epi64(30), _mm512_slli_epi64::<1>(e)));
    let root = _mm512_roundscale_pd::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(_mm512_sqrt_pd(_mm512_cvtepi64_pd(scaled)));
    let r = _mm512_cvttpd_epi32(_mm512_div_pd(_mm512_set1_pd(1_073_741_824.0), root));
    let (mut factors, mut shifts) = ([0; 8], [0; 8]);
    // SAFETY: eight elements each.
    unsafe {
        _mm256_storeu_epi32(factors.as_mut_ptr(), _mm256_min_epi32(r, _mm256_set1_epi32(32767)));
        _mm512_storeu_epi64(shifts.as_mut_ptr(), _mm512_add_epi64(e, _mm512_set1_epi64(5)));
    }
    (factors, shifts)
}

/// `x <- sat16((x * r + 2^(shift - 1)) >> shift)`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512cd,avx512dq")]
fn scale_row(x: &mut [i16], r: i32, shift: i64) {
    // `vpmaddwd` of (x, 32) with (r, 2^(shift - 6)) is product and rounding; 6 <= shift <= 20.
    let factor = _mm512_set1_epi32(r | 1 << (shift - 6 + 16));
    let count = _mm_cvtsi64_si128(shift);
    let rounding = _mm512_set1_epi16(32);
    by_32!(x.len(), |at, mask| {
        // SAFETY: the mask cuts off what is outside the slice.
        unsafe {
            let to = x.as_mut_ptr().add(at);
            let y = _mm512_maskz_loadu_epi16(mask, to);
            let low = _mm512_sra_epi32(_mm512_madd_epi16(_mm512_unpacklo_epi16(y, rounding), factor), count);
            let high = _mm512_sra_epi32(_mm512_madd_epi16(_mm512_unpackhi_epi16(y, rounding), factor), count);
            _mm512_mask_storeu_epi16(to, mask, _mm512_packs_epi32(low, high));
        }
    });
}

/// Adds each row of `a` (`[R, C]`) to the sums (`[group rows, C]`) of its groups; `index` is `[R, G]`.
pub fn group_sums(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) {
    // SAFETY: the CPU has the features (`Kernel` is the proof).
    unsafe { group_sums_simd(a, channels, index, groupings, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn group_sums_simd(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) {
    for (row, groups) in a.chunks_exact(channels).zip(index.chunks_exact(groupings)) {
        for &group in groups {
            let at = usize::from(group) * channels;
            let sum = &mut sums[at..at + channels];
            by_32!(channels, |at, mask| {
                // SAFETY: the mask cuts off what is outside the row and the sum, which are both `channels` long.
                unsafe {
                    let to = sum.as_mut_ptr().add(at);
                    let x = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, row.as_ptr().add(at)));
                    _mm512_mask_storeu_epi16(to, mask, _mm512_add_epi16(_mm512_maskz_loadu_epi16(mask, to), x));
                }
            });
        }
    }
}
