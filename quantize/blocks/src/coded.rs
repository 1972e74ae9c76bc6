//! Blocks taken apart into units, scales and codes, and put together again: what a search over codes works on. Knows
//! no byte layout.

use crate::block::Half;
use crate::search;

/// The most groups of a block.
pub const GROUPS_MAX: usize = 16;
/// The most weights of a block.
pub const BLOCK_WEIGHTS_MAX: usize = 256;

/// How the weights of a format follow from the numbers of their block: with `g` the group of a weight,
/// `weight = d · scales[g] · levels[code] - d_min · minima[g]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    /// Weights of a group.
    pub group: usize,
    /// The least and the largest scale of a group; both 1 where a block has but its unit.
    pub scales: (i16, i16),
    /// The least and the largest minimum of a group; both 0 in formats without, both -1 where a block has but its unit.
    pub minima: (i16, i16),
    /// What the codes stand for, ascending.
    pub levels: &'static [i8],
}

/// The numbers of one block. Groups and weights that the format does not have are zero.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Parts {
    /// The unit of the scales.
    pub d: Half,
    /// The unit of the minima.
    pub d_min: Half,
    /// The scale of each group.
    pub scales: [i16; GROUPS_MAX],
    /// The minimum of each group.
    pub minima: [i16; GROUPS_MAX],
    /// The code of each weight: a place among the levels.
    pub codes: [u8; BLOCK_WEIGHTS_MAX],
}

impl Parts {
    /// All zero.
    pub(crate) const ZERO: Self = Self {
        d: Half::ZERO,
        d_min: Half::ZERO,
        scales: [0; GROUPS_MAX],
        minima: [0; GROUPS_MAX],
        codes: [0; BLOCK_WEIGHTS_MAX],
    };

    /// Codes from levels, the least of which is `first`.
    pub(crate) fn with_levels(mut self, first: i8, levels: &[i8]) -> Self {
        for (code, level) in self.codes.iter_mut().zip(levels) {
            *code = level.wrapping_sub(first) as u8;
        }
        self
    }

    /// What a group multiplies its levels with, and what it takes off: both as the decoders compute them.
    pub fn step_and_minimum(&self, group: usize) -> (f32, f32) {
        let scale = self.d.to_f32() * f32::from(self.scales[group]);
        (scale, self.d_min.to_f32() * f32::from(self.minima[group]))
    }

    /// The weights that the numbers stand for, as many as `weights` has.
    pub fn decode(&self, grid: &Grid, weights: &mut [f32]) {
        for (index, (weights, codes)) in weights.chunks_mut(grid.group).zip(self.codes.chunks(grid.group)).enumerate() {
            let (step, minimum) = self.step_and_minimum(index);
            for (weight, code) in weights.iter_mut().zip(codes) {
                *weight = step * f32::from(grid.levels[usize::from(*code)]) - minimum;
            }
        }
    }
}

impl Grid {
    /// The code whose weight is nearest to `weight`, in a group with that step and minimum; of two as near, either.
    /// Without a step all codes are the same, and any is given.
    pub fn nearest(&self, weight: f32, (step, minimum): (f32, f32)) -> u8 {
        let levels = self.levels;
        let (first, last) = (levels[0], levels[levels.len() - 1]);
        let position = ((weight + minimum) / step).clamp(first.into(), last.into());
        if position.is_nan() {
            return 0;
        }
        if levels.len() == usize::from(last.abs_diff(first)) + 1 {
            // Every whole number is a level.
            return (search::nearest(position) - i32::from(first)) as u8;
        }
        let halfway = |pair: &[i8]| (f32::from(pair[0]) + f32::from(pair[1])) / 2.0;
        levels.windows(2).filter(|pair| position >= halfway(pair)).count() as u8
    }

    /// Whether groups have minima that can be chosen.
    pub(crate) fn has_minima(&self) -> bool {
        self.minima != (0, 0)
    }
}

/// `N` whole numbers from `first`.
pub(crate) const fn whole_numbers<const N: usize>(first: i8) -> [i8; N] {
    let mut levels = [0; N];
    let mut index = 0;
    while index < N {
        levels[index] = first.wrapping_add(index as u8 as i8);
        index += 1;
    }
    levels
}
