//! The normative scalar kernels: `docs/numerics.md` in Rust. Every other kernel must give the same bits.
//!
//! Letters: `S` tokens, `C` channels, `I` inner width, `R` rows, `N` output channels, `K` input columns.

use super::tables::{EXP2, SILU_BASE, SILU_SLOPE};
use super::{Bases, Columns, Requant};
use crate::parts::{Broken, OrBroken, Parts};

/// Clamps to `i8`.
#[inline]
#[must_use]
pub const fn sat8(x: i32) -> i8 {
    if x < -128 {
        -128
    } else if x > 127 {
        127
    } else {
        x as i8
    }
}

/// Clamps to `i16`.
#[inline]
#[must_use]
pub const fn sat16(x: i32) -> i16 {
    if x < -32768 {
        -32768
    } else if x > 32767 {
        32767
    } else {
        x as i16
    }
}

/// int8 view of a 16-bit value: `sat8((x * m + 2^14) >> 15)`.
#[inline]
#[must_use]
pub const fn view8(x: i16, m: i16) -> i8 {
    sat8((x as i32 * m as i32 + (1 << 14)) >> 15)
}

/// Requantises an accumulator (bias and rounding already added).
#[inline]
#[must_use]
pub const fn requant(acc: i32, shift: u32, mult: i32) -> i16 {
    sat16((((acc << shift) as i64 * mult as i64) >> 32) as i32)
}

/// `silu(g)`, both of the unit `2^(shift - 10)`, `shift` 0 to 4.
#[inline]
#[must_use]
pub const fn silu(g: i16, shift: u32) -> i16 {
    let (magnitude, end) = (g.unsigned_abs(), 8191 >> shift);
    let t = (if magnitude > end { end } else { magnitude } as i32) << shift;
    let (i, f) = ((t >> 7) as usize & 63, t & 127);
    let d = (SILU_BASE[i] as i32 + ((SILU_SLOPE[i] as i32 * f + 64) >> 7) + 8) >> 4;
    let positive = if g > 0 { g as i32 } else { 0 };
    sat16(positive + ((d + ((1 << shift) >> 1)) >> shift))
}

/// Hidden value of the gated MLP from gate (unit `2^(shift - 10)`) and up (unit `s_h / 2^(shift + 5)`).
#[inline]
#[must_use]
pub const fn glu(gate: i16, up: i16, shift: u32) -> i8 {
    sat8((silu(gate, shift) as i32 * up as i32 + (1 << 14)) >> 15)
}

/// Floor of the square root.
#[must_use]
pub const fn isqrt(v: u32) -> u32 {
    v.isqrt()
}

/// Multiplier and right shift that normalise a vector of `n` elements whose squares sum to `sum`.
#[inline]
#[must_use]
pub const fn norm_factor(sum: u64, n: usize) -> (i16, u32) {
    // One 32-bit division where that is enough: cores without a 64-bit one are several times faster.
    let mean = match (sum >> 32 == 0, n) {
        (_, 0) => 0,
        (true, n) => sum as u32 / n as u32,
        (false, n) => (sum / n as u64) as u32,
    };
    // A mean of squares of 16-bit values is at most 2^30, so the mask only shows that the logarithm exists.
    let v = (mean & 0x7fff_ffff) + 10;
    let e = v.ilog2() / 2;
    // The root of 2^30 or more: as above, it shows that it is not 0.
    let q = isqrt(v << (30 - 2 * e)) | 1 << 15;
    let r = (1u32 << 30) / q;
    (if r > 32767 { 32767 } else { r as i16 }, e + 5)
}

/// `x <- norm(sat16(x + d))` for each row of `width` elements.
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) -> Result<(), Broken> {
    for (x, d) in x.rows_mut(width)?.zip(d.rows(width)?) {
        let mut sum = 0u64;
        for (x, &d) in x.iter_mut().zip(d) {
            *x = x.saturating_add(d);
            let v = i64::from(*x);
            sum += (v * v) as u64;
        }
        let (r, shift) = norm_factor(sum, width);
        for x in x {
            *x = sat16((i32::from(*x) * i32::from(r) + (1 << (shift - 1))) >> shift);
        }
    }
    Ok(())
}

/// `x <- sat16(x + d)`.
pub fn add(x: &mut [i16], d: &[i16]) {
    for (x, &d) in x.iter_mut().zip(d) {
        *x = x.saturating_add(d);
    }
}

/// `x <- sat16(x + sat16(h + e))`.
pub fn inject(x: &mut [i16], h: &[i16], e: &[i16]) {
    for ((x, &h), &e) in x.iter_mut().zip(h).zip(e) {
        *x = x.saturating_add(h.saturating_add(e));
    }
}

/// `x <- (x + 2^(shift-1)) >> shift`; `shift` is at most 15.
pub fn scale_down(x: &mut [i16], shift: u32) {
    if shift > 0 {
        let half = 1 << (shift - 1);
        for x in x {
            *x = ((i32::from(*x) + half) >> shift) as i16;
        }
    }
}

/// int8 views of a slice.
pub fn view8_slice(x: &[i16], m: i16, out: &mut [i8]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = view8(x, m);
    }
}

/// Hidden values of `rows` rows: `gate_up` is `[rows, 2I]` (gate, of the unit `2^(shift - 10)`, then up), `out` is `[rows, I]`.
pub fn glu_rows(gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) -> Result<(), Broken> {
    for (row, out) in gate_up.rows(2 * inner)?.zip(out.rows_mut(inner)?) {
        let (gate, up) = row.split_at_checked(inner).or_broken()?;
        for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
            *o = glu(g, u, shift);
        }
    }
    Ok(())
}

/// Weights are read in place: no packed form.
pub const fn packed_words(_n: usize, _k: usize) -> usize {
    0
}

/// Nothing to do.
pub const fn pack(_w: &Columns<'_>, _out: &mut [i32]) -> Result<(), Broken> {
    Ok(())
}

fn dot(a: &[i8], w: &[i8]) -> i32 {
    a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum()
}

/// `out[r][n] = W a + bases`: `a` is `[R, K]`, `out` `[R, N]`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
    for (a, out) in a.rows(w.k)?.zip(out.rows_mut(w.n)?) {
        for (n, o) in out.iter_mut().enumerate() {
            *o = dot(a, w.row(n)?);
        }
    }
    add_bases(bases, w.n, out)
}

/// `out[r][n] += bases`.
pub fn add_bases(bases: Option<&Bases<'_>>, n: usize, out: &mut [i32]) -> Result<(), Broken> {
    let Some(b) = bases.filter(|b| b.groupings > 0) else { return Ok(()) };
    for (r, out) in out.rows_mut(n)?.enumerate() {
        for &group in b.of(r)? {
            let base = b.table.part(usize::from(group) * n..(usize::from(group) + 1) * n)?;
            out.iter_mut().zip(base).for_each(|(o, &base)| *o += base);
        }
    }
    Ok(())
}

/// `out[r][n] = requant(W a + bases + bias)`: `a` is `[R, K]`, `out` `[R, N]`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) -> Result<(), Broken> {
    let (bias, mult) = (q.bias.part(..w.n)?, q.mult.part(..w.n)?);
    for (r, (a, out)) in a.rows(w.k)?.zip(out.rows_mut(w.n)?).enumerate() {
        for (n, ((o, &bias), &mult)) in out.iter_mut().zip(bias).zip(mult).enumerate() {
            let mut acc = bias + dot(a, w.row(n)?);
            if let Some(b) = bases {
                for &group in b.of(r)? {
                    acc += *b.table.part(usize::from(group) * w.n + n)?;
                }
            }
            *o = requant(acc, q.shift, mult);
        }
    }
    Ok(())
}

/// Adds each row of `a` (`[R, C]`) to the sums (`[group rows, C]`) of its groups; `index` is `[R, G]`.
pub fn group_sums(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) -> Result<(), Broken> {
    for (row, groups) in a.rows(channels)?.zip(index.rows(groupings)?) {
        for &group in groups {
            let at = usize::from(group) * channels;
            for (s, &x) in sums.part_mut(at..at + channels)?.iter_mut().zip(row) {
                *s = s.wrapping_add(i16::from(x));
            }
        }
    }
    Ok(())
}

/// Rotates the pairs `(i, i + d/2)` of one head vector. `cos`, `sin`: Q15, `[d/2]`.
pub fn rope(x: &mut [i16], cos: &[i16], sin: &[i16]) {
    let (a, b) = x.split_at_mut(x.len() / 2);
    for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let (x, y, c, s) = (i32::from(*a), i32::from(*b), i32::from(c), i32::from(s));
        *a = sat16((x * c - y * s + (1 << 14)) >> 15);
        *b = sat16((y * c + x * s + (1 << 14)) >> 15);
    }
}

/// Softmax weight (Q13) of a score that is `below` under the largest.
#[inline]
#[must_use]
pub const fn softmax_weight(below: u32, m_score: u32) -> i32 {
    let t = (below as u64 * m_score as u64) >> 16;
    let j = t >> 8;
    if j > 13 { 0 } else { (EXP2[(t & 255) as usize] as i32 + ((1 << j) >> 1)) >> j }
}

/// One head of one query: `q8` is `[d]`; keys and values are read at `stride` from `offset` for each row of `keys`;
/// `weights` is scratch of one `i32` a key. Writes the output view, `[d]`.
///
/// # Errors
/// A slice is shorter than that.
#[expect(clippy::too_many_arguments, reason = "the shape of attention")]
pub fn attend(
    q8: &[i8],
    k8: &[i8],
    v8: &[i8],
    (stride, offset): (usize, usize),
    keys: &[u16],
    m_score: u32,
    m_out: i16,
    weights: &mut [i32],
    out: &mut [i8],
) -> Result<(), Broken> {
    let d = q8.len();
    let at = |row: u16| usize::from(row) * stride + offset;
    let weights = weights.part_mut(..keys.len())?;
    let mut max = i32::MIN;
    for (w, &row) in weights.iter_mut().zip(keys) {
        *w = dot(q8, k8.part(at(row)..at(row) + d)?);
        max = max.max(*w);
    }
    let mut total = 0u32;
    for w in &mut *weights {
        *w = softmax_weight((max - *w) as u32, m_score);
        total += *w as u32;
    }
    let reciprocal = ((1u64 << 40) / u64::from(total.max(1))) as i64;
    for (i, o) in out.iter_mut().enumerate() {
        let mut sum = 0;
        for (&w, &row) in weights.iter().zip(keys) {
            sum += w * i32::from(*v8.part(at(row) + i)?);
        }
        *o = view8(((i64::from(sum) * reciprocal + (1 << 32)) >> 33) as i16, m_out);
    }
    Ok(())
}
