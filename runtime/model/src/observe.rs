//! What each matrix reads, summed by column: the statistics that guide quantization. Knows no formats.

use std::collections::BTreeMap;

use fsq_checkpoint::{Dimensions, Linear, expert_matrices, modules};
use fsq_kernels::{Backend, KernelError};

/// The squares of a matrix's inputs, summed over all rows that it has read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ColumnSums {
    /// By column of the matrix.
    pub squares: Vec<f64>,
    /// Rows.
    pub n_rows: u64,
}

impl ColumnSums {
    /// The mean square of each column; empty before the first row.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "means are kept as floats")]
    pub fn mean_squares(&self) -> Vec<f32> {
        self.squares.iter().map(|it| (it / self.n_rows as f64) as f32).collect()
    }

    fn add(&mut self, rows: &[f32], width: usize) {
        self.squares.resize(width, 0.0);
        for row in rows.chunks_exact(width) {
            for (sum, value) in self.squares.iter_mut().zip(row) {
                *sum += f64::from(*value) * f64::from(*value);
            }
            self.n_rows += 1;
        }
    }
}

/// Sums while a decoder runs.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// By the tensor's name in the file.
    sums: BTreeMap<String, ColumnSums>,
}

impl Observer {
    pub(crate) fn into_sums(self) -> BTreeMap<String, ColumnSums> {
        self.sums
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
        let module = modules(dimensions, layer).into_iter().find(|it| it.linears.first() == Some(&linear));
        let Some(module) = module else { return Ok(()) };
        self.see(format!("{}.weight", module.gguf), module.shape[1], backend, (x, n))
    }

    /// Adds what the experts of a block read: `served` rows for gate and up, `opened` rows for down.
    pub(crate) fn see_expert<B: Backend>(
        &mut self,
        dimensions: &Dimensions,
        layer: usize,
        backend: &B,
        (served, opened, n): (&B::Buffer, &B::Buffer, usize),
    ) -> Result<(), KernelError> {
        let Some(experts) = dimensions.options.experts else { return Ok(()) };
        for ((_, name, shape), x) in expert_matrices(dimensions, &experts).into_iter().zip([served, served, opened]) {
            self.see(format!("blk.{layer}.{name}.weight"), shape[1], backend, (x, n))?;
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
        self.sums.entry(tensor).or_default().add(&rows, width);
        Ok(())
    }
}
