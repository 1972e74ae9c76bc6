//! Simulated releases: a reference and a candidate whose true harm is known, and how often gates pass it.
//!
//! Part of the tests, and of `examples/releases.rs`, which prints the table of `docs/gates.md`.

use std::ops::Range;

use fsq_calibrate::Stated;
use fsq_calibrate::gates::{EpisodeRecord, Evaluation, GateProfile, Look, Report, Verdict, judge, judge_look, looks};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Chance that an imagined state comes true, one step ahead and at the last horizon.
const FIDELITY: [f64; 2] = [0.8, 0.6];
/// Chance that a step does not parse.
const MALFORMED: f64 = 0.001;
/// Steps of an episode.
const STEPS: u32 = 3;

/// What quantization does to an episode. All zero: it is played again by the same policy, with the same luck.
#[derive(Clone, Copy, Default)]
pub(crate) struct Harm {
    /// Share of tasks whose luck is drawn anew, for the outcome and for each imagined state: flips both ways that
    /// change no odds. Outcomes flip in a third of these.
    pub(crate) redrawn: f64,
    /// Width of the noise of the stated probability. Noise spoils a ranking and a Brier score a little: it is a harm.
    pub(crate) noise: f64,
    /// Share of all tasks that are lost on top.
    pub(crate) lost: f64,
    /// Added to the stated probability.
    pub(crate) shift: f64,
    /// Share of stated probabilities that are replaced by one drawn blindly.
    pub(crate) blind: f64,
    /// Share of all imagined states that come true no more, at both horizons.
    pub(crate) fidelity_lost: [f64; 2],
    /// Share of all steps that parse no more.
    pub(crate) malformed: f64,
    /// Relative growth of the tokens.
    pub(crate) tokens: f64,
}

/// A calibrated reference with uniform odds, and the candidate made from it.
pub(crate) fn release(random: &mut ChaCha8Rng, tasks: u64, harm: &Harm) -> [Evaluation; 2] {
    let mut both = [Vec::new(), Vec::new()];
    for task in 0..tasks {
        let odds: f64 = random.random();
        let mut chance = |share: f64| random.random::<f64>() < share;
        let success = chance(odds);
        let again = if chance(harm.redrawn) { chance(odds) } else { success };
        // Half of all tasks are solved, so a share of all is twice that share of the solved.
        let after = again && !chance(2.0 * harm.lost);
        let mut fidelity = [Vec::new(), Vec::new()];
        for (share, lost) in FIDELITY.into_iter().zip(harm.fidelity_lost) {
            let right = chance(share);
            let again = if chance(harm.redrawn) { chance(share) } else { right };
            let after = again && !chance(lost / share);
            fidelity[0].push(Some(f64::from(u8::from(right))));
            fidelity[1].push(Some(f64::from(u8::from(after))));
        }
        let parsed = (0..STEPS).filter(|_| !chance(MALFORMED)).count() as u32;
        let parsed_after = (0..parsed).filter(|_| !chance(harm.malformed)).count() as u32;
        let blind = chance(harm.blind);
        let stated = if blind { random.random() } else { odds + harm.shift };
        let stated = stated + harm.noise * (random.random::<f64>() - 0.5);
        let tokens = random.random_range(80..120_u32);
        let tokens_after = (f64::from(tokens) * (1.0 + harm.tokens) + random.random_range(-3.0..3.0)).round() as u32;
        let [fidelity, fidelity_after] = fidelity;
        let record = |success, stated: f64, fidelity, steps_parsed, tokens| {
            let stated = Stated::new(stated.clamp(0.0, 1.0)).ok();
            EpisodeRecord { task, success, stated, fidelity, steps: STEPS, steps_parsed, tokens }
        };
        both[0].push(record(success, odds, fidelity, parsed, tokens));
        both[1].push(record(after, stated, fidelity_after, parsed_after, tokens_after));
    }
    both.map(|episodes| Evaluation { episodes, recalibration: None })
}

/// How the verdicts on many releases were shared out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) passed: f64,
    pub(crate) failed: f64,
    /// Share passed of each gate, G1 first; the two of G5 one after the other.
    pub(crate) gates: Vec<f64>,
    /// Tasks played, on average.
    pub(crate) tasks: f64,
}

/// Judges the releases of these seeds at a fixed number of tasks, or sequentially with at most so many.
pub(crate) fn rates(
    simulations: Range<u64>,
    tasks: u64,
    sequential: bool,
    harm: &Harm,
    profile: &GateProfile,
) -> Rates {
    let mut rates = Rates::default();
    let looks = looks(tasks);
    let share = 1.0 / simulations.clone().count() as f64;
    for seed in simulations {
        // The draws of one release are the same whatever was simulated before it.
        let mut random = ChaCha8Rng::seed_from_u64(0x5eed_0000 + seed);
        let release = release(&mut random, tasks, harm);
        let profile = GateProfile { seed, ..profile.clone() };
        let report = if sequential { in_looks(&release, &looks, &profile) } else { whole(&release, &profile) };
        match report.verdict() {
            Verdict::Pass => rates.passed += share,
            Verdict::Fail => rates.failed += share,
            Verdict::Inconclusive { .. } => {}
        }
        rates.tasks += share * report.n() as f64;
        rates.gates.resize(report.gates().len(), 0.0);
        for (rate, gate) in rates.gates.iter_mut().zip(report.gates()) {
            *rate += if gate.verdict == Verdict::Pass { share } else { 0.0 };
        }
    }
    rates
}

fn whole([reference, candidate]: &[Evaluation; 2], profile: &GateProfile) -> Report {
    judge(reference, candidate, profile).expect("simulated records are sound")
}

/// Judges at each look until one is clear.
fn in_looks(release: &[Evaluation; 2], looks: &[Look], profile: &GateProfile) -> Report {
    let at = |index: usize| {
        let n = looks[index].tasks as usize;
        let [reference, candidate] = release.clone().map(|mut it| {
            it.episodes.truncate(n);
            it
        });
        judge_look(&reference, &candidate, profile, &looks[index]).expect("simulated records are sound")
    };
    let mut report = at(0);
    for index in 1..looks.len() {
        if !matches!(report.verdict(), Verdict::Inconclusive { .. }) {
            break;
        }
        report = at(index);
    }
    report
}

/// The shift at which uniform statements, clamped at 1, lose exactly `rise` of Brier score on average:
/// `s² (1 - s) + s³ / 3`.
pub(crate) fn shift_of_brier(rise: f64) -> f64 {
    solved(0.5, |s| s * s * (1.0 - s) + s.powi(3) / 3.0 < rise)
}

/// The shift at which their mean rises by exactly `gap`: `s - s² / 2`.
pub(crate) fn shift_of_gap(gap: f64) -> f64 {
    solved(0.5, |s| s - s * s / 2.0 < gap)
}

/// The share of blind statements at which AUROC falls by exactly `loss`: two statements that are true rank 5 in 6
/// pairs in the right order, a true and a blind one 2 in 3, two blind ones 1 in 2.
pub(crate) fn blindness_of_auroc(loss: f64) -> f64 {
    let auroc = |b: f64| (1.0 - b).powi(2) * 5.0 / 6.0 + 2.0 * b * (1.0 - b) * 2.0 / 3.0 + b * b / 2.0;
    solved(1.0, |b| auroc(0.0) - auroc(b) < loss)
}

fn solved(high: f64, too_low: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, high);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if too_low(middle) { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// A true loss at the limit of each gate that has one, by the gate's place among the results and its name.
pub(crate) fn losses_at_the_limit(profile: &GateProfile) -> Vec<(usize, &'static str, Harm)> {
    // Luck is drawn anew in 6 % of tasks beside the harm, so 2 % of outcomes flip without meaning.
    let like = Harm { redrawn: 0.06, ..Harm::default() };
    let fidelity_lost = [profile.fidelity_first_loss_max, profile.fidelity_last_loss_max];
    let texts = Harm {
        fidelity_lost,
        malformed: profile.parse_rate_loss_max / (1.0 - MALFORMED),
        tokens: profile.tokens_growth_max,
        ..like
    };
    vec![
        (0, "G1 task success", Harm { lost: profile.success_loss_max, ..like }),
        (1, "G2 Brier score", Harm { shift: shift_of_brier(profile.brier_rise_max), ..Harm::default() }),
        (3, "G3 signed gap", Harm { shift: shift_of_gap(profile.signed_gap_max), ..Harm::default() }),
        (4, "G4 AUROC", Harm { blind: blindness_of_auroc(profile.auroc_loss_max), ..like }),
        (5, "G5 fidelity, first", texts),
        (6, "G5 fidelity, last", texts),
        (7, "G6 parse rate", texts),
        (8, "G7 tokens", texts),
    ]
}
