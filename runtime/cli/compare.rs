//! `fsq compare`: how far two policies are apart on the same tokens, both in one process.

mod passages;
#[cfg(feature = "train")]
mod played;
mod saved;
mod sides;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use fsq_calibrate::divergence::Divergence;
use fsq_calibrate::shift::ForesightShift;
use serde::Serialize;

#[cfg(feature = "train")]
use crate::evaluate::World;
use crate::failure::{Outcome, Refusal};
use crate::output::bytes_text;
use crate::progress::Progress;
use crate::{Globals, output, policy};
use passages::{Passage, n_judged};
use saved::{About, FILE_BYTES_MAX, Saved};
use sides::{Running, Side, check_vocabularies, context_of, vocabulary_sha256};

/// Tokens of a window unless something else is said, as in llama-perplexity.
const WINDOW_TOKENS: usize = 512;
/// Tokens that scoring the grid answers may add to a conversation.
const ANSWER_TOKENS: usize = 32;

/// Arguments of `fsq compare`.
#[derive(Args)]
pub(crate) struct CompareArguments {
    /// The file to measure against; with --reference-logits, the candidate
    #[arg(value_name = "REFERENCE")]
    first: PathBuf,
    /// The file to be measured
    #[arg(value_name = "CANDIDATE")]
    second: Option<PathBuf>,
    /// The text that both read, in windows of which the second half is judged
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a window [default: 512, or what the policies were trained for]
    #[arg(long, value_name = "N", requires = "text", value_parser = clap::value_parser!(u32).range(4..))]
    context: Option<u32>,
    /// At most so many windows
    #[arg(long, value_name = "N", requires = "text", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Episodes of the reference in this environment instead of a text, and what both state there: countdown, dochop,
    /// dagmath, slipgrid
    #[cfg(feature = "train")]
    #[arg(long, value_name = "NAME", value_parser = crate::environment::ours, conflicts_with = "text")]
    environment: Option<World>,
    /// Episodes
    #[cfg(feature = "train")]
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    episodes: u32,
    /// Seed of the tasks
    #[cfg(feature = "train")]
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The reference writes plain actions, without foresight
    #[cfg(feature = "train")]
    #[arg(long, requires = "environment")]
    plain: bool,
    /// Write the reference's logits to this file instead of comparing, where two policies do not fit into memory
    #[arg(long, value_name = "FILE", conflicts_with = "reference_logits")]
    save_logits: Option<PathBuf>,
    /// Compare with logits that were saved, on what was read then
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "second"])]
    #[cfg_attr(feature = "train", arg(conflicts_with = "environment"))]
    reference_logits: Option<PathBuf>,
}

/// What both read.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Text { file: String, context: usize, windows: usize },
    Environment { name: String, episodes: usize, seed: u64 },
}

/// What `--json` prints. The keys of the divergence are stable.
#[derive(Serialize)]
struct Document {
    reference: String,
    candidate: String,
    #[serde(flatten)]
    source: Source,
    #[serde(flatten)]
    divergence: Divergence,
    /// Only where episodes were read, and both state something.
    foresight_shift: Option<ForesightShift>,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &CompareArguments) -> anyhow::Result<Outcome> {
    match (&arguments.second, &arguments.save_logits, &arguments.reference_logits) {
        (Some(candidate), None, None) => two_files(globals, arguments, candidate),
        (None, Some(out), None) => save(globals, arguments, out),
        (None, None, Some(logits)) => with_saved(globals, &arguments.first, logits),
        _ => {
            let expected = "expected REFERENCE and CANDIDATE, or one file with --save-logits or --reference-logits";
            Err(Refusal::new(expected).into())
        }
    }
}

fn two_files(globals: &Globals, arguments: &CompareArguments, candidate: &Path) -> anyhow::Result<Outcome> {
    let progress = Progress::new();
    let reading = Reading::new(globals, arguments, &[&arguments.first, candidate], &progress)?;
    let (mut left, source, passages) = reading.begin(globals, arguments, &progress)?;
    let mut right = Running::load(candidate, globals.threads(), reading.context)?;
    check_vocabularies(&left, &right)?;
    finish(globals, &arguments.first, candidate, source, (&mut left, &mut right), &passages, &progress)
}

fn save(globals: &Globals, arguments: &CompareArguments, out: &Path) -> anyhow::Result<Outcome> {
    let progress = Progress::new();
    let reading = Reading::new(globals, arguments, &[&arguments.first], &progress)?;
    let (mut side, source, passages) = reading.begin(globals, arguments, &progress)?;
    let bytes = saved::logits_bytes(&passages, side.vocab());
    let size = format!("{} for {} tokens", bytes_text(bytes), n_judged(&passages));
    if bytes > FILE_BYTES_MAX {
        let refusal =
            Refusal::new(format!("--save-logits: {size}, at most {} are written", bytes_text(FILE_BYTES_MAX)));
        return Err(refusal.hint("`--chunks` reads less; the statistics settle after some 100,000 tokens").into());
    }
    eprintln!("{}: {size}", out.display());
    let about = About {
        reference: name_of(&arguments.first),
        source: serde_json::to_string(&source)?,
        vocabulary_sha256: vocabulary_sha256(&side.tokenizer),
    };
    progress.stage("tokens", n_judged(&passages) as u64);
    saved::save(out, &about, &mut side, &passages, &mut |it| progress.set(it as u64))?;
    progress.finish();
    let document =
        serde_json::json!({"out": out.display().to_string(), "n_tokens": n_judged(&passages), "bytes": bytes});
    if globals.json {
        output::print_json(&document)?;
    } else {
        output::print(&format!("{}: logits of {size}\n", out.display()))?;
    }
    Ok(Outcome::Done)
}

fn with_saved(globals: &Globals, candidate: &Path, logits: &Path) -> anyhow::Result<Outcome> {
    let progress = Progress::new();
    let mut left = Saved::open(logits)?;
    let passages = std::mem::take(&mut left.passages);
    let longest = passages.iter().map(|it| it.tokens.len()).max().unwrap_or(0);
    let mut right = Running::load(candidate, globals.threads(), longest + ANSWER_TOKENS)?;
    let differs = left.vocab() != right.vocab() || left.about.vocabulary_sha256 != vocabulary_sha256(&right.tokenizer);
    if differs {
        let message = format!("{}: the vocabulary differs from that of {}", logits.display(), candidate.display());
        return Err(Refusal::new(message).into());
    }
    let source = serde_json::from_str(&left.about.source).with_context(|| logits.display().to_string())?;
    let reference = PathBuf::from(&left.about.reference);
    finish(globals, &reference, candidate, source, (&mut left, &mut right), &passages, &progress)
}

/// What is to be read, and how much context that takes.
struct Reading {
    /// Tokens of the longest passage, with room for answers.
    context: usize,
    text: Option<String>,
    /// Conversations, where no text is read.
    played: Option<(Source, Vec<Passage>)>,
}

impl Reading {
    /// Checks the arguments before anything large is loaded, and lets the reference play if episodes are asked for.
    fn new(
        globals: &Globals,
        arguments: &CompareArguments,
        files: &[&Path],
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let Some(text) = &arguments.text else { return Self::play(globals, arguments, progress) };
        let file = || text.display().to_string();
        let read = std::fs::read_to_string(text).with_context(file)?;
        if read.is_empty() {
            return Err(Refusal::new(format!("{}: expected some text, found none", file())).into());
        }
        let mut context = arguments.context.map_or(WINDOW_TOKENS, |it| it as usize);
        for file in files {
            let longest = context_of(&policy::open(file)?)?;
            if arguments.context.is_some() && longest < context {
                let message = format!("--context {context}: {} reads at most {longest} tokens", file.display());
                return Err(Refusal::new(message).into());
            }
            context = context.min(longest);
        }
        Ok(Self { context, text: Some(read), played: None })
    }

    #[cfg(feature = "train")]
    fn play(globals: &Globals, arguments: &CompareArguments, progress: &Progress) -> anyhow::Result<Self> {
        let Some(world) = arguments.environment else { return Err(nothing_to_read()) };
        let (episodes, seed) = (arguments.episodes as usize, arguments.seed);
        let asked = played::Asked { world, episodes, seed, plain: arguments.plain };
        let passages = played::passages(&arguments.first, asked, globals.threads(), progress)?;
        let longest = passages.iter().map(|it| it.tokens.len()).max().unwrap_or(0);
        let source = Source::Environment { name: world.name().into(), episodes, seed };
        Ok(Self { context: longest + ANSWER_TOKENS, text: None, played: Some((source, passages)) })
    }

    #[cfg(not(feature = "train"))]
    fn play(_globals: &Globals, _arguments: &CompareArguments, _progress: &Progress) -> anyhow::Result<Self> {
        Err(nothing_to_read())
    }

    /// Loads the reference and cuts the text.
    fn begin(
        &self,
        globals: &Globals,
        arguments: &CompareArguments,
        progress: &Progress,
    ) -> anyhow::Result<(Running, Source, Vec<Passage>)> {
        progress.finish();
        let side = Running::load(&arguments.first, globals.threads(), self.context)?;
        if let Some((source, passages)) = &self.played {
            return Ok((side, source.clone(), passages.clone()));
        }
        let file = arguments.text.as_ref().map(|it| it.display().to_string()).unwrap_or_default();
        let chunks = arguments.chunks.map_or(usize::MAX, |it| it as usize);
        let text = self.text.as_deref().unwrap_or_default();
        let passages = passages::windows(&side.tokenizer, text, self.context, chunks);
        let passages = passages.with_context(|| file.clone())?;
        let context = passages.first().map_or(0, |it| it.tokens.len());
        Ok((side, Source::Text { file, context, windows: passages.len() }, passages))
    }
}

fn nothing_to_read() -> anyhow::Error {
    let names = if cfg!(feature = "train") { "--text or --environment" } else { "--text" };
    Refusal::new(format!("expected {names}: something that both can read")).into()
}

fn finish(
    globals: &Globals,
    reference: &Path,
    candidate: &Path,
    source: Source,
    (left, right): (&mut dyn Side, &mut dyn Side),
    passages: &[Passage],
    progress: &Progress,
) -> anyhow::Result<Outcome> {
    progress.stage("tokens", n_judged(passages) as u64);
    let compared = sides::compare(left, right, passages, &mut |it| progress.set(it as u64))?;
    progress.finish();
    let divergence = Divergence::of(&compared.tokens);
    let divergence = divergence.ok_or_else(|| Refusal::new("the reference wrote nothing that could be compared"))?;
    let document = Document {
        reference: name_of(reference),
        candidate: name_of(candidate),
        source,
        divergence,
        foresight_shift: ForesightShift::of(&compared.stated),
    };
    if globals.json {
        output::print_json(&document)?;
    } else {
        output::print(&text(&document))?;
    }
    Ok(Outcome::Done)
}

fn name_of(file: &Path) -> String {
    file.display().to_string()
}

fn text(it: &Document) -> String {
    let read = match &it.source {
        Source::Text { file, context, windows } => format!("{file}, {windows} windows of {context} tokens"),
        Source::Environment { name, episodes, seed } => {
            format!("{episodes} episodes of the reference in {name}, seed {seed}")
        }
    };
    let divergence = &it.divergence;
    let mut text = format!("reference  {}\ncandidate  {}\n", it.reference, it.candidate);
    text += &format!("read       {read}: {} tokens judged\n\n", divergence.n_tokens);
    text += &output::columns(&divergence_rows(divergence));
    if let Some(shift) = &it.foresight_shift {
        text += &format!("\nforesight shift at {} places of {} tasks\n", shift.n_places, shift.n_clusters);
        text += &output::columns(&shift_rows(shift));
    }
    text
}

fn divergence_rows(it: &Divergence) -> Vec<Vec<String>> {
    let row = |name: &str, value: f64, error: Option<f64>, digits: usize| {
        let error = error.map_or_else(String::new, |it| format!("± {it:.digits$}"));
        vec![name.to_owned(), format!("{value:.digits$}"), error]
    };
    let percent = |name: &str, value: f64, error: Option<f64>| row(name, 100.0 * value, error.map(|it| 100.0 * it), 3);
    let change = &it.delta_p;
    let mut rows = vec![
        row("perplexity of the reference", it.perplexity_reference, it.perplexity_reference_error, 4),
        row("perplexity of the candidate", it.perplexity_candidate, it.perplexity_candidate_error, 4),
        row("ratio", it.perplexity_ratio, it.perplexity_ratio_error, 5),
        row("KL divergence, mean (nats)", it.kl_mean, it.kl_mean_error, 6),
    ];
    let percentiles = [
        ("median", it.kl_median),
        ("90 %", it.kl_p90),
        ("95 %", it.kl_p95),
        ("99 %", it.kl_p99),
        ("99.9 %", it.kl_p999),
        ("maximum", it.kl_max),
    ];
    rows.extend(percentiles.map(|(name, value)| row(&format!("  {name}"), value, None, 6)));
    rows.push(percent("same most probable token (%)", it.top1_agreement, it.top1_agreement_error));
    rows.push(percent("change of p, mean (%)", change.mean, change.mean_error));
    rows.push(percent("change of p, RMS (%)", change.rms, change.rms_error));
    let percentiles = [
        ("minimum", change.min),
        ("1 %", change.p01),
        ("5 %", change.p05),
        ("25 %", change.p25),
        ("median", change.median),
        ("75 %", change.p75),
        ("95 %", change.p95),
        ("99 %", change.p99),
        ("maximum", change.max),
    ];
    rows.extend(percentiles.map(|(name, value)| percent(&format!("  {name}"), value, None)));
    rows
}

fn shift_rows(it: &ForesightShift) -> Vec<Vec<String>> {
    let row = |name: &str, value: f64| vec![name.to_owned(), format!("{value:.4}")];
    let with = |name: &str, value: f64, around: Option<fsq_calibrate::intervals::Interval>| {
        let mut cells = row(name, value);
        cells.extend(around.map(|it| format!("[{:.4}, {:.4}]", it.low, it.high)));
        cells
    };
    vec![
        row("stated by the reference, mean", it.stated_reference),
        row("stated by the candidate, mean", it.stated_candidate),
        with("shift, mean", it.mean, it.mean_interval),
        with("size of the shift, mean", it.mean_absolute, it.mean_absolute_interval),
        row("  median", it.absolute_median),
        row("  90 %", it.absolute_p90),
        row("  99 %", it.absolute_p99),
        row("  maximum", it.absolute_max),
        row("shift, RMS", it.rms),
        row("same most probable answer", it.top1_agreement),
        row("total variation of the answers, mean", it.total_variation_mean),
        row("distance along the grid, mean", it.wasserstein_mean),
    ]
}
