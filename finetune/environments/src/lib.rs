//! Worlds with exact transitions, exact verifiers and logging policies of mixed skill.
//!
//! A world knows its tasks, states and what follows from an action; it knows nothing of policies,
//! prompts' special tokens or training. The same seed always gives the same tasks.

pub mod any;
pub mod config;
pub mod conformance;
pub mod countdown;
pub mod dagmath;
pub mod dochop;
pub mod harder;
mod index;
pub mod process;
pub mod search;
pub mod slipgrid;

use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use any::AnyWorld;
pub use config::{EnvironmentConfig, OpenError};
pub use countdown::Countdown;
pub use dagmath::DagMath;
pub use dochop::DocHop;
pub use harder::{Harder, HarderTasks};
pub use process::{ProcessError, ProcessWorld};
pub use search::SearchWorld;
pub use slipgrid::SlipGrid;

/// Which tasks: the splits share no instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For training.
    Train,
    /// For fitting recalibration maps.
    Calibration,
    /// For judging.
    Test,
}

/// How an episode ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The verifier accepts.
    Success,
    /// The verifier refuses, or nothing legal is left.
    Failure,
}

/// An action that the world does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("illegal action `{action}`: {reason}")]
pub struct IllegalAction {
    /// As written.
    pub action: String,
    /// Why not.
    pub reason: String,
}

/// How well a logging policy plays: the chance that it departs from the best action it knows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Skill {
    /// From 0 (always the best known action) to 1 (a blunderer).
    pub epsilon: f64,
}

/// A world.
pub trait Environment: Send + Sync {
    /// One instance.
    type Task: Clone + Send + Sync;
    /// Everything that the transition needs beside the task.
    type State: Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync + std::fmt::Debug;

    /// As the user types it.
    const NAME: &'static str;
    /// Longest rollout that is imagined and scored, in steps.
    const HORIZON: usize;
    /// Most steps that an episode can have.
    const STEPS_MAX: usize;
    /// The logging policies: each skill with its weight.
    const LOGGING: &'static [(Skill, f64)];

    /// As reports name it.
    fn name(&self) -> &str {
        Self::NAME
    }
    /// Longest rollout that is imagined and scored, in steps; at most [`Environment::HORIZON`] but in a user's world.
    fn horizon(&self) -> usize {
        Self::HORIZON
    }
    /// Most steps that an episode can have.
    fn steps_max(&self) -> usize {
        Self::STEPS_MAX
    }
    /// Whether the world still says what is so.
    ///
    /// # Errors
    /// What made a user's program unfit to answer. Everything that was asked of it since then is void; our own worlds
    /// never fail.
    fn check(&self) -> Result<(), ProcessError> {
        Ok(())
    }

    /// `count` tasks of a split; the same arguments give the same tasks.
    fn tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Self::Task>;
    /// A number that tells tasks apart, the same in every run.
    fn task_id(&self, task: &Self::Task) -> u64;
    /// Where the episode begins.
    fn start(&self, task: &Self::Task) -> Self::State;
    /// What the policy is shown.
    fn observe(&self, task: &Self::Task, state: &Self::State) -> String;
    /// The actions that [`Environment::step`] takes: all of them where there are not too many to list.
    fn legal_actions(&self, task: &Self::Task, state: &Self::State) -> Vec<String>;
    /// The next state: a pure function.
    ///
    /// # Errors
    /// [`IllegalAction`] when the action does not parse or is not allowed here.
    fn step(&self, task: &Self::Task, state: &Self::State, action: &str) -> Result<Self::State, IllegalAction>;
    /// Whether and how the episode is over.
    fn end(&self, task: &Self::Task, state: &Self::State) -> Option<End>;
    /// What a logging policy does.
    fn logged_action(&self, task: &Self::Task, state: &Self::State, skill: Skill, rng: &mut ChaCha8Rng) -> String;
    /// The chance that a logging policy succeeds which first takes this action and then plays on, where it can be
    /// computed; `None` where it must be estimated by continuations.
    fn exact_success(&self, _task: &Self::Task, _state: &Self::State, _action: &str, _skill: Skill) -> Option<f64> {
        None
    }
    /// The future that a logged block imagines after an action, where chance is at work in the true one; `None` where
    /// the true one holds nothing that could not be known.
    fn expected_future(
        &self,
        _task: &Self::Task,
        _state: &Self::State,
        _action: &str,
    ) -> Option<Vec<(String, Self::State)>> {
        None
    }
    /// The lines of a rollout that imagines exactly this future: one line a step, no entity named that is not yet seen.
    fn lines(&self, task: &Self::Task, now: &Self::State, future: &[(String, Self::State)]) -> Vec<String>;
    /// The lines that a rollout imagined before this future is compared with. Where chance is at work they follow the
    /// imagined actions, as long as the first of them was taken.
    fn true_lines(
        &self,
        task: &Self::Task,
        now: &Self::State,
        future: &[(String, Self::State)],
        _imagined: &[String],
    ) -> Vec<String> {
        self.lines(task, now, future)
    }
    /// What the lines come down to: the words for `<keyword>` and for `<analysis>`.
    fn summary(&self, task: &Self::Task, now: &Self::State, future: &[(String, Self::State)]) -> (String, String);
    /// The part of a rollout line that fidelity compares: the state, not the action that led there.
    fn state_of_line<'a>(&self, line: &'a str) -> &'a str;
    /// Names that a rollout must not tell: those not yet seen by the policy.
    fn hidden_names(&self, task: &Self::Task, state: &Self::State) -> Vec<String>;
    /// Whether what the policy was shown so far names everything that success needs: only saying it is left. Worlds in
    /// which nothing is hidden say no.
    fn has_found_all(&self, _task: &Self::Task, _state: &Self::State) -> bool {
        false
    }
    /// A label by which results are split, such as the number of hops.
    fn difficulty(&self, task: &Self::Task) -> String;
}

/// Plays a logging policy from a state to the end.
///
/// Returns each action with the state that it led to.
pub fn play_logged<E: Environment>(
    world: &E,
    task: &E::Task,
    from: &E::State,
    skill: Skill,
    rng: &mut ChaCha8Rng,
) -> Vec<(String, E::State)> {
    let mut path = Vec::new();
    let mut state = from.clone();
    while world.end(task, &state).is_none() && path.len() < world.steps_max() {
        let action = world.logged_action(task, &state, skill, rng);
        let Ok(next) = world.step(task, &state, &action) else { break };
        state = next.clone();
        path.push((action, next));
    }
    path
}

/// Whether a path reached success.
pub fn succeeded<E: Environment>(world: &E, task: &E::Task, path: &[(String, E::State)]) -> bool {
    path.last().is_some_and(|(_, state)| world.end(task, state) == Some(End::Success))
}

/// The success label of an action and the state that it led to, in percent on the grid of five: the exact chance where
/// the world knows it, else `(k + 1) / (n + 2)` over `n` continuations by the same logging policy.
pub fn success_label<E: Environment>(
    world: &E,
    task: &E::Task,
    (before, action, state): (&E::State, &str, &E::State),
    skill: Skill,
    n: u32,
    rng: &mut ChaCha8Rng,
) -> u8 {
    if let Some(chance) = world.exact_success(task, before, action, skill) {
        return on_grid(100.0 * chance);
    }
    let mut successes = 0;
    for _ in 0..n {
        let won = match world.end(task, state) {
            Some(end) => end == End::Success,
            None => succeeded(world, task, &play_logged(world, task, state, skill, rng)),
        };
        successes += u32::from(won);
    }
    on_grid(100.0 * f64::from(successes + 1) / f64::from(n + 2))
}

/// A user's text in which nothing looks like the mark of a turn, since training text has such marks.
fn only_text(text: &str) -> String {
    text.replace("<|", "< |")
}

fn on_grid(percent: f64) -> u8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 20")]
    let level = (percent / 5.0).round() as u8;
    level * 5
}
