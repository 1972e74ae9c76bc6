//! `fsq logits`: the logits of given token ids, to a safetensors file, for parity checks.

use std::path::PathBuf;

use clap::Args;
use fsq_model::{LogitsFor, Step, TokenId};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use crate::failure::Outcome;
use crate::{Globals, output, policy};

/// Arguments of `fsq logits`.
#[derive(Args)]
pub(crate) struct LogitsArguments {
    /// A GGUF file
    file: PathBuf,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    tokens: Vec<TokenId>,
    /// After every token, not only after the last
    #[arg(long)]
    all: bool,
    /// The safetensors file to write: tensor `logits`, f32, [tokens or 1, vocabulary]
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How keys and values are stored
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    kv: policy::Kv,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document {
    out: String,
    shape: [usize; 2],
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &LogitsArguments) -> anyhow::Result<Outcome> {
    let gguf = policy::open(&arguments.file)?;
    let mut decoder = policy::decoder(globals, &gguf, arguments.tokens.len(), arguments.kv)?;
    drop(gguf);
    let sequence = decoder.open_sequence();
    let wanted = if arguments.all { LogitsFor::All } else { LogitsFor::Last };
    let logits = decoder.forward(&[Step { sequence, tokens: &arguments.tokens, logits: wanted, adapter: None }])?;
    let shape = [logits.n_rows(0), logits.vocab()];
    let bytes: Vec<u8> = logits.rows(0).iter().flat_map(|it| it.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes)?;
    output::write_whole(&arguments.out, &safetensors::serialize([("logits", view)], None)?)?;
    let out = arguments.out.display().to_string();
    if globals.json {
        output::print_json(&Document { out, shape })?;
    } else {
        output::print(&format!("{out}: logits [{}, {}]\n", shape[0], shape[1]))?;
    }
    Ok(Outcome::Done)
}
