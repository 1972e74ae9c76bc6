//! Codes by error feedback: what rounding one weight does to a row's outputs is made up for by the weights to its
//! right, and then by all of them in turns. Knows no file.
//!
//! The error of a row is `(w - q)ᵀ H (w - q)`, with `H` the mean products of the inputs. First GPTQ (Frantar et al.,
//! 2210.17323): column after column is rounded, and the error is spread over the columns not yet rounded by the rows of
//! `U`, the upper Cholesky factor of `(H + λ I)⁻¹`; the scales of a block come from its weights as they then are.
//! Then coordinate descent in the same error: over codes, over scales and minima (each with its group coded anew), and
//! over the units, each step taken only if the error becomes less.

use fsq_blocks::coded::{Grid, Parts};
use fsq_blocks::{Format, Half};
use rayon::prelude::*;

use crate::moments::{Moments, add_scaled, dot};

/// What is added to the diagonal of `H` before it is inverted, in parts of its mean: GPTQ's usual hundredth spreads
/// errors further than a policy's few thousand tokens of statistics support.
const DAMPING: f64 = 0.1;
/// The same for the descent, which needs no inverse: only what keeps it from trusting columns that were never active.
const DESCENT_DAMPING: f64 = 0.01;
/// Sweeps over all codes, scales and units of a row; most rows stand still before.
const SWEEPS_MAX: usize = 12;
/// A sweep that lowers the error by less than this part of it is the last.
const GAIN_MIN: f64 = 1e-3;

/// What error feedback needs of the inputs of one matrix.
pub(crate) struct Feedback {
    columns: usize,
    /// `H`, damped for the descent, `[columns, columns]`.
    moments: Vec<f32>,
    /// `U`, `[columns, columns]`, zero below the diagonal.
    factor: Vec<f32>,
    /// The mean squares, `[columns]`.
    squares: Vec<f32>,
}

impl Feedback {
    /// Factorizes the moments; `None` where all inputs were zero.
    pub(crate) fn new(moments: &Moments) -> Option<Self> {
        let columns = moments.columns();
        let squares = moments.squares();
        let mean = squares.iter().map(|it| f64::from(*it)).sum::<f64>() / columns.max(1) as f64;
        if mean <= 0.0 || !mean.is_finite() {
            return None;
        }
        let mut damped: Vec<f64> = moments.products().iter().map(|it| f64::from(*it)).collect();
        (0..columns).for_each(|it| damped[it * columns + it] += DAMPING * mean);
        let factor = inverse_factor(damped, columns)?.into_iter().map(|it| it as f32).collect();
        let mut moments = moments.products().to_vec();
        (0..columns).for_each(|it| moments[it * columns + it] += (DESCENT_DAMPING * mean) as f32);
        Some(Self { columns, moments, factor, squares })
    }

    fn row(&self, column: usize) -> &[f32] {
        &self.moments[column * self.columns..][..self.columns]
    }

    /// Encodes one row of weights (`[columns]`) in a format with a grid.
    pub(crate) fn encode_row(&self, format: Format, grid: &'static Grid, weights: &[f32], out: &mut [u8]) {
        let mut parts = self.spread(format, grid, weights, out);
        Descent::new(self, grid, weights, &mut parts, format.block_weights()).run();
        format.put_together(&parts, out);
    }

    /// GPTQ, block by block; `out` is used for what is encoded on the way.
    fn spread(&self, format: Format, grid: &Grid, weights: &[f32], out: &mut [u8]) -> Vec<Parts> {
        let (block, block_bytes) = (format.block_weights(), format.block_bytes());
        let mut left = weights.to_vec();
        let mut all = Vec::with_capacity(weights.len() / block);
        for (index, bytes) in out.chunks_exact_mut(block_bytes).enumerate() {
            let from = index * block;
            format.encode(&left[from..from + block], Some(&self.squares[from..from + block]), bytes);
            let mut parts = format.take_apart(bytes);
            let Some(numbers) = parts.first_mut() else { continue };
            for column in from..from + block {
                let of_group = numbers.step_and_minimum((column - from) / grid.group);
                let code = grid.nearest(left[column], of_group);
                numbers.codes[column - from] = code;
                let (step, minimum) = of_group;
                let decoded = step * f32::from(grid.levels[usize::from(code)]) - minimum;
                let factor = &self.factor[column * self.columns..][..self.columns];
                let error = (left[column] - decoded) / factor[column];
                add_scaled(-error, &factor[column + 1..], &mut left[column + 1..]);
            }
            all.append(&mut parts);
        }
        all
    }
}

/// One row on its way down.
struct Descent<'a> {
    feedback: &'a Feedback,
    grid: &'static Grid,
    parts: &'a mut [Parts],
    /// Weights of a block.
    block: usize,
    /// The weights as they are decoded, `[columns]`.
    decoded: Vec<f32>,
    /// `H (w - q)`, `[columns]`.
    slope: Vec<f32>,
    /// `(w - q)ᵀ H (w - q)`, kept up by what each step gains.
    error: f64,
}

impl<'a> Descent<'a> {
    fn new(feedback: &'a Feedback, grid: &'static Grid, weights: &[f32], parts: &'a mut [Parts], block: usize) -> Self {
        let mut decoded = vec![0.0; weights.len()];
        for (parts, decoded) in parts.iter().zip(decoded.chunks_exact_mut(block)) {
            parts.decode(grid, decoded);
        }
        let off: Vec<f32> = weights.iter().zip(&decoded).map(|(weight, decoded)| weight - decoded).collect();
        let slope: Vec<f32> = (0..weights.len()).map(|it| dot(feedback.row(it), &off)).collect();
        let error = slope.iter().zip(&off).map(|(slope, off)| f64::from(*slope) * f64::from(*off)).sum();
        Self { feedback, grid, parts, block, decoded, slope, error }
    }

    fn run(mut self) {
        for _ in 0..SWEEPS_MAX {
            let before = self.error;
            for block in 0..self.parts.len() {
                self.code_block(block);
                for group in 0..self.block / self.grid.group {
                    self.settle_group(block, group);
                }
                self.move_units(block);
            }
            if before - self.error < GAIN_MIN * before {
                break;
            }
        }
    }

    /// Moves what is decoded from column `from` on by `by`, where that lowers the error by `gain`.
    fn step(&mut self, from: usize, by: &[f32], gain: f64) {
        for (index, by) in by.iter().enumerate().filter(|it| *it.1 != 0.0) {
            self.decoded[from + index] += by;
            add_scaled(-by, self.feedback.row(from + index), &mut self.slope);
        }
        self.error -= gain;
    }

    /// Gives each weight of a block, in turn, the code that is best while all others stay.
    fn code_block(&mut self, block: usize) {
        for place in 0..self.block {
            let column = block * self.block + place;
            let of_group = self.parts[block].step_and_minimum(place / self.grid.group);
            let curvature = self.feedback.row(column)[column];
            if curvature <= 0.0 || of_group.0 == 0.0 {
                continue;
            }
            let code = self.grid.nearest(self.decoded[column] + self.slope[column] / curvature, of_group);
            if code != self.parts[block].codes[place] {
                let by = self.level(code, of_group) - self.decoded[column];
                let gain = f64::from(by) * (2.0 * f64::from(self.slope[column]) - f64::from(by) * f64::from(curvature));
                if gain > 0.0 {
                    self.parts[block].codes[place] = code;
                    self.step(column, &[by], gain);
                }
            }
        }
    }

    fn level(&self, code: u8, (step, minimum): (f32, f32)) -> f32 {
        step * f32::from(self.grid.levels[usize::from(code)]) - minimum
    }

    /// Tries the scales and minima beside those of a group, each with the group coded anew.
    fn settle_group(&mut self, block: usize, group: usize) {
        const BESIDE: [(i16, i16); 6] = [(-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1)];
        for (scale, minimum) in BESIDE {
            let mut trial = self.parts[block];
            trial.scales[group] += scale;
            trial.minima[group] += minimum;
            let within = |it: i16, (low, high): (i16, i16)| (low..=high).contains(&it);
            if within(trial.scales[group], self.grid.scales) && within(trial.minima[group], self.grid.minima) {
                self.try_group(block, group, trial);
            }
        }
    }

    /// Codes a group anew under the scale and minimum of `trial`, and keeps that if the error becomes less.
    fn try_group(&mut self, block: usize, group: usize, mut trial: Parts) -> bool {
        let n = self.grid.group;
        let (place, from) = (group * n, block * self.block + group * n);
        let of_group = trial.step_and_minimum(group);
        if of_group.0 == 0.0 {
            return false;
        }
        let mut slope = [0.0f32; 32];
        slope[..n].copy_from_slice(&self.slope[from..from + n]);
        let (mut by, mut gain) = ([0.0f32; 32], 0.0f64);
        // Each weight moves to the best code under the new scale, given those before it that moved and those after it
        // that have not.
        for (index, by) in by[..n].iter_mut().enumerate() {
            let row = &self.feedback.row(from + index)[from..from + n];
            let (old, curvature) = (self.decoded[from + index], row[index]);
            let target = if curvature > 0.0 { old + slope[index] / curvature } else { old };
            let code = self.grid.nearest(target, of_group);
            trial.codes[place + index] = code;
            *by = self.level(code, of_group) - old;
            gain += f64::from(*by) * (2.0 * f64::from(slope[index]) - f64::from(*by) * f64::from(curvature));
            add_scaled(-*by, row, &mut slope[..n]);
        }
        // NaN is no gain.
        let better = gain > 1e-9 * self.error;
        if better {
            self.parts[block] = trial;
            self.step(from, &by[..n], gain);
        }
        better
    }

    /// Moves each unit of a block to where the error is least, rounded as it will be stored.
    fn move_units(&mut self, block: usize) {
        let parts = self.parts[block];
        let groups = |it: usize| it / self.grid.group;
        let scaled: Vec<f32> = (0..self.block)
            .map(|it| f32::from(parts.scales[groups(it)]) * f32::from(self.grid.levels[usize::from(parts.codes[it])]))
            .collect();
        let (old, new) = self.best_unit(block, parts.d, &scaled);
        if old != new {
            self.parts[block].d = new;
            self.follow_units(block);
        }
        if self.grid.minima == (0, 0) {
            return;
        }
        let minima: Vec<f32> = (0..self.block).map(|it| -f32::from(parts.minima[groups(it)])).collect();
        let (old, new) = self.best_unit(block, parts.d_min, &minima);
        if old != new {
            self.parts[block].d_min = new;
            self.follow_units(block);
        }
    }

    /// A unit and what it should be, where the block's weights are that unit times `direction` and something else.
    fn best_unit(&self, block: usize, unit: Half, direction: &[f32]) -> (Half, Half) {
        let from = block * self.block;
        let range = from..from + self.block;
        let along = dot(direction, &self.slope[range.clone()]);
        let curvature: f32 = (direction.iter().enumerate())
            .map(|(index, it)| it * dot(&self.feedback.row(from + index)[range.clone()], direction))
            .sum();
        let new = Half::from_f32(unit.to_f32() + along / curvature);
        let by = new.to_f32() - unit.to_f32();
        let gain = f64::from(by) * (2.0 * f64::from(along) - f64::from(by) * f64::from(curvature));
        if gain > 1e-9 * self.error && new.to_f32().is_finite() { (unit, new) } else { (unit, unit) }
    }

    /// Lets what is decoded follow after a unit of a block has moved.
    fn follow_units(&mut self, block: usize) {
        let from = block * self.block;
        let mut by = vec![0.0; self.block];
        self.parts[block].decode(self.grid, &mut by);
        by.iter_mut().zip(&self.decoded[from..]).for_each(|(new, old)| *new -= old);
        // Half of what the slope gains before the step and after it is the change of a square.
        let before = dot(&by, &self.slope[from..from + self.block]);
        self.step(from, &by, 0.0);
        let after = dot(&by, &self.slope[from..from + self.block]);
        self.error -= f64::from(before) + f64::from(after);
    }
}

/// The upper triangular `U` with `Uᵀ U = A⁻¹`, for a symmetric positive matrix `A` (`[n, n]`); `None` where it is not
/// positive.
///
/// With `A = R Rᵀ` and `R` upper triangular, `U` is the inverse of `R`.
fn inverse_factor(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    // `R`, from the last column to the first, in place.
    for j in (0..n).rev() {
        let (above, rest) = a.split_at_mut(j * n);
        let row = &mut rest[..n];
        let pivot = row[j] - row[j + 1..].iter().map(|it| it * it).sum::<f64>();
        // Also refuses NaN.
        if pivot.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
            return None;
        }
        row[j] = pivot.sqrt();
        let row = &*row;
        above.par_chunks_mut(n).with_min_len(64).for_each(|other| {
            let sum: f64 = other[j + 1..].iter().zip(&row[j + 1..]).map(|(left, right)| left * right).sum();
            other[j] = (other[j] - sum) / row[j];
        });
    }
    // `U`, from the last row to the first: `U_i = (e_i - Σ_{m > i} R_im U_m) / R_ii`.
    let mut inverse = vec![0.0f64; n * n];
    for i in (0..n).rev() {
        let (rows, below) = inverse.split_at_mut((i + 1) * n);
        let row = &mut rows[i * n..];
        row[i] = 1.0;
        for m in i + 1..n {
            let factor = a[i * n + m];
            let other = &below[(m - i - 1) * n..][m..n];
            row[m..].iter_mut().zip(other).for_each(|(sum, it)| *sum -= factor * it);
        }
        let pivot = a[i * n + i];
        row[i..].iter_mut().for_each(|it| *it /= pivot);
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reproducible numbers between -0.5 and 0.5.
    fn noise(n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1u32 << 24) - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        for n in [1, 2, 7, 130] {
            let b = noise(n * n, 3);
            let product = |i: usize, j: usize| (0..n).map(|k| b[i * n + k] * b[j * n + k]).sum::<f64>();
            let a: Vec<f64> = (0..n * n).map(|it| product(it / n, it % n) + f64::from(it / n == it % n)).collect();
            let u = inverse_factor(a.clone(), n).unwrap();
            // A Uᵀ U is the identity.
            let inverse = |i: usize, j: usize| (0..n).map(|k| u[k * n + i] * u[k * n + j]).sum::<f64>();
            for i in 0..n {
                for j in 0..n {
                    let entry: f64 = (0..n).map(|k| a[i * n + k] * inverse(k, j)).sum();
                    assert!((entry - f64::from(i == j)).abs() < 1e-9, "{n}: {i} {j} {entry}");
                    assert!(i <= j || u[i * n + j] == 0.0);
                }
            }
        }
        assert!(inverse_factor(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
        assert!(inverse_factor(vec![f64::NAN], 1).is_none());
    }
}
