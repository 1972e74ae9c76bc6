//! What a file that cannot be opened still says, for whoever has to find out what happened to it.

use fsq_blocks::Format;
use fsq_gguf::{Survey, ToldTensor};
use serde::Serialize;

use super::{InspectArguments, entries_of, metadata_text, shown};
use crate::Globals;
use crate::output::{self, bytes_text, columns};

#[derive(Serialize)]
struct Document {
    file: String,
    n_bytes: usize,
    /// Why it cannot be opened.
    fault: String,
    metadata: serde_json::Map<String, serde_json::Value>,
    tensors: Vec<Told>,
}

/// As the header tells it; nothing of it is proved.
#[derive(Serialize)]
struct Told {
    name: String,
    format: String,
    /// Row length first, as in the file.
    shape: Vec<u64>,
    offset: u64,
}

/// Prints what comes before the fault, if that is anything, and gives the fault back.
pub(super) fn show(
    globals: &Globals,
    arguments: &InspectArguments,
    fault: anyhow::Error,
) -> anyhow::Result<anyhow::Error> {
    let Ok(survey) = Survey::of(&arguments.file) else { return Ok(fault) };
    if arguments.strict || (survey.metadata.is_empty() && survey.tensors.is_empty()) {
        return Ok(fault);
    }
    let document = Document {
        file: arguments.file.display().to_string(),
        n_bytes: survey.n_bytes,
        fault: fault.to_string(),
        metadata: entries_of(&survey.metadata, arguments.all),
        tensors: survey.tensors.into_iter().map(told).collect(),
    };
    if globals.json {
        output::print_json(&document)?
    } else {
        output::print(&text(&document, arguments.all))?
    }
    Ok(fault)
}

fn told(tensor: ToldTensor) -> Told {
    let ToldTensor { name, shape, format, offset } = tensor;
    let format = Format::from_id(format).map_or_else(|| format!("number {format}"), |it| it.name().to_owned());
    Told { name, format, shape, offset }
}

fn text(document: &Document, all: bool) -> String {
    let mut text = format!("{}\n", document.file);
    text += &format!("  size     {}\n", bytes_text(document.n_bytes as u64));
    text += "  damaged: what comes before the fault, not proved\n";
    text += &metadata_text(&document.metadata, all);
    text += &format!("\ntensors ({})\n", document.tensors.len());
    let rows = document.tensors.iter().map(|it| {
        let shape: Vec<String> = it.shape.iter().rev().map(u64::to_string).collect();
        vec![format!("  {}", shown(&it.name, true)), it.format.clone(), format!("[{}]", shape.join(", "))]
    });
    text + &columns(&rows.collect::<Vec<_>>())
}
