//! A policy from a GGUF file, ready to run: for the commands that generate or score.

use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use fsq_checkpoint::Adapter;
use fsq_gguf::Gguf;
use fsq_kernels::Cpu;
use fsq_model::{AdapterId, Decoder, DecoderOptions, KvFormat, Tokenizer, read_adapter};

use crate::failure::Refusal;
use crate::{Globals, identity};

/// The place of the one adapter that a command can name.
pub(crate) const ADAPTER: AdapterId = AdapterId(0);

/// How keys and values are stored, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kv {
    /// Half floats
    #[default]
    F16,
    /// 8 bits, in little more than half the memory
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<Kv> for KvFormat {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F16 => Self::F16,
            Kv::Q8_0 => Self::Q8_0,
        }
    }
}

/// Opens a GGUF file.
pub(crate) fn open(path: &Path) -> anyhow::Result<Gguf> {
    if path.is_dir() {
        let refusal = Refusal::new(format!("{}: expected a GGUF file, found a folder", path.display()));
        return Err(refusal.hint("`fsq quantize` makes GGUF files from checkpoint folders").into());
    }
    Ok(Gguf::open(path)?)
}

/// The tokenizer of a file.
pub(crate) fn tokenizer(gguf: &Gguf) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_gguf(gguf).with_context(|| gguf.path().display().to_string())
}

/// A decoder of one sequence of at most `context_tokens`.
pub(crate) fn decoder(globals: &Globals, gguf: &Gguf, context_tokens: usize, kv: Kv) -> anyhow::Result<Decoder<Cpu>> {
    let options = DecoderOptions { threads: globals.threads(), context_tokens, kv: kv.into(), max_sequences: 1 };
    Decoder::load(gguf, options).with_context(|| gguf.path().display().to_string())
}

/// Puts an adapter, a folder in PEFT layout or a GGUF file, in [`ADAPTER`]. Refuses another than the one beside which
/// the decoder's file was judged.
pub(crate) fn adapt(decoder: &mut Decoder<Cpu>, gguf: &Gguf, path: &Path) -> anyhow::Result<()> {
    let adapter = if path.is_file() {
        read_adapter(&Gguf::open(path)?, decoder.config()).with_context(|| path.display().to_string())?
    } else {
        Adapter::open(path)?
    };
    identity::check_adapter(gguf, Some(&adapter))?;
    decoder.set_adapter(ADAPTER, Some(&adapter)).with_context(|| path.display().to_string())
}
