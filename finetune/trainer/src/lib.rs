//! Trainable forward, LoRA and the three stages.
//!
//! The graph is candle's; every fused operation in it is ours and has a backward. Episodes are never sampled by
//! this forward: the serving runtime plays them, this crate only learns from them.

mod autograd;
pub mod batch;
pub mod data;
mod error;
mod frozen;
mod grid;
mod lora;
pub mod optimizer;
pub mod policy;
pub mod recipe;
pub mod stages;
pub mod text;
pub mod vocabulary;

pub use autograd::{Confidence, TokenLoss};
pub use batch::{Batch, Sequence};
pub use error::TrainError;
pub use grid::Grid;
pub use lora::LoraConfig;
pub use optimizer::{AdamW, AdamWConfig, GradientSums};
pub use policy::{TRAINABLE, TrainablePolicy};
pub use recipe::{Recipe, RecipeError};
pub use vocabulary::Vocabulary;
