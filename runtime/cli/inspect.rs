//! `fsq inspect`: what is in a GGUF file. Runs nothing and believes nothing that the reader has not proved.
//!
//! Of a damaged file it shows what comes before the fault, and ends as bad input.

mod damaged;
mod strict;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use fsq_gguf::{Array, Gguf, Metadata, Value};
use serde::Serialize;

use crate::failure::Outcome;
use crate::output::{bytes_text, columns, hex};
use crate::{Globals, output, policy};

/// Array entries shown unless `--all`.
const ARRAY_ENTRIES_MAX: usize = 8;
/// Characters of a string shown in a terminal unless `--all`.
const STRING_CHARACTERS_MAX: usize = 72;

/// Arguments of `fsq inspect`.
#[derive(Args)]
pub(crate) struct InspectArguments {
    /// A GGUF file, or any part of a split one
    file: PathBuf,
    /// Show long texts and arrays whole
    #[arg(long)]
    all: bool,
    /// Read all of the file, and refuse it for what a sound policy does not have: scales that are no numbers, bytes of
    /// no tensor, absent keys or tensors
    #[arg(long)]
    strict: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    file: String,
    n_bytes: usize,
    sha256: String,
    /// Of everything after the header: equal for files that differ in metadata only.
    data_sha256: String,
    /// Of a split file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartShare>,
    alignment: u32,
    n_weights: usize,
    bits_per_weight: Option<f64>,
    formats: BTreeMap<&'static str, FormatShare>,
    metadata: serde_json::Map<String, serde_json::Value>,
    tensors: Vec<Tensor<'a>>,
}

#[derive(Serialize)]
struct PartShare {
    file: String,
    n_bytes: usize,
    n_tensors: usize,
    sha256: String,
}

#[derive(Default, Serialize)]
struct FormatShare {
    n_tensors: usize,
    n_weights: usize,
    n_bytes: usize,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    format: &'static str,
    /// Row length first, as in the file.
    shape: &'a [usize],
    /// From the start of the tensor data.
    offset: usize,
    n_bytes: usize,
    /// Of a split file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<usize>,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &InspectArguments) -> anyhow::Result<Outcome> {
    let gguf = match policy::open(&arguments.file) {
        Ok(gguf) => gguf,
        Err(fault) => return Err(damaged::show(globals, arguments, fault)?),
    };
    if arguments.strict {
        strict::check(&gguf)?;
    }
    if globals.json {
        output::print_json(&document(&gguf, arguments.all))?;
    } else {
        output::print(&text(&gguf, arguments.all))?;
    }
    Ok(Outcome::Done)
}

#[expect(clippy::cast_precision_loss, reason = "bits per weight, to two places")]
fn document(gguf: &Gguf, all: bool) -> Document<'_> {
    let is_split = gguf.parts().len() > 1;
    let tensors: Vec<Tensor<'_>> = gguf.tensors().iter().map(|it| tensor(it, is_split)).collect();
    let mut formats = BTreeMap::<_, FormatShare>::new();
    for (info, tensor) in gguf.tensors().iter().zip(&tensors) {
        let share = formats.entry(tensor.format).or_default();
        share.n_tensors += 1;
        share.n_weights += info.rows() * info.cols();
        share.n_bytes += tensor.n_bytes;
    }
    let n_weights = formats.values().map(|it| it.n_weights).sum::<usize>();
    let n_weight_bytes = formats.values().map(|it| it.n_bytes).sum::<usize>();
    Document {
        file: gguf.path().display().to_string(),
        n_bytes: gguf.n_bytes(),
        sha256: hex(&gguf.file_sha256()),
        data_sha256: hex(&gguf.data_sha256()),
        parts: if is_split { parts(gguf) } else { Vec::new() },
        alignment: gguf.alignment(),
        n_weights,
        bits_per_weight: (n_weights > 0).then(|| 8.0 * n_weight_bytes as f64 / n_weights as f64),
        formats,
        metadata: entries_of(gguf.metadata(), all),
        tensors,
    }
}

fn tensor(info: &fsq_gguf::TensorInfo, is_split: bool) -> Tensor<'_> {
    let part = is_split.then_some(info.part + 1);
    let fsq_gguf::TensorInfo { name, format, shape, offset, n_bytes, .. } = info;
    Tensor { name, format: format.name(), shape, offset: *offset, n_bytes: *n_bytes, part }
}

fn parts(gguf: &Gguf) -> Vec<PartShare> {
    let share = |(index, part): (usize, &fsq_gguf::Part)| PartShare {
        file: part.path().display().to_string(),
        n_bytes: part.bytes().len(),
        n_tensors: gguf.tensors().iter().filter(|it| it.part == index).count(),
        sha256: hex(&part.sha256()),
    };
    gguf.parts().iter().enumerate().map(share).collect()
}

fn entries_of(metadata: &Metadata, all: bool) -> serde_json::Map<String, serde_json::Value> {
    metadata.iter().map(|(key, value)| (key.to_owned(), json(value, all))).collect()
}

/// A value as JSON; a long array as its length and first entries unless all of it is asked for.
fn json(value: &Value, all: bool) -> serde_json::Value {
    match value {
        Value::String(it) => it.as_str().into(),
        Value::Bool(it) => (*it).into(),
        Value::F32(it) => f64::from(*it).into(),
        Value::F64(it) => (*it).into(),
        Value::Array(array) => {
            let entries = entries(array, if all { usize::MAX } else { ARRAY_ENTRIES_MAX }, all);
            if entries.len() == array.len() {
                entries.into()
            } else {
                serde_json::json!({"n": array.len(), "first": entries})
            }
        }
        Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) => signed(value).into(),
        Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_) => value.as_u64().into(),
    }
}

fn signed(value: &Value) -> i64 {
    match *value {
        Value::I8(it) => it.into(),
        Value::I16(it) => it.into(),
        Value::I32(it) => it.into(),
        Value::I64(it) => it,
        _ => 0,
    }
}

fn entries(array: &Array, n_max: usize, all: bool) -> Vec<serde_json::Value> {
    macro_rules! each {
        ($items:expr, $variant:ident) => {
            $items.iter().take(n_max).map(|it| json(&Value::$variant(it.clone()), all)).collect()
        };
    }
    match array {
        Array::U8(it) => each!(it, U8),
        Array::I8(it) => each!(it, I8),
        Array::U16(it) => each!(it, U16),
        Array::I16(it) => each!(it, I16),
        Array::U32(it) => each!(it, U32),
        Array::I32(it) => each!(it, I32),
        Array::F32(it) => each!(it, F32),
        Array::Bool(it) => each!(it, Bool),
        Array::String(it) => each!(it, String),
        Array::Array(it) => each!(it, Array),
        Array::U64(it) => each!(it, U64),
        Array::I64(it) => each!(it, I64),
        Array::F64(it) => each!(it, F64),
    }
}

fn text(gguf: &Gguf, all: bool) -> String {
    let document = document(gguf, all);
    let mut text = format!("{}\n", document.file);
    let bits = document.bits_per_weight.map_or_else(|| "none".into(), |it| format!("{it:.2} bits each"));
    text += &format!("  size     {}\n", bytes_text(document.n_bytes as u64));
    text += &format!("  weights  {} ({bits})\n", document.n_weights);
    text += &format!("  sha256   {}\n", document.sha256);
    for (format, share) in &document.formats {
        let size = bytes_text(share.n_bytes as u64);
        text += &format!("  {format:<8} {} tensors, {} weights, {size}\n", share.n_tensors, share.n_weights);
    }
    for part in &document.parts {
        let size = bytes_text(part.n_bytes as u64);
        text += &format!("  part     {}, {} tensors, {size}, sha256 {}\n", part.file, part.n_tensors, part.sha256);
    }
    text += &metadata_text(&document.metadata, all);
    text += &format!("\ntensors ({})\n", document.tensors.len());
    let rows = document.tensors.iter().map(|it| {
        let shape: Vec<String> = it.shape.iter().rev().map(usize::to_string).collect();
        let name = format!("  {}", shown(it.name, true));
        vec![name, it.format.into(), format!("[{}]", shape.join(", ")), bytes_text(it.n_bytes as u64)]
    });
    text + &columns(&rows.collect::<Vec<_>>())
}

fn metadata_text(metadata: &serde_json::Map<String, serde_json::Value>, all: bool) -> String {
    let mut text = format!("\nmetadata ({})\n", metadata.len());
    let rows: Vec<_> = metadata.iter().map(|(key, value)| (shown(key, all), shown_value(value, all))).collect();
    let width = rows.iter().map(|it| it.0.chars().count()).max().unwrap_or(0);
    for (key, value) in rows {
        text += &format!("  {key:<width$}  {value}\n");
    }
    text
}

/// A file's text without anything that would steer a terminal, cut to a readable length.
fn shown(text: &str, all: bool) -> String {
    let n_max = if all { usize::MAX } else { STRING_CHARACTERS_MAX };
    let mut shown: String = text.chars().take(n_max).flat_map(char::escape_debug).collect();
    if text.chars().nth(n_max).is_some() {
        shown += " …";
    }
    shown
}

fn shown_value(value: &serde_json::Value, all: bool) -> String {
    match value {
        serde_json::Value::String(it) => shown(it, all),
        serde_json::Value::Object(it) => {
            let first = it.get("first").map(ToString::to_string).unwrap_or_default();
            format!("{} entries: {}", it.get("n").unwrap_or(value), shown(first.trim_matches(['[', ']']), all))
        }
        other => shown(&other.to_string(), all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_text_does_not_steer_the_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\n", false), "a\\u{1b}[2Jb\\n");
        assert!(shown(&"x".repeat(1000), false).chars().count() < 80);
    }

    #[test]
    fn a_long_array_is_its_length_and_first_entries() {
        let array = Value::Array(Array::I32((0..100).collect()));
        assert_eq!(json(&array, false), serde_json::json!({"n": 100, "first": [0, 1, 2, 3, 4, 5, 6, 7]}));
        assert_eq!(json(&array, true).as_array().map(Vec::len), Some(100));
        assert_eq!(shown_value(&json(&array, false), false), "100 entries: 0,1,2,3,4,5,6,7");
    }
}
