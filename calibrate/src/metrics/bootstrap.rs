//! Intervals of every metric. Outcomes of one task may depend on one another in any way: what is drawn,
//! or summed before a variance is taken, are whole tasks.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::tally::log_loss;
use super::{MetricIntervals, Metrics, Outcome, Tally, auroc_interval};
use crate::intervals::{Interval, clustered_error, mean_clustered, percentile, pivotal, student, wilson_effective};

/// Most groups of clusters that are left out one after the other: the error is then known within a twentieth.
const GROUPS_MAX: usize = 200;

/// How to resample. The same values and outcomes give the same intervals everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// How many times the tasks are drawn anew.
    pub resamples: usize,
    /// Seed of the ChaCha generator.
    pub seed: u64,
    /// Two-sided confidence of the intervals.
    pub confidence: f64,
}

impl Bootstrap {
    /// What reports use: 2,000 resamples, 95 %, seed 0.
    pub const REPORT: Bootstrap = Bootstrap { resamples: 2000, seed: 0, confidence: 0.95 };
}

/// Intervals of every metric. All `None` with fewer than two clusters: then nothing shows how much
/// clusters vary.
///
/// | metric | interval |
/// |---|---|
/// | means: Brier score, NLL, signed gap | Student's t over clusters; for a gap with one class only, the base rate's |
/// | base rate | Wilson's, for as many independent outcomes as would be known as well |
/// | Brier score of the base rate, uncertainty | from the base rate's |
/// | AUROC | DeLong's, by cluster |
/// | reliability, resolution | cluster bootstrap, pivotal: they are biased |
/// | calibration errors | cluster bootstrap: the wider of pivotal and shifted above, all chance allowed for below |
/// | areas: under risk against coverage, under precision of failures | jackknife over clusters, log odds |
/// | the rest | cluster bootstrap, percentile |
///
/// An interval of a calibration error says where the true one may lie and need not hold the measured
/// one, which is biased upwards. It is conservative: its lower end allows for all the bias there may be.
pub fn intervals(outcomes: &[Outcome], bootstrap: &Bootstrap) -> MetricIntervals {
    let mut tally = Tally::support(outcomes);
    let clusters = Clusters::of(outcomes, &tally);
    if clusters.len() < 2 {
        return MetricIntervals::default();
    }
    let mut resampled = [const { Vec::new() }; Metrics::NAMES.len()];
    let mut random = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    for _ in 0..bootstrap.resamples {
        tally.clear();
        for _ in 0..clusters.len() {
            for &(index, success) in clusters.get(random.random_range(0..clusters.len())) {
                tally.add(index as usize, success);
            }
        }
        for (values, value) in resampled.iter_mut().zip(tally.metrics().values()) {
            values.extend(value);
        }
    }
    let percentiles = resampled.clone().map(|mut it| percentile(&mut it, bootstrap.resamples, bootstrap.confidence));
    let unbiased = MetricIntervals::from_array(percentiles);
    let chance = Tally::of(outcomes).errors_by_chance();
    let shifted = MetricIntervals::from_array(shifted(outcomes, resampled.clone(), bootstrap));
    let biased = MetricIntervals::from_array(pivotals(outcomes, resampled, bootstrap));
    let error = |pivotal: Option<_>, shifted: Option<_>, chance| Some(calibration_error(pivotal?, shifted?, chance));
    let areas = areas(Tally::of(outcomes), &clusters, bootstrap);
    MetricIntervals {
        aurc: areas[0].or(unbiased.aurc),
        auprc_failure: areas[1].or(unbiased.auprc_failure),
        reliability: biased.reliability,
        resolution: biased.resolution,
        ece_equal_width_10: error(biased.ece_equal_width_10, shifted.ece_equal_width_10, chance[0]),
        ece_equal_mass_15: error(biased.ece_equal_mass_15, shifted.ece_equal_mass_15, chance[1]),
        auroc: auroc_interval(outcomes, bootstrap.confidence),
        ..means(outcomes, bootstrap.confidence, unbiased)
    }
}

/// Pivotal intervals of every metric. What is resampled has the true reliability and resolution of its
/// own counts, not debiased ones.
fn pivotals(
    outcomes: &[Outcome],
    resampled: [Vec<f64>; Metrics::NAMES.len()],
    bootstrap: &Bootstrap,
) -> [Option<Interval>; Metrics::NAMES.len()] {
    let tally = Tally::of(outcomes);
    let estimate = tally.metrics();
    let (reliability, resolution) = tally.murphy_of_population();
    let population =
        Metrics { reliability: Some(reliability), resolution: Some(resolution), ..estimate.clone() }.values();
    let mut known = estimate.values().into_iter().zip(population);
    resampled.map(|mut values| {
        let (estimate, population) = known.next()?;
        pivotal(&mut values, bootstrap.resamples, bootstrap.confidence, estimate?, population?)
    })
}

/// Percentile intervals of every metric, moved by twice the bias that resampling shows: once for the estimate's own,
/// once for that of what is resampled from it.
fn shifted(
    outcomes: &[Outcome],
    resampled: [Vec<f64>; Metrics::NAMES.len()],
    bootstrap: &Bootstrap,
) -> [Option<Interval>; Metrics::NAMES.len()] {
    let mut estimates = Tally::of(outcomes).metrics().values().into_iter();
    resampled.map(|mut values| {
        let bias = values.iter().sum::<f64>() / values.len() as f64 - estimates.next()??;
        let Interval { low, high } = percentile(&mut values, bootstrap.resamples, bootstrap.confidence)?;
        Some(Interval { low: low - 2.0 * bias, high: high - 2.0 * bias })
    })
}

/// The interval of a calibration error, whose bias depends on a truth that resampling does not show: nothing
/// where the error is large in every bin, all of what chance alone would make where there is no error. The
/// lower end allows for all of it. Above, a pivotal interval mirrors the skew of what is resampled and a shifted
/// one keeps it; each is too short for some laws, so the wider one is taken.
fn calibration_error(pivotal: Interval, shifted: Interval, chance: f64) -> Interval {
    Interval { low: (pivotal.low - chance).max(0.0), high: pivotal.high.max(shifted.high).max(0.0) }
}

/// Intervals of the two areas under curves: of risk against coverage, and of precision when failures are to be found.
///
/// Resampling repeats outcomes, and what is repeated is tied with itself: resampled areas are biased, and their
/// percentiles hold the truth too seldom. Leaving clusters out repeats nothing. The standard error is the jackknife's,
/// over groups of clusters of any sizes (Busing, Meijer & van der Leeden 1999), taken to the scale of the log odds,
/// where such an area is nearer to normal. `None` where the area is 0 or 1 or never differs.
fn areas(mut tally: Tally, clusters: &Clusters, bootstrap: &Bootstrap) -> [Option<Interval>; 2] {
    let of = |metrics: Metrics| [metrics.aurc, metrics.auprc_failure];
    let whole = of(tally.metrics());
    let mut order: Vec<usize> = (0..clusters.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(bootstrap.seed));
    let n_groups = order.len().min(GROUPS_MAX);
    let mut left_out = [const { Vec::new() }; 2];
    for group in 0..n_groups {
        let members: Vec<usize> = order.iter().copied().skip(group).step_by(n_groups).collect();
        let outcomes = || members.iter().flat_map(|it| clusters.get(*it));
        outcomes().for_each(|&(index, success)| tally.remove(index as usize, success));
        for (values, value) in left_out.iter_mut().zip(of(tally.metrics())) {
            values.extend(value.map(|it| (clusters.len() as f64 / members.len() as f64, it)));
        }
        outcomes().for_each(|&(index, success)| tally.add(index as usize, success));
    }
    let mut known = left_out.into_iter();
    whole.map(|area| log_odds(area?, &known.next()?, n_groups, bootstrap.confidence))
}

/// Student's t interval of a share on the scale of its log odds. `left_out` holds, for each group, how many such groups
/// there would be and the share without it.
fn log_odds(share: f64, left_out: &[(f64, f64)], n_groups: usize, confidence: f64) -> Option<Interval> {
    if left_out.len() < n_groups || !(share > 0.0 && share < 1.0) {
        return None;
    }
    let groups = n_groups as f64;
    let mean = left_out.iter().map(|(h, without)| (1.0 - 1.0 / h) * without).sum::<f64>();
    let centre = groups * share - mean;
    let square = |(h, without): &(f64, f64)| (h * share - (h - 1.0) * without - centre).powi(2) / (h - 1.0);
    let error = (left_out.iter().map(square).sum::<f64>() / groups).sqrt();
    let half = student(groups - 1.0, confidence)? * error / (share * (1.0 - share));
    let odds = (share / (1.0 - share)).ln();
    let of = |odds: f64| 1.0 / (1.0 + (-odds).exp());
    (half > 0.0 && half.is_finite()).then(|| Interval { low: of(odds - half), high: of(odds + half) })
}

/// The interval of `b (1 - b)`, from that of `b`: at one half, where it is flat, resampling would miss it.
fn of_constant(base_rate: Interval) -> Interval {
    let Interval { low, high } = base_rate;
    let (at_low, at_high) = (low * (1.0 - low), high * (1.0 - high));
    let most = if base_rate.contains(0.5) { 0.25 } else { at_low.max(at_high) };
    Interval { low: at_low.min(at_high), high: most }
}

/// The intervals with those of plain means put in.
fn means(outcomes: &[Outcome], confidence: f64, others: MetricIntervals) -> MetricIntervals {
    let values = |of: &dyn Fn(f64, f64) -> f64| -> Vec<(u64, f64)> {
        let value = |it: &Outcome| (it.cluster(), of(it.probability(), f64::from(u8::from(it.success()))));
        outcomes.iter().map(value).collect()
    };
    let mean = |of: &dyn Fn(f64, f64) -> f64| mean_clustered(&values(of), confidence);
    let base_rate = share(&values(&|_, success| success), confidence);
    let successes = outcomes.iter().filter(|it| it.success()).count();
    let mut stated: Vec<f64> = outcomes.iter().map(|it| it.probability()).collect();
    // Summed in sorted order, so that no order of the outcomes shows in the last digits.
    stated.sort_unstable_by(f64::total_cmp);
    let stated = stated.iter().sum::<f64>() / outcomes.len() as f64;
    // Outcomes that are all alike do not show how much they vary; Wilson's interval knows.
    let signed_gap = if successes == 0 || successes == outcomes.len() {
        base_rate.map(|it| Interval { low: stated - it.high, high: stated - it.low })
    } else {
        mean(&|q, success| q - success)
    };
    MetricIntervals {
        base_rate,
        brier_constant: base_rate.map(of_constant),
        uncertainty: base_rate.map(of_constant),
        brier: mean(&|q, success| (q - success).powi(2)),
        nll: mean(&log_loss),
        signed_gap,
        ..others
    }
}

/// Wilson's interval for the number of independent outcomes that would tell as much.
fn share(successes: &[(u64, f64)], confidence: f64) -> Option<Interval> {
    let (share, error, n_clusters) = clustered_error(successes)?;
    let n = successes.len() as f64;
    let single = n == n_clusters;
    let independent = if single { n } else { (share * (1.0 - share) / (error * error)).min(n) };
    // One class only: nothing shows the dependence, so each cluster counts once.
    let independent = if independent.is_finite() && independent > 0.0 { independent } else { n_clusters };
    wilson_effective(share * independent, independent, confidence)
}

/// Outcomes as (place in the tally, success), cluster after cluster.
struct Clusters {
    members: Vec<(u32, bool)>,
    /// Where each cluster ends in `members`.
    ends: Vec<usize>,
}

impl Clusters {
    fn of(outcomes: &[Outcome], tally: &Tally) -> Self {
        let mut tagged: Vec<(u64, u32, bool)> =
            outcomes.iter().map(|it| (it.cluster(), tally.index_of(it.probability()) as u32, it.success())).collect();
        // Sorting makes a draw mean the same cluster whatever the order of the outcomes was.
        tagged.sort_unstable();
        let ends = tagged.chunk_by(|a, b| a.0 == b.0).scan(0, |end, chunk| {
            *end += chunk.len();
            Some(*end)
        });
        Self { ends: ends.collect(), members: tagged.iter().map(|&(_, index, won)| (index, won)).collect() }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, cluster: usize) -> &[(u32, bool)] {
        let start = if cluster == 0 { 0 } else { self.ends[cluster - 1] };
        &self.members[start..self.ends[cluster]]
    }
}
