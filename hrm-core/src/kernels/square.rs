//! Tiles of 4 rows by 4 channels of plain bytes, weights read in place: an ISA's file gives the loop over the columns of one.
#![allow(unsafe_code)]

use super::Columns;
use super::tiled::{self, MOST_COLUMNS, Tile};
use crate::parts::{Broken, Parts};

/// Rows and channels.
pub(super) const SIDE: usize = 4;

/// The loop of an ISA over the columns of a tile.
pub(super) trait Square {
    /// `sums[4 r + c] += sum_k input[4 k + r] * weights[c][k]`.
    ///
    /// # Safety
    /// All weights are as long, and not empty; `input` has four values for each of theirs.
    unsafe fn panel(sums: &mut [i32; SIDE * SIDE], input: &[i8], weights: [&[i8]; SIDE]);
}

/// Activations are arranged `[K][4 rows]`.
impl<S: Square> Tile for S {
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
            // SAFETY: a row has `k` weights, the input `k` times four values; `k` is not 0, as the block is ready.
            unsafe { S::panel(sums, input, [row(0)?, row(1)?, row(2)?, row(3)?]) };
        }
        Ok(())
    }
}
