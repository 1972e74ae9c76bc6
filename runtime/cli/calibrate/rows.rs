//! Rows of outcomes, one JSON object a line: read whole and proved. Knows nothing of metrics.

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
    /// `None`: not known yet.
    pub(super) success: Option<bool>,
    pub(super) cluster: u64,
    /// What tells this row from any other, where it says so.
    pub(super) id: Option<u64>,
    /// Where it belongs, if the row names any of environment, step and difficulty.
    pub(super) cell: Option<Cell>,
    /// Share of the imagined state that came true, for horizons 1, 2, ..
    pub(super) fidelity: Vec<Option<f64>>,
}

impl Row {
    /// The outcome, where it is known.
    pub(super) fn outcome(&self) -> Option<Observed> {
        Some(Observed::of_stated(self.stated, self.success?, self.cluster))
    }
}

/// Reads all rows, or names the first that is wrong. `pending` allows `"outcome": null`: not known yet.
pub(super) fn read(path: &Path, pending: bool) -> anyhow::Result<Vec<Row>> {
    let shown = path.display();
    let mut reader = BufReader::new(File::open(path).with_context(|| shown.to_string())?);
    let (mut rows, mut line) = (Vec::new(), Vec::new());
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
            rows.push(row(&line, number, pending).map_err(wrong)?);
        }
    }
    if rows.is_empty() {
        let refusal = Refusal::new(format!("{shown}: expected outcomes, found none"));
        return Err(refusal.hint(r#"a row is {"stated": 0.65, "outcome": 1}"#).into());
    }
    Ok(rows)
}

fn row(line: &[u8], number: u64, pending: bool) -> Result<Row, String> {
    let row: Value = serde_json::from_slice(line).map_err(|it| format!("expected a JSON object: {it}"))?;
    let expected = |field: &str, expected: &str| {
        let found = row.get(field).map_or_else(|| "nothing".into(), short);
        format!("`{field}`: expected {expected}, found {found}")
    };
    let stated = row["stated"].as_f64().and_then(|it| Stated::new(it).ok());
    let stated = stated.ok_or_else(|| expected("stated", "a number from 0 to 1"))?;
    let success = match row.get("outcome") {
        Some(Value::Null) if pending => None,
        Some(Value::Bool(it)) => Some(*it),
        Some(it) if it.as_f64() == Some(1.0) => Some(true),
        Some(it) if it.as_f64() == Some(0.0) => Some(false),
        _ => return Err(expected("outcome", if pending { "0, 1 or null" } else { "0 or 1" })),
    };
    let named = |field: &str| match &row[field] {
        Value::Null => Ok(None),
        Value::String(it) => Ok(Sha256::digest(it).first_chunk().map(|it| u64::from_le_bytes(*it))),
        other => other.as_u64().map(Some).ok_or_else(|| expected(field, "a text or a whole number from 0")),
    };
    // Without a cluster every row is one of its own.
    let cluster = named("cluster")?.unwrap_or(number);
    Ok(Row {
        stated,
        success,
        cluster,
        id: named("id")?,
        cell: cell(&row, &expected)?,
        fidelity: fidelity(&row, &expected)?,
    })
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

    #[test]
    fn a_row_is_read_or_told_what_is_wrong() {
        let read = |text: &str| row(text.as_bytes(), 7, false);
        let found = read(r#"{"stated": 0.65, "outcome": 1, "more": []}"#).unwrap();
        assert_eq!((found.stated.value(), found.success, found.cluster, found.id), (0.65, Some(true), 7, None));
        assert!(found.cell.is_none() && found.fidelity.is_empty());
        assert_eq!(read(r#"{"stated": 0, "outcome": false, "cluster": "a"}"#).unwrap().success, Some(false));
        let placed = read(r#"{"stated": 0, "outcome": 0, "step": 2, "difficulty": 3, "fidelity": [1, null]}"#).unwrap();
        let cell = placed.cell.unwrap();
        assert_eq!((&*cell.environment, cell.step, &*cell.difficulty), ("", 2, "3"));
        assert_eq!(placed.fidelity, [Some(1.0), None]);
        let wrong = [
            (r#"{"stated": 1.5, "outcome": 1}"#, "`stated`: expected a number from 0 to 1, found 1.5"),
            (r#"{"stated": 0.5}"#, "`outcome`: expected 0 or 1, found nothing"),
            (r#"{"stated": 0.5, "outcome": 2}"#, "`outcome`: expected 0 or 1, found 2"),
            (r#"{"stated": 0.5, "outcome": null}"#, "`outcome`: expected 0 or 1, found null"),
            (
                r#"{"stated": 0.5, "outcome": 1, "cluster": -1}"#,
                "`cluster`: expected a text or a whole number from 0, found -1",
            ),
            (r#"{"stated": 0.5, "outcome": 1, "step": "x"}"#, "`step`: expected a whole number from 0, found \"x\""),
            (
                r#"{"stated": 0.5, "outcome": 1, "fidelity": [2]}"#,
                "`fidelity`: expected at most 64 shares from 0 to 1, or null where there is none, found [2]",
            ),
        ];
        for (text, expected) in wrong {
            assert_eq!(read(text).unwrap_err(), expected);
        }
        assert!(read("[]").unwrap_err().starts_with("`stated`: expected"));
        assert!(read("{").unwrap_err().starts_with("expected a JSON object: "));
        assert_eq!(row(br#"{"stated": 0.5, "outcome": null}"#, 1, true).unwrap().success, None);
        assert!(row(br#"{"stated": 0.5}"#, 1, true).is_err());
    }
}
