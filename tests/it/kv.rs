//! Keys and values in 8 bits: against llama.cpp with a cache of the same format, and against f16.

use std::path::Path;

use fsq_checkpoint::Dimensions;
use fsq_gguf::Gguf;
use fsq_kernels::Cpu;
use fsq_model::{Decoder, DecoderOptions, KvFormat, LogitsFor, Step};
use fsq_quantizer::Mix;
use serde_json::json;

use crate::architectures::{Case, cases, convert, write_checkpoint};
use crate::oracle::last_rows_with;
use crate::program::{BAD_INPUT, fsq, json as run_json, text};
use crate::recorded::relative_distance;
use crate::tree::root;

/// How far logits may be from llama.cpp's, which rounds keys, values and queries alike where it does not rotate them.
/// What is left is the order of sums, and levels that a last bit of a key tips over.
const DISTANCE_MAX: f64 = 2e-3;
/// The same where llama.cpp rotates heads first, and rounds other numbers therefore; and from a cache in f16.
const ROUNDING_MAX: f64 = 2e-2;
/// Cases that are also held to llama.cpp where it rotates heads; a part, since each asks another process.
const ROTATED: [&str; 4] = ["llama", "llama-yarn-attention", "qwen3", "gemma3"];

fn rows(file: &Path, texts: &[Vec<u32>], kv: KvFormat, context_tokens: usize) -> Vec<f32> {
    let options = DecoderOptions { threads: 2, context_tokens, kv, max_sequences: 1 };
    let mut decoder: Decoder<Cpu> = Decoder::load(&Gguf::open(file).unwrap(), options).unwrap();
    let mut rows = Vec::new();
    for tokens in texts {
        let sequence = decoder.open_sequence();
        let step = Step { sequence, tokens, logits: LogitsFor::Last, adapter: None };
        rows.extend_from_slice(decoder.forward(&[step]).unwrap().last(0));
        decoder.close(sequence);
    }
    rows
}

/// Whether llama.cpp takes heads of this width in blocks of 32.
fn has_whole_blocks(case: &Case, dimensions: &Dimensions) -> bool {
    dimensions.head_dim.is_multiple_of(32) && case.stock_tokens == case.tokens.len()
}

#[test]
fn a_cache_in_8_bits_gives_the_logits_of_llama_cpp_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Vec::new();
    let mut n = 0;
    for case in cases() {
        let checkpoint = write_checkpoint(&case, folder.path());
        let file = convert(&checkpoint, Mix::F32);
        let texts = [2, 17, case.tokens.len()].map(|it| case.tokens[..it].to_vec());
        let ours = rows(&file, &texts, KvFormat::Q8_0, case.context);
        let rounding = relative_distance(&ours, &rows(&file, &texts, KvFormat::F16, case.context));
        println!("{}: {rounding:.1e} from f16", case.name);
        if rounding.is_nan() || rounding > ROUNDING_MAX {
            far.push(format!("{}: {rounding:.1e} from f16", case.name));
        }
        if !has_whole_blocks(&case, &checkpoint.dimensions) {
            continue;
        }
        n += 1;
        let ways = [(false, DISTANCE_MAX), (true, ROUNDING_MAX)];
        for (rotated, limit) in ways.into_iter().take(if ROTATED.contains(&&*case.name) { 2 } else { 1 }) {
            let theirs = last_rows_with(&file, &texts, &json!({"kv": "q8_0", "rotated": rotated})).concat();
            let apart = relative_distance(&ours, &theirs);
            println!("{}: {apart:.1e} from llama.cpp, rotated: {rotated}", case.name);
            if apart.is_nan() || apart > limit {
                far.push(format!("{}: {apart:.1e} from llama.cpp, rotated: {rotated}", case.name));
            }
        }
    }
    assert!(n >= 15, "{n} cases");
    assert!(far.is_empty(), "{far:#?}");
}

/// The whole way through the command.
#[test]
fn the_command_takes_the_format_of_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let file = root().join("tests/fixtures/llama/tiny-f32.gguf");
    let logits = |kv: &str| {
        let out = folder.path().join(format!("{kv}.safetensors"));
        run_json(&["logits", text(&file), "--tokens", "1,2,3,4", "--kv", kv, "--out", text(&out), "--json"]);
        crate::recorded::tensors(&out).remove("logits").unwrap()
    };
    let apart = relative_distance(&logits("q8_0"), &logits("f16"));
    assert!(apart > 0.0 && apart < ROUNDING_MAX, "{apart:.1e}");
    let strange = fsq(&["run", text(&file), "--prompt", "a", "--kv", "q4_0"]);
    assert_eq!(strange.status.code(), BAD_INPUT);
}
