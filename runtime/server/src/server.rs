//! Starting, listening, draining and stopping; what a server serves, and its limits.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fsq_calibrate::gates::Confidence;
use fsq_calibrate::recalibration::RecalibrationMaps;
use fsq_model::{ChatTemplate, Decode, ModelError, TokenId, Tokenizer};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Semaphore, watch};

use crate::ServerError;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::routes::router;
use crate::store::Store;
use crate::worker::{Draw, Event, Job, Order, Signals, Worker};

/// How long connections may take to close after their answers are cut off at the end of a drain.
const CLOSING: Duration = Duration::from_secs(2);

/// A policy ready to run, with what its file says about it.
#[derive(Debug)]
pub struct Policy<D> {
    /// Runs it.
    pub decoder: D,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Lays out its chats.
    pub template: ChatTemplate,
    /// From what it states to what that has meant, by environment; the identity where none was fitted.
    pub recalibration: RecalibrationMaps,
    /// What its file says.
    pub facts: PolicyFacts,
}

/// What a policy's file says about it.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyFacts {
    /// What clients call it.
    pub name: String,
    /// Of the file's weights, hexadecimal; predictions are kept apart by it.
    pub digest: String,
    /// Whether its estimates are good enough to choose by; `None` when nobody judged that.
    pub confidence: Option<Confidence>,
    /// The same in each environment that the gates played.
    pub confidence_in: BTreeMap<String, Confidence>,
    /// The gates' answer, when they were run.
    pub gate: Option<GateFacts>,
}

/// What gates said about a file.
#[derive(Clone, Debug, PartialEq)]
pub struct GateFacts {
    /// `pass`, `fail` or `inconclusive`.
    pub verdict: String,
    /// The profile judged by.
    pub profile: String,
}

/// Where and how to serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// A loopback address; port 0 takes any free one.
    pub address: SocketAddr,
    /// The outcome file, made when it is not there; `None` keeps outcomes in memory only.
    pub outcomes: Option<PathBuf>,
    /// What clients may ask for.
    pub limits: Limits,
}

impl Options {
    /// On this machine only, at this port, with outcomes in memory and the usual limits.
    #[must_use]
    pub fn loopback(port: u16) -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], port)), outcomes: None, limits: Limits::default() }
    }
}

/// What clients may ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Of a request's body.
    pub body_bytes_max: usize,
    /// Of all headers of a request together.
    pub header_bytes_max: usize,
    /// For a body to arrive.
    pub body_time_max: Duration,
    /// From a request's body to the end of its answer.
    pub request_time_max: Duration,
    /// Requests that run or wait; above it the answer is 429.
    pub jobs_max: usize,
    /// For requests to end once the server stops.
    pub drain_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 4 << 20,
            header_bytes_max: 16 << 10,
            body_time_max: Duration::from_secs(30),
            request_time_max: Duration::from_secs(600),
            jobs_max: 64,
            drain_time_max: Duration::from_secs(30),
        }
    }
}

/// What every route sees.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: ChatTemplate,
    pub(crate) recalibration: RecalibrationMaps,
    pub(crate) facts: PolicyFacts,
    pub(crate) limits: Limits,
    /// Longest sequence.
    pub(crate) context_tokens: usize,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) is_draining: AtomicBool,
    orders: mpsc::Sender<Order>,
    places: Arc<Semaphore>,
}

/// What a route asks of the engine.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) draws: Vec<Draw>,
    pub(crate) tokens_max: usize,
    pub(crate) stop_texts: Vec<String>,
    pub(crate) top_logprobs: usize,
}

impl Shared {
    /// Whether new requests are taken.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_draining.load(Ordering::Relaxed) && !self.signals.is_over.load(Ordering::Relaxed)
    }

    /// Hands a job to the engine. It ends when the receiver is dropped.
    pub(crate) fn submit(&self, ask: Ask) -> Result<UnboundedReceiver<Event>, Refusal> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(Refusal::unavailable("draining", "the server is stopping"));
        }
        let longest = ask.draws.iter().map(|it| it.beginning.1.len()).max().unwrap_or(0);
        let needed = ask.prompt.len() + longest + 1;
        if needed > self.context_tokens {
            let message = format!("context: {needed} tokens are needed, {} fit", self.context_tokens);
            return Err(Refusal::invalid("context_length_exceeded", message));
        }
        let full = |_| Refusal::queue_full(self.limits.jobs_max);
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(full)?;
        let (events, receiver) = unbounded_channel();
        let Ask { prompt, draws, tokens_max, stop_texts, top_logprobs } = ask;
        let deadline = Instant::now() + self.limits.request_time_max;
        let job = Job { prompt, draws, tokens_max, stop_texts, top_logprobs, deadline, events, place };
        let gone = |_| Refusal::unavailable("engine_stopped", "the engine has stopped");
        self.orders.send(Order::Run(Box::new(job))).map_err(gone)?;
        Ok(receiver)
    }
}

/// A server that runs on threads of its own until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    signals: Arc<Signals>,
    serving: tokio::task::JoinHandle<()>,
    engine: std::thread::JoinHandle<Result<(), ModelError>>,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    /// Starts serving; returns once clients can connect.
    ///
    /// # Errors
    /// [`ServerError`]: an address that is taken or not loopback, an outcome file that cannot be kept.
    pub fn start<D: Decode + Send + 'static>(policy: Policy<D>, options: Options) -> Result<Self, ServerError> {
        Self::start_until(policy, options, pending())
    }

    /// As [`Server::start`], and begins to drain when `shutdown` is done.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_until<D: Decode + Send + 'static>(
        policy: Policy<D>,
        options: Options,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Self, ServerError> {
        let Options { address, outcomes, limits } = options;
        if !address.ip().is_loopback() {
            return Err(ServerError::NotLoopback { address });
        }
        let (tokenizer, decoder) = (policy.tokenizer.vocab(), policy.decoder.vocab());
        if tokenizer > decoder {
            return Err(ServerError::Vocabulary { tokenizer, decoder });
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(|it| listen_error(address, it))?;
        let address = listener.local_addr().map_err(|it| listen_error(address, it))?;
        let store = Store::open(outcomes.as_deref(), &policy.facts.digest)?;
        let drain_time_max = limits.drain_time_max;
        let (shared, decoder, orders) = share(policy, limits, store);
        let signals = Arc::clone(&shared.signals);
        let worker =
            Worker::new(decoder, Arc::clone(&shared.tokenizer), Arc::clone(&shared.metrics), Arc::clone(&signals));
        let engine = std::thread::Builder::new().name("fsq-engine".to_string()).spawn(move || worker.run(&orders))?;
        let (stop, stopping) = watch::channel(false);
        let serving = runtime.spawn(run(listener, shared, shutdown, stopping, drain_time_max));
        Ok(Self { address, stop, signals, serving, engine, runtime })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, waits until the running ones have ended or the drain time is over, and ends.
    ///
    /// # Errors
    /// [`ServerError::Engine`] when the device had failed.
    pub fn stop(self) -> Result<(), ServerError> {
        let _ = self.stop.send(true);
        self.wait()
    }

    /// Serves until the `shutdown` of [`Server::start_until`] has been followed.
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub fn wait(self) -> Result<(), ServerError> {
        // A panic there is ours; what it did not do is done when the runtime is dropped.
        let _ = self.runtime.block_on(self.serving);
        self.runtime.shutdown_timeout(CLOSING);
        match self.engine.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ServerError::Engine { reason: error.to_string() }),
            Err(_) => Err(ServerError::Engine { reason: "its thread panicked".to_string() }),
        }
    }

    /// Serves until the process is asked to end (SIGINT, SIGTERM), then drains; a second signal cuts that short.
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub fn run_until_signal(self) -> Result<(), ServerError> {
        self.runtime.block_on(ending_signal())?;
        let signals = Arc::clone(&self.signals);
        self.runtime.spawn(async move {
            if ending_signal().await.is_ok() {
                signals.is_aborting.store(true, Ordering::Relaxed);
            }
        });
        self.stop()
    }
}

fn share<D: Decode>(policy: Policy<D>, limits: Limits, store: Store) -> (Arc<Shared>, D, mpsc::Receiver<Order>) {
    let Policy { decoder, tokenizer, template, recalibration, facts } = policy;
    let (orders, receiver) = mpsc::channel();
    let shared = Shared {
        tokenizer: Arc::new(tokenizer),
        template,
        recalibration,
        facts,
        context_tokens: decoder.context_tokens(),
        store,
        metrics: Arc::default(),
        signals: Arc::default(),
        is_draining: AtomicBool::new(false),
        orders,
        places: Arc::new(Semaphore::new(limits.jobs_max.max(1))),
        limits,
    };
    (Arc::new(shared), decoder, receiver)
}

/// Serves until told to stop, drains, and lets the engine go.
async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    mut stopping: watch::Receiver<bool>,
    drain_time_max: Duration,
) {
    let (drain, draining) = watch::channel(false);
    let router = router(Arc::clone(&shared));
    let until_drain = {
        let mut draining = draining.clone();
        async move {
            let _ = draining.wait_for(|it| *it).await;
        }
    };
    let serving = axum::serve(listener, router).with_graceful_shutdown(until_drain).into_future();
    let watching = async {
        tokio::select! {
            () = shutdown => {}
            // The server itself was dropped when this fails.
            _ = stopping.wait_for(|it| *it) => {}
        }
        shared.is_draining.store(true, Ordering::Relaxed);
        let _ = drain.send(true);
        tokio::time::sleep(drain_time_max).await;
        shared.signals.is_aborting.store(true, Ordering::Relaxed);
        tokio::time::sleep(CLOSING).await;
    };
    tokio::select! {
        _ = serving => {}
        () = watching => {}
    }
    shared.signals.is_aborting.store(true, Ordering::Relaxed);
    let _ = shared.orders.send(Order::Stop);
}

fn listen_error(address: SocketAddr, source: std::io::Error) -> ServerError {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => ServerError::AddressInUse { address },
        _ => ServerError::Listen { address, source },
    }
}

/// Ends when the process is asked to end.
async fn ending_signal() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}
