//! Intervals for proportions, means, paired differences and resampled statistics.
//!
//! Knows nothing of what is measured. An interval that is not defined is `None`.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// A closed range a true value is believed to lie in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` lies inside, ends included.
    pub fn contains(self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The quantile of the standard normal distribution; `None` unless `0 < probability < 1`.
pub fn normal_quantile(probability: f64) -> Option<f64> {
    let standard = Normal::new(0.0, 1.0).ok()?;
    (probability > 0.0 && probability < 1.0).then(|| standard.inverse_cdf(probability))
}

/// How many standard errors a two-sided interval reaches: 1.96 for a confidence of 0.95.
fn reach(confidence: f64) -> Option<f64> {
    if confidence <= 0.0 {
        return None;
    }
    normal_quantile(0.5 + confidence / 2.0)
}

/// The Wilson score interval of a proportion, two-sided (Wilson 1927).
/// `None` if `n` is 0, `successes > n` or `confidence` is outside `(0, 1)`.
pub fn wilson(successes: u64, n: u64, confidence: f64) -> Option<Interval> {
    if n == 0 || successes > n {
        return None;
    }
    let (z2, n, k) = (reach(confidence)?.powi(2), n as f64, successes as f64);
    let centre = (k + z2 / 2.0) / (n + z2);
    let half = (z2 * (k * (n - k) / n + z2 / 4.0)).sqrt() / (n + z2);
    // The ends are exactly 0 and 1 in the extreme cases; rounding would miss them by an ulp.
    let low = if k == 0.0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if k == n { 1.0 } else { (centre + half).min(1.0) };
    Some(Interval { low, high })
}

/// Student's t interval of a mean, two-sided. `None` below two values or for values not finite.
pub fn mean_t(values: &[f64], confidence: f64) -> Option<Interval> {
    let n = values.len() as f64;
    if values.len() < 2 || !(confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?.inverse_cdf(0.5 + confidence / 2.0);
    let half = t * (variance / n).sqrt();
    half.is_finite().then_some(Interval { low: mean - half, high: mean + half })
}

/// Tango's score interval of a paired difference of proportions, two-sided (Tango 1998).
///
/// Of `n` pairs, `gained` succeed only in the second member and `lost` only in the first; the
/// difference is `(gained - lost) / n`. Unlike a bootstrap it stays honest when no pair differs:
/// the ends are then `± z² / (n + z²)`. `None` if `n` is 0 or the counts do not fit.
pub fn tango(gained: u64, lost: u64, n: u64, confidence: f64) -> Option<Interval> {
    if n == 0 || gained.checked_add(lost)? > n {
        return None;
    }
    let z = reach(confidence)?;
    let (b, c, n) = (gained as f64, lost as f64, n as f64);
    let difference = (b - c) / n;
    // The score falls as the assumed difference grows; the ends are where it crosses +z and -z.
    let score = |delta: f64| {
        let linear = -b - c + (2.0 * n - b + c) * delta;
        let constant = -c * delta * (1.0 - delta);
        let lost_share = ((linear * linear - 8.0 * n * constant).max(0.0).sqrt() - linear) / (4.0 * n);
        let variance = n * (2.0 * lost_share + delta * (1.0 - delta));
        let excess = b - c - n * delta;
        if variance > 0.0 { excess / variance.sqrt() } else { excess * f64::INFINITY }
    };
    let crossing = |inside: f64, outside: f64, level: f64| {
        let (mut inside, mut outside) = (inside, outside);
        for _ in 0..100 {
            let middle = 0.5 * (inside + outside);
            // NaN, at a degenerate end, counts as outside.
            if score(middle).abs() <= level { inside = middle } else { outside = middle }
        }
        0.5 * (inside + outside)
    };
    Some(Interval { low: crossing(difference, -1.0, z), high: crossing(difference, 1.0, z) })
}

/// The percentile interval of a statistic's resampled values, two-sided; sorts them.
///
/// `resamples` is how many were drawn: those where the statistic was not defined are missing from
/// `values`. `None` if more than half are missing, as the rest would no longer stand for the data.
pub fn percentile(values: &mut [f64], resamples: usize, confidence: f64) -> Option<Interval> {
    if values.is_empty() || values.len() * 2 < resamples {
        return None;
    }
    values.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    Some(Interval { low: quantile(values, tail), high: quantile(values, 1.0 - tail) })
}

/// The quantile of sorted values, linear between neighbours; `sorted` must not be empty.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}
