//! The whole gated MLP: what is between its matrices never leaves the registers as int16.
//!
//! One panel of 16 hidden channels at a time: the products of all group sums with the panel's weights are few enough to stay in the first
//! cache, where each row fetches those of its groups. Gate and up of a panel are one register tile, so that its epilogue ends with hidden
//! values: bytes, kept as the next matrix reads them, `[rows / 2][I / 4][2 rows][4]`. The output of eight rows is normalised before the next
//! eight are multiplied.
//!
//! At a width of 48 an epilogue takes as long as the products, on other execution units; but the CPU does not look far enough ahead to find
//! both. So a tile's accumulators are set aside, and two of its rows finished between each two steps of the next tile.

use core::arch::x86_64::*;

use super::matmul::{Target, finish};
use super::rows::{Glu, add_norm_rows, view8_simd};
use super::tile::{Scale, Shifts, Tile, multiply, requant, swap, unrolled};
use super::{LANES, block_words, packed_words};
use crate::kernels::{Columns, GroupInputs, Mlp, MlpScratch, Requant, front};

/// Rows of the register tile of gate and up: 24 accumulators.
const TALL: usize = 12;
/// Rows that are normalised together, and of the register tile of the output.
const OUT: usize = 8;
/// Words of a group row in the table of a panel: gate and up.
const PAIR: usize = 2 * LANES;

/// As [`crate::kernels::Kernel::gated_mlp`].
pub fn gated_mlp(mlp: &Mlp<'_>, x: &mut [i16], s: &mut MlpScratch<'_>) -> bool {
    // SAFETY: the CPU has the features (`Kernel` is the proof); `fits` is what `run` asks for.
    unsafe {
        let fits = fits(mlp, x.len(), s);
        if fits {
            run(mlp, x, s);
        }
        fits
    }
}

/// Whether shapes are whole blocks and every access of [`run`] is inside its slice.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn fits(mlp: &Mlp<'_>, len: usize, s: &MlpScratch<'_>) -> bool {
    let (width, inner) = (mlp.own.k, mlp.down.k);
    if width == 0 || inner == 0 || !width.is_multiple_of(LANES) || !inner.is_multiple_of(LANES) || !len.is_multiple_of(width) {
        return false;
    }
    let packed = |w: &Columns<'_>, n: usize, k: usize| w.n == n && w.k == k && w.packed().len() >= packed_words(n, k);
    let scaled = |q: &Requant<'_>, n: usize| q.bias.len() >= n && q.mult.len() >= n;
    let rows = len / width;
    let padded = rows.next_multiple_of(TALL);
    let matrices = packed(&mlp.own, 2 * inner, width) && packed(&mlp.down, width, inner);
    let scales = scaled(&mlp.up_scale, 2 * inner) && scaled(&mlp.down_scale, width);
    let memory = s.view.len() >= padded * width && s.hidden.len() >= padded * inner && s.delta.len() >= OUT * width;
    let groups = mlp.groups.as_ref().is_none_or(|g| {
        let count = g.columns.len();
        let group_rows = g.starts.last().copied().unwrap_or(0);
        count > 0
            && g.columns.iter().all(|w| packed(w, 2 * inner, width))
            && g.m.len() >= count
            && g.starts.len() == count + 1
            && g.starts.is_sorted()
            && g.index.len() >= rows * g.kept
            && g.index[..rows * g.kept].iter().fold(0, |most, &i| most.max(i)) < group_rows.min(1 << 16) as u32 as u16
            && g.folded.len() == count
            && g.starts
                .windows(2)
                .zip(g.folded)
                .all(|(rows, f)| f.len().is_multiple_of((rows[1] - rows[0]).max(1)) && f.iter().all(|&row| usize::from(row) < rows[0]))
            && g.ends.len() >= group_rows
            && g.ends.is_sorted()
            && g.ends.last().is_none_or(|&e| e as usize <= g.members.len())
            && usize::from(g.members.iter().fold(0, |most, &r| most.max(r))) < rows
            && s.sum_views.len() >= group_rows * width
            && s.table.len() >= group_rows * PAIR
    });
    matrices && scales && memory && groups
}

/// # Safety
/// The CPU has the features; [`fits`] holds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512cd,avx512dq")]
unsafe fn run(mlp: &Mlp<'_>, x: &mut [i16], s: &mut MlpScratch<'_>) {
    let (width, inner) = (mlp.own.k, mlp.down.k);
    let rows = x.len() / width;
    view8_simd::<true>(x, mlp.m_in, &mut s.view[..x.len()]);
    if let Some(g) = &mlp.groups {
        for i in 0..g.columns.len() {
            // SAFETY: members are rows of the view, group rows those of the sums' views.
            unsafe { view_sums(s.view, width, g, i, s.sum_views) };
        }
    }
    let glu = Glu::new(mlp.gate_shift);
    for block in 0..inner / LANES {
        if let Some(g) = &mlp.groups {
            for ((w, ends), folded) in g.columns.iter().zip(g.starts.windows(2)).zip(g.folded) {
                // SAFETY: the rows exist in the sums' views and in the table, the folded ones before them.
                unsafe { table_rows(s.sum_views, w, block, (ends[0], ends[1]), folded, s.table) };
            }
        }
        // SAFETY: the panel's blocks exist, scratch and index have all rows.
        unsafe {
            let panel = Panel::new(mlp, block, s);
            match panel.groupings {
                0 => panel.hidden::<0>(rows, &glu),
                3 => panel.hidden::<3>(rows, &glu),
                4 => panel.hidden::<4>(rows, &glu),
                _ => panel.hidden::<{ usize::MAX }>(rows, &glu),
            }
        }
    }
    let shifts = Shifts::new(&mlp.down_scale);
    for (t, x) in x.chunks_mut(OUT * width).enumerate() {
        let hidden = s.hidden[t * OUT * inner..].as_ptr().cast();
        // SAFETY: `hidden` has all rows, filled up to whole tiles; `delta` has eight.
        unsafe {
            if x.len() > 4 * width {
                output::<OUT>(hidden, mlp, shifts, s.delta);
            } else {
                output::<4>(hidden, mlp, shifts, s.delta);
            }
        }
        add_norm_rows(x, &s.delta[..x.len()], width, mlp.residual_shift);
    }
}

/// Views (`^ 0x80`) of the sums of the groups of grouping `which`.
///
/// # Safety
/// The CPU has the features; `view` (`^ 0x80`) has the members' rows, `out` has the group rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn view_sums(view: &[i8], width: usize, g: &GroupInputs<'_>, which: usize, out: &mut [i8]) {
    let flip = _mm256_set1_epi8(i8::MIN);
    let m = _mm512_set1_epi16(g.m[which]);
    for row in g.starts[which]..g.starts[which + 1] {
        let first = if row == 0 { 0 } else { g.ends[row - 1] };
        let members = &g.members[first as usize..g.ends[row] as usize];
        // Flipped views are 128 too large.
        let start = _mm512_set1_epi16((members.len() as i16).wrapping_mul(-128));
        let mut at = 0;
        while at + 2 * LANES <= width {
            let mut sum = start;
            for &member in members {
                // SAFETY: 32 channels of a row.
                let v = unsafe { _mm256_loadu_si256(view.as_ptr().add(usize::from(member) * width + at).cast()) };
                sum = _mm512_add_epi16(sum, _mm512_cvtepu8_epi16(v));
            }
            let y = _mm256_xor_si256(_mm512_cvtsepi16_epi8(_mm512_mulhrs_epi16(sum, m)), flip);
            // SAFETY: as many of the group row.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(row * width + at).cast(), y) };
            at += 2 * LANES;
        }
        if at < width {
            let mut sum = _mm512_castsi512_si256(start);
            for &member in members {
                // SAFETY: the last 16 channels of a row.
                let v = unsafe { _mm_loadu_si128(view.as_ptr().add(usize::from(member) * width + at).cast()) };
                sum = _mm256_add_epi16(sum, _mm256_cvtepu8_epi16(v));
            }
            let y = _mm256_cvtsepi16_epi8(_mm256_mulhrs_epi16(sum, _mm512_castsi512_si256(m)));
            let y = _mm_xor_si128(y, _mm256_castsi256_si128(flip));
            // SAFETY: as many of the group row.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().add(row * width + at).cast(), y) };
        }
    }
}

/// Products of the views of group rows `from..to` with the panel's gate and up weights, and those of the rows that `folded` names for each.
///
/// # Safety
/// The CPU has the features; the rows exist in `views` and `table`, the folded ones before `from`, the block in the weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn table_rows(views: &[i8], w: &Columns<'_>, block: usize, (from, to): (usize, usize), folded: &[u16], table: &mut [i32]) {
    let each = folded.len() / (to - from).max(1);
    let of = |row: usize| (&folded[(row - from) * each..], each);
    let mut row = from;
    while row < to {
        // SAFETY: the caller's promise; there are `each` folded rows for each of a tile. The last tile begins earlier and repeats some rows,
        // where there are enough.
        row = unsafe {
            match to - from {
                TALL.. => table_tile::<TALL>(views, w, block, row.min(to - TALL), of(row.min(to - TALL)), table),
                4.. => table_tile::<4>(views, w, block, row.min(to - 4), of(row.min(to - 4)), table),
                _ => table_tile::<1>(views, w, block, row, of(row), table),
            }
        };
    }
}

/// The rows from `row` on, each with the next `each` of the folded ones. Returns the row after the tile.
///
/// # Safety
/// As [`table_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn table_tile<const MR: usize>(
    views: &[i8],
    w: &Columns<'_>,
    block: usize,
    row: usize,
    (folded, each): (&[u16], usize),
    table: &mut [i32],
) -> usize {
    let stride = block_words(w.k);
    // SAFETY: the caller's promise.
    unsafe {
        let weights = w.packed().as_ptr().add(block * stride);
        let pair = w.n / 2 / LANES * stride;
        let start = [correction(weights, stride), correction(weights.add(pair), stride)];
        let mut acc: Tile<MR, 2> = [start; MR];
        for e in 0..each {
            unrolled!(MR, |i| {
                let other = table.as_ptr().add(usize::from(*folded.as_ptr().add(i * each + e)) * PAIR);
                acc[i][0] = _mm512_add_epi32(acc[i][0], _mm512_loadu_si512(other.cast()));
                acc[i][1] = _mm512_add_epi32(acc[i][1], _mm512_loadu_si512(other.add(LANES).cast()));
            });
        }
        multiply::<MR, 2, false>(&mut acc, views.as_ptr().add(row * w.k).cast(), w.k, weights, pair, w.k / 4);
        let out = table.as_mut_ptr().add(row * PAIR);
        unrolled!(MR, |i| {
            _mm512_storeu_si512(out.add(i * PAIR).cast(), acc[i][0]);
            _mm512_storeu_si512(out.add(i * PAIR + LANES).cast(), acc[i][1]);
        });
    }
    row + MR
}

/// What makes up for the flipped activations in a block of weights.
///
/// # Safety
/// The CPU has the features; the block has `stride` words.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn correction(block: *const i32, stride: usize) -> __m512i {
    // SAFETY: the corrections are its last words.
    unsafe { _mm512_loadu_si512(block.add(stride - LANES).cast()) }
}

/// Gate and up of 16 hidden channels.
struct Panel<'a> {
    weights: *const i32,
    /// Words from the gate's block to that of up.
    pair: usize,
    start: [__m512i; 2],
    shifts: Shifts,
    scales: [Scale; 2],
    view: *const u8,
    width: usize,
    table: *const i32,
    index: &'a [u16],
    groupings: usize,
    hidden: *mut u8,
    inner: usize,
}

impl<'a> Panel<'a> {
    /// # Safety
    /// The CPU has the features; [`fits`] holds and the block exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn new(mlp: &Mlp<'a>, block: usize, s: &mut MlpScratch<'_>) -> Self {
        let (width, inner) = (mlp.own.k, mlp.down.k);
        let stride = block_words(width);
        let pair = inner / LANES * stride;
        let of = |at| Requant { mult: &mlp.up_scale.mult[at..at + LANES], ..mlp.up_scale };
        let shifts = Shifts::of_both(&of(block * LANES), &of(inner + block * LANES));
        // SAFETY: both blocks are in the packed weights, both channels in bias and multipliers.
        let (weights, start, scales) = unsafe {
            let weights = mlp.own.packed().as_ptr().add(block * stride);
            let scale = |at| Scale::load(&mlp.up_scale, shifts, at, u16::MAX);
            let scales = [scale(block * LANES), scale(inner + block * LANES)];
            let start = [correction(weights, stride), correction(weights.add(pair), stride)];
            (weights, [_mm512_add_epi32(start[0], scales[0].bias), _mm512_add_epi32(start[1], scales[1].bias)], scales)
        };
        let (index, groupings) = mlp.groups.as_ref().map_or((&[][..], 0), |g| (g.index, g.kept));
        // SAFETY: the first block of the panel.
        let hidden = unsafe { s.hidden.as_mut_ptr().cast::<u8>().add(block * 2 * LANES) };
        let (view, table) = (s.view.as_ptr().cast(), s.table.as_ptr());
        Self { weights, pair, start, shifts, scales, view, width, table, index, groupings, hidden, inner }
    }

    /// Hidden values of all rows, with `G` groupings (`usize::MAX`: as many as there are).
    ///
    /// # Safety
    /// As [`Panel::new`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn hidden<const G: usize>(&self, rows: usize, glu: &Glu) {
        let steps = self.width / 4;
        // Of the tile before, still to be finished.
        let mut aside: Tile<TALL, 2> = [[_mm512_setzero_si512(); 2]; TALL];
        for row in (0..rows).step_by(TALL) {
            let mut acc: Tile<TALL, 2> = [self.start; TALL];
            // SAFETY: scratch has whole tiles of rows, and the loops take `steps` steps together.
            unsafe {
                let (mut view, mut weights) = (self.view.add(row * self.width), self.weights);
                let mut left = steps;
                if row > 0 {
                    for i in (0..TALL).step_by(2) {
                        if left >= 2 {
                            multiply::<TALL, 2, false>(&mut acc, view, self.width, weights, self.pair, 2);
                            (view, weights, left) = (view.add(8), weights.add(2 * LANES), left - 2);
                        }
                        self.finish::<G>(&aside, i, row - TALL, rows, glu);
                    }
                }
                multiply::<TALL, 2, false>(&mut acc, view, self.width, weights, self.pair, left);
            }
            aside = acc;
        }
        let last = (rows - 1) / TALL * TALL;
        for i in (0..TALL).step_by(2) {
            // SAFETY: passed on.
            unsafe { self.finish::<G>(&aside, i, last, rows, glu) };
        }
    }

    /// Hidden values of rows `first + i` and `first + i + 1` from the accumulators of the tile that begins at `first`. Rows from `rows` on are
    /// written but mean nothing.
    ///
    /// # Safety
    /// As [`Panel::new`]; scratch has the rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn finish<const G: usize>(&self, aside: &Tile<TALL, 2>, i: usize, first: usize, rows: usize, glu: &Glu) {
        let mut acc = [aside[i], aside[i + 1]];
        let groupings = if G == usize::MAX { self.groupings } else { G };
        if G > 0 {
            unrolled!(2, |j| {
                // SAFETY: the index has an entry for each existing row, and the entry a row in the table.
                unsafe {
                    let entry = self.index.as_ptr().add((first + i + j).min(rows - 1) * groupings);
                    for g in 0..groupings {
                        // Volatile, or the compiler takes the entries of a row together into a vector and out of it one by one.
                        let base = self.table.add(usize::from(entry.add(g).read_volatile()) * PAIR);
                        acc[j][0] = _mm512_add_epi32(acc[j][0], _mm512_loadu_si512(base.cast()));
                        acc[j][1] = _mm512_add_epi32(acc[j][1], _mm512_loadu_si512(base.add(LANES).cast()));
                    }
                }
            });
        }
        if self.shifts.acc > 0 {
            let count = _mm_cvtsi32_si128(self.shifts.acc as i32);
            unrolled!(2, |j| acc[j] = [_mm512_sll_epi32(acc[j][0], count), _mm512_sll_epi32(acc[j][1], count)]);
        }
        let [gate, up] = &self.scales;
        let g = _mm512_packs_epi32(requant(acc[0][0], gate), requant(acc[1][0], gate));
        let u = _mm512_packs_epi32(requant(acc[0][1], up), requant(acc[1][1], up));
        let bytes = _mm256_xor_si256(_mm512_cvtsepi16_epi8(glu.hidden(g, u)), _mm256_set1_epi8(i8::MIN));
        // SAFETY: two rows of one block.
        unsafe { _mm256_storeu_si256(self.hidden.add((first + i) * self.inner).cast(), bytes) };
    }
}

/// The output matrix for `MR` rows of hidden values.
///
/// # Safety
/// The CPU has the features; [`fits`] holds; `hidden` has `MR` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn output<const MR: usize>(hidden: *const u8, mlp: &Mlp<'_>, shifts: Shifts, delta: &mut [i16]) {
    let target = Target::Narrow(delta.as_mut_ptr(), mlp.down_scale, shifts, front::NONE);
    let mut block = 0;
    let blocks = mlp.down.n / LANES;
    while block < blocks {
        // SAFETY: passed on; the blocks exist.
        block += unsafe {
            match blocks - block {
                3.. => output_tile::<MR, 3>(hidden, mlp, block, target),
                2 => output_tile::<MR, 2>(hidden, mlp, block, target),
                _ => output_tile::<MR, 1>(hidden, mlp, block, target),
            }
        };
    }
}

/// Returns `NR`.
///
/// # Safety
/// As [`output`]; the blocks exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn output_tile<const MR: usize, const NR: usize>(hidden: *const u8, mlp: &Mlp<'_>, block: usize, target: Target<'_>) -> usize {
    let inner = mlp.down.k;
    let stride = block_words(inner);
    // SAFETY: the caller's promise.
    unsafe {
        let weights = mlp.down.packed().as_ptr().add(block * stride);
        let mut start = [_mm512_setzero_si512(); NR];
        for (j, start) in start.iter_mut().enumerate() {
            let bias = _mm512_loadu_si512(mlp.down_scale.bias.as_ptr().add((block + j) * LANES).cast());
            *start = _mm512_add_epi32(correction(weights.add(j * stride), stride), swap(bias));
        }
        let mut acc: Tile<MR, NR> = [start; MR];
        multiply::<MR, NR, true>(&mut acc, hidden, 2 * inner, weights, stride, inner / 4);
        finish(&acc, mlp.down.n, (0, block), target);
    }
    NR
}
