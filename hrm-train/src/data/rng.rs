//! Random numbers that are a pure function of a seed and a counter.

use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;

/// A fixed mixing of 64 bits (the finaliser of SplitMix64): a bijection without visible structure.
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The generator number `counter` of a seed. Generators of different counters are independent.
#[must_use]
pub fn generator(seed: u64, counter: u64) -> Pcg32 {
    let state = mix(mix(seed) ^ counter);
    Pcg32::new(state, mix(state ^ seed.rotate_left(32)))
}

/// A number below `n`; `n` at least 1. The bias is below `n / 2^32`.
pub fn below(rng: &mut Pcg32, n: usize) -> usize {
    ((u64::from(rng.next_u32()) * n as u64) >> 32) as usize
}

/// A number in `[0, 1)` with 32 bits.
pub fn unit(rng: &mut Pcg32) -> f64 {
    f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

/// Puts the items into a random order.
pub fn shuffle<T>(rng: &mut Pcg32, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}

/// A random-access permutation of `0..n`: element `i` of permutation number `epoch` of a seed, without a table.
///
/// A balanced Feistel network over the next even number of bits, walked until it falls below `n` (fewer than four tries on average).
#[must_use]
pub fn permuted(seed: u64, epoch: u64, i: u64, n: u64) -> u64 {
    debug_assert!(i < n);
    let half = (64 - n.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let key = mix(mix(seed) ^ mix(!epoch));
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..6 {
            let f = mix(key ^ (right << 3) ^ round) & mask;
            (left, right) = (right, left ^ f);
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_hit_everything_once_and_differ() {
        for n in [1, 2, 3, 17, 64, 1000] {
            let all = |epoch| (0..n).map(|i| permuted(5, epoch, i, n)).collect::<Vec<_>>();
            let mut sorted = all(0);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            if n > 3 {
                assert_ne!(all(0), all(1));
            }
        }
        // Every element comes to the first place about equally often.
        let mut count = [0u32; 10];
        for epoch in 0..10_000 {
            count[permuted(1, epoch, 0, 10) as usize] += 1;
        }
        assert!(count.iter().all(|&c| (850..1150).contains(&c)), "{count:?}");
    }

    #[test]
    fn generators_of_neighbours_differ() {
        let first: Vec<u32> = (0..1000).map(|k| generator(1, k).next_u32()).collect();
        let ones: u32 = first.iter().map(|x| x.count_ones()).sum();
        assert!((15_500..16_500).contains(&ones), "{ones}");
        let mut rng = generator(3, 4);
        let mut count = [0u32; 7];
        for _ in 0..7000 {
            count[below(&mut rng, 7)] += 1;
        }
        assert!(count.iter().all(|&c| (880..1120).contains(&c)), "{count:?}");
    }
}
