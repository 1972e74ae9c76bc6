//! FC-RL's recipe and its switches, each of which a study can turn.

use std::collections::BTreeMap;

use fsq_calibrate::alarms::HealthLimits;
use serde::{Deserialize, Serialize};

use crate::stages::Schedule;
use crate::stages::further::FurtherTasks;
use crate::text::Turns;
use crate::{LoraConfig, TrainError};

/// FC-RL's recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RlConfig {
    /// The adapter.
    pub lora: LoraConfig,
    /// Optimizer steps.
    pub steps: usize,
    /// Tasks of a step: Countdown, DocHop.
    pub tasks: [usize; 2],
    /// Episodes of each task.
    pub group: usize,
    /// Tasks of a step that are played greedily, once each, for the confidence: Countdown, DocHop.
    pub calibration_tasks: [usize; 2],
    /// What is played of further worlds: `dagmath`, `slipgrid`, and `own` for the run's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub further: BTreeMap<String, FurtherTasks>,
    /// Tokens of the longest turn; the longest that the format needs in our own worlds is about half of the default.
    #[serde(default = "turn_tokens")]
    pub turn_tokens: usize,
    /// Tokens of the longest conversation that is played.
    #[serde(default = "context_tokens")]
    pub context_tokens: usize,
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// Weight of the mean `(q − I)²` of the greedy episodes beside the mean surrogate of the sampled ones.
    pub confidence_weight: f32,
    /// Weight of fidelity in the reward.
    pub fidelity_weight: f32,
    /// Weight of the stated probability in the policy span's advantage.
    pub signal_weight: f32,
    /// Weight of a few FE-SFT traces in every step, which hold the format.
    pub format_weight: f32,
    /// What the policy's turns say.
    #[serde(default)]
    pub turns: Turns,
    /// What each token of a turn is rewarded for.
    #[serde(default)]
    pub advantages: Advantages,
    /// What advantages are divided by.
    #[serde(default)]
    pub scale: Scale,
    /// What trains the confidence token.
    #[serde(default)]
    pub confidence: ConfidenceSignal,
    /// Whether three alarmed steps in a row end the stage at its last healthy adapter; else they are only recorded.
    #[serde(default = "yes")]
    pub alarms_end: bool,
    /// When to sound an alarm.
    pub limits: HealthLimits,
}

fn turn_tokens() -> usize {
    96
}

fn context_tokens() -> usize {
    512
}

/// What each token of a turn is rewarded for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advantages {
    /// The world-model span for rollout and confidence, the policy span for outcome and confidence.
    #[default]
    Spans,
    /// All of them for the outcome alone: GRPO as it is known.
    Outcome,
}

/// What advantages are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Nothing; they are leave-one-out.
    #[default]
    None,
    /// Their group's standard deviation, as in GRPO's first form, which makes forecasts overconfident.
    Deviation,
}

/// What trains the confidence token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfidenceSignal {
    /// The exact gradient of `(q − I)²` in greedy episodes, and no advantage.
    #[default]
    Brier,
    /// Its span's advantage in sampled episodes, as for every other token; `q` is then the level that was written.
    Reward,
}

fn yes() -> bool {
    true
}

impl RlConfig {
    /// Whether the switches go together.
    ///
    /// # Errors
    /// [`TrainError::Config`] for the one that does not fit.
    pub fn check(&self) -> Result<(), TrainError> {
        let refuse = |field: &str, expected: &str, found: String| {
            Err(TrainError::Config { field: format!("fc-rl.{field}"), expected: expected.into(), found })
        };
        let beyond = self.further.values().map(|it| it.calibration_tasks);
        let reads_greedy = self.calibration_tasks.into_iter().chain(beyond).any(|it| it > 0);
        let plays = self.tasks.into_iter().chain(self.further.values().map(|it| it.tasks)).any(|it| it > 0);
        if !plays {
            return refuse("tasks", "some, of any world", "none".into());
        }
        if self.turns == Turns::Plain && self.advantages == Advantages::Spans {
            return refuse("advantages", "`outcome`, as plain turns have one span", "`spans`".into());
        }
        match (self.advantages, self.confidence) {
            (Advantages::Outcome, ConfidenceSignal::Brier) => {
                refuse("confidence", "`reward` where advantages are of the outcome alone", "`brier`".into())
            }
            (_, ConfidenceSignal::Brier) if !reads_greedy => {
                refuse("calibration_tasks", "some, as the confidence learns from them", "none".into())
            }
            (_, ConfidenceSignal::Reward) if self.confidence_weight != 0.0 => {
                refuse("confidence_weight", "0 where the confidence is rewarded", self.confidence_weight.to_string())
            }
            _ => Ok(()),
        }
    }
}
