//! Adapters from GGUF files, in the layout of llama.cpp's `convert_lora_to_gguf.py`. Knows no device.

use std::collections::{BTreeMap, HashSet};

use fsq_checkpoint::architecture::{permuted_heads, unpermute_rotary_rows};
use fsq_checkpoint::{Adapter, Dimensions, LoraPair, Module, modules};
use fsq_gguf::Gguf;

use crate::ModelError;

/// Reads an adapter of a policy of these dimensions; the base's own file gives them.
///
/// # Errors
/// What in the file is not an adapter of that policy, by field or tensor.
pub fn read_adapter(gguf: &Gguf, dimensions: &Dimensions) -> Result<Adapter, ModelError> {
    let architecture = dimensions.architecture.description().gguf_name;
    for (key, expected) in
        [("general.type", "adapter"), ("general.architecture", architecture), ("adapter.type", "lora")]
    {
        let found: &str = gguf.metadata().need(key)?;
        if found != expected {
            return Err(unfit(key, format!("`{expected}`"), format!("`{found}`")));
        }
    }
    let alpha: f32 = gguf.metadata().need("adapter.lora.alpha")?;
    if !alpha.is_finite() {
        return Err(unfit("adapter.lora.alpha", "a number".into(), alpha.to_string()));
    }
    let mut known = HashSet::new();
    let mut pairs = BTreeMap::new();
    for module in (0..dimensions.n_layers).flat_map(|layer| modules(dimensions, layer)) {
        let names = ["a", "b"].map(|side| format!("{}.weight.lora_{side}", module.gguf));
        if let Some(pair) = read_pair(gguf, &names, &module, dimensions)? {
            pairs.insert(module.hf, pair);
        }
        known.extend(names);
    }
    if let Some(strange) = gguf.views().find(|it| !known.contains(it.name)) {
        return Err(ModelError::Adapter {
            module: strange.name.into(),
            expected: format!("matrices of the linear modules of {} layers", dimensions.n_layers),
            found: "a tensor of something else".into(),
        });
    }
    let rank = common_rank(&pairs)?;
    // llama.cpp takes 0 for a product that is not scaled.
    let alpha = if alpha == 0.0 { rank as f32 } else { alpha };
    Ok(Adapter { rank, alpha, rslora: false, pairs })
}

/// Both matrices of a module, rows in Hugging Face's order; `None` where the file has neither.
fn read_pair(
    gguf: &Gguf,
    names: &[String; 2],
    module: &Module,
    dimensions: &Dimensions,
) -> Result<Option<LoraPair>, ModelError> {
    let [a, b] = match [&names[0], &names[1]].map(|it| gguf.tensor(it)) {
        [None, None] => return Ok(None),
        [Some(a), Some(b)] => [a, b],
        [a, _] => return Err(ModelError::MissingTensor { name: names[usize::from(a.is_some())].clone() }),
    };
    let (rank, [outputs, inputs]) = (a.rows(), module.shape);
    for (view, expected) in [(&a, [rank, inputs]), (&b, [outputs, rank])] {
        let found: Vec<usize> = view.shape.iter().rev().copied().collect();
        if found != expected || rank == 0 {
            return Err(ModelError::TensorShape { name: view.name.into(), expected: expected.to_vec(), found });
        }
    }
    let in_file = b.to_f32();
    let mut b = Vec::with_capacity(in_file.len());
    for (linear, rows) in module.rows(dimensions) {
        let rows = &in_file[rows.start * rank..rows.end * rank];
        match permuted_heads(dimensions, linear) {
            Some(heads) => b.extend(unpermute_rotary_rows(rows, heads, rank)),
            None => b.extend_from_slice(rows),
        }
    }
    Ok(Some(LoraPair { a: a.to_f32(), b, rank, inputs, outputs }))
}

/// The rank of all pairs: one number scales them.
fn common_rank(pairs: &BTreeMap<String, LoraPair>) -> Result<usize, ModelError> {
    let rank = pairs.values().next().map(|it| it.rank);
    let rank = rank.ok_or_else(|| ModelError::MissingTensor { name: "*.lora_a".into() })?;
    match pairs.iter().find(|it| it.1.rank != rank) {
        None => Ok(rank),
        Some((module, pair)) => Err(ModelError::Adapter {
            module: module.clone(),
            expected: format!("rank {rank}, as of the others"),
            found: format!("rank {}", pair.rank),
        }),
    }
}

fn unfit(field: &str, expected: String, found: String) -> ModelError {
    ModelError::Metadata { field: field.into(), expected, found }
}
