//! What each matrix reads, summed by column and by pairs of columns: the statistics that guide quantization. Knows no
//! formats.

use std::collections::BTreeMap;
use std::sync::Arc;

use fsq_checkpoint::{Dimensions, Linear, expert_matrices, modules};
use fsq_kernels::{Backend, KernelError};

/// Rows whose products are summed as 32-bit floats before they join sums of 64 bits.
const ROWS_AT_ONCE: usize = 8;

/// What the matrices of one tensor have read: one matrix, or one for each expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ColumnSums {
    /// Squares by column, summed over rows, `[matrices, columns]`.
    pub squares: Vec<f64>,
    /// Rows, or their weights where they have some, `[matrices]`.
    pub n_rows: Vec<f64>,
    /// Products of each column with each, summed over rows, `[columns, columns]`: where they were asked for, of a
    /// tensor with one matrix. Tensors that read the same share them.
    pub products: Option<Arc<Vec<f64>>>,
}

/// What is observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observing {
    /// Sum products of columns for matrices of at most so many: each takes 8 bytes times their square. 0 sums none.
    pub product_columns_max: usize,
}

/// Sums while a decoder runs.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    observing: Observing,
    /// By the tensor's name in the file.
    sums: BTreeMap<String, ColumnSums>,
    /// `[columns, columns]`, of which the lower triangle is kept, by the first tensor that reads this.
    products: BTreeMap<String, Vec<f64>>,
    /// Of tensors that read what another reads: that one's name.
    same: BTreeMap<String, String>,
    /// How much each row of the forward pass counts, `[rows]`; empty where all count once.
    row_weights: Vec<f32>,
}

impl Observer {
    pub(crate) fn new(observing: Observing) -> Self {
        Self { observing, ..Self::default() }
    }

    /// How much each row of the next forward pass counts.
    pub(crate) fn weigh_rows(&mut self, weights: &[f32]) {
        self.row_weights = weights.to_vec();
    }

    pub(crate) fn into_sums(self) -> BTreeMap<String, ColumnSums> {
        let whole = |(name, lower): (String, Vec<f64>)| (name, Arc::new(mirrored(lower)));
        let products: BTreeMap<String, Arc<Vec<f64>>> = self.products.into_iter().map(whole).collect();
        let mut sums = self.sums;
        for (name, sums) in &mut sums {
            sums.products = products.get(self.same.get(name).unwrap_or(name)).cloned();
        }
        sums
    }

    /// Adds the first `n` rows of what a linear of a block reads.
    pub(crate) fn see_linear<B: Backend>(
        &mut self,
        dimensions: &Dimensions,
        (layer, linear): (usize, Linear),
        backend: &B,
        (x, n): (&B::Buffer, usize),
    ) -> Result<(), KernelError> {
        // Linears that a file holds as one tensor read the same: the first of them is enough.
        let modules = modules(dimensions, layer);
        let name = |first: Linear| {
            let module = modules.iter().find(|it| it.linears.first() == Some(&first))?;
            Some((format!("{}.weight", module.gguf), module.shape[1]))
        };
        let Some((tensor, width)) = name(linear) else { return Ok(()) };
        let reads_as = match linear {
            Linear::K | Linear::V => name(Linear::Q),
            Linear::Up => name(Linear::Gate),
            _ => None,
        };
        if let Some((first, _)) = reads_as {
            self.same.insert(tensor.clone(), first);
        }
        self.see(tensor, width, backend, (x, n))
    }

    /// Adds what the experts of a block read: the rows `served` for gate and up, as they came out of `opened` for down.
    pub(crate) fn see_expert<B: Backend>(
        &mut self,
        dimensions: &Dimensions,
        (layer, expert): (usize, usize),
        backend: &B,
        (served, opened, rows): (&B::Buffer, &B::Buffer, &[usize]),
    ) -> Result<(), KernelError> {
        let Some(experts) = dimensions.options.experts else { return Ok(()) };
        let weights: Vec<f32> = rows.iter().filter_map(|it| self.row_weights.get(*it).copied()).collect();
        for ((_, name, shape), x) in expert_matrices(dimensions, &experts).into_iter().zip([served, served, opened]) {
            let mut values = vec![0.0; rows.len() * shape[1]];
            backend.read(x, &mut values)?;
            let sums = self.sums.entry(format!("blk.{layer}.{name}.weight")).or_default();
            sums.add(&values, (shape[1], &weights), (expert, experts.n));
        }
        Ok(())
    }

    /// Adds the first `n` rows of what a tensor reads.
    pub(crate) fn see<B: Backend>(
        &mut self,
        tensor: String,
        width: usize,
        backend: &B,
        (x, n): (&B::Buffer, usize),
    ) -> Result<(), KernelError> {
        let mut rows = vec![0.0; n * width];
        backend.read(x, &mut rows)?;
        let sums = self.sums.entry(tensor.clone()).or_default();
        sums.add(&rows, (width, &self.row_weights), (0, 1));
        if width <= self.observing.product_columns_max && !self.same.contains_key(&tensor) {
            for (row, weight) in rows.chunks_exact_mut(width).zip(&self.row_weights) {
                row.iter_mut().for_each(|it| *it *= weight.sqrt());
            }
            let lower = self.products.entry(tensor).or_insert_with(|| vec![0.0; width * width]);
            add_products(&rows, width, lower);
        }
        Ok(())
    }
}

impl ColumnSums {
    /// Adds rows of `width`, by their weights if they have any, to those of one of `n` matrices.
    fn add(&mut self, rows: &[f32], (width, weights): (usize, &[f32]), (matrix, n): (usize, usize)) {
        self.squares.resize(n * width, 0.0);
        self.n_rows.resize(n, 0.0);
        let squares = &mut self.squares[matrix * width..][..width];
        for (index, row) in rows.chunks_exact(width).enumerate() {
            let weight = f64::from(weights.get(index).copied().unwrap_or(1.0));
            for (sum, value) in squares.iter_mut().zip(row) {
                *sum += weight * f64::from(*value) * f64::from(*value);
            }
            self.n_rows[matrix] += weight;
        }
    }
}

/// Adds the products of columns of `rows` (`[rows, width]`) to the lower triangle of `[width, width]`.
fn add_products(rows: &[f32], width: usize, lower: &mut [f64]) {
    let mut part = vec![0.0f32; width];
    for rows in rows.chunks(ROWS_AT_ONCE * width) {
        for (column, lower) in lower.chunks_exact_mut(width).enumerate() {
            let part = &mut part[..=column];
            part.fill(0.0);
            for row in rows.chunks_exact(width) {
                let value = row[column];
                part.iter_mut().zip(row).for_each(|(sum, other)| *sum += value * other);
            }
            lower.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(*part));
        }
    }
}

/// The whole of a symmetric matrix, of which the lower triangle is given.
fn mirrored(mut lower: Vec<f64>) -> Vec<f64> {
    let width = lower.len().isqrt();
    for row in 0..width {
        for column in row + 1..width {
            lower[row * width + column] = lower[column * width + row];
        }
    }
    lower
}
