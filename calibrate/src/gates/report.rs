//! What judging found, in numbers and sentences, and the token that a pass earns.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{GateError, Look};
use crate::intervals::Interval;
use crate::metrics::Metrics;
use crate::recalibration::hex;

/// The answer of one gate, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "answer")]
pub enum Verdict {
    /// Harm beyond the limit is ruled out.
    Pass,
    /// Harm beyond the limit is shown.
    Fail,
    /// The tasks do not decide it.
    Inconclusive {
        /// Tasks that inform the gate.
        n: u64,
        /// Tasks that would probably decide it; `None` if more of the same would not.
        n_needed: Option<u64>,
    },
}

impl Verdict {
    /// The word for reports and metadata.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Inconclusive { .. } => "inconclusive",
        }
    }
}

/// What one gate found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateResult {
    /// Short name: `G1` .. `G7`.
    pub id: &'static str,
    /// What is judged.
    pub name: String,
    /// The answer.
    pub verdict: Verdict,
    /// Whether the answer is set aside because another gate covers it (G2 and G2b).
    pub excused: bool,
    /// Tasks that inform the gate.
    pub n: u64,
    /// The reference's value.
    pub reference: Option<f64>,
    /// The candidate's value.
    pub candidate: Option<f64>,
    /// How much worse the candidate is; negative is better.
    pub measured: Option<f64>,
    /// Interval of `measured`: each end is a one-sided bound at the level of the look, 95 % for an only one.
    pub interval: Option<Interval>,
    /// Most that `measured` may be.
    pub limit: f64,
    /// All of this in words.
    pub sentence: String,
}

/// Whether the estimate is good enough to choose by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Brier skill and AUROC of the estimate reach the floor.
    Usable,
    /// They do not, or are not defined: a runtime must not select by the estimate.
    Unusable,
}

/// The judgement of a candidate. Only [`super::judge`] makes one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub(super) profile: String,
    pub(super) verdict: Verdict,
    pub(super) n: u64,
    /// See [`Report::episodes_missing`].
    pub(super) episodes_missing: Option<u64>,
    /// The look this was; the only one unless the judgement is sequential.
    pub(super) look: Look,
    pub(super) confidence: Confidence,
    pub(super) recalibration_required: bool,
    /// Tasks only the candidate solved, and tasks only the reference solved.
    pub(super) flips: Flips,
    pub(super) gates: Vec<GateResult>,
    /// Metrics of what the reference stated.
    pub(super) reference: Metrics,
    /// Metrics of what the candidate stated.
    pub(super) candidate: Metrics,
    /// Metrics of the candidate's estimates.
    pub(super) candidate_estimate: Metrics,
}

/// Tasks whose outcome differs between reference and candidate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flips {
    /// Solved by the candidate only.
    pub gained: u64,
    /// Solved by the reference only.
    pub lost: u64,
    /// McNemar's exact two-sided p-value. A large one is no evidence that nothing changed.
    pub mcnemar_p: f64,
}

impl Report {
    /// Fail if any gate fails, else inconclusive if any is, else pass; excused gates do not count.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The name of the profile judged by.
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// Paired tasks.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Episodes of each side, beyond those judged, that would probably make an inconclusive verdict a clear one.
    /// `None` for a clear verdict, or where more of the same would not do.
    pub fn episodes_missing(&self) -> Option<u64> {
        self.episodes_missing
    }

    /// The look this was, of how many, and at which level.
    pub fn look(&self) -> &Look {
        &self.look
    }

    /// Every gate, G1 first.
    pub fn gates(&self) -> &[GateResult] {
        &self.gates
    }

    /// Whether the candidate's estimate may be chosen by.
    pub fn confidence(&self) -> Confidence {
        self.confidence
    }

    /// Whether the verdict rests on the recalibration map, which must then be served with the file.
    pub fn recalibration_required(&self) -> bool {
        self.recalibration_required
    }

    /// Tasks that changed sides.
    pub fn flips(&self) -> Flips {
        self.flips
    }

    /// Metrics of what the reference stated, of what the candidate stated, of its estimates.
    pub fn metrics(&self) -> [&Metrics; 3] {
        [&self.reference, &self.candidate, &self.candidate_estimate]
    }

    /// SHA-256, in hexadecimal, of the report as compact JSON.
    pub fn digest(&self) -> String {
        // A report holds no map with keys other than strings, so it always serialises.
        hex(&Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }

    /// The token of a pass; `None` for any other verdict.
    pub fn passed(self) -> Option<Passed> {
        (self.verdict == Verdict::Pass).then_some(Passed { report: self, override_reason: None })
    }

    /// The token against the verdict, for a written reason that will travel in the file's metadata.
    ///
    /// # Errors
    /// A reason without words.
    pub fn override_with(self, reason: &str) -> Result<Passed, GateError> {
        let reason = reason.trim();
        if !reason.contains(char::is_alphabetic) {
            return Err(GateError::NoReason { found: reason.to_owned() });
        }
        Ok(Passed { report: self, override_reason: Some(reason.to_owned()) })
    }
}

/// Leave to publish an artefact under its real name. Cannot be made except by a [`Report`].
#[derive(Debug, Clone, PartialEq)]
pub struct Passed {
    report: Report,
    override_reason: Option<String>,
}

impl Passed {
    /// The report behind it.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Why the verdict was overridden, if it was.
    pub fn override_reason(&self) -> Option<&str> {
        self.override_reason.as_deref()
    }

    /// `fsq.gate.*` metadata of the file.
    pub fn to_pairs(&self) -> Vec<(&'static str, String)> {
        let confidence = match self.report.confidence {
            Confidence::Usable => "usable",
            Confidence::Unusable => "unusable",
        };
        let mut pairs = vec![
            ("fsq.gate.verdict", self.report.verdict.name().to_owned()),
            ("fsq.gate.profile", self.report.profile.clone()),
            ("fsq.gate.report_digest", self.report.digest()),
            ("fsq.gate.confidence", confidence.to_owned()),
            ("fsq.gate.recalibration_required", self.report.recalibration_required.to_string()),
        ];
        pairs.extend(self.override_reason.clone().map(|reason| ("fsq.gate.override_reason", reason)));
        pairs
    }
}
