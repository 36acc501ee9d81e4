//! Cortex-M3: no products of pairs, but a multiply-accumulate. Tiles of 4 rows by 2 channels, bit-identical to [`super::reference`].
//!
//! Eight sums, an activation, two weights and three pointers are all registers that there are; a compiler spills more of them. Weights are
//! read in place.
#![allow(unsafe_code)]

use core::arch::naked_asm;

use super::square::{SIDE, Square};
use super::tiled;

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, pack, packed_words, scale_down, view8_slice};

struct Accumulate;

impl Square for Accumulate {
    #[inline(always)]
    unsafe fn panel(sums: &mut [i32; SIDE * SIDE], input: &[i8], weights: [&[i8]; SIDE]) {
        let (k, [a, b, c, d]) = (weights[0].len(), weights.map(<[i8]>::as_ptr));
        // SAFETY: the caller's promise. The sums of two channels in each of four rows lie inside `sums`, also from its third on.
        unsafe {
            pair(sums.as_mut_ptr(), input.as_ptr(), k, &[a, b]);
            pair(sums.as_mut_ptr().add(2), input.as_ptr(), k, &[c, d]);
        }
    }
}

/// `sums[4 r + c] += sum_k input[k][r] * weights[c][k]` for `c` 0 and 1.
///
/// # Safety
/// `k` is not 0; `input` has `4 * k`, each of the weights `k` bytes to read, `sums` 14 words to read and write.
#[unsafe(naked)]
unsafe extern "C" fn pair(sums: *mut i32, input: *const i8, k: usize, weights: &[*const i8; 2]) {
    // r0 input, r1 r2 weights, r3 an activation or an end, r12 lr two weights; sums of row 0: r4 r5, 1: r6 r7, 2: r8 r9, 3: r10 r11.
    macro_rules! row {
        ($left:literal, $right:literal) => {
            concat!("ldrsb r3, [r0], #1\nmla ", $left, ", r3, r12, ", $left, "\nmla ", $right, ", r3, lr, ", $right, "\n")
        };
    }
    macro_rules! column {
        () => {
            concat!("ldrsb r12, [r1], #1\nldrsb lr, [r2], #1\n", row!("r4", "r5"), row!("r6", "r7"), row!("r8", "r9"), row!("r10", "r11"))
        };
    }
    naked_asm!(
        "push {{r0, r4-r11, lr}}",
        "ldrd r12, lr, [r3]",
        "bic r4, r2, #7",
        "add r3, r12, r2",
        "add r2, r12, r4",
        "push {{r2, r3}}", // ends of the first channel's whole eights, and of the channel
        "ldrd r4, r5, [r0]",
        "ldrd r6, r7, [r0, #16]",
        "ldrd r8, r9, [r0, #32]",
        "ldrd r10, r11, [r0, #48]",
        "mov r0, r1",
        "mov r1, r12",
        "cmp r1, r2",
        "mov r2, lr",
        "beq 3f",
        "2:",
        column!(),
        column!(),
        column!(),
        column!(),
        column!(),
        column!(),
        column!(),
        column!(),
        "ldr r3, [sp]",
        "cmp r1, r3",
        "bne 2b",
        "3:",
        "ldr r3, [sp, #4]",
        "cmp r1, r3",
        "beq 5f",
        "4:",
        column!(),
        "ldr r3, [sp, #4]",
        "cmp r1, r3",
        "bne 4b",
        "5:",
        "ldr r0, [sp, #8]",
        "strd r4, r5, [r0]",
        "strd r6, r7, [r0, #16]",
        "strd r8, r9, [r0, #32]",
        "strd r10, r11, [r0, #48]",
        "add sp, sp, #8",
        "pop {{r0, r4-r11, pc}}",
    )
}

tiled::calls!(Accumulate);
