//! What is told of a state: its hash, and how far it has moved.

use crate::rng::GOLDEN;

/// Change of z_H over a segment: `sum |z' - z|` and `sum |z'|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Residual {
    /// `sum |z_H' - z_H|`.
    pub change: u64,
    /// `sum |z_H'|`.
    pub size: u64,
}

impl Residual {
    /// The ratio, 0 at a fixed point of z_H.
    #[must_use]
    pub fn ratio(&self) -> f32 {
        if self.size == 0 { 0.0 } else { self.change as f32 / self.size as f32 }
    }

    /// From the z_H of before to that of now.
    pub(crate) fn between(before: &[i16], now: &[i16]) -> Self {
        let mut r = Self { change: 0, size: 0 };
        // 2^16 differences of 16 bits fit into 32 bits, which take half the room in registers.
        for (now, before) in now.chunks(1 << 16).zip(before.chunks(1 << 16)) {
            let (mut change, mut size) = (0u32, 0u32);
            for (&now, &before) in now.iter().zip(before) {
                change += u32::from(now.abs_diff(before));
                size += u32::from(now.unsigned_abs());
            }
            r.change += u64::from(change);
            r.size += u64::from(size);
        }
        r
    }
}

/// Folds four elements at a time into `hash`; a last incomplete word is filled with zeros.
pub(crate) fn hash_words(hash: u64, z: &[i16]) -> u64 {
    let fold = |h: u64, word: [i16; 4]| {
        let [a, b, c, d] = word.map(|x| u64::from(x as u16));
        (h.rotate_left(23) ^ (a | b << 16 | c << 32 | d << 48)).wrapping_mul(GOLDEN)
    };
    // Whole words apart from the last: a word is one load then, and the loop waits for nothing but its multiplication.
    let (words, left) = z.as_chunks::<4>();
    let hash = words.iter().fold(hash, |h, &word| fold(h, word));
    if left.is_empty() {
        return hash;
    }
    let mut word = [0; 4];
    word.iter_mut().zip(left).for_each(|(to, &from)| *to = from);
    fold(hash, word)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::rng::{Purpose, Stream};

    /// Every length around whole words, and more than a chunk of [`Residual::between`]; extremes among the values.
    fn values(seed: u64, count: usize) -> Vec<i16> {
        let mut stream = Stream::new(seed, Purpose::Start, 0);
        let extreme = |x: u32| [i16::MIN, i16::MAX][x as usize >> 16 & 1];
        let words = (0..count).map(|_| stream.next_u32());
        words.map(|x| if x.is_multiple_of(5) { extreme(x) } else { x as i16 }).collect()
    }

    #[test]
    fn a_hash_is_that_of_little_endian_words() {
        for count in 0..23 {
            let z = values(1, count);
            let mut bytes: Vec<u8> = z.iter().flat_map(|x| x.to_le_bytes()).collect();
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let words = bytes.as_chunks::<8>().0.iter();
            let expected = words.fold(7u64, |h, &w| (h.rotate_left(23) ^ u64::from_le_bytes(w)).wrapping_mul(GOLDEN));
            assert_eq!(hash_words(7, &z), expected, "{count} elements");
        }
    }

    #[test]
    fn a_residual_counts_every_element() {
        for count in [0, 1, 17, (1 << 16) - 1, (1 << 16) + 3, 1 << 18] {
            let (before, now) = (values(1, count), values(2, count));
            let change = before.iter().zip(&now).map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
            let size = now.iter().map(|&b| u64::from(b.unsigned_abs())).sum();
            assert_eq!(Residual::between(&before, &now), Residual { change, size });
        }
        // The largest values that there are.
        let (low, high) = ([i16::MIN; 1 << 16], [i16::MAX; 1 << 16]);
        assert_eq!(Residual::between(&high, &low), Residual { change: 65535 << 16, size: 32768 << 16 });
    }
}
