//! `fsq calibrate`: how well stated probabilities and outcomes agree, and a map from one to the other.

mod carried;
mod mapped;
mod replay;
mod rows;

use std::path::PathBuf;

use clap::Args;
use fsq_calibrate::fidelity::{HorizonFidelity, RolloutTruth, fidelity_by_horizon};
use fsq_calibrate::intervals::Interval;
use fsq_calibrate::metrics::{
    Bootstrap, CELL_OUTCOMES_MIN, CalibratedErrors, Cell, CellGap, MetricIntervals, Metrics, Outcome as Observed,
    ReliabilityBin, RiskPoint, cell_gaps, errors_if_calibrated, intervals, reliability_curve,
    reliability_curve_equal_mass, risk_coverage, smooth_ece, smooth_ece_interval,
};
use fsq_calibrate::recalibration::{Family, RecalibrationMap};
use fsq_calibrate::stored::StoredThreshold;
use fsq_calibrate::threshold::{ActThreshold, FailureBound, act_threshold};
use serde::Serialize;

use crate::failure::Outcome;
use crate::{Globals, output};
use carried::Carrier;
use mapped::Mapped;
use rows::{Log, Row};

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
    /// Rows such as {"stated": 0.65, "outcome": 1}, one a line; "outcome" is null where it is not known yet, "id"
    /// tells rows apart, "cluster" names what depends on one another, "environment", "step" and "difficulty" where
    /// it belongs, "fidelity" which imagined states came true
    outcomes: PathBuf,
    /// Fit a recalibration map, write it to this file, and show what such a map does to outcomes held out
    #[arg(long, value_name = "FILE")]
    fit: Option<PathBuf>,
    /// The map's family, instead of the one that so many outcomes can carry
    #[arg(long, value_name = "NAME", requires = "fit", value_parser = family)]
    family: Option<Family>,
    /// Show what this map does to the outcomes, a file that --fit wrote; with --replay, the map in use at first
    #[arg(long, value_name = "FILE", conflicts_with = "fit")]
    map: Option<PathBuf>,
    /// Find the lowest estimate to act at, so that at most this share of the plans acted on fails
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "fit")]
    failures_max: Option<f64>,
    /// With --failures-max: estimates are those of this policy's file, and a copy of it that says where to act is
    /// written to --out
    #[arg(long, value_name = "FILE", requires_all = ["failures_max", "out"], conflicts_with = "map")]
    policy: Option<PathBuf>,
    /// The copy of --policy
    #[arg(long, value_name = "FILE", requires = "policy")]
    out: Option<PathBuf>,
    /// Only the rows of this environment, and the file's map for it
    #[arg(long, value_name = "NAME", requires = "policy")]
    environment: Option<String>,
    /// Replay the rows in their order, as drift monitoring would have seen them
    #[arg(long, conflicts_with_all = ["fit", "failures_max"])]
    replay: bool,
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
    /// Statements without an outcome, which no metric sees.
    n_pending: usize,
    /// Rows that repeat an outcome, counted once.
    n_duplicates: usize,
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
    /// With `--fit` and `--map`: the map, and what it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<Mapped>,
}

#[derive(Serialize)]
struct Intervals {
    #[serde(flatten)]
    metrics: MetricIntervals,
    smooth_ece: Option<Interval>,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &CalibrateArguments) -> anyhow::Result<Outcome> {
    let mut log = rows::read(&arguments.outcomes)?;
    if let Some(environment) = &arguments.environment {
        log.keep(environment)?;
    }
    let open = |it: &PathBuf| Carrier::open(it, arguments.environment.as_deref());
    let carrier = arguments.policy.as_ref().map(open).transpose()?;
    let map = match &carrier {
        Some(carrier) => Some(carrier.map.clone()),
        None => arguments.map.as_deref().map(mapped::map_of).transpose()?,
    };
    if arguments.replay {
        let found = replay::replay(&log, map.unwrap_or_else(RecalibrationMap::identity));
        if globals.json {
            output::print_json(&found)?
        } else {
            output::print(&found.text())?
        }
        return Ok(Outcome::Done);
    }
    let document = document(&log, map.as_ref(), arguments)?;
    if let (Some(carrier), Some(out)) = (&carrier, &arguments.out)
        && let (Some(found), Some(failures_max)) = (document.act_threshold, arguments.failures_max)
    {
        let stored = StoredThreshold::of(found, log.rows.len(), failures_max, THRESHOLD_RISK, &carrier.map);
        carrier.write(&stored, out)?;
    }
    if globals.json {
        output::print_json(&document)?;
    } else {
        output::print(&text(&document))?;
    }
    Ok(Outcome::Done)
}

fn document(log: &Log, map: Option<&RecalibrationMap>, arguments: &CalibrateArguments) -> anyhow::Result<Document> {
    let rows = &log.rows;
    let outcomes: Vec<Observed> = rows.iter().map(Row::outcome).collect();
    let placed = rows.iter().filter_map(|it| Some((it.cell.clone()?, it.outcome())));
    let placed: Vec<(Cell, Observed)> = placed.collect();
    let rollouts = rows.iter().filter(|it| !it.fidelity.is_empty());
    let rollouts = rollouts.map(|it| RolloutTruth { cluster: it.cluster, shares: it.fidelity.clone() });
    let resamples = (OUTCOMES_DRAWN_MAX / outcomes.len().max(1)).clamp(200, Bootstrap::REPORT.resamples);
    let bootstrap = Bootstrap { resamples, ..Bootstrap::REPORT };
    // What is acted on are estimates.
    let estimates = map.map_or_else(|| outcomes.clone(), |it| it.applied(&outcomes));
    let bound = |rate| FailureBound::OfFollowed { rate, risk: THRESHOLD_RISK };
    let act_threshold = arguments.failures_max.map(|rate| act_threshold(&estimates, bound(rate), bootstrap.seed));
    let fitted = arguments.fit.as_deref().map(|it| mapped::fitted(&outcomes, arguments.family, it)).transpose()?;
    Ok(Document {
        map: fitted.or_else(|| map.map(|it| mapped::applied(&outcomes, it))),
        metrics: Metrics::of(&outcomes),
        smooth_ece: smooth_ece(&outcomes),
        n_pending: log.n_pending,
        n_duplicates: log.n_duplicates,
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

fn text(document: &Document) -> String {
    let Document { metrics, intervals, reliability_curve, map, .. } = document;
    let mut text = verdict(metrics, &intervals.metrics) + "\n\n";
    let after = map.as_ref().and_then(|it| it.metrics.as_ref()).map(Metrics::values);
    let mut rows = vec![vec!["metric".to_owned(), "value".into(), "95 % interval".into()]];
    if after.is_some() {
        rows[0].push("after the map".into());
    }
    let values = metrics.values().into_iter().zip(intervals.metrics.values());
    for (index, (name, (value, interval))) in Metrics::NAMES.iter().zip(values).enumerate() {
        let mut row = vec![(*name).to_owned(), number(value), range(interval)];
        row.extend(after.map(|it| number(it[index])));
        rows.push(row);
    }
    rows.push(vec!["smooth_ece".to_owned(), number(document.smooth_ece), range(intervals.smooth_ece)]);
    text += &output::columns(&rows);
    text += &by_chance(&document.if_calibrated);
    text += &curve(reliability_curve);
    text += &details(document);
    text += &map.as_ref().map(Mapped::text).unwrap_or_default();
    text += &replay::left_out(document.n_pending, document.n_duplicates);
    text
}

fn curve(bins: &[ReliabilityBin]) -> String {
    if bins.is_empty() {
        return String::new();
    }
    let mut rows = vec![["stated", "observed", "95 % band", "n"].map(str::to_owned).to_vec()];
    for bin in bins {
        let band = bin.band.map_or_else(|| "not defined".into(), |it| format!("{:.2} to {:.2}", it.low, it.high));
        let (stated, observed) = (bin.probability_mean, bin.observed);
        rows.push(vec![format!("{stated:.2}"), format!("{observed:.2}"), band, bin.n.to_string()]);
    }
    "\n".to_owned() + &output::columns(&rows)
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
    if told.is_empty() { String::new() } else { format!("if calibrated, by chance alone: {}\n", told.join("; ")) }
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
    value.map_or_else(|| "not defined".into(), |it| format!("{it:.4}"))
}

fn range(interval: Option<Interval>) -> String {
    interval.map_or_else(|| "not defined".into(), |it| format!("{:.4} to {:.4}", it.low, it.high))
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
