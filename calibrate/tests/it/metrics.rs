//! Metrics and intervals: by hand, by property, and within their time.

use std::time::Instant;

use fsq_calibrate::fidelity::{RolloutTruth, fidelity_by_horizon, retention};
use fsq_calibrate::intervals::{
    accelerated, mcnemar_exact, mean_clustered, mean_t, newcombe, percentile, tango, wilson,
};
use fsq_calibrate::metrics::{
    Bootstrap, Cell, Metrics, Outcome, auroc_interval, cell_gaps, errors_if_calibrated, intervals, reliability_curve,
    reliability_curve_equal_mass, risk_coverage, smooth_ece, smooth_ece_interval,
};
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
fn an_accelerated_interval_reaches_further_where_slips_are_rare() {
    // Symmetric values and no acceleration: the percentile interval.
    let mut even: Vec<f64> = (0..=1000).map(f64::from).collect();
    let plain = percentile(&mut even.clone(), 1001, 0.9).unwrap();
    let same = accelerated(&mut even, 1001, 0.9, 500.0, 0.0, f64::INFINITY).unwrap();
    assert!((same.low - plain.low).abs() < 1e-6 && (same.high - plain.high).abs() < 1e-6, "{same:?}");
    let skewed = accelerated(&mut even, 1001, 0.9, 500.0, 0.1, f64::INFINITY).unwrap();
    assert!(skewed.high > plain.high + 5.0 && skewed.low > plain.low + 5.0, "{skewed:?}");
    let few = accelerated(&mut even, 1001, 0.9, 500.0, 0.0, 20.0).unwrap();
    assert!(few.high > plain.high + 5.0 && few.low < plain.low - 5.0, "{few:?}");
    let extreme = accelerated(&mut even, 1001, 0.9, 2000.0, 5.0, f64::INFINITY).unwrap();
    assert!(extreme.low <= extreme.high && extreme.high.is_finite(), "{extreme:?}");
    assert!(accelerated(&mut [], 10, 0.9, 0.0, 0.0, f64::INFINITY).is_none());
    let all = accelerated(&mut [2.0; 9], 9, 0.9, 2.0, 0.0, f64::INFINITY).unwrap();
    assert_eq!((all.low, all.high), (2.0, 2.0));
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
fn nothing_one_and_two_outcomes_give_a_value_or_none() {
    let none: [Outcome; 0] = [];
    assert_eq!((smooth_ece(&none), auroc_interval(&none, 0.95)), (None, None));
    assert!(smooth_ece_interval(&none, &Bootstrap::REPORT).is_none() && risk_coverage(&none, 10).is_empty());
    assert_eq!(errors_if_calibrated(&none, &Bootstrap::REPORT), Default::default());
    assert!(reliability_curve_equal_mass(&none, 10).is_empty());
    let one = outcomes(&[(1.0, 0)]);
    assert!(smooth_ece(&one).is_some_and(|it| it > 0.1) && smooth_ece_interval(&one, &Bootstrap::REPORT).is_none());
    assert_eq!(risk_coverage(&one, 10)[0].risk, 1.0);
    let band = reliability_curve(&one, 10)[0].band_if_calibrated.unwrap();
    assert_eq!((band.low, band.high), (1.0, 1.0));
    let two = outcomes(&[(0.2, 0), (0.8, 1)]);
    assert_eq!(auroc_interval(&two, 0.95), None);
    assert!(intervals(&two, &Bootstrap::REPORT).brier.is_some());
    assert!(mean_clustered(&[(1, 0.5), (1, 0.7)], 0.95).is_none() && mean_clustered(&[], 0.95).is_none());
    assert!(newcombe(0, 0, 0, 0, 0.95).is_none() && newcombe(2, 1, 1, 3, 0.95).is_none());
    assert!(newcombe(u64::MAX, 1, 1, 3, 0.95).is_none());
    assert_eq!((mcnemar_exact(0, 0), mcnemar_exact(4, 4)), (1.0, 1.0));
}

#[test]
fn the_worst_cell_is_found_and_small_ones_are_left_out() {
    let cell = |environment: &str, step| Cell { environment: environment.into(), step, difficulty: "2".into() };
    let many =
        |cell: Cell, n: u64, q: f64| (0..n).map(move |it| (cell.clone(), Outcome::new(q, it % 2 == 0, it).unwrap()));
    let all: Vec<(Cell, Outcome)> = many(cell("a", 0), 400, 0.55)
        .chain(many(cell("b", 0), 400, 0.5))
        .chain(many(cell("b", 1), 300, 0.3))
        .chain(many(cell("b", 2), 100, 1.0))
        .collect();
    let found = cell_gaps(&all, 200, 0.95);
    let order: Vec<(&str, u32, i32)> =
        found.iter().map(|it| (&*it.cell.environment, it.cell.step, (it.signed_gap * 100.0).round() as i32)).collect();
    assert_eq!(order, [("b", 1, -20), ("a", 0, 5), ("b", 0, 0)]);
    // Three comparisons, so each interval is one of 1 - 0.05 / 3.
    let alone = cell_gaps(&all[400..800], 200, 1.0 - 0.05 / 3.0)[0].interval.unwrap();
    let around = found[2].interval.unwrap();
    assert!((alone.low - around.low).abs() < 1e-12 && around.contains(0.0));
    assert!(!found[0].interval.unwrap().contains(0.0));
    assert!(cell_gaps(&[], 200, 0.95).is_empty() && cell_gaps(&all, 0, 0.95).len() == 4);
}

#[test]
fn fidelity_by_horizon_and_the_share_kept_at_each_step() {
    let truth = |cluster: u64, right: [bool; 3]| RolloutTruth {
        cluster,
        shares: right.iter().map(|it| Some(f64::from(u8::from(*it)))).collect(),
    };
    // The reference is always right; the candidate keeps nine tenths at every step.
    let pairs: Vec<(RolloutTruth, RolloutTruth)> =
        (0..1000).map(|it| (truth(it, [true; 3]), truth(it, [it < 900, it < 810, it < 729]))).collect();
    let candidate: Vec<RolloutTruth> = pairs.iter().map(|it| it.1.clone()).collect();
    let by_horizon = fidelity_by_horizon(&candidate, 0.95);
    let values: Vec<(usize, usize, f64)> = by_horizon.iter().map(|it| (it.horizon, it.n, it.fidelity)).collect();
    assert_eq!(values, [(1, 1000, 0.9), (2, 1000, 0.81), (3, 1000, 0.729)]);
    assert_eq!(by_horizon[0].interval, wilson(900, 1000, 0.95));
    let bootstrap = Bootstrap { resamples: 300, ..Bootstrap::REPORT };
    let kept = retention(&pairs, &bootstrap);
    close(kept.per_step, 0.9);
    assert!(kept.interval.is_some_and(|it| it.low > 0.88 && it.low < 0.9 && it.high < 0.92), "{kept:?}");
    let mut reversed = pairs.clone();
    reversed.reverse();
    assert_eq!(kept, retention(&reversed, &bootstrap));
    assert_eq!(retention(&[], &bootstrap).per_step, None);
    // An episode that ended early, one that imagined nothing, and one value that is no share.
    let odd = RolloutTruth { cluster: 1, shares: vec![None, Some(f64::NAN), Some(2.0)] };
    assert!(fidelity_by_horizon(std::slice::from_ref(&odd), 0.95).is_empty());
    assert_eq!(retention(&[(odd.clone(), odd)], &bootstrap).ratios, [None; 3]);
}

#[test]
fn a_calibration_error_is_read_beside_that_of_a_perfect_predictor() {
    // Eleven levels, 500 outcomes: the mean is 0.042 and the 95th percentile 0.061.
    let levels: Vec<(f64, u8)> = (0..500).map(|it| (f64::from(it % 11) / 10.0, 0)).collect();
    let chance = errors_if_calibrated(&outcomes(&levels), &Bootstrap::REPORT).ece_equal_width_10.unwrap();
    assert!((chance.mean - 0.042).abs() < 0.003 && (chance.p95 - 0.061).abs() < 0.004, "{chance:?}");
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

/// Found by the property below.
#[test]
fn the_order_of_outcomes_does_not_show_in_the_last_digit() {
    let rows = [(0.03343791873346822, 1), (0.22859649178794414, 0), (0.9037084487480741, 0)];
    let mut forward: Vec<Outcome> = rows.iter().map(|it| Outcome::new(it.0, true, it.1).unwrap()).collect();
    let bootstrap = Bootstrap { resamples: 50, seed: 0, confidence: 0.9 };
    let found = intervals(&forward, &bootstrap);
    forward.reverse();
    assert_eq!(found, intervals(&forward, &bootstrap));
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
pub(crate) fn said() -> impl Strategy<Value = f64> {
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
        let by_mass = reliability_curve_equal_mass(&forward, 10);
        prop_assert_eq!(by_mass.iter().map(|it| it.n).sum::<usize>(), forward.len());
        prop_assert!(by_mass.iter().all(|it| it.lower <= it.upper && it.band_if_calibrated.is_some()));
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

proptest! {
    // Each case smooths many hundred times.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rankings_and_smooth_errors_are_finite_in_any_order(
        pairs in prop::collection::vec((said(), 0_u8..2, 0_u64..30), 0..40),
        seed in any::<u64>(),
    ) {
        let forward: Vec<Outcome> = pairs.iter().map(|it| Outcome::new(it.0, it.1 == 1, it.2).unwrap()).collect();
        let mut backward = forward.clone();
        backward.reverse();
        let bootstrap = Bootstrap { resamples: 20, seed, confidence: 0.9 };
        let all = |it: &[Outcome]| {
            (
                smooth_ece(it),
                smooth_ece_interval(it, &bootstrap),
                auroc_interval(it, 0.9),
                risk_coverage(it, 7),
                errors_if_calibrated(it, &bootstrap),
            )
        };
        let (smooth, around, auroc, risks, chance) = all(&forward);
        prop_assert_eq!(&(smooth, around, auroc, risks.clone(), chance), &all(&backward));
        prop_assert_eq!(smooth.is_some(), !forward.is_empty());
        prop_assert!(smooth.is_none_or(|it| (0.0..=1.0).contains(&it)));
        prop_assert!(around.is_none_or(|it| 0.0 <= it.low && it.low <= it.high && it.high.is_finite()));
        prop_assert!(auroc.is_none_or(|it| 0.0 < it.low && it.low < it.high && it.high < 1.0));
        prop_assert!(risks.len() <= 9 && risks.iter().all(|it| (0.0..=1.0).contains(&it.risk)));
        prop_assert_eq!(risks.last().map_or(0, |it| it.n), forward.len());
    }
}
