//! Cores without SIMD (Cortex-M3, any host): tiles of 4 rows by 4 channels, so that a loaded value is used four
//! times; bit-identical to [`super::reference`]. Weights are read in place.

use super::Columns;
use super::tiled::{self, MOST_COLUMNS, Tile};
use crate::parts::{Broken, Parts};

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, pack, packed_words, scale_down, view8_slice};

const SIDE: usize = 4;

/// `[K][4 rows]` activations.
struct Scalar;

impl Tile for Scalar {
    const ROWS: usize = SIDE;
    const CHANNELS: usize = SIDE;
    type Input = i8;
    type Buffer = [i8; SIDE * MOST_COLUMNS];
    const BUFFER: Self::Buffer = [0; SIDE * MOST_COLUMNS];

    fn ready(w: &Columns<'_>) -> bool {
        w.k > 0 && w.n > 0
    }

    #[inline(always)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i8]) -> Result<(), Broken> {
        tiled::interleave::<SIDE>(rows, k, out)
    }

    #[inline(always)]
    fn dot(input: &[i8], w: &Columns<'_>, _rows: usize, first: usize, panels: usize, sums: &mut [i32]) -> Result<(), Broken> {
        let (input, sums) = (input.part(..SIDE * w.k)?, sums.part_mut(..panels * SIDE * SIDE)?);
        for (p, sums) in sums.as_chunks_mut::<{ SIDE * SIDE }>().0.iter_mut().enumerate() {
            // Channels behind the last are the last again: their sums are not looked at.
            let row = |c: usize| w.row((first + p * SIDE + c).min(w.n - 1));
            panel(input, [row(0)?, row(1)?, row(2)?, row(3)?], sums);
        }
        Ok(())
    }
}

#[inline(never)]
fn panel(input: &[i8], [w0, w1, w2, w3]: [&[i8]; 4], sums: &mut [i32; SIDE * SIDE]) {
    let mut acc = [[0i32; SIDE]; SIDE];
    let weights = w0.iter().zip(w1).zip(w2.iter().zip(w3));
    for (a, ((&w0, &w1), (&w2, &w3))) in input.chunks_exact(SIDE).zip(weights) {
        for (acc, &a) in acc.iter_mut().zip(a) {
            for (acc, w) in acc.iter_mut().zip([w0, w1, w2, w3]) {
                *acc += i32::from(a) * i32::from(w);
            }
        }
    }
    for (sums, acc) in sums.chunks_exact_mut(SIDE).zip(acc) {
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum += acc;
        }
    }
}

tiled::calls!(Scalar);
