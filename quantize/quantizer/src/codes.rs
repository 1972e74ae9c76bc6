//! How the codes of one matrix are chosen; knows no file and no recipe.

use std::sync::Arc;

use fsq_blocks::Format;
use rayon::prelude::*;
use serde::Serialize;

use crate::feedback::Feedback;
use crate::moments::Moments;
use crate::{Importance, QuantizeError};

/// Weights that one task encodes: large enough to be worth handing out.
pub(crate) const WEIGHTS_PER_TASK: usize = 1 << 14;

/// How codes are chosen. Each but the first needs importance to be better than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Codes {
    /// As ggml's encoders choose them, byte for byte.
    #[default]
    Stock,
    /// From there by descent to less error, block by block.
    Descent,
    /// By error feedback along each row, where the moments of the inputs are known and what comes out is no worse on
    /// inputs that were held out; else by descent.
    ErrorFeedback,
}

impl Codes {
    /// All of them, plainest first.
    pub const ALL: [Self; 3] = [Self::Stock, Self::Descent, Self::ErrorFeedback];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Descent => "descent",
            Self::ErrorFeedback => "error_feedback",
        }
    }
}

/// What is known of the inputs of one matrix.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs<'a> {
    /// Their mean squares, `[columns]`.
    pub(crate) squares: Option<Vec<f32>>,
    /// Their mean products.
    pub(crate) moments: Option<&'a Moments>,
    /// The same over other tokens.
    pub(crate) held_out: Option<&'a Moments>,
}

impl Inputs<'_> {
    /// The mean square of what a row of weights (`[columns]`) makes of such inputs, on tokens that were held out where
    /// there are some. Without moments inputs are taken for independent, without squares for equal.
    pub(crate) fn mean_square(&self, weights: &[f32]) -> f64 {
        if let Some(moments) = self.held_out.or(self.moments) {
            return moments.mean_square(weights);
        }
        match &self.squares {
            Some(squares) => weights
                .iter()
                .zip(squares)
                .map(|(it, square)| f64::from(*it) * f64::from(*it) * f64::from(*square))
                .sum(),
            None => weights.iter().map(|it| f64::from(*it) * f64::from(*it)).sum(),
        }
    }
}

/// Chooses the codes of one matrix.
pub(crate) struct Encoder<'a> {
    format: Format,
    columns: usize,
    codes: Codes,
    inputs: &'a Inputs<'a>,
    /// What was asked for.
    asked: Codes,
    /// There if errors are to be fed back and the inputs' moments allow it.
    feedback: Option<Arc<Feedback>>,
}

impl<'a> Encoder<'a> {
    /// Prepares for a matrix of so many columns, which must be whole blocks of the format.
    pub(crate) fn new(format: Format, columns: usize, codes: Codes, inputs: &'a Inputs<'a>) -> Self {
        let moments = inputs.moments.filter(|_| codes == Codes::ErrorFeedback);
        let feedback = moments.and_then(Feedback::new).map(Arc::new);
        let plain = Self { format, columns, codes: Codes::Stock, inputs, asked: codes, feedback };
        plain.with_format(format)
    }

    /// The same for another format, which shares what was prepared.
    pub(crate) fn with_format(&self, format: Format) -> Self {
        let has_grid = format.grid().is_some();
        let codes = if has_grid { self.asked.min(Codes::Descent) } else { Codes::Stock };
        Self { format, codes, feedback: self.feedback.clone(), ..*self }
    }

    /// Whether the whole matrix must be encoded at once, because what is best is decided for all of it.
    pub(crate) fn needs_all_rows(&self) -> bool {
        self.feedback.is_some() && self.format.grid().is_some()
    }

    /// Encodes whole rows (`[rows, columns]`): the bytes, and how the codes were chosen.
    pub(crate) fn encode(&self, rows: &[f32]) -> (Vec<u8>, Codes) {
        let plainer = self.encode_by(rows, |weights, bytes| match self.codes {
            Codes::Stock => self.format.encode(weights, self.inputs.squares.as_deref(), bytes),
            _ => self.format.encode_by_descent(weights, self.inputs.squares.as_deref(), bytes),
        });
        let Some((feedback, grid)) = self.feedback.as_ref().zip(self.format.grid()) else {
            return (plainer, self.codes);
        };
        let row_bytes = plainer.len() / (rows.len() / self.columns).max(1);
        let fed_back = self.encode_by(rows, |weights, bytes| {
            for (weights, bytes) in weights.chunks_exact(self.columns).zip(bytes.chunks_exact_mut(row_bytes)) {
                feedback.encode_row(self.format, grid, weights, bytes);
            }
        });
        // NaN is not less.
        if self.output_error(rows, &fed_back) < self.output_error(rows, &plainer) {
            (fed_back, Codes::ErrorFeedback)
        } else {
            (plainer, self.codes)
        }
    }

    /// Runs tasks of some rows each. Rows are independent, so that the result is the same on any number of threads.
    fn encode_by(&self, rows: &[f32], encode: impl Fn(&[f32], &mut [u8]) + Sync) -> Vec<u8> {
        let row_bytes = self.columns / self.format.block_weights() * self.format.block_bytes();
        let rows_per_task = (WEIGHTS_PER_TASK / self.columns).max(1);
        let mut bytes = vec![0; rows.len() / self.columns * row_bytes];
        let tasks = rows.par_chunks(rows_per_task * self.columns).zip(bytes.par_chunks_mut(rows_per_task * row_bytes));
        tasks.for_each(|(weights, bytes)| encode(weights, bytes));
        bytes
    }

    /// The mean square error of the outputs, summed over rows.
    pub(crate) fn output_error(&self, rows: &[f32], bytes: &[u8]) -> f64 {
        output_error(self.format, self.columns, self.inputs, rows, bytes)
    }
}

/// A matrix as it would be decoded from a format.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Its weights then, `[rows, columns]`.
    pub decoded: Vec<f32>,
    /// The mean square of what its outputs are off by, in parts of their mean square.
    pub error: f64,
}

/// Rounds a matrix (`[rows, columns]`, by its name in a file) with the stock encoder.
///
/// # Errors
/// When the importance does not fit, or the rows are not whole blocks of the format.
pub fn probe(
    tensor: &str,
    columns: usize,
    weights: &[f32],
    format: Format,
    importance: &Importance,
) -> Result<Probe, QuantizeError> {
    if format.row_bytes(columns).is_none() {
        return Err(QuantizeError::OverrideRow {
            tensor: tensor.into(),
            format: format.name(),
            expected: format.block_weights(),
            found: columns,
        });
    }
    let inputs = importance.inputs((tensor, columns), (0, 1))?;
    let (bytes, _) = Encoder::new(format, columns, Codes::Stock, &inputs).encode(weights);
    let mut decoded = vec![0.0; weights.len()];
    format.decode(&bytes, &mut decoded);
    let energy = output_energy(columns, &inputs, weights);
    let error = output_error(format, columns, &inputs, weights, &bytes);
    Ok(Probe { decoded, error: if energy > 0.0 { error / energy } else { 0.0 } })
}

/// The mean square error of a matrix's outputs, summed over rows: on held-out inputs where there are some.
pub(crate) fn output_error(format: Format, columns: usize, inputs: &Inputs<'_>, rows: &[f32], bytes: &[u8]) -> f64 {
    let row_bytes = columns / format.block_weights() * format.block_bytes();
    let of_row = |(weights, bytes): (&[f32], &[u8])| {
        let mut off = vec![0.0; columns];
        format.decode(bytes, &mut off);
        off.iter_mut().zip(weights).for_each(|(off, weight)| *off -= weight);
        inputs.mean_square(&off)
    };
    let errors: Vec<f64> = rows.par_chunks_exact(columns).zip(bytes.par_chunks_exact(row_bytes)).map(of_row).collect();
    // In order, for the same sum on any number of threads.
    errors.iter().sum()
}

/// The mean square of a matrix's outputs, summed over rows.
pub(crate) fn output_energy(columns: usize, inputs: &Inputs<'_>, rows: &[f32]) -> f64 {
    let energies: Vec<f64> = rows.par_chunks_exact(columns).map(|it| inputs.mean_square(it)).collect();
    energies.iter().sum()
}
