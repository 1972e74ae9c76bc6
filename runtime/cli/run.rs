//! `fsq run`: generates from a GGUF file in the terminal.

use std::path::PathBuf;

use clap::Args;
use fsq_kernels::Cpu;
use fsq_model::{
    Decoder, Engine, EngineEvent, EngineOptions, Finish, Request, Special, TextStream, TokenId, Tokenizer,
};
use serde::Serialize;

use crate::failure::{Outcome, Refusal};
use crate::sampling::SamplingArguments;
use crate::{Globals, output, policy};

/// Arguments of `fsq run`.
#[derive(Args)]
pub(crate) struct RunArguments {
    /// A GGUF file
    file: PathBuf,
    /// What comes before the generated text
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// Read the texts of special tokens in the prompt, such as `<|user|>`, as those tokens
    #[arg(long)]
    special: bool,
    /// Tokens to generate at most
    #[arg(short = 'n', long = "max-tokens", value_name = "N", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// An adapter, a folder in PEFT layout or a GGUF file, applied while running
    #[arg(long, value_name = "PATH")]
    adapter: Option<PathBuf>,
    /// Go on after tokens that end a text
    #[arg(long)]
    ignore_eos: bool,
    /// How keys and values are stored
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    kv: policy::Kv,
}

/// What `--json` prints. The shape is stable.
#[derive(Serialize)]
struct Document {
    text: String,
    /// Without the token that ended the text.
    token_ids: Vec<TokenId>,
    prompt_token_ids: Vec<TokenId>,
    /// `stop`: a token that ends a text; `length`: as many tokens as allowed, or the context is full.
    finish_reason: &'static str,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &RunArguments) -> anyhow::Result<Outcome> {
    let gguf = policy::open(&arguments.file)?;
    let tokenizer = policy::tokenizer(&gguf)?;
    let prompt = prompt(&tokenizer, arguments);
    if prompt.is_empty() {
        return Err(Refusal::new("--prompt: expected some text, found none").into());
    }
    let n = arguments.n as usize;
    let mut decoder = policy::decoder(globals, &gguf, prompt.len().saturating_add(n), arguments.kv)?;
    let mut request = Request::new(prompt, n, arguments.sampling.of_answer(0));
    if !arguments.ignore_eos {
        request.stop = tokenizer.ends().to_vec();
    }
    if let Some(path) = &arguments.adapter {
        policy::adapt(&mut decoder, &gguf, path)?;
        request.adapter = Some(policy::ADAPTER);
    }
    drop(gguf);
    let document = generate(decoder, &tokenizer, request, !globals.json)?;
    if globals.json {
        output::print_json(&document)?;
    }
    Ok(Outcome::Done)
}

fn prompt(tokenizer: &Tokenizer, arguments: &RunArguments) -> Vec<TokenId> {
    let special = if arguments.special { Special::Parse } else { Special::Escape };
    let mut prompt = tokenizer.encode(&arguments.prompt, special);
    if let Some(bos) = tokenizer.bos().filter(|it| tokenizer.adds_bos() && prompt.first() != Some(it)) {
        prompt.insert(0, bos);
    }
    prompt
}

/// Generates, and shows the text as it comes if asked to.
fn generate(decoder: Decoder<Cpu>, tokenizer: &Tokenizer, request: Request, show: bool) -> anyhow::Result<Document> {
    let mut engine = Engine::new(decoder, EngineOptions::new(1));
    let prompt_token_ids = request.prompt.clone();
    engine.submit(request)?;
    let (mut token_ids, mut reason) = (Vec::new(), Finish::Length);
    let (mut stream, mut text) = (TextStream::default(), String::new());
    while !engine.is_idle() {
        for event in engine.step()? {
            let (token, finish) = match event {
                EngineEvent::Token { token, finish, .. } => (token, finish),
                EngineEvent::Failed { error, .. } => return Err(error.into()),
            };
            reason = finish.unwrap_or(reason);
            if finish == Some(Finish::Stop) {
                continue;
            }
            token_ids.push(token);
            let piece = stream.push(tokenizer, token);
            if show {
                output::print(&piece)?;
            }
            text += &piece;
        }
    }
    let rest = stream.finish();
    if show {
        output::print(&(rest.clone() + "\n"))?;
    }
    let finish_reason = match reason {
        Finish::Stop => "stop",
        Finish::Length | Finish::Context => "length",
    };
    Ok(Document { text: text + &rest, token_ids, prompt_token_ids, finish_reason })
}
