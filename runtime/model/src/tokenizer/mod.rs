//! Text to tokens and back: byte-level BPE from a GGUF file or a `tokenizer.json`. Knows no chat and no weights.
//!
//! Cutting and merging is the `tokenizers` crate's work. Added tokens are found here, because whether text may
//! contain them is a decision of each call: a user's text must not be able to close a turn.

mod pieces;
mod pre;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use fsq_gguf::{Gguf, Metadata};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use crate::{ModelError, TokenId};
pub use pieces::TextStream;
pub(crate) use pieces::char_of_byte;
use pieces::{Kind, Piece};

/// Texts of control tokens that end a turn under whatever key a file names them; llama.cpp knows the same ones.
const END_TEXTS: &[&str] =
    &["<|eot_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<|eom_id|>", "<end_of_turn>", "</s>"];

/// Whether text may contain added tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The texts of added tokens become those tokens: for prompts that the program itself put together.
    Parse,
    /// All text is only text: for whatever a user wrote.
    Escape,
}

/// A byte-level BPE tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    /// Cuts and merges; holds no added tokens.
    words: tokenizers::Tokenizer,
    /// Every token, by id.
    pieces: Vec<Piece>,
    /// The token of each single byte that has one.
    bytes: Vec<Option<TokenId>>,
    /// Added tokens by first byte, longest text first.
    added: HashMap<u8, Vec<(Vec<u8>, TokenId)>>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    ends: Vec<TokenId>,
    adds_bos: bool,
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes (`tokenizer.ggml.*`, model `gpt2`).
    ///
    /// # Errors
    /// [`ModelError::Metadata`], [`ModelError::UnknownPreTokenizer`], [`ModelError::Tokenizer`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let fields = gguf.metadata();
        let model: &str = fields.need("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(ModelError::Metadata {
                field: "tokenizer.ggml.model".into(),
                expected: "`gpt2` (byte-level BPE)".into(),
                found: format!("`{model}`"),
            });
        }
        let pre = pre::find(fields.need("tokenizer.ggml.pre")?)?;
        let tokens: &[String] = fields.need("tokenizer.ggml.tokens")?;
        let kinds: Vec<i32> = fields.need("tokenizer.ggml.token_type")?;
        if kinds.len() != tokens.len() {
            return Err(ModelError::Metadata {
                field: "tokenizer.ggml.token_type".into(),
                expected: format!("{} entries, as many as tokens", tokens.len()),
                found: kinds.len().to_string(),
            });
        }
        let pieces: Vec<Piece> =
            tokens.iter().zip(&kinds).map(|(text, kind)| Piece::new(text, Kind::from_gguf(*kind))).collect();
        let mut vocab: HashMap<String, u32> = HashMap::with_capacity(tokens.len());
        for ((text, piece), id) in tokens.iter().zip(&pieces).zip(0..) {
            if piece.kind != Kind::Normal || text.is_empty() {
                continue;
            }
            // Which of two ids is meant could not be told.
            if let Some(other) = vocab.insert(text.clone(), id) {
                return Err(ModelError::Metadata {
                    field: format!("tokenizer.ggml.tokens[{id}]"),
                    expected: "a text of its own".into(),
                    found: format!("`{text}`, the text of token {other}"),
                });
            }
        }
        let merges = parse_merges(fields.need("tokenizer.ggml.merges")?)?;
        let words = build_words(vocab, merges, pre)?;
        let mut tokenizer = Self::assemble(words, pieces)?;
        tokenizer.bos = token_field(fields, "tokenizer.ggml.bos_token_id", tokens.len())?;
        tokenizer.eos = token_field(fields, "tokenizer.ggml.eos_token_id", tokens.len())?;
        tokenizer.ends.extend(tokenizer.eos);
        tokenizer.ends.extend(token_field(fields, "tokenizer.ggml.eot_token_id", tokens.len())?);
        tokenizer.ends.extend(token_field(fields, "tokenizer.ggml.eom_token_id", tokens.len())?);
        let adds_bos = "tokenizer.ggml.add_bos_token";
        let adds_bos = fields.get(adds_bos).map_or(Ok(false), |_| fields.need(adds_bos))?;
        tokenizer.adds_bos = tokenizer.bos.is_some() && adds_bos;
        Ok(tokenizer)
    }

    /// Builds the tokenizer of a `tokenizer.json`. That file does not say which tokens begin and end a text:
    /// see [`Tokenizer::with_bos`] and [`Tokenizer::with_eos`].
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when it cannot be read or is not byte-level BPE.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let broken = |reason: String| ModelError::Tokenizer { reason };
        let mut value: serde_json::Value = serde_json::from_str(json).map_err(|it| broken(it.to_string()))?;
        let added = value.get_mut("added_tokens").map(serde_json::Value::take).unwrap_or_default();
        value["added_tokens"] = serde_json::json!([]);
        let words: tokenizers::Tokenizer =
            value.to_string().parse().map_err(|it: tokenizers::Error| broken(it.to_string()))?;
        let byte_level = value["pre_tokenizer"].to_string().contains("\"ByteLevel\"");
        if value["model"]["type"].as_str().is_some_and(|it| it != "BPE") || !byte_level {
            return Err(broken("tokenizer.json is not byte-level BPE".into()));
        }
        let mut by_id: HashMap<u32, Piece> =
            words.get_vocab(false).iter().map(|(text, id)| (*id, Piece::new(text, Kind::Normal))).collect();
        for token in added.as_array().into_iter().flatten() {
            let id = token["id"].as_u64().and_then(|it| u32::try_from(it).ok());
            let (Some(id), Some(text)) = (id, token["content"].as_str()) else {
                return Err(broken(format!("added token without id or content: {token}")));
            };
            let kind = if token["special"].as_bool() == Some(true) { Kind::Control } else { Kind::UserDefined };
            by_id.insert(id, Piece::new(text, kind));
        }
        let n_ids = by_id.keys().max().map_or(0, |it| *it as usize + 1);
        if n_ids > by_id.len().saturating_mul(2).saturating_add(1024) {
            return Err(broken(format!("token ids reach {n_ids} with {} tokens", by_id.len())));
        }
        let unused = || Piece::new("", Kind::Unused);
        let pieces = (0..n_ids as u32).map(|id| by_id.remove(&id).unwrap_or_else(unused)).collect();
        Self::assemble(words, pieces)
    }

    fn assemble(words: tokenizers::Tokenizer, pieces: Vec<Piece>) -> Result<Self, ModelError> {
        let mut bytes = vec![None; 256];
        let mut added: HashMap<u8, Vec<(Vec<u8>, TokenId)>> = HashMap::new();
        let mut ends = Vec::new();
        for (piece, id) in pieces.iter().zip(0..) {
            match (piece.kind, piece.bytes.as_slice()) {
                (Kind::Normal, [byte]) => bytes[usize::from(*byte)] = Some(id),
                (Kind::Control | Kind::UserDefined, [first, ..]) => {
                    added.entry(*first).or_default().push((piece.bytes.clone(), id));
                }
                _ => {}
            }
            if piece.kind == Kind::Control && END_TEXTS.iter().any(|it| it.as_bytes() == piece.bytes) {
                ends.push(id);
            }
        }
        for candidates in added.values_mut() {
            candidates.sort_by_key(|it| std::cmp::Reverse(it.0.len()));
        }
        // 0xC0, 0xC1 and 0xF5 and above never occur in UTF-8.
        if let Some(byte) = (0..0xF5).find(|it| !matches!(it, 0xC0 | 0xC1) && bytes[*it].is_none()) {
            let reason = format!("no token for the byte {byte:#04x}, so not every text could be written");
            return Err(ModelError::Tokenizer { reason });
        }
        Ok(Self { words, pieces, bytes, added, bos: None, eos: None, ends, adds_bos: false })
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
        self.ends.push(eos);
        self
    }

    /// The tokens of a text; no token is put before it.
    pub fn encode(&self, text: &str, special: Special) -> Vec<TokenId> {
        let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
        if special == Special::Escape {
            self.encode_words(text, &mut tokens);
            return tokens;
        }
        let (mut plain_from, mut at) = (0, 0);
        while at < text.len() {
            match self.added_at(&text.as_bytes()[at..]) {
                Some((len, id)) => {
                    self.encode_words(&text[plain_from..at], &mut tokens);
                    tokens.push(id);
                    at += len;
                    plain_from = at;
                }
                None => at += 1,
            }
        }
        self.encode_words(&text[plain_from..], &mut tokens);
        tokens
    }

    /// The longest added token that the bytes begin with, and its length. Its text is whole characters, so both
    /// of its ends are character boundaries.
    fn added_at(&self, bytes: &[u8]) -> Option<(usize, TokenId)> {
        let candidates = self.added.get(bytes.first()?)?;
        candidates.iter().find(|it| bytes.starts_with(&it.0)).map(|it| (it.0.len(), it.1))
    }

    fn encode_words(&self, text: &str, tokens: &mut Vec<TokenId>) {
        if text.is_empty() {
            return;
        }
        match self.words.encode_fast(text, false) {
            Ok(encoding) => tokens.extend_from_slice(encoding.get_ids()),
            // A pattern that gave up on absurd input: single bytes say the same, only longer.
            Err(_) => tokens.extend(text.bytes().filter_map(|it| self.bytes[usize::from(it)])),
        }
    }

    /// The text of tokens without control tokens; bytes that are no UTF-8 become `U+FFFD`.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        self.join(tokens, false)
    }

    /// The text of tokens, control tokens included: [`Special::Parse`] reads it back.
    pub fn decode_with_special(&self, tokens: &[TokenId]) -> String {
        self.join(tokens, true)
    }

    fn join(&self, tokens: &[TokenId], with_control: bool) -> String {
        let pieces = tokens.iter().filter_map(|it| self.pieces.get(*it as usize));
        let shown = pieces.filter(|it| with_control || it.kind != Kind::Control);
        let bytes: Vec<u8> = shown.flat_map(|it| it.bytes.iter().copied()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that a token stands for, which need not be whole characters; `None` beyond the vocabulary.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.pieces.get(token as usize).map(|it| it.bytes.as_slice())
    }

    /// The token whose text is exactly this, added tokens included.
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        if let Some((_, id)) = self.added_at(text.as_bytes()).filter(|it| it.0 == text.len()) {
            return Some(id);
        }
        let coded: String = text.bytes().map(char_of_byte).collect();
        self.words.token_to_id(&coded)
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

/// The token that a field names, if the file has the field.
fn token_field(fields: &Metadata, key: &str, vocab: usize) -> Result<Option<TokenId>, ModelError> {
    let Some(token) = fields.get(key).map(|_| fields.need::<u32>(key)).transpose()? else { return Ok(None) };
    if (token as usize) < vocab {
        return Ok(Some(token));
    }
    let expected = format!("a token below {vocab}");
    Err(ModelError::Metadata { field: key.into(), expected, found: token.to_string() })
}

/// `"a b"` per merge, as GGUF files have them.
fn parse_merges(merges: &[String]) -> Result<Vec<(String, String)>, ModelError> {
    let parse = |(index, merge): (usize, &String)| {
        // Byte-level pieces hold no space: the first one separates.
        let (left, right) = merge.split_once(' ').ok_or_else(|| ModelError::Metadata {
            field: format!("tokenizer.ggml.merges[{index}]"),
            expected: "two pieces with a space between them".into(),
            found: format!("`{merge}`"),
        })?;
        Ok((left.to_string(), right.to_string()))
    };
    merges.iter().enumerate().map(parse).collect()
}

fn build_words(
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    pre: &pre::PreTokenizer,
) -> Result<tokenizers::Tokenizer, ModelError> {
    let broken = |it: tokenizers::Error| ModelError::Tokenizer { reason: it.to_string() };
    let builder =
        BPE::builder().vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges);
    let bpe = builder.ignore_merges(pre.ignore_merges).build().map_err(broken)?;
    let mut cuts: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in pre.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_string());
        cuts.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(broken)?.into());
    }
    cuts.push(ByteLevel::new(false, true, false).into());
    let mut words = tokenizers::Tokenizer::new(bpe);
    words.with_pre_tokenizer(Some(Sequence::new(cuts)));
    Ok(words)
}
