//! Test constructors: a tiny random policy as a GGUF file in memory, and decoders and tokenizers on it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use fsq_blocks::Format;
use fsq_checkpoint::{Adapter, Architecture, Dimensions, Linear, LoraPair, Options, tensor_names};
use fsq_gguf::{Draft, Gguf, Metadata, TensorSpec};
use fsq_kernels::Cpu;

use crate::tokenizer::char_of_byte;
use crate::{Decoder, DecoderOptions, KvFormat, Tokenizer};

/// Two layers, grouped queries, and a hidden size that k-quants can hold.
pub(crate) const TINY: Dimensions = Dimensions {
    architecture: Architecture::Llama,
    n_layers: 2,
    hidden: 256,
    intermediate: 512,
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 64,
    vocab: 300,
    context: 128,
    rms_eps: 1e-5,
    rope_theta: 10_000.0,
    tied: true,
    options: Options::PLAIN,
};

/// A policy's tensors by GGUF name, as floats in the order of the file.
pub(crate) type Tensors = BTreeMap<String, Vec<f32>>;

/// Numbers from -1 to 1 that look random; the same for the same seed.
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// Random weights of a size that keeps activations near 1.
pub(crate) fn tensors(dimensions: &Dimensions) -> Tensors {
    let names = tensor_names(dimensions).into_iter().enumerate();
    let tensor = |(index, tensor): (usize, fsq_checkpoint::TensorName)| {
        let is_norm = tensor.shape.len() == 1;
        let scale = if is_norm { 0.3 } else { 2.0 / (*tensor.shape.last().unwrap() as f32).sqrt() };
        let values = numbers(index as u64 + 1, tensor.shape.iter().product());
        let shifted = values.into_iter().map(|it| it * scale + if is_norm { 1.0 } else { 0.0 });
        (tensor.gguf, shifted.collect())
    };
    names.map(tensor).collect()
}

/// The file's bytes. Norms are F32, matrices of the format.
pub(crate) fn gguf(dimensions: &Dimensions, tensors: &Tensors, format: Format) -> Gguf {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let format_of = |shape: &[usize]| if shape.len() == 1 { Format::F32 } else { format };
    let spec = |it: fsq_checkpoint::TensorName| TensorSpec {
        format: format_of(&it.shape),
        name: it.gguf,
        shape: it.shape.into_iter().rev().collect(),
    };
    let specs: Vec<TensorSpec> = tensor_names(dimensions).into_iter().map(spec).collect();
    let mut draft = Draft::create(&path, &metadata(dimensions), &specs).unwrap();
    for spec in &specs {
        let values = &tensors[&spec.name];
        let mut bytes = vec![0; spec.format.row_bytes(spec.shape[0]).unwrap() * values.len() / spec.shape[0]];
        spec.format.encode(values, None, &mut bytes);
        draft.write(&spec.name, &bytes).unwrap();
    }
    draft.finish().unwrap().publish().unwrap();
    Gguf::from_bytes(std::fs::read(&path).unwrap()).unwrap()
}

fn metadata(dimensions: &Dimensions) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "llama");
    for (key, value) in [
        ("block_count", dimensions.n_layers),
        ("context_length", dimensions.context),
        ("embedding_length", dimensions.hidden),
        ("feed_forward_length", dimensions.intermediate),
        ("attention.head_count", dimensions.n_heads),
        ("attention.head_count_kv", dimensions.n_kv_heads),
        ("attention.key_length", dimensions.head_dim),
        ("attention.value_length", dimensions.head_dim),
        ("rope.dimension_count", dimensions.head_dim),
    ] {
        metadata.insert(format!("llama.{key}"), value as u32);
    }
    metadata.insert("llama.attention.layer_norm_rms_epsilon", dimensions.rms_eps);
    metadata.insert("llama.rope.freq_base", dimensions.rope_theta);
    let (tokens, kinds, merges) = vocabulary();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "gpt-2");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", kinds);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata.insert("tokenizer.ggml.bos_token_id", 262u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 263u32);
    metadata
}

/// All bytes, a few merges, a tag and two control tokens.
fn vocabulary() -> (Vec<String>, Vec<i32>, Vec<String>) {
    let mut tokens: Vec<String> = (0..=255u8).map(|it| char_of_byte(it).to_string()).collect();
    let merged = ["th", "the", "\u{120}the", "in", "ing"];
    tokens.extend(merged.map(String::from));
    tokens.push("<action>".into());
    tokens.extend(["<|bos|>", "<|end|>"].map(String::from));
    let mut kinds = vec![1; 256 + merged.len()];
    kinds.extend([4, 3, 3]);
    let merges = ["t h", "th e", "\u{120} the", "i n", "in g"].map(String::from).to_vec();
    (tokens, kinds, merges)
}

/// An adapter on every linear module of every layer.
pub(crate) fn adapter(dimensions: &Dimensions, seed: u64, rank: usize) -> Adapter {
    let modules = (0..dimensions.n_layers).flat_map(|layer| Linear::ALL.map(|linear| (layer, linear)));
    let pair = |(layer, linear): (usize, Linear)| {
        let [outputs, inputs] = linear.shape(dimensions);
        let seed = seed * 1000 + layer as u64 * 7 + linear as u64;
        let scaled = |seed: u64, n: usize| numbers(seed, n).iter().map(|it| it * 0.1).collect();
        let pair =
            LoraPair { a: scaled(seed, rank * inputs), b: scaled(seed + 500, outputs * rank), rank, inputs, outputs };
        (linear.hf_path(layer), pair)
    };
    Adapter { rank, alpha: 2.0 * rank as f32, rslora: false, pairs: modules.map(pair).collect() }
}

pub(crate) const OPTIONS: DecoderOptions =
    DecoderOptions { threads: 2, context_tokens: 128, kv: KvFormat::F16, max_sequences: 8 };

/// A decoder of the tiny policy.
pub(crate) fn decoder(format: Format) -> Decoder<Cpu> {
    Decoder::load(&gguf(&TINY, &tensors(&TINY), format), OPTIONS).unwrap()
}

/// A prompt of so many tokens.
pub(crate) fn prompt(seed: u64, n: usize) -> Vec<u32> {
    numbers(seed + 77, n).iter().map(|it| ((it + 1.0) * 140.0) as u32).collect()
}

/// A tokenizer with a token for each byte, and control tokens after them.
pub(crate) fn byte_tokenizer(control: &[&str]) -> Tokenizer {
    let added: Vec<_> = (256..)
        .zip(control)
        .map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    let vocab: serde_json::Map<_, _> =
        (0..=255u8).map(|it| (char_of_byte(it).to_string(), u32::from(it).into())).collect();
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true});
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(&file.to_string()).unwrap()
}
