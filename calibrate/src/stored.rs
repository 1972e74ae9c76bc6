//! Where to act, as a policy's file carries it, and back with every value proved.
//!
//! A threshold holds for estimates of the map that it was picked under, so it names that map's outcomes by digest.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::recalibration::{Estimate, RecalibrationMap};
use crate::threshold::ActThreshold;

/// What the keys of the threshold over everything begin with; those of an environment have its name and a dot after
/// it.
const PREFIX: &str = "fsq.threshold.";
const KEYS: [&str; 7] = ["estimate_min", "failures_max", "risk", "n", "n_followed", "n_failed", "map"];
/// In place of the least estimate, where no estimate is sure enough.
const NONE: &str = "none";

/// A threshold with the promise that it keeps: of the plans that are followed at most the share `failures_max` fails,
/// with probability `1 - risk`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoredThreshold {
    /// Act if the estimate is at least this; `None` never to act.
    pub estimate_min: Option<f64>,
    /// The most failures, of the plans that are followed.
    pub failures_max: f64,
    /// How often outcomes may mislead about that.
    pub risk: f64,
    /// Independent outcomes it was picked on.
    pub n: usize,
    /// Those of them that would have been followed.
    pub n_followed: usize,
    /// Those followed that failed.
    pub n_failed: usize,
    /// Digest of the outcomes that the map of the estimates was fitted on.
    pub map: String,
}

/// Why a threshold in some metadata cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata key `{key}`: expected {expected}, found `{found}`")]
pub struct ThresholdError {
    /// The key.
    pub key: String,
    /// What it should hold.
    pub expected: &'static str,
    /// What it holds.
    pub found: String,
}

impl StoredThreshold {
    /// What [`crate::threshold::act_threshold`] found on estimates of `map`; `n` counts where it found nothing.
    pub fn of(found: Option<ActThreshold>, n: usize, failures_max: f64, risk: f64, map: &RecalibrationMap) -> Self {
        let (n, n_followed, n_failed) = found.map_or((n, 0, 0), |it| (it.n, it.n_followed, it.n_failed));
        let estimate_min = found.map(|it| it.threshold);
        Self { estimate_min, failures_max, risk, n, n_followed, n_failed, map: map.digest().to_owned() }
    }

    /// Whether a plan is not to be followed. That is so of every plan whose estimate another map made.
    pub fn abstains(&self, estimate: Estimate, map: &RecalibrationMap) -> bool {
        let follows = self.estimate_min.is_some_and(|it| estimate.value() >= it);
        !follows || self.map != map.digest()
    }

    /// As metadata, of one environment or of everything. Numbers are written so that reading gives the same bits back.
    pub fn to_pairs(&self, environment: Option<&str>) -> Vec<(String, String)> {
        let values = [
            self.estimate_min.map_or_else(|| NONE.to_owned(), |it| it.to_string()),
            self.failures_max.to_string(),
            self.risk.to_string(),
            self.n.to_string(),
            self.n_followed.to_string(),
            self.n_failed.to_string(),
            self.map.clone(),
        ];
        let prefix = environment.map_or_else(|| PREFIX.to_owned(), |it| format!("{PREFIX}{it}."));
        KEYS.iter().map(|it| format!("{prefix}{it}")).zip(values).collect()
    }

    /// All thresholds in some metadata, by environment; other keys are passed over.
    ///
    /// # Errors
    /// A threshold that is there in part, or a value that none could have.
    pub fn all_from_pairs<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<BTreeMap<Option<String>, Self>, ThresholdError> {
        let own = pairs.into_iter().filter(|it| it.0.as_ref().starts_with(PREFIX));
        let values: BTreeMap<String, String> =
            own.map(|it| (it.0.as_ref().to_owned(), it.1.as_ref().to_owned())).collect();
        let mut found = BTreeMap::new();
        for key in values.keys() {
            let environment = key[PREFIX.len()..].rsplit_once('.').map(|it| it.0);
            found.insert(environment.map(str::to_owned), Self::read(environment, &values)?);
        }
        Ok(found)
    }

    fn read(environment: Option<&str>, values: &BTreeMap<String, String>) -> Result<Self, ThresholdError> {
        let prefix = environment.map_or_else(|| PREFIX.to_owned(), |it| format!("{PREFIX}{it}."));
        let text = |at: usize| values.get(&format!("{prefix}{}", KEYS[at])).map_or("", String::as_str);
        let wrong = |at: usize, expected: &'static str| {
            let found = text(at).chars().take(60).collect();
            ThresholdError { key: format!("{prefix}{}", KEYS[at]), expected, found }
        };
        let share = |at: usize| {
            let read = text(at).parse().ok().filter(|it: &f64| (0.0..=1.0).contains(it));
            read.ok_or_else(|| wrong(at, "a number from 0 to 1"))
        };
        let count = |at: usize| text(at).parse().map_err(|_| wrong(at, "a number of outcomes"));
        let is_digest = text(6).len() == 64 && text(6).bytes().all(|it| it.is_ascii_hexdigit());
        if !is_digest {
            return Err(wrong(6, "64 hexadecimal digits"));
        }
        let estimate_min = if text(0) == NONE { None } else { Some(share(0)?) };
        let (n, n_followed, n_failed): (usize, usize, usize) = (count(3)?, count(4)?, count(5)?);
        if n_followed > n {
            return Err(wrong(4, "no more than there are outcomes"));
        }
        if n_failed > n_followed {
            return Err(wrong(5, "no more than were followed"));
        }
        let (failures_max, risk, map) = (share(1)?, share(2)?, text(6).to_owned());
        Ok(Self { estimate_min, failures_max, risk, n, n_followed, n_failed, map })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::metrics::Outcome;
    use crate::recalibration::Family;
    use crate::stated::Stated;

    #[test]
    fn thresholds_come_back_as_they_were_and_hold_for_their_map_only() {
        let map = RecalibrationMap::identity();
        let found = ActThreshold { threshold: 0.7, n: 100, n_followed: 40, n_failed: 2 };
        let stored = StoredThreshold::of(Some(found), 100, 0.1, 0.05, &map);
        let never = StoredThreshold::of(None, 7, 0.1, 0.05, &map);
        let pairs = [stored.to_pairs(None), never.to_pairs(Some("sums"))].concat();
        let read = StoredThreshold::all_from_pairs(pairs.clone()).unwrap();
        assert_eq!(read, [(None, stored.clone()), (Some("sums".to_owned()), never.clone())].into());
        let estimate = |it: f64| map.apply(Stated::new(it).unwrap());
        assert!(!stored.abstains(estimate(0.7), &map) && stored.abstains(estimate(0.69), &map));
        assert!(never.abstains(estimate(1.0), &map));
        let rows: Vec<Outcome> = (0..20).map(|it| Outcome::new(0.9, it % 4 != 0, it).unwrap()).collect();
        let other = RecalibrationMap::fit_family(Family::Shrinkage, &rows).unwrap();
        assert!(stored.abstains(estimate(0.9), &other), "its promise is about estimates of another map");
        for (at, value) in [(0, "2"), (1, "x"), (3, "-1"), (4, "101"), (5, "41"), (6, "abc")] {
            let mut broken = stored.to_pairs(None);
            broken[at].1 = value.to_owned();
            let error = StoredThreshold::all_from_pairs(broken).unwrap_err();
            assert_eq!((error.key.as_str(), error.found.as_str()), (pairs[at].0.as_str(), value));
        }
        assert!(StoredThreshold::all_from_pairs([("fsq.threshold.n", "3")]).is_err(), "there in part");
    }
}
