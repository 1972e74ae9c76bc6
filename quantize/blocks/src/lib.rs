//! Weight formats as bytes, each with its scalar reference; knows no files and no models.
//!
//! A *format* says how a run of weights becomes a *block* of bytes, exactly as it lies in a GGUF file.
//! [`Format`] is the table of all of them, [`BlockFormat`] what each must be able to do, and
//! [`activations`] holds the blocks that a row of activations is rounded to before a quantized dot product.
//!
//! Layouts and the plain encoders follow `ggml-common.h` and `quantize_row_*_ref` in `ggml-quants.c`, the
//! encoders guided by importance follow `quantize_*_impl`: operations happen in the same order in `f32`,
//! so that the bytes are equal on machines that do not contract multiplications and additions.
//!
//! A weight that is not finite never panics, but what its block decodes to is not specified; who encodes a file
//! refuses such weights before. A block whose scale is too large for `f16` (a weight beyond about 65504 times
//! the number of levels) decodes to infinity or NaN.
#![forbid(unsafe_code)]

pub mod activations;
mod block;
mod block_of_32;
mod codebook;
pub mod coded;
mod descent;
mod format;
pub mod formats;
mod nibbles;
mod search;
mod super_block;

pub use block::{Activation, BlockFormat, ColumnImportance, Half};
pub use format::{Format, FormatVisitor};
