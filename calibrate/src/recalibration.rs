//! Recalibration maps: from what a policy states to what such statements have meant.
//!
//! A map is fitted per artefact, after quantization, on outcomes that no gate uses, and travels as
//! metadata beside the weights. Every map is monotone, so it never changes which of two statements is
//! the higher one. [`RecalibrationMap::apply`] is the only maker of an [`Estimate`].

mod cross_fit;
mod isotonic;
mod logistic;
mod metadata;
mod venn_abers;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::intervals::Interval;
use crate::metrics::{Outcome, Tally};
use crate::stated::Stated;
pub use cross_fit::cross_fitted;
use isotonic::Knots;
use venn_abers::TwoSided;

/// A probability of success after a recalibration map: what a server may act on and hand out.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
pub struct Estimate(f64);

impl Estimate {
    /// The probability, in `0..=1`.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The shape of a map, simplest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// The estimate is what was stated.
    Identity,
    /// `q + w (b - q)`: towards the base rate `b`, by `w = n / (n + 50)`.
    Shrinkage,
    /// `sigmoid(a logit q)`: sharper or blunter, never shifted.
    Temperature,
    /// `sigmoid(a logit q + c)` (Platt 1999).
    Platt,
    /// `sigmoid(a ln q - b ln(1 - q) + c)` (Kull, Silva Filho & Flach 2017).
    Beta,
    /// Monotone, linear between the means of blocks of at least 20 outcomes.
    Isotonic,
    /// Two isotonic fits, one for each outcome the next plan may have (Vovk, Petej & Fedorova 2015): the
    /// only family with an interval for each statement. Never chosen unasked.
    #[serde(rename = "venn-abers")]
    VennAbers,
}

impl Family {
    /// All families, simplest first.
    pub const ALL: [Family; 7] = [
        Family::Identity,
        Family::Shrinkage,
        Family::Temperature,
        Family::Platt,
        Family::Beta,
        Family::Isotonic,
        Family::VennAbers,
    ];

    /// The name in metadata and reports.
    pub fn name(self) -> &'static str {
        match self {
            Family::Identity => "identity",
            Family::Shrinkage => "shrinkage",
            Family::Temperature => "temperature",
            Family::Platt => "platt",
            Family::Beta => "beta",
            Family::Isotonic => "isotonic",
            Family::VennAbers => "venn-abers",
        }
    }

    /// The family of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// The richest family `n` outcomes can carry (thresholds: Kull et al. 2017 and 2002.10199).
    ///
    /// From 100 to 500 Platt's map is taken before temperature: the commonest fault is a level that
    /// is too high or too low everywhere, which temperature cannot express.
    pub fn for_outcomes(n: usize) -> Self {
        match n {
            0 => Family::Identity,
            1..100 => Family::Shrinkage,
            100..500 => Family::Platt,
            500..=2000 => Family::Beta,
            _ => Family::Isotonic,
        }
    }
}

/// Why a map could not be fitted or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecalibrationError {
    /// Too few outcomes for the family.
    #[error(
        "recalibration family `{family}`: expected at least {expected} outcomes, found \
         {found}",
        family = .family.name()
    )]
    TooFew {
        /// The family asked for.
        family: Family,
        /// How many it needs.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// All outcomes succeed, or all fail: nothing tells where the odds change.
    #[error(
        "recalibration family `{family}`: expected both successes and failures, found only \
         {found}",
        family = .family.name()
    )]
    OneClass {
        /// The family asked for.
        family: Family,
        /// `successes` or `failures`.
        found: &'static str,
    },
    /// The fit did not settle on finite parameters.
    #[error(
        "recalibration family `{family}`: expected the fit to converge, found none in \
         {iterations} iterations",
        family = .family.name()
    )]
    NotConverged {
        /// The family asked for.
        family: Family,
        /// How many steps were tried.
        iterations: usize,
    },
    /// Metadata holds some keys of a map but not this one.
    #[error("metadata key `{key}`: expected a value beside the other `fsq.recalibration` keys, found none")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value is not what the key holds.
    #[error("metadata key `{key}`: expected {expected}, found `{found}`")]
    InvalidValue {
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
        /// What it holds, cut to a readable length.
        found: String,
    },
}

/// A map from stated to estimate, with what is needed to say where it came from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecalibrationMap {
    curve: Curve,
    n: usize,
    digest: String,
}

/// The function itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "family")]
enum Curve {
    Identity,
    Shrinkage {
        weight: f64,
        base_rate: f64,
    },
    Temperature {
        slope: f64,
    },
    Platt {
        slope: f64,
        offset: f64,
    },
    Beta {
        success_slope: f64,
        failure_slope: f64,
        offset: f64,
    },
    Isotonic(Knots),
    #[serde(rename = "venn-abers")]
    VennAbers(TwoSided),
}

impl RecalibrationMap {
    /// The map that changes nothing, fitted on nothing.
    pub fn identity() -> Self {
        Self { curve: Curve::Identity, n: 0, digest: digest(&[]) }
    }

    /// Fits the family [`Family::for_outcomes`] names. Outcomes of one class, which carry no slope,
    /// get shrinkage whatever their number; no outcomes get the identity.
    pub fn fit(outcomes: &[Outcome]) -> Result<Self, RecalibrationError> {
        let family = match (single_class(outcomes), outcomes.len()) {
            (Some(_), 1..) => Family::Shrinkage,
            (_, n) => Family::for_outcomes(n),
        };
        Self::fit_family(family, outcomes)
    }

    /// Fits one family.
    ///
    /// # Errors
    /// Shrinkage needs one outcome, the parametric families and Venn–Abers ten and both classes, isotonic a
    /// block.
    pub fn fit_family(family: Family, outcomes: &[Outcome]) -> Result<Self, RecalibrationError> {
        let expected = match family {
            Family::Identity => 0,
            Family::Shrinkage => 1,
            Family::Temperature | Family::Platt | Family::Beta => logistic::OUTCOMES_MIN,
            Family::Isotonic => isotonic::BLOCK_MIN,
            Family::VennAbers => venn_abers::OUTCOMES_MIN,
        };
        let found = outcomes.len();
        if found < expected {
            return Err(RecalibrationError::TooFew { family, expected, found });
        }
        if !matches!(family, Family::Identity | Family::Shrinkage)
            && let Some(found) = single_class(outcomes)
        {
            return Err(RecalibrationError::OneClass { family, found });
        }
        let tally = Tally::of(outcomes);
        let curve = match family {
            Family::Identity => Curve::Identity,
            Family::Shrinkage => shrinkage(outcomes),
            Family::Temperature => {
                let [slope, ..] = logistic::fit(family, &tally)?;
                Curve::Temperature { slope }
            }
            Family::Platt => {
                let [slope, _, offset] = logistic::fit(family, &tally)?;
                Curve::Platt { slope, offset }
            }
            Family::Beta => {
                let [success_slope, failure_slope, offset] = logistic::fit(family, &tally)?;
                Curve::Beta { success_slope, failure_slope, offset }
            }
            Family::Isotonic => Curve::Isotonic(isotonic::fit(&tally)),
            Family::VennAbers => Curve::VennAbers(venn_abers::fit(&tally)),
        };
        Ok(Self { curve, n: outcomes.len(), digest: digest(outcomes) })
    }

    /// The estimate for a stated probability.
    ///
    /// A fitted map never claims more certainty than its outcomes could show: estimates stay at least
    /// `1 / (n + 2)` away from 0 and 1. The identity passes 0 and 1 on as they are.
    pub fn apply(&self, stated: Stated) -> Estimate {
        let q = stated.value();
        let [success, failure] = logistic::features(q);
        let estimate = match &self.curve {
            Curve::Identity => return Estimate(q),
            Curve::Shrinkage { weight, base_rate } => q + weight * (base_rate - q),
            Curve::Temperature { slope } => logistic::sigmoid(slope * (success + failure)),
            Curve::Platt { slope, offset } => logistic::sigmoid(slope * (success + failure) + offset),
            Curve::Beta { success_slope, failure_slope, offset } => {
                logistic::sigmoid(success_slope * success + failure_slope * failure + offset)
            }
            Curve::Isotonic(knots) => knots.at(q),
            Curve::VennAbers(sides) => sides.at(q),
        };
        let certainty_max = 1.0 / (self.n as f64 + 2.0);
        Estimate(estimate.clamp(certainty_max, 1.0 - certainty_max))
    }

    /// The two probabilities between which the estimate lies, where the family knows them (Venn–Abers): how
    /// little is known about statements like this one. `None` for the other families.
    pub fn interval(&self, stated: Stated) -> Option<Interval> {
        match &self.curve {
            Curve::VennAbers(sides) => Some(sides.interval(stated.value())),
            _ => None,
        }
    }

    /// The family of this map.
    pub fn family(&self) -> Family {
        match self.curve {
            Curve::Identity => Family::Identity,
            Curve::Shrinkage { .. } => Family::Shrinkage,
            Curve::Temperature { .. } => Family::Temperature,
            Curve::Platt { .. } => Family::Platt,
            Curve::Beta { .. } => Family::Beta,
            Curve::Isotonic(_) => Family::Isotonic,
            Curve::VennAbers(_) => Family::VennAbers,
        }
    }

    /// The parameters in the order they are stored: shrinkage `weight, base rate`; temperature `a`;
    /// Platt `a, c`; beta `a, b, c`; isotonic all places, then all values; Venn–Abers all places,
    /// then all probabilities had the next plan failed, then all had it succeeded.
    pub fn parameters(&self) -> Vec<f64> {
        match &self.curve {
            Curve::Identity => Vec::new(),
            Curve::Shrinkage { weight, base_rate } => vec![*weight, *base_rate],
            Curve::Temperature { slope } => vec![*slope],
            Curve::Platt { slope, offset } => vec![*slope, *offset],
            Curve::Beta { success_slope, failure_slope, offset } => {
                vec![*success_slope, *failure_slope, *offset]
            }
            Curve::Isotonic(knots) => knots.parameters(),
            Curve::VennAbers(sides) => sides.parameters(),
        }
    }

    /// How many outcomes it was fitted on.
    pub fn n(&self) -> usize {
        self.n
    }

    /// SHA-256 of those outcomes, in hexadecimal, whatever their order was.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether these are the outcomes it was fitted on.
    pub fn was_fitted_on(&self, outcomes: &[Outcome]) -> bool {
        self.n == outcomes.len() && self.digest == digest(outcomes)
    }

    /// The outcomes with this map's estimates in place of what was stated.
    pub fn applied(&self, outcomes: &[Outcome]) -> Vec<Outcome> {
        let estimate = |it: &Outcome| {
            // What an outcome holds is a probability already.
            let stated = Stated::new(it.probability()).ok()?;
            Some(Outcome::of_estimate(self.apply(stated), it.success(), it.cluster()))
        };
        outcomes.iter().filter_map(estimate).collect()
    }
}

/// The maps that travel with one file: one over everything, and one for each environment that was fitted apart.
///
/// What a policy states means different things in different worlds; one map over two of them is calibrated in neither.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecalibrationMaps {
    overall: RecalibrationMap,
    by_environment: BTreeMap<String, RecalibrationMap>,
}

impl RecalibrationMaps {
    /// One map for all places alike.
    pub fn overall(map: RecalibrationMap) -> Self {
        Self { overall: map, by_environment: BTreeMap::new() }
    }

    /// Fits a map in each environment, and one over all their outcomes.
    ///
    /// # Errors
    /// As [`RecalibrationMap::fit`].
    pub fn fit(outcomes: &BTreeMap<String, Vec<Outcome>>) -> Result<Self, RecalibrationError> {
        let all: Vec<Outcome> = outcomes.values().flatten().copied().collect();
        let fit = |(environment, own): (&String, &Vec<Outcome>)| Ok((environment.clone(), RecalibrationMap::fit(own)?));
        Ok(Self {
            overall: RecalibrationMap::fit(&all)?,
            by_environment: outcomes.iter().map(fit).collect::<Result<_, _>>()?,
        })
    }

    /// The map of an environment; the one over everything where it has none of its own, or none is named.
    pub fn of(&self, environment: Option<&str>) -> &RecalibrationMap {
        environment.and_then(|it| self.by_environment.get(it)).unwrap_or(&self.overall)
    }
}

/// Which class all outcomes belong to, if they do; both for no outcomes, called `failures`.
fn single_class(outcomes: &[Outcome]) -> Option<&'static str> {
    let successes = outcomes.iter().filter(|it| it.success()).count();
    if successes == 0 { Some("failures") } else { (successes == outcomes.len()).then_some("successes") }
}

fn shrinkage(outcomes: &[Outcome]) -> Curve {
    let n = outcomes.len() as f64;
    let successes = outcomes.iter().filter(|it| it.success()).count() as f64;
    // The rule of succession: a handful of successes must not pull towards certainty.
    Curve::Shrinkage { weight: n / (n + 50.0), base_rate: (successes + 1.0) / (n + 2.0) }
}

/// SHA-256 over the outcomes as sorted records of (cluster, probability bits, success).
fn digest(outcomes: &[Outcome]) -> String {
    let mut records: Vec<(u64, u64, bool)> =
        outcomes.iter().map(|it| (it.cluster(), it.probability().to_bits(), it.success())).collect();
    records.sort_unstable();
    let mut hasher = Sha256::new();
    for (cluster, probability, success) in records {
        hasher.update(cluster.to_le_bytes());
        hasher.update(probability.to_le_bytes());
        hasher.update([u8::from(success)]);
    }
    hex(&hasher.finalize())
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
