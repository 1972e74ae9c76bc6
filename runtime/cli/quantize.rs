//! `fsq quantize`: from a checkpoint and its adapters to GGUF files, each under its name only when it is whole and
//! has passed what it was to pass.

mod adapters;
mod card;
mod checks;
mod choices;
mod document;
#[cfg(feature = "train")]
mod judged;
#[cfg(feature = "train")]
mod ladder;
mod maker;
#[cfg(feature = "train")]
mod parity;
mod space;
mod work;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Checkpoint, StoredType, tensor_names};
use fsq_gguf::Gguf;
use fsq_quantizer::{Deploy, Importance, Mix, Provenance, check_adapters, open_base};
use sha2::{Digest, Sha256};

use adapters::Beside;
use choices::{ChoiceArguments, Subject};
pub(crate) use document::{Document, TensorRecord};
use document::{QuantizedFile, Source, bits_per_weight, text};
use maker::{Candidate, Inputs, Maker};
use work::Work;

use crate::failure::{Outcome, Refusal};
use crate::output::hex;
use crate::progress::Progress;
use crate::report::files;
use crate::{Globals, output};

/// What a file's name ends with once a later run has taken it away: nothing that loads `*.gguf` finds it by accident.
const EARLIER: &str = ".earlier";

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
    /// How adapters reach the policy that is served
    #[arg(long, value_enum, default_value_t = DeployMode::Merged)]
    deploy: DeployMode,
    /// Merge nothing: write each adapter as a GGUF file of its own, to run beside a file of the base
    #[arg(long, requires = "adapter", conflicts_with_all = ["to", "importance", "tensor_type"])]
    #[arg(conflicts_with_all = ["codes", "target_size", "target_bpw", "plan"])]
    adapter_only: bool,
    /// An importance matrix, as `imatrix` files hold it
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// The format of single matrices, such as blk.0.attn_v=Q8_0; `*` stands for any characters
    #[arg(long, value_name = "NAME=FORMAT", value_parser = tensor_type)]
    tensor_type: Vec<(String, Format)>,
    #[command(flatten)]
    choices: ChoiceArguments,
    /// The profile that each file must pass before it gets its name, shipped or a TOML file; `none` judges nothing
    #[arg(long, value_name = "none|PROFILE", default_value = "none")]
    gate: String,
    #[cfg(feature = "train")]
    #[command(flatten)]
    judging: judged::JudgingArguments,
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the files' names begin with [default: the checkpoint's folder]
    #[arg(long)]
    name: Option<String>,
}

/// The ways to serve adapters by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DeployMode {
    /// Merged into the 16-bit weights before these are encoded
    Merged,
    /// Beside the file, in a file of their own: for adapters that were trained on the encoded weights
    Native,
    /// Merged, for weights that were trained on the format's own grid: encoded plainly, as they were in training
    Qat,
}

impl From<DeployMode> for Deploy {
    fn from(mode: DeployMode) -> Self {
        match mode {
            DeployMode::Merged => Self::Merged,
            DeployMode::Native => Self::Native,
            DeployMode::Qat => Self::Qat,
        }
    }
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

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &QuantizeArguments) -> anyhow::Result<Outcome> {
    if arguments.adapter_only {
        return adapters::execute(globals, arguments);
    }
    check_arguments(arguments)?;
    let mixes = distinct(&arguments.to);
    arguments.choices.check(&mixes)?;
    let inputs = open(arguments, &mixes)?;
    let (document, outcome) = {
        let work = Work::open(&arguments.out, &key(&inputs))?;
        let progress = Progress::new();
        let maker = Maker { inputs: &inputs, work: &work, progress: &progress };
        let beside = Beside::write(&inputs, &work)?;
        let (made, outcome) = if arguments.gate == "none" {
            let made = mixes.iter().map(|it| unjudged(&maker, *it)).collect::<anyhow::Result<Vec<_>>>()?;
            (made, Outcome::Done)
        } else {
            judged(globals, arguments, &maker, &mixes, beside.as_ref())?
        };
        // Only now, so that an error in the last file leaves none of the others.
        let document = document(arguments, &inputs, release(arguments, &inputs, &work, (made, beside))?);
        write_reports(&document, &inputs, &arguments.out)?;
        inputs.chosen.write_plan(&arguments.out, &inputs.name, inputs.subject())?;
        (document, outcome)
    };
    if globals.json {
        output::print_json(&document)?;
    } else {
        output::print(&text(&document, &arguments.out))?;
    }
    Ok(outcome)
}

/// `report.json`, `report.html` and the card.
fn write_reports(document: &Document, inputs: &Inputs, out: &Path) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(document)? + "\n";
    output::write_whole(&out.join("report.json"), json.as_bytes())?;
    output::write_whole(&out.join("report.html"), files::render_html(document)?.as_bytes())?;
    card::write(document, &inputs.checkpoint, out)
}

/// Refuses what contradicts itself, or cannot be judged, before anything is read.
fn check_arguments(arguments: &QuantizeArguments) -> anyhow::Result<()> {
    let deploy = Deploy::from(arguments.deploy).name();
    if arguments.deploy != DeployMode::Merged && arguments.adapter.is_empty() {
        return Err(Refusal::new(format!("--deploy {deploy}: expected --adapter beside it, found none")).into());
    }
    if arguments.deploy == DeployMode::Qat && arguments.importance.is_some() {
        let why = "training rounded without it, and other codes than those were not trained for";
        return Err(Refusal::new(format!("--deploy qat: expected no --importance, found one: {why}")).into());
    }
    if arguments.deploy == DeployMode::Qat && !arguments.choices.are_stock() {
        let why = "training rounded to stock codes of the recipe, and others were not trained for";
        return Err(Refusal::new(format!("--deploy qat: expected no --codes, --target-size or --plan: {why}")).into());
    }
    let profile = &arguments.gate;
    #[cfg(feature = "train")]
    {
        judged::check_reason(arguments.judging.override_reason.as_deref(), profile != "none")?;
        if profile != "none" {
            crate::gate::profile(profile)?;
        }
    }
    #[cfg(not(feature = "train"))]
    if profile != "none" {
        fsq_profiles::GateProfile::shipped(profile)?;
        let refusal =
            Refusal::new(format!("--gate {profile}: not in this build, which has no environments to play in"));
        return Err(refusal.hint("`--gate none` writes the files without judging them, and the report says so").into());
    }
    Ok(())
}

/// Opens and proves what goes in, and asks for room for what comes out, before anything is written.
fn open(arguments: &QuantizeArguments, mixes: &[Mix]) -> anyhow::Result<Inputs> {
    let checkpoint = open_base(&arguments.checkpoint)?;
    let adapters = arguments.adapter.iter().map(|it| Adapter::open(it)).collect::<Result<Vec<_>, _>>()?;
    check_adapters(&checkpoint.dimensions, &adapters)?;
    let importance = arguments.importance.as_deref().map(Importance::open).transpose()?;
    let (tool, name) = (format!("fsq {}", env!("CARGO_PKG_VERSION")), name(arguments)?);
    check_space(arguments, mixes, &checkpoint, importance.is_some())?;
    let mut provenance = Provenance::of(&tool, &checkpoint, &adapters, importance.as_ref())?;
    provenance.deploy = arguments.deploy.into();
    let (merged, beside) = match arguments.deploy {
        DeployMode::Merged | DeployMode::Qat => (adapters, None),
        DeployMode::Native => (Vec::new(), Adapter::joined(&adapters)),
    };
    let tensor_types = arguments.tensor_type.clone();
    let importance_of = importance.as_ref();
    let subject =
        Subject { checkpoint: &checkpoint, merged: &merged, importance: importance_of, provenance: &provenance };
    let chosen = arguments.choices.choose(mixes, subject, &tensor_types)?;
    Ok(Inputs { checkpoint, merged, beside, importance, provenance, name, tensor_types, chosen })
}

fn check_space(
    arguments: &QuantizeArguments,
    mixes: &[Mix],
    checkpoint: &Checkpoint,
    weighted: bool,
) -> anyhow::Result<()> {
    let (is_judged, mut n_bytes) = (arguments.gate != "none", 0);
    let plan = |mix| fsq_quantizer::Plan { overrides: arguments.tensor_type.clone(), ..fsq_quantizer::Plan::new(mix) };
    for mix in mixes {
        let file = space::file_bytes(&plan(*mix), &checkpoint.dimensions, weighted)?;
        // Judged, a file is there a second time when it gets its verdict.
        n_bytes += if is_judged { 2 * file } else { file };
    }
    if is_judged {
        n_bytes += space::file_bytes(&plan(reference_mix(checkpoint)), &checkpoint.dimensions, weighted)?;
    }
    space::check(&arguments.out, n_bytes.saturating_sub(work::held_bytes(&arguments.out)))
}

/// The 16-bit format that loses nothing of a checkpoint: its own.
fn reference_mix(checkpoint: &Checkpoint) -> Mix {
    let is_wide = |it: &fsq_checkpoint::TensorName| checkpoint.stored(&it.hf) == Some(StoredType::BF16);
    if tensor_names(&checkpoint.dimensions).iter().any(is_wide) { Mix::BF16 } else { Mix::F16 }
}

/// What the files' names begin with.
fn name(arguments: &QuantizeArguments) -> anyhow::Result<String> {
    let name = arguments.name.clone().map_or_else(|| folder_name(&arguments.checkpoint), Ok)?;
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Err(Refusal::new(format!("--name {name:?}: expected the beginning of a file name")).into());
    }
    Ok(name)
}

/// The last part of a path, also of `.` and of links.
fn folder_name(path: &Path) -> anyhow::Result<String> {
    let whole = path.canonicalize().with_context(|| path.display().to_string())?;
    Ok(whole.file_name().map_or_else(|| "policy".into(), |it| it.to_string_lossy().into_owned()))
}

/// What all files of a run are made from, in 16 characters.
fn key(inputs: &Inputs) -> String {
    let Inputs { provenance, name, .. } = inputs;
    hex(&Sha256::digest(format!("{provenance:?} {name}")))[..16].to_owned()
}

fn distinct(mixes: &[Mix]) -> Vec<Mix> {
    let mut distinct: Vec<Mix> = Vec::new();
    for mix in mixes {
        if !distinct.contains(mix) {
            distinct.push(*mix);
        }
    }
    distinct
}

/// A file in the work folder, what the report says of it, and whether it may have its name.
struct Made {
    file: PathBuf,
    record: QuantizedFile,
}

fn unjudged(maker: &Maker<'_>, mix: Mix) -> anyhow::Result<Made> {
    let candidate = maker.make(mix, &[])?;
    let checks = checks::check(maker.inputs, &candidate)?;
    let record = QuantizedFile { checks, ..record(maker, &candidate)? };
    Ok(Made { file: candidate.file, record })
}

fn file_name(inputs: &Inputs, mix: Mix) -> String {
    format!("{}-{}.gguf", inputs.name, mix.name())
}

/// What there is to say of a file before anything judges it.
fn record(maker: &Maker<'_>, candidate: &Candidate) -> anyhow::Result<QuantizedFile> {
    let written = Gguf::open(&candidate.file)?;
    Ok(QuantizedFile {
        file: file_name(maker.inputs, candidate.mix),
        published: true,
        format: candidate.mix.name(),
        n_bytes: written.n_bytes(),
        bits_per_weight: bits_per_weight(&candidate.told.tensors),
        sha256: hex(&candidate.digests.file),
        data_sha256: hex(&candidate.digests.data),
        seconds: candidate.told.seconds,
        verdict: "not judged".into(),
        override_reason: None,
        rounds: Vec::new(),
        checks: Vec::new(),
        gates: Vec::new(),
        tensors: candidate.told.tensors.clone(),
    })
}

/// Files with the gates' verdicts inside, and the worst of these.
#[cfg(feature = "train")]
fn judged(
    globals: &Globals,
    arguments: &QuantizeArguments,
    maker: &Maker<'_>,
    mixes: &[Mix],
    beside: Option<&Beside>,
) -> anyhow::Result<(Vec<Made>, Outcome)> {
    use crate::gate::worst;
    let profile = crate::gate::profile(&arguments.gate)?;
    let Inputs { checkpoint, merged, importance, .. } = maker.inputs;
    let adapter = beside.map(|it| &it.adapter);
    let reference = maker.reference(reference_mix(checkpoint))?;
    // Before any number about quality.
    let mut of_reference = checks::check(maker.inputs, &reference)?;
    maker.progress.stage("greedy parity", 0);
    of_reference.push(parity::check(checkpoint, merged, &reference.file, globals.threads())?);
    maker.progress.finish();
    let given = (maker.work, maker.progress, globals.threads());
    let court = judged::Court::new(&arguments.judging, profile, given, reference.file.clone(), adapter);
    let reason = arguments.judging.override_reason.as_deref();
    let importance = importance.as_ref();
    let ladder = ladder::Ladder {
        court: &court,
        maker,
        asked: mixes,
        importance,
        largest: reference.mix,
        is_overridden: reason.is_some(),
    };
    let (mut made, mut outcome) = (Vec::with_capacity(mixes.len()), Outcome::Done);
    for mix in mixes {
        let ladder::Climbed { candidate, judgement, rounds } = ladder.climb(*mix)?;
        let gates = judgement.runs(candidate.mix.name())?;
        let (verdict, ended) = (judgement.verdict().to_owned(), judgement.outcome());
        let maps = judgement.maps.clone();
        let mut file = candidate.file.clone();
        let mut checks = checks::check(maker.inputs, &candidate)?;
        checks.extend(of_reference.last().cloned());
        let mut record = QuantizedFile { verdict, rounds, checks, gates, ..record(maker, &candidate)? };
        match judgement.passes(reason)? {
            Some(passes) => {
                record.override_reason = reason.filter(|_| ended != Outcome::Done).map(str::to_owned);
                let path = maker.work.path(&format!("{}-judged.gguf", mix.name()));
                file = crate::stamp::stamp_beside(adapter, &file, maps.as_ref(), &passes, &path)?;
                let digests = maker::digests(&Gguf::open(&file)?);
                (record.sha256, record.data_sha256) = (hex(&digests.file), hex(&digests.data));
            }
            None => {
                record.published = false;
                outcome = worst(outcome, ended);
            }
        }
        made.push(Made { file, record });
    }
    Ok((made, outcome))
}

#[cfg(not(feature = "train"))]
fn judged(
    _: &Globals,
    arguments: &QuantizeArguments,
    _: &Maker<'_>,
    _: &[Mix],
    _: Option<&Beside>,
) -> anyhow::Result<(Vec<Made>, Outcome)> {
    Err(Refusal::new(format!("--gate {}: not in this build", arguments.gate)).into())
}

/// Gives the files their names. A name that was asked for and not earned is taken from what an earlier run left there,
/// which stays beside it under [`EARLIER`]: it was published once, and somebody may want it back.
fn release(
    arguments: &QuantizeArguments,
    inputs: &Inputs,
    work: &Work,
    (made, beside): (Vec<Made>, Option<Beside>),
) -> anyhow::Result<Vec<QuantizedFile>> {
    let mut records = Vec::with_capacity(made.len());
    for Made { file, record } in made {
        if record.published {
            work.release(&file, &arguments.out.join(&record.file))?;
        }
        records.push(record);
    }
    for mix in &arguments.to {
        let name = file_name(inputs, *mix);
        let path = arguments.out.join(&name);
        if path.exists() && !records.iter().any(|it| it.published && it.file == name) {
            let aside = arguments.out.join(format!("{name}{EARLIER}"));
            std::fs::rename(&path, aside).with_context(|| path.display().to_string())?;
        }
    }
    if let Some(beside) = beside.filter(|_| records.iter().any(|it| it.published)) {
        beside.release(inputs, work, &arguments.out)?;
    }
    Ok(records)
}

fn document(arguments: &QuantizeArguments, inputs: &Inputs, files: Vec<QuantizedFile>) -> Document {
    let Inputs { checkpoint, provenance, .. } = inputs;
    let source = |path: &Path, digest: &[u8]| Source { path: path.display().to_string(), sha256: hex(digest) };
    let adapters = arguments.adapter.iter().zip(&provenance.adapters_sha256);
    let importance = arguments.importance.as_deref().zip(provenance.importance_sha256);
    Document {
        tool: provenance.tool.clone(),
        command: command_line(std::env::args()),
        checkpoint: arguments.checkpoint.display().to_string(),
        checkpoint_sha256: hex(&provenance.base_sha256),
        adapters: adapters.map(|(path, digest)| source(path, digest)).collect(),
        deploy: provenance.deploy.name(),
        importance: importance.map(|(path, digest)| source(path, &digest)),
        n_weights: checkpoint.dimensions.parameters(),
        gate: arguments.gate.clone(),
        files,
    }
}

/// A command as a shell takes it.
fn command_line(words: impl Iterator<Item = String>) -> String {
    let is_plain = |it: char| it.is_alphanumeric() || "-_./,=:@%+".contains(it);
    let quoted = |it: String| match it.chars().all(is_plain) && !it.is_empty() {
        true => it,
        false => format!("'{}'", it.replace('\'', r"'\''")),
    };
    let words: Vec<String> = words.skip(1).map(quoted).collect();
    format!("fsq {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_given_to_a_shell_again() {
        let words = ["/bin/fsq", "quantize", "a b", "--override", "it's right", "--to", "q4_k_m,q8_0"];
        let line = command_line(words.into_iter().map(str::to_owned));
        assert_eq!(line, r"fsq quantize 'a b' --override 'it'\''s right' --to q4_k_m,q8_0");
    }
}
