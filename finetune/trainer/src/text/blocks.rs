//! World-model blocks: as free text in many phrasings for mid-training, in the tagged format for fine-tuning.
//!
//! Both imagine the true future of a logged episode. The phrasings never use the tags, so mid-training teaches what
//! will happen and how likely success is, and fine-tuning only how to write it down.

use fsq_calibrate::foresight::{self, Foresight};
use fsq_calibrate::stated::Stated;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::{Piece, Script};
use crate::vocabulary::END;

/// How a block begins.
const OPENINGS: [&str; 4] = ["", "i expect ", "the plan : ", "look ahead : "];
/// Between two steps.
const JOINTS: [&str; 2] = [" then ", " ; "];
/// Before the number of the success estimate. The number follows without a space, as inside the tags.
const ODDS: [(&str, &str); 3] = [(" odds=", "%"), (" chance=(", ")"), (" success:", "%")];
/// What is thought behind a block: the action, said once in words before it is taken.
///
/// At the action's mark a policy's habit of acting competes with its plan; in a sentence only the plan speaks. Policies
/// that thought `so act` took another action than their plan's first in two steps of five.
pub(super) fn settled(action: &str) -> String {
    format!("so {action}")
}

/// What a block imagines: one step's future, already rendered as lines.
pub struct Imagined {
    /// One line a step: the action, a verb of the world's own, the state.
    pub lines: Vec<String>,
    /// The verb that parts action and state in each line, with its spaces.
    pub verb: String,
    /// For `<keyword>` and `<analysis>`.
    pub summary: (String, String),
    /// Success estimate, in percent on the grid.
    pub percent: u8,
}

/// A block as free text, in a phrasing drawn at random, and the action that is settled on.
pub fn prose(imagined: &Imagined, action: &str, rng: &mut ChaCha8Rng) -> Script {
    let pick = |from: &[&'static str], rng: &mut ChaCha8Rng| from.choose(rng).copied().unwrap_or("");
    let (opening, joint) = (pick(&OPENINGS, rng), pick(&JOINTS, rng));
    let mut script = vec![(Piece::WorldModel, opening.to_string())];
    for (index, line) in imagined.lines.iter().enumerate() {
        let (action, state) = line.split_once(&imagined.verb).unwrap_or((line, ""));
        let joint = if index == 0 { "" } else { joint };
        script.push((Piece::Plan, format!("{joint}{action}")));
        script.push((Piece::WorldModel, imagined.verb.trim_end().to_string()));
        script.push((Piece::State, format!(" {state}")));
    }
    let (keyword, analysis) = &imagined.summary;
    let concluded: &[&String] = match rng.random_range(0..4) {
        0 | 1 => &[analysis],
        2 => &[keyword, analysis],
        _ => &[],
    };
    for text in concluded {
        script.push((Piece::WorldModel, " . ".into()));
        script.push((Piece::State, (*text).clone()));
    }
    let (before, after) = ODDS.choose(rng).copied().unwrap_or(ODDS[0]);
    script.push((Piece::WorldModel, before.into()));
    script.push((Piece::Odds, imagined.percent.to_string()));
    script.push((Piece::WorldModel, format!("{after} ")));
    script.push((Piece::Settled, format!("{} ", settled(action))));
    script.retain(|(_, text)| !text.is_empty());
    script
}

/// A whole turn in the tagged format, its action included.
pub fn tagged(imagined: &Imagined, action: &str) -> Script {
    let mut script = vec![(Piece::WorldModel, "<imaginary>".to_string())];
    for (index, line) in imagined.lines.iter().enumerate() {
        let (act, state) = line.split_once(&imagined.verb).unwrap_or((line, ""));
        let joint = if index == 0 { "" } else { "\n" };
        script.push((Piece::Plan, format!("{joint}{act}")));
        script.push((Piece::WorldModel, imagined.verb.trim_end().to_string()));
        script.push((Piece::State, format!(" {state}")));
    }
    let (keyword, analysis) = &imagined.summary;
    let summary = format!("</imaginary><keyword>{keyword}</keyword><analysis>{analysis}</analysis><confidence>");
    script.push((Piece::WorldModel, summary));
    script.push((Piece::Odds, imagined.percent.to_string()));
    script.push((Piece::WorldModel, "</confidence>".to_string()));
    let think = settled(action);
    script.push((Piece::Settled, format!("\n<think>{think}</think><action>{action}</action>{END}")));
    script
}

/// The turn that [`tagged`] writes, as the one parser of foresight reads it.
#[must_use]
pub fn as_foresight(imagined: &Imagined, action: &str) -> Option<Foresight> {
    Some(Foresight {
        imaginary: imagined.lines.clone(),
        keyword: vec![imagined.summary.0.clone()],
        analysis: imagined.summary.1.clone(),
        stated: Stated::from_percent(imagined.percent)?,
        think: settled(action),
        action: action.into(),
    })
}

/// Whether the turn is what the grammar renders: a stage must not teach a format that the parser refuses.
#[must_use]
pub fn keeps_to_grammar(script: &Script, imagined: &Imagined, action: &str) -> bool {
    let text: String = script.iter().map(|it| it.1.as_str()).collect();
    as_foresight(imagined, action).is_some_and(|it| text == format!("{}{END}", foresight::render(&it)))
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn imagined() -> Imagined {
        Imagined {
            lines: vec!["use 8 - 7 numbers 1 9".into(), "use 9 * 1 numbers 9".into()],
            verb: " numbers ".into(),
            summary: ("reach 9".into(), "goal 9 right".into()),
            percent: 65,
        }
    }

    #[test]
    fn tagged_turns_are_what_the_grammar_renders() {
        let script = tagged(&imagined(), "use 8 - 7");
        assert!(keeps_to_grammar(&script, &imagined(), "use 8 - 7"));
        let text: String = script.into_iter().map(|it| it.1).collect();
        let parsed = foresight::parse(text.strip_suffix(END).unwrap()).unwrap();
        assert_eq!(parsed, as_foresight(&imagined(), "use 8 - 7").unwrap());
    }

    #[test]
    fn prose_has_many_phrasings_and_no_tags() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut texts: Vec<String> =
            (0..400).map(|_| prose(&imagined(), "use 8 - 7", &mut rng).into_iter().map(|it| it.1).collect()).collect();
        assert!(texts.iter().all(|it| !it.contains('<') && it.contains("65") && it.contains("1 9")));
        texts.sort();
        texts.dedup();
        assert!(texts.len() >= 40, "{} phrasings", texts.len());
    }
}
