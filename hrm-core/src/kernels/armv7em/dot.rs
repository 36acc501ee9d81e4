//! The inner loops: products of arranged activations and weights, added to sums.

use core::arch::naked_asm;

/// `sums[p][r][c] += sum_k input[k][r] * weights[p][k][c]` over pairs of 16-bit values.
///
/// # Safety
/// `sums` is `panels * 8` words to write, `input` `pairs * 2` and `weights` `panels * pairs * 4` words to read; `pairs` and `panels` are not 0.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn dot_panels(sums: *mut i32, input: *const i32, weights: *const i32, pairs: usize, panels: usize) {
    // The body takes 24 pairs (K = 48 in one pass); the first pass enters it so far in that the rest is whole passes. On the stack:
    // 0 sums, 4 input, 8 end of the weights, 12 entry, 16 passes, 20 passes left; then nine saved registers.
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #24",
        "strd r0, r1, [sp]",
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
        "strd r5, r5, [sp, #16]",
        "subs r5, r5, #1",
        "orrs r5, r5, r6",
        "bne.w 4f",
        // One whole pass a panel: nothing to count.
        "2:",
        "ldrd r12, r1, [sp]",
        "ldm r12, {{r4-r11}}",
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
        "ldr r12, [sp]",
        "ldr r2, [sp, #8]",
        "stm r12!, {{r4-r11}}",
        "str r12, [sp]",
        "cmp r0, r2",
        "bne.w 2b",
        "5:",
        "add sp, sp, #24",
        "pop {{r4-r11, pc}}",
        "4:",
        "ldrd r12, r1, [sp]",
        "ldrd r3, r2, [sp, #12]",
        "str r2, [sp, #20]",
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
        "ldr r2, [sp, #20]",
        "subs r2, r2, #1",
        "str r2, [sp, #20]",
        "bne.w 3b",
        "ldr r12, [sp]",
        "ldr r2, [sp, #8]",
        "stm r12!, {{r4-r11}}",
        "str r12, [sp]",
        "cmp r0, r2",
        "bne.w 4b",
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
