//! `fsq data`: what is in a user's own records before a policy is trained on them.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use fsq_checkpoint::Checkpoint;
use fsq_trainer::data::{DataSet, Encoder, EncoderConfig, Example, TooLong, Turns};
use fsq_trainer::stages::sft;
use serde_json::{Value, json};

use crate::failure::{Outcome, Refusal};
use crate::{Globals, output};

/// Rejects that are told; the others are in the file.
const REJECTS_SHOWN: usize = 5;
/// Around what is learnt, where there are no colours.
const LEARNT: [&str; 2] = ["\u{ab}", "\u{bb}"];

/// Arguments of `fsq data`.
#[derive(Args)]
pub(crate) struct DataArguments {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Count, preview and reject records as training would
    Check(CheckArguments),
}

/// Arguments of `fsq data check`.
#[derive(Args)]
struct CheckArguments {
    /// Files of one JSON record a line: `messages`, ShareGPT, instructions, prompt and completion, text, token ids,
    /// episodes
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The checkpoint whose tokenizer and chat template are used
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Tokens of the longest sequence [default: the checkpoint's context]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Cut longer sequences instead of rejecting them
    #[arg(long)]
    cut: bool,
    /// Learn only the last turn of each conversation
    #[arg(long)]
    last_turn: bool,
    /// Records to show with what is learnt of them
    #[arg(long, value_name = "N", default_value_t = 2)]
    show: usize,
    /// Write the lines that cannot be used to this file, with reasons
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Colours: what is learnt is green, neighbouring tokens differ in shade
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &DataArguments) -> anyhow::Result<Outcome> {
    let DataCommand::Check(arguments) = &arguments.command;
    let checkpoint = Checkpoint::open(&arguments.checkpoint)?;
    let config = EncoderConfig {
        too_long: if arguments.cut { TooLong::Cut } else { TooLong::Reject },
        turns: if arguments.last_turn { Turns::Last } else { Turns::All },
        ..EncoderConfig::new(arguments.max_tokens.unwrap_or(checkpoint.dimensions.context))
    };
    let encoder = Encoder::new(&checkpoint, config)?;
    let set = DataSet::read(&arguments.files, &encoder)?;
    if let Some(path) = &arguments.rejects {
        sft::write_rejects(path, &set.rejects)?;
    }
    if globals.json {
        output::print_json(&counts(&set))?;
    } else {
        output::print(&summary(&set, &encoder, arguments)?)?;
    }
    if set.rejects.is_empty() {
        return Ok(Outcome::Done);
    }
    let refusal = Refusal::new(format!("{} of {} records cannot be used", set.rejects.len(), n_records(&set)));
    Err(match &arguments.rejects {
        Some(path) => refusal.hint(format!("lines and reasons are in {}", path.display())),
        None => refusal.hint("`--rejects FILE` keeps lines and reasons; `skip_rejects = true` trains without them"),
    }
    .into())
}

fn n_records(set: &DataSet) -> usize {
    set.examples.len() + set.rejects.len()
}

fn counts(set: &DataSet) -> Value {
    let (tokens, learnt) = set.tokens();
    let lengths = lengths(set);
    json!({
        "records": n_records(set),
        "used": set.examples.len(),
        "rejected": set.rejects.len(),
        "empty_lines": set.n_empty,
        "cut": set.examples.iter().filter(|it| it.n_cut > 0).count(),
        "kinds": set.kinds,
        "tokens": tokens,
        "learnt_tokens": learnt,
        "length": { "median": at(&lengths, 0.5), "p95": at(&lengths, 0.95), "max": at(&lengths, 1.0) },
        "rejects": set.rejects,
    })
}

fn lengths(set: &DataSet) -> Vec<usize> {
    let mut lengths: Vec<usize> = set.examples.iter().map(|it| it.sequence.tokens.len()).collect();
    lengths.sort_unstable();
    lengths
}

/// The value at a share of sorted ones.
#[expect(clippy::cast_precision_loss, reason = "counts of records are far below 2^52")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
fn at(sorted: &[usize], share: f64) -> Option<usize> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

fn summary(set: &DataSet, encoder: &Encoder, arguments: &CheckArguments) -> anyhow::Result<String> {
    let mut text = String::new();
    let colored = match arguments.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => io::stdout().is_terminal(),
    };
    for example in set.examples.iter().take(arguments.show) {
        text += &preview(example, encoder, colored);
    }
    let (tokens, learnt) = set.tokens();
    let lengths = lengths(set);
    let at = |share| at(&lengths, share).unwrap_or(0).to_string();
    let mut rows = vec![vec!["records".to_string(), n_records(set).to_string()]];
    rows.extend(set.kinds.iter().map(|(kind, n)| vec![format!("  {}", kind.name()), n.to_string()]));
    rows.extend([
        vec!["  rejected".into(), set.rejects.len().to_string()],
        vec!["tokens".into(), tokens.to_string()],
        vec!["  learnt".into(), learnt.to_string()],
        vec!["tokens of a record, median".into(), at(0.5)],
        vec!["  of 95 in 100 at most".into(), at(0.95)],
        vec!["  at most".into(), at(1.0)],
        vec!["cut".into(), set.examples.iter().filter(|it| it.n_cut > 0).count().to_string()],
        vec!["empty lines".into(), set.n_empty.to_string()],
    ]);
    text += &output::columns(&rows);
    for reject in set.rejects.iter().take(REJECTS_SHOWN) {
        writeln!(text, "rejected: {}", escaped(&reject.to_string())).context("a text in memory")?;
    }
    if set.rejects.len() > REJECTS_SHOWN {
        writeln!(text, "and {} more", set.rejects.len() - REJECTS_SHOWN).context("a text in memory")?;
    }
    Ok(text)
}

/// A record as the policy reads it: what is learnt green, or between marks.
fn preview(example: &Example, encoder: &Encoder, colored: bool) -> String {
    let mut text = format!("{}:{}\n", example.file.display(), example.line);
    let mut learning = false;
    for (index, (piece, weight)) in encoder.shown(&example.sequence).into_iter().enumerate() {
        let is_learnt = weight != 0.0 && index > 0;
        let piece = escaped(&piece);
        if colored {
            let shade = if index % 2 == 0 { 22 } else { 28 };
            let grey = if index % 2 == 0 { 250 } else { 245 };
            text += &if is_learnt {
                format!("\u{1b}[97;48;5;{shade}m{piece}\u{1b}[0m")
            } else {
                format!("\u{1b}[38;5;{grey}m{piece}\u{1b}[0m")
            };
            continue;
        }
        if is_learnt != learning {
            text += LEARNT[usize::from(learning)];
            learning = is_learnt;
        }
        text += &piece;
    }
    if learning {
        text += LEARNT[1];
    }
    text + "\n\n"
}

/// What comes from a file must not steer the terminal; line feeds and tabs stay.
fn escaped(text: &str) -> String {
    let visible = |it: char| match it {
        '\n' | '\t' => it.to_string(),
        it if it.is_control() => it.escape_debug().to_string(),
        it => it.to_string(),
    };
    text.chars().map(visible).collect()
}
