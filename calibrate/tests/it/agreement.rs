//! Agreement with scikit-learn, scipy, statsmodels, relplot and venn-abers, recorded by
//! `tests/fixtures/agreement/make.py`.

use fsq_calibrate::Stated;
use fsq_calibrate::intervals::{Interval, mcnemar_exact, mean_clustered, newcombe};
use fsq_calibrate::metrics::{Metrics, Outcome, auroc_interval, delong, smooth_ece};
use fsq_calibrate::recalibration::{Family, RecalibrationMap};
use serde_json::Value;

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/agreement/agreement.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect()
}

/// The outcomes of a case, each a cluster of its own or in the recorded ones.
fn outcomes(case: &Value, clustered: bool) -> Vec<Outcome> {
    let pairs = numbers(&case["q"]).into_iter().zip(numbers(&case["outcome"]));
    let cluster = |index: usize| if clustered { case["clusters"][index].as_u64().unwrap() } else { index as u64 };
    pairs.enumerate().map(|(index, (q, won))| Outcome::new(q, won == 1.0, cluster(index)).unwrap()).collect()
}

fn agree(name: &str, found: f64, expected: f64, within: f64) {
    assert!((found - expected).abs() < within, "{name}: found {found}, expected {expected}");
}

fn ends_agree(name: &str, found: Option<Interval>, expected: &Value, within: f64) {
    let (found, expected) = (found.unwrap(), numbers(expected));
    agree(name, found.low, expected[0], within);
    agree(name, found.high, expected[1], within);
}

#[test]
fn rankings_and_selections_agree() {
    for case in fixture()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let single = outcomes(case, false);
        let metrics = serde_json::to_value(Metrics::of(&single)).unwrap();
        for metric in ["brier", "nll", "aurc", "auprc_failure"] {
            agree(name, metrics[metric].as_f64().unwrap(), case[metric].as_f64().unwrap(), 1e-9);
        }
        let (auroc, error) = delong(&single).unwrap();
        agree(name, auroc, case["delong"]["auroc"].as_f64().unwrap(), 1e-12);
        agree(name, error, case["delong"]["error"].as_f64().unwrap(), 1e-9);
        match &case["delong"]["interval"] {
            Value::Null => assert_eq!(auroc_interval(&single, 0.95), None, "{name}"),
            ends if error > 0.0 => ends_agree(name, auroc_interval(&single, 0.95), ends, 1e-9),
            // Every placement alike: no variance is to be seen.
            _ => assert_eq!(auroc_interval(&single, 0.95), None, "{name}"),
        }
    }
}

#[test]
fn the_smooth_error_agrees() {
    for case in fixture()["cases"].as_array().unwrap() {
        let (name, expected) = (case["name"].as_str().unwrap(), &case["smooth"]);
        let found = smooth_ece(&outcomes(case, false)).unwrap();
        agree(name, found, expected["definition"].as_f64().unwrap(), 1e-5);
        // relplot stops its search at a bandwidth known to a thousandth; where a probability of exactly 0 or 1 meets
        // its own mirror image, its grid does not give the integral of the definition.
        if numbers(&case["q"]).iter().any(|q| *q == 0.0 || *q == 1.0) {
            continue;
        }
        agree(name, found, expected["relplot_at"].as_f64().unwrap(), 2e-3);
        agree(name, found, expected["relplot"].as_f64().unwrap(), 4e-3);
    }
}

#[test]
fn intervals_of_means_agree() {
    for case in fixture()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let values = |clustered: bool, square: bool| -> Vec<(u64, f64)> {
            let gap = |it: &Outcome| it.probability() - f64::from(u8::from(it.success()));
            let value = |it: &Outcome| if square { gap(it).powi(2) } else { gap(it) };
            outcomes(case, clustered).iter().map(|it| (it.cluster(), value(it))).collect()
        };
        // The quantile of Student's t comes from a search that stops at 1e-7 or so.
        ends_agree(name, mean_clustered(&values(false, false), 0.95), &case["gap_t"], 1e-6);
        ends_agree(name, mean_clustered(&values(true, false), 0.95), &case["gap_clustered"], 1e-6);
        ends_agree(name, mean_clustered(&values(true, true), 0.95), &case["brier_clustered"], 1e-6);
    }
}

#[test]
fn intervals_and_tests_of_pairs_agree() {
    let fixture = fixture();
    for it in fixture["newcombe"].as_array().unwrap() {
        let count = |key: &str| it[key].as_u64().unwrap();
        let end = |key: &str| it[key].as_f64().unwrap();
        let found = newcombe(count("both"), count("gained"), count("lost"), count("n"), end("confidence")).unwrap();
        agree("newcombe", found.low, end("low"), 1e-9);
        agree("newcombe", found.high, end("high"), 1e-9);
    }
    for it in fixture["mcnemar"].as_array().unwrap() {
        let found = mcnemar_exact(it["gained"].as_u64().unwrap(), it["lost"].as_u64().unwrap());
        agree("mcnemar", found, it["p"].as_f64().unwrap(), 1e-9);
    }
}

#[test]
fn both_sides_of_the_venn_abers_map_agree() {
    let fixture = fixture();
    let case = &fixture["venn_abers"];
    let map = RecalibrationMap::fit_family(Family::VennAbers, &outcomes(case, false)).unwrap();
    let sides = numbers(&case["low"]).into_iter().zip(numbers(&case["high"]));
    for (q, (low, high)) in numbers(&case["asked"]).into_iter().zip(sides) {
        let found = map.interval(Stated::new(q).unwrap()).unwrap();
        agree(&format!("low at {q}"), found.low, low, 1e-9);
        agree(&format!("high at {q}"), found.high, high, 1e-9);
    }
}
