//! The decision rule of every gate, from numbers alone.

use super::report::Verdict;
use super::sequence::Look;
use crate::intervals::Interval;

/// Standard errors to a one-sided 95 % bound.
pub(super) const Z_BOUND: f64 = 1.644_853_626_951_472_7;
/// Standard errors to 80 % power.
const Z_POWER: f64 = 0.841_621_233_572_914_3;

/// What was learnt about one harm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence {
    /// Tasks that inform it.
    pub(super) n: u64,
    /// Fewest of them a verdict may rest on.
    pub(super) n_min: u64,
    /// Measured harm; positive is worse.
    pub(super) harm: Option<f64>,
    /// Interval of the harm, each end a one-sided bound at the level of the look.
    pub(super) interval: Option<Interval>,
    /// Standard deviation of the harm of one task.
    pub(super) deviation: Option<f64>,
}

/// Pass, fail or inconclusive by the rule in the module documentation of [`super`].
///
/// A look that others follow fails only what is shown to be harmful: what merely seems so gets more tasks.
pub(super) fn decide(evidence: &Evidence, limit: f64, look: &Look) -> Verdict {
    let &Evidence { n, n_min, harm, interval, deviation } = evidence;
    let (Some(harm), Some(interval), Some(deviation)) = (harm, interval, deviation) else {
        return Verdict::Inconclusive { n, n_needed: (n < n_min).then_some(n_min) };
    };
    let reach = look.reach();
    let n_harmless = squared(deviation * (reach + Z_POWER) / limit);
    if n < n_min {
        return Verdict::Inconclusive { n, n_needed: Some(n_harmless.max(n_min)) };
    }
    if interval.high < limit {
        Verdict::Pass
    } else if interval.low > limit || (harm >= limit && n >= n_harmless && look.is_last()) {
        Verdict::Fail
    } else {
        // Enough for a harmless candidate, and for one as harmful as this one seems to be.
        let n_seeming = if harm < limit { squared(deviation * reach / (limit - harm)) } else { 0 };
        Verdict::Inconclusive { n, n_needed: Some(n_harmless.max(n_seeming).max(n + 1)) }
    }
}

/// The square, rounded up to whole tasks.
fn squared(ratio: f64) -> u64 {
    // The cast saturates: "more tasks than there are" is the largest number.
    (ratio * ratio).ceil() as u64
}
