//! 32 weights with one scale, 5 bits each: `weight = d · (level - 16)` (`block_q5_0`).

use bytemuck::{Pod, Zeroable};

use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::block_of_32::{self, WEIGHTS};
use crate::coded::{Grid, Parts, whole_numbers};
use crate::formats::q8_0::Q8_0;
use crate::nibbles;

/// One block. Byte `i` of the low bits holds weight `i` in its low half and weight `i + 16` in its high half; bit `i`
/// of the high bits (a little-endian 32-bit number) is the fifth bit of weight `i`.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_0 {
    /// The scale.
    pub d: Half,
    /// The fifth bits.
    pub high: [u8; 4],
    /// The low four bits, two weights to a byte.
    pub low: [u8; 16],
}

const LEVELS: [i8; 32] = whole_numbers(-16);
const GRID: Grid = block_of_32::grid(&LEVELS, 0);

impl Q5_0 {
    /// The levels in order, from -16 to 15.
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        nibbles::unpack_5_bit(&self.low, &self.high).map(|it| it as i8 - 16)
    }
}

impl BlockFormat for Q5_0 {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_0;

    const GRID: Option<&'static Grid> = Some(&GRID);

    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self {
        let (d, levels) = block_of_32::fit_symmetric(16, weights, importance);
        Self { d, high: nibbles::pack_fifth_bits(&levels), low: nibbles::pack_4_bit(&levels) }
    }

    fn parts(&self) -> Option<Parts> {
        Some(block_of_32::parts([self.d, Half::ZERO], 0).with_levels(-16, &self.unpacked()))
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        let codes = block_of_32::codes(parts);
        Some(Self { d: parts.d, high: nibbles::pack_fifth_bits(codes), low: nibbles::pack_4_bit(codes) })
    }

    fn decode_block(&self, weights: &mut [f32]) {
        block_of_32::decode(self.unpacked(), self.d.to_f32(), weights);
    }

    fn dot_block(&self, x: &Q8_0) -> f32 {
        block_of_32::dot(&self.unpacked(), self.d.to_f32(), x)
    }
}
