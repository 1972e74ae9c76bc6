//! Merges by rank, on the `tokenizers` crate: byte-level BPE, and BPE over characters. Knows no added tokens.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::pieces::{Kind, Piece, SPACE_MARK, char_of_byte};
use super::pre::{PreTokenizer, Words};
use crate::{ModelError, TokenId};

/// Cuts a text into words and merges within each.
#[derive(Debug)]
pub(super) struct Merges {
    /// Holds no added tokens.
    words: tokenizers::Tokenizer,
    style: Words,
    /// The token of each single byte that has one.
    bytes: Vec<Option<TokenId>>,
    /// Stands for what the vocabulary lacks until the merges are done, so that nothing merges across it.
    lacking: Option<TokenId>,
}

/// A text that no vocabulary has as a token: a character that Unicode will never assign.
const LACKING: &str = "\u{10FFFE}";

impl Merges {
    /// From the tokens and merges of a GGUF file; `texts` and `pieces` by token id, `merges` as the file writes them.
    ///
    /// # Errors
    /// [`ModelError::Metadata`] for a merge that is none, [`ModelError::Tokenizer`].
    pub(super) fn from_gguf(
        texts: &[String],
        pieces: &[Piece],
        merges: &[String],
        pre: &PreTokenizer,
    ) -> Result<Self, ModelError> {
        let mut by_text: HashMap<&str, TokenId> = HashMap::new();
        let mut vocab = Vocab::default();
        for ((text, piece), id) in texts.iter().zip(pieces).zip(0..) {
            by_text.insert(text, id);
            if matches!(piece.kind, Kind::Normal | Kind::Byte) {
                vocab.insert(text.clone(), id);
            }
        }
        let mut kept = Vec::with_capacity(merges.len());
        for (index, merge) in merges.iter().enumerate() {
            let (left, right) = parse_merge(index, merge)?;
            let whole = format!("{left}{right}");
            let parts = [left, right, whole.as_str()];
            if let Some(absent) = parts.iter().find(|it| !by_text.contains_key(**it)) {
                return Err(broken(format!("merge {index} (`{merge}`): `{absent}` is not a token")));
            }
            // A merge that made an added token would let any text write it.
            if parts.iter().all(|it| vocab.contains_key(*it)) {
                kept.push((left.to_string(), right.to_string()));
            }
        }
        let lacking = TokenId::try_from(texts.len()).ok().filter(|_| !by_text.contains_key(LACKING));
        let mut builder = BPE::builder();
        if let Some(id) = lacking {
            vocab.insert(LACKING.into(), id);
            builder = builder.unk_token(LACKING.into());
        }
        builder = builder.vocab_and_merges(vocab, kept).ignore_merges(pre.ignore_merges);
        let bpe = builder.byte_fallback(pre.words != Words::Bytes).build().map_err(failed)?;
        let mut cuts: Vec<PreTokenizerWrapper> = Vec::new();
        for pattern in pre.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_string());
            cuts.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?.into());
        }
        if pre.words == Words::Bytes {
            cuts.push(ByteLevel::new(false, true, false).into());
        }
        let mut words = tokenizers::Tokenizer::new(bpe);
        words.with_pre_tokenizer(Some(Sequence::new(cuts)));
        Ok(Self { lacking, ..Self::new(words, pre.words)? })
    }

    /// From what a `tokenizer.json` says about words.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when text could not be written.
    pub(super) fn new(words: tokenizers::Tokenizer, style: Words) -> Result<Self, ModelError> {
        let mut bytes = vec![None; 256];
        let mut character = [0; 4];
        for byte in 0..=u8::MAX {
            let own = match style {
                Words::Bytes => words.token_to_id(char_of_byte(byte).encode_utf8(&mut character)),
                _ => words.token_to_id(&format!("<0x{byte:02X}>")),
            };
            bytes[usize::from(byte)] = own;
        }
        // Vocabularies in use lack control characters, and bytes that UTF-8 has only for rare planes or not at all.
        let needed = |it: &u8| matches!(it, b'\t' | b'\n' | b'\r' | 0x20..=0x7E | 0x80..=0xBF | 0xC2..=0xF0);
        if let Some(byte) = (0..=u8::MAX).filter(needed).find(|it| bytes[usize::from(*it)].is_none()) {
            return Err(broken(format!("no token for the byte {byte:#04x}, so not every text could be written")));
        }
        Ok(Self { words, style, bytes, lacking: None })
    }

    #[cfg(test)]
    pub(super) fn words(&self) -> &tokenizers::Tokenizer {
        &self.words
    }

    /// The token whose text, as the vocabulary writes it, is exactly this.
    pub(super) fn id(&self, text: &str) -> Option<TokenId> {
        self.words.token_to_id(text)
    }

    /// Appends the tokens of a text. Bytes that the vocabulary lacks are left out, as llama.cpp does.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<TokenId>) {
        match self.style {
            Words::Bytes => self.encode_words(text, tokens),
            Words::Characters => self.encode_words(&text.replace(' ', &SPACE_MARK.to_string()), tokens),
            Words::CharactersAndLines => {
                let text = text.replace(' ', &SPACE_MARK.to_string());
                let mut rest = text.as_str();
                while !rest.is_empty() {
                    let is_line_end = rest.starts_with('\n');
                    let n_run = rest.find(|it| (it == '\n') != is_line_end).unwrap_or(rest.len());
                    let (run, next) = rest.split_at(n_run);
                    match self.id(run).filter(|_| is_line_end) {
                        Some(id) => tokens.push(id),
                        None => self.encode_words(run, tokens),
                    }
                    rest = next;
                }
            }
        }
    }

    fn encode_words(&self, text: &str, tokens: &mut Vec<TokenId>) {
        match self.words.encode_fast(text, false) {
            Ok(encoding) => tokens.extend(encoding.get_ids().iter().filter(|it| Some(**it) != self.lacking)),
            // Single bytes say the same, only longer.
            Err(_) => tokens.extend(text.bytes().filter_map(|it| self.bytes[usize::from(it)])),
        }
    }
}

/// `"a b"`, as GGUF files have it. The first piece may itself begin with a space, and is never empty.
fn parse_merge(index: usize, merge: &str) -> Result<(&str, &str), ModelError> {
    let split = merge.char_indices().skip(1).find(|it| it.1 == ' ');
    split.map(|(at, _)| (&merge[..at], &merge[at + 1..])).ok_or_else(|| ModelError::Metadata {
        field: format!("tokenizer.ggml.merges[{index}]"),
        expected: "two pieces with a space between them".into(),
        found: format!("`{merge}`"),
    })
}

fn broken(reason: String) -> ModelError {
    ModelError::Tokenizer { reason }
}

fn failed(error: tokenizers::Error) -> ModelError {
    broken(error.to_string())
}
