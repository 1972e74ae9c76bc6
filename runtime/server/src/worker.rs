//! The thread that owns the engine: takes jobs in, runs all of them as one batch, sends what comes of them.
//!
//! A job is one prompt and the answers to sample after it, which share the prompt's pages. A job whose receiver is
//! gone ends at once. Knows no HTTP.

use std::collections::{BTreeMap, HashMap, VecDeque};
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

/// Tokens of one forward pass; longer prompts run in pieces between the others' tokens.
const BATCH_TOKENS_MAX: usize = 512;

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
    last_token: Option<Instant>,
    text: AnswerText,
}

/// A job in the engine.
#[derive(Debug)]
struct Live {
    job: Box<Job>,
    /// The prompt, while it runs for all answers, and after that for as long as any of them lasts.
    prefix: Option<(RequestId, SequenceId)>,
    /// Empty until the shared prompt has run. An answer that has ended is `None`.
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
    /// Jobs with a shared prompt hold its pages while they wait for others; so many leave room for those.
    shared_max: usize,
    waiting: VecDeque<Box<Job>>,
    live: BTreeMap<u64, Live>,
    /// Which job, and which of its answers; no answer for the shared prompt.
    owners: HashMap<RequestId, (u64, Option<usize>)>,
    next_job: u64,
    /// Of keys and values.
    n_pages: usize,
}

impl<D: Decode> Worker<D> {
    pub(crate) fn new(decoder: D, tokenizer: Arc<Tokenizer>, metrics: Arc<Metrics>, signals: Arc<Signals>) -> Self {
        let (running_max, n_pages) = (decoder.max_sequences().max(1), decoder.free_pages());
        let options = EngineOptions { running_max, batch_tokens_max: BATCH_TOKENS_MAX };
        Self {
            shared_max: (running_max / 2).max(1),
            answers: GridAnswers::new(&tokenizer),
            engine: Engine::new(decoder, options),
            tokenizer,
            metrics,
            signals,
            waiting: VecDeque::new(),
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
                let is_idle = self.live.is_empty() && self.waiting.is_empty();
                let order =
                    if is_idle { orders.recv().map_err(|_| TryRecvError::Disconnected) } else { orders.try_recv() };
                match order {
                    Ok(Order::Run(job)) => self.waiting.push_back(job),
                    Ok(Order::Stop) | Err(TryRecvError::Disconnected) => is_stopping = true,
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.end_hopeless();
            self.admit();
            self.show();
            if is_stopping && self.live.is_empty() && self.waiting.is_empty() {
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
            let of_samples = live.samples.iter().flatten().filter_map(|it| it.request);
            let mut requests = of_samples.chain(live.prefix.map(|it| it.0));
            // What began and ended within one step has left a token, or the prompt that answers share.
            let has_left = live.has_token || (live.prefix.is_some() && !live.samples.is_empty());
            live.has_begun = live.has_begun || has_left || requests.any(|it| self.engine.has_begun(it));
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
        for job in std::mem::take(&mut self.waiting) {
            match why(&job, false) {
                Some(failure) => job.tell_last(Event::Failed(failure)),
                None => self.waiting.push_back(job),
            }
        }
    }

    /// Hands waiting jobs to the engine, which has a queue of its own.
    fn admit(&mut self) {
        let mut n_shared = self.live.values().filter(|it| it.prefix.is_some()).count();
        let mut still_waiting = VecDeque::new();
        while let Some(job) = self.waiting.pop_front() {
            let is_shared = self.n_shareable(&job) > 0;
            if is_shared && n_shared >= self.shared_max {
                still_waiting.push_back(job);
                continue;
            }
            n_shared += usize::from(is_shared);
            let id = self.next_job;
            self.next_job += 1;
            self.metrics.add_prompt_tokens(job.prompt.len());
            self.live.insert(id, Live { job, prefix: None, samples: Vec::new(), has_begun: false, has_token: false });
            let started = if is_shared { self.run_prompt(id) } else { self.start_samples(id) };
            if let Err(error) = started {
                self.fail(id, Failure::Runtime(error.to_string()));
            }
        }
        self.waiting = still_waiting;
    }

    /// Tokens of whole pages that a job's answers can share; a page that is not full would be copied for each.
    fn n_shareable(&mut self, job: &Job) -> usize {
        let page_tokens = self.engine.decoder().page_tokens();
        // The prompt's last token always runs, since its logits choose the first new one.
        let n_tokens = if job.draws.len() > 1 { job.prompt.len().saturating_sub(1) } else { 0 };
        n_tokens / page_tokens * page_tokens
    }

    /// Runs the prompt once for all answers; the token that comes of it is of no use.
    fn run_prompt(&mut self, id: u64) -> Result<(), ModelError> {
        let Some(live) = self.live.get_mut(&id) else { return Ok(()) };
        let sequence = self.engine.decoder().open_sequence();
        let mut request = Request::new(live.job.prompt.clone(), 1, Sampling::greedy());
        request.sequence = Some(sequence);
        let request = self.engine.submit(request).inspect_err(|_| self.engine.decoder().close(sequence))?;
        live.prefix = Some((request, sequence));
        self.owners.insert(request, (id, None));
        Ok(())
    }

    /// Submits every answer of a job, on forks of its prompt where that has run.
    fn start_samples(&mut self, id: u64) -> Result<(), ModelError> {
        let Some(live) = self.live.get(&id) else { return Ok(()) };
        let (prefix, n_draws) = (live.prefix.map(|it| it.1), live.job.draws.len());
        if let Some(sequence) = prefix {
            let n_shareable = (live.job.prompt.len() - 1) / self.engine.decoder().page_tokens();
            let n_shareable = n_shareable * self.engine.decoder().page_tokens();
            self.engine.decoder().truncate(sequence, n_shareable)?;
        }
        for index in 0..n_draws {
            let sequence = match prefix {
                Some(prefix) => self.engine.decoder().fork(prefix)?,
                None => self.engine.decoder().open_sequence(),
            };
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
                last_token: None,
                text,
            }));
            let request = self.engine.submit(request)?;
            self.owners.insert(request, (id, Some(index)));
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
            EngineEvent::Token { request, token, logprob, top_logprobs, finish } => {
                match self.owners.get(&request).copied() {
                    Some((id, Some(index))) => {
                        let token = TokenLogprob { token, logprob, alternatives: top_logprobs };
                        self.extend(id, index, token, finish);
                    }
                    Some((id, None)) => {
                        self.owners.remove(&request);
                        if let Err(error) = self.start_samples(id) {
                            self.fail(id, Failure::Runtime(error.to_string()));
                        }
                    }
                    // Ended by a stop text, or its job has failed since this step began.
                    None => {}
                }
            }
        }
    }

    /// Adds a token to an answer, and ends it after its last one.
    fn extend(&mut self, id: u64, index: usize, token: TokenLogprob, finish: Option<Finish>) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let Some(sample) = live.samples.get_mut(index).and_then(Option::as_mut) else { return };
        sample.answer.push(token.token);
        sample.n_generated += 1;
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
        let ending = Ending { is_complete, n_tokens: sample.n_generated, stated };
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
        let prefix = live.prefix.map(|(request, sequence)| (Some(request), sequence));
        let samples = live.samples.into_iter().flatten().map(|it| (it.request, it.sequence));
        for (request, sequence) in prefix.into_iter().chain(samples) {
            if let Some(request) = request {
                self.engine.cancel(request);
                self.owners.remove(&request);
            }
            self.engine.decoder().close(sequence);
        }
        Some(live.job)
    }

    fn show(&mut self) {
        self.metrics.set_engine(self.waiting.len() + self.engine.n_waiting(), self.engine.n_running());
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
