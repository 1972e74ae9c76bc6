//! How a conversation with an environment is laid out in tokens. What an environment says is only text: it cannot end
//! its turn or begin another.

use fsq_model::{ChatTemplate, Message, Part, Special, TokenId, Tokenizer, Turn};

use crate::EpisodeError;

/// A policy's tokenizer and template, and what they say about turns.
pub struct Protocol<'a> {
    /// Encodes and decodes.
    pub tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
}

/// Stand in for the policy's turn and the environment's when the text between two turns is looked up.
const MARK: &str = "\u{1}";
const SAID: &str = "\u{2}";

impl<'a> Protocol<'a> {
    /// Joins a tokenizer and a template.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer, template: &'a ChatTemplate) -> Self {
        Self { tokenizer, template }
    }

    /// Tokens up to where the policy's first turn begins.
    ///
    /// # Errors
    /// When the template refuses.
    pub fn first(&self, observation: &str) -> Result<Vec<TokenId>, EpisodeError> {
        let turn = Turn { role: "user", said: vec![Part::Text(observation, Special::Escape)] };
        Ok(self.template.encode(self.tokenizer, &[turn])?)
    }

    /// Tokens between the end of a policy's turn (its stop token included) and the start of its next.
    ///
    /// # Errors
    /// When the template refuses, or rewrites earlier turns, so that tokens could not simply be appended.
    pub fn next(&self, observation: &str) -> Result<Vec<TokenId>, EpisodeError> {
        let mut messages = vec![Message::new("user", "."), Message::new("assistant", MARK)];
        let before = self.template.render(&messages, false)?;
        messages.push(Message::new("user", SAID));
        let after = self.template.render(&messages, true)?;
        let fault = || EpisodeError::Template("an earlier turn changes when a later one is added".into());
        let text = after.strip_prefix(&before).ok_or_else(fault)?;
        let lost = || EpisodeError::Template("what the environment says is not in it".into());
        let (before, after) = text.split_once(SAID).ok_or_else(lost)?;
        let parse = |it| Part::Text(it, Special::Parse);
        Ok(self.tokenizer.encode_parts(&[parse(before), Part::Text(observation, Special::Escape), parse(after)]))
    }
}
