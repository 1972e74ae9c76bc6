//! Backends and their kernels; knows no file and no model.

mod backend;
#[allow(unsafe_code, reason = "instruction sets, and results that threads share out by tiles")]
#[allow(clippy::needless_range_loop, reason = "kernels step through several arrays of lanes by one index")]
mod cpu;
mod error;
#[cfg(feature = "gemm")]
mod float_gemm;

pub use backend::{
    Attending, Backend, CacheShape, KvFormat, LowRank, PAGE_TOKENS, RotaryHeads, RotaryPairs, Slot, Span, WeightView,
};
pub use cpu::{Cpu, CpuBuffer, CpuCache, CpuMatrix, exp_shifted};
pub use error::KernelError;
#[cfg(feature = "gemm")]
pub use float_gemm::{Strides, gemm_f32, gemm_f32_into};
