//! The Venn–Abers map: two isotonic fits, one for each outcome that the next plan may have.
//!
//! Inductive Venn–Abers prediction (Vovk, Petej & Fedorova 2015, "Large-scale probabilistic predictors with
//! and without guarantees of validity"). Of the two probabilities, the one that belongs to what then happens
//! is calibrated whatever the statements mean, as long as new plans are exchangeable with those of the fit.
//! How far they lie apart says how much the outcomes know about statements like this one.

use serde::Serialize;

use crate::intervals::Interval;
use crate::metrics::Tally;

/// Fewest outcomes a fit is tried on: with fewer, both probabilities say next to nothing.
pub(super) const OUTCOMES_MIN: usize = 10;
/// Statements are told apart to this many steps of the probability axis. The steps are fixed in advance,
/// which keeps the validity exact, and few, which keeps the metadata of a file at some kilobytes.
const STEPS: f64 = 100.0;
/// Most places that can be stored.
const PLACES_MAX: usize = 101;

/// Both probabilities at every place where outcomes were.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct TwoSided {
    /// Rounded statements, ascending.
    places: Vec<f64>,
    /// Probability of success, had the next plan here failed; never descending.
    failing: Vec<f64>,
    /// Probability of success, had the next plan here succeeded; never descending.
    succeeding: Vec<f64>,
}

impl TwoSided {
    /// From stored parameters: places, then the lower, then the upper probabilities. `None` unless each
    /// third ascends within `0..=1` and no upper one lies below its lower one.
    pub(super) fn from_parameters(parameters: &[f64]) -> Option<Self> {
        let n = parameters.len() / 3;
        let in_range = parameters.iter().all(|it| (0.0..=1.0).contains(it));
        if parameters.len() != 3 * n || !(1..=PLACES_MAX).contains(&n) || !in_range {
            return None;
        }
        let third = |at: usize| parameters[at * n..(at + 1) * n].to_vec();
        let (places, failing, succeeding) = (third(0), third(1), third(2));
        let ascending = places.is_sorted_by(|a, b| a < b) && failing.is_sorted() && succeeding.is_sorted();
        let ordered = failing.iter().zip(&succeeding).all(|(low, high)| low <= high);
        (ascending && ordered).then_some(Self { places, failing, succeeding })
    }

    pub(super) fn parameters(&self) -> Vec<f64> {
        [self.places.as_slice(), &self.failing, &self.succeeding].concat()
    }

    /// The two probabilities of a statement.
    pub(super) fn interval(&self, q: f64) -> Interval {
        let place = rounded(q);
        // Between two places, a further failure joins those below and a further success those above.
        let above = self.places.partition_point(|&it| it < place);
        let upto = self.places.partition_point(|&it| it <= place);
        Interval {
            low: if upto == 0 { 0.0 } else { self.failing[upto - 1] },
            high: self.succeeding.get(above).copied().unwrap_or(1.0),
        }
    }

    /// The one probability whose worst log loss against either of the two is least.
    pub(super) fn at(&self, q: f64) -> f64 {
        let Interval { low, high } = self.interval(q);
        high / (1.0 - low + high)
    }
}

fn rounded(q: f64) -> f64 {
    (q * STEPS).round() / STEPS
}

/// Fits the map; the tally must not be empty.
pub(super) fn fit(tally: &Tally) -> TwoSided {
    let mut counts: Vec<(f64, f64, f64)> = Vec::new();
    for (q, n, won) in tally.levels() {
        match counts.last_mut() {
            Some(last) if last.0 == rounded(q) => *last = (last.0, last.1 + n, last.2 + won),
            _ => counts.push((rounded(q), n, won)),
        }
    }
    let with_one_more = |at: usize, won: f64| {
        let more = |(index, it): (usize, &(f64, f64, f64))| match index == at {
            true => (it.1 + 1.0, it.2 + won),
            false => (it.1, it.2),
        };
        isotonic_at(counts.iter().enumerate().map(more), at)
    };
    let all = 0..counts.len();
    TwoSided {
        places: counts.iter().map(|it| it.0).collect(),
        failing: ascending(all.clone().map(|at| with_one_more(at, 0.0))),
        succeeding: ascending(all.map(|at| with_one_more(at, 1.0))),
    }
}

/// The values never descend; rounding of sums may make them by an ulp.
fn ascending(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let highest = values.scan(0.0, |highest: &mut f64, it| {
        *highest = highest.max(it);
        Some(*highest)
    });
    highest.collect()
}

/// The isotonic fit of `(n, successes)` at one place: pool adjacent violators.
fn isotonic_at(counts: impl Iterator<Item = (f64, f64)>, at: usize) -> f64 {
    // Each block: outcomes, successes, and the first place beyond it.
    let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
    for (index, (n, won)) in counts.enumerate() {
        blocks.push((n, won, index + 1));
        while let [.., before, last] = blocks.as_mut_slice()
            && before.1 * last.0 >= last.1 * before.0
        {
            *before = (before.0 + last.0, before.1 + last.1, last.2);
            blocks.pop();
        }
    }
    let block = blocks.iter().find(|it| at < it.2);
    block.map_or(0.0, |(n, won, _)| won / n)
}
