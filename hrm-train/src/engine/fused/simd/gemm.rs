//! Matrix products in register tiles. The matrices are small enough for the second-level cache, so nothing is packed or blocked here.

use super::vector::{Plain, Vector};
use super::{Isa, Kind, LANES};

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

/// Vectors across the next tile when `left` remain of `total`: as wide as divides evenly.
const fn tile_width(max: usize, total: usize, left: usize) -> usize {
    let wide = if max < 5 {
        max
    } else if total.is_multiple_of(5) {
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

/// Rows of a tile `width` vectors wide: as many as the registers hold.
const fn tile_rows(rows: usize, width: usize) -> usize {
    match width {
        5 => 5,
        4 => 6,
        _ => rows,
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
        let mut tiles = m.div_ceil(tile_rows(V::ROWS, width));
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
