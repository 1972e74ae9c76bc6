//! A run file: the recipes of the stages. What it leaves out that changes what is learnt has one value everywhere.

use fsq_environments::EnvironmentConfig;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::stages::base::BaseConfig;
use crate::stages::fc_rl::RlConfig;
use crate::stages::sft::SftConfig;
use crate::stages::text::TextConfig;

/// Edits that a key may be away from the one that was meant.
const EDITS_MAX: usize = 3;

/// A run file as TOML. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Metrics are written for TensorBoard, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tensorboard: bool,
    /// A user's own world: `own` in the tables `further` of the stages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentConfig>,
    /// A base from scratch.
    pub base: Option<BaseConfig>,
    /// Mid-training with world-model blocks.
    pub wm_amt: Option<TextConfig>,
    /// Mid-training on the same kind of episodes without blocks.
    pub control: Option<TextConfig>,
    /// Fine-tuning on a user's own records.
    pub sft: Option<SftConfig>,
    /// Fine-tuning on the tagged format.
    pub fe_sft: Option<TextConfig>,
    /// Reinforcement with calibration.
    pub fc_rl: Option<RlConfig>,
}

/// A run file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// It is no TOML, or a key or value is wrong.
    #[error("{source}")]
    Toml {
        /// Line, key, expected, found.
        source: toml::de::Error,
        /// The known key that is nearest to an unknown one.
        nearest: Option<String>,
    },
    /// A setting beside it is not `key=value`.
    #[error("--set {found}: expected KEY=VALUE with a key such as `sft.schedule.learning_rate`")]
    Setting {
        /// The setting.
        found: String,
    },
    /// A setting goes through a key that is no table.
    #[error("--set {found}: expected `{key}` to be a table, found a value")]
    NotATable {
        /// The setting.
        found: String,
        /// The key.
        key: String,
    },
}

impl From<toml::de::Error> for RecipeError {
    fn from(source: toml::de::Error) -> Self {
        let nearest = nearest_key(source.message());
        Self::Toml { source, nearest }
    }
}

impl Recipe {
    /// Reads a run file.
    ///
    /// # Errors
    /// What TOML says: line, key, expected, found.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        Ok(toml::from_str(text)?)
    }

    /// Reads a run file with settings such as `sft.lora.rank=16` over what it says. A value is TOML; what is not is
    /// a text.
    ///
    /// # Errors
    /// As [`Recipe::parse`], or the setting that is none.
    pub fn parse_with(text: &str, settings: &[String]) -> Result<Self, RecipeError> {
        if settings.is_empty() {
            return Self::parse(text);
        }
        let mut table: Table = toml::from_str(text)?;
        for setting in settings {
            set(&mut table, setting)?;
        }
        Ok(Table::try_into(table)?)
    }

    /// The run file that says all that this one does, defaults included.
    ///
    /// # Panics
    /// Never: what was read from TOML can be written as TOML.
    #[must_use]
    pub fn resolved(&self) -> String {
        let written = toml::to_string(self);
        assert!(written.is_ok(), "a recipe that was read: {written:?}");
        written.unwrap_or_default()
    }
}

/// The table `[environment]` of a run file, whatever else is in it; nothing where there is none.
///
/// # Errors
/// As [`Recipe::parse`].
pub fn environment_of(text: &str) -> Result<Option<EnvironmentConfig>, RecipeError> {
    #[derive(Deserialize)]
    struct Of {
        environment: Option<EnvironmentConfig>,
    }
    Ok(toml::from_str::<Of>(text)?.environment)
}

fn set(table: &mut Table, setting: &str) -> Result<(), RecipeError> {
    let wrong = || RecipeError::Setting { found: setting.into() };
    let (path, written) = setting.split_once('=').ok_or_else(wrong)?;
    let keys: Vec<&str> = path.trim().split('.').collect();
    if keys.iter().any(|it| it.is_empty()) {
        return Err(wrong());
    }
    let parsed: Result<Table, _> = toml::from_str(&format!("value = {written}"));
    let value = parsed.ok().and_then(|mut it| it.remove("value")).unwrap_or_else(|| Value::String(written.into()));
    let Some((last, above)) = keys.split_last() else { return Err(wrong()) };
    let mut at = table;
    for key in above {
        let inner = at.entry(*key).or_insert_with(|| Value::Table(Table::new()));
        let not_a_table = || RecipeError::NotATable { found: setting.into(), key: (*key).into() };
        at = inner.as_table_mut().ok_or_else(not_a_table)?;
    }
    at.insert((*last).into(), value);
    Ok(())
}

/// Of the keys that a message lists as expected, the one nearest to the unknown one.
fn nearest_key(message: &str) -> Option<String> {
    let (unknown, expected) = message.strip_prefix("unknown field `")?.split_once("`, expected ")?;
    let known = expected.split('`').skip(1).step_by(2);
    known.map(|it| (edits(unknown, it), it)).min().filter(|it| it.0 <= EDITS_MAX).map(|it| it.1.to_string())
}

/// Letters to insert, remove or change between two words (Levenshtein).
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.chars().enumerate() {
        let mut before = row[0];
        row[0] = index + 1;
        for (place, other) in right.iter().enumerate() {
            let changed = before + usize::from(letter != *other);
            before = row[place + 1];
            row[place + 1] = changed.min(before + 1).min(row[place] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::Course;

    const SFT: &str = "seed = 1\n[sft]\ndata = [\"a.jsonl\"]\nepochs = 2\nbatch_tokens = 64\n\
        lora = { rank = 8, alpha = 16.0 }\nrecords = { max_tokens = 32 }\nschedule = { learning_rate = 1e-3 }\n";

    #[test]
    fn shipped_recipes_parse_and_unknown_keys_do_not() {
        for text in [
            include_str!("../../recipes/base.toml"),
            include_str!("../../recipes/demo.toml"),
            include_str!("../../recipes/demo-quick.toml"),
            include_str!("../../recipes/study-smoke.toml"),
            include_str!("../../recipes/study-t1-lite.toml"),
            SFT,
        ] {
            let recipe = Recipe::parse(text).unwrap();
            assert_eq!(Recipe::parse(&recipe.resolved()).unwrap(), recipe);
        }
        let error = Recipe::parse("seed = 1\nsteps = 3\n").unwrap_err().to_string();
        assert!(error.contains("steps"), "{error}");
    }

    #[test]
    fn a_key_that_is_nearly_known_is_told() {
        for (text, expected) in [
            (SFT.replace("batch_tokens", "batch_token"), Some("batch_tokens")),
            (SFT.replace("[sft]", "[stf]"), Some("sft")),
            (SFT.replace("rank = 8", "rank = 8, anything = 1"), None),
        ] {
            let Err(RecipeError::Toml { nearest, .. }) = Recipe::parse(&text) else { panic!("{text}") };
            assert_eq!(nearest.as_deref(), expected);
        }
    }

    #[test]
    fn settings_come_over_what_the_file_says() {
        let settings = ["sft.lora.rank=4", "sft.schedule.course=cosine", "sft.records.max_tokens = 16", "seed=7"];
        let recipe = Recipe::parse_with(SFT, &settings.map(String::from)).unwrap();
        let sft = recipe.sft.unwrap();
        assert_eq!((recipe.seed, sft.lora.rank, sft.records.max_tokens), (7, 4, 16));
        assert_eq!(sft.schedule.course, Course::Cosine);
        let refused = |it: &str| Recipe::parse_with(SFT, &[it.to_string()]).unwrap_err().to_string();
        assert!(refused("sft.lora.rank").contains("expected KEY=VALUE"));
        assert!(refused("sft.epochs.more=1").contains("expected `epochs` to be a table"));
        assert!(refused("sft.lora.rnak=1").contains("rnak"));
        assert!(refused("sft.lora.rank=many").contains("rank"), "{}", refused("sft.lora.rank=many"));
    }
}
