//! Copy drills: they give every word, number and tag of the later stages a trained embedding.
//!
//! Tags stand around copied words in no particular order, so a drill teaches what a tag is, never the format.

use fsq_environments::{countdown, dochop};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::{FILLER, Piece, Script};
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
