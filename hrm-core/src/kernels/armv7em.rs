//! Cortex-M4, M7 and M33: `SMLAD`, two products an instruction, bit-identical to [`super::reference`].
//!
//! A tile is 2 rows by 4 channels: eight accumulators, two activations and two weights fill the fourteen registers there are. Weights are
//! packed as pairs of 16-bit values, `[N / 4][K / 2][4]` words, so that the inner loop loads and multiplies and does nothing else:
//! 3 `LDM` and 8 `SMLAD` for 16 products.
#![allow(unsafe_code)]

use core::arch::naked_asm;

use super::tiled::{self, Tile};
use super::{Bases, Columns, Requant};

pub use super::reference::{add_norm, glu_rows, group_sums, view8_slice};

const CHANNELS: usize = 4;
const ROWS: usize = 2;

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    n.div_ceil(CHANNELS) * CHANNELS * k.div_ceil(2)
}

/// Packs a block of columns into `out`.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) {
    for (p, panel) in out.chunks_exact_mut(CHANNELS * w.k.div_ceil(2)).enumerate() {
        panel.fill(0);
        for channel in 0..CHANNELS.min(w.n.saturating_sub(p * CHANNELS)) {
            let row = w.row(p * CHANNELS + channel);
            for (word, pair) in panel.iter_mut().skip(channel).step_by(CHANNELS).zip(row.chunks(2)) {
                *word = pair_of(pair[0], pair.get(1).copied().unwrap_or(0));
            }
        }
    }
}

#[inline(always)]
const fn pair_of(low: i8, high: i8) -> i32 {
    (low as i32 & 0xffff) | (high as i32) << 16
}

/// `[K / 2][2 rows]` pairs.
struct Smlad;

impl Tile for Smlad {
    const ROWS: usize = ROWS;
    const CHANNELS: usize = CHANNELS;
    type Input = i32;

    fn ready(w: &Columns<'_>) -> bool {
        w.k > 0 && w.packed().len() >= packed_words(w.n, w.k)
    }

    #[inline(always)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i32]) {
        // A missing second row is the first again: its sums are not looked at.
        let (first, second) = rows.split_at(k);
        let second = if second.len() < k { first } else { second };
        let pairs = first.chunks_exact(2).zip(second.chunks_exact(2));
        for (to, (a, b)) in out.chunks_exact_mut(2).zip(pairs) {
            to[0] = pair_of(a[0], a[1]);
            to[1] = pair_of(b[0], b[1]);
        }
        if !k.is_multiple_of(2) {
            out[k - 1] = pair_of(first[k - 1], 0);
            out[k] = pair_of(second[k - 1], 0);
        }
    }

    #[inline(always)]
    fn dot(input: &[i32], w: &Columns<'_>, first: usize, panels: usize, sums: &mut [i32]) {
        let pairs = w.k.div_ceil(2);
        let weights = &w.packed()[first / CHANNELS * CHANNELS * pairs..][..panels * CHANNELS * pairs];
        let (input, sums) = (&input[..2 * pairs], &mut sums[..panels * ROWS * CHANNELS]);
        if panels > 0 && pairs > 0 {
            // SAFETY: the slices were just cut to what the loop reads and writes: `pairs` pairs of two rows, `panels` panels of `pairs`
            // times four words, eight sums a panel; it runs for at least one of each.
            unsafe { dot_panels(sums.as_mut_ptr(), input.as_ptr(), weights.as_ptr(), pairs, panels) }
        }
    }
}

/// `sums[p][r][c] += sum_k input[k][r] * weights[p][k][c]` over pairs of 16-bit values.
///
/// # Safety
/// `sums` is `panels * 8` words to write, `input` `pairs * 2` and `weights` `panels * pairs * 4` words to read; `pairs` and `panels` are not 0.
#[unsafe(naked)]
unsafe extern "C" fn dot_panels(sums: *mut i32, input: *const i32, weights: *const i32, pairs: usize, panels: usize) {
    // The body takes 24 pairs (K = 48 in one pass); the first pass enters it so far in that the rest is whole passes. On the stack:
    // 0 sums, 4 input, 8 passes left, 12 passes, 16 entry, 20 unused; then nine saved registers, then `panels`.
    naked_asm!(
        "push {{r4-r11, lr}}",
        "sub sp, sp, #24",
        "strd r0, r1, [sp]",
        "mov r0, r2",
        "movs r4, #24",
        "add r5, r3, #23",
        "udiv r5, r5, r4",        // passes
        "mls r6, r5, r4, r3",     // pairs - 24 passes: minus what the first pass leaves out
        "movs r4, #42",           // bytes of the code of one pair
        "mul r6, r6, r4",
        "adr.w r4, 3f",
        "sub.w r4, r4, r6",
        "orr r4, r4, #1",
        "strd r5, r4, [sp, #12]",
        "2:",
        "ldrd r12, r1, [sp]",
        "ldrd r2, r3, [sp, #12]",
        "str r2, [sp, #8]",
        "ldm r12, {{r4-r11}}",
        "bx r3",
        ".balign 4",
        "3:",
        ".rept 24",
        "ldm.n r1!, {{r2, r3}}",
        "ldm.w r0!, {{r12, lr}}",
        "smlad r4, r2, r12, r4",
        "smlad r8, r3, r12, r8",
        "smlad r5, r2, lr, r5",
        "smlad r9, r3, lr, r9",
        "ldm.w r0!, {{r12, lr}}",
        "smlad r6, r2, r12, r6",
        "smlad r10, r3, r12, r10",
        "smlad r7, r2, lr, r7",
        "smlad r11, r3, lr, r11",
        ".endr",
        "ldr r2, [sp, #8]",
        "subs r2, r2, #1",
        "str r2, [sp, #8]",
        "bne.w 3b",
        "ldr r12, [sp]",
        "stm r12!, {{r4-r11}}",
        "str r12, [sp]",
        "ldr r2, [sp, #60]",
        "subs r2, r2, #1",
        "str r2, [sp, #60]",
        "bne.w 2b",
        "add sp, sp, #24",
        "pop {{r4-r11, pc}}",
    )
}

/// `out[r][n] = sum_k a[r][k] * w[n][k]`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, out: &mut [i32]) {
    tiled::accumulate::<Smlad>(a, w, out);
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) {
    tiled::project::<Smlad>(a, w, q, bases, out);
}

/// [`project`], then the hidden values of the gated MLP.
#[expect(clippy::too_many_arguments, reason = "two operations in one")]
pub fn gated(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, shift: u32, gate_up: &mut [i16], out: &mut [i8]) {
    tiled::gated::<Smlad>(a, w, q, bases, shift, gate_up, out);
}
