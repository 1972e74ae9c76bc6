//! The text of one answer as it grows: whole characters only, and nothing that may yet turn out a stop text.

use fsq_model::{TextStream, TokenId, Tokenizer};

/// A token of an answer with how probable it was.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenLogprob {
    pub(crate) token: TokenId,
    /// Natural logarithm, at temperature 1.
    pub(crate) logprob: f32,
    /// The most probable tokens there, most probable first.
    pub(crate) alternatives: Vec<(TokenId, f32)>,
}

/// What can be handed out after a token.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
}

/// One answer's text.
#[derive(Debug)]
pub(crate) struct AnswerText {
    characters: TextStream,
    stop_texts: Vec<String>,
    /// All text that may be handed out, from the answer's beginning.
    released: String,
    /// What may be the start of a stop text.
    held: String,
    /// Where in the text each token begins that was not handed out.
    tokens: Vec<(usize, TokenLogprob)>,
}

impl AnswerText {
    /// An answer that begins with `beginning`, which is not handed out again.
    pub(crate) fn new(beginning: &str, stop_texts: Vec<String>) -> Self {
        let released = beginning.to_string();
        Self { characters: TextStream::default(), stop_texts, released, held: String::new(), tokens: Vec::new() }
    }

    /// The text so far, without what is held back.
    pub(crate) fn text(&self) -> &str {
        &self.released
    }

    /// Takes a token in; the second value says whether a stop text ended the answer.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: TokenLogprob) -> (Piece, bool) {
        let text = self.characters.push(tokenizer, token.token);
        if !tokenizer.is_control(token.token) {
            self.tokens.push((self.released.len() + self.held.len(), token));
        }
        self.held.push_str(&text);
        let found = self.stop_texts.iter().filter_map(|it| self.held.find(it.as_str())).min();
        let n_free = found.unwrap_or_else(|| self.held.len() - self.n_suspect());
        let rest = self.held.split_off(n_free);
        let text = std::mem::replace(&mut self.held, rest);
        (self.release(text), found.is_some())
    }

    /// What is left at the end, when no stop text came.
    pub(crate) fn finish(&mut self) -> Piece {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&self.characters.finish());
        let mut piece = self.release(text);
        piece.logprobs.extend(self.tokens.drain(..).map(|it| it.1));
        piece
    }

    fn release(&mut self, text: String) -> Piece {
        self.released.push_str(&text);
        let n_begun = self.tokens.iter().take_while(|it| it.0 < self.released.len()).count();
        Piece { text, logprobs: self.tokens.drain(..n_begun).map(|it| it.1).collect() }
    }

    /// Length of the longest end of the held text that a stop text begins with.
    fn n_suspect(&self) -> usize {
        let begins = |stop: &String| {
            let ends = self.held.char_indices().map(|it| self.held.len() - it.0);
            ends.into_iter().find(|n| stop.as_bytes().starts_with(&self.held.as_bytes()[self.held.len() - n..]))
        };
        self.stop_texts.iter().filter_map(begins).max().unwrap_or(0)
    }
}
