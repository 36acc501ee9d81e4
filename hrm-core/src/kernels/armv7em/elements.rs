//! Element by element: norms, views and group sums, two 16-bit values a register.

use core::arch::{asm, naked_asm};

use crate::kernels::reference::{self, norm_factor};

/// Two 16-bit additions, each saturating.
#[inline(always)]
fn qadd16(a: u32, b: u32) -> u32 {
    let sum;
    // SAFETY: an instruction on registers.
    unsafe { asm!("qadd16 {0}, {1}, {2}", lateout(reg) sum, in(reg) a, in(reg) b, options(pure, nomem, nostack, preserves_flags)) }
    sum
}

/// Two 16-bit additions, each wrapping.
#[inline(always)]
fn sadd16(a: u32, b: u32) -> u32 {
    let sum;
    // SAFETY: an instruction on registers. It sets the GE bits, which nothing here reads and the compiler does not keep.
    unsafe { asm!("sadd16 {0}, {1}, {2}", lateout(reg) sum, in(reg) a, in(reg) b, options(pure, nomem, nostack)) }
    sum
}

/// `sum + low(a) * low(a) + high(a) * high(a)`, signed.
#[inline(always)]
fn add_squares(sum: u64, a: u32) -> u64 {
    let (mut low, mut high) = (sum as u32, (sum >> 32) as u32);
    // SAFETY: an instruction on registers.
    unsafe { asm!("smlald {0}, {1}, {2}, {2}", inout(reg) low, inout(reg) high, in(reg) a, options(pure, nomem, nostack, preserves_flags)) }
    u64::from(high) << 32 | u64::from(low)
}

/// `low(a) * low(b) + c` and `high(a) * low(b) + c`, signed.
#[inline(always)]
fn multiply_both(a: u32, b: i32, c: i32) -> (i32, i32) {
    let (low, high);
    // SAFETY: instructions on registers. They may set the Q flag, which nothing reads.
    unsafe {
        asm!("smlabb {0}, {2}, {3}, {4}", "smlatb {1}, {2}, {3}, {4}", out(reg) low, lateout(reg) high, in(reg) a, in(reg) b, in(reg) c,
            options(pure, nomem, nostack));
    }
    (low, high)
}

#[inline(always)]
const fn pack_pair(low: i32, high: i32) -> u32 {
    low as u32 & 0xffff | (high as u32) << 16
}

/// int8 views of a slice: two at a time through the upper half of a product with `m << 17`.
pub fn view8_slice(x: &[i16], m: i16, out: &mut [i8]) {
    reference::view8_slice(x, m, out);
}

/// `x <- norm(sat16(x + d))` for each row of `width` elements.
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) {
    // Up to 900 elements no normalised value can leave 16 bits: it is at most `1024 sqrt(n)`, within a thousandth.
    if !width.is_multiple_of(2) || width > 900 {
        return reference::add_norm(x, d, width);
    }
    for (x, d) in x.chunks_exact_mut(width).zip(d.chunks_exact(width)) {
        let mut sum = 0;
        let (pairs, _) = x.as_chunks_mut::<2>();
        for (x, d) in pairs.iter_mut().zip(d.as_chunks::<2>().0) {
            let word = qadd16(word_of(*x), word_of(*d));
            *x = pair_in(word);
            sum = add_squares(sum, word);
        }
        let (r, shift) = norm_factor(sum, width);
        let (r, half) = (i32::from(r), 1 << (shift - 1));
        for x in pairs {
            let (low, high) = multiply_both(word_of(*x), r, half);
            *x = pair_in(pack_pair(low >> (shift & 31), high >> (shift & 31)));
        }
    }
}

#[inline(always)]
const fn word_of([low, high]: [i16; 2]) -> u32 {
    low as u16 as u32 | (high as u16 as u32) << 16
}

#[inline(always)]
const fn pair_in(word: u32) -> [i16; 2] {
    [word as i16, (word >> 16) as i16]
}

/// Adds each row of `a` (`[R, C]`) to the sums (`[group rows, C]`) of its groups; `index` is `[R, G]`.
pub fn group_sums(a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) {
    if !channels.is_multiple_of(4) {
        return reference::group_sums(a, channels, index, groupings, sums);
    }
    for (row, groups) in a.chunks_exact(channels).zip(index.chunks_exact(groupings)) {
        if let &[a, b, c, d] = groups {
            let at = [a, b, c, d].map(|group| usize::from(group) * channels);
            let distinct = a != b && a != c && a != d && b != c && b != d && c != d;
            let aligned = sums.as_ptr().addr().is_multiple_of(4);
            if channels > 0 && distinct && aligned && at.iter().all(|at| at + channels <= sums.len()) {
                let first = sums.as_mut_ptr();
                // SAFETY: the four rows lie in the sums and do not overlap, and each starts at a multiple of 4 bytes, as `channels` is one of
                // 4: just checked; the row has `channels` bytes.
                unsafe { sum_row(row.as_ptr(), channels / 4, &at.map(|at| first.add(at))) };
                continue;
            }
        }
        for &group in groups {
            let at = usize::from(group) * channels;
            let (sums, _) = sums[at..at + channels].as_chunks_mut::<4>();
            for (sums, &bytes) in sums.iter_mut().zip(row.as_chunks::<4>().0) {
                let [low, high] = widen(bytes);
                let (a, b) = (sadd16(word_of([sums[0], sums[1]]), low), sadd16(word_of([sums[2], sums[3]]), high));
                ([sums[0], sums[1]], [sums[2], sums[3]]) = (pair_in(a), pair_in(b));
            }
        }
    }
}

/// Adds a row of `4 * quads` bytes to four rows of 16-bit sums.
///
/// # Safety
/// `quads` is not 0; the row can be read, the sums read and written; they do not overlap, and each starts at a multiple of 4 bytes.
#[unsafe(naked)]
unsafe extern "C" fn sum_row(row: *const i8, quads: usize, sums: &[*mut i16; 4]) {
    macro_rules! add {
        ($to:literal) => {
            concat!("ldrd r8, r9, [", $to, "]\n", "sadd16 r8, r8, r6\n", "sadd16 r9, r9, r7\n", "strd r8, r9, [", $to, "], #8\n")
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r9, lr}}",
        "ldm r2, {{r2, r3, r4, r5}}",
        "2:",
        "ldr r12, [r0], #4",
        "sxtb16 r6, r12",
        "sxtb16 r12, r12, ror #8",
        "pkhtb r7, r12, r6, asr #16",
        "pkhbt r6, r6, r12, lsl #16",
        add!("r2"),
        add!("r3"),
        add!("r4"),
        add!("r5"),
        "subs r1, r1, #1",
        "bne 2b",
        "pop {{r4-r9, pc}}",
    )
}

/// Four bytes as two pairs of 16-bit values: the even ones and the odd ones.
#[inline(always)]
pub(super) fn even_odd(bytes: [i8; 4]) -> [u32; 2] {
    let word = u32::from_le_bytes(bytes.map(|b| b as u8));
    let (even, odd);
    // SAFETY: instructions on registers.
    unsafe {
        asm!("sxtb16 {e}, {w}", "sxtb16 {o}, {w}, ror #8", w = in(reg) word, e = out(reg) even, o = lateout(reg) odd,
            options(pure, nomem, nostack, preserves_flags));
    }
    [even, odd]
}

/// Four bytes as two pairs of 16-bit values.
#[inline(always)]
pub(super) fn widen(bytes: [i8; 4]) -> [u32; 2] {
    let word = u32::from_le_bytes(bytes.map(|b| b as u8));
    let (low, high);
    // SAFETY: instructions on registers.
    unsafe {
        asm!("sxtb16 {t}, {w}", "sxtb16 {h}, {w}, ror #8", "pkhbt {l}, {t}, {h}, lsl #16", "pkhtb {h}, {h}, {t}, asr #16",
            w = in(reg) word, t = out(reg) _, l = out(reg) low, h = out(reg) high, options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}
