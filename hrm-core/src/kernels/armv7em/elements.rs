//! Element by element: norms, views and group sums, two 16-bit values a register, eight values a pass.

use core::arch::naked_asm;

use crate::kernels::reference::{self, norm_factor, sat16};
use crate::parts::{Broken, Parts};

/// Elements of a pass.
const EIGHT: usize = 8;

/// Whether `LDM` may read them.
#[inline(always)]
fn in_words<T>(x: &[T]) -> bool {
    x.as_ptr().addr().is_multiple_of(4)
}

/// What so many passes leave, which is in the slice as the passes are.
#[inline(always)]
fn behind<T>(x: &[T], passes: usize) -> &[T] {
    x.get(passes * EIGHT..).unwrap_or_default()
}

/// The same, to write.
#[inline(always)]
fn behind_mut<T>(x: &mut [T], passes: usize) -> &mut [T] {
    x.get_mut(passes * EIGHT..).unwrap_or_default()
}

/// int8 views of a slice.
pub fn view8_slice(x: &[i16], m: i16, out: &mut [i8]) {
    let passes = if in_words(x) { x.len().min(out.len()) / EIGHT } else { 0 };
    if passes > 0 {
        // SAFETY: so many elements are there, and the first starts a word.
        unsafe { view_passes(x.as_ptr(), i32::from(m), out.as_mut_ptr(), passes) }
    }
    reference::view8_slice(behind(x, passes), m, behind_mut(out, passes));
}

/// `out = view8(x, m)`.
///
/// # Safety
/// `passes` is not 0; eight elements of each for every pass, those of `x` in whole words.
#[unsafe(naked)]
unsafe extern "C" fn view_passes(x: *const i16, m: i32, out: *mut i8, passes: usize) {
    macro_rules! view {
        ($word:literal) => {
            concat!(
                "smlabb r8, ",
                $word,
                ", r1, r12\n",
                "smlatb r9, ",
                $word,
                ", r1, r12\n",
                "ssat r8, #8, r8, asr #15\n",
                "ssat r9, #8, r9, asr #15\n",
                "strb r8, [r2], #1\n",
                "strb r9, [r2], #1\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r9, lr}}",
        "mov r12, #0x4000",
        "2:",
        "ldm r0!, {{r4-r7}}",
        view!("r4"),
        view!("r5"),
        view!("r6"),
        view!("r7"),
        "subs r3, r3, #1",
        "bne 2b",
        "pop {{r4-r9, pc}}",
    )
}

/// `x <- norm(sat16(x + d))` for each row of `width` elements.
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) -> Result<(), Broken> {
    // Up to 900 elements no normalised value can leave 16 bits: it is at most `1024 sqrt(n)`, within a thousandth.
    if width == 0 || !width.is_multiple_of(EIGHT) || width > 900 || !in_words(x) || !in_words(d) {
        return reference::add_norm(x, d, width);
    }
    let passes = width / EIGHT;
    for (x, d) in x.rows_mut(width)?.zip(d.rows(width)?) {
        // SAFETY: rows of `width` elements, a multiple of 8 that is not 0; the first starts a word, so every row does.
        let sum = unsafe { add_passes(x.as_mut_ptr(), d.as_ptr(), passes) };
        let (r, shift) = norm_factor(sum, width);
        if shift <= SCALED {
            // SAFETY: as above.
            unsafe { scale_passes(x.as_mut_ptr(), passes, i32::from(r) << (SCALED - shift)) }
        } else {
            x.iter_mut().for_each(|x| *x = sat16((i32::from(*x) * i32::from(r) + (1 << (shift - 1))) >> shift));
        }
    }
    Ok(())
}

/// `x = sat16(x + d)`; returns the sum of the squares.
///
/// # Safety
/// `passes` is not 0; eight elements of each for every pass, in whole words.
#[unsafe(naked)]
unsafe extern "C" fn add_passes(x: *mut i16, d: *const i16, passes: usize) -> u64 {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "movs r3, #0",
        "mov r12, r3",
        "2:",
        "ldm r0, {{r4-r7}}",
        "ldm r1!, {{r8-r11}}",
        "qadd16 r4, r4, r8",
        "qadd16 r5, r5, r9",
        "qadd16 r6, r6, r10",
        "qadd16 r7, r7, r11",
        "stm r0!, {{r4-r7}}",
        "smlald r3, r12, r4, r4",
        "smlald r3, r12, r5, r5",
        "smlald r3, r12, r6, r6",
        "smlald r3, r12, r7, r7",
        "subs r2, r2, #1",
        "bne 2b",
        "mov r0, r3",
        "mov r1, r12",
        "pop {{r4-r11, pc}}",
    )
}

/// Right shift of a norm that [`scale_passes`] does: the upper half of a product, and one bit more after the rounding.
const SCALED: u32 = 17;

/// `x = (x * factor + 2^16) >> 17`, which fits 16 bits.
///
/// # Safety
/// `passes` is not 0; eight elements for every pass, in whole words.
#[unsafe(naked)]
unsafe extern "C" fn scale_passes(x: *mut i16, passes: usize, factor: i32) {
    macro_rules! scale {
        ($word:literal) => {
            concat!(
                "smlawb r8, r2, ",
                $word,
                ", r3\n",
                "smlawt r9, r2, ",
                $word,
                ", r3\n",
                "pkhbt ",
                $word,
                ", ",
                $word,
                ", r9, lsl #15\n",
                "pkhtb ",
                $word,
                ", ",
                $word,
                ", r8, asr #1\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r9, lr}}",
        "movs r3, #1",
        "2:",
        "ldm r0, {{r4-r7}}",
        scale!("r4"),
        scale!("r5"),
        scale!("r6"),
        scale!("r7"),
        "stm r0!, {{r4-r7}}",
        "subs r1, r1, #1",
        "bne 2b",
        "pop {{r4-r9, pc}}",
    )
}

/// `x <- sat16(x + d)`.
pub fn add(x: &mut [i16], d: &[i16]) {
    let passes = if in_words(x) && in_words(d) { x.len().min(d.len()) / EIGHT } else { 0 };
    if passes > 0 {
        // SAFETY: so many elements are there, and the first of each starts a word.
        unsafe { add_passes(x.as_mut_ptr(), d.as_ptr(), passes) };
    }
    reference::add(behind_mut(x, passes), behind(d, passes));
}

/// `x <- sat16(x + sat16(h + e))`.
pub fn inject(x: &mut [i16], h: &[i16], e: &[i16]) {
    let passes = if in_words(x) && in_words(h) && in_words(e) { x.len().min(h.len()).min(e.len()) / EIGHT } else { 0 };
    if passes > 0 {
        // SAFETY: so many elements are there, and the first of each starts a word.
        unsafe { inject_passes(x.as_mut_ptr(), h.as_ptr(), e.as_ptr(), passes) };
    }
    reference::inject(behind_mut(x, passes), behind(h, passes), behind(e, passes));
}

/// `x = sat16(x + sat16(h + e))`.
///
/// # Safety
/// `passes` is not 0; eight elements of each for every pass, in whole words.
#[unsafe(naked)]
unsafe extern "C" fn inject_passes(x: *mut i16, h: *const i16, e: *const i16, passes: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "2:",
        "ldm r1!, {{r4-r7}}",
        "ldm r2!, {{r8-r11}}",
        "qadd16 r4, r4, r8",
        "qadd16 r5, r5, r9",
        "qadd16 r6, r6, r10",
        "qadd16 r7, r7, r11",
        "ldm r0, {{r8-r11}}",
        "qadd16 r4, r4, r8",
        "qadd16 r5, r5, r9",
        "qadd16 r6, r6, r10",
        "qadd16 r7, r7, r11",
        "stm r0!, {{r4-r7}}",
        "subs r3, r3, #1",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}

/// `x <- (x + 2^(shift-1)) >> shift`: `SHADD16` halves a sum, `shift - 1` times with nothing and then with 1.
pub fn scale_down(x: &mut [i16], shift: u32) {
    let passes = if in_words(x) && shift <= 4 { x.len() / EIGHT } else { 0 };
    if passes > 0 {
        for done in 1..=shift {
            // SAFETY: so many elements are there, and the first starts a word.
            unsafe { halve_passes(x.as_mut_ptr(), passes, if done == shift { 0x0001_0001 } else { 0 }) }
        }
    }
    reference::scale_down(behind_mut(x, passes), shift);
}

/// `x = (x + halves of add) >> 1`.
///
/// # Safety
/// `passes` is not 0; eight elements for every pass, in whole words.
#[unsafe(naked)]
unsafe extern "C" fn halve_passes(x: *mut i16, passes: usize, add: u32) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r7, lr}}",
        "2:",
        "ldm r0, {{r4-r7}}",
        "shadd16 r4, r4, r2",
        "shadd16 r5, r5, r2",
        "shadd16 r6, r6, r2",
        "shadd16 r7, r7, r2",
        "stm r0!, {{r4-r7}}",
        "subs r1, r1, #1",
        "bne 2b",
        "pop {{r4-r7, pc}}",
    )
}

/// Adds each row of `a` (`[R, C]`) to the sums (`[group rows, C]`) of its groups; `index` is `[R, G]`.
pub fn group_sums(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) -> Result<(), Broken> {
    if channels == 0 || !channels.is_multiple_of(EIGHT) || groupings != 4 || !in_words(a) || !in_words(sums) {
        return reference::group_sums(a, channels, index, groupings, sums);
    }
    for (row, groups) in a.rows(channels)?.zip(index.as_chunks::<4>().0) {
        let &[a, b, c, d] = groups;
        // Groupings stand one behind the other, so this is how they come.
        if a < b && b < c && c < d && (usize::from(d) + 1) * channels <= sums.len() {
            let first = sums.as_mut_ptr();
            let at = groups.map(|group| first.wrapping_add(usize::from(group) * channels));
            // SAFETY: the four rows lie in the sums and do not overlap, each starts a word, as `channels` is a multiple of 8: just checked; the
            // row has `channels` bytes and starts a word.
            unsafe { sum_row(row.as_ptr(), channels / EIGHT, &at) };
        } else {
            reference::group_sums(row, channels, groups, groupings, sums)?;
        }
    }
    Ok(())
}

/// Adds a row of bytes to four rows of 16-bit sums.
///
/// # Safety
/// `passes` is not 0; eight elements of each row for every pass, in whole words; the rows do not overlap.
#[unsafe(naked)]
unsafe extern "C" fn sum_row(row: *const i8, passes: usize, sums: &[*mut i16; 4]) {
    macro_rules! widen {
        ($word:literal, $low:literal, $high:literal) => {
            concat!(
                "sxtb16 ",
                $low,
                ", ",
                $word,
                "\n",
                "sxtb16 ",
                $word,
                ", ",
                $word,
                ", ror #8\n",
                "pkhtb ",
                $high,
                ", ",
                $word,
                ", ",
                $low,
                ", asr #16\n",
                "pkhbt ",
                $low,
                ", ",
                $low,
                ", ",
                $word,
                ", lsl #16\n",
            )
        };
    }
    macro_rules! add {
        ($to:literal) => {
            concat!(
                "ldm.w ",
                $to,
                ", {{r10, r11, r12, lr}}\n",
                "sadd16 r10, r10, r6\n",
                "sadd16 r11, r11, r7\n",
                "sadd16 r12, r12, r8\n",
                "sadd16 lr, lr, r9\n",
                "stm.w ",
                $to,
                "!, {{r10, r11, r12, lr}}\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "ldm r2, {{r2, r3, r4, r5}}",
        "2:",
        "ldrd r10, r11, [r0], #8",
        widen!("r10", "r6", "r7"),
        widen!("r11", "r8", "r9"),
        add!("r2"),
        add!("r3"),
        add!("r4"),
        add!("r5"),
        "subs r1, r1, #1",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}
