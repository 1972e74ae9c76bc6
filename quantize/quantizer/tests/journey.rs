//! From a checkpoint folder to a GGUF file: names, order, values, merges, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot write its files has failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fsq_blocks::Format;
use fsq_checkpoint::{
    Adapter, Architecture, Checkpoint, CheckpointFiles, Dimensions, Linear, LoraPair, NamedTensor, Options, StoredType,
    tensor_names,
};
use fsq_gguf::{Gguf, Metadata};
use fsq_quantizer::{
    Deploy, Encoded, Importance, InputSquares, Mix, Plan, Provenance, QuantizeError, merge_to_checkpoint,
    merged_tensor, open_base, quantize,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Reproducible numbers between -0.5 and 0.5.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

fn sizes() -> Dimensions {
    Dimensions {
        architecture: Architecture::Llama,
        n_layers: 3,
        hidden: 256,
        intermediate: 512,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        vocab: 324,
        context: 128,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        tied: true,
        options: Options::PLAIN,
    }
}

/// A folder of random weights whose rows are whole super-blocks, with the tokenizer of the tiny fixture.
fn write_checkpoint(path: &Path, stored: StoredType, change: impl Fn(&str, &mut Vec<f32>)) {
    let like = CheckpointFiles {
        config: "".into(),
        weights: (&[] as &[u8]).into(),
        tokenizer: std::fs::read_to_string(fixture("llama/tokenizer.json")).unwrap().into(),
        chat_template: Some("{{ messages }}".into()),
    };
    let tensors: Vec<_> = (tensor_names(&sizes()).into_iter().enumerate())
        .map(|(index, it)| {
            let mut values = noise(it.shape.iter().product(), index as u64 + 1);
            change(&it.hf, &mut values);
            NamedTensor { name: it.hf, shape: it.shape, values: values.into() }
        })
        .collect();
    Checkpoint::write(path, &like, &sizes(), (0, 1), stored, &tensors).unwrap();
}

fn adapter(rank: usize, seed: u64, modules: &[&str]) -> Adapter {
    let shape = |module: &str| {
        let linear = Linear::ALL.into_iter().find(|it| module.ends_with(it.module())).unwrap();
        linear.shape(&sizes())
    };
    let pair = |module: &str| {
        let [outputs, inputs] = shape(module);
        LoraPair { a: noise(rank * inputs, seed), b: noise(outputs * rank, seed + 1), rank, inputs, outputs }
    };
    let pairs: BTreeMap<_, _> = modules.iter().map(|it| (it.to_string(), pair(it))).collect();
    Adapter { rank, alpha: 2.0 * rank as f32, rslora: false, pairs }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn checkpoint(&self) -> Checkpoint {
        let path = self.0.path().join("base");
        write_checkpoint(&path, StoredType::F32, |_, _| {});
        Checkpoint::open(&path).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("policy.gguf")
    }
}

fn run(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    plan: &Plan,
    importance: Option<&Importance>,
    path: &Path,
) -> Result<Encoded, QuantizeError> {
    let provenance = Provenance::of("fsq test", checkpoint, adapters, importance)?;
    quantize(checkpoint, adapters, plan, importance, &provenance, path, &mut |_, _| {})
}

/// Importance of one matrix, by the mean squares of its columns.
fn importance_of(name: &str, sums: Vec<f32>) -> Importance {
    let squares = InputSquares { sums, counts: vec![1.0] };
    Importance { tensors: [(name.to_string(), squares)].into(), ..Importance::default() }
}

fn gguf(encoded: Encoded) -> Gguf {
    Gguf::open(&encoded.draft.publish().unwrap()).unwrap()
}

#[test]
fn the_tiny_checkpoint_becomes_what_llama_cpp_makes_of_it() {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let ours = gguf(run(&checkpoint, &[], &Plan::new(Mix::F32), None, &folder.file()).unwrap());
    let theirs = Gguf::open(&fixture("llama/tiny-f32.gguf")).unwrap();
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for view in theirs.views() {
        let mine = ours.tensor(view.name).unwrap_or_else(|| panic!("no {}", view.name));
        assert_eq!((mine.format, mine.shape), (view.format, view.shape), "{}", view.name);
        assert!(mine.bytes == view.bytes, "{} differs", view.name);
    }
    for (key, value) in theirs.metadata().iter().filter(|it| it.0 != "general.name") {
        assert_eq!(ours.metadata().get(key), Some(value), "{key}");
    }
}

#[test]
fn metadata_says_what_the_file_is_and_where_it_came_from() {
    let folder = Folder::new();
    let checkpoint = folder.checkpoint();
    let adapters = [adapter(4, 9, &["model.layers.0.self_attn.q_proj"])];
    let plan = Plan { name: Some("countdown".into()), ..Plan::new(Mix::Q4_K_M) };
    let file = gguf(run(&checkpoint, &adapters, &plan, None, &folder.file()).unwrap());
    let metadata = file.metadata();
    let text = |key: &str| metadata.str(key).unwrap_or_else(|| panic!("{key}"));
    assert_eq!(text("general.architecture"), "llama");
    assert_eq!(text("general.name"), "countdown");
    assert_eq!(text("tokenizer.chat_template"), "{{ messages }}");
    assert_eq!(text("fsq.deploy"), "merged");
    assert_eq!(text("fsq.provenance.tool"), "fsq test");
    assert_eq!(text("fsq.provenance.base.name"), "base");
    assert_eq!(text("fsq.provenance.base.sha256").len(), 64);
    assert_eq!(metadata.str_array("fsq.provenance.adapters.sha256").unwrap().len(), 1);
    let numbers = [
        ("general.file_type", 15),
        ("general.quantization_version", 2),
        ("llama.attention.key_length", 64),
        ("llama.vocab_size", 324),
        ("tokenizer.ggml.eos_token_id", 1),
    ];
    for (key, expected) in numbers {
        assert_eq!(metadata.u32(key), Some(expected), "{key}");
    }
    // The embedding has four rows more than the tokenizer has tokens.
    assert_eq!(
        metadata.str_array("tokenizer.ggml.tokens").unwrap()[320..],
        ["[PAD320]", "[PAD321]", "[PAD322]", "[PAD323]"]
    );
    assert_eq!(metadata.i32_array("tokenizer.ggml.token_type").unwrap()[319..], [1, 5, 5, 5, 5]);
    let shown = metadata.iter().map(|(key, value)| format!("{key} {value:?}")).collect::<String>();
    assert!(!shown.contains(folder.0.path().to_str().unwrap()), "a path of this machine is in the file");
}

#[test]
fn every_mix_decodes_to_nearly_the_weights() {
    let folder = Folder::new();
    let checkpoint = folder.checkpoint();
    for mix in Mix::all() {
        let mut told = (0, 0);
        let provenance = Provenance::of("fsq test", &checkpoint, &[], None).unwrap();
        let plan = Plan::new(mix);
        let mut progress = |done, all| told = (done, all);
        let encoded = quantize(&checkpoint, &[], &plan, None, &provenance, &folder.file(), &mut progress).unwrap();
        assert_eq!(told, (checkpoint.dimensions.parameters(), checkpoint.dimensions.parameters()));
        let limit = match mix.format() {
            Format::Q2_K => 0.35,
            Format::Q3_K => 0.2,
            Format::Q4_K | Format::Q4_0 | Format::Q4_1 | Format::IQ4_NL | Format::IQ4_XS => 0.1,
            _ => 0.06,
        };
        let reports = encoded.tensors.clone();
        let file = gguf(encoded);
        for (report, view) in reports.iter().zip(file.views()) {
            assert_eq!((report.name.as_str(), report.format), (view.name, view.format.name()));
            assert_eq!((report.n_bytes, report.n_weights), (view.bytes.len(), view.rows() * view.cols()));
            assert!(report.relative_error <= limit, "{} {}: {}", mix.name(), report.name, report.relative_error);
        }
        let value = file.tensor("blk.1.attn_v.weight").unwrap().to_f32();
        let stored = checkpoint.tensor_f32("model.layers.1.self_attn.v_proj.weight").unwrap();
        assert!(value.iter().zip(&stored).all(|(a, b)| (a - b).abs() < 0.4), "{}", mix.name());
    }
}

#[test]
fn encoding_does_not_depend_on_threads_and_equals_the_formats() {
    let folder = Folder::new();
    let checkpoint = folder.checkpoint();
    let plan = Plan::new(Mix::Q4_K_M);
    let digest = |n_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| gguf(run(&checkpoint, &[], &plan, None, &folder.file()).unwrap()).file_sha256())
    };
    assert_eq!(digest(1), digest(3));
    let file = Gguf::open(&folder.file()).unwrap();
    let weights = checkpoint.tensor_f32("model.layers.0.mlp.up_proj.weight").unwrap();
    let mut bytes = vec![0; Format::Q4_K.row_bytes(weights.len()).unwrap()];
    Format::Q4_K.encode(&weights, None, &mut bytes);
    assert_eq!(file.tensor("blk.0.ffn_up.weight").unwrap().bytes, bytes);
}

#[test]
fn several_adapters_are_merged_in_order() {
    let folder = Folder::new();
    let checkpoint = folder.checkpoint();
    let module = "model.layers.1.mlp.down_proj";
    let adapters = [adapter(3, 20, &[module]), adapter(5, 30, &[module, "model.layers.0.self_attn.k_proj"])];
    let tensor = tensor_names(&checkpoint.dimensions).into_iter().find(|it| it.hf.starts_with(module)).unwrap();
    let merged = merged_tensor(&checkpoint, &adapters, &tensor).unwrap();
    let base = checkpoint.tensor_f32(&tensor.hf).unwrap();
    for (row, column) in [(0, 0), (17, 300), (255, 511)] {
        let mut expected = f64::from(base[row * 512 + column]);
        for adapter in &adapters {
            let pair = &adapter.pairs[module];
            for r in 0..pair.rank {
                expected += 2.0 * f64::from(pair.b[row * pair.rank + r]) * f64::from(pair.a[r * 512 + column]);
            }
        }
        assert!((f64::from(merged[row * 512 + column]) - expected).abs() < 1e-5);
    }
    let reversed = [adapters[1].clone(), adapters[0].clone()];
    let provenance = |it: &[Adapter]| Provenance::of("t", &checkpoint, it, None).unwrap();
    assert_ne!(provenance(&adapters), provenance(&reversed));
}

#[test]
fn a_merged_checkpoint_opens_again_and_quantizes_to_the_same_file() {
    let folder = Folder::new();
    let checkpoint = folder.checkpoint();
    let adapters = [adapter(4, 40, &["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.gate_proj"])];
    let out = folder.0.path().join("merged");
    merge_to_checkpoint(&checkpoint, &adapters, StoredType::F32, &out).unwrap();
    let merged = Checkpoint::open(&out).unwrap();
    assert_eq!(merged.dimensions, checkpoint.dimensions);
    assert_eq!((merged.bos, &merged.eos), (checkpoint.bos, &checkpoint.eos));
    let plan = Plan::new(Mix::Q4_K_M);
    let direct = gguf(run(&checkpoint, &adapters, &plan, None, &folder.file()).unwrap()).data_sha256();
    let by_way = gguf(run(&merged, &[], &plan, None, &folder.file()).unwrap()).data_sha256();
    assert_eq!(direct, by_way);
    let plain = gguf(run(&checkpoint, &[], &plan, None, &folder.file()).unwrap()).data_sha256();
    assert_ne!(direct, plain);
}

#[test]
fn a_peft_adapter_is_merged_from_its_folder() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let adapter = Adapter::open(&fixture("peft/final")).unwrap();
    let folder = Folder::new();
    let base = gguf(run(&checkpoint, &[], &Plan::new(Mix::F32), None, &folder.file()).unwrap());
    let other = folder.0.path().join("other.gguf");
    let merged = gguf(run(&checkpoint, std::slice::from_ref(&adapter), &Plan::new(Mix::F32), None, &other).unwrap());
    let changed: Vec<_> =
        base.views().filter(|it| merged.tensor(it.name).unwrap().bytes != it.bytes).map(|it| it.name).collect();
    assert_eq!(changed.len(), adapter.pairs.len());
}

#[test]
fn overrides_and_importance_reach_the_bytes() {
    let folder = Folder::new();
    let checkpoint = folder.checkpoint();
    let name = "blk.1.attn_q.weight";
    let plan = Plan { overrides: vec![("blk.1.attn_q".into(), Format::Q2_K)], ..Plan::new(Mix::Q8_0) };
    let plain = run(&checkpoint, &[], &plan, None, &folder.file()).unwrap();
    let report = plain.tensors.iter().find(|it| it.name == name).unwrap().clone();
    assert_eq!((report.format, report.importance), ("Q2_K", false));
    assert!(report.relative_error > 0.1);
    let plain = gguf(plain).tensor(name).unwrap().bytes.to_vec();

    let importance = importance_of(name, noise(256, 77).iter().map(|it| it * it).collect());
    let weighted = run(&checkpoint, &[], &plan, Some(&importance), &folder.file()).unwrap();
    assert!(weighted.tensors.iter().find(|it| it.name == name).unwrap().importance);
    let weighted = gguf(weighted);
    assert_ne!(weighted.tensor(name).unwrap().bytes, plain);
    assert!(weighted.metadata().str("fsq.provenance.importance.sha256").is_some());
}

/// Asserts that a run is refused with that message and leaves no file.
fn refused(checkpoint: &Checkpoint, adapters: &[Adapter], plan: &Plan, importance: Option<&Importance>, expect: &str) {
    let folder = Folder::new();
    let error = run(checkpoint, adapters, plan, importance, &folder.file()).unwrap_err().to_string();
    assert!(error.contains(expect), "{error}; expected {expect}");
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 0, "a file was left behind");
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let checkpoint = folder.checkpoint();
    let plan = Plan::new(Mix::Q8_0);
    let good = adapter(2, 1, &["model.layers.0.self_attn.q_proj"]);
    let unknown = adapter(2, 1, &["model.layers.3.self_attn.q_proj"]);
    let expect = "adapter 2: module `model.layers.3.self_attn.q_proj` is not one of the checkpoint's";
    refused(&checkpoint, &[good.clone(), unknown], &plan, None, expect);
    let mut wrong = good.clone();
    let pair = wrong.pairs.get_mut("model.layers.0.self_attn.q_proj").unwrap();
    (pair.inputs, pair.a) = (128, noise(2 * 128, 1));
    let expect = "adapter 1: module `model.layers.0.self_attn.q_proj`: expected an update of [out, in] = [256, 256], \
                  found [256, 128]";
    refused(&checkpoint, &[wrong], &plan, None, expect);
    let mut infinite = good;
    infinite.alpha = f32::INFINITY;
    refused(&checkpoint, &[infinite], &plan, None, "tensor `blk.0.attn_q.weight`: expected finite weights, found");
}

#[test]
fn weights_that_a_format_cannot_hold_are_refused() {
    let folder = Folder::new();
    let path = folder.0.path().join("base");
    let with = |value: f32| {
        write_checkpoint(&path, StoredType::F32, |name, values| {
            if name == "model.layers.1.mlp.up_proj.weight" {
                values[300] = value;
            }
        });
        Checkpoint::open(&path).unwrap()
    };
    let nan = with(f32::NAN);
    let expect = "tensor `blk.1.ffn_up.weight`: expected finite weights, found NaN at row 1, column 44";
    refused(&nan, &[], &Plan::new(Mix::F32), None, expect);
    let large = with(70_000.0);
    let expect = "tensor `blk.1.ffn_up.weight`: expected weights that F16 can hold, found a magnitude of 70000";
    refused(&large, &[], &Plan::new(Mix::F16), None, expect);
    run(&large, &[], &Plan::new(Mix::BF16), None, &folder.file()).unwrap();
    let huge = with(1e30);
    let expect = "tensor `blk.1.ffn_up.weight`: expected weights that Q4_K can hold, found a magnitude of 1000000";
    refused(&huge, &[], &Plan::new(Mix::Q4_K_M), None, expect);
}

#[test]
fn importance_that_does_not_fit_is_refused() {
    let folder = Folder::new();
    let checkpoint = folder.checkpoint();
    let plan = Plan::new(Mix::Q4_K_M);
    let with = |columns| importance_of("blk.0.attn_q.weight", columns);
    let expect = "importance of tensor `blk.0.attn_q.weight`: expected 256 columns, found 3";
    refused(&checkpoint, &[], &plan, Some(&with(vec![1.0; 3])), expect);
    let mut columns = vec![1.0; 256];
    columns[9] = -1.0;
    refused(&checkpoint, &[], &plan, Some(&with(columns)), "expected numbers from 0, found -1 at column 9");
}

#[test]
fn a_gguf_file_is_no_base() {
    let error = open_base(&fixture("llama/tiny-f32.gguf")).err().unwrap().to_string();
    assert!(error.contains("expected a checkpoint, found a GGUF file"), "{error}");
    assert!(open_base(&fixture("llama")).is_ok());
    assert!(open_base(&fixture("none")).is_err());
}

#[test]
fn deploy_has_its_word() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let mut provenance = Provenance::of("t", &checkpoint, &[], None).unwrap();
    (provenance.deploy, provenance.data_sha256) = (Deploy::Native, Some([7; 32]));
    let mut metadata = Metadata::new();
    provenance.write(&mut metadata);
    assert_eq!(metadata.str("fsq.deploy"), Some("native"));
    assert_eq!(metadata.str("fsq.provenance.data.sha256"), Some("07".repeat(32).as_str()));
}
