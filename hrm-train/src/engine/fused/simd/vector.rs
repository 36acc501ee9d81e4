//! Sixteen lanes in plain Rust, AVX2 and AVX-512.

use super::LANES;

/// Sixteen f32 lanes.
///
/// # Safety
/// Implementations may use instructions the machine must have; `load` and `store` touch [`LANES`] values at `p`.
pub trait Vector: Copy {
    /// Vectors across the widest register tile of a matrix product.
    const TILE: usize;
    /// Rows of a register tile one vector wide.
    const ROWS: usize;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn splat(x: f32) -> Self;
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    /// `self * b + c`.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn clamp(self, low: f32, high: f32) -> Self;
    unsafe fn round(self) -> Self;
    /// `self * 2^n` for integer `n` in -126..=127.
    unsafe fn scale(self, n: Self) -> Self;
    /// `1 / self` to about one unit in the last place.
    unsafe fn recip(self) -> Self;
    unsafe fn sum(self) -> f32;

    /// `1 / (1 + exp(-self))`; relative error of a few 1e-7.
    #[inline(always)]
    unsafe fn sigmoid(self) -> Self {
        // SAFETY: the caller has this instruction set.
        unsafe {
            // Beyond 80 the result is 1, or 0 to 35 digits; the clamp keeps the exponent of 2 in range. It lets NaN through.
            let x = Self::splat(0.0).sub(self.clamp(-80.0, 80.0));
            let n = x.mul(Self::splat(core::f32::consts::LOG2_E)).round();
            let r = n.fma(Self::splat(-0.693_145_75), x);
            let r = n.fma(Self::splat(-1.428_606_8e-6), r);
            // Taylor series of exp on |r| <= ln(2) / 2; the first dropped term is 1e-7 relative.
            let p = Self::splat(1.0 / 720.0);
            let p = p.fma(r, Self::splat(1.0 / 120.0));
            let p = p.fma(r, Self::splat(1.0 / 24.0));
            let p = p.fma(r, Self::splat(1.0 / 6.0));
            let p = p.fma(r, Self::splat(0.5));
            let p = p.fma(r, Self::splat(1.0));
            let p = p.fma(r, Self::splat(1.0));
            p.scale(n).add(Self::splat(1.0)).recip()
        }
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut r = self;
        for (a, b) in r.0.iter_mut().zip(o.0) {
            *a = f(*a, b);
        }
        r
    }
}

impl Vector for Plain {
    const TILE: usize = 1;
    const ROWS: usize = 2;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for LANES readable values at `p`.
        Self(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for LANES writable values at `p`.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
    // `f32::mul_add` is a library call on targets without the instruction.
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        self.zip(b, |a, b| a * b).zip(c, |a, c| a + c)
    }
    #[inline(always)]
    unsafe fn clamp(self, low: f32, high: f32) -> Self {
        self.zip(self, |a, _| a.clamp(low, high))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding 1.5 * 2^23 leaves no fraction bits.
        self.zip(self, |a, _| (a + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn scale(self, n: Self) -> Self {
        self.zip(n, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn recip(self) -> Self {
        self.zip(self, |a, _| 1.0 / a)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut v = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                v[i] += v[i + width];
            }
            width /= 2;
        }
        v[0]
    }
}

#[cfg(target_arch = "x86_64")]
/// What x86-64 has.
pub mod x86 {
    use super::Vector;
    use core::arch::x86_64::*;

    /// One register.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Vector for Avx512 {
        const TILE: usize = 5;
        const ROWS: usize = 8;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller vouches for the memory and the instruction set.
            Self(unsafe { _mm512_loadu_ps(p) })
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(p, self.0) };
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller vouches for the instruction set, here and below.
            Self(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_add_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_sub_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_mul_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }
        #[inline(always)]
        unsafe fn clamp(self, low: f32, high: f32) -> Self {
            // SAFETY: as above. `min` and `max` return their second operand if one is NaN.
            Self(unsafe { _mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), self.0)) })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
        }
        #[inline(always)]
        unsafe fn scale(self, n: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
        }
        #[inline(always)]
        unsafe fn recip(self) -> Self {
            // SAFETY: as above. One Newton step takes the 14 bits of the estimate to 28.
            unsafe {
                let y = _mm512_rcp14_ps(self.0);
                let e = _mm512_fnmadd_ps(self.0, y, _mm512_set1_ps(1.0));
                Self(_mm512_fmadd_ps(y, e, y))
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: as above.
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
    }

    /// Two registers.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    impl Avx2 {
        #[inline(always)]
        fn both(self, f: impl Fn(__m256) -> __m256) -> Self {
            Self(f(self.0), f(self.1))
        }

        #[inline(always)]
        fn zip(self, o: Self, f: impl Fn(__m256, __m256) -> __m256) -> Self {
            Self(f(self.0, o.0), f(self.1, o.1))
        }
    }

    impl Vector for Avx2 {
        const TILE: usize = 1;
        const ROWS: usize = 6;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller vouches for the memory and the instruction set.
            unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller vouches for the instruction set, here and below.
            let x = unsafe { _mm256_set1_ps(x) };
            Self(x, x)
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            // SAFETY: as above.
            self.zip(o, |a, b| unsafe { _mm256_add_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            // SAFETY: as above.
            self.zip(o, |a, b| unsafe { _mm256_sub_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            // SAFETY: as above.
            self.zip(o, |a, b| unsafe { _mm256_mul_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }
        #[inline(always)]
        unsafe fn clamp(self, low: f32, high: f32) -> Self {
            // SAFETY: as above. `min` and `max` return their second operand if one is NaN.
            self.both(|a| unsafe { _mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), a)) })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            // SAFETY: as above.
            self.both(|a| unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) })
        }
        #[inline(always)]
        unsafe fn scale(self, n: Self) -> Self {
            // SAFETY: as above.
            self.zip(n, |a, n| unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            })
        }
        #[inline(always)]
        unsafe fn recip(self) -> Self {
            // SAFETY: as above.
            self.both(|a| unsafe { _mm256_div_ps(_mm256_set1_ps(1.0), a) })
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: as above.
            unsafe {
                let eight = _mm256_add_ps(self.0, self.1);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
    }
}
