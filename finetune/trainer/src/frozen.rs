//! The weights of a checkpoint under an adapter, kept in the type they are stored in where that is f32 or bf16, or as
//! the blocks of a quantized file of it.
//!
//! Reads names and shapes from the one description of each architecture; knows nothing of gradients.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use fsq_checkpoint::{Checkpoint, Dimensions, StoredType, modules};
use half::bf16;

use crate::TrainError;
use crate::autograd::{Frozen, GROUPS, Weights, capped};
use crate::grid::Grid;
use crate::policy::{EMBEDDING, OUTPUT_NORM, group_of, to_f32};

/// The output matrix, `[vocab, hidden]`.
#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) weight: Arc<Weights>,
    /// What no logit exceeds.
    pub(crate) cap: Option<f32>,
}

impl Output {
    /// Logits of `x [rows, hidden]`: `[rows, vocab]`.
    pub(crate) fn logits(&self, x: &[f32], vocab: usize, threads: usize) -> Vec<f32> {
        let mut logits = self.weight.times(x, vocab, threads);
        if let Some(cap) = self.cap {
            capped(&mut logits, cap);
        }
        logits
    }
}

/// A checkpoint's weights.
pub(crate) struct FrozenPolicy {
    embedding: Arc<Weights>,
    hidden: usize,
    /// What embeddings are multiplied by.
    embedding_scale: f32,
    pub(crate) blocks: Vec<Arc<Frozen>>,
    pub(crate) output_norm: Tensor,
    pub(crate) output: Output,
}

impl FrozenPolicy {
    /// Reads all of them: matrices from the grid where there is one, the rest from the checkpoint.
    ///
    /// # Errors
    /// When a tensor is absent or unreadable.
    pub(crate) fn read(checkpoint: &Checkpoint, grid: Option<&Grid>) -> Result<Self, TrainError> {
        let sizes = &checkpoint.dimensions;
        let matrix = |name: &str| matrices(checkpoint, grid, &[name.into()]).map(Arc::new);
        let embedding = matrix(EMBEDDING)?;
        let weight = if sizes.tied { Arc::clone(&embedding) } else { matrix("lm_head.weight")? };
        let norm = offset(checkpoint.tensor_f32(OUTPUT_NORM)?, sizes);
        let scaled = sizes.architecture.description().embedding_scaled;
        Ok(Self {
            embedding,
            hidden: sizes.hidden,
            embedding_scale: if scaled { to_f32(sizes.hidden).sqrt() } else { 1.0 },
            blocks: (0..sizes.n_layers)
                .map(|it| block(checkpoint, grid, it).map(Arc::new))
                .collect::<Result<_, _>>()?,
            output_norm: Tensor::from_vec(norm, sizes.hidden, &Device::Cpu)?,
            output: Output { weight, cap: sizes.options.logit_cap },
        })
    }

    /// The embeddings of some tokens, `[tokens, hidden]`.
    pub(crate) fn embedded(&self, tokens: &[u32]) -> Vec<f32> {
        let mut rows = Vec::with_capacity(tokens.len() * self.hidden);
        for token in tokens {
            let row = *token as usize;
            rows.extend_from_slice(&self.embedding.rows(self.hidden, row..row + 1));
        }
        if self.embedding_scale != 1.0 {
            rows.iter_mut().for_each(|it| *it *= self.embedding_scale);
        }
        rows
    }
}

/// The weights of one block.
fn block(checkpoint: &Checkpoint, grid: Option<&Grid>, layer: usize) -> Result<Frozen, TrainError> {
    let sizes = &checkpoint.dimensions;
    let description = sizes.architecture.description();
    let norm = |name: &str| -> Result<Vec<f32>, TrainError> {
        Ok(offset(checkpoint.tensor_f32(&format!("model.layers.{layer}.{name}.weight"))?, sizes))
    };
    let mut names: [Vec<String>; GROUPS] = Default::default();
    let mut biases: [Option<Vec<f32>>; GROUPS] = Default::default();
    for module in modules(sizes, layer) {
        let group = group_of(&module);
        names[group].push(format!("{}.weight", module.hf));
        if module.biased {
            biases[group].get_or_insert_default().extend(checkpoint.tensor_f32(&format!("{}.bias", module.hf))?);
        }
    }
    let [first, second, third, fourth] = names.map(|it| matrices(checkpoint, grid, &it));
    let before_feed_forward =
        if description.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
    let pair = |wanted: bool, names: [&str; 2]| -> Result<Option<[Vec<f32>; 2]>, TrainError> {
        Ok(if wanted { Some([norm(names[0])?, norm(names[1])?]) } else { None })
    };
    Ok(Frozen {
        norms: [norm("input_layernorm")?, norm(before_feed_forward)?],
        groups: [first?, second?, third?, fourth?],
        biases,
        head_norms: pair(description.head_norms, ["self_attn.q_norm", "self_attn.k_norm"])?,
        post_norms: pair(description.post_norms, ["post_attention_layernorm", "post_feedforward_layernorm"])?,
        window: sizes.window(layer),
    })
}

/// What checkpoints leave off the weights of norms, put on.
fn offset(mut norm: Vec<f32>, sizes: &Dimensions) -> Vec<f32> {
    let offset = sizes.architecture.description().norm_offset;
    if offset != 0.0 {
        norm.iter_mut().for_each(|it| *it += offset);
    }
    norm
}

/// Matrices one below another.
fn matrices(checkpoint: &Checkpoint, grid: Option<&Grid>, names: &[String]) -> Result<Weights, TrainError> {
    grid.map_or_else(|| stored(checkpoint, names), |it| it.matrices(names))
}

/// Tensors one below another: in bf16 if all are stored so, else in f32.
fn stored(checkpoint: &Checkpoint, names: &[String]) -> Result<Weights, TrainError> {
    if names.iter().all(|it| checkpoint.stored(it) == Some(StoredType::BF16)) {
        let mut values = Vec::new();
        for name in names {
            // Pieces are so many bytes that no number lies in two of them.
            checkpoint.for_each_piece(name, &mut |piece| {
                values.extend(piece.chunks_exact(2).map(|it| bf16::from_le_bytes([it[0], it[1]])));
            })?;
        }
        return Ok(Weights::BF16(values));
    }
    let mut values = Vec::new();
    for name in names {
        values.extend(checkpoint.tensor_f32(name)?);
    }
    Ok(Weights::F32(values))
}
