//! The sizes of a policy from a GGUF file's metadata, under the names that the architecture's description gives.

use fsq_checkpoint::{Architecture, Dimensions};
use fsq_gguf::{Gguf, Metadata};

use crate::ModelError;

/// Largest of any size that is believed: far above any released policy, far below an overflow.
const SIZE_MAX: u64 = 1 << 24;

/// Reads the sizes of a policy from its file, without loading it, and checks that they fit each other.
///
/// # Errors
/// Names the first field that is absent, of another type, or impossible.
pub fn read(gguf: &Gguf) -> Result<Dimensions, ModelError> {
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
        rope_theta: metadata
            .get(&key("rope.freq_base"))
            .map_or(Ok(10_000.0), |_| metadata.need(&key("rope.freq_base")))?,
        tied: gguf.tensor("output.weight").is_none(),
    };
    for (field, default) in [("rope.dimension_count", head_dim), ("attention.value_length", head_dim)] {
        let found = optional(field, default)?;
        if found != head_dim {
            return Err(unfit(&key(field), format!("{head_dim}, the width of a head"), found.to_string()));
        }
    }
    check(&dimensions, metadata, name)?;
    check_floats(&dimensions, name)?;
    Ok(dimensions)
}

fn check_floats(dimensions: &Dimensions, name: &str) -> Result<(), ModelError> {
    let Dimensions { rms_eps, rope_theta, .. } = *dimensions;
    if !(0.0..1.0).contains(&rms_eps) {
        let field = format!("{name}.attention.layer_norm_rms_epsilon");
        return Err(unfit(&field, "a number from 0 to below 1".into(), rms_eps.to_string()));
    }
    // Frequencies fall from pair to pair only above 1.
    if !(rope_theta.is_finite() && rope_theta > 1.0) {
        let field = format!("{name}.rope.freq_base");
        return Err(unfit(&field, "a finite number above 1".into(), rope_theta.to_string()));
    }
    Ok(())
}

fn check(dimensions: &Dimensions, metadata: &Metadata, name: &str) -> Result<(), ModelError> {
    let Dimensions { n_heads, n_kv_heads, head_dim, .. } = *dimensions;
    if !n_heads.is_multiple_of(n_kv_heads) {
        let field = format!("{name}.attention.head_count_kv");
        return Err(unfit(&field, format!("a divisor of {n_heads}"), n_kv_heads.to_string()));
    }
    if head_dim == 0 {
        let field = format!("{name}.attention.head_count");
        return Err(unfit(&field, format!("at most {}, the width", dimensions.hidden), n_heads.to_string()));
    }
    if !head_dim.is_multiple_of(16) {
        let field = format!("{name}.attention.key_length");
        return Err(unfit(&field, "a multiple of 16".into(), head_dim.to_string()));
    }
    let n_tokens = metadata.str_array("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
    if n_tokens > dimensions.vocab {
        let expected = format!("at most {} entries, the rows of `token_embd.weight`", dimensions.vocab);
        return Err(unfit("tokenizer.ggml.tokens", expected, n_tokens.to_string()));
    }
    let field = format!("{name}.rope.scaling.type");
    let scaling = metadata.get(&field).map_or(Ok("none"), |_| metadata.need(&field))?;
    if scaling != "none" {
        // Running without it would be silently wrong. Llama 3's scaling comes as a tensor instead and is run.
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
