//! Whether a world keeps its promises: the same episodes twice, in two copies of it, one of them out of order.
//!
//! What is found is told as sentences. Time is measured, never judged. Knows nothing of policies.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;

use crate::{End, Environment, ProcessError, Split};

/// Actions of a state that are all tried.
const ACTIONS_TRIED: usize = 16;
/// What no world lists.
const NONSENSE: &str = "no such action 5c1e";

/// How to look.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions<'a> {
    /// Episodes of each of two splits.
    pub episodes: usize,
    /// Of tasks and actions.
    pub seed: u64,
    /// What must not stand in a rollout or action: the tags of the format in which they are written.
    pub tags: &'a [&'a str],
}

/// One promise.
#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    /// What is promised.
    pub name: &'static str,
    /// How often it was looked at.
    pub n: usize,
    /// The first time it was broken.
    pub fault: Option<String>,
}

/// How long answers took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Steps that were timed; one asks `step` and `verify`.
    pub steps: usize,
    /// Half of them took at most so long, in milliseconds.
    pub median_ms: f64,
    /// 99 of 100 did.
    pub p99_ms: f64,
    /// All did.
    pub max_ms: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Conformance {
    /// The world's name.
    pub environment: String,
    /// Episodes that were played twice.
    pub episodes: usize,
    /// Their steps.
    pub steps: usize,
    /// Share of successes under random actions.
    pub random_success: f64,
    /// Held-out episodes that begin as a training episode does.
    pub repeated_starts: usize,
    /// What was looked at.
    pub promises: Vec<Promise>,
    /// Nothing where no step was made.
    pub speed: Option<Speed>,
    /// What made the world unfit to answer, if anything did: the rest was not looked at.
    #[serde(skip)]
    pub error: Option<ProcessError>,
}

impl Conformance {
    /// Whether all that was looked at was kept, and all was looked at.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.error.is_none() && self.promises.iter().all(|it| it.fault.is_none())
    }
}

/// The promises, in the order of the table.
const NAMES: [&str; 8] = [
    "the same seed begins the same episode",
    "two questions about a state get one answer",
    "listed actions are taken",
    "other actions are refused",
    "episodes end in time",
    "what is over has an outcome, and no actions",
    "the same actions lead to the same states",
    "actions and rollouts are lines without tags",
];
const BEGINS: usize = 0;
const ASKED_TWICE: usize = 1;
const TAKEN: usize = 2;
const REFUSED: usize = 3;
const ENDS: usize = 4;
const OUTCOME: usize = 5;
const REPEATED: usize = 6;
const LINES: usize = 7;

/// One episode of the first copy.
struct Path<E: Environment> {
    task: E::Task,
    /// The start, then the state after each action.
    states: Vec<E::State>,
    actions: Vec<String>,
}

/// Plays random episodes in one copy of a world and the same again, side by side, in another.
///
/// A world that cannot go on is part of what is found.
pub fn check<E: Environment>(first: &E, second: &E, options: &CheckOptions<'_>) -> Conformance {
    let promises = NAMES.map(|name| Promise { name, n: 0, fault: None });
    let mut checker = Checker { world: first, options, promises, times: Vec::new(), success: 0 };
    let (mut paths, mut repeated_starts) = (Vec::new(), 0);
    let mut begun: HashSet<String> = HashSet::new();
    for split in [Split::Train, Split::Test] {
        let tasks = first.tasks(split, options.seed, options.episodes);
        let again = second.tasks(split, options.seed, options.episodes);
        checker.keep(BEGINS, tasks.len() == again.len(), || format!("{} and {} episodes", tasks.len(), again.len()));
        for (index, (task, other)) in tasks.into_iter().zip(again).enumerate() {
            let (start, copy) = (first.start(&task), second.start(&other));
            let same = start == copy && first.observe(&task, &start) == second.observe(&other, &copy);
            checker.keep(BEGINS, same, || format!("episode {index} of a split began with {start:?}, then {copy:?}"));
            let shown = format!("{start:?}");
            match split {
                Split::Train => drop(begun.insert(shown)),
                _ => repeated_starts += usize::from(begun.contains(&shown)),
            }
            if first.check().is_err() {
                break;
            }
            paths.push(checker.play(task, start, index));
        }
    }
    checker.repeat(second, &paths);
    let steps: usize = paths.iter().map(|it| it.actions.len()).sum();
    let Checker { promises, times, success, .. } = checker;
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let random_success = success as f64 / paths.len().max(1) as f64;
    Conformance {
        environment: first.name().to_string(),
        episodes: paths.len(),
        steps,
        random_success,
        repeated_starts,
        promises: promises.to_vec(),
        speed: speed(times),
        error: first.check().and_then(|()| second.check()).err(),
    }
}

struct Checker<'a, E: Environment> {
    world: &'a E,
    options: &'a CheckOptions<'a>,
    promises: [Promise; NAMES.len()],
    times: Vec<Duration>,
    success: usize,
}

impl<E: Environment> Checker<'_, E> {
    /// Counts a look at a promise; what is found in a world that cannot go on tells nothing.
    fn keep(&mut self, promise: usize, is_kept: bool, found: impl FnOnce() -> String) {
        if self.world.check().is_err() {
            return;
        }
        let promise = &mut self.promises[promise];
        promise.n += 1;
        if !is_kept && promise.fault.is_none() {
            promise.fault = Some(found());
        }
    }

    fn play(&mut self, task: E::Task, start: E::State, index: usize) -> Path<E> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed ^ index as u64);
        let mut path = Path { task, states: vec![start], actions: Vec::new() };
        while let Some(state) = path.states.last().cloned() {
            let end = self.world.end(&path.task, &state);
            if end.is_some() || path.actions.len() >= self.world.steps_max() || self.world.check().is_err() {
                break;
            }
            let legal = self.looked_at(&path.task, &state);
            let Some(action) = legal.choose(&mut rng) else { break };
            let begun = Instant::now();
            let Ok(next) = self.world.step(&path.task, &state, action) else { break };
            self.times.push(begun.elapsed());
            path.actions.push(action.clone());
            path.states.push(next);
        }
        self.ended(&path);
        path
    }

    /// Looks at a state and returns its actions.
    fn looked_at(&mut self, task: &E::Task, state: &E::State) -> Vec<String> {
        let world = self.world;
        let legal = world.legal_actions(task, state);
        let again = world.legal_actions(task, state);
        let same = legal == again && world.end(task, state) == world.end(task, state);
        self.keep(ASKED_TWICE, same, || format!("`legal` listed {legal:?}, then {again:?}"));
        self.keep(OUTCOME, !legal.is_empty(), || "no action is listed, and the episode is not over".into());
        for action in legal.iter().take(ACTIONS_TRIED) {
            let taken = world.step(task, state, action);
            self.keep(TAKEN, taken.is_ok(), || taken.as_ref().map_or_else(ToString::to_string, |_| String::new()));
            let Ok(next) = taken else { continue };
            let lines = world.lines(task, state, &[(action.clone(), next)]);
            let is_line =
                |it: &String| it.lines().count() == 1 && !self.options.tags.iter().any(|tag| it.contains(tag));
            let all_lines = lines.iter().all(is_line);
            self.keep(LINES, all_lines, || format!("{lines:?}"));
        }
        let nonsense = world.step(task, state, NONSENSE);
        self.keep(REFUSED, nonsense.is_err(), || format!("`{NONSENSE}` was taken"));
        legal
    }

    fn ended(&mut self, path: &Path<E>) {
        let Some(last) = path.states.last() else { return };
        let end = self.world.end(&path.task, last);
        let (n, most) = (path.actions.len(), self.world.steps_max());
        self.keep(ENDS, end.is_some(), || format!("after {n} of at most {most} steps an episode is not over"));
        let Some(end) = end else { return };
        self.success += usize::from(end == End::Success);
        let left = self.world.legal_actions(&path.task, last);
        self.keep(OUTCOME, left.is_empty(), || format!("an episode that is over lists {left:?}"));
    }

    /// Plays the same actions in the other copy, a step of each episode in turn: what a program remembers on its own
    /// gets mixed up.
    fn repeat(&mut self, second: &E, paths: &[Path<E>]) {
        let longest = paths.iter().map(|it| it.actions.len()).max().unwrap_or(0);
        for step in 0..longest {
            for path in paths.iter().filter(|it| it.actions.len() > step) {
                if self.world.check().is_err() || second.check().is_err() {
                    return;
                }
                let (action, expected) = (&path.actions[step], &path.states[step + 1]);
                let found = second.step(&path.task, &path.states[step], action);
                if second.check().is_ok() {
                    let same = found.as_ref().is_ok_and(|it| it == expected);
                    self.keep(REPEATED, same, || format!("`{action}` led to {expected:?}, then {found:?}"));
                }
            }
        }
    }
}

fn speed(mut times: Vec<Duration>) -> Option<Speed> {
    times.sort_unstable();
    let last = times.len().checked_sub(1)?;
    let at = |hundredths: usize| times[last * hundredths / 100].as_secs_f64() * 1000.0;
    Some(Speed { steps: times.len(), median_ms: at(50), p99_ms: at(99), max_ms: at(100) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Countdown, DagMath, DocHop, SlipGrid};

    fn of<E: Environment>(world: &E) -> Conformance {
        check(world, world, &CheckOptions { episodes: 20, seed: 3, tags: &["<action>"] })
    }

    #[test]
    fn our_own_worlds_keep_their_promises() {
        for found in [of(&Countdown), of(&DocHop), of(&DagMath), of(&SlipGrid)] {
            assert!(found.is_kept(), "{found:#?}");
            assert_eq!(found.episodes, 40);
            assert!(found.promises.iter().all(|it| it.n > 0), "{found:#?}");
            assert!(found.speed.is_some() && found.random_success < 0.5);
        }
    }
}
