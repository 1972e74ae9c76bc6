//! The stages: each takes a policy and hands one on.

pub mod base;
mod events;
pub mod fc_rl;
pub mod further;
pub mod run;
mod schedule;
pub mod sft;
pub mod text;

pub use schedule::{Course, Schedule};
