//! Outcomes whose true metrics are known, and how often intervals hold them.
//!
//! Part of the tests, and of `examples/coverage.rs`, which prints the tables of `docs/gates.md`.

use fsq_calibrate::intervals::{Interval, mean_clustered, newcombe, tango, wilson};
use fsq_calibrate::metrics::{Bootstrap, Metrics, Outcome, intervals, smooth_ece, smooth_ece_interval};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A law of outcomes.
#[derive(Clone, Copy)]
pub(crate) struct World {
    pub(crate) name: &'static str,
    /// Outcomes of one sample.
    pub(crate) n: u64,
    /// Outcomes of one task, which share their luck.
    pub(crate) per_task: u64,
    /// A stated probability from a uniform number.
    stated: fn(f64) -> f64,
    /// What it means.
    odds: fn(f64) -> f64,
}

fn grid(uniform: f64) -> f64 {
    (uniform * 21.0).floor() / 20.0
}

fn blunt(uniform: f64) -> f64 {
    0.05 + 0.9 * uniform
}

/// Calibrated and not, on the grid and between its levels, few and many, alone and in tasks.
pub(crate) const WORLDS: [World; 5] = [
    World { name: "grid, overconfident", n: 500, per_task: 1, stated: grid, odds: |q| q * q },
    World { name: "expectations, too extreme", n: 500, per_task: 1, stated: blunt, odds: |q| 0.3 + 0.4 * q },
    World { name: "expectations, 100 only", n: 100, per_task: 1, stated: blunt, odds: |q| 0.8 * q },
    World { name: "overconfident, 4 to a task", n: 1200, per_task: 4, stated: blunt, odds: |q| 0.75 * q },
    World { name: "grid, calibrated", n: 500, per_task: 1, stated: grid, odds: |q| q },
];

impl World {
    pub(crate) fn draw(&self, random: &mut ChaCha8Rng, n: u64) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for task in 0..n / self.per_task {
            // One task has one luck: outcomes of like odds come out alike.
            let luck: f64 = random.random();
            for _ in 0..self.per_task {
                let q = (self.stated)(random.random());
                let shared = self.per_task > 1 && random.random::<f64>() < 0.5;
                let dice = if shared { luck } else { random.random() };
                outcomes.extend(Outcome::new(q.clamp(0.0, 1.0), dice < (self.odds)(q), task));
            }
        }
        outcomes
    }

    /// The metrics of the law itself, from so many outcomes that chance is small beside any interval.
    pub(crate) fn truth(&self, n: u64) -> Metrics {
        Metrics::of(&self.draw(&mut ChaCha8Rng::seed_from_u64(77), n))
    }

    /// How often the interval of each metric held the truth, in the order of [`Metrics::NAMES`], and how often it
    /// was defined.
    pub(crate) fn coverage(&self, samples: u64, resamples: usize) -> Vec<(&'static str, f64, f64)> {
        let truth = self.truth(1_000_000).values();
        let mut held = vec![(0.0, 0.0); truth.len()];
        for seed in 0..samples {
            let outcomes = self.draw(&mut ChaCha8Rng::seed_from_u64(1000 + seed), self.n);
            let found = intervals(&outcomes, &Bootstrap { resamples, seed, confidence: 0.95 });
            count(&mut held, truth.iter().zip(found.values()).map(|(truth, it)| (*truth, it)));
        }
        let named = Metrics::NAMES.iter().zip(held);
        named.map(|(name, (held, defined))| (*name, held / defined.max(1.0), defined / samples as f64)).collect()
    }

    /// The same for the smooth calibration error.
    pub(crate) fn smooth_coverage(&self, samples: u64, resamples: usize) -> f64 {
        let truth = smooth_ece(&self.draw(&mut ChaCha8Rng::seed_from_u64(77), 400_000));
        let mut held = vec![(0.0, 0.0)];
        for seed in 0..samples {
            let outcomes = self.draw(&mut ChaCha8Rng::seed_from_u64(1000 + seed), self.n);
            let found = smooth_ece_interval(&outcomes, &Bootstrap { resamples, seed, confidence: 0.95 });
            count(&mut held, [(truth, found)].into_iter());
        }
        held[0].0 / held[0].1.max(1.0)
    }
}

fn count(held: &mut [(f64, f64)], found: impl Iterator<Item = (Option<f64>, Option<Interval>)>) {
    for (counts, (truth, interval)) in held.iter_mut().zip(found) {
        if let (Some(truth), Some(interval)) = (truth, interval) {
            // What is 0 by construction comes out so but for rounding; a millionth is what chance leaves in a truth.
            let held = interval.low - 1e-6 <= truth && truth <= interval.high + 1e-6;
            counts.0 += f64::from(u8::from(held));
            counts.1 += 1.0;
        }
    }
}

/// Paired successes: shares of tasks that both, only the second and only the first solve.
#[derive(Clone, Copy)]
pub(crate) struct Paired {
    pub(crate) n: u64,
    pub(crate) both: f64,
    pub(crate) gained: f64,
    pub(crate) lost: f64,
}

/// Flips from one in fifty to one in five, with a loss and without.
pub(crate) const PAIRED: [Paired; 6] = [
    Paired { n: 300, both: 0.5, gained: 0.05, lost: 0.05 },
    Paired { n: 300, both: 0.2, gained: 0.10, lost: 0.13 },
    Paired { n: 800, both: 0.6, gained: 0.01, lost: 0.03 },
    Paired { n: 1600, both: 0.5, gained: 0.025, lost: 0.025 },
    Paired { n: 1600, both: 0.5, gained: 0.01, lost: 0.01 },
    Paired { n: 1600, both: 0.3, gained: 0.015, lost: 0.035 },
];

impl Paired {
    /// How often Tango's and Newcombe's intervals hold the true difference.
    pub(crate) fn coverage(&self, samples: u64) -> [f64; 2] {
        let mut random = ChaCha8Rng::seed_from_u64(31);
        let truth = Some(self.gained - self.lost);
        let mut held = vec![(0.0, 0.0); 2];
        for _ in 0..samples {
            let [mut both, mut gained, mut lost] = [0; 3];
            for _ in 0..self.n {
                let dice: f64 = random.random();
                match dice {
                    _ if dice < self.both => both += 1,
                    _ if dice < self.both + self.gained => gained += 1,
                    _ if dice < self.both + self.gained + self.lost => lost += 1,
                    _ => {}
                }
            }
            let found = [tango(gained, lost, self.n, 0.95), newcombe(both, gained, lost, self.n, 0.95)];
            count(&mut held, found.into_iter().map(|it| (truth, it)));
        }
        [held[0].0 / held[0].1, held[1].0 / held[1].1]
    }
}

/// How often Wilson's interval holds a share of 0.3 of 200, and Student's over 60 clusters of 5 holds their mean.
pub(crate) fn plain_coverage(samples: u64) -> [f64; 2] {
    let mut random = ChaCha8Rng::seed_from_u64(32);
    let mut held = vec![(0.0, 0.0); 2];
    for _ in 0..samples {
        let successes = (0..200).filter(|_| random.random::<f64>() < 0.3).count() as u64;
        let mut values = Vec::new();
        for cluster in 0..60 {
            let shared: f64 = random.random();
            values.extend((0..5).map(|_| (cluster, shared + random.random::<f64>())));
        }
        let found = [(Some(0.3), wilson(successes, 200, 0.95)), (Some(1.0), mean_clustered(&values, 0.95))];
        count(&mut held, found.into_iter());
    }
    [held[0].0 / held[0].1, held[1].0 / held[1].1]
}
