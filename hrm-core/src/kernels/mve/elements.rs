//! Element by element: norms, views and group sums. The loops are tail-predicated: no length is special.

use core::arch::naked_asm;

use crate::kernels::reference::norm_factor;
use crate::parts::{Broken, Parts};

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

/// `x <- sat16(x + d)`.
pub fn add(x: &mut [i16], d: &[i16]) {
    // SAFETY: as many elements as both have.
    unsafe { add_row(x.as_mut_ptr(), d.as_ptr(), x.len().min(d.len())) };
}

/// `x <- sat16(x + sat16(h + e))`.
pub fn inject(x: &mut [i16], h: &[i16], e: &[i16]) {
    // SAFETY: as many elements as all have.
    unsafe { inject_row(x.as_mut_ptr(), h.as_ptr(), e.as_ptr(), x.len().min(h.len()).min(e.len())) }
}

/// `x = sat16(x + sat16(h + e))`.
///
/// # Safety
/// `n` elements each.
#[unsafe(naked)]
unsafe extern "C" fn inject_row(x: *mut i16, h: *const i16, e: *const i16, n: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4, lr}}",
        "wlstp.16 lr, r3, 3f",
        "2:",
        "vldrh.u16 q0, [r1], #16",
        "vldrh.u16 q1, [r2], #16",
        "vqadd.s16 q0, q0, q1",
        "vldrh.u16 q1, [r0]",
        "vqadd.s16 q0, q0, q1",
        "vstrh.16 q0, [r0], #16",
        "letp lr, 2b",
        "3:",
        "pop {{r4, pc}}",
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
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) -> Result<(), Broken> {
    for (x, d) in x.rows_mut(width)?.zip(d.rows(width)?) {
        // SAFETY: both have `width` elements.
        let sum = unsafe { add_row(x.as_mut_ptr(), d.as_ptr(), width) };
        let (r, shift) = norm_factor(sum, width);
        // SAFETY: as above.
        unsafe { scale_row(x.as_mut_ptr(), width, i32::from(r), -(shift as i32)) }
    }
    Ok(())
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
pub fn group_sums(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) -> Result<(), Broken> {
    for (row, groups) in a.rows(channels)?.zip(index.rows(groupings)?) {
        if let Some(&four) = groups.as_array::<4>() {
            let [a, b, c, d] = four;
            // Groupings stand one behind the other, so this is how they come.
            if a < b && b < c && c < d && (usize::from(d) + 1) * channels <= sums.len() {
                let first = sums.as_mut_ptr();
                let sums = four.map(|group| first.wrapping_add(usize::from(group) * channels));
                // SAFETY: the four rows lie in the sums and do not overlap, as was just seen; the row has `channels` bytes.
                unsafe { sum_row_4(row.as_ptr(), &sums, channels) };
                continue;
            }
        }
        for &group in groups {
            let at = usize::from(group) * channels;
            let sums = sums.part_mut(at..at + channels)?;
            // SAFETY: both have `channels` elements.
            unsafe { sum_row(row.as_ptr(), sums.as_mut_ptr(), channels) }
        }
    }
    Ok(())
}
