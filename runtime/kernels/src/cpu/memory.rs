//! Memory that begins on a cache line. Knows no shapes.

use bytemuck::{Pod, Zeroable};

use super::isa::LANES;
use crate::KernelError;

const LINE_BYTES: usize = 64;

/// Zeroed bytes that the system hands out page by page as they are first touched: a large cache that is hardly used
/// costs hardly anything.
#[derive(Debug)]
pub(crate) struct Zeroed {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Zeroed {
    pub(crate) fn new(len: usize) -> Result<Self, KernelError> {
        let too_much = KernelError::OutOfMemory { bytes: len };
        let Ok(bytes) = bytemuck::allocation::try_zeroed_vec::<u8>(len.saturating_add(LINE_BYTES)) else {
            return Err(too_much);
        };
        let start = bytes.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES);
        Ok(Self { bytes, start, len })
    }

    #[inline(always)]
    pub(crate) fn parts<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.bytes[self.start..self.start + self.len])
    }

    #[inline(always)]
    pub(crate) fn parts_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.bytes[self.start..self.start + self.len])
    }
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Lanes([f32; LANES]);

/// Floats that begin on a cache line.
#[derive(Debug)]
pub struct CpuBuffer {
    lanes: Vec<Lanes>,
    len: usize,
}

impl CpuBuffer {
    pub(crate) fn new(len: usize) -> Self {
        Self { lanes: vec![Lanes([0.0; LANES]); len.div_ceil(LANES)], len }
    }

    #[inline(always)]
    pub(crate) fn values(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lanes)[..self.len]
    }

    #[inline(always)]
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lanes)[..self.len]
    }
}
