//! Metrics and intervals: by hand, by property, and within their time.

use std::time::Instant;

use fsq_calibrate::intervals::{mean_t, percentile, tango, wilson};
use fsq_calibrate::metrics::{Bootstrap, Metrics, Outcome, intervals, reliability_curve};
use proptest::prelude::*;

pub(crate) fn outcomes(pairs: &[(f64, u8)]) -> Vec<Outcome> {
    let of = |(task, &(stated, won)): (usize, &(f64, u8))| Outcome::new(stated, won == 1, task as u64).unwrap();
    pairs.iter().enumerate().map(of).collect()
}

fn close(found: Option<f64>, expected: f64) {
    let found = found.unwrap();
    assert!((found - expected).abs() < 1e-12, "expected {expected}, found {found}");
}

#[test]
fn four_outcomes_by_hand() {
    let found = Metrics::of(&outcomes(&[(0.9, 1), (0.9, 0), (0.2, 0), (0.2, 1)]));
    assert_eq!(found.n, 4);
    close(found.base_rate, 0.5);
    close(found.brier, (0.01 + 0.81 + 0.04 + 0.64) / 4.0);
    close(found.brier_constant, 0.25);
    close(found.brier_skill, 1.0 - 0.375 / 0.25);
    close(found.nll, -(0.9_f64.ln() + 0.1_f64.ln() + 0.8_f64.ln() + 0.2_f64.ln()) / 4.0);
    close(found.auroc, 0.5);
    close(found.signed_gap, 0.05);
    close(found.ece_equal_width_10, (0.4 + 0.3) / 2.0);
    close(found.ece_equal_mass_15, (0.4 + 0.3) / 2.0);
    // Levels of two: raw reliability (0.16 + 0.09) / 2, less 0.25 of sampling variance for each.
    close(found.reliability, 0.125 - 0.25);
    close(found.resolution, 0.0 - 0.25 + 0.25 / 3.0);
    close(found.uncertainty, 0.25 + 0.25 / 3.0);
    close(found.within_level, 0.0);
    close(found.selective_risk_at_50, 0.5);
    // 3.2 accepted: both of 0.9, and 1.2 of the two at 0.2.
    close(found.selective_risk_at_80, (1.0 + 0.6) / 3.2);
}

#[test]
fn certainty_that_is_right_and_wrong() {
    let right = Metrics::of(&outcomes(&[(1.0, 1), (0.0, 0), (1.0, 1), (0.0, 0)]));
    close(right.brier, 0.0);
    close(right.auroc, 1.0);
    close(right.brier_skill, 1.0);
    close(right.nll, -0.99_f64.ln());
    let wrong = Metrics::of(&outcomes(&[(1.0, 0), (0.0, 1)]));
    close(wrong.brier, 1.0);
    close(wrong.auroc, 0.0);
    close(wrong.nll, -0.01_f64.ln());
    close(wrong.ece_equal_width_10, 1.0);
}

#[test]
fn what_is_not_defined_is_none() {
    let none = Metrics::of(&[]);
    assert_eq!((none.n, none.values()), (0, [None; Metrics::NAMES.len()]));
    let one = Metrics::of(&outcomes(&[(0.7, 1)]));
    assert!(one.brier.is_some() && one.reliability.is_none() && one.auroc.is_none() && one.brier_skill.is_none());
    let one_class = Metrics::of(&outcomes(&[(0.7, 1), (0.3, 1)]));
    assert!(one_class.auroc.is_none() && one_class.brier_skill.is_none());
    close(one_class.brier_constant, 0.0);
    assert_eq!(serde_json::to_value(&one).unwrap()["auroc"], serde_json::Value::Null);
    assert!(reliability_curve(&[], 10).is_empty() && reliability_curve(&outcomes(&[(0.5, 1)]), 0).is_empty());
}

#[test]
fn the_curve_keeps_edges_in_the_lower_bin() {
    let curve = reliability_curve(&outcomes(&[(0.0, 0), (0.1, 1), (0.11, 1), (1.0, 1)]), 10);
    let counts: Vec<(f64, usize, f64)> = curve.iter().map(|it| (it.upper, it.n, it.observed)).collect();
    assert_eq!(counts, [(0.1, 2, 0.5), (0.2, 1, 1.0), (1.0, 1, 1.0)]);
    assert!(curve[0].band.unwrap().contains(0.5));
}

#[test]
fn intervals_of_too_little_are_none() {
    assert!(wilson(0, 0, 0.95).is_none() && wilson(3, 2, 0.95).is_none() && wilson(1, 2, 1.0).is_none());
    assert!(mean_t(&[1.0], 0.95).is_none() && mean_t(&[1.0, f64::NAN], 0.95).is_none());
    assert!(tango(0, 0, 0, 0.9).is_none() && tango(2, 2, 3, 0.9).is_none() && tango(u64::MAX, 1, 9, 0.9).is_none());
    assert!(percentile(&mut [], 10, 0.9).is_none() && percentile(&mut [1.0], 3, 0.9).is_none());
    let one_cluster: Vec<Outcome> = (0..9).map(|it| Outcome::new(0.5, it % 2 == 0, 7).unwrap()).collect();
    assert_eq!(intervals(&one_cluster, &Bootstrap::REPORT), Default::default());
    assert_eq!(intervals(&[], &Bootstrap::REPORT), Default::default());
}

#[test]
fn no_flips_still_leave_doubt() {
    let found = tango(0, 0, 800, 0.9).unwrap();
    let end = 1.644_853_6_f64.powi(2) / (800.0 + 1.644_853_6_f64.powi(2));
    assert!((found.high - end).abs() < 1e-6 && (found.low + end).abs() < 1e-6, "{found:?}");
    let all = tango(5, 0, 5, 0.9).unwrap();
    assert!((all.high - 1.0).abs() < 1e-6 && all.low > 0.0, "{all:?}");
}

#[test]
fn a_bootstrap_interval_agrees_with_theory_and_is_repeatable() {
    let many: Vec<(f64, u8)> = (0..1000).map(|it| (0.3, u8::from(it % 10 < 4))).collect();
    let found = intervals(&outcomes(&many), &Bootstrap::REPORT);
    let theory = wilson(400, 1000, 0.95).unwrap();
    let base_rate = found.base_rate.unwrap();
    assert!((base_rate.low - theory.low).abs() < 0.004 && (base_rate.high - theory.high).abs() < 0.004);
    assert_eq!(found, intervals(&outcomes(&many), &Bootstrap::REPORT));
    // Ten outcomes to a task, all alike: a tenth of the information, about three times the width.
    let clustered: Vec<Outcome> =
        (0..1000_u64).map(|it| Outcome::new(0.3, it / 10 % 10 < 4, it / 10).unwrap()).collect();
    let wide = intervals(&clustered, &Bootstrap::REPORT).base_rate.unwrap();
    let ratio = (wide.high - wide.low) / (base_rate.high - base_rate.low);
    assert!((2.6..3.8).contains(&ratio), "{ratio}");
}

#[test]
fn two_thousand_resamples_of_a_whole_evaluation_take_less_than_two_seconds() {
    // Every stated probability distinct: the slowest case.
    let many: Vec<(f64, u8)> =
        (0..1200_u32).map(|it| (f64::from(it * 7919 % 1200) / 1200.0, (it % 3 == 0) as u8)).collect();
    let start = Instant::now();
    let found = intervals(&outcomes(&many), &Bootstrap::REPORT);
    assert!(found.auroc.is_some());
    assert!(start.elapsed().as_secs_f64() < 2.0, "{:?}", start.elapsed());
}

/// Any probability, and often the ends and one value many times.
fn said() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..=1.0, Just(0.0), Just(1.0), Just(0.35)]
}

proptest! {
    #[test]
    fn order_does_not_matter_and_nothing_is_nan(
        pairs in prop::collection::vec((said(), 0_u8..2, 0_u64..6), 0..40),
        seed in any::<u64>(),
    ) {
        let forward: Vec<Outcome> = pairs.iter().map(|it| Outcome::new(it.0, it.1 == 1, it.2).unwrap()).collect();
        let mut backward = forward.clone();
        backward.reverse();
        let found = Metrics::of(&forward);
        prop_assert_eq!(&found, &Metrics::of(&backward));
        prop_assert!(found.values().iter().flatten().all(|it| it.is_finite()));
        let bootstrap = Bootstrap { resamples: 50, seed, confidence: 0.9 };
        let found = intervals(&forward, &bootstrap);
        prop_assert_eq!(&found, &intervals(&backward, &bootstrap));
        for interval in found.values().iter().flatten() {
            prop_assert!(interval.low <= interval.high && interval.low.is_finite() && interval.high.is_finite());
        }
        prop_assert_eq!(reliability_curve(&forward, 10).iter().map(|it| it.n).sum::<usize>(), forward.len());
    }

    #[test]
    fn murphy_parts_and_the_rest_add_up(pairs in prop::collection::vec((0.0..=1.0_f64, 0_u8..2), 2..60)) {
        let it = Metrics::of(&outcomes(&pairs));
        let parts = it.reliability.unwrap() - it.resolution.unwrap() + it.uncertainty.unwrap();
        prop_assert!((parts + it.within_level.unwrap() - it.brier.unwrap()).abs() < 1e-12);
        let on_grid: Vec<(f64, u8)> = pairs.iter().map(|it| ((it.0 * 20.0).round() / 20.0, it.1)).collect();
        prop_assert!(Metrics::of(&outcomes(&on_grid)).within_level.unwrap().abs() < 1e-12);
    }

    #[test]
    fn score_intervals_hold_what_was_seen(gained in 0_u64..40, lost in 0_u64..40, same in 0_u64..200) {
        let n = gained + lost + same;
        prop_assume!(n > 0);
        let found = tango(gained, lost, n, 0.9).unwrap();
        let seen = (gained as f64 - lost as f64) / n as f64;
        prop_assert!(found.low <= seen + 1e-9 && seen <= found.high + 1e-9);
        prop_assert!(found.low >= -1.0 && found.high <= 1.0);
        let mirrored = tango(lost, gained, n, 0.9).unwrap();
        prop_assert!((mirrored.low + found.high).abs() < 1e-9);
    }
}
