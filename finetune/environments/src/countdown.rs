//! Countdown: join three numbers by arithmetic until one is left; it must be the goal.
//!
//! First moves are irreversible and four in five are fatal, so foresight pays. Exhaustive search is exact
//! and cheap, which gives an exact verifier and exact logging policies.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::{End, Environment, HarderTasks, IllegalAction, Skill, Split};

/// Numbers are drawn from `1..=NUMBER_MAX`.
const NUMBER_MAX: u8 = 12;
/// Numbers of harder tasks; at least one of them lies above [`NUMBER_MAX`].
const HARDER_NUMBER_MAX: u8 = 20;
/// Goals lie in `GOAL_MIN..=VALUE_MAX`; below, nearly every task is trivial.
const GOAL_MIN: u8 = 5;
/// No result above this is legal: every number is one token of the shipped base.
pub const VALUE_MAX: u8 = 99;
/// Of ten instances, the share for judging and the share for recalibration; the rest trains.
const TEST_TENTHS: u64 = 3;
const CALIBRATION_TENTHS: u64 = 1;

/// The world. It has no settings: how hard tasks are is fixed by the constants above.
#[derive(Clone, Copy, Debug, Default)]
pub struct Countdown;

/// Three numbers and a goal that can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Ascending.
    pub numbers: Vec<u8>,
    /// What the last number must be.
    pub goal: u8,
}

/// The numbers that are left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Ascending.
    pub numbers: Vec<u8>,
}

/// One way to join two numbers, the larger one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    left: u8,
    operator: char,
    right: u8,
    result: u8,
}

impl Move {
    fn text(self) -> String {
        format!("use {} {} {}", self.left, self.operator, self.right)
    }
}

/// All legal moves on some ascending numbers, each once.
fn moves(numbers: &[u8]) -> Vec<Move> {
    let mut found: Vec<Move> = Vec::new();
    for (index, &right) in numbers.iter().enumerate() {
        for &left in &numbers[index + 1..] {
            for operator in ['+', '-', '*', '/'] {
                if let Some(result) = apply(left, operator, right) {
                    let candidate = Move { left, operator, right, result };
                    if !found.contains(&candidate) {
                        found.push(candidate);
                    }
                }
            }
        }
    }
    found
}

/// The result, if it is a whole number in `0..=VALUE_MAX`.
fn apply(left: u8, operator: char, right: u8) -> Option<u8> {
    let result = match operator {
        '+' => left.checked_add(right)?,
        '-' => left.checked_sub(right)?,
        '*' => left.checked_mul(right)?,
        '/' if right != 0 && left.is_multiple_of(right) => left / right,
        _ => return None,
    };
    (result <= VALUE_MAX).then_some(result)
}

fn after(numbers: &[u8], step: Move) -> Vec<u8> {
    let mut left = numbers.to_vec();
    for used in [step.left, step.right] {
        if let Some(place) = left.iter().position(|it| *it == used) {
            left.remove(place);
        }
    }
    left.push(step.result);
    left.sort_unstable();
    left
}

/// Whether the goal can still be reached.
#[must_use]
pub fn solvable(numbers: &[u8], goal: u8) -> bool {
    match numbers {
        [] => false,
        [last] => *last == goal,
        _ => moves(numbers).into_iter().any(|it| solvable(&after(numbers, it), goal)),
    }
}

/// Instances by split.
type BySplit = BTreeMap<u8, Vec<Task>>;

/// Every instance that training may draw from, and every harder one, made once.
fn instances(split: Split) -> &'static [Task] {
    static ALL: OnceLock<BySplit> = OnceLock::new();
    let all = ALL.get_or_init(|| dealt(NUMBER_MAX, 1));
    all.get(&(split as u8)).map_or(&[], Vec::as_slice)
}

fn harder_instances(split: Split) -> &'static [Task] {
    static ALL: OnceLock<BySplit> = OnceLock::new();
    let all = ALL.get_or_init(|| dealt(HARDER_NUMBER_MAX, NUMBER_MAX + 1));
    all.get(&(split as u8)).map_or(&[], Vec::as_slice)
}

/// Every instance whose largest number lies in `largest_min..=largest_max`, dealt to the splits by a hash of its
/// numbers and goal.
fn dealt(largest_max: u8, largest_min: u8) -> BySplit {
    let mut by_split = BySplit::new();
    for a in 1..=largest_max {
        for b in a..=largest_max {
            for c in b.max(largest_min)..=largest_max {
                for goal in GOAL_MIN..=VALUE_MAX {
                    let numbers = vec![a, b, c];
                    if solvable(&numbers, goal) {
                        let task = Task { numbers, goal };
                        by_split.entry(split_of(&task) as u8).or_default().push(task);
                    }
                }
            }
        }
    }
    by_split
}

/// `count` of some instances, without repetition as long as there are any left.
fn drawn(all: &[Task], seed: u64, count: usize) -> Vec<Task> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tasks = Vec::with_capacity(count);
    while tasks.len() < count {
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.shuffle(&mut rng);
        tasks.extend(order.into_iter().take(count - tasks.len()).map(|it| all[it].clone()));
    }
    tasks
}

fn split_of(task: &Task) -> Split {
    match mixed(identity(task)) % 10 {
        it if it < TEST_TENTHS => Split::Test,
        it if it < TEST_TENTHS + CALIBRATION_TENTHS => Split::Calibration,
        _ => Split::Train,
    }
}

fn identity(task: &Task) -> u64 {
    task.numbers.iter().fold(u64::from(task.goal), |sum, it| sum * 100 + u64::from(*it))
}

/// SplitMix64's finisher: spreads neighbouring identities.
pub(crate) fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn joined(numbers: &[u8]) -> String {
    numbers.iter().map(u8::to_string).collect::<Vec<_>>().join(" ")
}

impl Environment for Countdown {
    type Task = Task;
    type State = State;

    const NAME: &'static str = "countdown";
    const HORIZON: usize = 2;
    const STEPS_MAX: usize = 2;
    // Success by epsilon, over all instances: 0.86, 0.61, 0.32 and 0.07, so 47 % of the logged episodes fail.
    const LOGGING: &'static [(Skill, f64)] = &[
        (Skill { epsilon: 0.1 }, 0.30),
        (Skill { epsilon: 0.3 }, 0.30),
        (Skill { epsilon: 0.6 }, 0.25),
        (Skill { epsilon: 1.0 }, 0.15),
    ];

    fn tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        drawn(instances(split), seed, count)
    }

    fn task_id(&self, task: &Task) -> u64 {
        identity(task)
    }

    fn start(&self, task: &Task) -> State {
        State { numbers: task.numbers.clone() }
    }

    fn observe(&self, task: &Task, state: &State) -> String {
        let verdict = match self.end(task, state) {
            Some(End::Success) => " right",
            Some(End::Failure) => " wrong",
            None => "",
        };
        // The numbers come first: they follow at once from the move that was made.
        format!("numbers {} goal {}{verdict}", joined(&state.numbers), task.goal)
    }

    fn legal_actions(&self, _: &Task, state: &State) -> Vec<String> {
        moves(&state.numbers).into_iter().map(Move::text).collect()
    }

    fn step(&self, _: &Task, state: &State, action: &str) -> Result<State, IllegalAction> {
        let found = moves(&state.numbers).into_iter().find(|it| it.text() == action);
        let step = found.ok_or_else(|| IllegalAction {
            action: action.into(),
            reason: format!("expected `use A op B`, the larger first, of the numbers {}", joined(&state.numbers)),
        })?;
        Ok(State { numbers: after(&state.numbers, step) })
    }

    fn end(&self, task: &Task, state: &State) -> Option<End> {
        match state.numbers.as_slice() {
            [last] if *last == task.goal => Some(End::Success),
            [_] => Some(End::Failure),
            _ => None,
        }
    }

    fn logged_action(&self, task: &Task, state: &State, skill: Skill, rng: &mut ChaCha8Rng) -> String {
        let legal = moves(&state.numbers);
        let winning: Vec<Move> =
            legal.iter().copied().filter(|it| solvable(&after(&state.numbers, *it), task.goal)).collect();
        let pool = if winning.is_empty() || rng.random_bool(skill.epsilon) { &legal } else { &winning };
        pool.choose(rng).map_or_else(String::new, |it| it.text())
    }

    fn lines(&self, task: &Task, _: &State, future: &[(String, State)]) -> Vec<String> {
        // A state is imagined in the words in which it will be observed: what a base knows of transitions carries over.
        future.iter().map(|(action, state)| format!("{action} {}", self.observe(task, state))).collect()
    }

    fn summary(&self, task: &Task, _: &State, future: &[(String, State)]) -> (String, String) {
        let last = future.last().map_or(&[][..], |(_, state)| &state.numbers);
        // The rollout's own last words: what they say of the outcome is then copied, not judged anew.
        let verdict = if last == [task.goal] { "right" } else { "wrong" };
        (format!("reach {}", joined(last)), format!("goal {} {verdict}", task.goal))
    }

    fn state_of_line<'a>(&self, line: &'a str) -> &'a str {
        line.split_once(" numbers ").map_or("", |(_, state)| state)
    }

    fn hidden_names(&self, _: &Task, _: &State) -> Vec<String> {
        Vec::new()
    }

    fn difficulty(&self, task: &Task) -> String {
        let winning = moves(&task.numbers);
        let open = winning.into_iter().filter(|it| solvable(&after(&task.numbers, *it), task.goal)).count();
        (if open == 1 { "one way" } else { "several ways" }).into()
    }
}

impl HarderTasks for Countdown {
    const HARDER_STEPS_MAX: usize = Self::STEPS_MAX;

    fn harder_tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        drawn(harder_instances(split), seed, count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{play_logged, succeeded};

    #[test]
    fn splits_share_no_instance_and_are_large_enough() {
        let of = |split| instances(split).iter().map(identity).collect::<HashSet<_>>();
        let (train, calibration, test) = (of(Split::Train), of(Split::Calibration), of(Split::Test));
        assert!(train.is_disjoint(&test) && train.is_disjoint(&calibration) && test.is_disjoint(&calibration));
        assert!(test.len() > 1_000, "{} test instances", test.len());
        assert!(train.len() > 2_000, "{} train instances", train.len());
    }

    #[test]
    fn transition_is_exact() {
        let task = Task { numbers: vec![7, 8, 9], goal: 9 };
        let state = Countdown.start(&task);
        let next = Countdown.step(&task, &state, "use 8 - 7").unwrap();
        assert_eq!(next.numbers, [1, 9]);
        let last = Countdown.step(&task, &next, "use 9 * 1").unwrap();
        assert_eq!(Countdown.end(&task, &last), Some(End::Success));
        assert!(Countdown.step(&task, &state, "use 7 - 8").is_err(), "the larger number comes first");
        assert!(Countdown.step(&task, &state, "use 9 / 8").is_err(), "not a whole number");
    }

    #[test]
    fn logging_mix_fails_at_least_four_times_in_ten() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let tasks = Countdown.tasks(Split::Train, 1, 1_000);
        let mut failures = 0.0;
        for (skill, weight) in Countdown::LOGGING {
            let lost = tasks.iter().filter(|task| {
                let path = play_logged(&Countdown, task, &Countdown.start(task), *skill, &mut rng);
                !succeeded(&Countdown, task, &path)
            });
            failures += weight * lost.count() as f64 / tasks.len() as f64;
        }
        assert!((0.4..0.6).contains(&failures), "failures {failures}");
    }

    #[test]
    fn every_legal_action_steps() {
        for task in Countdown.tasks(Split::Test, 3, 50) {
            let state = Countdown.start(&task);
            for action in Countdown.legal_actions(&task, &state) {
                assert!(Countdown.step(&task, &state, &action).is_ok(), "{action}");
            }
        }
    }
}
