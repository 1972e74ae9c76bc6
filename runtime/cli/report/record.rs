//! What a demo run measured, as `report.json` holds it. Numbers only: knows neither page nor table.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A measured number and its two-sided 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// What a policy's steps look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StepFormat {
    /// An action and nothing else.
    Plain,
    /// Rollout, stated probability, then the action.
    Foresight,
}

/// Agreement of the estimates, which the recalibration map makes of what was stated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EstimateMetrics {
    pub(crate) brier: Option<Measured>,
    pub(crate) brier_skill: Option<Measured>,
    pub(crate) auroc: Option<Measured>,
    pub(crate) signed_gap: Option<Measured>,
}

/// One point of a reliability curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReliabilityPoint {
    /// Mean probability that was stated.
    pub(crate) stated_mean: f64,
    /// Share of successes.
    pub(crate) observed: f64,
    /// 95 % band of the share.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Episodes.
    pub(crate) n: usize,
}

/// One policy in one environment, on held-out tasks. Shares, rates and probabilities are fractions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    /// `base`, `WM-AMT`, `FE-SFT`, `FC-RL`, or the format of a file such as `Q4_K_M`.
    pub(crate) policy: String,
    pub(crate) environment: String,
    /// Episodes.
    pub(crate) n: usize,
    pub(crate) format: StepFormat,
    /// Share of steps that parse as the format.
    pub(crate) adherence: Option<Measured>,
    /// Share of imagined states that came true, by horizon from 1; `None` where nothing was imagined.
    pub(crate) fidelity: Vec<Option<Measured>>,
    pub(crate) success: Measured,
    /// Share of successes among the episodes with a stated probability.
    pub(crate) base_rate: f64,
    pub(crate) brier: Option<Measured>,
    /// Brier score of always saying the base rate.
    pub(crate) brier_constant: Option<f64>,
    /// `1 - brier / brier_constant`.
    pub(crate) brier_skill: Option<Measured>,
    pub(crate) auroc: Option<Measured>,
    /// Mean stated probability less base rate; positive is overconfident.
    pub(crate) signed_gap: Option<Measured>,
    /// After the policy's own recalibration map.
    pub(crate) estimate: Option<EstimateMetrics>,
    pub(crate) reliability: Vec<ReliabilityPoint>,
    /// Of the evaluation, all episodes at once.
    pub(crate) tokens_per_s: f64,
    /// Of the file on disk; `None` for a policy that is not one file.
    pub(crate) file_bytes: Option<u64>,
}

/// One judgement of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GateRun {
    /// The file judged.
    pub(crate) candidate: String,
    /// What it was judged against.
    pub(crate) reference: String,
    pub(crate) environment: String,
    /// `fsq_calibrate::gates::Report`, whole.
    pub(crate) report: Value,
    /// `pass`, `fail` or `inconclusive`.
    pub(crate) verdict: String,
}

/// The training loss of one batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Loss {
    pub(crate) stage: String,
    pub(crate) step: u64,
    pub(crate) value: f64,
}

/// What one step of FC-RL looked like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RlStep {
    pub(crate) step: u64,
    pub(crate) success: f64,
    pub(crate) stated_mean: Option<f64>,
    pub(crate) brier: Option<f64>,
    pub(crate) adherence: Option<f64>,
    /// Of the distribution over the stated levels, in nats.
    pub(crate) entropy: Option<f64>,
    /// Signs of collapse, in words.
    pub(crate) alarms: Vec<String>,
}

/// How long a stage took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageSeconds {
    pub(crate) stage: String,
    pub(crate) seconds: f64,
}

/// One way through the stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arm {
    /// `wm-amt` or `sft-only`.
    pub(crate) name: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) gates: Vec<GateRun>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) rl: Vec<RlStep>,
    pub(crate) seconds_per_stage: Vec<StageSeconds>,
}

/// Where it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
}

/// A request to the running server, its answer, and what then happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Served {
    pub(crate) request: Value,
    pub(crate) response: Value,
    /// Which of the plans was followed, from 0: the chosen one, or the first where the server chose none.
    pub(crate) chosen: usize,
    /// What then happened in the environment, in words.
    pub(crate) outcome_text: String,
    /// Whether it succeeded.
    pub(crate) success: bool,
}

/// Everything that one run of the demo found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DemoReport {
    pub(crate) tool_version: String,
    pub(crate) seed: u64,
    pub(crate) quick: bool,
    /// What makes these numbers again.
    pub(crate) command: String,
    pub(crate) machine: Machine,
    /// When the run began, as text.
    pub(crate) started: String,
    pub(crate) arms: Vec<Arm>,
    pub(crate) served: Option<Served>,
    pub(crate) notes: Vec<String>,
}

/// The policies that are not a file's format, in the order of training.
pub(crate) const STAGES: [&str; 4] = ["base", "WM-AMT", "FE-SFT", "FC-RL"];

impl DemoReport {
    /// The arm that the report is about: the one with world-model training, else the first.
    pub(crate) fn main_arm(&self) -> Option<&Arm> {
        self.arms.iter().find(|it| it.name == "wm-amt").or(self.arms.first())
    }

    /// The arm it is compared with, if both were run.
    pub(crate) fn other_arm(&self) -> Option<&Arm> {
        let main = self.main_arm()?;
        self.arms.iter().find(|it| it.name != main.name)
    }
}

impl Arm {
    /// The environments, in the order of their first rows.
    pub(crate) fn environments(&self) -> Vec<&str> {
        let mut environments = Vec::new();
        for row in &self.rows {
            if !environments.contains(&row.environment.as_str()) {
                environments.push(&row.environment);
            }
        }
        environments
    }

    /// The rows of one environment.
    pub(crate) fn rows_in(&self, environment: &str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |it| it.environment == environment)
    }

    /// The row of a policy in an environment.
    pub(crate) fn row(&self, policy: &str, environment: &str) -> Option<&Row> {
        self.rows_in(environment).find(|it| it.policy == policy)
    }
}

impl Row {
    /// Fidelity at the longest horizon that the environment is scored at.
    pub(crate) fn fidelity_last(&self) -> Option<Measured> {
        self.fidelity.last().copied().flatten()
    }

    /// Whether this is a quantized file.
    pub(crate) fn is_file(&self) -> bool {
        !STAGES.contains(&self.policy.as_str())
    }
}
