//! The searches for scales and levels that the encoders share; knows no block layout.
//!
//! Each follows its namesake in `ggml-quants.c` operation by operation in `f32`, so that the chosen levels are equal.
//! What must be summed in order within a group is fast all the same where groups are searched side by side, one to a
//! lane of a vector. Vectors are as wide as the machine's, one of which is chosen when the program runs; nothing is
//! contracted in any of them.

use pulp::{Arch, Simd, WithSimd};

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
pub(crate) fn symmetric<const LANES: usize>(
    n: i32,
    x: &[[f32; LANES]],
    weights: Option<&[[f32; LANES]]>,
    levels: &mut [[u8; LANES]],
) -> [f32; LANES] {
    Arch::new().dispatch(Symmetric { n, x, weights, levels })
}

/// What [`symmetric`] is given.
struct Symmetric<'a, const LANES: usize> {
    n: i32,
    x: &'a [[f32; LANES]],
    weights: Option<&'a [[f32; LANES]]>,
    levels: &'a mut [[u8; LANES]],
}

impl<const LANES: usize> WithSimd for Symmetric<'_, LANES> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f32; LANES] {
        let mut scales = [0.0; LANES];
        for first in (0..LANES).step_by(S::F32_LANES) {
            let vectors = Vectors { simd, first, last: LANES.min(first + S::F32_LANES) };
            let (x, n_x) = vectors.load(self.x);
            let x = &x[..n_x];
            // Each weight, and its product with `x`.
            let mut weighted = [[simd.splat_f32s(0.0); 2]; GROUP_MAX];
            let given = self.weights.map(|it| vectors.load(it).0);
            for (index, (into, &x)) in weighted.iter_mut().zip(x).enumerate() {
                let weight = given.map_or_else(|| simd.mul_f32s(x, x), |it| it[index]);
                *into = [weight, simd.mul_f32s(weight, x)];
            }
            let (scale, inverse, is_zero) = symmetric_scale(simd, self.n as f32, x, &weighted);
            vectors.store(scale, &mut scales);
            for (into, &x) in self.levels.iter_mut().zip(x) {
                let level = symmetric_level(simd, self.n as f32, x, inverse);
                let level = simd.add_f32s(level, simd.splat_f32s(self.n as f32));
                vectors.store_levels(simd.select_f32s(is_zero, simd.splat_f32s(0.0), level), into);
            }
        }
        scales
    }
}

/// Scale and inverse scale of the best levels, and whether a group is all zero.
#[inline(always)]
fn symmetric_scale<S: Simd>(simd: S, n: f32, x: &[S::f32s], weighted: &[[S::f32s; 2]]) -> (S::f32s, S::f32s, S::m32s) {
    let zero = simd.splat_f32s(0.0);
    let (mut value, mut magnitude) = (zero, zero);
    for &x in x {
        let is_larger = simd.less_than_f32s(magnitude, simd.abs_f32s(x));
        value = simd.select_f32s(is_larger, x, value);
        magnitude = simd.select_f32s(is_larger, simd.abs_f32s(x), magnitude);
    }
    let mut inverse = simd.div_f32s(simd.splat_f32s(-n), value);
    let [lx, l2] = symmetric_sums(simd, n, x, weighted, inverse);
    let mut scale = simd.select_f32s(simd.less_than_f32s(zero, l2), simd.div_f32s(lx, l2), zero);
    let mut best = simd.mul_f32s(scale, lx);
    for step in (-9..=9).filter(|&it| it != 0) {
        let trial = simd.div_f32s(simd.splat_f32s(-(n + 0.1 * step as f32)), value);
        let [lx, l2] = symmetric_sums(simd, n, x, weighted, trial);
        let gains = simd.less_than_f32s(simd.mul_f32s(best, l2), simd.mul_f32s(lx, lx));
        let gains = simd.and_m32s(gains, simd.less_than_f32s(zero, l2));
        let fitted = simd.div_f32s(lx, l2);
        inverse = simd.select_f32s(gains, trial, inverse);
        scale = simd.select_f32s(gains, fitted, scale);
        best = simd.select_f32s(gains, simd.mul_f32s(fitted, lx), best);
    }
    let is_zero = simd.less_than_f32s(magnitude, simd.splat_f32s(GROUP_MAX_EPSILON));
    (simd.select_f32s(is_zero, zero, scale), inverse, is_zero)
}

/// The level of one weight of each group, in `-n..n`.
#[inline(always)]
fn symmetric_level<S: Simd>(simd: S, n: f32, x: S::f32s, inverse: S::f32s) -> S::f32s {
    between(simd, -n, n - 1.0, nearest_whole(simd, simd.mul_f32s(inverse, x)))
}

/// Σ weight · x · level and Σ weight · level² of the levels that inverse scales give; `weighted` has the weight and
/// its product with `x`.
#[inline(always)]
fn symmetric_sums<S: Simd>(
    simd: S,
    n: f32,
    x: &[S::f32s],
    weighted: &[[S::f32s; 2]],
    inverse: S::f32s,
) -> [S::f32s; 2] {
    let [mut sum_lx, mut sum_l2] = [simd.splat_f32s(0.0); 2];
    for (&x, &[weight, weight_x]) in x.iter().zip(weighted) {
        let level = symmetric_level(simd, n, x, inverse);
        sum_lx = simd.add_f32s(sum_lx, simd.mul_f32s(weight_x, level));
        sum_l2 = simd.add_f32s(sum_l2, simd.mul_f32s(simd.mul_f32s(weight, level), level));
    }
    [sum_lx, sum_l2]
}

/// The groups that one vector holds.
#[derive(Clone, Copy)]
struct Vectors<S> {
    simd: S,
    first: usize,
    last: usize,
}

impl<S: Simd> Vectors<S> {
    /// Their numbers, and how many of them each group has.
    #[inline(always)]
    fn load<const LANES: usize>(self, rows: &[[f32; LANES]]) -> ([S::f32s; GROUP_MAX], usize) {
        let mut loaded = [self.simd.splat_f32s(0.0); GROUP_MAX];
        for (into, row) in loaded.iter_mut().zip(rows) {
            *into = self.simd.partial_load_f32s(&row[self.first..self.last]);
        }
        (loaded, rows.len())
    }

    #[inline(always)]
    fn store<const LANES: usize>(self, values: S::f32s, into: &mut [f32; LANES]) {
        self.simd.partial_store_f32s(&mut into[self.first..self.last], values);
    }

    #[inline(always)]
    fn store_levels<const LANES: usize>(self, levels: S::f32s, into: &mut [u8; LANES]) {
        let mut wide = [0.0f32; LANES];
        self.store(levels, &mut wide);
        for (into, level) in into.iter_mut().zip(wide).take(self.last).skip(self.first) {
            *into = level as u8;
        }
    }
}

/// As [`nearest`], for numbers of which magnitudes beyond 4194303 are cut to less anyway.
#[inline(always)]
fn nearest_whole<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    let shift = simd.splat_f32s(12_582_912.0);
    simd.sub_f32s(simd.add_f32s(value, shift), shift)
}

/// Cuts numbers to a range.
#[inline(always)]
fn between<S: Simd>(simd: S, least: f32, most: f32, value: S::f32s) -> S::f32s {
    simd.min_f32s(simd.max_f32s(value, simd.splat_f32s(least)), simd.splat_f32s(most))
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
pub(crate) fn affine<const LANES: usize>(
    n: i32,
    x: &[[f32; LANES]],
    weights: &[[f32; LANES]],
    trials: Trials,
    levels: &mut [[u8; LANES]],
) -> ([f32; LANES], [f32; LANES]) {
    Arch::new().dispatch(Affine { n, x, weights, trials, levels })
}

/// What [`affine`] is given.
struct Affine<'a, const LANES: usize> {
    n: i32,
    x: &'a [[f32; LANES]],
    weights: &'a [[f32; LANES]],
    trials: Trials,
    levels: &'a mut [[u8; LANES]],
}

impl<const LANES: usize> WithSimd for Affine<'_, LANES> {
    type Output = ([f32; LANES], [f32; LANES]);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let (mut scales, mut minima) = ([0.0; LANES], [0.0; LANES]);
        for first in (0..LANES).step_by(S::F32_LANES) {
            let vectors = Vectors { simd, first, last: LANES.min(first + S::F32_LANES) };
            let (x, n_x) = vectors.load(self.x);
            let (weights, _) = vectors.load(self.weights);
            let (x, n) = (&x[..n_x], self.n as f32);
            let found = affine_fit(simd, n, x, &weights, self.trials);
            vectors.store(found.scale, &mut scales);
            vectors.store(found.min, &mut minima);
            for (into, &x) in self.levels.iter_mut().zip(x) {
                let level = affine_level(simd, n, x, found.inverse, found.from);
                vectors.store_levels(simd.select_f32s(found.is_flat, simd.splat_f32s(0.0), level), into);
            }
        }
        (scales, minima.map(|it| -it))
    }
}

/// The best trial.
struct AffineFit<S: Simd> {
    scale: S::f32s,
    min: S::f32s,
    inverse: S::f32s,
    /// The minimum that its levels were counted from.
    from: S::f32s,
    /// Such a group has no levels.
    is_flat: S::m32s,
}

#[inline(always)]
fn affine_fit<S: Simd>(simd: S, n: f32, x: &[S::f32s], weights: &[S::f32s], trials: Trials) -> AffineFit<S> {
    let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
    let [mut min, max, sum_w, sum_x] = affine_span(simd, x, weights);
    let is_flat = simd.equal_f32s(max, min);
    let mut tried = [zero; GROUP_MAX];
    let mut inverse = simd.div_f32s(simd.splat_f32s(n), simd.sub_f32s(max, min));
    let mut from = min;
    let mut scale = simd.div_f32s(one, inverse);
    for (level, &x) in tried.iter_mut().zip(x) {
        *level = affine_level(simd, n, x, inverse, min);
    }
    let mut best = affine_error(simd, x, weights, &tried, (scale, min), trials.absolute);
    for step in 0..=trials.n_steps {
        // The span is that of the best minimum so far, not of the weights: each gain moves the next trial.
        let stretched = simd.splat_f32s(trials.first + trials.step * step as f32 + n);
        let trial_inverse = simd.div_f32s(stretched, simd.sub_f32s(max, min));
        let [sum_l, sum_l2, sum_xl] = affine_sums(simd, n, x, weights, (trial_inverse, min), &mut tried);
        let cross = |[a, b, c, d]: [S::f32s; 4]| simd.sub_f32s(simd.mul_f32s(a, b), simd.mul_f32s(c, d));
        let determinant = cross([sum_w, sum_l2, sum_l, sum_l]);
        let fitted_min = simd.div_f32s(cross([sum_l2, sum_x, sum_l, sum_xl]), determinant);
        let fitted = simd.div_f32s(cross([sum_w, sum_xl, sum_x, sum_l]), determinant);
        let is_above = simd.less_than_f32s(zero, fitted_min);
        let trial_min = simd.select_f32s(is_above, zero, fitted_min);
        let trial_scale = simd.select_f32s(is_above, simd.div_f32s(sum_xl, sum_l2), fitted);
        let trial = affine_error(simd, x, weights, &tried, (trial_scale, trial_min), trials.absolute);
        let gains = simd.and_m32s(simd.less_than_f32s(zero, determinant), simd.less_than_f32s(trial, best));
        let or = |trial, best| simd.select_f32s(gains, trial, best);
        (best, inverse, from) = (or(trial, best), or(trial_inverse, inverse), or(min, from));
        (scale, min) = (or(trial_scale, scale), or(trial_min, min));
    }
    AffineFit { scale: simd.select_f32s(is_flat, zero, scale), min, inverse, from, is_flat }
}

/// The least weight, at most zero, and the largest, the sum of what they count, and that of their products.
#[inline(always)]
fn affine_span<S: Simd>(simd: S, x: &[S::f32s], weights: &[S::f32s]) -> [S::f32s; 4] {
    let (mut min, mut max, mut sum_w) = (x[0], x[0], weights[0]);
    let mut sum_x = simd.mul_f32s(sum_w, x[0]);
    for (&x, &w) in x.iter().zip(weights).skip(1) {
        min = simd.min_f32s(x, min);
        max = simd.max_f32s(x, max);
        sum_w = simd.add_f32s(sum_w, w);
        sum_x = simd.add_f32s(sum_x, simd.mul_f32s(w, x));
    }
    [simd.min_f32s(min, simd.splat_f32s(0.0)), max, sum_w, sum_x]
}

/// The level of one weight of each group, in `0..=n`.
#[inline(always)]
fn affine_level<S: Simd>(simd: S, n: f32, x: S::f32s, inverse: S::f32s, min: S::f32s) -> S::f32s {
    between(simd, 0.0, n, nearest_whole(simd, simd.mul_f32s(inverse, simd.sub_f32s(x, min))))
}

/// Σ weight · level, Σ weight · level² and Σ weight · level · x of the levels that inverse scales and minima give,
/// which are left in `tried`.
#[inline(always)]
fn affine_sums<S: Simd>(
    simd: S,
    n: f32,
    x: &[S::f32s],
    weights: &[S::f32s],
    (inverse, min): (S::f32s, S::f32s),
    tried: &mut [S::f32s],
) -> [S::f32s; 3] {
    let [mut sum_l, mut sum_l2, mut sum_xl] = [simd.splat_f32s(0.0); 3];
    for ((&x, &w), tried) in x.iter().zip(weights).zip(tried) {
        let level = affine_level(simd, n, x, inverse, min);
        let weighted = simd.mul_f32s(w, level);
        sum_l = simd.add_f32s(sum_l, weighted);
        sum_l2 = simd.add_f32s(sum_l2, simd.mul_f32s(weighted, level));
        sum_xl = simd.add_f32s(sum_xl, simd.mul_f32s(weighted, x));
        *tried = level;
    }
    [sum_l, sum_l2, sum_xl]
}

/// The weighted error of `scale · level + min` against `x`.
#[inline(always)]
fn affine_error<S: Simd>(
    simd: S,
    x: &[S::f32s],
    weights: &[S::f32s],
    levels: &[S::f32s],
    (scale, min): (S::f32s, S::f32s),
    absolute: bool,
) -> S::f32s {
    let mut sum = simd.splat_f32s(0.0);
    for ((&x, &w), &level) in x.iter().zip(weights).zip(levels) {
        let off = simd.sub_f32s(simd.add_f32s(simd.mul_f32s(scale, level), min), x);
        let error = if absolute { simd.abs_f32s(off) } else { simd.mul_f32s(off, off) };
        sum = simd.add_f32s(sum, simd.mul_f32s(w, error));
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
