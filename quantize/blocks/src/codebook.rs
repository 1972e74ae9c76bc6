//! The 16 uneven levels of `IQ4_NL` and `IQ4_XS`, and the search for a scale over them; knows no block layout.
//!
//! They lie closer together near zero, where most weights are (`kvalues_iq4nl` in `ggml-common.h`).

use crate::search::{GROUP_MAX_EPSILON, extreme};

/// The levels, in the order of the codes that name them.
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Half-way between each level and the next.
const BETWEEN: [f32; 15] = {
    let mut between = [0.0; 15];
    let mut index = 0;
    while index < 15 {
        between[index] = (LEVELS[index] as f32 + LEVELS[index + 1] as f32) / 2.0;
        index += 1;
    }
    between
};

/// Each side of the first level, [`scale`] tries so many inverse scales, one level apart.
const TRIALS: i32 = 7;

/// The code of the nearest level, of two as near the higher (`best_index_int8`, by counting instead of halving).
pub(crate) fn nearest(value: f32) -> u8 {
    let mut code = 0;
    for between in BETWEEN {
        code += u8::from(value >= between);
    }
    code
}

/// Finds the scale with the least weighted square error of `scale · level` (`quantize_row_iq4_nl_impl`). Without
/// weights, `x²` is used. Zero for a group that is all zero.
pub(crate) fn scale(x: &[f32; 32], weights: Option<&[f32; 32]>) -> f32 {
    let (value, magnitude) = extreme(x);
    if magnitude < GROUP_MAX_EPSILON {
        return 0.0;
    }
    let squares = x.map(|x| x * x);
    let weights = weights.unwrap_or(&squares);
    let sums = |inverse: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
        for (&x, &w) in x.iter().zip(weights) {
            let l = f32::from(LEVELS[usize::from(nearest(inverse * x))]);
            sum_lx += w * l * x;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let first = f32::from(LEVELS[0]);
    let (sum_lx, sum_l2) = sums(1.0 / (-value / first));
    let mut scale = if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for step in -TRIALS..=TRIALS {
        let (sum_lx, sum_l2) = sums((step as f32 + first) / value);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    scale
}

/// The codes of the levels nearest to `x / scale`; those of zero without a scale.
pub(crate) fn codes(x: &[f32; 32], scale: f32) -> [u8; 32] {
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    x.map(|x| nearest(inverse * x))
}
