//! 256 weights in 8 groups with a 6-bit scale and minimum each, 5 bits a weight:
//! `weight = d · scale · level - d_min · minimum` (`block_q5_K`).

use bytemuck::{Pod, Zeroable};

use crate::activations::Q8_K;
use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::coded::{Grid, Parts, whole_numbers};
use crate::search::Trials;
use crate::super_block::{self, Affine, Fitted, WEIGHTS};

/// One super-block.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_K {
    /// The unit of the scales.
    pub d: Half,
    /// The unit of the minima.
    pub d_min: Half,
    /// Scales and minima of the eight groups, 6 bits each.
    pub scales: [u8; 12],
    /// The fifth bits: bit `g` of byte `l` belongs to weight `l` of group `g`.
    pub high: [u8; 32],
    /// The low four bits, two weights to a byte: in each quarter of the block, byte `l` holds weights `l` and `l + 32`.
    pub low: [u8; 128],
}

const SHAPE: Affine = Affine {
    group: 32,
    level_max: 31,
    scale_max: 63,
    trials: Trials { first: -0.5, step: 0.1, n_steps: 15, absolute: false },
    magnitude_only: false,
    sigma_factor: 2.0,
};

const GRID: Grid = Grid { group: 32, scales: (0, 63), minima: (0, 63), levels: &whole_numbers::<32>(0) };

impl Q5_K {
    /// The levels in order.
    #[inline(always)]
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        let mut levels = super_block::unpack_4_bit(&self.low);
        for (group, levels) in levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (level, high) in levels.iter_mut().zip(&self.high) {
                *level += ((high >> group & 1) << 4) as i8;
            }
        }
        levels
    }

    /// Scale and minimum of a group of 32 weights.
    #[inline(always)]
    pub fn scale_and_minimum(&self, group: usize) -> (u8, u8) {
        super_block::unpack_6_bit(&self.scales, group)
    }

    #[inline(always)]
    fn pack(fitted: &Fitted) -> Self {
        let high = |byte: usize| (0..8).fold(0, |bits, group| bits | (fitted.levels[32 * group + byte] >> 4) << group);
        Self {
            d: fitted.d,
            d_min: fitted.d_min,
            scales: super_block::pack_6_bit(&fitted.scales, &fitted.minima),
            high: std::array::from_fn(high),
            low: super_block::pack_4_bit(&fitted.levels),
        }
    }
}

impl BlockFormat for Q5_K {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = true;
    type Activation = Q8_K;

    const GRID: Option<&'static Grid> = Some(&GRID);

    #[inline(always)]
    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self {
        Self::pack(&SHAPE.fit(super_block::whole(weights), importance.map(|it| it.columns)))
    }

    fn parts(&self) -> Option<Parts> {
        let groups = (0..WEIGHTS / GRID.group).map(|it| self.scale_and_minimum(it));
        Some(super_block::affine_parts([self.d, self.d_min], groups, &self.unpacked()))
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        Some(Self::pack(&Fitted::from(parts)))
    }

    #[inline(always)]
    fn decode_block(&self, weights: &mut [f32]) {
        SHAPE.decode(&self.unpacked(), [self.d, self.d_min], |it| self.scale_and_minimum(it), weights);
    }

    fn dot_block(&self, x: &Q8_K) -> f32 {
        SHAPE.dot(&self.unpacked(), [self.d, self.d_min], |it| self.scale_and_minimum(it), x)
    }
}
