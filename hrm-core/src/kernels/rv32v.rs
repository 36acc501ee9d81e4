//! RISC-V vectors of at least 128 bits, bit-identical to [`super::reference`].
//!
//! Lanes are channels: `VWMACC.VX` multiplies sixteen 16-bit weights by one activation and adds to 32-bit sums. A tile is 4 rows by 16
//! channels. Weights are packed as 16-bit values, `[N / 16][K][16]`.
#![allow(unsafe_code)]

use core::arch::naked_asm;

use super::Columns;
use super::tiled::{self, MOST_COLUMNS, Tile};
use crate::parts::{Broken, Parts};

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, scale_down, view8_slice};

const ROWS: usize = 4;
const CHANNELS: usize = 16;

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    n.div_ceil(CHANNELS) * CHANNELS * k / 2
}

/// Packs a block of columns into `out`.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    let out: &mut [i16] = bytemuck::cast_slice_mut(out);
    for (p, panel) in out.rows_mut(CHANNELS * w.k)?.enumerate() {
        panel.fill(0);
        for channel in 0..CHANNELS.min(w.n.saturating_sub(p * CHANNELS)) {
            let row = w.row(p * CHANNELS + channel)?;
            for (to, &weight) in panel.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(row) {
                to[channel] = i16::from(weight);
            }
        }
    }
    Ok(())
}

/// `[K][4 rows]` activations.
struct Vectors;

impl Tile for Vectors {
    const ROWS: usize = ROWS;
    const CHANNELS: usize = CHANNELS;
    type Input = i8;
    type Buffer = [i8; ROWS * MOST_COLUMNS];
    const BUFFER: Self::Buffer = [0; ROWS * MOST_COLUMNS];

    fn ready(w: &Columns<'_>) -> bool {
        w.k > 0 && w.packed().len() >= packed_words(w.n, w.k)
    }

    #[inline(always)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i8]) -> Result<(), Broken> {
        tiled::interleave::<ROWS>(rows, k, out)
    }

    #[inline(always)]
    fn dot(input: &[i8], w: &Columns<'_>, _rows: usize, first: usize, panels: usize, sums: &mut [i32]) -> Result<(), Broken> {
        let words = CHANNELS * w.k / 2;
        let at = first / CHANNELS * words;
        let weights = w.packed().part(at..at + panels * words)?;
        let (input, sums) = (input.part(..ROWS * w.k)?, sums.part_mut(..panels * ROWS * CHANNELS)?);
        if panels > 0 {
            // SAFETY: the slices were just cut to what the loop reads and writes; `k` is not 0, as the block is ready.
            unsafe { panels_of(sums.as_mut_ptr(), input.as_ptr(), weights.as_ptr().cast(), w.k, panels) }
        }
        Ok(())
    }
}

/// `sums[p][r][c] += sum_k input[k][r] * weights[p][k][c]`.
///
/// # Safety
/// `k` and `panels` are not 0; `input` has `4 * k` bytes, `weights` `16 * k * panels` halfwords to read, `sums` `64 * panels` words.
#[unsafe(naked)]
unsafe extern "C" fn panels_of(sums: *mut i32, input: *const i8, weights: *const i16, k: usize, panels: usize) {
    naked_asm!(
        ".option push",
        ".option arch, +v",
        "2:",
        "vsetivli zero, 16, e32, m4, ta, ma",
        "addi t0, a0, 64",
        "addi t1, a0, 128",
        "addi t2, a0, 192",
        "vle32.v v8, (a0)",
        "vle32.v v12, (t0)",
        "vle32.v v16, (t1)",
        "vle32.v v20, (t2)",
        "vsetivli zero, 16, e16, m2, ta, ma",
        "mv a5, a1",
        "mv a6, a3",
        "3:",
        "vle16.v v4, (a2)",
        "lb t3, 0(a5)",
        "lb t4, 1(a5)",
        "lb t5, 2(a5)",
        "lb t6, 3(a5)",
        "vwmacc.vx v8, t3, v4",
        "vwmacc.vx v12, t4, v4",
        "vwmacc.vx v16, t5, v4",
        "vwmacc.vx v20, t6, v4",
        "addi a2, a2, 32",
        "addi a5, a5, 4",
        "addi a6, a6, -1",
        "bnez a6, 3b",
        "vsetivli zero, 16, e32, m4, ta, ma",
        "vse32.v v8, (a0)",
        "vse32.v v12, (t0)",
        "vse32.v v16, (t1)",
        "vse32.v v20, (t2)",
        "addi a0, a0, 256",
        "addi a4, a4, -1",
        "bnez a4, 2b",
        "ret",
        ".option pop",
    )
}

tiled::calls!(Vectors);
