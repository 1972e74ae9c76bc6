//! 32-bit floats, little end first. One number is a block.

use bytemuck::{Pod, Zeroable};

use crate::block::{Activation, BlockFormat, ColumnImportance};

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

    fn encode_block(weights: &[f32], _: Option<ColumnImportance<'_>>) -> Self {
        Self::from_f32(weights[0])
    }

    fn decode_block(&self, weights: &mut [f32]) {
        weights[0] = self.to_f32();
    }

    fn dot_block(&self, x: &F32) -> f32 {
        self.to_f32() * x.to_f32()
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
