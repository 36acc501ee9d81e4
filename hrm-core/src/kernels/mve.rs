//! Helium (Cortex-M55, M85), bit-identical to [`super::reference`].
//!
//! `VMLADAVA.S8` adds sixteen products to a general register with an even number: there are eight of those, for a tile of 4 rows by 2
//! channels. Activations are arranged `[K / 16][4][16]`, so one pointer serves the four rows; weights are read in place where `K` is a
//! multiple of 16, else from a copy padded to it. Sums lie row by row, [`CHUNK`] words each, for the vectors of the epilogues. Element-wise
//! loops are tail-predicated: no length is special.
#![allow(unsafe_code)]

use core::arch::naked_asm;
use core::mem::MaybeUninit;

use super::reference::norm_factor;
use super::tiled::{self, CHUNK, MOST_COLUMNS, MOST_SUMS, SILU_LINES, Starts, Tile};
use super::{Bases, Columns, Requant, reference};

pub use super::reference::{add, inject};

const ROWS: usize = 4;
const CHANNELS: usize = 2;
/// Values of a vector of bytes.
const STEP: usize = 16;
/// Steps that the inner loop is unrolled to.
const STEPS: usize = 6;

const _: () = assert!(CHUNK * 4 == 384 && MOST_SUMS == ROWS * CHUNK, "the distance of two rows of sums is written below");

/// Words of the packed form of `n` x `k` weights.
pub const fn packed_words(n: usize, k: usize) -> usize {
    if k.is_multiple_of(STEP) { 0 } else { n * k.next_multiple_of(STEP) / 4 }
}

/// Packs a block of columns into `out`: rows padded with zeros.
pub fn pack(w: &Columns<'_>, out: &mut [i32]) {
    if out.is_empty() {
        return;
    }
    let bytes: &mut [i8] = bytemuck::cast_slice_mut(out);
    for (n, row) in bytes.chunks_exact_mut(w.k.next_multiple_of(STEP)).take(w.n).enumerate() {
        row.fill(0);
        row[..w.k].copy_from_slice(w.row(n));
    }
}

struct Helium;

impl Helium {
    /// First weight of channel `n` and the distance of two channels.
    #[inline(always)]
    fn weights<'a>(w: &Columns<'a>) -> (&'a [i8], usize) {
        if w.k.is_multiple_of(STEP) { w.in_place() } else { (bytemuck::cast_slice(w.packed()), w.k.next_multiple_of(STEP)) }
    }
}

impl Tile for Helium {
    const ROWS: usize = ROWS;
    const CHANNELS: usize = CHANNELS;
    const ONE_RUN: bool = false;
    type Input = i8;
    type Buffer = [i8; ROWS * MOST_COLUMNS];
    const BUFFER: Self::Buffer = [0; ROWS * MOST_COLUMNS];

    #[inline(always)]
    fn clear_input(buffer: &mut MaybeUninit<Self::Buffer>) -> &mut Self::Buffer {
        // SAFETY: the buffer is as long as it is said to be; after the call all of it is initialised, and `i8` has no bad values.
        unsafe {
            clear_words(buffer.as_mut_ptr().cast(), size_of::<Self::Buffer>() / 4);
            buffer.assume_init_mut()
        }
    }

    #[inline(always)]
    fn clear_sums<const N: usize>(buffer: &mut MaybeUninit<[i32; N]>) -> &mut [i32; N] {
        // SAFETY: the buffer has `N` words; after the call all of them are initialised.
        unsafe {
            clear_words(buffer.as_mut_ptr().cast(), N);
            buffer.assume_init_mut()
        }
    }

    #[inline(always)]
    fn zero(sums: &mut [i32], panels: usize) {
        for sums in sums.chunks_exact_mut(CHUNK).take(ROWS) {
            let n = (panels * CHANNELS).min(sums.len());
            // SAFETY: `n` words of the row.
            unsafe { clear_words(sums.as_mut_ptr(), n) }
        }
    }

    fn ready(w: &Columns<'_>) -> bool {
        w.k > 0 && w.n > 0 && w.packed().len() >= packed_words(w.n, w.k)
    }

    #[inline(always)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i8]) {
        for (r, row) in rows.chunks_exact(k).enumerate() {
            let (steps, tail) = row.as_chunks::<STEP>();
            let mut places = out[r * STEP..].chunks_mut(ROWS * STEP);
            for (step, to) in steps.iter().zip(&mut places) {
                to[..STEP].copy_from_slice(step);
            }
            if let Some(to) = places.next().filter(|_| !tail.is_empty()) {
                to[..tail.len()].copy_from_slice(tail);
                to[tail.len()..STEP].fill(0);
            }
        }
    }

    #[inline(always)]
    fn dot(input: &[i8], w: &Columns<'_>, _rows: usize, first: usize, panels: usize, sums: &mut [i32]) {
        let (weights, stride) = Self::weights(w);
        let steps = w.k.div_ceil(STEP);
        // Whole panels, then the last channel alone (its sums stand twice).
        let whole = panels.min((w.n - first) / CHANNELS);
        for (from, panels, second) in [(first, whole, stride), (first + whole * CHANNELS, panels - whole, 0)] {
            if panels == 0 {
                continue;
            }
            for step in (0..steps).step_by(STEPS) {
                let count = STEPS.min(steps - step);
                let sums = &mut sums[from - first..MOST_SUMS];
                let input = &input[step * ROWS * STEP..(step + count) * ROWS * STEP];
                let last = from + panels * CHANNELS - if second == 0 { CHANNELS } else { 1 };
                let weights = &weights[from * stride + step * STEP..last * stride + (step + count) * STEP];
                let what = Dot { sums: sums.as_mut_ptr(), input: input.as_ptr(), weights: weights.as_ptr(), second, stride, count, panels };
                // SAFETY: the slices were just cut to what is read: `count` steps of four rows; `count` steps of every channel from the first
                // to the last. The sums of four rows, 96 words each, hold `2 * panels` channels from this place on.
                unsafe { dot_panels(&what) }
            }
        }
    }

    #[inline(always)]
    fn begin(sums: &mut [i32], row: usize, bias: &[i32], bases: &Starts<'_>) {
        let n = bias.len();
        let sums = &mut sums[row * CHUNK..][..n];
        if let Some(bases) = bases.four().filter(|bases| bases.iter().all(|base| base.len() >= n)) {
            // SAFETY: `n` words of the sums, the bias and each base, just checked.
            unsafe { begin_row(sums.as_mut_ptr(), bias.as_ptr(), &bases.map(<[i32]>::as_ptr), n) }
        } else {
            // SAFETY: `n` words of both.
            unsafe { copy_words(bias.as_ptr(), sums.as_mut_ptr(), n) }
            for base in bases.rows() {
                sums.iter_mut().zip(base).for_each(|(s, b)| *s += b);
            }
        }
    }

    #[inline(always)]
    fn copy(sums: &[i32], row: usize, out: &mut [i32]) {
        let sums = &sums[row * CHUNK..][..out.len()];
        // SAFETY: both have as many words.
        unsafe { copy_words(sums.as_ptr(), out.as_mut_ptr(), sums.len()) }
    }

    #[inline(always)]
    fn narrow(sums: &[i32], row: usize, shift: u32, mult: &[i32], out: &mut [i16]) {
        let n = out.len();
        let (sums, mult) = (&sums[row * CHUNK..][..n], &mult[..n]);
        // SAFETY: three slices of `n` elements.
        unsafe { narrow_row(sums.as_ptr(), mult.as_ptr(), out.as_mut_ptr(), n, shift) }
    }

    #[inline(always)]
    fn hidden(sums: &[i32; 2 * MOST_SUMS], row: usize, shift: u32, mults: [&[i32]; 2], gate_shift: u32, out: &mut [i8]) {
        let n = out.len();
        let (gates, ups) = (&sums[row * CHUNK..][..n], &sums[MOST_SUMS + row * CHUNK..][..n]);
        let what = Hidden {
            gates: gates.as_ptr(),
            ups: ups.as_ptr(),
            mults: mults.map(|m| m[..n].as_ptr()),
            out: out.as_mut_ptr(),
            shift,
            gate_shift,
            starts: SILU_LINES[gate_shift as usize][0].as_ptr(),
            slopes: SILU_LINES[gate_shift as usize][0][1..].as_ptr(),
            all_shifts: -11 - gate_shift as i32,
            n,
        };
        // SAFETY: five slices of `n` elements and a table of 64 pairs, which no index leaves: it comes from at most 8191.
        unsafe { hidden_row(&what) }
    }
}

/// Writes zeros.
///
/// # Safety
/// `to` has `words` words to write.
#[unsafe(naked)]
unsafe extern "C" fn clear_words(to: *mut i32, words: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, lr}}",
        "vmov.i32 q0, #0",
        "wlstp.32 lr, r1, 3f",
        "2:",
        "vstrw.32 q0, [r0], #16",
        "letp lr, 2b",
        "3:",
        "pop {{r4, pc}}",
    )
}

/// Copies words.
///
/// # Safety
/// `words` words to read and to write, which do not overlap.
#[unsafe(naked)]
unsafe extern "C" fn copy_words(from: *const i32, to: *mut i32, words: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, lr}}",
        "wlstp.32 lr, r2, 3f",
        "2:",
        "vldrw.u32 q0, [r0], #16",
        "vstrw.32 q0, [r1], #16",
        "letp lr, 2b",
        "3:",
        "pop {{r4, pc}}",
    )
}

/// What [`dot_panels`] works on.
#[repr(C)]
struct Dot {
    sums: *mut i32,
    input: *const i8,
    weights: *const i8,
    /// Bytes from the first to the second channel of a panel.
    second: usize,
    /// Bytes from one channel to the next.
    stride: usize,
    /// Steps of 16 columns, 1 to 6.
    count: usize,
    panels: usize,
}

/// `sums[r][c] += sum_k input[r][k] * weights[c][k]` for 4 rows, 96 words from one to the next, and two channels a panel.
///
/// # Safety
/// `panels` is not 0, `count` 1 to 6. Input: `count * 64` bytes; weights: `count * 16` bytes of each channel; sums: four rows of
/// `2 * panels` words.
#[unsafe(naked)]
unsafe extern "C" fn dot_panels(what: &Dot) {
    // r1 input, r3 and r5 weights, r7 from the end of a channel to the next, r9 end of the sums, r11 second row of sums; the sums in
    // the even registers. On the stack: 0 input, 4 entry, 8 second, 12 stride.
    macro_rules! step {
        () => {
            concat!(
                "vldrb.u8 q0, [r1], #16\n",
                "vldrb.u8 q4, [r3], #16\n",
                "vmladava.s8 r0, q0, q4\n",
                "vldrb.u8 q5, [r5], #16\n",
                "vmladava.s8 r2, q0, q5\n",
                "vldrb.u8 q1, [r1], #16\n",
                "vmladava.s8 r4, q1, q4\n",
                "vmladava.s8 r6, q1, q5\n",
                "vldrb.u8 q2, [r1], #16\n",
                "vmladava.s8 r8, q2, q4\n",
                "vmladava.s8 r10, q2, q5\n",
                "vldrb.u8 q3, [r1], #16\n",
                "vmladava.s8 r12, q3, q4\n",
                "vmladava.s8 lr, q3, q5\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #20",
        "vpush {{d8-d11}}",
        "ldr r11, [r0]",
        "ldr r1, [r0, #4]",
        "ldr r3, [r0, #8]",
        "ldr r5, [r0, #12]",
        "ldr r7, [r0, #16]",
        "ldr r9, [r0, #20]",
        "ldr r12, [r0, #24]",
        "str r1, [sp, #32]",
        "strd r5, r7, [sp, #40]",
        "add r5, r3, r5",
        "sub.w r7, r7, r9, lsl #4",
        "rsb r2, r9, #6",
        "movs r4, #56", // bytes of the code of one step
        "mul r2, r2, r4",
        "adr.w r4, 3f",
        "add r2, r2, r4",
        "orr r2, r2, #1",
        "str r2, [sp, #36]",
        "add.w r9, r11, r12, lsl #3",
        "add.w r9, r9, #384",
        "add.w r11, r11, #384",
        "2:",
        "ldr r1, [sp, #32]",
        "ldrd r0, r2, [r11, #-384]",
        "ldrd r4, r6, [r11]",
        "ldrd r8, r10, [r11, #384]",
        "ldrd r12, lr, [r11, #768]",
        "ldr pc, [sp, #36]",
        ".balign 4",
        "3:",
        step!(),
        step!(),
        step!(),
        step!(),
        step!(),
        step!(),
        "strd r0, r2, [r11, #-384]",
        "strd r4, r6, [r11]",
        "strd r8, r10, [r11, #384]",
        "strd r12, lr, [r11, #768]",
        "add.w r11, r11, #8",
        "ldr r1, [sp, #40]",
        "add r3, r5, r7",
        "add r5, r3, r1",
        "cmp r11, r9",
        "bne.w 2b",
        "vpop {{d8-d11}}",
        "add sp, sp, #20",
        "pop {{r4-r11, pc}}",
    )
}

/// `sums[c] = bias[c] + bases[0][c] + .. + bases[3][c]`.
///
/// # Safety
/// `n` words each.
#[unsafe(naked)]
unsafe extern "C" fn begin_row(sums: *mut i32, bias: *const i32, bases: &[*const i32; 4], n: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r6, lr}}",
        "ldm r2, {{r2, r4, r5, r6}}",
        "wlstp.32 lr, r3, 3f",
        "2:",
        "vldrw.u32 q0, [r1], #16",
        "vldrw.u32 q1, [r2], #16",
        "vadd.i32 q0, q0, q1",
        "vldrw.u32 q1, [r4], #16",
        "vadd.i32 q0, q0, q1",
        "vldrw.u32 q1, [r5], #16",
        "vadd.i32 q0, q0, q1",
        "vldrw.u32 q1, [r6], #16",
        "vadd.i32 q0, q0, q1",
        "vstrw.32 q0, [r0], #16",
        "letp lr, 2b",
        "3:",
        "pop {{r4-r6, pc}}",
    )
}

/// `out[c] = requant(sums[c], shift, mult[c])`.
///
/// # Safety
/// `n` elements each.
#[unsafe(naked)]
unsafe extern "C" fn narrow_row(sums: *const i32, mult: *const i32, out: *mut i16, n: usize, shift: u32) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, lr}}",
        "ldr r4, [sp, #8]",
        "wlstp.32 lr, r3, 3f",
        "2:",
        "vldrw.u32 q0, [r0], #16",
        "vldrw.u32 q1, [r1], #16",
        "vshl.s32 q0, r4",
        "vmulh.s32 q0, q0, q1",
        "vqmovnb.s32 q0, q0",
        "vstrh.32 q0, [r2], #8",
        "letp lr, 2b",
        "3:",
        "pop {{r4, pc}}",
    )
}

/// What [`hidden_row`] works on.
#[repr(C)]
struct Hidden {
    gates: *const i32,
    ups: *const i32,
    mults: [*const i32; 2],
    out: *mut i8,
    shift: u32,
    gate_shift: u32,
    starts: *const i32,
    slopes: *const i32,
    /// `-(11 + gate_shift)`.
    all_shifts: i32,
    n: usize,
}

/// `out[c] = glu(requant(gate), requant(up))`: see [`tiled::glu`], of which this is the same text.
///
/// # Safety
/// `n` elements of gates, ups, multipliers and `out`; 64 pairs in the table.
#[unsafe(naked)]
unsafe extern "C" fn hidden_row(what: &Hidden) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #4",
        "vpush {{d8-d15}}",
        "ldr r1, [r0, #4]",
        "ldr r2, [r0, #8]",
        "ldr r3, [r0, #12]",
        "ldr r4, [r0, #16]",
        "ldr r5, [r0, #20]",
        "ldr r6, [r0, #24]",
        "ldr r7, [r0, #28]",
        "ldr r8, [r0, #32]",
        "ldr r9, [r0, #36]",
        "ldr r10, [r0, #40]",
        "ldr r0, [r0]",
        "movw r11, #8191",
        "vdup.32 q6, r11",
        "vmov.i32 q7, #0",
        "wlstp.32 lr, r10, 3f",
        "2:",
        "vldrw.u32 q0, [r0], #16",
        "vldrw.u32 q1, [r2], #16",
        "vshl.s32 q0, r5",
        "vmulh.s32 q0, q0, q1",
        "vldrw.u32 q1, [r1], #16",
        "vldrw.u32 q2, [r3], #16",
        "vqmovnb.s32 q0, q0",
        "vmovlb.s16 q0, q0",
        "vshl.s32 q1, r5",
        "vmulh.s32 q1, q1, q2",
        "vabs.s32 q2, q0",
        "vshl.u32 q2, r6",
        "vmin.u32 q2, q2, q6",
        "vshr.u32 q3, q2, #6",
        "vbic.i32 q3, #1",
        "vldrw.u32 q4, [r7, q3, uxtw #2]",
        "vldrw.u32 q5, [r8, q3, uxtw #2]",
        "vqmovnb.s32 q1, q1",
        "vmovlb.s16 q1, q1",
        "vmul.i32 q5, q5, q2",
        "vadd.i32 q4, q4, q5",
        "vmax.s32 q0, q0, q7",
        "vshl.s32 q4, r9",
        "vadd.i32 q0, q0, q4",
        "vmul.i32 q0, q0, q1",
        "vrshr.s32 q0, q0, #15",
        "vqmovnb.s32 q0, q0",
        "vqmovnb.s16 q0, q0",
        "vstrb.32 q0, [r4], #4",
        "letp lr, 2b",
        "3:",
        "vpop {{d8-d15}}",
        "add sp, sp, #4",
        "pop {{r4-r11, pc}}",
    )
}

/// `x = sat16(x + d)`; returns the sum of the squares.
///
/// # Safety
/// `n` elements each.
#[unsafe(naked)]
unsafe extern "C" fn add_row(x: *mut i16, d: *const i16, n: usize) -> u64 {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, r5, r6, lr}}",
        "movs r4, #0",
        "movs r5, #0",
        "wlstp.16 lr, r2, 3f",
        "2:",
        "vldrh.u16 q0, [r0]",
        "vldrh.u16 q1, [r1], #16",
        "vqadd.s16 q0, q0, q1",
        "vmlaldava.s16 r4, r5, q0, q0",
        "vstrh.16 q0, [r0], #16",
        "letp lr, 2b",
        "3:",
        "mov r0, r4",
        "mov r1, r5",
        "pop {{r4, r5, r6, pc}}",
    )
}

/// `x = sat16((x * factor + 2^(shift - 1)) >> shift)` with `right` = `-shift`.
///
/// # Safety
/// `n` elements.
#[unsafe(naked)]
unsafe extern "C" fn scale_row(x: *mut i16, n: usize, factor: i32, right: i32) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, lr}}",
        "wlstp.32 lr, r1, 3f",
        "2:",
        "vldrh.s32 q0, [r0]",
        "vmul.i32 q0, q0, r2",
        "vrshl.s32 q0, r3",
        "vqmovnb.s32 q0, q0",
        "vstrh.32 q0, [r0], #8",
        "letp lr, 2b",
        "3:",
        "pop {{r4, pc}}",
    )
}

/// `x <- norm(sat16(x + d))` for each row of `width` elements.
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) {
    for (x, d) in x.chunks_exact_mut(width).zip(d.chunks_exact(width)) {
        // SAFETY: both have `width` elements.
        let sum = unsafe { add_row(x.as_mut_ptr(), d.as_ptr(), width) };
        let (r, shift) = norm_factor(sum, width);
        // SAFETY: as above.
        unsafe { scale_row(x.as_mut_ptr(), width, i32::from(r), -(shift as i32)) }
    }
}

/// `x <- (x + 2^(shift-1)) >> shift`.
pub fn scale_down(x: &mut [i16], shift: u32) {
    if shift > 0 {
        // SAFETY: as many elements as there are.
        unsafe { scale_down_row(x.as_mut_ptr(), x.len(), -(shift as i32)) }
    }
}

/// `x = (x + 2^(shift - 1)) >> shift` with `right` = `-shift`.
///
/// # Safety
/// `n` elements.
#[unsafe(naked)]
unsafe extern "C" fn scale_down_row(x: *mut i16, n: usize, right: i32) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, lr}}",
        "wlstp.16 lr, r1, 3f",
        "2:",
        "vldrh.u16 q0, [r0]",
        "vrshl.s16 q0, r2",
        "vstrh.16 q0, [r0], #16",
        "letp lr, 2b",
        "3:",
        "pop {{r4, pc}}",
    )
}

/// int8 views of a slice.
pub fn view8_slice(x: &[i16], m: i16, out: &mut [i8]) {
    // SAFETY: as many elements as both have.
    unsafe { view_row(x.as_ptr(), i32::from(m), out.as_mut_ptr(), x.len().min(out.len())) }
}

/// `out = view8(x, m)`; `VQRDMULH` is the view's multiply, round and shift, and cannot saturate as `m` is positive.
///
/// # Safety
/// `n` elements each.
#[unsafe(naked)]
unsafe extern "C" fn view_row(x: *const i16, m: i32, out: *mut i8, n: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, lr}}",
        "wlstp.16 lr, r3, 3f",
        "2:",
        "vldrh.u16 q0, [r0], #16",
        "vqrdmulh.s16 q0, q0, r1",
        "vqmovnb.s16 q0, q0",
        "vstrb.16 q0, [r2], #8",
        "letp lr, 2b",
        "3:",
        "pop {{r4, pc}}",
    )
}

/// Hidden values of the gated MLP.
pub fn glu_rows(gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) {
    reference::glu_rows(gate_up, inner, shift, out);
}

/// `sums += row`, element by element.
///
/// # Safety
/// `n` elements each.
#[unsafe(naked)]
unsafe extern "C" fn sum_row(row: *const i8, sums: *mut i16, n: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, lr}}",
        "wlstp.16 lr, r2, 3f",
        "2:",
        "vldrb.s16 q0, [r0], #8",
        "vldrh.u16 q1, [r1]",
        "vadd.i16 q1, q1, q0",
        "vstrh.16 q1, [r1], #16",
        "letp lr, 2b",
        "3:",
        "pop {{r4, pc}}",
    )
}

/// [`sum_row`] for four rows of sums.
///
/// # Safety
/// `n` elements each; the sums do not overlap.
#[unsafe(naked)]
unsafe extern "C" fn sum_row_4(row: *const i8, sums: &[*mut i16; 4], n: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r6, lr}}",
        "ldm r1, {{r3, r4, r5, r6}}",
        "wlstp.16 lr, r2, 3f",
        "2:",
        "vldrb.s16 q0, [r0], #8",
        "vldrh.u16 q1, [r3]",
        "vadd.i16 q1, q1, q0",
        "vldrh.u16 q2, [r4]",
        "vstrh.16 q1, [r3], #16",
        "vadd.i16 q2, q2, q0",
        "vldrh.u16 q1, [r5]",
        "vstrh.16 q2, [r4], #16",
        "vadd.i16 q1, q1, q0",
        "vldrh.u16 q2, [r6]",
        "vstrh.16 q1, [r5], #16",
        "vadd.i16 q2, q2, q0",
        "vstrh.16 q2, [r6], #16",
        "letp lr, 2b",
        "3:",
        "pop {{r4-r6, pc}}",
    )
}

/// Adds each row of `a` (`[R, C]`) to the sums (`[group rows, C]`) of its groups; `index` is `[R, G]`.
pub fn group_sums(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) {
    for (row, groups) in a.chunks_exact(channels).zip(index.chunks_exact(groupings)) {
        if let &[a, b, c, d] = groups {
            let at = [a, b, c, d].map(|group| usize::from(group) * channels);
            let distinct = a != b && a != c && a != d && b != c && b != d && c != d;
            if distinct && at.iter().all(|at| at + channels <= sums.len()) {
                let first = sums.as_mut_ptr();
                // SAFETY: the four rows lie in the sums and do not overlap, as was just seen; the row has `channels` bytes.
                unsafe { sum_row_4(row.as_ptr(), &at.map(|at| first.add(at)), channels) };
                continue;
            }
        }
        for &group in groups {
            let sums = &mut sums[usize::from(group) * channels..][..channels];
            // SAFETY: both have `channels` elements.
            unsafe { sum_row(row.as_ptr(), sums.as_mut_ptr(), channels) }
        }
    }
}

/// `out[r][n] = sum_k a[r][k] * w[n][k]`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, out: &mut [i32]) {
    tiled::accumulate::<Helium>(a, w, out);
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) {
    tiled::project::<Helium>(a, w, q, bases, out);
}

/// [`project`], then the hidden values of the gated MLP.
pub fn gated(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, shift: u32, gate_up: &mut [i16], out: &mut [i8]) {
    tiled::gated::<Helium>(a, w, q, bases, shift, gate_up, out);
}
