//! The reliability curve: what was said against what happened, bin by bin.

use serde::Serialize;

use statrs::distribution::{Binomial, DiscreteCDF};

use super::tally::Bin;
use super::{Outcome, Tally};
use crate::intervals::{Interval, wilson};

/// One point of the curve. Empty bins are left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// Probabilities in this bin are above this (or equal, in the first bin).
    pub lower: f64,
    /// Probabilities in this bin are at most this.
    pub upper: f64,
    /// Outcomes in the bin.
    pub n: usize,
    /// Mean probability said.
    pub probability_mean: f64,
    /// Share of successes.
    pub observed: f64,
    /// Wilson interval of `observed`, 95 %; takes outcomes of one task as independent.
    pub band: Option<Interval>,
    /// Where `observed` would lie in 95 of 100 draws if what is said were true: outside, the bin is
    /// miscalibrated. Takes every outcome of the bin as likely as their mean.
    pub band_if_calibrated: Option<Interval>,
}

/// The reliability curve over `bins` bins of equal width, ascending; empty for no outcomes or bins.
pub fn reliability_curve(outcomes: &[Outcome], bins: usize) -> Vec<ReliabilityBin> {
    if bins == 0 {
        return Vec::new();
    }
    let filled = Tally::of(outcomes).equal_width(bins).into_iter().enumerate();
    let filled = filled.filter(|(_, bin)| bin.n > 0.0);
    filled.map(|(index, bin)| point(&bin, index as f64 / bins as f64, (index + 1) as f64 / bins as f64)).collect()
}

/// The reliability curve over at most `bins` bins of about equal numbers, equal probabilities together,
/// ascending. A bin reaches from the bin below it to its own mean's far side: its ends lie half way
/// between the means of neighbours.
pub fn reliability_curve_equal_mass(outcomes: &[Outcome], bins: usize) -> Vec<ReliabilityBin> {
    if bins == 0 {
        return Vec::new();
    }
    let mut filled = Tally::of(outcomes).equal_mass_bins(bins);
    filled.retain(|it| it.n > 0.0);
    let mean = |it: &Bin| it.probability_sum / it.n;
    let between = |at: usize| 0.5 * (mean(&filled[at - 1]) + mean(&filled[at]));
    let ends = |at: usize| {
        let lower = if at == 0 { 0.0 } else { between(at) };
        let upper = if at + 1 == filled.len() { 1.0 } else { between(at + 1) };
        point(&filled[at], lower, upper)
    };
    (0..filled.len()).map(ends).collect()
}

fn point(bin: &Bin, lower: f64, upper: f64) -> ReliabilityBin {
    let probability_mean = (bin.probability_sum / bin.n).clamp(0.0, 1.0);
    ReliabilityBin {
        lower,
        upper,
        n: bin.n as usize,
        probability_mean,
        observed: bin.successes / bin.n,
        band: wilson(bin.successes as u64, bin.n as u64, 0.95),
        band_if_calibrated: shares_by_chance(probability_mean, bin.n as u64),
    }
}

/// Central 95 % of the share of successes among `n` that each have this probability.
fn shares_by_chance(probability: f64, n: u64) -> Option<Interval> {
    let successes = Binomial::new(probability, n).ok()?;
    // The fewest successes whose chance to be reached from below is at least the tail's.
    let share = |tail: f64| {
        let (mut low, mut high) = (0, n);
        while low < high {
            let middle = low + (high - low) / 2;
            if successes.cdf(middle) < tail { low = middle + 1 } else { high = middle }
        }
        low as f64 / n as f64
    };
    Some(Interval { low: share(0.025), high: share(0.975) })
}
