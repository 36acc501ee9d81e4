//! Whole rows of sums: how they start, and what is made of them. The sums of a row stand four channels at a time in one place, or, with
//! weights in place, every channel's at [`place`].

use core::arch::naked_asm;

use crate::kernels::tiled::CHUNK;

/// Bytes between the sums of two channels of one row, and from one four of channels to the next: `[N / 4][2 rows][4]`, or `[N][4 rows]` with
/// weights in place.
pub(super) const fn distances(in_place: bool) -> (usize, usize) {
    if in_place { (16, 64) } else { (4, 32) }
}

/// `LDM r0` of the sums of four channels.
macro_rules! load_four {
    ($a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            ".if {in_place}\nldr ",
            $a,
            ", [r0]\nldr ",
            $b,
            ", [r0, #16]\nldr ",
            $c,
            ", [r0, #32]\nldr ",
            $d,
            ", [r0, #48]\n.else\nldm.w r0, {{",
            $a,
            ", ",
            $b,
            ", ",
            $c,
            ", ",
            $d,
            "}}\n.endif\n",
        )
    };
}

/// `STM` of them at a register.
macro_rules! store_four {
    ($to:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            ".if {in_place}\nstr ",
            $a,
            ", [",
            $to,
            "]\nstr ",
            $b,
            ", [",
            $to,
            ", #16]\nstr ",
            $c,
            ", [",
            $to,
            ", #32]\nstr ",
            $d,
            ", [",
            $to,
            ", #48]\n.else\nstm.w ",
            $to,
            ", {{",
            $a,
            ", ",
            $b,
            ", ",
            $c,
            ", ",
            $d,
            "}}\n.endif\n",
        )
    };
}

/// `out[p][c] = sums[p][c]`, by fours of channels.
///
/// # Safety
/// `panels` is not 0; `sums` has those of a row, `out` `4 * panels` to write.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn copy_panels<const IN_PLACE: bool>(sums: *const i32, out: *mut i32, panels: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r6, lr}}",
        "2:",
        load_four!("r3", "r4", "r5", "r6"),
        "adds r0, r0, #{four}",
        "stm r1!, {{r3-r6}}",
        "subs r2, r2, #1",
        "bne 2b",
        "pop {{r4-r6, pc}}",
        in_place = const IN_PLACE as usize,
        four = const distances(IN_PLACE).1,
    )
}

/// `out[p][c] = requant(sums[p][c], shift, mult[p][c])`, by fours of channels.
///
/// # Safety
/// `panels` is not 0 and `shift` below 32; `sums` has those of a row, `mult` `4 * panels` words to read, `out` `4 * panels`
/// halfwords to write.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn narrow_panels<const IN_PLACE: bool>(
    sums: *const i32,
    mult: *const i32,
    out: *mut i16,
    shift: u32,
    panels: usize,
) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "ldr lr, [sp, #36]",
        "2:",
        load_four!("r4", "r5", "r6", "r7"),
        "adds r0, r0, #{four}",
        "ldm r1!, {{r8-r11}}",
        "lsls r4, r4, r3",
        "lsls r5, r5, r3",
        "lsls r6, r6, r3",
        "lsls r7, r7, r3",
        "smmul r4, r4, r8",
        "smmul r5, r5, r9",
        "smmul r6, r6, r10",
        "smmul r7, r7, r11",
        "ssat r4, #16, r4",
        "ssat r5, #16, r5",
        "ssat r6, #16, r6",
        "ssat r7, #16, r7",
        "pkhbt r4, r4, r5, lsl #16",
        "pkhbt r6, r6, r7, lsl #16",
        "str r4, [r2], #4",
        "str r6, [r2], #4",
        "subs lr, lr, #1",
        "bne 2b",
        "pop {{r4-r11, pc}}",
        in_place = const IN_PLACE as usize,
        four = const distances(IN_PLACE).1,
    )
}

/// What [`hidden_panels`] works on.
#[repr(C)]
pub(super) struct Hidden {
    /// Sums of the gates; those of the ups are a chunk of channels behind them.
    pub sums: *const i32,
    /// Of gates and ups.
    pub mults: [*const i32; 2],
    pub out: *mut i8,
    pub shift: u32,
    /// [`crate::kernels::lines::LINES`] of the gate shift.
    pub lines: *const [i32; 2],
    /// Fours of channels.
    pub fours: usize,
}

/// `out[c] = glu(requant(gate), requant(up))`: see [`crate::kernels::lines::glu`], of which this is the same text; `GATE_SHIFT` is its shift.
/// Unless `SHIFTED` the shift of the sums is 0.
///
/// # Safety
/// The sums are those of `fours` fours of channels of one row, `fours` is not 0; each multiplier has `4 * fours` words to read at a multiple
/// of 4 bytes, `out` `4 * fours` bytes to write.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn hidden_panels<const IN_PLACE: bool, const SHIFTED: bool, const GATE_SHIFT: usize>(what: &Hidden) {
    // r0 sums, r1 and r12 multipliers, r2 out, r3 shift, r5 the line of zero, r6 fours left, lr the half of the last rounding.
    macro_rules! requantise {
        ($to:literal, $mult:literal) => {
            concat!(
                ".if {shifted}\nlsl ",
                $to,
                ", ",
                $to,
                ", r3\n.endif\n",
                "smmul ",
                $to,
                ", ",
                $to,
                ", ",
                $mult,
                "\n",
                "ssat ",
                $to,
                ", #16, ",
                $to,
                "\n"
            )
        };
    }
    macro_rules! hidden {
        ($gate:literal, $up:literal) => {
            concat!(
                "ssat r11, #7, ",
                $gate,
                ", asr #{index}\n",
                "add r11, r5, r11, lsl #3\n",
                "ldrd r10, r11, [r11]\n",
                "mla r10, r11, ",
                $gate,
                ", r10\n",
                "smlatb r10, r10, ",
                $up,
                ", lr\n",
                "ssat r10, #8, r10, asr #15\n",
                "strb r10, [r2], #1\n",
            )
        };
    }
    macro_rules! pair {
        ($first:literal) => {
            concat!(
                ".if {in_place}\nldr r8, [r0, #16*",
                $first,
                "]\nldr r9, [r0, #16*",
                $first,
                "+16]\n.else\nldrd r8, r9, [r0, #4*",
                $first,
                "]\n.endif\n",
                "ldrd r10, r11, [r1], #8\n",
                requantise!("r8", "r10"),
                requantise!("r9", "r11"),
                "ldrd r10, r11, [r12], #8\n",
                ".if {in_place}\nldr r7, [r0, #{ups} + 16*",
                $first,
                "]\nldr r4, [r0, #{ups} + 16*",
                $first,
                " + 16]\n.else\nldrd r7, r4, [r0, #{ups} + 4*",
                $first,
                "]\n.endif\n",
                requantise!("r7", "r10"),
                requantise!("r4", "r11"),
                hidden!("r8", "r7"),
                hidden!("r9", "r4"),
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "ldrd r1, r12, [r0, #4]",
        "ldrd r2, r3, [r0, #12]",
        "ldrd r5, r6, [r0, #20]",
        "add.w r5, r5, #512",
        "ldr r0, [r0]",
        "mov lr, #0x4000",
        "2:",
        pair!("0"),
        pair!("2"),
        "adds r0, r0, #{four}",
        "subs r6, r6, #1",
        "bne.w 2b",
        "pop {{r4-r11, pc}}",
        index = const 7 - GATE_SHIFT,
        shifted = const SHIFTED as usize,
        ups = const CHUNK * distances(IN_PLACE).1 / 4,
        in_place = const IN_PLACE as usize,
        four = const distances(IN_PLACE).1,
    )
}

/// `sums[p][c] = bias[p][c]`, by fours of channels.
///
/// # Safety
/// `panels` is not 0; `bias` has `4 * panels` words to read, `sums` those of a row to write.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn spread_panels<const IN_PLACE: bool>(bias: *const i32, sums: *mut i32, panels: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r6, lr}}",
        "2:",
        "ldm r0!, {{r3-r6}}",
        store_four!("r1", "r3", "r4", "r5", "r6"),
        "adds r1, r1, #{four}",
        "subs r2, r2, #1",
        "bne 2b",
        "pop {{r4-r6, pc}}",
        in_place = const IN_PLACE as usize,
        four = const distances(IN_PLACE).1,
    )
}

/// `sums[p][c] = bias[p][c] + bases[0][p][c] + .. + bases[3][p][c]`, by fours of channels. `UMAAL` with a factor of 1 adds two numbers.
///
/// # Safety
/// `fours` is not 0; `bias` and the four bases have `4 * fours` words to read, `sums` those of a row to write.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn begin_panels<const IN_PLACE: bool>(
    sums: *mut i32,
    bias: *const i32,
    bases: *const *const i32,
    fours: usize,
) {
    macro_rules! two {
        ($next:literal) => {
            concat!(
                "ldrd r4, r5, [r1], #8\n",
                "ldrd r6, r7, [r2], #8\n",
                "ldrd r8, r9, [r3], #8\n",
                "umaal r4, r6, r8, r10\n",
                "umaal r5, r7, r9, r10\n",
                "ldrd r6, r7, [r12], #8\n",
                "ldrd r8, r9, [lr], #8\n",
                "umaal r4, r6, r8, r10\n",
                "umaal r5, r7, r9, r10\n",
                ".if {in_place}\nstr r4, [r0], #16\nstr r5, [r0], #16\n.else\nstrd r4, r5, [r0], #",
                $next,
                "\n.endif\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "mov r11, r3",
        "ldm r2, {{r2, r3, r12, lr}}",
        "mov r10, #1",
        "add r11, r11, #1",
        "lsrs r11, r11, #1",
        "bcc 3f", // an odd four goes first
        "2:",
        two!("8"),
        two!("24"),
        "3:",
        two!("8"),
        two!("24"),
        "subs r11, r11, #1",
        "bne 2b",
        "pop {{r4-r11, pc}}",
        in_place = const IN_PLACE as usize,
    )
}

/// Writes `32 * blocks` zeros: small products are called often enough for the compiler's own loop, a word at a time, to show.
///
/// # Safety
/// `blocks` is not 0; `to` has `32 * blocks` words to write.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn clear_words(to: *mut i32, blocks: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r9, lr}}",
        "movs r2, #0",
        "movs r3, #0",
        "movs r4, #0",
        "movs r5, #0",
        "mov r6, r2",
        "mov r7, r2",
        "mov r8, r2",
        "mov r9, r2",
        "2:",
        "stm r0!, {{r2-r9}}",
        "stm r0!, {{r2-r9}}",
        "stm r0!, {{r2-r9}}",
        "stm r0!, {{r2-r9}}",
        "subs r1, r1, #1",
        "bne 2b",
        "pop {{r4-r9, pc}}",
    )
}
