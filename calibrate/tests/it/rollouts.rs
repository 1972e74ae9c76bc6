//! Agreement with scikit-learn, pandas and statsmodels on selections, cells and rollouts, recorded by
//! `tests/fixtures/rollouts/make.py`; and what any order, any probability and any few of them give.

use fsq_calibrate::fidelity::{RolloutTruth, fidelity_by_horizon, retention};
use fsq_calibrate::intervals::Interval;
use fsq_calibrate::metrics::{Bootstrap, Cell, Metrics, Outcome, cell_gaps, risk_coverage};
use proptest::prelude::*;
use serde_json::Value;

use crate::metrics::said;

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/rollouts/rollouts.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect()
}

#[track_caller]
fn agree(found: f64, expected: &Value, within: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() < within, "found {found}, expected {expected}");
}

/// The quantile of Student's t comes from a search that stops at 1e-7 or so.
#[track_caller]
fn ends_agree(found: Option<Interval>, expected: &Value) {
    agree(found.unwrap().low, &expected[0], 1e-6);
    agree(found.unwrap().high, &expected[1], 1e-6);
}

#[test]
fn risks_of_selections_agree() {
    for case in fixture()["selections"].as_array().unwrap() {
        let pairs = numbers(&case["q"]).into_iter().zip(numbers(&case["outcome"]));
        let outcomes: Vec<Outcome> =
            pairs.zip(0..).map(|((q, won), task)| Outcome::new(q, won == 1.0, task).unwrap()).collect();
        let metrics = Metrics::of(&outcomes);
        agree(metrics.selective_risk_at_50.unwrap(), &case["selective_risk_at_50"], 1e-9);
        agree(metrics.selective_risk_at_80.unwrap(), &case["selective_risk_at_80"], 1e-9);
        // Ours begins with the highest threshold, the other with the lowest.
        let expected = case["points"].as_array().unwrap();
        let found = risk_coverage(&outcomes, outcomes.len());
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().rev().zip(expected) {
            agree(found.threshold, &expected[0], 1e-12);
            assert_eq!(found.n as u64, expected[1].as_u64().unwrap());
            agree(found.risk, &expected[2], 1e-9);
        }
    }
}

#[test]
fn gaps_of_cells_agree() {
    let fixture = fixture();
    let rows = &fixture["cells"]["rows"];
    let text = |field: &str, at: usize| rows[field][at].as_str().unwrap().to_owned();
    let whole = |field: &str, at: usize| rows[field][at].as_u64().unwrap();
    let outcome = |at: usize| {
        let step = u32::try_from(whole("step", at)).unwrap();
        let cell = Cell { environment: text("environment", at), step, difficulty: text("difficulty", at) };
        let q = rows["q"][at].as_f64().unwrap();
        (cell, Outcome::new(q, whole("outcome", at) == 1, whole("cluster", at)).unwrap())
    };
    let n = rows["q"].as_array().unwrap().len();
    let outcomes: Vec<(Cell, Outcome)> = (0..n).map(outcome).collect();
    let n_min = usize::try_from(fixture["cells"]["n_min"].as_u64().unwrap()).unwrap();
    let found = cell_gaps(&outcomes, n_min, 0.95);
    let expected = fixture["cells"]["gaps"].as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let Cell { environment, step, difficulty } = &found.cell;
        assert_eq!(serde_json::json!([environment, step, difficulty]), expected["cell"]);
        assert_eq!(found.n as u64, expected["n"].as_u64().unwrap());
        agree(found.signed_gap, &expected["gap"], 1e-9);
        ends_agree(found.interval, &expected["interval"]);
    }
}

#[test]
fn fidelity_and_what_is_kept_at_each_step_agree() {
    let fixture = fixture();
    let case = &fixture["rollouts"];
    let truths = |side: &str, cluster: &dyn Fn(usize) -> u64| -> Vec<RolloutTruth> {
        let rows = case[side].as_array().unwrap().iter().enumerate();
        let shares = |row: &Value| row.as_array().unwrap().iter().map(Value::as_f64).collect();
        rows.map(|(at, row)| RolloutTruth { cluster: cluster(at), shares: shares(row) }).collect()
    };
    let single = |at: usize| at as u64;
    let several = |at: usize| case["clusters"][at].as_u64().unwrap();
    for (name, truths) in [("single", truths("candidate", &single)), ("several", truths("candidate", &several))] {
        let found = fidelity_by_horizon(&truths, 0.95);
        for (found, expected) in found.iter().zip(case[name].as_array().unwrap()) {
            assert_eq!(found.n as u64, expected["n"].as_u64().unwrap());
            agree(found.fidelity, &expected["fidelity"], 1e-12);
            ends_agree(found.interval, &expected["interval"]);
        }
    }
    let pairs: Vec<_> = truths("reference", &single).into_iter().zip(truths("candidate", &single)).collect();
    let kept = retention(&pairs, &Bootstrap { resamples: 100, ..Bootstrap::REPORT });
    for (found, expected) in kept.ratios.iter().zip(case["ratios"].as_array().unwrap()) {
        agree(found.unwrap(), expected, 1e-12);
    }
    agree(kept.per_step.unwrap(), &case["per_step"], 1e-9);
}

/// Shares, ends of the range, and what is no share.
fn share() -> impl Strategy<Value = Option<f64>> {
    let share = prop_oneof![0.0..=1.0, Just(0.0), Just(1.0), Just(f64::NAN), Just(-1.0), Just(f64::INFINITY)];
    prop::option::of(share)
}

fn shares() -> impl Strategy<Value = Vec<Option<f64>>> {
    prop::collection::vec(share(), 0..4)
}

proptest! {
    #[test]
    fn rollouts_in_any_order_give_values_or_none(
        rows in prop::collection::vec((0_u64..8, shares(), shares()), 0..20),
        seed in any::<u64>(),
    ) {
        let truth = |cluster: u64, shares: &[Option<f64>]| RolloutTruth { cluster, shares: shares.to_vec() };
        let forward: Vec<_> = rows.iter().map(|(task, a, b)| (truth(*task, a), truth(*task, b))).collect();
        let mut backward = forward.clone();
        backward.reverse();
        let bootstrap = Bootstrap { resamples: 20, seed, confidence: 0.9 };
        let kept = retention(&forward, &bootstrap);
        prop_assert_eq!(&kept.ratios.len(), &retention(&backward, &bootstrap).ratios.len());
        prop_assert!(kept.ratios.iter().flatten().chain(&kept.per_step).all(|it| it.is_finite() && *it >= 0.0));
        prop_assert!(kept.interval.is_none_or(|it| it.low <= it.high && it.high.is_finite()));
        let sides = |pairs: &[(RolloutTruth, RolloutTruth)]| pairs.iter().map(|it| it.1.clone()).collect::<Vec<_>>();
        let found = fidelity_by_horizon(&sides(&forward), 0.9);
        prop_assert_eq!(&found, &fidelity_by_horizon(&sides(&backward), 0.9));
        for it in found {
            prop_assert!((0.0..=1.0).contains(&it.fidelity) && it.n > 0);
            prop_assert!(it.interval.is_none_or(|it| it.low <= it.high && it.low.is_finite() && it.high.is_finite()));
        }
    }

    #[test]
    fn cells_in_any_order_give_values_or_none(
        rows in prop::collection::vec((0_u32..3, said(), any::<bool>(), 0_u64..6), 0..40),
    ) {
        let placed = |(step, q, won, task): &(u32, f64, bool, u64)| {
            let cell = Cell { environment: "a".into(), step: *step, difficulty: String::new() };
            (cell, Outcome::new(*q, *won, *task).unwrap())
        };
        let forward: Vec<(Cell, Outcome)> = rows.iter().map(placed).collect();
        let mut backward = forward.clone();
        backward.reverse();
        let found = cell_gaps(&forward, 1, 0.95);
        prop_assert_eq!(&found, &cell_gaps(&backward, 1, 0.95));
        prop_assert_eq!(found.iter().map(|it| it.n).sum::<usize>(), rows.len());
        for it in found {
            prop_assert!(it.signed_gap.abs() <= 1.0);
            prop_assert!(it.interval.is_none_or(|it| it.low <= it.high && it.low.is_finite() && it.high.is_finite()));
        }
    }
}
