//! 32 weights with one scale, 5 bits each: `weight = d · (level - 16)` (`block_q5_0`).

use bytemuck::{Pod, Zeroable};

use crate::block::{BlockFormat, Half, assert_fits, assert_importance, importance_of_block};
use crate::formats::q8_0::{Q8_0, dot_levels};
use crate::nibbles;
use crate::search;

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

impl Q5_0 {
    /// The levels in order, from -16 to 15.
    pub fn unpacked(&self) -> [i8; 32] {
        nibbles::unpack_5_bit(&self.low, &self.high).map(|it| it as i8 - 16)
    }
}

impl BlockFormat for Q5_0 {
    const WEIGHTS: usize = 32;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_0;

    fn encode(weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Self]) {
        assert_fits(weights.len(), blocks.len(), 32);
        assert_importance(weights.len(), importance);
        let sigma2 = importance.map_or(0.0, |it| search::sum_of_squares(weights) / it.len() as f32);
        for (index, (x, block)) in weights.chunks_exact(32).zip(blocks).enumerate() {
            let mut levels = [0u8; 32];
            if let Some(importance) = importance_of_block(importance, index, 32) {
                let mut weights = [0.0f32; 32];
                search::weigh(importance, x, sigma2, &mut weights);
                block.d = Half::from_f32(search::symmetric(16, x, Some(&weights), &mut levels));
            } else {
                let d = search::extreme(x).0 / -16.0;
                let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
                block.d = Half::from_f32(d);
                for (level, &x) in levels.iter_mut().zip(x) {
                    *level = ((x * inverse + 16.5) as i8).clamp(0, 31) as u8;
                }
            }
            block.low = nibbles::pack_4_bit(&levels);
            block.high = nibbles::pack_fifth_bits(&levels);
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
