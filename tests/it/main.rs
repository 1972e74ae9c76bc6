//! The whole program's tests, one binary: what spans crates, the tree itself, and other programs as oracles.
#![allow(clippy::print_stdout, reason = "what a test measured is worth a line")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic where it stands")]

mod adapters;
mod architectures;
mod arrows;
mod calibrate;
#[cfg(feature = "serve")]
mod chat;
mod cli;
#[cfg(feature = "train")]
mod codes;
mod compare;
#[cfg(all(feature = "train", feature = "serve"))]
mod demo;
mod docs;
#[cfg(all(target_os = "linux", feature = "train"))]
mod environments;
#[cfg(unix)]
#[path = "../fuzz/bodies.rs"]
mod fuzz_bodies;
#[cfg(feature = "train")]
mod gates;
#[cfg(feature = "train")]
mod greedy;
#[cfg(unix)]
mod hostile;
mod kv;
#[cfg(feature = "train")]
mod ladder;
mod oracle;
mod program;
mod quantize;
mod recorded;
mod runtime;
#[cfg(feature = "serve")]
mod serving;
#[cfg(feature = "train")]
mod sft;
#[cfg(feature = "train")]
mod study;
mod templates;
mod tidy;
mod tokenizers;
#[cfg(feature = "train")]
mod training;
mod tree;
