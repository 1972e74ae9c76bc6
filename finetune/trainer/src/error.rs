//! Every way in which training can fail.

use std::path::PathBuf;

/// A fault in training; each variant names what was expected and found.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The graph refused an operation.
    #[error("training graph: {0}")]
    Graph(#[from] candle_core::Error),
    /// A checkpoint or adapter is at fault.
    #[error(transparent)]
    Checkpoint(#[from] fsq_checkpoint::CheckpointError),
    /// The merge refused.
    #[error(transparent)]
    Quantize(#[from] fsq_quantizer::QuantizeError),
    /// A GGUF file is at fault.
    #[error(transparent)]
    Gguf(#[from] fsq_gguf::GgufError),
    /// The runtime refused.
    #[error(transparent)]
    Model(#[from] fsq_model::ModelError),
    /// A user's environment cannot go on.
    #[error(transparent)]
    Environment(#[from] fsq_environments::ProcessError),
    /// Episodes could not be played.
    #[error(transparent)]
    Episode(#[from] fsq_episodes::EpisodeError),
    /// The graph was cut: a trained tensor got no gradient.
    #[error("trained tensor `{0}` got no gradient")]
    NoGradient(String),
    /// The confidence token cannot be trained exactly with this tokenizer.
    #[error("tokenizer: expected one token for each of the 21 grid answers, found answers of several tokens")]
    GridTokens,
    /// A policy that the trainable forward cannot compute.
    #[error("training {architecture}: expected {expected}, found {found}")]
    Architecture {
        /// `model_type` of its `config.json`.
        architecture: &'static str,
        /// What can be trained.
        expected: &'static str,
        /// What the trainable forward does not have.
        found: &'static str,
    },
    /// A setting of a run that cannot be trained.
    #[error("{field}: expected {expected}, found {found}")]
    Config {
        /// The setting's key.
        field: String,
        /// What can be trained.
        expected: String,
        /// What is set.
        found: String,
    },
    /// A quantized file that cannot be trained over.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Grid {
        /// The file.
        path: PathBuf,
        /// Its tensor or key.
        field: String,
        /// What the checkpoint needs.
        expected: String,
        /// What it has.
        found: String,
    },
    /// Records that cannot be used.
    #[error("{first} ({n} such lines, all of them in {})", path.display())]
    Rejects {
        /// The first of them.
        first: String,
        /// How many there are.
        n: usize,
        /// Where all of them are.
        path: PathBuf,
    },
    /// The tokenizer refused.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// An adapter does not cover a module that it must.
    #[error("adapter: module `{0}` is missing")]
    MissingModule(String),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The loss is no number any more.
    #[error("step {step}: loss is {loss}; the last whole checkpoint is kept")]
    NotFinite {
        /// Optimizer steps done.
        step: usize,
        /// What the loss was.
        loss: f32,
    },
    /// A saved state does not fit the run.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        field: String,
        /// What the run needs.
        expected: String,
        /// What is saved.
        found: String,
    },
}
