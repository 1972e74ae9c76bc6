//! 32 weights with one scale, 4 bits each that name one of 16 uneven levels: `weight = d · LEVELS[code]`
//! (`block_iq4_nl`).

use bytemuck::{Pod, Zeroable};

use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::block_of_32::{self, WEIGHTS};
use crate::codebook;
pub use crate::codebook::LEVELS;
use crate::coded::{Grid, Parts};
use crate::formats::q8_0::Q8_0;
use crate::nibbles;
use crate::search;

/// One block. Byte `i` of the codes holds weight `i` in its low half and weight `i + 16` in its high half.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct IQ4_NL {
    /// The scale.
    pub d: Half,
    /// The codes, two to a byte.
    pub packed: [u8; 16],
}

const GRID: Grid = block_of_32::grid(&LEVELS, 0);

impl IQ4_NL {
    /// The codes in order, each a place in [`LEVELS`].
    pub fn codes(&self) -> [u8; WEIGHTS] {
        nibbles::unpack_4_bit(&self.packed)
    }

    /// The levels in order, from -127 to 113.
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        self.codes().map(|it| LEVELS[usize::from(it)])
    }
}

impl BlockFormat for IQ4_NL {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_0;

    const GRID: Option<&'static Grid> = Some(&GRID);

    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self {
        let factors = importance.map(|importance| {
            // Twice the mean square of the block itself, not of the row as in `Q4_0`.
            let sigma2 = search::sum_of_squares(weights) * (2.0 / WEIGHTS as f32);
            let mut factors = [0.0f32; WEIGHTS];
            search::weigh(importance.columns, weights, sigma2, &mut factors);
            factors
        });
        let x = block_of_32::whole(weights);
        let scale = codebook::scale(x, factors.as_ref());
        Self { d: Half::from_f32(scale), packed: nibbles::pack_4_bit(&codebook::codes(x, scale)) }
    }

    fn parts(&self) -> Option<Parts> {
        let mut parts = block_of_32::parts([self.d, Half::ZERO], 0);
        parts.codes[..WEIGHTS].copy_from_slice(&self.codes());
        Some(parts)
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        Some(Self { d: parts.d, packed: nibbles::pack_4_bit(block_of_32::codes(parts)) })
    }

    fn decode_block(&self, weights: &mut [f32]) {
        block_of_32::decode(self.unpacked(), self.d.to_f32(), weights);
    }

    fn dot_block(&self, x: &Q8_0) -> f32 {
        block_of_32::dot(&self.unpacked(), self.d.to_f32(), x)
    }
}
