//! The vector kernels of the fused engine: the only place with `unsafe`.
//!
//! Every kernel is written once over [`Vector`], sixteen f32 lanes, and instantiated for AVX-512 and AVX2 (found at run time) and for
//! plain arrays that any target compiles. Rows are padded to a multiple of [`LANES`] with zeros, so no kernel has a masked tail. The
//! public functions check every bound and are safe.

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
                Kind::Avx2 => {
                    #[allow(clippy::too_many_arguments)]
                    #[target_feature(enable = "avx2,fma")]
                    unsafe fn avx2($($arg: $ty),*) {
                        // SAFETY: the caller's.
                        unsafe { $body::<$crate::engine::fused::simd::vector::x86::Avx2>($($arg),*) }
                    }
                    // SAFETY: the bounds were checked above; `Isa::all` has found AVX2 and FMA.
                    unsafe { avx2($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => {
                    #[allow(clippy::too_many_arguments)]
                    #[target_feature(enable = "avx512f,avx512dq")]
                    unsafe fn avx512($($arg: $ty),*) {
                        // SAFETY: the caller's.
                        unsafe { $body::<$crate::engine::fused::simd::vector::x86::Avx512>($($arg),*) }
                    }
                    // SAFETY: the bounds were checked above; `Isa::all` has found AVX-512.
                    unsafe { avx512($($arg),*) }
                }
            }
        }
    };
}

mod gemm;
mod vector;

use super::random::Stream;
pub use gemm::{Left, Shape, gemm};
use vector::{Plain, Vector};

/// Lanes of a vector; the innermost extent of every buffer is a multiple of it.
pub const LANES: usize = 16;

/// The instruction set the kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Every set this machine has, the fastest first. The last one is plain Rust.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                all.push(Self(Kind::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Self(Kind::Avx2));
            }
        }
        all.push(Self(Kind::Portable));
        all
    }

    /// The fastest set this machine has.
    pub fn detect() -> Self {
        Self::all()[0]
    }

    /// Name for reports.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
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
        // SAFETY: i + LANES <= width, the length of `row` and of every slice of `table`; i + 2 LANES too where it is `wide`.
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
                // Two vectors at a time stay in registers over all groups.
                for i in (0..width).step_by(2 * LANES) {
                    let wide = i + LANES < width;
                    let (mut low, mut high) = (V::splat(0.0), V::splat(0.0));
                    if keep {
                        low = V::load(o.add(i));
                        high = if wide { V::load(o.add(i + LANES)) } else { high };
                    }
                    for &id in ids {
                        let t = table[id as usize * width..][..width].as_ptr();
                        low = low.add(V::load(t.add(i)));
                        if wide {
                            high = high.add(V::load(t.add(i + LANES)));
                        }
                    }
                    low.store(o.add(i));
                    if wide {
                        high.store(o.add(i + LANES));
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
    /// Rounds every value to a whole number of its column's `steps` (`[width]`), clipped to -128..=127 of them.
    round_int8 = round_int8_body(x: &mut [f32], steps: &[f32]) {
        assert!(steps.len().is_multiple_of(LANES) && x.len().is_multiple_of(steps.len()), "round_int8: {} values", x.len());
    }
}

#[inline(always)]
unsafe fn round_int8_body<V: Vector>(x: &mut [f32], steps: &[f32]) {
    for row in x.chunks_exact_mut(steps.len()) {
        for (values, steps) in row.chunks_exact_mut(LANES).zip(steps.chunks_exact(LANES)) {
            let p = values.as_mut_ptr();
            // SAFETY: both chunks have LANES values.
            unsafe {
                let step = V::load(steps.as_ptr());
                V::load(p).mul(step.recip()).clamp(-128.0, 127.0).round().mul(step).store(p);
            }
        }
    }
}

kernel! {
    /// Backward of [`swiglu`]: `pre` becomes its own gradient, `h` goes in as the gradient of h and comes out as h. With `steps` (`[width]`, else
    /// empty) no gradient passes where h is clipped to -128..=127 of them.
    swiglu_backward = swiglu_backward_body(pre: &mut [f32], h: &mut [f32], width: usize, steps: &[f32]) {
        assert!(steps.is_empty() || steps.len() == width, "swiglu_backward: {} steps", steps.len());
        assert!(width.is_multiple_of(LANES) && pre.len() == 2 * h.len(), "swiglu_backward: {} and {} values", pre.len(), h.len());
    }
}

#[inline(always)]
unsafe fn swiglu_backward_body<V: Vector>(pre: &mut [f32], h: &mut [f32], width: usize, steps: &[f32]) {
    for (pre, h) in pre.chunks_exact_mut(2 * width).zip(h.chunks_exact_mut(width)) {
        let (pa, ph) = (pre.as_mut_ptr(), h.as_mut_ptr());
        for i in (0..width).step_by(LANES) {
            // SAFETY: i + LANES <= width; `pre` has 2 * width values, `h` has width, `steps` none or width.
            unsafe {
                let (a, b, mut dh) = (V::load(pa.add(i)), V::load(pa.add(width + i)), V::load(ph.add(i)));
                let s = a.sigmoid();
                let silu = a.mul(s);
                // silu' = s + a s (1 - s) = s + silu - silu s
                let slope = s.add(silu.sub(silu.mul(s)));
                let out = silu.mul(b);
                if !steps.is_empty() {
                    // 0 inside the range; beyond it anything from a thousandth of a step on counts in full.
                    let units = out.mul(V::load(steps.as_ptr().add(i)).recip());
                    let beyond = units.sub(units.clamp(-128.5, 127.5)).mul(V::splat(1e3));
                    dh = dh.mul(V::splat(1.0).sub(beyond.mul(beyond).clamp(0.0, 1.0)));
                }
                dh.mul(b).mul(slope).store(pa.add(i));
                dh.mul(silu).store(pa.add(width + i));
                out.store(ph.add(i));
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

kernel! {
    /// Adds `std` times the normal numbers of `stream` from index `first` on to the first `channels` of every row of `width`.
    add_normal = add_normal_body(z: &mut [f32], width: usize, channels: usize, stream: Stream, first: u64, std: f32) {
        assert!(channels <= width, "add_normal: {channels} channels of {width}");
    }
}

// No explicit vectors: the loop has no branch, the compiler does well with the instruction set alone.
#[inline(always)]
unsafe fn add_normal_body<V: Vector>(z: &mut [f32], width: usize, channels: usize, stream: Stream, first: u64, std: f32) {
    for (r, row) in z.chunks_exact_mut(width).enumerate() {
        let first = first + (r * channels) as u64;
        for (c, v) in row[..channels].iter_mut().enumerate() {
            *v += std * stream.normal(first + c as u64);
        }
    }
}

kernel! {
    /// Sets the first `channels` of every row of `width` to the truncated normal numbers of `stream` from index `first` on.
    truncated = truncated_body(z: &mut [f32], width: usize, channels: usize, stream: Stream, first: u64) {
        assert!(channels <= width, "truncated: {channels} channels of {width}");
    }
}

#[inline(always)]
unsafe fn truncated_body<V: Vector>(z: &mut [f32], width: usize, channels: usize, stream: Stream, first: u64) {
    for (r, row) in z.chunks_exact_mut(width).enumerate() {
        let first = first + (r * channels) as u64;
        for (c, v) in row[..channels].iter_mut().enumerate() {
            *v = stream.truncated(first + c as u64);
        }
    }
}
