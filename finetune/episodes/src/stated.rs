//! Reads the stated probability as an expectation: all 21 grid answers scored at the place of the confidence.

use fsq_calibrate::foresight::CONTINUATIONS;
use fsq_calibrate::stated::StatedDistribution;
use fsq_model::{AdapterId, Decode, LogitsFor, ModelError, SequenceId, Special, Step, TokenId, Tokenizer};
use fsq_model::{log_softmax, score_continuations};

/// The grid answers in a policy's own tokens.
pub struct GridAnswers {
    answers: Vec<Vec<TokenId>>,
    /// The answers' only tokens, where each is one token and no two are the same: then one row of logits says all.
    single: Option<Vec<TokenId>>,
}

impl GridAnswers {
    /// Encodes the 21 answers.
    ///
    /// An answer counts up to its closing tag (`5` would otherwise begin `55`), except where the digits alone are
    /// one token each.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let closing = "</confidence>";
        let encode = |text: &str| tokenizer.encode(text, Special::Parse);
        let digits: Vec<Vec<TokenId>> =
            CONTINUATIONS.iter().map(|it| encode(it.strip_suffix(closing).unwrap_or(it))).collect();
        let mut single: Vec<TokenId> = digits.iter().filter(|it| it.len() == 1).map(|it| it[0]).collect();
        let all = single.len() == CONTINUATIONS.len();
        let order = single.clone();
        single.sort_unstable();
        single.dedup();
        let distinct = all && single.len() == CONTINUATIONS.len();
        let answers = CONTINUATIONS.iter().map(|it| encode(it)).collect();
        Self { answers, single: distinct.then_some(order) }
    }

    /// The answers' only tokens in grid order, where each is one token.
    #[must_use]
    pub fn single_tokens(&self) -> Option<&[TokenId]> {
        self.single.as_deref()
    }

    /// What the policy states at some places: after the first `n` tokens of open sequences, which stay as they are.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn read<D: Decode>(
        &self,
        decoder: &mut D,
        places: &[(SequenceId, usize)],
        adapter: Option<AdapterId>,
    ) -> Result<Vec<Option<StatedDistribution>>, ModelError> {
        let mut forks = Vec::with_capacity(places.len());
        let mut last = Vec::with_capacity(places.len());
        for (sequence, n) in places {
            let fork = decoder.fork(*sequence)?;
            last.push(decoder.tokens(fork).and_then(|it| it.get(n - 1)).copied().unwrap_or(0));
            decoder.truncate(fork, n - 1)?;
            forks.push(fork);
        }
        let steps: Vec<Step<'_>> = forks
            .iter()
            .zip(&last)
            .map(|(fork, token)| Step {
                sequence: *fork,
                tokens: std::slice::from_ref(token),
                logits: LogitsFor::Last,
                adapter,
            })
            .collect();
        let logits = decoder.forward(&steps)?;
        let mut read = Vec::with_capacity(places.len());
        for (index, fork) in forks.iter().enumerate() {
            let scores: Vec<f32> = match &self.single {
                Some(tokens) => {
                    let row = log_softmax(logits.last(index));
                    tokens.iter().map(|it| row[*it as usize]).collect()
                }
                None => score_continuations(decoder, *fork, &self.answers, adapter)?,
            };
            read.push(<&[f32; 21]>::try_from(scores.as_slice()).ok().and_then(StatedDistribution::from_log_probs));
            decoder.close(*fork);
        }
        Ok(read)
    }
}
