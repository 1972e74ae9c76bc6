//! DagMath against a naive reading of its own text, its exact chances against play.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::{play_logged, succeeded};

/// What a task's first text says, read by its words alone.
struct Told {
    values: BTreeMap<String, i64>,
    rules: BTreeMap<String, [String; 3]>,
    asked: String,
    calls: i64,
}

fn read(text: &str) -> Told {
    let (given, rest) = text.strip_prefix("mod 23 given ").unwrap().split_once(" rules ").unwrap();
    let (rules, rest) = rest.split_once(" ask ").unwrap();
    let words: Vec<&str> = given.split(' ').collect();
    let values = words.chunks(2).map(|it| (it[0].to_string(), it[1].parse().unwrap())).collect();
    let rules = rules.split(" ; ").map(|rule| {
        let words: Vec<&str> = rule.split(' ').collect();
        assert_eq!(words[1], "=");
        (words[0].to_string(), [words[2], words[3], words[4]].map(str::to_string))
    });
    let words: Vec<&str> = rest.split(' ').collect();
    Told { values, rules: rules.collect(), asked: words[0].into(), calls: words[4].parse().unwrap() }
}

impl Told {
    /// What a calculator with these rules returns, and what it leaves.
    fn call(&mut self, name: &str) -> String {
        let [left, operator, right] = &self.rules[name];
        self.calls -= 1;
        let value = match (self.values.get(left), self.values.get(right)) {
            (Some(left), Some(right)) => Some(match operator.as_str() {
                "+" => (left + right).rem_euclid(23),
                "-" => (left - right).rem_euclid(23),
                "*" => (left * right).rem_euclid(23),
                other => panic!("{other}"),
            }),
            _ => None,
        };
        if let Some(value) = value {
            self.values.insert(name.into(), value);
        }
        let unsolved = self.rules.iter().filter(|(it, _)| !self.values.contains_key(*it));
        let ready = unsolved.filter(|(_, it)| self.values.contains_key(&it[0]) && self.values.contains_key(&it[2]));
        let told = value.map_or("none".into(), |it| it.to_string());
        format!("value {told} ready {} calls {}", ready.count(), self.calls)
    }
}

#[test]
fn what_happens_is_what_a_naive_reader_of_the_task_works_out() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for task in DagMath.tasks(Split::Train, 1, 200).into_iter().chain(DagMath.harder_tasks(Split::Train, 1, 50)) {
        let mut state = DagMath.start(&task);
        let mut told = read(&DagMath.observe(&task, &state));
        while DagMath.end(&task, &state).is_none() {
            let legal = DagMath.legal_actions(&task, &state);
            assert_eq!(legal.iter().any(|it| it.starts_with("calc ")), told.calls > 0 && legal.len() > 23, "{legal:?}");
            let action = legal.choose(&mut rng).unwrap();
            state = DagMath.step(&task, &state, action).unwrap();
            let seen = DagMath.observe(&task, &state);
            if let Some(name) = action.strip_prefix("calc ") {
                assert_eq!(seen, told.call(name), "{action}");
            } else {
                // The asked quantity, worked out without any limit of calls.
                told.calls = 0;
                while !told.values.contains_key(&told.asked) {
                    for name in told.rules.keys().cloned().collect::<Vec<_>>() {
                        told.call(&name);
                    }
                }
                let right = action == &format!("answer {}", told.values[&told.asked]);
                assert_eq!(seen.ends_with(" right"), right, "{seen}");
            }
        }
    }
}

#[test]
fn legal_actions_are_those_that_step_takes() {
    let candidates: Vec<String> = NAMES
        .iter()
        .map(|it| format!("calc {it}"))
        .chain((0..30).map(|it| format!("answer {it}")))
        .chain(["calc", "answer", "answer 07", "answer -1", "calc a b", ""].map(String::from))
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for task in DagMath.tasks(Split::Test, 2, 100) {
        let start = DagMath.start(&task);
        let path = play_logged(&DagMath, &task, &start, Skill { epsilon: 0.7 }, &mut rng);
        for state in path.iter().map(|it| &it.1).chain([&start]) {
            let legal: HashSet<String> = DagMath.legal_actions(&task, state).into_iter().collect();
            for action in &candidates {
                assert_eq!(DagMath.step(&task, state, action).is_ok(), legal.contains(action), "{action}");
            }
        }
    }
}

#[test]
fn splits_share_no_structure() {
    let of = |split| -> HashSet<u64> {
        let tasks = DagMath.tasks(split, 3, 3_000);
        tasks.iter().map(|it| split_of(it.n_given(), &it.rules[..it.n_operations()]).1).collect()
    };
    let [train, calibration, test] = [Split::Train, Split::Calibration, Split::Test].map(of);
    assert!(train.is_disjoint(&test) && train.is_disjoint(&calibration) && test.is_disjoint(&calibration));
    assert!(test.len() > 1_000 && train.len() > 1_000, "{} and {} structures", test.len(), train.len());
    for task in DagMath.tasks(Split::Train, 3, 500) {
        assert!(OPERATIONS.contains(&task.n_operations()));
        assert!(task.needed[task.asked]);
    }
}

#[test]
fn exact_chances_are_those_of_play() {
    const PLAYS: u32 = 2_000;
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for (index, task) in DagMath.tasks(Split::Train, 4, 12).iter().enumerate() {
        let skill = DagMath::LOGGING[index % DagMath::LOGGING.len()].0;
        let start = DagMath.start(task);
        let action = DagMath.logged_action(task, &start, skill, &mut rng);
        let exact = DagMath.exact_success(task, &start, &action, skill).unwrap();
        let next = DagMath.step(task, &start, &action).unwrap();
        let won = (0..PLAYS).filter(|_| match DagMath.end(task, &next) {
            Some(end) => end == End::Success,
            None => succeeded(&DagMath, task, &play_logged(&DagMath, task, &next, skill, &mut rng)),
        });
        let found = won.count() as f64 / f64::from(PLAYS);
        // Four standard errors.
        let allowed = 4.0 * (exact * (1.0 - exact) / f64::from(PLAYS)).sqrt() + 1e-9;
        assert!((found - exact).abs() <= allowed, "exact {exact}, played {found}, allowed {allowed}");
    }
}

#[test]
fn logging_mix_fails_often_and_blunderers_nearly_always() {
    let tasks = DagMath.tasks(Split::Train, 5, 400);
    let value = |task: &Task, epsilon| task.value(&DagMath.start(task), Skill { epsilon }, &mut HashMap::new());
    let mean = |epsilon| tasks.iter().map(|it| value(it, epsilon)).sum::<f64>() / tasks.len() as f64;
    let success: f64 = DagMath::LOGGING.iter().map(|(skill, weight)| weight * mean(skill.epsilon)).sum();
    assert!((0.4..0.6).contains(&success), "the mix succeeds {success}");
    assert!((mean(0.0) - 1.0).abs() < 1e-12);
    assert!((0.01..0.12).contains(&mean(1.0)), "a blunderer succeeds {}", mean(1.0));
}

#[test]
fn blocks_name_nothing_that_was_not_shown() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for task in DagMath.tasks(Split::Train, 6, 100) {
        let start = DagMath.start(&task);
        let path = play_logged(&DagMath, &task, &start, Skill { epsilon: 0.3 }, &mut rng);
        let (keyword, analysis) = DagMath.summary(&task, &start, &path);
        let text = format!("{} {keyword} {analysis}", DagMath.lines(&task, &start, &path).join(" "));
        for name in DagMath.hidden_names(&task, &start) {
            assert!(!text.split(' ').any(|it| it == name), "{name} in {text}");
        }
    }
}
