//! One answer read as foresight: what it states, what such statements have meant, and the name of the prediction.

use fsq_calibrate::foresight::{self, Foresight, ForesightError, TAGS};
use fsq_calibrate::recalibration::RecalibrationMap;
use fsq_calibrate::{Estimate, Stated};
use serde_json::{Map, Value, json};

use crate::store::PredictionId;
use crate::worker::Ending;

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) text: String,
    pub(crate) ending: Ending,
    pub(crate) foresight: Result<Foresight, ForesightError>,
    /// The mean over the policy's own distribution at the place of the confidence, with what it has meant.
    pub(crate) reading: Option<(Stated, Estimate)>,
    pub(crate) prediction: Option<PredictionId>,
}

impl Plan {
    pub(crate) fn new(text: String, ending: Ending, recalibration: &RecalibrationMap) -> Self {
        let foresight = foresight::parse(&text);
        let expectation = ending.stated.as_ref().map(|it| it.expectation());
        let reading = expectation.filter(|_| foresight.is_ok()).map(|it| (it, recalibration.apply(it)));
        Self { text, ending, foresight, reading, prediction: None }
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
