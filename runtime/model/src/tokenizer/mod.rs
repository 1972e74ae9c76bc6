//! Text to tokens and back, from a GGUF file or a `tokenizer.json`. Knows no chat and no weights.
//!
//! Cutting and merging is the business of one file for each kind of vocabulary. Added tokens are found here, because
//! whether text may contain them is a decision of each call: a user's text must not be able to close a turn.

mod added;
mod gguf;
mod json;
mod merges;
mod pieces;
mod pre;
mod sentencepiece;
#[cfg(test)]
mod tests;
mod unigram;

use std::collections::HashMap;

use fsq_gguf::Gguf;

use crate::{ModelError, TokenId};
use added::{AddedTokens, Strip, is_space};
use merges::Merges;
pub use pieces::TextStream;
pub(crate) use pieces::char_of_byte;
use pieces::{Alphabet, Follows, Kind, Piece, SPACE_MARK};
use sentencepiece::SentencePiece;
use unigram::Unigram;

/// Whether text may contain added tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The texts of added tokens become those tokens: for prompts that the program itself put together.
    Parse,
    /// All text is only text: for whatever a user wrote. Added tokens that cannot steer, because they are white
    /// space or a single character, are text too.
    Escape,
}

/// A part of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A text, which goes on where the part before it ended: a word may lie in both.
    Text(&'a str, Special),
    /// A token.
    Token(TokenId),
}

/// A tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    /// Every token, by id.
    pieces: Vec<Piece>,
    added: AddedTokens,
    alphabet: Alphabet,
    prefix: SpacePrefix,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    ends: Vec<TokenId>,
    adds_bos: bool,
}

/// How ordinary text becomes tokens.
#[derive(Debug)]
enum Model {
    Merges(Box<Merges>),
    SentencePiece(SentencePiece),
    Unigram(Unigram),
}

/// Where a space is put before text. Decoding takes the same space away.
#[derive(Clone, Copy, Debug, Default)]
struct SpacePrefix {
    when: Prefix,
    /// Not where the text begins with a space anyway.
    unless_space: bool,
    /// The model puts it there, so that here it is only taken away.
    by_model: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Prefix {
    #[default]
    Never,
    /// Before what begins a text.
    First,
    /// Before that, and before what follows an added token.
    AfterAdded,
}

impl SpacePrefix {
    fn applies(self, follows: Follows) -> bool {
        match follows {
            Follows::Nothing => self.when != Prefix::Never,
            Follows::Added => self.when == Prefix::AfterAdded,
            Follows::Text => false,
        }
    }
}

/// What a file says, by token id where there are several.
struct Contents {
    model: Model,
    texts: Vec<String>,
    pieces: Vec<Piece>,
    strips: Vec<Strip>,
    prefix: SpacePrefix,
    alphabet: Alphabet,
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes (`tokenizer.ggml.*`; model `gpt2`, `gemma4`, `llama` or `t5`).
    ///
    /// # Errors
    /// [`ModelError::Metadata`], [`ModelError::UnknownPreTokenizer`], [`ModelError::Tokenizer`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        gguf::read(gguf.metadata())
    }

    /// Builds the tokenizer of a `tokenizer.json`. That file does not say which tokens begin and end a text:
    /// see [`Tokenizer::with_bos`] and [`Tokenizer::with_eos`].
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when it cannot be read, or is neither byte-level BPE nor BPE over characters with
    /// byte fallback.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        json::read(json)
    }

    /// The names of all rules for cutting text that GGUF files may carry (`tokenizer.ggml.pre`).
    pub fn pre_tokenizers() -> impl Iterator<Item = &'static str> {
        pre::tags()
    }

    fn assemble(contents: Contents) -> Result<Self, ModelError> {
        let Contents { model, texts, mut pieces, strips, prefix, alphabet } = contents;
        let mut by_text: HashMap<&str, TokenId> = HashMap::with_capacity(texts.len());
        for (text, id) in texts.iter().zip(0..) {
            if !text.is_empty() && by_text.insert(text, id).is_some() {
                return Err(ModelError::Tokenizer { reason: format!("the token `{text}` is there twice") });
            }
        }
        let mut kinds: Vec<Kind> = pieces.iter().map(|it| it.kind).collect();
        let ends = added::ends(|text| by_text.get(text).copied(), &mut kinds);
        for ((piece, text), kind) in pieces.iter_mut().zip(&texts).zip(kinds) {
            if piece.kind != kind {
                *piece = Piece::new(text, kind, alphabet);
            }
        }
        let added =
            texts.iter().zip(&pieces).zip(&strips).zip(0..).filter(|(((_, piece), _), _)| piece.kind.is_added());
        let added = AddedTokens::new(added.map(|(((text, piece), strip), id)| (text.clone(), id, piece.kind, *strip)));
        Ok(Self { model, pieces, added, alphabet, prefix, bos: None, eos: None, ends, adds_bos: false })
    }

    /// Names the token that begins a text.
    #[must_use]
    pub fn with_bos(mut self, bos: TokenId) -> Self {
        self.bos = Some(bos);
        self
    }

    /// Names the token that ends a text or turn; a second call adds another, the first stays [`Tokenizer::eos`].
    #[must_use]
    pub fn with_eos(mut self, eos: TokenId) -> Self {
        self.eos.get_or_insert(eos);
        if !self.ends.contains(&eos) {
            self.ends.push(eos);
        }
        self
    }

    /// The tokens of a text; no token is put before it.
    pub fn encode(&self, text: &str, special: Special) -> Vec<TokenId> {
        self.encode_parts(&[Part::Text(text, special)])
    }

    /// The tokens of a text that is partly the program's and partly a user's. Added tokens are found within parts,
    /// never across, and everything else is as if the text were whole; no token is put before it.
    pub fn encode_parts(&self, parts: &[Part<'_>]) -> Vec<TokenId> {
        let mut writer = Writer::new(self);
        for part in parts {
            let (text, special) = match part {
                Part::Text(text, special) => (*text, *special),
                Part::Token(token) => {
                    writer.token(*token, Strip::default());
                    continue;
                }
            };
            let (mut plain_from, mut at) = (0, 0);
            while at < text.len() {
                let Some(found) = self.added.at(&text.as_bytes()[at..], special) else {
                    at += 1;
                    continue;
                };
                writer.plain(&text[plain_from..at]);
                writer.token(found.id, found.strip);
                at += found.text.len();
                plain_from = at;
            }
            writer.plain(&text[plain_from..]);
        }
        writer.flush();
        writer.tokens
    }

    /// The text of tokens without control tokens; bytes that are no UTF-8 become `U+FFFD`.
    ///
    /// It is what was encoded: a space that the tokenizer put before it is taken away again.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        self.join(tokens, false)
    }

    /// The text of tokens, control tokens included: [`Special::Parse`] reads it back.
    pub fn decode_with_special(&self, tokens: &[TokenId]) -> String {
        self.join(tokens, true)
    }

    fn join(&self, tokens: &[TokenId], with_control: bool) -> String {
        let mut bytes = Vec::new();
        let mut follows = Follows::Nothing;
        for token in tokens {
            let own = self.bytes_after(*token, &mut follows);
            if with_control || !self.is_control(*token) {
                bytes.extend_from_slice(own);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of a token in its place, without a space that the tokenizer itself put there.
    fn bytes_after(&self, token: TokenId, follows: &mut Follows) -> &[u8] {
        let Some(piece) = self.pieces.get(token as usize) else { return &[] };
        if piece.kind.is_added() {
            *follows = Follows::Added;
            return &piece.bytes;
        }
        let own_space = self.prefix.applies(*follows);
        *follows = Follows::Text;
        piece.bytes.strip_prefix(b" ").filter(|_| own_space).unwrap_or(&piece.bytes)
    }

    /// The bytes that a token stands for, which need not be whole characters; `None` beyond the vocabulary.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.pieces.get(token as usize).map(|it| it.bytes.as_slice())
    }

    /// The token whose text is exactly this, added tokens included.
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        if let Some(id) = self.added.id(text) {
            return Some(id);
        }
        let written: String = match self.alphabet {
            Alphabet::Bytes => text.bytes().map(char_of_byte).collect(),
            Alphabet::Characters => text.replace(' ', &SPACE_MARK.to_string()),
        };
        match &self.model {
            Model::Merges(model) => model.id(&written),
            Model::SentencePiece(model) => model.id(&written),
            Model::Unigram(model) => model.id(&written),
        }
    }

    /// Whether a token only steers and is not part of the text.
    pub fn is_control(&self, token: TokenId) -> bool {
        self.pieces.get(token as usize).is_some_and(|it| it.kind == Kind::Control)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// Whether a token ends a text or a turn.
    pub fn is_end(&self, token: TokenId) -> bool {
        self.ends.contains(&token)
    }

    /// Every token that ends a text or a turn.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// Whether a raw prompt is to begin with [`Tokenizer::bos`]; chat templates write it themselves.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Number of ids.
    pub fn vocab(&self) -> usize {
        self.pieces.len()
    }
}

/// Tokens so far, and the text that is still to become some.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<TokenId>,
    text: String,
    follows: Follows,
    /// White space is left out until something else comes.
    skips_space: bool,
}

impl<'a> Writer<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        let (tokens, text, follows) = (Vec::new(), String::new(), Follows::Nothing);
        Self { tokenizer, tokens, text, follows, skips_space: false }
    }

    fn plain(&mut self, text: &str) {
        let text = if self.skips_space { text.trim_start_matches(is_space) } else { text };
        self.skips_space &= text.is_empty();
        self.text.push_str(text);
    }

    fn token(&mut self, token: TokenId, strip: Strip) {
        if strip.left {
            self.text.truncate(self.text.trim_end_matches(is_space).len());
        }
        self.flush();
        self.tokens.push(token);
        self.follows = Follows::Added;
        self.skips_space = strip.right;
    }

    fn flush(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let prefix = self.tokenizer.prefix;
        let has_space = prefix.unless_space && self.text.starts_with([' ', SPACE_MARK]);
        if prefix.applies(self.follows) && !prefix.by_model && !has_space {
            self.text.insert(0, ' ');
        }
        match &self.tokenizer.model {
            Model::Merges(model) => model.encode(&self.text, &mut self.tokens),
            Model::SentencePiece(model) => model.encode(&self.text, &mut self.tokens),
            Model::Unigram(model) => model.encode(&self.text, &mut self.tokens),
        }
        self.text.clear();
        self.follows = Follows::Text;
    }
}
