//! The norm before the output matrix, as an operation of the graph.

use super::Op;
use super::elementwise::{rms_norm, rms_norm_backward};

/// `y = w ∘ x / √(mean(x²) + ε)`. Inputs: `x [tokens, width]`, `w [width]`.
pub(crate) struct RmsNorm {
    pub(crate) eps: f32,
}

impl Op for RmsNorm {
    const NAME: &'static str = "rms_norm";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        inputs[0].to_vec()
    }

    fn forward(&self, values: &[&[f32]], output: &mut [f32]) {
        rms_norm(values[0], values[1], self.eps, output);
    }

    fn backward(&self, values: &[&[f32]], grad: &[f32], grads: &mut [Vec<f32>]) {
        let [dx, dw] = grads else { return };
        rms_norm_backward(values[0], values[1], self.eps, grad, dx, Some(dw));
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients, noise};
    use super::*;

    #[test]
    fn backward_equals_differences() {
        let inputs = [(vec![3, 6], noise(18, 1, 1.0)), (vec![6], noise(6, 2, 1.0))];
        gradients(&RmsNorm { eps: 1e-5 }, &inputs, &[0, 1], 2e-3);
    }
}
