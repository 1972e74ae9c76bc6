//! SentencePiece's `tokenizer.model`: the few fields of the protobuf message that GGUF has a place for.
//!
//! Source: `src/sentencepiece_model.proto` of google/sentencepiece, `ModelProto`; the wire format is that of protobuf.

use std::path::Path;

use super::{Token, TokenType, Words};
use crate::QuantizeError;

/// Numbers of fields in `ModelProto` and the messages in it.
mod field {
    pub(super) const PIECES: u64 = 1;
    pub(super) const TRAINER: u64 = 2;
    pub(super) const NORMALIZER: u64 = 3;
    pub(super) const PIECE_TEXT: u64 = 1;
    pub(super) const PIECE_SCORE: u64 = 2;
    pub(super) const PIECE_KIND: u64 = 3;
    pub(super) const MODEL_TYPE: u64 = 3;
    pub(super) const SPACE_AS_SUFFIX: u64 = 24;
    pub(super) const BYTE_FALLBACK: u64 = 35;
    pub(super) const CHARSMAP: u64 = 2;
    pub(super) const ADD_DUMMY_PREFIX: u64 = 3;
    pub(super) const REMOVE_EXTRA_SPACES: u64 = 4;
    pub(super) const ESCAPE_SPACES: u64 = 5;
}

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// What the file says.
#[derive(Debug, PartialEq)]
pub(super) struct SentencePieceModel {
    tokens: Vec<Token>,
    model_type: u64,
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_spaces: bool,
    escape_spaces: bool,
    space_as_suffix: bool,
    byte_fallback: bool,
}

/// Why a file cannot be read, without its path.
#[derive(Debug, PartialEq)]
pub(super) struct Damage {
    field: &'static str,
    expected: String,
    found: String,
}

impl Damage {
    fn new(field: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { field, expected: expected.into(), found: found.into() }
    }

    pub(super) fn into_error(self, path: &Path) -> QuantizeError {
        QuantizeError::SentencePiece {
            path: path.to_path_buf(),
            field: self.field,
            expected: self.expected,
            found: self.found,
        }
    }
}

impl SentencePieceModel {
    /// Reads the file's bytes. Defaults are those of the message's definition.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let mut model = Self {
            tokens: Vec::new(),
            model_type: UNIGRAM,
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_spaces: true,
            escape_spaces: true,
            space_as_suffix: false,
            byte_fallback: false,
        };
        for entry in Fields::new(bytes) {
            match entry? {
                (field::PIECES, Wire::Bytes(piece)) => model.tokens.push(parse_piece(piece)?),
                (field::TRAINER, Wire::Bytes(trainer)) => {
                    for entry in Fields::new(trainer) {
                        match entry? {
                            (field::MODEL_TYPE, Wire::Number(it)) => model.model_type = it,
                            (field::SPACE_AS_SUFFIX, Wire::Number(it)) => model.space_as_suffix = it != 0,
                            (field::BYTE_FALLBACK, Wire::Number(it)) => model.byte_fallback = it != 0,
                            _ => {}
                        }
                    }
                }
                (field::NORMALIZER, Wire::Bytes(normalizer)) => {
                    for entry in Fields::new(normalizer) {
                        match entry? {
                            (field::CHARSMAP, Wire::Bytes(it)) => model.charsmap = it.to_vec(),
                            (field::ADD_DUMMY_PREFIX, Wire::Number(it)) => model.add_dummy_prefix = it != 0,
                            (field::REMOVE_EXTRA_SPACES, Wire::Number(it)) => model.remove_extra_spaces = it != 0,
                            (field::ESCAPE_SPACES, Wire::Number(it)) => model.escape_spaces = it != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if model.tokens.is_empty() {
            return Err(Damage::new("pieces", "at least one", "none"));
        }
        Ok(model)
    }

    /// Tokens by row, and what else GGUF says.
    pub(super) fn into_words(self, n_rows: usize) -> Result<(Vec<Option<Token>>, Words), Damage> {
        if self.tokens.len() > n_rows {
            let expected = format!("at most the {n_rows} rows of the embedding");
            return Err(Damage::new("pieces", expected, self.tokens.len().to_string()));
        }
        if !self.escape_spaces {
            return Err(Damage::new("normalizer_spec.escape_whitespaces", "true", "false"));
        }
        if self.space_as_suffix {
            return Err(Damage::new("trainer_spec.treat_whitespace_as_suffix", "false", "true"));
        }
        let unknown = self.tokens.iter().position(|it| it.kind == TokenType::Unknown);
        let mut more = vec![("add_space_prefix", fsq_gguf::Value::from(self.add_dummy_prefix))];
        more.extend(unknown.and_then(|it| u32::try_from(it).ok()).map(|it| ("unknown_token_id", it.into())));
        let model = match self.model_type {
            // `llama` has no place for replacements, and is nothing without bytes; `t5` makes unknown tokens of both.
            BPE if !self.charsmap.is_empty() => {
                let found = format!("{} bytes", self.charsmap.len());
                return Err(Damage::new("normalizer_spec.precompiled_charsmap", "none in a BPE model", found));
            }
            BPE if self.remove_extra_spaces => {
                let expected = "false in a BPE model";
                return Err(Damage::new("normalizer_spec.remove_extra_whitespaces", expected, "true"));
            }
            BPE if self.byte_fallback => "llama",
            UNIGRAM if !self.byte_fallback => {
                more.push(("remove_extra_whitespaces", self.remove_extra_spaces.into()));
                if !self.charsmap.is_empty() {
                    let bytes = fsq_gguf::Array::U8(self.charsmap);
                    more.push(("precompiled_charsmap", fsq_gguf::Value::Array(bytes)));
                }
                "t5"
            }
            BPE | UNIGRAM => {
                let expected = "true in a BPE model, false in a unigram model";
                return Err(Damage::new("trainer_spec.byte_fallback", expected, self.byte_fallback.to_string()));
            }
            other => return Err(Damage::new("trainer_spec.model_type", "1 (unigram) or 2 (BPE)", other.to_string())),
        };
        let mut tokens: Vec<Option<Token>> = self.tokens.into_iter().map(Some).collect();
        tokens.resize(n_rows, None);
        Ok((tokens, Words { model, pre: "default", merges: None, more, adds_bos: true }))
    }
}

fn parse_piece(piece: &[u8]) -> Result<Token, Damage> {
    let mut token = Token { text: String::new(), kind: TokenType::Normal, score: 0.0 };
    for entry in Fields::new(piece) {
        match entry? {
            (field::PIECE_TEXT, Wire::Bytes(text)) => {
                let text = std::str::from_utf8(text);
                token.text = text.map_err(|it| Damage::new("pieces.piece", "UTF-8", it.to_string()))?.to_string();
            }
            (field::PIECE_SCORE, Wire::Float(score)) => token.score = score,
            (field::PIECE_KIND, Wire::Number(kind)) => {
                token.kind = match kind {
                    1 => TokenType::Normal,
                    2 => TokenType::Unknown,
                    3 => TokenType::Control,
                    4 => TokenType::UserDefined,
                    5 => TokenType::Unused,
                    6 => TokenType::Byte,
                    other => return Err(Damage::new("pieces.type", "1 to 6", other.to_string())),
                }
            }
            _ => {}
        }
    }
    if token.text.is_empty() || !token.score.is_finite() {
        let found = format!("`{}` with score {}", token.text, token.score);
        return Err(Damage::new("pieces", "a text and a finite score", found));
    }
    Ok(token)
}

/// One value on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    /// 64 bits that no field here has.
    Other,
}

/// The fields of a message, each with its number.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn next_field(&mut self) -> Result<(u64, Wire<'a>), Damage> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Other
            }
            2 => {
                let n_bytes = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(n_bytes).unwrap_or(usize::MAX))?)
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Float(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            other => return Err(Damage::new("wire type", "0, 1, 2 or 5", other.to_string())),
        };
        Ok((tag >> 3, value))
    }

    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], Damage> {
        let found = self.rest.len();
        let (taken, rest) = self
            .rest
            .split_at_checked(n_bytes)
            .ok_or_else(|| Damage::new("message", format!("{n_bytes} more bytes"), found.to_string()))?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Damage> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Damage::new("message", "a number of at most 10 bytes", "a longer one"))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

    use super::*;

    /// A model that SentencePiece itself trained.
    const TRAINED: &[u8] = include_bytes!("../../../../tests/fixtures/sentencepiece/bpe.model");

    #[test]
    fn a_trained_model_is_read_whole() {
        let model = SentencePieceModel::parse(TRAINED).unwrap();
        let kinds = |kind| model.tokens.iter().filter(|it| it.kind == kind).count();
        let counts = (kinds(TokenType::Unknown), kinds(TokenType::Control), kinds(TokenType::Byte));
        assert_eq!(counts, (1, 2, 256));
        assert_eq!(kinds(TokenType::UserDefined), 1);
        assert_eq!(model.tokens[0].text, "<unk>");
        assert_eq!(model.model_type, BPE);
        assert!(model.add_dummy_prefix && !model.remove_extra_spaces && model.charsmap.is_empty());
        let n_pieces = model.tokens.len();
        let (tokens, words) = model.into_words(n_pieces + 3).unwrap();
        assert_eq!((tokens.len(), words.model), (n_pieces + 3, "llama"));
        let normal = tokens.iter().flatten().filter(|it| it.kind == TokenType::Normal);
        let scores: Vec<f32> = normal.map(|it| it.score).collect();
        assert!(scores.len() > 100 && scores.windows(2).all(|it| it[0] > it[1]), "scores fall with the id");
        assert!(SentencePieceModel::parse(TRAINED).unwrap().into_words(n_pieces - 1).is_err());
    }

    #[test]
    fn damaged_files_are_errors() {
        for n_bytes in 0..TRAINED.len() {
            let _ = SentencePieceModel::parse(&TRAINED[..n_bytes]);
        }
        for place in 0..TRAINED.len() {
            let mut bytes = TRAINED.to_vec();
            bytes[place] ^= 0xFF;
            let _ = SentencePieceModel::parse(&bytes);
        }
        let refused = |bytes: &[u8]| SentencePieceModel::parse(bytes).unwrap_err().field;
        assert_eq!(refused(&[]), "pieces");
        assert_eq!(refused(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]), "message");
        assert_eq!(refused(&[0xFF; 11]), "message");
        assert_eq!(refused(&[0x0B]), "wire type");
        assert_eq!(refused(&[0x0A, 3, 0x0A, 1, 0xFF]), "pieces.piece");
        assert_eq!(refused(&[0x0A, 5, 0x0A, 1, b'a', 0x18, 9]), "pieces.type");
        assert_eq!(refused(&[0x0A, 8, 0x0A, 1, b'a', 0x15, 0, 0, 0xC0, 0x7F]), "pieces");
    }
}
