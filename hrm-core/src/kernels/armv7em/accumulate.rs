//! Products of group sums, two rows at a time: sums start at zero or at the row of another grouping and are stored where they are kept.

use core::arch::naked_asm;

use super::dot::products_of_pairs;
use super::{FOUR, Smlad};
use crate::kernels::tiled::{Starts, Tile};
use crate::kernels::{Bases, Columns};
use crate::parts::{Broken, Parts};

/// What sums start at that start at zero.
static ZERO: [i32; FOUR] = [0; FOUR];

/// `out[r][n] = W a + base` with packed weights; how many rows of it are done: all, or none if this shape needs another way.
pub(super) fn accumulate(
    a: &[i8],
    w: &Columns<'_>,
    bases: Option<&Bases<'_>>,
    input: &mut [i32],
    out: &mut [i32],
) -> Result<usize, Broken> {
    let (n, k) = (w.n, w.k);
    let pairs = k.div_ceil(2);
    if 2 * k == 0 || 2 * n == 0 || !n.is_multiple_of(FOUR) || bases.is_some_and(|b| b.groupings > 1) {
        return Ok(0);
    }
    let weights = w.packed().part(..n * pairs)?;
    for (i, (rows, out)) in a.chunks(2 * k).zip(out.chunks_mut(2 * n)).enumerate() {
        Smlad::<false>::arrange(rows, k, input)?;
        // A missing second row is written first, then the first over it.
        let second = usize::from(out.len() >= 2 * n);
        let start = |row: usize| Starts::of(bases, row, n, (0, n))?.rows().next().unwrap_or(Ok(&ZERO));
        let starts = [start(2 * i)?.as_ptr(), start(2 * i + second)?.as_ptr()];
        let (input, first) = (input.part(..2 * pairs)?, out.part_mut(..(second + 1) * n)?);
        let what = Two {
            starts,
            step: if bases.is_some() { size_of_val(&ZERO) } else { 0 },
            input: input.as_ptr(),
            weights: weights.as_ptr(),
            pairs,
            end: weights.as_ptr_range().end,
            out: [first.part_mut(second * n..)?.as_mut_ptr(), first.as_mut_ptr()],
        };
        // SAFETY: `n` channels of both rows of `out` and of both starts, or four of these that are met again and again; `pairs` pairs of two rows
        // and of every channel. Neither `n`, a multiple of 4, nor `pairs` is 0.
        unsafe { accumulate_two(&what) }
    }
    Ok(a.rows(k)?.len())
}

/// What [`accumulate_two`] works on.
#[repr(C)]
struct Two {
    /// Of the first row, then of the second.
    starts: [*const i32; 2],
    /// Bytes from the starts of four channels to those of the next.
    step: usize,
    /// `[pairs][2 rows]`.
    input: *const i32,
    /// `[N / 4][pairs][4]`.
    weights: *const i32,
    pairs: usize,
    /// Of the weights.
    end: *const i32,
    /// The second row, then the first.
    out: [*mut i32; 2],
}

/// `out[r][c] = starts[r][c] + sum_k input[k][r] * weights[c][k]` of two rows.
///
/// # Safety
/// At least one four of channels and one pair. All of `what` can be read, `out` written.
#[unsafe(naked)]
unsafe extern "C" fn accumulate_two(what: &Two) {
    // As in `dot_panels`, the body takes 24 pairs and the first pass enters it so far in that the rest is whole passes. On the stack:
    // 0 starts, 8 step, 12 input, 16 entry, 20 end of the input, 24 end of the weights, 28 second row, 32 first row.
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #36",
        "ldm r0, {{r1-r9}}", // starts, step, input, weights, pairs, end, rows
        "mov r0, r5",
        "stm sp, {{r1-r4}}",
        "strd r7, r8, [sp, #24]",
        "str r9, [sp, #32]",
        "add r4, r4, r6, lsl #3",
        "str r4, [sp, #20]",
        "add r5, r6, #23",
        "movs r7, #24",
        "udiv r5, r5, r7",
        "mls r5, r5, r7, r6", // minus what the first pass leaves out
        "movs r7, #42",
        "mul r5, r5, r7",
        "adr.w r7, 3f",
        "sub.w r7, r7, r5",
        "orr r7, r7, #1",
        "str r7, [sp, #16]",
        "2:",
        "ldm.w sp, {{r2, r3, r12}}",
        "ldm r2, {{r4-r7}}",
        "ldm r3, {{r8-r11}}",
        "add r2, r2, r12",
        "add r3, r3, r12",
        "strd r2, r3, [sp]",
        "ldrd r1, r2, [sp, #12]",
        "bx r2",
        ".balign 4",
        "3:",
        products_of_pairs!("24"),
        "ldr r2, [sp, #20]",
        "cmp r1, r2",
        "bne.w 3b",
        "add r1, sp, #24",
        "ldm r1, {{r1, r2, r3}}",
        "stm r2!, {{r8-r11}}",
        "stm r3!, {{r4-r7}}",
        "strd r2, r3, [sp, #28]",
        "cmp r0, r1",
        "bne.w 2b",
        "add sp, sp, #36",
        "pop {{r4-r11, pc}}",
    )
}
