//! Collapse alarms: silent on sound batches, one alarm for each way to collapse.

use fsq_calibrate::StatedDistribution;
use fsq_calibrate::alarms::{Alarm, BatchHealth, Health, HealthLimits, Sample};

/// A distribution around one level, wide enough to be healthy.
fn around(level: usize, sharpness: f32) -> StatedDistribution {
    let scores = std::array::from_fn(|at| -sharpness * (at as f32 - level as f32).powi(2));
    StatedDistribution::from_log_probs(&scores).unwrap()
}

/// Sixty-four samples between 20 and 80 %, as often right as stated.
fn sound() -> Vec<Sample> {
    let sample = |index: usize| Sample {
        well_formed: true,
        distribution: Some(around(4 + index % 13, 0.1)),
        reward: (index % 7) as f64 / 7.0,
        success: index.is_multiple_of(2),
    };
    (0..64).map(sample).collect()
}

fn observe(samples: &[Sample]) -> Vec<Alarm> {
    Health::new(HealthLimits::DEFAULT).observe(&BatchHealth::of(samples))
}

#[test]
fn a_sound_batch_is_silent() {
    assert_eq!(observe(&sound()), []);
}

#[test]
fn every_collapse_has_its_alarm() {
    let mut broken = sound();
    broken.iter_mut().take(2).for_each(|it| it.well_formed = false);
    assert!(matches!(observe(&broken)[..], [Alarm::Adherence { .. }]), "{:?}", observe(&broken));

    let mut narrow = sound();
    narrow.iter_mut().enumerate().for_each(|(index, it)| it.distribution = Some(around(4 + index % 13, 5.0)));
    assert!(matches!(observe(&narrow)[..], [Alarm::Entropy { .. }]), "{:?}", observe(&narrow));

    let mut constant = sound();
    constant.iter_mut().for_each(|it| it.distribution = Some(around(1, 5.0)));
    let alarms = observe(&constant);
    let found = matches!(
        alarms[..],
        [Alarm::Entropy { .. }, Alarm::OneLevel { percent: 5, .. }, Alarm::Spread { .. }, Alarm::Gap { .. }]
    );
    assert!(found, "{alarms:?}");
    assert!(alarms[3].to_string().contains("below the success rate"));

    let mut silent = sound();
    silent.iter_mut().for_each(|it| it.distribution = None);
    assert_eq!(observe(&silent), [Alarm::NothingToRead]);
    assert_eq!(observe(&[]), []);
}

#[test]
fn rewards_are_compared_with_recent_steps_only_after_a_warm_up() {
    let mut flat = sound();
    flat.iter_mut().for_each(|it| it.reward *= 0.4);
    let (sound, flat) = (BatchHealth::of(&sound()), BatchHealth::of(&flat));
    let mut health = Health::new(HealthLimits::DEFAULT);
    for _ in 0..HealthLimits::DEFAULT.warmup_steps - 1 {
        assert_eq!(health.observe(&sound), []);
    }
    assert_eq!(health.observe(&flat), []);
    assert!(matches!(health.observe(&flat)[..], [Alarm::Reward { .. }]));
    // Once it is usual, it is no longer alarming.
    for _ in 0..HealthLimits::DEFAULT.window_steps {
        health.observe(&flat);
    }
    assert_eq!(health.observe(&flat), []);
}

#[test]
fn rewards_that_are_no_numbers_do_not_spread() {
    let mut wrong = sound();
    wrong[0].reward = f64::NAN;
    assert_eq!(BatchHealth::of(&wrong).reward_deviation, None);
}
