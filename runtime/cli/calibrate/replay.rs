//! `fsq calibrate --replay`: a log of predictions and outcomes, as drift monitoring would have seen it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::Context;
use fsq_calibrate::drift::{Episode, Event, Monitor, MonitorLimits};
use fsq_calibrate::recalibration::RecalibrationMap;
use serde::Serialize;
use serde_json::Value;

use super::rows::Row;
use crate::failure::Refusal;

/// What a replay found.
#[derive(Debug, Serialize)]
pub(super) struct Replay {
    /// Rows of the log.
    n_rows: usize,
    /// Episodes with an outcome, each with all its rows.
    n: u64,
    /// Rows without an outcome: they say nothing yet, and nothing at all if failures are never reported.
    n_pending: usize,
    /// Rows whose `id` came before.
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
pub(super) fn replay(rows: &[Row], map: RecalibrationMap) -> Replay {
    let limits = MonitorLimits::DEFAULT;
    let mut monitor = Monitor::new(map, limits);
    let (episodes, n_duplicates) = episodes(rows);
    let mut events = Vec::new();
    for episode in episodes {
        events.extend(monitor.observe(episode));
    }
    let audit = monitor.audit();
    Replay {
        n_rows: rows.len(),
        n: monitor.n(),
        n_pending: rows.iter().filter(|it| it.success.is_none()).count(),
        n_duplicates,
        limits,
        audit: AuditFound {
            alarmed: audit.alarmed(),
            e_value_max: audit.e_value_max(),
            p_value: (1.0 / audit.e_value_max()).min(1.0),
        },
        events,
        evidence: monitor.evidence(),
        alarmed: monitor.alarmed(),
        map: monitor.map().to_pairs().into_iter().map(|(key, value)| (key, value.into())).collect(),
    }
}

/// Rows with an outcome by cluster, each cluster at the place of its last row, when all of it had arrived; and how
/// many rows came again.
fn episodes(rows: &[Row]) -> (Vec<Episode>, usize) {
    let mut seen = HashSet::new();
    let known: Vec<(&Row, bool)> = rows
        .iter()
        .filter(|it| it.success.is_none() || it.id.is_none_or(|id| seen.insert(id)))
        .filter_map(|it| Some((it, it.success?)))
        .collect();
    let n_known = rows.iter().filter(|it| it.success.is_some()).count();
    let last: HashMap<u64, usize> = known.iter().enumerate().map(|(at, it)| (it.0.cluster, at)).collect();
    let mut open: HashMap<u64, Episode> = HashMap::new();
    let mut episodes = Vec::with_capacity(last.len());
    for (at, (row, success)) in known.iter().enumerate() {
        let mut episode = open.remove(&row.cluster).unwrap_or_default();
        episode.steps.push((row.stated, *success));
        if last.get(&row.cluster) == Some(&at) {
            episodes.push(episode);
        } else {
            open.insert(row.cluster, episode);
        }
    }
    (episodes, n_known - known.len())
}

/// Reads a map that `--fit` wrote.
pub(super) fn map_of(path: &Path) -> anyhow::Result<RecalibrationMap> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| shown.to_string())?;
    let wrong = |found: String| Refusal::new(format!("{shown}: expected a map that `--fit` wrote, found {found}"));
    let pairs: HashMap<String, String> = serde_json::from_str(&text).map_err(|it| wrong(it.to_string()))?;
    Ok(RecalibrationMap::from_pairs(pairs)?.ok_or_else(|| wrong("no map".into()))?)
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
        if self.n_pending > 0 {
            text += &format!("{} of {} rows have no outcome yet\n", self.n_pending, self.n_rows);
        }
        if self.n_duplicates > 0 {
            text += &format!("{} rows came again and were passed over\n", self.n_duplicates);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use fsq_calibrate::Stated;

    use super::*;

    fn row(cluster: u64, id: Option<u64>, success: Option<bool>) -> Row {
        Row { stated: Stated::new(0.5).unwrap(), success, cluster, id, cell: None, fidelity: Vec::new() }
    }

    #[test]
    fn late_rows_close_their_episode_and_others_are_counted() {
        let log = [
            row(1, Some(10), Some(true)),
            row(2, Some(20), Some(false)),
            row(1, Some(11), Some(true)),
            row(2, Some(20), Some(false)),
            row(3, Some(30), None),
            row(3, Some(30), Some(true)),
        ];
        let (episodes, duplicates) = episodes(&log);
        let sizes: Vec<(usize, bool)> = episodes.iter().map(|it| (it.steps.len(), it.steps[0].1)).collect();
        assert_eq!((sizes, duplicates), (vec![(1, false), (2, true), (1, true)], 1));
        let found = replay(&log, RecalibrationMap::identity());
        assert_eq!((found.n, found.n_pending, found.n_duplicates, found.alarmed), (3, 1, 1, false));
    }

    #[test]
    fn drift_is_told_in_order() {
        let log: Vec<Row> =
            (0..900).map(|it| Row { stated: Stated::new(0.8).unwrap(), ..row(it, None, Some(it % 5 == 0)) }).collect();
        let text = replay(&log, RecalibrationMap::identity()).text();
        let places = ["miscalibrated at some time", "drift since", "goes on trial", "promoted"].map(|it| text.find(it));
        assert!(places.is_sorted() && places[0].is_some(), "{text}");
    }
}
