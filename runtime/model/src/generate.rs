//! Whole batches at once: completions of many prompts, and the probabilities of given continuations.

use std::collections::HashMap;

use crate::{
    Decode, Engine, EngineEvent, EngineOptions, Finish, LogitsFor, ModelError, Request, RequestId, SequenceId, Step,
    TokenId, log_softmax,
};

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The generated tokens, a stop token included.
    pub tokens: Vec<TokenId>,
    /// Of each token: its natural-log probability at temperature 1, unfiltered.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Completes all requests, in their order, with as many in the batch as fit; a finished one makes room at once.
///
/// # Errors
/// The first request that cannot be served, or a failure of the device; the others' results are lost then.
pub fn generate_batch<D: Decode>(decoder: &mut D, requests: &[Request]) -> Result<Vec<Completion>, ModelError> {
    let options = EngineOptions::new(decoder.max_sequences().max(1));
    let mut engine = Engine::new(&mut *decoder, options);
    let outcome = run(&mut engine, requests);
    if outcome.is_err() {
        engine.cancel_all();
    }
    outcome
}

fn run<D: Decode>(engine: &mut Engine<D>, requests: &[Request]) -> Result<Vec<Completion>, ModelError> {
    let mut places: HashMap<RequestId, usize> = HashMap::new();
    for (place, request) in requests.iter().enumerate() {
        places.insert(engine.submit(request.clone())?, place);
    }
    let empty = Completion { tokens: Vec::new(), logprobs: Vec::new(), finish: Finish::Length };
    let mut completions = vec![empty; requests.len()];
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                EngineEvent::Token { request, token, logprob, finish, .. } => {
                    let completion = &mut completions[places[&request]];
                    completion.tokens.push(token);
                    completion.logprobs.push(logprob);
                    completion.finish = finish.unwrap_or(completion.finish);
                }
                EngineEvent::Failed { error, .. } => return Err(error),
            }
        }
    }
    Ok(completions)
}

/// `ln p(continuation | prefix)` of each continuation, summed over its tokens, in one forward pass.
///
/// `prefix` is an open sequence whose last token has *not* been judged yet: its last token is run again, so that
/// its logits are at hand. It is left as it was. Its pages are shared by all continuations but for the last one, so a
/// continuation's score is the same in any company.
///
/// # Errors
/// [`ModelError::EmptyContinuation`]; [`ModelError::EmptyStep`] when the prefix has no tokens; those of
/// [`Decode::forward`], such as [`ModelError::ContextFull`].
pub fn score_continuations<D: Decode>(
    decoder: &mut D,
    prefix: SequenceId,
    continuations: &[Vec<TokenId>],
    adapter: Option<crate::AdapterId>,
) -> Result<Vec<f32>, ModelError> {
    let held = decoder.tokens(prefix).ok_or(ModelError::UnknownSequence { sequence: prefix })?;
    let last = *held.last().ok_or(ModelError::EmptyStep)?;
    let stem_len = held.len() - 1;
    let vocab = decoder.vocab();
    for (index, continuation) in continuations.iter().enumerate() {
        // The last token is never run, so nothing else looks at it.
        let token = *continuation.last().ok_or(ModelError::EmptyContinuation { index })?;
        if token as usize >= vocab {
            return Err(ModelError::UnknownToken { token, vocab });
        }
    }
    let mut forks = Vec::with_capacity(continuations.len());
    let scores = score_forks(decoder, prefix, (stem_len, last), continuations, adapter, &mut forks);
    for fork in forks {
        decoder.close(fork);
    }
    scores
}

fn score_forks<D: Decode>(
    decoder: &mut D,
    prefix: SequenceId,
    (stem_len, last): (usize, TokenId),
    continuations: &[Vec<TokenId>],
    adapter: Option<crate::AdapterId>,
    forks: &mut Vec<SequenceId>,
) -> Result<Vec<f32>, ModelError> {
    let mut inputs = Vec::with_capacity(continuations.len());
    for continuation in continuations {
        let fork = decoder.fork(prefix)?;
        forks.push(fork);
        decoder.truncate(fork, stem_len)?;
        // The last token of a continuation is judged but never run.
        let run = continuation.split_last().map_or(&[][..], |it| it.1);
        inputs.push(std::iter::once(last).chain(run.iter().copied()).collect::<Vec<_>>());
    }
    let steps: Vec<Step<'_>> = forks
        .iter()
        .zip(&inputs)
        .map(|(sequence, tokens)| Step { sequence: *sequence, tokens, logits: LogitsFor::All, adapter })
        .collect();
    let logits = decoder.forward(&steps)?;
    let score = |(step, continuation): (usize, &Vec<TokenId>)| {
        let of_token = |(row, token): (usize, &TokenId)| log_softmax(logits.row(step, row))[*token as usize];
        continuation.iter().enumerate().map(of_token).sum()
    };
    Ok(continuations.iter().enumerate().map(score).collect())
}
