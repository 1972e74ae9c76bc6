//! Watching one artefact in service: alarm, refit, a shadow map beside the one in use, promotion.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Audit, Detector, Payoffs};
use crate::intervals::mean_clustered;
use crate::metrics::Outcome;
use crate::recalibration::{Family, RecalibrationMap};
use crate::stated::Stated;

/// Stated probabilities that depend on one another, and what each came to: the steps of one episode, or all
/// episodes of one task. What ran out of time has failed: leaving it out would hide failures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Episode {
    /// As stated, before any map, and whether it succeeded.
    pub steps: Vec<(Stated, bool)>,
}

/// When to alarm and what a new map must show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorLimits {
    /// Evidence of the detector at which it alarms: at least so many episodes lie between false alarms, on average.
    pub alarm: f64,
    /// Fewest episodes a new map is fitted on.
    pub refit_min: usize,
    /// Most episodes a new map is fitted on; older ones are forgotten.
    pub refit_max: usize,
    /// Paired episodes after the fit on which a new map is compared with the one in use.
    pub trial: usize,
    /// Most the new map's Brier score may be worse, with 95 % confidence, to be promoted.
    pub brier_rise_max: f64,
}

impl MonitorLimits {
    /// What serving uses unless told otherwise: at least nine of ten runs are silent for 5,000 episodes.
    pub const DEFAULT: MonitorLimits =
        MonitorLimits { alarm: 50_000.0, refit_min: 200, refit_max: 2000, trial: 300, brier_rise_max: 0.005 };
}

/// A map fitted after an alarm, applied beside the one in use but shown to nobody.
#[derive(Debug, Clone, PartialEq)]
pub struct Shadow {
    map: RecalibrationMap,
    /// Brier score of the shadow less that of the map in use, for each episode of the trial.
    rises: Vec<f64>,
}

impl Shadow {
    /// The map on trial.
    pub fn map(&self) -> &RecalibrationMap {
        &self.map
    }

    /// Episodes of the trial so far.
    pub fn n(&self) -> usize {
        self.rises.len()
    }
}

/// What an episode brought about.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// The audit's evidence reached its limit, for the first time.
    Audit {
        /// Episodes so far.
        episode: u64,
    },
    /// The detector alarmed: until a map is promoted, estimates should not be chosen by.
    Alarm {
        /// Episodes so far.
        episode: u64,
        /// Episodes before the change, as estimated.
        change: u64,
    },
    /// Enough episodes since the change: a new map goes on trial.
    Refitted {
        /// Episodes so far.
        episode: u64,
        /// Episodes it was fitted on.
        n: usize,
        /// Its family.
        family: Family,
    },
    /// The new map is no worse and in use from here on; the detector begins anew.
    Promoted {
        /// Episodes so far.
        episode: u64,
        /// Its Brier score less that of the map it replaces, over the trial.
        brier_rise: f64,
        /// One-sided 95 % upper bound of that.
        bound: f64,
    },
    /// The new map may be worse. The alarm stands; another is fitted on the episodes of the trial.
    Rejected {
        /// Episodes so far.
        episode: u64,
        /// As for a promotion.
        brier_rise: f64,
        /// As for a promotion.
        bound: f64,
    },
}

/// Watches the estimates of one artefact.
#[derive(Debug, Clone)]
pub struct Monitor {
    limits: MonitorLimits,
    map: RecalibrationMap,
    audit: Audit,
    detector: Detector,
    /// Episodes since the beginning, and those before the detector began.
    n: u64,
    detector_begun: u64,
    /// The latest episodes, at most `refit_max`.
    recent: VecDeque<Episode>,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Quiet,
    /// Waiting for enough episodes after the change.
    Alarmed {
        /// Episodes before the change.
        change: u64,
        /// Episodes at which a map is fitted.
        refit_at: u64,
    },
    Trial(Shadow),
}

impl Monitor {
    /// Begins with the map in use; [`RecalibrationMap::identity`] for an artefact without one.
    pub fn new(map: RecalibrationMap, limits: MonitorLimits) -> Self {
        Self {
            limits,
            map,
            audit: Audit::default(),
            detector: Detector::default(),
            n: 0,
            detector_begun: 0,
            recent: VecDeque::new(),
            state: State::Quiet,
        }
    }

    /// Takes in one episode, in the order in which outcomes arrive; says what it brought about, if anything.
    pub fn observe(&mut self, episode: Episode) -> Vec<Event> {
        let estimated = episode.steps.iter().map(|(stated, success)| (self.map.apply(*stated).value(), *success));
        let payoffs = Payoffs::of(estimated);
        self.n += 1;
        let mut events = Vec::new();
        let audited = self.audit.alarmed();
        self.audit.observe(&payoffs);
        if self.audit.alarmed() && !audited {
            events.push(Event::Audit { episode: self.n });
        }
        if let State::Trial(shadow) = &mut self.state
            && let Some(rise) = brier_rise(&shadow.map, &self.map, &episode)
        {
            shadow.rises.push(rise);
        }
        self.recent.push_back(episode);
        if self.recent.len() > self.limits.refit_max.max(self.limits.refit_min) {
            self.recent.pop_front();
        }
        events.extend(self.advance(&payoffs));
        events
    }

    /// The map in use.
    pub fn map(&self) -> &RecalibrationMap {
        &self.map
    }

    /// The evidence that the estimates were ever wrong.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// The detector's evidence now.
    pub fn evidence(&self) -> f64 {
        self.detector.evidence()
    }

    /// Whether an alarm stands, so that estimates should not be chosen by.
    pub fn alarmed(&self) -> bool {
        !matches!(self.state, State::Quiet)
    }

    /// The map on trial, if there is one.
    pub fn shadow(&self) -> Option<&Shadow> {
        if let State::Trial(shadow) = &self.state { Some(shadow) } else { None }
    }

    /// Episodes so far.
    pub fn n(&self) -> u64 {
        self.n
    }

    fn advance(&mut self, payoffs: &Payoffs) -> Option<Event> {
        match &self.state {
            State::Quiet => {
                self.detector.observe(payoffs);
                if self.detector.evidence() < self.limits.alarm {
                    return None;
                }
                let change = self.detector_begun + self.detector.change();
                self.state = self.alarm(change);
                Some(Event::Alarm { episode: self.n, change })
            }
            State::Alarmed { change, refit_at } if self.n >= *refit_at => self.refit(*change),
            State::Trial(shadow) if shadow.n() >= self.limits.trial.max(2) => {
                let (brier_rise, bound) = judged(&shadow.rises)?;
                let episode = self.n;
                if bound >= self.limits.brier_rise_max {
                    self.state = self.alarm(self.n - shadow.n() as u64);
                    return Some(Event::Rejected { episode, brier_rise, bound });
                }
                self.map = shadow.map.clone();
                self.detector = Detector::default();
                self.detector_begun = self.n;
                self.state = State::Quiet;
                Some(Event::Promoted { episode, brier_rise, bound })
            }
            State::Alarmed { .. } | State::Trial(_) => None,
        }
    }

    fn alarm(&self, change: u64) -> State {
        State::Alarmed { change, refit_at: change + self.limits.refit_min as u64 }
    }

    /// A map from the episodes since the change. Where they allow none, as with one class only, more are waited for.
    fn refit(&mut self, change: u64) -> Option<Event> {
        let since_change = usize::try_from(self.n - change).unwrap_or(usize::MAX);
        let n = since_change.min(self.recent.len());
        self.state = State::Alarmed { change, refit_at: self.n + self.limits.refit_min as u64 };
        let chosen = self.recent.iter().skip(self.recent.len() - n).enumerate();
        let outcomes: Vec<Outcome> = chosen
            .flat_map(|(task, it)| it.steps.iter().map(move |it| Outcome::of_stated(it.0, it.1, task as u64)))
            .collect();
        let map = RecalibrationMap::fit_family(Family::Beta, &outcomes).ok()?;
        let family = map.family();
        self.state = State::Trial(Shadow { map, rises: Vec::new() });
        Some(Event::Refitted { episode: self.n, n, family })
    }
}

/// Mean over the steps of the shadow's squared error less that of the map in use.
fn brier_rise(shadow: &RecalibrationMap, used: &RecalibrationMap, episode: &Episode) -> Option<f64> {
    let rise = |(stated, success): &(Stated, bool)| {
        let error = |map: &RecalibrationMap| (map.apply(*stated).value() - f64::from(u8::from(*success))).powi(2);
        error(shadow) - error(used)
    };
    let n = episode.steps.len() as f64;
    (n > 0.0).then(|| episode.steps.iter().map(rise).sum::<f64>() / n)
}

/// The mean rise and its one-sided 95 % upper bound.
fn judged(rises: &[f64]) -> Option<(f64, f64)> {
    let values: Vec<(u64, f64)> = rises.iter().enumerate().map(|(task, rise)| (task as u64, *rise)).collect();
    let interval = mean_clustered(&values, 0.90)?;
    Some((0.5 * (interval.low + interval.high), interval.high))
}
