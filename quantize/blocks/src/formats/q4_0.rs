//! 32 weights with one scale, 4 bits each: `weight = d · (level - 8)` (`block_q4_0`).

use bytemuck::{Pod, Zeroable};

use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::block_of_32::{self, WEIGHTS};
use crate::coded::{Grid, Parts, whole_numbers};
use crate::formats::q8_0::Q8_0;
use crate::nibbles;

/// One block. Byte `i` of the levels holds weight `i` in its low half and weight `i + 16` in its high half.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_0 {
    /// The scale.
    pub d: Half,
    /// The levels, two to a byte.
    pub levels: [u8; 16],
}

const LEVELS: [i8; 16] = whole_numbers(-8);
const GRID: Grid = block_of_32::grid(&LEVELS, 0);

impl Q4_0 {
    /// The levels in order, from -8 to 7.
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        nibbles::unpack_4_bit(&self.levels).map(|it| it as i8 - 8)
    }
}

impl BlockFormat for Q4_0 {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_0;

    const GRID: Option<&'static Grid> = Some(&GRID);

    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self {
        let (d, levels) = block_of_32::fit_symmetric(8, weights, importance);
        Self { d, levels: nibbles::pack_4_bit(&levels) }
    }

    fn parts(&self) -> Option<Parts> {
        Some(block_of_32::parts([self.d, Half::ZERO], 0).with_levels(-8, &self.unpacked()))
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        let codes = block_of_32::codes(parts);
        Some(Self { d: parts.d, levels: nibbles::pack_4_bit(codes) })
    }

    fn decode_block(&self, weights: &mut [f32]) {
        block_of_32::decode(self.unpacked(), self.d.to_f32(), weights);
    }

    fn dot_block(&self, x: &Q8_0) -> f32 {
        block_of_32::dot(&self.unpacked(), self.d.to_f32(), x)
    }
}
