//! A projection without bases, two rows at a time: sums start at the bias and are requantised in the registers that they were added up in.

use core::arch::naked_asm;
use core::mem::MaybeUninit;

use super::dot::products_of_pairs;
use super::{FOUR, Smlad};
use crate::kernels::tiled::{MOST_COLUMNS, Tile};
use crate::kernels::{Columns, Requant};
use crate::parts::{Broken, Parts};

/// `out[r][n] = requant(W a + bias)` with packed weights. Returns `false` and does nothing if this shape needs another way.
pub(super) fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, out: &mut [i16]) -> Result<bool, Broken> {
    let (n, k) = (w.n, w.k);
    let pairs = k.div_ceil(2);
    let scaled = q.bias.len() == n && q.mult.len() == n;
    if !Smlad::<false>::ready(w)
        || k > MOST_COLUMNS
        || 2 * n == 0
        || !n.is_multiple_of(FOUR)
        || !scaled
        || !out.as_ptr().addr().is_multiple_of(4)
    {
        return Ok(false);
    }
    let mut buffer = MaybeUninit::uninit();
    let input = Smlad::<false>::clear_input(&mut buffer, k);
    let weights = w.packed().part(..n * pairs)?;
    for (rows, out) in a.chunks(2 * k).zip(out.chunks_mut(2 * n)) {
        Smlad::<false>::arrange(rows, k, input)?;
        // A missing second row is written first, then the first over it.
        let second = if out.len() < 2 * n { 0 } else { n };
        let (input, first) = (input.part(..2 * pairs)?, out.part_mut(..second + n)?);
        let what = Two {
            input: input.as_ptr(),
            bias: q.bias.as_ptr(),
            weights: weights.as_ptr(),
            pairs,
            mult: q.mult.as_ptr(),
            shift: q.shift & 31,
            out: [first.part_mut(second..)?.as_mut_ptr(), first.as_mut_ptr()],
            end: weights.as_ptr_range().end,
        };
        // SAFETY: `n` channels of bias, multipliers and of both rows of `out`, which start words; `pairs` pairs of two rows and of every
        // channel. Neither `n`, a multiple of 4, nor `pairs` is 0.
        unsafe { project_two(&what) }
    }
    Ok(true)
}

/// What [`project_two`] works on.
#[repr(C)]
struct Two {
    /// `[pairs][2 rows]`.
    input: *const i32,
    bias: *const i32,
    /// `[N / 4][pairs][4]`.
    weights: *const i32,
    pairs: usize,
    mult: *const i32,
    shift: u32,
    /// The second row, then the first.
    out: [*mut i16; 2],
    /// Of the weights.
    end: *const i32,
}

/// `out[r][c] = requant(bias[c] + sum_k input[k][r] * weights[c][k], shift, mult[c])` of two rows.
///
/// # Safety
/// At least one four of channels and one pair. All of `what` can be read, `out` written; its rows start words.
#[unsafe(naked)]
unsafe extern "C" fn project_two(what: &Two) {
    macro_rules! requantise {
        ($a:literal, $b:literal, $c:literal, $d:literal) => {
            concat!(
                "ldm.n r1!, {{r2, r3}}\n",
                requantise!($a, "r2"),
                requantise!($b, "r3"),
                requantise!($c, "r2"),
                requantise!($d, "r3"),
                "pkhbt ",
                $a,
                ", ",
                $a,
                ", ",
                $b,
                ", lsl #16\n",
                "pkhbt ",
                $c,
                ", ",
                $c,
                ", ",
                $d,
                ", lsl #16\n",
            )
        };
        ($sum:literal, $mult:literal) => {
            concat!(
                "lsl ", $sum, ", ", $sum, ", r12\n", "smmul ", $sum, ", ", $sum, ", ", $mult, "\n", "ssat ", $sum, ", #16, ", $sum, "\n"
            )
        };
    }
    // As in `dot_panels`, the body takes 24 pairs and the first pass enters it so far in that the rest is whole passes. On the stack:
    // 0 input, 4 bias, 8 entry, 12 end of the input, 16 shift, 20 multipliers, 24 second row, 28 first row, 32 end of the weights.
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #36",
        "ldm r0, {{r1-r9}}", // input, bias, weights, pairs, multipliers, shift, rows, end
        "mov r0, r3",
        "strd r1, r2, [sp]",
        "strd r6, r5, [sp, #16]",
        "strd r7, r8, [sp, #24]",
        "str r9, [sp, #32]",
        "add r1, r1, r4, lsl #3",
        "add r5, r4, #23",
        "movs r6, #24",
        "udiv r5, r5, r6",
        "mls r5, r5, r6, r4", // minus what the first pass leaves out
        "movs r6, #42",
        "mul r5, r5, r6",
        "adr.w r6, 3f",
        "sub.w r6, r6, r5",
        "orr r6, r6, #1",
        "strd r6, r1, [sp, #8]",
        "2:",
        "ldrd r1, r12, [sp]",
        "ldr r2, [sp, #8]",
        "ldm r12, {{r4-r7}}",
        "ldm r12!, {{r8-r11}}",
        "str r12, [sp, #4]",
        "bx r2",
        ".balign 4",
        "3:",
        products_of_pairs!("24"),
        "ldr r2, [sp, #12]",
        "cmp r1, r2",
        "bne.w 3b",
        "ldrd r12, r1, [sp, #16]",
        requantise!("r4", "r5", "r8", "r9"),
        requantise!("r6", "r7", "r10", "r11"),
        "str r1, [sp, #20]",
        "ldrd r2, r3, [sp, #24]",
        "strd r8, r10, [r2], #8",
        "strd r4, r6, [r3], #8",
        "strd r2, r3, [sp, #24]",
        "ldr r2, [sp, #32]",
        "cmp r0, r2",
        "bne.w 2b",
        "add sp, sp, #36",
        "pop {{r4-r11, pc}}",
    )
}
