//! Foresight shift: how far two policies' stated probabilities are apart where both have read the same.
//!
//! Both are read as distributions over the 21 grid answers at the same place of the same text, so a difference is one
//! of judgement and not of what was imagined. Knows nothing of outcomes: which of the two is right is for
//! [`crate::metrics`] to say.

use serde::Serialize;

use crate::intervals::{Interval, mean_t, quantile};
use crate::stated::{GRID_PERCENT, StatedDistribution};

/// Confidence of every interval.
const CONFIDENCE: f64 = 0.95;

/// One place where both policies state a probability.
#[derive(Debug, Clone, PartialEq)]
pub struct StatedPair {
    /// The task, or whatever else makes places depend on one another.
    pub cluster: u64,
    /// What the reference states.
    pub reference: StatedDistribution,
    /// What the candidate states.
    pub candidate: StatedDistribution,
}

/// All places together. A shift is the candidate's expected value minus the reference's, in `-1..=1`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ForesightShift {
    /// Places compared.
    pub n_places: usize,
    /// Tasks that they are from.
    pub n_clusters: usize,
    /// Mean probability that the reference states.
    pub stated_reference: f64,
    /// Mean probability that the candidate states.
    pub stated_candidate: f64,
    /// Mean shift; above 0 the candidate is the more confident one.
    pub mean: f64,
    /// Around the mean shift, by the means of the tasks. Not defined below two tasks.
    pub mean_interval: Option<Interval>,
    /// Mean size of the shift, whatever its sign.
    pub mean_absolute: f64,
    /// Around the mean size, by the means of the tasks.
    pub mean_absolute_interval: Option<Interval>,
    /// Root of the mean square of the shift.
    pub rms: f64,
    /// Percentiles of the size of the shift, linear between neighbours: 50 %.
    pub absolute_median: f64,
    /// 90 %.
    pub absolute_p90: f64,
    /// 99 %.
    pub absolute_p99: f64,
    /// The largest.
    pub absolute_max: f64,
    /// Share of places where both hold the same grid answer most probable.
    pub top1_agreement: f64,
    /// Mean total variation between the distributions, `½ Σ |p - q|`: probability that lies on other answers.
    pub total_variation_mean: f64,
    /// Mean Wasserstein distance between them: how far probability has moved along the grid. It is at least the
    /// size of the shift and tells when a distribution has widened around the same expected value.
    pub wasserstein_mean: f64,
}

impl ForesightShift {
    /// All statistics of these places; `None` where there are none.
    pub fn of(places: &[StatedPair]) -> Option<Self> {
        if places.is_empty() {
            return None;
        }
        let n = places.len() as f64;
        let mean = |of: &dyn Fn(&StatedPair) -> f64| places.iter().map(of).sum::<f64>() / n;
        let shift = |it: &StatedPair| it.candidate.expectation().value() - it.reference.expectation().value();
        let by_cluster = cluster_means(places, shift);
        let by_cluster_absolute = cluster_means(places, |it| shift(it).abs());
        let mut absolute: Vec<f64> = places.iter().map(|it| shift(it).abs()).collect();
        absolute.sort_unstable_by(f64::total_cmp);
        let same_top = |it: &StatedPair| f64::from(u8::from(top(&it.reference) == top(&it.candidate)));
        Some(Self {
            n_places: places.len(),
            n_clusters: by_cluster.len(),
            stated_reference: mean(&|it| it.reference.expectation().value()),
            stated_candidate: mean(&|it| it.candidate.expectation().value()),
            mean: mean(&shift),
            mean_interval: mean_t(&by_cluster, CONFIDENCE),
            mean_absolute: mean(&|it| shift(it).abs()),
            mean_absolute_interval: mean_t(&by_cluster_absolute, CONFIDENCE),
            rms: mean(&|it| shift(it).powi(2)).sqrt(),
            absolute_median: quantile(&absolute, 0.5),
            absolute_p90: quantile(&absolute, 0.9),
            absolute_p99: quantile(&absolute, 0.99),
            absolute_max: quantile(&absolute, 1.0),
            top1_agreement: mean(&same_top),
            total_variation_mean: mean(&total_variation),
            wasserstein_mean: mean(&wasserstein),
        })
    }
}

/// The mean of a value over the places of each cluster, in the order of the clusters.
fn cluster_means(places: &[StatedPair], value: impl Fn(&StatedPair) -> f64) -> Vec<f64> {
    let mut sums = std::collections::BTreeMap::<u64, (f64, f64)>::new();
    for place in places {
        let (sum, n) = sums.entry(place.cluster).or_default();
        *sum += value(place);
        *n += 1.0;
    }
    sums.into_values().map(|(sum, n)| sum / n).collect()
}

/// The most probable level, the lowest of equals.
fn top(stated: &StatedDistribution) -> usize {
    let mass = stated.mass();
    (0..mass.len()).fold(0, |top, it| if mass[it] > mass[top] { it } else { top })
}

fn total_variation(it: &StatedPair) -> f64 {
    it.reference.mass().iter().zip(it.candidate.mass()).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0
}

/// The area between the cumulative distributions, with levels in `0..=1`.
fn wasserstein(it: &StatedPair) -> f64 {
    let (mut apart, mut area) = (0.0, 0.0);
    let masses = it.reference.mass().iter().zip(it.candidate.mass());
    for ((p, q), levels) in masses.zip(GRID_PERCENT.windows(2)) {
        apart += q - p;
        area += f64::abs(apart) * f64::from(levels[1] - levels[0]) / 100.0;
    }
    area
}
