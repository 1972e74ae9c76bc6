//! Adapters as GGUF files of their own, to run beside a file of their base: all that `fsq quantize --adapter-only`
//! does, and half of what it does with `--deploy native`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use fsq_checkpoint::Adapter;
use fsq_gguf::Gguf;
use fsq_model::read_adapter;
use fsq_quantizer::{Deploy, Provenance, adapter_sha256, open_base, write_adapter};
use serde::Serialize;

use super::maker::Inputs;
use super::work::Work;
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

/// An adapter that runs beside the files of a run.
pub(super) struct Beside {
    /// Its file in the work folder.
    pub(super) file: PathBuf,
    /// As it was read back from there: what is judged is what is published.
    #[cfg_attr(not(feature = "train"), allow(dead_code, reason = "nothing is judged in a build without environments"))]
    pub(super) adapter: Adapter,
}

impl Beside {
    /// Writes the adapter of a run to its work folder, if it has one that is not merged.
    pub(super) fn write(inputs: &Inputs, work: &Work) -> anyhow::Result<Option<Self>> {
        let Some(adapter) = &inputs.beside else { return Ok(None) };
        let dimensions = &inputs.checkpoint.dimensions;
        let path = work.path("LoRA.gguf");
        let draft = write_adapter(adapter, dimensions, &inputs.name, Some(&inputs.provenance), &path)?;
        let file = draft.publish()?;
        let adapter = read_adapter(&Gguf::open(&file)?, dimensions).with_context(|| file.display().to_string())?;
        Ok(Some(Self { file, adapter }))
    }

    /// Gives the file its name.
    pub(super) fn release(&self, inputs: &Inputs, work: &Work, out: &Path) -> anyhow::Result<()> {
        work.release(&self.file, &out.join(format!("{}-LoRA.gguf", inputs.name)))
    }
}

/// Writes each adapter to a file `NAME-FOLDER-LoRA.gguf`, by the folder that it comes from.
pub(super) fn execute(globals: &Globals, arguments: &QuantizeArguments) -> anyhow::Result<Outcome> {
    let base = open_base(&arguments.checkpoint)?;
    let name = name(arguments)?;
    output::make_folder(&arguments.out)?;
    let tool = format!("fsq {}", env!("CARGO_PKG_VERSION"));
    let of_base = Provenance { deploy: Deploy::Native, ..Provenance::of(&tool, &base, &[], None)? };
    let mut written: Vec<AdapterFile> = Vec::new();
    for folder in &arguments.adapter {
        let adapter = Adapter::open(folder)?;
        let provenance = Provenance { adapters_sha256: vec![adapter_sha256(&adapter)], ..of_base.clone() };
        let name = format!("{name}-{}", folder_name(folder)?);
        let path = arguments.out.join(format!("{name}-LoRA.gguf"));
        let file = path.display().to_string();
        if written.iter().any(|it| it.file == file) {
            return Err(Refusal::new(format!("--adapter {}: another one has this name", folder.display())).into());
        }
        let draft = write_adapter(&adapter, &base.dimensions, &name, Some(&provenance), &path);
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
