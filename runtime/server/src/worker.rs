//! The thread that owns the engine: takes jobs in, runs all of them as one batch, sends what comes of them.
//!
//! A job is one prompt and the answers to sample after it, which the engine runs as one for as long as they are the
//! same. A job whose receiver is gone ends at once. Knows no HTTP.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use fsq_calibrate::{StatedDistribution, foresight};
use fsq_model::{
    Adjustments, Decode, Engine, EngineEvent, EngineOptions, Finish, ModelError, Request, RequestId, Sampling,
    SequenceId, TokenId, Tokenizer,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use crate::asked::Common;
use crate::confidence::GridAnswers;
use crate::metrics::Metrics;
use crate::sample::{AnswerText, Piece, TokenLogprob};

/// One answer to sample.
#[derive(Clone, Debug)]
pub(crate) struct Draw {
    /// What the answer begins with, whatever the policy would have said; its text and tokens.
    pub(crate) beginning: (String, Vec<TokenId>),
    pub(crate) sampling: Sampling,
    pub(crate) adjustments: Adjustments,
}

impl Draw {
    /// The answer `index` of a request, which begins with nothing.
    pub(crate) fn new(common: &Common, index: u64) -> Self {
        let beginning = (String::new(), Vec::new());
        Self { beginning, sampling: common.sampling(index), adjustments: common.adjustments.clone() }
    }
}

/// One prompt and the answers to sample after it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) draws: Vec<Draw>,
    /// Where its answers stand among those of the request, which may have several prompts.
    pub(crate) first_index: usize,
    /// Tokens of each answer, its beginning not counted.
    pub(crate) tokens_max: usize,
    pub(crate) stop_texts: Vec<String>,
    pub(crate) top_logprobs: usize,
    /// When it was asked for.
    pub(crate) begun: Instant,
    pub(crate) deadline: Instant,
    /// By then it has a place in the batch, or ends.
    pub(crate) queue_deadline: Instant,
    /// Unbounded, yet never longer than the answers may be.
    pub(crate) events: UnboundedSender<Event>,
    /// The job's place among those that the server takes at a time.
    pub(crate) place: OwnedSemaphorePermit,
}

impl Job {
    /// Makes room for another job, then says the last thing about this one.
    fn tell_last(self, event: Event) {
        drop(self.place);
        let _ = self.events.send(event);
    }
}

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Order {
    Run(Box<Job>),
    /// End once every job has ended.
    Stop,
}

/// What a job hears, about the answer `index` of its request.
#[derive(Debug)]
pub(crate) enum Event {
    Piece {
        index: usize,
        piece: Piece,
    },
    End {
        index: usize,
        ending: Ending,
    },
    /// The whole job ends here.
    Failed(Failure),
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ending {
    /// Whether it ended by itself or by a stop text, not for want of room.
    pub(crate) is_complete: bool,
    /// Generated tokens, the beginning not counted.
    pub(crate) n_tokens: usize,
    /// Tokens of its prompt that did not run for it, because others had.
    pub(crate) n_reused: usize,
    /// What the policy states, where the answer parses as foresight.
    pub(crate) stated: Option<StatedDistribution>,
}

/// Why a job ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It ran longer than it may.
    Deadline,
    /// It waited longer than it may.
    Queue,
    /// The server stopped before it was done.
    Stopping,
    /// The runtime refused.
    Runtime(String),
}

/// Flags that the thread shares with the server.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// Set by the server: end every job now.
    pub(crate) is_aborting: AtomicBool,
    /// Set by the thread when it has ended.
    pub(crate) is_over: AtomicBool,
}

/// One sampled answer.
#[derive(Debug)]
struct Sample {
    request: Option<RequestId>,
    sequence: SequenceId,
    /// Its beginning and what was generated.
    answer: Vec<TokenId>,
    n_generated: usize,
    n_reused: usize,
    last_token: Option<Instant>,
    text: AnswerText,
}

/// A job in the engine.
#[derive(Debug)]
struct Live {
    job: Box<Job>,
    /// An answer that has ended is `None`.
    samples: Vec<Option<Sample>>,
    /// Whether anything of it ever had a place in the batch.
    has_begun: bool,
    /// Whether any of its answers has a token.
    has_token: bool,
}

/// The engine with its jobs.
#[derive(Debug)]
pub(crate) struct Worker<D> {
    engine: Engine<D>,
    tokenizer: Arc<Tokenizer>,
    answers: GridAnswers,
    metrics: Arc<Metrics>,
    signals: Arc<Signals>,
    live: BTreeMap<u64, Live>,
    /// Which job, and which of its answers.
    owners: HashMap<RequestId, (u64, usize)>,
    next_job: u64,
    /// Of keys and values.
    n_pages: usize,
}

impl<D: Decode> Worker<D> {
    pub(crate) fn new(
        decoder: D,
        draft_rows_max: usize,
        tokenizer: Arc<Tokenizer>,
        metrics: Arc<Metrics>,
        signals: Arc<Signals>,
    ) -> Self {
        let (running_max, n_pages) = (decoder.max_sequences().max(1), decoder.free_pages());
        Self {
            answers: GridAnswers::new(&tokenizer),
            engine: Engine::new(decoder, EngineOptions { draft_rows_max, ..EngineOptions::new(running_max) }),
            tokenizer,
            metrics,
            signals,
            live: BTreeMap::new(),
            owners: HashMap::new(),
            next_job: 0,
            n_pages,
        }
    }

    /// Runs until it is told to stop and every job has ended, or the device fails.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub(crate) fn run(mut self, orders: &Receiver<Order>) -> Result<(), ModelError> {
        // Set however this ends, a panic in a decoder included.
        let _over = OnDrop(Arc::clone(&self.signals));
        let mut is_stopping = false;
        loop {
            while !is_stopping {
                let is_idle = self.live.is_empty();
                let order =
                    if is_idle { orders.recv().map_err(|_| TryRecvError::Disconnected) } else { orders.try_recv() };
                match order {
                    Ok(Order::Run(job)) => self.begin(job),
                    Ok(Order::Stop) | Err(TryRecvError::Disconnected) => is_stopping = true,
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.end_hopeless();
            self.show();
            if is_stopping && self.live.is_empty() {
                return Ok(());
            }
            match self.engine.step() {
                Ok(events) => events.into_iter().for_each(|it| self.handle(it)),
                Err(error) => {
                    let failure = Failure::Runtime(error.to_string());
                    self.end_where(|_, _| Some(failure.clone()));
                    return Err(error);
                }
            }
        }
    }

    /// Ends what nobody waits for, what took too long, and everything when the server cannot wait.
    fn end_hopeless(&mut self) {
        let is_aborting = self.signals.is_aborting.load(Ordering::Relaxed);
        let now = Instant::now();
        for live in self.live.values_mut() {
            let mut requests = live.samples.iter().flatten().filter_map(|it| it.request);
            // What began and ended within one step has left a token.
            live.has_begun = live.has_begun || live.has_token || requests.any(|it| self.engine.has_begun(it));
        }
        self.end_where(|job, has_begun| {
            if is_aborting {
                Some(Failure::Stopping)
            } else if job.events.is_closed() || job.deadline <= now {
                Some(Failure::Deadline)
            } else if !has_begun && job.queue_deadline <= now {
                Some(Failure::Queue)
            } else {
                None
            }
        });
    }

    fn end_where(&mut self, why: impl Fn(&Job, bool) -> Option<Failure>) {
        let doomed = self.live.iter().filter_map(|(id, live)| Some((*id, why(&live.job, live.has_begun)?)));
        for (id, failure) in doomed.collect::<Vec<_>>() {
            self.fail(id, failure);
        }
    }

    /// Hands a job to the engine, which has a queue of its own.
    fn begin(&mut self, job: Box<Job>) {
        let id = self.next_job;
        self.next_job += 1;
        self.metrics.add_prompt_tokens(job.prompt.len());
        self.live.insert(id, Live { job, samples: Vec::new(), has_begun: false, has_token: false });
        if let Err(error) = self.start_samples(id) {
            self.fail(id, Failure::Runtime(error.to_string()));
        }
    }

    /// Submits every answer of a job. They begin as one, so the engine runs that part once.
    fn start_samples(&mut self, id: u64) -> Result<(), ModelError> {
        let n_draws = self.live.get(&id).map_or(0, |it| it.job.draws.len());
        for index in 0..n_draws {
            let sequence = self.engine.decoder().open_sequence();
            let Some(live) = self.live.get_mut(&id) else { return Ok(()) };
            let draw = &live.job.draws[index];
            let (beginning, tokens) = draw.beginning.clone();
            let prompt = [live.job.prompt.as_slice(), &tokens].concat();
            let mut request = Request::new(prompt, live.job.tokens_max, draw.sampling);
            request.adjustments = draw.adjustments.clone();
            request.stop = self.tokenizer.ends().to_vec();
            request.top_logprobs = live.job.top_logprobs;
            request.sequence = Some(sequence);
            let text = AnswerText::new(&beginning, live.job.stop_texts.clone());
            // Known to the job before the engine may refuse it, so that failing the job closes it.
            live.samples.push(Some(Sample {
                request: None,
                sequence,
                answer: tokens,
                n_generated: 0,
                n_reused: 0,
                last_token: None,
                text,
            }));
            let request = self.engine.submit(request)?;
            self.owners.insert(request, (id, index));
            if let Some(Some(sample)) = live.samples.last_mut() {
                sample.request = Some(request);
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Failed { request, error } => {
                if let Some((id, _)) = self.owners.remove(&request) {
                    self.fail(id, Failure::Runtime(error.to_string()));
                }
            }
            EngineEvent::Token { request, token, logprob, top_logprobs, finish, n_reused } => {
                // There is none where it was ended by a stop text, or its job has failed since this step began.
                let Some((id, index)) = self.owners.get(&request).copied() else { return };
                let token = TokenLogprob { token, logprob, alternatives: top_logprobs };
                self.extend(id, index, token, n_reused, finish);
            }
        }
    }

    /// Adds a token to an answer, and ends it after its last one.
    fn extend(&mut self, id: u64, index: usize, token: TokenLogprob, n_reused: usize, finish: Option<Finish>) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let Some(sample) = live.samples.get_mut(index).and_then(Option::as_mut) else { return };
        sample.answer.push(token.token);
        sample.n_generated += 1;
        if sample.n_generated == 1 {
            sample.n_reused = n_reused;
            self.metrics.add_reused_tokens(n_reused);
        }
        self.metrics.add_generated_token();
        let now = Instant::now();
        match sample.last_token.replace(now) {
            Some(last) => self.metrics.add_next_token(now.saturating_duration_since(last)),
            None if live.has_token => {}
            None => self.metrics.add_first_token(now.saturating_duration_since(live.job.begun)),
        }
        live.has_token = true;
        let (mut piece, is_stopped) = sample.text.push(&self.tokenizer, token);
        if finish.is_some() && !is_stopped {
            let rest = sample.text.finish();
            piece.text.push_str(&rest.text);
            piece.logprobs.extend(rest.logprobs);
        }
        if !piece.text.is_empty() || !piece.logprobs.is_empty() {
            let _ = live.job.events.send(Event::Piece { index: live.job.first_index + index, piece });
        }
        if finish.is_some() || is_stopped {
            let is_complete = is_stopped || finish == Some(Finish::Stop);
            if let Err(error) = self.end_sample(id, index, is_complete) {
                self.fail(id, Failure::Runtime(error.to_string()));
            }
        }
    }

    /// Reads what the answer states, tells its job, and frees what it holds.
    fn end_sample(&mut self, id: u64, index: usize, is_complete: bool) -> Result<(), ModelError> {
        let Some(live) = self.live.get_mut(&id) else { return Ok(()) };
        let Some(sample) = live.samples[index].as_ref() else { return Ok(()) };
        if let Some(request) = sample.request {
            self.engine.cancel(request);
            self.owners.remove(&request);
        }
        let stated = if foresight::parse(sample.text.text()).is_ok() {
            let n_prompt = live.job.prompt.len();
            let decoder = self.engine.decoder();
            self.answers.read(decoder, &self.tokenizer, sample.sequence, n_prompt, &sample.answer)?
        } else {
            None
        };
        let Sample { n_generated: n_tokens, n_reused, .. } = *sample;
        let ending = Ending { is_complete, n_tokens, n_reused, stated };
        self.engine.decoder().close(sample.sequence);
        live.samples[index] = None;
        // Whoever hears of an end may rely on everything having been freed.
        if live.samples.iter().all(Option::is_none) {
            if let Some(job) = self.forget(id) {
                let index = job.first_index + index;
                job.tell_last(Event::End { index, ending });
            }
        } else {
            let _ = live.job.events.send(Event::End { index: live.job.first_index + index, ending });
        }
        Ok(())
    }

    fn fail(&mut self, id: u64, failure: Failure) {
        if let Some(job) = self.forget(id) {
            job.tell_last(Event::Failed(failure));
        }
    }

    /// Takes a job out and frees all that it holds.
    fn forget(&mut self, id: u64) -> Option<Box<Job>> {
        let live = self.live.remove(&id)?;
        for Sample { request, sequence, .. } in live.samples.into_iter().flatten() {
            if let Some(request) = request {
                self.engine.cancel(request);
                self.owners.remove(&request);
            }
            self.engine.decoder().close(sequence);
        }
        Some(live.job)
    }

    fn show(&mut self) {
        self.metrics.set_engine(self.engine.n_waiting(), self.engine.n_running());
        self.metrics.set_drafts(self.engine.drafts());
        self.metrics.set_pages(self.n_pages.saturating_sub(self.engine.decoder().free_pages()), self.n_pages);
    }
}

/// Says that the thread is over when it is dropped.
struct OnDrop(Arc<Signals>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}
