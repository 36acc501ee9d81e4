//! The few statistics the experiments need.

/// Quantile `p` (0 to 1) by linear interpolation; NaN of nothing.
#[must_use]
pub fn quantile(values: &[f64], p: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| !v.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = p.clamp(0.0, 1.0) * last as f64;
    let (low, share) = (at.floor() as usize, at.fract());
    sorted[low] + share * (sorted[(low + 1).min(last)] - sorted[low])
}

/// Mean; NaN of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// A cut of one sample into two classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// Values below belong to the lower class.
    pub threshold: f64,
    /// Share of the variance that the cut explains, 0 to 1: two narrow, distant bumps give 1, a uniform sample 0.75, a normal one 0.64.
    pub explained: f64,
}

/// The cut with the largest variance between the classes (Otsu, 1979), halfway between the two values around it. None if all values are
/// equal or there are fewer than two.
#[must_use]
pub fn otsu(values: &[f64]) -> Option<Cut> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let total: f64 = sorted.iter().sum();
    let m = total / n;
    let variance = sorted.iter().map(|v| (v - m).powi(2)).sum::<f64>() / n;
    let (mut below, mut best) = (0.0, None::<Cut>);
    for (i, pair) in sorted.windows(2).enumerate() {
        below += pair[0];
        if pair[0] == pair[1] {
            continue;
        }
        let k = (i + 1) as f64;
        let between = k / n * (n - k) / n * (below / k - (total - below) / (n - k)).powi(2);
        let cut = Cut { threshold: (pair[0] + pair[1]) / 2.0, explained: between / variance };
        if best.is_none_or(|b| cut.explained > b.explained) {
            best = Some(cut);
        }
    }
    best
}

/// Probability that a value of `high` is larger than one of `low`, ties half (the area under the ROC curve). NaN if one is empty.
#[must_use]
pub fn auc(high: &[f64], low: &[f64]) -> f64 {
    let wins: f64 = high.iter().flat_map(|h| low.iter().map(move |l| if h > l { 1.0 } else { f64::from(u8::from(h == l)) / 2.0 })).sum();
    wins / (high.len() * low.len()) as f64
}

/// The two directions of largest variance of a few long vectors.
#[derive(Clone, Debug)]
pub struct Plane {
    /// Mean of the points.
    pub centre: Vec<f64>,
    /// Orthonormal directions.
    pub axes: [Vec<f64>; 2],
    /// Share of the variance along each.
    pub explained: [f64; 2],
}

/// Principal components by power iteration on the Gram matrix of the points, which is small where the vectors are long.
#[must_use]
pub fn pca(points: &[Vec<f32>]) -> Plane {
    let n = points.len();
    let len = points.first().map_or(0, Vec::len);
    let centre: Vec<f64> = (0..len).map(|i| points.iter().map(|p| f64::from(p[i])).sum::<f64>() / n as f64).collect();
    let centred: Vec<Vec<f64>> = points.iter().map(|p| p.iter().zip(&centre).map(|(&v, c)| f64::from(v) - c).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut gram: Vec<Vec<f64>> = centred.iter().map(|a| centred.iter().map(|b| dot(a, b)).collect()).collect();
    let total: f64 = (0..n).map(|i| gram[i][i]).sum();
    let mut explained = [0.0; 2];
    let axes = [0, 1].map(|k| {
        let mut v: Vec<f64> = (0..n).map(|i| 1.0 + ((i * 7 + k * 3) % 5) as f64).collect();
        let mut value = 0.0;
        for _ in 0..500 {
            let next: Vec<f64> = gram.iter().map(|row| dot(row, &v)).collect();
            value = dot(&next, &next).sqrt();
            if value <= 1e-12 * total {
                break;
            }
            v = next.into_iter().map(|x| x / value).collect();
        }
        explained[k] = if total > 0.0 { value / total } else { 0.0 };
        for i in 0..n {
            for j in 0..n {
                gram[i][j] -= value * v[i] * v[j];
            }
        }
        let mut axis = vec![0.0; len];
        for (weight, point) in v.iter().zip(&centred) {
            for (a, p) in axis.iter_mut().zip(point) {
                *a += weight * p;
            }
        }
        let norm = dot(&axis, &axis).sqrt().max(1e-30);
        axis.iter_mut().for_each(|a| *a /= norm);
        axis
    });
    Plane { centre, axes, explained }
}

impl Plane {
    /// Coordinates of a point in the plane.
    #[must_use]
    pub fn project(&self, point: &[f32]) -> (f64, f64) {
        let along = |axis: &[f64]| point.iter().zip(&self.centre).zip(axis).map(|((&p, c), a)| (f64::from(p) - c) * a).sum();
        (along(&self.axes[0]), along(&self.axes[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn otsu_cuts_between_two_bumps() {
        let sample: Vec<f64> = (0..50).map(|i| f64::from(i % 5) * 0.1).chain((0..20).map(|i| 10.0 + f64::from(i % 4) * 0.1)).collect();
        let cut = otsu(&sample).unwrap();
        assert!((0.4..10.0).contains(&cut.threshold) && cut.explained > 0.99, "{cut:?}");
        let flat: Vec<f64> = (0..1000).map(f64::from).collect();
        let cut = otsu(&flat).unwrap();
        assert!((cut.threshold - 499.5).abs() < 2.0 && (cut.explained - 0.75).abs() < 0.01, "{cut:?}");
        assert_eq!(otsu(&[1.0; 9]), None);
    }

    #[test]
    fn areas_and_quantiles() {
        assert_eq!(auc(&[3.0, 4.0], &[1.0, 2.0]), 1.0);
        assert_eq!(auc(&[1.0, 4.0], &[1.0, 2.0]), 0.625);
        assert_eq!((quantile(&[3.0, 1.0, 2.0], 0.5), quantile(&[0.0, 1.0], 0.25)), (2.0, 0.25));
    }

    #[test]
    fn principal_components_of_a_flat_ellipse() {
        // Along (1, 1, 0) / sqrt 2 ten times as far as along (0, 0, 1).
        let points: Vec<Vec<f32>> = (0..40)
            .map(|i| {
                let t = i as f32 / 40.0 * std::f32::consts::TAU;
                vec![5.0 + 10.0 * t.cos(), 5.0 + 10.0 * t.cos(), t.sin()]
            })
            .collect();
        let plane = pca(&points);
        let [a, b] = &plane.axes;
        assert!((a[0].abs() - 0.5f64.sqrt()).abs() < 1e-6 && (a[0] - a[1]).abs() < 1e-6 && b[2].abs() > 0.999, "{a:?} {b:?}");
        assert!(plane.explained[0] > 0.99 && (plane.explained[0] + plane.explained[1] - 1.0).abs() < 1e-9);
        let (x, y) = plane.project(&points[10]);
        assert!(x.abs() < 1e-4 && (y.abs() - 1.0).abs() < 1e-4, "{x} {y}");
    }
}
