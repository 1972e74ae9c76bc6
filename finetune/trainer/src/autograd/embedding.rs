//! Rows of a table by token.

use super::Op;

/// `y[t] = E[token[t]]`. Input: `E [vocab, width]`.
pub(crate) struct Embedding {
    pub(crate) tokens: Vec<u32>,
    pub(crate) width: usize,
}

impl Op for Embedding {
    const NAME: &'static str = "embedding";

    fn shape(&self, _: &[&[usize]]) -> Vec<usize> {
        vec![self.tokens.len(), self.width]
    }

    fn forward(&self, values: &[&[f32]], output: &mut [f32]) {
        for (row, token) in output.chunks_exact_mut(self.width).zip(&self.tokens) {
            let start = *token as usize * self.width;
            row.copy_from_slice(&values[0][start..start + self.width]);
        }
    }

    fn backward(&self, _: &[&[f32]], grad: &[f32], grads: &mut [Vec<f32>]) {
        for (row, token) in grad.chunks_exact(self.width).zip(&self.tokens) {
            let start = *token as usize * self.width;
            for (sum, value) in grads[0][start..start + self.width].iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients, noise};
    use super::*;

    #[test]
    fn backward_equals_differences() {
        let op = Embedding { tokens: vec![2, 0, 2], width: 3 };
        gradients(&op, &[(vec![4, 3], noise(12, 1, 1.0))], &[0], 1e-3);
    }
}
