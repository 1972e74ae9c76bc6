//! Fused operations for candle's graph, every one with its backward.
//!
//! candle's own fused norm, rotary, softmax and attention end the graph without a word, so the trainable
//! forward is made of these. An operation is two pure functions over slices; [`apply`] puts it into the graph.
//! Everything is f32, row-major and contiguous.

mod attention;
mod block;
mod elementwise;
mod embedding;
mod linear;
mod loss;
mod rms_norm;
mod weights;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

pub(crate) use attention::Heads;
pub(crate) use block::{Block, Frozen, GROUPS, Plan};
pub(crate) use elementwise::Turns;
pub(crate) use embedding::Embedding;
pub(crate) use linear::{Group, Head};
pub use loss::{Confidence, TokenLoss};
pub(crate) use loss::{FrozenLoss, SpanLoss, capped, log_softmax_at};
pub(crate) use rms_norm::RmsNorm;
pub(crate) use weights::{Coded, Weights};

/// An operation: forward, and backward from the same inputs (nothing is saved in between).
pub(crate) trait Op: Send + Sync + 'static {
    /// Name in error messages.
    const NAME: &'static str;
    /// Shape of the output.
    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize>;
    /// Fills `output`, which is zero at the start.
    fn forward(&self, inputs: &[&[f32]], output: &mut [f32]);
    /// Fills the gradient of each input, zero at the start, from the gradient of the output.
    fn backward(&self, inputs: &[&[f32]], grad: &[f32], grads: &mut [Vec<f32>]);
}

/// Puts an operation into the graph.
///
/// # Errors
/// When an input is not contiguous f32 on the CPU, or there are none or more than three.
pub(crate) fn apply<O: Op>(op: O, inputs: &[&Tensor]) -> Result<Tensor> {
    let node = Node(Arc::new(op));
    match inputs {
        [a] => a.apply_op1(node),
        [a, b] => a.apply_op2(b, node),
        [a, b, c] => a.apply_op3(b, c, node),
        _ => bail!("{}: {} inputs", O::NAME, inputs.len()),
    }
}

/// Gives the values of a contiguous f32 tensor to a function.
pub(crate) fn with_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(read(slice(storage, layout)?)),
        _ => bail!("expected a tensor on the CPU"),
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("expected f32, found {:?}", storage) };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("expected a contiguous tensor, found {layout:?}"),
    }
}

struct Node<O>(Arc<O>);

impl<O: Op> Node<O> {
    fn forward(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|(_, layout)| layout.dims()).collect();
        let shape = Shape::from(self.0.shape(&shapes));
        let mut values = Vec::with_capacity(inputs.len());
        for (storage, layout) in inputs {
            values.push(slice(storage, layout)?);
        }
        let mut output = vec![0.0; shape.elem_count()];
        self.0.forward(&values, &mut output);
        Ok((CpuStorage::F32(output), shape))
    }

    fn backward(&self, inputs: &[&Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let grad = grad.contiguous()?;
        let mut grads: Vec<Vec<f32>> = inputs.iter().map(|it| vec![0.0; it.elem_count()]).collect();
        // `Tensor::storage_and_layout` locks for reading; the same tensor twice is fine.
        let guards: Vec<_> = inputs.iter().map(|it| it.storage_and_layout()).collect();
        let mut values = Vec::with_capacity(inputs.len());
        for (storage, layout) in &guards {
            let Storage::Cpu(storage) = &**storage else { bail!("expected a tensor on the CPU") };
            values.push(slice(storage, layout)?);
        }
        with_values(&grad, |grad| self.0.backward(&values, grad, &mut grads))?;
        let made = grads
            .into_iter()
            .zip(inputs)
            .map(|(values, input)| Tensor::from_vec(values, input.shape(), input.device()).map(Some));
        made.collect()
    }
}

impl<O: Op> CustomOp1 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(storage, layout)])
    }

    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(&[arg], grad)?.pop().flatten())
    }
}

impl<O: Op> CustomOp2 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(&[a, b], grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten()))
    }
}

impl<O: Op> CustomOp3 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(&[a, b, c], grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten(), grads.next().flatten()))
    }
}

/// A matrix to read, with its strides `(row, column)`.
pub(crate) type Read<'a> = (&'a [f32], (usize, usize));

/// `c[m, n] = alpha · a[m, k] · b[k, n] + beta · c`, rows of `c` as far apart as is said beside it.
///
/// The callers have proved their sizes.
pub(crate) fn product(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    a: Read<'_>,
    b: Read<'_>,
    beta: f32,
    c: (&mut [f32], usize),
    threads: usize,
) {
    let done = fsq_kernels::gemm_f32_into(m, n, k, alpha, a.0, a.1, b.0, b.1, beta, c.0, c.1, threads);
    assert!(done.is_ok(), "product [{m}, {k}] x [{k}, {n}]: {done:?}");
}

#[cfg(test)]
pub(crate) mod check {
    //! Finite differences: one check for every operation.
    use super::Op;

    /// A fixed, uneven sequence in `-scale..scale`.
    pub(crate) fn noise(len: usize, seed: u64, scale: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..len).map(|_| (next() * 2.0 - 1.0) * scale).collect()
    }

    /// Compares the backward with central differences of a fixed linear functional of the output.
    pub(crate) fn gradients<O: Op>(op: &O, inputs: &[(Vec<usize>, Vec<f32>)], checked: &[usize], tolerance: f32) {
        let shapes: Vec<&[usize]> = inputs.iter().map(|it| it.0.as_slice()).collect();
        let len: usize = op.shape(&shapes).iter().product();
        let weights = noise(len, 99, 1.0);
        let value = |values: &[Vec<f32>]| -> f64 {
            let slices: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
            let mut output = vec![0.0; len];
            op.forward(&slices, &mut output);
            output.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut values: Vec<Vec<f32>> = inputs.iter().map(|it| it.1.clone()).collect();
        let slices: Vec<&[f32]> = inputs.iter().map(|it| it.1.as_slice()).collect();
        let mut grads: Vec<Vec<f32>> = values.iter().map(|it| vec![0.0; it.len()]).collect();
        op.backward(&slices, &weights, &mut grads);
        for &which in checked {
            let largest = grads[which].iter().fold(0.0f32, |a, b| a.max(b.abs()));
            assert!(largest > 0.0, "{}: input {which} gets no gradient", O::NAME);
            for index in 0..values[which].len() {
                let (kept, step) = (values[which][index], 1e-2);
                values[which][index] = kept + step;
                let above = value(&values);
                values[which][index] = kept - step;
                let below = value(&values);
                values[which][index] = kept;
                let expected = ((above - below) / (2.0 * f64::from(step))) as f32;
                let found = grads[which][index];
                assert!(
                    (expected - found).abs() <= tolerance * (largest + expected.abs()),
                    "{}: input {which}[{index}]: difference {expected}, backward {found}",
                    O::NAME
                );
            }
        }
    }
}
