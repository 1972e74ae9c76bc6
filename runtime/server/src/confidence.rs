//! Reads the stated probability as an expectation: the 21 grid answers scored where an answer's confidence stands.

use fsq_calibrate::StatedDistribution;
use fsq_calibrate::foresight::{CONTINUATIONS, Field};
use fsq_model::{Choices, Decode, ModelError, SequenceId, TokenId, Tokenizer};

/// The grid answers in a policy's own tokens.
#[derive(Debug)]
pub struct GridAnswers(Choices);

impl GridAnswers {
    /// Encodes the 21 answers.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self(Choices::new(tokenizer, &CONTINUATIONS, Field::Confidence.closing()))
    }

    /// What the policy states after `<confidence>` in an answer, which begins after the first `n_prompt` tokens of
    /// a sequence. The sequence is cut there and of no further use. `None` where the answer has no such tag or the
    /// scores say nothing.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn read<D: Decode>(
        &self,
        decoder: &mut D,
        tokenizer: &Tokenizer,
        sequence: SequenceId,
        n_prompt: usize,
        answer: &[TokenId],
    ) -> Result<Option<StatedDistribution>, ModelError> {
        let Some((n_tokens, tail)) = place(tokenizer, answer) else { return Ok(None) };
        let place = n_prompt + n_tokens;
        let held = decoder.tokens(sequence).ok_or(ModelError::UnknownSequence { sequence })?;
        if place == 0 || place > held.len() {
            return Ok(None);
        }
        decoder.truncate(sequence, place)?;
        // Where a token reaches over the end of the tag, what it holds of the tag is scored with the number.
        let behind = (!tail.is_empty()).then(|| self.0.behind(tokenizer, &tail));
        let scores = behind.as_ref().unwrap_or(&self.0).log_probs(decoder, &[sequence], None)?;
        let scores = scores.first().and_then(|it| <&[f32; 21]>::try_from(it.as_slice()).ok());
        Ok(scores.and_then(StatedDistribution::from_log_probs))
    }
}

/// How many of an answer's tokens lie before the end of its first `<confidence>`, and what they leave of the tag.
fn place(tokenizer: &Tokenizer, answer: &[TokenId]) -> Option<(usize, String)> {
    let tag = Field::Confidence.opening().as_bytes();
    let mut bytes: Vec<u8> = Vec::new();
    let mut ends = vec![0];
    for token in answer {
        if !tokenizer.is_control(*token) {
            bytes.extend_from_slice(tokenizer.token_bytes(*token).unwrap_or_default());
        }
        ends.push(bytes.len());
    }
    let end = bytes.windows(tag.len()).position(|it| it == tag)? + tag.len();
    let n_tokens = ends.iter().rposition(|it| *it <= end)?;
    Some((n_tokens, String::from_utf8_lossy(&bytes[ends[n_tokens]..end]).into_owned()))
}
