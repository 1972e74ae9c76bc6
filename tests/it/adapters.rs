//! Adapters as GGUF files: what is written from a PEFT folder, stock llama.cpp and ours apply alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fsq_checkpoint::{Adapter, Dimensions, LoraPair, modules};
use fsq_gguf::{Draft, Gguf, Metadata, TensorSpec};
use fsq_kernels::Cpu;
use fsq_model::{AdapterId, Decoder, DecoderOptions, KvFormat, LogitsFor, Step, read_adapter};
use fsq_quantizer::{Mix, write_adapter};
use serde_json::{Value, json};

use crate::architectures::{cases, convert, numbers, write_checkpoint};
use crate::oracle::{greedy_with, last_rows_with};
use crate::program::{BAD_INPUT, fsq, json as run_json, refused, text};
use crate::recorded::relative_distance;
use crate::tree::root;

/// How far logits of `F32` files may be from llama.cpp's.
const DISTANCE_MAX: f64 = 1e-3;
/// Less than this would mean that an adapter does nothing.
const CHANGE_MIN: f64 = 1e-2;
/// Tokens of a greedy text.
const TOKENS: usize = 32;

fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

fn decoder(file: &Path) -> Decoder<Cpu> {
    let options = DecoderOptions { threads: 1, context_tokens: 128, kv: KvFormat::F16, max_sequences: 1 };
    Decoder::load(&Gguf::open(file).unwrap(), options).unwrap()
}

/// Logits after the last token of each text.
fn rows(decoder: &mut Decoder<Cpu>, texts: &[Vec<u32>], adapter: Option<AdapterId>) -> Vec<f32> {
    let mut rows = Vec::new();
    for tokens in texts {
        let sequence = decoder.open_sequence();
        let step = Step { sequence, tokens, logits: LogitsFor::Last, adapter };
        rows.extend_from_slice(decoder.forward(&[step]).unwrap().last(0));
        decoder.close(sequence);
    }
    rows
}

/// Writes the final adapter of the PEFT fixture with the command.
fn write_final(folder: &Path) -> PathBuf {
    let (base, adapter) = (fixture("llama"), fixture("peft/final"));
    let arguments = ["quantize", text(&base), "--adapter", text(&adapter), "--adapter-only", "--out", text(folder)];
    let written = fsq(&arguments);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    folder.join("llama-final-LoRA.gguf")
}

#[test]
fn a_written_adapter_is_the_one_of_the_folder_here_and_in_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_final(folder.path());
    let base = fixture("llama/tiny-f32.gguf");
    let peft = Adapter::open(&fixture("peft/final")).unwrap();
    let read = read_adapter(&Gguf::open(&file).unwrap(), decoder(&base).config()).unwrap();
    assert_eq!(read, peft, "bit for bit");

    let recorded: Value = serde_json::from_slice(&std::fs::read(fixture("llama/greedy.json")).unwrap()).unwrap();
    let prompts: Vec<Value> = recorded.as_array().unwrap().iter().map(|it| it["text"].clone()).collect();
    let theirs = greedy_with(&base, &prompts, TOKENS, &json!({"adapter": text(&file)}));
    let mut changed = 0;
    for ((prompt, theirs), recorded) in prompts.iter().zip(&theirs).zip(recorded.as_array().unwrap()) {
        let (prompt, n) = (prompt.as_str().unwrap(), TOKENS.to_string());
        let run = |adapter: &Path| {
            let arguments = ["run", text(&base), "--adapter", text(adapter), "--prompt", prompt, "--special"];
            run_json(&[&arguments[..], &["-n", &n, "--ignore-eos", "--json"]].concat())["token_ids"].clone()
        };
        let ours = run(&file);
        assert_eq!(ours, run(&fixture("peft/final")), "{prompt}");
        assert_eq!(ours, json!(theirs.token_ids), "{prompt}: margins {:?}", theirs.margins);
        changed += usize::from(ours != recorded["token_ids"]);
    }
    assert!(changed > 0, "the adapter changes no text");
}

/// An adapter on every module.
fn random_adapter(dimensions: &Dimensions, rank: usize, rslora: bool) -> Adapter {
    let mut pairs = BTreeMap::new();
    for module in (0..dimensions.n_layers).flat_map(|layer| modules(dimensions, layer)) {
        let [outputs, inputs] = module.shape;
        let scaled = |side: &str, n: usize, scale: f32| {
            numbers(&format!("{}.{side}", module.hf), n).iter().map(|it| it * scale).collect::<Vec<f32>>()
        };
        let (a, b) = (scaled("a", rank * inputs, 0.1), scaled("b", outputs * rank, 0.1));
        pairs.insert(module.hf.clone(), LoraPair { a, b, rank, inputs, outputs });
    }
    Adapter { rank, alpha: 6.0, rslora, pairs }
}

#[test]
fn every_architecture_takes_an_adapter_as_llama_cpp_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Vec::new();
    let names = ["llama-biases", "mistral", "qwen2", "qwen3", "phi3", "gemma3", "qwen3-moe"];
    let cases: Vec<_> = cases().into_iter().filter(|it| names.contains(&it.name.as_str())).collect();
    assert_eq!(cases.len(), names.len());
    for (index, case) in cases.iter().enumerate() {
        let checkpoint = write_checkpoint(case, folder.path());
        let base = convert(&checkpoint, Mix::F32);
        let adapter = random_adapter(&checkpoint.dimensions, 4, index % 2 == 1);
        let file = folder.path().join(format!("{}-LoRA.gguf", case.name));
        write_adapter(&adapter, &checkpoint.dimensions, "random", None, &file).unwrap().publish().unwrap();
        let mut decoder = decoder(&base);
        let read = read_adapter(&Gguf::open(&file).unwrap(), decoder.config()).unwrap();
        assert_eq!(read.pairs, adapter.pairs, "{}", case.name);
        assert!((read.scale() - adapter.scale()).abs() < 1e-6, "{}", case.name);
        decoder.set_adapter(AdapterId(0), Some(&read)).unwrap();
        let texts = [1, 9, case.tokens.len()].map(|it| case.tokens[..it].to_vec());
        let ours = rows(&mut decoder, &texts, Some(AdapterId(0)));
        let theirs = last_rows_with(&base, &texts, &json!({"adapter": text(&file)})).concat();
        let apart = relative_distance(&ours, &theirs);
        let change = relative_distance(&ours, &rows(&mut decoder, &texts, None));
        println!("{}: {apart:.1e} from llama.cpp, {change:.1e} from the base", case.name);
        if apart.is_nan() || apart > DISTANCE_MAX || change < CHANGE_MIN {
            far.push(format!("{}: {apart:.1e} from llama.cpp, {change:.1e} from the base", case.name));
        }
    }
    assert!(far.is_empty(), "{far:#?}");
}

/// Writes a file with these fields over those of an adapter, and tensors of zeroes, rows and columns each.
fn strange(path: &Path, fields: &[(&str, &str)], alpha: f32, tensors: &[(&str, [usize; 2])]) -> Gguf {
    let mut metadata = Metadata::new();
    let usual = [("general.type", "adapter"), ("general.architecture", "llama"), ("adapter.type", "lora")];
    for (key, value) in usual.iter().chain(fields) {
        metadata.insert(*key, *value);
    }
    metadata.insert("adapter.lora.alpha", alpha);
    let spec = |(name, [rows, columns]): &(&str, [usize; 2])| TensorSpec {
        name: (*name).into(),
        format: fsq_blocks::Format::F32,
        shape: vec![*columns, *rows],
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let mut draft = Draft::create(path, &metadata, &specs).unwrap();
    for spec in &specs {
        draft.write(&spec.name, &vec![0; 4 * spec.shape[0] * spec.shape[1]]).unwrap();
    }
    Gguf::open(&draft.finish().unwrap().publish().unwrap()).unwrap()
}

#[test]
fn what_is_no_adapter_of_the_policy_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = decoder(&fixture("llama/tiny-f32.gguf"));
    let sizes = decoder.config();
    let (hidden, rows) = (sizes.hidden, sizes.n_heads * sizes.head_dim);
    let (a, b) = ("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b");
    let pair = [(a, [2, hidden]), (b, [rows, 2])];
    let refusal = |fields: &[(&str, &str)], alpha: f32, tensors: &[(&str, [usize; 2])]| {
        let path = folder.path().join("strange.gguf");
        read_adapter(&strange(&path, fields, alpha, tensors), sizes).unwrap_err().to_string()
    };
    for (found, named) in [
        (refusal(&[("general.type", "model")], 1.0, &pair), "general.type"),
        (refusal(&[("general.architecture", "qwen2")], 1.0, &pair), "qwen2"),
        (refusal(&[("adapter.type", "dora")], 1.0, &pair), "dora"),
        (refusal(&[], f32::NAN, &pair), "adapter.lora.alpha"),
        (refusal(&[], 1.0, &pair[..1]), b),
        (refusal(&[], 1.0, &pair[1..]), a),
        (refusal(&[], 1.0, &[(a, [2, hidden + 1]), pair[1]]), a),
        (refusal(&[], 1.0, &[pair[0], (b, [rows, 3])]), b),
        (refusal(&[], 1.0, &[]), "lora_a"),
        (refusal(&[], 1.0, &[pair[0], pair[1], ("output.weight.lora_a", [2, hidden])]), "output.weight.lora_a"),
    ] {
        assert!(found.contains(named), "expected `{named}` in: {found}");
    }
    let base = fixture("llama/tiny-f32.gguf");
    refused(&["run", text(&base), "--prompt", "a", "--adapter", text(&base)], "general.type");
    let without = fsq(&["quantize", text(&fixture("llama")), "--adapter-only", "--out", text(folder.path())]);
    assert_eq!(without.status.code(), BAD_INPUT);
}
