//! Drift: do probabilities still mean what they meant? Answered one episode at a time, without end.
//!
//! A better bets on every episode that its probabilities are wrong in one particular way. If they are
//! right, no bet can be expected to gain, whatever came before and however often one looks; so a large
//! gain is evidence. Sixteen bets are held at once: four strengths, both directions, on the level (every
//! probability too high or too low) and on the sharpness (too far from one half, or too near).
//!
//! | type | asks | error it keeps |
//! |---|---|---|
//! | [`Audit`] | was this artefact ever miscalibrated since it began? | one in a hundred ever alarms falsely (Ville) |
//! | [`Detector`] | is it miscalibrated now? (Shiryaev–Roberts) | so many episodes between false alarms, on average |
//! | [`Monitor`] | and what is to be done? | a new map is used only once it is shown to be no worse |
//!
//! The audit is a test martingale (Ville 1939); the detector an e-detector (Shin, Ramdas & Rinaldo 2022).
//! The steps of one episode share their outcome, so an episode's payoff is the mean over its steps: that
//! stays fair under any dependence between them.

mod monitor;

use serde::Serialize;

pub use monitor::{Episode, Event, Monitor, MonitorLimits, Shadow};

/// Bets held at once.
pub const BETS: usize = 16;
/// How much is staked, for each unit of surprise.
const STRENGTHS: [f64; 4] = [0.2, 0.5, 1.0, 1.5];
/// No bet may lose everything: the stake stops at this share of what the worst outcome would cost.
const STAKE_MAX: f64 = 0.95;

/// What one episode pays for each bet; each mean is 1 if the probabilities are right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Payoffs([f64; BETS]);

impl Payoffs {
    /// Of an episode's probabilities, step by step, each with what it came to: for the steps of one episode that is
    /// the same, for the episodes of one task it need not be. No probabilities pay 1 for every bet; those outside
    /// `0..=1` are passed over.
    pub fn of(steps: impl IntoIterator<Item = (f64, bool)>) -> Self {
        let mut sums = [0.0; BETS];
        let mut n = 0.0;
        for (q, success) in steps.into_iter().filter(|it| (0.0..=1.0).contains(&it.0)) {
            let surprise = f64::from(u8::from(success)) - q;
            let stake_max = STAKE_MAX / q.max(1.0 - q);
            let side = if q == 0.5 { 0.0 } else { (q - 0.5).signum() };
            for (at, strength) in STRENGTHS.into_iter().enumerate() {
                let won = strength.min(stake_max) * surprise;
                for (bet, gain) in [won, -won, won * side, -won * side].into_iter().enumerate() {
                    sums[4 * at + bet] += gain;
                }
            }
            n += 1.0;
        }
        Self(sums.map(|it| if n > 0.0 { 1.0 + it / n } else { 1.0 }))
    }
}

/// Evidence that the probabilities were ever wrong, over all episodes so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    log_wealths: [f64; BETS],
    log_wealth_max: f64,
    n: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { log_wealths: [0.0; BETS], log_wealth_max: 0.0, n: 0 }
    }
}

impl Audit {
    /// Evidence at which to alarm: a calibrated artefact ever reaches it once in a hundred.
    pub const ALARM: f64 = 100.0;

    /// Takes in one episode.
    pub fn observe(&mut self, payoffs: &Payoffs) {
        self.n += 1;
        self.log_wealths.iter_mut().zip(payoffs.0).for_each(|(wealth, payoff)| *wealth += payoff.ln());
        self.log_wealth_max = self.log_wealth_max.max(self.log_wealth());
    }

    /// The wealth of sixteen equal bets of 1 together: the e-value against "always calibrated so far".
    /// May be too large for a number: then infinite.
    pub fn e_value(&self) -> f64 {
        self.log_wealth().exp()
    }

    /// The largest e-value there was; `1 / e_value_max` is a p-value that allows for all looks.
    pub fn e_value_max(&self) -> f64 {
        self.log_wealth_max.exp()
    }

    /// Whether the largest e-value reached [`Audit::ALARM`].
    pub fn alarmed(&self) -> bool {
        self.log_wealth_max >= Self::ALARM.ln()
    }

    /// Episodes so far.
    pub fn n(&self) -> u64 {
        self.n
    }

    fn log_wealth(&self) -> f64 {
        let highest = self.log_wealths.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.log_wealths.iter().map(|it| (it - highest).exp()).sum();
        highest + (sum / BETS as f64).ln()
    }
}

/// Evidence that the probabilities are wrong since some episode not long ago.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detector {
    sums: [f64; BETS],
    runs: [Run; BETS],
    n: u64,
}

/// The best stretch of one bet up to now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Run {
    log_gain: f64,
    /// Episodes before it.
    begun: u64,
}

impl Default for Detector {
    fn default() -> Self {
        Self { sums: [0.0; BETS], runs: [Run::default(); BETS], n: 0 }
    }
}

impl Detector {
    /// Takes in one episode: `S ← (S + 1) · payoff` for every bet, which is the wealth of bets begun at
    /// every episode so far.
    pub fn observe(&mut self, payoffs: &Payoffs) {
        for ((sum, run), payoff) in self.sums.iter_mut().zip(&mut self.runs).zip(payoffs.0) {
            *sum = (*sum + 1.0) * payoff;
            if run.log_gain <= 0.0 {
                *run = Run { log_gain: 0.0, begun: self.n };
            }
            run.log_gain += payoff.ln();
        }
        self.n += 1;
    }

    /// The mean over the bets. It grows by at most 1 an episode on average while nothing is wrong, so a
    /// threshold of `a` is reached after `a` episodes on average, and within `n` episodes in at most
    /// `n / a` of all runs.
    pub fn evidence(&self) -> f64 {
        self.sums.iter().sum::<f64>() / BETS as f64
    }

    /// After how many episodes the change seems to have come: where the best bet's gain began.
    pub fn change(&self) -> u64 {
        let best = self.sums.iter().zip(&self.runs).max_by(|a, b| a.0.total_cmp(b.0));
        best.map_or(0, |(_, run)| run.begun)
    }

    /// Episodes so far.
    pub fn n(&self) -> u64 {
        self.n
    }
}
