//! `fsq chat`: a conversation with a file's policy in the terminal. What has been read stays in the KV cache.

mod conversation;
mod terminal;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use fsq_calibrate::foresight::Foresight;
use fsq_calibrate::gates::Confidence;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::sampling::SamplingArguments;
use crate::{Globals, output, policy, serve};
use conversation::{Answer, Conversation, End, Foreseen};
use terminal::{Heard, Terminal};

/// Sequences of full length that fit beside each other: the chat, and the grid answers that are scored on a branch.
const SEQUENCES: usize = 2;
/// What can be typed beside messages.
const ORDERS: &str =
    "/reset forgets what was said, /system TEXT sets the system prompt and forgets the rest, /exit ends";

/// Arguments of `fsq chat`.
///
/// A line is a message. Ctrl-C stops an answer; the end of the input ends the chat.
#[derive(Args)]
pub(crate) struct ChatArguments {
    /// A GGUF file
    file: PathBuf,
    /// What comes before the first message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most [default: until the context is full]
    #[arg(short = 'n', long = "max-tokens", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    n: Option<u32>,
    /// Tokens of the whole chat at most [default: what the policy was trained for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    context: Option<u32>,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// How keys and values are stored
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    kv: policy::Kv,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &ChatArguments) -> anyhow::Result<Outcome> {
    let gguf = policy::open(&arguments.file)?;
    let context = arguments.context.map_or(usize::MAX, |it| it as usize);
    let policy = serve::policy(globals.threads(), &gguf, context, SEQUENCES, arguments.kv)?;
    drop(gguf);
    let unusable = policy.facts.confidence == Some(Confidence::Unusable);
    let name = policy.facts.name.clone();
    let mut conversation = Conversation::new(policy, arguments.system.clone());
    let terminal = Terminal::start().context("standard input")?;
    terminal.notice(&format!("{name}: {ORDERS}"));
    let mut document = Vec::new();
    loop {
        let text = match terminal.hear()? {
            Heard::Line(line) => line,
            Heard::Interrupt | Heard::End => break,
        };
        let (order, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match order {
            "/exit" => break,
            "/reset" => conversation.reset(),
            "/system" => conversation.set_system(rest.trim()),
            _ if order.starts_with('/') => terminal.tell(&format!("unknown order {order}: {ORDERS}")),
            _ if text.trim().is_empty() => {}
            _ => {
                let sampling = arguments.sampling.of_answer(document.len() as u64);
                let mut show = |piece: &str| if globals.json { Ok(()) } else { output::print(piece) };
                let n = arguments.n.map_or(usize::MAX, |it| it as usize);
                let Some(answer) = conversation.answer(&text, n, sampling, &terminal, &mut show)? else {
                    let full = conversation.context_tokens();
                    terminal.tell(&format!("this message does not fit into the context of {full} tokens; {ORDERS}"));
                    continue;
                };
                if !globals.json {
                    output::print(&(answer.foreseen.as_ref().map(|it| told(it, unusable)).unwrap_or_default() + "\n"))?;
                }
                tell_end(&terminal, &answer, conversation.context_tokens());
                document.push(turn(&text, &answer));
            }
        }
    }
    if globals.json {
        output::print_json(&document)?;
    }
    Ok(Outcome::Done)
}

/// Says why an answer ended, where that is not plain to see.
fn tell_end(terminal: &Terminal, answer: &Answer, context: usize) {
    match answer.end {
        End::Stop => {}
        End::Interrupted => terminal.tell("stopped"),
        End::Length => terminal.tell(&format!("cut off after {} tokens", answer.n_generated)),
        End::Context => terminal.tell(&format!("the context of {context} tokens is full; {ORDERS}")),
    }
}

/// An answer's foresight, its parts apart.
fn told(foreseen: &Foreseen, unusable: bool) -> String {
    let Foresight { imaginary, keyword, analysis, stated, think, action } = &foreseen.foresight;
    let mut text = String::new();
    for (index, line) in imaginary.iter().enumerate() {
        text += &format!("{:<10}{line}\n", if index == 0 { "rollout" } else { "" });
    }
    text += &format!("{:<10}{}\n{:<10}{analysis}\n", "keyword", keyword.join(", "), "analysis");
    text += &match foreseen.reading {
        Some((read, estimate)) => {
            let doubt = if unusable { "; the gates found this policy's confidence unusable" } else { "" };
            let percent = |it: f64| format!("{:.0} %", 100.0 * it);
            let (wrote, read) = (percent(stated.value()), percent(read.value()));
            format!("{:<10}{} (wrote {wrote}, read as {read}{doubt})\n", "estimate", percent(estimate.value()))
        }
        None => format!("{:<10}none\n", "estimate"),
    };
    text + &format!("{:<10}{think}\n{:<10}{action}", "think", "action")
}

/// One message and its answer, as `--json` prints them.
fn turn(message: &str, answer: &Answer) -> Value {
    let foresight = answer.foreseen.as_ref().map(|it| {
        json!({
            "rollout": it.foresight.imaginary,
            "keyword": it.foresight.keyword,
            "analysis": it.foresight.analysis,
            "stated": it.foresight.stated,
            "stated_expectation": it.reading.map(|it| it.0),
            "estimate": it.reading.map(|it| it.1),
            "think": it.foresight.think,
            "action": it.foresight.action,
        })
    });
    json!({
        "message": message,
        "answer": answer.text,
        "finish_reason": answer.end.name(),
        "n_prompt": answer.n_prompt,
        "n_read": answer.n_read,
        "n_generated": answer.n_generated,
        "foresight": foresight,
    })
}
