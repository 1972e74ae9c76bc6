//! The runtime against logits and greedy tokens that transformers and PEFT recorded.

use std::path::{Path, PathBuf};

use fsq_checkpoint::Adapter;
use fsq_gguf::Gguf;
use fsq_kernels::Cpu;
use fsq_model::{AdapterId, Decoder, DecoderOptions, KvFormat, LogitsFor, Step};
use serde_json::Value;

use crate::program::{fsq, json};
use crate::recorded::{Recorded, relative_distance, tensors};
use crate::tree::root;

/// Largest relative distance of a row of logits: weights in f32, keys and values in f16.
const LOGITS: f64 = 1e-3;

fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

fn decoder(file: &Path) -> Decoder<Cpu> {
    let options = DecoderOptions { threads: 1, context_tokens: 128, kv: KvFormat::F16, max_sequences: 2 };
    Decoder::load(&Gguf::open(file).unwrap(), options).unwrap()
}

fn logits(decoder: &mut Decoder<Cpu>, tokens: &[u32], adapter: Option<AdapterId>) -> Vec<f32> {
    let sequence = decoder.open_sequence();
    let found =
        decoder.forward(&[Step { sequence, tokens, logits: LogitsFor::All, adapter }]).unwrap().rows(0).to_vec();
    decoder.close(sequence);
    found
}

/// Row by row, so that no row hides behind larger ones.
#[track_caller]
fn assert_rows(what: &str, found: &[f32], recorded: &Recorded) {
    assert_eq!(found.len(), recorded.logits.len());
    let vocab = recorded.logits.len() / recorded.tokens.len();
    let rows = found.chunks_exact(vocab).zip(recorded.logits.chunks_exact(vocab));
    let largest = rows.map(|(found, expected)| relative_distance(found, expected)).fold(0.0, f64::max);
    println!("{what}: largest relative distance of a row of logits {largest:.1e}");
    assert!(largest <= LOGITS, "{what}: relative distance {largest:.1e}");
}

#[test]
fn logits_equal_those_of_transformers() {
    let recorded = Recorded::open(&fixture("llama/logits.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("l.safetensors");
    let file = fixture("llama/tiny-f32.gguf");
    let [file, out_text] = [&file, &out].map(|it| it.to_str().unwrap());
    let document = json(&["logits", file, "--tokens", &recorded.token_list(), "--all", "--out", out_text, "--json"]);
    assert_eq!(document["shape"][0], recorded.tokens.len());
    assert_rows("the command", &tensors(&out)["logits"], &recorded);
    assert_rows("the library", &logits(&mut decoder(Path::new(file)), &recorded.tokens, None), &recorded);
}

/// The file that llama.cpp's package wrote and the one that we write hold the same policy.
#[test]
fn our_own_file_of_the_checkpoint_gives_the_same_logits() {
    let recorded = Recorded::open(&fixture("llama/logits.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    let (llama, out) = (fixture("llama"), folder.path());
    let written = fsq(&["quantize", llama.to_str().unwrap(), "--to", "f32", "--out", out.to_str().unwrap()]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let file = out.join("llama-F32.gguf");
    let ours = logits(&mut decoder(&file), &recorded.tokens, None);
    assert_rows("our file", &ours, &recorded);
    let theirs = logits(&mut decoder(&fixture("llama/tiny-f32.gguf")), &recorded.tokens, None);
    assert_eq!(ours, theirs, "the same weights give the same bits");
    for recorded in greedy().as_array().unwrap() {
        assert_greedy(&file, recorded);
    }
}

fn greedy() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("llama/greedy.json")).unwrap()).unwrap()
}

#[track_caller]
fn assert_greedy(file: &Path, recorded: &Value) {
    let (prompt, n) = (recorded["text"].as_str().unwrap(), recorded["token_ids"].as_array().unwrap().len());
    let (file, n) = (file.to_str().unwrap(), n.to_string());
    let found = json(&["run", file, "--prompt", prompt, "--special", "-n", &n, "--ignore-eos", "--json"]);
    assert_eq!(found["token_ids"], recorded["token_ids"], "{prompt}");
}

#[test]
fn an_adapter_applied_while_running_gives_the_logits_of_peft() {
    let mut decoder = decoder(&fixture("llama/tiny-f32.gguf"));
    let base = Recorded::open(&fixture("llama/logits.safetensors"));
    let place = AdapterId(0);
    for (adapter, path) in [("initial", "peft/initial_logits.safetensors"), ("final", "peft/final_logits.safetensors")]
    {
        let recorded = Recorded::open(&fixture(path));
        let read = Adapter::open(&fixture("peft").join(adapter)).unwrap();
        decoder.set_adapter(place, Some(&read)).unwrap();
        assert_rows(path, &logits(&mut decoder, &recorded.tokens, Some(place)), &recorded);
        // The base beside it stays what it was.
        assert_rows("base", &logits(&mut decoder, &base.tokens, None), &base);
    }
}

/// What is merged in f32 and what is applied while running are the same policy.
#[test]
fn a_merged_adapter_gives_the_logits_of_peft() {
    let recorded = Recorded::open(&fixture("peft/final_logits.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    let [llama, adapter] = ["llama", "peft/final"].map(|it| fixture(it).to_str().unwrap().to_owned());
    let out = folder.path().to_str().unwrap();
    let written = fsq(&["quantize", &llama, "--adapter", &adapter, "--to", "f32", "--out", out]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let found = logits(&mut decoder(&folder.path().join("llama-F32.gguf")), &recorded.tokens, None);
    assert_rows("merged", &found, &recorded);
}
