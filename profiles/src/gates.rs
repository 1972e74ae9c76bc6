//! Gate profiles: the limits a quantized file is judged by for one deployment target.

use serde::{Deserialize, Serialize};

use crate::ProfileError;

/// Names and texts of the shipped gate profiles, strictest first.
pub const GATE_PROFILES: [(&str, &str); 3] = [
    ("8-bit", include_str!("../8-bit.toml")),
    ("4-bit", include_str!("../4-bit.toml")),
    ("demo", include_str!("../demo.toml")),
];

/// The limits of one deployment target, as written in TOML. Shares and rates are fractions.
///
/// The same fields, under the same names, as the profile that `fsq-calibrate` judges by; whether the
/// numbers make sense is checked there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateProfile {
    /// The name reports use.
    pub name: String,
    /// Fewest paired tasks a verdict may rest on.
    pub episodes_min: u64,
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Bootstrap seed.
    pub seed: u64,
    /// Most task success that may be lost.
    pub success_loss_max: f64,
    /// Most the Brier score of the stated probability may rise.
    pub brier_rise_max: f64,
    /// Most the Brier score after each artefact's own recalibration map may rise.
    pub brier_recalibrated_rise_max: f64,
    /// Whether the recalibration map may make up for the Brier score as stated.
    pub recalibration_excuses_brier: bool,
    /// Largest signed gap of the estimate.
    pub signed_gap_max: f64,
    /// Most AUROC that may be lost.
    pub auroc_loss_max: f64,
    /// Most rollout fidelity that may be lost one step ahead.
    pub fidelity_first_loss_max: f64,
    /// Most rollout fidelity that may be lost at the longest horizon.
    pub fidelity_last_loss_max: f64,
    /// Floor of the parse rate.
    pub parse_rate_min: f64,
    /// Most parse rate that may be lost.
    pub parse_rate_loss_max: f64,
    /// Most the tokens per episode may grow, relative.
    pub tokens_growth_max: f64,
    /// Brier skill the estimate needs to be called usable.
    pub usable_brier_skill_min: f64,
    /// AUROC the estimate needs to be called usable.
    pub usable_auroc_min: f64,
}

impl GateProfile {
    /// The shipped profile of a name.
    ///
    /// # Errors
    /// A name that is not in [`GATE_PROFILES`].
    pub fn shipped(name: &str) -> Result<Self, ProfileError> {
        let unknown =
            || ProfileError::Unknown { name: name.to_owned(), expected: GATE_PROFILES.map(|it| it.0).join(", ") };
        let (name, text) = GATE_PROFILES.into_iter().find(|it| it.0 == name).ok_or_else(unknown)?;
        Self::parse(text, name)
    }

    /// Reads a profile from TOML; `origin` is where the text comes from, for the error.
    ///
    /// # Errors
    /// Text that is not TOML, a field missing, unknown or of the wrong type.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ProfileError> {
        toml::from_str(text)
            .map_err(|source| ProfileError::Malformed { origin: origin.to_owned(), source: Box::new(source) })
    }
}

#[cfg(test)]
mod tests {
    //! Every shipped profile parses, and only what is a profile does.
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

    use super::*;

    #[test]
    fn every_shipped_profile_parses_under_its_own_name() {
        for (name, _) in GATE_PROFILES {
            assert_eq!(GateProfile::shipped(name).unwrap().name, name);
        }
    }

    #[test]
    fn every_profile_of_the_folder_is_shipped() {
        let entries = std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut files: Vec<String> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        files.retain(|it| it.ends_with(".toml") && it != "Cargo.toml");
        files.sort();
        let mut shipped = GATE_PROFILES.map(|it| format!("{}.toml", it.0));
        shipped.sort();
        assert_eq!(files, shipped);
    }

    #[test]
    fn stricter_profiles_come_first() {
        let [eight, four, demo] = GATE_PROFILES.map(|it| GateProfile::shipped(it.0).unwrap());
        for (strict, loose) in [(&eight, &four), (&four, &demo)] {
            assert!(strict.success_loss_max < loose.success_loss_max);
            assert!(strict.brier_rise_max < loose.brier_rise_max);
            assert!(strict.auroc_loss_max < loose.auroc_loss_max);
            assert!(strict.parse_rate_min > loose.parse_rate_min);
        }
    }

    #[test]
    fn what_is_no_profile_is_named() {
        let error = GateProfile::shipped("2-bit").unwrap_err().to_string();
        assert_eq!(error, "gate profile `2-bit`: expected one of 8-bit, 4-bit, demo, found no such profile");
        let text = GATE_PROFILES[0].1;
        let refused = |text: &str| GateProfile::parse(text, "mine.toml").unwrap_err().to_string();
        assert!(refused(&format!("{text}\nspeed_min = 1.0")).contains("speed_min"));
        assert!(refused(&text.replace("auroc_loss_max", "auroc_loss")).contains("auroc_loss"));
        assert!(refused(&text.replace("auroc_loss_max = 0.01", "auroc_loss_max = \"x\"")).starts_with("mine.toml: "));
        assert!(refused("= 3").starts_with("mine.toml: "));
    }
}
