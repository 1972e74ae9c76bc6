//! What calibration errors come out as by chance alone, when every probability is right.
//!
//! A calibration error is never negative, so even a perfect predictor has one: 0.042 at 500 outcomes. It
//! can only be read beside what such a predictor would show on the same probabilities.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::smooth::Residuals;
use super::{Bootstrap, Outcome, Tally};
use crate::intervals::quantile;

/// Smoothing is costly, and a 95th percentile needs no more draws.
const SMOOTH_DRAWS_MAX: usize = 200;
/// A drawn smooth error is bracketed this closely.
const SMOOTH_WITHIN: f64 = 1e-4;

/// A calibration error under perfect calibration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Chance {
    /// Its mean.
    pub mean: f64,
    /// Its 95th percentile: above this, miscalibration is shown at 5 %.
    pub p95: f64,
}

/// What each calibration error would be by chance. `None` for no outcomes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct CalibratedErrors {
    /// Over ten bins of equal width.
    pub ece_equal_width_10: Option<Chance>,
    /// Over fifteen bins of equal mass.
    pub ece_equal_mass_15: Option<Chance>,
    /// The smooth one.
    pub smooth_ece: Option<Chance>,
}

/// Draws every outcome anew from its own probability, `resamples` times, and measures.
///
/// Takes outcomes of one task as independent, so it is too strict where they are not.
pub fn errors_if_calibrated(outcomes: &[Outcome], bootstrap: &Bootstrap) -> CalibratedErrors {
    let mut probabilities: Vec<f64> = outcomes.iter().map(|it| it.probability()).collect();
    probabilities.sort_unstable_by(f64::total_cmp);
    let mut tally = Tally::support(outcomes);
    let places: Vec<usize> = probabilities.iter().map(|it| tally.index_of(*it)).collect();
    let mut residuals = Residuals::of(outcomes);
    let mut random = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    let [mut width, mut mass, mut smooth] = [const { Vec::new() }; 3];
    for draw in 0..bootstrap.resamples {
        tally.clear();
        let drawn: Vec<bool> = probabilities.iter().map(|q| random.random::<f64>() < *q).collect();
        places.iter().zip(&drawn).for_each(|(place, success)| tally.add(*place, *success));
        let metrics = tally.metrics();
        width.extend(metrics.ece_equal_width_10);
        mass.extend(metrics.ece_equal_mass_15);
        if draw < SMOOTH_DRAWS_MAX {
            residuals.clear();
            probabilities.iter().zip(&drawn).for_each(|(q, success)| residuals.add(*q, *success));
            smooth.extend(residuals.error(SMOOTH_WITHIN));
        }
    }
    CalibratedErrors { ece_equal_width_10: chance(width), ece_equal_mass_15: chance(mass), smooth_ece: chance(smooth) }
}

fn chance(mut values: Vec<f64>) -> Option<Chance> {
    if values.is_empty() {
        return None;
    }
    values.sort_unstable_by(f64::total_cmp);
    Some(Chance { mean: values.iter().sum::<f64>() / values.len() as f64, p95: quantile(&values, 0.95) })
}
