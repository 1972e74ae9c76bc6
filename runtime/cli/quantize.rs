//! `fsq quantize`: from a checkpoint and its adapters to GGUF files, each under its name only when it is whole.

mod choices;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Checkpoint};
use fsq_gguf::Gguf;
use fsq_profiles::GateProfile;
use fsq_quantizer::{Encoded, EncodedTensor, Importance, Mix, Plan, Provenance, open_base, quantize, write_adapter};
use serde::Serialize;

use choices::{ChoiceArguments, Subject};

use crate::failure::{Outcome, Refusal};
use crate::output::{bytes_text, hex};
use crate::progress::Progress;
use crate::report::files;
use crate::{Globals, output};

/// Arguments of `fsq quantize`.
#[derive(Args)]
pub(crate) struct QuantizeArguments {
    /// A checkpoint in Hugging Face layout
    checkpoint: PathBuf,
    /// Formats, separated by commas, such as q4_k_m,q8_0
    #[arg(long, value_name = "LIST", value_delimiter = ',', required_unless_present = "adapter_only")]
    #[arg(value_parser = mix)]
    to: Vec<Mix>,
    /// An adapter in PEFT layout to merge first; several are merged in order
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// Merge nothing: write each adapter as a GGUF file of its own, to run beside a file of the base
    #[arg(long, requires = "adapter", conflicts_with_all = ["to", "importance", "tensor_type"])]
    adapter_only: bool,
    /// An importance matrix, as `imatrix` files hold it
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// The format of single matrices, such as blk.0.attn_v=Q8_0; `*` stands for any characters
    #[arg(long, value_name = "NAME=FORMAT", value_parser = tensor_type)]
    tensor_type: Vec<(String, Format)>,
    #[command(flatten)]
    choices: ChoiceArguments,
    /// The profile that each file must pass before it gets its name; `none` judges nothing
    #[arg(long, value_name = "none|PROFILE", default_value = "none")]
    gate: String,
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the files' names begin with [default: the checkpoint's folder]
    #[arg(long)]
    name: Option<String>,
}

fn mix(text: &str) -> Result<Mix, String> {
    let known = || Mix::all().map(|it| it.name().to_lowercase()).collect::<Vec<_>>().join(", ");
    Mix::from_name(text.trim()).ok_or_else(|| format!("unknown format; known are {}", known()))
}

fn tensor_type(text: &str) -> Result<(String, Format), String> {
    let (name, format) = text.split_once('=').ok_or("expected NAME=FORMAT, such as blk.0.attn_v=Q8_0")?;
    let known = || Format::ALL.iter().map(|it| it.name()).collect::<Vec<_>>().join(", ");
    let format = Format::ALL.iter().copied().find(|it| it.name().eq_ignore_ascii_case(format));
    Ok((name.to_owned(), format.ok_or_else(|| format!("unknown format; known are {}", known()))?))
}

/// `report.json`.
#[derive(Serialize)]
pub(crate) struct Document {
    pub(crate) tool: String,
    pub(crate) checkpoint: String,
    /// SHA-256 over the names, shapes and stored bytes of the checkpoint's tensors.
    pub(crate) checkpoint_sha256: String,
    pub(crate) adapters: Vec<Source>,
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

/// One written file.
#[derive(Serialize)]
pub(crate) struct QuantizedFile {
    pub(crate) file: String,
    pub(crate) format: &'static str,
    pub(crate) n_bytes: usize,
    pub(crate) bits_per_weight: f64,
    pub(crate) sha256: String,
    /// Of everything after the header: equal for files that differ in metadata only.
    pub(crate) data_sha256: String,
    pub(crate) seconds: f64,
    /// `not judged`, or the verdict of the gates.
    pub(crate) verdict: String,
    pub(crate) tensors: Vec<EncodedTensor>,
}

/// What is quantized, opened.
struct Inputs {
    checkpoint: Checkpoint,
    adapters: Vec<Adapter>,
    importance: Option<Importance>,
    provenance: Provenance,
    name: String,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &QuantizeArguments) -> anyhow::Result<Outcome> {
    check_gate(&arguments.gate)?;
    if arguments.adapter_only {
        return adapters(globals, arguments);
    }
    let inputs = open(arguments)?;
    arguments.choices.check(inputs.importance.as_ref())?;
    output::make_folder(&arguments.out)?;
    let progress = Progress::new();
    let mut mixes = arguments.to.clone();
    let mut seen = Vec::new();
    mixes.retain(|it| {
        !seen.contains(it) && {
            seen.push(*it);
            true
        }
    });
    let mut quantized = Vec::with_capacity(mixes.len());
    for mix in mixes {
        quantized.push(one(arguments, &inputs, mix, &progress)?);
    }
    let document = document(arguments, &inputs, quantized);
    let json = serde_json::to_string_pretty(&document)? + "\n";
    output::write_whole(&arguments.out.join("report.json"), json.as_bytes())?;
    output::write_whole(&arguments.out.join("report.html"), files::render_html(&document)?.as_bytes())?;
    if globals.json {
        output::print(&json)?;
    } else {
        output::print(&text(&document, &arguments.out))?;
    }
    Ok(Outcome::Done)
}

/// Gates judge episodes of an environment, which this command does not play yet.
fn check_gate(profile: &str) -> anyhow::Result<()> {
    if profile == "none" {
        return Ok(());
    }
    GateProfile::shipped(profile)?;
    let refusal = Refusal::new(format!(
        "--gate {profile}: gates judge episodes, and this command has no environment to play them in"
    ));
    Err(refusal.hint("`--gate none` writes the files without judging them, and says so in the report").into())
}

fn open(arguments: &QuantizeArguments) -> anyhow::Result<Inputs> {
    let checkpoint = open_base(&arguments.checkpoint)?;
    let adapters = arguments.adapter.iter().map(|it| Adapter::open(it)).collect::<Result<Vec<_>, _>>()?;
    let importance = arguments.importance.as_deref().map(Importance::open).transpose()?;
    let tool = format!("fsq {}", env!("CARGO_PKG_VERSION"));
    let provenance = Provenance::of(&tool, &checkpoint, &adapters, importance.as_ref())?;
    let name = name(arguments)?;
    Ok(Inputs { checkpoint, adapters, importance, provenance, name })
}

/// What the files' names begin with.
fn name(arguments: &QuantizeArguments) -> anyhow::Result<String> {
    let name = arguments.name.clone().map_or_else(|| folder_name(&arguments.checkpoint), Ok)?;
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Err(Refusal::new(format!("--name {name:?}: expected the beginning of a file name")).into());
    }
    Ok(name)
}

/// One written adapter, as `--json` prints it.
#[derive(Serialize)]
struct AdapterFile {
    adapter: String,
    file: String,
    rank: usize,
}

/// Writes each adapter to a file `NAME-FOLDER-LoRA.gguf`, by the folder that it comes from.
fn adapters(globals: &Globals, arguments: &QuantizeArguments) -> anyhow::Result<Outcome> {
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

/// The last part of a path, also of `.` and of links.
fn folder_name(path: &Path) -> anyhow::Result<String> {
    let whole = path.canonicalize().with_context(|| path.display().to_string())?;
    Ok(whole.file_name().map_or_else(|| "policy".into(), |it| it.to_string_lossy().into_owned()))
}

/// Encodes one file and gives it its name.
#[expect(clippy::cast_precision_loss, reason = "bits per weight, to two places")]
fn one(arguments: &QuantizeArguments, inputs: &Inputs, mix: Mix, progress: &Progress) -> anyhow::Result<QuantizedFile> {
    let plan = Plan { name: Some(inputs.name.clone()), overrides: arguments.tensor_type.clone(), ..Plan::new(mix) };
    let Inputs { checkpoint, adapters, importance, provenance, .. } = inputs;
    let subject = Subject { checkpoint, adapters, importance: importance.as_ref(), provenance };
    let (plan, sensitivities) = arguments.choices.apply(plan, &subject, progress)?;
    let file = format!("{}-{}.gguf", inputs.name, mix.name());
    let beside = arguments.out.join(format!("{}-{}.plan.toml", inputs.name, mix.name()));
    choices::write_plan(&beside, &plan, &subject, sensitivities.as_ref())?;
    let started = Instant::now();
    progress.stage(mix.name(), inputs.checkpoint.dimensions.parameters() as u64);
    let Encoded { draft, tensors } = quantize(
        &inputs.checkpoint,
        &inputs.adapters,
        &plan,
        inputs.importance.as_ref(),
        &inputs.provenance,
        &arguments.out.join(&file),
        &mut |done, _| progress.set(done as u64),
    )?;
    let path = draft.publish()?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    let written = Gguf::open(&path)?;
    Ok(QuantizedFile {
        file,
        format: mix.name(),
        n_bytes: written.n_bytes(),
        bits_per_weight: 8.0 * tensors.iter().map(|it| it.n_bytes).sum::<usize>() as f64
            / tensors.iter().map(|it| it.n_weights).sum::<usize>().max(1) as f64,
        sha256: hex(&written.file_sha256()),
        data_sha256: hex(&written.data_sha256()),
        seconds,
        verdict: "not judged".into(),
        tensors,
    })
}

fn document(arguments: &QuantizeArguments, inputs: &Inputs, files: Vec<QuantizedFile>) -> Document {
    let Inputs { checkpoint, provenance, .. } = inputs;
    let source = |path: &Path, digest: &[u8]| Source { path: path.display().to_string(), sha256: hex(digest) };
    let adapters = arguments.adapter.iter().zip(&provenance.adapters_sha256);
    let importance = arguments.importance.as_deref().zip(provenance.importance_sha256);
    Document {
        tool: provenance.tool.clone(),
        checkpoint: arguments.checkpoint.display().to_string(),
        checkpoint_sha256: hex(&provenance.base_sha256),
        adapters: adapters.map(|(path, digest)| source(path, digest)).collect(),
        importance: importance.map(|(path, digest)| source(path, &digest)),
        n_weights: checkpoint.dimensions.parameters(),
        gate: arguments.gate.clone(),
        files,
    }
}

fn text(document: &Document, out: &Path) -> String {
    let mut rows = vec![["file", "size", "bits/weight", "largest error", "verdict"].map(str::to_owned).to_vec()];
    for file in &document.files {
        let error = file.tensors.iter().map(|it| it.relative_error).fold(0.0, f64::max);
        rows.push(vec![
            out.join(&file.file).display().to_string(),
            bytes_text(file.n_bytes as u64),
            format!("{:.2}", file.bits_per_weight),
            format!("{:.2} %", 100.0 * error),
            file.verdict.clone(),
        ]);
    }
    let other = |it: &EncodedTensor| it.format != it.wanted;
    let fell_back = document.files.iter().flat_map(|it| &it.tensors).filter(|it| other(it)).count();
    let mut text = output::columns(&rows);
    if fell_back > 0 {
        text += &format!("{fell_back} tensors got another format than the recipe's: see `wanted` in the report\n");
    }
    text + &format!("report: {}\n", out.join("report.html").display())
}
