//! 32 weights with one scale, 8 bits each: `weight = d · level` (`block_q8_0`). Also an activation block.

use bytemuck::{Pod, Zeroable};

use crate::block::{Activation, BlockFormat, Half, assert_fits};

/// One block.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_0 {
    /// The scale.
    pub d: Half,
    /// The levels.
    pub levels: [i8; 32],
}

impl BlockFormat for Q8_0 {
    const WEIGHTS: usize = 32;
    const USES_IMPORTANCE: bool = false;
    type Activation = Q8_0;

    fn encode(weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [Self]) {
        assert_fits(weights.len(), blocks.len(), 32);
        for (x, block) in weights.chunks_exact(32).zip(blocks) {
            let largest = x.iter().fold(0.0f32, |largest, &x| largest.max(x.abs()));
            let d = largest / 127.0;
            let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
            block.d = Half::from_f32(d);
            for (level, &x) in block.levels.iter_mut().zip(x) {
                *level = (x * inverse).round() as i8;
            }
        }
    }

    fn decode(blocks: &[Self], weights: &mut [f32]) {
        assert_fits(weights.len(), blocks.len(), 32);
        for (block, weights) in blocks.iter().zip(weights.chunks_exact_mut(32)) {
            let d = block.d.to_f32();
            for (weight, &level) in weights.iter_mut().zip(&block.levels) {
                *weight = f32::from(level) * d;
            }
        }
    }

    fn dot(weights: &[Self], activations: &[Q8_0]) -> f32 {
        assert_eq!(weights.len(), activations.len(), "rows of different length");
        let mut sum = 0.0f32;
        for (w, x) in weights.iter().zip(activations) {
            sum += dot_levels(&w.levels, &x.levels) as f32 * (w.d.to_f32() * x.d.to_f32());
        }
        sum
    }
}

impl Activation for Q8_0 {
    const VALUES: usize = 32;

    fn encode(values: &[f32], blocks: &mut [Self]) {
        <Self as BlockFormat>::encode(values, None, blocks);
    }

    fn decode(blocks: &[Self], values: &mut [f32]) {
        <Self as BlockFormat>::decode(blocks, values);
    }
}

/// The exact sum of products.
pub(crate) fn dot_levels(a: &[i8; 32], b: &[i8; 32]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}
