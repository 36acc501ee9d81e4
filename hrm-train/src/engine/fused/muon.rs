//! The direction of a Muon step.

use rayon::prelude::*;

use super::simd::{self, Isa, LANES, Left, Shape};
use crate::engine::muon::{QUINTIC, RMS, STEPS, TINY};

/// Rows of a product that one thread computes at a time.
const PANEL: usize = 16;

/// Instruction set, and threads if there are some to share the work.
pub type Workers<'a> = (Isa, Option<&'a rayon::ThreadPool>);

/// `out = a b`, added to what `out` held if `keep`; `a` has columns 0 to `k` of rows of `stride`, `b` and `out` rows of `n`.
/// With threads or without, the result is the same.
fn product((isa, pool): Workers<'_>, (k, stride): (usize, usize), a: &[f32], b: &[f32], n: usize, out: &mut [f32], keep: bool) {
    let panel = |(i, out): (usize, &mut [f32])| {
        let shape = Shape { m: out.len() / n, n, k };
        let left = Left { data: &a[i * PANEL * stride..], stride, transposed: false };
        simd::gemm(isa, shape, left, b, n, out, n, keep);
    };
    match pool {
        Some(pool) => pool.install(|| out.par_chunks_mut(PANEL * n).enumerate().for_each(panel)),
        None => out.chunks_mut(PANEL * n).enumerate().for_each(panel),
    }
}

/// Turns `matrix`, `[rows, columns]` row-major, into the direction of the step. All zeros stay zeros.
pub fn orthogonalize(workers: Workers<'_>, matrix: &mut [f32], rows: usize, columns: usize) {
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
        product(workers, (n, np), &x, &transposed, mp, &mut a, false);
        product(workers, (m, mp), &a, &a, mp, &mut b, false);
        for (b, a) in b.iter_mut().zip(&a) {
            *b = QUINTIC[1] * a + QUINTIC[2] * *b;
        }
        for (next, x) in next.iter_mut().zip(&x) {
            *next = QUINTIC[0] * x;
        }
        product(workers, (m, mp), &b, &x, np, &mut next, true);
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
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (rows, columns) in [(24, 70), (70, 24), (16, 16), (1, 5)] {
            let stream = Stream::new(3, Purpose::Weights, 0);
            // Columns of different sizes.
            let start: Vec<f32> = (0..rows * columns).map(|i| stream.truncated(i as u64) * 0.5f32.powi((i % columns % 4) as i32)).collect();
            for isa in Isa::all() {
                let (mut found, mut shared) = (start.clone(), start.clone());
                orthogonalize((isa, None), &mut found, rows, columns);
                orthogonalize((isa, Some(&pool)), &mut shared, rows, columns);
                assert_eq!(found, shared, "{rows}x{columns}: threads make a difference");
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
        orthogonalize((Isa::detect(), None), &mut nothing, 3, 4);
        assert_eq!(nothing, [0.0; 12]);
    }
}
