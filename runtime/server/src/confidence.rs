//! Reads the stated probability as an expectation: the 21 grid answers scored where an answer's confidence stands.

use std::collections::HashSet;

use fsq_calibrate::StatedDistribution;
use fsq_calibrate::foresight::{CONTINUATIONS, Field};
use fsq_model::{
    Decode, LogitsFor, ModelError, SequenceId, Special, Step, TokenId, Tokenizer, log_softmax, score_continuations,
};

/// Pages that one scored continuation may need for itself: a copy of the last one, and one more.
const PAGES_PER_CONTINUATION: usize = 2;

/// The grid answers in a policy's own tokens.
#[derive(Debug)]
pub struct GridAnswers {
    /// Up to and including the closing tag: `5` alone would also begin `55`.
    answers: Vec<Vec<TokenId>>,
    /// The numbers alone, where each is one token of its own: then one row of logits says all.
    single: Option<Vec<TokenId>>,
}

impl GridAnswers {
    /// Encodes the 21 answers.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let closing = Field::Confidence.closing();
        let of_number = |it: &&str| {
            let number = tokenizer.encode(it.strip_suffix(closing).unwrap_or(it), Special::Parse);
            <[TokenId; 1]>::try_from(number).ok().map(|it| it[0])
        };
        let single: Vec<TokenId> = CONTINUATIONS.iter().filter_map(of_number).collect();
        let is_distinct = single.iter().collect::<HashSet<_>>().len() == CONTINUATIONS.len();
        let answers = CONTINUATIONS.iter().map(|it| tokenizer.encode(it, Special::Parse)).collect();
        Self { answers, single: is_distinct.then_some(single) }
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
        let Some(last) = place.checked_sub(1).and_then(|it| held.get(it)).copied() else { return Ok(None) };
        decoder.truncate(sequence, place)?;
        let scores = match &self.single {
            Some(numbers) if tail.is_empty() => {
                decoder.truncate(sequence, place - 1)?;
                let row = run(decoder, sequence, &[last], LogitsFor::Last)?;
                let row = log_softmax(row.last(0));
                numbers.iter().filter_map(|it| row.get(*it as usize).copied()).collect()
            }
            _ if tail.is_empty() => score(decoder, sequence, (place, last), &self.answers)?,
            _ => {
                // A token reaches over the end of the tag: what it holds of the tag is scored with the number.
                let answers: Vec<Vec<TokenId>> =
                    CONTINUATIONS.iter().map(|it| tokenizer.encode(&format!("{tail}{it}"), Special::Parse)).collect();
                score(decoder, sequence, (place, last), &answers)?
            }
        };
        Ok(<&[f32; 21]>::try_from(scores.as_slice()).ok().and_then(StatedDistribution::from_log_probs))
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

/// `ln p` of each answer after the first `place` tokens, the last of which is `last`.
fn score<D: Decode>(
    decoder: &mut D,
    sequence: SequenceId,
    (place, last): (usize, TokenId),
    answers: &[Vec<TokenId>],
) -> Result<Vec<f32>, ModelError> {
    if decoder.free_pages() >= answers.len() * PAGES_PER_CONTINUATION {
        return score_continuations(decoder, sequence, answers, None);
    }
    // With few pages left, one after the other in the pages that the answer's own end has just given up.
    let mut scores = Vec::with_capacity(answers.len());
    for answer in answers {
        decoder.truncate(sequence, place - 1)?;
        let run_tokens = answer.split_last().map_or(&[][..], |it| it.1);
        let tokens: Vec<TokenId> = std::iter::once(last).chain(run_tokens.iter().copied()).collect();
        let logits = run(decoder, sequence, &tokens, LogitsFor::All)?;
        let of_token = |(row, token): (usize, &TokenId)| {
            log_softmax(logits.row(0, row)).get(*token as usize).copied().unwrap_or(f32::NEG_INFINITY)
        };
        scores.push(answer.iter().enumerate().map(of_token).sum());
    }
    Ok(scores)
}

fn run<D: Decode>(
    decoder: &mut D,
    sequence: SequenceId,
    tokens: &[TokenId],
    logits: LogitsFor,
) -> Result<fsq_model::Logits, ModelError> {
    decoder.forward(&[Step { sequence, tokens, logits, adapter: None }])
}
