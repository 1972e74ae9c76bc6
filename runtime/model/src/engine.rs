//! Runs requests to their end, many at once: schedule, forward, sample, advance. Knows no text and no transport.

use std::collections::HashMap;

use crate::adjust::Adjuster;
use crate::scheduler::{Demand, Planned, Scheduler};
use crate::{
    AdapterId, Adjustments, Decode, EngineOptions, LogitsFor, ModelError, RequestId, Sampler, Sampling, SequenceId,
    Step, TokenId, log_softmax,
};

/// A prompt and how to go on from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The whole prompt, whatever an open `sequence` may already hold of it.
    pub prompt: Vec<TokenId>,
    /// At most so many tokens are generated; at least one.
    pub max_tokens: usize,
    /// A token of these ends the request; it is the last token that comes back.
    pub stop: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What is changed about logits before that.
    pub adjustments: Adjustments,
    /// The adapter that the request runs under.
    pub adapter: Option<AdapterId>,
    /// How many of the most probable tokens come back beside each chosen one.
    pub top_logprobs: usize,
    /// An open sequence to continue, and to leave open: the tokens that it shares with the prompt are not run
    /// again, the others are forgotten. It must have run under the same adapter, and no other request may use it.
    /// `None` opens a sequence and closes it at the end.
    pub sequence: Option<SequenceId>,
}

impl Request {
    /// A request without stop tokens, adjustments, adapter, alternatives or open sequence.
    #[must_use]
    pub fn new(prompt: Vec<TokenId>, max_tokens: usize, sampling: Sampling) -> Self {
        let (stop, adjustments) = (Vec::new(), Adjustments::default());
        Self { prompt, max_tokens, stop, sampling, adjustments, adapter: None, top_logprobs: 0, sequence: None }
    }
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It generated one of its stop tokens.
    Stop,
    /// It generated as many tokens as it was allowed.
    Length,
    /// Its sequence is as long as the context.
    Context,
}

/// What happened to a request in a step.
#[derive(Debug)]
pub enum EngineEvent {
    /// It has one more token.
    Token {
        /// The request.
        request: RequestId,
        /// The token.
        token: TokenId,
        /// Its natural-log probability at temperature 1, unfiltered.
        logprob: f32,
        /// The most probable tokens with theirs, most probable first; as many as were asked for.
        top_logprobs: Vec<(TokenId, f32)>,
        /// Set on the last token.
        finish: Option<Finish>,
    },
    /// It cannot go on; nothing more comes.
    Failed {
        /// The request.
        request: RequestId,
        /// Why.
        error: ModelError,
    },
}

/// One admitted or waiting request.
#[derive(Debug)]
struct Live {
    request: Request,
    sampler: Sampler,
    adjuster: Option<Adjuster>,
    /// The prompt and what was generated.
    tokens: Vec<TokenId>,
    /// How many of `tokens` the sequence holds.
    n_run: usize,
    n_generated: usize,
    /// `None` until admitted, unless the request brought its own.
    sequence: Option<SequenceId>,
    is_admitted: bool,
}

/// A decoder with a queue in front of it.
#[derive(Debug)]
pub struct Engine<D> {
    decoder: D,
    scheduler: Scheduler,
    live: HashMap<RequestId, Live>,
    next_request: u64,
}

impl<D: Decode> Engine<D> {
    /// An idle engine.
    pub fn new(decoder: D, options: EngineOptions) -> Self {
        Self { decoder, scheduler: Scheduler::new(options), live: HashMap::new(), next_request: 0 }
    }

    /// The decoder, to score with, fork on or load adapters into between steps.
    pub fn decoder(&mut self) -> &mut D {
        &mut self.decoder
    }

    /// Requests that have not been admitted.
    pub fn n_waiting(&self) -> usize {
        self.scheduler.n_waiting()
    }

    /// Requests that are in the batch.
    pub fn n_running(&self) -> usize {
        self.scheduler.n_running()
    }

    /// Whether a request has a place in the batch. False before that, and once it has ended.
    pub fn has_begun(&self, request: RequestId) -> bool {
        self.live.get(&request).is_some_and(|it| it.is_admitted)
    }

    /// Whether a step would do nothing.
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`ModelError::EmptyStep`], [`ModelError::NothingToGenerate`], [`ModelError::ContextFull`] when the prompt
    /// leaves no room for a token, [`ModelError::UnknownToken`], [`ModelError::UnknownSequence`].
    pub fn submit(&mut self, request: Request) -> Result<RequestId, ModelError> {
        let context_tokens = self.decoder.context_tokens();
        let vocab = self.decoder.vocab();
        if request.prompt.is_empty() {
            return Err(ModelError::EmptyStep);
        }
        if request.max_tokens == 0 {
            return Err(ModelError::NothingToGenerate);
        }
        if request.prompt.len() >= context_tokens {
            return Err(ModelError::ContextFull { needed: request.prompt.len() + 1, context_tokens });
        }
        if let Some(token) = request.prompt.iter().copied().find(|it| *it as usize >= vocab) {
            return Err(ModelError::UnknownToken { token, vocab });
        }
        let mut n_run = 0;
        if let Some(sequence) = request.sequence {
            let held = self.decoder.tokens(sequence).ok_or(ModelError::UnknownSequence { sequence })?;
            let n_equal = held.iter().zip(&request.prompt).take_while(|(a, b)| a == b).count();
            // The last token of the prompt always runs: its logits choose the first new token.
            n_run = n_equal.min(request.prompt.len() - 1);
            self.decoder.truncate(sequence, n_run)?;
        }
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let n_pages = self.pages_to_come(&request, request.sequence, n_run);
        let demand = Demand { n_prompt: request.prompt.len() - n_run, n_pages };
        self.scheduler.submit(id, demand);
        let live = Live {
            sampler: Sampler::new(request.sampling),
            adjuster: Adjuster::new(&request.adjustments, &request.prompt),
            tokens: request.prompt.clone(),
            n_run,
            n_generated: 0,
            sequence: request.sequence,
            is_admitted: false,
            request,
        };
        self.live.insert(id, live);
        Ok(id)
    }

    /// Ends a request now and frees what it holds; false when it is not there.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        self.end(request).is_some()
    }

    /// Ends every request.
    pub fn cancel_all(&mut self) {
        let requests: Vec<RequestId> = self.live.keys().copied().collect();
        for request in requests {
            self.end(request);
        }
    }

    /// One forward pass over whatever is due, and a token for every request that was ready for one.
    ///
    /// # Errors
    /// [`ModelError::Device`] when the device failed. What concerns a single request is an event instead.
    pub fn step(&mut self) -> Result<Vec<EngineEvent>, ModelError> {
        let mut events = self.admit();
        let batch = self.scheduler.next_batch();
        if batch.is_empty() {
            return Ok(events);
        }
        let logits = match self.decoder.forward(&steps(&batch, &self.live)) {
            Err(error @ ModelError::Device(_)) => return Err(error),
            // Only a page or an adapter that its owner took away in the meantime can lead here.
            Err(error) => {
                events.extend(self.fail(&batch, error));
                return Ok(events);
            }
            Ok(logits) => logits,
        };
        self.scheduler.advance(&batch);
        for (planned, step) in batch.iter().zip(0..) {
            self.live.entry(planned.request).and_modify(|it| it.n_run += planned.n_tokens);
            if planned.samples {
                events.extend(self.sample(planned.request, logits.last(step)));
            }
        }
        Ok(events)
    }

    /// Samples, and ends the request when that was its last token.
    fn sample(&mut self, id: RequestId, logits: &[f32]) -> Option<EngineEvent> {
        let context_tokens = self.decoder.context_tokens();
        let live = self.live.get_mut(&id)?;
        let sampled = live.sampler.sample(live.adjuster.as_mut().map_or(logits, |it| it.apply(logits)));
        let mut logprob = sampled.logprob;
        if let Some(adjuster) = &mut live.adjuster {
            adjuster.note(sampled.token);
            logprob = log_softmax(logits)[sampled.token as usize];
        }
        live.tokens.push(sampled.token);
        live.n_generated += 1;
        let finish = if live.request.stop.contains(&sampled.token) {
            Some(Finish::Stop)
        } else if live.n_generated >= live.request.max_tokens {
            Some(Finish::Length)
        } else if live.tokens.len() >= context_tokens {
            Some(Finish::Context)
        } else {
            None
        };
        let top_logprobs = most_probable(logits, live.request.top_logprobs);
        if finish.is_some() {
            self.end(id);
        }
        Some(EngineEvent::Token { request: id, token: sampled.token, logprob, top_logprobs, finish })
    }

    /// Moves waiting requests into the batch; fails one that could never be, since nothing runs that would free pages.
    fn admit(&mut self) -> Vec<EngineEvent> {
        let mut events = Vec::new();
        while self.scheduler.n_waiting() > 0 {
            let unpromised = self.decoder.free_pages().saturating_sub(self.promised_pages());
            for id in self.scheduler.admit(unpromised) {
                if let Some(live) = self.live.get_mut(&id) {
                    live.is_admitted = true;
                    live.sequence.get_or_insert_with(|| self.decoder.open_sequence());
                }
            }
            match self.scheduler.first_waiting() {
                Some(id) if self.scheduler.n_running() == 0 => {
                    let free = self.decoder.free_pages();
                    let live = self.live.get(&id);
                    let needed = live.map_or(0, |it| self.pages_to_come(&it.request, it.sequence, it.n_run));
                    let error = ModelError::OutOfPages { needed, free };
                    self.end(id);
                    events.push(EngineEvent::Failed { request: id, error });
                }
                _ => break,
            }
        }
        events
    }

    /// Free pages that running requests may still claim.
    fn promised_pages(&self) -> usize {
        let running = self.live.values().filter(|it| it.is_admitted);
        running.map(|it| self.pages_to_come(&it.request, it.sequence, it.n_run)).sum()
    }

    /// Free pages that a request may still take, of whose tokens `n_run` have run. The last token that it generates
    /// never runs.
    fn pages_to_come(&self, request: &Request, sequence: Option<SequenceId>, n_run: usize) -> usize {
        let longest = request.prompt.len().saturating_add(request.max_tokens - 1);
        let n_tokens = longest.min(self.decoder.context_tokens() - 1) - n_run;
        match sequence {
            Some(sequence) => self.decoder.pages_to_grow(sequence, n_tokens),
            None => n_tokens.div_ceil(self.decoder.page_tokens()),
        }
    }

    /// Takes a request out and closes its sequence unless its owner keeps it.
    fn end(&mut self, id: RequestId) -> Option<Live> {
        self.scheduler.remove(id);
        let live = self.live.remove(&id)?;
        if let (Some(sequence), None) = (live.sequence, live.request.sequence) {
            self.decoder.close(sequence);
        }
        Some(live)
    }

    /// Fails one request that the error concerns, or the youngest, which then gives way; the rest go on next step.
    fn fail(&mut self, batch: &[Planned], error: ModelError) -> Option<EngineEvent> {
        let concerns = |live: &Live| match &error {
            ModelError::UnknownAdapter { adapter } => live.request.adapter == Some(*adapter),
            ModelError::UnknownSequence { sequence } | ModelError::SequenceTwice { sequence } => {
                live.sequence == Some(*sequence)
            }
            _ => false,
        };
        let ids = || batch.iter().map(|it| it.request);
        let concerned = ids().filter(|id| self.live.get(id).is_some_and(concerns)).max();
        let request = concerned.or_else(|| ids().max())?;
        self.end(request);
        Some(EngineEvent::Failed { request, error })
    }
}

/// The planned parts as steps over the tokens of their requests.
fn steps<'a>(batch: &[Planned], live: &'a HashMap<RequestId, Live>) -> Vec<Step<'a>> {
    let step = |planned: &Planned| {
        let live = live.get(&planned.request)?;
        Some(Step {
            sequence: live.sequence?,
            tokens: live.tokens.get(live.n_run..live.n_run + planned.n_tokens)?,
            logits: if planned.samples { LogitsFor::Last } else { LogitsFor::None },
            adapter: live.request.adapter,
        })
    };
    batch.iter().filter_map(step).collect()
}

/// The `n` most probable tokens with their log-probabilities, most probable first, the lower id of equals first.
fn most_probable(logits: &[f32], n: usize) -> Vec<(TokenId, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let mut ranked: Vec<(TokenId, f32)> = (0..).zip(log_softmax(logits)).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(n);
    ranked
}
