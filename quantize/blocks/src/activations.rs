//! Blocks that a row of activations is rounded to before it meets a row of weights; knows no weights.
//!
//! Weights of 32 to a block meet [`Q8_0`], or [`Q8_1`] where they have a minimum; super-blocks of 256 meet [`Q8_K`],
//! floats meet 32-bit floats.

use bytemuck::{Pod, Zeroable};

use crate::block::{Activation, BlockFormat, Half, assert_fits};
pub use crate::formats::f32::F32;
pub use crate::formats::q8_0::Q8_0;
use crate::search::{extreme, nearest};
use crate::super_block::WEIGHTS;

/// 32 activations with one scale, 8 bits each, and their sum (`block_q8_1`; never in a file).
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_1 {
    /// The scale.
    pub d: Half,
    /// The sum of the levels times the scale as it was before it became a half.
    pub sum: Half,
    /// The levels.
    pub levels: [i8; 32],
}

impl Activation for Q8_1 {
    const VALUES: usize = 32;

    fn encode(values: &[f32], blocks: &mut [Self]) {
        assert_fits(values.len(), blocks.len(), 32);
        for (x, block) in values.chunks_exact(32).zip(blocks) {
            let mut rounded = [Q8_0::zeroed()];
            <Q8_0 as BlockFormat>::encode(x, None, &mut rounded);
            let [Q8_0 { d, levels }] = rounded;
            let scale = extreme(x).1 / 127.0;
            let sum: i32 = levels.iter().map(|&it| i32::from(it)).sum();
            *block = Self { d, sum: Half::from_f32(sum as f32 * scale), levels };
        }
    }

    fn decode(blocks: &[Self], values: &mut [f32]) {
        assert_fits(values.len(), blocks.len(), 32);
        for (block, values) in blocks.iter().zip(values.chunks_exact_mut(32)) {
            for (value, &level) in values.iter_mut().zip(&block.levels) {
                *value = block.d.to_f32() * f32::from(level);
            }
        }
    }
}

/// 256 activations with one 32-bit scale, 8 bits each, and the sums of each 16 of them (`block_q8_K`; never in a file).
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_K {
    /// The scale.
    pub d: f32,
    /// The levels.
    pub levels: [i8; WEIGHTS],
    /// The sums of each 16 levels.
    pub sums: [i16; WEIGHTS / 16],
}

impl Activation for Q8_K {
    const VALUES: usize = WEIGHTS;

    fn encode(values: &[f32], blocks: &mut [Self]) {
        assert_fits(values.len(), blocks.len(), WEIGHTS);
        for (x, block) in values.chunks_exact(WEIGHTS).zip(blocks) {
            *block = Self::zeroed();
            let (value, magnitude) = extreme(x);
            if magnitude == 0.0 {
                continue;
            }
            let inverse = -127.0 / value;
            for (level, &x) in block.levels.iter_mut().zip(x) {
                *level = nearest(inverse * x).min(127) as i8;
            }
            for (sum, levels) in block.sums.iter_mut().zip(block.levels.chunks_exact(16)) {
                *sum = levels.iter().map(|&it| i16::from(it)).sum();
            }
            block.d = 1.0 / inverse;
        }
    }

    fn decode(blocks: &[Self], values: &mut [f32]) {
        assert_fits(values.len(), blocks.len(), WEIGHTS);
        for (block, values) in blocks.iter().zip(values.chunks_exact_mut(WEIGHTS)) {
            for (value, &level) in values.iter_mut().zip(&block.levels) {
                *value = block.d * f32::from(level);
            }
        }
    }
}
