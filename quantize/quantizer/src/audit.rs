//! What a narrower float would lose of a checkpoint's weights; encodes nothing.

use fsq_checkpoint::{Checkpoint, StoredType, tensor_names};
use rayon::prelude::*;

use crate::QuantizeError;

/// Half of the smallest F16 above zero, 2⁻²⁴: a tie, which goes to the even neighbour, zero.
const ROUNDS_TO_ZERO_MAX: f32 = 1.0 / (1u32 << 25) as f32;

/// How many weights of a tensor, named as in a GGUF file, are not zero in the checkpoint but would be in F16.
///
/// `None` where the checkpoint stores it otherwise than as BF16: what is F32 there was never meant to be exact in
/// 16 bits. Of experts that one tensor of the file holds, all.
///
/// # Errors
/// When the tensor cannot be read.
pub fn f16_underflow(checkpoint: &Checkpoint, gguf_name: &str) -> Result<Option<usize>, QuantizeError> {
    let mut total = None;
    for tensor in tensor_names(&checkpoint.dimensions).into_iter().filter(|it| it.gguf == gguf_name) {
        if checkpoint.stored(&tensor.hf) != Some(StoredType::BF16) {
            continue;
        }
        let weights = checkpoint.tensor_f32(&tensor.hf)?;
        let is_lost = |it: &&f32| **it != 0.0 && it.abs() <= ROUNDS_TO_ZERO_MAX;
        *total.get_or_insert(0) += weights.par_iter().filter(is_lost).count();
    }
    Ok(total)
}
