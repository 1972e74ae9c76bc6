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

/// The largest magnitude, found in lanes that compilers make vectors of; NaN counts as nothing.
#[inline(always)]
fn largest_magnitude(weights: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [0.0f32; 8];
    for weights in weights.as_chunks::<8>().0 {
        for (lane, weight) in lanes.iter_mut().zip(weights) {
            *lane = larger(*lane, weight.abs());
        }
    }
    lanes.into_iter().fold(0.0, larger)
}

/// The nearest whole number, ties away from zero. Adding the largest float below a half and cutting off is that, since
/// the sum is rounded; unlike `f32::round` it takes no call.
#[inline(always)]
fn rounded(value: f32) -> i8 {
    const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;
    (value + BELOW_HALF.copysign(value)) as i32 as i8
}

impl BlockFormat for Q8_0 {
    const WEIGHTS: usize = WEIGHTS;
    const USES_IMPORTANCE: bool = false;
    type Activation = Q8_0;

    const GRID: Option<&'static Grid> = Some(&GRID);

    #[inline(always)]
    fn encode_block(weights: &[f32], _: Option<ColumnImportance<'_>>) -> Self {
        let largest = largest_magnitude(weights);
        let d = largest / 127.0;
        let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
        let mut levels = [0i8; WEIGHTS];
        for (level, &x) in levels.iter_mut().zip(weights) {
            *level = rounded(x * inverse);
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

    #[inline(always)]
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

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for quarter in -508..=508i16 {
            let middle = f32::from(quarter) / 4.0;
            for value in [middle.next_down(), middle, middle.next_up()] {
                assert_eq!(rounded(value), value.round() as i8, "{value}");
            }
        }
    }
}
