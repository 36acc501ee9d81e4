//! Cortex-M4, M7 and M33: `SMLAD`, two products an instruction, bit-identical to [`super::reference`].
//!
//! A tile is 2 rows by 4 channels: eight accumulators, two activations and two weights fill the fourteen registers there are. Weights are
//! packed as pairs of 16-bit values, `[N / 4][K / 2][4]` words, so that the inner loop loads and multiplies and does nothing else:
//! 3 `LDM` and 8 `SMLAD` for 16 products.
#![allow(unsafe_code)]

use core::arch::{asm, naked_asm};
use core::mem::MaybeUninit;

use super::reference::norm_factor;
use super::tiled::{self, MOST_COLUMNS, MOST_SUMS, SILU_LINES, Tile};
use super::{Bases, Columns, Requant};

pub use super::reference::{glu_rows, view8_slice};

const CHANNELS: usize = 4;
const ROWS: usize = 2;

pub use super::tiled::{pack_pairs as pack, pair_words as packed_words};

/// `[K / 2][2 rows]` pairs.
struct Smlad;

impl Tile for Smlad {
    const ROWS: usize = ROWS;
    const CHANNELS: usize = CHANNELS;
    type Input = i32;
    type Buffer = [i32; ROWS * MOST_COLUMNS / 2];
    const BUFFER: Self::Buffer = [0; ROWS * MOST_COLUMNS / 2];

    #[inline(always)]
    fn clear_input(buffer: &mut MaybeUninit<Self::Buffer>) -> &mut Self::Buffer {
        Self::clear_sums(buffer)
    }

    #[inline(always)]
    fn clear_sums<const N: usize>(buffer: &mut MaybeUninit<[i32; N]>) -> &mut [i32; N] {
        const { assert!(N % 32 == 0 && N > 0 && MOST_SUMS % 32 == 0) }
        // SAFETY: the buffer has `N` words, a multiple of 32 that is not 0; after the call all of them are initialised.
        unsafe {
            clear_words(buffer.as_mut_ptr().cast(), N / 32);
            buffer.assume_init_mut()
        }
    }

    #[inline(always)]
    fn zero(sums: &mut [i32], panels: usize) {
        let blocks = (panels * ROWS * CHANNELS).div_ceil(32).min(sums.len() / 32);
        if blocks > 0 {
            // SAFETY: so many words are there, as was just seen.
            unsafe { clear_words(sums.as_mut_ptr(), blocks) }
        }
    }

    fn ready(w: &Columns<'_>) -> bool {
        w.k > 0 && w.packed().len() >= packed_words(w.n, w.k)
    }

    #[inline(always)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i32]) {
        // A missing second row is the first again: its sums are not looked at.
        let (first, second) = rows.split_at(k);
        let second = if second.len() < k { first } else { second };
        let (out, rest) = out.split_at_mut(k / 4 * 4);
        let quads = first.as_chunks::<4>().0.iter().zip(second.as_chunks::<4>().0);
        for (to, (&a, &b)) in out.as_chunks_mut::<4>().0.iter_mut().zip(quads) {
            let ([a0, a1], [b0, b1]) = (widen(a), widen(b));
            *to = [a0 as i32, b0 as i32, a1 as i32, b1 as i32];
        }
        let tail = first[k / 4 * 4..].chunks(2).zip(second[k / 4 * 4..].chunks(2));
        for (to, (a, b)) in rest.chunks_exact_mut(2).zip(tail) {
            let pair = |p: &[i8]| tiled::pair_of(p[0], p.get(1).copied().unwrap_or(0));
            to.copy_from_slice(&[pair(a), pair(b)]);
        }
    }

    #[inline(always)]
    fn dot(input: &[i32], w: &Columns<'_>, first: usize, panels: usize, sums: &mut [i32]) {
        let pairs = w.k.div_ceil(2);
        let weights = &w.packed()[first / CHANNELS * CHANNELS * pairs..][..panels * CHANNELS * pairs];
        let (input, sums) = (&input[..2 * pairs], &mut sums[..panels * ROWS * CHANNELS]);
        if panels > 0 && pairs > 0 {
            // SAFETY: the slices were just cut to what the loop reads and writes: `pairs` pairs of two rows, `panels` panels of `pairs`
            // times four words, eight sums a panel; it runs for at least one of each.
            unsafe { dot_panels(sums.as_mut_ptr(), input.as_ptr(), weights.as_ptr(), pairs, panels) }
        }
    }

    #[inline(always)]
    fn begin(sums: &mut [i32], row: usize, bias: &[i32], bases: &[&[i32]]) {
        let n = bias.len();
        let panels = n / CHANNELS;
        let sums = &mut sums[row * CHANNELS..];
        let fits = sums.len() >= (panels * ROWS - row.min(ROWS)) * CHANNELS && bases.iter().all(|b| b.len() >= n);
        match bases {
            &[a, b, c, d] if n > 0 && n.is_multiple_of(CHANNELS) && fits => {
                let bases = [a, b, c, d].map(<[i32]>::as_ptr);
                // SAFETY: bias and bases have `4 * panels` elements, the sums of this row four in each of `panels` panels, all just checked.
                unsafe { begin_panels(sums.as_mut_ptr(), bias.as_ptr(), bases.as_ptr(), panels) }
            }
            [] if n > 0 && n.is_multiple_of(CHANNELS) && fits => {
                // SAFETY: as above, without bases.
                unsafe { spread_panels(bias.as_ptr(), sums.as_mut_ptr(), panels) }
            }
            _ => {
                let whole = sums.chunks_mut(ROWS * CHANNELS);
                for (p, (sums, bias)) in whole.zip(bias.chunks(CHANNELS)).enumerate() {
                    for (c, (sum, &bias)) in sums.iter_mut().zip(bias).enumerate() {
                        *sum = bases.iter().fold(bias, |sum, base| sum + base[p * CHANNELS + c]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn copy(sums: &[i32], row: usize, out: &mut [i32]) {
        match panels_in(sums, row, out.len()) {
            // SAFETY: `panels_in` has seen that the row's sums are there for all of `out`.
            Some((sums, panels)) => unsafe { copy_panels(sums, out.as_mut_ptr(), panels) },
            None => tiled::copy::<Self>(sums, row, out),
        }
    }

    #[inline(always)]
    fn narrow(sums: &[i32], row: usize, shift: u32, mult: &[i32], out: &mut [i16]) {
        match panels_in(sums, row, out.len()) {
            // SAFETY: `panels_in` has seen that the row's sums are there for all of `out`; `mult` is as long.
            Some((sums, panels)) if mult.len() == out.len() => unsafe {
                narrow_panels(sums, mult.as_ptr(), out.as_mut_ptr(), shift, panels);
            },
            _ => tiled::narrow::<Self>(sums, row, shift, mult, out),
        }
    }

    #[inline(always)]
    fn hidden(sums: &[i32; 2 * MOST_SUMS], row: usize, shift: u32, mults: [&[i32]; 2], gate_shift: u32, out: &mut [i8]) {
        let lines = SILU_LINES[gate_shift as usize].as_ptr();
        match panels_in(&sums[..MOST_SUMS], row, out.len()) {
            Some((sums, panels)) if mults.iter().all(|m| m.len() == out.len()) => {
                let mults = mults.map(<[i32]>::as_ptr);
                let what = Hidden { sums, mults, out: out.as_mut_ptr(), shift, gate_shift, lines, all_shifts: 11 + gate_shift, panels };
                // SAFETY: `panels_in` has seen that the sums of the row's gates are there for all of `out`, and those of the ups stand
                // `MOST_SUMS` behind them; both multipliers are as long as `out`.
                unsafe { hidden_panels(&what) }
            }
            _ => tiled::hidden::<Self>(sums, row, shift, mults, gate_shift, out),
        }
    }
}

/// Where the sums of row `row` start and how many whole panels of them make `n` channels; `None` if there are too few, or `n` is no
/// multiple of a panel.
#[inline(always)]
fn panels_in(sums: &[i32], row: usize, n: usize) -> Option<(*const i32, usize)> {
    let panels = n / CHANNELS;
    let there = n > 0 && n.is_multiple_of(CHANNELS) && row < ROWS && sums.len() >= panels * ROWS * CHANNELS;
    there.then(|| (sums[row * CHANNELS..].as_ptr(), panels))
}

/// `out[p][c] = sums[p][c]`, where a panel of `sums` is eight words and one of `out` four.
///
/// # Safety
/// `panels` is not 0; `sums` has `8 * panels - 4` words to read, `out` `4 * panels` to write.
#[unsafe(naked)]
unsafe extern "C" fn copy_panels(sums: *const i32, out: *mut i32, panels: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r6, lr}}",
        "2:",
        "ldm r0, {{r3-r6}}",
        "adds r0, r0, #32",
        "stm r1!, {{r3-r6}}",
        "subs r2, r2, #1",
        "bne 2b",
        "pop {{r4-r6, pc}}",
    )
}

/// `out[p][c] = requant(sums[p][c], shift, mult[p][c])`, where a panel of `sums` is eight words.
///
/// # Safety
/// `panels` is not 0 and `shift` below 32; `sums` has `8 * panels - 4` words, `mult` `4 * panels` words to read, `out` `4 * panels`
/// halfwords to write.
#[unsafe(naked)]
unsafe extern "C" fn narrow_panels(sums: *const i32, mult: *const i32, out: *mut i16, shift: u32, panels: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "ldr lr, [sp, #36]",
        "2:",
        "ldm r0, {{r4-r7}}",
        "adds r0, r0, #32",
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
    )
}

/// What [`hidden_panels`] works on.
#[repr(C)]
struct Hidden {
    /// Sums of the gates; those of the ups are [`MOST_SUMS`] words behind them.
    sums: *const i32,
    /// Of gates and ups.
    mults: [*const i32; 2],
    out: *mut i8,
    shift: u32,
    gate_shift: u32,
    lines: *const [i32; 2],
    /// `11 + gate_shift`.
    all_shifts: u32,
    panels: usize,
}

const _: () = assert!(MOST_SUMS == 384, "the ups' distance is written as 1536 bytes below");

/// `out[p][c] = glu(requant(gate), requant(up))`: see [`tiled::glu`], of which this is the same text.
///
/// # Safety
/// The sums are those of `panels` panels of one row (`8 * panels - 4` words each), `panels` is not 0; each multiplier has `4 * panels` words
/// to read, `out` `4 * panels` bytes to write, `lines` 64 lines.
#[unsafe(naked)]
unsafe extern "C" fn hidden_panels(what: &Hidden) {
    // r0 sums, r1 and r12 multipliers, r2 out, r3 and r4 shifts, r5 lines, r6 all shifts, lr the half of the last rounding.
    macro_rules! element {
        ($offset:literal) => {
            concat!(
                "ldr r8, [r0, #4*",
                $offset,
                "]\n",
                "ldr r9, [r1, #4*",
                $offset,
                "]\n",
                "lsl r8, r8, r3\n",
                "smmul r8, r8, r9\n",
                "ldr r7, [r0, #1536 + 4*",
                $offset,
                "]\n",
                "ldr r11, [r12, #4*",
                $offset,
                "]\n",
                "ssat r8, #16, r8\n",
                "eor r9, r8, r8, asr #31\n",
                "sub r9, r9, r8, asr #31\n",
                "lsl r9, r9, r4\n",
                "usat r9, #13, r9\n",
                "lsr r10, r9, #7\n",
                "add r10, r5, r10, lsl #3\n",
                "lsls r7, r7, r3\n",
                "smmul r7, r7, r11\n",
                "ldrd r10, r11, [r10]\n",
                "ssat r7, #16, r7\n",
                "mla r10, r11, r9, r10\n",
                "bic r8, r8, r8, asr #31\n",
                "asr r10, r10, r6\n",
                "add r8, r8, r10\n",
                "mla r8, r8, r7, lr\n",
                "ssat r8, #8, r8, asr #15\n",
                "strb r8, [r2], #1\n",
            )
        };
    }
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "ldr r7, [r0, #32]",
        "push {{r7}}",
        "ldr r1, [r0, #4]",
        "ldr r12, [r0, #8]",
        "ldr r2, [r0, #12]",
        "ldr r3, [r0, #16]",
        "ldr r4, [r0, #20]",
        "ldr r5, [r0, #24]",
        "ldr r6, [r0, #28]",
        "ldr r0, [r0]",
        "mov lr, #0x4000",
        "2:",
        element!("0"),
        element!("1"),
        element!("2"),
        element!("3"),
        "adds r0, r0, #32",
        "adds r1, r1, #16",
        "add r12, r12, #16",
        "ldr r7, [sp]",
        "subs r7, r7, #1",
        "str r7, [sp]",
        "bne.w 2b",
        "add sp, sp, #4",
        "pop {{r4-r11, pc}}",
    )
}

/// `sums[p][c] = bias[p][c]`, where a panel of `sums` is eight words and one of `bias` four.
///
/// # Safety
/// `panels` is not 0; `bias` has `4 * panels` words to read, `sums` `8 * panels - 4` to write.
#[unsafe(naked)]
unsafe extern "C" fn spread_panels(bias: *const i32, sums: *mut i32, panels: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r6, lr}}",
        "2:",
        "ldm r0!, {{r3-r6}}",
        "stm r1, {{r3-r6}}",
        "adds r1, r1, #32",
        "subs r2, r2, #1",
        "bne 2b",
        "pop {{r4-r6, pc}}",
    )
}

/// `sums[p][c] = bias[p][c] + bases[0][p][c] + .. + bases[3][p][c]`, where a panel of `sums` is eight words and the others' four.
///
/// # Safety
/// `panels` is not 0; `bias` and the four bases have `4 * panels` words to read, `sums` `8 * panels - 4` to write.
#[unsafe(naked)]
unsafe extern "C" fn begin_panels(sums: *mut i32, bias: *const i32, bases: *const *const i32, panels: usize) {
    naked_asm!(
        env!("HRM_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, sp, #4",
        "str r3, [sp]",
        "ldm r2, {{r2, r3, r12, lr}}",
        "2:",
        "ldm r1!, {{r4-r7}}",
        "ldm r2!, {{r8-r11}}",
        "add r4, r4, r8",
        "add r5, r5, r9",
        "add r6, r6, r10",
        "add r7, r7, r11",
        "ldm r3!, {{r8-r11}}",
        "add r4, r4, r8",
        "add r5, r5, r9",
        "add r6, r6, r10",
        "add r7, r7, r11",
        "ldm r12!, {{r8-r11}}",
        "add r4, r4, r8",
        "add r5, r5, r9",
        "add r6, r6, r10",
        "add r7, r7, r11",
        "ldm lr!, {{r8-r11}}",
        "add r4, r4, r8",
        "add r5, r5, r9",
        "add r6, r6, r10",
        "add r7, r7, r11",
        "stm r0, {{r4-r7}}",
        "adds r0, r0, #32",
        "ldr r4, [sp]",
        "subs r4, r4, #1",
        "str r4, [sp]",
        "bne 2b",
        "add sp, sp, #4",
        "pop {{r4-r11, pc}}",
    )
}

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

/// `x <- norm(sat16(x + d))` for each row of `width` elements.
pub fn add_norm(x: &mut [i16], d: &[i16], width: usize) {
    // Up to 900 elements no normalised value can leave 16 bits: it is at most `1024 sqrt(n)`, within a thousandth.
    if !width.is_multiple_of(2) || width > 900 {
        return super::reference::add_norm(x, d, width);
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
        return super::reference::group_sums(a, channels, index, groupings, sums);
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

/// Four bytes as two pairs of 16-bit values.
#[inline(always)]
fn widen(bytes: [i8; 4]) -> [u32; 2] {
    let word = u32::from_le_bytes(bytes.map(|b| b as u8));
    let (low, high);
    // SAFETY: instructions on registers.
    unsafe {
        asm!("sxtb16 {t}, {w}", "sxtb16 {h}, {w}, ror #8", "pkhbt {l}, {t}, {h}, lsl #16", "pkhtb {h}, {h}, {t}, asr #16",
            w = in(reg) word, t = out(reg) _, l = out(reg) low, h = out(reg) high, options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

/// Writes `32 * blocks` zeros: small products are called often enough for the compiler's own loop, a word at a time, to show.
///
/// # Safety
/// `blocks` is not 0; `to` has `32 * blocks` words to write.
#[unsafe(naked)]
unsafe extern "C" fn clear_words(to: *mut i32, blocks: usize) {
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

/// `sums[p][r][c] += sum_k input[k][r] * weights[p][k][c]` over pairs of 16-bit values.
///
/// # Safety
/// `sums` is `panels * 8` words to write, `input` `pairs * 2` and `weights` `panels * pairs * 4` words to read; `pairs` and `panels` are not 0.
#[unsafe(naked)]
unsafe extern "C" fn dot_panels(sums: *mut i32, input: *const i32, weights: *const i32, pairs: usize, panels: usize) {
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

/// `out[r][n] = sum_k a[r][k] * w[n][k]`.
pub fn accumulate(a: &[i8], w: &Columns<'_>, out: &mut [i32]) {
    tiled::accumulate::<Smlad>(a, w, out);
}

/// `out[r][n] = requant(W a + bases + bias)`.
pub fn project(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) {
    tiled::project::<Smlad>(a, w, q, bases, out);
}

/// [`project`], then the hidden values of the gated MLP.
pub fn gated(a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, shift: u32, gate_up: &mut [i16], out: &mut [i8]) {
    tiled::gated::<Smlad>(a, w, q, bases, shift, gate_up, out);
}
