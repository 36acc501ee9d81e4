//! RISC-V with a multiplier and without vectors: tiles of 4 rows by 4 channels, bit-identical to [`super::reference`].
//!
//! Sixteen sums, four activations, a weight and a product fill the registers beside the pointers; a compiler spills them. Weights are
//! read in place.
#![allow(unsafe_code)]

use core::arch::naked_asm;

use super::square::{SIDE, Square};
use super::tiled;

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, pack, packed_words, scale_down, view8_slice};

struct Multiplier;

impl Square for Multiplier {
    #[inline(always)]
    unsafe fn panel(sums: &mut [i32; SIDE * SIDE], input: &[i8], weights: [&[i8]; SIDE]) {
        // SAFETY: the caller's promise.
        unsafe { panel(sums, input.as_ptr(), weights[0].len(), &weights.map(<[i8]>::as_ptr)) }
    }
}

/// `sums[r][c] += sum_k input[k][r] * weights[c][k]`.
///
/// # Safety
/// `k` is not 0; `input` has `4 * k`, each of the weights `k` bytes to read.
#[unsafe(naked)]
unsafe extern "C" fn panel(sums: &mut [i32; 16], input: *const i8, k: usize, weights: &[*const i8; 4]) {
    // a1 input, a3 a4 a5 a6 weights, a7 where the first channel's end; t0..t3 activations, t4 a weight, t5 a product. Sums of row 0: s0..s3,
    // 1: s4..s7, 2: s8..s11, 3: t6, ra, a0, a2.
    macro_rules! channel {
        ($weights:literal, $at:literal, $s0:literal, $s1:literal, $s2:literal, $s3:literal) => {
            concat!(
                "lb t4, ",
                $at,
                "(",
                $weights,
                ")\n",
                "mul t5, t0, t4\n",
                "add ",
                $s0,
                ", ",
                $s0,
                ", t5\n",
                "mul t5, t1, t4\n",
                "add ",
                $s1,
                ", ",
                $s1,
                ", t5\n",
                "mul t5, t2, t4\n",
                "add ",
                $s2,
                ", ",
                $s2,
                ", t5\n",
                "mul t5, t3, t4\n",
                "add ",
                $s3,
                ", ",
                $s3,
                ", t5\n",
            )
        };
    }
    macro_rules! column {
        ($at:literal, $a0:literal, $a1:literal, $a2:literal, $a3:literal) => {
            concat!(
                "lb t0, ",
                $a0,
                "(a1)\n",
                "lb t1, ",
                $a1,
                "(a1)\n",
                "lb t2, ",
                $a2,
                "(a1)\n",
                "lb t3, ",
                $a3,
                "(a1)\n",
                channel!("a3", $at, "s0", "s4", "s8", "t6"),
                channel!("a4", $at, "s1", "s5", "s9", "ra"),
                channel!("a5", $at, "s2", "s6", "s10", "a0"),
                channel!("a6", $at, "s3", "s7", "s11", "a2"),
            )
        };
    }
    naked_asm!(
        ".option push",
        ".option arch, +m",
        "addi sp, sp, -64",
        "sw ra, 0(sp)",
        "sw s0, 4(sp)",
        "sw s1, 8(sp)",
        "sw s2, 12(sp)",
        "sw s3, 16(sp)",
        "sw s4, 20(sp)",
        "sw s5, 24(sp)",
        "sw s6, 28(sp)",
        "sw s7, 32(sp)",
        "sw s8, 36(sp)",
        "sw s9, 40(sp)",
        "sw s10, 44(sp)",
        "sw s11, 48(sp)",
        "sw a0, 52(sp)",
        "lw t0, 0(a3)",
        "lw a4, 4(a3)",
        "lw a5, 8(a3)",
        "lw a6, 12(a3)",
        "mv a3, t0",
        "add t1, a3, a2",
        "sw t1, 56(sp)", // end of the first channel
        "andi t2, a2, -8",
        "add a7, a3, t2", // end of its whole eights
        "lw s0, 0(a0)",
        "lw s1, 4(a0)",
        "lw s2, 8(a0)",
        "lw s3, 12(a0)",
        "lw s4, 16(a0)",
        "lw s5, 20(a0)",
        "lw s6, 24(a0)",
        "lw s7, 28(a0)",
        "lw s8, 32(a0)",
        "lw s9, 36(a0)",
        "lw s10, 40(a0)",
        "lw s11, 44(a0)",
        "lw t6, 48(a0)",
        "lw ra, 52(a0)",
        "lw a2, 60(a0)",
        "lw a0, 56(a0)",
        "beq a3, a7, 3f",
        "2:",
        column!("0", "0", "1", "2", "3"),
        column!("1", "4", "5", "6", "7"),
        column!("2", "8", "9", "10", "11"),
        column!("3", "12", "13", "14", "15"),
        column!("4", "16", "17", "18", "19"),
        column!("5", "20", "21", "22", "23"),
        column!("6", "24", "25", "26", "27"),
        column!("7", "28", "29", "30", "31"),
        "addi a1, a1, 32",
        "addi a3, a3, 8",
        "addi a4, a4, 8",
        "addi a5, a5, 8",
        "addi a6, a6, 8",
        "bne a3, a7, 2b",
        "3:",
        "lw a7, 56(sp)",
        "beq a3, a7, 5f",
        "4:",
        column!("0", "0", "1", "2", "3"),
        "addi a1, a1, 4",
        "addi a3, a3, 1",
        "addi a4, a4, 1",
        "addi a5, a5, 1",
        "addi a6, a6, 1",
        "bne a3, a7, 4b",
        "5:",
        "lw a1, 52(sp)",
        "sw s0, 0(a1)",
        "sw s1, 4(a1)",
        "sw s2, 8(a1)",
        "sw s3, 12(a1)",
        "sw s4, 16(a1)",
        "sw s5, 20(a1)",
        "sw s6, 24(a1)",
        "sw s7, 28(a1)",
        "sw s8, 32(a1)",
        "sw s9, 36(a1)",
        "sw s10, 40(a1)",
        "sw s11, 44(a1)",
        "sw t6, 48(a1)",
        "sw ra, 52(a1)",
        "sw a0, 56(a1)",
        "sw a2, 60(a1)",
        "lw ra, 0(sp)",
        "lw s0, 4(sp)",
        "lw s1, 8(sp)",
        "lw s2, 12(sp)",
        "lw s3, 16(sp)",
        "lw s4, 20(sp)",
        "lw s5, 24(sp)",
        "lw s6, 28(sp)",
        "lw s7, 32(sp)",
        "lw s8, 36(sp)",
        "lw s9, 40(sp)",
        "lw s10, 44(sp)",
        "lw s11, 48(sp)",
        "addi sp, sp, 64",
        "ret",
        ".option pop",
    )
}

tiled::calls!(Multiplier);
