//! What can go wrong between a GGUF file, a request and the logits.

use fsq_gguf::FieldError;
use fsq_kernels::KernelError;

use crate::{AdapterId, SequenceId, TokenId};

/// A file that cannot be run, a request that cannot be served, or a device that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file has no chat template, so turns cannot be laid out.
    #[error("metadata `{key}`: expected a chat template, found nothing")]
    NoChatTemplate {
        /// The missing key.
        key: &'static str,
    },
    /// A metadata field is absent or of another type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A metadata field has a value that cannot be run.
    #[error("metadata `{field}`: expected {expected}, found {found}")]
    Metadata {
        /// The key.
        field: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A tensor is absent.
    #[error("tensor `{name}`: not in the file")]
    MissingTensor {
        /// Its GGUF name.
        name: String,
    },
    /// A tensor has another shape than the metadata says.
    #[error("tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    TensorShape {
        /// Its GGUF name.
        name: String,
        /// `[rows, columns]` or `[width]`.
        expected: Vec<usize>,
        /// As in the file.
        found: Vec<usize>,
    },
    /// A tensor holds a number that cannot be computed with.
    #[error("tensor `{name}`: expected {expected}, found {found}")]
    TensorValue {
        /// Its GGUF name.
        name: String,
        /// What its numbers must be.
        expected: String,
        /// What one of them is.
        found: String,
    },
    /// The pre-tokenizer tag is one whose splitting rule is not known.
    #[error("tokenizer.ggml.pre `{found}`: not a known pre-tokenizer; known are {}", known.join(", "))]
    UnknownPreTokenizer {
        /// The tag in the file.
        found: String,
        /// The tags that would have worked.
        known: Vec<&'static str>,
    },
    /// A tokenizer that cannot be built.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// Why.
        reason: String,
    },
    /// A chat template that does not compile or does not render.
    #[error("chat template: {reason}")]
    ChatTemplate {
        /// Why, in the template's own words where it raised the error itself.
        reason: String,
    },
    /// A step names a token beyond the vocabulary.
    #[error("token {token}: the vocabulary has {vocab} entries")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// A sequence that is not open.
    #[error("sequence {}: not open", sequence.0)]
    UnknownSequence {
        /// The sequence.
        sequence: SequenceId,
    },
    /// Two steps of one batch extend the same sequence.
    #[error("sequence {}: named by two steps of one batch", sequence.0)]
    SequenceTwice {
        /// The sequence.
        sequence: SequenceId,
    },
    /// A step without tokens, or a request without a prompt.
    #[error("a step or prompt has no tokens")]
    EmptyStep,
    /// A continuation without tokens: there is nothing to score.
    #[error("continuation {index}: has no tokens")]
    EmptyContinuation {
        /// Its place among those given, from 0.
        index: usize,
    },
    /// A request for no tokens.
    #[error("max_tokens is 0: there is nothing to generate")]
    NothingToGenerate,
    /// An adapter place that is empty.
    #[error("adapter {}: not loaded", adapter.0)]
    UnknownAdapter {
        /// The place.
        adapter: AdapterId,
    },
    /// An adapter that does not fit the policy.
    #[error("adapter module `{module}`: expected {expected}, found {found}")]
    Adapter {
        /// Hugging Face path of the module.
        module: String,
        /// What would fit.
        expected: String,
        /// What the adapter holds.
        found: String,
    },
    /// A sequence would grow past the context.
    #[error("context: {needed} tokens are needed, {context_tokens} fit")]
    ContextFull {
        /// Tokens of the sequence after the step.
        needed: usize,
        /// Tokens that fit.
        context_tokens: usize,
    },
    /// All KV pages are in use.
    #[error("KV cache: {needed} pages are needed, {free} are free")]
    OutOfPages {
        /// Pages that the batch needs on top.
        needed: usize,
        /// Pages that are free.
        free: usize,
    },
    /// The device or one of its kernels failed.
    #[error(transparent)]
    Device(#[from] KernelError),
}
