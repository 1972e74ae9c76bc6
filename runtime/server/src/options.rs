//! What a server serves, where and how, and what clients may ask for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use fsq_calibrate::gates::Confidence;
use fsq_calibrate::recalibration::RecalibrationMaps;
use fsq_calibrate::stored::StoredThreshold;
use fsq_model::{ChatTemplate, Tokenizer};

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
    /// From which estimate on plans may be followed, by environment, and `None` for the map over all of them.
    pub thresholds: BTreeMap<Option<String>, StoredThreshold>,
}

/// What gates said about a file.
#[derive(Clone, Debug, PartialEq)]
pub struct GateFacts {
    /// `pass`, `fail` or `inconclusive`.
    pub verdict: String,
    /// The profile judged by.
    pub profile: String,
}

/// Files of TLS, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities one of which must have signed every client's certificate; `None` asks clients for none.
    pub client_authority: Option<PathBuf>,
}

/// Where and how to serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// A loopback address unless there are keys; port 0 takes any free one.
    pub address: SocketAddr,
    /// The outcome file, made when it is not there; `None` keeps outcomes in memory only.
    pub outcomes: Option<PathBuf>,
    /// The file of keys, see [`crate::KeyFile`]; `None` serves whoever is on this machine.
    pub keys: Option<PathBuf>,
    /// The audit log, made when it is not there; `None` keeps none.
    pub audit: Option<PathBuf>,
    /// Whether each request is a line of JSON on standard error, without what was asked or answered.
    pub logs_requests: bool,
    /// Whether there is a web page at `/`.
    pub has_page: bool,
    /// Rows up to which a forward pass is filled with drafts of what may come next; 0 for none. Answers are the same.
    pub draft_rows_max: usize,
    /// Speak TLS with clients; `None` speaks plain HTTP. Administration is plain: it stays on this machine.
    pub tls: Option<TlsFiles>,
    /// Where a listener of its own for administration is; a loopback address.
    pub admin: Option<SocketAddr>,
    /// What clients may ask for.
    pub limits: Limits,
}

impl Options {
    /// On this machine only, at this port, with outcomes in memory and the usual limits.
    #[must_use]
    pub fn loopback(port: u16) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            address,
            outcomes: None,
            keys: None,
            audit: None,
            logs_requests: false,
            has_page: false,
            draft_rows_max: 0,
            tls: None,
            admin: None,
            limits: Limits::default(),
        }
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
    /// From a request's body to its first place in the batch; above it the answer is 429.
    pub queue_time_max: Duration,
    /// Requests that run or wait; above it the answer is 429.
    pub jobs_max: usize,
    /// Connections at a time; further clients wait to be accepted.
    pub connections_max: usize,
    /// For a request's head to arrive, and between two requests of a connection.
    pub header_time_max: Duration,
    /// For a client to take any byte of its answer.
    pub write_time_max: Duration,
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
            queue_time_max: Duration::from_secs(120),
            jobs_max: 64,
            connections_max: 512,
            header_time_max: Duration::from_secs(10),
            write_time_max: Duration::from_secs(30),
            drain_time_max: Duration::from_secs(30),
        }
    }
}
