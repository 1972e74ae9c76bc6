//! Drift: delays and silence by simulation, payoffs by hand, and the way from alarm to promotion.

use fsq_calibrate::Stated;
use fsq_calibrate::drift::{Audit, Detector, Episode, Event, Monitor, MonitorLimits, Payoffs};
use fsq_calibrate::recalibration::{Family, RecalibrationMap};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::drifting::{Fault, delays, false_alarms, median};

fn episode(stated: f64, success: bool) -> Episode {
    Episode { steps: vec![(Stated::new(stated).unwrap(), success)] }
}

#[test]
fn delays_are_those_of_the_table() {
    // Median episodes, from the start and after 1,000 clean ones: at most a quarter more; see docs/gates.md.
    let alarm = MonitorLimits::DEFAULT.alarm;
    let expected = [[276, 278, 694, 228], [59, 80, 289, 64], [272, 254, 583, 204], [54, 68, u64::MAX, u64::MAX]];
    for (fault, [audit, detector, audit_late, detector_late]) in Fault::OVERCONFIDENT.into_iter().zip(expected) {
        let (early, late) = (delays(fault, 0, 200, alarm), delays(fault, 1000, 200, alarm));
        for (name, found, expected) in [
            ("audit", &early.audit, audit),
            ("detector", &early.detector, detector),
            ("audit, late", &late.audit, audit_late),
            ("detector, late", &late.detector, detector_late),
        ] {
            let median = median(found);
            assert!(median as f64 <= 1.25 * expected as f64, "{fault:?}, {name}: {median}, expected {expected}");
        }
    }
}

#[test]
fn statements_that_are_too_low_are_found_as_well() {
    // Less money is on them, so it takes a little longer; the table of the others' mirror images is no measure.
    for fault in Fault::UNDERCONFIDENT {
        let found = delays(fault, 0, 100, MonitorLimits::DEFAULT.alarm);
        assert_eq!((found.audit.len(), found.detector.len()), (100, 100), "{fault:?}");
        assert!(median(&found.audit) < 450 && median(&found.detector) < 500, "{fault:?}");
    }
}

#[test]
fn silence_while_nothing_is_wrong() {
    let runs = 100;
    let [detector, audit] = false_alarms(runs, 5000, MonitorLimits::DEFAULT.alarm);
    let alarmed = |it: &[Option<u64>]| it.iter().flatten().count();
    // At most one run in ten alarms within 5,000 episodes (Doob), and one in a hundred ever by the audit (Ville); so
    // many runs see the one with a standard error of 3 runs, the other with one of 1.
    assert!(alarmed(&detector) <= 19 && alarmed(&audit) <= 4, "{} {}", alarmed(&detector), alarmed(&audit));
}

#[test]
fn payoffs_by_hand() {
    // Stated 0.8, odds of 4. The bet that odds are e times lower claims odds of 4 / e, so that a failure, of chance
    // 0.2 as stated, has the chance 1 / (1 + 4 / e).
    let pays = |factor: f64| 1.0 / (1.0 + 4.0 * factor) / 0.2;
    let mut audit = Audit::default();
    for _ in 0..200 {
        audit.observe(&Payoffs::of([(0.8, false)]));
    }
    // Two fifths of the money are on that; after 200 failures they have made nearly all of the wealth.
    let strongest = 0.4 * pays((-1.0_f64).exp()).powi(200);
    assert!((audit.e_value() / strongest - 1.0).abs() < 1e-6, "{} {strongest}", audit.e_value());
    assert!(audit.alarmed() && audit.n() == 200);
    // What is stated as certain and does not come true is paid for, but not without bound.
    let mut detector = Detector::default();
    detector.observe(&Payoffs::of([(1.0, false)]));
    assert!((2.0..10.0).contains(&detector.evidence()), "{}", detector.evidence());
    // Two steps that share an outcome count as the mean of both.
    let [both, one, other] = [vec![(0.3, true), (0.9, true)], vec![(0.3, true)], vec![(0.9, true)]].map(Payoffs::of);
    let sum = |it: &Payoffs| {
        let mut audit = Audit::default();
        audit.observe(it);
        audit.e_value()
    };
    assert!((sum(&both) - 0.5 * (sum(&one) + sum(&other))).abs() < 1e-12);
}

#[test]
fn an_alarm_leads_to_a_map_that_is_used_once_it_is_shown_to_be_no_worse() {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    let mut monitor = Monitor::new(RecalibrationMap::identity(), MonitorLimits::DEFAULT);
    let mut events = Vec::new();
    for at in 0..4000 {
        let fault = if at < 1000 { Fault::None } else { Fault::Shift };
        let (q, success) = fault.draw(&mut random);
        events.extend(monitor.observe(episode(q, success)));
        let told = events.iter().filter(|it| !matches!(it, Event::Audit { .. })).count();
        assert_eq!(monitor.alarmed(), told % 3 != 0, "{events:?}");
    }
    assert!(monitor.audit().alarmed() && events.len() == 4, "{events:?}");
    events.retain(|it| !matches!(it, Event::Audit { .. }));
    let [Event::Alarm { episode: alarm, change }, Event::Refitted { episode: refit, n, family }, last] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert!((1010..1200).contains(alarm) && (900..1100).contains(change), "{events:?}");
    assert_eq!((*family, *n as u64), (Family::Beta, refit - change));
    assert!(*n >= 200);
    let Event::Promoted { episode, brier_rise, bound } = last else { panic!("{last:?}") };
    assert!(*episode == refit + 300 && brier_rise < bound && *bound < 0.0, "{last:?}");
    assert_eq!((monitor.map().family(), monitor.shadow(), monitor.n()), (Family::Beta, None, 4000));
}

#[test]
fn a_map_that_may_be_worse_is_not_promoted() {
    // What was stated is wrong for 300 episodes and right again afterwards: the map learnt from the fault is worse.
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut monitor = Monitor::new(RecalibrationMap::identity(), MonitorLimits::DEFAULT);
    let mut events = Vec::new();
    let mut refitted = None;
    for at in 0..3000 {
        let wrong = refitted.is_none();
        let (q, success) = if wrong { Fault::Shift } else { Fault::None }.draw(&mut random);
        let new = monitor.observe(episode(q, success));
        if new.iter().any(|it| matches!(it, Event::Refitted { .. })) && refitted.is_none() {
            refitted = Some(at);
        }
        events.extend(new);
    }
    let rejected = events.iter().position(|it| matches!(it, Event::Rejected { .. }));
    let promoted = events.iter().position(|it| matches!(it, Event::Promoted { .. }));
    assert!(rejected.is_some() && rejected < promoted, "{events:?}");
}

#[test]
fn one_class_and_nothing_stated_never_panic() {
    let mut monitor = Monitor::new(RecalibrationMap::identity(), MonitorLimits::DEFAULT);
    for _ in 0..2000 {
        monitor.observe(episode(1.0, false));
        monitor.observe(Episode::default());
    }
    assert!(monitor.alarmed() && monitor.audit().e_value_max().is_infinite());
    let mut quiet = Monitor::new(RecalibrationMap::identity(), MonitorLimits::DEFAULT);
    for _ in 0..500 {
        assert!(quiet.observe(Episode::default()).is_empty());
    }
    assert!((quiet.evidence() - 500.0).abs() < 1e-6, "{}", quiet.evidence());
}

proptest! {
    #[test]
    fn no_bet_ever_loses_everything_and_all_are_fair(
        steps in prop::collection::vec(0.0..=1.0_f64, 0..6),
        q in 0.0..=1.0_f64,
    ) {
        for success in [true, false] {
            let mut detector = Detector::default();
            let mut audit = Audit::default();
            for _ in 0..50 {
                let payoffs = Payoffs::of(steps.iter().map(|it| (*it, success)));
                detector.observe(&payoffs);
                audit.observe(&payoffs);
            }
            prop_assert!(detector.evidence() > 0.0 && !audit.e_value().is_nan() && audit.e_value() > 0.0);
        }
        // The mean over both outcomes, weighted as stated, is 1 for every bet, so also for their mean.
        let pays = |success| {
            let mut audit = Audit::default();
            audit.observe(&Payoffs::of([(q, success); 2]));
            audit.e_value()
        };
        prop_assert!((q * pays(true) + (1.0 - q) * pays(false) - 1.0).abs() < 1e-9);
    }
}
