//! 32 weights with one scale, 4 bits each that name one of 16 uneven levels: `weight = d · LEVELS[code]`
//! (`block_iq4_nl`).

use bytemuck::{Pod, Zeroable};

use crate::block::{BlockFormat, Half, assert_fits, assert_importance, importance_of_block};
use crate::codebook;
pub use crate::codebook::LEVELS;
use crate::formats::q8_0::{Q8_0, dot_levels};
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

impl IQ4_NL {
    /// The codes in order, each a place in [`LEVELS`].
    pub fn codes(&self) -> [u8; 32] {
        nibbles::unpack_4_bit(&self.packed)
    }

    /// The levels in order, from -127 to 113.
    pub fn unpacked(&self) -> [i8; 32] {
        self.codes().map(|it| LEVELS[usize::from(it)])
    }
}

impl BlockFormat for IQ4_NL {
    const WEIGHTS: usize = 32;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_0;

    fn encode(weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Self]) {
        assert_fits(weights.len(), blocks.len(), 32);
        assert_importance(weights.len(), importance);
        let (weights, _) = weights.as_chunks::<32>();
        for (index, (x, block)) in weights.iter().zip(blocks).enumerate() {
            let weights = importance_of_block(importance, index, 32).map(|importance| {
                // Twice the mean square of the block itself, not of the row as in `Q4_0`.
                let sigma2 = search::sum_of_squares(x) * (2.0 / 32.0);
                let mut weights = [0.0f32; 32];
                search::weigh(importance, x, sigma2, &mut weights);
                weights
            });
            let scale = codebook::scale(x, weights.as_ref());
            block.d = Half::from_f32(scale);
            block.packed = nibbles::pack_4_bit(&codebook::codes(x, scale));
        }
    }

    fn decode(blocks: &[Self], weights: &mut [f32]) {
        assert_fits(weights.len(), blocks.len(), 32);
        for (block, weights) in blocks.iter().zip(weights.chunks_exact_mut(32)) {
            let d = block.d.to_f32();
            for (weight, level) in weights.iter_mut().zip(block.unpacked()) {
                *weight = f32::from(level) * d;
            }
        }
    }

    fn dot(weights: &[Self], activations: &[Q8_0]) -> f32 {
        assert_eq!(weights.len(), activations.len(), "rows of different length");
        let mut sum = 0.0f32;
        for (w, x) in weights.iter().zip(activations) {
            sum += (w.d.to_f32() * x.d.to_f32()) * dot_levels(&w.unpacked(), &x.levels) as f32;
        }
        sum
    }
}
