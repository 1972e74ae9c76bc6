//! Runs a policy: forward pass over any backend, KV pages, adapters, tokenizer, chat template, sampler, engine.
//!
//! One runtime serves requests, plays episodes in training and answers the gates. It knows nothing of HTTP,
//! environments or training.

mod adapter_file;
mod adjust;
mod batch;
mod buffers;
mod chat;
mod choices;
mod config;
mod decode;
mod decoder;
mod engine;
mod error;
mod experts;
mod generate;
mod observe;
mod pages;
mod policy;
mod prefixes;
mod rotary;
mod sampler;
mod scheduler;
mod tokenizer;
mod weights;

#[cfg(test)]
mod decoder_tests;
#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod scheduler_tests;

pub use adapter_file::read_adapter;
pub use adjust::{Adjustments, Constrain, Constraint};
pub use chat::{ChatTemplate, Message, Surroundings, Turn, is_plain};
pub use choices::Choices;
pub use config::read as read_dimensions;
pub use decode::{AdapterId, Decode, Logits, LogitsFor, SequenceId, Step, TokenId};
pub use decoder::{Decoder, DecoderOptions};
pub use engine::{Drafts, Engine, EngineEvent, Finish, Request};
pub use error::ModelError;
pub use fsq_kernels::KvFormat;
pub use generate::{Completion, generate_batch, score_continuations};
pub use observe::{ColumnSums, Observing};
pub use policy::LoadedPolicy;
pub use sampler::{Sampled, Sampler, Sampling, log_softmax};
pub use scheduler::{EngineOptions, RequestId};
pub use tokenizer::{Part, Special, TextStream, Tokenizer};
