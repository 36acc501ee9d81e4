//! AArch64 with the dot product extension, bit-identical to [`super::reference`].
//!
//! `SDOT` by element adds, in each of four lanes, four products of a channel's weights and one row's activations. A tile is 4 rows by 8
//! channels: eight accumulators, two vectors of weights and one of activations for eight instructions. Weights are packed
//! `[N / 8][K / 4][8][4]` bytes, activations `[K / 4][4 rows][4]`.
#![allow(unsafe_code)]

use core::arch::asm;

use super::Columns;
use super::tiled::{self, MOST_COLUMNS, Tile};
use super::words;
use crate::parts::{Broken, Parts};

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, scale_down, view8_slice};

const ROWS: usize = 4;
const CHANNELS: usize = 8;
/// Words of the four columns that one lane takes at a time.
const WORDS: usize = 1;

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    words::packed_words::<CHANNELS, WORDS>(n, k)
}

/// Packs a block of columns into `out`.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    words::pack::<CHANNELS, WORDS>(w, out)
}

/// `[K / 4][4 rows]` words of four activations.
struct Sdot;

impl Tile for Sdot {
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
        let quads = words::row_words::<WORDS>(w.k);
        let (input, sums) = (input.part(..ROWS * quads)?, sums.part_mut(..panels * ROWS * CHANNELS)?);
        let weights = w.packed().part(first * quads..(first + panels * CHANNELS) * quads)?.rows(CHANNELS * quads)?;
        for (weights, sums) in weights.zip(sums.as_chunks_mut::<{ ROWS * CHANNELS }>().0) {
            // SAFETY: the CPU has the extension (`Kernel` is the proof). The loop reads `quads` times four words of the input and eight of
            // the weights, and reads and writes the 32 sums; `quads` is not 0, as the block is ready.
            unsafe {
                asm!(
                    ".arch_extension dotprod",
                    "ld1 {{v0.4s-v3.4s}}, [{sums}], #64",
                    "ld1 {{v4.4s-v7.4s}}, [{sums}]",
                    "sub {sums}, {sums}, #64",
                    "2:",
                    "ldr q16, [{input}], #16",
                    "ldp q17, q18, [{weights}], #32",
                    "sdot v0.4s, v17.16b, v16.4b[0]",
                    "sdot v1.4s, v18.16b, v16.4b[0]",
                    "sdot v2.4s, v17.16b, v16.4b[1]",
                    "sdot v3.4s, v18.16b, v16.4b[1]",
                    "sdot v4.4s, v17.16b, v16.4b[2]",
                    "sdot v5.4s, v18.16b, v16.4b[2]",
                    "sdot v6.4s, v17.16b, v16.4b[3]",
                    "sdot v7.4s, v18.16b, v16.4b[3]",
                    "subs {quads}, {quads}, #1",
                    "b.ne 2b",
                    "st1 {{v0.4s-v3.4s}}, [{sums}], #64",
                    "st1 {{v4.4s-v7.4s}}, [{sums}]",
                    sums = inout(reg) sums.as_mut_ptr() => _,
                    input = inout(reg) input.as_ptr() => _,
                    weights = inout(reg) weights.as_ptr() => _,
                    quads = inout(reg) quads => _,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                    out("v16") _, out("v17") _, out("v18") _,
                    options(nostack),
                );
            }
        }
        Ok(())
    }
}

tiled::calls!(Sdot);
