//! 32 weights with one scale, 8 bits each: `weight = d · level` (`block_q8_0`). Also an activation block.

use bytemuck::{Pod, Zeroable};

use crate::block::{Activation, BlockFormat, ColumnImportance, Half};
use crate::block_of_32::{self, WEIGHTS};
use crate::coded::{Grid, Parts, whole_numbers};

/// One block.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_0 {
    /// The scale.
    pub d: Half,
    /// The levels.
    pub levels: [i8; WEIGHTS],
}

const LEVELS: [i8; 255] = whole_numbers(-127);
const GRID: Grid = block_of_32::grid(&LEVELS, 0);

impl BlockFormat for Q8_0 {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = false;
    type Activation = Q8_0;

    const GRID: Option<&'static Grid> = Some(&GRID);

    fn encode_block(weights: &[f32], _: Option<ColumnImportance<'_>>) -> Self {
        let largest = weights.iter().fold(0.0f32, |largest, &x| largest.max(x.abs()));
        let d = largest / 127.0;
        let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
        let mut levels = [0i8; WEIGHTS];
        for (level, &x) in levels.iter_mut().zip(weights) {
            *level = (x * inverse).round() as i8;
        }
        Self { d: Half::from_f32(d), levels }
    }

    fn parts(&self) -> Option<Parts> {
        let levels = self.levels.map(|it| it.max(-127));
        Some(block_of_32::parts([self.d, Half::ZERO], 0).with_levels(-127, &levels))
    }

    fn from_parts(parts: &Parts) -> Option<Self> {
        let levels = block_of_32::codes(parts).map(|it| LEVELS[usize::from(it)]);
        Some(Self { d: parts.d, levels })
    }

    fn decode_block(&self, weights: &mut [f32]) {
        block_of_32::decode(self.levels, self.d.to_f32(), weights);
    }

    fn dot_block(&self, x: &Q8_0) -> f32 {
        block_of_32::dot(&self.levels, self.d.to_f32(), x)
    }
}

impl Activation for Q8_0 {
    const VALUES: usize = WEIGHTS;

    fn encode(values: &[f32], blocks: &mut [Self]) {
        <Self as BlockFormat>::encode(values, None, blocks);
    }

    fn decode(blocks: &[Self], values: &mut [f32]) {
        <Self as BlockFormat>::decode(blocks, values);
    }
}
