//! The page of `fsq quantize`: what each file is, how large, and what rounding did to each tensor.

use serde::Serialize;

use super::page::{STYLE, render};
use super::record::GateRun;
use super::scope::{Scope, scope};
use crate::output::bytes_text;
use crate::quantize::{Document, TensorRecord};

const PAGE: &str = include_str!("files.html.jinja");

#[derive(Serialize)]
struct Page<'a> {
    style: &'static str,
    document: &'a Document,
    scope: Option<Scope>,
    rows: Vec<FileRow>,
    tensors: Vec<TensorRow>,
}

#[derive(Serialize)]
struct FileRow {
    name: String,
    size: String,
    share_percent: f64,
    bits: String,
    verdict: String,
    sha256: String,
}

/// One tensor in every file, in the files' order.
#[derive(Serialize)]
struct TensorRow {
    name: String,
    n_weights: usize,
    cells: Vec<String>,
}

/// The page.
///
/// # Errors
/// When the template does not render, which a test rules out.
#[expect(clippy::cast_precision_loss, reason = "a bar's length")]
pub(crate) fn render_html(document: &Document) -> anyhow::Result<String> {
    let n_bytes_max = document.files.iter().map(|it| it.n_bytes).max().unwrap_or(1).max(1);
    let rows = document.files.iter().map(|it| FileRow {
        name: it.file.clone(),
        size: bytes_text(it.n_bytes as u64),
        share_percent: 100.0 * it.n_bytes as f64 / n_bytes_max as f64,
        bits: format!("{:.2}", it.bits_per_weight),
        verdict: it.verdict.clone(),
        sha256: it.sha256.clone(),
    });
    let first = document.files.first().map(|it| it.tensors.as_slice()).unwrap_or_default();
    let cell = |it: &TensorRecord| format!("{} {:.2} %", it.format, 100.0 * it.relative_error);
    let tensors = first.iter().enumerate().map(|(place, tensor)| TensorRow {
        name: tensor.name.clone(),
        n_weights: tensor.n_weights,
        cells: document.files.iter().filter_map(|file| file.tensors.get(place).map(cell)).collect(),
    });
    let runs: Vec<&GateRun> = document.files.iter().flat_map(|it| &it.gates).collect();
    let scope = scope(&runs);
    let page = Page { style: STYLE, document, scope, rows: rows.collect(), tensors: tensors.collect() };
    render("files.html", PAGE, &page)
}
