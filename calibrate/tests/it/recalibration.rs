//! Recalibration maps: chosen by number, monotone, never certain, stored and read back.

use fsq_calibrate::Stated;
use fsq_calibrate::metrics::{Metrics, Outcome};
use fsq_calibrate::recalibration::{Family, RecalibrationError, RecalibrationMap, RecalibrationMaps, cross_fitted};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Grid statements whose true odds are `truth(q)`.
fn draw(n: usize, seed: u64, truth: fn(f64) -> f64) -> Vec<Outcome> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let one = |task| {
        let q = f64::from(random.random_range(0..21_u8)) / 20.0;
        Outcome::new(q, random.random::<f64>() < truth(q), task as u64).unwrap()
    };
    (0..n).map(one).collect()
}

fn mapped(map: &RecalibrationMap, outcomes: &[Outcome]) -> Metrics {
    Metrics::of(&map.applied(outcomes))
}

#[test]
fn the_number_of_outcomes_chooses_the_family() {
    use Family::*;
    let expected = [
        (0, Identity),
        (1, Shrinkage),
        (99, Shrinkage),
        (100, Platt),
        (499, Platt),
        (500, Beta),
        (2000, Beta),
        (2001, Isotonic),
    ];
    for (n, family) in expected {
        let map = RecalibrationMap::fit(&draw(n, 1, |q| q)).unwrap();
        assert_eq!((map.family(), map.n()), (family, n));
    }
}

#[test]
fn one_class_shrinks_or_is_an_error() {
    let all: Vec<Outcome> = (0..600).map(|it| Outcome::new(0.6, true, it).unwrap()).collect();
    let map = RecalibrationMap::fit(&all).unwrap();
    assert_eq!(map.family(), Family::Shrinkage);
    let error = RecalibrationMap::fit_family(Family::Beta, &all).unwrap_err();
    assert_eq!(error, RecalibrationError::OneClass { family: Family::Beta, found: "successes" });
    let error = RecalibrationMap::fit_family(Family::Platt, &all[..3]).unwrap_err();
    assert_eq!(error, RecalibrationError::TooFew { family: Family::Platt, expected: 10, found: 3 });
    assert!(RecalibrationMap::fit_family(Family::Shrinkage, &[]).is_err());
}

#[test]
fn shrinkage_by_hand() {
    let few: Vec<Outcome> = (0..50).map(|it| Outcome::new(0.9, it < 12, it).unwrap()).collect();
    let map = RecalibrationMap::fit(&few).unwrap();
    // Weight 50 / 100 towards 13 / 52.
    assert!((map.apply(Stated::new(0.9).unwrap()).value() - 0.575).abs() < 1e-12);
}

#[test]
fn maps_undo_the_fault_they_can_express() {
    fn logit(q: f64) -> f64 {
        let q = q.clamp(0.02, 0.98);
        (q / (1.0 - q)).ln()
    }
    let shifted = |q: f64| 1.0 / (1.0 + (1.5 - logit(q)).exp());
    let blunt = |q: f64| 1.0 / (1.0 + (-0.4 * logit(q)).exp());
    for (family, truth, n) in [
        (Family::Temperature, blunt as fn(f64) -> f64, 400),
        (Family::Platt, shifted, 400),
        (Family::Beta, shifted, 1500),
        (Family::Beta, |q| q * q, 1500),
        (Family::Isotonic, |q| if q < 0.5 { 0.2 } else { 0.6 }, 4000),
    ] {
        let map = RecalibrationMap::fit_family(family, &draw(n, 7, truth)).unwrap();
        let fresh = draw(20_000, 8, truth);
        let (before, after) = (Metrics::of(&fresh), mapped(&map, &fresh));
        assert!(after.brier.unwrap() < before.brier.unwrap() - 0.01, "{family:?}");
        assert!(after.signed_gap.unwrap().abs() < 0.04, "{family:?} {:?}", after.signed_gap);
        assert!(after.auroc.unwrap() > before.auroc.unwrap() - 0.01, "{family:?}");
    }
}

#[test]
fn hard_data_still_fit() {
    // Perfectly separated, all one probability, all certain: no divergence, no certainty.
    let separated: Vec<Outcome> =
        (0..600).map(|it| Outcome::new(f64::from(it) / 599.0, it > 299, it as u64).unwrap()).collect();
    let constant: Vec<Outcome> = (0..600).map(|it| Outcome::new(0.5, it % 3 == 0, it).unwrap()).collect();
    let certain: Vec<Outcome> =
        (0..600).map(|it| Outcome::new(f64::from(it as u8 % 2), it % 2 == 0, it).unwrap()).collect();
    for data in [separated, constant, certain] {
        for family in Family::ALL {
            let map = RecalibrationMap::fit_family(family, &data).unwrap();
            for q in [0.0, 1e-300, 0.5, 1.0] {
                let estimate = map.apply(Stated::new(q).unwrap()).value();
                assert!((0.0..=1.0).contains(&estimate));
                assert!(family == Family::Identity || (1e-3..=1.0 - 1e-3).contains(&estimate), "{family:?} {estimate}");
            }
        }
    }
}

#[test]
fn the_interval_of_venn_abers_holds_the_estimate_and_narrows() {
    let width = |n| {
        let map = RecalibrationMap::fit_family(Family::VennAbers, &draw(n, 11, |q| q * q)).unwrap();
        let widths = (0..=100).map(|step| {
            let stated = Stated::new(f64::from(step) / 100.0).unwrap();
            let (around, estimate) = (map.interval(stated).unwrap(), map.apply(stated).value());
            // At an end the estimate is kept from a certainty that its outcomes could not show.
            let kept = 1.0 / (n as f64 + 2.0);
            assert!(around.low - kept <= estimate && estimate <= around.high + kept, "{around:?} {estimate}");
            around.high - around.low
        });
        widths.sum::<f64>() / 101.0
    };
    let (few, many) = (width(60), width(3000));
    assert!(many < 0.06 && few > 3.0 * many, "{few} {many}");
    let platt = RecalibrationMap::fit(&draw(300, 1, |q| q)).unwrap();
    assert_eq!(platt.interval(Stated::new(0.5).unwrap()), None);
}

#[test]
fn the_order_of_outcomes_changes_nothing() {
    let forward = draw(800, 3, |q| q * q);
    let mut backward = forward.clone();
    backward.reverse();
    for family in Family::ALL {
        let fitted = RecalibrationMap::fit_family(family, &forward).unwrap();
        assert_eq!(fitted, RecalibrationMap::fit_family(family, &backward).unwrap());
        let other = RecalibrationMap::fit_family(family, &forward[1..]).unwrap();
        assert_ne!(fitted.digest(), other.digest());
    }
}

#[test]
fn metadata_that_no_fit_wrote_is_refused() {
    let digest = "0".repeat(64);
    let read = |family: &str, parameters: &str, n: &str, digest: &str| {
        let pairs = [
            ("general.name", "x"),
            ("fsq.recalibration.family", family),
            ("fsq.recalibration.parameters", parameters),
            ("fsq.recalibration.n", n),
            ("fsq.recalibration.digest", digest),
        ];
        RecalibrationMap::from_pairs(pairs).map(|it| it.unwrap().family()).map_err(|it| it.to_string())
    };
    assert_eq!(read("beta", "1,0.5,-2", "600", &digest), Ok(Family::Beta));
    assert_eq!(read("isotonic", "0.2,0.6,0.1,0.7", "2001", &digest), Ok(Family::Isotonic));
    assert_eq!(read("venn-abers", "0.2,0.6,0.1,0.4,0.3,0.7", "60", &digest), Ok(Family::VennAbers));
    for (family, parameters, n) in [
        ("gamma", "", "5"),
        ("identity", "1", "5"),
        ("beta", "1,2", "5"),
        ("beta", "1,-2,0", "5"),
        ("beta", "1,2,NaN", "5"),
        ("platt", "1,inf", "5"),
        ("platt", "1,x", "5"),
        ("platt", "1,2", "0"),
        ("platt", "1,2", "-1"),
        ("shrinkage", "2,0.5", "5"),
        ("isotonic", "", "5"),
        ("isotonic", "0.6,0.2,0.1,0.7", "5"),
        ("isotonic", "0.2,0.6,0.7,0.1", "5"),
        ("isotonic", "0.2,0.6,0.7", "5"),
        ("venn-abers", "0.2,0.6,0.1,0.7", "5"),
        ("venn-abers", "0.2,0.1,0.05", "5"),
        ("venn-abers", "0.2,0.2,0.1,0.1,0.3,0.3", "5"),
    ] {
        let error = read(family, parameters, n, &digest).unwrap_err();
        assert!(error.starts_with("metadata key `fsq.recalibration."), "{error}");
    }
    assert!(read("platt", "1,2", "5", "abc").is_err());
    assert_eq!(RecalibrationMap::from_pairs([("general.name", "x")]), Ok(None));
    let partial = RecalibrationMap::from_pairs([("fsq.recalibration.n", "5")]);
    assert_eq!(partial, Err(RecalibrationError::MissingKey { key: "fsq.recalibration.family".into() }));
}

#[test]
fn each_environment_has_the_map_of_its_own_outcomes() {
    // The same words, which mean one success in five here and four in five there.
    let worlds = [("hard", 0.2), ("easy", 0.8)];
    let outcomes = |seed| {
        worlds.map(|(name, truth)| {
            let own = if truth < 0.5 { draw(400, seed, |_| 0.2) } else { draw(400, seed, |_| 0.8) };
            (name.to_owned(), own)
        })
    };
    let maps = RecalibrationMaps::fit(&outcomes(1).into()).unwrap();
    let fresh = outcomes(2);
    for (name, own) in &fresh {
        let gap = |map| mapped(map, own).signed_gap.unwrap().abs();
        assert!(gap(maps.of(Some(name))) < 0.06, "{name}");
        assert!(gap(maps.of(None)) > 0.2, "{name}");
    }
    assert_eq!(maps.of(Some("elsewhere")), maps.of(None));
    assert_eq!(maps.of(None).n(), 800);
    assert_eq!(RecalibrationMaps::from_pairs(maps.to_pairs()).unwrap().unwrap(), maps);
    assert_eq!(RecalibrationMap::from_pairs(maps.to_pairs()).unwrap().unwrap(), *maps.of(None));
    let without = |lost: &str| {
        let kept = maps.to_pairs().into_iter().filter(move |it| !it.0.contains(lost));
        RecalibrationMaps::from_pairs(kept).unwrap_err().to_string()
    };
    assert!(without("recalibration.easy.n").contains("`fsq.recalibration.easy.n`"));
    assert!(without("recalibration.family").contains("`fsq.recalibration.family`"));
}

#[test]
fn nothing_is_estimated_by_a_map_that_has_seen_its_cluster() {
    // Thirty successes in one cluster, thirty failures in the other: each gets the other's base rate.
    let outcomes: Vec<Outcome> = (0..60).map(|it| Outcome::new(0.6, it % 2 == 0, it % 2).unwrap()).collect();
    let held_out = cross_fitted(Family::Shrinkage, &outcomes, 2, 0).unwrap();
    let by = |base_rate: f64| 0.6 + 30.0 / 80.0 * (base_rate - 0.6);
    for (stated, estimate) in outcomes.iter().zip(&held_out) {
        let expected = if stated.success() { by(1.0 / 32.0) } else { by(31.0 / 32.0) };
        assert!((estimate.probability() - expected).abs() < 1e-12);
        assert_eq!((estimate.success(), estimate.cluster()), (stated.success(), stated.cluster()));
    }
    let one = [Outcome::new(0.5, true, 0).unwrap(); 20];
    assert!(matches!(cross_fitted(Family::Shrinkage, &one, 5, 0), Err(RecalibrationError::TooFew { found: 0, .. })));
    assert_eq!(cross_fitted(Family::Identity, &[], 5, 0), Ok(Vec::new()));
}

#[test]
fn what_is_held_out_shows_what_new_outcomes_would() {
    // Statements twice too extreme. Over 20 sets of 300, a fit looks better on its own outcomes than on new ones by
    // three times the standard error of the difference; what is held out does not.
    let truth = |q: f64| {
        let odds = (q.clamp(0.01, 0.99) / (1.0 - q.clamp(0.01, 0.99))).sqrt();
        odds / (1.0 + odds)
    };
    let brier = |it: &[Outcome]| Metrics::of(it).brier.unwrap();
    let (mut own, mut held_out, mut new) = (0.0, 0.0, 0.0);
    for seed in 0..20 {
        let outcomes = draw(300, seed, truth);
        let map = RecalibrationMap::fit_family(Family::VennAbers, &outcomes).unwrap();
        own += brier(&map.applied(&outcomes)) / 20.0;
        held_out += brier(&cross_fitted(Family::VennAbers, &outcomes, 5, 0).unwrap()) / 20.0;
        new += brier(&map.applied(&draw(20_000, 100 + seed, truth))) / 20.0;
    }
    assert!(own < new - 0.004 && (held_out - new).abs() < 0.004, "{own} {held_out} {new}");
}

proptest! {
    #[test]
    fn maps_are_monotone_and_survive_storage(
        pairs in prop::collection::vec((0.0..=1.0_f64, any::<bool>()), 20..200),
        family in prop::sample::select(Family::ALL.to_vec()),
    ) {
        prop_assume!(pairs.iter().any(|it| it.1) && pairs.iter().any(|it| !it.1));
        let outcomes: Vec<Outcome> = pairs.iter().map(|it| Outcome::new(it.0, it.1, 0).unwrap()).collect();
        let map = RecalibrationMap::fit_family(family, &outcomes).unwrap();
        let mut last = 0.0;
        for step in 0..=200 {
            let estimate = map.apply(Stated::new(f64::from(step) / 200.0).unwrap()).value();
            prop_assert!(estimate >= last - 1e-12 && estimate <= 1.0);
            last = estimate;
        }
        prop_assert_eq!(RecalibrationMap::from_pairs(map.to_pairs()).unwrap().unwrap(), map);
    }
}
