//! The direction of a Muon step.

use super::simd::{self, Isa, LANES, Left, Shape};
use crate::engine::muon::{QUINTIC, RMS, STEPS, TINY};

const fn left(data: &[f32], stride: usize) -> Left<'_> {
    Left { data, stride, transposed: false }
}

/// Turns `matrix`, `[rows, columns]` row-major, into the direction of the step. All zeros stay zeros.
pub fn orthogonalize(isa: Isa, matrix: &mut [f32], rows: usize, columns: usize) {
    let norm = matrix.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return;
    }
    // The short side comes first: the products with itself are small then.
    let wide = rows <= columns;
    let (m, n) = if wide { (rows, columns) } else { (columns, rows) };
    let (mp, np) = (m.next_multiple_of(LANES), n.next_multiple_of(LANES));
    let inverse = (1.0 / (norm + TINY)) as f32;
    let place = |i: usize| if wide { i / columns * np + i % columns } else { i % columns * np + i / columns };
    let mut x = vec![0.0; m * np];
    for (i, v) in matrix.iter().enumerate() {
        x[place(i)] = v * inverse;
    }
    let (mut transposed, mut a, mut b, mut next) = (vec![0.0; n * mp], vec![0.0; m * mp], vec![0.0; m * mp], vec![0.0; m * np]);
    for _ in 0..STEPS {
        for (i, row) in x.chunks_exact(np).enumerate() {
            for (j, v) in row[..n].iter().enumerate() {
                transposed[j * mp + i] = *v;
            }
        }
        simd::gemm(isa, Shape { m, n: mp, k: n }, left(&x, np), &transposed, mp, &mut a, mp, false);
        simd::gemm(isa, Shape { m, n: mp, k: m }, left(&a, mp), &a, mp, &mut b, mp, false);
        for (b, a) in b.iter_mut().zip(&a) {
            *b = QUINTIC[1] * a + QUINTIC[2] * *b;
        }
        for (next, x) in next.iter_mut().zip(&x) {
            *next = QUINTIC[0] * x;
        }
        simd::gemm(isa, Shape { m, n: np, k: m }, left(&b, mp), &x, np, &mut next, np, true);
        std::mem::swap(&mut x, &mut next);
    }
    let scale = RMS * (n as f32).sqrt();
    for (i, v) in matrix.iter_mut().enumerate() {
        *v = scale * x[place(i)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fused::random::{Purpose, Stream};

    #[test]
    fn every_direction_has_nearly_the_same_length() {
        for (rows, columns) in [(24, 70), (70, 24), (16, 16), (1, 5)] {
            let stream = Stream::new(3, Purpose::Weights, 0);
            // Columns of different sizes.
            let start: Vec<f32> = (0..rows * columns).map(|i| stream.truncated(i as u64) * 0.5f32.powi((i % columns % 4) as i32)).collect();
            for isa in Isa::all() {
                let mut found = start.clone();
                orthogonalize(isa, &mut found, rows, columns);
                let (short, long) = (rows.min(columns), rows.max(columns));
                let at = |i: usize, j: usize| f64::from(if rows <= columns { found[i * columns + j] } else { found[j * columns + i] });
                // The mean square of a vector of singular values near 1 is near 1 / long.
                let mean = found.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / (rows * columns) as f64;
                let expected = f64::from(RMS) * f64::from(RMS);
                assert!((0.4..1.5).contains(&(mean / expected)), "{rows}x{columns}: {mean}");
                for i in 0..short {
                    let own = (0..long).map(|j| at(i, j) * at(i, j)).sum::<f64>() / (expected * long as f64);
                    assert!((0.3..1.6).contains(&own), "{rows}x{columns}: row {i} has {own}");
                }
            }
        }
        let mut nothing = [0.0; 12];
        orthogonalize(Isa::detect(), &mut nothing, 3, 4);
        assert_eq!(nothing, [0.0; 12]);
    }
}
