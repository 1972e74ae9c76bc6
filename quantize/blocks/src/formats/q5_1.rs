//! 32 weights with one scale and one minimum, 5 bits each: `weight = d · level + minimum` (`block_q5_1`).

use bytemuck::{Pod, Zeroable};

use crate::activations::Q8_1;
use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::block_of_32::{self, WEIGHTS};
use crate::coded::{Grid, Parts, whole_numbers};
use crate::nibbles;

/// One block. Byte `i` of the low bits holds weight `i` in its low half and weight `i + 16` in its high half; bit `i`
/// of the high bits (a little-endian 32-bit number) is the fifth bit of weight `i`.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_1 {
    /// The scale.
    pub d: Half,
    /// What level 0 stands for.
    pub minimum: Half,
    /// The fifth bits.
    pub high: [u8; 4],
    /// The low four bits, two weights to a byte.
    pub low: [u8; 16],
}

const LEVELS: [i8; 32] = whole_numbers(0);
const GRID: Grid = block_of_32::grid(&LEVELS, -1);

impl Q5_1 {
    /// The levels in order, from 0 to 31.
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        nibbles::unpack_5_bit(&self.low, &self.high).map(|it| it as i8)
    }
}

impl BlockFormat for Q5_1 {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_1;

    const GRID: Option<&'static Grid> = Some(&GRID);

    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self {
        let (d, minimum, levels) = block_of_32::fit_affine(31, weights, importance);
        Self { d, minimum, high: nibbles::pack_fifth_bits(&levels), low: nibbles::pack_4_bit(&levels) }
    }

    fn parts(&self) -> Option<Parts> {
        Some(block_of_32::parts([self.d, self.minimum], -1).with_levels(0, &self.unpacked()))
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        let codes = block_of_32::codes(parts);
        Some(Self {
            d: parts.d,
            minimum: parts.d_min,
            high: nibbles::pack_fifth_bits(codes),
            low: nibbles::pack_4_bit(codes),
        })
    }

    fn decode_block(&self, weights: &mut [f32]) {
        block_of_32::decode_affine(self.unpacked(), self.d.to_f32(), self.minimum.to_f32(), weights);
    }

    fn dot_block(&self, x: &Q8_1) -> f32 {
        block_of_32::dot_affine(&self.unpacked(), self.d.to_f32(), self.minimum.to_f32(), x)
    }
}
