//! `report.json` of `fsq quantize`, and its short form for a terminal. Knows nothing of how files are made.

use std::path::Path;

use fsq_quantizer::EncodedTensor;
use serde::{Deserialize, Serialize};

use super::checks::Check;
use crate::output::{self, bytes_text};
use crate::report::record::GateRun;

/// `report.json`.
#[derive(Serialize)]
pub(crate) struct Document {
    pub(crate) tool: String,
    /// What makes the same files again.
    pub(crate) command: String,
    pub(crate) checkpoint: String,
    /// SHA-256 over the names, shapes and stored bytes of the checkpoint's tensors.
    pub(crate) checkpoint_sha256: String,
    pub(crate) adapters: Vec<Source>,
    /// How the adapters reach the policy that is served.
    pub(crate) deploy: &'static str,
    pub(crate) importance: Option<Source>,
    pub(crate) n_weights: usize,
    /// The profile judged by, or `none`.
    pub(crate) gate: String,
    pub(crate) files: Vec<QuantizedFile>,
}

/// Something that went into the files.
#[derive(Serialize)]
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) sha256: String,
}

/// One file.
#[derive(Serialize)]
pub(crate) struct QuantizedFile {
    pub(crate) file: String,
    /// Whether it got its name: a file that fails its gates does not.
    pub(crate) published: bool,
    pub(crate) format: &'static str,
    pub(crate) n_bytes: usize,
    pub(crate) bits_per_weight: f64,
    pub(crate) sha256: String,
    /// Of everything after the header: equal for files that differ in metadata only.
    pub(crate) data_sha256: String,
    pub(crate) seconds: f64,
    /// `not judged`, or the verdict of the gates.
    pub(crate) verdict: String,
    /// Why it got its name against that verdict.
    pub(crate) override_reason: Option<String>,
    /// What was tried after the first verdict, in order.
    pub(crate) rounds: Vec<Round>,
    /// What the file was found to have in common with the checkpoint.
    pub(crate) checks: Vec<Check>,
    /// The last judgement, by environment.
    pub(crate) gates: Vec<GateRun>,
    pub(crate) tensors: Vec<TensorRecord>,
}

/// One attempt at a file that passes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    /// What was changed, in words; the first round is the file as asked for.
    pub(crate) remedy: String,
    pub(crate) format: String,
    pub(crate) n_bytes: usize,
    /// One-sided level of every gate's bound: those of all rounds sum to at most 5 %, since the first file that passes
    /// is taken. Nothing where the round was passed over.
    pub(crate) level: Option<f64>,
    pub(crate) verdict: String,
    /// The gates that did not pass, in words.
    pub(crate) sentences: Vec<String>,
}

/// What became of one tensor; [`EncodedTensor`] as a file holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TensorRecord {
    pub(crate) name: String,
    pub(crate) format: String,
    /// What the recipe wanted: another format where the rows are not whole blocks of it.
    pub(crate) wanted: String,
    pub(crate) n_weights: usize,
    pub(crate) n_bytes: usize,
    pub(crate) relative_error: f64,
    pub(crate) importance: bool,
    /// How its codes were chosen.
    pub(crate) codes: String,
}

impl From<EncodedTensor> for TensorRecord {
    fn from(it: EncodedTensor) -> Self {
        Self {
            name: it.name,
            format: it.format.into(),
            wanted: it.wanted.into(),
            n_weights: it.n_weights,
            n_bytes: it.n_bytes,
            relative_error: it.relative_error,
            importance: it.importance,
            codes: it.codes.name().into(),
        }
    }
}

/// Bits per weight over some tensors.
#[expect(clippy::cast_precision_loss, reason = "bits per weight, to two places")]
pub(super) fn bits_per_weight(tensors: &[TensorRecord]) -> f64 {
    let sum = |of: fn(&TensorRecord) -> usize| tensors.iter().map(of).sum::<usize>();
    8.0 * sum(|it| it.n_bytes) as f64 / sum(|it| it.n_weights).max(1) as f64
}

/// What a terminal shows.
pub(super) fn text(document: &Document, out: &Path) -> String {
    let mut rows = vec![["file", "size", "bits/weight", "largest error", "verdict"].map(str::to_owned).to_vec()];
    for file in &document.files {
        let error = file.tensors.iter().map(|it| it.relative_error).fold(0.0, f64::max);
        let verdict = if file.override_reason.is_some() { "overridden" } else { &file.verdict };
        rows.push(vec![
            out.join(&file.file).display().to_string(),
            bytes_text(file.n_bytes as u64),
            format!("{:.2}", file.bits_per_weight),
            format!("{:.2} %", 100.0 * error),
            verdict.to_owned(),
        ]);
    }
    let mut text = output::columns(&rows);
    for file in &document.files {
        for (number, round) in file.rounds.iter().enumerate() {
            let level = round.level.map_or_else(String::new, |it| format!(" (at {:.2} %, one-sided)", 100.0 * it));
            text += &format!("{}, round {number}, {}: {}{level}\n", file.file, round.remedy, round.verdict);
            text += &round.sentences.iter().map(|it| format!("  {it}\n")).collect::<String>();
        }
        if !file.published {
            text += &format!("{} did not pass its gates, so there is no file of that name\n", file.file);
        }
    }
    let other = |it: &&TensorRecord| it.format != it.wanted;
    let fell_back = document.files.iter().flat_map(|it| &it.tensors).filter(other).count();
    if fell_back > 0 {
        text += &format!("{fell_back} tensors got another format than the recipe's: see `wanted` in the report\n");
    }
    text + &format!("report: {}\n", out.join("report.html").display())
}
