#![allow(warnings)]
use fsq_blocks::Format;
use fsq_checkpoint::{Architecture, Dimensions, tensor_names};
use fsq_gguf::{Draft, Metadata, TensorSpec};
fn main() {
    let out = std::env::args().nth(1).unwrap();
    let format = Format::from_name(&std::env::args().nth(2).unwrap()).unwrap();
    let big = std::env::args().nth(3).is_some();
    let d = if big { Dimensions { architecture: Architecture::Llama, n_layers: 16, hidden: 2048, intermediate: 8192, n_heads: 32, n_kv_heads: 8, head_dim: 64, vocab: 32768, context: 2048, rms_eps: 1e-5, rope_theta: 10000.0, tied: true } } else {
     Dimensions { architecture: Architecture::Llama, n_layers: 5, hidden: 256, intermediate: 512, n_heads: 4, n_kv_heads: 2, head_dim: 64, vocab: 1024, context: 1024, rms_eps: 1e-5, rope_theta: 10000.0, tied: true } };
    let mut m = Metadata::new();
    m.insert("general.architecture", "llama");
    for (k, v) in [("block_count", d.n_layers), ("context_length", d.context), ("embedding_length", d.hidden), ("feed_forward_length", d.intermediate), ("attention.head_count", d.n_heads), ("attention.head_count_kv", d.n_kv_heads), ("attention.key_length", d.head_dim), ("rope.dimension_count", d.head_dim)] { m.insert(format!("llama.{k}"), v as u32); }
    m.insert("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
    let specs: Vec<_> = tensor_names(&d).into_iter().map(|t| TensorSpec { format: if t.shape.len() == 1 { Format::F32 } else { format }, name: t.gguf, shape: t.shape.into_iter().rev().collect() }).collect();
    let mut draft = Draft::create(out.as_ref(), &m, &specs).unwrap();
    let mut s = 88172645463325252u64;
    for t in &specs { let n: usize = t.shape.iter().product(); let v: Vec<f32> = (0..n).map(|_| { s ^= s << 13; s ^= s >> 7; s ^= s << 17; ((s >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.1 }).collect();
        let mut b = vec![0; t.format.row_bytes(t.shape[0]).unwrap() * n / t.shape[0]]; t.format.encode(&v, None, &mut b); draft.write(&t.name, &b).unwrap(); }
    draft.finish().unwrap().publish().unwrap();
}
