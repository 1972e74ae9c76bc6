//! Signs that reinforcement training is destroying the foresight it should calibrate.
//!
//! One [`Health`] watches one run: it is shown every training batch and answers with alarms. What to
//! do about them (stop, roll back, lower a rate) is for the trainer. Knows no policy and no optimiser.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::stated::{GRID_PERCENT, StatedDistribution};

/// When to raise an alarm. The defaults were seen to separate sound runs from collapsing ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthLimits {
    /// Smallest share of well-formed texts.
    pub adherence_min: f64,
    /// Smallest mean entropy of the distribution over the 21 levels, in nats.
    pub entropy_nats_min: f64,
    /// Largest share of the batch's mass on one level.
    pub level_mass_max: f64,
    /// Smallest standard deviation of the stated probability within a batch.
    pub stated_deviation_min: f64,
    /// Smallest standard deviation of the reward, relative to the median of the steps before.
    pub reward_deviation_ratio_min: f64,
    /// Largest difference, either way, of mean stated probability and success rate.
    pub signed_gap_max: f64,
    /// How many steps the median of the reward's deviation looks back on.
    pub window_steps: usize,
    /// How many steps must have been seen before that median is trusted.
    pub warmup_steps: usize,
}

impl HealthLimits {
    /// What training uses unless a run says otherwise.
    pub const DEFAULT: HealthLimits = HealthLimits {
        adherence_min: 0.98,
        entropy_nats_min: 0.7,
        level_mass_max: 0.6,
        stated_deviation_min: 0.05,
        reward_deviation_ratio_min: 0.5,
        signed_gap_max: 0.1,
        window_steps: 50,
        warmup_steps: 10,
    };
}

/// One sampled text of a training batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Whether it parsed.
    pub well_formed: bool,
    /// The policy's distribution over the levels, where it was read.
    pub distribution: Option<StatedDistribution>,
    /// The reward the text earned.
    pub reward: f64,
    /// Whether its episode succeeded.
    pub success: bool,
}

/// What one batch looked like. `None`: no sample of the batch shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BatchHealth {
    /// Samples in the batch.
    pub n: usize,
    /// Share of well-formed texts.
    pub adherence: Option<f64>,
    /// Mean entropy over the 21 levels, in nats.
    pub entropy_nats: Option<f64>,
    /// The level with most mass on average, in percent, and that mass.
    pub top_level: Option<(u8, f64)>,
    /// Standard deviation of the stated probability (expectation).
    pub stated_deviation: Option<f64>,
    /// Standard deviation of the reward.
    pub reward_deviation: Option<f64>,
    /// Mean stated probability minus success rate, over samples that stated one.
    pub signed_gap: Option<f64>,
}

impl BatchHealth {
    /// Summarises a batch.
    pub fn of(samples: &[Sample]) -> Self {
        let adherent: Vec<f64> = samples.iter().map(|it| f64::from(u8::from(it.well_formed))).collect();
        let rewards: Vec<f64> = samples.iter().map(|it| it.reward).collect();
        let distributions: Vec<&StatedDistribution> =
            samples.iter().filter_map(|it| it.distribution.as_ref()).collect();
        let entropies: Vec<f64> = distributions.iter().map(|it| it.entropy_nats()).collect();
        let stated: Vec<f64> = distributions.iter().map(|it| it.expectation().value()).collect();
        let told = samples.iter().filter(|it| it.distribution.is_some());
        let outcomes: Vec<f64> = told.map(|it| f64::from(u8::from(it.success))).collect();
        let level_mass = |level: usize| distributions.iter().map(|it| it.mass()[level]).sum::<f64>();
        let masses = (0..GRID_PERCENT.len()).map(|level| (GRID_PERCENT[level], level_mass(level)));
        let top = masses.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|_| !distributions.is_empty());
        Self {
            n: samples.len(),
            adherence: mean(&adherent),
            entropy_nats: mean(&entropies),
            top_level: top.map(|(percent, mass)| (percent, mass / distributions.len() as f64)),
            stated_deviation: deviation(&stated),
            reward_deviation: deviation(&rewards),
            signed_gap: mean(&stated).zip(mean(&outcomes)).map(|(stated, outcome)| stated - outcome),
        }
    }
}

/// One thing that is wrong with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "alarm")]
pub enum Alarm {
    /// Too many texts do not parse.
    Adherence {
        /// Share of well-formed texts.
        found: f64,
        /// Its limit.
        limit: f64,
    },
    /// The distribution over levels has become too narrow to rank anything.
    Entropy {
        /// Mean entropy in nats.
        found: f64,
        /// Its limit.
        limit: f64,
    },
    /// One level is stated whatever the state.
    OneLevel {
        /// The level, in percent.
        percent: u8,
        /// Its share of the batch's mass.
        found: f64,
        /// Its limit.
        limit: f64,
    },
    /// Stated probabilities hardly differ.
    Spread {
        /// Standard deviation of the stated probability.
        found: f64,
        /// Its limit.
        limit: f64,
    },
    /// Rewards hardly differ any more: nothing is left to learn from.
    Reward {
        /// Standard deviation of the reward.
        found: f64,
        /// Its limit: a share of the median of recent steps.
        limit: f64,
    },
    /// Stated probabilities and successes have come apart.
    Gap {
        /// Mean stated probability minus success rate.
        found: f64,
        /// Largest size it may have.
        limit: f64,
    },
    /// Not one sample of the batch stated a probability.
    NothingToRead,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Alarm::Adherence { found, limit } => {
                write!(f, "format adherence is {:.1} %, below {:.1} %", 100.0 * found, 100.0 * limit)
            }
            Alarm::Entropy { found, limit } => {
                write!(f, "entropy of the stated probability is {found:.2} nats, below {limit:.2}")
            }
            Alarm::OneLevel { percent, found, limit } => {
                let (found, limit) = (100.0 * found, 100.0 * limit);
                write!(f, "{found:.0} % of the mass is on the level {percent} %, above {limit:.0} %")
            }
            Alarm::Spread { found, limit } => {
                write!(f, "standard deviation of the stated probability is {found:.3}, below {limit:.3}")
            }
            Alarm::Reward { found, limit } => {
                write!(
                    f,
                    "standard deviation of the reward is {found:.3}, below the limit from recent steps, {limit:.3}"
                )
            }
            Alarm::Gap { found, limit } => {
                let side = if *found > 0.0 { "above" } else { "below" };
                write!(f, "mean stated probability is {:.2} {side} the success rate, limit {limit:.2}", found.abs())
            }
            Alarm::NothingToRead => write!(f, "no sample of the batch states a probability"),
        }
    }
}

/// Watches one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    limits: HealthLimits,
    /// Reward deviations of the latest steps, oldest first.
    reward_deviations: VecDeque<f64>,
}

impl Health {
    /// A watch that has seen nothing.
    pub fn new(limits: HealthLimits) -> Self {
        Self { limits, reward_deviations: VecDeque::new() }
    }

    /// Looks at the next batch. A batch without samples raises nothing and is forgotten.
    pub fn observe(&mut self, batch: &BatchHealth) -> Vec<Alarm> {
        let limits = self.limits;
        let below = |found: Option<f64>, limit: f64| found.filter(|it| *it < limit);
        let mut alarms = Vec::new();
        if batch.n == 0 {
            return alarms;
        }
        if batch.entropy_nats.is_none() {
            alarms.push(Alarm::NothingToRead);
        }
        let limit = limits.adherence_min;
        alarms.extend(below(batch.adherence, limit).map(|found| Alarm::Adherence { found, limit }));
        let limit = limits.entropy_nats_min;
        alarms.extend(below(batch.entropy_nats, limit).map(|found| Alarm::Entropy { found, limit }));
        let limit = limits.level_mass_max;
        let top = batch.top_level.filter(|(_, mass)| *mass > limit);
        alarms.extend(top.map(|(percent, found)| Alarm::OneLevel { percent, found, limit }));
        let limit = limits.stated_deviation_min;
        alarms.extend(below(batch.stated_deviation, limit).map(|found| Alarm::Spread { found, limit }));
        alarms.extend(self.reward_alarm(batch.reward_deviation));
        let limit = limits.signed_gap_max;
        let gap = batch.signed_gap.filter(|it| it.abs() > limit);
        alarms.extend(gap.map(|found| Alarm::Gap { found, limit }));
        alarms
    }

    /// Compares with the median of the steps before, then remembers this one.
    fn reward_alarm(&mut self, deviation: Option<f64>) -> Option<Alarm> {
        let found = deviation?;
        let trusted = self.reward_deviations.len() >= self.limits.warmup_steps.max(1);
        let usual = trusted.then(|| median(self.reward_deviations.make_contiguous()));
        self.reward_deviations.push_back(found);
        while self.reward_deviations.len() > self.limits.window_steps {
            self.reward_deviations.pop_front();
        }
        let limit = usual? * self.limits.reward_deviation_ratio_min;
        (found < limit).then_some(Alarm::Reward { found, limit })
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    mean.is_finite().then_some(mean)
}

/// Standard deviation of the batch itself; `None` below two values or for values not finite.
fn deviation(values: &[f64]) -> Option<f64> {
    let centre = mean(values)?;
    let squares: Vec<f64> = values.iter().map(|it| (it - centre).powi(2)).collect();
    mean(&squares).filter(|_| values.len() > 1).map(f64::sqrt)
}

/// The middle value, or the mean of the two middle ones; `values` must not be empty.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { 0.5 * (sorted[middle - 1] + sorted[middle]) }
}
