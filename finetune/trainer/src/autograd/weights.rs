//! Frozen weights as they are stored, so that a checkpoint of 16 bits, or a file of fewer, takes no more here. Products
//! are in f32, of some rows at a time.

use std::borrow::Cow;
use std::ops::Range;

use fsq_blocks::Format;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::product;

/// Weights that are widened at once, where a matrix is so large that all of it would show.
const WIDENED_MAX: usize = 1 << 22;

/// Rows that one thread decodes at a time: enough to hide the cost of handing them out.
const DECODED_ROWS: usize = 16;

/// A frozen matrix, row-major.
#[derive(Debug)]
pub(crate) enum Weights {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    /// One below another: what is stacked may differ in format.
    Coded(Vec<Coded>),
}

/// Rows of blocks.
#[derive(Debug)]
pub(crate) struct Coded {
    pub(crate) format: Format,
    pub(crate) columns: usize,
    /// Of one row.
    pub(crate) row_bytes: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Coded {
    fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// Decodes as many rows, from the first one on, as there is room for.
    fn decode(&self, first: usize, weights: &mut [f32]) {
        let bytes = &self.bytes[first * self.row_bytes..];
        let pieces = weights.par_chunks_mut(DECODED_ROWS * self.columns);
        pieces.zip(bytes.par_chunks(DECODED_ROWS * self.row_bytes)).for_each(|(weights, bytes)| {
            self.format.decode(&bytes[..weights.len() / self.columns * self.row_bytes], weights);
        });
    }
}

/// Decodes some rows of matrices that lie one below another.
fn decode(stack: &[Coded], rows: &Range<usize>, columns: usize, mut weights: &mut [f32]) {
    let mut start = 0;
    for coded in stack {
        let end = start + coded.rows();
        let (from, to) = (rows.start.max(start), rows.end.min(end));
        if from < to {
            let (here, rest) = weights.split_at_mut((to - from) * columns);
            coded.decode(from - start, here);
            weights = rest;
        }
        start = end;
    }
}

impl Weights {
    /// Some rows, `[rows, columns]`.
    pub(crate) fn rows(&self, columns: usize, rows: Range<usize>) -> Cow<'_, [f32]> {
        let places = rows.start * columns..rows.end * columns;
        match self {
            Self::F32(values) => Cow::Borrowed(&values[places]),
            Self::BF16(values) => {
                let mut weights = vec![0.0; places.len()];
                let pieces = weights.par_chunks_mut(DECODED_ROWS * columns);
                let widened = pieces.zip(values[places].par_chunks(DECODED_ROWS * columns));
                widened.for_each(|(weights, values)| values.convert_to_f32_slice(weights));
                Cow::Owned(weights)
            }
            Self::Coded(coded) => {
                let mut weights = vec![0.0; places.len()];
                decode(coded, &rows, columns, &mut weights);
                Cow::Owned(weights)
            }
        }
    }

    /// All of them.
    pub(crate) fn widened(&self, columns: usize) -> Cow<'_, [f32]> {
        self.rows(columns, 0..self.len() / columns)
    }

    /// Some whole rows at a time, each with the number of its first: all at once where nothing must be widened.
    fn pieces(&self, columns: usize) -> impl Iterator<Item = (usize, Cow<'_, [f32]>)> {
        let all = self.len() / columns;
        let rows = if matches!(self, Self::F32(_)) { all } else { WIDENED_MAX / columns }.max(1);
        (0..all).step_by(rows).map(move |row| (row, self.rows(columns, row..(row + rows).min(all))))
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
            Self::Coded(coded) => coded.iter().map(|it| it.rows() * it.columns).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::noise;
    use super::*;

    /// Products with `narrow` are those with the same weights in f32.
    fn count_as(narrow: &Weights, wide: &[f32], columns: usize) {
        let (outputs, wide) = (wide.len() / columns, Weights::F32(wide.to_vec()));
        assert_eq!(narrow.widened(columns), wide.widened(columns));
        let x = noise(3 * columns, 2, 1.0);
        assert_eq!(narrow.times(&x, outputs, 1), wide.times(&x, outputs, 1));
        let dy = noise(3 * outputs, 3, 1.0);
        let [mut from_narrow, mut from_wide] = [vec![0.0; x.len()], vec![0.0; x.len()]];
        narrow.times_back(&dy, outputs, &mut from_narrow, 1);
        wide.times_back(&dy, outputs, &mut from_wide, 1);
        let apart = from_narrow.iter().zip(&from_wide).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-3, "{apart}");
        assert_eq!(narrow.rows(columns, 5..9), wide.rows(columns, 5..9));
    }

    #[test]
    fn weights_of_16_bits_count_as_what_they_are() {
        // More than are widened at once.
        let (columns, outputs) = (1024, WIDENED_MAX / 1024 + 700);
        let narrow: Vec<bf16> = noise(columns * outputs, 1, 1.0).into_iter().map(bf16::from_f32).collect();
        let wide = narrow.to_f32_vec();
        count_as(&Weights::BF16(narrow), &wide, columns);
    }

    #[test]
    fn weights_of_blocks_count_as_what_they_decode_to() {
        // A piece ends within the second matrix.
        let columns = 1024;
        let stack = [(Format::Q4_K, 7), (Format::Q6_K, WIDENED_MAX / 1024), (Format::Q8_0, 100)];
        let (mut coded, mut wide) = (Vec::new(), Vec::new());
        for (seed, (format, rows)) in (1..).zip(stack) {
            let row_bytes = format.row_bytes(columns).unwrap();
            let mut bytes = vec![0; rows * row_bytes];
            format.encode(&noise(rows * columns, seed, 1.0), None, &mut bytes);
            let mut weights = vec![0.0; rows * columns];
            format.decode(&bytes, &mut weights);
            wide.extend(weights);
            coded.push(Coded { format, columns, row_bytes, bytes });
        }
        count_as(&Weights::Coded(coded), &wide, columns);
    }
}
