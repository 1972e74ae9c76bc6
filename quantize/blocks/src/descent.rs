//! Better codes for one block: descent from the codes that the stock encoder chose, towards the least weighted square
//! error. Knows no byte layout.
//!
//! The error is the sum over the block of importance times the square of what the decoded weight is off by: what the
//! stock searches only approximate, because they choose scales before those are rounded, and because their weights
//! favour large magnitudes beyond what the importance says. Every step here is taken only if the error as it will be
//! decoded becomes less, so that the result is never worse than the start.

use crate::block::Half;
use crate::coded::{Grid, Parts};

/// Rounds over all numbers of a block; most blocks stand still after two or three.
const ROUNDS_MAX: usize = 4;
/// How far, in units, a scale and a minimum are moved at once.
const REACH: i16 = 1;
/// By how much a unit is stretched to start anew, in parts of itself: scales that were rounded find other places.
const STRETCHES: [f32; 2] = [0.985, 1.015];

/// One block being improved.
struct Block<'a> {
    grid: &'static Grid,
    /// `[block]`
    weights: &'a [f32],
    /// `[block]`
    importance: &'a [f32],
}

/// Lowers the weighted square error of a block (`weights` and `importance`: `[block]`) as far as single steps lead, and
/// returns it.
pub(crate) fn descend(grid: &'static Grid, weights: &[f32], importance: &[f32], parts: &mut Parts) -> f64 {
    let block = Block { grid, weights, importance };
    let mut least = block.error(parts);
    if !least.is_finite() {
        return least;
    }
    least = block.settle(parts, least);
    for stretch in STRETCHES {
        let mut other = *parts;
        other.d = Half::from_f32(parts.d.to_f32() * stretch);
        other.d_min = Half::from_f32(parts.d_min.to_f32() * stretch);
        let begins = block.error(&other);
        if begins.is_finite() {
            let error = block.settle(&mut other, begins);
            if error < least {
                (*parts, least) = (other, error);
            }
        }
    }
    least
}

impl Block<'_> {
    fn n_groups(&self) -> usize {
        self.weights.len() / self.grid.group
    }

    fn error(&self, parts: &Parts) -> f64 {
        (0..self.n_groups()).map(|it| self.group_error(parts, it)).sum()
    }

    fn group_error(&self, parts: &Parts, group: usize) -> f64 {
        let from = group * self.grid.group;
        let of_group = parts.step_and_minimum(group);
        self.codes_error(group, of_group, &parts.codes[from..from + self.grid.group])
    }

    /// The error of a group with these codes.
    fn codes_error(&self, group: usize, (step, minimum): (f32, f32), codes: &[u8]) -> f64 {
        let from = group * self.grid.group;
        let mut sum = 0.0;
        for (index, code) in codes.iter().enumerate() {
            let decoded = step * f32::from(self.grid.levels[usize::from(*code)]) - minimum;
            let off = decoded - self.weights[from + index];
            sum += f64::from(self.importance[from + index] * off * off);
        }
        sum
    }

    /// Turns to groups and units until nothing gets better.
    fn settle(&self, parts: &mut Parts, mut error: f64) -> f64 {
        for _ in 0..ROUNDS_MAX {
            let before = error;
            for group in 0..self.n_groups() {
                self.settle_group(parts, group);
            }
            error = self.error(parts);
            error = self.refit(parts, error);
            if error >= before {
                break;
            }
        }
        error
    }

    /// Tries scales and minima around those of a group, each with the nearest codes, and keeps what is best.
    fn settle_group(&self, parts: &mut Parts, group: usize) {
        let (from, n) = (group * self.grid.group, self.grid.group);
        let mut least = self.group_error(parts, group);
        let around = |it: i16, (low, high): (i16, i16)| (it - REACH).max(low)..=(it + REACH).min(high);
        let (scale, minimum) = (parts.scales[group], parts.minima[group]);
        for minimum in around(minimum, self.grid.minima) {
            for scale in around(scale, self.grid.scales) {
                let mut trial = *parts;
                (trial.scales[group], trial.minima[group]) = (scale, minimum);
                let of_group = trial.step_and_minimum(group);
                let codes = &mut trial.codes[from..from + n];
                for (code, weight) in codes.iter_mut().zip(&self.weights[from..]) {
                    *code = self.grid.nearest(*weight, of_group);
                }
                let error = self.codes_error(group, of_group, codes);
                if error < least {
                    (*parts, least) = (trial, error);
                }
            }
        }
    }

    /// Moves the units to where the error is least with the codes as they are, rounded as they will be stored.
    fn refit(&self, parts: &mut Parts, error: f64) -> f64 {
        // weight = d · a - d_min · b
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
        for (index, (weight, importance)) in self.weights.iter().zip(self.importance).enumerate() {
            let group = index / self.grid.group;
            let level = self.grid.levels[usize::from(parts.codes[index])];
            let a = f64::from(parts.scales[group]) * f64::from(level);
            let b = -f64::from(parts.minima[group]);
            let (w, x) = (f64::from(*importance), f64::from(*weight));
            (aa, ab, bb) = (aa + w * a * a, ab + w * a * b, bb + w * b * b);
            (ax, bx) = (ax + w * a * x, bx + w * b * x);
        }
        let determinant = aa * bb - ab * ab;
        let both = (self.grid.has_minima() && determinant > 1e-12 * aa * bb)
            .then(|| ((ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant));
        let (d, d_min) = both.unwrap_or_else(|| (ax / aa, f64::from(parts.d_min.to_f32())));
        let trial = Parts { d: Half::from_f32(d as f32), d_min: Half::from_f32(d_min as f32), ..*parts };
        let trial_error = self.error(&trial);
        if trial_error < error {
            *parts = trial;
            return trial_error;
        }
        error
    }
}
