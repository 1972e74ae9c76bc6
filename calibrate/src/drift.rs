//! Drift: do probabilities still mean what they meant? Answered one episode at a time, without end.
//!
//! A better bets on every episode that its probabilities are wrong in one particular way. If they are
//! right, no bet can be expected to gain, whatever came before and however often one looks; so a large
//! gain is evidence. Ten bets are held at once: on the level (the odds are a factor lower or higher than
//! stated) and on the sharpness (they lie nearer to one half, or further away), each faint and strong.
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

/// What the odds really are, if a bet is right: `odds_true = factor · odds_stated ^ power`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bet {
    /// The logarithm of the factor.
    shift: f64,
    power: f64,
    /// Share of the money that is put on it.
    weight: f64,
}

const fn level(shift: f64, weight: f64) -> Bet {
    Bet { shift, power: 1.0, weight }
}

const fn sharpness(power: f64, weight: f64) -> Bet {
    Bet { shift: 0.0, power, weight }
}

/// The bets. Most of the money is on statements that are too high, above all by one unit of log odds: those let
/// plans be followed that fail, and are to be seen soonest. Faint bets lose little while all is well, which is how a
/// late fault is found among everything since the beginning.
const BETS: [Bet; 10] = [
    level(-0.25, 0.08),
    level(-0.5, 0.20),
    level(-1.0, 0.40),
    level(0.25, 0.02),
    level(0.5, 0.06),
    level(1.0, 0.06),
    sharpness(0.8, 0.04),
    sharpness(0.4, 0.06),
    sharpness(1.25, 0.03),
    sharpness(2.0, 0.05),
];
/// Sharpness is not told from statements nearer to 0 and 1 than this: their odds grow without bound.
const CERTAIN_WITHIN: f64 = 0.01;

/// What one episode pays for each bet; each mean is 1 if the probabilities are right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Payoffs([f64; BETS.len()]);

impl Payoffs {
    /// Of an episode's probabilities, step by step, each with what it came to: for the steps of one episode that is
    /// the same, for the episodes of one task it need not be. No probabilities pay 1 for every bet; those outside
    /// `0..=1` are passed over.
    ///
    /// A bet pays the likelihood ratio of what it claims to what was stated, so it never loses everything.
    pub fn of(steps: impl IntoIterator<Item = (f64, bool)>) -> Self {
        let mut sums = [0.0; BETS.len()];
        let mut n = 0.0;
        for (q, success) in steps.into_iter().filter(|it| (0.0..=1.0).contains(&it.0)) {
            let certain = q.clamp(CERTAIN_WITHIN, 1.0 - CERTAIN_WITHIN);
            let log_odds = (certain / (1.0 - certain)).ln();
            for (sum, bet) in sums.iter_mut().zip(BETS) {
                // However large the factor: what it pays has the mean 1 at every `q`.
                let factor = (bet.shift + (bet.power - 1.0) * log_odds).exp();
                let claimed = if success { factor } else { 1.0 };
                *sum += claimed / (1.0 - q + q * factor);
            }
            n += 1.0;
        }
        Self(sums.map(|it| if n > 0.0 { it / n } else { 1.0 }))
    }
}

/// Evidence that the probabilities were ever wrong, over all episodes so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    log_wealths: [f64; BETS.len()],
    log_wealth_max: f64,
    n: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { log_wealths: BETS.map(|it| it.weight.ln()), log_wealth_max: 0.0, n: 0 }
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

    /// What 1, shared out among the bets, has become: the e-value against "always calibrated so far". May be too
    /// large for a number: then infinite.
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
        highest + sum.ln()
    }
}

/// Evidence that the probabilities are wrong since some episode not long ago.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detector {
    sums: [f64; BETS.len()],
    runs: [Run; BETS.len()],
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
        Self { sums: [0.0; BETS.len()], runs: [Run::default(); BETS.len()], n: 0 }
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

    /// The mean over the bets, weighted. It grows by at most 1 an episode on average while nothing is wrong, so a
    /// threshold of `a` is reached after `a` episodes on average or later, and within `n` episodes in at most the
    /// share `n / a` of all runs (Doob's inequality).
    pub fn evidence(&self) -> f64 {
        self.sums.iter().zip(BETS).map(|(sum, bet)| bet.weight * sum).sum()
    }

    /// After how many episodes the change seems to have come: where the best bet's gain began.
    pub fn change(&self) -> u64 {
        let shares = self.sums.iter().zip(BETS).map(|(sum, bet)| bet.weight * sum);
        let best = shares.zip(&self.runs).max_by(|a, b| a.0.total_cmp(&b.0));
        best.map_or(0, |(_, run)| run.begun)
    }

    /// Episodes so far.
    pub fn n(&self) -> u64 {
        self.n
    }
}
