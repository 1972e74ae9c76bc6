//! Reads and writes GGUF files; knows no model.
//!
//! [`Gguf::open`] maps a file of version 2 or 3 and proves all of it (every length, type, offset and shape) before it
//! hands out the first view, so that whoever holds a [`TensorView`] need not check again. [`Draft`] writes
//! version 3 under a temporary name in the same folder; [`FinishedDraft::publish`] gives it its real one.
//!
//! Layout: `docs/gguf.md` of the ggml repository. Numbers are little endian.

mod cursor;
mod error;
mod memory;
mod metadata;
mod reader;
mod writer;

pub use error::{FieldError, GgufError};
pub use metadata::{Array, FromValue, Metadata, Value};
pub use reader::{Gguf, TensorInfo, TensorView};
pub use writer::{Draft, FinishedDraft, TensorSpec, rewrite_metadata};

/// What a file begins with.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written. Version 2 has the same layout; version 1 had 32-bit lengths and is not read.
pub(crate) const VERSION: u32 = 3;
/// The alignment of tensors in files that do not name one.
pub(crate) const ALIGNMENT_DEFAULT: u32 = 32;
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
