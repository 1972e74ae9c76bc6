//! Reads the stated probability as an expectation: all 21 grid answers scored at the place of the confidence.

use fsq_calibrate::foresight::{CONTINUATIONS, Field};
use fsq_calibrate::stated::StatedDistribution;
use fsq_model::{AdapterId, Choices, Decode, ModelError, SequenceId, TokenId, Tokenizer};

/// The grid answers in a policy's own tokens.
pub struct GridAnswers(Choices);

impl GridAnswers {
    /// Encodes the 21 answers.
    ///
    /// An answer counts up to its closing tag (`5` would otherwise begin `55`), except where the digits alone are
    /// one token each.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self(Choices::new(tokenizer, &CONTINUATIONS, Field::Confidence.closing()))
    }

    /// The answers' only tokens in grid order, where each is one token.
    #[must_use]
    pub fn single_tokens(&self) -> Option<&[TokenId]> {
        self.0.single_tokens()
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
        let scores = self.read_forks(decoder, places, adapter, &mut forks);
        for fork in forks {
            decoder.close(fork);
        }
        let stated = |scores: &Vec<f32>| {
            <&[f32; 21]>::try_from(scores.as_slice()).ok().and_then(StatedDistribution::from_log_probs)
        };
        Ok(scores?.iter().map(stated).collect())
    }

    fn read_forks<D: Decode>(
        &self,
        decoder: &mut D,
        places: &[(SequenceId, usize)],
        adapter: Option<AdapterId>,
        forks: &mut Vec<SequenceId>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        for (sequence, n) in places {
            let fork = decoder.fork(*sequence)?;
            forks.push(fork);
            decoder.truncate(fork, *n)?;
        }
        self.0.log_probs(decoder, forks, adapter)
    }
}
