//! What calibration sees: extent, moments and a sample of the values at every tap, over training puzzles.

use std::collections::BTreeMap;

use hrm_core::rng::{Purpose, Stream};
use hrm_core::{Config, Start};
use rayon::prelude::*;

use super::float::{FloatNet, Part, Site, Tap};

/// Values of one site. Where a norm follows, rows are weighted by the inverse of its mean square: that is what their errors are worth
/// after it.
#[derive(Clone, Debug, Default)]
pub struct SiteStats {
    /// Columns.
    pub width: usize,
    /// Values seen.
    pub count: u64,
    /// Largest magnitude of each column.
    pub column_max: Vec<f32>,
    /// Sum of weights of rows.
    pub weight: f64,
    /// Weighted sum of each column.
    pub column_sum: Vec<f64>,
    /// Weighted sum of squares of each column.
    pub column_square: Vec<f64>,
    /// An even sample.
    pub samples: Vec<Sample>,
}

/// One value.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Its column.
    pub column: u32,
    /// The value.
    pub value: f32,
    /// Weight of its row.
    pub weight: f32,
}

impl SiteStats {
    /// Largest magnitude.
    #[must_use]
    pub fn max(&self) -> f32 {
        self.column_max.iter().copied().fold(0.0, f32::max)
    }

    /// Mean of column `k`.
    #[must_use]
    pub fn mean(&self, k: usize) -> f64 {
        self.column_sum[k] / self.weight.max(1e-30)
    }

    /// Mean square of column `k`.
    #[must_use]
    pub fn mean_square(&self, k: usize) -> f64 {
        self.column_square[k] / self.weight.max(1e-30)
    }

    /// `weights`: of each row; empty: 1.
    fn add(&mut self, width: usize, values: &[f32], stride: u64, weights: &[f32]) {
        if self.width == 0 {
            *self = Self {
                width,
                column_max: vec![0.0; width],
                column_sum: vec![0.0; width],
                column_square: vec![0.0; width],
                ..Self::default()
            };
        }
        let weight = |r: usize| weights.get(r).copied().unwrap_or(1.0);
        for (r, row) in values.chunks_exact(width).enumerate() {
            let w = f64::from(weight(r));
            self.weight += w;
            for (((&v, max), sum), square) in row.iter().zip(&mut self.column_max).zip(&mut self.column_sum).zip(&mut self.column_square) {
                *max = max.max(v.abs());
                let v = f64::from(v);
                *sum += w * v;
                *square += w * v * v;
            }
        }
        let first = (stride - self.count % stride) % stride;
        for i in (first as usize..values.len()).step_by(stride as usize) {
            self.samples.push(Sample { column: (i % width) as u32, value: values[i], weight: weight(i / width) });
        }
        self.count += values.len() as u64;
    }

    fn merge(&mut self, other: Self) {
        if self.width == 0 {
            *self = other;
            return;
        }
        self.count += other.count;
        self.weight += other.weight;
        for (a, b) in self.column_max.iter_mut().zip(other.column_max) {
            *a = a.max(b);
        }
        for (a, b) in self.column_sum.iter_mut().zip(other.column_sum) {
            *a += b;
        }
        for (a, b) in self.column_square.iter_mut().zip(other.column_square) {
            *a += b;
        }
        self.samples.extend(other.samples);
    }
}

/// Statistics of all sites.
pub type Statistics = BTreeMap<Site, SiteStats>;

struct Observer {
    stats: Statistics,
    stride: u64,
    /// Stride of hidden values, which get a scale for each channel.
    dense: u64,
    /// Sites whose weights follow from the norm to come.
    pending: Vec<(Site, usize, Vec<f32>)>,
}

impl Tap for Observer {
    fn tap(&mut self, site: Site, width: usize, values: &mut [f32]) {
        match site.part {
            Part::Hidden | Part::AttentionOutput | Part::Delta => self.pending.push((site, width, values.to_vec())),
            Part::Residual => {
                let weight = |row: &[f32]| width as f32 / (row.iter().map(|v| v * v).sum::<f32>() + 1e-5 * width as f32);
                let weights: Vec<f32> = values.chunks_exact(width).map(weight).collect();
                for (site, width, values) in self.pending.drain(..) {
                    let stride = if site.part == Part::Hidden { self.dense } else { self.stride };
                    self.stats.entry(site).or_default().add(width, &values, stride, &weights);
                }
                self.stats.entry(site).or_default().add(width, values, self.stride, &weights);
            }
            // There are few groups: their sums are taken as often.
            Part::Sum(_) => self.stats.entry(site).or_default().add(width, values, self.dense, &[]),
            _ => self.stats.entry(site).or_default().add(width, values, self.stride, &[]),
        }
    }
}

/// Samples kept of each site, about.
const SAMPLES: usize = 100_000;

/// The start of guess `guess` of `seed` as the integer network draws it (Q5.10), or `None` with fixed starts.
#[must_use]
pub fn random_start(c: &Config, seed: u64, guess: u64) -> Option<(Vec<i16>, Vec<i16>)> {
    if c.start == Start::Fixed {
        return None;
    }
    let mut stream = Stream::new(seed, Purpose::Start, guess);
    let mut state = || {
        let mut z = vec![0i16; c.state_len()];
        for pair in z.chunks_mut(2) {
            for (z, n) in pair.iter_mut().zip(stream.next_normals()) {
                *z = n;
            }
        }
        z
    };
    Some((state(), state()))
}

/// Runs `segments` segments of every puzzle and collects what passes. The result does not depend on the number of threads.
///
/// # Errors
/// A puzzle does not fit to the model.
pub fn observe(net: &FloatNet, puzzles: &[&[u8]], segments: usize, seed: u64) -> anyhow::Result<Statistics> {
    let config = net.weights().spec.config;
    let calls = usize::from(config.h_cycles) * (1 + usize::from(config.l_cycles));
    let total = (puzzles.len() * segments * calls * config.state_len()).max(1);
    // A prime does not fall into step with the columns.
    let stride = |samples: usize| {
        [1, 5, 11, 23, 47, 97, 197, 397, 797, 1597, 3203, 6421].into_iter().find(|s| total / s <= samples).unwrap_or(12_853) as u64
    };
    let (stride, dense) = (stride(SAMPLES), stride(10 * SAMPLES));
    let one = |(i, tokens): (usize, &&[u8])| -> anyhow::Result<Statistics> {
        let x = net.embed(tokens)?;
        let start = random_start(&config, seed, i as u64);
        let mut carry = net.start(start.as_ref().map(|(h, l)| (h.as_slice(), l.as_slice())));
        let mut observer = Observer { stats: Statistics::new(), stride, dense, pending: Vec::new() };
        for _ in 0..segments {
            net.segment(&x, &mut carry, &mut observer);
        }
        Ok(observer.stats)
    };
    let each: anyhow::Result<Vec<Statistics>> = puzzles.par_iter().enumerate().map(one).collect();
    let mut all = Statistics::new();
    for stats in each? {
        for (site, s) in stats {
            all.entry(site).or_default().merge(s);
        }
    }
    Ok(all)
}
