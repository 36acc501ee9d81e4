//! Element-wise work: views, hidden values, norms, sums. What is left of a row after whole registers goes through masks.

use core::arch::x86_64::*;

use crate::kernels::reference;
use crate::kernels::tables::{SILU_BASE, SILU_SLOPE};
use crate::parts::{Broken, Parts};

/// int8 views of a slice.
pub fn view8_slice(x: &[i16], m: i16, out: &mut [i8]) {
    // SAFETY: the CPU has the features (`Kernel` is the proof).
    unsafe { view8_simd::<false>(x, m, out) }
}

/// int8 views, or with `FLIP` those as `view ^ 0x80`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn view8_simd<const FLIP: bool>(x: &[i16], m: i16, out: &mut [i8]) {
    let factor = _mm512_set1_epi16(m);
    let flip = _mm256_set1_epi8(if FLIP { i8::MIN } else { 0 });
    let (from, from_left) = x.as_chunks::<32>();
    let (to, to_left) = out.as_chunks_mut::<32>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 32 elements each.
        unsafe {
            // `vpmulhrsw` is the view's multiply, round and shift; it cannot overflow as `m` is positive.
            let y = _mm512_mulhrs_epi16(_mm512_loadu_si512(from.as_ptr().cast()), factor);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_xor_si256(_mm512_cvtsepi16_epi8(y), flip));
        }
    }
    for (&x, to) in from_left.iter().zip(to_left) {
        *to = reference::view8(x, m) ^ if FLIP { i8::MIN } else { 0 };
    }
}

/// What the hidden values of a call have in common.
pub struct Glu {
    base: [__m512i; 2],
    slope: [__m512i; 2],
    end: __m512i,
    // A count for each lane: one count for all takes another unit as well.
    index_shift: __m512i,
    fraction_shift: __m512i,
    down: __m512i,
}

impl Glu {
    /// For gates of the unit `2^(shift - 10)`, `shift` 0 to 4.
    ///
    /// The two roundings of `silu`, by `+ 8 >> 4` and by `+ 2^(shift - 1) >> shift`, are one: floors of quotients nest.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub fn new(shift: u32) -> Self {
        let shift = shift.min(4);
        let rounding = _mm512_set1_epi16(8 + 16 * ((1 << shift) >> 1));
        // SAFETY: 32 of 64 elements each.
        let load = |t: &[i16; 64], at: usize| unsafe { _mm512_loadu_si512(t.as_ptr().add(at).cast()) };
        let count = |n: u32| _mm512_set1_epi16(n as i16);
        Self {
            base: [_mm512_add_epi16(load(&SILU_BASE, 0), rounding), _mm512_add_epi16(load(&SILU_BASE, 32), rounding)],
            slope: [load(&SILU_SLOPE, 0), load(&SILU_SLOPE, 32)],
            end: _mm512_set1_epi16(8191 >> shift),
            index_shift: count(7 - shift),
            fraction_shift: count(8 + shift),
            down: count(4 + shift),
        }
    }

    /// 32 hidden values, not yet saturated to int8.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub fn hidden(&self, g: __m512i, u: __m512i) -> __m512i {
        let t = _mm512_min_epu16(_mm512_abs_epi16(g), self.end);
        let i = _mm512_srlv_epi16(t, self.index_shift);
        // `(slope * f + 64) >> 7` is `vpmulhrsw` with `f << 8`.
        let f = _mm512_and_si512(_mm512_sllv_epi16(t, self.fraction_shift), _mm512_set1_epi16(0x7f00));
        let base = _mm512_permutex2var_epi16(self.base[0], i, self.base[1]);
        let slope = _mm512_permutex2var_epi16(self.slope[0], i, self.slope[1]);
        let d = _mm512_srav_epi16(_mm512_add_epi16(_mm512_mulhrs_epi16(slope, f), base), self.down);
        let silu = _mm512_add_epi16(_mm512_max_epi16(g, _mm512_setzero_si512()), d);
        _mm512_mulhrs_epi16(silu, u)
    }
}

/// Hidden values of the gated MLP.
pub fn glu_rows(gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) -> Result<(), Broken> {
    // SAFETY: the CPU has the features (`Kernel` is the proof).
    unsafe { glu_simd(gate_up, inner, shift, out) }
    Ok(())
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn glu_simd(gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) {
    let glu = Glu::new(shift);
    for (row, out) in gate_up.chunks_exact(2 * inner).zip(out.chunks_exact_mut(inner)) {
        let (gate, up) = row.split_at(inner);
        let ((gate, gate_left), (up, up_left)) = (gate.as_chunks::<32>(), up.as_chunks::<32>());
        let (out, out_left) = out.as_chunks_mut::<32>();
        for ((g, u), out) in gate.iter().zip(up).zip(out) {
            // SAFETY: 32 elements each.
            unsafe {
                let h = glu.hidden(_mm512_loadu_si512(g.as_ptr().cast()), _mm512_loadu_si512(u.as_ptr().cast()));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtsepi16_epi8(h));
            }
        }
        let mask = (1u32 << gate_left.len()) - 1;
        if mask != 0 {
            // SAFETY: the mask cuts off what is behind the row.
            unsafe {
                let (g, u) = (_mm512_maskz_loadu_epi16(mask, gate_left.as_ptr()), _mm512_maskz_loadu_epi16(mask, up_left.as_ptr()));
                _mm256_mask_storeu_epi8(out_left.as_mut_ptr(), mask, _mm512_cvtsepi16_epi8(glu.hidden(g, u)));
            }
        }
    }
}

/// `x <- norm(sat16(x + d))` for each row of `width` elements.
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) -> Result<(), Broken> {
    for (x, d) in x.chunks_mut(8 * width).zip(d.chunks(8 * width)) {
        // SAFETY: the CPU has the features (`Kernel` is the proof).
        unsafe { add_norm_rows(x, d, width, 0) }
    }
    Ok(())
}

/// `x <- norm(sat16(down(x, residual_shift) + d))` of up to eight rows, so that their divisions and roots share registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512cd,avx512dq")]
pub fn add_norm_rows(x: &mut [i16], d: &[i16], width: usize, residual_shift: u32) {
    let mut sums = [_mm512_setzero_si512(); 8];
    for ((x, d), sum) in x.chunks_exact_mut(width).zip(d.chunks_exact(width)).zip(&mut sums) {
        *sum = add_row(x, d, residual_shift);
    }
    let (factors, shifts) = norm_factors(add_lanes(sums), width);
    for ((x, factor), shift) in x.chunks_exact_mut(width).zip(factors).zip(shifts) {
        scale_row(x, factor, shift as u32);
    }
}

/// `x <- sat16(down(x, residual_shift) + d)`; returns sums of squares, to be added up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512cd,avx512dq")]
fn add_row(x: &mut [i16], d: &[i16], residual_shift: u32) -> __m512i {
    let low = _mm512_set1_epi64(0xffff_ffff);
    // `vpmulhrsw` with `2^(15 - s)` is `(x + 2^(s - 1)) >> s`.
    let down = _mm512_set1_epi16((1 << 15 >> residual_shift.max(1)) as i16);
    let add = |x, d| {
        let x = if residual_shift > 0 { _mm512_mulhrs_epi16(x, down) } else { x };
        let y = _mm512_adds_epi16(x, d);
        // Two squares reach 2^31, so the pair sums are unsigned.
        let pairs = _mm512_madd_epi16(y, y);
        (y, _mm512_add_epi64(_mm512_and_si512(pairs, low), _mm512_srli_epi64::<32>(pairs)))
    };
    let mut sum = _mm512_setzero_si512();
    let (x, x_left) = x.as_chunks_mut::<32>();
    let (d, d_left) = d.as_chunks::<32>();
    for (x, d) in x.iter_mut().zip(d) {
        // SAFETY: 32 elements each.
        unsafe {
            let (y, squares) = add(_mm512_loadu_si512(x.as_ptr().cast()), _mm512_loadu_si512(d.as_ptr().cast()));
            _mm512_storeu_si512(x.as_mut_ptr().cast(), y);
            sum = _mm512_add_epi64(sum, squares);
        }
    }
    if let (Ok(x), Ok(d)) = (<&mut [i16; 16]>::try_from(&mut *x_left), <&[i16; 16]>::try_from(d_left)) {
        // SAFETY: 16 elements each.
        unsafe {
            let load = |p: *const i16| _mm512_zextsi256_si512(_mm256_loadu_si256(p.cast()));
            let (y, squares) = add(load(x.as_ptr()), load(d.as_ptr()));
            _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_castsi512_si256(y));
            sum = _mm512_add_epi64(sum, squares);
        }
    } else if !x_left.is_empty() {
        let mask = (1u32 << x_left.len().min(d_left.len())) - 1;
        // SAFETY: the mask cuts off what is behind the row.
        unsafe {
            let (y, squares) = add(_mm512_maskz_loadu_epi16(mask, x_left.as_ptr()), _mm512_maskz_loadu_epi16(mask, d_left.as_ptr()));
            _mm512_mask_storeu_epi16(x_left.as_mut_ptr(), mask, y);
            sum = _mm512_add_epi64(sum, squares);
        }
    }
    sum
}

/// The sums of the lanes of each register, in its place.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_lanes(s: [__m512i; 8]) -> __m512i {
    let pair = |a, b| _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    // Lanes of 128 bits, then of 256: even ones of both, plus odd ones of both.
    let halves = |a, b| _mm512_add_epi64(_mm512_shuffle_i64x2::<0b10_00_10_00>(a, b), _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b));
    halves(halves(pair(s[0], s[1]), pair(s[2], s[3])), halves(pair(s[4], s[5]), pair(s[6], s[7])))
}

/// [`reference::norm_factor`] of eight sums, in binary64: quotients and roots of such integers are never so near below an integer that
/// rounding reaches it (the distance is at least 2^-41 of the value, binary64 rounds by 2^-53), so truncation is exact.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512cd,avx512dq")]
fn norm_factors(sums: __m512i, width: usize) -> ([i32; 8], [i64; 8]) {
    let mean = _mm512_cvttpd_epi64(_mm512_div_pd(_mm512_cvtepi64_pd(sums), _mm512_set1_pd(width as f64)));
    let v = _mm512_add_epi64(mean, _mm512_set1_epi64(10));
    let e = _mm512_srli_epi64::<1>(_mm512_sub_epi64(_mm512_set1_epi64(63), _mm512_lzcnt_epi64(v)));
    let scaled = _mm512_sllv_epi64(v, _mm512_sub_epi64(_mm512_set1_epi64(30), _mm512_slli_epi64::<1>(e)));
    let root = _mm512_roundscale_pd::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(_mm512_sqrt_pd(_mm512_cvtepi64_pd(scaled)));
    let r = _mm512_cvttpd_epi32(_mm512_div_pd(_mm512_set1_pd(1_073_741_824.0), root));
    let (mut factors, mut shifts) = ([0; 8], [0; 8]);
    // SAFETY: eight elements each.
    unsafe {
        _mm256_storeu_si256(factors.as_mut_ptr().cast(), _mm256_min_epi32(r, _mm256_set1_epi32(32767)));
        _mm512_storeu_si512(shifts.as_mut_ptr().cast(), _mm512_add_epi64(e, _mm512_set1_epi64(5)));
    }
    (factors, shifts)
}

/// `x <- sat16((x * r + 2^(shift - 1)) >> shift)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512cd,avx512dq")]
fn scale_row(x: &mut [i16], r: i32, shift: u32) {
    // `vpmaddwd` of (x, 32) with (r, 2^(shift - 6)) is product and rounding; 6 <= shift <= 20.
    let factor = _mm512_set1_epi32(r | 1 << (shift - 6 + 16));
    let count = _mm_cvtsi32_si128(shift as i32);
    let rounding = _mm512_set1_epi16(32);
    let scale = |y| {
        let low = _mm512_sra_epi32(_mm512_madd_epi16(_mm512_unpacklo_epi16(y, rounding), factor), count);
        let high = _mm512_sra_epi32(_mm512_madd_epi16(_mm512_unpackhi_epi16(y, rounding), factor), count);
        _mm512_packs_epi32(low, high)
    };
    let (x, x_left) = x.as_chunks_mut::<32>();
    for x in x {
        // SAFETY: 32 elements.
        unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), scale(_mm512_loadu_si512(x.as_ptr().cast()))) };
    }
    if let Ok(x) = <&mut [i16; 16]>::try_from(&mut *x_left) {
        // SAFETY: 16 elements.
        unsafe {
            let y = scale(_mm512_castsi256_si512(_mm256_loadu_si256(x.as_ptr().cast())));
            _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_castsi512_si256(y));
        }
    } else if !x_left.is_empty() {
        let mask = (1u32 << x_left.len()) - 1;
        // SAFETY: the mask cuts off what is behind the row.
        unsafe { _mm512_mask_storeu_epi16(x_left.as_mut_ptr(), mask, scale(_mm512_maskz_loadu_epi16(mask, x_left.as_ptr()))) };
    }
}

/// Adds each row of `a` (`[R, C]`) to the sums (`[group rows, C]`) of its groups; `index` is `[R, G]`.
pub fn group_sums(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) -> Result<(), Broken> {
    // SAFETY: the CPU has the features (`Kernel` is the proof).
    unsafe { group_sums_simd(a, channels, index, groupings, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn group_sums_simd(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) -> Result<(), Broken> {
    for (row, groups) in a.rows(channels)?.zip(index.rows(groupings)?) {
        for &group in groups {
            let at = usize::from(group) * channels;
            let (sum, sum_left) = sums.part_mut(at..at + channels)?.as_chunks_mut::<16>();
            let (row, row_left) = row.as_chunks::<16>();
            for (s, x) in sum.iter_mut().zip(row) {
                // SAFETY: 16 elements each.
                unsafe {
                    let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
                    let y = _mm256_add_epi16(_mm256_loadu_si256(s.as_ptr().cast()), x);
                    _mm256_storeu_si256(s.as_mut_ptr().cast(), y);
                }
            }
            for (s, &x) in sum_left.iter_mut().zip(row_left) {
                *s = s.wrapping_add(i16::from(x));
            }
        }
    }
    Ok(())
}
