//! SlipGrid against a naive walker on a map of characters, its exact chances against play.

use std::collections::HashSet;

use super::*;
use crate::{play_logged, succeeded};

/// The same task with other luck.
fn again(task: &Task, luck: u64) -> Task {
    Task { luck: mixed(luck), ..task.clone() }
}

/// Chance, allowed distance: four standard errors of `n` plays.
fn assert_near(exact: f64, won: usize, n: u32) {
    let found = won as f64 / f64::from(n);
    let allowed = 4.0 * (exact * (1.0 - exact) / f64::from(n)).sqrt() + 1e-9;
    assert!((found - exact).abs() <= allowed, "exact {exact}, played {found}, allowed {allowed}");
}

/// A cell such as `c2` as column and row.
fn column_and_row(cell: &str) -> (i32, i32) {
    let bytes = cell.as_bytes();
    (i32::from(bytes[0]) - i32::from(b'a'), i32::from(bytes[1]) - i32::from(b'1'))
}

#[test]
fn every_step_is_one_of_those_that_a_naive_walker_can_take() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for task in SlipGrid.tasks(Split::Train, 1, 300) {
        let mut state = SlipGrid.start(&task);
        let first = SlipGrid.observe(&task, &state);
        let word_after = |text: &str, word: &str| {
            let (_, rest) = text.split_once(&format!("{word} ")).unwrap();
            rest.split(' ').next().unwrap().to_string()
        };
        let (key, door) = (word_after(&first, "key"), word_after(&first, "door"));
        let holes: Vec<&str> =
            first.split_once(" holes ").unwrap().1.split_once(" slip ").unwrap().0.split(' ').collect();
        let (mut at, mut has_key) = (word_after(&first, " at"), false);
        let mut left: u32 = word_after(&first, "left").parse().unwrap();
        while SlipGrid.end(&task, &state).is_none() {
            let action = SlipGrid.legal_actions(&task, &state).choose(&mut rng).unwrap().clone();
            state = SlipGrid.step(&task, &state, &action).unwrap();
            let seen = SlipGrid.observe(&task, &state);
            let (from, to) = (column_and_row(&at), column_and_row(&word_after(&seen, "at")));
            let meant = match action.as_str() {
                "go north" => (0, -1),
                "go east" => (1, 0),
                "go south" => (0, 1),
                "go west" => (-1, 0),
                other => panic!("{other}"),
            };
            let kept = |by: (i32, i32)| ((from.0 + by.0).clamp(0, 4), (from.1 + by.1).clamp(0, 4));
            let possible = [meant, (meant.1, meant.0), (-meant.1, -meant.0)].map(kept);
            assert!(possible.contains(&to), "{action} from {from:?} led to {to:?}");
            at = word_after(&seen, "at");
            left -= 1;
            has_key |= at == key;
            assert_eq!(word_after(&seen, "key") == "yes", has_key);
            let expected = match () {
                () if at == door && has_key => "right".to_string(),
                () if holes.contains(&at.as_str()) || left == 0 => "wrong".to_string(),
                () => format!("left {left}"),
            };
            assert!(seen.ends_with(&expected), "{seen} should end with {expected}");
        }
        assert!(SlipGrid.legal_actions(&task, &state).is_empty());
        assert!(MOVES.iter().all(|it| SlipGrid.step(&task, &state, it).is_err()));
    }
    let task = &SlipGrid.tasks(Split::Train, 1, 1)[0];
    assert!(
        ["go up", "north", "", "go north "].iter().all(|it| SlipGrid.step(task, &SlipGrid.start(task), it).is_err())
    );
}

#[test]
fn splits_share_no_layout() {
    let of = |split| -> HashSet<u64> { SlipGrid.tasks(split, 3, 2_000).iter().map(|it| it.layout.hash()).collect() };
    let [train, calibration, test] = [Split::Train, Split::Calibration, Split::Test].map(of);
    assert!(train.is_disjoint(&test) && train.is_disjoint(&calibration) && test.is_disjoint(&calibration));
    assert!(test.len() > 1_900 && train.len() > 1_900);
}

#[test]
fn beliefs_are_whole_and_are_what_luck_brings() {
    const PLAYS: u32 = 4_000;
    for task in SlipGrid.tasks(Split::Train, 5, 6) {
        let start = SlipGrid.start(&task);
        let actions = ["go east", "go south", "go south", "go west", "go north"];
        for count in 0..=actions.len() {
            let belief = task.belief(&start, &actions[..count]);
            assert!((belief.values().sum::<f64>() - 1.0).abs() < 1e-12);
            let mut reached: BTreeMap<State, usize> = BTreeMap::new();
            for luck in 0..PLAYS {
                let lucky = again(&task, u64::from(luck));
                let taken = actions[..count]
                    .iter()
                    .fold(start.clone(), |state, it| SlipGrid.step(&lucky, &state, it).unwrap_or(state));
                *reached.entry(taken).or_default() += 1;
            }
            assert!(reached.keys().all(|it| belief.contains_key(it)));
            for (state, chance) in belief {
                assert_near(chance, reached.get(&state).copied().unwrap_or(0), PLAYS);
            }
        }
    }
}

#[test]
fn exact_chances_are_those_of_play_and_means_of_what_follows() {
    const PLAYS: u32 = 3_000;
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (index, task) in SlipGrid.tasks(Split::Train, 7, 8).iter().enumerate() {
        let skill = SlipGrid::LOGGING[index % SlipGrid::LOGGING.len()].0;
        let (start, action) = (SlipGrid.start(task), MOVES[index % 4]);
        let exact = SlipGrid.exact_success(task, &start, action, skill).unwrap();
        let won = (0..PLAYS).filter(|luck| {
            let lucky = again(task, u64::from(*luck));
            let next = SlipGrid.step(&lucky, &start, action).unwrap();
            match SlipGrid.end(&lucky, &next) {
                Some(end) => end == End::Success,
                None => succeeded(&SlipGrid, &lucky, &play_logged(&SlipGrid, &lucky, &next, skill, &mut rng)),
            }
        });
        assert_near(exact, won.count(), PLAYS);
        // The chance of a move is the mean, over where it leads, of the mean over the moves that are made there.
        let mean: f64 = task
            .belief(&start, &[action])
            .iter()
            .map(|(next, chance)| {
                if let Some(end) = SlipGrid.end(task, next) {
                    return chance * f64::from(u8::from(end == End::Success));
                }
                let of_move = |it: &str| SlipGrid.exact_success(task, next, it, skill).unwrap();
                let any = MOVES.iter().map(|it| of_move(it)).sum::<f64>() / 4.0;
                chance * ((1.0 - skill.epsilon) * of_move(MOVES[task.best_move(next)]) + skill.epsilon * any)
            })
            .sum();
        assert!((mean - exact).abs() < 1e-12, "{mean} and {exact}");
    }
}

#[test]
fn no_policy_does_better_than_the_best() {
    for task in SlipGrid.tasks(Split::Test, 8, 40) {
        let start = SlipGrid.start(&task);
        let of_move = |epsilon| MOVES.map(|it| SlipGrid.exact_success(&task, &start, it, Skill { epsilon }).unwrap());
        let top = |of: [f64; 4]| of.into_iter().fold(0.0, f64::max);
        let best = task.best[usize::from(task.steps)][start.place()].0;
        assert!((top(of_move(0.0)) - best).abs() < 1e-12 && BEST.contains(&best));
        assert!(top(of_move(0.3)) <= best && top(of_move(1.0)) < best);
    }
}

#[test]
fn logging_mix_fails_often_and_random_moves_nearly_always() {
    let tasks = SlipGrid.tasks(Split::Train, 9, 400);
    let value = |task: &Task, epsilon| {
        let values = task.layout.values(task.slip_percent, task.steps, epsilon, Some(&task.best));
        values[usize::from(task.steps)][SlipGrid.start(task).place()].0
    };
    let mean = |epsilon| tasks.iter().map(|it| value(it, epsilon)).sum::<f64>() / tasks.len() as f64;
    let success: f64 = SlipGrid::LOGGING.iter().map(|(skill, weight)| weight * mean(skill.epsilon)).sum();
    assert!((0.4..0.65).contains(&success), "the mix succeeds {success}");
    assert!((0.002..0.1).contains(&mean(1.0)), "random moves succeed {}", mean(1.0));
}

#[test]
fn blocks_are_the_same_whatever_luck_will_bring() {
    for task in SlipGrid.tasks(Split::Train, 10, 60) {
        let start = SlipGrid.start(&task);
        let block = |task: &Task| {
            let future = SlipGrid.expected_future(task, &start, "go east").unwrap();
            (SlipGrid.lines(task, &start, &future), SlipGrid.summary(task, &start, &future))
        };
        let (lines, _) = block(&task);
        assert!((0..20).all(|luck| block(&again(&task, luck)) == block(&task)));
        // What is scored against is the same too, as long as the first imagined move is made.
        let next = SlipGrid.step(&task, &start, "go east").unwrap();
        let truth = SlipGrid.true_lines(&task, &start, &[("go east".into(), next.clone())], &lines);
        assert_eq!(truth, lines);
        let other = SlipGrid.true_lines(&task, &start, &[("go west".into(), next)], &lines);
        assert_eq!(other.len(), 1);
        assert!(other[0].starts_with("go west at "));
    }
}
