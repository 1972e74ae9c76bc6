//! What a block of weights and a block of activations must be able to do; knows no particular format.

use bytemuck::{Pod, Zeroable};

use crate::coded::{Grid, Parts};
use crate::search;

/// One block of weights, exactly as it lies in a GGUF file. Every implementation has an alignment of one byte, so
/// that any run of bytes of the right length is a run of blocks.
pub trait BlockFormat: Pod + Send + Sync {
    /// Weights per block.
    const WEIGHTS: usize;
    /// Whether [`BlockFormat::encode`] looks at the importance.
    const USES_IMPORTANCE: bool;
    /// What activations become before a dot product with such blocks.
    type Activation: Activation;

    /// Encodes the weights of one block. What the importance says about it is `None` where it says nothing.
    fn encode_block(weights: &[f32], importance: Option<ColumnImportance<'_>>) -> Self;

    /// Decodes into the weights of one block.
    fn decode_block(&self, weights: &mut [f32]);

    /// The dot product with a block of activations. Products are summed as integers where the format has integer
    /// levels.
    fn dot_block(&self, activations: &Self::Activation) -> f32;

    /// How its weights follow from scales and codes; `None` where nothing is to be searched for.
    const GRID: Option<&'static Grid> = None;

    /// Takes a block apart; `None` without a grid.
    fn parts(&self) -> Option<Parts> {
        None
    }

    /// Puts a block together from numbers within its grid; `None` without one.
    fn from_parts(_parts: &Parts) -> Option<Self> {
        None
    }

    /// Encodes `weights` (`[cols]`, one row when `importance` is given, else any number of whole rows).
    ///
    /// Compiled once for each width of vectors, of which the machine's is taken: that holds of what is always inlined
    /// into it, beginning with [`BlockFormat::encode_block`]. A closure that is not would be compiled for the least.
    ///
    /// `importance` (`[cols]`) is the mean square of each input column: an error in a column of large importance
    /// costs more.
    ///
    /// # Panics
    /// When `blocks` does not hold as many weights as `weights`, or `importance` differs from it in length.
    fn encode(weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Self]) {
        assert_fits(weights.len(), blocks.len(), Self::WEIGHTS);
        assert_importance(weights.len(), importance);
        let row_mean_square = importance.map_or(0.0, |it| search::sum_of_squares(weights) / it.len() as f32);
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for (index, (weights, block)) in weights.chunks_exact(Self::WEIGHTS).zip(blocks).enumerate() {
                    let columns = importance.map(|it| &it[index * Self::WEIGHTS..][..Self::WEIGHTS]);
                    // A block whose inputs were all zero while importance was observed would otherwise lose its scale.
                    let columns = columns.filter(|it| it.iter().any(|&weight| weight > 0.0));
                    let importance = columns.map(|it| ColumnImportance { columns: it, row_mean_square });
                    *block = Self::encode_block(weights, importance);
                }
            },
        );
    }

    /// Decodes `blocks` into `weights`.
    ///
    /// # Panics
    /// When the two differ in the number of weights.
    fn decode(blocks: &[Self], weights: &mut [f32]) {
        assert_fits(weights.len(), blocks.len(), Self::WEIGHTS);
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for (block, weights) in blocks.iter().zip(weights.chunks_exact_mut(Self::WEIGHTS)) {
                    block.decode_block(weights);
                }
            },
        );
    }

    /// The dot product of a row of weights and a row of activations: the truth every kernel is tested against.
    /// Blocks are summed in `f32`, first to last.
    ///
    /// # Panics
    /// When the two differ in length.
    fn dot(weights: &[Self], activations: &[Self::Activation]) -> f32 {
        assert_eq!(weights.len(), activations.len(), "rows of different length");
        weights.iter().zip(activations).fold(0.0, |sum, (block, activations)| sum + block.dot_block(activations))
    }
}

/// How much the columns of one block matter.
#[derive(Clone, Copy, Debug)]
pub struct ColumnImportance<'a> {
    /// The mean square of each input column, at least one above 0 (`[WEIGHTS]`).
    pub columns: &'a [f32],
    /// The mean square of the weights of the whole row.
    pub row_mean_square: f32,
}

/// One block of activations: what a row of inputs is rounded to before it meets a row of weights.
pub trait Activation: Pod + Send + Sync {
    /// Activations per block.
    const VALUES: usize;

    /// Rounds `values` (`[cols]`) to blocks.
    ///
    /// # Panics
    /// When `blocks` does not hold as many values as `values`.
    fn encode(values: &[f32], blocks: &mut [Self]);

    /// The values that `blocks` stand for.
    ///
    /// # Panics
    /// When the two differ in length.
    fn decode(blocks: &[Self], values: &mut [f32]);
}

/// An IEEE 754 half as it lies in a file: two bytes, little end first, aligned to one byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Half([u8; 2]);

impl Half {
    /// Nothing.
    pub(crate) const ZERO: Self = Self([0; 2]);

    /// The nearest half, ties to even; too large becomes infinity.
    pub fn from_f32(value: f32) -> Self {
        Self(half::f16::from_f32(value).to_le_bytes())
    }

    /// The value, exactly.
    pub fn to_f32(self) -> f32 {
        half::f16::from_le_bytes(self.0).to_f32()
    }

    /// The bits.
    pub fn to_bits(self) -> u16 {
        u16::from_le_bytes(self.0)
    }
}

/// Asserts that `n_blocks` blocks of `per_block` hold exactly `n` numbers.
pub(crate) fn assert_fits(n: usize, n_blocks: usize, per_block: usize) {
    assert!(n_blocks.checked_mul(per_block) == Some(n), "{n} numbers do not fill {n_blocks} blocks of {per_block}");
}

/// Asserts that the importance, if any, covers the columns.
pub(crate) fn assert_importance(n: usize, importance: Option<&[f32]>) {
    if let Some(importance) = importance {
        assert!(importance.len() == n, "importance of {} columns for {n} weights", importance.len());
    }
}
