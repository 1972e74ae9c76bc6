//! Which tensors of a file deserve more bits, by what rounding did to what they compute; knows no gate and no recipe.
//!
//! The first-order measure of llama.cpp's pull request 15550: of each matrix the relative error of its outputs on
//! typical inputs, √(Σ ΔW² E\[x²\] ÷ Σ W² E\[x²\]), with E\[x²\] from importance. That all matrices' relative errors
//! count alike is an approximation; it needs no forward pass.

use fsq_blocks::Format;
use fsq_gguf::{Gguf, TensorView};
use rayon::prelude::*;

/// What a tensor may be raised to, smallest first.
const STEPS: [Format; 6] = [Format::Q3_K, Format::Q4_K, Format::Q5_K, Format::Q6_K, Format::Q8_0, Format::F16];
/// The same where rows are not whole super-blocks.
const STEPS_OF_32: [Format; 4] = [Format::Q4_0, Format::Q5_0, Format::Q8_0, Format::F16];
/// A bit more halves the distance of two levels, and so divides the square of an error by this.
const ERROR_SQUARE_PER_BIT: f64 = 4.0;

/// One matrix on its way up.
struct Rising {
    name: String,
    columns: usize,
    rows: usize,
    format: Format,
    /// Square of the relative error of its outputs.
    error: f64,
    is_raised: bool,
}

/// Formats for those tensors of `candidate` that gain most for their bytes, within `budget_bytes` more for the file.
///
/// `reference` is the same policy in 16 bits. `squares_of` gives the mean square of each input column of a tensor,
/// named as in both files, with `.weight`; without any, or with another number of them, every column counts alike.
pub fn raise(
    reference: &Gguf,
    candidate: &Gguf,
    squares_of: &dyn Fn(&str) -> Option<Vec<f32>>,
    budget_bytes: usize,
) -> Vec<(String, Format)> {
    let mut rising: Vec<Rising> = candidate
        .views()
        .filter(|it| it.shape.len() > 1 && it.format.block_weights() > 1)
        .filter_map(|it| {
            let error = output_error(&reference.tensor(it.name)?, &it, squares_of(it.name))?;
            let (name, format) = (it.name.to_owned(), it.format);
            Some(Rising { name, columns: it.cols(), rows: it.rows(), format, error, is_raised: false })
        })
        .collect();
    let mut left = budget_bytes;
    while let Some((index, next, n_bytes)) = best(&rising, left) {
        let matrix = &mut rising[index];
        matrix.error /= ERROR_SQUARE_PER_BIT.powf(bits(next) - bits(matrix.format));
        (matrix.format, matrix.is_raised) = (next, true);
        left -= n_bytes;
    }
    rising.into_iter().filter(|it| it.is_raised).map(|it| (it.name, it.format)).collect()
}

/// The step with the largest drop of squared error per byte that `left` bytes pay for: matrix, format, bytes.
#[expect(clippy::cast_precision_loss, reason = "a ratio that only ranks")]
fn best(rising: &[Rising], left: usize) -> Option<(usize, Format, usize)> {
    let step = |(index, matrix): (usize, &Rising)| {
        let (next, n_bytes) = matrix.next()?;
        let drop = matrix.error * (1.0 - ERROR_SQUARE_PER_BIT.powf(bits(matrix.format) - bits(next)));
        (n_bytes <= left).then_some((drop / n_bytes as f64, index, next, n_bytes))
    };
    let steps = rising.iter().enumerate().filter_map(step);
    // The first of equals, so that the same files always give the same answer.
    let best = steps.reduce(|best, it| if it.0 > best.0 { it } else { best })?;
    Some((best.1, best.2, best.3))
}

impl Rising {
    /// The next larger format that the rows are whole blocks of, and the bytes that it costs.
    fn next(&self) -> Option<(Format, usize)> {
        let steps = if Format::Q4_K.row_bytes(self.columns).is_some() { &STEPS[..] } else { &STEPS_OF_32 };
        let now = self.format.row_bytes(self.columns)?;
        let larger = |it: &Format| Some((*it, it.row_bytes(self.columns)?.checked_sub(now).filter(|it| *it > 0)?));
        steps.iter().find_map(larger).map(|(format, more)| (format, more * self.rows))
    }
}

#[expect(clippy::cast_precision_loss, reason = "bits per weight")]
fn bits(format: Format) -> f64 {
    8.0 * format.block_bytes() as f64 / format.block_weights() as f64
}

/// The square of the relative error of a matrix's outputs; `None` where the two are not the same matrix.
fn output_error(reference: &TensorView<'_>, candidate: &TensorView<'_>, squares: Option<Vec<f32>>) -> Option<f64> {
    if reference.shape != candidate.shape {
        return None;
    }
    let columns = candidate.cols();
    let (exact, rounded) = (reference.format.row_bytes(columns)?, candidate.format.row_bytes(columns)?);
    let squares = squares.filter(|it| it.len() == columns);
    let rows = reference.bytes.par_chunks_exact(exact).zip(candidate.bytes.par_chunks_exact(rounded));
    let of_row = |(exact, rounded): (&[u8], &[u8])| {
        let (mut left, mut right) = (vec![0.0f32; columns], vec![0.0f32; columns]);
        reference.format.decode(exact, &mut left);
        candidate.format.decode(rounded, &mut right);
        let mut sums = (0.0f64, 0.0f64);
        for (column, (left, right)) in left.iter().zip(&right).enumerate() {
            let square = squares.as_ref().map_or(1.0, |it| f64::from(it[column]));
            let (weight, error) = (f64::from(*left), f64::from(*right) - f64::from(*left));
            sums = (sums.0 + error * error * square, sums.1 + weight * weight * square);
        }
        sums
    };
    // Collected and then summed in order, so that threads change nothing.
    let sums: Vec<(f64, f64)> = rows.map(of_row).collect();
    let (error, weight) = sums.iter().fold((0.0, 0.0), |all, it| (all.0 + it.0, all.1 + it.1));
    (weight > 0.0).then(|| error / weight)
}
