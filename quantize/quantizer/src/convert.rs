//! A checkpoint's sizes, options and tokenizer as GGUF metadata; knows no weights.
//!
//! Keys follow llama.cpp's `convert_hf_to_gguf.py`. Where it drops what transformers computes, such as the window of a
//! Mistral, the key is written all the same: llama.cpp passes over keys that it has no use for.

use fsq_checkpoint::architecture::Windows;
use fsq_checkpoint::{Checkpoint, Dimensions, RopeScaling};
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
        ("rope.dimension_count", sizes.rotary_dim()),
        ("vocab_size", sizes.vocab),
    ];
    for (key, size) in counts {
        metadata.insert(format!("{architecture}.{key}"), count(key, size)?);
    }
    metadata.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), sizes.rms_eps);
    metadata.insert(format!("{architecture}.rope.freq_base"), sizes.rope_theta);
    insert_scaling(&mut metadata, architecture, &sizes.options.rope)?;
    insert_windows(&mut metadata, architecture, sizes)?;
    insert_experts(&mut metadata, architecture, sizes)?;
    let options = &sizes.options;
    let floats = [("attention.scale", options.attention_scale), ("final_logit_softcapping", options.logit_cap)];
    for (key, value) in floats {
        if let Some(value) = value {
            metadata.insert(format!("{architecture}.{key}"), value);
        }
    }
    tokenizer::write(checkpoint, &mut metadata)?;
    provenance.write(&mut metadata);
    Ok(metadata)
}

fn count(key: &str, size: usize) -> Result<u32, QuantizeError> {
    u32::try_from(size).map_err(|_| QuantizeError::Size { field: key.into(), found: size })
}

/// How rotary positions reach further, but for the factors of single pairs: those are tensors.
fn insert_scaling(metadata: &mut Metadata, architecture: &str, scaling: &RopeScaling) -> Result<(), QuantizeError> {
    let key = |key: &str| format!("{architecture}.rope.scaling.{key}");
    match scaling {
        RopeScaling::None | RopeScaling::PerPair { .. } => {}
        RopeScaling::Linear { factor } => {
            metadata.insert(key("type"), "linear");
            metadata.insert(key("factor"), *factor);
        }
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, magnitude } => {
            metadata.insert(key("type"), "yarn");
            metadata.insert(key("factor"), *factor);
            metadata.insert(key("original_context_length"), count("rope.scaling", *original_context)?);
            // llama.cpp multiplies the usual magnitude by this.
            metadata.insert(key("attn_factor"), magnitude / RopeScaling::yarn_magnitude(*factor));
            metadata.insert(key("yarn_beta_fast"), *beta_fast);
            metadata.insert(key("yarn_beta_slow"), *beta_slow);
        }
        RopeScaling::LongRope { original_context, magnitude, .. } => {
            metadata.insert(key("type"), "longrope");
            metadata.insert(key("original_context_length"), count("rope.scaling", *original_context)?);
            metadata.insert(key("attn_factor"), *magnitude);
        }
    }
    Ok(())
}

/// The window and, where the architecture does not imply them, the layers that have it.
fn insert_windows(metadata: &mut Metadata, architecture: &str, sizes: &Dimensions) -> Result<(), QuantizeError> {
    let Some(sliding) = &sizes.options.sliding else { return Ok(()) };
    let key = |key: &str| format!("{architecture}.{key}");
    metadata.insert(key("attention.sliding_window"), count("attention.sliding_window", sliding.window)?);
    let usual = match sizes.architecture.description().windows {
        Windows::AllBut { every } => (0..sizes.n_layers).map(|it| !(it + 1).is_multiple_of(every)).collect(),
        _ => vec![true; sizes.n_layers],
    };
    if sliding.layers != usual {
        metadata.insert(key("attention.sliding_window_pattern"), sliding.layers.clone());
    }
    if let Some(theta) = sliding.rope_theta {
        metadata.insert(key("rope.freq_base_swa"), theta);
    }
    Ok(())
}

fn insert_experts(metadata: &mut Metadata, architecture: &str, sizes: &Dimensions) -> Result<(), QuantizeError> {
    let Some(experts) = sizes.options.experts else { return Ok(()) };
    let counts = [
        ("expert_count", experts.n),
        ("expert_used_count", experts.n_used),
        ("expert_feed_forward_length", experts.intermediate),
    ];
    for (key, size) in counts {
        metadata.insert(format!("{architecture}.{key}"), count(key, size)?);
    }
    metadata.insert(format!("{architecture}.expert_weights_norm"), experts.normalized);
    Ok(())
}

/// Tensors that no checkpoint has: the factors of single pairs, `[rotary_dim / 2]`, by name.
pub(crate) fn rope_tensors(scaling: &RopeScaling) -> Vec<(&'static str, &[f32])> {
    match scaling {
        RopeScaling::PerPair { factors } => vec![("rope_freqs.weight", factors)],
        RopeScaling::LongRope { short, long, .. } => {
            vec![("rope_factors_long.weight", long), ("rope_factors_short.weight", short)]
        }
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Yarn { .. } => Vec::new(),
    }
}
