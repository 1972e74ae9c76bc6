//! Thresholds to act at: the bound holds in simulation, and edges give a threshold or none.

use fsq_calibrate::metrics::Outcome;
use fsq_calibrate::threshold::{FailureBound, act_threshold};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Plans that say `q` and succeed with `q²`: overconfident, so no threshold could be read off what is said.
fn draw(random: &mut ChaCha8Rng, n: u64) -> Vec<Outcome> {
    let one = |task| {
        let q: f64 = random.random();
        Outcome::new(q, random.random::<f64>() < q * q, task).unwrap()
    };
    (0..n).map(one).collect()
}

/// What a threshold really means for such plans: share followed and failing, and failures of those followed.
fn truth(threshold: f64) -> (f64, f64) {
    let followed = 1.0 - threshold;
    let failing = followed - (1.0 - threshold.powi(3)) / 3.0;
    (failing, if followed > 0.0 { failing / followed } else { 0.0 })
}

#[test]
fn failures_of_all_plans_stay_bounded_on_average() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for (n, rate) in [(40, 0.1), (200, 0.05), (1000, 0.1)] {
        let found = (0..2000).map(|_| {
            let found = act_threshold(&draw(&mut random, n), FailureBound::OfAll { rate }, 0);
            found.map_or(0.0, |it| truth(it.threshold).0)
        });
        let mean = found.sum::<f64>() / 2000.0;
        // The guarantee is `mean <= rate`; with many outcomes little of it is given away.
        assert!(mean <= rate + 0.001, "{n} {rate}: {mean}");
        assert!(n < 1000 || mean > 0.9 * rate, "{n} {rate}: {mean}");
    }
}

#[test]
fn failures_of_followed_plans_stay_bounded_but_for_the_risk() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    for (n, rate, risk) in [(200, 0.2, 0.1), (1000, 0.1, 0.05), (1000, 0.3, 0.2)] {
        let (mut broken, mut none) = (0, 0);
        for _ in 0..2000 {
            match act_threshold(&draw(&mut random, n), FailureBound::OfFollowed { rate, risk }, 0) {
                Some(it) if truth(it.threshold).1 > rate => broken += 1,
                Some(_) => {}
                None => none += 1,
            }
        }
        let (broken, none) = (f64::from(broken) / 2000.0, f64::from(none) / 2000.0);
        // Three standard errors of 2,000 simulations.
        assert!(broken <= risk + 3.0 * (risk * (1.0 - risk) / 2000.0).sqrt(), "{n} {rate} {risk}: {broken}");
        assert!(none < 0.75, "{n} {rate} {risk}: no threshold in {none}");
    }
}

#[test]
fn repeated_outcomes_of_a_task_are_no_new_evidence() {
    let one = draw(&mut ChaCha8Rng::seed_from_u64(7), 120);
    let bound = FailureBound::OfFollowed { rate: 0.2, risk: 0.1 };
    let many: Vec<Outcome> = (0..50).flat_map(|_| one.clone()).collect();
    assert_eq!(act_threshold(&one, bound, 0), act_threshold(&many, bound, 0));
}

#[test]
fn edges_give_a_threshold_or_none() {
    let all = |won: bool, n: u64| -> Vec<Outcome> { (0..n).map(|it| Outcome::new(0.5, won, it).unwrap()).collect() };
    let followed = FailureBound::OfFollowed { rate: 0.1, risk: 0.05 };
    let of_all = FailureBound::OfAll { rate: 0.1 };
    for bound in [followed, of_all] {
        assert_eq!(act_threshold(&[], bound, 0), None);
        assert_eq!(act_threshold(&all(true, 1), bound, 0), None);
        assert_eq!(act_threshold(&all(false, 500), bound, 0), None);
        let found = act_threshold(&all(true, 500), bound, 0).unwrap();
        assert_eq!((found.threshold, found.n, found.n_followed, found.n_failed), (0.5, 500, 500, 0));
    }
    // 29 successes show that at most a tenth fails with 95 % confidence; 28 do not.
    assert!(
        act_threshold(&all(true, 29), followed, 0).is_some() && act_threshold(&all(true, 28), followed, 0).is_none()
    );
    for rate in [0.0, 1.0, f64::NAN, -0.5] {
        assert_eq!(act_threshold(&all(true, 500), FailureBound::OfAll { rate }, 0), None);
    }
}

proptest! {
    #[test]
    fn the_order_of_outcomes_changes_no_threshold(
        pairs in prop::collection::vec((0.0..=1.0_f64, any::<bool>(), 0_u64..40), 0..120),
        rate in 0.01..0.99_f64,
    ) {
        let forward: Vec<Outcome> = pairs.iter().map(|it| Outcome::new(it.0, it.1, it.2).unwrap()).collect();
        let mut backward = forward.clone();
        backward.reverse();
        for bound in [FailureBound::OfAll { rate }, FailureBound::OfFollowed { rate, risk: 0.1 }] {
            let found = act_threshold(&forward, bound, 3);
            prop_assert_eq!(found, act_threshold(&backward, bound, 3));
            if let Some(it) = found {
                prop_assert!((0.0..=1.0).contains(&it.threshold));
                prop_assert!(it.n_failed <= it.n_followed && it.n_followed <= it.n);
            }
        }
    }
}
