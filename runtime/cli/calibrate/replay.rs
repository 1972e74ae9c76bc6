//! `fsq calibrate --replay`: a log of predictions and outcomes, as drift monitoring would have seen it.

use std::collections::HashMap;

use fsq_calibrate::drift::{Episode, Event, Monitor, MonitorLimits};
use fsq_calibrate::recalibration::RecalibrationMap;
use serde::Serialize;
use serde_json::Value;

use super::mapped::metadata;
use super::rows::{Log, Row};

/// What a replay found.
#[derive(Debug, Serialize)]
pub(super) struct Replay {
    /// Rows of the log.
    n_rows: usize,
    /// Episodes with an outcome, each with all its rows.
    n: u64,
    /// Statements without an outcome: they say nothing yet, and nothing at all if failures are never reported.
    n_pending: usize,
    /// Rows that repeat an outcome.
    n_duplicates: usize,
    limits: MonitorLimits,
    /// The one-off audit: was it ever miscalibrated?
    audit: AuditFound,
    /// What happened, in order.
    events: Vec<Event>,
    /// The detector's evidence at the end, and whether an alarm stands.
    evidence: f64,
    alarmed: bool,
    /// The map in use at the end, as metadata.
    map: serde_json::Map<String, Value>,
}

#[derive(Debug, Serialize)]
struct AuditFound {
    alarmed: bool,
    /// The largest there was; `null` where it is beyond any number.
    e_value_max: f64,
    /// Allows for having looked after every episode.
    p_value: f64,
}

/// Replays rows in the order in which their outcomes arrived.
pub(super) fn replay(log: &Log, map: RecalibrationMap) -> Replay {
    let limits = MonitorLimits::DEFAULT;
    let mut monitor = Monitor::new(map, limits);
    let mut events = Vec::new();
    for episode in episodes(&log.rows) {
        events.extend(monitor.observe(episode));
    }
    let audit = monitor.audit();
    Replay {
        n_rows: log.n_rows,
        n: monitor.n(),
        n_pending: log.n_pending,
        n_duplicates: log.n_duplicates,
        limits,
        audit: AuditFound {
            alarmed: audit.alarmed(),
            e_value_max: audit.e_value_max(),
            p_value: (1.0 / audit.e_value_max()).min(1.0),
        },
        events,
        evidence: monitor.evidence(),
        alarmed: monitor.alarmed(),
        map: metadata(monitor.map()),
    }
}

/// Rows by cluster, each cluster at the place of its last row, when all of it had arrived.
fn episodes(rows: &[Row]) -> Vec<Episode> {
    let last: HashMap<u64, usize> = rows.iter().enumerate().map(|(at, it)| (it.cluster, at)).collect();
    let mut open: HashMap<u64, Episode> = HashMap::new();
    let mut episodes = Vec::with_capacity(last.len());
    for (at, row) in rows.iter().enumerate() {
        let mut episode = open.remove(&row.cluster).unwrap_or_default();
        episode.steps.push((row.stated, row.success));
        if last.get(&row.cluster) == Some(&at) {
            episodes.push(episode);
        } else {
            open.insert(row.cluster, episode);
        }
    }
    episodes
}

impl Replay {
    /// The answer in sentences, then the events.
    pub(super) fn text(&self) -> String {
        let Self { n, audit, .. } = self;
        let mut text = match audit.alarmed {
            true => format!("{n} episodes: miscalibrated at some time, p = {:.1e}\n", audit.p_value),
            false => format!("{n} episodes: not shown to be miscalibrated at any time, p = {:.2}\n", audit.p_value),
        };
        for event in &self.events {
            text += &match event {
                Event::Audit { episode } => format!("{episode:>9}  the audit's evidence reached its limit\n"),
                Event::Alarm { episode, change } => {
                    format!("{episode:>9}  drift since about episode {change}: do not choose by estimates\n")
                }
                Event::Refitted { episode, n, family } => {
                    format!("{episode:>9}  a {} map of the last {n} episodes goes on trial\n", family.name())
                }
                Event::Promoted { episode, brier_rise, bound } => {
                    format!("{episode:>9}  promoted: its Brier score is {brier_rise:+.4}, at most {bound:+.4}\n")
                }
                Event::Rejected { episode, brier_rise, bound } => {
                    format!("{episode:>9}  rejected: its Brier score is {brier_rise:+.4}, up to {bound:+.4}\n")
                }
            };
        }
        if self.alarmed {
            text += "an alarm stands\n";
        }
        text += &left_out(self.n_pending, self.n_duplicates);
        text
    }
}

/// What of a log is not counted, in sentences.
pub(super) fn left_out(n_pending: usize, n_duplicates: usize) -> String {
    let mut text = String::new();
    if n_pending > 0 {
        text += &format!("without an outcome yet: {n_pending}; count them as failures once they run out of time\n");
    }
    if n_duplicates > 0 {
        text += &format!("told again and counted once: {n_duplicates}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use fsq_calibrate::Stated;

    use super::*;

    fn row(cluster: u64, stated: f64, success: bool) -> Row {
        Row { stated: Stated::new(stated).unwrap(), success, cluster, cell: None, fidelity: Vec::new() }
    }

    #[test]
    fn an_episode_comes_when_all_of_it_has_arrived() {
        let rows = [row(1, 0.5, true), row(2, 0.5, false), row(1, 0.5, true), row(3, 0.5, true)];
        let sizes: Vec<(usize, bool)> = episodes(&rows).iter().map(|it| (it.steps.len(), it.steps[0].1)).collect();
        assert_eq!(sizes, [(1, false), (2, true), (1, true)]);
    }

    #[test]
    fn drift_is_told_in_order() {
        let mut log = Log::default();
        log.rows.extend((0..900).map(|it| row(it, 0.8, it % 5 == 0)));
        let text = replay(&log, RecalibrationMap::identity()).text();
        let places = ["miscalibrated at some time", "drift since", "goes on trial", "promoted"].map(|it| text.find(it));
        assert!(places.is_sorted() && places[0].is_some(), "{text}");
    }
}
