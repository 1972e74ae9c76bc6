//! Hostile files: sizes, numbers and tensors that no decoder can run.

use super::raw::{F32, Q8_0, Raw, Typed, array, boolean, f32, i32, i32s, text, u32};
use super::table::{
    Expected::{NotRun, Sound, Strict},
    Made::{Each, One},
    Row, row,
};

fn with(key: &str, value: Typed) -> Raw {
    Raw::policy().set(&format!("llama.{key}"), value)
}

fn f64(it: f64) -> Typed {
    Typed(12, it.to_le_bytes().into())
}

fn factors(them: &[f32]) -> Raw {
    let raw = Raw::policy().tensor("rope_freqs.weight", &[them.len() as u64], F32, them.len() * 4);
    let bytes: Vec<u8> = them.iter().flat_map(|it| it.to_le_bytes()).collect();
    raw.damaged("rope_freqs.weight", |it| it.copy_from_slice(&bytes))
}

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row(130, "no architecture", NotRun("metadata `general.architecture`: expected a string, found nothing"),
        One(|| Raw::policy().without("general.architecture"))),
    row(131, "an architecture that is a number",
        NotRun("metadata `general.architecture`: expected a string, found U32(1)"),
        One(|| Raw::policy().set("general.architecture", u32(1)))),
    row(132, "an unknown architecture", NotRun("found `mystery`"),
        One(|| Raw::policy().set("general.architecture", text("mystery")))),
    row(133, "an architecture without a name", NotRun("metadata `general.architecture`: expected one of"),
        One(|| Raw::policy().set("general.architecture", text("")))),
    row(134, "an architecture of 100,000 letters", NotRun("metadata `general.architecture`: expected one of"),
        One(|| Raw::policy().set("general.architecture", text(&"x".repeat(100_000))))),
    row(135, "no head", NotRun("`llama.attention.head_count`: expected a number from 1"),
        One(|| with("attention.head_count", u32(0)))),
    row(136, "2^31 heads", NotRun("`llama.attention.head_count`: expected a number from 1 to 16777216"),
        One(|| with("attention.head_count", u32(1 << 31)))),
    row(137, "more heads than the width has numbers", NotRun("`llama.attention.head_count`: expected at most 32"),
        One(|| with("attention.head_count", u32(64)).without("llama.rope.dimension_count"))),
    row(138, "heads for each layer", NotRun("`llama.attention.head_count`: expected a whole number, found an array"),
        One(|| with("attention.head_count", i32s(&[2])))),
    row(139, "a head count in words", NotRun("`llama.attention.head_count`: expected a whole number, found the string"),
        One(|| with("attention.head_count", text("2")))),
    row(140, "heads below zero", NotRun("`llama.attention.head_count`: expected a whole number, found I32(-2)"),
        One(|| with("attention.head_count", i32(-2)))),
    row(141, "heads that are not shared evenly",
        NotRun("`llama.attention.head_count_kv`: expected a divisor of 2, found 3"),
        One(|| with("attention.head_count_kv", u32(3)))),
    row(142, "no key head", NotRun("`llama.attention.head_count_kv`: expected a number from 1"),
        One(|| with("attention.head_count_kv", u32(0)))),
    row(143, "a head of 8 numbers", NotRun("`llama.attention.key_length`: expected a multiple of 16, found 8"),
        One(|| with("attention.key_length", u32(8)).without("llama.rope.dimension_count"))),
    row(144, "a head of 2^24 numbers", NotRun("tensor `blk.0.attn_q.weight`: expected shape [33554432, 32]"),
        One(|| with("attention.key_length", u32(1 << 24)).without("llama.rope.dimension_count"))),
    row(145, "values of another width than keys", NotRun("`llama.attention.value_length`: expected 16"),
        One(|| with("attention.value_length", u32(32)))),
    row(146, "an odd part of a head that turns, or more than a head",
        NotRun("`llama.rope.dimension_count`: expected an even number up to 16"),
        Each(|| [7, 18].map(|it| with("rope.dimension_count", u32(it)).bytes()).into())),
    row(147, "a context of 0", NotRun("`llama.context_length`: expected a number from 1"),
        One(|| with("context_length", u32(0)))),
    row(148, "a context of 2^32 - 1", NotRun("`llama.context_length`: expected a number from 1 to 16777216"),
        One(|| with("context_length", u32(u32::MAX)))),
    row(149, "a context in words", NotRun("`llama.context_length`: expected a whole number, found the string"),
        One(|| with("context_length", text("many")))),
    row(150, "no context", NotRun("metadata `llama.context_length`: expected a whole number, found nothing"),
        One(|| Raw::policy().without("llama.context_length"))),
    row(151, "a rotary base that is no number", NotRun("`llama.rope.freq_base`: expected a number above 0"),
        One(|| with("rope.freq_base", f32(f32::NAN)))),
    row(152, "a rotary base below zero",
        NotRun("`llama.rope.freq_base`: expected a number above 0, found -10000"),
        One(|| with("rope.freq_base", f32(-10_000.0)))),
    row(153, "a rotary base of zero, one or infinity",
        NotRun("`llama.rope.freq_base`: expected a number above "),
        Each(|| [0.0, 1.0, f32::INFINITY].map(|it| with("rope.freq_base", f32(it)).bytes()).into())),
    row(154, "a rotary base of 64 bits", NotRun("`llama.rope.freq_base`: expected a 32-bit float, found F64(10000.0)"),
        One(|| with("rope.freq_base", f64(10_000.0)))),
    row(155, "no rotary base", Strict("metadata `llama.rope.freq_base`: not in the file"),
        One(|| Raw::policy().without("llama.rope.freq_base"))),
    row(156, "an epsilon that is no number",
        NotRun("`llama.attention.layer_norm_rms_epsilon`: expected a number from 0"),
        One(|| with("attention.layer_norm_rms_epsilon", f32(f32::NAN)))),
    row(157, "an epsilon below zero", NotRun("`llama.attention.layer_norm_rms_epsilon`: expected a number from 0"),
        One(|| with("attention.layer_norm_rms_epsilon", f32(-1.0)))),
    row(158, "no epsilon", NotRun("`llama.attention.layer_norm_rms_epsilon`: expected a 32-bit float, found nothing"),
        One(|| Raw::policy().without("llama.attention.layer_norm_rms_epsilon"))),
    row(159, "a rotary scaling that is not run", NotRun("`llama.rope.scaling.type`: expected `none`, `linear`, `yarn`"),
        One(|| with("rope.scaling.type", text("dynamic")))),
    row(160, "a rotary scaling that is a number", NotRun("`llama.rope.scaling.type`: expected a string, found U32(2)"),
        One(|| with("rope.scaling.type", u32(2)))),
    row(161, "a rotary factor that is no number", NotRun("tensor `rope_freqs.weight`: "),
        One(|| factors(&[1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0]))),
    row(162, "a rotary factor of zero, or below", NotRun("tensor `rope_freqs.weight`: expected finite numbers above 0"),
        Each(|| [0.0, -1.0].map(|it| factors(&[it, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).bytes()).into())),
    row(163, "rotary factors for another head", NotRun("tensor `rope_freqs.weight`: expected shape [8], found [4]"),
        One(|| factors(&[1.0; 4]))),
    row(164, "rotary factors for 100 million heads", NotRun("tensor `rope_freqs.weight`: expected shape [8]"),
        One(|| Raw::policy().tensor("rope_freqs.weight", &[256, 4096], 10, 84 * 4096))),
    row(165, "2^24 layers", NotRun("tensor `blk.1.attn_norm.weight`: not in the file"),
        One(|| with("block_count", u32(1 << 24)))),
    row(166, "no layer", NotRun("`llama.block_count`: expected a number from 1"), One(|| with("block_count", u32(0)))),
    row(167, "layers below zero", NotRun("`llama.block_count`: expected a whole number, found I32(-1)"),
        One(|| with("block_count", i32(-1)))),
    row(168, "a layer count that is true", NotRun("`llama.block_count`: expected a whole number, found Bool(true)"),
        One(|| with("block_count", boolean(1)))),
    row(169, "another width than the tensors have", NotRun("tensor `token_embd.weight`: expected shape [260, 64]"),
        One(|| with("embedding_length", u32(64)).set("llama.attention.key_length", u32(16)))),
    row(170, "another feed-forward width than the tensors have",
        NotRun("tensor `blk.0.ffn_gate.weight`: expected shape [64, 32], found [32, 32]"),
        One(|| with("feed_forward_length", u32(64)))),
    row(171, "a feed-forward width for each layer",
        NotRun("`llama.feed_forward_length`: expected a whole number, found an array of 1000"),
        One(|| with("feed_forward_length", array(5, 1000, vec![0; 4000])))),
    row(172, "no embedding", NotRun("tensor `token_embd.weight`: not in the file"),
        One(|| Raw::policy().without_tensor("token_embd.weight"))),
    row(173, "no queries", NotRun("tensor `blk.0.attn_q.weight`: not in the file"),
        One(|| Raw::policy().without_tensor("blk.0.attn_q.weight"))),
    row(174, "no last norm", NotRun("tensor `output_norm.weight`: not in the file"),
        One(|| Raw::policy().without_tensor("output_norm.weight"))),
    row(175, "a norm that is a matrix", NotRun("tensor `output_norm.weight`: expected shape [32], found [4, 8]"),
        One(|| {
            let change = |it: &mut super::raw::RawTensor| (it.shape, it.n_dimensions) = (vec![8, 4], 2);
            Raw::policy().retold("output_norm.weight", change)
        })),
    row(176, "a matrix of three dimensions",
        NotRun("tensor `blk.0.attn_q.weight`: expected shape [32, 32], found [16, 2, 32]"),
        One(|| {
            let change = |it: &mut super::raw::RawTensor| (it.shape, it.n_dimensions) = (vec![32, 2, 16], 3);
            Raw::policy().retold("blk.0.attn_q.weight", change)
        })),
    row(177, "a matrix on its side", NotRun("tensor `blk.0.attn_k.weight`: expected shape [16, 32], found [8, 64]"),
        One(|| Raw::policy().retold("blk.0.attn_k.weight", |it| it.shape = vec![64, 8]))),
    row(178, "an output matrix of another vocabulary",
        NotRun("tensor `output.weight`: expected shape [260, 32], found [1, 32]"),
        One(|| Raw::policy().tensor("output.weight", &[32, 1], Q8_0, 34))),
    row(179, "quantized tensors of no version", Strict("metadata `general.quantization_version`: not in the file"),
        One(|| Raw::policy().without("general.quantization_version"))),
    row(180, "a chat template that is a number",
        Strict("metadata `tokenizer.chat_template`: expected a string, found U32(1)"),
        One(|| Raw::policy().set("tokenizer.chat_template", u32(1)))),
    row(181, "a chat template that does not end", Strict("chat template: "),
        One(|| Raw::policy().set("tokenizer.chat_template", text("{% for a in b %}")))),
    row(182, "a policy without a name or a template", Sound, One(Raw::policy)),
];
