//! What each stage reads, as text: one episode record, several renderings.
//!
//! Plain episodes for the base, free-text world-model blocks for WM-AMT, the tagged format for FE-SFT. A block is
//! rendered from the true future and never names what the policy has not seen.

mod blocks;
mod drills;
mod told;

use fsq_environments::{Environment, Skill, play_logged, success_label};
use fsq_episodes::Format;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::vocabulary::{ASSISTANT, BOS, END, USER};
use crate::{Sequence, TrainError, Vocabulary};

pub use blocks::{Imagined, as_foresight, keeps_to_grammar, prose, tagged};
pub use drills::{drill, recall, word_list};
pub use told::{Told, told};

/// Continuations behind each success label.
const LABEL_CONTINUATIONS: u32 = 16;

/// Words that say nothing: the base learns that anything may stand between what it reads and what it does.
const FILLER: [&str; 16] =
    ["well", "hm", "let", "me", "see", "now", "so", "ok", "look", "at", "this", "here", "and", "think", "about", "it"];

/// Who a piece of text comes from, and what a stage weighs it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The task: drawn at random, so nothing in it can be predicted.
    Task,
    /// What the environment answers to an action.
    Answer,
    /// An imagined action.
    Plan,
    /// The words around an imagined future.
    WorldModel,
    /// An imagined state, and what is concluded from it.
    State,
    /// The success estimate's number.
    Odds,
    /// Thought and action.
    Policy,
    /// Thought and action behind a block whose first step they repeat.
    Settled,
}

/// What the policy's turns of a trace say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turns {
    /// The tagged format.
    #[default]
    Foresight,
    /// The tagged format with a confidence that says nothing: it always reads [`SILENT_PERCENT`].
    States,
    /// The action alone.
    Plain,
}

/// The confidence of turns that state none.
const SILENT_PERCENT: u8 = 50;

impl Turns {
    /// The format as which such turns are read.
    #[must_use]
    pub fn format(self) -> Format {
        match self {
            Self::Foresight | Self::States => Format::Foresight,
            Self::Plain => Format::Plain,
        }
    }
}

/// Text with its origin, in order.
pub type Script = Vec<(Piece, String)>;

/// One logged step.
pub struct LoggedStep<S> {
    /// Before the action.
    pub state: S,
    /// What was done.
    pub action: String,
    /// Success of the logging policy from the state after the action, in percent on the grid.
    pub label_percent: u8,
}

/// One logged episode.
pub struct Logged<E: Environment> {
    /// The instance.
    pub task: E::Task,
    /// The logging policy's.
    pub skill: Skill,
    /// Its steps, in order.
    pub steps: Vec<LoggedStep<E::State>>,
    /// The state at the end.
    pub last: E::State,
}

impl<E: Environment> Logged<E> {
    /// Plays an episode with a skill drawn from the world's logging mix, or from `skills` where given.
    pub fn play(world: &E, task: E::Task, skills: &[(Skill, f64)], labels: bool, rng: &mut ChaCha8Rng) -> Self {
        let skill = skills.choose_weighted(rng, |it| it.1).map_or(Skill { epsilon: 1.0 }, |it| it.0);
        let mut state = world.start(&task);
        let path = play_logged(world, &task, &state, skill, rng);
        let mut steps = Vec::with_capacity(path.len());
        for (action, next) in path {
            let made = (&state, action.as_str(), &next);
            let label_percent =
                if labels { success_label(world, &task, made, skill, LABEL_CONTINUATIONS, rng) } else { 0 };
            steps.push(LoggedStep { state, action, label_percent });
            state = next;
        }
        Self { task, skill, steps, last: state }
    }

    /// Actions and the states that they led to, from step `from` on.
    #[must_use]
    pub fn future(&self, from: usize) -> Vec<(String, E::State)> {
        let after = |index: usize| self.steps.get(index + 1).map_or(&self.last, |it| &it.state).clone();
        (from..self.steps.len()).map(|it| (self.steps[it].action.clone(), after(it))).collect()
    }

    /// The actions from a step on, as far as the world's horizon.
    #[must_use]
    pub fn actions(&self, from: usize) -> Vec<String> {
        self.steps[from..].iter().take(E::HORIZON).map(|it| it.action.clone()).collect()
    }

    /// What the block at a step imagines: the true future as far as it can be known, and the world's horizon.
    #[must_use]
    pub fn imagined(&self, world: &E, index: usize) -> Imagined {
        let LoggedStep { state, action, .. } = &self.steps[index];
        let mut future = world.expected_future(&self.task, state, action).unwrap_or_else(|| self.future(index));
        future.truncate(E::HORIZON);
        let lines = world.lines(&self.task, state, &future);
        // The verb is what stands between the action and the state of a line.
        let state_of = lines.first().map_or("", |it| world.state_of_line(it));
        let before = lines.first().and_then(|it| it.strip_suffix(state_of)).unwrap_or("");
        let verb = before.trim_end().rsplit(' ').next().map_or(String::new(), |it| format!(" {it} "));
        Imagined {
            verb,
            summary: world.summary(&self.task, state, &future),
            percent: self.steps[index].label_percent,
            lines,
        }
    }

    /// The episode as a trace to be fine-tuned on.
    #[must_use]
    pub fn trace(&self, world: &E, turns: Turns) -> Script {
        match turns {
            Turns::Foresight => self.tagged_script(world, |imagined| imagined),
            Turns::States => self.tagged_script(world, |imagined| Imagined { percent: SILENT_PERCENT, ..imagined }),
            Turns::Plain => self.script(world, |_| Vec::new()),
        }
    }

    /// Every turn in the foresight format.
    fn tagged_script(&self, world: &E, stated: impl Fn(Imagined) -> Imagined) -> Script {
        let mut script = vec![(Piece::Task, BOS.to_string())];
        for (index, step) in self.steps.iter().enumerate() {
            let origin = if index == 0 { Piece::Task } else { Piece::Answer };
            script.push((origin, format!("{USER}{}{ASSISTANT}", world.observe(&self.task, &step.state))));
            script.extend(tagged(&stated(self.imagined(world, index)), &step.action));
        }
        script.push((Piece::Answer, format!("{USER}{}{END}", world.observe(&self.task, &self.last))));
        script
    }

    /// The episode as a bare log: what was seen first, then a line for each action and what it led to.
    #[must_use]
    pub fn log_script(&self, world: &E) -> Script {
        let first = self.steps.first().map_or(&self.last, |it| &it.state);
        let mut script = vec![(Piece::Task, format!("{BOS}{}", world.observe(&self.task, first)))];
        for (action, state) in self.future(0) {
            script.push((Piece::Policy, format!("\n{action}")));
            script.push((Piece::Answer, format!(" {}", world.observe(&self.task, &state))));
        }
        script.push((Piece::Answer, END.to_string()));
        script
    }

    /// The episode as a script; `before_action` writes what the policy says ahead of its action.
    pub fn script(&self, world: &E, mut before_action: impl FnMut(usize) -> Script) -> Script {
        let mut script = vec![(Piece::Task, BOS.to_string())];
        for (index, step) in self.steps.iter().enumerate() {
            let origin = if index == 0 { Piece::Task } else { Piece::Answer };
            script.push((origin, format!("{USER}{}{ASSISTANT}", world.observe(&self.task, &step.state))));
            let before = before_action(index);
            let settled = before.iter().any(|it| it.0 == Piece::Plan);
            script.extend(before);
            let origin = if settled { Piece::Settled } else { Piece::Policy };
            script.push((origin, format!("<action>{}</action>{END}", step.action)));
        }
        script.push((Piece::Answer, format!("{USER}{}{END}", world.observe(&self.task, &self.last))));
        script
    }
}

/// Some filler words, or none.
pub fn filler(chance: f64, longest: usize, rng: &mut ChaCha8Rng) -> Script {
    if !rng.random_bool(chance) {
        return Vec::new();
    }
    let count = rng.random_range(1..=longest);
    let words: Vec<&str> = (0..count).filter_map(|_| FILLER.choose(rng).copied()).collect();
    vec![(Piece::Policy, format!("{} ", words.join(" ")))]
}

/// An action named among filler words, ahead of the turn's own action.
pub fn named(action: &str, rng: &mut ChaCha8Rng) -> Script {
    let mut script = filler(0.5, 4, rng);
    script.push((Piece::Plan, format!("{action} ")));
    script.extend(filler(0.8, 20, rng));
    script
}

/// All actions that a plan comes to, without a word of what they lead to, ahead of the first of them.
pub fn named_plan(actions: &[String], rng: &mut ChaCha8Rng) -> Script {
    let joint = ["\n", " then ", " ; "].choose(rng).copied().unwrap_or("\n");
    let mut script = filler(0.3, 3, rng);
    for (index, action) in actions.iter().enumerate() {
        let joint = if index == 0 { "" } else { joint };
        script.push((Piece::Plan, format!("{joint}{action}")));
    }
    script.push((Piece::Policy, " ".into()));
    script.extend(filler(0.8, 16, rng));
    script.extend(actions.first().map(|it| (Piece::Settled, format!("{} ", blocks::settled(it)))));
    script
}

/// Tokens of a script, each piece weighed by its origin.
///
/// # Errors
/// When the tokenizer refuses.
pub fn encode(script: &Script, vocabulary: &Vocabulary, weight: impl Fn(Piece) -> f32) -> Result<Sequence, TrainError> {
    let mut sequence = Sequence::default();
    for (piece, text) in script {
        sequence.extend(&vocabulary.encode(text)?, weight(*piece));
    }
    Ok(sequence)
}
