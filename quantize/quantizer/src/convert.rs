//! A checkpoint's sizes and tokenizer as GGUF metadata; knows no weights.
//!
//! Keys follow llama.cpp's `convert_hf_to_gguf.py` for policies of the Llama kind.

use fsq_checkpoint::Checkpoint;
use fsq_gguf::Metadata;

use crate::provenance::base_name;
use crate::{Plan, Provenance, QuantizeError, tokenizer};

/// Version of the quantized layouts (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// All metadata of the file to be.
pub(crate) fn metadata(
    checkpoint: &Checkpoint,
    plan: &Plan,
    provenance: &Provenance,
) -> Result<Metadata, QuantizeError> {
    let sizes = &checkpoint.dimensions;
    let architecture = sizes.architecture.description().gguf_name;
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", architecture);
    metadata.insert("general.type", "model");
    metadata.insert("general.name", plan.name.clone().unwrap_or_else(|| base_name(checkpoint)));
    metadata.insert("general.file_type", plan.mix.file_type());
    metadata.insert("general.quantization_version", QUANTIZATION_VERSION);
    let counts = [
        ("block_count", sizes.n_layers),
        ("context_length", sizes.context),
        ("embedding_length", sizes.hidden),
        ("feed_forward_length", sizes.intermediate),
        ("attention.head_count", sizes.n_heads),
        ("attention.head_count_kv", sizes.n_kv_heads),
        ("attention.key_length", sizes.head_dim),
        ("attention.value_length", sizes.head_dim),
        ("rope.dimension_count", sizes.head_dim),
        ("vocab_size", sizes.vocab),
    ];
    for (key, count) in counts {
        let key = format!("{architecture}.{key}");
        let count = u32::try_from(count).map_err(|_| QuantizeError::Size { field: key.clone(), found: count })?;
        metadata.insert(key, count);
    }
    metadata.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), sizes.rms_eps);
    metadata.insert(format!("{architecture}.rope.freq_base"), sizes.rope_theta);
    tokenizer::write(checkpoint, &mut metadata)?;
    provenance.write(&mut metadata);
    Ok(metadata)
}
