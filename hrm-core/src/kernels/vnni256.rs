//! `vpdpbusd` on registers of 256 bits, bit-identical to [`super::reference`]: CPUs with AVX-VNNI and without AVX-512 (Alder Lake, N100), and those
//! with AVX-512 VNNI where the wider registers are not wanted. The two forms of the instruction differ in their encoding alone.
//!
//! It multiplies unsigned by signed bytes, so activations are arranged as `a ^ 0x80 = a + 128`, and every channel starts at `-128 * sum(w)`. Packed
//! weights of a block of 8 channels: `[K / 4][8][4]` int8, then 8 of those corrections. Everything but the products is `avx2`'s.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::words::word_of;
use super::ymm::{self, Dot, LANES, Target};
use super::{Bases, Columns, Requant};
use crate::parts::Broken;

/// Columns of a lane.
const QUAD: usize = 4;

/// Packs a block of columns into `out`.
fn pack_quads<D: Dot>(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    for (b, block) in out.chunks_exact_mut(ymm::block_words::<D>(w.k)).enumerate() {
        block.fill(0);
        let (quads, corrections) = block.split_at_mut(LANES * w.k.div_ceil(QUAD));
        for lane in 0..LANES.min(w.n - b * LANES) {
            let row = w.row(b * LANES + lane)?;
            for (quad, bytes) in quads[lane..].iter_mut().step_by(LANES).zip(row.chunks(QUAD)) {
                *quad = word_of(bytes);
            }
            corrections[lane] = -128 * row.iter().map(|&w| i32::from(w)).sum::<i32>();
        }
    }
    Ok(())
}

/// Copies a row as `a ^ 0x80`.
#[target_feature(enable = "avx2")]
fn flip(row: &[i8], out: &mut [i32]) {
    let (whole, rest) = row.as_chunks::<16>();
    let (to, to_rest) = out.split_at_mut(whole.len() * 4);
    for (from, to) in whole.iter().zip(to.as_chunks_mut::<4>().0) {
        // SAFETY: 16 bytes in and out.
        unsafe {
            let flipped = _mm_xor_si128(_mm_loadu_si128(from.as_ptr().cast()), _mm_set1_epi8(i8::MIN));
            _mm_storeu_si128(to.as_mut_ptr().cast(), flipped);
        }
    }
    for (from, to) in rest.chunks(QUAD).zip(to_rest) {
        *to = word_of(from) ^ i32::from_ne_bytes([0x80; QUAD]);
    }
}

/// The kernel of an encoding.
macro_rules! encoding {
    ($(#[$doc:meta])* $name:ident, $features:literal, $product:ident) => {
        $(#[$doc])*
        pub mod $name {
            use super::*;

            pub use crate::kernels::avx2::{add, add_norm, glu_rows, group_sums, inject, scale_down, view8_slice};

            struct Dpbusd;

            impl Dot for Dpbusd {
                const COLUMNS: usize = QUAD;
                const CORRECTED: bool = true;

                #[inline(always)]
                unsafe fn arrange(row: &[i8], out: &mut [i32]) {
                    // SAFETY: the caller's promise.
                    unsafe { flip(row, out) }
                }

                #[inline(always)]
                unsafe fn add(sum: __m256i, a: __m256i, w: __m256i) -> __m256i {
                    // SAFETY: the caller's promise.
                    unsafe { $product(sum, a, w) }
                }

                unsafe fn multiply(a: &[i8], w: &Columns<'_>, rows: usize, target: &Target<'_>) {
                    #[target_feature(enable = $features)]
                    unsafe fn compiled(a: &[i8], w: &Columns<'_>, rows: usize, target: &Target<'_>) {
                        // SAFETY: the caller's promise.
                        unsafe { ymm::multiply::<Dpbusd>(a, w, rows, target) }
                    }
                    // SAFETY: the caller's promise.
                    unsafe { compiled(a, w, rows, target) }
                }
            }

            /// Words of the packed form of `n` x `k` weights.
            pub const fn packed_words(n: usize, k: usize) -> usize {
                ymm::packed_words::<Dpbusd>(n, k)
            }

            /// Packs a block of columns into `out`.
            pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
                pack_quads::<Dpbusd>(w, out)
            }

            /// `out[r][n] = W a + bases`.
            pub fn accumulate(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
                ymm::accumulate::<Dpbusd>(a, w, bases, out)
            }

            /// `out[r][n] = requant(W a + bases + bias)`.
            pub fn project(
                a: &[i8],
                w: &Columns<'_>,
                q: &Requant<'_>,
                bases: Option<&Bases<'_>>,
                out: &mut [i16],
            ) -> Result<(), Broken> {
                ymm::project::<Dpbusd>(a, w, q, bases, out)
            }

            /// As [`ymm::multiply_only`].
            pub fn multiply_only(rounds: usize) -> (u64, i32) {
                #[target_feature(enable = $features)]
                unsafe fn compiled(rounds: usize) -> (u64, i32) {
                    // SAFETY: the caller's promise.
                    unsafe { ymm::multiply_only::<Dpbusd>(rounds) }
                }
                // SAFETY: the CPU has the instruction set (`Kernel` is the proof).
                unsafe { compiled(rounds) }
            }
        }
    };
}

encoding! {
    /// AVX-VNNI.
    vex, "avx2,avxvnni", _mm256_dpbusd_avx_epi32
}
encoding! {
    /// AVX-512 VNNI with AVX-512 VL.
    evex, "avx2,avx512vl,avx512vnni", _mm256_dpbusd_epi32
}
