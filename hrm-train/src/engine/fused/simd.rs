//! The vector kernels of the fused engine: the only place with `unsafe`.
//!
//! Every kernel is written once over [`Vector`], sixteen f32 lanes, and instantiated for AVX-512 (found at run time) and for plain arrays
//! that any target compiles. Rows are padded to a multiple of [`LANES`] with zeros, so no kernel has a masked tail. The public functions
//! check every bound and are safe.

/// Lanes of a vector; the innermost extent of every buffer is a multiple of it.
pub const LANES: usize = 16;

/// The instruction set the kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The fastest set this machine has.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            return Self(Kind::Avx512);
        }
        Self(Kind::Portable)
    }

    /// Plain Rust, on every machine.
    #[cfg(test)]
    pub const fn portable() -> Self {
        Self(Kind::Portable)
    }

    /// Name for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }
}

/// Sixteen f32 lanes.
///
/// # Safety
/// Implementations may use instructions the machine must have; `load` and `store` touch [`LANES`] values at `p`.
trait Vector: Copy {
    /// Widest register tile, in vectors.
    const TILE: usize;
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

#[derive(Clone, Copy)]
struct Plain([f32; LANES]);

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
mod x86 {
    use super::Vector;
    use core::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Vector for Avx512 {
        const TILE: usize = 5;
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
}

/// Generates the safe front of a kernel: bounds, then the body compiled for the instruction set.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident = $body:ident ( $($arg:ident : $ty:ty),* $(,)? ) $check:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub fn $name(isa: Isa, $($arg: $ty),*) {
            $check
            match isa.0 {
                // SAFETY: the bounds were checked above; `Plain` needs no instruction set.
                Kind::Portable => unsafe { $body::<Plain>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => {
                    #[allow(clippy::too_many_arguments)]
                    #[target_feature(enable = "avx512f,avx512dq")]
                    unsafe fn wide($($arg: $ty),*) {
                        // SAFETY: the caller's.
                        unsafe { $body::<x86::Avx512>($($arg),*) }
                    }
                    // SAFETY: the bounds were checked above; `Isa::detect` has found AVX-512.
                    unsafe { wide($($arg),*) }
                }
            }
        }
    };
}

/// Extents of a matrix product `[m, k] x [k, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result, a multiple of [`LANES`].
    pub n: usize,
    /// Summed extent.
    pub k: usize,
}

/// A left operand: element (i, p) is at `i * stride + p`, or at `p * stride + i` if transposed.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// Values.
    pub data: &'a [f32],
    /// Distance of stored rows.
    pub stride: usize,
    /// Whether the stored rows run over `p`.
    pub transposed: bool,
}

fn last(count: usize, stride: usize, width: usize) -> usize {
    if count == 0 { 0 } else { (count - 1) * stride + width }
}

kernel! {
    /// `c = a b`, or `c += a b` if `add`. `b` is `[k, n]` with rows `ldb` apart, `c` is `[m, n]` with rows `ldc` apart.
    gemm = gemm_body(shape: Shape, a: Left<'_>, b: &[f32], ldb: usize, c: &mut [f32], ldc: usize, add: bool) {
        let Shape { m, n, k } = shape;
        assert!(n.is_multiple_of(LANES) && ldb >= n && ldc >= n, "gemm: {shape:?}, ldb {ldb}, ldc {ldc}");
        let need = if a.transposed { last(k, a.stride, m) } else { last(m, a.stride, k) };
        assert!(a.data.len() >= need && b.len() >= last(k, ldb, n) && c.len() >= last(m, ldc, n), "gemm: short operand for {shape:?}");
    }
}

/// One register tile of `MR` rows and `NV` vectors.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn tile<V: Vector, const MR: usize, const NV: usize, const T: bool>(
    k: usize,
    a: *const f32,
    stride: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
) {
    // SAFETY: the caller has checked that the tile lies inside the operands.
    unsafe {
        let mut acc = [[V::splat(0.0); NV]; MR];
        if add {
            for (i, row) in acc.iter_mut().enumerate() {
                for (j, v) in row.iter_mut().enumerate() {
                    *v = V::load(c.add(i * ldc + j * LANES));
                }
            }
        }
        for p in 0..k {
            let bp = b.add(p * ldb);
            let mut bv = [V::splat(0.0); NV];
            for (j, v) in bv.iter_mut().enumerate() {
                *v = V::load(bp.add(j * LANES));
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let av = V::splat(*if T { a.add(p * stride + i) } else { a.add(i * stride + p) });
                for (v, &bv) in row.iter_mut().zip(&bv) {
                    *v = av.fma(bv, *v);
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, v) in row.iter().enumerate() {
                v.store(c.add(i * ldc + j * LANES));
            }
        }
    }
}

/// Vectors of the next tile when `left` remain of `total`: as wide as divides evenly.
const fn tile_width(max: usize, total: usize, left: usize) -> usize {
    if max < 5 {
        return 1;
    }
    let wide = if total.is_multiple_of(5) {
        5
    } else if total.is_multiple_of(4) {
        4
    } else if total.is_multiple_of(3) {
        3
    } else {
        4
    };
    if wide < left { wide } else { left }
}

/// Rows of a tile `width` vectors wide: as many as 32 registers hold.
const fn tile_rows(max: usize, width: usize) -> usize {
    if max < 5 {
        return 2;
    }
    match width {
        5 => 5,
        4 => 6,
        _ => 8,
    }
}

#[inline(always)]
unsafe fn gemm_body<V: Vector>(shape: Shape, a: Left<'_>, b: &[f32], ldb: usize, c: &mut [f32], ldc: usize, add: bool) {
    let Shape { m, n, k } = shape;
    let total = n / LANES;
    let (pa, pb, pc) = (a.data.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    let mut j = 0;
    while j < total {
        let width = tile_width(V::TILE, total, total - j);
        let mut tiles = m.div_ceil(tile_rows(V::TILE, width));
        let mut i = 0;
        while i < m {
            // Tiles of about the same height: one of a single row would wait for its own sums.
            let height = (m - i).div_ceil(tiles);
            tiles -= 1;
            // SAFETY: i < m and j < n / LANES, and the front has checked the operands' extents.
            unsafe {
                let (tb, tc) = (pb.add(j * LANES), pc.add(i * ldc + j * LANES));
                macro_rules! call {
                    ($mr:literal, $nv:literal) => {
                        if a.transposed {
                            tile::<V, $mr, $nv, true>(k, pa.add(i), a.stride, tb, ldb, tc, ldc, add)
                        } else {
                            tile::<V, $mr, $nv, false>(k, pa.add(i * a.stride), a.stride, tb, ldb, tc, ldc, add)
                        }
                    };
                }
                macro_rules! heights {
                    ($nv:literal) => {
                        match height {
                            1 => call!(1, $nv),
                            2 => call!(2, $nv),
                            3 => call!(3, $nv),
                            4 => call!(4, $nv),
                            5 => call!(5, $nv),
                            6 => call!(6, $nv),
                            7 => call!(7, $nv),
                            _ => call!(8, $nv),
                        }
                    };
                }
                match width {
                    1 => heights!(1),
                    2 => heights!(2),
                    3 => heights!(3),
                    4 => match height {
                        1 => call!(1, 4),
                        2 => call!(2, 4),
                        3 => call!(3, 4),
                        4 => call!(4, 4),
                        5 => call!(5, 4),
                        _ => call!(6, 4),
                    },
                    _ => match height {
                        1 => call!(1, 5),
                        2 => call!(2, 5),
                        3 => call!(3, 5),
                        4 => call!(4, 5),
                        _ => call!(5, 5),
                    },
                }
            }
            i += height;
        }
        j += width;
    }
}

kernel! {
    /// `out[j] = sum of x[r]` over the rows `r` in `members[starts[j]..starts[j + 1]]`, all rows of `width`.
    group_sums = group_sums_body(x: &[f32], width: usize, starts: &[u32], members: &[u32], out: &mut [f32]) {
        assert!(width.is_multiple_of(LANES) && out.len() >= (starts.len() - 1) * width, "group_sums: {} values", out.len());
    }
}

#[inline(always)]
unsafe fn group_sums_body<V: Vector>(x: &[f32], width: usize, starts: &[u32], members: &[u32], out: &mut [f32]) {
    for (range, out) in starts.windows(2).zip(out.chunks_exact_mut(width)) {
        let members = &members[range[0] as usize..range[1] as usize];
        // Four vectors at a time stay in registers over all members.
        let mut i = 0;
        while i < width {
            let wide = width - i >= 4 * LANES;
            // SAFETY: i + 4 LANES <= width if wide, else i + LANES <= width, the length of `out` and of every slice of `x`.
            unsafe {
                let mut sum = [V::splat(0.0); 4];
                for &r in members {
                    let p = x[r as usize * width..][..width].as_ptr().add(i);
                    if wide {
                        for (j, s) in sum.iter_mut().enumerate() {
                            *s = s.add(V::load(p.add(j * LANES)));
                        }
                    } else {
                        sum[0] = sum[0].add(V::load(p));
                    }
                }
                let o = out.as_mut_ptr().add(i);
                if wide {
                    for (j, s) in sum.iter().enumerate() {
                        s.store(o.add(j * LANES));
                    }
                } else {
                    sum[0].store(o);
                }
            }
            i += if wide { 4 * LANES } else { LANES };
        }
    }
}

kernel! {
    /// `out[r] = sum over j < g of table[ids[r * g + j]]`, plus what `out[r]` held if `keep`.
    gather_add = gather_body(out: &mut [f32], width: usize, ids: &[u32], g: usize, table: &[f32], keep: bool) {
        assert!(width.is_multiple_of(LANES) && out.len() / width * g == ids.len(), "gather_add: {} values, {} ids", out.len(), ids.len());
    }
}

#[inline(always)]
unsafe fn gather_body<V: Vector>(out: &mut [f32], width: usize, ids: &[u32], g: usize, table: &[f32], keep: bool) {
    for (row, ids) in out.chunks_exact_mut(width).zip(ids.chunks_exact(g)) {
        let o = row.as_mut_ptr();
        // SAFETY: i + LANES <= width, the length of `row` and of every slice of `table`.
        unsafe {
            if let [a, b, c, d] = *ids {
                let at = |id: u32| table[id as usize * width..][..width].as_ptr();
                let (a, b, c, d) = (at(a), at(b), at(c), at(d));
                for i in (0..width).step_by(LANES) {
                    let ab = V::load(a.add(i)).add(V::load(b.add(i)));
                    let cd = V::load(c.add(i)).add(V::load(d.add(i)));
                    let sum = ab.add(cd);
                    if keep { V::load(o.add(i)).add(sum) } else { sum }.store(o.add(i));
                }
            } else {
                for (j, &id) in ids.iter().enumerate() {
                    let t = table[id as usize * width..][..width].as_ptr();
                    for i in (0..width).step_by(LANES) {
                        let t = V::load(t.add(i));
                        if keep || j > 0 { V::load(o.add(i)).add(t) } else { t }.store(o.add(i));
                    }
                }
            }
        }
    }
}

kernel! {
    /// `h = silu(a) * b` for rows `[a, b]` of `pre`, `[rows, 2 * width]`.
    swiglu = swiglu_body(pre: &[f32], h: &mut [f32], width: usize) {
        assert!(width.is_multiple_of(LANES) && pre.len() == 2 * h.len(), "swiglu: {} and {} values", pre.len(), h.len());
    }
}

#[inline(always)]
unsafe fn swiglu_body<V: Vector>(pre: &[f32], h: &mut [f32], width: usize) {
    for (pre, h) in pre.chunks_exact(2 * width).zip(h.chunks_exact_mut(width)) {
        for i in (0..width).step_by(LANES) {
            // SAFETY: i + LANES <= width; `pre` has 2 * width values, `h` has width.
            unsafe {
                let a = V::load(pre.as_ptr().add(i));
                let b = V::load(pre.as_ptr().add(width + i));
                a.mul(a.sigmoid()).mul(b).store(h.as_mut_ptr().add(i));
            }
        }
    }
}

kernel! {
    /// Backward of [`swiglu`]: `pre` becomes its own gradient, `h` goes in as the gradient of h and comes out as h.
    swiglu_backward = swiglu_backward_body(pre: &mut [f32], h: &mut [f32], width: usize) {
        assert!(width.is_multiple_of(LANES) && pre.len() == 2 * h.len(), "swiglu_backward: {} and {} values", pre.len(), h.len());
    }
}

#[inline(always)]
unsafe fn swiglu_backward_body<V: Vector>(pre: &mut [f32], h: &mut [f32], width: usize) {
    for (pre, h) in pre.chunks_exact_mut(2 * width).zip(h.chunks_exact_mut(width)) {
        let (pa, ph) = (pre.as_mut_ptr(), h.as_mut_ptr());
        for i in (0..width).step_by(LANES) {
            // SAFETY: i + LANES <= width; `pre` has 2 * width values, `h` has width.
            unsafe {
                let (a, b, dh) = (V::load(pa.add(i)), V::load(pa.add(width + i)), V::load(ph.add(i)));
                let s = a.sigmoid();
                let silu = a.mul(s);
                // silu' = s + a s (1 - s) = s + silu - silu s
                let slope = s.add(silu.sub(silu.mul(s)));
                dh.mul(b).mul(slope).store(pa.add(i));
                dh.mul(silu).store(pa.add(width + i));
                silu.mul(b).store(ph.add(i));
            }
        }
    }
}

kernel! {
    /// `v = v / sqrt(mean(v^2) + 1e-5)` for every row, the mean over the first `channels` of `width`; the factors go to `scale`.
    rms = rms_body(v: &mut [f32], width: usize, channels: usize, scale: &mut [f32]) {
        assert!(width.is_multiple_of(LANES) && v.len() == scale.len() * width, "rms: {} values, {} rows", v.len(), scale.len());
    }
}

#[inline(always)]
unsafe fn rms_body<V: Vector>(v: &mut [f32], width: usize, channels: usize, scale: &mut [f32]) {
    let mean = 1.0 / channels as f32;
    for (row, scale) in v.chunks_exact_mut(width).zip(scale) {
        let p = row.as_mut_ptr();
        // SAFETY: i + LANES <= width, the length of `row`.
        unsafe {
            let mut square = V::splat(0.0);
            for i in (0..width).step_by(LANES) {
                let x = V::load(p.add(i));
                square = x.fma(x, square);
            }
            *scale = 1.0 / (square.sum() * mean + 1e-5).sqrt();
            let factor = V::splat(*scale);
            for i in (0..width).step_by(LANES) {
                V::load(p.add(i)).mul(factor).store(p.add(i));
            }
        }
    }
}

kernel! {
    /// Backward of [`rms`]: `d = scale * (d - y * mean(d * y))` with its output `y`.
    rms_backward = rms_backward_body(d: &mut [f32], y: &[f32], width: usize, channels: usize, scale: &[f32]) {
        assert!(width.is_multiple_of(LANES) && d.len() == scale.len() * width && y.len() == d.len(), "rms_backward: {} values, {} rows", d.len(), scale.len());
    }
}

#[inline(always)]
unsafe fn rms_backward_body<V: Vector>(d: &mut [f32], y: &[f32], width: usize, channels: usize, scale: &[f32]) {
    let mean = 1.0 / channels as f32;
    for ((row, y), &scale) in d.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(scale) {
        let (p, y) = (row.as_mut_ptr(), y.as_ptr());
        // SAFETY: i + LANES <= width, the length of both rows.
        unsafe {
            let mut dot = V::splat(0.0);
            for i in (0..width).step_by(LANES) {
                dot = V::load(p.add(i)).fma(V::load(y.add(i)), dot);
            }
            let dot = V::splat(-dot.sum() * mean);
            let factor = V::splat(scale);
            for i in (0..width).step_by(LANES) {
                V::load(y.add(i)).fma(dot, V::load(p.add(i))).mul(factor).store(p.add(i));
            }
        }
    }
}
