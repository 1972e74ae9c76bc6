//! The probability of success a policy states, and its own distribution over the 21 grid levels.
//!
//! Knows nothing of the text around the number ([`crate::foresight`]) nor of what such numbers have
//! meant ([`crate::recalibration`]).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The levels a policy may write, in whole percent, in the order of every 21-long array here.
pub const GRID_PERCENT: [u8; 21] = [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 100];

/// A probability as the policy stated it, in `0..=1`: not yet what such statements have meant.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Stated(f64);

/// A number that is no probability was offered as a stated one.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("stated probability: expected a number in 0..=1, found {found}")]
pub struct NotAProbability {
    /// The number offered.
    pub found: f64,
}

impl Stated {
    /// A stated probability; an error if `probability` is not a number in `0..=1`.
    pub fn new(probability: f64) -> Result<Self, NotAProbability> {
        // Adding zero turns -0.0 into 0.0, so equal statements have equal bits (digests rely on it).
        if (0.0..=1.0).contains(&probability) {
            Ok(Self(probability + 0.0))
        } else {
            Err(NotAProbability { found: probability })
        }
    }

    /// The statement `percent` %, if it is one of [`GRID_PERCENT`].
    pub fn from_percent(percent: u8) -> Option<Self> {
        GRID_PERCENT.contains(&percent).then(|| Self(f64::from(percent) / 100.0))
    }

    /// The probability, in `0..=1`.
    pub fn value(self) -> f64 {
        self.0
    }

    /// The grid level nearest to this statement, in percent; halves go up.
    pub fn nearest_percent(self) -> u8 {
        GRID_PERCENT[self.nearest_level()]
    }

    /// The index into [`GRID_PERCENT`] of the level nearest to this statement; halves go up.
    pub fn nearest_level(self) -> usize {
        nearest_level(self.0)
    }

    /// Whether this is exactly one of the grid levels.
    pub fn is_on_grid(self) -> bool {
        self.0 == f64::from(self.nearest_percent()) / 100.0
    }
}

/// The grid level nearest to a probability in `0..=1`, as an index; halves go up.
pub(crate) fn nearest_level(probability: f64) -> usize {
    ((probability * 20.0).round() as usize).min(20)
}

impl TryFrom<f64> for Stated {
    type Error = NotAProbability;
    fn try_from(probability: f64) -> Result<Self, NotAProbability> {
        Self::new(probability)
    }
}

impl From<Stated> for f64 {
    fn from(stated: Stated) -> f64 {
        stated.0
    }
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A policy's own distribution over the 21 levels it could write, normalised over the grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatedDistribution {
    mass: [f64; 21],
}

impl StatedDistribution {
    /// Normalises log probabilities (or any log weights) of the 21 continuations, in grid order.
    ///
    /// A NaN counts as no mass. `None` if no level has any mass or one has infinite mass: then the
    /// policy's scores say nothing.
    pub fn from_log_probs(log_probs: &[f32; 21]) -> Option<Self> {
        // f32::max ignores a NaN operand, so one bad score does not hide the other twenty.
        let highest = log_probs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !highest.is_finite() {
            return None;
        }
        let mut mass =
            log_probs.map(|score| if score.is_nan() { 0.0 } else { (f64::from(score) - f64::from(highest)).exp() });
        let total: f64 = mass.iter().sum();
        mass.iter_mut().for_each(|it| *it /= total);
        Some(Self { mass })
    }

    /// The probability of each level, in the order of [`GRID_PERCENT`]; sums to 1.
    pub fn mass(&self) -> &[f64; 21] {
        &self.mass
    }

    /// The mean level: the stated probability that is calibrated, gated and monitored.
    pub fn expectation(&self) -> Stated {
        let percent: f64 = self.mass.iter().zip(GRID_PERCENT).map(|(mass, level)| mass * f64::from(level)).sum();
        Stated((percent / 100.0).clamp(0.0, 1.0))
    }

    /// Shannon entropy in nats: 0 when one level has all mass, `ln 21` = 3.04 when all are equal.
    pub fn entropy_nats(&self) -> f64 {
        self.mass.iter().filter(|&&mass| mass > 0.0).map(|mass| -mass * mass.ln()).sum()
    }
}

/// The stated probability read as an expectation over the 21 continuations, given their log
/// probabilities in grid order; `None` where [`StatedDistribution::from_log_probs`] is.
pub fn expectation(log_probs: &[f32; 21]) -> Option<Stated> {
    StatedDistribution::from_log_probs(log_probs).map(|it| it.expectation())
}
