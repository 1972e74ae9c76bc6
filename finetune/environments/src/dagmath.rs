//! DagMath: work out one named quantity of a web of them, each defined by two others, modulo 23.
//!
//! A call of the calculator solves one quantity whose parts are known; calls are few and some quantities lead nowhere,
//! so a policy must see which ones it needs, and in which order. What a call returns follows from what is shown:
//! imagining it takes arithmetic. The chance of every logging policy is computed exactly, over all sets of solved
//! quantities.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::countdown::mixed;
use crate::{End, Environment, HarderTasks, IllegalAction, Skill, Split};

/// Every value is below this prime, as in iGSM (arXiv 2407.20311).
pub const MODULUS: u8 = 23;
/// Quantities that are given.
const GIVEN: RangeInclusive<usize> = 3..=4;
/// Operations between the given ones and the one that is asked for.
const OPERATIONS: RangeInclusive<usize> = 2..=6;
/// The same for harder tasks.
const HARDER_OPERATIONS: RangeInclusive<usize> = 7..=10;
/// Defined quantities that the one asked for does not need.
const NEEDLESS: RangeInclusive<usize> = 1..=2;
/// Calls beyond those that are needed.
const SPARE_CALLS: u8 = 1;
/// Of ten structures, those for judging and those for recalibration; the others train.
const TEST_TENTHS: u64 = 3;
const CALIBRATION_TENTHS: u64 = 1;
/// Names of quantities; drawn anew in every task, so a name tells nothing.
pub const NAMES: [&str; 20] =
    ["a", "b", "c", "d", "e", "f", "g", "h", "j", "k", "m", "n", "p", "q", "r", "s", "t", "u", "v", "w"];

/// The world.
#[derive(Clone, Copy, Debug, Default)]
pub struct DagMath;

/// How a quantity follows from two others, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Rule {
    left: usize,
    operator: char,
    right: usize,
}

/// A web of quantities: the given ones first, then one for each rule, none of which needs a later one.
#[derive(Clone, Debug)]
pub struct Task {
    /// Of every quantity.
    names: Vec<&'static str>,
    /// Of every quantity.
    values: Vec<u8>,
    rules: Vec<Rule>,
    /// The order in which rules are told.
    told: Vec<usize>,
    asked: usize,
    /// Which quantities the asked one needs, itself included.
    needed: Vec<bool>,
    id: u64,
}

/// What is solved, left and answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Rules whose quantity is solved, as a bit set.
    pub solved: u32,
    /// Calls left.
    pub calls_left: u8,
    /// What the last call returned: the rule and whether its parts were known.
    pub last: Option<(usize, bool)>,
    /// The answer that was given.
    pub answer: Option<u8>,
}

/// What a policy can do, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Calculate(usize),
    Answer(u8),
}

impl Rule {
    fn value(self, values: &[u8]) -> u8 {
        let (left, right) = (u16::from(values[self.left]), u16::from(values[self.right]));
        let modulus = u16::from(MODULUS);
        let value = match self.operator {
            '+' => left + right,
            '-' => left + modulus - right,
            _ => left * right,
        };
        #[expect(clippy::cast_possible_truncation, reason = "below 23")]
        let value = (value % modulus) as u8;
        value
    }
}

impl Task {
    fn n_given(&self) -> usize {
        self.values.len() - self.rules.len()
    }

    fn n_operations(&self) -> usize {
        self.needed.iter().skip(self.n_given()).filter(|it| **it).count()
    }

    fn is_known(&self, solved: u32, quantity: usize) -> bool {
        quantity.checked_sub(self.n_given()).is_none_or(|rule| solved >> rule & 1 == 1)
    }

    fn is_ready(&self, solved: u32, rule: usize) -> bool {
        let Rule { left, right, .. } = self.rules[rule];
        self.is_known(solved, left) && self.is_known(solved, right)
    }

    fn is_solved(&self, state: &State) -> bool {
        self.is_known(state.solved, self.asked)
    }

    fn unsolved(&self, state: &State) -> impl Iterator<Item = usize> {
        let solved = state.solved;
        (0..self.rules.len()).filter(move |it| solved >> it & 1 == 0)
    }

    fn n_ready(&self, state: &State) -> usize {
        self.unsolved(state).filter(|it| self.is_ready(state.solved, *it)).count()
    }

    fn name_of_rule(&self, rule: usize) -> &'static str {
        self.names[self.n_given() + rule]
    }

    fn text(&self, action: Action) -> String {
        match action {
            Action::Calculate(rule) => format!("calc {}", self.name_of_rule(rule)),
            Action::Answer(value) => format!("answer {value}"),
        }
    }

    fn parse(&self, action: &str) -> Option<Action> {
        match action.split(' ').collect::<Vec<_>>().as_slice() {
            ["calc", name] => {
                let rules = 0..self.rules.len();
                rules.into_iter().find(|it| self.name_of_rule(*it) == *name).map(Action::Calculate)
            }
            ["answer", value] => {
                let number: u8 = value.parse().ok()?;
                (number < MODULUS && number.to_string() == *value).then_some(Action::Answer(number))
            }
            _ => None,
        }
    }

    /// What follows from an action that is allowed.
    fn after(&self, state: &State, action: Action) -> State {
        match action {
            Action::Answer(value) => State { answer: Some(value), ..state.clone() },
            Action::Calculate(rule) => {
                let ready = self.is_ready(state.solved, rule);
                State {
                    solved: state.solved | u32::from(ready) << rule,
                    calls_left: state.calls_left - 1,
                    last: Some((rule, ready)),
                    answer: None,
                }
            }
        }
    }

    /// Every action that a logging policy may take here, with its chance.
    fn choices(&self, state: &State, skill: Skill) -> Vec<(f64, Action)> {
        let mut choices = Vec::new();
        let even = |chance: f64, actions: Vec<Action>, choices: &mut Vec<(f64, Action)>| {
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            let each = chance / actions.len().max(1) as f64;
            choices.extend(actions.into_iter().map(|it| (each, it)));
        };
        even(1.0 - skill.epsilon, self.best(state), &mut choices);
        let calls: Vec<Action> = match state.calls_left {
            0 => Vec::new(),
            _ => self.unsolved(state).map(Action::Calculate).collect(),
        };
        // Whoever does not know what to do calls for anything, and now and then guesses.
        let guess = if calls.is_empty() { 1.0 } else { 0.2 };
        even(skill.epsilon * (1.0 - guess), calls, &mut choices);
        even(skill.epsilon * guess, (0..MODULUS).map(Action::Answer).collect(), &mut choices);
        choices.retain(|it| it.0 > 0.0);
        choices
    }

    /// The skilled choice: the answer if it is known, else a needed quantity that is ready, else a guess.
    fn best(&self, state: &State) -> Vec<Action> {
        if self.is_solved(state) {
            return vec![Action::Answer(self.values[self.asked])];
        }
        let is_needed = |it: &usize| self.needed[self.n_given() + it] && self.is_ready(state.solved, *it);
        let open = self.unsolved(state).filter(|it| self.needed[self.n_given() + it]).count();
        if open > usize::from(state.calls_left) {
            return (0..MODULUS).map(Action::Answer).collect();
        }
        self.unsolved(state).filter(is_needed).take(1).map(Action::Calculate).collect()
    }

    /// The chance of success from a state on, by what is solved and how many calls are left.
    fn value(&self, state: &State, skill: Skill, known: &mut HashMap<(u32, u8), f64>) -> f64 {
        if let Some(answer) = state.answer {
            return f64::from(u8::from(answer == self.values[self.asked]));
        }
        if let Some(value) = known.get(&(state.solved, state.calls_left)) {
            return *value;
        }
        let choices = self.choices(state, skill);
        let value = choices.iter().map(|(chance, it)| chance * self.value(&self.after(state, *it), skill, known)).sum();
        known.insert((state.solved, state.calls_left), value);
        value
    }
}

/// The rules that lead to the asked quantity, which is the last one: each uses up others, so that none is needless.
fn needed_rules(n_given: usize, operations: usize, rng: &mut ChaCha8Rng) -> Vec<Rule> {
    let mut rules = Vec::new();
    // Quantities that nothing uses yet; the last rule must leave one.
    let mut unused: Vec<usize> = Vec::new();
    for index in 0..operations {
        let left_after = operations - index - 1;
        // Each later rule can make one fewer of them, and the last one must leave its own alone.
        let counts: Vec<usize> = (0..=unused.len().min(2)).filter(|it| unused.len() - it <= left_after).collect();
        let count = counts.choose(rng).copied().unwrap_or(0);
        unused.shuffle(rng);
        let mut parts: Vec<usize> = unused.split_off(unused.len() - count);
        while parts.len() < 2 {
            let part = rng.random_range(0..n_given + index);
            if !parts.contains(&part) && !unused.contains(&part) {
                parts.push(part);
            }
        }
        parts.shuffle(rng);
        let operator = *['+', '-', '*'].choose(rng).unwrap_or(&'+');
        rules.push(Rule { left: parts[0], operator, right: parts[1] });
        unused.push(n_given + index);
    }
    rules
}

/// The split of a structure: what is given, the rules that are needed and their order; neither names nor values.
fn split_of(n_given: usize, rules: &[Rule]) -> (Split, u64) {
    let word = |it: &Rule| (it.left as u64) << 16 | (it.right as u64) << 8 | u64::from(u32::from(it.operator));
    let hash = rules.iter().fold(n_given as u64, |sum, it| mixed(sum ^ word(it)));
    let split = match hash % 10 {
        it if it < TEST_TENTHS => Split::Test,
        it if it < TEST_TENTHS + CALIBRATION_TENTHS => Split::Calibration,
        _ => Split::Train,
    };
    (split, hash)
}

fn task(operations: &RangeInclusive<usize>, split: Split, rng: &mut ChaCha8Rng) -> Task {
    let (n_given, needed_rules, structure) = loop {
        let n_given = rng.random_range(GIVEN);
        let rules = needed_rules(n_given, rng.random_range(operations.clone()), rng);
        let (found, structure) = split_of(n_given, &rules);
        if found == split {
            break (n_given, rules, structure);
        }
    };
    let asked = n_given + needed_rules.len() - 1;
    let mut rules = needed_rules;
    for _ in 0..rng.random_range(NEEDLESS) {
        let known = n_given + rules.len();
        let left = rng.random_range(0..known);
        let right = (left + rng.random_range(1..known)) % known;
        rules.push(Rule { left, operator: *['+', '-', '*'].choose(rng).unwrap_or(&'+'), right });
    }
    let mut values: Vec<u8> = (0..n_given).map(|_| rng.random_range(0..MODULUS)).collect();
    for rule in &rules {
        values.push(rule.value(&values));
    }
    let mut names = NAMES.to_vec();
    names.shuffle(rng);
    names.truncate(values.len());
    let mut told: Vec<usize> = (0..rules.len()).collect();
    told.shuffle(rng);
    let needed = (0..values.len()).map(|it| it <= asked).collect();
    let place = |name: &&str| NAMES.iter().position(|it| it == name).unwrap_or(0) as u64;
    let id = names
        .iter()
        .map(place)
        .chain(values.iter().map(|it| u64::from(*it)))
        .chain(rules.iter().map(|it| (it.left * 32 + it.right) as u64 * 256 + u64::from(u32::from(it.operator))));
    let id = id.fold(structure, |sum, it| mixed(sum ^ it));
    Task { names, values, rules, told, asked, needed, id }
}

fn drawn(operations: &RangeInclusive<usize>, split: Split, seed: u64, count: usize) -> Vec<Task> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| task(operations, split, &mut rng)).collect()
}

impl Environment for DagMath {
    type Task = Task;
    type State = State;

    const NAME: &'static str = "dagmath";
    const HORIZON: usize = 3;
    // The calls, one to spare, and the answer.
    const STEPS_MAX: usize = *OPERATIONS.end() + SPARE_CALLS as usize + 1;
    const LOGGING: &'static [(Skill, f64)] = &[
        (Skill { epsilon: 0.05 }, 0.30),
        (Skill { epsilon: 0.2 }, 0.30),
        (Skill { epsilon: 0.5 }, 0.25),
        (Skill { epsilon: 1.0 }, 0.15),
    ];

    fn tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        drawn(&OPERATIONS, split, seed, count)
    }

    fn task_id(&self, task: &Task) -> u64 {
        task.id
    }

    fn start(&self, task: &Task) -> State {
        #[expect(clippy::cast_possible_truncation, reason = "ten operations at most")]
        let operations = task.n_operations() as u8;
        State { solved: 0, calls_left: operations + SPARE_CALLS, last: None, answer: None }
    }

    fn observe(&self, task: &Task, state: &State) -> String {
        if let Some(answer) = state.answer {
            let verdict = if answer == task.values[task.asked] { "right" } else { "wrong" };
            return format!("value {answer} {verdict}");
        }
        let left = format!("ready {} calls {}", task.n_ready(state), state.calls_left);
        match state.last {
            Some((rule, true)) => format!("value {} {left}", task.values[task.n_given() + rule]),
            Some((_, false)) => format!("value none {left}"),
            None => {
                let given = (0..task.n_given()).map(|it| format!("{} {}", task.names[it], task.values[it]));
                let rules = task.told.iter().map(|it| {
                    let Rule { left, operator, right } = task.rules[*it];
                    format!("{} = {} {operator} {}", task.name_of_rule(*it), task.names[left], task.names[right])
                });
                let (given, rules) = (given.collect::<Vec<_>>().join(" "), rules.collect::<Vec<_>>().join(" ; "));
                format!("mod {MODULUS} given {given} rules {rules} ask {} {left}", task.names[task.asked])
            }
        }
    }

    fn legal_actions(&self, task: &Task, state: &State) -> Vec<String> {
        if state.answer.is_some() {
            return Vec::new();
        }
        let calls = task.unsolved(state).filter(|_| state.calls_left > 0).map(Action::Calculate);
        calls.chain((0..MODULUS).map(Action::Answer)).map(|it| task.text(it)).collect()
    }

    fn step(&self, task: &Task, state: &State, action: &str) -> Result<State, IllegalAction> {
        let illegal = |reason: &str| IllegalAction { action: action.into(), reason: reason.into() };
        if state.answer.is_some() {
            return Err(illegal("the question is answered already"));
        }
        let parsed = task.parse(action);
        let parsed = parsed.ok_or_else(|| illegal("expected `calc NAME` of a rule or `answer` with 0 to 22"))?;
        if let Action::Calculate(rule) = parsed {
            if state.calls_left == 0 {
                return Err(illegal("no calls left"));
            }
            if state.solved >> rule & 1 == 1 {
                return Err(illegal("its value is known already"));
            }
        }
        Ok(task.after(state, parsed))
    }

    fn end(&self, task: &Task, state: &State) -> Option<End> {
        let answer = state.answer?;
        Some(if answer == task.values[task.asked] { End::Success } else { End::Failure })
    }

    fn logged_action(&self, task: &Task, state: &State, skill: Skill, rng: &mut ChaCha8Rng) -> String {
        let choices = task.choices(state, skill);
        choices.choose_weighted(rng, |it| it.0).map_or_else(|_| String::new(), |it| task.text(it.1))
    }

    fn exact_success(&self, task: &Task, state: &State, action: &str, skill: Skill) -> Option<f64> {
        let next = self.step(task, state, action).ok()?;
        Some(task.value(&next, skill, &mut HashMap::new()))
    }

    fn lines(&self, task: &Task, _: &State, future: &[(String, State)]) -> Vec<String> {
        let line = |(action, state): &(String, State)| format!("{action} {}", self.observe(task, state));
        future.iter().take(Self::HORIZON).map(line).collect()
    }

    fn summary(&self, task: &Task, now: &State, future: &[(String, State)]) -> (String, String) {
        let next = future.first().map_or("answer", |(action, _)| action.as_str());
        let last = future.last().map_or(now, |(_, state)| state);
        let open = task.unsolved(last).filter(|it| task.needed[task.n_given() + it]).count();
        let analysis = match self.end(task, last) {
            Some(End::Success) => "answer right".into(),
            Some(End::Failure) => "answer wrong".into(),
            None => format!("need {open} calls {}", last.calls_left),
        };
        (format!("next {}", next.rsplit(' ').next().unwrap_or("none")), analysis)
    }

    fn state_of_line<'a>(&self, line: &'a str) -> &'a str {
        line.split_once(" value ").map_or("", |(_, state)| state)
    }

    fn hidden_names(&self, task: &Task, _: &State) -> Vec<String> {
        // All that can be known follows from what is shown; what is in no rule of the task is not there at all.
        NAMES.iter().filter(|it| !task.names.contains(it)).map(|it| (*it).to_string()).collect()
    }

    fn has_found_all(&self, task: &Task, state: &State) -> bool {
        task.is_solved(state)
    }

    fn difficulty(&self, task: &Task) -> String {
        format!("{} operations", task.n_operations())
    }
}

impl HarderTasks for DagMath {
    const HARDER_STEPS_MAX: usize = *HARDER_OPERATIONS.end() + SPARE_CALLS as usize + 1;

    fn harder_tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        drawn(&HARDER_OPERATIONS, split, seed, count)
    }
}

#[cfg(test)]
mod tests;
