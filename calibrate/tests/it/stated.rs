//! Stated probabilities and the distribution they are read from.

use fsq_calibrate::stated::{GRID_PERCENT, Stated, StatedDistribution, expectation};
use proptest::prelude::*;

#[test]
fn one_level_with_all_mass_is_that_level() {
    for (level, percent) in GRID_PERCENT.into_iter().enumerate() {
        let mut scores = [f32::NEG_INFINITY; 21];
        scores[level] = -3.0;
        let read = StatedDistribution::from_log_probs(&scores).unwrap();
        assert_eq!(read.entropy_nats(), 0.0);
        assert!((read.expectation().value() - f64::from(percent) / 100.0).abs() < 1e-12);
    }
}

#[test]
fn equal_scores_mean_one_half() {
    let read = StatedDistribution::from_log_probs(&[-2.5; 21]).unwrap();
    assert!((read.expectation().value() - 0.5).abs() < 1e-12);
    assert!((read.entropy_nats() - 21_f64.ln()).abs() < 1e-12);
}

#[test]
fn two_levels_weigh_by_their_odds() {
    let mut scores = [f32::NEG_INFINITY; 21];
    scores[4] = 0.75_f32.ln();
    scores[16] = 0.25_f32.ln();
    assert!((expectation(&scores).unwrap().value() - (0.75 * 0.2 + 0.25 * 0.8)).abs() < 1e-7);
}

#[test]
fn scores_that_say_nothing_are_none() {
    assert!(expectation(&[f32::NEG_INFINITY; 21]).is_none());
    assert!(expectation(&[f32::NAN; 21]).is_none());
    assert!(expectation(&[f32::INFINITY; 21]).is_none());
    let mut one_bad = [-1.0; 21];
    one_bad[0] = f32::NAN;
    assert!((expectation(&one_bad).unwrap().value() - 0.525).abs() < 1e-9);
}

#[test]
fn only_probabilities_are_stated() {
    for wrong in [f64::NAN, -0.01, 1.01, f64::INFINITY] {
        assert!(Stated::new(wrong).is_err());
    }
    assert!(Stated::from_percent(7).is_none() && Stated::from_percent(105).is_none());
    assert!(serde_json::from_str::<Stated>("1.5").is_err());
    assert_eq!(serde_json::to_string(&Stated::new(0.65).unwrap()).unwrap(), "0.65");
    assert_eq!(Stated::new(-0.0).unwrap().value().to_bits(), 0.0_f64.to_bits());
    assert_eq!(Stated::new(0.125).unwrap().nearest_percent(), 15);
}

proptest! {
    #[test]
    fn expectations_are_probabilities(scores in prop::array::uniform21(-200.0_f32..10.0)) {
        let read = StatedDistribution::from_log_probs(&scores).unwrap();
        prop_assert!((0.0..=1.0).contains(&read.expectation().value()));
        prop_assert!((read.mass().iter().sum::<f64>() - 1.0).abs() < 1e-12);
        prop_assert!((0.0..=21_f64.ln() + 1e-12).contains(&read.entropy_nats()));
    }
}
