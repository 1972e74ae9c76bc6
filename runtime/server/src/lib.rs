//! Serves one policy over HTTP: OpenAI-compatible chat, foresight with several candidate plans, and outcomes.
//!
//! It takes a loaded decoder, tokenizer, chat template and recalibration map from its caller and knows nothing
//! of files with weights. What a policy states leaves as `stated`; only the recalibration map makes an `estimate`.
//!
//! | module | holds |
//! |---|---|
//! | `server` | start, listen, drain, stop; the limits |
//! | `routes` | the table of routes and what guards all of them |
//! | `chat` `foresight` `outcomes` | one route each (`outcomes`: two) |
//! | `fields` `refusal` | typed reading of JSON bodies, and the error body |
//! | `prompt` | messages to tokens, so that no text can forge a turn |
//! | `worker` `sample` `confidence` | the thread that owns the engine; one answer's text; reading of the grid |
//! | `plan` | an answer's text as foresight: stated, estimate, prediction |
//! | `store` | predictions and outcomes, in memory and on disk |
//! | `metrics` | counters in Prometheus' text format |

#![forbid(unsafe_code)]

mod chat;
mod confidence;
mod error;
mod fields;
mod foresight;
mod metrics;
mod outcomes;
mod plan;
mod prompt;
mod refusal;
mod routes;
mod sample;
mod server;
mod store;
mod worker;

#[cfg(test)]
mod tests;

pub use confidence::GridAnswers;
pub use error::ServerError;
pub use server::{GateFacts, Limits, Options, Policy, PolicyFacts, Server};
