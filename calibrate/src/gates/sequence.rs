//! Sequential judgement: look early, stop when the answer is clear, and never err more often for it.
//!
//! Looking several times at one-sided 5 % would pass a harmful candidate more often than 5 %. Each look
//! therefore spends a part of the 5 % (Lan & DeMets 1983, with the spending function that resembles
//! Pocock's: early looks are worth having only if they can decide). What a look may spend beyond what the
//! looks before it have spent is turned into a bound by integrating over all ways to come there undecided
//! (Armitage, McPherson & Rowe 1969): the harm of growing samples is a Brownian motion to good
//! approximation.
//!
//! A candidate passes only where all gates pass at the same look, so the chance to pass with one gate at
//! its limit is at most the chance that this gate passes at some look.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal};

use crate::intervals::normal_quantile;

/// One-sided error of all looks together.
const LEVEL: f64 = 0.05;
/// Fewest tasks of a look: below this, intervals that rest on large numbers are too short (2503.01747).
const TASKS_MIN: u64 = 300;
/// Places of the integral between looks.
const PLACES: usize = 400;
/// How many standard deviations of the motion the integral reaches down.
const REACH: f64 = 8.0;

/// One look at the tasks played so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Look {
    /// Which look it is, from 1.
    pub number: usize,
    /// How many there will be at most.
    pub of: usize,
    /// Paired tasks it needs.
    pub tasks: u64,
    /// One-sided level of every gate's bound at this look.
    pub level: f64,
}

impl Look {
    /// The only look there is: all tasks, one-sided 5 %.
    pub(super) fn only(tasks: u64) -> Self {
        Self { number: 1, of: 1, tasks, level: LEVEL }
    }

    /// All tasks at once for one of several candidates, of which the first that passes is taken: a one-sided level that
    /// is `share` of 5 %. Where the shares of all candidates sum to 1, one of them passes harmfully at most 5 times in
    /// 100, whatever tasks they have in common (Bonferroni).
    ///
    /// # Panics
    /// When the share is not above 0, or is above 1.
    pub fn sharing(tasks: u64, share: f64) -> Self {
        assert!(share > 0.0 && share <= 1.0, "expected a share of the error, found {share}");
        Self { level: LEVEL * share, ..Self::only(tasks) }
    }

    /// Whether no look follows.
    pub fn is_last(&self) -> bool {
        self.number == self.of
    }

    /// Confidence of a two-sided interval with one-sided ends at this look's level.
    pub(super) fn confidence(&self) -> f64 {
        1.0 - 2.0 * self.level
    }

    /// Standard errors to this look's bound.
    pub(super) fn reach(&self) -> f64 {
        // A level lies strictly between 0 and 1, by construction.
        normal_quantile(1.0 - self.level).unwrap_or(f64::INFINITY)
    }
}

/// The looks of a sequential judgement: four, evenly spaced up to `tasks_max`, none at fewer than 300 tasks.
pub fn looks(tasks_max: u64) -> Vec<Look> {
    let quarters = (1..=4_u64).map(|it| (tasks_max * it).div_ceil(4));
    let mut tasks: Vec<u64> = quarters.filter(|&it| it >= TASKS_MIN || it == tasks_max).collect();
    tasks.dedup();
    // Nothing at all is one look at everything.
    let share = |it: u64| if tasks_max == 0 { 1.0 } else { it as f64 / tasks_max as f64 };
    let shares: Vec<f64> = tasks.iter().map(|&it| share(it)).collect();
    let levels = levels(&shares);
    let of = tasks.len();
    let look = |(index, (tasks, level))| Look { number: index + 1, of, tasks, level };
    tasks.into_iter().zip(levels).enumerate().map(look).collect()
}

/// How much of the error may be spent when this share of all tasks is played.
fn spent(share: f64) -> f64 {
    LEVEL * (1.0 + (std::f64::consts::E - 1.0) * share.min(1.0)).ln()
}

/// The one-sided level of each look at these shares of all tasks, ascending to 1.
fn levels(shares: &[f64]) -> Vec<f64> {
    let Ok(standard) = Normal::new(0.0, 1.0) else { return Vec::new() };
    let mut levels = Vec::with_capacity(shares.len());
    // Undecided motions: places, and the mass at each.
    let mut undecided = vec![(0.0, 1.0)];
    let (mut before, mut spent_before) = (0.0, 0.0);
    for &share in shares {
        let step = (share - before).max(f64::MIN_POSITIVE).sqrt();
        let beyond = |bound: f64| -> f64 {
            undecided.iter().map(|(place, mass)| mass * standard.cdf((place - bound) / step)).sum()
        };
        let target = spent(share) - spent_before;
        let (mut low, mut high) = (-REACH, REACH);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if beyond(middle) > target { low = middle } else { high = middle }
        }
        let bound = 0.5 * (low + high);
        levels.push(standard.cdf(-bound / share.sqrt()));
        let floor = -REACH * share.sqrt();
        let width = (bound - floor) / PLACES as f64;
        let arrived = (0..PLACES).map(|it| floor + (it as f64 + 0.5) * width).map(|place| {
            let arriving = undecided.iter().map(|(from, mass)| mass * density((place - from) / step) / step);
            (place, arriving.sum::<f64>() * width)
        });
        undecided = arrived.collect();
        (before, spent_before) = (share, spent(share));
    }
    levels
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    //! The levels spend what they may, and no more.

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn one_look_spends_everything() {
        assert!((levels(&[1.0])[0] - LEVEL).abs() < 1e-6);
        let few = looks(250);
        assert_eq!((few.len(), few[0].tasks), (1, 250));
        assert!(looks(0).len() == 1 && looks(0)[0].level > 0.0);
    }

    #[test]
    fn candidates_in_turn_share_the_error() {
        assert_eq!(Look::sharing(800, 1.0), Look::only(800));
        let half = Look::sharing(800, 0.5);
        assert!(half.is_last() && half.reach() > Look::only(800).reach());
        assert!((2.0 * half.level - LEVEL).abs() < 1e-12 && (half.confidence() - 0.95).abs() < 1e-12);
    }

    #[test]
    fn looks_are_evenly_spaced_and_none_is_too_early() {
        let tasks = |max: u64| looks(max).iter().map(|it| it.tasks).collect::<Vec<_>>();
        assert_eq!(tasks(3200), [800, 1600, 2400, 3200]);
        assert_eq!(tasks(1000), [500, 750, 1000]);
    }

    #[test]
    fn a_motion_without_drift_crosses_some_bound_as_often_as_allowed() {
        let looks = looks(3200);
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut normal = || {
            let (u, v): (f64, f64) = (random.random::<f64>().max(1e-300), random.random());
            (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
        };
        let n = 200_000;
        let mut crossed = 0;
        for _ in 0..n {
            let mut sum = 0.0;
            let mut hit = false;
            for look in &looks {
                sum += normal();
                hit |= sum / (look.number as f64).sqrt() > look.reach();
            }
            crossed += u32::from(hit);
        }
        let share = f64::from(crossed) / f64::from(n);
        // Three standard errors of so many motions: 0.15 points.
        assert!((share - LEVEL).abs() < 0.0015, "{share} {looks:?}");
    }
}
