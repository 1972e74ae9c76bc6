//! 256 weights in 16 groups with a 4-bit scale and minimum each, 2 bits a weight:
//! `weight = d · scale · level - d_min · minimum` (`block_q2_K`).

use bytemuck::{Pod, Zeroable};

use crate::activations::Q8_K;
use crate::block::{BlockFormat, ColumnImportance, Half};
use crate::coded::{Grid, Parts, whole_numbers};
use crate::search::Trials;
use crate::super_block::{self, Affine, Fitted, WEIGHTS};

/// One super-block.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q2_K {
    /// Scale (low half) and minimum (high half) of each group.
    pub scales: [u8; 16],
    /// The levels, four to a byte: in each half of the block, byte `l` holds weights `l`, `l + 32`, `l + 64`, `l + 96`.
    pub levels: [u8; 64],
    /// The unit of the scales.
    pub d: Half,
    /// The unit of the minima.
    pub d_min: Half,
}

const SHAPE: Affine = Affine {
    group: 16,
    level_max: 3,
    scale_max: 15,
    trials: Trials { first: -0.5, step: 0.1, n_steps: 15, absolute: true },
    magnitude_only: true,
    sigma_factor: 1.0,
};

const GRID: Grid = Grid { group: 16, scales: (0, 15), minima: (0, 15), levels: &whole_numbers::<4>(0) };

impl Q2_K {
    /// The levels in order.
    #[inline(always)]
    pub fn unpacked(&self) -> [i8; WEIGHTS] {
        super_block::unpack_2_bit(&self.levels)
    }

    /// Scale and minimum of a group of 16 weights.
    #[inline(always)]
    pub fn scale_and_minimum(&self, group: usize) -> (u8, u8) {
        (self.scales[group] & 0xf, self.scales[group] >> 4)
    }

    #[inline(always)]
    fn pack(fitted: &Fitted) -> Self {
        Self {
            scales: std::array::from_fn(|it| fitted.scales[it] | fitted.minima[it] << 4),
            levels: super_block::pack_2_bit(&fitted.levels),
            d: fitted.d,
            d_min: fitted.d_min,
        }
    }
}

impl BlockFormat for Q2_K {
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
