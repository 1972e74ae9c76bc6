//! DocHop: find a person by following one or two relations through a corpus that only answers searches.
//!
//! Each fact is one passage behind a BM25 index, written in one of two wordings, or missing altogether; how often
//! is fixed for each relation, so a policy can know before it searches. Searches are few and cannot be taken back.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bm25::Tokenizer;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::countdown::mixed;
use crate::index::Index;
use crate::{End, Environment, HarderTasks, IllegalAction, Skill, Split};

/// The people of every universe; who relates to whom is drawn anew, so a name tells nothing by itself.
pub const NAMES: [&str; 40] = [
    "ann", "bob", "cal", "dan", "eve", "fay", "gus", "hal", "ivy", "jim", "kay", "lee", "max", "ned", "oda", "pam",
    "quin", "ray", "sam", "tim", "una", "val", "wes", "xia", "yan", "zoe", "abe", "bea", "cid", "dot", "eli", "flo",
    "gil", "hugh", "ida", "jay", "kim", "lou", "mia", "nat",
];

/// A relation's two wordings and how often the corpus uses each; the rest of its facts are missing.
pub struct Relation {
    /// As questions name it, and another word for it.
    pub wordings: [&'static str; 2],
    /// Share of facts written in each wording.
    pub shares: [f64; 2],
}

/// The relations: constants of the world, hence learnable.
pub const RELATIONS: [Relation; 8] = [
    Relation { wordings: ["boss", "chief"], shares: [0.95, 0.05] },
    Relation { wordings: ["coach", "trainer"], shares: [0.10, 0.85] },
    Relation { wordings: ["friend", "pal"], shares: [0.75, 0.20] },
    Relation { wordings: ["doctor", "medic"], shares: [0.25, 0.70] },
    Relation { wordings: ["tutor", "mentor"], shares: [0.60, 0.10] },
    Relation { wordings: ["cousin", "kin"], shares: [0.10, 0.55] },
    Relation { wordings: ["lawyer", "counsel"], shares: [0.85, 0.00] },
    Relation { wordings: ["host", "landlord"], shares: [0.40, 0.05] },
];

/// Words of a passage as it is indexed.
const INDEXED_WORDS: f32 = 4.0;
/// Passages that a search returns.
const RESULTS: usize = 2;
/// Questions asked of one universe before the next is drawn.
const TASKS_PER_UNIVERSE: usize = 12;
/// Links of a chain.
const HOPS: RangeInclusive<usize> = 1..=2;
/// Links of a harder chain.
const HARDER_HOPS: RangeInclusive<usize> = 3..=3;
/// Sets the universes of harder tasks apart from those that training may draw.
const HARDER: u64 = 0x4a5d_e12b;

/// The world.
#[derive(Clone, Copy, Debug, Default)]
pub struct DocHop;

/// One fact as the corpus writes it: indices into names and relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passage {
    subject: usize,
    relation: usize,
    wording: usize,
    object: usize,
}

impl Passage {
    fn text(self) -> String {
        let word = RELATIONS[self.relation].wordings[self.wording];
        format!("{} {word} {}", NAMES[self.subject], NAMES[self.object])
    }
}

/// Splits on white space and hashes nothing away: every word of this world is its own term.
#[derive(Default)]
struct Words;

impl Tokenizer for Words {
    fn tokenize(&self, input_text: &str) -> Vec<String> {
        input_text.split_whitespace().map(str::to_string).collect()
    }
}

/// People, the truth about them, and the index over what is written down.
pub struct Universe {
    seed: u64,
    /// `[person][relation]` → person.
    truth: Vec<[usize; RELATIONS.len()]>,
    passages: Vec<Passage>,
    index: Index<Words>,
}

impl Universe {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut truth = Vec::with_capacity(NAMES.len());
        let mut passages = Vec::new();
        for subject in 0..NAMES.len() {
            let mut row = [0; RELATIONS.len()];
            for (relation, about) in RELATIONS.iter().enumerate() {
                let object = (subject + rng.random_range(1..NAMES.len())) % NAMES.len();
                row[relation] = object;
                let draw: f64 = rng.random();
                if draw < about.shares[0] {
                    passages.push(Passage { subject, relation, wording: 0, object });
                } else if draw < about.shares[0] + about.shares[1] {
                    passages.push(Passage { subject, relation, wording: 1, object });
                }
            }
            truth.push(row);
        }
        passages.shuffle(&mut rng);
        // The subject stands twice in the indexed text: it is the passage's title as well.
        let texts: Vec<String> = passages.iter().map(|it| format!("{} {}", NAMES[it.subject], it.text())).collect();
        let index = Index::new(texts.iter().map(String::as_str), INDEXED_WORDS);
        Self { seed, truth, passages, index }
    }

    /// The best passages for some words, best first; ties go to the passage that was indexed first.
    fn search(&self, words: &str) -> Vec<usize> {
        self.index.search(words, RESULTS)
    }
}

/// A question: from a person along one or two relations.
#[derive(Clone)]
pub struct Task {
    universe: Arc<Universe>,
    /// Person first, then who each relation leads to in truth.
    chain: Vec<usize>,
    relations: Vec<usize>,
    number: usize,
}

/// What has been found, shown and spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Links of the chain whose passage has been shown, in order.
    pub found: usize,
    /// Searches left.
    pub calls_left: usize,
    /// Numbers of the passages last shown.
    pub shown: Vec<usize>,
    /// Wordings tried for the current link, as a bit set.
    pub tried: u8,
    /// The name answered, or `none`.
    pub answer: Option<String>,
}

enum Action<'a> {
    Search(&'a str, &'a str),
    Answer(&'a str),
}

fn parse(action: &str) -> Option<Action<'_>> {
    let words: Vec<&str> = action.split(' ').collect();
    match words.as_slice() {
        ["search", name, word] => Some(Action::Search(name, word)),
        ["answer", name] => Some(Action::Answer(name)),
        _ => None,
    }
}

fn wording_of(word: &str) -> Option<(usize, usize)> {
    RELATIONS.iter().enumerate().find_map(|(relation, it)| {
        it.wordings.iter().position(|candidate| *candidate == word).map(|wording| (relation, wording))
    })
}

impl Task {
    fn goal(&self) -> &'static str {
        self.chain.last().map_or("none", |it| NAMES[*it])
    }

    /// Whether a passage answers the next open link.
    fn answers(&self, state: &State, passage: usize) -> bool {
        let (Some(&relation), Some(&subject)) = (self.relations.get(state.found), self.chain.get(state.found)) else {
            return false;
        };
        let passage = self.universe.passages[passage];
        passage.relation == relation && passage.subject == subject
    }
}

impl DocHop {
    /// The skilled choice: the likelier wording first, the other if a call can be spared, then the answer.
    fn best_action(task: &Task, state: &State) -> String {
        let Some(&relation) = task.relations.get(state.found) else {
            return format!("answer {}", task.goal());
        };
        let links_left = task.relations.len() - state.found;
        let shares = RELATIONS[relation].shares;
        let first = usize::from(shares[1] > shares[0]);
        let wording = if state.tried == 0 { first } else { 1 - first };
        let exhausted = state.tried == 0b11 || shares[wording] == 0.0;
        if exhausted || state.calls_left < links_left {
            return "answer none".into();
        }
        format!("search {} {}", NAMES[task.chain[state.found]], RELATIONS[relation].wordings[wording])
    }

    /// A slip: another wording, another relation, or an early answer.
    fn slip(task: &Task, state: &State, rng: &mut ChaCha8Rng) -> String {
        let person = task.chain[state.found.min(task.chain.len() - 1)];
        let seen: Vec<usize> = state.shown.iter().map(|it| task.universe.passages[*it].object).collect();
        match rng.random_range(0..10) {
            0..6 if state.calls_left > 0 => {
                let relation = task.relations[state.found.min(task.relations.len() - 1)];
                let word = RELATIONS[relation].wordings[rng.random_range(0..2)];
                format!("search {} {word}", NAMES[person])
            }
            6..8 if state.calls_left > 0 => {
                let relation = task.relations.choose(rng).copied().unwrap_or(0);
                format!("search {} {}", NAMES[person], RELATIONS[relation].wordings[0])
            }
            _ => format!("answer {}", NAMES[seen.choose(rng).copied().unwrap_or(person)]),
        }
    }
}

/// `count` tasks with so many links, some to a universe.
fn drawn(seed: u64, split: Split, hops: RangeInclusive<usize>, count: usize) -> Vec<Task> {
    let mut tasks = Vec::with_capacity(count);
    for block in 0..count.div_ceil(TASKS_PER_UNIVERSE) {
        // The split is part of what is mixed, so no universe belongs to two splits.
        let universe_seed = mixed(mixed(seed) ^ mixed(split as u64 + 1).rotate_left(17) ^ (block as u64));
        let universe = Arc::new(Universe::new(universe_seed));
        let mut rng = ChaCha8Rng::seed_from_u64(universe_seed ^ 1);
        for number in 0..TASKS_PER_UNIVERSE.min(count - tasks.len()) {
            let links = rng.random_range(hops.clone());
            let mut chain = vec![rng.random_range(0..NAMES.len())];
            let mut relations = Vec::new();
            for _ in 0..links {
                let relation = rng.random_range(0..RELATIONS.len());
                let person = chain[chain.len() - 1];
                chain.push(universe.truth[person][relation]);
                relations.push(relation);
            }
            tasks.push(Task { universe: Arc::clone(&universe), chain, relations, number });
        }
    }
    tasks
}

impl Environment for DocHop {
    type Task = Task;
    type State = State;

    const NAME: &'static str = "dochop";
    const HORIZON: usize = 3;
    const STEPS_MAX: usize = 4;
    const LOGGING: &'static [(Skill, f64)] =
        &[(Skill { epsilon: 0.02 }, 0.40), (Skill { epsilon: 0.2 }, 0.35), (Skill { epsilon: 0.6 }, 0.25)];

    fn tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        drawn(seed, split, HOPS, count)
    }

    fn task_id(&self, task: &Task) -> u64 {
        mixed(task.universe.seed ^ task.number as u64)
    }

    fn start(&self, task: &Task) -> State {
        State { found: 0, calls_left: task.relations.len() + 1, shown: Vec::new(), tried: 0, answer: None }
    }

    fn observe(&self, task: &Task, state: &State) -> String {
        let question: Vec<&str> = task.relations.iter().map(|it| RELATIONS[*it].wordings[0]).collect();
        let ask = format!("ask {} {}", NAMES[task.chain[0]], question.join(" "));
        let calls = format!("calls {}", state.calls_left);
        if state.answer.is_some() {
            let verdict = if self.end(task, state) == Some(End::Success) { "right" } else { "wrong" };
            return format!("{ask} {verdict}");
        }
        let shown: Vec<String> = state.shown.iter().map(|it| task.universe.passages[*it].text()).collect();
        if shown.is_empty() { format!("{ask} {calls}") } else { format!("{ask} {calls} read {}", shown.join(" and ")) }
    }

    fn legal_actions(&self, _: &Task, state: &State) -> Vec<String> {
        if state.answer.is_some() {
            return Vec::new();
        }
        let mut actions: Vec<String> = NAMES.iter().chain(&["none"]).map(|it| format!("answer {it}")).collect();
        if state.calls_left > 0 {
            for name in NAMES {
                let words = RELATIONS.iter().flat_map(|it| it.wordings);
                actions.extend(words.map(|word| format!("search {name} {word}")));
            }
        }
        actions
    }

    fn step(&self, task: &Task, state: &State, action: &str) -> Result<State, IllegalAction> {
        let illegal = |reason: &str| IllegalAction { action: action.into(), reason: reason.into() };
        if state.answer.is_some() {
            return Err(illegal("the question is answered already"));
        }
        let mut next = state.clone();
        match parse(action).ok_or_else(|| illegal("expected `search NAME WORD` or `answer NAME`"))? {
            Action::Answer(name) => {
                if name != "none" && !NAMES.contains(&name) {
                    return Err(illegal("expected a person's name or `none`"));
                }
                next.answer = Some(name.into());
            }
            Action::Search(name, word) => {
                let Some((relation, wording)) = wording_of(word).filter(|_| NAMES.contains(&name)) else {
                    return Err(illegal("expected a person's name and a relation"));
                };
                if state.calls_left == 0 {
                    return Err(illegal("no searches left"));
                }
                next.calls_left -= 1;
                next.shown = task.universe.search(&format!("{name} {word}"));
                if next.shown.iter().any(|it| task.answers(state, *it)) {
                    next.found += 1;
                    next.tried = 0;
                } else if task.relations.get(state.found) == Some(&relation) && NAMES[task.chain[state.found]] == name {
                    next.tried |= 1 << wording;
                }
            }
        }
        Ok(next)
    }

    fn end(&self, task: &Task, state: &State) -> Option<End> {
        let answer = state.answer.as_deref()?;
        Some(if answer == task.goal() { End::Success } else { End::Failure })
    }

    fn logged_action(&self, task: &Task, state: &State, skill: Skill, rng: &mut ChaCha8Rng) -> String {
        if rng.random_bool(skill.epsilon) { Self::slip(task, state, rng) } else { Self::best_action(task, state) }
    }

    fn lines(&self, task: &Task, now: &State, future: &[(String, State)]) -> Vec<String> {
        let mut before = now;
        let mut lines = Vec::new();
        for (action, state) in future.iter().take(Self::HORIZON) {
            lines.push(match parse(action) {
                Some(Action::Search(_, word)) => {
                    let outcome = if state.found > before.found { "found" } else { "missing" };
                    let left = task.relations.len() - state.found;
                    format!("seek {word} sees {outcome} left {left} calls {}", state.calls_left)
                }
                Some(Action::Answer("none")) => "give up sees end".into(),
                _ => "tell it sees end".into(),
            });
            before = state;
        }
        lines
    }

    fn summary(&self, task: &Task, now: &State, future: &[(String, State)]) -> (String, String) {
        let next = future.first().and_then(|(action, _)| action.rsplit(' ').next()).unwrap_or("none");
        let keyword = if next == "none" || NAMES.contains(&next) { "answer".into() } else { format!("need {next}") };
        let complete = future.last().is_some_and(|(_, state)| self.has_found_all(task, state));
        let known = self.has_found_all(task, now);
        let analysis = if known || complete { "the chain will close" } else { "the chain stays open" };
        (keyword, analysis.into())
    }

    fn state_of_line<'a>(&self, line: &'a str) -> &'a str {
        line.split_once(" sees ").map_or("", |(_, state)| state)
    }

    fn hidden_names(&self, task: &Task, state: &State) -> Vec<String> {
        let mut seen: Vec<&str> = vec![NAMES[task.chain[0]]];
        for passage in &state.shown {
            let passage = task.universe.passages[*passage];
            seen.extend([NAMES[passage.subject], NAMES[passage.object]]);
        }
        NAMES.iter().filter(|it| !seen.contains(it)).map(|it| (*it).to_string()).collect()
    }

    fn has_found_all(&self, task: &Task, state: &State) -> bool {
        state.found == task.relations.len()
    }

    fn difficulty(&self, task: &Task) -> String {
        match task.relations.len() {
            1 => "1 hop".into(),
            n => format!("{n} hops"),
        }
    }
}

impl HarderTasks for DocHop {
    // A search more than links, and the answer.
    const HARDER_STEPS_MAX: usize = *HARDER_HOPS.end() + 2;

    fn harder_tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        drawn(seed ^ HARDER, split, HARDER_HOPS, count)
    }
}

/// How often each relation's facts are written down at all; for reports.
#[must_use]
pub fn coverage() -> HashMap<&'static str, f64> {
    RELATIONS.iter().map(|it| (it.wordings[0], it.shares[0] + it.shares[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{play_logged, succeeded};

    fn success(epsilon: f64) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let tasks = DocHop.tasks(Split::Train, 5, 1_200);
        let won = tasks.iter().filter(|task| {
            let path = play_logged(&DocHop, task, &DocHop.start(task), Skill { epsilon }, &mut rng);
            succeeded(&DocHop, task, &path)
        });
        won.count() as f64 / tasks.len() as f64
    }

    #[test]
    fn logging_mix_fails_at_least_four_times_in_ten() {
        let failures: f64 = DocHop::LOGGING.iter().map(|(skill, weight)| weight * (1.0 - success(skill.epsilon))).sum();
        assert!((0.4..0.6).contains(&failures), "failures {failures}, perfect play succeeds {}", success(0.0));
    }

    #[test]
    fn the_right_passage_comes_first_when_it_is_written() {
        let universe = Universe::new(9);
        for (index, passage) in universe.passages.iter().enumerate() {
            let word = RELATIONS[passage.relation].wordings[passage.wording];
            let results = universe.search(&format!("{} {word}", NAMES[passage.subject]));
            assert_eq!(results.first(), Some(&index), "{}", passage.text());
            assert_eq!(results.len(), RESULTS);
        }
    }

    #[test]
    fn following_the_passages_answers_right() {
        let mut closed = 0;
        for task in DocHop.tasks(Split::Test, 2, 120) {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            let path = play_logged(&DocHop, &task, &DocHop.start(&task), Skill { epsilon: 0.0 }, &mut rng);
            let found = path.last().unwrap().1.found;
            assert_eq!(succeeded(&DocHop, &task, &path), found == task.relations.len());
            closed += usize::from(found == task.relations.len());
        }
        assert!((60..115).contains(&closed), "{closed} of 120");
    }

    #[test]
    fn splits_draw_other_universes() {
        let seeds = |split| DocHop.tasks(split, 1, 240).iter().map(|it| it.universe.seed).collect::<Vec<_>>();
        assert!(seeds(Split::Train).iter().all(|it| !seeds(Split::Test).contains(it)));
    }

    #[test]
    fn rollout_lines_name_nobody_unseen() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for task in DocHop.tasks(Split::Train, 4, 60) {
            let start = DocHop.start(&task);
            let path = play_logged(&DocHop, &task, &start, Skill { epsilon: 0.3 }, &mut rng);
            let text = DocHop.lines(&task, &start, &path).join(" ");
            for name in DocHop.hidden_names(&task, &start) {
                assert!(!text.split(' ').any(|it| it == name), "{name} in {text}");
            }
        }
    }
}
