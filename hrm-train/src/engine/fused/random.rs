//! Normal numbers from counters: the value at (seed, stream, index) depends on nothing else, so neither threads nor order matter.

/// What the numbers are for; streams of one seed are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights; the stream number is the tensor's.
    Weights = 1,
    /// Starts of the carry in training.
    Start = 2,
    /// Starts of the carry in inference.
    InferenceStart = 3,
    /// Noise on the carry.
    Noise = 4,
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// One stream: SplitMix64 from a start hashed out of (seed, purpose, number).
#[derive(Clone, Copy, Debug)]
pub struct Stream(u64);

impl Stream {
    /// The stream of this number.
    pub const fn new(seed: u64, purpose: Purpose, number: u64) -> Self {
        let a = mix(seed.wrapping_add(GOLDEN)) ^ mix((purpose as u64).wrapping_mul(GOLDEN));
        Self(mix(mix(a).wrapping_add(number.wrapping_mul(GOLDEN))))
    }

    /// What makes it this stream, in the lower and the upper word.
    pub const fn words(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }

    /// Uniform in (-1, 1), symmetric, 24 bits.
    #[inline(always)]
    fn uniform(self, index: u64) -> f32 {
        let bits = mix(self.0.wrapping_add(index.wrapping_mul(GOLDEN)));
        ((bits >> 41) as i32 * 2 + 1 - (1 << 23)) as f32 * (1.0 / (1u32 << 23) as f32)
    }

    /// Normal of standard deviation 1, cut at two standard deviations of the uncut one (as in JAX and HRM), |x| < 2.28.
    #[inline(always)]
    pub fn truncated(self, index: u64) -> f32 {
        // erf(2 / sqrt 2) and sqrt 2 / (standard deviation of N(0, 1) cut at 2)
        erfinv(self.uniform(index) * 0.954_499_7) * 1.607_744_7
    }

    /// Standard normal, |x| < 5.4.
    #[inline(always)]
    pub fn normal(self, index: u64) -> f32 {
        erfinv(self.uniform(index)) * core::f32::consts::SQRT_2
    }
}

/// Inverse error function (Giles 2012, single precision), without branches a compiler could not turn into selects.
#[inline(always)]
fn erfinv(x: f32) -> f32 {
    let w = -ln((1.0 - x) * (1.0 + x));
    let (near, far) = (w - 2.5, w.max(0.0).sqrt() - 3.0);
    let mut p = 2.810_226_4e-8;
    for c in [3.432_739_4e-7, -3.523_387_7e-6, -4.391_506_5e-6, 2.185_808_7e-4, -1.253_725e-3, -4.177_681_6e-3, 0.246_640_73, 1.501_409_4] {
        p = p * near + c;
    }
    let mut q = -2.002_142_6e-4;
    for c in [1.009_505_6e-4, 1.349_343_2e-3, -3.673_428_4e-3, 5.739_507_7e-3, -7.622_461_3e-3, 9.438_870_5e-3, 1.001_674, 2.832_976_8] {
        q = q * far + c;
    }
    (if w < 5.0 { p } else { q }) * x
}

/// Natural logarithm of a normal positive number, relative error about 1e-6.
#[inline(always)]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    // Mantissa in [0.707, 1.414), so that the logarithm of numbers close to 1 keeps its digits.
    let exponent = (bits.wrapping_sub(0x3f35_04f3) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    exponent as f32 * core::f32::consts::LN_2 + 2.0 * s * (1.0 + z * (1.0 / 3.0 + z * (0.2 + z * (1.0 / 7.0 + z * (1.0 / 9.0)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_cut() {
        let stream = Stream::new(7, Purpose::Start, 3);
        let n = 200_000;
        let (mut sum, mut square, mut largest) = (0.0f64, 0.0f64, 0.0f32);
        let (mut nsum, mut nsquare, mut nfourth) = (0.0f64, 0.0f64, 0.0f64);
        for i in 0..n {
            let (t, g) = (stream.truncated(i), f64::from(stream.normal(i)));
            sum += f64::from(t);
            square += f64::from(t).powi(2);
            largest = largest.max(t.abs());
            nsum += g;
            nsquare += g * g;
            nfourth += g.powi(4);
        }
        let n = n as f64;
        assert!((sum / n).abs() < 0.01 && (square / n - 1.0).abs() < 0.01, "mean {} variance {}", sum / n, square / n);
        assert!((2.26..2.28).contains(&largest), "largest {largest}");
        assert!((nsum / n).abs() < 0.01 && (nsquare / n - 1.0).abs() < 0.01 && (nfourth / n - 3.0).abs() < 0.1, "fourth {}", nfourth / n);
    }

    #[test]
    fn erfinv_inverts_known_values() {
        for (x, y) in [(0.5f32, 0.476_936_28f32), (0.9, 1.163_087_2), (0.999, 2.326_753_8), (-0.2, -0.179_143_45), (0.999_9, 2.751_064)] {
            assert!((erfinv(x) / y - 1.0).abs() < 2e-4, "{x}: {} expected {y}", erfinv(x));
        }
    }

    #[test]
    fn streams_differ() {
        let first = |seed, purpose, number| Stream::new(seed, purpose, number).uniform(0);
        let base = first(1, Purpose::Start, 0);
        assert_ne!(base, first(2, Purpose::Start, 0));
        assert_ne!(base, first(1, Purpose::Noise, 0));
        assert_ne!(base, first(1, Purpose::Start, 1));
    }
}
