//! A run file: the recipes of the stages, every value written out.

use serde::{Deserialize, Serialize};

use crate::stages::base::BaseConfig;
use crate::stages::fc_rl::RlConfig;
use crate::stages::text::TextConfig;

/// A run file as TOML. Unknown keys are errors; there are no defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// A base from scratch.
    pub base: Option<BaseConfig>,
    /// Mid-training with world-model blocks.
    pub wm_amt: Option<TextConfig>,
    /// Mid-training on the same kind of episodes without blocks.
    pub control: Option<TextConfig>,
    /// Fine-tuning on the tagged format.
    pub fe_sft: Option<TextConfig>,
    /// Reinforcement with calibration.
    pub fc_rl: Option<RlConfig>,
}

impl Recipe {
    /// Reads a run file.
    ///
    /// # Errors
    /// What TOML says: line, key, expected, found.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_recipes_parse_and_unknown_keys_do_not() {
        for text in [
            include_str!("../../recipes/base.toml"),
            include_str!("../../recipes/demo.toml"),
            include_str!("../../recipes/demo-quick.toml"),
        ] {
            Recipe::parse(text).unwrap();
        }
        let error = Recipe::parse("seed = 1\nsteps = 3\n").unwrap_err().to_string();
        assert!(error.contains("steps"), "{error}");
    }
}
