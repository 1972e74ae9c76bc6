//! One answer read as foresight: what it states, what such statements have meant, and the name of the prediction.

use fsq_calibrate::foresight::{self, Foresight, ForesightError, TAGS};
use fsq_calibrate::gates::Confidence;
use fsq_calibrate::intervals::Interval;
use fsq_calibrate::recalibration::RecalibrationMap;
use fsq_calibrate::stored::StoredThreshold;
use fsq_calibrate::{Estimate, Stated};
use serde_json::{Map, Value, json};

use crate::server::Shared;
use crate::store::PredictionId;
use crate::worker::Ending;

/// What statements mean now in one environment, or over all of them.
#[derive(Clone, Debug)]
pub(crate) struct Meaning {
    pub(crate) map: RecalibrationMap,
    /// From which estimate on the file says that plans may be followed, if it says so.
    pub(crate) threshold: Option<StoredThreshold>,
    /// Whether nothing may be followed on the strength of its estimate.
    is_void: bool,
}

impl Meaning {
    /// In `environment`, whose confidence is the gates' word on it.
    pub(crate) fn of(shared: &Shared, environment: Option<&str>, confidence: Option<Confidence>) -> Self {
        let is_alarmed = shared.drift.seen(environment).is_some_and(|it| it.is_alarmed);
        Self {
            map: shared.drift.map(environment),
            threshold: shared.facts.thresholds.get(&environment.map(str::to_owned)).cloned(),
            is_void: is_alarmed || confidence == Some(Confidence::Unusable),
        }
    }

    /// Over all environments, for answers that name none.
    pub(crate) fn overall(shared: &Shared) -> Self {
        Self::of(shared, None, shared.facts.confidence)
    }

    /// Whether a plan is not to be followed; `None` where nobody said from which estimate on it may be.
    fn abstains(&self, estimate: Estimate) -> Option<bool> {
        let by_threshold = self.threshold.as_ref().map(|it| it.abstains(estimate, &self.map));
        if self.is_void { Some(true) } else { by_threshold }
    }
}

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) text: String,
    pub(crate) ending: Ending,
    pub(crate) foresight: Result<Foresight, ForesightError>,
    /// The mean over the policy's own distribution at the place of the confidence, with what it has meant.
    pub(crate) reading: Option<(Stated, Estimate)>,
    /// Between which probabilities the estimate lies, where the map knows that.
    interval: Option<Interval>,
    /// Whether it is not to be followed, where something says so.
    pub(crate) abstains: Option<bool>,
    pub(crate) prediction: Option<PredictionId>,
}

impl Plan {
    pub(crate) fn new(text: String, ending: Ending, meaning: &Meaning) -> Self {
        let foresight = foresight::parse(&text);
        let expectation = ending.stated.as_ref().map(|it| it.expectation());
        let reading = expectation.filter(|_| foresight.is_ok()).map(|it| (it, meaning.map.apply(it)));
        let interval = reading.and_then(|it| meaning.map.interval(it.0));
        let abstains = reading.and_then(|it| meaning.abstains(it.1));
        Self { text, ending, foresight, reading, interval, abstains, prediction: None }
    }

    /// `stop`, or `length` when the answer was cut off.
    pub(crate) fn finish_reason(&self) -> &'static str {
        if self.ending.is_complete { "stop" } else { "length" }
    }

    /// The action, where there is one to be taken.
    pub(crate) fn action(&self) -> Option<&str> {
        self.foresight.as_ref().ok().map(|it| it.action.as_str())
    }

    /// The fields of a plan; where it is malformed, all of them are null but `error`.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let parsed = self.foresight.as_ref().ok();
        let value = json!({
            "rollout": parsed.map(|it| &it.imaginary),
            "keyword": parsed.map(|it| &it.keyword),
            "analysis": parsed.map(|it| &it.analysis),
            "stated": parsed.map(|it| it.stated),
            "stated_expectation": self.reading.map(|it| it.0),
            "estimate": self.reading.map(|it| it.1),
            "estimate_interval": self.interval,
            "abstain": self.abstains,
            "think": parsed.map(|it| &it.think),
            "action": parsed.map(|it| &it.action),
            "prediction_id": self.prediction.map(|it| it.to_string()),
            "error": self.foresight.as_ref().err().map(ToString::to_string),
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// The extension object of a chat answer; `None` for an answer that is not meant as foresight.
    pub(crate) fn extension(&self) -> Option<Value> {
        let is_meant = self.foresight.is_ok() || TAGS.iter().any(|it| self.text.contains(it));
        is_meant.then(|| Value::Object(self.fields()))
    }
}
