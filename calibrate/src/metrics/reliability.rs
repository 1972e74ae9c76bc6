//! The reliability curve: what was said against what happened, bin by bin.

use serde::Serialize;

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
}

/// The reliability curve over `bins` bins of equal width, ascending; empty for no outcomes or bins.
pub fn reliability_curve(outcomes: &[Outcome], bins: usize) -> Vec<ReliabilityBin> {
    if bins == 0 {
        return Vec::new();
    }
    let filled = Tally::of(outcomes).equal_width(bins).into_iter().enumerate();
    let curve = filled.filter(|(_, bin)| bin.n > 0.0).map(|(index, bin)| ReliabilityBin {
        lower: index as f64 / bins as f64,
        upper: (index + 1) as f64 / bins as f64,
        n: bin.n as usize,
        probability_mean: bin.probability_sum / bin.n,
        observed: bin.successes / bin.n,
        band: wilson(bin.successes as u64, bin.n as u64, 0.95),
    });
    curve.collect()
}
