//! RISC-V with a multiplier and without vectors: two rows' activations in one register, bit-identical to [`super::reference`].
//!
//! A word `low + 2^16 high` times a weight is both products at once, and sums of such products are both sums as long as the lower stays inside 16
//! bits: then `(sum + 2^15) >> 16` is the upper one. The lower needs no more than the plain sum of all words, from which the
//! upper are taken off at the end, modulo 2^32. How many columns may be summed depends on the activations alone: eight whose magnitudes
//! add up to [`MOST`] or less in every row of the tile, else four, else two, which always do. Trained networks' mostly allow eight.
//!
//! Twelve sums, two activations, two weights and a product fill the registers beside the pointers; a compiler spills them. Weights are read in
//! place.
#![allow(unsafe_code)]

use core::arch::naked_asm;
use core::mem::MaybeUninit;

use super::tiled::{self, MOST_COLUMNS, Tile};
use super::{Bases, Columns, reference};
use crate::parts::{Broken, OrBroken, Parts};

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, pack, packed_words, scale_down, view8_slice};

/// Rows and channels of a tile.
const SIDE: usize = 4;
/// Columns that are arranged together.
const EIGHT: usize = 8;
/// Words of eight columns: how they may be summed, then a word for each pair of rows and column.
const WORDS: usize = 1 + EIGHT * SIDE / 2;
/// Largest sum of magnitudes whose products with weights, of 127 at most, stay inside 16 bits.
const MOST: u32 = 258;

/// Words of a tile of `k` columns: `[K / 8]` of [`WORDS`], then the columns left, `[K % 8][2]`.
const fn tile_words(k: usize) -> usize {
    k / EIGHT * WORDS + k % EIGHT * (SIDE / 2)
}

/// Rows that are not there.
static NOTHING: [i8; MOST_COLUMNS] = [0; MOST_COLUMNS];

struct Multiplier;

impl Tile for Multiplier {
    const ROWS: usize = SIDE;
    const CHANNELS: usize = SIDE;
    type Input = i32;
    type Buffer = [i32; MOST_COLUMNS / EIGHT * WORDS];
    const BUFFER: Self::Buffer = [0; MOST_COLUMNS / EIGHT * WORDS];

    #[inline(always)]
    fn clear_input(buffer: &mut MaybeUninit<Self::Buffer>, k: usize) -> &mut [i32] {
        let (first, n) = (buffer.as_mut_ptr().cast::<i32>(), tile_words(k.min(MOST_COLUMNS)));
        // SAFETY: the buffer has so many words, and they are written before they are a slice.
        unsafe {
            first.write_bytes(0, n);
            core::slice::from_raw_parts_mut(first, n)
        }
    }

    fn ready(w: &Columns<'_>) -> bool {
        w.k > 0 && w.n > 0
    }

    #[inline(never)]
    fn arrange(rows: &[i8], k: usize, out: &mut [i32]) -> Result<(), Broken> {
        let none = NOTHING.part(..k)?;
        let row = |r: usize| rows.get(r * k..(r + 1) * k).unwrap_or(none).as_chunks::<EIGHT>();
        let [(a, a_left), (b, b_left), (c, c_left), (d, d_left)] = [row(0), row(1), row(2), row(3)];
        let (eights, left) = out.part_mut(..tile_words(k))?.split_at_mut_checked(k / EIGHT * WORDS).or_broken()?;
        for (out, ((a, b), (c, d))) in eights.as_chunks_mut::<WORDS>().0.iter_mut().zip(a.iter().zip(b).zip(c.iter().zip(d))) {
            let [sums, words @ ..] = out;
            *sums = [a, b, c, d].into_iter().fold(EIGHT_AT_ONCE, |sums, row| sums.max(at_once(row)));
            pairs(words, a.iter().zip(b).zip(c.iter().zip(d)));
        }
        pairs(left, a_left.iter().zip(b_left).zip(c_left.iter().zip(d_left)));
        Ok(())
    }

    #[inline(always)]
    fn dot(input: &[i32], w: &Columns<'_>, rows: usize, first: usize, panels: usize, sums: &mut [i32]) -> Result<(), Broken> {
        let input = input.part(..tile_words(w.k))?;
        let (whole, rest) = (panels.min(w.n.saturating_sub(first) / SIDE), w.n.saturating_sub(first) % SIDE);
        let (sums, last) = sums.part_mut(..panels * SIDE * SIDE)?.split_at_mut_checked(whole * SIDE * SIDE).or_broken()?;
        let (weights, stride) = w.in_place();
        if whole > 0 {
            let end = first + whole * SIDE - 1;
            let weights = weights.part(first * stride..end * stride + w.k)?;
            let products = if rows > SIDE / 2 { products::<IN_TILES, SIDE> } else { products::<IN_TILES, { SIDE / 2 }> };
            // SAFETY: `whole` times 16 sums, so many words of arranged activations, and as many rows of weights as channels are there.
            unsafe { products(sums.as_mut_ptr(), input.as_ptr(), weights.as_ptr(), stride, w.k, whole, 0) };
        }
        if rest > 0 && !last.is_empty() {
            left_over(input, w, rows, first + whole * SIDE, last)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn accumulate(a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, input: &mut [i32], out: &mut [i32]) -> Result<usize, Broken> {
        let (columns, channels) = (SIDE * w.k, SIDE * w.n);
        if columns == 0 || channels == 0 || !w.n.is_multiple_of(SIDE) {
            return Ok(0);
        }
        let input = input.part_mut(..tile_words(w.k))?;
        let (weights, stride) = w.in_place();
        let weights = weights.part(..(w.n - 1) * stride + w.k)?;
        let tiles = a.chunks_exact(columns).zip(out.chunks_exact_mut(channels));
        let done = SIDE * tiles.len();
        for (rows, out) in tiles {
            Self::arrange(rows, w.k, input)?;
            // SAFETY: four rows of `n` sums, `4 n` bytes apart, so many words of arranged activations, and `n` rows of weights, `n` a multiple of 4
            // that is not 0.
            unsafe { products::<IN_ROWS, SIDE>(out.as_mut_ptr(), input.as_ptr(), weights.as_ptr(), stride, w.k, w.n / SIDE, 4 * w.n) };
        }
        reference::add_bases(bases, w.n, out.part_mut(..done * w.n)?)?;
        Ok(done)
    }
}

/// Where [`products`] has its sums: `[panels][4 rows][4]`, which it goes on with, or rows, which it begins.
const IN_TILES: usize = 0;
const IN_ROWS: usize = 1;

/// [`Tile::dot`] of the one to three channels from `first` on.
#[inline(never)]
fn left_over(input: &[i32], w: &Columns<'_>, rows: usize, first: usize, sums: &mut [i32]) -> Result<(), Broken> {
    for (c, channel) in (first..w.n).enumerate() {
        let weights = w.row(channel)?;
        for (r, sum) in sums.iter_mut().skip(c).step_by(SIDE).take(rows).enumerate() {
            *sum += activations(input, r, w.k).zip(weights).map(|(a, &w)| a * i32::from(w)).sum::<i32>();
        }
    }
    Ok(())
}

const EIGHT_AT_ONCE: i32 = 0;
const FOUR_AT_ONCE: i32 = 1;
const TWO_AT_ONCE: i32 = 2;

/// How many columns of this row may be summed.
#[inline(always)]
fn at_once(row: &[i8; EIGHT]) -> i32 {
    let [a, b, c, d, e, f, g, h] = row.map(|a| u32::from(a.unsigned_abs()));
    let (first, second) = (a + b + c + d, e + f + g + h);
    if first + second <= MOST {
        EIGHT_AT_ONCE
    } else if first <= MOST && second <= MOST {
        FOUR_AT_ONCE
    } else {
        TWO_AT_ONCE
    }
}

/// The words of columns of four rows.
#[inline(always)]
fn pairs<'a>(out: &mut [i32], columns: impl Iterator<Item = ((&'a i8, &'a i8), (&'a i8, &'a i8))>) {
    let word = |low: &i8, high: &i8| i32::from(*low) + (i32::from(*high) << 16);
    for (out, ((a, b), (c, d))) in out.as_chunks_mut::<2>().0.iter_mut().zip(columns) {
        *out = [word(a, b), word(c, d)];
    }
}

/// The activations of row `r` of a tile of `k` columns.
fn activations(input: &[i32], r: usize, k: usize) -> impl Iterator<Item = i32> {
    let (eights, left) = input.split_at_checked(k / EIGHT * WORDS).unwrap_or_default();
    let words = eights.chunks(WORDS).flat_map(|eight| eight.iter().skip(1)).chain(left).skip(r / 2).step_by(2);
    words.map(move |&word| {
        let low = i32::from(word as i16);
        if r.is_multiple_of(2) { low } else { (word - low) >> 16 }
    })
}

/// `sums[p][r][c] += sum_k input[k][r] * weights[(4 p + c) stride + k]` for `panels` panels; or if `SUMS` is [`IN_ROWS`]
/// `sums[r][4 p + c] =` the same, with rows `row` bytes apart. Of the first two rows alone if `ROWS` is 2.
///
/// # Safety
/// `k` and `panels` are not 0; `input` is arranged as [`Tile::arrange`] says and has `k` columns, `sums` has `16 * panels` words to read and write,
/// or four rows of `4 * panels`, and there are `4 * panels` rows of `k` weights, `stride` bytes apart.
#[unsafe(naked)]
unsafe extern "C" fn products<const SUMS: usize, const ROWS: usize>(
    sums: *mut i32,
    input: *const i32,
    weights: *const i8,
    stride: usize,
    k: usize,
    panels: usize,
    row: usize,
) {
    // Two channels at a time. a0 sums, a1 input, a2 a3 weights, a4 end of the eights, ra of the input, a5 2^15, s8 start of the input, s9
    // stride, s10 weights of the next two channels, s11 how often. t4 t5 activations of rows 0 and 1, 2 and 3; a6 a7 weights, t6 a product.
    // For rows 0 1 and channel 0, 0 1 and 1, 2 3 and 0, 2 3 and 1: t0..t3 sums of a few columns, s0..s3 their upper halves' sums, s4..s7 the
    // plain sums. On the stack behind the saved registers: the bytes from one row of sums to the next.
    macro_rules! lines {
        ($($line:literal)+) => { concat!($($line, "\n"),+) };
    }
    // What is for the rows 2 and 3 alone.
    macro_rules! upper {
        ($($line:literal)+) => { concat!(".if {rows} > 2\n", $($line, "\n",)+ ".endif\n") };
    }
    // The activations and weights of a column: weights at `$w`, activations at `$a` and `$b`.
    macro_rules! column {
        ($w:literal, $a:literal, $b:literal) => {
            concat!(
                "lw t4, ",
                $a,
                "(a1)\n",
                "lb a6, ",
                $w,
                "(a2)\n",
                "lb a7, ",
                $w,
                "(a3)\n",
                ".if {rows} > 2\nlw t5, ",
                $b,
                "(a1)\n.endif\n"
            )
        };
    }
    // A column that begins a sum.
    macro_rules! first {
        ($($at:literal),+) => {
            concat!(column!($($at),+), lines!("mul t0, t4, a6" "mul t1, t4, a7"), upper!("mul t2, t5, a6" "mul t3, t5, a7"))
        };
    }
    // One that goes on with it.
    macro_rules! next {
        ($($at:literal),+) => {
            concat!(
                column!($($at),+),
                lines!("mul t6, t4, a6" "mul t4, t4, a7"),
                upper!("mul a6, t5, a6" "mul t5, t5, a7"),
                lines!("add t0, t0, t6" "add t1, t1, t4"),
                upper!("add t2, t2, a6" "add t3, t3, t5")
            )
        };
    }
    // The sums of a few columns go where they belong.
    macro_rules! settle {
        () => {
            concat!(
                lines!("add s4, s4, t0" "add s5, s5, t1"),
                upper!("add s6, s6, t2" "add s7, s7, t3"),
                lines!("add t0, t0, a5" "add t1, t1, a5"),
                upper!("add t2, t2, a5" "add t3, t3, a5"),
                lines!("srai t0, t0, 16" "srai t1, t1, 16"),
                upper!("srai t2, t2, 16" "srai t3, t3, 16"),
                lines!("add s0, s0, t0" "add s1, s1, t1"),
                upper!("add s2, s2, t2" "add s3, s3, t3")
            )
        };
    }
    // The upper halves' sums, shifted into place, are added to the plain sums or taken off.
    macro_rules! combine {
        ($op:literal) => {
            concat!(
                lines!("slli t0, s0, 16" "slli t1, s1, 16"),
                upper!("slli t2, s2, 16" "slli t3, s3, 16"),
                $op, " s4, s4, t0\n", $op, " s5, s5, t1\n",
                ".if {rows} > 2\n", $op, " s6, s6, t2\n", $op, " s7, s7, t3\n.endif\n"
            )
        };
    }
    // The sums of two channels: `$op` is `lw` or `sw`; of rows the places are worked out.
    macro_rules! sums {
        ($op:literal) => {
            concat!(
                ".if {sums} == 0\n",
                $op, " s0, 16(a0)\n", $op, " s1, 20(a0)\n", $op, " s4, 0(a0)\n", $op, " s5, 4(a0)\n",
                ".if {rows} > 2\n",
                $op, " s2, 48(a0)\n", $op, " s3, 52(a0)\n", $op, " s6, 32(a0)\n", $op, " s7, 36(a0)\n",
                ".endif\n",
                ".else\n",
                lines!("lw t2, 52(sp)" "add t0, a0, t2" "add t1, t0, t2" "add t2, t1, t2"),
                $op, " s0, 0(t0)\n", $op, " s1, 4(t0)\n", $op, " s2, 0(t2)\n", $op, " s3, 4(t2)\n",
                $op, " s4, 0(a0)\n", $op, " s5, 4(a0)\n", $op, " s6, 0(t1)\n", $op, " s7, 4(t1)\n",
                ".endif\n",
            )
        };
    }
    naked_asm!(
        ".option push",
        ".option arch, +m",
        "addi sp, sp, -64",
        "sw a6, 52(sp)",
        "sw ra, 0(sp)",
        "sw s0, 4(sp)",
        "sw s1, 8(sp)",
        "sw s2, 12(sp)",
        "sw s3, 16(sp)",
        "sw s4, 20(sp)",
        "sw s5, 24(sp)",
        "sw s6, 28(sp)",
        "sw s7, 32(sp)",
        "sw s8, 36(sp)",
        "sw s9, 40(sp)",
        "sw s10, 44(sp)",
        "sw s11, 48(sp)",
        "mv s8, a1",
        "mv s10, a2",
        "mv s9, a3",
        "slli s11, a5, 1",
        "srli t0, a4, 3",
        "slli t1, t0, 2",
        "slli t0, t0, 6",
        "add t0, t0, t1", // 68 bytes for each eight
        "andi t1, a4, 7",
        "slli t1, t1, 3",
        "add a4, a1, t0",
        "add ra, a4, t1",
        "lui a5, 8",
        "2:",
        "mv a1, s8",
        "mv a2, s10",
        "add a3, s10, s9",
        "add s10, a3, s9",
        ".if {sums} == 1",
        "li s0, 0",
        "li s1, 0",
        "li s2, 0",
        "li s3, 0",
        "li s4, 0",
        "li s5, 0",
        "li s6, 0",
        "li s7, 0",
        ".else",
        sums!("lw"),
        combine!("add"),
        ".endif",
        "beq a1, a4, 7f",
        "3:",
        "lw t6, 0(a1)",
        "bnez t6, 5f",
        first!("0", "4", "8"),
        next!("1", "12", "16"),
        next!("2", "20", "24"),
        next!("3", "28", "32"),
        next!("4", "36", "40"),
        next!("5", "44", "48"),
        next!("6", "52", "56"),
        next!("7", "60", "64"),
        "4:",
        settle!(),
        "addi a1, a1, 68",
        "addi a2, a2, 8",
        "addi a3, a3, 8",
        "bne a1, a4, 3b",
        "j 7f",
        "5:",
        "addi t6, t6, -1",
        "bnez t6, 6f",
        first!("0", "4", "8"),
        next!("1", "12", "16"),
        next!("2", "20", "24"),
        next!("3", "28", "32"),
        settle!(),
        first!("4", "36", "40"),
        next!("5", "44", "48"),
        next!("6", "52", "56"),
        next!("7", "60", "64"),
        "j 4b",
        "6:",
        first!("0", "4", "8"),
        next!("1", "12", "16"),
        settle!(),
        first!("2", "20", "24"),
        next!("3", "28", "32"),
        settle!(),
        first!("4", "36", "40"),
        next!("5", "44", "48"),
        settle!(),
        first!("6", "52", "56"),
        next!("7", "60", "64"),
        "j 4b",
        "7:",
        "beq a1, ra, 9f",
        "8:",
        first!("0", "0", "4"),
        settle!(),
        "addi a1, a1, 8",
        "addi a2, a2, 1",
        "addi a3, a3, 1",
        "bne a1, ra, 8b",
        "9:",
        combine!("sub"),
        sums!("sw"),
        "addi a0, a0, 8",
        "addi s11, s11, -1",
        ".if {sums} == 0",
        "andi t0, s11, 1",
        "bnez t0, 2b",
        "addi a0, a0, 48", // the next panel
        ".endif",
        "bnez s11, 2b",
        "lw ra, 0(sp)",
        "lw s0, 4(sp)",
        "lw s1, 8(sp)",
        "lw s2, 12(sp)",
        "lw s3, 16(sp)",
        "lw s4, 20(sp)",
        "lw s5, 24(sp)",
        "lw s6, 28(sp)",
        "lw s7, 32(sp)",
        "lw s8, 36(sp)",
        "lw s9, 40(sp)",
        "lw s10, 44(sp)",
        "lw s11, 48(sp)",
        "addi sp, sp, 64",
        "ret",
        ".option pop",
        sums = const SUMS,
        rows = const ROWS,
    )
}

tiled::calls!(Multiplier);
