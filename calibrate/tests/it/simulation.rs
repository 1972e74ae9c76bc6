//! How often gates err: seeded simulations of candidates whose true harm is known.

use fsq_calibrate::Stated;
use fsq_calibrate::gates::{EpisodeRecord, Evaluation, GateProfile, Verdict, judge};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::gates::{four_bit, profile};

/// Tasks of the 4-bit profile.
const TASKS: u64 = 1600;

/// What quantization does to an episode: outcomes flip, statements and texts move a little.
struct Harm {
    /// Share of tasks whose outcome is drawn again with the same odds: flips that change nothing.
    redrawn: f64,
    /// Share of all tasks that are lost on top.
    lost: f64,
    /// Shift and noise of the stated probability.
    shift: f64,
    noise: f64,
}

/// A reference and a candidate under a harm.
fn pair(random: &mut ChaCha8Rng, tasks: u64, harm: &Harm) -> [Evaluation; 2] {
    let mut both = [Vec::new(), Vec::new()];
    for task in 0..tasks {
        let odds: f64 = random.random();
        let success = random.random::<f64>() < odds;
        let again = random.random::<f64>() < harm.redrawn;
        let same_odds = if again { random.random::<f64>() < odds } else { success };
        // Half of all tasks are solved, so a share of all is twice that share of the solved.
        let after = same_odds && random.random::<f64>() >= 2.0 * harm.lost;
        let moved = odds + harm.shift + harm.noise * (random.random::<f64>() - 0.5);
        let right = random.random::<f64>() < 0.8;
        let slipped = random.random::<f64>() < 0.005;
        let tokens = random.random_range(80..120);
        let record = |success, stated: f64, right: bool, tokens| EpisodeRecord {
            task,
            success,
            stated: Some(Stated::new(stated.clamp(0.0, 1.0)).unwrap()),
            fidelity: vec![Some(f64::from(u8::from(right)))],
            steps: 2,
            steps_parsed: 2,
            tokens,
        };
        both[0].push(record(success, odds, right, tokens));
        both[1].push(record(after, moved, right != slipped, tokens + u32::from(success != after)));
    }
    both.map(|episodes| Evaluation { episodes, recalibration: None })
}

/// Shares of simulations in which gate `id` (or all, for "") passed and failed.
fn rates(id: &str, simulations: u64, tasks: u64, harm: &Harm, profile: &GateProfile) -> (f64, f64) {
    let mut random = ChaCha8Rng::seed_from_u64(2024);
    let (mut passed, mut failed) = (0.0, 0.0);
    for seed in 0..simulations {
        let [reference, candidate] = pair(&mut random, tasks, harm);
        let profile = GateProfile { seed, resamples: 100, ..profile.clone() };
        let report = judge(&reference, &candidate, &profile).unwrap();
        let gate = report.gates().iter().find(|it| it.id == id).map(|it| it.verdict);
        match gate.unwrap_or(report.verdict()) {
            Verdict::Pass => passed += 1.0,
            Verdict::Fail => failed += 1.0,
            Verdict::Inconclusive { .. } => {}
        }
    }
    (passed / simulations as f64, failed / simulations as f64)
}

#[test]
fn a_harmless_candidate_passes() {
    // Redrawing 5 % of outcomes flips 1.7 % of tasks.
    let harmless = Harm { redrawn: 0.05, lost: 0.0, shift: 0.0, noise: 0.04 };
    let (passed, failed) = rates("", 100, TASKS, &harmless, &four_bit());
    assert!(passed >= 0.9 && failed <= 0.02, "{passed} {failed}");
}

#[test]
fn a_thousand_episodes_decide_the_demo() {
    // Redrawing 30 % of outcomes flips 10 % of tasks, and statements move by up to 10 points.
    let demo = profile(include_str!("../../../profiles/demo.toml"));
    let harmless = Harm { redrawn: 0.3, lost: 0.0, shift: 0.0, noise: 0.2 };
    let (passed, failed) = rates("", 100, 1000, &harmless, &demo);
    assert!(passed >= 0.9 && failed <= 0.02, "{passed} {failed}");
}

#[test]
fn a_loss_at_the_limit_rarely_passes() {
    let limits = four_bit();
    let loss = Harm { redrawn: 0.05, lost: limits.success_loss_max, shift: 0.0, noise: 0.04 };
    let (passed, _) = rates("G1", 800, TASKS, &loss, &limits);
    // 5 % by design; 800 simulations see it with a standard error of 0.8 points.
    assert!(passed <= 0.06, "{passed}");
}

#[test]
fn a_loss_well_beyond_the_limit_fails() {
    let loss = Harm { redrawn: 0.05, lost: 0.05, shift: 0.0, noise: 0.04 };
    let (passed, failed) = rates("G1", 100, TASKS, &loss, &four_bit());
    assert!(passed == 0.0 && failed >= 0.95, "{passed} {failed}");
}

#[test]
fn statements_shifted_to_the_brier_limit_rarely_pass() {
    // A calibrated statement moved by s costs s² of Brier score; clamping at the ends saves a little.
    let limits = four_bit();
    let mut harm = Harm { redrawn: 0.0, lost: 0.0, shift: 0.0, noise: 0.0 };
    harm.shift = mean_clamped_shift(limits.brier_rise_max);
    let (passed, _) = rates("G2", 400, TASKS, &harm, &limits);
    assert!(passed <= 0.07, "{passed}");
}

/// The shift at which uniform statements, clamped at 1, lose exactly `rise` on average:
/// `s² (1 - s) + s³ / 3`, solved by bisection.
fn mean_clamped_shift(rise: f64) -> f64 {
    let (mut low, mut high) = (0.0_f64, 0.5_f64);
    for _ in 0..60 {
        let s = 0.5 * (low + high);
        if s * s * (1.0 - s) + s.powi(3) / 3.0 < rise { low = s } else { high = s }
    }
    low
}
