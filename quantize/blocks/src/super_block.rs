//! What the super-blocks of 256 weights share: fitting groups, packing levels and scales; knows no single format.

use crate::activations::Q8_K;
use crate::block::Half;
use crate::coded::Parts;
use crate::search::{self, Trials, nearest};

/// Weights per super-block (`QK_K`).
pub(crate) const WEIGHTS: usize = 256;

/// Groups that are searched side by side: eight of 32 weights are a super-block, eight of 16 half of one.
pub(crate) const LANES: usize = 8;
/// The largest group.
const GROUP_MAX: usize = WEIGHTS / LANES;

/// Groups as lanes: number `i` of group `g` becomes number `g` of row `i`. Rows beyond the group's length stay zero.
#[inline(always)]
pub(crate) fn side_by_side(groups: &[f32]) -> [[f32; LANES]; GROUP_MAX] {
    let mut rows = [[0.0; LANES]; GROUP_MAX];
    for (lane, group) in groups.chunks_exact(groups.len() / LANES).enumerate() {
        for (row, number) in rows.iter_mut().zip(group) {
            row[lane] = *number;
        }
    }
    rows
}

/// Undoes [`side_by_side`].
#[inline(always)]
pub(crate) fn one_after_another(rows: &[[u8; LANES]], groups: &mut [u8]) {
    for (lane, group) in groups.chunks_exact_mut(rows.len()).enumerate() {
        for (number, row) in group.iter_mut().zip(rows) {
            *number = row[lane];
        }
    }
}

/// The weights of a super-block as an array.
///
/// # Panics
/// When they are less.
#[inline(always)]
pub(crate) fn whole(weights: &[f32]) -> &[f32; WEIGHTS] {
    &weights.as_chunks().0[0]
}

/// A format whose groups have a scale and a minimum: `weight = d · scale · level - d_min · minimum`.
pub(crate) struct Affine {
    /// Weights per group: 16 or 32.
    pub(crate) group: usize,
    /// The largest level.
    pub(crate) level_max: i32,
    /// The largest scale and minimum of a group.
    pub(crate) scale_max: i32,
    /// What to try without importance.
    pub(crate) trials: Trials,
    /// Whether weights without importance count by `|x|` alone, or by `|x|` and their group's root mean square.
    pub(crate) magnitude_only: bool,
    /// By how much the mean square of the super-block enters the weights with importance.
    pub(crate) sigma_factor: f32,
}

/// A super-block fitted by [`Affine::fit`], not yet packed.
pub(crate) struct Fitted {
    pub(crate) d: Half,
    pub(crate) d_min: Half,
    /// Scale and minimum of each group; only the first `256 / group` count.
    pub(crate) scales: [u8; 16],
    pub(crate) minima: [u8; 16],
    pub(crate) levels: [u8; WEIGHTS],
}

impl From<&Parts> for Fitted {
    fn from(parts: &Parts) -> Self {
        let Parts { d, d_min, scales, minima, codes } = *parts;
        Self { d, d_min, scales: scales.map(|it| it as u8), minima: minima.map(|it| it as u8), levels: codes }
    }
}

/// The numbers of a block whose groups have scales and minima, and whose least level is 0.
pub(crate) fn affine_parts(
    [d, d_min]: [Half; 2],
    scales_and_minima: impl Iterator<Item = (u8, u8)>,
    levels: &[i8; WEIGHTS],
) -> Parts {
    let mut parts = Parts { d, d_min, ..Parts::ZERO }.with_levels(0, levels);
    for (index, (scale, minimum)) in scales_and_minima.enumerate() {
        (parts.scales[index], parts.minima[index]) = (scale.into(), minimum.into());
    }
    parts
}

/// The numbers of a block whose groups have scales, and whose least level is `first`.
pub(crate) fn symmetric_parts(d: Half, scale: impl Fn(usize) -> i8, group: usize, first: i8, levels: &[i8]) -> Parts {
    let mut parts = Parts { d, ..Parts::ZERO }.with_levels(first, levels);
    for index in 0..WEIGHTS / group {
        parts.scales[index] = scale(index).into();
    }
    parts
}

impl Affine {
    /// Fits one super-block.
    #[inline(always)]
    pub(crate) fn fit(&self, x: &[f32; WEIGHTS], importance: Option<&[f32]>) -> Fitted {
        let mut fitted = match importance {
            None => self.fit_plain(x),
            Some(importance) => self.fit_weighted(x, importance),
        };
        self.round_again(x, &mut fitted);
        fitted
    }

    /// `weight = d · scale · level - d_min · minimum`; `scale_and_minimum` of each group, `units` are `d` and `d_min`.
    #[inline(always)]
    pub(crate) fn decode(
        &self,
        levels: &[i8; WEIGHTS],
        units: [Half; 2],
        scale_and_minimum: impl Fn(usize) -> (u8, u8),
        weights: &mut [f32],
    ) {
        let [d, d_min] = units.map(Half::to_f32);
        let groups = weights.chunks_exact_mut(self.group).zip(levels.chunks_exact(self.group));
        for (index, (weights, levels)) in groups.enumerate() {
            let (scale, minimum) = scale_and_minimum(index);
            let (scale, minimum) = (d * f32::from(scale), d_min * f32::from(minimum));
            for (weight, &level) in weights.iter_mut().zip(levels) {
                *weight = scale * f32::from(level) - minimum;
            }
        }
    }

    /// The product with activations; arguments as in [`Affine::decode`].
    pub(crate) fn dot(
        &self,
        levels: &[i8; WEIGHTS],
        units: [Half; 2],
        scale_and_minimum: impl Fn(usize) -> (u8, u8),
        x: &Q8_K,
    ) -> f32 {
        let [d, d_min] = units.map(Half::to_f32);
        let products = dot_groups(levels, &x.levels, self.group, |it| i32::from(scale_and_minimum(it).0));
        let minima: i32 = (x.sums.iter().enumerate())
            .map(|(index, &sum)| i32::from(sum) * i32::from(scale_and_minimum(index * 16 / self.group).1))
            .sum();
        d * x.d * products as f32 - d_min * x.d * minima as f32
    }

    #[inline(always)]
    fn fit_plain(&self, x: &[f32; WEIGHTS]) -> Fitted {
        let (mut scales, mut minima) = ([0.0f32; 16], [0.0f32; 16]);
        let mut levels = [0u8; WEIGHTS];
        let batch = LANES * self.group;
        for (index, (x, levels)) in x.chunks_exact(batch).zip(levels.chunks_exact_mut(batch)).enumerate() {
            let x = side_by_side(x);
            let x = &x[..self.group];
            let mut squares = [0.0f32; LANES];
            for x in x {
                squares.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
            }
            let base = squares.map(|it| if self.magnitude_only { 0.0 } else { (it / self.group as f32).sqrt() });
            let weigh = |x: &[f32; LANES]| std::array::from_fn(|lane| base[lane] + x[lane].abs());
            let mut weights = [[0.0f32; LANES]; GROUP_MAX];
            weights.iter_mut().zip(x).for_each(|(weights, x)| *weights = weigh(x));
            let found = self.search(x, &weights[..self.group], self.trials, levels);
            scales[LANES * index..][..LANES].copy_from_slice(&found.0);
            minima[LANES * index..][..LANES].copy_from_slice(&found.1);
        }
        let (d, scales) = self.scale_by_largest(&scales);
        let (d_min, minima) = self.scale_by_largest(&minima);
        Fitted { d, d_min, scales, minima, levels }
    }

    /// Scales and minima of groups that lie side by side; their levels come out one group after another.
    #[inline(always)]
    fn search(
        &self,
        x: &[[f32; LANES]],
        weights: &[[f32; LANES]],
        trials: Trials,
        levels: &mut [u8],
    ) -> ([f32; LANES], [f32; LANES]) {
        let mut found = [[0u8; LANES]; GROUP_MAX];
        let found = &mut found[..self.group];
        let scales_and_minima = search::affine(self.level_max, x, weights, trials, found);
        one_after_another(found, levels);
        scales_and_minima
    }

    /// Rounds numbers to `0..=scale_max` of the largest of them, and gives the unit.
    #[inline(always)]
    fn scale_by_largest(&self, values: &[f32; 16]) -> (Half, [u8; 16]) {
        let max = values.iter().fold(0.0f32, |max, &it| if it > max { it } else { max });
        let inverse = if max > 0.0 { self.scale_max as f32 / max } else { 0.0 };
        let rounded = values.map(|it| nearest(inverse * it).clamp(0, self.scale_max) as u8);
        (Half::from_f32(max / self.scale_max as f32), rounded)
    }

    #[inline(always)]
    fn fit_weighted(&self, x: &[f32; WEIGHTS], importance: &[f32]) -> Fitted {
        let sigma2 = self.sigma_factor * search::sum_of_squares(x) / WEIGHTS as f32;
        let (mut scales, mut minima, mut totals) = ([0.0f32; 16], [0.0f32; 16], [0.0f32; 16]);
        let mut levels = [0u8; WEIGHTS];
        let batch = LANES * self.group;
        let batches = x.chunks_exact(batch).zip(importance.chunks_exact(batch)).zip(levels.chunks_exact_mut(batch));
        for (index, ((x, importance), levels)) in batches.enumerate() {
            let mut weights = [0.0f32; LANES * GROUP_MAX];
            search::weigh(importance, x, sigma2, &mut weights[..batch]);
            let (x, weights) = (side_by_side(x), side_by_side(&weights[..batch]));
            let (x, weights) = (&x[..self.group], &weights[..self.group]);
            let found = self.search(x, weights, Trials::WITH_IMPORTANCE, levels);
            scales[LANES * index..][..LANES].copy_from_slice(&found.0);
            minima[LANES * index..][..LANES].copy_from_slice(&found.1);
            for weights in weights {
                for (total, weight) in totals[LANES * index..][..LANES].iter_mut().zip(weights) {
                    *total += weight;
                }
            }
        }
        let n = WEIGHTS / self.group;
        let (mut rounded_scales, mut rounded_minima) = ([0u8; 16], [0u8; 16]);
        let d = search::positive(self.scale_max, &scales[..n], &totals[..n], &mut rounded_scales[..n]);
        let d_min = search::positive(self.scale_max, &minima[..n], &totals[..n], &mut rounded_minima[..n]);
        Fitted {
            d: Half::from_f32(d),
            d_min: Half::from_f32(d_min),
            scales: rounded_scales,
            minima: rounded_minima,
            levels,
        }
    }

    /// Rounds the weights once more with the scales as they are stored. A group without a scale keeps its levels.
    #[inline(always)]
    fn round_again(&self, x: &[f32; WEIGHTS], fitted: &mut Fitted) {
        let (d, d_min) = (fitted.d.to_f32(), fitted.d_min.to_f32());
        let groups = x.chunks_exact(self.group).zip(fitted.levels.chunks_exact_mut(self.group));
        for (index, (x, levels)) in groups.enumerate() {
            let scale = d * f32::from(fitted.scales[index]);
            if scale == 0.0 {
                continue;
            }
            let minimum = d_min * f32::from(fitted.minima[index]);
            for (level, &x) in levels.iter_mut().zip(x) {
                *level = nearest((x + minimum) / scale).clamp(0, self.level_max) as u8;
            }
        }
    }
}

/// Rounds the weights of symmetric groups of 16 with the scales as they are stored: levels in `-n..n`, shifted by `n`.
/// A group without a scale keeps its levels.
#[inline(always)]
pub(crate) fn round_symmetric(n: i32, x: &[f32; WEIGHTS], scale_of: impl Fn(usize) -> f32, levels: &mut [u8; WEIGHTS]) {
    for (index, (x, levels)) in x.chunks_exact(16).zip(levels.chunks_exact_mut(16)).enumerate() {
        let scale = scale_of(index);
        if scale == 0.0 {
            continue;
        }
        for (level, &x) in levels.iter_mut().zip(x) {
            *level = (nearest(x / scale).clamp(-n, n - 1) + n) as u8;
        }
    }
}

/// Eight scales and eight minima of 6 bits in 12 bytes: the low bits of the first four of each lie apart, the high two
/// bits of the same bytes belong to the last four.
#[inline(always)]
pub(crate) fn pack_6_bit(scales: &[u8; 16], minima: &[u8; 16]) -> [u8; 12] {
    let mut packed = [0u8; 12];
    for index in 0..4 {
        packed[index] = scales[index] | (scales[index + 4] >> 4) << 6;
        packed[index + 4] = minima[index] | (minima[index + 4] >> 4) << 6;
        packed[index + 8] = (scales[index + 4] & 0xf) | (minima[index + 4] & 0xf) << 4;
    }
    packed
}

/// Undoes [`pack_6_bit`] for one group: its scale and its minimum.
#[inline(always)]
pub(crate) fn unpack_6_bit(packed: &[u8; 12], index: usize) -> (u8, u8) {
    if index < 4 {
        return (packed[index] & 63, packed[index + 4] & 63);
    }
    let low = packed[index + 4];
    ((low & 0xf) | (packed[index - 4] >> 6) << 4, (low >> 4) | (packed[index] >> 6) << 4)
}

/// Levels of 2 bits: in each half of the super-block, byte `l` holds weights `l`, `l + 32`, `l + 64`, `l + 96`.
#[inline(always)]
pub(crate) fn pack_2_bit(levels: &[u8; WEIGHTS]) -> [u8; 64] {
    std::array::from_fn(|index| {
        let first = 128 * (index / 32) + index % 32;
        (0..4).fold(0, |byte, part| byte | (levels[first + 32 * part] & 3) << (2 * part))
    })
}

/// Undoes [`pack_2_bit`].
#[inline(always)]
pub(crate) fn unpack_2_bit(packed: &[u8; 64]) -> [i8; WEIGHTS] {
    let mut levels = [0; WEIGHTS];
    for (levels, packed) in levels.as_chunks_mut::<128>().0.iter_mut().zip(packed.as_chunks::<32>().0) {
        for (part, levels) in levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (level, byte) in levels.iter_mut().zip(packed) {
                *level = (byte >> (2 * part) & 3) as i8;
            }
        }
    }
    levels
}

/// Levels of 4 bits: in each quarter of the super-block, byte `l` holds weights `l` and `l + 32`.
#[inline(always)]
pub(crate) fn pack_4_bit(levels: &[u8; WEIGHTS]) -> [u8; 128] {
    std::array::from_fn(|index| {
        let first = 64 * (index / 32) + index % 32;
        (levels[first] & 0xf) | (levels[first + 32] & 0xf) << 4
    })
}

/// Undoes [`pack_4_bit`]. In runs of 32 levels, of which compilers make vectors.
#[inline(always)]
pub(crate) fn unpack_4_bit(packed: &[u8; 128]) -> [i8; WEIGHTS] {
    let mut levels = [0; WEIGHTS];
    for (levels, packed) in levels.as_chunks_mut::<64>().0.iter_mut().zip(packed.as_chunks::<32>().0) {
        for byte in 0..32 {
            levels[byte] = (packed[byte] & 0xf) as i8;
            levels[byte + 32] = (packed[byte] >> 4) as i8;
        }
    }
    levels
}

/// `weight = d · scale · level`, `GROUP` weights to a scale.
#[inline(always)]
pub(crate) fn decode<const GROUP: usize>(
    levels: &[i8; WEIGHTS],
    d: Half,
    scale: impl Fn(usize) -> i8,
    weights: &mut [f32],
) {
    let d = d.to_f32();
    for (group, (weights, levels)) in weights.chunks_exact_mut(GROUP).zip(levels.chunks_exact(GROUP)).enumerate() {
        let scale = d * f32::from(scale(group));
        for (weight, &level) in weights.iter_mut().zip(levels) {
            *weight = scale * f32::from(level);
        }
    }
}

/// The product with activations; arguments as in [`decode`].
pub(crate) fn dot<const GROUP: usize>(levels: &[i8; WEIGHTS], d: Half, scale: impl Fn(usize) -> i8, x: &Q8_K) -> f32 {
    d.to_f32() * x.d * dot_groups(levels, &x.levels, GROUP, |it| i32::from(scale(it))) as f32
}

/// The sum over groups of `scale · Σ level · activation`, exactly.
fn dot_groups(levels: &[i8; WEIGHTS], values: &[i8; WEIGHTS], group: usize, scale: impl Fn(usize) -> i32) -> i32 {
    let groups = levels.chunks_exact(group).zip(values.chunks_exact(group)).enumerate();
    groups
        .map(|(index, (levels, values))| {
            let sum: i32 = levels.iter().zip(values).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
            scale(index) * sum
        })
        .sum()
}
