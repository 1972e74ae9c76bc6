//! Every way in which reading or writing a policy's files can fail.

use std::path::PathBuf;

/// A fault in a checkpoint or adapter folder; each variant names the file and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field is absent or holds something else.
    #[error("{}: field `{field}`: expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A safetensors file is damaged.
    #[error("{}: not a whole safetensors file: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor of the architecture is absent.
    #[error("{}: tensor `{name}` is missing", path.display())]
    MissingTensor {
        /// The folder.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        name: String,
    },
    /// A tensor has another shape than its architecture says.
    #[error("{}: tensor `{name}`: expected shape {expected:?}, found {found:?}", path.display())]
    Shape {
        /// The folder.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        name: String,
        /// `[rows, columns]` by the architecture.
        expected: Vec<usize>,
        /// The stored shape.
        found: Vec<usize>,
    },
    /// The index names a tensor that its shard does not have.
    #[error("{}: tensor `{name}`: expected it in shard `{shard}`, found no such tensor there", path.display())]
    IndexedTensor {
        /// The index file.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        name: String,
        /// The shard as written.
        shard: String,
    },
    /// A shard's name leaves the checkpoint's folder.
    #[error("{}: shard `{shard}` lies outside the checkpoint's folder", path.display())]
    ShardPath {
        /// The index file.
        path: PathBuf,
        /// The name as written.
        shard: String,
    },
}

impl CheckpointError {
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn field(
        path: &std::path::Path,
        field: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Field { path: path.to_path_buf(), field: field.into(), expected: expected.into(), found: found.into() }
    }
}
