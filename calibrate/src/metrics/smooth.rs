//! Smooth calibration error (Błasiok & Nakkiran 2023): no bins, and a bandwidth that the data choose.
//!
//! The residuals `I - q` are smoothed over the probability axis by a Gaussian kernel that is reflected at 0
//! and 1; the error at bandwidth `s` is the mean absolute smoothed residual. It falls as `s` grows, and the
//! smooth calibration error is the `s` at which the two are equal.
//!
//! The reflected Gaussian is the heat kernel of the unit interval, so smoothing multiplies the `k`-th
//! cosine coefficient of the residuals by `exp(-(k π s)² / 2)`. That makes the sum over outcomes one pass
//! for each coefficient, whatever the bandwidth.

use std::f64::consts::PI;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Bootstrap, Outcome};
use crate::intervals::{Interval, pivotal};

/// Places at which the smoothed residual is looked at.
const PLACES: usize = 512;
/// Coefficients beyond this many standard deviations of the kernel's spectrum are below 1e-9.
const SPECTRUM_REACH: f64 = 6.5;
/// Smallest bandwidth: finer than any level that is told apart.
const BANDWIDTH_MIN: f64 = 0.002;
/// A resampled value is bracketed this closely; the interval is known no better.
const RESAMPLED_WITHIN: f64 = 1e-5;
/// Draws are costly, and an interval's ends need no more.
const RESAMPLES_MAX: usize = 400;
/// Outcomes that all resamples may draw together.
const OUTCOMES_DRAWN_MAX: usize = 40_000_000;
/// Distinct probabilities that are told apart.
const DISTINCT_MAX: usize = 8192;

/// The smooth calibration error; `None` for no outcomes.
pub fn smooth_ece(outcomes: &[Outcome]) -> Option<f64> {
    let mut sorted = outcomes.to_vec();
    // One order of summation for all orders of outcomes.
    sorted.sort_unstable_by(|a, b| a.probability().total_cmp(&b.probability()).then(a.success().cmp(&b.success())));
    let mut residuals = Residuals::of(&sorted);
    sorted.iter().for_each(|it| residuals.add(it.probability(), it.success()));
    residuals.error(1e-12)
}

/// Its pivotal interval by resampled clusters, never below 0; `None` with fewer than two clusters.
///
/// At most 400 resamples are drawn, and fewer of more than 100,000 outcomes.
pub fn smooth_ece_interval(outcomes: &[Outcome], bootstrap: &Bootstrap) -> Option<Interval> {
    let estimate = smooth_ece(outcomes)?;
    let mut sorted = outcomes.to_vec();
    sorted.sort_unstable_by(|a, b| {
        let by_probability = a.probability().total_cmp(&b.probability());
        a.cluster().cmp(&b.cluster()).then(by_probability).then(a.success().cmp(&b.success()))
    });
    let mut residuals = Residuals::of(&sorted);
    let placed: Vec<(u64, usize, f64)> = sorted
        .iter()
        .map(|it| (it.cluster(), residuals.place(it.probability()), residual(it.probability(), it.success())))
        .collect();
    let clusters: Vec<&[(u64, usize, f64)]> = placed.chunk_by(|a, b| a.0 == b.0).collect();
    if clusters.len() < 2 {
        return None;
    }
    let resamples = bootstrap.resamples.min((OUTCOMES_DRAWN_MAX / outcomes.len()).clamp(50, RESAMPLES_MAX));
    let mut random = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    let mut values = Vec::with_capacity(resamples);
    for _ in 0..resamples {
        residuals.clear();
        for _ in 0..clusters.len() {
            let cluster = clusters[random.random_range(0..clusters.len())];
            cluster.iter().for_each(|it| residuals.add_at(it.1, it.2));
        }
        values.extend(residuals.error(RESAMPLED_WITHIN));
    }
    let interval = pivotal(&mut values, resamples, bootstrap.confidence, estimate, estimate)?;
    Some(Interval { low: interval.low.max(0.0), high: interval.high.max(0.0) })
}

/// `I - q`.
fn residual(probability: f64, success: bool) -> f64 {
    f64::from(u8::from(success)) - probability
}

/// Sums of residuals by place.
pub(super) struct Residuals {
    /// Ascending.
    places: Vec<f64>,
    sums: Vec<f64>,
    n: f64,
}

impl Residuals {
    /// The places of some outcomes, with nothing there yet: their distinct probabilities, or where those are
    /// very many, a grid far finer than the smallest bandwidth.
    pub(super) fn of(outcomes: &[Outcome]) -> Self {
        let mut places: Vec<f64> = outcomes.iter().map(|it| it.probability()).collect();
        places.sort_unstable_by(f64::total_cmp);
        places.dedup();
        if places.len() > DISTINCT_MAX {
            places = (0..=DISTINCT_MAX).map(|it| it as f64 / DISTINCT_MAX as f64).collect();
        }
        let sums = vec![0.0; places.len()];
        Self { places, sums, n: 0.0 }
    }

    /// The place nearest to a probability.
    fn place(&self, probability: f64) -> usize {
        let above = self.places.partition_point(|it| *it < probability).min(self.places.len() - 1);
        let below = above.saturating_sub(1);
        let nearer = probability - self.places[below] < self.places[above] - probability;
        if nearer { below } else { above }
    }

    pub(super) fn add(&mut self, probability: f64, success: bool) {
        self.add_at(self.place(probability), residual(probability, success));
    }

    fn add_at(&mut self, place: usize, residual: f64) {
        self.sums[place] += residual;
        self.n += 1.0;
    }

    pub(super) fn clear(&mut self) {
        self.sums.fill(0.0);
        self.n = 0.0;
    }

    /// The bandwidth that equals the error at that bandwidth, bracketed `within`; `None` if there is nothing.
    pub(super) fn error(&self, within: f64) -> Option<f64> {
        let there = self.places.iter().zip(&self.sums).filter(|it| *it.1 != 0.0);
        let means: Vec<(f64, f64)> = there.map(|(place, sum)| (*place, sum / self.n)).collect();
        (self.n > 0.0).then(|| smooth_error(&means, within))
    }
}

fn smooth_error(residuals: &[(f64, f64)], within: f64) -> f64 {
    let mut spectrum = Spectrum::of(residuals);
    let (mut low, mut high) = (BANDWIDTH_MIN, 1.0);
    if spectrum.error(low) <= low {
        return spectrum.error(low);
    }
    while high - low > within {
        let middle = 0.5 * (low + high);
        if spectrum.error(middle) > middle { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Cosine coefficients of the residuals, as many as were needed so far.
struct Spectrum<'a> {
    residuals: &'a [(f64, f64)],
    coefficients: Vec<f64>,
    /// Of every place: twice the cosine of `π place`, and the cosines of the coefficients to come and before.
    cosines: Vec<[f64; 3]>,
}

impl<'a> Spectrum<'a> {
    fn of(residuals: &'a [(f64, f64)]) -> Self {
        let at = |it: &(f64, f64)| {
            let cosine = (PI * it.0).cos();
            [2.0 * cosine, 1.0, cosine]
        };
        Self { residuals, coefficients: Vec::new(), cosines: residuals.iter().map(at).collect() }
    }

    /// One coefficient more; the cosines by `cos (k + 1) x = 2 cos x cos k x - cos (k - 1) x`.
    fn extend(&mut self) {
        let mut sum = 0.0;
        for ((_, residual), [twice, next, before]) in self.residuals.iter().zip(&mut self.cosines) {
            sum += residual * *next;
            (*next, *before) = (*twice * *next - *before, *next);
        }
        self.coefficients.push(sum);
    }

    /// Mean absolute smoothed residual at a bandwidth.
    fn error(&mut self, bandwidth: f64) -> f64 {
        let n = (SPECTRUM_REACH / (PI * bandwidth)).ceil() as usize + 1;
        while self.coefficients.len() < n {
            self.extend();
        }
        let damped = |(k, it): (usize, &f64)| it * (-0.5 * (k as f64 * PI * bandwidth).powi(2)).exp();
        let damped: Vec<f64> = self.coefficients[..n].iter().enumerate().map(damped).collect();
        let places = (0..PLACES).map(|it| (it as f64 + 0.5) / PLACES as f64);
        places.map(|it| cosine_series(&damped, it).abs()).sum::<f64>() / PLACES as f64
    }
}

/// `c0 + 2 Σ ck cos(k π place)`, by Clenshaw's recurrence.
fn cosine_series(coefficients: &[f64], place: f64) -> f64 {
    let twice = 2.0 * (PI * place).cos();
    let (mut next, mut after) = (0.0, 0.0);
    for it in coefficients[1..].iter().rev() {
        (next, after) = (2.0 * it + twice * next - after, next);
    }
    coefficients[0] + 0.5 * twice * next - after
}
