//! Memory that begins on a cache line. Knows no shapes.

use bytemuck::{Pod, Zeroable};

use super::isa::{LANES, Line};
use crate::KernelError;

/// Zeroed bytes that the system hands out page by page as they are first touched: a large cache that is hardly used
/// costs hardly anything.
///
/// They are whole lines rather than bytes with some to spare: an allocator that rounds sizes up, and zeroes what it
/// gives, would make a matrix of a power of two a quarter larger.
#[derive(Debug)]
pub(crate) struct Zeroed {
    lines: Vec<Line>,
    len: usize,
}

impl Zeroed {
    pub(crate) fn new(len: usize) -> Result<Self, KernelError> {
        let lines = bytemuck::allocation::try_zeroed_vec(len.div_ceil(size_of::<Line>()));
        Ok(Self { lines: lines.map_err(|()| KernelError::OutOfMemory { bytes: len })?, len })
    }

    #[inline(always)]
    pub(crate) fn parts<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&bytemuck::cast_slice::<Line, u8>(&self.lines)[..self.len])
    }

    #[inline(always)]
    pub(crate) fn parts_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut bytemuck::cast_slice_mut::<Line, u8>(&mut self.lines)[..self.len])
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
        Self { lanes: bytemuck::allocation::zeroed_vec(len.div_ceil(LANES)), len }
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
