//! The stages: each takes a policy and hands one on.

pub mod base;
mod schedule;

pub use schedule::Schedule;
