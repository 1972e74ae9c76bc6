//! Frozen weights as they are stored, so that a checkpoint of 16 bits takes no more here. Products are in f32.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::product;

/// Weights that are widened at once, where a matrix is so large that all of it would show.
const WIDENED_MAX: usize = 1 << 22;

/// A frozen matrix, row-major.
#[derive(Debug)]
pub(crate) enum Weights {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
}

impl Weights {
    /// All of them.
    pub(crate) fn widened(&self) -> Cow<'_, [f32]> {
        match self {
            Self::F32(values) => Cow::Borrowed(values),
            Self::BF16(values) => Cow::Owned(values.to_f32_vec()),
        }
    }

    /// Appends some of them.
    pub(crate) fn extend(&self, places: Range<usize>, to: &mut Vec<f32>) {
        match self {
            Self::F32(values) => to.extend_from_slice(&values[places]),
            Self::BF16(values) => to.extend(values[places].iter().map(|it| it.to_f32())),
        }
    }

    /// Some whole rows at a time, each with the number of its first: all at once where nothing must be widened.
    fn pieces(&self, columns: usize) -> impl Iterator<Item = (usize, Cow<'_, [f32]>)> {
        let (all, rows) = match self {
            Self::F32(values) => (values.len(), values.len() / columns),
            Self::BF16(values) => (values.len(), (WIDENED_MAX / columns).max(1)),
        };
        (0..all / columns).step_by(rows.max(1)).map(move |row| {
            let places = row * columns..((row + rows) * columns).min(all);
            let values = match self {
                Self::F32(values) => Cow::Borrowed(&values[places]),
                Self::BF16(values) => Cow::Owned(values[places].to_f32_vec()),
            };
            (row, values)
        })
    }

    /// `x · Wᵀ`: `x [rows, columns]`, `W [outputs, columns]`, to `[rows, outputs]`.
    pub(crate) fn times(&self, x: &[f32], outputs: usize, threads: usize) -> Vec<f32> {
        let columns = self.len() / outputs;
        let rows = x.len() / columns;
        let mut out = vec![0.0; rows * outputs];
        for (first, weight) in self.pieces(columns) {
            let sizes = (rows, weight.len() / columns, columns);
            let (x, w) = ((x, (columns, 1)), (&*weight, (1, columns)));
            product(sizes, 1.0, x, w, 0.0, (&mut out[first..], outputs), threads);
        }
        out
    }

    /// `dy · W`: `dy [rows, outputs]`, `W [outputs, columns]`, to `dx [rows, columns]`.
    pub(crate) fn times_back(&self, dy: &[f32], outputs: usize, dx: &mut [f32], threads: usize) {
        let columns = self.len() / outputs;
        let rows = dy.len() / outputs;
        for (first, weight) in self.pieces(columns) {
            let sizes = (rows, columns, weight.len() / columns);
            let (dy, w) = ((&dy[first..], (outputs, 1)), (&*weight, (columns, 1)));
            let kept = if first == 0 { 0.0 } else { 1.0 };
            product(sizes, 1.0, dy, w, kept, (&mut *dx, columns), threads);
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::BF16(values) => values.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::noise;
    use super::*;

    #[test]
    fn weights_of_16_bits_count_as_what_they_are() {
        // More than are widened at once.
        let (columns, outputs) = (1024, WIDENED_MAX / 1024 + 700);
        let narrow: Vec<bf16> = noise(columns * outputs, 1, 1.0).into_iter().map(bf16::from_f32).collect();
        let wide = Weights::F32(narrow.to_f32_vec());
        let narrow = Weights::BF16(narrow);
        assert_eq!(narrow.widened(), wide.widened());
        let x = noise(3 * columns, 2, 1.0);
        assert_eq!(narrow.times(&x, outputs, 1), wide.times(&x, outputs, 1));
        let dy = noise(3 * outputs, 3, 1.0);
        let [mut from_narrow, mut from_wide] = [vec![0.0; x.len()], vec![0.0; x.len()]];
        narrow.times_back(&dy, outputs, &mut from_narrow, 1);
        wide.times_back(&dy, outputs, &mut from_wide, 1);
        let apart = from_narrow.iter().zip(&from_wide).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-3, "{apart}");
        let mut rows = Vec::new();
        narrow.extend(5..9, &mut rows);
        assert_eq!(rows, wide.widened()[5..9]);
    }
}
