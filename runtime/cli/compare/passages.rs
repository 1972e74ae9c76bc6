//! What both policies read: windows of a text, or conversations, and the places in them where they are compared.
//! Knows no policy.

use std::ops::Range;

use fsq_model::{Special, TokenId, Tokenizer};

use crate::failure::Refusal;

/// Rows of logits that are in memory at once, for each policy.
const PIECE_ROWS: usize = 64;

/// One text that both policies read from its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) tokens: Vec<TokenId>,
    /// Places after which the next token is judged, ascending; none is the last.
    pub(super) judged: Vec<usize>,
    /// Places where a stated probability begins, ascending.
    pub(super) stated_at: Vec<usize>,
    /// The task that it is from.
    pub(super) task: u64,
}

impl Passage {
    /// Ranges of `judged` that lie close enough together to be run at once.
    pub(super) fn pieces(&self) -> Vec<Range<usize>> {
        let mut pieces: Vec<Range<usize>> = Vec::new();
        for (index, place) in self.judged.iter().enumerate() {
            match pieces.last_mut() {
                Some(piece) if place - self.judged[piece.start] < PIECE_ROWS => piece.end = index + 1,
                _ => pieces.push(index..index + 1),
            }
        }
        pieces
    }

    /// The tokens that come next after the places of a piece.
    pub(super) fn following(&self, piece: &Range<usize>) -> Vec<usize> {
        self.judged[piece.clone()].iter().map(|it| self.tokens[it + 1] as usize).collect()
    }
}

/// Tokens judged in all passages together.
pub(super) fn n_judged(passages: &[Passage]) -> usize {
    passages.iter().map(|it| it.judged.len()).sum()
}

/// A text in windows of `context` tokens without overlap, of which the second half is judged; a rest that is shorter
/// is left out unless it is all there is. Each window begins with the token that begins a text, where the vocabulary
/// asks for one. So llama-perplexity cuts, too.
pub(super) fn windows(
    tokenizer: &Tokenizer,
    text: &str,
    context: usize,
    windows_max: usize,
) -> Result<Vec<Passage>, Refusal> {
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut tokens: Vec<TokenId> = bos.into_iter().collect();
    tokens.extend(tokenizer.encode(text, Special::Escape));
    let context = context.min(tokens.len());
    // Half of three is one, and two places have one between them that a token follows.
    if context < 3 {
        return Err(Refusal::new(format!("expected a text of at least 3 tokens, found {}", tokens.len())));
    }
    let window = |tokens: &[TokenId]| {
        let mut tokens = tokens.to_vec();
        tokens[0] = bos.unwrap_or(tokens[0]);
        Passage { judged: (context / 2..context - 1).collect(), tokens, ..Passage::default() }
    };
    Ok(tokens.chunks_exact(context).take(windows_max).map(window).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_place_once_and_stay_small() {
        let judged: Vec<usize> = (3..200).chain(260..262).chain([1000]).collect();
        let passage = Passage { tokens: (0..1002).collect(), judged, ..Passage::default() };
        let pieces = passage.pieces();
        assert_eq!(pieces, [0..64, 64..128, 128..192, 192..197, 197..199, 199..200]);
        assert_eq!(passage.following(&(197..200)), [261, 262, 1001]);
    }
}
