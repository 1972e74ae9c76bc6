//! Risk against coverage: how often the plans fail that would be followed at each threshold.

use serde::Serialize;

use super::{Outcome, Tally};
use crate::intervals::{Interval, wilson};

/// What following every plan of at least `threshold` would have meant.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RiskPoint {
    /// The least probability that is followed.
    pub threshold: f64,
    /// Share of all outcomes that are followed.
    pub coverage: f64,
    /// Outcomes that are followed.
    pub n: usize,
    /// Share of failures among those.
    pub risk: f64,
    /// Wilson interval of `risk`, 95 %; takes outcomes of one task as independent.
    pub band: Option<Interval>,
}

/// The risk at thresholds from the highest probability to the lowest, at most `points_max` of them and
/// always the last; empty for no outcomes.
pub fn risk_coverage(outcomes: &[Outcome], points_max: usize) -> Vec<RiskPoint> {
    let tally = Tally::of(outcomes);
    let levels: Vec<(f64, f64, f64)> = tally.levels().collect();
    let total = outcomes.len() as f64;
    let (mut n, mut won, mut shown) = (0.0, 0.0, 0);
    let mut points = Vec::new();
    for (index, &(threshold, n_here, won_here)) in levels.iter().rev().enumerate() {
        n += n_here;
        won += won_here;
        let due = (n / total * points_max as f64) as usize;
        let last = index + 1 == levels.len();
        if (due > shown || levels.len() <= points_max || last) && points_max > 0 {
            shown = due;
            let failed = n - won;
            let band = wilson(failed as u64, n as u64, 0.95);
            points.push(RiskPoint { threshold, coverage: n / total, n: n as usize, risk: failed / n, band });
        }
    }
    points
}
