//! How often gates err: seeded simulations of candidates whose true harm is known, in small.
//!
//! `cargo run --release -p fsq-calibrate --example releases` runs them in large.

use fsq_calibrate::gates::{GateProfile, Verdict, judge};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::gates::{four_bit, profile};
use crate::simulated::{Harm, Rates, losses_at_the_limit, rates, release};

/// Fewer resamples than a release takes: the ends of an interval vary a little more, on average not at all.
fn quick(profile: GateProfile) -> GateProfile {
    GateProfile { resamples: 200, ..profile }
}

/// Redrawing 15 % of outcomes flips 5 % of tasks.
const HARMLESS: Harm = Harm {
    redrawn: 0.15,
    noise: 0.04,
    lost: 0.0,
    shift: 0.0,
    blind: 0.0,
    fidelity_lost: [0.0; 2],
    malformed: 0.0,
    tokens: 0.0,
};

#[test]
fn a_harmless_candidate_passes() {
    let limits = quick(four_bit());
    let Rates { passed, failed, .. } = rates(0..100, limits.episodes_min, false, &HARMLESS, &limits);
    assert!(passed >= 0.85 && failed <= 0.03, "{passed} {failed}");
}

#[test]
fn sequential_judgement_passes_a_harmless_candidate_with_fewer_tasks() {
    let limits = quick(four_bit());
    let tasks_max = 2 * limits.episodes_min;
    let clear = Harm { redrawn: 0.03, ..HARMLESS };
    let Rates { passed, tasks, .. } = rates(0..60, tasks_max, true, &clear, &limits);
    assert!(passed >= 0.95 && tasks < 0.75 * limits.episodes_min as f64, "{passed} {tasks}");
    let Rates { failed, tasks, .. } = rates(0..30, tasks_max, true, &Harm { lost: 0.08, ..HARMLESS }, &limits);
    assert!(failed >= 0.95 && tasks < 0.75 * limits.episodes_min as f64, "{failed} {tasks}");
}

#[test]
fn a_thousand_episodes_decide_the_demo() {
    // Redrawing 30 % of outcomes flips 10 % of tasks, and statements move by up to 10 points.
    let demo = quick(profile(include_str!("../../../profiles/demo.toml")));
    let Rates { passed, failed, .. } =
        rates(0..100, 1000, false, &Harm { redrawn: 0.3, noise: 0.2, ..HARMLESS }, &demo);
    assert!(passed >= 0.85 && failed <= 0.03, "{passed} {failed}");
}

#[test]
fn a_loss_at_a_limit_rarely_passes() {
    // 5 % by design; 200 simulations see it with a standard error of 1.5 points.
    let limits = quick(four_bit());
    let losses = losses_at_the_limit(&limits);
    // The last four share a release.
    let found: Vec<Rates> =
        losses[..5].iter().map(|it| rates(0..200, limits.episodes_min, false, &it.2, &limits)).collect();
    for (index, (gate, name, _)) in losses.iter().enumerate() {
        let Rates { passed, gates, .. } = &found[index.min(4)];
        assert!(gates[*gate] <= 0.095 && *passed <= 0.095, "{name}: {} {passed}", gates[*gate]);
    }
}

#[test]
fn a_loss_well_beyond_the_limit_fails() {
    let limits = quick(four_bit());
    let Rates { passed, failed, .. } =
        rates(0..60, limits.episodes_min, false, &Harm { lost: 0.05, ..HARMLESS }, &limits);
    assert!(passed == 0.0 && failed >= 0.95, "{passed} {failed}");
}

#[test]
fn a_simulated_release_is_what_it_says() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let harm = Harm { lost: 0.1, shift: 0.1, tokens: 0.1, fidelity_lost: [0.1, 0.2], ..Harm::default() };
    let [reference, candidate] = release(&mut random, 20_000, &harm);
    let report = judge(&reference, &candidate, &quick(four_bit())).unwrap();
    assert_eq!(report.verdict(), Verdict::Fail);
    let measured: Vec<f64> = report.gates().iter().map(|it| it.measured.unwrap()).collect();
    for (gate, expected) in [(0, 0.1), (5, 0.1), (6, 0.2), (8, 0.1)] {
        assert!((measured[gate] - expected).abs() < 0.01, "{gate}: {measured:?}");
    }
}
