//! Starting, listening, draining and stopping.

use std::future::{Future, pending};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fsq_model::{ChatTemplate, Decode, ModelError, TokenId, Tokenizer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, watch};

use crate::ServerError;
use crate::answer::now_s;
use crate::audit::Audit;
use crate::drift::{Drift, Told};
use crate::grammar::Grammars;
use crate::keys::Keyring;
use crate::listen::{self, Patience};
use crate::metrics::Metrics;
use crate::options::{Limits, Options, Policy, PolicyFacts};
use crate::refusal::Refusal;
use crate::routes::{ADMIN_ROUTES, ROUTES, router};
use crate::store::Store;
use crate::tls::Tls;
use crate::worker::{Draw, Event, Job, Order, Signals, Worker};

/// How long connections may take to close after their answers are cut off at the end of a drain.
const CLOSING: Duration = Duration::from_secs(2);

/// Requests whose texts are taken apart at a time: that takes some fifty times the memory of a text.
const READERS: usize = 2;
/// How much shorter a text may become before it is taken apart: three letters of Korean become one.
const SHRINKING: usize = 4;

/// What every route sees.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: ChatTemplate,
    pub(crate) grammars: Grammars,
    /// Where estimates come from.
    pub(crate) drift: Drift,
    pub(crate) facts: PolicyFacts,
    pub(crate) limits: Limits,
    pub(crate) keyring: Option<Arc<Keyring>>,
    audit: Option<Arc<Audit>>,
    logs_requests: bool,
    pub(crate) has_page: bool,
    /// Longest sequence.
    pub(crate) context_tokens: usize,
    /// Entries of the decoder's vocabulary.
    pub(crate) vocab: usize,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) is_draining: AtomicBool,
    /// Seconds since 1970.
    pub(crate) started_s: u64,
    /// Told true, the server drains and ends.
    pub(crate) stop: watch::Sender<bool>,
    orders: mpsc::Sender<Order>,
    places: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    /// Bytes of a text that may just fit into a sequence.
    text_bytes_max: usize,
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

    /// Tells who asked what for, and how it went, to whoever listens.
    ///
    /// # Errors
    /// When the audit log cannot be written.
    pub(crate) fn log_request(&self, details: Value) -> Result<(), ServerError> {
        if self.logs_requests {
            // With standard error gone there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "{details}");
        }
        self.audit.as_ref().map_or(Ok(()), |it| it.add("request", details, false))
    }

    /// Puts on the audit log what an administrator did.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn record(&self, event: &str, details: Value) -> Result<(), ServerError> {
        self.audit.as_ref().map_or(Ok(()), |it| it.add(event, details, true))
    }

    /// Reads a request where that may take long, as a text of megabytes does, beside the others and not before them.
    pub(crate) async fn read_beside<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let failed = || Refusal::internal("the request could not be read");
        let place = Arc::clone(&self.readers).acquire_owned().await.map_err(|_| failed())?;
        let shared = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || {
            // Kept when the client leaves: what it asked for is being read all the same.
            let _place = place;
            read(&shared)
        });
        reading.await.unwrap_or_else(|_| Err(failed()))
    }

    /// Refuses a text that cannot fit, before it is taken apart.
    pub(crate) fn check_text(&self, n_bytes: usize) -> Result<(), Refusal> {
        if n_bytes <= self.text_bytes_max {
            return Ok(());
        }
        let message = format!("context: {n_bytes} bytes of text are more than {} tokens can hold", self.context_tokens);
        Err(Refusal::invalid("context_length_exceeded", message))
    }

    /// Hands the prompts of a request to the engine. They end when the receiver is dropped, as it is where one of
    /// them is refused. Answers are numbered through, prompt after prompt.
    pub(crate) fn submit(&self, asks: Vec<Ask>) -> Result<UnboundedReceiver<Event>, Refusal> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(Refusal::unavailable("draining", "the server is stopping"));
        }
        let (events, receiver) = unbounded_channel();
        let mut first_index = 0;
        for ask in asks {
            let n_draws = ask.draws.len();
            self.submit_one(ask, first_index, events.clone())?;
            first_index += n_draws;
        }
        Ok(receiver)
    }

    fn submit_one(&self, ask: Ask, first_index: usize, events: UnboundedSender<Event>) -> Result<(), Refusal> {
        let longest = ask.draws.iter().map(|it| it.beginning.1.len()).max().unwrap_or(0);
        let needed = ask.prompt.len() + longest + 1;
        if needed > self.context_tokens {
            let message = format!("context: {needed} tokens are needed, {} fit", self.context_tokens);
            return Err(Refusal::invalid("context_length_exceeded", message));
        }
        let full = |_| Refusal::queue_full(self.limits.jobs_max);
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(full)?;
        let Ask { prompt, draws, tokens_max, stop_texts, top_logprobs } = ask;
        let now = Instant::now();
        let (deadline, queue_deadline) = (now + self.limits.request_time_max, now + self.limits.queue_time_max);
        let job = Job {
            prompt,
            draws,
            first_index,
            tokens_max,
            stop_texts,
            top_logprobs,
            begun: now,
            deadline,
            queue_deadline,
            events,
            place,
        };
        let gone = |_| Refusal::unavailable("engine_stopped", "the engine has stopped");
        self.orders.send(Order::Run(Box::new(job))).map_err(gone)
    }
}

/// A server that runs on threads of its own until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    admin: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    signals: Arc<Signals>,
    keyring: Option<Arc<Keyring>>,
    tls: Option<Arc<Tls>>,
    audit: Option<Arc<Audit>>,
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
        let Options { address, outcomes, keys, audit, logs_requests, has_page, draft_rows_max, tls, admin, limits } =
            options;
        if !address.ip().is_loopback() && keys.is_none() {
            return Err(ServerError::NotLoopback { address });
        }
        if let Some(address) = admin.filter(|it| !it.ip().is_loopback()) {
            return Err(ServerError::AdminNotLoopback { address });
        }
        let tls = tls.map(Tls::open).transpose()?.map(Arc::new);
        let keyring = keys.as_deref().map(Keyring::open).transpose()?.map(Arc::new);
        let (tokenizer, decoder) = (policy.tokenizer.vocab(), policy.decoder.vocab());
        if tokenizer > decoder {
            return Err(ServerError::Vocabulary { tokenizer, decoder });
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let bind = |address: SocketAddr| {
            let bound = runtime.block_on(TcpListener::bind(address));
            let bound = bound.and_then(|it| Ok((it.local_addr()?, it)));
            bound.map_err(|it| listen_error(address, it))
        };
        let (address, listener) = bind(address)?;
        let (admin, admin_listener) = admin.map(bind).transpose()?.unzip();
        let store = Store::open(outcomes.as_deref(), &policy.facts.digest)?;
        let audit = audit.as_deref().map(Audit::open).transpose()?.map(Arc::new);
        let door = Door { keyring: keyring.clone(), audit: audit.clone(), logs_requests, has_page };
        door.record_start(address, &policy.facts)?;
        let (stop, stopping) = watch::channel(false);
        let (shared, decoder, orders) = share(policy, limits, store, door, stop.clone());
        let signals = Arc::clone(&shared.signals);
        let (tokenizer, metrics) = (Arc::clone(&shared.tokenizer), Arc::clone(&shared.metrics));
        let worker = Worker::new(decoder, draft_rows_max, tokenizer, metrics, Arc::clone(&signals));
        let engine = std::thread::Builder::new().name("fsq-engine".to_string()).spawn(move || worker.run(&orders))?;
        let serving = runtime.spawn(run((listener, tls.clone()), admin_listener, shared, shutdown, stopping));
        Ok(Self { address, admin, stop, signals, keyring, tls, audit, serving, engine, runtime })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the listener for administration is, if there is one.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Takes no more requests, waits until the running ones have ended or the drain time is over, and ends.
    ///
    /// # Errors
    /// [`ServerError::Engine`] when the device had failed.
    pub fn stop(self) -> Result<(), ServerError> {
        self.stop.send_replace(true);
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
        if let Some(audit) = &self.audit {
            audit.add("stop", json!({}), true)?;
        }
        match self.engine.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ServerError::Engine { reason: error.to_string() }),
            Err(_) => Err(ServerError::Engine { reason: "its thread panicked".to_string() }),
        }
    }

    /// Serves until the process is asked to end (SIGINT, SIGTERM, the administration), then drains; a second signal
    /// cuts that short. SIGHUP reads keys and certificates again, and `told` hears how that went, of each.
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub fn run_until_signal(
        self,
        told: impl Fn(Result<String, ServerError>) + Send + 'static,
    ) -> Result<(), ServerError> {
        if self.keyring.is_some() || self.tls.is_some() {
            let (keyring, tls) = (self.keyring.clone(), self.tls.clone());
            self.runtime.spawn(reload_at_signal(keyring, tls, self.audit.clone(), told));
        }
        let mut stopping = self.stop.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                ended = ending_signal() => ended,
                _ = stopping.wait_for(|it| *it) => Ok(()),
            }
        })?;
        let signals = Arc::clone(&self.signals);
        self.runtime.spawn(async move {
            if ending_signal().await.is_ok() {
                signals.is_aborting.store(true, Ordering::Relaxed);
            }
        });
        self.stop()
    }
}

/// Who is let in, what they are shown, and who is told of it.
struct Door {
    keyring: Option<Arc<Keyring>>,
    audit: Option<Arc<Audit>>,
    logs_requests: bool,
    has_page: bool,
}

impl Door {
    /// Puts on record what is served from here on, and to whom.
    fn record_start(&self, address: SocketAddr, facts: &PolicyFacts) -> Result<(), ServerError> {
        let Some(audit) = &self.audit else { return Ok(()) };
        let gate = facts.gate.as_ref().map(|it| json!({"verdict": it.verdict, "profile": it.profile}));
        let keys = self.keyring.as_ref().map(|it| it.names());
        let details = json!({
            "version": env!("CARGO_PKG_VERSION"), "address": address.to_string(), "model": facts.name,
            "digest": facts.digest, "gate": gate, "keys": keys,
        });
        audit.add("start", details, true)
    }
}

fn share<D: Decode>(
    policy: Policy<D>,
    limits: Limits,
    (store, told): (Store, Vec<Told>),
    door: Door,
    stop: watch::Sender<bool>,
) -> (Arc<Shared>, D, mpsc::Receiver<Order>) {
    let Policy { decoder, tokenizer, template, recalibration, facts } = policy;
    let (orders, receiver) = mpsc::channel();
    let lengths = (0..tokenizer.vocab() as TokenId).filter_map(|it| tokenizer.token_bytes(it)).map(<[u8]>::len);
    let text_bytes_max = decoder.context_tokens().saturating_mul(lengths.max().unwrap_or(1) * SHRINKING);
    let tokenizer = Arc::new(tokenizer);
    let shared = Shared {
        grammars: Grammars::new(Arc::clone(&tokenizer), decoder.vocab()),
        tokenizer,
        template,
        drift: Drift::new(recalibration, &told),
        facts,
        keyring: door.keyring,
        audit: door.audit,
        logs_requests: door.logs_requests,
        has_page: door.has_page,
        context_tokens: decoder.context_tokens(),
        vocab: decoder.vocab(),
        store,
        metrics: Arc::default(),
        signals: Arc::default(),
        is_draining: AtomicBool::new(false),
        started_s: now_s(),
        stop,
        orders,
        places: Arc::new(Semaphore::new(limits.jobs_max.max(1))),
        readers: Arc::new(Semaphore::new(READERS)),
        text_bytes_max,
        limits,
    };
    (Arc::new(shared), decoder, receiver)
}

/// Serves until told to stop, drains, and lets the engine go.
async fn run(
    (listener, tls): (TcpListener, Option<Arc<Tls>>),
    admin: Option<TcpListener>,
    shared: Arc<Shared>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    mut stopping: watch::Receiver<bool>,
) {
    let (drain, draining) = watch::channel(false);
    let Limits { connections_max, header_time_max, write_time_max, drain_time_max, .. } = shared.limits;
    let patience = Patience { connections_max, header_time_max, write_time_max };
    let routes = router(Arc::clone(&shared), ROUTES);
    let serving = listen::serve(listener, tls, routes, patience, draining.clone());
    let routes = router(Arc::clone(&shared), ADMIN_ROUTES);
    let administering = async {
        if let Some(listener) = admin {
            listen::serve(listener, None, routes, patience, draining).await;
        }
    };
    let serving = async { tokio::join!(serving, administering) };
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

/// Reads keys and certificates again whenever the process is told to.
async fn reload_at_signal(
    keyring: Option<Arc<Keyring>>,
    tls: Option<Arc<Tls>>,
    audit: Option<Arc<Audit>>,
    told: impl Fn(Result<String, ServerError>),
) {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        // Where that cannot be written, requests are refused from here on.
        let record = |what: &str, read: &Result<String, ServerError>, found: Value| {
            let details = read.as_ref().map_or_else(|it| json!({"error": it.to_string()}), |_| found);
            audit.as_ref().map_or(Ok(()), |it| it.add(what, details, true))
        };
        while hangup.recv().await.is_some() {
            if let Some(keyring) = &keyring {
                let read = keyring.reload().map(|n| format!("keys read again: {n}"));
                let written = record("keys", &read, json!({"keys": keyring.names()}));
                told(written.and(read));
            }
            if let Some(tls) = &tls {
                let read = tls.reload().map(|()| "certificates read again".to_owned());
                let written = record("certificates", &read, json!({}));
                told(written.and(read));
            }
        }
    }
    #[cfg(not(unix))]
    drop((keyring, tls, audit, told));
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
