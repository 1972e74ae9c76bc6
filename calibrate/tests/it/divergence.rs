//! Divergence and foresight shift: agreement with scipy and with llama-perplexity's loops, recorded by
//! `tests/fixtures/divergence/make.py`, and what holds of them by definition.

use fsq_calibrate::StatedDistribution;
use fsq_calibrate::divergence::{Divergence, TokenDivergence};
use fsq_calibrate::shift::{ForesightShift, StatedPair};
use proptest::prelude::*;
use serde_json::Value;

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/divergence/divergence.json")).unwrap()
}

fn rows(value: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn tokens(case: &Value) -> Vec<TokenDivergence> {
    let following: Vec<usize> = serde_json::from_value(case["following"].clone()).unwrap();
    let (reference, candidate) = (rows(&case["reference"]), rows(&case["candidate"]));
    let both = reference.iter().zip(&candidate).zip(following);
    both.map(|((p, q), next)| TokenDivergence::of(p, q, next).unwrap()).collect()
}

/// Every number of `expected` is found within `relative`, and whatever else is found is `null`.
#[track_caller]
fn agree(found: &Value, expected: &Value, relative: f64) {
    for (name, expected) in expected.as_object().unwrap() {
        match expected.as_f64() {
            None => agree(&found[name], expected, relative),
            Some(expected) => {
                let found = found[name].as_f64().unwrap_or_else(|| panic!("{name}: {found}"));
                let distance = (found - expected).abs();
                assert!(distance <= relative * expected.abs().max(1e-3), "{name}: expected {expected}, found {found}");
            }
        }
    }
}

/// No number is found that was not expected.
#[track_caller]
fn complete(found: &Value, expected: &Value) {
    for (name, found) in found.as_object().unwrap() {
        match (&expected[name], found) {
            (Value::Null, found) => assert!(found.is_null(), "{name}: {found}"),
            (expected @ Value::Object(_), found) => complete(found, expected),
            (_, found) => assert!(found.is_number(), "{name}: {found}"),
        }
    }
}

#[test]
fn divergence_agrees_with_scipy() {
    for case in fixture()["rows"].as_array().unwrap() {
        let found = serde_json::to_value(Divergence::of(&tokens(case)).unwrap()).unwrap();
        agree(&found, &case["expected"], 1e-9);
        complete(&found, &case["expected"]);
    }
}

#[test]
fn divergence_agrees_with_llama_perplexity_within_its_16_bits() {
    let fixture = fixture();
    let cases = fixture["rows"].as_array().unwrap().iter().filter(|it| it["llama_perplexity"].is_object());
    for case in cases.clone() {
        let found = serde_json::to_value(Divergence::of(&tokens(case)).unwrap()).unwrap();
        agree(&found, &case["llama_perplexity"], 1e-3);
    }
    assert_eq!(cases.count(), 2);
}

#[test]
fn shift_agrees_with_scipy() {
    let fixture = fixture();
    let case = &fixture["shift"];
    let task: Vec<u64> = serde_json::from_value(case["task"].clone()).unwrap();
    let stated = |it: &Vec<f32>| StatedDistribution::from_log_probs(it.as_slice().try_into().unwrap()).unwrap();
    let (reference, candidate) = (rows(&case["reference"]), rows(&case["candidate"]));
    let both = reference.iter().zip(&candidate).zip(task);
    let pair = |((p, q), cluster)| StatedPair { cluster, reference: stated(p), candidate: stated(q) };
    let found = ForesightShift::of(&both.map(pair).collect::<Vec<_>>()).unwrap();
    let found = serde_json::to_value(found).unwrap();
    agree(&found, &case["expected"], 1e-9);
    complete(&found, &case["expected"]);
}

#[test]
fn rows_that_cannot_be_compared_are_refused() {
    assert_eq!(TokenDivergence::of(&[0.0, 1.0], &[0.0], 0), None);
    assert_eq!(TokenDivergence::of(&[0.0, 1.0], &[0.0, 1.0], 2), None);
    assert_eq!(TokenDivergence::of(&[], &[], 0), None);
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(TokenDivergence::of(&[0.0, wrong], &[0.0, 1.0], 0), None);
        assert_eq!(TokenDivergence::of(&[0.0, 1.0], &[wrong, 0.0], 0), None);
    }
    assert_eq!(Divergence::of(&[]), None);
    assert_eq!(ForesightShift::of(&[]), None);
}

#[test]
fn one_place_has_values_and_no_intervals() {
    let scores = |at: usize| std::array::from_fn(|level| if level == at { 0.0 } else { f32::NEG_INFINITY });
    let stated = |at| StatedDistribution::from_log_probs(&scores(at)).unwrap();
    let pair = StatedPair { cluster: 7, reference: stated(20), candidate: stated(4) };
    let found = ForesightShift::of(&[pair]).unwrap();
    assert_eq!((found.mean, found.mean_absolute, found.rms), (-0.8, 0.8, 0.8));
    assert_eq!((found.total_variation_mean, found.top1_agreement), (1.0, 0.0));
    assert!((found.wasserstein_mean - 0.8).abs() < 1e-12);
    assert_eq!((found.mean_interval, found.mean_absolute_interval), (None, None));
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-30.0f32..30.0, 5)
}

proptest! {
    /// A policy is not apart from itself, whatever is added to all of its logits.
    #[test]
    fn equal_policies_do_not_diverge(row in logits(), next in 0usize..5, n in 1usize..20) {
        let token = TokenDivergence::of(&row, &row, next).unwrap();
        let found = Divergence::of(&vec![token; n]).unwrap();
        prop_assert_eq!((found.kl_mean, found.kl_max, found.delta_p.rms), (0.0, 0.0, 0.0));
        prop_assert_eq!((found.top1_agreement, found.perplexity_ratio), (1.0, 1.0));
        let text = serde_json::to_string(&found).unwrap();
        prop_assert!(!text.contains("NaN"));
    }

    /// It is never negative, and the order of the places is of no matter.
    #[test]
    fn divergence_is_a_divergence(p in logits(), q in logits(), r in logits()) {
        let of = |left: &[f32], right: &[f32]| TokenDivergence::of(left, right, 0).unwrap();
        let mut tokens: Vec<TokenDivergence> =
            [(&p, &q), (&q, &r), (&r, &p), (&q, &p)].into_iter().cycle().take(13).map(|it| of(it.0, it.1)).collect();
        let forward = Divergence::of(&tokens).unwrap();
        prop_assert!(forward.kl_mean >= 0.0 && forward.kl_median <= forward.kl_p99 && forward.kl_p99 <= forward.kl_max);
        tokens.reverse();
        let backward = Divergence::of(&tokens).unwrap();
        prop_assert!((forward.kl_mean - backward.kl_mean).abs() <= 1e-12 * forward.kl_mean);
        prop_assert_eq!(forward.kl_p95, backward.kl_p95);
        prop_assert!(forward.delta_p.min >= -1.0 && forward.delta_p.max <= 1.0);
    }
}
