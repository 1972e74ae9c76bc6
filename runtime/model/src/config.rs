//! The sizes of a policy from a GGUF file's metadata, under the names that the architecture's description gives.

use fsq_checkpoint::{Architecture, Dimensions};
use fsq_gguf::{Gguf, Metadata};

use crate::ModelError;

/// Largest of any size that is believed: far above any released policy, far below an overflow.
const SIZE_MAX: u64 = 1 << 24;

/// Reads the sizes and checks that they fit each other.
pub(crate) fn read(gguf: &Gguf) -> Result<Dimensions, ModelError> {
    let metadata = gguf.metadata();
    let name: &str = metadata.need("general.architecture")?;
    let architecture = Architecture::from_gguf(name).ok_or_else(|| {
        let known: Vec<_> = Architecture::ALL.iter().map(|it| it.description().gguf_name).collect();
        unfit("general.architecture", format!("one of {}", known.join(", ")), format!("`{name}`"))
    })?;
    let key = |key: &str| format!("{name}.{key}");
    let size = |field: &str| size(metadata, &key(field));
    let (hidden, n_heads) = (size("embedding_length")?, size("attention.head_count")?);
    let optional = |field: &str, default: usize| {
        if metadata.get(&key(field)).is_some() { size(field) } else { Ok(default) }
    };
    let head_dim = optional("attention.key_length", hidden / n_heads)?;
    let embedding = gguf.tensor("token_embd.weight");
    let embedding = embedding.ok_or_else(|| ModelError::MissingTensor { name: "token_embd.weight".into() })?;
    let dimensions = Dimensions {
        architecture,
        n_layers: size("block_count")?,
        hidden,
        intermediate: size("feed_forward_length")?,
        n_heads,
        n_kv_heads: optional("attention.head_count_kv", n_heads)?,
        head_dim,
        vocab: embedding.rows(),
        context: size("context_length")?,
        rms_eps: metadata.need(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: metadata.f32(&key("rope.freq_base")).unwrap_or(10_000.0),
        tied: gguf.tensor("output.weight").is_none(),
    };
    for (field, default) in [("rope.dimension_count", head_dim), ("attention.value_length", head_dim)] {
        let found = optional(field, default)?;
        if found != head_dim {
            return Err(unfit(&key(field), format!("{head_dim}, the width of a head"), found.to_string()));
        }
    }
    check(&dimensions, metadata, name)?;
    Ok(dimensions)
}

fn check(dimensions: &Dimensions, metadata: &Metadata, name: &str) -> Result<(), ModelError> {
    let Dimensions { n_heads, n_kv_heads, head_dim, .. } = *dimensions;
    if !n_heads.is_multiple_of(n_kv_heads) {
        let field = format!("{name}.attention.head_count_kv");
        return Err(unfit(&field, format!("a divisor of {n_heads}"), n_kv_heads.to_string()));
    }
    if !head_dim.is_multiple_of(16) {
        let field = format!("{name}.attention.key_length");
        return Err(unfit(&field, "a multiple of 16".into(), head_dim.to_string()));
    }
    let scaling = metadata.str(&format!("{name}.rope.scaling.type")).unwrap_or("none");
    if scaling != "none" {
        // Running without it would be silently wrong. Llama 3's scaling comes as a tensor instead and is run.
        let field = format!("{name}.rope.scaling.type");
        return Err(unfit(&field, "`none`".into(), format!("`{scaling}`")));
    }
    Ok(())
}

fn size(metadata: &Metadata, key: &str) -> Result<usize, ModelError> {
    let found: u64 = metadata.need(key)?;
    let size = usize::try_from(found).ok().filter(|_| (1..=SIZE_MAX).contains(&found));
    size.ok_or_else(|| unfit(key, format!("a number from 1 to {SIZE_MAX}"), found.to_string()))
}

fn unfit(field: &str, expected: String, found: String) -> ModelError {
    ModelError::Metadata { field: field.into(), expected, found }
}
