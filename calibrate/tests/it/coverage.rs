//! How often intervals hold the truth at a nominal 95 %, in small: 250 samples see it with a standard error of 1.4
//! points, and intervals of 120 resamples are a point or two too short.
//! `cargo run --release -p fsq-calibrate --example coverage` sees it in large.

use crate::known::{PAIRED, WORLDS, plain_coverage};

/// Intervals that may hold the truth more often than they say: biased metrics, and what is flat where a base rate is
/// one half, or nothing at all on the grid.
const CONSERVATIVE: [&str; 6] =
    ["ece_equal_width_10", "ece_equal_mass_15", "brier_constant", "uncertainty", "within_level", "resolution"];

#[test]
fn intervals_of_metrics_hold_the_truth_as_often_as_they_say() {
    let mut wrong = Vec::new();
    for world in &WORLDS[..4] {
        let found = world.coverage(250, 120).into_iter();
        let most = |name: &str| if CONSERVATIVE.contains(&name) { 1.0 } else { 0.99 };
        let astray = found.filter(|(name, held, defined)| !(0.88..=most(name)).contains(held) || *defined < 1.0);
        wrong.extend(astray.map(|it| (world.name, it)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_interval_of_the_smooth_error_holds_the_truth_as_often_as_it_says() {
    // 80 samples: a standard error of 2.4 points.
    for world in &WORLDS[..2] {
        let held = world.smooth_coverage(80, 60);
        assert!(held >= 0.86, "{}: {held}", world.name);
    }
}

#[test]
fn a_calibrated_predictor_may_have_no_error_at_all() {
    // At the edge of what is possible, an interval holds the truth at least as often as it says.
    for (name, held, _) in WORLDS[4].coverage(200, 120) {
        assert!(held >= 0.88, "{name}: {held}");
    }
}

#[test]
fn intervals_of_pairs_hold_the_truth_as_often_as_they_say() {
    for paired in PAIRED {
        for held in paired.coverage(3000) {
            assert!((0.93..=0.97).contains(&held), "{} {}: {held}", paired.n, paired.lost);
        }
    }
    for held in plain_coverage(3000) {
        assert!((0.935..=0.965).contains(&held), "{held}");
    }
}
