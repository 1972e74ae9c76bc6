//! Why a server cannot start or stop as asked. What is wrong with a single request is a `Refusal` instead.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A server that cannot listen, or a store that cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address can be reached from other machines.
    #[error(
        "listen address {address}: expected a loopback address such as 127.0.0.1, because there are no keys and anyone \
         would be served; hint: make one with `fsq serve keys add keys.json --name NAME --scope infer`, and start with \
         `--keys keys.json`"
    )]
    NotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The listener for administration could be reached from other machines.
    #[error(
        "administration address {address}: expected a loopback address such as 127.0.0.1; hint: reach it over SSH, or \
         from a container beside this one"
    )]
    AdminNotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// A certificate or a key of TLS cannot be used.
    #[error("TLS file `{path}`: {reason}")]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file of keys cannot be read or written.
    #[error("key file `{path}`: {source}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What a file of keys says, or is to say, is not right.
    #[error("key file `{path}`: {reason}")]
    KeyRow {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Someone else listens there.
    #[error(
        "listen address {address}: already in use; hint: stop the program that listens there, or choose another port \
         (0 takes any free one)"
    )]
    AddressInUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Listening failed for another reason.
    #[error("listen address {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The tokenizer can write tokens that the decoder does not have.
    #[error("tokenizer: expected at most the decoder's {decoder} tokens, found {tokenizer}")]
    Vocabulary {
        /// Entries of the tokenizer.
        tokenizer: usize,
        /// Entries of the decoder.
        decoder: usize,
    },
    /// A file of the outcome store cannot be opened, read or written.
    #[error("outcome file `{path}`: {source}")]
    StoreFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another process writes to the same outcome store.
    #[error("outcome file `{path}`: in use by another server; hint: give each server a file of its own")]
    StoreLocked {
        /// The file.
        path: PathBuf,
    },
    /// A line of the outcome store is not a record.
    #[error("outcome file `{path}`, line {line}: {reason}")]
    StoreLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// The audit log cannot be opened, read or written.
    #[error("audit log `{path}`: {source}")]
    AuditFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line of the audit log does not follow from the one before it.
    #[error("audit log `{path}`, line {line}: {reason}; it, or the line before it, is not as it was written")]
    AuditLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What was found.
        reason: String,
    },
    /// A thread or the event loop could not be started.
    #[error("server threads: {source}")]
    Threads {
        /// What the system says.
        #[from]
        source: std::io::Error,
    },
    /// The engine's device failed while the server ran.
    #[error("engine: {reason}")]
    Engine {
        /// In the device's own words.
        reason: String,
    },
}
