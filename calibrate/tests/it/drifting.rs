//! Streams of episodes that drift at a known place, and how long the detector and the audit take to see it.
//!
//! Part of the tests, and of `examples/drift.rs`, which prints the table of `docs/gates.md`.

use fsq_calibrate::drift::{Audit, Detector, Payoffs};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What goes wrong. One decision an episode; probabilities lie on a tenth to nine tenths, each as often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The odds of success are 0.61 of those stated.
    Odds,
    /// What is stated lies one unit of log odds above the truth.
    Shift,
    /// The log odds stated are twice the true ones.
    Extreme,
    /// What is stated has nothing to do with success.
    Blind,
    /// The odds of success are those stated, over 0.61.
    Modest,
    /// The log odds stated are half the true ones.
    Timid,
}

impl Fault {
    /// Those that let plans be followed which fail.
    pub(crate) const OVERCONFIDENT: [Fault; 4] = [Fault::Odds, Fault::Shift, Fault::Extreme, Fault::Blind];
    /// Those that keep plans from being followed.
    pub(crate) const UNDERCONFIDENT: [Fault; 2] = [Fault::Modest, Fault::Timid];

    /// A stated probability and whether the episode succeeded.
    pub(crate) fn draw(self, random: &mut ChaCha8Rng) -> (f64, bool) {
        let level = f64::from(random.random_range(1..=9_u8)) / 10.0;
        let log_odds = (level / (1.0 - level)).ln();
        let share = |log_odds: f64| 1.0 / (1.0 + (-log_odds).exp());
        let (stated, odds) = match self {
            Fault::None => (level, level),
            Fault::Odds => (level, share(log_odds + 0.61_f64.ln())),
            Fault::Shift => (share(log_odds + 1.0), level),
            Fault::Extreme => (level, share(0.5 * log_odds)),
            Fault::Blind => (level, 0.5),
            Fault::Modest => (level, share(log_odds - 0.61_f64.ln())),
            Fault::Timid => (level, share(2.0 * log_odds)),
        };
        (stated, random.random::<f64>() < odds)
    }
}

/// After how many episodes of the fault the audit and the detector alarm, for each run that has not alarmed before.
pub(crate) struct Delays {
    pub(crate) audit: Vec<u64>,
    pub(crate) detector: Vec<u64>,
}

/// Median of delays; those that never alarmed are missing from them, so there must be none.
pub(crate) fn median(delays: &[u64]) -> u64 {
    let mut sorted = delays.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(u64::MAX)
}

/// Runs with a fault after `clean` episodes without one.
pub(crate) fn delays(fault: Fault, clean: u64, runs: u64, threshold: f64) -> Delays {
    const EPISODES_MAX: u64 = 6000;
    let mut delays = Delays { audit: Vec::new(), detector: Vec::new() };
    for seed in 0..runs {
        let mut random = ChaCha8Rng::seed_from_u64(500 + seed);
        let (mut audit, mut detector) = (Audit::default(), Detector::default());
        let (mut audited, mut detected) = (None, None);
        for episode in 1..=clean + EPISODES_MAX {
            let (q, success) = if episode <= clean { Fault::None } else { fault }.draw(&mut random);
            let payoffs = Payoffs::of([(q, success)]);
            audit.observe(&payoffs);
            detector.observe(&payoffs);
            audited = audited.or(audit.alarmed().then_some(episode));
            detected = detected.or((detector.evidence() >= threshold).then_some(episode));
            if audited.is_some() && detected.is_some() {
                break;
            }
        }
        // Alarms before the fault are false; they are counted elsewhere.
        delays.audit.extend(audited.filter(|it| *it > clean).map(|it| it - clean));
        delays.detector.extend(detected.filter(|it| *it > clean).map(|it| it - clean));
    }
    delays
}

/// The first alarm of each run in which nothing is wrong, after at most so many episodes: detector, audit.
pub(crate) fn false_alarms(runs: u64, episodes_max: u64, threshold: f64) -> [Vec<Option<u64>>; 2] {
    let mut first = [Vec::new(), Vec::new()];
    for seed in 0..runs {
        let mut random = ChaCha8Rng::seed_from_u64(9000 + seed);
        let (mut audit, mut detector) = (Audit::default(), Detector::default());
        let (mut audited, mut detected) = (None, None);
        for episode in 1..=episodes_max {
            let (q, success) = Fault::None.draw(&mut random);
            let payoffs = Payoffs::of([(q, success)]);
            audit.observe(&payoffs);
            detector.observe(&payoffs);
            audited = audited.or(audit.alarmed().then_some(episode));
            detected = detected.or((detector.evidence() >= threshold).then_some(episode));
        }
        first[0].push(detected);
        first[1].push(audited);
    }
    first
}
