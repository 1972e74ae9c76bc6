//! Reports of runs: what they hold, the page and the table made from it, and `fsq report`, which renders one again.

mod charts;
pub(crate) mod files;
mod gates;
mod page;
pub(crate) mod record;
#[cfg(test)]
mod sample;
mod scope;
#[cfg(feature = "train")]
pub(crate) mod study;
mod summary;
mod table;
mod training;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

pub(crate) use page::render_html;
pub(crate) use table::table;

use crate::failure::{Outcome, Refusal};
use crate::{Globals, output};
use record::DemoReport;

/// Arguments of `fsq report`.
#[derive(Args)]
pub(crate) struct ReportArguments {
    /// The `report.json` of a demo
    report: PathBuf,
    /// Write the page to this file; without it the table is printed
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &ReportArguments) -> anyhow::Result<Outcome> {
    let shown = arguments.report.display().to_string();
    let text = std::fs::read_to_string(&arguments.report).with_context(|| shown.clone())?;
    let report: DemoReport = serde_json::from_str(&text)
        .map_err(|it| Refusal::new(format!("{shown}: expected the report.json of a demo: {it}")))?;
    match &arguments.out {
        Some(path) => output::write_whole(path, render_html(&report)?.as_bytes())?,
        None if globals.json => output::print_json(&report)?,
        None => output::print(&table(&report))?,
    }
    Ok(Outcome::Done)
}
