//! 32-bit floats, little end first. One number is a block.

use bytemuck::{Pod, Zeroable};

use crate::block::{Activation, BlockFormat, assert_fits};

/// One number.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct F32([u8; 4]);

impl F32 {
    /// The value, exactly.
    pub fn to_f32(self) -> f32 {
        f32::from_le_bytes(self.0)
    }

    /// The nearest number of this format.
    pub fn from_f32(value: f32) -> Self {
        Self(value.to_le_bytes())
    }
}

impl BlockFormat for F32 {
    const WEIGHTS: usize = 1;
    const USES_IMPORTANCE: bool = false;
    type Activation = F32;

    fn encode(weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [Self]) {
        assert_fits(weights.len(), blocks.len(), 1);
        for (block, &weight) in blocks.iter_mut().zip(weights) {
            *block = Self::from_f32(weight);
        }
    }

    fn decode(blocks: &[Self], weights: &mut [f32]) {
        assert_fits(weights.len(), blocks.len(), 1);
        for (block, weight) in blocks.iter().zip(weights) {
            *weight = block.to_f32();
        }
    }

    fn dot(weights: &[Self], activations: &[F32]) -> f32 {
        assert_eq!(weights.len(), activations.len(), "rows of different length");
        weights.iter().zip(activations).map(|(w, x)| w.to_f32() * x.to_f32()).sum()
    }
}

impl Activation for F32 {
    const VALUES: usize = 1;

    fn encode(values: &[f32], blocks: &mut [Self]) {
        <Self as BlockFormat>::encode(values, None, blocks);
    }

    fn decode(blocks: &[Self], values: &mut [f32]) {
        <Self as BlockFormat>::decode(blocks, values);
    }
}
