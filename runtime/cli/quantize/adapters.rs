//! `fsq quantize --adapter-only`: adapters as GGUF files of their own, to run beside a file of their base.

use anyhow::Context;
use fsq_checkpoint::Adapter;
use fsq_quantizer::{open_base, write_adapter};
use serde::Serialize;

use super::{QuantizeArguments, folder_name, name};
use crate::failure::{Outcome, Refusal};
use crate::{Globals, output};

/// One written adapter, as `--json` prints it.
#[derive(Serialize)]
struct AdapterFile {
    adapter: String,
    file: String,
    rank: usize,
}

/// Writes each adapter to a file `NAME-FOLDER-LoRA.gguf`, by the folder that it comes from.
pub(super) fn execute(globals: &Globals, arguments: &QuantizeArguments) -> anyhow::Result<Outcome> {
    let base = open_base(&arguments.checkpoint)?;
    let name = name(arguments)?;
    output::make_folder(&arguments.out)?;
    let mut written: Vec<AdapterFile> = Vec::new();
    for folder in &arguments.adapter {
        let adapter = Adapter::open(folder)?;
        let name = format!("{name}-{}", folder_name(folder)?);
        let path = arguments.out.join(format!("{name}-LoRA.gguf"));
        let file = path.display().to_string();
        if written.iter().any(|it| it.file == file) {
            return Err(Refusal::new(format!("--adapter {}: another one has this name", folder.display())).into());
        }
        let draft = write_adapter(&adapter, &base.dimensions, &name, &path);
        draft.with_context(|| folder.display().to_string())?.publish()?;
        written.push(AdapterFile { adapter: folder.display().to_string(), file, rank: adapter.rank });
    }
    if globals.json {
        output::print_json(&written)?;
    } else {
        output::print(&written.iter().map(|it| format!("{}: rank {}\n", it.file, it.rank)).collect::<String>())?;
    }
    Ok(Outcome::Done)
}
