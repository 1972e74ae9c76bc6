//! What the blocks of 32 weights share: fitting a scale and levels, decoding them, products; knows no single format.

use crate::activations::{Q8_0, Q8_1};
use crate::block::{ColumnImportance, Half};
use crate::coded::{Grid, Parts};
use crate::search::{self, Trials};

/// Weights per block (`QK4_0` and its likes).
pub(crate) const WEIGHTS: usize = 32;

/// The weights of a block as an array.
///
/// # Panics
/// When they are less.
pub(crate) fn whole(weights: &[f32]) -> &[f32; WEIGHTS] {
    &weights.as_chunks().0[0]
}

/// Scale and levels of `x` for a format in which level `n` is zero: `weight = d · (level - n)`, levels below `2 n`.
pub(crate) fn fit_symmetric(n: i32, x: &[f32], importance: Option<ColumnImportance<'_>>) -> (Half, [u8; WEIGHTS]) {
    let mut levels = [0u8; WEIGHTS];
    if let Some(importance) = importance {
        let mut weights = [0.0f32; WEIGHTS];
        search::weigh(importance.columns, x, importance.row_mean_square, &mut weights);
        let (x, weights) = (x.as_chunks::<1>().0, weights.as_chunks::<1>().0);
        let [d] = search::symmetric(n, x, Some(weights), levels.as_chunks_mut().0);
        return (Half::from_f32(d), levels);
    }
    let d = search::extreme(x).0 / -(n as f32);
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = i32::from((x * inverse + (n as f32 + 0.5)) as i8).clamp(0, 2 * n - 1) as u8;
    }
    (Half::from_f32(d), levels)
}

/// Scale, minimum and levels of `x` for a format with `weight = d · level + minimum`, levels up to `level_max`.
pub(crate) fn fit_affine(
    level_max: u8,
    x: &[f32],
    importance: Option<ColumnImportance<'_>>,
) -> (Half, Half, [u8; WEIGHTS]) {
    let mut levels = [0u8; WEIGHTS];
    let (d, minimum) = match importance {
        Some(importance) => {
            let mut weights = [0.0f32; WEIGHTS];
            search::weigh(importance.columns, x, importance.row_mean_square, &mut weights);
            let (x, weights) = (x.as_chunks::<1>().0, weights.as_chunks::<1>().0);
            let levels = levels.as_chunks_mut().0;
            let ([d], [below]) = search::affine(level_max.into(), x, weights, Trials::WITH_IMPORTANCE, levels);
            (d, -below)
        }
        None => search::span(level_max, x, &mut levels),
    };
    (Half::from_f32(d), Half::from_f32(minimum), levels)
}

/// The grid of a block with one unit and those levels; `minimum` is -1 where it has a minimum, too.
pub(crate) const fn grid(levels: &'static [i8], minimum: i16) -> Grid {
    Grid { group: WEIGHTS, scales: (1, 1), minima: (minimum, minimum), levels }
}

/// The units of a block taken apart; `minimum` as in [`grid`].
pub(crate) fn parts([d, d_min]: [Half; 2], minimum: i16) -> Parts {
    let mut parts = Parts { d, d_min, ..Parts::ZERO };
    (parts.scales[0], parts.minima[0]) = (1, minimum);
    parts
}

/// The codes of a block of 32.
pub(crate) fn codes(parts: &Parts) -> &[u8; WEIGHTS] {
    &parts.codes.as_chunks().0[0]
}

/// `weight = d · level`.
#[inline(always)]
pub(crate) fn decode(levels: [i8; WEIGHTS], d: f32, weights: &mut [f32]) {
    for (weight, level) in weights.iter_mut().zip(levels) {
        *weight = f32::from(level) * d;
    }
}

/// `weight = d · level + minimum`.
pub(crate) fn decode_affine(levels: [i8; WEIGHTS], d: f32, minimum: f32, weights: &mut [f32]) {
    for (weight, level) in weights.iter_mut().zip(levels) {
        *weight = f32::from(level) * d + minimum;
    }
}

/// The exact sum of products.
pub(crate) fn dot_levels(a: &[i8; WEIGHTS], b: &[i8; WEIGHTS]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

/// The product with activations of a block without a minimum.
pub(crate) fn dot(levels: &[i8; WEIGHTS], d: f32, x: &Q8_0) -> f32 {
    (d * x.d.to_f32()) * dot_levels(levels, &x.levels) as f32
}

/// The product with activations of a block with a minimum.
pub(crate) fn dot_affine(levels: &[i8; WEIGHTS], d: f32, minimum: f32, x: &Q8_1) -> f32 {
    (d * x.d.to_f32()) * dot_levels(levels, &x.levels) as f32 + minimum * x.sum.to_f32()
}
