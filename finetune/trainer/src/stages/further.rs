//! Worlds beyond the two that the shipped base knows: named in run files, with what a stage takes of each.

use std::collections::BTreeMap;

use fsq_environments::{AnyWorld, Countdown, DocHop, Environment, in_world};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// The name of the run's own world, which its table `[environment]` describes.
pub const OWN: &str = "own";

/// What a stage that learns from text takes of a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FurtherText {
    /// Share of the tokens, beside those in `mix`.
    pub share: f64,
    /// Traces, where the stage reads a fixed set.
    pub traces: usize,
}

/// What FC-RL takes of a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FurtherTasks {
    /// Tasks of a step.
    pub tasks: usize,
    /// Tasks of a step that are played greedily, once each, for the confidence.
    pub calibration_tasks: usize,
}

/// A world of a stage, and what the stage takes of it.
pub struct Further<'a, T> {
    opened: Opened<'a>,
    /// What is taken.
    pub taken: T,
}

enum Opened<'a> {
    Ours(AnyWorld),
    Own(&'a AnyWorld),
}

impl<T> Further<'_, T> {
    /// The world.
    pub fn world(&self) -> &AnyWorld {
        match &self.opened {
            Opened::Ours(world) => world,
            Opened::Own(world) => world,
        }
    }
}

/// The worlds of a stage's table `further`, which errors call `table`, in the order of their names.
///
/// # Errors
/// A name that is none of ours, or the run's own world where the run file describes none.
pub fn further<'a, T: Copy>(
    table: &str,
    named: &BTreeMap<String, T>,
    own: Option<&'a AnyWorld>,
) -> Result<Vec<Further<'a, T>>, TrainError> {
    let fault = |name: &str, expected: &str, found: &str| TrainError::Config {
        field: format!("{table}.{name}"),
        expected: expected.into(),
        found: found.into(),
    };
    let open = |(name, taken): (&String, &T)| {
        let opened = match (name.as_str(), own, AnyWorld::named(name)) {
            (OWN, Some(own), _) => Opened::Own(own),
            (OWN, None, _) => return Err(fault(name, "a table [environment] in the run file", "none")),
            (Countdown::NAME | DocHop::NAME, _, _) => {
                return Err(fault(name, "`dagmath`, `slipgrid` or `own`", "a world of the stage's own lists"));
            }
            (_, _, Some(world)) => Opened::Ours(world),
            (_, _, None) => return Err(fault(name, "`dagmath`, `slipgrid` or `own`", name)),
        };
        Ok(Further { opened, taken: *taken })
    };
    named.iter().map(open).collect()
}

/// How many episodes are made at a time, and how much is learnt of what the world answers.
pub(super) fn habits(world: &AnyWorld) -> (usize, f32) {
    match world {
        AnyWorld::Countdown | AnyWorld::DagMath => (1, 1.0),
        // What a search returns is mostly chance, and universes are dear to make.
        AnyWorld::DocHop => (6, 0.3),
        // Where a move goes astray is chance.
        AnyWorld::SlipGrid => (1, 0.5),
        AnyWorld::Process(_) => (1, 0.3),
        AnyWorld::Search(_) => (1, 0.05),
    }
}

/// Words of a world, from some of its episodes: what a base from scratch needs tokens for.
///
/// # Errors
/// When the world cannot go on.
pub(super) fn words(world: &AnyWorld, texts: &[String]) -> Result<Vec<String>, TrainError> {
    /// More than our own worlds have; of a user's texts the first must do.
    const WORDS_MAX: usize = 1000;
    in_world!(world, it => it.check())?;
    let mut words: Vec<String> = Vec::new();
    for word in texts.iter().flat_map(|it| it.split_whitespace()) {
        if words.len() < WORDS_MAX && !word.contains('<') && !words.iter().any(|it| it == word) {
            words.push(word.into());
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(named: &[&str], own: Option<&AnyWorld>) -> Result<Vec<String>, String> {
        let named = named.iter().map(|it| ((*it).to_string(), 1.0)).collect();
        let found = further("wm-amt.further", &named, own).map_err(|it| it.to_string())?;
        Ok(found.iter().map(|it| it.world().name().to_string()).collect())
    }

    #[test]
    fn worlds_are_found_by_name() {
        assert_eq!(names(&["slipgrid", "dagmath"], None).unwrap(), ["dagmath", "slipgrid"]);
        assert_eq!(names(&["own"], Some(&AnyWorld::SlipGrid)).unwrap(), ["slipgrid"]);
        let absent = names(&["own"], None).unwrap_err();
        assert!(absent.contains("wm-amt.further.own: expected a table [environment]"), "{absent}");
        assert!(names(&["chess"], None).unwrap_err().contains("found chess"));
        assert!(names(&["countdown"], None).unwrap_err().contains("lists"));
    }
}
