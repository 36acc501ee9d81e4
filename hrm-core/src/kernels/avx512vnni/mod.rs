//! AVX-512 VNNI kernels, bit-identical to [`super::reference`].
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, so activations are kept as `a ^ 0x80 = a + 128` and every channel starts at
//! `-128 * sum(w)`, which is worked out when the weights are packed. Packed weights of a block of 16 channels: `[K / 4][16][4]` int8, then
//! 16 of those corrections.
//!
//! The channels of a block are not in order: in each 128 bits the middle two change places (0, 2, 1, 3). Requantisation multiplies even
//! and odd lanes apart, and of such an order one shuffle makes the natural one ([`tile::requant`]).
//!
//! | file | what |
//! |---|---|
//! | `tile` | register tiles: products, requantisation |
//! | `matmul` | a whole matrix product |
//! | `mlp` | the whole gated MLP without intermediate results in memory |
//! | `rows` | views, hidden values, norms, sums |
#![allow(unsafe_code)]

mod matmul;
mod mlp;
mod rows;
mod tile;

pub use super::reference::{add, inject, scale_down};
pub use matmul::{accumulate, project};
pub use mlp::gated_mlp;
pub use rows::{add_norm, glu_rows, group_sums, view8_slice};
pub use tile::multiply_only;

use super::Columns;
use super::words::word_of;
use crate::parts::Broken;

/// Channels of a block: 32-bit lanes of a register.
const LANES: usize = 16;

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    n.div_ceil(LANES) * block_words(k)
}

const fn block_words(k: usize) -> usize {
    LANES * (k.div_ceil(4) + 1)
}

/// Packs a block of columns into `out`.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    for (b, block) in out.chunks_exact_mut(block_words(w.k)).enumerate() {
        block.fill(0);
        let (quads, corrections) = block.split_at_mut(LANES * w.k.div_ceil(4));
        for channel in 0..LANES.min(w.n - b * LANES) {
            let lane = channel & !3 | [0, 2, 1, 3][channel % 4];
            let row = w.row(b * LANES + channel)?;
            for (quad, bytes) in quads[lane..].iter_mut().step_by(LANES).zip(row.chunks(4)) {
                *quad = word_of(bytes);
            }
            corrections[lane] = -128 * row.iter().map(|&w| i32::from(w)).sum::<i32>();
        }
    }
    Ok(())
}
