//! What a recalibration map makes of the outcomes: fitted here, or read from a file, and judged on outcomes that it
//! has not seen.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use fsq_calibrate::intervals::{Interval, mean_clustered};
use fsq_calibrate::metrics::{Metrics, Outcome as Observed};
use fsq_calibrate::recalibration::{Family, RecalibrationMap, cross_fitted};
use serde::Serialize;
use serde_json::Value;

use super::CONFIDENCE;
use crate::failure::Refusal;
use crate::output;

/// Parts of the outcomes, each estimated by a map fitted on the others.
const FOLDS: usize = 5;

/// A map, and the metrics of its estimates beside those of what was stated.
#[derive(Serialize)]
pub(super) struct Mapped {
    /// The metadata that carries the map in a GGUF file.
    pub(super) metadata: serde_json::Map<String, Value>,
    /// Which outcomes the estimates below are of.
    measured_on: MeasuredOn,
    /// Of the estimates; `null` where there are too few outcomes to hold some out.
    pub(super) metrics: Option<Metrics>,
    /// Around the Brier score and the signed gap of the estimates, 95 %, by cluster.
    brier_interval: Option<Interval>,
    signed_gap_interval: Option<Interval>,
    /// How much the Brier score rises from what was stated to the estimates, by pairs; a fall is negative.
    brier_rise: Option<f64>,
    brier_rise_interval: Option<Interval>,
}

/// What the estimates were measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum MeasuredOn {
    /// Every outcome, each by a map of the same family that was fitted without its part.
    PartsHeldOut,
    /// Outcomes on which the map was not fitted.
    OtherOutcomes,
    /// The outcomes on which it was fitted.
    SameOutcomes,
}

/// Fits a map on all outcomes and writes it.
pub(super) fn fitted(outcomes: &[Observed], family: Option<Family>, path: &Path) -> anyhow::Result<Mapped> {
    let map = match family {
        Some(family) => RecalibrationMap::fit_family(family, outcomes)?,
        None => RecalibrationMap::fit(outcomes)?,
    };
    let metadata = metadata(&map);
    output::write_whole(path, (serde_json::to_string_pretty(&metadata)? + "\n").as_bytes())?;
    let estimates = cross_fitted(map.family(), outcomes, FOLDS, 0).ok();
    Ok(Mapped::of(metadata, MeasuredOn::PartsHeldOut, outcomes, estimates.as_deref()))
}

/// Applies a map that was fitted before.
pub(super) fn applied(outcomes: &[Observed], map: &RecalibrationMap) -> Mapped {
    let same = map.was_fitted_on(outcomes);
    let measured_on = if same { MeasuredOn::SameOutcomes } else { MeasuredOn::OtherOutcomes };
    Mapped::of(metadata(map), measured_on, outcomes, Some(&map.applied(outcomes)))
}

/// Reads a map that `--fit` wrote.
pub(super) fn map_of(path: &Path) -> anyhow::Result<RecalibrationMap> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| shown.to_string())?;
    let wrong = |found: String| Refusal::new(format!("{shown}: expected a map that `--fit` wrote, found {found}"));
    let pairs: HashMap<String, String> = serde_json::from_str(&text).map_err(|it| wrong(it.to_string()))?;
    Ok(RecalibrationMap::from_pairs(pairs)?.ok_or_else(|| wrong("no map".into()))?)
}

/// The metadata that carries a map.
pub(super) fn metadata(map: &RecalibrationMap) -> serde_json::Map<String, Value> {
    map.to_pairs().into_iter().map(|(key, value)| (key, value.into())).collect()
}

impl Mapped {
    fn of(
        metadata: serde_json::Map<String, Value>,
        measured_on: MeasuredOn,
        outcomes: &[Observed],
        estimates: Option<&[Observed]>,
    ) -> Self {
        let gap = |it: &Observed| it.probability() - f64::from(u8::from(it.success()));
        let error = |it: &Observed| gap(it).powi(2);
        let mean = |of: &dyn Fn(&Observed) -> f64| {
            let values: Vec<(u64, f64)> = estimates?.iter().map(|it| (it.cluster(), of(it))).collect();
            mean_clustered(&values, CONFIDENCE)
        };
        let rises = |estimates: &[Observed]| -> Vec<(u64, f64)> {
            let pairs = outcomes.iter().zip(estimates);
            pairs.map(|(stated, estimate)| (stated.cluster(), error(estimate) - error(stated))).collect()
        };
        let metrics = estimates.map(Metrics::of);
        let stated = Metrics::of(outcomes).brier;
        Self {
            metadata,
            measured_on,
            brier_interval: mean(&error),
            signed_gap_interval: mean(&gap),
            brier_rise: metrics.as_ref().and_then(|it| it.brier).zip(stated).map(|(after, before)| after - before),
            brier_rise_interval: estimates.and_then(|it| mean_clustered(&rises(it), CONFIDENCE)),
            metrics,
        }
    }

    /// The map, what it did, and on which outcomes.
    pub(super) fn text(&self) -> String {
        let family = self.metadata.get("fsq.recalibration.family").and_then(Value::as_str).unwrap_or("?");
        let on = match self.measured_on {
            MeasuredOn::PartsHeldOut if self.metrics.is_none() => "too few outcomes to hold some out".to_owned(),
            MeasuredOn::PartsHeldOut => format!("each outcome by a map fitted without its part, one of {FOLDS}"),
            MeasuredOn::OtherOutcomes => "on other outcomes than it was fitted on".to_owned(),
            MeasuredOn::SameOutcomes => "on the outcomes that it was fitted on, so better than on new ones".to_owned(),
        };
        let mut text = format!("\nafter a map of the family `{family}`: {on}\n");
        if let (Some(rise), Some(interval)) = (self.brier_rise, self.brier_rise_interval) {
            text += &format!("its Brier score is {rise:+.4}, {:+.4} to {:+.4}\n", interval.low, interval.high);
        }
        let gap = self.metrics.as_ref().and_then(|it| it.signed_gap);
        if let (Some(gap), Some(interval)) = (gap, self.signed_gap_interval) {
            text += &format!("its signed gap is {gap:+.4}, {:+.4} to {:+.4}\n", interval.low, interval.high);
        }
        text
    }
}
