//! A policy's files on disk, in Hugging Face and PEFT layout, and the one description of each architecture.
//!
//! The converter, the trainer and the runtime all read names and shapes from [`architecture`], so a
//! tensor is named in one place only. This crate knows nothing of GGUF files, kernels or training.

pub mod adapter;
pub mod architecture;
pub mod checkpoint;
mod config;
pub mod dimensions;
mod error;
pub mod rope;
mod safetensors_file;

pub use adapter::{Adapter, LoraPair};
pub use architecture::{Activation, Architecture, Description, Linear, Module, TensorName};
pub use architecture::{expert_matrices, modules, tensor_names};
pub use checkpoint::{Checkpoint, CheckpointFiles, NamedTensor, StoredType};
pub use dimensions::{Biases, Dimensions, Experts, Options, Sliding};
pub use error::CheckpointError;
pub use rope::{RopeScaling, Turning};
