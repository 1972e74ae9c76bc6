//! Reads and writes GGUF files; knows no model.
//!
//! [`Gguf::open`] maps a file of version 2 or 3, or all parts of a split one, and proves all of it (every length, type,
//! offset and shape) before it hands out the first view, so that whoever holds a [`TensorView`] need not check again.
//! [`Survey`] shows what a damaged file still says, [`flaws`] what a sound one should not have.
//! [`Draft`] writes version 3 under a temporary name in the same folder; [`FinishedDraft::publish`] gives it its real
//! one.
//!
//! Whoever opens a file trusts nothing in it: a header never takes more than four times its bytes of memory, besides
//! 320 bytes for each tensor and entry that it tells of. See `tests/hostile/README.md` for what is tried.
//!
//! Layout: `docs/gguf.md` of the ggml repository. Numbers are little endian.

mod cursor;
mod error;
mod flaws;
mod header;
mod memory;
mod metadata;
mod part;
mod reader;
mod split;
mod survey;
mod write_back;
mod writer;

pub use error::{FieldError, GgufError};
pub use flaws::{Flaw, flaws};
pub use header::ToldTensor;
pub use metadata::{Array, FromValue, Metadata, Value};
pub use part::Part;
pub use reader::{Gguf, TensorInfo, TensorView};
pub use survey::Survey;
pub use writer::{Digests, Draft, FinishedDraft, TensorSpec, file_bytes, rewrite_metadata};

/// What a file begins with.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written. Version 2 has the same layout; version 1 had 32-bit lengths and is not read.
pub(crate) const VERSION: u32 = 3;
/// The alignment of tensors in files that do not name one.
pub const ALIGNMENT_DEFAULT: u32 = 32;
/// The key that names another.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
/// The largest alignment that is believed: a page of the largest kind in use.
pub(crate) const ALIGNMENT_MAX: u32 = 1 << 16;
/// Bytes of a metadata key, by the specification.
pub(crate) const KEY_BYTES_MAX: u64 = 65_535;
/// Bytes of a tensor's name: `GGML_MAX_NAME` less the terminating zero.
pub(crate) const TENSOR_NAME_BYTES_MAX: u64 = 63;
/// Dimensions of a tensor: `GGML_MAX_DIMS`.
pub(crate) const DIMENSIONS_MAX: u32 = 4;
/// Arrays in arrays: no file in use nests more than two deep.
pub(crate) const NESTING_MAX: u32 = 4;
/// Bytes of a header: three times the largest in use, which tells 262,144 tokens and half a million merges.
pub(crate) const HEADER_BYTES_MAX: usize = 1 << 26;
/// Metadata entries: a hundred times what the converters write.
pub(crate) const ENTRIES_MAX: u64 = 1 << 14;
/// Tensors: more than twice those of the largest policies with a tensor for each expert.
pub(crate) const TENSORS_MAX: u64 = 1 << 17;
