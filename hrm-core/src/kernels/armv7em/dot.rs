//! The inner loops: products of arranged activations and weights, added to sums.

use core::arch::naked_asm;

/// The products of so many pairs: activations at r1, weights at r0, four sums of a row from r4 on, of the other from r8. Each pair is 42 bytes
/// of code.
macro_rules! products_of_pairs {
    ($pairs:literal) => {
        concat!(
            ".rept ",
            $pairs,
            "\n",
            "ldm.n r1!, {{r2, r3}}\n",
            "ldm.w r0!, {{r12, lr}}\n",
            "smlad r4, r2, r12, r4\n",
            "smlad r8, r3, r12, r8\n",
            "smlad r5, r2, lr, r5\n",
            "smlad r9, r3, lr, r9\n",
            "ldm.w r0!, {{r12, lr}}\n",
            "smlad r6, r2, r12, r6\n",
            "smlad r10, r3, r12, r10\n",
            "smlad r7, r2, lr, r7\n",
            "smlad r11, r3, lr, r11\n",
            ".endr",
        )
    };
}
pub(super) use products_of_pairs;

/// `sums[p][r][c] += sum_k input[k][r] * weights[p][k][c]` over pairs of 16-bit values, the same pairs in both.
///
/// # Safety
/// `sums` is `panels * 8` words to write, `input` `pairs * 2` and `weights` `panels * pairs * 4` words to read; `pairs` and `panels` are not 0.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn dot_panels(sums: *mut i32, input: *const i32, weights: *const i32, pairs: usize, panels: usize) {
    // The body takes 24 pairs; the first pass enters it so far in that the rest is whole passes. K = 48 and K = 32 are one pass of a body
    // of their own, with nothing to count. On the stack:
    // 0 input, 4 sums, 8 end of the weights, 12 entry, 16 end of the input; then nine saved registers.
    // Stores the sums of a panel; goes on at a label with the next.
    macro_rules! end_panel {
        ($again:literal) => {
            concat!("ldrd r12, r2, [sp, #4]\n", "stm r12!, {{r4-r11}}\n", "str r12, [sp, #4]\n", "cmp r0, r2\n", "bne.w ", $again, "b\n")
        };
    }
    // All panels, of so many pairs each.
    macro_rules! one_pass {
        ($label:literal, $pairs:literal) => {
            concat!($label, ":\n", "ldrd r1, r12, [sp]\n", "ldm r12, {{r4-r11}}\n", products_of_pairs!($pairs), "\n", end_panel!($label))
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #24",
        "strd r1, r0, [sp]",
        "mov r0, r2",
        "ldr r12, [sp, #60]",
        "mul r12, r12, r3",
        "add r12, r0, r12, lsl #4", // four words a pair and panel
        "movs r4, #24",
        "add r5, r3, #23",
        "udiv r5, r5, r4",    // passes
        "mls r6, r5, r4, r3", // pairs - 24 passes: minus what the first pass leaves out
        "movs r4, #42",       // bytes of the code of one pair
        "mul r7, r6, r4",
        "adr.w r4, 3f",
        "sub.w r4, r4, r7",
        "orr r4, r4, #1",
        "strd r12, r4, [sp, #8]",
        "add r4, r1, r3, lsl #3",
        "str r4, [sp, #16]",
        "cmp r3, #16",
        "beq.w 6f",
        "cmp r3, #24",
        "bne.w 4f",
        one_pass!("2", "24"),
        "5:",
        "add sp, sp, #24",
        "pop {{r4-r11, pc}}",
        "4:",
        "ldrd r1, r12, [sp]",
        "ldr r3, [sp, #12]",
        "ldm r12, {{r4-r11}}",
        "bx r3",
        ".balign 4",
        "3:",
        products_of_pairs!("24"),
        "ldr r2, [sp, #16]",
        "cmp r1, r2",
        "bne.w 3b",
        end_panel!("4"),
        "b.w 5b",
        one_pass!("6", "16"),
        "b.w 5b",
    )
}

/// What [`dot_in_place`] works on.
#[repr(C)]
pub(super) struct InPlace {
    /// `[channels][4 rows]`.
    pub sums: *mut i32,
    /// `[K / 4][2][4 rows]`: pairs of the even, then of the odd columns of four.
    pub input: *const i32,
    pub weights: *const i8,
    /// Bytes from the end of a channel's weights to the next channel's.
    pub step: usize,
    /// Columns, a multiple of 4; of 8 if `ALIGNED`.
    pub k: usize,
    pub channels: usize,
}

/// `sums[c][r] += sum_k input[k][r] * weights[c][k]` of the first `ROWS` rows (1, 2 or 4) with 8-bit weights as they stand in the file:
/// `SXTB16` widens two of them.
///
/// # Safety
/// `k` and `channels` are not 0; sums: `4 * channels` words, input: `2 * k` words; weights: `k` bytes of each channel, `step` bytes between
/// one and the next, and if `ALIGNED`, all of that in whole words.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn dot_in_place<const ALIGNED: bool, const ROWS: usize>(what: &InPlace) {
    // r0 input, r1 weights, r2 (r3) a word of weights, r12 its even columns, r4-r7 sums of a channel, r8-r11 activations, lr sums.
    // The body takes 48 columns; the first pass enters it so far in that the rest is whole passes.
    // On the stack: 0 input, 4 entry, 8 end of the input, 12 end of the sums, 16 step.
    macro_rules! products {
        ($weights:literal) => {
            concat!(
                ".if {rows} == 1\nldr r8, [r0], #16\n.endif\n",
                ".if {rows} == 2\nldrd r8, r9, [r0], #16\n.endif\n",
                ".if {rows} == 4\nldm.w r0!, {{r8-r11}}\n.endif\n",
                "smlad r4, r8, ",
                $weights,
                ", r4\n.if {rows} > 1\nsmlad r5, r9, ",
                $weights,
                ", r5\n.endif\n.if {rows} > 2\nsmlad r6, r10, ",
                $weights,
                ", r6\nsmlad r7, r11, ",
                $weights,
                ", r7\n.endif\n",
            )
        };
    }
    macro_rules! four_columns {
        ($word:literal) => {
            concat!("sxtb16 r12, ", $word, "\n", "sxtb16 ", $word, ", ", $word, ", ror #8\n", products!("r12"), products!($word))
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #20",
        "ldm r0, {{r4-r9}}", // sums, input, weights, step, k, channels
        "mov lr, r4",
        "mov r1, r6",
        "add r4, r4, r9, lsl #4",
        "strd r4, r7, [sp, #12]",
        "add r4, r5, r8, lsl #3",
        "str r4, [sp, #8]",
        // What the first pass leaves out: (-k) mod 48 columns.
        "add r4, r8, #47",
        "movs r6, #48",
        "udiv r4, r4, r6",
        "mul r4, r4, r6",
        "subs r4, r4, r8",
        "movs r6, #{code}",
        "mul r4, r4, r6",
        "adr.w r6, 3f",
        "add r4, r6, r4, lsr #3",
        "orr r4, r4, #1",
        "strd r5, r4, [sp]",
        "2:",
        "ldrd r0, r2, [sp]",
        "ldm.w lr, {{r4-r7}}",
        "bx r2",
        ".balign 4",
        "3:",
        ".rept 6",
        ".if {aligned}",
        "ldm.n r1!, {{r2, r3}}",
        four_columns!("r2"),
        four_columns!("r3"),
        ".else",
        "ldr r2, [r1], #4",
        four_columns!("r2"),
        "ldr r2, [r1], #4",
        four_columns!("r2"),
        ".endif",
        ".endr",
        "ldr r2, [sp, #8]",
        "cmp r0, r2",
        "bne.w 3b",
        "ldrd r2, r3, [sp, #12]",
        "stm.w lr!, {{r4-r7}}",
        "add r1, r1, r3",
        "cmp lr, r2",
        "bne.w 2b",
        "add sp, sp, #20",
        "pop {{r4-r11, pc}}",
        aligned = const ALIGNED as usize,
        rows = const ROWS,
        // Bytes of the code of eight columns: the loads of weights are 2 or twice 4; then 4 each, 4 times two and four times the rows.
        code = const if ALIGNED { 2 } else { 8 } + 16 + 4 * (4 + 4 * ROWS),
    )
}

/// Arranges two rows of whole fours of columns: pairs of the even, then of the odd columns, a row beside the other.
///
/// # Safety
/// `fours` is not 0; `4 * fours` bytes of each row to read, `4 * fours` words to write.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn arrange_two(first: *const i8, second: *const i8, out: *mut i32, fours: usize) {
    macro_rules! four {
        () => {
            concat!(
                "ldr r12, [r0], #4\n",
                "ldr lr, [r1], #4\n",
                "sxtb16 r4, r12\n",
                "sxtb16 r5, lr\n",
                "sxtb16 r6, r12, ror #8\n",
                "sxtb16 r7, lr, ror #8\n",
                "stm r2!, {{r4-r7}}\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r7, lr}}",
        "adds r3, r3, #1",
        "lsrs r3, r3, #1",
        "bcc 3f", // an odd four goes first
        "2:",
        four!(),
        "3:",
        four!(),
        "subs r3, r3, #1",
        "bne 2b",
        "pop {{r4-r7, pc}}",
    )
}

/// The same of four rows.
///
/// # Safety
/// `fours` is not 0; `4 * fours` bytes of each row to read, `8 * fours` words to write.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn arrange_four(rows: &[*const i8; 4], out: *mut i32, fours: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "mov r4, r1",
        "mov r5, r2",
        "ldm r0, {{r0-r3}}",
        "2:",
        "ldr r6, [r0], #4",
        "ldr r7, [r1], #4",
        "ldr r8, [r2], #4",
        "ldr r9, [r3], #4",
        "sxtb16 r10, r6",
        "sxtb16 r11, r7",
        "sxtb16 r12, r8",
        "sxtb16 lr, r9",
        "stm.w r4!, {{r10, r11, r12, lr}}",
        "sxtb16 r6, r6, ror #8",
        "sxtb16 r7, r7, ror #8",
        "sxtb16 r8, r8, ror #8",
        "sxtb16 r9, r9, ror #8",
        "stm.w r4!, {{r6-r9}}",
        "subs r5, r5, #1",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}
