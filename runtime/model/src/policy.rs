//! A policy ready to run: decoder, tokenizer and chat template of one file.

use fsq_gguf::Gguf;
use fsq_kernels::Cpu;

use crate::{ChatTemplate, Decoder, DecoderOptions, ModelError, Tokenizer};

/// Everything that one GGUF file says about running its policy.
pub struct LoadedPolicy {
    /// The forward pass.
    pub decoder: Decoder<Cpu>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How a conversation is laid out.
    pub template: ChatTemplate,
}

impl LoadedPolicy {
    /// Loads a file for the CPU.
    ///
    /// # Errors
    /// What in the file cannot be run, by field or tensor; a file without a chat template is one of these.
    pub fn load(gguf: &Gguf, options: DecoderOptions) -> Result<Self, ModelError> {
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let template = Self::template(gguf, &tokenizer)?;
        Ok(Self { decoder: Decoder::load(gguf, options)?, tokenizer, template })
    }

    /// The chat template of a file.
    ///
    /// # Errors
    /// When there is none, or it does not parse.
    pub fn template(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<ChatTemplate, ModelError> {
        let found = gguf.metadata().get(TEMPLATE_KEY).map(|_| gguf.metadata().need(TEMPLATE_KEY)).transpose()?;
        let source = found.ok_or(ModelError::NoChatTemplate { key: TEMPLATE_KEY })?;
        let text = |id: Option<u32>| id.map_or_else(String::new, |it| tokenizer.decode_with_special(&[it]));
        ChatTemplate::new(source, &text(tokenizer.bos()), &text(tokenizer.eos()))
    }
}

/// Where GGUF files keep the template.
const TEMPLATE_KEY: &str = "tokenizer.chat_template";
