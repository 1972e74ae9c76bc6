//! 256 weights in 8 groups with a 6-bit scale and minimum each, 4 bits a weight:
//! `weight = d · scale · level - d_min · minimum` (`block_q4_K`).

use bytemuck::{Pod, Zeroable};

use crate::activations::Q8_K;
use crate::block::{BlockFormat, Half, assert_fits, assert_importance, importance_of_block};
use crate::search::Trials;
use crate::super_block::{self, Affine, Fitted, WEIGHTS};

/// One super-block.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_K {
    /// The unit of the scales.
    pub d: Half,
    /// The unit of the minima.
    pub d_min: Half,
    /// Scales and minima of the eight groups, 6 bits each.
    pub scales: [u8; 12],
    /// The levels, two to a byte: in each quarter of the block, byte `l` holds weights `l` and `l + 32`.
    pub levels: [u8; 128],
}

const SHAPE: Affine = Affine {
    group: 32,
    level_max: 15,
    scale_max: 63,
    trials: Trials { first: -1.0, step: 0.1, n_steps: 20, absolute: false },
    magnitude_only: false,
    sigma_factor: 2.0,
};

impl Q4_K {
    /// The levels in order.
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        super_block::unpack_4_bit(&self.levels)
    }

    /// Scale and minimum of a group of 32 weights.
    pub fn scale_and_minimum(&self, group: usize) -> (u8, u8) {
        super_block::unpack_6_bit(&self.scales, group)
    }

    fn pack(fitted: &Fitted) -> Self {
        Self {
            d: fitted.d,
            d_min: fitted.d_min,
            scales: super_block::pack_6_bit(&fitted.scales, &fitted.minima),
            levels: super_block::pack_4_bit(&fitted.levels),
        }
    }
}

impl BlockFormat for Q4_K {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_K;

    fn encode(weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Self]) {
        assert_fits(weights.len(), blocks.len(), WEIGHTS);
        assert_importance(weights.len(), importance);
        let (weights, _) = weights.as_chunks::<WEIGHTS>();
        for (index, (x, block)) in weights.iter().zip(blocks).enumerate() {
            *block = Self::pack(&SHAPE.fit(x, importance_of_block(importance, index, WEIGHTS)));
        }
    }

    fn decode(blocks: &[Self], weights: &mut [f32]) {
        assert_fits(weights.len(), blocks.len(), WEIGHTS);
        for (block, weights) in blocks.iter().zip(weights.chunks_exact_mut(WEIGHTS)) {
            let (d, d_min) = (block.d.to_f32(), block.d_min.to_f32());
            let levels = block.unpacked();
            let groups = weights.chunks_exact_mut(SHAPE.group).zip(levels.chunks_exact(SHAPE.group));
            for (index, (weights, levels)) in groups.enumerate() {
                let (scale, minimum) = block.scale_and_minimum(index);
                let (scale, minimum) = (d * f32::from(scale), d_min * f32::from(minimum));
                for (weight, &level) in weights.iter_mut().zip(levels) {
                    *weight = scale * f32::from(level) - minimum;
                }
            }
        }
    }

    fn dot(weights: &[Self], activations: &[Q8_K]) -> f32 {
        assert_eq!(weights.len(), activations.len(), "rows of different length");
        let mut sum = 0.0f32;
        for (w, x) in weights.iter().zip(activations) {
            let scales: [i32; 8] = std::array::from_fn(|it| i32::from(w.scale_and_minimum(it).0));
            let products = super_block::dot_groups(&w.unpacked(), &x.levels, &scales);
            let minima: i32 = (x.sums.iter().enumerate())
                .map(|(index, &sum)| i32::from(sum) * i32::from(w.scale_and_minimum(index * 16 / SHAPE.group).1))
                .sum();
            sum += w.d.to_f32() * x.d * products as f32 - w.d_min.to_f32() * x.d * minima as f32;
        }
        sum
    }
}
