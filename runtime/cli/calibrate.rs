//! `fsq calibrate`: how well stated probabilities and outcomes agree, and a map from one to the other.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use fsq_calibrate::Stated;
use fsq_calibrate::intervals::Interval;
use fsq_calibrate::metrics::{
    Bootstrap, MetricIntervals, Metrics, Outcome as Observed, ReliabilityBin, intervals, reliability_curve,
};
use fsq_calibrate::recalibration::RecalibrationMap;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::failure::{Outcome, Refusal};
use crate::{Globals, output};

/// Longest line that is read: far above any row, far below what would fill the memory.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Bins of the reliability curve.
const BINS: usize = 10;

/// Arguments of `fsq calibrate`.
#[derive(Args)]
pub(crate) struct CalibrateArguments {
    /// Rows such as {"stated": 0.65, "outcome": 1}, one a line; "cluster" names what depends on one another
    outcomes: PathBuf,
    /// Fit a recalibration map and write it to this file
    #[arg(long, value_name = "FILE")]
    fit: Option<PathBuf>,
}

#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    metrics: Metrics,
    /// 95 %, by resampling clusters.
    intervals: MetricIntervals,
    reliability_curve: Vec<ReliabilityBin>,
    /// With `--fit`: the map, and metrics of its estimates on the outcomes it was fitted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<Fitted>,
}

#[derive(Serialize)]
struct Fitted {
    /// The metadata that carries the map in a GGUF file.
    metadata: serde_json::Map<String, Value>,
    in_sample: Metrics,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &CalibrateArguments) -> anyhow::Result<Outcome> {
    let outcomes = read(&arguments.outcomes)?;
    if outcomes.is_empty() {
        let refusal = Refusal::new(format!("{}: expected outcomes, found none", arguments.outcomes.display()));
        return Err(refusal.hint(r#"a row is {"stated": 0.65, "outcome": 1}"#).into());
    }
    let map = arguments.fit.as_deref().map(|it| fit(&outcomes, it)).transpose()?;
    let document = Document {
        metrics: Metrics::of(&outcomes),
        intervals: intervals(&outcomes, &Bootstrap::REPORT),
        reliability_curve: reliability_curve(&outcomes, BINS),
        map,
    };
    if globals.json {
        output::print_json(&document)?;
    } else {
        output::print(&text(&document))?;
    }
    Ok(Outcome::Done)
}

fn fit(outcomes: &[Observed], path: &Path) -> anyhow::Result<Fitted> {
    let map = RecalibrationMap::fit(outcomes)?;
    let pairs = map.to_pairs().into_iter();
    let metadata: serde_json::Map<String, Value> = pairs.map(|(key, value)| (key.to_owned(), value.into())).collect();
    output::write_whole(path, (serde_json::to_string_pretty(&metadata)? + "\n").as_bytes())?;
    let estimated = outcomes.iter().map(|it| {
        let stated = Stated::new(it.probability())?;
        Ok(Observed::of_estimate(map.apply(stated), it.success(), it.cluster()))
    });
    let estimated: Vec<Observed> = estimated.collect::<anyhow::Result<_>>()?;
    Ok(Fitted { metadata, in_sample: Metrics::of(&estimated) })
}

/// Reads all rows, or names the first that is wrong.
fn read(path: &Path) -> anyhow::Result<Vec<Observed>> {
    let shown = path.display();
    let mut reader = BufReader::new(File::open(path).with_context(|| shown.to_string())?);
    let (mut outcomes, mut line) = (Vec::new(), Vec::new());
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
            outcomes.push(row(&line, number).map_err(wrong)?);
        }
    }
    Ok(outcomes)
}

fn row(line: &[u8], number: u64) -> Result<Observed, String> {
    let row: Value = serde_json::from_slice(line).map_err(|it| format!("expected a JSON object: {it}"))?;
    let found = |field: &str| row.get(field).map_or_else(|| "nothing".into(), short);
    let stated = row["stated"].as_f64().and_then(|it| Stated::new(it).ok());
    let stated = stated.ok_or_else(|| format!("`stated`: expected a number from 0 to 1, found {}", found("stated")))?;
    let success = row["outcome"].as_bool().or_else(|| match row["outcome"].as_f64() {
        Some(1.0) => Some(true),
        Some(0.0) => Some(false),
        _ => None,
    });
    let success = success.ok_or_else(|| format!("`outcome`: expected 0 or 1, found {}", found("outcome")))?;
    let cluster = match &row["cluster"] {
        // Every row its own.
        Value::Null => Some(number),
        Value::String(it) => Sha256::digest(it).first_chunk().map(|it| u64::from_le_bytes(*it)),
        other => other.as_u64(),
    };
    let cluster = cluster
        .ok_or_else(|| format!("`cluster`: expected a text or a whole number from 0, found {}", found("cluster")))?;
    Ok(Observed::of_stated(stated, success, cluster))
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

fn text(document: &Document) -> String {
    let Document { metrics, intervals, reliability_curve, map } = document;
    let mut text = verdict(metrics, intervals) + "\n\n";
    let in_sample = map.as_ref().map(|it| it.in_sample.values());
    let mut rows = vec![vec!["metric".to_owned(), "value".into(), "95 % interval".into()]];
    if map.is_some() {
        rows[0].push("after map*".into());
    }
    let values = metrics.values().into_iter().zip(intervals.values());
    for (index, (name, (value, interval))) in Metrics::NAMES.iter().zip(values).enumerate() {
        let mut row = vec![(*name).to_owned(), number(value), range(interval)];
        row.extend(in_sample.map(|it| number(it[index])));
        rows.push(row);
    }
    text += &output::columns(&rows);
    let mut rows = vec![["stated", "observed", "95 % band", "n"].map(str::to_owned).to_vec()];
    for bin in reliability_curve {
        let band = bin.band.map_or_else(|| "-".into(), |it| format!("{:.2} to {:.2}", it.low, it.high));
        let (stated, observed) = (bin.probability_mean, bin.observed);
        rows.push(vec![format!("{stated:.2}"), format!("{observed:.2}"), band, bin.n.to_string()]);
    }
    text += "\n";
    text += &output::columns(&rows);
    if let Some(map) = map {
        let family = map.metadata.get("fsq.recalibration.family").and_then(Value::as_str).unwrap_or("?");
        text += &format!(
            "\nfitted a map of the family `{family}`\n* on the outcomes it was fitted on, so better than on new ones\n"
        );
    }
    text
}

/// The answer in a sentence.
fn verdict(metrics: &Metrics, intervals: &MetricIntervals) -> String {
    let n = metrics.n;
    let (Some(gap), Some(range)) = (metrics.signed_gap, intervals.signed_gap) else {
        return format!("{n} outcomes: too few to tell");
    };
    let points = |it: f64| format!("{:.0}", 100.0 * it);
    let size = format!("{} points [{}, {}]", points(gap.abs()), points(range.low), points(range.high));
    let bias = match gap {
        _ if range.contains(0.0) => format!("no bias is shown, the gap is {size}"),
        gap if gap > 0.0 => format!("overconfident by {size}"),
        _ => format!("underconfident by {size}"),
    };
    let skill = match intervals.brier_skill {
        Some(it) if it.low > 0.0 => "better than always saying the base rate",
        Some(it) if it.high < 0.0 => "worse than always saying the base rate",
        Some(_) => "not shown to be better than always saying the base rate",
        None => "only one outcome, so nothing tells plans apart",
    };
    format!("{n} outcomes: {bias}; {skill}")
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |it| format!("{it:.4}"))
}

fn range(interval: Option<Interval>) -> String {
    interval.map_or_else(|| "-".into(), |it| format!("{:.4} to {:.4}", it.low, it.high))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::*;

    #[test]
    fn a_row_is_read_or_told_what_is_wrong() {
        let read = |text: &str| row(text.as_bytes(), 7);
        let outcome = read(r#"{"stated": 0.65, "outcome": 1, "more": []}"#).unwrap();
        assert_eq!((outcome.probability(), outcome.success(), outcome.cluster()), (0.65, true, 7));
        assert!(!read(r#"{"stated": 0, "outcome": false, "cluster": "a"}"#).unwrap().success());
        let wrong = [
            (r#"{"stated": 1.5, "outcome": 1}"#, "`stated`: expected a number from 0 to 1, found 1.5"),
            (r#"{"stated": 0.5}"#, "`outcome`: expected 0 or 1, found nothing"),
            (r#"{"stated": 0.5, "outcome": 2}"#, "`outcome`: expected 0 or 1, found 2"),
            (
                r#"{"stated": 0.5, "outcome": 1, "cluster": -1}"#,
                "`cluster`: expected a text or a whole number from 0, found -1",
            ),
        ];
        for (text, expected) in wrong {
            assert_eq!(read(text).unwrap_err(), expected);
        }
        assert!(read("[]").unwrap_err().starts_with("`stated`: expected"));
        assert!(read("{").unwrap_err().starts_with("expected a JSON object: "));
    }

    #[test]
    fn the_answer_comes_in_a_sentence() {
        let outcomes: Vec<_> = (0..200u64).map(|it| Observed::new(0.9, it.is_multiple_of(2), it).unwrap()).collect();
        let told = verdict(&Metrics::of(&outcomes), &intervals(&outcomes, &Bootstrap::REPORT));
        assert!(told.starts_with("200 outcomes: overconfident by 40 points ["), "{told}");
        assert!(told.ends_with("worse than always saying the base rate"), "{told}");
    }
}
