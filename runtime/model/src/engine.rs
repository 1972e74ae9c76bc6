//! Runs requests to their end, many at once: schedule, forward, sample, advance. Knows no text and no transport.
//!
//! No token runs twice if that can be helped. A prompt begins with the pages that the decoder keeps of what was run
//! before, and a prompt that begins as one that is running now waits for it and goes on from a fork; one that is the
//! same samples from the very same logits. Since a row's numbers do not depend on the rest of its batch, none of that
//! changes a bit of what comes out.

mod draft;
mod reuse;

use std::collections::HashMap;

use crate::adjust::Adjuster;
use crate::scheduler::{Demand, Planned, Scheduler};
use crate::{
    AdapterId, Adjustments, Decode, EngineOptions, LogitsFor, ModelError, RequestId, Sampler, Sampling, SequenceId,
    Step, TokenId, log_softmax,
};
use draft::Drafting;

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
        /// Tokens of the prompt that it did not run, because others had.
        n_reused: usize,
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
    /// Of those, how many others had run.
    n_reused: usize,
    n_generated: usize,
    /// `None` until admitted, unless the request brought its own.
    sequence: Option<SequenceId>,
    is_admitted: bool,
    /// An older request that runs a beginning which it shares, and the length of that.
    leader: Option<(RequestId, usize)>,
    drafting: Drafting,
    /// While a pass checks it: tokens at the end of `tokens` that may come next.
    n_drafted: usize,
}

impl Live {
    /// Whether it has a place in the batch and has not sampled yet.
    fn is_in_prompt(&self) -> bool {
        self.is_admitted && self.n_generated == 0
    }

    /// Tokens that its sequence may come to hold. The last one that it generates never runs.
    fn longest(&self, context_tokens: usize) -> usize {
        let longest = self.request.prompt.len().saturating_add(self.request.max_tokens - 1);
        longest.min(context_tokens - 1)
    }

    /// Tokens that it begins with just as another does, under the same adapter; none under different ones.
    fn n_common(&self, other: &Self) -> usize {
        let is_same = self.request.adapter == other.request.adapter;
        let pairs = self.request.prompt.iter().zip(&other.request.prompt).filter(|_| is_same);
        pairs.take_while(|(a, b)| a == b).count()
    }
}

/// A decoder with a queue in front of it.
#[derive(Debug)]
pub struct Engine<D> {
    decoder: D,
    scheduler: Scheduler,
    live: HashMap<RequestId, Live>,
    next_request: u64,
    draft_rows_max: usize,
    drafts: Drafts,
}

/// How drafts did since the engine was made, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Run beside the tokens that were known.
    pub n_drafted: u64,
    /// Of those, what was sampled then.
    pub n_true: u64,
}

impl<D: Decode> Engine<D> {
    /// An idle engine.
    pub fn new(decoder: D, options: EngineOptions) -> Self {
        let (scheduler, live, draft_rows_max) = (Scheduler::new(options), HashMap::new(), options.draft_rows_max);
        Self { decoder, scheduler, live, next_request: 0, draft_rows_max, drafts: Drafts::default() }
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

    /// How drafts did.
    pub fn drafts(&self) -> Drafts {
        self.drafts
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
        self.scheduler.submit(id);
        let live = Live {
            sampler: Sampler::new(request.sampling),
            adjuster: Adjuster::new(&request.adjustments, &request.prompt),
            tokens: request.prompt.clone(),
            n_run,
            n_reused: 0,
            n_generated: 0,
            sequence: request.sequence,
            is_admitted: false,
            leader: None,
            drafting: Drafting::new(),
            n_drafted: 0,
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
        self.adopt();
        self.hand_on();
        self.offer_drafts();
        let batch = self.scheduler.next_batch();
        if batch.is_empty() {
            return Ok(events);
        }
        self.cut_drafts(&batch);
        let logits = match self.decoder.forward(&steps(&batch, &self.live)) {
            Err(error @ ModelError::Device(_)) => return Err(error),
            // Only a page or an adapter that its owner took away in the meantime can lead here.
            Err(error) => {
                self.cut_drafts(&[]);
                events.extend(self.fail(&batch, error));
                return Ok(events);
            }
            Ok(logits) => logits,
        };
        self.scheduler.advance(&batch);
        let mut ready = Vec::new();
        for (planned, step) in batch.iter().zip(0..) {
            self.note_run(planned);
            if planned.samples {
                // Before anything is sampled: a leader may end with its first token.
                let twins = self.twins(planned.request);
                ready.extend(std::iter::once(planned.request).chain(twins).map(|it| (it, step)));
            }
        }
        for (request, step) in ready {
            self.sample_all(request, &logits, step, &mut events);
        }
        Ok(events)
    }

    /// Records that tokens of a request have run, and keeps their pages for others.
    fn note_run(&mut self, planned: &Planned) {
        let Some(live) = self.live.get_mut(&planned.request) else { return };
        live.n_run += planned.n_tokens;
        // What was drafted may not be true, so it is not for others yet.
        if let Some(sequence) = live.sequence.filter(|_| live.n_drafted == 0) {
            self.decoder.keep(sequence);
        }
    }

    /// Samples from one row: `[vocab]`.
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
        let n_reused = live.n_reused;
        Some(EngineEvent::Token { request: id, token: sampled.token, logprob, top_logprobs, n_reused, finish })
    }

    /// Moves waiting requests into the batch; fails one that could never be, since nothing runs that would free pages.
    fn admit(&mut self) -> Vec<EngineEvent> {
        let mut events = Vec::new();
        while let Some(id) = self.scheduler.next_to_admit() {
            // Its kept pages are taken first: nobody else may get those, and what is left to claim is less.
            let demand = self.begin(id);
            let unpromised = self.decoder.free_pages().saturating_sub(self.promised_pages());
            if self.scheduler.admit(demand, unpromised) {
                self.live.entry(id).and_modify(|it| it.is_admitted = true);
                self.follow(id);
                continue;
            }
            self.step_back(id);
            if self.scheduler.n_running() > 0 {
                break;
            }
            let error = ModelError::OutOfPages { needed: demand.n_pages, free: self.decoder.free_pages() };
            self.end(id);
            events.push(EngineEvent::Failed { request: id, error });
        }
        events
    }

    /// Opens a request's sequence with what is kept of its prompt; says what it needs on top of that.
    fn begin(&mut self, id: RequestId) -> Demand {
        let Some(live) = self.live.get_mut(&id) else { return Demand { n_prompt: 1, n_pages: 0 } };
        live.sequence.get_or_insert_with(|| self.decoder.open_sequence());
        reuse::adopt_for(&mut self.decoder, live);
        let n_prompt = live.request.prompt.len() - live.n_run;
        let live = &self.live[&id];
        Demand { n_prompt, n_pages: self.pages_to_come(live) }
    }

    /// Undoes [`Engine::begin`] for a request that has to wait on.
    fn step_back(&mut self, id: RequestId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let n_own = live.n_run - std::mem::take(&mut live.n_reused);
        live.n_run = n_own;
        match (live.sequence, live.request.sequence) {
            (Some(sequence), None) => {
                self.decoder.close(sequence);
                live.sequence = None;
            }
            (Some(sequence), Some(_)) => {
                let cut = self.decoder.truncate(sequence, n_own);
                debug_assert!(cut.is_ok(), "its owner keeps it open");
            }
            _ => {}
        }
    }

    /// Free pages that running requests may still claim.
    fn promised_pages(&self) -> usize {
        self.live.values().filter(|it| it.is_admitted).map(|it| self.pages_to_come(it)).sum()
    }

    /// Free pages that a request may still take.
    fn pages_to_come(&self, live: &Live) -> usize {
        let n_tokens = live.longest(self.decoder.context_tokens()) - live.n_run;
        live.sequence.map_or(0, |it| self.decoder.pages_to_grow(it, n_tokens))
    }

    /// Takes a request out and closes its sequence unless its owner keeps it.
    fn end(&mut self, id: RequestId) -> Option<Live> {
        self.scheduler.remove(id);
        let live = self.live.remove(&id)?;
        if let (Some(sequence), None) = (live.sequence, live.request.sequence) {
            self.decoder.close(sequence);
        }
        // Those that waited for it wait for the first of them.
        let waits = |live: &Live| live.leader.is_some_and(|it| it.0 == id);
        let mut followers: Vec<_> = self.live.iter().filter(|it| waits(it.1)).map(|it| *it.0).collect();
        followers.sort_unstable();
        for follower in followers {
            self.live.entry(follower).and_modify(|it| it.leader = None);
            self.follow(follower);
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
            logits: match planned.samples {
                true if live.n_drafted > 0 => LogitsFor::All,
                true => LogitsFor::Last,
                false => LogitsFor::None,
            },
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
