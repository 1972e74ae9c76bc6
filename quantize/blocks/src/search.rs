//! The searches for scales and levels that the encoders share; knows no block layout.
//!
//! Each follows its namesake in `ggml-quants.c` operation by operation in `f32`, so that the chosen levels are equal.

/// Below this a group counts as all zero (`GROUP_MAX_EPS`).
pub(crate) const GROUP_MAX_EPSILON: f32 = 1e-15;

/// The nearest whole number, ties to even, by way of the float's mantissa (`nearest_int`). Right for magnitudes up to
/// 4194303; beyond, and for NaN, some number of at most that magnitude.
pub(crate) fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The value of largest magnitude, and that magnitude.
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
pub(crate) fn weigh(importance: &[f32], x: &[f32], sigma2: f32, into: &mut [f32]) {
    for ((into, &importance), &x) in into.iter_mut().zip(importance).zip(x) {
        *into = importance * (sigma2 + x * x).sqrt();
    }
}

/// The sum of squares, first to last.
pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, &x| sum + x * x)
}

/// Finds the scale and the levels in `-n..n` with the least weighted square error of `scale · level`
/// (`make_qx_quants` with `rmse_type` 1). `levels` come out shifted by `n`. Without weights, `x²` is used.
pub(crate) fn symmetric(n: i32, x: &[f32], weights: Option<&[f32]>, levels: &mut [u8]) -> f32 {
    let (value, magnitude) = extreme(x);
    if magnitude < GROUP_MAX_EPSILON {
        levels.fill(0);
        return 0.0;
    }
    let weight = |index: usize| weights.map_or(x[index] * x[index], |it| it[index]);
    let level = |inverse: f32, x: f32| nearest(inverse * x).clamp(-n, n - 1);
    let sums = |inverse: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
        for (index, &x) in x.iter().enumerate() {
            let l = level(inverse, x) as f32;
            sum_lx += weight(index) * x * l;
            sum_l2 += weight(index) * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut inverse = -n as f32 / value;
    let (sum_lx, sum_l2) = sums(inverse);
    let mut scale = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for step in (-9..=9).filter(|&it| it != 0) {
        let trial = -(n as f32 + 0.1 * step as f32) / value;
        let (sum_lx, sum_l2) = sums(trial);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            inverse = trial;
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    for (into, &x) in levels.iter_mut().zip(x) {
        *into = (level(inverse, x) + n) as u8;
    }
    scale
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

/// The largest group [`affine`] is called for.
const AFFINE_GROUP_MAX: usize = 32;

/// Finds scale and minimum with the least weighted error of `scale · level - minimum`, levels in `0..=n`, the minimum
/// not below zero (`make_qkx2_quants` and `make_qkx3_quants`). Returns both; `levels` are those of the best trial.
pub(crate) fn affine(n: i32, x: &[f32], weights: &[f32], trials: Trials, levels: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&x, &w) in x.iter().zip(weights).skip(1) {
        if x < min {
            min = x;
        }
        if x > max {
            max = x;
        }
        sum_w += w;
        sum_x += w * x;
    }
    if min > 0.0 {
        min = 0.0;
    }
    levels.fill(0);
    if max == min {
        return (0.0, -min);
    }
    let mut tried = [0.0f32; AFFINE_GROUP_MAX];
    let inverse = n as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    for (level, &x) in tried.iter_mut().zip(x) {
        *level = nearest(inverse * (x - min)).clamp(0, n) as f32;
    }
    let mut best = affine_error(x, weights, &tried, (scale, min), trials.absolute);
    keep(&tried, levels);
    for step in 0..=trials.n_steps {
        // The span is that of the best minimum so far, not of the weights: each gain moves the next trial.
        let inverse = (trials.first + trials.step * step as f32 + n as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((&x, &w), level) in x.iter().zip(weights).zip(&mut tried) {
            let l = nearest(inverse * (x - min)).clamp(0, n) as f32;
            *level = l;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant <= 0.0 || determinant.is_nan() {
            continue;
        }
        let mut trial_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut trial_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if trial_min > 0.0 {
            trial_min = 0.0;
            trial_scale = sum_xl / sum_l2;
        }
        let trial = affine_error(x, weights, &tried, (trial_scale, trial_min), trials.absolute);
        if trial < best {
            (best, scale, min) = (trial, trial_scale, trial_min);
            keep(&tried, levels);
        }
    }
    (scale, -min)
}

/// The weighted error of `scale · level + min` against `x`.
fn affine_error(x: &[f32], weights: &[f32], levels: &[f32], (scale, min): (f32, f32), absolute: bool) -> f32 {
    let mut sum = 0.0f32;
    for ((&x, &w), &level) in x.iter().zip(weights).zip(levels) {
        let difference = scale * level + min - x;
        sum += w * if absolute { difference.abs() } else { difference * difference };
    }
    sum
}

fn keep(tried: &[f32], levels: &mut [u8]) {
    for (level, &tried) in levels.iter_mut().zip(tried) {
        *level = tried as u8;
    }
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
