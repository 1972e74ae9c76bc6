//! 16-bit IEEE floats, rounded to nearest, ties to even. One number is a block.

use bytemuck::{Pod, Zeroable};

use crate::block::{BlockFormat, ColumnImportance};
use crate::formats::f32::F32;

/// One number.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct F16([u8; 2]);

impl F16 {
    /// The value, exactly.
    pub fn to_f32(self) -> f32 {
        half::f16::from_le_bytes(self.0).to_f32()
    }

    /// The nearest number of this format.
    pub fn from_f32(value: f32) -> Self {
        Self(half::f16::from_f32(value).to_le_bytes())
    }
}

impl BlockFormat for F16 {
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
