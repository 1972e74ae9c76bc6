//! The card beside the files, `README.md`: what they are, how they were made, how they were judged, how to run them.
//! Knows only the report.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use fsq_checkpoint::Checkpoint;

use super::document::{Document, QuantizedFile};
use crate::output::{self, bytes_text};
use crate::report::record::GateRun;

const FILE: &str = "README.md";
/// By this a card of an earlier run is told from a text that someone wrote.
const MARK: &str = "<!-- written by fsq quantize -->";

/// Writes the card, unless a text that is no card has its name.
pub(super) fn write(document: &Document, checkpoint: &Checkpoint, out: &Path) -> anyhow::Result<()> {
    let path = out.join(FILE);
    if path.exists() {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        if !text.contains(MARK) {
            return Ok(());
        }
    }
    output::write_whole(&path, text(document, checkpoint).as_bytes())
}

fn text(document: &Document, checkpoint: &Checkpoint) -> String {
    let base = Path::new(&document.checkpoint).file_name().map_or("policy".into(), |it| it.to_string_lossy());
    let architecture = checkpoint.dimensions.architecture.description().gguf_name;
    let mut card = format!(
        "---\nlibrary_name: gguf\nbase_model: {}\ntags: [gguf, {architecture}, fsq]\n---\n{MARK}\n\n\
         # {base} in GGUF\n\n",
        serde_json::Value::from(&*base)
    );
    let _ = writeln!(
        card,
        "{} weights, architecture `{architecture}`, context of {} tokens.",
        document.n_weights, checkpoint.dimensions.context
    );
    card += "What the files may be used for is what the licence of the base says; this card grants nothing.\n\n";
    card += &files(document);
    card += &running(document);
    card += &verdicts(document);
    card += &checks(document);
    card += &recipe(document);
    card += &origin(document);
    card
}

fn files(document: &Document) -> String {
    let mut part =
        String::from("## Files\n\n| file | size | bits per weight | verdict | for |\n|---|---|---|---|---|\n");
    for file in &document.files {
        let name = if file.published { format!("`{}`", file.file) } else { format!("{} (not published)", file.format) };
        let _ = writeln!(
            part,
            "| {name} | {} | {:.2} | {} | {} |",
            bytes_text(file.n_bytes as u64),
            file.bits_per_weight,
            verdict(file),
            advice(file.bits_per_weight)
        );
    }
    part + "\n"
}

fn verdict(file: &QuantizedFile) -> String {
    match &file.override_reason {
        Some(reason) => format!("{}, overridden: {}", file.verdict, reason.replace('|', "\\|")),
        None => file.verdict.clone(),
    }
}

fn advice(bits_per_weight: f64) -> &'static str {
    match bits_per_weight {
        it if it > 15.0 => "comparison: nothing is rounded",
        it if it > 7.5 => "where memory allows: hardly to be told from the reference",
        it if it > 5.5 => "a little smaller than 8 bits, at a small loss",
        it if it > 4.0 => "most machines: the usual choice",
        _ => "where nothing larger fits",
    }
}

fn running(document: &Document) -> String {
    let Some(file) = document.files.iter().rfind(|it| it.published) else {
        return "No file passed its gates, so there is none to run.\n\n".into();
    };
    let adapter = match document.deploy {
        "native" => {
            "\nThe adapter runs beside the file: give `--adapter` (fsq) or `--lora` (llama.cpp) the file \
             `*-LoRA.gguf`.\n"
        }
        _ => "",
    };
    format!(
        "## Running\n\n```\nfsq serve {0}\nllama-server -m {0}\n```\n{adapter}\n\
         The chat template is in the file. Stock llama.cpp loads it; the keys under `fsq.` are passed over there.\n\n",
        file.file
    )
}

/// Each gate of each file: the reference's value, the file's, and how much of it is left.
fn verdicts(document: &Document) -> String {
    let mut part = String::from("## Evaluation\n\n");
    if document.gate == "none" {
        return part + "Not judged: nothing here says whether these files still see what the checkpoint sees.\n\n";
    }
    let _ = writeln!(part, "Profile `{}`; both sides played the same tasks.", document.gate);
    if document.files.iter().any(|it| it.override_reason.is_none() && !it.rounds.is_empty()) {
        part += "A file that fails is followed by others until one passes, and trying several errs more often than \
                 trying one: each is judged at a part of the 5 % that all of them together may err.\n";
    }
    part += "\n";
    for file in &document.files {
        for run in &file.gates {
            part += &judged(run);
        }
        for (number, round) in file.rounds.iter().enumerate() {
            let _ = writeln!(part, "- {} round {number}, {}: {}", file.format, round.remedy, round.verdict);
        }
        part += "\n";
    }
    part
}

fn judged(run: &GateRun) -> String {
    let mut part = format!("### {} in {}: {}\n\n", run.candidate, run.environment, run.verdict);
    part += "| gate | reference | file | recovery | verdict |\n|---|---|---|---|---|\n";
    let gates = run.report.get("gates").and_then(|it| it.as_array()).map(Vec::as_slice).unwrap_or_default();
    for gate in gates {
        let number = |key: &str| gate.get(key).and_then(serde_json::Value::as_f64);
        let text = |key: &str| gate.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        let shown = |it: Option<f64>| it.map_or_else(|| "–".into(), |it| format!("{it:.3}"));
        // Only of what is better when it is more does a share say anything.
        let is_share = ["G1", "G4", "G5", "G6"].contains(&text("id"));
        let recovery = number("candidate").zip(number("reference")).filter(|it| is_share && it.1 > 0.0);
        let recovery = recovery.map_or_else(|| "–".into(), |it| format!("{:.1} %", 100.0 * it.0 / it.1));
        let verdict = gate.pointer("/verdict/answer").and_then(serde_json::Value::as_str).unwrap_or_default();
        let _ = writeln!(
            part,
            "| {} {} | {} | {} | {recovery} | {verdict} |",
            text("id"),
            text("name"),
            shown(number("reference")),
            shown(number("candidate"))
        );
    }
    part + "\n"
}

fn checks(document: &Document) -> String {
    let mut part = String::from("## Conversion\n\n");
    for check in document.files.first().iter().flat_map(|it| &it.checks) {
        let _ = writeln!(part, "- {}: {}", check.name, check.told);
    }
    part + "\n"
}

/// The formats of each file, and how many tensors have them.
fn recipe(document: &Document) -> String {
    let mut part = String::from("## Recipe\n\n");
    for file in &document.files {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for tensor in &file.tensors {
            match counts.iter_mut().find(|it| it.0 == tensor.format) {
                Some(count) => count.1 += 1,
                None => counts.push((&tensor.format, 1)),
            }
        }
        let counts: Vec<String> = counts.iter().map(|it| format!("{} {}", it.1, it.0)).collect();
        let _ = writeln!(part, "- `{}`: {}", file.file, counts.join(", "));
    }
    part + "\nThe format and the error of every tensor are in `report.json` and `report.html`.\n\n"
}

fn origin(document: &Document) -> String {
    let mut part = format!("## Origin\n\nMade by {} with\n\n```\n{}\n```\n\n", document.tool, document.command);
    part += "| what | SHA-256 |\n|---|---|\n";
    let _ = writeln!(part, "| checkpoint, all tensors | `{}` |", document.checkpoint_sha256);
    for adapter in &document.adapters {
        let _ = writeln!(part, "| adapter, {} | `{}` |", document.deploy, adapter.sha256);
    }
    if let Some(importance) = &document.importance {
        let _ = writeln!(part, "| importance | `{}` |", importance.sha256);
    }
    for file in document.files.iter().filter(|it| it.published) {
        let _ = writeln!(part, "| `{}` | `{}` |", file.file, file.sha256);
    }
    part + "\nThe same inputs give the same bytes.\n"
}
