//! Outcomes as counts per distinct probability, and every metric from those counts.

use super::{Metrics, Outcome};
use crate::stated::nearest_level;

/// Log likelihoods are taken of probabilities no closer to 0 and 1 than this.
const LIKELIHOOD_CLIP: f64 = 0.01;

/// The distinct probabilities among some outcomes, ascending, and how often each was right.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    points: Vec<Point>,
    /// Successes per point.
    pub(super) successes: Vec<u32>,
    /// Failures per point.
    pub(super) failures: Vec<u32>,
}

/// What of a distinct probability does not depend on the counts.
#[derive(Debug, Clone, Copy)]
struct Point {
    probability: f64,
    loss_of_success: f64,
    loss_of_failure: f64,
    level: usize,
    tenth: usize,
}

/// Negative log likelihood of an outcome, 1 or 0, under a probability, clipped.
pub(super) fn log_loss(probability: f64, success: f64) -> f64 {
    let clipped = probability.clamp(LIKELIHOOD_CLIP, 1.0 - LIKELIHOOD_CLIP);
    if success > 0.5 { -clipped.ln() } else { -(1.0 - clipped).ln() }
}

impl Point {
    fn new(probability: f64) -> Self {
        Self {
            probability,
            loss_of_success: log_loss(probability, 1.0),
            loss_of_failure: log_loss(probability, 0.0),
            level: nearest_level(probability),
            tenth: equal_width_bin(probability, 10),
        }
    }
}

/// The equal-width bin `(lower, upper]` of a probability; 0 belongs to the first.
pub(super) fn equal_width_bin(probability: f64, bins: usize) -> usize {
    ((probability * bins as f64).ceil() as usize).saturating_sub(1).min(bins - 1)
}

/// Counts and sums of one bin.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bin {
    pub(super) n: f64,
    pub(super) successes: f64,
    pub(super) probability_sum: f64,
}

impl Bin {
    fn add(&mut self, probability: f64, n: f64, successes: f64) {
        self.n += n;
        self.successes += successes;
        self.probability_sum += n * probability;
    }
}

/// `n * |mean q - success rate|` summed over bins, without the division by the total.
fn calibration_error_sum(bins: &[Bin]) -> f64 {
    bins.iter().map(|it| (it.probability_sum - it.successes).abs()).sum()
}

fn mean_variance_debiased(share: f64, n: f64) -> f64 {
    // One outcome cannot show its own variance; Ferro & Fricker's correction starts at two.
    if n < 2.0 { 0.0 } else { share * (1.0 - share) / (n - 1.0) }
}

impl Tally {
    pub(crate) fn of(outcomes: &[Outcome]) -> Self {
        let mut tally = Self::support(outcomes);
        for outcome in outcomes {
            let index = tally.index_of(outcome.probability());
            tally.add(index, outcome.success());
        }
        tally
    }

    /// The distinct probabilities with all counts at 0.
    pub(super) fn support(outcomes: &[Outcome]) -> Self {
        let mut values: Vec<f64> = outcomes.iter().map(|it| it.probability()).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.dedup();
        let n = values.len();
        let points = values.into_iter().map(Point::new).collect();
        Self { points, successes: vec![0; n], failures: vec![0; n] }
    }

    /// Where a probability of the support stands.
    pub(super) fn index_of(&self, probability: f64) -> usize {
        self.points.partition_point(|it| it.probability < probability)
    }

    pub(super) fn add(&mut self, index: usize, success: bool) {
        let counts = if success { &mut self.successes } else { &mut self.failures };
        counts[index] += 1;
    }

    /// Takes back what [`Tally::add`] added.
    pub(super) fn remove(&mut self, index: usize, success: bool) {
        let counts = if success { &mut self.successes } else { &mut self.failures };
        counts[index] -= 1;
    }

    pub(super) fn clear(&mut self) {
        self.successes.fill(0);
        self.failures.fill(0);
    }

    /// Every point that occurs: itself, its successes and its failures.
    fn rows(&self) -> impl DoubleEndedIterator<Item = (&Point, f64, f64)> {
        let counts = self.successes.iter().zip(&self.failures);
        let rows = self.points.iter().zip(counts).filter(|(_, (won, lost))| **won + **lost > 0);
        rows.map(|(point, (&won, &lost))| (point, f64::from(won), f64::from(lost)))
    }

    /// Distinct probabilities that occur, ascending: `(probability, n, successes)`.
    pub(crate) fn levels(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        self.rows().map(|(point, won, lost)| (point.probability, won + lost, won))
    }

    pub(super) fn metrics(&self) -> Metrics {
        let (mut won_sum, mut lost_sum, mut gap_sum) = (0.0, 0.0, 0.0);
        let (mut squares, mut losses) = (0.0, 0.0);
        for (point, won, lost) in self.rows() {
            let q = point.probability;
            won_sum += won;
            lost_sum += lost;
            gap_sum += (won + lost) * q;
            squares += won * (1.0 - q).powi(2) + lost * q * q;
            losses += won * point.loss_of_success + lost * point.loss_of_failure;
        }
        let n = won_sum + lost_sum;
        let mean = |sum: f64| (n > 0.0).then(|| sum / n);
        let both_classes = won_sum > 0.0 && lost_sum > 0.0;
        let brier = mean(squares);
        let brier_constant = mean(won_sum).map(|it| it * (1.0 - it));
        let skill = brier.zip(brier_constant).map(|(brier, constant)| 1.0 - brier / constant);
        let murphy = (n >= 2.0).then(|| self.murphy(won_sum, n, mean_variance_debiased));
        Metrics {
            n: n as usize,
            base_rate: mean(won_sum),
            brier,
            brier_constant,
            brier_skill: skill.filter(|_| both_classes),
            nll: mean(losses),
            auroc: both_classes.then(|| self.auroc_sum() / (won_sum * lost_sum)),
            signed_gap: mean(gap_sum - won_sum),
            reliability: murphy.map(|it| it.0),
            resolution: murphy.map(|it| it.1),
            uncertainty: murphy.map(|it| it.2),
            within_level: brier.zip(murphy).map(|(brier, (rel, res, unc))| brier - (rel - res + unc)),
            ece_equal_width_10: mean(calibration_error_sum(&self.tenths())),
            ece_equal_mass_15: mean(calibration_error_sum(&self.equal_mass::<15>(n))),
            selective_risk_at_50: self.selective_risk(n, 0.5),
            selective_risk_at_80: self.selective_risk(n, 0.8),
            aurc: (n > 0.0).then(|| self.aurc_sum() / n),
            auprc_failure: (lost_sum > 0.0).then(|| self.failure_precision_sum() / lost_sum),
        }
    }

    /// Pairs of a success and a failure in the right order, ties counting half.
    fn auroc_sum(&self) -> f64 {
        let (mut sum, mut lost_below) = (0.0, 0.0);
        for (_, won, lost) in self.rows() {
            sum += won * (lost_below + 0.5 * lost);
            lost_below += lost;
        }
        sum
    }

    /// Reliability and resolution of the outcomes as if they were the whole population: not debiased.
    pub(super) fn murphy_of_population(&self) -> (f64, f64) {
        let (won, n) = self.levels().fold((0.0, 0.0), |sum, (_, n, won)| (sum.0 + won, sum.1 + n));
        let (reliability, resolution, _) = self.murphy(won, n, |_, _| 0.0);
        (reliability, resolution)
    }

    /// Reliability, resolution and uncertainty over the 21 levels, less the `bias` of a share and a number.
    fn murphy(&self, won_sum: f64, n: f64, bias_of: fn(f64, f64) -> f64) -> (f64, f64, f64) {
        let mut levels = [Bin::default(); 21];
        for (point, won, lost) in self.rows() {
            levels[point.level].add(point.probability, won + lost, won);
        }
        let base_rate = won_sum / n;
        let (mut reliability, mut resolution) = (0.0, 0.0);
        for level in levels.iter().filter(|it| it.n > 0.0) {
            let share = level.successes / level.n;
            let bias = bias_of(share, level.n);
            reliability += level.n * ((level.probability_sum / level.n - share).powi(2) - bias);
            resolution += level.n * ((share - base_rate).powi(2) - bias);
        }
        let bias = bias_of(base_rate, n);
        (reliability / n, resolution / n + bias, base_rate * (1.0 - base_rate) + bias)
    }

    /// What the two binned calibration errors come out as on average when every probability is right: in each bin
    /// the mean absolute value of a normal sum.
    pub(super) fn errors_by_chance(&self) -> [f64; 2] {
        let n: f64 = self.levels().map(|it| it.1).sum();
        let (mut width, mut mass, mut below) = ([0.0; 10], [0.0; 15], 0.0);
        for (point, won, lost) in self.rows() {
            let here = won + lost;
            let variance = here * point.probability * (1.0 - point.probability);
            width[point.tenth] += variance;
            mass[(((below + here / 2.0) / n * 15.0) as usize).min(14)] += variance;
            below += here;
        }
        let mean =
            |variances: &[f64]| variances.iter().map(|it| (it * std::f64::consts::FRAC_2_PI).sqrt()).sum::<f64>();
        [mean(&width) / n, mean(&mass) / n]
    }

    fn tenths(&self) -> [Bin; 10] {
        let mut bins = [Bin::default(); 10];
        for (point, won, lost) in self.rows() {
            bins[point.tenth].add(point.probability, won + lost, won);
        }
        bins
    }

    pub(super) fn equal_width(&self, bins: usize) -> Vec<Bin> {
        let mut filled = vec![Bin::default(); bins];
        for (point, won, lost) in self.rows() {
            filled[equal_width_bin(point.probability, bins)].add(point.probability, won + lost, won);
        }
        filled
    }

    /// Risk at every coverage, summed; within a tie, failures come at their average rate.
    fn aurc_sum(&self) -> f64 {
        let (mut sum, mut accepted, mut failures) = (0.0, 0.0, 0.0);
        for (_, won, lost) in self.rows().rev() {
            let (here, rate) = (won + lost, lost / (won + lost));
            for taken in 1..=here as u32 {
                sum += (failures + f64::from(taken) * rate) / (accepted + f64::from(taken));
            }
            accepted += here;
            failures += lost;
        }
        sum
    }

    /// Precision among those below each threshold, summed over the failures there.
    fn failure_precision_sum(&self) -> f64 {
        let (mut sum, mut flagged, mut failures) = (0.0, 0.0, 0.0);
        for (_, won, lost) in self.rows() {
            flagged += won + lost;
            failures += lost;
            sum += lost * failures / flagged;
        }
        sum
    }

    pub(super) fn equal_mass_bins(&self, bins: usize) -> Vec<Bin> {
        let n: f64 = self.levels().map(|it| it.1).sum();
        let mut filled = vec![Bin::default(); bins];
        self.fill_equal_mass(n, &mut filled);
        filled
    }

    /// Bins of equal mass. A probability that occurs many times goes as a whole to the bin of its
    /// middle rank: splitting ties would make the result depend on the order of the outcomes.
    fn equal_mass<const BINS: usize>(&self, n: f64) -> [Bin; BINS] {
        let mut bins = [Bin::default(); BINS];
        self.fill_equal_mass(n, &mut bins);
        bins
    }

    fn fill_equal_mass(&self, n: f64, bins: &mut [Bin]) {
        let mut below = 0.0;
        for (point, won, lost) in self.rows() {
            let middle = (below + (won + lost) / 2.0) / n;
            let bin = ((middle * bins.len() as f64) as usize).min(bins.len() - 1);
            bins[bin].add(point.probability, won + lost, won);
            below += won + lost;
        }
    }

    /// Share of failures among the `coverage` with the highest probability.
    fn selective_risk(&self, n: f64, coverage: f64) -> Option<f64> {
        let accepted = coverage * n;
        let (mut room, mut failures) = (accepted, 0.0);
        for (_, won, lost) in self.rows().rev() {
            let taken = (won + lost).min(room);
            failures += taken * lost / (won + lost);
            room -= taken;
        }
        (accepted > 0.0).then(|| failures / accepted)
    }
}
