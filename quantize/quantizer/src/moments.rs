//! How often two inputs of a matrix are large together: the mean products of its columns, and what follows for errors
//! of its outputs. Knows no format.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::QuantizeError;

/// The mean products of a matrix's input columns, `H = E[x xᵀ]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    columns: usize,
    /// `[columns, columns]`, symmetric.
    products: Arc<Vec<f32>>,
}

/// Moments by the tensor's name in a GGUF file.
pub type MomentsByTensor = BTreeMap<String, Moments>;

impl Moments {
    /// Moments of `columns` inputs from their mean products, `[columns, columns]`.
    ///
    /// # Errors
    /// When there are more or fewer products, they differ on both sides of the diagonal, or one is not finite.
    pub fn new(tensor: &str, columns: usize, products: Arc<Vec<f32>>) -> Result<Self, QuantizeError> {
        let fault = |expected: String, found: String| QuantizeError::Moments { tensor: tensor.into(), expected, found };
        if columns.checked_mul(columns) != Some(products.len()) {
            return Err(fault(format!("{columns} by {columns} products"), products.len().to_string()));
        }
        for (row, values) in products.chunks_exact(columns.max(1)).enumerate() {
            for (column, value) in values[..=row].iter().enumerate() {
                let mirrored = products[column * columns + row];
                if !value.is_finite() || *value != mirrored || (row == column && *value < 0.0) {
                    let found = format!("{value} and {mirrored} for columns {column} and {row}");
                    return Err(fault("products that are finite and equal both ways".into(), found));
                }
            }
        }
        Ok(Self { columns, products })
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The products of one column with each, `[columns]`.
    pub fn row(&self, column: usize) -> &[f32] {
        &self.products[column * self.columns..][..self.columns]
    }

    /// The mean squares, `[columns]`.
    pub fn squares(&self) -> Vec<f32> {
        (0..self.columns).map(|it| self.row(it)[it]).collect()
    }

    /// All products, `[columns, columns]`.
    pub fn products(&self) -> &Arc<Vec<f32>> {
        &self.products
    }

    /// The mean square of what a row of weights (`[columns]`) makes of the inputs: `wᵀ H w`.
    pub fn mean_square(&self, weights: &[f32]) -> f64 {
        let of_column = |(column, weight): (usize, &f32)| {
            if *weight == 0.0 { 0.0 } else { f64::from(*weight) * f64::from(dot(self.row(column), weights)) }
        };
        weights.iter().enumerate().map(of_column).sum()
    }
}

/// Partial sums of a dot product: enough for the widest registers, so that it is fast and the same everywhere.
const LANES: usize = 16;

/// The dot product, in a fixed order of additions.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (whole_left, rest_left) = left.as_chunks::<LANES>();
    let (whole_right, rest_right) = right.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (left, right) in whole_left.iter().zip(whole_right) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    let rest: f32 = rest_left.iter().zip(rest_right).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

/// `to += factor · from`.
pub(crate) fn add_scaled(factor: f32, from: &[f32], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}
