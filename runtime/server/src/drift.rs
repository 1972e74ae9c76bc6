//! Whether estimates still mean what they meant: watched over the outcomes, in the order in which they are told.
//!
//! One monitor for each environment that predictions name, and one for those that name none. Outcomes that come one
//! after another for the same task, as all that are told together do, count as one episode, since they depend on each
//! other; it is complete when the next task's arrives. A map that a monitor promotes is in use from there on.
//! All of it follows from the outcomes on record, so a restart changes nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fsq_calibrate::Stated;
use fsq_calibrate::drift::{Episode, Event, Monitor, MonitorLimits};
use fsq_calibrate::recalibration::{RecalibrationMap, RecalibrationMaps};
use serde_json::{Value, json};

/// One outcome on record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    /// What its prediction was said to be from.
    pub(crate) environment: Option<String>,
    /// Equal for outcomes that depend on one another.
    pub(crate) cluster: u64,
    pub(crate) stated: Stated,
    pub(crate) success: bool,
}

/// What the monitors of one server have seen.
#[derive(Debug)]
pub(crate) struct Drift {
    maps: RecalibrationMaps,
    limits: MonitorLimits,
    watched: Mutex<BTreeMap<Option<String>, Watched>>,
    telling: Mutex<()>,
}

#[derive(Debug)]
struct Watched {
    monitor: Monitor,
    n_promoted: u64,
    /// The episode that outcomes may still be added to, with its task.
    open: Option<(u64, Episode)>,
}

/// One environment's state, for reports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) n_episodes: u64,
    /// Whether an alarm stands, so that nothing should be chosen by estimates.
    pub(crate) is_alarmed: bool,
    pub(crate) evidence: f64,
    /// Whether the estimates were ever shown to be wrong.
    pub(crate) is_audit_alarmed: bool,
    pub(crate) n_promoted: u64,
    /// Episodes that a map on trial has been compared on.
    pub(crate) n_trial: Option<usize>,
}

impl Drift {
    /// Begins with the maps of the policy's file and whatever was told before.
    pub(crate) fn new(maps: RecalibrationMaps, told: &[Told]) -> Self {
        Self::limited(maps, told, MonitorLimits::DEFAULT)
    }

    fn limited(maps: RecalibrationMaps, told: &[Told], limits: MonitorLimits) -> Self {
        let drift = Self { maps, limits, watched: Mutex::default(), telling: Mutex::default() };
        drift.observe(told);
        drift
    }

    /// Held from before outcomes are recorded until they are observed, so that both have the same order.
    pub(crate) fn telling(&self) -> MutexGuard<'_, ()> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes outcomes in.
    pub(crate) fn observe(&self, told: &[Told]) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for it in told {
            let of_environment = watched.entry(it.environment.clone()).or_insert_with(|| Watched {
                monitor: Monitor::new(self.maps.of(it.environment.as_deref()).clone(), self.limits),
                n_promoted: 0,
                open: None,
            });
            of_environment.observe(it);
        }
    }

    /// The map that estimates come from now.
    pub(crate) fn map(&self, environment: Option<&str>) -> RecalibrationMap {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let found = watched.get(&environment.map(str::to_owned));
        found.map_or_else(|| self.maps.of(environment).clone(), |it| it.monitor.map().clone())
    }

    /// What was seen in one environment; nothing where no outcome was told.
    pub(crate) fn seen(&self, environment: Option<&str>) -> Option<Seen> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.get(&environment.map(str::to_owned)).map(Watched::seen)
    }

    /// The same in all that outcomes were told of; `all` for those that name none.
    pub(crate) fn all_seen(&self) -> Vec<(String, Seen)> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |it: &Option<String>| it.clone().unwrap_or_else(|| "all".to_owned());
        watched.iter().map(|(environment, it)| (name(environment), it.seen())).collect()
    }
}

impl Watched {
    fn observe(&mut self, told: &Told) {
        let step = (told.stated, told.success);
        match &mut self.open {
            Some((cluster, episode)) if *cluster == told.cluster => episode.steps.push(step),
            open => {
                let begun = (told.cluster, Episode { steps: vec![step] });
                if let Some((_, episode)) = open.replace(begun) {
                    let events = self.monitor.observe(episode);
                    let is_promotion = |it: &&Event| matches!(it, Event::Promoted { .. });
                    self.n_promoted += events.iter().filter(is_promotion).count() as u64;
                }
            }
        }
    }

    fn seen(&self) -> Seen {
        let Self { monitor, n_promoted, .. } = self;
        Seen {
            n_episodes: monitor.n(),
            is_alarmed: monitor.alarmed(),
            evidence: monitor.evidence(),
            is_audit_alarmed: monitor.audit().alarmed(),
            n_promoted: *n_promoted,
            n_trial: monitor.shadow().map(|it| it.n()),
        }
    }
}

/// As answers show it.
pub(crate) fn seen_value(seen: Option<&Seen>) -> Value {
    let Some(it) = seen else { return json!({"n_episodes": 0, "alarmed": false}) };
    json!({
        "n_episodes": it.n_episodes,
        "alarmed": it.is_alarmed,
        "evidence": it.evidence,
        "ever_miscalibrated": it.is_audit_alarmed,
        "maps_promoted": it.n_promoted,
        "map_on_trial": it.n_trial.map(|n| json!({"n_episodes": n})),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn told(cluster: u64, environment: Option<&str>, percent: u8, success: bool) -> Told {
        let environment = environment.map(str::to_owned);
        Told { environment, cluster, stated: Stated::from_percent(percent).unwrap(), success }
    }

    fn identity() -> RecalibrationMaps {
        RecalibrationMaps::overall(RecalibrationMap::identity())
    }

    #[test]
    fn what_no_longer_holds_alarms_is_mended_and_comes_out_the_same_after_a_restart() {
        let drift = Drift::new(identity(), &[]);
        // 80 % is stated, and one in five succeeds.
        let outcomes: Vec<Told> = (0..900).map(|it| told(it, None, 80, it % 5 == 0)).collect();
        let mut n_alarmed = 0;
        for outcome in &outcomes {
            drift.observe(std::slice::from_ref(outcome));
            n_alarmed += u32::from(drift.seen(None).is_some_and(|it| it.is_alarmed));
        }
        let seen = drift.seen(None).unwrap();
        assert!(n_alarmed > 100 && seen.is_audit_alarmed && seen.n_promoted == 1, "{n_alarmed}: {seen:?}");
        assert!(!seen.is_alarmed, "the promoted map holds");
        let stated = Stated::from_percent(80).unwrap();
        assert!((drift.map(None).apply(stated).value() - 0.2).abs() < 0.05);
        let again = Drift::new(identity(), &outcomes);
        assert_eq!(again.seen(None), drift.seen(None));
        assert_eq!(again.map(None).apply(stated), drift.map(None).apply(stated));
    }

    #[test]
    fn outcomes_of_one_task_are_one_episode_and_environments_are_apart() {
        let drift = Drift::new(identity(), &[]);
        let of_one: Vec<Told> = (0..50).map(|_| told(1, Some("sums"), 95, false)).collect();
        drift.observe(&of_one);
        assert_eq!(drift.seen(Some("sums")).unwrap().n_episodes, 0, "more of it may come");
        drift.observe(&[told(2, Some("sums"), 95, true), told(3, None, 50, true)]);
        let seen = drift.seen(Some("sums")).unwrap();
        assert_eq!((seen.n_episodes, seen.is_alarmed), (1, false), "fifty at once tell as much as one");
        let names: Vec<String> = drift.all_seen().into_iter().map(|it| it.0).collect();
        assert_eq!(names, ["all", "sums"]);
        assert_eq!(drift.seen(Some("searches")), None);
    }
}
