//! Plays a policy in an environment on the serving runtime, many episodes at once, and records what happened.
//!
//! The same code plays for training, for gates and for reports. Tokens go in and tokens come out: what the policy
//! wrote is never encoded again. This crate knows nothing of files, training or HTTP.

mod play;
mod protocol;
mod record;
mod stated;

pub use play::{PlayOptions, play, play_from};
pub use protocol::Protocol;
pub use record::{Episode, Format, PlayedStep, evaluation, records};
pub use stated::GridAnswers;

/// Why episodes could not be played.
#[derive(Debug, thiserror::Error)]
pub enum EpisodeError {
    /// The runtime refused.
    #[error(transparent)]
    Model(#[from] fsq_model::ModelError),
    /// The chat template does not let a conversation grow turn by turn.
    #[error("chat template: {0}")]
    Template(String),
    /// The environment cannot go on.
    #[error("{}", .0.error)]
    Environment(Box<Interrupted>),
}

/// What is left of a play in an environment that could not go on.
#[derive(Debug)]
pub struct Interrupted {
    /// Why not.
    pub error: fsq_environments::ProcessError,
    /// The episodes that had ended before, in the order of their tasks.
    pub finished: Vec<Episode>,
}
