//! The searches for scales and levels that the encoders share; knows no block layout.
//!
//! Each follows its namesake in `ggml-quants.c` operation by operation in `f32`, so that the chosen levels are equal.
//! What must be summed in order within a group is fast all the same where groups are searched side by side, one to a
//! lane: compilers make vectors of lanes, and a group alone is one lane. What is always inlined ends up in
//! [`BlockFormat::encode`](crate::BlockFormat::encode), which is compiled for several widths of vectors; nothing is
//! contracted in any of them.
#![allow(clippy::needless_range_loop, reason = "a lane is one number of each of several rows")]

/// The largest group that is searched.
const GROUP_MAX: usize = 32;
/// Below this a group counts as all zero (`GROUP_MAX_EPS`).
pub(crate) const GROUP_MAX_EPSILON: f32 = 1e-15;

/// The nearest whole number, ties to even, by way of the float's mantissa (`nearest_int`). Right for magnitudes up to
/// 4194303; beyond, and for NaN, some number of at most that magnitude.
#[inline(always)]
pub(crate) fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The value of largest magnitude, and that magnitude.
#[inline(always)]
pub(crate) fn extreme(values: &[f32]) -> (f32, f32) {
    let (mut value, mut magnitude) = (0.0f32, 0.0f32);
    for &x in values {
        if x.abs() > magnitude {
            (value, magnitude) = (x, x.abs());
        }
    }
    (value, magnitude)
}

/// `qw · sqrt(sigma² + x²)`: an importance weight that grows with the magnitude of the weight itself.
#[inline(always)]
pub(crate) fn weigh(importance: &[f32], x: &[f32], sigma2: f32, into: &mut [f32]) {
    for ((into, &importance), &x) in into.iter_mut().zip(importance).zip(x) {
        *into = importance * (sigma2 + x * x).sqrt();
    }
}

/// The sum of squares, first to last.
#[inline(always)]
pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, &x| sum + x * x)
}

/// Finds the scale and the levels in `-n..n` with the least weighted square error of `scale · level`
/// (`make_qx_quants` with `rmse_type` 1), for groups side by side: `[group, LANES]`. `levels` come out shifted by `n`.
/// Without weights, `x²` is used.
#[inline(always)]
pub(crate) fn symmetric<const LANES: usize>(
    n: i32,
    x: &[[f32; LANES]],
    weights: Option<&[[f32; LANES]]>,
    levels: &mut [[u8; LANES]],
) -> [f32; LANES] {
    let (mut value, mut magnitude) = ([0.0f32; LANES], [0.0f32; LANES]);
    for x in x {
        for lane in 0..LANES {
            let is_larger = x[lane].abs() > magnitude[lane];
            value[lane] = if is_larger { x[lane] } else { value[lane] };
            magnitude[lane] = if is_larger { x[lane].abs() } else { magnitude[lane] };
        }
    }
    let mut weighted = [([0.0f32; LANES], [0.0f32; LANES]); GROUP_MAX];
    for (index, (into, x)) in weighted.iter_mut().zip(x).enumerate() {
        for lane in 0..LANES {
            let weight = weights.map_or(x[lane] * x[lane], |it| it[index][lane]);
            (into.0[lane], into.1[lane]) = (weight, weight * x[lane]);
        }
    }
    let mut inverse = value.map(|it| -n as f32 / it);
    let (sum_lx, sum_l2) = symmetric_sums(n, x, &weighted, &inverse);
    let (mut scale, mut best) = ([0.0f32; LANES], [0.0f32; LANES]);
    for lane in 0..LANES {
        scale[lane] = if sum_l2[lane] != 0.0 { sum_lx[lane] / sum_l2[lane] } else { 0.0 };
        best[lane] = scale[lane] * sum_lx[lane];
    }
    for step in (-9..=9).filter(|&it| it != 0) {
        let trial = value.map(|it| -(n as f32 + 0.1 * step as f32) / it);
        let (sum_lx, sum_l2) = symmetric_sums(n, x, &weighted, &trial);
        for lane in 0..LANES {
            let (lx, l2) = (sum_lx[lane], sum_l2[lane]);
            if l2 > 0.0 && lx * lx > best[lane] * l2 {
                inverse[lane] = trial[lane];
                scale[lane] = lx / l2;
                best[lane] = scale[lane] * lx;
            }
        }
    }
    for (into, x) in levels.iter_mut().zip(x) {
        for lane in 0..LANES {
            let level = nearest(inverse[lane] * x[lane]).clamp(-n, n - 1) + n;
            into[lane] = if magnitude[lane] < GROUP_MAX_EPSILON { 0 } else { level as u8 };
        }
    }
    std::array::from_fn(|lane| if magnitude[lane] < GROUP_MAX_EPSILON { 0.0 } else { scale[lane] })
}

/// Σ weight · x · level and Σ weight · level² of the levels that inverse scales give; `weighted` has the weight and
/// its product with `x`.
#[inline(always)]
fn symmetric_sums<const LANES: usize>(
    n: i32,
    x: &[[f32; LANES]],
    weighted: &[([f32; LANES], [f32; LANES])],
    inverse: &[f32; LANES],
) -> ([f32; LANES], [f32; LANES]) {
    let (mut sum_lx, mut sum_l2) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (x, (weight, weight_x)) in x.iter().zip(weighted) {
        for lane in 0..LANES {
            let level = nearest(inverse[lane] * x[lane]).clamp(-n, n - 1) as f32;
            sum_lx[lane] += weight_x[lane] * level;
            sum_l2[lane] += weight[lane] * level * level;
        }
    }
    (sum_lx, sum_l2)
}

/// Like [`symmetric`] with `x²` as weights, but improving one level at a time (`make_q3_quants` with `do_rmse`).
pub(crate) fn symmetric_by_turns(n: i32, x: &[f32; 16], levels: &mut [u8]) -> f32 {
    let (value, magnitude) = extreme(x);
    if magnitude < GROUP_MAX_EPSILON {
        levels.fill(0);
        return 0.0;
    }
    let inverse = -n as f32 / value;
    let mut chosen = [0i32; 16];
    let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
    for (level, &x) in chosen.iter_mut().zip(x) {
        *level = nearest(inverse * x).clamp(-n, n - 1);
        let (l, weight) = (*level as f32, x * x);
        sum_lx += weight * x * l;
        sum_l2 += weight * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (level, &x) in chosen.iter_mut().zip(x) {
            let (l, weight) = (*level as f32, x * x);
            let mut trial_lx = sum_lx - weight * x * l;
            if trial_lx <= 0.0 || trial_lx.is_nan() {
                continue;
            }
            let mut trial_l2 = sum_l2 - weight * l * l;
            let trial = nearest(x * trial_l2 / trial_lx).clamp(-n, n - 1);
            if trial == *level {
                continue;
            }
            trial_lx += weight * x * trial as f32;
            trial_l2 += weight * trial as f32 * trial as f32;
            if trial_l2 > 0.0 && trial_lx * trial_lx * sum_l2 > sum_lx * sum_lx * trial_l2 {
                (*level, sum_lx, sum_l2, changed) = (trial, trial_lx, trial_l2, true);
            }
        }
        if !changed {
            break;
        }
    }
    for (into, level) in levels.iter_mut().zip(chosen) {
        *into = (level + n) as u8;
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// Scale and minimum of levels in `0..=n` that span the weights from the smallest to the largest
/// (`quantize_row_q4_1_ref` and `quantize_row_q5_1_ref`).
pub(crate) fn span(n: u8, x: &[f32], levels: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, f32::MIN);
    for &x in x {
        if x < min {
            min = x;
        }
        if x > max {
            max = x;
        }
    }
    let scale = (max - min) / f32::from(n);
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = (((x - min) * inverse + 0.5) as u8).min(n);
    }
    (scale, min)
}

/// Which inverse scales [`affine`] tries: `(first + step · i + n) / (max - min)` for `i` in `0..=n_steps`.
#[derive(Clone, Copy)]
pub(crate) struct Trials {
    /// Offset of the first trial, in levels.
    pub(crate) first: f32,
    /// Distance between trials, in levels.
    pub(crate) step: f32,
    /// Trials after the first.
    pub(crate) n_steps: i32,
    /// Whether the error is absolute rather than square.
    pub(crate) absolute: bool,
}

impl Trials {
    /// With importance, every format with minima tries the same.
    pub(crate) const WITH_IMPORTANCE: Self = Self { first: -0.9, step: 0.05, n_steps: 36, absolute: false };
}

/// Finds scale and minimum with the least weighted error of `scale · level - minimum`, levels in `0..=n`, the minimum
/// not below zero (`make_qkx2_quants` and `make_qkx3_quants`), for groups side by side: `[group, LANES]`. Returns both;
/// `levels` are those of the best trial.
#[inline(always)]
pub(crate) fn affine<const LANES: usize>(
    n: i32,
    x: &[[f32; LANES]],
    weights: &[[f32; LANES]],
    trials: Trials,
    levels: &mut [[u8; LANES]],
) -> ([f32; LANES], [f32; LANES]) {
    let [mut min, max, sum_w, sum_x] = affine_span(x, weights);
    // Such a group has no levels.
    let flat: [bool; LANES] = std::array::from_fn(|lane| max[lane] == min[lane]);
    let mut tried = [[0.0f32; LANES]; GROUP_MAX];
    let tried = &mut tried[..x.len()];
    // Of the best trial: the inverse scale, and the minimum that its levels were counted from.
    let mut inverse: [f32; LANES] = std::array::from_fn(|lane| n as f32 / (max[lane] - min[lane]));
    let mut from = min;
    let mut scale = inverse.map(|it| 1.0 / it);
    for (level, x) in tried.iter_mut().zip(x) {
        *level = affine_levels(n, x, &inverse, &min);
    }
    let mut best = affine_error(x, weights, tried, (&scale, &min), trials.absolute);
    for step in 0..=trials.n_steps {
        // The span is that of the best minimum so far, not of the weights: each gain moves the next trial.
        let stretched = trials.first + trials.step * step as f32 + n as f32;
        let trial_inverse: [f32; LANES] = std::array::from_fn(|lane| stretched / (max[lane] - min[lane]));
        let [sum_l, sum_l2, sum_xl] = affine_sums(n, x, weights, (&trial_inverse, &min), tried);
        let mut trial_scale = [0.0f32; LANES];
        let mut trial_min = [0.0f32; LANES];
        let mut is_tried = [false; LANES];
        for lane in 0..LANES {
            let determinant = sum_w[lane] * sum_l2[lane] - sum_l[lane] * sum_l[lane];
            is_tried[lane] = determinant > 0.0;
            let fitted = (sum_l2[lane] * sum_x[lane] - sum_l[lane] * sum_xl[lane]) / determinant;
            let is_above = fitted > 0.0;
            trial_min[lane] = if is_above { 0.0 } else { fitted };
            let fitted = (sum_w[lane] * sum_xl[lane] - sum_x[lane] * sum_l[lane]) / determinant;
            trial_scale[lane] = if is_above { sum_xl[lane] / sum_l2[lane] } else { fitted };
        }
        let trial = affine_error(x, weights, tried, (&trial_scale, &trial_min), trials.absolute);
        for lane in 0..LANES {
            if is_tried[lane] && trial[lane] < best[lane] {
                (best[lane], inverse[lane], from[lane]) = (trial[lane], trial_inverse[lane], min[lane]);
                (scale[lane], min[lane]) = (trial_scale[lane], trial_min[lane]);
            }
        }
    }
    for (into, x) in levels.iter_mut().zip(x) {
        let best = affine_levels(n, x, &inverse, &from);
        *into = std::array::from_fn(|lane| if flat[lane] { 0 } else { best[lane] as u8 });
    }
    (std::array::from_fn(|lane| if flat[lane] { 0.0 } else { scale[lane] }), min.map(|it| -it))
}

/// The least weight, at most zero, and the largest, the sum of what they count, and that of their products.
#[inline(always)]
fn affine_span<const LANES: usize>(x: &[[f32; LANES]], weights: &[[f32; LANES]]) -> [[f32; LANES]; 4] {
    let (mut min, mut max, mut sum_w) = (x[0], x[0], weights[0]);
    let mut sum_x: [f32; LANES] = std::array::from_fn(|lane| sum_w[lane] * x[0][lane]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        for lane in 0..LANES {
            min[lane] = if x[lane] < min[lane] { x[lane] } else { min[lane] };
            max[lane] = if x[lane] > max[lane] { x[lane] } else { max[lane] };
            sum_w[lane] += w[lane];
            sum_x[lane] += w[lane] * x[lane];
        }
    }
    [min.map(|it| if it > 0.0 { 0.0 } else { it }), max, sum_w, sum_x]
}

/// The levels of one weight of each group.
#[inline(always)]
fn affine_levels<const LANES: usize>(
    n: i32,
    x: &[f32; LANES],
    inverse: &[f32; LANES],
    min: &[f32; LANES],
) -> [f32; LANES] {
    let mut levels = [0.0f32; LANES];
    for lane in 0..LANES {
        levels[lane] = nearest(inverse[lane] * (x[lane] - min[lane])).clamp(0, n) as f32;
    }
    levels
}

/// Σ weight · level, Σ weight · level² and Σ weight · level · x of the levels that inverse scales and minima give,
/// which are left in `tried`.
#[inline(always)]
fn affine_sums<const LANES: usize>(
    n: i32,
    x: &[[f32; LANES]],
    weights: &[[f32; LANES]],
    (inverse, min): (&[f32; LANES], &[f32; LANES]),
    tried: &mut [[f32; LANES]],
) -> [[f32; LANES]; 3] {
    let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    for ((x, w), tried) in x.iter().zip(weights).zip(tried) {
        let levels = affine_levels(n, x, inverse, min);
        for lane in 0..LANES {
            let weighted = w[lane] * levels[lane];
            sum_l[lane] += weighted;
            sum_l2[lane] += weighted * levels[lane];
            sum_xl[lane] += weighted * x[lane];
        }
        *tried = levels;
    }
    [sum_l, sum_l2, sum_xl]
}

/// The weighted error of `scale · level + min` against `x`.
#[inline(always)]
fn affine_error<const LANES: usize>(
    x: &[[f32; LANES]],
    weights: &[[f32; LANES]],
    levels: &[[f32; LANES]],
    (scale, min): (&[f32; LANES], &[f32; LANES]),
    absolute: bool,
) -> [f32; LANES] {
    let mut sum = [0.0f32; LANES];
    for ((x, w), level) in x.iter().zip(weights).zip(levels) {
        for lane in 0..LANES {
            let difference = scale[lane] * level[lane] + min[lane] - x[lane];
            sum[lane] += w[lane] * if absolute { difference.abs() } else { difference * difference };
        }
    }
    sum
}

/// Finds the scale of numbers that are not negative, with levels in `0..=n` and weights (`make_qp_quants`).
pub(crate) fn positive(n: i32, x: &[f32], weights: &[f32], levels: &mut [u8]) -> f32 {
    let max = x.iter().fold(0.0f32, |max, &x| if max > x { max } else { x });
    if max < GROUP_MAX_EPSILON {
        levels.fill(0);
        return 0.0;
    }
    let inverse = best_inverse(n, x, weights, max);
    let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
    for ((level, &x), &w) in levels.iter_mut().zip(x).zip(weights) {
        *level = nearest(inverse * x).min(n) as u8;
        let l = f32::from(*level);
        sum_lx += w * x * l;
        sum_l2 += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((level, &x), &w) in levels.iter_mut().zip(x).zip(weights) {
            let l = f32::from(*level);
            let mut trial_lx = sum_lx - w * x * l;
            let mut trial_l2 = sum_l2 - w * l * l;
            if !(trial_lx > 0.0 && trial_l2 > 0.0) {
                continue;
            }
            let trial = nearest(x * trial_l2 / trial_lx).min(n);
            if trial == i32::from(*level) {
                continue;
            }
            trial_lx += w * x * trial as f32;
            trial_l2 += w * trial as f32 * trial as f32;
            if trial_lx * trial_lx * sum_l2 > sum_lx * sum_lx * trial_l2 {
                (*level, sum_lx, sum_l2, changed) = (trial as u8, trial_lx, trial_l2, true);
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// The best of nine inverse scales around `n / max`, by weighted square error.
fn best_inverse(n: i32, x: &[f32], weights: &[f32], max: f32) -> f32 {
    let error = |inverse: f32, clamp: bool| {
        let scale = 1.0 / inverse;
        let mut sum = 0.0f32;
        for (&x, &w) in x.iter().zip(weights) {
            let level = nearest(inverse * x);
            let difference = x - scale * (if clamp { level.min(n) } else { level }) as f32;
            sum += w * difference * difference;
        }
        sum
    };
    let mut inverse = n as f32 / max;
    let mut best = error(inverse, false);
    for step in (-4..=4).filter(|&it| it != 0) {
        let trial_inverse = (0.1 * step as f32 + n as f32) / max;
        let trial = error(trial_inverse, true);
        if trial < best {
            (best, inverse) = (trial, trial_inverse);
        }
    }
    inverse
}
