//! The counter-based random numbers of `docs/numerics.md`: any element of a stream can be computed on its own.

/// 2^64 divided by the golden ratio, the increment of SplitMix64.
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Random start of a guess; the index is the guess.
    Start = 1,
    /// Latent noise; the index is `guess * 2^16 + segment`.
    Noise = 2,
    /// Symmetries; the index is the guess.
    Symmetry = 3,
    /// Cells that a guess assumes; the index is the guess.
    Assumption = 4,
}

/// The output function of SplitMix64.
#[inline]
#[must_use]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One stream of random words, a pure function of seed, purpose and index.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    start: u64,
    next: u64,
}

impl Stream {
    /// The stream of (`seed`, `purpose`, `index`).
    #[must_use]
    pub const fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        Self { start: mix(mix(seed.wrapping_add(GOLDEN.wrapping_mul(purpose as u64))) ^ mix(index)), next: 0 }
    }

    /// `s0` of `docs/numerics.md`: all that another machine needs to draw the same words.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.next += 1;
        mix(self.start.wrapping_add(self.next.wrapping_mul(GOLDEN)))
    }

    /// The next 32 bits (the upper half of a word).
    pub const fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// Two samples of mean 0 and standard deviation 1.01 in Q5.10.
    pub const fn next_normals(&mut self) -> [i16; 2] {
        let w = self.next_u64();
        [normal(w as u32), normal((w >> 32) as u32)]
    }
}

const fn normal(bits: u32) -> i16 {
    let [a, b, c, d] = bits.to_le_bytes();
    ((a as i16 + b as i16 + c as i16 + d as i16) - 510) * 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_unit_variance_and_streams_differ() {
        let mut s = Stream::new(1, Purpose::Start, 0);
        let n = 20_000;
        let (mut sum, mut squares) = (0f64, 0f64);
        for _ in 0..n / 2 {
            for x in s.next_normals() {
                let x = f64::from(x) / 1024.0;
                sum += x;
                squares += x * x;
            }
        }
        assert!((sum / f64::from(n)).abs() < 0.03);
        assert!((squares / f64::from(n) - 1.02).abs() < 0.05);
        assert_ne!(Stream::new(1, Purpose::Start, 1).next_u64(), Stream::new(1, Purpose::Noise, 1).next_u64());
        assert_ne!(Stream::new(1, Purpose::Start, 1).next_u64(), Stream::new(2, Purpose::Start, 1).next_u64());
    }
}
