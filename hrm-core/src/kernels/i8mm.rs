//! AArch64 with the matrix multiplication extension (`i8mm`), bit-identical to [`super::reference`].
//!
//! `SMMLA` adds the products of two rows and two channels over eight columns: twice what `SDOT` does. A tile is 4 rows by 8 channels: eight
//! accumulators of 2 x 2, four vectors of weights and two of activations for eight instructions. Weights are packed `[N / 8][K / 8][8][8]` bytes,
//! activations `[K / 8][4 rows][8]`.
#![allow(unsafe_code)]

use core::arch::asm;

use super::Columns;
use super::tiled::{self, MOST_COLUMNS, Tile};
use super::words;
use crate::parts::{Broken, Parts};

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, scale_down, view8_slice};

const ROWS: usize = 4;
const CHANNELS: usize = 8;
/// Words of the eight columns of an instruction.
const WORDS: usize = 2;

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    words::packed_words::<CHANNELS, WORDS>(n, k)
}

/// Packs a block of columns into `out`.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    words::pack::<CHANNELS, WORDS>(w, out)
}

/// `[K / 8][4 rows]` octets of activations.
struct Smmla;

impl Tile for Smmla {
    const ROWS: usize = ROWS;
    const CHANNELS: usize = CHANNELS;
    type Input = i32;
    type Buffer = [i32; ROWS * MOST_COLUMNS / 4];
    const BUFFER: Self::Buffer = [0; ROWS * MOST_COLUMNS / 4];

    fn ready(w: &Columns<'_>) -> bool {
        w.k > 0 && w.packed().len() >= packed_words(w.n, w.k)
    }

    #[inline(always)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i32]) -> Result<(), Broken> {
        words::arrange::<ROWS, WORDS>(rows, k, out)
    }

    #[inline(always)]
    fn dot(input: &[i32], w: &Columns<'_>, _rows: usize, first: usize, panels: usize, sums: &mut [i32]) -> Result<(), Broken> {
        let stride = words::row_words::<WORDS>(w.k);
        let (input, sums) = (input.part(..ROWS * stride)?, sums.part_mut(..panels * ROWS * CHANNELS)?);
        let weights = w.packed().part(first * stride..(first + panels * CHANNELS) * stride)?.rows(CHANNELS * stride)?;
        for (weights, sums) in weights.zip(sums.as_chunks_mut::<{ ROWS * CHANNELS }>().0) {
            // SAFETY: the CPU has the extension (`Kernel` is the proof). The loop reads `stride / WORDS` times eight words of the input and sixteen of
            // the weights, and reads and writes the 32 sums; `stride` is not 0, as the block is ready.
            unsafe {
                asm!(
                    ".arch_extension i8mm",
                    // Rows 0 to 3 of four channels and four: v0 v1, v2 v3, v4 v5, v6 v7. Blocks of two rows and two channels: v20 to v27.
                    "ld1 {{v0.4s-v3.4s}}, [{sums}], #64",
                    "ld1 {{v4.4s-v7.4s}}, [{sums}]",
                    "sub {sums}, {sums}, #64",
                    "zip1 v20.2d, v0.2d, v2.2d",
                    "zip2 v21.2d, v0.2d, v2.2d",
                    "zip1 v22.2d, v1.2d, v3.2d",
                    "zip2 v23.2d, v1.2d, v3.2d",
                    "zip1 v24.2d, v4.2d, v6.2d",
                    "zip2 v25.2d, v4.2d, v6.2d",
                    "zip1 v26.2d, v5.2d, v7.2d",
                    "zip2 v27.2d, v5.2d, v7.2d",
                    "2:",
                    "ldp q16, q17, [{input}], #32",
                    "ldp q0, q1, [{weights}], #32",
                    "ldp q2, q3, [{weights}], #32",
                    "smmla v20.4s, v16.16b, v0.16b",
                    "smmla v24.4s, v17.16b, v0.16b",
                    "smmla v21.4s, v16.16b, v1.16b",
                    "smmla v25.4s, v17.16b, v1.16b",
                    "smmla v22.4s, v16.16b, v2.16b",
                    "smmla v26.4s, v17.16b, v2.16b",
                    "smmla v23.4s, v16.16b, v3.16b",
                    "smmla v27.4s, v17.16b, v3.16b",
                    "subs {octets}, {octets}, #1",
                    "b.ne 2b",
                    "zip1 v0.2d, v20.2d, v21.2d",
                    "zip1 v1.2d, v22.2d, v23.2d",
                    "zip2 v2.2d, v20.2d, v21.2d",
                    "zip2 v3.2d, v22.2d, v23.2d",
                    "zip1 v4.2d, v24.2d, v25.2d",
                    "zip1 v5.2d, v26.2d, v27.2d",
                    "zip2 v6.2d, v24.2d, v25.2d",
                    "zip2 v7.2d, v26.2d, v27.2d",
                    "st1 {{v0.4s-v3.4s}}, [{sums}], #64",
                    "st1 {{v4.4s-v7.4s}}, [{sums}]",
                    sums = inout(reg) sums.as_mut_ptr() => _,
                    input = inout(reg) input.as_ptr() => _,
                    weights = inout(reg) weights.as_ptr() => _,
                    octets = inout(reg) stride / WORDS => _,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                    out("v16") _, out("v17") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _,
                    out("v26") _, out("v27") _,
                    options(nostack),
                );
            }
        }
        Ok(())
    }
}

tiled::calls!(Smmla);
