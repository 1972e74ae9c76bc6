//! The server as its clients see it, over loopback, with a scripted decoder in place of a policy.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod chat;
mod client;
mod completion;
mod foresight;
mod hostile;
mod keys;
mod lifecycle;
mod reading;
mod responses;
mod scripted;
#[cfg(feature = "tls")]
mod tls;
mod tools;
