//! The inner loop: products of two rows of activations with the weights of four channels.

use core::arch::naked_asm;

/// Values of a vector of bytes.
pub(super) const STEP: usize = 16;
/// Steps of a pass: those of two rows fill six of the eight vector registers.
pub(super) const STEPS: usize = 3;
/// Channels of a pass: their sums of two rows fill the eight general registers with an even number.
pub(super) const FOUR: usize = 4;

/// What a pass works on.
#[repr(C)]
pub(super) struct Dot {
    pub sums: [*mut i32; 2],
    /// What the sums start with, if the pass is one that reads it.
    pub starts: [*const i32; 2],
    pub rows: [*const i8; 2],
    pub weights: *const i8,
    /// Bytes from one channel to the next.
    pub stride: usize,
    pub fours: usize,
}

/// Passes over 1 to [`STEPS`] steps of columns that go on with the sums, that start at [`Dot::starts`], and that start at 0.
pub(super) static PASSES: [[unsafe extern "C" fn(&Dot); STEPS]; 3] = [
    [dot_fours::<1, GO_ON>, dot_fours::<2, GO_ON>, dot_fours::<3, GO_ON>],
    [dot_fours::<1, START>, dot_fours::<2, START>, dot_fours::<3, START>],
    [dot_fours::<1, FRESH>, dot_fours::<2, FRESH>, dot_fours::<3, FRESH>],
];
/// Their places.
pub(super) const GO_ON: usize = 0;
pub(super) const START: usize = 1;
pub(super) const FRESH: usize = 2;

/// `sums[r][c] = first + sum_k rows[r][k] * weights[c][k]` over `STEPS` steps of columns (1 to 3), where `first` is the sum itself, the start,
/// or 0.
///
/// # Safety
/// `fours` is not 0. Rows: `16 * STEPS` bytes; weights: as many of `4 * fours` channels, `stride` bytes from one to the next; sums: `4 * fours`
/// words each, and if `FROM` is [`START`] so many of the starts. The two rows of sums may be one and the same if those of activations and
/// starts are.
#[unsafe(naked)]
unsafe extern "C" fn dot_fours<const STEPS: usize, const FROM: usize>(what: &Dot) {
    // Activations in q0-q2 and q3-q5, weights in q6 and q7. r1 weights, r3 stride, r5 and r7 rows of sums, r9 the end of the first. Sums of
    // the first row in r0-r6, of the second in r8-r14, those with an even number. Where there are starts, in r9 and r11, that end is on the
    // stack.
    macro_rules! channel {
        ($first:literal, $second:literal) => {
            concat!(
                "vldrb.u8 q6, [r1]\n",
                ".if {steps} > 1\nvldrb.u8 q7, [r1, #16]\n.endif\n",
                ".if {from} == 2\n",
                "vmladav.s8 ",
                $first,
                ", q0, q6\nvmladav.s8 ",
                $second,
                ", q3, q6\n.else\nvmladava.s8 ",
                $first,
                ", q0, q6\nvmladava.s8 ",
                $second,
                ", q3, q6\n.endif\n",
                ".if {steps} > 2\nvldrb.u8 q6, [r1, #32]\n.endif\n",
                ".if {steps} > 1\nvmladava.s8 ",
                $first,
                ", q1, q7\nvmladava.s8 ",
                $second,
                ", q4, q7\n.endif\n",
                ".if {steps} > 2\nvmladava.s8 ",
                $first,
                ", q2, q6\nvmladava.s8 ",
                $second,
                ", q5, q6\n.endif\n",
                "add r1, r1, r3\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #4",
        "vpush {{d8-d15}}",
        "ldrd r5, r7, [r0]",
        "ldrd r9, r11, [r0, #8]",
        "ldrd r2, r4, [r0, #16]",
        "ldrd r1, r3, [r0, #24]",
        "ldr r6, [r0, #32]",
        "add r6, r5, r6, lsl #4",
        ".if {from} == 1\nstr r6, [sp, #64]\n.else\nmov r9, r6\n.endif",
        "vldrb.u8 q0, [r2]",
        "vldrb.u8 q3, [r4]",
        ".if {steps} > 1\nvldrb.u8 q1, [r2, #16]\nvldrb.u8 q4, [r4, #16]\n.endif",
        ".if {steps} > 2\nvldrb.u8 q2, [r2, #32]\nvldrb.u8 q5, [r4, #32]\n.endif",
        "2:",
        ".if {from} == 0\nldm.w r5, {{r0, r2, r4, r6}}\nldm.w r7, {{r8, r10, r12, lr}}\n.endif",
        ".if {from} == 1\nldm.w r9!, {{r0, r2, r4, r6}}\nldm.w r11!, {{r8, r10, r12, lr}}\n.endif",
        channel!("r0", "r8"),
        channel!("r2", "r10"),
        channel!("r4", "r12"),
        channel!("r6", "lr"),
        "stm.w r5!, {{r0, r2, r4, r6}}",
        "stm.w r7!, {{r8, r10, r12, lr}}",
        ".if {from} == 1\nldr r0, [sp, #64]\ncmp r5, r0\n.else\ncmp r5, r9\n.endif",
        "bne.w 2b",
        "vpop {{d8-d15}}",
        "add sp, sp, #4",
        "pop {{r4-r11, pc}}",
        steps = const STEPS,
        from = const FROM,
    )
}
