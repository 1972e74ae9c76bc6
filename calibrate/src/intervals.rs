//! Intervals for proportions, means, paired differences and resampled statistics.
//!
//! Knows nothing of what is measured. An interval that is not defined is `None`.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal, StudentsT};

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
pub(crate) fn reach(confidence: f64) -> Option<f64> {
    if confidence <= 0.0 {
        return None;
    }
    normal_quantile(0.5 + confidence / 2.0)
}

/// How many standard errors a two-sided interval reaches where the error itself comes from so many degrees of freedom.
pub(crate) fn student(freedom: f64, confidence: f64) -> Option<f64> {
    if freedom.is_infinite() {
        return reach(confidence);
    }
    Some(StudentsT::new(0.0, 1.0, freedom).ok()?.inverse_cdf(0.5 + confidence / 2.0))
}

/// The Wilson score interval of a proportion, two-sided (Wilson 1927).
/// `None` if `n` is 0, `successes > n` or `confidence` is outside `(0, 1)`.
pub fn wilson(successes: u64, n: u64, confidence: f64) -> Option<Interval> {
    wilson_effective(successes as f64, n as f64, confidence)
}

/// The Wilson interval for counts that need not be whole: those of outcomes that depend on one another,
/// scaled to as many independent ones as would tell as much.
pub(crate) fn wilson_effective(k: f64, n: f64, confidence: f64) -> Option<Interval> {
    if n <= 0.0 || k > n {
        return None;
    }
    let z2 = reach(confidence)?.powi(2);
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
    let half = student(n - 1.0, confidence)? * (variance / n).sqrt();
    half.is_finite().then_some(Interval { low: mean - half, high: mean + half })
}

/// The interval of a mean whose values depend on one another within clusters, two-sided: Student's t on
/// the sums of clusters, which is [`mean_t`] where every cluster has one value.
///
/// `values` are `(cluster, value)` in any order. `None` below two clusters or for values not finite.
pub fn mean_clustered(values: &[(u64, f64)], confidence: f64) -> Option<Interval> {
    if !(confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    let (mean, error, n_clusters) = clustered_error(values)?;
    let half = student(n_clusters - 1.0, confidence)? * error;
    half.is_finite().then_some(Interval { low: mean - half, high: mean + half })
}

/// Mean, its standard error and the number of clusters; sums in sorted order, so that no order of the
/// values shows in the last digits.
pub(crate) fn clustered_error(values: &[(u64, f64)]) -> Option<(f64, f64, f64)> {
    let mut values = values.to_vec();
    values.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let n = values.len() as f64;
    let mean = values.iter().map(|it| it.1).sum::<f64>() / n;
    let excess = values.chunk_by(|a, b| a.0 == b.0).map(|it| it.iter().map(|it| it.1 - mean).sum::<f64>());
    let excess: Vec<f64> = excess.collect();
    let n_clusters = excess.len() as f64;
    let squares: f64 = excess.iter().map(|it| it * it).sum();
    let error = (squares * n_clusters / (n_clusters - 1.0)).sqrt() / n;
    (excess.len() > 1 && mean.is_finite() && error.is_finite()).then_some((mean, error, n_clusters))
}

/// Newcombe's hybrid score interval of a paired difference of proportions, two-sided (Newcombe 1998,
/// method 10: Wilson limits of both shares, joined with their correlation).
///
/// Of `n` pairs, `both` succeed in both members, `gained` only in the second and `lost` only in the
/// first; the difference is `(gained - lost) / n`. `None` if `n` is 0 or the counts do not fit.
pub fn newcombe(both: u64, gained: u64, lost: u64, n: u64, confidence: f64) -> Option<Interval> {
    let neither = n.checked_sub(both.checked_add(gained)?.checked_add(lost)?)?;
    let (second, first) = (wilson(both + gained, n, confidence)?, wilson(both + lost, n, confidence)?);
    let [a, b, c, d, n] = [both, gained, lost, neither, n].map(|it| it as f64);
    let product = (a + b) * (c + d) * (a + c) * (b + d);
    let covariance = a * d - b * c;
    // The continuity correction of the method: a positive correlation counts only beyond n / 2.
    let covariance = if covariance > 0.0 { (covariance - n / 2.0).max(0.0) } else { covariance };
    let correlation = if product > 0.0 { covariance / product.sqrt() } else { 0.0 };
    let (share_second, share_first) = ((a + b) / n, (a + c) / n);
    let join = |x: f64, y: f64| (x * x - 2.0 * correlation * x * y + y * y).max(0.0).sqrt();
    let difference = (b - c) / n;
    Some(Interval {
        low: (difference - join(share_second - second.low, first.high - share_first)).max(-1.0),
        high: (difference + join(second.high - share_second, share_first - first.low)).min(1.0),
    })
}

/// The exact two-sided p-value of McNemar's test: could as many flips fall so unevenly by chance?
/// 1 for no flips. A large value is no evidence that nothing changed.
pub fn mcnemar_exact(gained: u64, lost: u64) -> f64 {
    match Binomial::new(0.5, gained + lost) {
        Ok(fair) if gained != lost => (2.0 * fair.cdf(gained.min(lost))).min(1.0),
        _ => 1.0,
    }
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

/// The pivotal interval of a statistic that is biased, two-sided; sorts the resampled values.
///
/// Resampling shows how far the statistic strays from `population`, its true value for the distribution
/// that is resampled; the interval takes `estimate` to stray from the truth alike. A percentile interval
/// would add the bias a second time. `resamples` is as for [`percentile`].
pub fn pivotal(
    values: &mut [f64],
    resamples: usize,
    confidence: f64,
    estimate: f64,
    population: f64,
) -> Option<Interval> {
    let strayed = percentile(values, resamples, confidence)?;
    Some(Interval { low: estimate - (strayed.high - population), high: estimate - (strayed.low - population) })
}

/// The bias-corrected and accelerated interval of a statistic, two-sided (BCa, Efron 1987); sorts the
/// resampled values.
///
/// A percentile interval of a rare event is too short above: where few slips were seen, few are drawn. The
/// correction shifts both ends by how many resampled values lie below the estimate, and by the
/// `acceleration`: how fast the standard error grows with the truth. Both ends reach as far as Student's t with
/// `freedom` degrees of freedom does, infinitely many for the normal's. `resamples` is as for [`percentile`].
pub fn accelerated(
    values: &mut [f64],
    resamples: usize,
    confidence: f64,
    estimate: f64,
    acceleration: f64,
    freedom: f64,
) -> Option<Interval> {
    percentile(values, resamples, confidence)?;
    let standard = Normal::new(0.0, 1.0).ok()?;
    let n = values.len() as f64;
    let below = values.partition_point(|it| *it < estimate) as f64;
    let upto = values.partition_point(|it| *it <= estimate) as f64;
    let share = (0.5 * (below + upto) / n).clamp(0.5 / n, 1.0 - 0.5 / n);
    let shift = normal_quantile(share)?;
    let student = student(freedom, confidence)?;
    let end = |reach: f64| {
        let reach = shift + reach;
        let slowed = 1.0 - acceleration * reach;
        // Beyond this the correction has no meaning; the outermost value is the safe end.
        let share = if slowed > 0.0 { standard.cdf(shift + reach / slowed) } else { f64::from(u8::from(reach > 0.0)) };
        quantile(values, share)
    };
    Some(Interval { low: end(-student), high: end(student) })
}

/// The quantile of sorted values, linear between neighbours; `sorted` must not be empty.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}
