//! `fsq calibrate`: how well stated probabilities and outcomes agree, and a map from one to the other.

mod replay;
mod rows;

use std::path::{Path, PathBuf};

use clap::Args;
use fsq_calibrate::Stated;
use fsq_calibrate::fidelity::{HorizonFidelity, RolloutTruth, fidelity_by_horizon};
use fsq_calibrate::intervals::Interval;
use fsq_calibrate::metrics::{
    Bootstrap, CELL_OUTCOMES_MIN, CalibratedErrors, Cell, CellGap, MetricIntervals, Metrics, Outcome as Observed,
    ReliabilityBin, RiskPoint, cell_gaps, errors_if_calibrated, intervals, reliability_curve,
    reliability_curve_equal_mass, risk_coverage, smooth_ece, smooth_ece_interval,
};
use fsq_calibrate::recalibration::{Family, RecalibrationMap};
use fsq_calibrate::threshold::{ActThreshold, FailureBound, act_threshold};
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Outcome, Refusal};
use crate::{Globals, output};
use rows::Row;

/// Bins of the reliability curve.
const BINS: usize = 10;
/// Points of the curve of risk against coverage.
const RISKS: usize = 50;
/// Confidence of every interval.
const CONFIDENCE: f64 = 0.95;
/// How often outcomes may mislead about a threshold to act at.
const THRESHOLD_RISK: f64 = 0.05;
/// Outcomes that all resamples may draw together: what keeps a million rows within a minute.
const OUTCOMES_DRAWN_MAX: usize = 400_000_000;

/// Arguments of `fsq calibrate`.
#[derive(Args)]
pub(crate) struct CalibrateArguments {
    /// Rows such as {"stated": 0.65, "outcome": 1}, one a line; "cluster" names what depends on one another,
    /// "environment", "step" and "difficulty" where it belongs, "fidelity" which imagined states came true
    outcomes: PathBuf,
    /// Fit a recalibration map and write it to this file
    #[arg(long, value_name = "FILE")]
    fit: Option<PathBuf>,
    /// The map's family, instead of the one that so many outcomes can carry
    #[arg(long, value_name = "NAME", requires = "fit", value_parser = family)]
    family: Option<Family>,
    /// Find the lowest estimate to act at, so that at most this share of the plans acted on fails
    #[arg(long, value_name = "SHARE", value_parser = share)]
    failures_max: Option<f64>,
    /// Replay the rows in their order, as drift monitoring would have seen them
    #[arg(long, conflicts_with_all = ["fit", "failures_max"])]
    replay: bool,
    /// The map in use when the log began, a file that --fit wrote
    #[arg(long, value_name = "FILE", requires = "replay")]
    map: Option<PathBuf>,
}

fn family(name: &str) -> Result<Family, String> {
    let names = Family::ALL.map(Family::name).join(", ");
    Family::from_name(name).ok_or_else(|| format!("expected one of {names}"))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|it| *it > 0.0 && *it < 1.0);
    share.ok_or_else(|| "expected a number between 0 and 1".to_owned())
}

#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    metrics: Metrics,
    /// Without bins; its bandwidth is the error itself.
    smooth_ece: Option<f64>,
    /// 95 %, by cluster.
    intervals: Intervals,
    /// What a perfectly calibrated predictor would show on these stated probabilities.
    if_calibrated: CalibratedErrors,
    reliability_curve: Vec<ReliabilityBin>,
    reliability_curve_equal_mass: Vec<ReliabilityBin>,
    risk_coverage: Vec<RiskPoint>,
    /// By environment, step and difficulty, the largest gap first; empty where rows name none of them, or no cell
    /// has 200 outcomes.
    cells: Vec<CellGap>,
    /// By horizon; empty where rows have none.
    fidelity: Vec<HorizonFidelity>,
    /// With `--failures-max`: where to act; `null` if nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    act_threshold: Option<Option<ActThreshold>>,
    /// With `--fit`: the map, and metrics of its estimates on the outcomes it was fitted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<Fitted>,
}

#[derive(Serialize)]
struct Intervals {
    #[serde(flatten)]
    metrics: MetricIntervals,
    smooth_ece: Option<Interval>,
}

#[derive(Serialize)]
struct Fitted {
    /// The metadata that carries the map in a GGUF file.
    metadata: serde_json::Map<String, Value>,
    in_sample: Metrics,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &CalibrateArguments) -> anyhow::Result<Outcome> {
    let rows = rows::read(&arguments.outcomes, arguments.replay)?;
    if arguments.replay {
        let map = arguments.map.as_deref().map(replay::map_of).transpose()?;
        let found = replay::replay(&rows, map.unwrap_or_else(RecalibrationMap::identity));
        if globals.json {
            output::print_json(&found)?
        } else {
            output::print(&found.text())?
        }
        return Ok(Outcome::Done);
    }
    let document = document(&rows, arguments)?;
    if globals.json {
        output::print_json(&document)?;
    } else {
        output::print(&text(&document))?;
    }
    Ok(Outcome::Done)
}

fn document(rows: &[Row], arguments: &CalibrateArguments) -> anyhow::Result<Document> {
    let outcomes: Vec<Observed> = rows.iter().filter_map(Row::outcome).collect();
    let placed = rows.iter().filter_map(|it| Some((it.cell.clone()?, it.outcome()?)));
    let placed: Vec<(Cell, Observed)> = placed.collect();
    let rollouts = rows.iter().filter(|it| !it.fidelity.is_empty());
    let rollouts = rollouts.map(|it| RolloutTruth { cluster: it.cluster, shares: it.fidelity.clone() });
    let resamples = (OUTCOMES_DRAWN_MAX / outcomes.len().max(1)).clamp(200, Bootstrap::REPORT.resamples);
    let bootstrap = Bootstrap { resamples, ..Bootstrap::REPORT };
    let act_threshold = arguments
        .failures_max
        .map(|rate| act_threshold(&outcomes, FailureBound::OfFollowed { rate, risk: THRESHOLD_RISK }, bootstrap.seed));
    Ok(Document {
        map: arguments.fit.as_deref().map(|it| fit(&outcomes, arguments.family, it)).transpose()?,
        metrics: Metrics::of(&outcomes),
        smooth_ece: smooth_ece(&outcomes),
        intervals: Intervals {
            metrics: intervals(&outcomes, &bootstrap),
            smooth_ece: smooth_ece_interval(&outcomes, &bootstrap),
        },
        if_calibrated: errors_if_calibrated(&outcomes, &Bootstrap { resamples: resamples.min(500), ..bootstrap }),
        reliability_curve: reliability_curve(&outcomes, BINS),
        reliability_curve_equal_mass: reliability_curve_equal_mass(&outcomes, BINS),
        risk_coverage: risk_coverage(&outcomes, RISKS),
        cells: cell_gaps(&placed, CELL_OUTCOMES_MIN, CONFIDENCE),
        fidelity: fidelity_by_horizon(&rollouts.collect::<Vec<_>>(), CONFIDENCE),
        act_threshold,
    })
}

fn fit(outcomes: &[Observed], family: Option<Family>, path: &Path) -> anyhow::Result<Fitted> {
    let map = match family {
        Some(family) => RecalibrationMap::fit_family(family, outcomes),
        None => RecalibrationMap::fit(outcomes),
    };
    let map = map.map_err(|it| Refusal::new(it.to_string()))?;
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

fn text(document: &Document) -> String {
    let Document { metrics, intervals, reliability_curve, map, .. } = document;
    let mut text = verdict(metrics, &intervals.metrics) + "\n\n";
    let in_sample = map.as_ref().map(|it| it.in_sample.values());
    let mut rows = vec![vec!["metric".to_owned(), "value".into(), "95 % interval".into()]];
    if map.is_some() {
        rows[0].push("after map*".into());
    }
    let values = metrics.values().into_iter().zip(intervals.metrics.values());
    for (index, (name, (value, interval))) in Metrics::NAMES.iter().zip(values).enumerate() {
        let mut row = vec![(*name).to_owned(), number(value), range(interval)];
        row.extend(in_sample.map(|it| number(it[index])));
        rows.push(row);
    }
    rows.push(vec!["smooth_ece".to_owned(), number(document.smooth_ece), range(intervals.smooth_ece)]);
    text += &output::columns(&rows);
    text += &by_chance(&document.if_calibrated);
    let mut rows = vec![["stated", "observed", "95 % band", "n"].map(str::to_owned).to_vec()];
    for bin in reliability_curve {
        let band = bin.band.map_or_else(|| "-".into(), |it| format!("{:.2} to {:.2}", it.low, it.high));
        let (stated, observed) = (bin.probability_mean, bin.observed);
        rows.push(vec![format!("{stated:.2}"), format!("{observed:.2}"), band, bin.n.to_string()]);
    }
    text += "\n";
    text += &output::columns(&rows);
    text += &details(document);
    if let Some(map) = map {
        let family = map.metadata.get("fsq.recalibration.family").and_then(Value::as_str).unwrap_or("?");
        text += &format!(
            "\nfitted a map of the family `{family}`\n* on the outcomes it was fitted on, so better than on new ones\n"
        );
    }
    text
}

/// What the calibration errors would be if nothing were wrong.
fn by_chance(errors: &CalibratedErrors) -> String {
    let named = [
        ("ece_equal_width_10", errors.ece_equal_width_10),
        ("ece_equal_mass_15", errors.ece_equal_mass_15),
        ("smooth_ece", errors.smooth_ece),
    ];
    let told = named.into_iter().filter_map(|(name, chance)| Some((name, chance?)));
    let told: Vec<String> = told.map(|(name, it)| format!("{name} {:.4}, at most {:.4}", it.mean, it.p95)).collect();
    format!("if calibrated, by chance alone: {}\n", told.join("; "))
}

/// The worst cells, fidelity by horizon, and where to act.
fn details(document: &Document) -> String {
    let mut text = String::new();
    if !document.cells.is_empty() {
        let mut rows = vec![["cell", "gap", "95 % interval", "n"].map(str::to_owned).to_vec()];
        for it in document.cells.iter().take(5) {
            let Cell { environment, step, difficulty } = &it.cell;
            let name = format!("{environment} step {step} {difficulty}");
            rows.push(vec![name, format!("{:+.3}", it.signed_gap), range(it.interval), it.n.to_string()]);
        }
        text += &("\n".to_owned() + &output::columns(&rows));
    }
    if !document.fidelity.is_empty() {
        let mut rows = vec![["horizon", "fidelity", "95 % interval", "n"].map(str::to_owned).to_vec()];
        for it in &document.fidelity {
            let shown = [it.horizon.to_string(), format!("{:.3}", it.fidelity), range(it.interval), it.n.to_string()];
            rows.push(shown.to_vec());
        }
        text += &("\n".to_owned() + &output::columns(&rows));
    }
    text += &match &document.act_threshold {
        Some(Some(it)) => format!(
            "\nact if the estimate is at least {:.4}: {} of {} followed, {} failed\n",
            it.threshold, it.n_followed, it.n, it.n_failed
        ),
        Some(None) => "\nno estimate is sure enough to act on\n".to_owned(),
        None => String::new(),
    };
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
    fn the_answer_comes_in_a_sentence() {
        let outcomes: Vec<_> = (0..200u64).map(|it| Observed::new(0.9, it.is_multiple_of(2), it).unwrap()).collect();
        let told = verdict(&Metrics::of(&outcomes), &intervals(&outcomes, &Bootstrap::REPORT));
        assert!(told.starts_with("200 outcomes: overconfident by 40 points ["), "{told}");
        assert!(told.ends_with("worse than always saying the base rate"), "{told}");
    }
}
