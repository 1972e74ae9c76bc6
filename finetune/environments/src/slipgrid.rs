//! SlipGrid: fetch a key and reach a door on slippery ground, past holes, before the steps run out.
//!
//! A move goes astray to either side with a chance that is told, so the future is a distribution, and all of it is
//! known: where a plan leads, and the chance of every logging policy, are computed over all states by dynamic
//! programming. A rollout imagines the most likely states; nobody can know more.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::countdown::mixed;
use crate::{End, Environment, HarderTasks, IllegalAction, Skill, Split};

/// Cells of a side.
const SIDE: u8 = 5;
const CELLS: usize = (SIDE * SIDE) as usize;
/// Chances that a move goes astray, in percent.
const SLIPS: [u8; 3] = [10, 20, 30];
const HARDER_SLIPS: [u8; 1] = [40];
/// Holes of a layout.
const HOLES: RangeInclusive<usize> = 3..=5;
const HARDER_HOLES: RangeInclusive<usize> = 6..=7;
/// Steps of an episode.
const STEPS: RangeInclusive<u8> = 12..=16;
/// What the best policy must be able to reach, and what is too easy to be worth a plan.
const BEST: RangeInclusive<f64> = 0.6..=0.97;
const HARDER_BEST: RangeInclusive<f64> = 0.3..=0.9;
/// Of ten layouts, those for judging and those for recalibration; the others train.
const TEST_TENTHS: u64 = 3;
const CALIBRATION_TENTHS: u64 = 1;
/// The moves.
pub const MOVES: [&str; 4] = ["go north", "go east", "go south", "go west"];

/// The world.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlipGrid;

/// Where everything lies, by cell number: row times five plus column.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    start: u8,
    key: u8,
    door: u8,
    /// Ascending.
    holes: Vec<u8>,
}

/// A layout, how slippery it is, and what will go astray.
#[derive(Clone, Debug)]
pub struct Task {
    layout: Layout,
    slip_percent: u8,
    steps: u8,
    /// The chance of the best policy and its first move, `[steps left][cell and key]`.
    best: Arc<Values>,
    /// What goes astray is drawn from it, so that every transition is a function of its state.
    luck: u64,
}

/// A chance of success and a best move, for each number of steps left and each cell without and with the key.
type Values = Vec<[(f64, usize); 2 * CELLS]>;

/// Where the policy is, what it holds, and how long it may go on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct State {
    /// Row times five plus column, the first row in the north.
    pub cell: u8,
    /// Whether the key was found.
    pub has_key: bool,
    /// Steps left.
    pub steps_left: u8,
}

impl State {
    fn place(&self) -> usize {
        usize::from(self.cell) + CELLS * usize::from(self.has_key)
    }
}

/// The cell one step away, or the same at an edge.
fn beside(cell: u8, direction: usize) -> u8 {
    let (row, column) = (cell / SIDE, cell % SIDE);
    match direction {
        0 if row > 0 => cell - SIDE,
        1 if column + 1 < SIDE => cell + 1,
        2 if row + 1 < SIDE => cell + SIDE,
        3 if column > 0 => cell - 1,
        _ => cell,
    }
}

/// `a1` is in the north-west, `e1` in the north-east.
fn name(cell: u8) -> String {
    format!("{}{}", char::from(b'a' + cell % SIDE), cell / SIDE + 1)
}

fn parse(action: &str) -> Option<usize> {
    MOVES.iter().position(|it| *it == action)
}

impl Layout {
    fn outcome(&self, state: &State) -> Option<End> {
        if state.cell == self.door && state.has_key {
            return Some(End::Success);
        }
        (self.holes.contains(&state.cell) || state.steps_left == 0).then_some(End::Failure)
    }

    /// The state after arriving at the cell beside.
    fn arrived(&self, state: &State, direction: usize) -> State {
        let cell = beside(state.cell, direction);
        State { cell, has_key: state.has_key || cell == self.key, steps_left: state.steps_left - 1 }
    }

    /// Where a move leads, with the chance of each: as meant, or to the left or right of it.
    fn kernel(&self, slip_percent: u8, state: &State, direction: usize) -> [(f64, State); 3] {
        let slip = f64::from(slip_percent) / 100.0;
        let to = |turn: usize| self.arrived(state, (direction + turn) % 4);
        [(1.0 - slip, to(0)), (slip / 2.0, to(1)), (slip / 2.0, to(3))]
    }

    /// Value iteration, backwards from no steps left: the best policy's chances, or those of one that takes its move
    /// but with chance `epsilon` any of the four.
    fn values(&self, slip_percent: u8, steps: u8, epsilon: f64, best: Option<&Values>) -> Values {
        let mut values: Values = Vec::new();
        for steps_left in 0..=steps {
            let mut row = [(0.0, 0); 2 * CELLS];
            for (place, entry) in row.iter_mut().enumerate() {
                #[expect(clippy::cast_possible_truncation, reason = "25 cells")]
                let state = State { cell: (place % CELLS) as u8, has_key: place >= CELLS, steps_left };
                *entry = match self.outcome(&state) {
                    Some(end) => (f64::from(u8::from(end == End::Success)), 0),
                    None => {
                        let chances = [0, 1, 2, 3].map(|it| self.chance(slip_percent, &state, it, &values));
                        let top = (1..4).fold(0, |top, it| if chances[it] > chances[top] + 1e-12 { it } else { top });
                        let taken = best.map_or(top, |it| it[usize::from(steps_left)][place].1);
                        (chances[taken] * (1.0 - epsilon) + epsilon * chances.iter().sum::<f64>() / 4.0, taken)
                    }
                };
            }
            values.push(row);
        }
        values
    }

    /// `Q(s, a)`: the mean of what the move's outcomes are worth.
    fn chance(&self, slip_percent: u8, state: &State, direction: usize, values: &Values) -> f64 {
        let worth = |it: &State| values[usize::from(it.steps_left)][it.place()].0;
        self.kernel(slip_percent, state, direction).iter().map(|(chance, next)| chance * worth(next)).sum()
    }

    /// A number that tells layouts apart.
    fn hash(&self) -> u64 {
        let head = [self.start, self.key, self.door];
        head.iter().chain(&self.holes).fold(self.holes.len() as u64, |sum, it| mixed(sum * 32 + u64::from(*it)))
    }

    fn drawn(holes: &RangeInclusive<usize>, rng: &mut ChaCha8Rng) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "25 cells")]
        let mut cells: Vec<u8> = (0..CELLS as u8).collect();
        cells.shuffle(rng);
        let mut holes = cells.split_off(CELLS - rng.random_range(holes.clone()));
        holes.sort_unstable();
        Self { start: cells[0], key: cells[1], door: cells[2], holes }
    }
}

impl Task {
    fn best_move(&self, state: &State) -> usize {
        self.best[usize::from(state.steps_left)][state.place()].1
    }

    /// Where some moves lead from a state, with the chance of each state; moves after the end change nothing.
    ///
    /// The chances add up to 1.
    #[must_use]
    pub fn belief(&self, state: &State, actions: &[&str]) -> BTreeMap<State, f64> {
        let mut belief = BTreeMap::from([(state.clone(), 1.0)]);
        for direction in actions.iter().map_while(|it| parse(it)) {
            let mut next = BTreeMap::new();
            for (state, chance) in belief {
                if self.layout.outcome(&state).is_some() {
                    *next.entry(state).or_default() += chance;
                    continue;
                }
                for (share, after) in self.layout.kernel(self.slip_percent, &state, direction) {
                    *next.entry(after).or_default() += chance * share;
                }
            }
            belief = next;
        }
        belief
    }

    /// The most likely state after some moves; of equally likely ones the first in order.
    fn most_likely(&self, state: &State, actions: &[&str]) -> State {
        let belief = self.belief(state, actions);
        let top = belief.into_iter().fold(None, |top: Option<(State, f64)>, it| match top {
            Some(top) if top.1 + 1e-12 >= it.1 => Some(top),
            _ => Some(it),
        });
        top.map_or_else(|| state.clone(), |it| it.0)
    }

    /// A line for each of some moves: the most likely state after it and those before.
    fn imagined(&self, now: &State, actions: &[&str]) -> Vec<String> {
        let count = actions.len().min(SlipGrid::HORIZON);
        let line = |it: usize| format!("{} {}", actions[it - 1], self.seen(&self.most_likely(now, &actions[..it])));
        (1..=count).map(line).collect()
    }

    /// A state in the words in which it is observed.
    fn seen(&self, state: &State) -> String {
        let key = if state.has_key { "yes" } else { "no" };
        let left = match self.layout.outcome(state) {
            Some(End::Success) => "right".into(),
            Some(End::Failure) => "wrong".into(),
            None => format!("left {}", state.steps_left),
        };
        format!("at {} key {key} {left}", name(state.cell))
    }
}

fn drawn(
    (holes, slips, best): (&RangeInclusive<usize>, &[u8], &RangeInclusive<f64>),
    split: Split,
    seed: u64,
    count: usize,
) -> Vec<Task> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tasks = Vec::with_capacity(count);
    while tasks.len() < count {
        let layout = Layout::drawn(holes, &mut rng);
        let found = match layout.hash() % 10 {
            it if it < TEST_TENTHS => Split::Test,
            it if it < TEST_TENTHS + CALIBRATION_TENTHS => Split::Calibration,
            _ => Split::Train,
        };
        if found != split {
            continue;
        }
        let (slip_percent, steps) = (slips.choose(&mut rng).copied().unwrap_or(0), rng.random_range(STEPS));
        let values = layout.values(slip_percent, steps, 0.0, None);
        let start = State { cell: layout.start, has_key: false, steps_left: steps };
        if best.contains(&values[usize::from(steps)][start.place()].0) {
            tasks.push(Task { layout, slip_percent, steps, best: Arc::new(values), luck: rng.random() });
        }
    }
    tasks
}

impl Environment for SlipGrid {
    type Task = Task;
    type State = State;

    const NAME: &'static str = "slipgrid";
    const HORIZON: usize = 3;
    const STEPS_MAX: usize = *STEPS.end() as usize;
    const LOGGING: &'static [(Skill, f64)] = &[
        (Skill { epsilon: 0.05 }, 0.40),
        (Skill { epsilon: 0.15 }, 0.30),
        (Skill { epsilon: 0.4 }, 0.20),
        (Skill { epsilon: 1.0 }, 0.10),
    ];

    fn tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        drawn((&HOLES, &SLIPS, &BEST), split, seed, count)
    }

    fn task_id(&self, task: &Task) -> u64 {
        let rules = u64::from(task.slip_percent) << 8 | u64::from(task.steps);
        mixed(mixed(task.layout.hash() ^ rules) ^ task.luck)
    }

    fn start(&self, task: &Task) -> State {
        State { cell: task.layout.start, has_key: false, steps_left: task.steps }
    }

    fn observe(&self, task: &Task, state: &State) -> String {
        let seen = task.seen(state);
        if state.steps_left < task.steps {
            return seen;
        }
        let Layout { key, door, holes, .. } = &task.layout;
        let holes: Vec<String> = holes.iter().map(|it| name(*it)).collect();
        let (key, door, holes) = (name(*key), name(*door), holes.join(" "));
        format!("key {key} door {door} holes {holes} slip {} {seen}", task.slip_percent)
    }

    fn legal_actions(&self, task: &Task, state: &State) -> Vec<String> {
        match self.end(task, state) {
            Some(_) => Vec::new(),
            None => MOVES.iter().map(|it| (*it).to_string()).collect(),
        }
    }

    fn step(&self, task: &Task, state: &State, action: &str) -> Result<State, IllegalAction> {
        let illegal = |reason: &str| IllegalAction { action: action.into(), reason: reason.into() };
        if self.end(task, state).is_some() {
            return Err(illegal("the episode is over"));
        }
        let direction = parse(action).ok_or_else(|| illegal("expected `go` with north, east, south or west"))?;
        // A number in [0, 1) for each step of the task.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let drawn = (mixed(task.luck ^ u64::from(state.steps_left)) >> 11) as f64 / (1u64 << 53) as f64;
        let outcomes = task.layout.kernel(task.slip_percent, state, direction);
        let mut above = drawn;
        for (chance, next) in &outcomes {
            if above < *chance {
                return Ok(next.clone());
            }
            above -= chance;
        }
        Ok(outcomes[2].1.clone())
    }

    fn end(&self, task: &Task, state: &State) -> Option<End> {
        task.layout.outcome(state)
    }

    fn logged_action(&self, task: &Task, state: &State, skill: Skill, rng: &mut ChaCha8Rng) -> String {
        let best = MOVES[task.best_move(state)];
        let chosen = if rng.random_bool(skill.epsilon) { MOVES.choose(rng).copied().unwrap_or(best) } else { best };
        chosen.into()
    }

    fn exact_success(&self, task: &Task, state: &State, action: &str, skill: Skill) -> Option<f64> {
        let direction = parse(action).filter(|_| self.end(task, state).is_none())?;
        let values = task.layout.values(task.slip_percent, state.steps_left, skill.epsilon, Some(&task.best));
        Some(task.layout.chance(task.slip_percent, state, direction, &values))
    }

    fn expected_future(&self, task: &Task, state: &State, action: &str) -> Option<Vec<(String, State)>> {
        let mut actions = vec![action];
        let mut future = Vec::new();
        for _ in 0..Self::HORIZON {
            let next = task.most_likely(state, &actions);
            future.push((actions[actions.len() - 1].to_string(), next.clone()));
            if self.end(task, &next).is_some() {
                break;
            }
            actions.push(MOVES[task.best_move(&next)]);
        }
        Some(future)
    }

    fn lines(&self, task: &Task, now: &State, future: &[(String, State)]) -> Vec<String> {
        task.imagined(now, &future.iter().map(|it| it.0.as_str()).collect::<Vec<_>>())
    }

    fn true_lines(&self, task: &Task, now: &State, future: &[(String, State)], imagined: &[String]) -> Vec<String> {
        let mut planned: Vec<&str> = imagined.iter().map_while(|it| Some(it.split_once(" at ")?.0)).collect();
        // What is imagined behind a first move that was not made is about another future.
        if planned.first().is_none_or(|it| future.first().is_none_or(|(taken, _)| taken != it)) {
            return self.lines(task, now, future);
        }
        // Who imagines less than there is to see is compared with what was done.
        if self.end(task, &task.most_likely(now, &planned)).is_none() {
            planned.extend(future.iter().skip(planned.len()).map(|it| it.0.as_str()));
        }
        task.imagined(now, &planned)
    }

    fn summary(&self, task: &Task, now: &State, future: &[(String, State)]) -> (String, String) {
        let actions: Vec<&str> = future.iter().map(|it| it.0.as_str()).collect();
        let last = task.most_likely(now, &actions);
        let aim = if last.has_key { "door" } else { "key" };
        let analysis = match self.end(task, &last) {
            Some(End::Success) => "door right".into(),
            Some(End::Failure) => "end wrong".into(),
            None => format!("{aim} ahead left {}", last.steps_left),
        };
        (format!("reach {}", name(last.cell)), analysis)
    }

    fn state_of_line<'a>(&self, line: &'a str) -> &'a str {
        line.split_once(" at ").map_or("", |(_, state)| state)
    }

    fn hidden_names(&self, _: &Task, _: &State) -> Vec<String> {
        Vec::new()
    }

    fn difficulty(&self, task: &Task) -> String {
        format!("slip {}", task.slip_percent)
    }
}

impl HarderTasks for SlipGrid {
    const HARDER_STEPS_MAX: usize = Self::STEPS_MAX;

    fn harder_tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        drawn((&HARDER_HOLES, &HARDER_SLIPS, &HARDER_BEST), split, seed, count)
    }
}

#[cfg(test)]
mod tests;
