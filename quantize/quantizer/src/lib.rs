//! Checkpoint to GGUF: merge, importance, allocation, encode; never runs a model.
//!
//! [`quantize`] streams a checkpoint with its adapters merged through [`fsq_gguf::Draft`], one tensor at a time.
//! [`Plan`] says which tensor gets which format, [`Importance`] which columns matter, [`Provenance`] where all of it
//! came from. [`write_adapter`] writes an adapter beside its base instead of merging it. Nothing here takes a GGUF file
//! as the base of a merge: see [`open_base`].

mod adapter;
mod audit;
mod budget;
mod codes;
mod convert;
mod digest;
mod encode;
mod error;
mod feedback;
mod growing;
mod importance;
mod merge;
mod moments;
mod plan;
mod plan_file;
mod provenance;
mod raise;
mod sensitivity;
mod tokenizer;

pub use adapter::write_adapter;
pub use audit::f16_underflow;
pub use codes::{Codes, Probe, probe};
pub use encode::{Encoded, EncodedTensor, file_bytes, quantize};
pub use error::QuantizeError;
pub use growing::Target;
pub use importance::{Importance, InputSquares};
pub use merge::{check_adapters, merge_to_checkpoint, merged_tensor, open_base};
pub use moments::{Moments, MomentsByTensor};
pub use plan::{Allocation, Mix, Plan};
pub use plan_file::{plan_text, read_plan};
pub use provenance::{Deploy, Provenance, adapter_sha256};
pub use raise::raise;
pub use sensitivity::{Loss, Sensitivities, Sensitivity};
