//! Merges by score, as SentencePiece's BPE does (`tokenizer.ggml.model` = `llama`). Knows no added tokens.
//!
//! Source: llama.cpp `src/llama-vocab.cpp`, `llm_tokenizer_spm_session`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::pieces::{Kind, Piece, SPACE_MARK, byte_of_code};
use crate::{ModelError, TokenId};

/// A vocabulary whose tokens say themselves how early they are merged.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// Normal and unused tokens by text. Added tokens are absent, so that no merge makes one.
    tokens: HashMap<String, TokenId>,
    /// By id; higher merges earlier.
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: Vec<TokenId>,
}

/// A run of the text, linked to its neighbours; empty once it has become part of its left one.
struct Symbol {
    start: usize,
    end: usize,
    left: Option<usize>,
    right: Option<usize>,
}

/// Two neighbours that make a token. The greatest is merged first: highest score, then leftmost.
struct Merge {
    score: f32,
    left: Reverse<usize>,
    right: usize,
    /// Bytes of both when they were found: other sizes mean that one has changed since.
    n_bytes: usize,
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Merge {}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(self.left.cmp(&other.left))
    }
}

impl SentencePiece {
    /// `texts`, `pieces` and `scores` by token id.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when some byte has no token.
    pub(super) fn new(texts: &[String], pieces: &[Piece], scores: &[f32]) -> Result<Self, ModelError> {
        let mut tokens = HashMap::new();
        let mut bytes: Vec<Option<TokenId>> = vec![None; 256];
        for ((text, piece), id) in texts.iter().zip(pieces).zip(0..) {
            match piece.kind {
                Kind::Normal | Kind::Unused => {
                    tokens.insert(text.clone(), id);
                }
                Kind::Byte => {
                    if let Some(byte) = byte_of_code(text) {
                        bytes[usize::from(byte)] = Some(id);
                    }
                }
                Kind::Control | Kind::UserDefined => {}
            }
        }
        let whole = |(byte, id): (u8, Option<TokenId>)| {
            let own =
                || byte.is_ascii().then(|| tokens.get(char::from(byte).encode_utf8(&mut [0; 4]) as &str).copied());
            id.or_else(|| own().flatten()).ok_or_else(|| ModelError::Tokenizer {
                reason: format!("no token for the byte {byte:#04x}, so not every text could be written"),
            })
        };
        let bytes = (0..=u8::MAX).zip(bytes).map(whole).collect::<Result<_, _>>()?;
        // Both zeros are one score.
        Ok(Self { tokens, scores: scores.iter().map(|it| it + 0.0).collect(), bytes })
    }

    /// The token whose text, as the vocabulary writes it, is exactly this.
    pub(super) fn id(&self, text: &str) -> Option<TokenId> {
        self.tokens.get(text).copied()
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<TokenId>) {
        let text = text.replace(' ', SPACE_MARK.encode_utf8(&mut [0; 4]));
        let starts: Vec<usize> = text.char_indices().map(|it| it.0).chain([text.len()]).collect();
        let n_symbols = starts.len() - 1;
        let symbol = |index: usize| Symbol {
            start: starts[index],
            end: starts[index + 1],
            left: index.checked_sub(1),
            right: Some(index + 1).filter(|it| *it < n_symbols),
        };
        let mut symbols: Vec<Symbol> = (0..n_symbols).map(symbol).collect();
        let mut merges = BinaryHeap::new();
        let find = |symbols: &[Symbol], left: usize, right: usize, merges: &mut BinaryHeap<Merge>| {
            let both = &text[symbols[left].start..symbols[right].end];
            if let Some(id) = self.tokens.get(both) {
                let score = self.scores[*id as usize];
                merges.push(Merge { score, left: Reverse(left), right, n_bytes: both.len() });
            }
        };
        for right in 1..n_symbols {
            find(&symbols, right - 1, right, &mut merges);
        }
        while let Some(Merge { left: Reverse(left), right, n_bytes, .. }) = merges.pop() {
            let size = |it: &Symbol| it.end - it.start;
            let (n_left, n_right) = (size(&symbols[left]), size(&symbols[right]));
            if n_left == 0 || n_right == 0 || n_left + n_right != n_bytes {
                continue;
            }
            let (end, next) = (symbols[right].end, symbols[right].right);
            symbols[right].end = symbols[right].start;
            symbols[left].end = end;
            symbols[left].right = next;
            if let Some(next) = next {
                symbols[next].left = Some(left);
                find(&symbols, left, next, &mut merges);
            }
            if let Some(before) = symbols[left].left {
                find(&symbols, before, left, &mut merges);
            }
        }
        for symbol in symbols.iter().filter(|it| it.start < it.end) {
            let text = &text[symbol.start..symbol.end];
            match self.tokens.get(text) {
                Some(id) => tokens.push(*id),
                None => tokens.extend(text.bytes().map(|it| self.bytes[usize::from(it)])),
            }
        }
    }
}
