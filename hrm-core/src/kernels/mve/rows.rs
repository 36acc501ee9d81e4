//! Rows of sums: how they start, and what is made of them.

use core::arch::naked_asm;

use crate::kernels::tiled::CHUNK;

/// What [`begin_two`] works on.
#[repr(C)]
pub(super) struct Begin {
    pub sums: [*mut i32; 2],
    pub bias: *const i32,
    /// Four of each row.
    pub bases: [[*const i32; 4]; 2],
    pub n: usize,
}

/// `sums[r][c] = bias[c] + bases[r][0][c] + .. + bases[r][3][c]` of two rows.
///
/// # Safety
/// `n` words each; the two rows of sums may be one and the same if their bases are.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn begin_two(what: &Begin) {
    macro_rules! row {
        ($sums:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
            concat!(
                "vldrw.u32 q1, [",
                $a,
                "], #16\n",
                "vadd.i32 q1, q1, q0\n",
                "vldrw.u32 q2, [",
                $b,
                "], #16\n",
                "vadd.i32 q1, q1, q2\n",
                "vldrw.u32 q2, [",
                $c,
                "], #16\n",
                "vadd.i32 q1, q1, q2\n",
                "vldrw.u32 q2, [",
                $d,
                "], #16\n",
                "vadd.i32 q1, q1, q2\n",
                "vstrw.32 q1, [",
                $sums,
                "], #16\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "ldr r11, [r0, #44]",
        "ldm r0, {{r0-r10}}",
        "wlstp.32 lr, r11, 3f",
        "2:",
        "vldrw.u32 q0, [r2], #16",
        row!("r0", "r3", "r4", "r5", "r6"),
        row!("r1", "r7", "r8", "r9", "r10"),
        "letp lr, 2b",
        "3:",
        "pop {{r4-r11, pc}}",
    )
}

/// `out[c] = requant(sums[c] + bias[c], shift, mult[c])`.
///
/// # Safety
/// `n` elements each.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn narrow_row(sums: *const i32, bias: *const i32, mult: *const i32, out: *mut i16, n: usize, shift: u32) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, r5, r6, lr}}",
        "ldrd r4, r5, [sp, #16]",
        "wlstp.32 lr, r4, 3f",
        "2:",
        "vldrw.u32 q0, [r0], #16",
        "vldrw.u32 q1, [r1], #16",
        "vadd.i32 q0, q0, q1",
        "vldrw.u32 q1, [r2], #16",
        "vshl.s32 q0, r5",
        "vmulh.s32 q0, q0, q1",
        "vqmovnb.s32 q0, q0",
        "vstrh.32 q0, [r3], #8",
        "letp lr, 2b",
        "3:",
        "pop {{r4, r5, r6, pc}}",
    )
}

/// What [`hidden_eights`] works on.
#[repr(C)]
pub(super) struct Hidden {
    /// Sums of the gates; those of the ups are [`CHUNK`] words behind them.
    pub sums: *const i32,
    /// Of gates and ups.
    pub mults: [*const i32; 2],
    pub out: *mut i8,
    pub shift: u32,
    pub gate_shift: u32,
    /// Values and slopes of the 64 pieces.
    pub tables: [*const i16; 2],
    /// Eights of channels.
    pub eights: usize,
}

/// `out[c] = glu(requant(gate), requant(up))`: see [`crate::kernels::reference::glu`], of which this is the same text in lanes of 16 bits.
/// `VQRDMULH` multiplies, rounds and shifts by 15: the slope by 2^8 times the place in its piece, and silu by up. Unless `SHIFTED` the shift of the sums
/// is 0.
///
/// # Safety
/// `eights` is not 0; `8 * eights` elements of gates, ups, multipliers and `out`; tables of 64, which no index leaves: it comes from at
/// most 8191.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn hidden_eights<const SHIFTED: bool>(what: &Hidden) {
    /// Requantises eight sums at a register, with multipliers at another, into eight halves.
    macro_rules! requantise {
        ($sums:literal, $mults:literal, $to:literal) => {
            concat!(
                "vld20.32 {{q0, q1}}, [",
                $sums,
                "]\n",
                "vld21.32 {{q0, q1}}, [",
                $sums,
                "]!\n",
                "vld20.32 {{q2, q3}}, [",
                $mults,
                "]\n",
                "vld21.32 {{q2, q3}}, [",
                $mults,
                "]!\n",
                ".if {shifted}\nvshl.s32 q0, r5\n.endif\n",
                "vmulh.s32 q0, q0, q2\n",
                ".if {shifted}\nvshl.s32 q1, r5\n.endif\n",
                "vmulh.s32 q1, q1, q3\n",
                "vqmovnb.s32 ",
                $to,
                ", q0\n",
                "vqmovnt.s32 ",
                $to,
                ", q1\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #4",
        "vpush {{d8-d15}}",
        "ldm r0, {{r0, r2, r3, r4, r5, r6, r7, r8, r9}}", // sums, multipliers, out, shift, gate shift, tables, eights
        "add.w r1, r0, #{ups}",
        "rsb r10, r6, #0",
        "movw r11, #8191",
        "lsr r11, r11, r6",
        "vdup.16 q6, r11",
        "vmov.i32 q7, #0",
        "dls lr, r9",
        "2:",
        requantise!("r0", "r2", "q4"),
        requantise!("r1", "r3", "q5"),
        "vabs.s16 q0, q4",
        "vmin.u16 q0, q0, q6",
        "vshl.s16 q0, r6",
        "vshr.u16 q1, q0, #7",
        "vshl.i16 q0, q0, #8",
        "vbic.i16 q0, #0x8000",
        "vldrh.u16 q2, [r7, q1, uxtw #1]",
        "vldrh.u16 q3, [r8, q1, uxtw #1]",
        "vqrdmulh.s16 q3, q3, q0",
        "vadd.i16 q2, q2, q3",
        "vrshr.s16 q2, q2, #4",
        "vrshl.s16 q2, r10",
        "vmax.s16 q4, q4, q7",
        "vqadd.s16 q4, q4, q2",
        "vqrdmulh.s16 q4, q4, q5",
        "vqmovnb.s16 q4, q4",
        "vstrb.16 q4, [r4], #8",
        "le lr, 2b",
        "vpop {{d8-d15}}",
        "add sp, sp, #4",
        "pop {{r4-r11, pc}}",
        ups = const 4 * CHUNK,
        shifted = const SHIFTED as usize,
    )
}
