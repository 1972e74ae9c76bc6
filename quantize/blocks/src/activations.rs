//! Blocks that a row of activations is rounded to before it meets a row of weights; knows no weights.
//!
//! Weights of 32 to a block meet [`Q8_0`], super-blocks of 256 meet [`Q8_K`], floats meet 32-bit floats.

use bytemuck::{Pod, Zeroable};

use crate::block::{Activation, assert_fits};
pub use crate::formats::f32::F32;
pub use crate::formats::q8_0::Q8_0;
use crate::search::{extreme, nearest};
use crate::super_block::WEIGHTS;

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
