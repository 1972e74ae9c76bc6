//! The part of the page about gates: every file of an environment beside the others, a gate to a line.
//!
//! The fields read are those of `fsq_calibrate::gates::Report` as it serialises; what is missing is left out.

use serde::Serialize;
use serde_json::Value;

use super::charts::{self, Told};
use super::record::GateRun;

/// The judgements of one environment.
#[derive(Serialize)]
pub(super) struct Gates {
    files: Vec<Judged>,
    rows: Vec<Row>,
}

/// One judged file.
#[derive(Serialize)]
struct Judged {
    candidate: String,
    verdict: String,
    note: String,
    sentences: Vec<String>,
}

/// One gate over all files.
#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    cells: Vec<Cell>,
}

/// One gate of one file.
#[derive(Serialize)]
struct Cell {
    verdict: String,
    mark: &'static str,
    svg: String,
}

impl Gates {
    /// The judgements as a table; `None` without any. `index` keeps ids apart.
    pub(super) fn of(index: usize, runs: &[&GateRun]) -> Option<Self> {
        let first = runs.first()?;
        let rows = gates(first).iter().enumerate().map(|(place, gate)| {
            let (id, name) = (text(gate, "id"), text(gate, "name"));
            let cell = |(file, run): (usize, &&GateRun)| {
                let same = gates(run).iter().find(|it| text(it, "id") == id && text(it, "name") == name);
                same.map_or_else(Cell::empty, |it| Cell::of(&format!("g{index}-{file}-{place}"), it))
            };
            let cells = runs.iter().enumerate().map(cell).collect();
            Row { id, name, cells }
        });
        Some(Self { rows: rows.collect(), files: runs.iter().map(|it| judged(it)).collect() })
    }
}

impl Cell {
    fn empty() -> Self {
        Self { verdict: "none".into(), mark: "", svg: String::new() }
    }

    fn of(id: &str, gate: &Value) -> Self {
        let number = |value: Option<&Value>| value.and_then(Value::as_f64);
        let is_excused = gate.get("excused").and_then(Value::as_bool) == Some(true);
        let verdict = gate.get("verdict").and_then(|it| it.get("answer")).and_then(Value::as_str).unwrap_or_default();
        let end = |key: &str| number(gate.get("interval").and_then(|it| it.get(key)));
        let limit = number(gate.get("limit")).filter(|it| *it > 0.0);
        let told = Told { id, title: &text(gate, "name"), text: &text(gate, "sentence") };
        let svg = match (number(gate.get("measured")), end("low"), end("high"), limit) {
            (Some(harm), Some(low), Some(high), Some(limit)) => {
                let class = if is_excused { "v-none".into() } else { format!("v-{verdict}") };
                charts::forest(&told, &class, harm / limit, low / limit, high / limit, is_excused)
            }
            _ => String::new(),
        };
        let mark = match verdict {
            _ if is_excused => "–",
            "pass" => "✓",
            "fail" => "✗",
            _ => "?",
        };
        Self { verdict: if is_excused { "set aside".into() } else { verdict.to_owned() }, mark, svg }
    }
}

fn gates(run: &GateRun) -> &[Value] {
    run.report.get("gates").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn judged(run: &GateRun) -> Judged {
    let required = run.report.get("recalibration_required").and_then(Value::as_bool) == Some(true);
    let count = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or(0);
    let flips = |key: &str| count(run.report.get("flips").and_then(|it| it.get(key)));
    let n = count(run.report.get("n"));
    let mut note = format!("{n} tasks paired with {}: ", run.reference);
    note += &format!("{} solved by the file only, {} by the reference only. ", flips("gained"), flips("lost"));
    note += match text(&run.report, "confidence").as_str() {
        "usable" => "Its estimates are good enough to choose plans by.",
        "unusable" => "Its estimates are not good enough to choose plans by.",
        _ => "",
    };
    if required {
        note += " The verdict needs the recalibration map that travels in the file.";
    }
    Judged {
        candidate: run.candidate.clone(),
        verdict: run.verdict.clone(),
        note,
        sentences: gates(run).iter().map(|it| text(it, "sentence")).collect(),
    }
}
