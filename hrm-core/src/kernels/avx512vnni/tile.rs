//! Register tiles: `MR` rows times `NR` blocks of 16 channels.

use core::arch::x86_64::*;

use super::LANES;
use crate::kernels::Requant;

/// `$body` for `$i` = 0 to `$n` - 1, at most 12, written out: the compiler does not unroll loops this long by itself, and only constant
/// indices keep accumulators in registers.
macro_rules! unrolled {
    ($n:expr, |$i:ident| $body:expr) => {
        unrolled!(@ $n, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $n:expr, $i:ident, $body:expr, $($at:literal)*) => {
        $(if $at < $n {
            let $i = $at;
            $body;
        })*
    };
}
pub(super) use unrolled;

/// Accumulators of a tile.
pub type Tile<const MR: usize, const NR: usize> = [[__m512i; NR]; MR];

/// Bytes from one group of four columns to the next, and to row `i`.
const fn offsets<const DUOS: bool>(i: usize, stride: usize) -> (usize, usize) {
    if DUOS { (8, i / 2 * stride + i % 2 * 4) } else { (4, i * stride) }
}

/// Adds the products of `steps` groups of four columns to `acc`. Activations are bytes `a ^ 0x80`: row after row at a distance of `stride`,
/// or with `DUOS` two rows together, `[K / 4][2 rows][4]`, at that distance.
///
/// # Safety
/// The CPU has the features. `a` is valid for `steps` groups of `MR` rows, `w` for `steps` groups of `NR` blocks that are `block` words
/// apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub unsafe fn multiply<const MR: usize, const NR: usize, const DUOS: bool>(
    acc: &mut Tile<MR, NR>,
    mut a: *const u8,
    stride: usize,
    mut w: *const i32,
    block: usize,
    steps: usize,
) {
    for _ in 0..steps {
        // SAFETY: the caller's promise.
        unsafe {
            let mut b = [_mm512_setzero_si512(); NR];
            for (j, b) in b.iter_mut().enumerate() {
                *b = _mm512_loadu_si512(w.add(j * block).cast());
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let quad = _mm512_set1_epi32(a.add(offsets::<DUOS>(i, stride).1).cast::<i32>().read_unaligned());
                for (acc, b) in row.iter_mut().zip(b) {
                    *acc = _mm512_dpbusd_epi32(*acc, quad, b);
                }
            }
            a = a.add(offsets::<DUOS>(0, stride).0);
            w = w.add(LANES);
        }
    }
}

/// The natural order of the channels of a block from the packed one, and back.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn swap(x: __m512i) -> __m512i {
    _mm512_shuffle_epi32::<0b11_01_10_00>(x)
}

/// The requantisation of one block of channels.
#[derive(Clone, Copy)]
pub struct Scale {
    even: __m512i,
    odd: __m512i,
    /// Bias, in the packed order.
    pub bias: __m512i,
}

/// Left shift of the multipliers, and of the accumulators: whole in one of them. Multipliers nearly always have room for it (an output step
/// is larger than two accumulator units), and then it costs nothing.
#[derive(Clone, Copy)]
pub struct Shifts {
    mult: u32,
    /// Nonzero: [`shift`] must be called on accumulators before [`requant`].
    pub acc: u32,
}

impl Shifts {
    /// Those of a matrix.
    #[target_feature(enable = "avx512f")]
    pub fn new(q: &Requant<'_>) -> Self {
        let most = q.mult.iter().fold(0, |most, &m| most | m);
        if most.leading_zeros() > q.shift { Self { mult: q.shift, acc: 0 } } else { Self { mult: 0, acc: q.shift } }
    }

    /// Those of two groups of channels of a matrix.
    #[target_feature(enable = "avx512f")]
    pub fn of_both(a: &Requant<'_>, b: &Requant<'_>) -> Self {
        let (a, b) = (Self::new(a), Self::new(b));
        if a.acc > 0 { a } else { b }
    }
}

impl Scale {
    /// That of channels `at..at + LANES`, as far as `mask` goes.
    ///
    /// # Safety
    /// The CPU has the features; bias and multipliers have those channels.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn load(q: &Requant<'_>, shifts: Shifts, at: usize, mask: u16) -> Self {
        // SAFETY: only channels under the mask are read.
        let (mult, bias) =
            unsafe { (_mm512_maskz_loadu_epi32(mask, q.mult.as_ptr().add(at)), _mm512_maskz_loadu_epi32(mask, q.bias.as_ptr().add(at))) };
        let even = swap(_mm512_sll_epi32(mult, _mm_cvtsi32_si128(shifts.mult as i32)));
        Self { even, odd: _mm512_srli_epi64::<32>(even), bias: swap(bias) }
    }
}

/// Shifts all accumulators of a tile. Apart, because it is hardly ever needed.
#[inline(never)]
#[target_feature(enable = "avx512f")]
pub fn shift<const MR: usize, const NR: usize>(acc: &mut Tile<MR, NR>, by: u32) {
    for acc in acc.as_flattened_mut() {
        *acc = _mm512_sll_epi32(*acc, _mm_cvtsi32_si128(by as i32));
    }
}

/// `(x * mult) >> 32`, not yet saturated: packed order in, natural order out.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn requant(x: __m512i, s: &Scale) -> __m512i {
    let even = _mm512_castsi512_ps(_mm512_mul_epi32(x, s.even));
    let odd = _mm512_castsi512_ps(_mm512_mul_epi32(_mm512_srli_epi64::<32>(x), s.odd));
    // The upper words of both: lanes 0, 2 then 1, 3 of the packed order.
    _mm512_castps_si512(_mm512_shuffle_ps::<0b11_01_11_01>(even, odd))
}

/// Multiply-accumulates in registers alone, to learn the peak: `rounds` of 24 independent `vpdpbusd`. Returns the MACs and something that
/// depends on all of them.
pub fn multiply_only(rounds: usize) -> (u64, i32) {
    // SAFETY: the CPU has the features (`Kernel` is the proof).
    unsafe { multiply_only_simd(rounds) }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_only_simd(rounds: usize) -> (u64, i32) {
    // Different from each other: equal chains would be computed once.
    let mut acc = [_mm512_setzero_si512(); 24];
    unrolled!(12, |i| {
        acc[i] = _mm512_set1_epi32(core::hint::black_box(i as i32));
        acc[i + 12] = _mm512_set1_epi32(core::hint::black_box(i as i32 + 12));
    });
    let a = _mm512_set1_epi32(core::hint::black_box(0x0102_0304));
    for _ in 0..rounds {
        unrolled!(12, |i| {
            acc[i] = _mm512_dpbusd_epi32(acc[i], a, a);
            acc[i + 12] = _mm512_dpbusd_epi32(acc[i + 12], a, a);
        });
    }
    let sum = acc.into_iter().fold(_mm512_setzero_si512(), |sum, x| _mm512_add_epi32(sum, x));
    (rounds as u64 * 24 * 64, _mm512_reduce_add_epi32(sum))
}
