//! Predictions and what became of them: an index in memory, and two JSONL files that it is loaded from.
//!
//! `NAME.jsonl` holds one line an outcome, `{"id", "policy", "cluster", "environment", "stated", "estimate",
//! "outcome", "grade"}`, each on disk before it is acknowledged; `fsq calibrate` reads it as it is.
//! `NAME.predictions.jsonl` beside it holds the predictions. Knows no HTTP.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fsq_calibrate::metrics::{Metrics, Outcome};
use fsq_calibrate::{Estimate, Stated};
use serde::{Deserialize, Serialize};

use crate::ServerError;
use crate::drift::Told;

/// Predictions in memory, some 100 bytes each; the oldest are forgotten first.
const PREDICTIONS_MAX: usize = 1_000_000;

/// Names one prediction; drawn at random, so that nobody guesses another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PredictionId(u128);

impl fmt::Display for PredictionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p_{:032x}", self.0)
    }
}

impl FromStr for PredictionId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix("p_").filter(|it| it.len() == 32).ok_or(())?;
        let is_plain = digits.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        is_plain.then(|| u128::from_str_radix(digits, 16).ok()).flatten().map(Self).ok_or(())
    }
}

/// One line of either file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    /// Digest of the file that was served.
    policy: String,
    /// Hexadecimal; equal for equal prompts, whose outcomes depend on one another.
    cluster: String,
    /// What the client said that it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    stated: Stated,
    estimate: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outcome: Option<u8>,
    /// How well it went, from 0 to 1, where that was told beside the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grade: Option<f64>,
}

impl Row {
    /// The outcome, where there is one.
    fn told(&self) -> Option<Told> {
        let success = self.outcome? == 1;
        let cluster = u64::from_str_radix(&self.cluster, 16).unwrap_or(0);
        Some(Told { environment: self.environment.clone(), cluster, stated: self.stated, success })
    }
}

#[derive(Clone, Debug)]
struct Prediction {
    row: Row,
    /// Whether the policy that is served now made it.
    is_current: bool,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) n_predictions: usize,
    pub(crate) n_outcomes: usize,
}

/// How well the policy that is served did so far.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// Digest of its file.
    pub(crate) policy: String,
    pub(crate) n_predictions: usize,
    pub(crate) n_outcomes: usize,
    /// Outcomes of other policies in the same store, which are not part of the metrics.
    pub(crate) n_outcomes_of_others: usize,
    /// Of what it stated, as an expectation.
    pub(crate) stated: Metrics,
    /// Of the estimates that were handed out.
    pub(crate) estimate: Metrics,
}

/// What came of telling outcomes.
#[derive(Debug)]
pub(crate) struct Settled {
    /// How many were not on record before.
    pub(crate) n_new: usize,
    /// Those of the policy that is served.
    pub(crate) told: Vec<Told>,
}

/// Why an outcome is not recorded.
#[derive(Debug)]
pub(crate) enum Unsettled {
    /// No such prediction, or it was forgotten.
    Unknown { id: PredictionId },
    /// The other outcome is recorded.
    Conflict { id: PredictionId, recorded: bool },
    /// It could not be written; nothing has changed.
    Disk(io::Error),
}

/// Predictions and outcomes of one server.
#[derive(Debug)]
pub(crate) struct Store {
    policy: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    index: HashMap<PredictionId, Prediction>,
    /// Oldest first.
    order: VecDeque<PredictionId>,
    n_outcomes: usize,
    predictions_max: usize,
    files: Option<Files>,
}

#[derive(Debug)]
struct Files {
    outcomes: Log,
    predictions: Log,
}

/// A file of whole lines.
#[derive(Debug)]
struct Log {
    file: File,
    n_bytes: u64,
}

impl Store {
    /// Loads what the files hold; without a path everything is in memory only.
    ///
    /// # Errors
    /// [`ServerError::StoreFile`], [`ServerError::StoreLocked`], [`ServerError::StoreLine`].
    ///
    /// Beside the store come the outcomes of this policy, in the order in which they were told.
    pub(crate) fn open(path: Option<&Path>, policy: &str) -> Result<(Self, Vec<Told>), ServerError> {
        Self::open_bounded(path, policy, PREDICTIONS_MAX)
    }

    fn open_bounded(
        path: Option<&Path>,
        policy: &str,
        predictions_max: usize,
    ) -> Result<(Self, Vec<Told>), ServerError> {
        let (index, order, mut told) = (HashMap::new(), VecDeque::new(), Vec::new());
        let mut inner = Inner { index, order, n_outcomes: 0, predictions_max, files: None };
        if let Some(path) = path {
            let outcomes = Log::open(path)?;
            match outcomes.file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(ServerError::StoreLocked { path: path.into() }),
                Err(TryLockError::Error(source)) => {
                    return Err(ServerError::StoreFile { path: path.into(), source });
                }
            }
            let predictions_path = predictions_path(path);
            let mut files = Files { outcomes, predictions: Log::open(&predictions_path)? };
            // Outcomes last: their rows overwrite those of the predictions that they settle.
            inner.load(files.predictions.rows(&predictions_path)?, policy);
            let outcomes = files.outcomes.rows(path)?;
            told.extend(outcomes.iter().filter(|it| it.1.policy == policy).filter_map(|it| it.1.told()));
            inner.load(outcomes, policy);
            inner.files = Some(files);
        }
        Ok((Self { policy: policy.to_string(), inner: Mutex::new(inner) }, told))
    }

    /// Records a prediction, so that its outcome can be told later.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn predict(
        &self,
        task: u64,
        environment: Option<&str>,
        stated: Stated,
        estimate: Estimate,
    ) -> io::Result<PredictionId> {
        let id = PredictionId(rand::random());
        let row = Row {
            id: id.to_string(),
            policy: self.policy.clone(),
            cluster: format!("{task:016x}"),
            environment: environment.map(str::to_owned),
            stated,
            estimate: estimate.value(),
            outcome: None,
            grade: None,
        };
        let mut inner = self.inner();
        if let Some(files) = &mut inner.files {
            // Not synced: losing it with the power costs an outcome that nobody has told yet.
            files.predictions.append(std::slice::from_ref(&row), false)?;
        }
        inner.insert(id, Prediction { row, is_current: true });
        Ok(id)
    }

    /// Records what some predictions came to, all of them or none; what was recorded already stays as it is. What is
    /// told together shares a cluster from here on, since it depends on one another. The new ones of the policy that
    /// is served come back.
    pub(crate) fn settle(&self, ids: &[PredictionId], outcome: bool, grade: Option<f64>) -> Result<Settled, Unsettled> {
        let mut inner = self.inner();
        let mut rows: Vec<(PredictionId, Row)> = Vec::new();
        for id in ids.iter().copied() {
            let prediction = inner.index.get(&id).ok_or(Unsettled::Unknown { id })?;
            match prediction.row.outcome.map(|it| it == 1) {
                Some(recorded) if recorded != outcome || (grade.is_some() && grade != prediction.row.grade) => {
                    return Err(Unsettled::Conflict { id, recorded });
                }
                None if rows.iter().all(|it| it.0 != id) => {
                    let row = Row { outcome: Some(u8::from(outcome)), grade, ..prediction.row.clone() };
                    let cluster = rows.first().map_or_else(|| row.cluster.clone(), |it| it.1.cluster.clone());
                    rows.push((id, Row { cluster, ..row }));
                }
                _ => {}
            }
        }
        let lines: Vec<Row> = rows.iter().map(|it| it.1.clone()).collect();
        if let Some(files) = inner.files.as_mut().filter(|_| !lines.is_empty()) {
            files.outcomes.append(&lines, true).map_err(Unsettled::Disk)?;
        }
        inner.n_outcomes += rows.len();
        let n_new = rows.len();
        let mut told = Vec::new();
        for (id, row) in rows {
            if let Some(prediction) = inner.index.get_mut(&id) {
                told.extend(row.told().filter(|_| prediction.is_current));
                prediction.row = row;
            }
        }
        Ok(Settled { n_new, told })
    }

    pub(crate) fn counts(&self) -> Counts {
        let inner = self.inner();
        Counts { n_predictions: inner.index.len(), n_outcomes: inner.n_outcomes }
    }

    pub(crate) fn summary(&self) -> Summary {
        let inner = self.inner();
        let is_settled = |it: &&Prediction| it.row.outcome.is_some();
        let current = || inner.index.values().filter(|it| it.is_current);
        let of = |probability: fn(&Row) -> f64| -> Vec<Outcome> {
            let outcome = |it: &Prediction| {
                let task = u64::from_str_radix(&it.row.cluster, 16).unwrap_or(0);
                Outcome::new(probability(&it.row), it.row.outcome == Some(1), task).ok()
            };
            current().filter(is_settled).filter_map(outcome).collect()
        };
        let (stated, estimate) = (of(|it| it.stated.value()), of(|it| it.estimate));
        let (n_predictions, n_outcomes) = (current().count(), current().filter(is_settled).count());
        let n_outcomes_of_others = inner.n_outcomes.saturating_sub(n_outcomes);
        // Metrics take their time, and predictions wait for the lock.
        drop(inner);
        Summary {
            policy: self.policy.clone(),
            n_predictions,
            n_outcomes,
            n_outcomes_of_others,
            stated: Metrics::of(&stated),
            estimate: Metrics::of(&estimate),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn load(&mut self, rows: Vec<(PredictionId, Row)>, policy: &str) {
        for (id, row) in rows {
            let is_current = row.policy == policy;
            self.insert(id, Prediction { row, is_current });
        }
    }

    fn insert(&mut self, id: PredictionId, prediction: Prediction) {
        self.n_outcomes += usize::from(prediction.row.outcome.is_some());
        match self.index.insert(id, prediction) {
            Some(replaced) => self.n_outcomes -= usize::from(replaced.row.outcome.is_some()),
            None => self.order.push_back(id),
        }
        while self.order.len() > self.predictions_max {
            let oldest = self.order.pop_front().and_then(|it| self.index.remove(&it));
            self.n_outcomes -= usize::from(oldest.is_some_and(|it| it.row.outcome.is_some()));
        }
    }
}

impl Log {
    fn open(path: &Path) -> Result<Self, ServerError> {
        let open = || {
            let is_new = !path.exists();
            let file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
            if is_new && let Some(folder) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
                // The file's name has to outlive a power loss as well.
                File::open(folder)?.sync_all()?;
            }
            Ok(Self { n_bytes: file.metadata()?.len(), file })
        };
        open().map_err(|source| ServerError::StoreFile { path: path.into(), source })
    }

    /// All lines. One that a crash cut off was never acknowledged; it is taken away.
    fn rows(&mut self, path: &Path) -> Result<Vec<(PredictionId, Row)>, ServerError> {
        let failed = |source| ServerError::StoreFile { path: path.into(), source };
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.file.read_to_end(&mut bytes).map_err(failed)?;
        let n_whole = bytes.iter().rposition(|it| *it == b'\n').map_or(0, |it| it + 1);
        if n_whole < bytes.len() {
            self.file.set_len(n_whole as u64).map_err(failed)?;
            self.file.sync_all().map_err(failed)?;
        }
        self.n_bytes = n_whole as u64;
        let row = |(index, line): (usize, &[u8])| {
            let broken = |reason: String| ServerError::StoreLine { path: path.into(), line: index + 1, reason };
            let row: Row = serde_json::from_slice(line).map_err(|it| broken(it.to_string()))?;
            let id = row.id.parse().map_err(|()| broken(format!("`{}` is not a prediction's name", row.id)))?;
            if row.outcome.is_some_and(|it| it > 1) {
                return Err(broken("the outcome is neither 0 nor 1".to_string()));
            }
            Ok((id, row))
        };
        bytes[..n_whole].split_inclusive(|it| *it == b'\n').enumerate().map(row).collect()
    }

    /// Writes whole lines, or nothing.
    fn append(&mut self, rows: &[Row], is_synced: bool) -> io::Result<()> {
        let mut lines = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut lines, row)?;
            lines.push(b'\n');
        }
        let written = self.file.write_all(&lines).and_then(|()| if is_synced { self.file.sync_data() } else { Ok(()) });
        match written {
            Ok(()) => self.n_bytes += lines.len() as u64,
            Err(_) => self.file.set_len(self.n_bytes)?,
        }
        written
    }
}

/// `outcomes.predictions.jsonl` for `outcomes.jsonl`.
fn predictions_path(path: &Path) -> PathBuf {
    path.with_extension("predictions.jsonl")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use fsq_calibrate::recalibration::RecalibrationMap;

    fn predict(store: &Store, percent: u8) -> PredictionId {
        let stated = Stated::from_percent(percent).unwrap();
        store.predict(7, None, stated, RecalibrationMap::identity().apply(stated)).unwrap()
    }

    #[test]
    fn outcomes_are_idempotent_and_come_back_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.jsonl");
        let (store, _) = Store::open(Some(&path), "a").unwrap();
        let (first, second) = (predict(&store, 80), predict(&store, 20));
        assert_eq!(store.settle(&[first, first], true, None).unwrap().n_new, 1);
        assert_eq!(store.settle(&[first], true, None).unwrap().n_new, 0);
        assert!(
            matches!(store.settle(&[second, first], false, None), Err(Unsettled::Conflict { id, .. }) if id == first)
        );
        let nobody = PredictionId(1);
        assert!(matches!(store.settle(&[second, nobody], false, None), Err(Unsettled::Unknown { id }) if id == nobody));
        assert!(matches!(Store::open(Some(&path), "a"), Err(ServerError::StoreLocked { .. })));
        drop(store);
        // A line that a crash cut off.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\": \"p_").unwrap();
        let (store, told) = Store::open(Some(&path), "a").unwrap();
        assert_eq!((told.len(), told[0].cluster, told[0].success), (1, 7, true));
        assert_eq!(store.settle(&[first], true, None).unwrap().n_new, 0);
        assert_eq!(store.settle(&[second], false, None).unwrap().told.len(), 1);
        let summary = store.summary();
        assert_eq!((summary.n_predictions, summary.n_outcomes, summary.estimate.n), (2, 2, 2));
        assert!((summary.stated.brier.unwrap() - 0.04).abs() < 1e-12);
        drop(store);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        let (other, told) = Store::open(Some(&path), "b").unwrap();
        assert!(told.is_empty());
        let other = other.summary();
        assert_eq!((other.n_outcomes, other.n_outcomes_of_others, other.stated.n), (0, 2, 0));
    }

    #[test]
    fn a_broken_line_is_named_and_the_oldest_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.jsonl");
        std::fs::write(&path, "{}\n").unwrap();
        let error = Store::open(Some(&path), "a").unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        let (store, _) = Store::open_bounded(None, "a", 2).unwrap();
        let ids: Vec<_> = [10, 20, 30].map(|it| predict(&store, it)).into();
        assert!(matches!(store.settle(&ids[..1], true, None), Err(Unsettled::Unknown { .. })));
        assert_eq!(store.settle(&ids[2..], true, None).unwrap().n_new, 1);
        assert_eq!(store.counts().n_predictions, 2);
    }

    /// One test is both: the parent, and the child that it kills in the middle of its work.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a child of the test learns by this variable that it is one")]
    fn what_was_acknowledged_outlives_a_kill() {
        const NAME: &str = "FSQ_TEST_OUTCOMES";
        if let Some(path) = std::env::var_os(NAME) {
            let (store, _) = Store::open(Some(Path::new(&path)), "a").unwrap();
            loop {
                let (ids, success) = ([predict(&store, 80), predict(&store, 20)], rand::random());
                store.settle(&ids, success, None).unwrap();
                writeln!(io::stdout(), "\nacknowledged {} {} {success}", ids[0], ids[1]).unwrap();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.jsonl");
        let own_name = "store::tests::what_was_acknowledged_outlives_a_kill";
        for n_lines in [1, 8, 60] {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", own_name, "--nocapture"])
                .env(NAME, &path)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
            let told = |it: io::Result<String>| it.ok().filter(|it| it.starts_with("acknowledged "));
            let mut acknowledged: Vec<String> = lines.by_ref().filter_map(told).take(n_lines).collect();
            child.kill().unwrap();
            child.wait().unwrap();
            // What was still in the pipe was acknowledged as well, but for a line that was cut off.
            acknowledged.extend(lines.filter_map(told).filter(|it| it.ends_with("true") || it.ends_with("false")));
            assert!(acknowledged.len() >= n_lines);
            let (store, _) = Store::open(Some(&path), "a").unwrap();
            for line in acknowledged {
                let words: Vec<&str> = line.split(' ').collect();
                let ids = [words[1], words[2]].map(|it| it.parse::<PredictionId>().unwrap());
                let success = words[3] == "true";
                assert_eq!(store.settle(&ids, success, None).unwrap().n_new, 0, "{line}");
                assert!(matches!(store.settle(&ids, !success, None), Err(Unsettled::Conflict { .. })), "{line}");
            }
        }
    }

    #[test]
    fn a_grade_is_kept_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.jsonl");
        let (store, _) = Store::open(Some(&path), "a").unwrap();
        let id = predict(&store, 50);
        let told: Vec<usize> = (0..2).map(|_| store.settle(&[id], true, Some(0.7)).unwrap().n_new).collect();
        assert_eq!(told, [1, 0]);
        drop(store);
        let (store, _) = Store::open(Some(&path), "a").unwrap();
        assert_eq!(store.settle(&[id], true, None).unwrap().n_new, 0);
        assert!(matches!(store.settle(&[id], true, Some(0.8)), Err(Unsettled::Conflict { .. })));
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"grade\":0.7"));
    }
}
