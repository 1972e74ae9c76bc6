//! Serves one policy over HTTP: OpenAI-compatible chat and completions, foresight with several plans, and outcomes.
//!
//! It takes a loaded decoder, tokenizer, chat template and recalibration map from its caller and knows nothing
//! of files with weights. What a policy states leaves as `stated`; only the recalibration map makes an `estimate`.
//!
//! | module | holds |
//! |---|---|
//! | `server` `options` | start, listen, drain, stop; what is served and how, the limits |
//! | `listen` | connections: how many, how slow |
//! | `tls` | certificates of the listener, read again while it runs (a feature) |
//! | `routes` | the table of routes, what each asks for, and what guards all of them |
//! | `admin` | what the listener for administration has: keys, the policy, a way to stop |
//! | `page` | the web page, when asked for |
//! | `keys` `audit` | who may do what; who did |
//! | `chat` `completion` `foresight` `outcomes` `tokens` | one route each (the last two: two) |
//! | `responses` `events` | OpenAI's newer protocol, without memory, whole and in events |
//! | `asked` | fields that several of them take |
//! | `answer` `stream` | answers in the shapes of OpenAI's protocols, whole and in chunks |
//! | `fields` `refusal` | typed reading of JSON bodies, and the error body |
//! | `prompt` | messages to tokens, so that no text can forge a turn |
//! | `tools` `calls` | tools of a request; calls of them in an answer's text |
//! | `form` `grammar` | what answers are held to; which tokens that leaves (a feature) |
//! | `worker` `sample` `confidence` | the thread that owns the engine; one answer's text; reading of the grid |
//! | `plan` | an answer's text as foresight: stated, estimate, prediction |
//! | `store` | predictions and outcomes, in memory and on disk |
//! | `drift` | whether estimates still hold, from the outcomes told |
//! | `metrics` | counters in Prometheus' text format |

#![forbid(unsafe_code)]

mod admin;
mod answer;
mod asked;
mod audit;
mod calls;
mod chat;
mod completion;
mod confidence;
mod drift;
mod error;
mod events;
mod fields;
mod foresight;
mod form;
#[cfg(feature = "grammar")]
mod grammar;
#[cfg(not(feature = "grammar"))]
#[path = "grammar/absent.rs"]
mod grammar;
mod keys;
mod listen;
mod metrics;
mod options;
mod outcomes;
mod page;
mod plan;
mod prompt;
mod refusal;
mod responses;
mod routes;
mod sample;
mod server;
mod store;
mod stream;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
mod tls;
mod tokens;
mod tools;
mod worker;

#[cfg(test)]
mod tests;

pub use audit::{AuditSummary, verify_audit};
pub use confidence::GridAnswers;
pub use error::ServerError;
pub use keys::{Key, KeyFile, Scope};
pub use options::{GateFacts, Limits, Options, Policy, PolicyFacts, TlsFiles};
pub use server::Server;
