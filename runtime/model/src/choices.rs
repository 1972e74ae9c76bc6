//! Texts of which one may stand at a place, and how probable a policy finds each. Knows not what they mean.

use std::collections::HashSet;

use crate::{
    AdapterId, Decode, LogitsFor, ModelError, SequenceId, Special, Step, TokenId, Tokenizer, log_softmax,
    score_continuations,
};

/// Pages that one scored text may need for itself: a copy of the last one, and one more.
const PAGES_PER_TEXT: usize = 2;

/// Texts in a policy's own tokens.
#[derive(Clone, Debug)]
pub struct Choices {
    texts: Vec<String>,
    /// Each whole, with what closes it: `5` alone would also begin `55`.
    tokens: Vec<Vec<TokenId>>,
    /// The texts before what closes them, where each is one token and no two are the same: then one row of logits
    /// says all.
    single: Option<Vec<TokenId>>,
}

impl Choices {
    /// Encodes texts that all end with `closing`.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer, texts: &[&str], closing: &str) -> Self {
        let encode = |text: &str| tokenizer.encode(text, Special::Parse);
        let of_stem = |it: &&str| {
            let tokens = encode(it.strip_suffix(closing).unwrap_or(it));
            <[TokenId; 1]>::try_from(tokens).ok().map(|it| it[0])
        };
        let single: Vec<TokenId> = texts.iter().filter_map(of_stem).collect();
        let is_distinct = single.iter().collect::<HashSet<_>>().len() == texts.len();
        Self {
            texts: texts.iter().map(|it| (*it).to_owned()).collect(),
            tokens: texts.iter().map(|it| encode(it)).collect(),
            single: is_distinct.then_some(single),
        }
    }

    /// The same texts behind another one, which is scored with them: where a token of the policy's reaches over the
    /// place, `before` is what it holds from before the place.
    #[must_use]
    pub fn behind(&self, tokenizer: &Tokenizer, before: &str) -> Self {
        let texts: Vec<String> = self.texts.iter().map(|it| format!("{before}{it}")).collect();
        let tokens = texts.iter().map(|it| tokenizer.encode(it, Special::Parse)).collect();
        Self { texts, tokens, single: None }
    }

    /// The one token of each text, in order, where each has one of its own.
    #[must_use]
    pub fn single_tokens(&self) -> Option<&[TokenId]> {
        self.single.as_deref()
    }

    /// `ln p` of each text at the end of each of some open sequences, none of them empty: `[sequences][texts]`.
    ///
    /// The sequences are of no further use but to be cut or closed. That costs no page where texts are single tokens
    /// or pages are few: the texts then run one after the other in the sequence's own.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn log_probs<D: Decode>(
        &self,
        decoder: &mut D,
        sequences: &[SequenceId],
        adapter: Option<AdapterId>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let vocab = decoder.vocab();
        let all = self.tokens.iter().flatten().chain(self.single.iter().flatten());
        if let Some(token) = all.copied().find(|it| *it as usize >= vocab) {
            return Err(ModelError::UnknownToken { token, vocab });
        }
        match &self.single {
            Some(single) => single_log_probs(decoder, sequences, single, adapter),
            None => sequences.iter().map(|it| self.log_probs_at(decoder, *it, adapter)).collect(),
        }
    }

    fn log_probs_at<D: Decode>(
        &self,
        decoder: &mut D,
        sequence: SequenceId,
        adapter: Option<AdapterId>,
    ) -> Result<Vec<f32>, ModelError> {
        if decoder.free_pages() >= self.tokens.len() * PAGES_PER_TEXT {
            return score_continuations(decoder, sequence, &self.tokens, adapter);
        }
        let mut scores = Vec::with_capacity(self.tokens.len());
        let (n_tokens, last) = end(decoder, sequence)?;
        for text in &self.tokens {
            decoder.truncate(sequence, n_tokens - 1)?;
            let run = text.split_last().map_or(&[][..], |it| it.1);
            let tokens: Vec<TokenId> = std::iter::once(last).chain(run.iter().copied()).collect();
            let logits = decoder.forward(&[Step { sequence, tokens: &tokens, logits: LogitsFor::All, adapter }])?;
            let of_token = |(row, token): (usize, &TokenId)| log_softmax(logits.row(0, row))[*token as usize];
            scores.push(text.iter().enumerate().map(of_token).sum());
        }
        Ok(scores)
    }
}

/// Tokens that a sequence holds, and the last of them.
fn end<D: Decode>(decoder: &D, sequence: SequenceId) -> Result<(usize, TokenId), ModelError> {
    let held = decoder.tokens(sequence).ok_or(ModelError::UnknownSequence { sequence })?;
    Ok((held.len(), *held.last().ok_or(ModelError::EmptyStep)?))
}

/// The last tokens of all sequences run again in one pass, since their logits are not kept.
fn single_log_probs<D: Decode>(
    decoder: &mut D,
    sequences: &[SequenceId],
    single: &[TokenId],
    adapter: Option<AdapterId>,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let mut ends = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let (n_tokens, token) = end(decoder, *sequence)?;
        decoder.truncate(*sequence, n_tokens - 1)?;
        ends.push((*sequence, [token]));
    }
    let steps: Vec<Step<'_>> = ends
        .iter()
        .map(|(sequence, tokens)| Step { sequence: *sequence, tokens, logits: LogitsFor::Last, adapter })
        .collect();
    let logits = decoder.forward(&steps)?;
    let of_sequence = |index: usize| {
        let row = log_softmax(logits.last(index));
        single.iter().map(|it| row[*it as usize]).collect()
    };
    Ok((0..sequences.len()).map(of_sequence).collect())
}
