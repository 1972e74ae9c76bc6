//! What was played, step by step, and its comparison with what was imagined.

use std::ops::Range;

use fsq_calibrate::foresight::Foresight;
use fsq_calibrate::gates::EpisodeRecord;
use fsq_calibrate::metrics::Outcome;
use fsq_calibrate::stated::{Stated, StatedDistribution};
use fsq_model::TokenId;

/// What the policy writes at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An action alone.
    Plain,
    /// Rollout, success estimate, action.
    Foresight,
}

/// One turn of the policy.
#[derive(Clone, Debug)]
pub struct PlayedStep {
    /// What it was shown.
    pub observation: String,
    /// What it wrote, without its stop token.
    pub text: String,
    /// Where its tokens lie in [`Episode::tokens`], the stop token included.
    pub tokens: Range<usize>,
    /// Log-probability of each of them that was sampled, in order; the opening that a turn was given was not.
    pub log_probabilities: Vec<f32>,
    /// Where the confidence's first token lies in [`Episode::tokens`].
    pub confidence_at: Option<usize>,
    /// The foresight, where the text parses as such.
    pub foresight: Option<Foresight>,
    /// What the policy states there, as a distribution over the grid.
    pub distribution: Option<StatedDistribution>,
    /// The action, where the text parses and the world allowed it.
    pub action: Option<String>,
    /// Why the step ended the episode: a malformed text or an illegal action.
    pub fault: Option<String>,
    /// For horizons 1, 2, ..: whether the imagined state was the true one. `None` where the truth ends before.
    pub fidelity: Vec<Option<bool>>,
}

/// One episode.
#[derive(Clone, Debug)]
pub struct Episode {
    /// The task.
    pub task_id: u64,
    /// The task's difficulty label.
    pub difficulty: String,
    /// The whole conversation.
    pub tokens: Vec<TokenId>,
    /// The policy's turns.
    pub steps: Vec<PlayedStep>,
    /// What the world said at the end.
    pub last_observation: String,
    /// Whether the policy was shown all that success needed; see [`fsq_environments::Environment::has_found_all`].
    pub found_all: bool,
    /// Whether the verifier accepted.
    pub success: bool,
}

impl PlayedStep {
    /// The stated probability, read as an expectation.
    #[must_use]
    pub fn stated(&self) -> Option<Stated> {
        self.distribution.as_ref().map(StatedDistribution::expectation)
    }

    /// Whether the text kept to its format.
    #[must_use]
    pub fn well_formed(&self, format: Format) -> bool {
        match format {
            Format::Plain => self.action.is_some() || self.fault.as_deref().is_some_and(|it| it.starts_with("illegal")),
            Format::Foresight => self.foresight.is_some(),
        }
    }
}

impl Episode {
    /// The first step's stated probability with the outcome, as a forecast to be scored.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        let stated = self.steps.first()?.stated()?;
        Some(Outcome::of_stated(stated, self.success, self.task_id))
    }

    /// Fidelity of the first step's rollout at horizons 1 to `horizon`; a malformed step imagined nothing true.
    ///
    /// Counted over every episode whose policy could have reached the horizon: an episode that a malformed or illegal
    /// step ended counts as wrong there, one that the world ended properly does not count.
    #[must_use]
    pub fn fidelity(&self, horizon: usize) -> Vec<Option<bool>> {
        let first = self.steps.first();
        let broken = self.steps.iter().any(|it| it.fault.is_some());
        let at = |h: usize| match first.and_then(|it| it.fidelity.get(h).copied().flatten()) {
            Some(true) => Some(true),
            Some(false) => Some(false),
            None if broken => Some(false),
            None => None,
        };
        (0..horizon).map(at).collect()
    }

    /// What the gates read.
    #[must_use]
    pub fn record(&self, format: Format, horizon: usize) -> EpisodeRecord {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        EpisodeRecord {
            task: self.task_id,
            success: self.success,
            stated: self.steps.first().and_then(PlayedStep::stated),
            fidelity: self.fidelity(horizon).into_iter().map(|it| it.map(|it| f64::from(u8::from(it)))).collect(),
            steps: count(self.steps.len()),
            steps_parsed: count(self.steps.iter().filter(|it| it.well_formed(format)).count()),
            tokens: count(self.steps.iter().map(|it| it.tokens.len()).sum()),
        }
    }
}

/// The records of many episodes.
#[must_use]
pub fn records(episodes: &[Episode], format: Format, horizon: usize) -> Vec<EpisodeRecord> {
    episodes.iter().map(|it| it.record(format, horizon)).collect()
}

/// The forecasts of many episodes, where one could be read.
#[must_use]
pub fn evaluation(episodes: &[Episode]) -> Vec<Outcome> {
    episodes.iter().filter_map(Episode::outcome).collect()
}
