//! Drills: copying, which gives every word, number and tag of the later stages a trained embedding, and recall.
//!
//! Tags stand around copied words in no particular order, so a drill teaches what a tag is, never the format.

use fsq_environments::{Environment, countdown, dochop};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::{FILLER, Logged, Piece, Script, blocks, filler};
use crate::vocabulary::{ASSISTANT, BOS, END, TAGS, USER};

/// Longest list that a drill copies, in words.
const WORDS_MAX: usize = 8;
/// Words of the tagged format and of the worlds' observations that appear nowhere else.
const FORMAT_WORDS: &str = "use leads reach meets misses the goal numbers right wrong ask calls read and search answer \
    none seek sees found missing left give up tell it end need chain will close stays open so act \
    odds chance success worth my bet";

/// Words of free-text world-model blocks; a few more than today's phrasings need, since the shipped base learnt these.
const PROSE_WORDS: &str = "i expect look ahead the plan if all goes well what comes leads gives and then we have \
    brings so next is after that";

/// Every word that a stage may write, numbers included.
#[must_use]
pub fn word_list() -> Vec<String> {
    let mut words: Vec<String> = [FORMAT_WORDS, PROSE_WORDS]
        .iter()
        .flat_map(|it| it.split_whitespace())
        .chain(FILLER)
        .chain(dochop::NAMES)
        .chain(dochop::RELATIONS.iter().flat_map(|it| it.wordings))
        .map(str::to_string)
        .chain((0..=countdown::VALUE_MAX).map(|it| it.to_string()))
        .chain(["+", "-", "*", "/"].map(str::to_string))
        .collect();
    words.sort();
    words.dedup();
    words
}

/// A drill: copy some words inside a tag, or a percentage inside any tag.
pub fn drill(words: &[String], rng: &mut ChaCha8Rng) -> Script {
    let mut asked = Vec::new();
    let mut written = Vec::new();
    for _ in 0..rng.random_range(1..=2) {
        let tag = TAGS.choose(rng).copied().unwrap_or(TAGS[0]);
        if rng.random_bool(0.3) {
            let percent = 5 * rng.random_range(0..=20);
            asked.push(format!("={percent}%"));
            written.push(format!("<{tag}>{percent}</{tag}>"));
        } else {
            let count = rng.random_range(1..=WORDS_MAX);
            let copied: Vec<&str> = (0..count).filter_map(|_| words.choose(rng)).map(String::as_str).collect();
            let break_line = if rng.random_bool(0.2) { "\n" } else { "" };
            asked.push(copied.join(" "));
            written.push(format!("<{tag}>{}</{tag}>{break_line}", copied.join(" ")));
        }
    }
    vec![
        (Piece::Task, format!("{BOS}{USER}copy {}{ASSISTANT}", asked.join(" | "))),
        (Piece::Policy, format!("{}{END}", written.join(""))),
    ]
}

/// A recall drill: in the turn of the episode `asked` stands the log of another, `told`; how it ended is repeated, its
/// first action is settled on and taken.
///
/// Nothing in it is to be foreseen. What the log says of the outcome is drawn anew, so that it can only be read.
pub fn recall<E: Environment>(world: &E, told: &Logged<E>, asked: &Logged<E>, rng: &mut ChaCha8Rng) -> Script {
    const ENDING_WORDS: usize = 3;
    let future = told.future(0);
    let count = rng.random_range(1..=future.len().clamp(1, E::HORIZON));
    let mut lines: Vec<String> = future
        .iter()
        .take(count)
        .map(|(action, state)| format!("{action} {}", world.observe(&told.task, state)))
        .collect();
    if let Some(last) = lines.last_mut() {
        redraw_verdict(last, rng);
    }
    let action = told.steps.first().map_or("", |it| it.action.as_str());
    let words: Vec<&str> = lines.last().map_or("", String::as_str).split(' ').collect();
    let ending = words[words.len().saturating_sub(ENDING_WORDS)..].join(" ");
    let joint = ["\n", " then ", " ; "].choose(rng).copied().unwrap_or("\n");
    let mut script = vec![
        (Piece::Task, format!("{BOS}{USER}{}{ASSISTANT}", world.observe(&asked.task, &asked.steps[0].state))),
        (Piece::Task, lines.join(joint)),
    ];
    if rng.random_bool(0.7) {
        script.push((Piece::Task, " . ".into()));
        script.push((Piece::Settled, ending));
    }
    script.push((Piece::Task, " ".into()));
    script.extend(filler(0.5, 12, rng).into_iter().map(|(_, text)| (Piece::Task, text)));
    script.push((Piece::Settled, format!("{} <action>{action}</action>{END}", blocks::settled(action))));
    script
}

/// Ends a log's last line in `right` or `wrong` by chance, where it ends in one of them.
fn redraw_verdict(line: &mut String, rng: &mut ChaCha8Rng) {
    const VERDICTS: [&str; 2] = ["right", "wrong"];
    let verdict = VERDICTS[usize::from(rng.random_bool(0.5))];
    if let Some(stem) = VERDICTS.iter().find_map(|it| line.strip_suffix(it)) {
        *line = format!("{stem}{verdict}");
    }
}

#[cfg(test)]
mod tests {
    use fsq_environments::{Countdown, Skill, Split};
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_recall_drill_repeats_what_its_log_says_whatever_the_task() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let skills = [(Skill { epsilon: 0.5 }, 1.0)];
        let mut verdicts = [0; 2];
        for pair in Countdown.tasks(Split::Train, 1, 200).chunks(2) {
            let [told, asked] =
                [0, 1].map(|it: usize| Logged::play(&Countdown, pair[it].clone(), &skills, false, &mut rng));
            let script = recall(&Countdown, &told, &asked, &mut rng);
            let text: String = script.iter().map(|it| it.1.as_str()).collect();
            let action = &told.steps[0].action;
            assert!(text.ends_with(&format!("so {action} <action>{action}</action>{END}")), "{text}");
            if let [_, _, (_, stop), (Piece::Settled, ending), ..] = &script[..]
                && stop == " . "
            {
                assert!(script[1].1.ends_with(ending.as_str()), "{text}");
                verdicts[usize::from(ending.ends_with("right"))] += usize::from(ending.contains("goal"));
            }
        }
        assert!(verdicts.iter().all(|it| *it > 10), "{verdicts:?}");
    }
}
