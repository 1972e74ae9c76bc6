//! The shipped base in its formats: greedy tokens of `fsq run` against those of stock llama.cpp.
//!
//! Attention rounds as llama.cpp's does and every product of blocks is exact in integers, so what is left between the
//! two programs is the order of a few sums.

use std::path::{Path, PathBuf};

use fsq_environments::{Countdown, DocHop, Environment, Split};
use fsq_gguf::Gguf;
use fsq_kernels::Cpu;
use fsq_model::{Decoder, DecoderOptions, KvFormat, LogitsFor, Step};
use serde_json::{Value, json};

use crate::oracle::{greedy, greedy_with, last_rows};
use crate::program::{self, fsq, text};
use crate::recorded::relative_distance;
use crate::tree::root;

/// Prompts in each environment.
const PROMPTS: usize = 10;
/// Tokens after each.
const TOKENS: usize = 64;
/// Of all prompts, those that must agree to the last token.
const WHOLE_MIN: usize = 17;
/// Where tokens part, llama.cpp's two best logits are closer than this: a tie that a tipped rounding decides. Or they
/// are closer than where llama.cpp with flash attention parts from itself without, in the same file.
const TIE: f64 = 0.05;
/// How far logits may be from llama.cpp's, relative to their size. Its two ways to attend are 5e-3 apart in `Q8_0`.
const DISTANCE_MAX: f64 = 5e-3;

/// Held-out tasks as the policy reads them.
fn prompts() -> Vec<Value> {
    fn first<E: Environment>(world: &E) -> Vec<Value> {
        let tasks = world.tasks(Split::Test, 20, PROMPTS);
        let prompt = |it: &E::Task| format!("<|bos|><|user|>{}<|assistant|>", world.observe(it, &world.start(it)));
        tasks.iter().map(|it| prompt(it).into()).collect()
    }
    [first(&Countdown), first(&DocHop)].concat()
}

fn quantized(folder: &Path, format: &str) -> PathBuf {
    let base = root().join("finetune/base");
    let written = fsq(&["quantize", text(&base), "--to", format, "--out", text(folder)]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    folder.join(format!("base-{}.gguf", format.to_uppercase()))
}

fn ours(file: &Path, prompt: &Value) -> (Vec<u32>, Vec<u32>) {
    let (prompt, n) = (prompt.as_str().unwrap(), TOKENS.to_string());
    let found =
        program::json(&["run", text(file), "--prompt", prompt, "--special", "-n", &n, "--ignore-eos", "--json"]);
    let ids = |key: &str| serde_json::from_value(found[key].clone()).unwrap();
    (ids("prompt_token_ids"), ids("token_ids"))
}

fn assert_greedy(format: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = quantized(folder.path(), format);
    let prompts = prompts();
    assert_eq!(prompts.len(), 2 * PROMPTS);
    let theirs = greedy(&file, &prompts, TOKENS);
    let mut texts = Vec::new();
    let mut parted = Vec::new();
    for (prompt, theirs) in prompts.iter().zip(&theirs) {
        let (read, tokens) = ours(&file, prompt);
        assert_eq!(read, theirs.prompt_token_ids, "{prompt}");
        assert_eq!((tokens.len(), theirs.token_ids.len()), (TOKENS, TOKENS), "{prompt}");
        if let Some(at) = tokens.iter().zip(&theirs.token_ids).position(|(left, right)| left != right) {
            println!("  {prompt} parts after {at} tokens, where the margin is {:.4}", theirs.margins[at]);
            parted.push(theirs.margins[at]);
        }
        texts.push([&read, tokens.as_slice()].concat());
    }
    println!("{format}: {} of {} prompts agree in all {TOKENS} tokens", prompts.len() - parted.len(), prompts.len());
    assert!(prompts.len() - parted.len() >= WHOLE_MIN, "{format}: {} prompts part", parted.len());
    if parted.iter().any(|it| *it >= TIE) {
        let with_flash = greedy_with(&file, &prompts, TOKENS, &json!({"flash": true}));
        let itself = theirs.iter().zip(&with_flash).filter_map(|(left, right)| {
            let at = left.token_ids.iter().zip(&right.token_ids).position(|(left, right)| left != right)?;
            Some(left.margins[at])
        });
        let tie = itself.fold(TIE, f64::max);
        assert!(parted.iter().all(|it| *it <= tie), "{format} parts where nothing is near a tie, {tie}: {parted:?}");
    }
    assert_logits(&file, &texts);
}

/// Logits in the middle of the texts, where both have read the same.
fn assert_logits(file: &Path, texts: &[Vec<u32>]) {
    let cut = |text: &Vec<u32>| [8, 16, 32, 64].map(|it| text[..it].to_vec());
    let texts: Vec<Vec<u32>> = texts.iter().flat_map(cut).collect();
    let theirs = last_rows(file, &texts).concat();
    let options = DecoderOptions { threads: 2, context_tokens: 256, kv: KvFormat::F16, max_sequences: 1 };
    let mut decoder: Decoder<Cpu> = Decoder::load(&Gguf::open(file).unwrap(), options).unwrap();
    let mut ours = Vec::new();
    for tokens in &texts {
        let sequence = decoder.open_sequence();
        let step = Step { sequence, tokens, logits: LogitsFor::Last, adapter: None };
        ours.extend_from_slice(decoder.forward(&[step]).unwrap().last(0));
        decoder.close(sequence);
    }
    let apart = relative_distance(&ours, &theirs);
    println!("  logits: {apart:.2e} from llama.cpp's");
    assert!(apart <= DISTANCE_MAX, "{apart:.2e} from llama.cpp");
}

#[test]
fn tokens_of_f32_equal_those_of_llama_cpp() {
    assert_greedy("f32");
}

#[test]
fn tokens_of_q8_0_equal_those_of_llama_cpp() {
    assert_greedy("q8_0");
}

#[test]
fn tokens_of_q4_k_m_equal_those_of_llama_cpp() {
    assert_greedy("q4_k_m");
}
