//! Gates: is a candidate artefact no worse than the reference it was made from?
//!
//! Both play the same tasks; every gate looks at one property, pairwise. All gates must pass, so each
//! one runs at a one-sided 5 % without correction for their number (intersection-union test). "Not
//! significantly worse" is no evidence of harmlessness: a gate passes only when harm beyond its limit
//! is ruled out.
//!
//! # The rule
//!
//! Harm is measured so that positive is worse. Its interval is two-sided 90 %, so each end is a
//! one-sided 95 % bound. With limit `m`, `n` tasks, and `s` the standard deviation of harm per task:
//!
//! | verdict | when |
//! |---|---|
//! | pass | the upper end is below `m` |
//! | fail | the lower end is above `m`; or the measured harm is at least `m` and `n` is large enough (below) |
//! | inconclusive | otherwise, with the tasks that would be needed |
//!
//! [`judge`] looks once. Where tasks are played until the answer is clear, [`looks`] says how often and at
//! which stricter level to look, and [`judge_look`] judges: intervals are then wider than 90 %, and only the
//! last look fails what merely seems harmful.
//!
//! Large enough is `n ≥ ((1.645 + 0.842) s / m)²`: so many tasks that a harmless candidate would have
//! passed four times in five.
//!
//! Fewer than `episodes_min` tasks are always inconclusive; so are fewer than half as many for a gate
//! that only part of the episodes can inform (a stated probability, a long horizon). Success uses
//! Tango's score interval, which is honest when no task flips; the rest resamples tasks and corrects the
//! interval for skewness (BCa), without which rare slips pass too often.
//!
//! G2b judges what the artefact's own recalibration map makes of its statements. Without a map it is
//! set aside; with one it always counts, and a profile may let it make up for G2 (the map is then
//! required at serve time).
//!
//! # Absolute limits are judged against the reference
//!
//! Quantization answers for what it changes. A reference that is itself 40 points overconfident does
//! not make an identical copy fail; the label [`Confidence`] says what such a policy is worth.
//! - **G3, signed gap.** Harm is how much further from 0 the candidate's gap lies, on the side it errs
//!   to, than the reference's on that same side: an error to the other side excuses nothing. The gate
//!   also passes when the candidate's gap lies within the limit by itself.
//! - **G6, parse rate.** The absolute floor counts only where the reference reaches it. A candidate
//!   then below the floor fails if its upper bound is below too, and is inconclusive if not.

mod judge;
mod pairs;
mod report;
mod sequence;
mod verdict;

use serde::{Deserialize, Serialize};

pub use judge::{judge, judge_look};
pub use report::{Confidence, Flips, GateResult, Passed, Report, Verdict};
pub use sequence::{Look, looks};

use crate::recalibration::RecalibrationMap;
use crate::stated::Stated;

/// What one episode of one task showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeRecord {
    /// The task, the same number for reference and candidate; one episode for each.
    pub task: u64,
    /// Whether the episode succeeded; a malformed step makes it fail.
    pub success: bool,
    /// The stated probability at the first step, as an expectation; `None` if it could not be read.
    pub stated: Option<Stated>,
    /// Share of the imagined state that came true, in `0..=1`, for horizons 1, 2, ..; `None` where
    /// nothing was imagined or the episode had ended.
    pub fidelity: Vec<Option<f64>>,
    /// Steps played, malformed ones included.
    pub steps: u32,
    /// Steps whose text parsed, without any grammar constraint on sampling.
    pub steps_parsed: u32,
    /// Tokens generated in the episode.
    pub tokens: u32,
}

/// What one artefact showed over many tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// One record for each task, in any order.
    pub episodes: Vec<EpisodeRecord>,
    /// The artefact's own map, fitted on other tasks; `None`: estimates are what was stated.
    pub recalibration: Option<RecalibrationMap>,
}

/// The limits of one deployment target. Shares and rates are fractions: 0.02 is two points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateProfile {
    /// The name reports use.
    pub name: String,
    /// Fewest paired tasks any verdict but inconclusive rests on.
    pub episodes_min: u64,
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Bootstrap seed.
    pub seed: u64,
    /// G1: most task success that may be lost.
    pub success_loss_max: f64,
    /// G2: most the Brier score of the stated probability may rise.
    pub brier_rise_max: f64,
    /// G2b: most the Brier score after each artefact's own recalibration map may rise.
    pub brier_recalibrated_rise_max: f64,
    /// Whether passing G2b excuses G2; the map is then required at serve time.
    pub recalibration_excuses_brier: bool,
    /// G3: largest signed gap of the estimate.
    pub signed_gap_max: f64,
    /// G4: most AUROC that may be lost.
    pub auroc_loss_max: f64,
    /// G5: most rollout fidelity that may be lost one step ahead.
    pub fidelity_first_loss_max: f64,
    /// G5: most rollout fidelity that may be lost at the longest horizon.
    pub fidelity_last_loss_max: f64,
    /// G6: the floor of the parse rate.
    pub parse_rate_min: f64,
    /// G6: most parse rate that may be lost.
    pub parse_rate_loss_max: f64,
    /// G7: most the tokens per episode may grow, relative.
    pub tokens_growth_max: f64,
    /// Brier skill the estimate needs to be called usable.
    pub usable_brier_skill_min: f64,
    /// AUROC the estimate needs to be called usable.
    pub usable_auroc_min: f64,
}

impl GateProfile {
    /// Whether these limits can be judged by.
    ///
    /// # Errors
    /// A margin that is not above 0 and at most 1, a rate outside `0..=1`, too few resamples, or an
    /// `episodes_min` at which an identical copy could not pass G1.
    pub fn check(&self) -> Result<(), GateError> {
        let margins = [
            ("success_loss_max", self.success_loss_max),
            ("brier_rise_max", self.brier_rise_max),
            ("brier_recalibrated_rise_max", self.brier_recalibrated_rise_max),
            ("signed_gap_max", self.signed_gap_max),
            ("auroc_loss_max", self.auroc_loss_max),
            ("fidelity_first_loss_max", self.fidelity_first_loss_max),
            ("fidelity_last_loss_max", self.fidelity_last_loss_max),
            ("parse_rate_loss_max", self.parse_rate_loss_max),
            ("tokens_growth_max", self.tokens_growth_max),
        ];
        let rates = [
            ("parse_rate_min", self.parse_rate_min),
            ("usable_brier_skill_min", self.usable_brier_skill_min),
            ("usable_auroc_min", self.usable_auroc_min),
        ];
        let expected = "a margin above 0 and at most 1";
        for (field, found) in margins {
            self.fits(found > 0.0 && found <= 1.0, field, expected, found)?;
        }
        for (field, found) in rates {
            self.fits((0.0..=1.0).contains(&found), field, "a number in 0..=1", found)?;
        }
        let resamples = self.resamples as f64;
        self.fits((100..=100_000).contains(&self.resamples), "resamples", "100 to 100000", resamples)?;
        let z2 = verdict::Z_BOUND * verdict::Z_BOUND;
        let n = self.episodes_min as f64;
        let decidable = z2 / (n + z2) < self.success_loss_max;
        self.fits(decidable, "episodes_min", "enough tasks for an identical copy to pass success_loss_max", n)
    }

    fn fits(&self, fits: bool, field: &'static str, expected: &'static str, found: f64) -> Result<(), GateError> {
        let profile = self.name.clone();
        if fits { Ok(()) } else { Err(GateError::Profile { profile, field, expected, found }) }
    }
}

/// Why two evaluations cannot be judged, or a report not be released.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GateError {
    /// A limit that cannot be judged by.
    #[error("gate profile `{profile}`, field `{field}`: expected {expected}, found {found}")]
    Profile {
        /// The profile.
        profile: String,
        /// The field.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        found: f64,
    },
    /// A task that only one side played.
    #[error("task {task}: expected an episode of reference and candidate, found none of the {missing}")]
    Unpaired {
        /// The task.
        task: u64,
        /// The side without it.
        missing: &'static str,
    },
    /// A task one side played twice.
    #[error("task {task}: expected one episode of the {side}, found more")]
    Repeated {
        /// The task.
        task: u64,
        /// The side.
        side: &'static str,
    },
    /// A record that contradicts itself.
    #[error("task {task} of the {side}, field `{field}`: expected {expected}, found {found}")]
    Record {
        /// The task.
        task: u64,
        /// The side.
        side: &'static str,
        /// The field.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        found: f64,
    },
    /// A gate was to be overridden without saying why.
    #[error("override reason: expected a sentence, found `{found}`")]
    NoReason {
        /// What was given.
        found: String,
    },
}
