//! Every way in which a checkpoint can fail to become a GGUF file.

use std::path::PathBuf;

use fsq_checkpoint::CheckpointError;
use fsq_gguf::GgufError;

/// A fault in what is to be merged, converted or encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The checkpoint or an adapter cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file cannot be written, or the importance not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A GGUF file was given where a checkpoint is needed.
    #[error(
        "{}: expected a checkpoint, found a GGUF file: adapters are merged into checkpoints only, because rounding to \
         the grid of a quantized file again would erase them",
        path.display()
    )]
    QuantizedBase {
        /// The file.
        path: PathBuf,
    },
    /// An adapter changes a module that the checkpoint does not have.
    #[error("adapter {adapter}: module `{module}` is not one of the checkpoint's")]
    UnknownModule {
        /// The adapter's number, from 1.
        adapter: usize,
        /// The module's path.
        module: String,
    },
    /// An adapter's matrices have another shape than the module.
    #[error("adapter {adapter}: module `{module}`: expected an update of [out, in] = {expected:?}, found {found:?}")]
    AdapterShape {
        /// The adapter's number, from 1.
        adapter: usize,
        /// The module's path.
        module: String,
        /// `[out, in]` of the module.
        expected: [usize; 2],
        /// `[out, in]` of the update.
        found: [usize; 2],
    },
    /// A weight that is infinite or no number.
    #[error("tensor `{tensor}`: expected finite weights, found {found} at row {row}, column {column}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The weight.
        found: f32,
        /// Where.
        row: usize,
        /// Where in the row.
        column: usize,
    },
    /// A weight that the format cannot hold.
    #[error("tensor `{tensor}`: expected weights that {format} can hold, found a magnitude of {found}")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The name of the format.
        format: &'static str,
        /// The largest magnitude.
        found: f32,
    },
    /// An override that names no matrix.
    #[error(
        "override `{pattern}`: expected the name of a matrix, such as `blk.0.attn_v.weight`, found none of that name"
    )]
    UnknownTensor {
        /// The pattern as given.
        pattern: String,
    },
    /// An override whose format does not divide the rows.
    #[error(
        "override of tensor `{tensor}`: expected rows of a multiple of {expected} weights for {format}, found {found}"
    )]
    OverrideRow {
        /// The tensor.
        tensor: String,
        /// The name of the format.
        format: &'static str,
        /// Weights per block.
        expected: usize,
        /// Weights per row.
        found: usize,
    },
    /// Importance for another number of columns than the tensor has.
    #[error("importance of tensor `{tensor}`: expected {expected} columns, found {found}")]
    ImportanceColumns {
        /// The tensor.
        tensor: String,
        /// The tensor's columns.
        expected: usize,
        /// The importance's.
        found: usize,
    },
    /// Importance that is negative, infinite or no number.
    #[error("importance of tensor `{tensor}`: expected numbers from 0, found {found} at column {column}")]
    ImportanceValue {
        /// The tensor.
        tensor: String,
        /// The number.
        found: f32,
        /// Where.
        column: usize,
    },
    /// A plan that cannot be read.
    #[error("{}: {found}", path.display())]
    PlanFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// Fewer bytes than the smallest formats take.
    #[error("size of the file: expected at least {expected} bytes, found {found}")]
    Budget {
        /// What the file takes at least.
        expected: u64,
        /// What it may take.
        found: u64,
    },
    /// Mean products of columns that cannot be some.
    #[error("moments of `{tensor}`: expected {expected}, found {found}")]
    Moments {
        /// The tensor.
        tensor: String,
        /// What would have been right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A file of importance that is damaged, or is something else.
    #[error("{}: `{field}`: expected {expected}, found {found}", path.display())]
    ImportanceFile {
        /// The file.
        path: PathBuf,
        /// The key, tensor or number.
        field: String,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A file of importance that cannot be read.
    #[error("{}: {source}", path.display())]
    ImportanceRead {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A tokenizer that cannot be put into a GGUF file without changing what it does.
    #[error("tokenizer.json: `{field}`: expected {expected}, found {found}")]
    Tokenizer {
        /// The field.
        field: String,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A file beside `tokenizer.json` that cannot be read.
    #[error("{}: {source}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A SentencePiece model that is damaged, or that a GGUF file has no place for.
    #[error("{}: `{field}`: expected {expected}, found {found}", path.display())]
    SentencePiece {
        /// The file.
        path: PathBuf,
        /// The field of the message.
        field: &'static str,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A checkpoint that lacks an id that its files must name.
    #[error("{}: expected `{field}` in config.json, found none", path.display())]
    SpecialToken {
        /// The checkpoint.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// A size that a GGUF file cannot hold.
    #[error("`{field}`: expected at most 4294967295, found {found}")]
    Size {
        /// The key.
        field: String,
        /// The number.
        found: usize,
    },
}
