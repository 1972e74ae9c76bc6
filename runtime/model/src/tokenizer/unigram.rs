//! The likeliest cut of a text into tokens, as SentencePiece's unigram model does (`tokenizer.ggml.model` = `t5`).
//! Knows no added tokens.
//!
//! Source: llama.cpp `src/llama-vocab.cpp`, `llm_tokenizer_ugm_session`.

use super::pieces::{Kind, Piece, SPACE_MARK};
use crate::{ModelError, TokenId};

/// How much less likely than the unlikeliest token a character without token is (SentencePiece `kUnkPenalty`).
const UNKNOWN_PENALTY: f32 = 10.0;

/// How white space is treated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spaces {
    /// A space is put before a text.
    pub(super) prefix: bool,
    /// Runs of spaces become one, and those at the ends none.
    pub(super) merge: bool,
}

/// A vocabulary with log-probabilities.
#[derive(Debug)]
pub(super) struct Unigram {
    /// Normal and unused tokens, sorted by text. Added tokens are absent, so that no cut makes one.
    tokens: Vec<(Box<[u8]>, TokenId)>,
    /// By id: natural-log probability.
    scores: Vec<f32>,
    unknown: TokenId,
    unknown_score: f64,
    spaces: Spaces,
    replacements: Option<Replacements>,
}

/// The best way to write a text up to some byte.
#[derive(Clone, Copy)]
struct Best {
    token: TokenId,
    /// Where its last token starts.
    start: usize,
    score: f64,
}

impl Unigram {
    /// `texts`, `pieces` and `scores` by token id; `charsmap` is SentencePiece's table of replacements.
    ///
    /// # Errors
    /// [`ModelError::Metadata`] when the table is damaged.
    pub(super) fn new(
        texts: &[String],
        pieces: &[Piece],
        scores: &[f32],
        unknown: TokenId,
        spaces: Spaces,
        charsmap: Option<&[u8]>,
    ) -> Result<Self, ModelError> {
        let found = texts.iter().zip(pieces).zip(0..).filter(|((_, piece), _)| !piece.kind.is_added());
        let mut tokens: Vec<(Box<[u8]>, TokenId)> = found
            .filter(|((text, _), _)| !text.is_empty())
            .map(|((text, _), id)| (text.as_bytes().into(), id))
            .collect();
        tokens.sort();
        let normal = pieces.iter().zip(scores).filter(|(piece, _)| piece.kind == Kind::Normal);
        let lowest = normal.fold(f32::MAX, |lowest, (_, score)| lowest.min(*score));
        Ok(Self {
            tokens,
            scores: scores.to_vec(),
            unknown,
            unknown_score: f64::from(lowest - UNKNOWN_PENALTY),
            spaces,
            replacements: charsmap.map(Replacements::parse).transpose()?,
        })
    }

    /// The token whose text, as the vocabulary writes it, is exactly this.
    pub(super) fn id(&self, text: &str) -> Option<TokenId> {
        let index = self.tokens.partition_point(|it| *it.0 < *text.as_bytes());
        self.tokens.get(index).filter(|it| *it.0 == *text.as_bytes()).map(|it| it.1)
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<TokenId>) {
        let text = self.normalize(text);
        let mut best = vec![Best { token: self.unknown, start: 0, score: f64::MIN }; text.len() + 1];
        best[0].score = 0.0;
        let mut start = 0;
        while start < text.len() {
            let n_char = utf8_len(text[start]).min(text.len() - start);
            let mut has_char = false;
            self.prefixes(&text[start..], |len, token| {
                has_char |= len == n_char;
                let score = best[start].score + f64::from(self.scores[token as usize]);
                if score > best[start + len].score {
                    best[start + len] = Best { token, start, score };
                }
            });
            let score = best[start].score + self.unknown_score;
            if !has_char && score > best[start + n_char].score {
                best[start + n_char] = Best { token: self.unknown, start, score };
            }
            start += n_char;
        }
        let first = tokens.len();
        let mut end = text.len();
        while end > 0 {
            let Best { token, start, .. } = best[end];
            // Neighbours without token are one unknown token.
            if token != self.unknown || tokens[first..].last() != Some(&token) {
                tokens.push(token);
            }
            end = start;
        }
        tokens[first..].reverse();
    }

    /// Every token that a text begins with, shortest first, with its length.
    fn prefixes(&self, text: &[u8], mut found: impl FnMut(usize, TokenId)) {
        let mut range = self.tokens.as_slice();
        for (index, byte) in text.iter().enumerate() {
            // All tokens of the range begin with the bytes before this one.
            let below = range.partition_point(|it| it.0.get(index).is_none_or(|it| it < byte));
            let above = range.partition_point(|it| it.0.get(index).is_none_or(|it| it <= byte));
            range = &range[below..above];
            let Some((token, id)) = range.first() else { return };
            if token.len() == index + 1 {
                found(token.len(), *id);
            }
        }
    }

    /// Replaces characters by the table and puts spaces where they belong.
    fn normalize(&self, text: &str) -> Vec<u8> {
        let mut mark = [0; 4];
        let mark = SPACE_MARK.encode_utf8(&mut mark).as_bytes();
        let mut normal = Vec::with_capacity(text.len() * 3);
        let (mut has_prefix, mut in_word) = (false, false);
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let replaced = self.replacements.as_ref().and_then(|it| it.longest(rest.as_bytes()));
            let (bytes, n_bytes) = replaced.unwrap_or_else(|| {
                let n_bytes = first.len_utf8();
                (&rest.as_bytes()[..n_bytes], n_bytes)
            });
            for byte in bytes {
                if *byte == b' ' {
                    in_word = false;
                    if !self.spaces.merge {
                        normal.extend_from_slice(mark);
                    }
                    continue;
                }
                if !in_word {
                    in_word = true;
                    if (self.spaces.prefix && !has_prefix) || self.spaces.merge {
                        normal.extend_from_slice(mark);
                        has_prefix = true;
                    }
                }
                normal.push(*byte);
            }
            // A damaged table may match half a character: the rest of it goes with it.
            rest = &rest[rest.ceil_char_boundary(n_bytes)..];
        }
        normal
    }
}

/// Bytes of the character that begins with a byte.
fn utf8_len(first: u8) -> usize {
    match first {
        0xF0..=0xFF => 4,
        0xE0..=0xEF => 3,
        0xC0..=0xDF => 2,
        _ => 1,
    }
}

/// SentencePiece's `precompiled_charsmap`: a double array over prefixes, and the texts that replace them.
///
/// The array is that of darts-clone (`Darts::DoubleArray`): a unit holds the offset of its children in bits 10 to 30
/// (times 256 where bit 9 is set), its label in bits 0 to 7, and in bit 8 whether a child holds a value.
#[derive(Debug)]
struct Replacements {
    units: Vec<u32>,
    /// Texts, each with a zero byte after it.
    texts: Vec<u8>,
}

impl Replacements {
    fn parse(table: &[u8]) -> Result<Self, ModelError> {
        let damaged = || ModelError::Metadata {
            field: "tokenizer.ggml.precompiled_charsmap".into(),
            expected: "a length in 4 bytes, a double array of that length, and texts that end with a zero byte".into(),
            found: format!("{} bytes", table.len()),
        };
        let (n_bytes, rest) = table.split_first_chunk::<4>().ok_or_else(damaged)?;
        let n_bytes = u32::from_le_bytes(*n_bytes) as usize;
        let (units, texts) = rest.split_at_checked(n_bytes).ok_or_else(damaged)?;
        if texts.last() != Some(&0) || !n_bytes.is_multiple_of(4) {
            return Err(damaged());
        }
        let units = units.chunks_exact(4).map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]));
        Ok(Self { units: units.collect(), texts: texts.to_vec() })
    }

    /// What replaces the longest prefix of a text that is in the table, and the length of that prefix.
    fn longest(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut place = offset(*self.units.first()?);
        let mut longest = None;
        for (index, byte) in text.iter().enumerate().take_while(|it| *it.1 != 0) {
            place ^= usize::from(*byte);
            let Some(unit) = self.units.get(place).copied() else { break };
            if unit & ((1 << 31) | 0xFF) != u32::from(*byte) {
                break;
            }
            place ^= offset(unit);
            if unit & (1 << 8) != 0 {
                let Some(value) = self.units.get(place) else { break };
                longest = Some(((value & 0x7FFF_FFFF) as usize, index + 1));
            }
        }
        let (start, n_bytes) = longest?;
        let text = self.texts.get(start..)?;
        Some((&text[..text.iter().position(|it| *it == 0)?], n_bytes))
    }
}
