//! Agreement with scikit-learn, scipy and statsmodels, recorded by `tests/fixtures/metrics/make.py`.

use fsq_calibrate::intervals::{mean_t, tango, wilson};
use fsq_calibrate::metrics::{Metrics, Outcome};
use fsq_calibrate::recalibration::{Family, RecalibrationMap};
use serde_json::Value;

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/metrics/metrics.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect()
}

fn outcomes(case: &Value) -> Vec<Outcome> {
    let pairs = numbers(&case["q"]).into_iter().zip(numbers(&case["outcome"]));
    pairs.enumerate().map(|(task, (q, won))| Outcome::new(q, won == 1.0, task as u64).unwrap()).collect()
}

#[test]
fn metrics_agree() {
    for case in fixture()["cases"].as_array().unwrap() {
        let found = serde_json::to_value(Metrics::of(&outcomes(case))).unwrap();
        for (name, expected) in case["metrics"].as_object().unwrap() {
            let difference = found[name].as_f64().unwrap() - expected.as_f64().unwrap();
            assert!(difference.abs() < 1e-9, "{}, {name}: {} {expected}", case["name"], found[name]);
        }
    }
}

#[test]
fn parametric_maps_agree_unless_they_would_turn_the_order_around() {
    for case in fixture()["cases"].as_array().unwrap() {
        for (family, name) in [(Family::Platt, "platt"), (Family::Beta, "beta")] {
            let expected = numbers(&case["fits"][name]);
            let found = RecalibrationMap::fit_family(family, &outcomes(case)).unwrap().parameters();
            let slopes = expected.len() - 1;
            if expected[..slopes].iter().any(|it| *it < 0.0) {
                assert_eq!(found[0], 0.0, "{name}: {expected:?} {found:?}");
                continue;
            }
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 2e-4, "{}, {name}: {found} {expected}", case["name"]);
            }
        }
    }
}

#[test]
fn isotonic_values_agree() {
    let fixture = fixture();
    let case = &fixture["isotonic"];
    let map = RecalibrationMap::fit_family(Family::Isotonic, &outcomes(case)).unwrap();
    let parameters = map.parameters();
    let mut expected = numbers(&case["fit"]);
    expected.dedup_by(|a, b| (*a - *b).abs() < 1e-9);
    let found = &parameters[parameters.len() / 2..];
    assert_eq!(found.len(), expected.len(), "{found:?} {expected:?}");
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?} {expected:?}");
}

#[test]
fn intervals_agree() {
    let fixture = fixture();
    let agree = |found: fsq_calibrate::intervals::Interval, low: f64, high: f64, within: f64| {
        assert!((found.low - low).abs() < within && (found.high - high).abs() < within, "{found:?} {low} {high}");
    };
    for it in fixture["wilson"].as_array().unwrap() {
        let expected = numbers(&it["interval"]);
        agree(
            wilson(it["k"].as_u64().unwrap(), it["n"].as_u64().unwrap(), 0.95).unwrap(),
            expected[0],
            expected[1],
            1e-9,
        );
    }
    let expected = numbers(&fixture["mean_t"]["interval"]);
    agree(mean_t(&numbers(&fixture["mean_t"]["values"]), 0.95).unwrap(), expected[0], expected[1], 1e-6);
    for it in fixture["tango"].as_array().unwrap() {
        let count = |key: &str| it[key].as_u64().unwrap();
        let end = |key: &str| it[key].as_f64().unwrap();
        let found = tango(count("b"), count("c"), count("n"), end("confidence")).unwrap();
        agree(found, end("low"), end("high"), 1e-5);
    }
}
