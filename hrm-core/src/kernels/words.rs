//! Bytes as the 32-bit words in which dot products read them: `WORDS` words, four times as many columns, of a row or channel at a time.
#![cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "x86-64 uses one"))]

use super::Columns;
use crate::parts::{Broken, Parts};

/// Up to four bytes as a word, the rest zeros.
#[inline(always)]
pub(super) fn word_of(bytes: &[i8]) -> i32 {
    let mut word = [0; 4];
    word.iter_mut().zip(bytes).for_each(|(w, &b)| *w = b as u8);
    i32::from_le_bytes(word)
}

/// Up to `4 * WORDS` bytes, the rest zeros.
#[inline(always)]
fn words_of<const WORDS: usize>(bytes: &[i8]) -> [i32; WORDS] {
    let mut words = [0; WORDS];
    words.iter_mut().zip(bytes.chunks(4)).for_each(|(w, bytes)| *w = word_of(bytes));
    words
}

/// Words of a row or channel of `k` columns.
pub(super) const fn row_words<const WORDS: usize>(k: usize) -> usize {
    k.div_ceil(4 * WORDS) * WORDS
}

/// Words of the packed form of `n` x `k` weights, panels of `CHANNELS` channels.
pub(super) const fn packed_words<const CHANNELS: usize, const WORDS: usize>(n: usize, k: usize) -> usize {
    n.div_ceil(CHANNELS) * CHANNELS * row_words::<WORDS>(k)
}

/// Packs a block of columns into `out` as `[N / CHANNELS][K / (4 WORDS)][CHANNELS][WORDS]`.
pub(super) fn pack<const CHANNELS: usize, const WORDS: usize>(w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
    for (p, panel) in out.rows_mut(CHANNELS * row_words::<WORDS>(w.k))?.enumerate() {
        panel.fill(0);
        let panel = panel.as_chunks_mut::<WORDS>().0;
        for channel in 0..CHANNELS.min(w.n.saturating_sub(p * CHANNELS)) {
            let row = w.row(p * CHANNELS + channel)?;
            for (to, bytes) in panel.iter_mut().skip(channel).step_by(CHANNELS).zip(row.chunks(4 * WORDS)) {
                *to = words_of(bytes);
            }
        }
    }
    Ok(())
}

/// Arranges up to `ROWS` rows as `[K / (4 WORDS)][ROWS][WORDS]`; places of rows that are not there keep what they had.
#[inline(always)]
pub(super) fn arrange<const ROWS: usize, const WORDS: usize>(rows: &[i8], k: usize, out: &mut [i32]) -> Result<(), Broken> {
    let places = out.part_mut(..ROWS * row_words::<WORDS>(k))?.as_chunks_mut::<WORDS>().0;
    for (r, row) in rows.rows(k)?.enumerate() {
        for (to, bytes) in places.iter_mut().skip(r).step_by(ROWS).zip(row.chunks(4 * WORDS)) {
            *to = words_of(bytes);
        }
    }
    Ok(())
}
