//! WebAssembly SIMD, bit-identical to [`super::reference`]: `i32x4.dot_i16x8_s`, the products of two columns of four channels at once.
//! Weights are packed as pairs of 16-bit values, `[N / 4][K / 2][4]` words; a tile is 4 rows by 4 channels.

use core::arch::wasm32::{i32x4, i32x4_add, i32x4_dot_i16x8, i32x4_extract_lane, i32x4_splat};

use super::Columns;
use super::tiled::{self, MOST_COLUMNS, Tile};
use crate::parts::{Broken, Parts};

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, scale_down, view8_slice};
pub use super::tiled::pair_words as packed_words;

const SIDE: usize = 4;

/// Packs a block of columns into `out` as pairs of 16-bit values, `[N / 4][K / 2][4]` words.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    for (p, panel) in out.rows_mut(SIDE * w.k.div_ceil(2))?.enumerate() {
        panel.fill(0);
        for channel in 0..SIDE.min(w.n.saturating_sub(p * SIDE)) {
            let row = w.row(p * SIDE + channel)?;
            for (words, pair) in panel.as_chunks_mut::<SIDE>().0.iter_mut().zip(row.chunks(2)) {
                words[channel] = tiled::pair_of(pair[0], pair.get(1).copied().unwrap_or(0));
            }
        }
    }
    Ok(())
}

/// `[K / 2][4 rows]` pairs.
struct Simd128;

impl Tile for Simd128 {
    const ROWS: usize = SIDE;
    const CHANNELS: usize = SIDE;
    type Input = i32;
    type Buffer = [i32; SIDE * MOST_COLUMNS / 2];
    const BUFFER: Self::Buffer = [0; SIDE * MOST_COLUMNS / 2];

    fn ready(w: &Columns<'_>) -> bool {
        w.k > 0 && w.packed().len() >= packed_words(w.n, w.k)
    }

    #[inline(always)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i32]) -> Result<(), Broken> {
        let places = out.part_mut(..SIDE * k.div_ceil(2))?.as_chunks_mut::<SIDE>().0;
        for (r, row) in rows.rows(k)?.enumerate() {
            for (to, pair) in places.iter_mut().zip(row.chunks(2)) {
                to[r % SIDE] = tiled::pair_of(pair[0], pair.get(1).copied().unwrap_or(0));
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn dot(input: &[i32], w: &Columns<'_>, _rows: usize, first: usize, panels: usize, sums: &mut [i32]) -> Result<(), Broken> {
        let pairs = w.k.div_ceil(2);
        let (input, sums) = (input.part(..SIDE * pairs)?.as_chunks::<SIDE>().0, sums.part_mut(..panels * SIDE * SIDE)?);
        let weights = w.packed().part(first * pairs..(first + panels * SIDE) * pairs)?.rows(SIDE * pairs)?;
        for (weights, sums) in weights.zip(sums.as_chunks_mut::<{ SIDE * SIDE }>().0) {
            let mut acc = [i32x4_splat(0); SIDE];
            for (a, w) in input.iter().zip(weights.as_chunks::<SIDE>().0) {
                let w = i32x4(w[0], w[1], w[2], w[3]);
                for (acc, &a) in acc.iter_mut().zip(a) {
                    *acc = i32x4_add(*acc, i32x4_dot_i16x8(i32x4_splat(a), w));
                }
            }
            for (sums, acc) in sums.as_chunks_mut::<SIDE>().0.iter_mut().zip(acc) {
                let lanes = [
                    i32x4_extract_lane::<0>(acc),
                    i32x4_extract_lane::<1>(acc),
                    i32x4_extract_lane::<2>(acc),
                    i32x4_extract_lane::<3>(acc),
                ];
                sums.iter_mut().zip(lanes).for_each(|(s, l)| *s += l);
            }
        }
        Ok(())
    }
}

tiled::calls!(Simd128);
