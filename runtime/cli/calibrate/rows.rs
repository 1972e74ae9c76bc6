//! Rows of outcomes, one JSON object a line: read whole and proved. Knows nothing of metrics.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use fsq_calibrate::Stated;
use fsq_calibrate::metrics::{Cell, Outcome as Observed};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::failure::Refusal;

/// Longest line that is read: far above any row, far below what would fill the memory.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Longest horizon that is read.
const HORIZON_MAX: usize = 64;

/// One stated probability, and what it came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) stated: Stated,
    pub(super) success: bool,
    pub(super) cluster: u64,
    /// Where it belongs, if the row names any of environment, step and difficulty.
    pub(super) cell: Option<Cell>,
    /// Share of the imagined state that came true, for horizons 1, 2, ..
    pub(super) fidelity: Vec<Option<f64>>,
}

impl Row {
    pub(super) fn outcome(&self) -> Observed {
        Observed::of_stated(self.stated, self.success, self.cluster)
    }
}

/// The rows of a file.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Those with an outcome, in the order in which outcomes arrived.
    pub(super) rows: Vec<Row>,
    /// All lines that are not blank.
    pub(super) n_rows: usize,
    /// Statements without an outcome to the end of the file.
    pub(super) n_pending: usize,
    /// Rows that repeat an outcome already told under their `id`.
    pub(super) n_duplicates: usize,
    /// What was last told under each `id`.
    told: HashMap<u64, Told>,
}

/// What a line told under an `id`.
#[derive(Debug)]
struct Told {
    line: u64,
    stated: Stated,
    success: Option<bool>,
}

/// Reads all rows, or names the first that is wrong.
pub(super) fn read(path: &Path) -> anyhow::Result<Log> {
    let shown = path.display();
    let mut reader = BufReader::new(File::open(path).with_context(|| shown.to_string())?);
    let (mut log, mut line) = (Log::default(), Vec::new());
    for number in 1u64.. {
        line.clear();
        let length = (&mut reader).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
        let length = length.with_context(|| shown.to_string())? as u64;
        if length == 0 {
            break;
        }
        let wrong = |reason: String| Refusal::new(format!("{shown}, line {number}: {reason}"));
        if length > LINE_BYTES_MAX {
            return Err(wrong(format!("expected at most {LINE_BYTES_MAX} bytes, found more")).into());
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            log.add(&line, number).map_err(wrong)?;
        }
    }
    if log.n_rows == 0 {
        let refusal = Refusal::new(format!("{shown}: expected outcomes, found none"));
        return Err(refusal.hint(r#"a row is {"stated": 0.65, "outcome": 1}"#).into());
    }
    Ok(log)
}

impl Log {
    /// Forgets the rows of all environments but one.
    pub(super) fn keep(&mut self, environment: &str) -> anyhow::Result<()> {
        self.rows.retain(|it| it.cell.as_ref().is_some_and(|it| it.environment == environment));
        if self.rows.is_empty() {
            return Err(
                Refusal::new(format!("environment `{environment}`: expected outcomes of it, found none")).into()
            );
        }
        Ok(())
    }

    fn add(&mut self, line: &[u8], number: u64) -> Result<(), String> {
        let row: Value = serde_json::from_slice(line).map_err(|it| format!("expected a JSON object: {it}"))?;
        let expected = |field: &str, expected: &str| {
            let found = row.get(field).map_or_else(|| "nothing".into(), short);
            format!("`{field}`: expected {expected}, found {found}")
        };
        let stated = row["stated"].as_f64().and_then(|it| Stated::new(it).ok());
        let stated = stated.ok_or_else(|| expected("stated", "a number from 0 to 1"))?;
        let named = |field: &str| match &row[field] {
            Value::Null => Ok(None),
            Value::String(it) => Ok(Sha256::digest(it).first_chunk().map(|it| u64::from_le_bytes(*it))),
            other => other.as_u64().map(Some).ok_or_else(|| expected(field, "a text or a whole number from 0")),
        };
        let id = named("id")?;
        let success = match row.get("outcome") {
            Some(Value::Null) => None,
            // Only a row that can be told apart can wait for another to settle it.
            None if id.is_some() => None,
            Some(Value::Bool(it)) => Some(*it),
            Some(it) if it.as_f64() == Some(1.0) => Some(true),
            Some(it) if it.as_f64() == Some(0.0) => Some(false),
            _ => return Err(expected("outcome", "0, 1, or null where it is not known yet")),
        };
        let (cell, fidelity) = (cell(&row, &expected)?, fidelity(&row, &expected)?);
        // Without a cluster every row is one of its own.
        let cluster = named("cluster")?.unwrap_or(number);
        self.n_rows += 1;
        if self.is_news(id, Told { line: number, stated, success })? {
            match success {
                Some(success) => self.rows.push(Row { stated, success, cluster, cell, fidelity }),
                None => self.n_pending += 1,
            }
        }
        Ok(())
    }

    /// Whether a row tells something new; counts it if not. One that contradicts what was told is wrong.
    fn is_news(&mut self, id: Option<u64>, new: Told) -> Result<bool, String> {
        let Some(id) = id else { return Ok(true) };
        let Some(old) = self.told.get_mut(&id) else {
            self.told.insert(id, new);
            return Ok(true);
        };
        let differs = |field: &str, expected: f64, found: f64| {
            let line = old.line;
            format!("`{field}`: expected {expected} as on line {line}, which has the same `id`, found {found}")
        };
        if old.stated != new.stated {
            return Err(differs("stated", old.stated.value(), new.stated.value()));
        }
        let number = |it: bool| f64::from(u8::from(it));
        match (old.success, new.success) {
            (Some(old), Some(new)) if old != new => Err(differs("outcome", number(old), number(new))),
            (None, Some(_)) => {
                self.n_pending -= 1;
                *old = new;
                Ok(true)
            }
            _ => {
                self.n_duplicates += 1;
                Ok(false)
            }
        }
    }
}

fn cell(row: &Value, expected: &impl Fn(&str, &str) -> String) -> Result<Option<Cell>, String> {
    let fields = ["environment", "step", "difficulty"];
    if fields.iter().all(|it| row[it].is_null()) {
        return Ok(None);
    }
    let label = |field: &str| match &row[field] {
        Value::Null => Ok(String::new()),
        Value::String(it) => Ok(it.clone()),
        Value::Number(it) => Ok(it.to_string()),
        _ => Err(expected(field, "a text or a number")),
    };
    let step = match &row["step"] {
        Value::Null => Some(0),
        other => other.as_u64().and_then(|it| u32::try_from(it).ok()),
    };
    let step = step.ok_or_else(|| expected("step", "a whole number from 0"))?;
    Ok(Some(Cell { environment: label("environment")?, step, difficulty: label("difficulty")? }))
}

fn fidelity(row: &Value, expected: &impl Fn(&str, &str) -> String) -> Result<Vec<Option<f64>>, String> {
    let wrong = || expected("fidelity", "at most 64 shares from 0 to 1, or null where there is none");
    let shares = match &row["fidelity"] {
        Value::Null => return Ok(Vec::new()),
        Value::Array(it) if it.len() <= HORIZON_MAX => it,
        _ => return Err(wrong()),
    };
    let share = |it: &Value| match it {
        Value::Null => Ok(None),
        it => it.as_f64().filter(|it| (0.0..=1.0).contains(it)).map(Some).ok_or_else(wrong),
    };
    shares.iter().map(share).collect()
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::*;

    fn added(lines: &[&str]) -> Result<Log, String> {
        let mut log = Log::default();
        for (line, number) in lines.iter().zip(7..) {
            log.add(line.as_bytes(), number)?;
        }
        Ok(log)
    }

    #[test]
    fn a_row_is_read_or_told_what_is_wrong() {
        let read = |text: &str| added(&[text]).map(|it| it.rows[0].clone());
        let found = read(r#"{"stated": 0.65, "outcome": 1, "more": []}"#).unwrap();
        assert_eq!((found.stated.value(), found.success, found.cluster), (0.65, true, 7));
        assert!(found.cell.is_none() && found.fidelity.is_empty());
        assert!(!read(r#"{"stated": 0, "outcome": false, "cluster": "a"}"#).unwrap().success);
        let placed = read(r#"{"stated": 0, "outcome": 0, "step": 2, "difficulty": 3, "fidelity": [1, null]}"#).unwrap();
        let cell = placed.cell.unwrap();
        assert_eq!((&*cell.environment, cell.step, &*cell.difficulty), ("", 2, "3"));
        assert_eq!(placed.fidelity, [Some(1.0), None]);
        let outcome = "`outcome`: expected 0, 1, or null where it is not known yet, found";
        let wrong = [
            (r#"{"stated": 1.5, "outcome": 1}"#, "`stated`: expected a number from 0 to 1, found 1.5".to_owned()),
            (r#"{"stated": 0.5}"#, format!("{outcome} nothing")),
            (r#"{"stated": 0.5, "outcome": 2}"#, format!("{outcome} 2")),
            (
                r#"{"stated": 0.5, "outcome": 1, "cluster": -1}"#,
                "`cluster`: expected a text or a whole number from 0, found -1".into(),
            ),
            (
                r#"{"stated": 0.5, "outcome": 1, "step": "x"}"#,
                "`step`: expected a whole number from 0, found \"x\"".into(),
            ),
            (
                r#"{"stated": 0.5, "outcome": 1, "fidelity": [2]}"#,
                "`fidelity`: expected at most 64 shares from 0 to 1, or null where there is none, found [2]".into(),
            ),
        ];
        for (text, expected) in wrong {
            assert_eq!(read(text).unwrap_err(), expected);
        }
        assert!(read("[]").unwrap_err().starts_with("`stated`: expected"));
        assert!(read("{").unwrap_err().starts_with("expected a JSON object: "));
        assert!(
            read(r#"{"stated": NaN, "outcome": 1}"#).is_err() && read(r#"{"stated": 1e999, "outcome": 1}"#).is_err()
        );
    }

    #[test]
    fn late_outcomes_settle_what_waited_and_repeated_ones_count_once() {
        let log = added(&[
            r#"{"stated": 0.5, "id": "a"}"#,
            r#"{"stated": 0.6, "id": "b", "outcome": null}"#,
            r#"{"stated": 0.7, "outcome": null}"#,
            r#"{"stated": 0.5, "id": "a", "outcome": 1}"#,
            r#"{"stated": 0.5, "id": "a", "outcome": true}"#,
            r#"{"stated": 0.5, "id": "a"}"#,
        ]);
        let log = log.unwrap();
        let known: Vec<(f64, bool)> = log.rows.iter().map(|it| (it.stated.value(), it.success)).collect();
        assert_eq!(known, [(0.5, true)]);
        assert_eq!((log.n_rows, log.n_pending, log.n_duplicates), (6, 2, 2));
    }

    #[test]
    fn rows_that_contradict_each_other_are_wrong() {
        let told = r#"{"stated": 0.5, "id": 3, "outcome": 1}"#;
        let other = added(&[told, r#"{"stated": 0.5, "id": 3, "outcome": 0}"#]).unwrap_err();
        assert_eq!(other, "`outcome`: expected 1 as on line 7, which has the same `id`, found 0");
        let other = added(&[told, r#"{"stated": 0.25, "id": 3, "outcome": 1}"#]).unwrap_err();
        assert_eq!(other, "`stated`: expected 0.5 as on line 7, which has the same `id`, found 0.25");
    }
}
