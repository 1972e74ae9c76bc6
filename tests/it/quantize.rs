//! `fsq quantize` on good and bad checkpoints: what it checks, refuses, survives and records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fsq_checkpoint::{
    Adapter, Architecture, Checkpoint, CheckpointFiles, Dimensions, LoraPair, NamedTensor, Options, StoredType,
    tensor_names,
};
use fsq_gguf::Gguf;
use fsq_model::read_adapter;
use serde_json::{Value, json};

use crate::cli::{CHAT_TEMPLATE, byte_tokenizer};
use crate::program::{BAD_INPUT, command, fsq, json as run_json, text};

/// A module that the policy of these tests has, and its `[out, in]`.
const MODULE: (&str, [usize; 2]) = ("model.layers.0.self_attn.q_proj", [64, 64]);

fn sizes() -> Dimensions {
    Dimensions {
        architecture: Architecture::Llama,
        n_layers: 2,
        hidden: 64,
        intermediate: 128,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        vocab: 258,
        context: 1024,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        tied: true,
        options: Options::PLAIN,
    }
}

/// What is written, which tests change before it is.
struct Policy {
    sizes: Dimensions,
    stored: StoredType,
    template: String,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Policy {
    fn of(sizes: Dimensions) -> Self {
        let weights = |it: fsq_checkpoint::TensorName| {
            let n: usize = it.shape.iter().product();
            let values = (0..n).map(|index| ((index * 7919 + n) % 1009) as f32 / 1009.0 - 0.5).collect();
            (it.hf, (it.shape, values))
        };
        let tensors = tensor_names(&sizes).into_iter().map(weights).collect();
        Self { sizes, stored: StoredType::F32, template: CHAT_TEMPLATE.into(), tensors }
    }

    fn weight(&mut self, name: &str) -> &mut Vec<f32> {
        &mut self.tensors.get_mut(name).unwrap().1
    }

    fn write(&self, path: &Path) {
        let like = CheckpointFiles {
            config: "".into(),
            weights: (&[] as &[u8]).into(),
            tokenizer: byte_tokenizer().into(),
            chat_template: Some(self.template.clone().into()),
        };
        let tensor = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| NamedTensor {
            name: name.clone(),
            shape: shape.clone(),
            values: values.clone().into(),
        };
        let tensors: Vec<NamedTensor<'_>> = self.tensors.iter().map(tensor).collect();
        Checkpoint::write(path, &like, &self.sizes, (256, 257), self.stored, &tensors).unwrap();
    }
}

fn adapter(rank: usize, seed: usize, modules: &[(&str, [usize; 2])]) -> Adapter {
    let numbers = |n: usize| (0..n).map(|it| ((it * 31 + seed) % 17) as f32 / 170.0 - 0.05).collect::<Vec<_>>();
    let pair = |(module, [outputs, inputs]): &(&str, [usize; 2])| {
        let (outputs, inputs) = (*outputs, *inputs);
        let pair = LoraPair { a: numbers(rank * inputs), b: numbers(outputs * rank), rank, inputs, outputs };
        ((*module).to_owned(), pair)
    };
    Adapter { rank, alpha: 8.0, rslora: false, pairs: modules.iter().map(pair).collect() }
}

/// A folder with a checkpoint, and the place that nothing may be written to.
struct Place(tempfile::TempDir);

impl Place {
    fn new(change: impl FnOnce(&mut Policy)) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut policy = Policy::of(sizes());
        change(&mut policy);
        policy.write(&folder.path().join("ck"));
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Refused with one line that says so, and nothing is left behind.
    #[track_caller]
    fn refuses(&self, more: &[&str], expected: &str) {
        let (checkpoint, out) = (self.path("ck"), self.path("out"));
        let arguments = [&["quantize", text(&checkpoint), "--out", text(&out)], more].concat();
        let output = fsq(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), BAD_INPUT, "{errors}");
        let told: Vec<&str> = errors.lines().filter(|it| it.starts_with("error: ")).collect();
        assert!(told.len() == 1 && told[0].contains(expected), "expected `{expected}` in: {errors}");
        assert!(output.stdout.is_empty());
        assert!(!out.exists(), "{expected}: something was written");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn conversion_is_checked_before_anything_has_its_name() {
    let to_f16 = ["--to", "q8_0,f16"];
    let endless =
        Place::new(|it| it.template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}".into());
    endless.refuses(&to_f16, "chat template: conversation 2: expected the assistant's turn to end with one of");
    let twice = Place::new(|it| it.template = format!("<|bos|>{CHAT_TEMPLATE}"));
    twice.refuses(&to_f16, "chat template: conversation 0: expected one token of beginning, found 2");
    let other_head = Place::new(|it| {
        let (shape, mut values) = it.tensors["model.embed_tokens.weight"].clone();
        values[7] += 1.0;
        it.tensors.insert("lm_head.weight".into(), (shape, values));
    });
    other_head.refuses(&to_f16, "tied embeddings: expected `lm_head.weight` to equal the embedding");
    let tiny = Place::new(|it| {
        it.stored = StoredType::BF16;
        it.weight("model.layers.1.mlp.up_proj.weight").iter_mut().for_each(|it| *it *= 1e-8);
    });
    tiny.refuses(&to_f16, "16-bit floats: `blk.1.ffn_up.weight`: 8");
    let out = tiny.path("out");
    let report = run_json(&["quantize", text(&tiny.path("ck")), "--to", "bf16", "--out", text(&out), "--json"]);
    let checks: Vec<&Value> = report["files"][0]["checks"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(
        json!(checks),
        json!(["chat template", "words", "vocabulary", "tied embeddings", "16-bit floats", "rows"])
    );
    let huge = Place::new(|it| {
        it.stored = StoredType::BF16;
        it.weight("model.layers.0.mlp.up_proj.weight")[3] = 1e6;
    });
    huge.refuses(&to_f16, "expected weights that F16 can hold");
}

#[test]
fn bad_weights_are_refused_and_nothing_is_written() {
    let to = ["--to", "q8_0,q4_k_m"];
    Place::new(|it| it.weight("model.layers.1.mlp.down_proj.weight")[200] = f32::NAN)
        .refuses(&to, "tensor `blk.1.ffn_down.weight`: expected finite weights, found NaN at row 1, column 72");
    let sharded = |shard: &str, tensor: &str| {
        let place = Place::new(|_| {});
        let mut map: serde_json::Map<String, Value> =
            tensor_names(&sizes()).into_iter().map(|it| (it.hf, "model.safetensors".into())).collect();
        map.insert(tensor.into(), shard.into());
        std::fs::write(place.path("ck/model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
        place
    };
    let own = "model.safetensors";
    sharded(own, "model.layers.9.mlp.up_proj.weight")
        .refuses(&to, "tensor `model.layers.9.mlp.up_proj.weight`: expected it in shard `model.safetensors`");
    sharded("gone.safetensors", "model.norm.weight").refuses(&to, "gone.safetensors: ");
    sharded("../ck/model.safetensors", "model.norm.weight").refuses(&to, "lies outside the checkpoint's folder");
    let absolute = sharded(own, "model.norm.weight");
    edit(&absolute.path("ck/model.safetensors.index.json"), |it| {
        it["weight_map"]["model.norm.weight"] = "/etc/passwd".into();
    });
    absolute.refuses(&to, "shard `/etc/passwd` lies outside");
    let folder = sharded(own, "model.norm.weight");
    std::fs::remove_file(folder.path("ck/model.safetensors")).unwrap();
    std::fs::create_dir(folder.path("ck/model.safetensors")).unwrap();
    folder.refuses(&to, "model.safetensors: ");
    let cut = Place::new(|_| {});
    let bytes = std::fs::read(cut.path("ck/model.safetensors")).unwrap();
    std::fs::write(cut.path("ck/model.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    cut.refuses(&to, "not a whole safetensors file");
    let quantized = Place::new(|_| {});
    edit(&quantized.path("ck/config.json"), |it| {
        it["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
    });
    quantized.refuses(&to, "field `quantization_config`: expected the weights it was made from");
}

#[test]
fn bad_adapters_are_refused_and_nothing_is_written() {
    let place = Place::new(|_| {});
    let folder = place.path("adapter");
    let merge = ["--to", "f16", "--adapter", text(&folder)];
    adapter(4, 1, &[(MODULE.0, [64, 32])]).write(&folder, "base").unwrap();
    place.refuses(&merge, "adapter 1: module `model.layers.0.self_attn.q_proj`: expected an update of");
    adapter(4, 1, &[("model.layers.7.self_attn.q_proj", MODULE.1)]).write(&folder, "other").unwrap();
    place.refuses(&merge, "module `model.layers.7.self_attn.q_proj` is not one of the checkpoint's");
    let changed = |field: &str, value: Value, expected: &str| {
        adapter(4, 1, &[MODULE]).write(&folder, "base").unwrap();
        edit(&folder.join("adapter_config.json"), |it| it[field] = value);
        place.refuses(&merge, expected);
    };
    changed("r", json!(100_000), "field `r`: expected a whole number from 1 to 4096, found 100000");
    changed("r", json!(8), "lora_A.weight`: expected shape [8, 64], found [4, 64]");
    changed("lora_alpha", json!(0), "field `lora_alpha`: expected a number other than 0, found 0");
    changed("use_dora", json!(true), "field `use_dora`: expected plain LoRA");
    changed("alpha_pattern", json!({"q_proj": 2}), "field `alpha_pattern`: expected plain LoRA");
    changed("peft_type", json!("LOHA"), "field `peft_type`: expected LORA, found LOHA");
    place.refuses(&["--to", "f16", "--deploy", "native"], "expected --adapter beside it");
    let with_reason = ["--to", "f16", "--override", "because"];
    if cfg!(feature = "train") {
        place.refuses(&with_reason, "--override: expected --gate PROFILE");
    }
}

#[test]
fn adapters_are_merged_in_order_or_run_beside() {
    let place = Place::new(|_| {});
    let mut second = adapter(2, 5, &[MODULE, ("model.layers.1.mlp.down_proj", [64, 128])]);
    second.rslora = true;
    let [first_at, second_at] = ["first", "second"].map(|it| place.path(it));
    adapter(4, 1, &[MODULE]).write(&first_at, "base").unwrap();
    second.write(&second_at, "base").unwrap();
    let made = |deploy: &str, adapters: &[&Path]| {
        let out = place.path(&format!("{deploy}{}", adapters.len()));
        let checkpoint = place.path("ck");
        let mut arguments = vec!["quantize", text(&checkpoint), "--to", "f32", "--name", "p"];
        adapters.iter().for_each(|it| arguments.extend(["--adapter", text(it)]));
        if !adapters.is_empty() {
            arguments.extend(["--deploy", deploy]);
        }
        let shown = text(&out).to_owned();
        arguments.extend(["--out", &shown, "--json"]);
        let report = run_json(&arguments);
        assert_eq!(report["deploy"], deploy);
        let file = Gguf::open(&out.join("p-F32.gguf")).unwrap();
        assert_eq!(file.metadata().str("fsq.deploy"), Some(deploy));
        (out, file)
    };
    let both = [first_at.as_path(), second_at.as_path()];
    let ((_, base), (_, merged), (_, qat)) = (made("merged", &[]), made("merged", &both), made("qat", &both));
    let (out, native) = made("native", &both);
    assert_eq!(native.data_sha256(), base.data_sha256(), "nothing is merged");
    assert_eq!(merged.data_sha256(), qat.data_sha256());
    assert_eq!(native.metadata().str_array("fsq.provenance.adapters.sha256").unwrap().len(), 2);
    let lora = Gguf::open(&out.join("p-LoRA.gguf")).unwrap();
    for key in ["fsq.provenance.base.sha256", "fsq.deploy"] {
        assert_eq!(lora.metadata().str(key), native.metadata().str(key), "each names the other");
    }
    let digests = |it: &Gguf| it.metadata().str_array("fsq.provenance.adapters.sha256").unwrap().to_vec();
    assert_eq!(digests(&lora), digests(&native));
    let beside = read_adapter(&lora, &sizes()).unwrap();
    assert_eq!(beside.rank, 6);
    for (tensor, module) in [("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj")] {
        let pair = &beside.pairs[module];
        let [from, to] = [&base, &merged].map(|it| it.tensor(tensor).unwrap().to_f32());
        let mut changed = 0;
        for (row, (from, to)) in from.chunks(pair.inputs).zip(to.chunks(pair.inputs)).enumerate() {
            for column in 0..pair.inputs {
                let products =
                    (0..pair.rank).map(|it| pair.b[row * pair.rank + it] * pair.a[it * pair.inputs + column]);
                let update = beside.scale() * products.sum::<f32>();
                assert!((from[column] + update - to[column]).abs() < 1e-5, "{tensor} {row} {column}");
                changed += usize::from(update.abs() > 1e-4);
            }
        }
        assert!(changed > 100, "{changed}");
    }
    let importance = place.path("importance.gguf");
    std::fs::write(&importance, "").unwrap();
    place.refuses(
        &["--to", "f16", "--adapter", text(&first_at), "--deploy", "qat", "--importance", text(&importance)],
        "--deploy qat: expected no --importance",
    );
}

#[test]
fn a_disk_that_cannot_hold_the_files_is_named_first() {
    let place = Place::new(|_| {});
    edit(&place.path("ck/config.json"), |it| {
        it["hidden_size"] = json!(1 << 16);
        it["intermediate_size"] = json!(1 << 23);
        it["head_dim"] = json!(16);
        it["num_hidden_layers"] = json!(1);
    });
    let shape = Dimensions { hidden: 1 << 16, intermediate: 1 << 23, n_layers: 1, ..sizes() };
    let mut end = 0usize;
    let mut header = serde_json::Map::new();
    for tensor in tensor_names(&shape) {
        let start = end;
        end += 2 * tensor.shape.iter().product::<usize>();
        header.insert(tensor.hf, json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]}));
    }
    let header = Value::from(header).to_string();
    let path = place.path("ck/model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    // Three terabytes of nothing, of which the file system keeps none.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + end as u64).unwrap();
    place.refuses(&["--to", "f32"], "free on this disk, found");
}

#[cfg(unix)]
#[test]
fn a_file_that_cannot_grow_leaves_nothing() {
    let place = Place::new(|_| {});
    let (checkpoint, out) = (place.path("ck"), place.path("out"));
    // What a full disk does, without one: no file may have more than 64 kB, and the signal is ignored.
    let limited = format!(
        "trap '' XFSZ; ulimit -f 64; exec '{}' quantize '{}' --to q8_0,f16 --out '{}'",
        env!("CARGO_BIN_EXE_fsq"),
        text(&checkpoint),
        text(&out)
    );
    let output = std::process::Command::new("bash").args(["-c", &limited]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().filter(|it| it.starts_with("error: ")).count(), 1, "{errors}");
    assert!(errors.contains("File too large"), "{errors}");
    assert!(!out.exists(), "{:?}", names(&out));
}

/// Large enough that a kill meets it at work: 40 million weights, 160 MB, whose largest matrix has 4 MB.
fn larger() -> Dimensions {
    Dimensions { n_layers: 10, hidden: 512, intermediate: 2048, n_heads: 8, n_kv_heads: 8, head_dim: 64, ..sizes() }
}

#[test]
fn a_killed_run_leaves_no_file_and_the_next_goes_on() {
    let place = Place::new(|it| *it = Policy::of(larger()));
    let checkpoint = place.path("ck");
    let arguments = |out: &Path| {
        let of = |it: &str| it.to_owned();
        let fixed = ["quantize", text(&checkpoint), "--to", "q4_k_m,q8_0", "--name", "p", "--out", text(out)];
        fixed.map(of).to_vec()
    };
    let run = |out: &Path| {
        let arguments = arguments(out);
        let output = fsq(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        errors
    };
    let whole = place.path("whole");
    assert!(!run(&whole).contains("already encoded"));
    let finished = ["README.md", "p-Q4_K_M.gguf", "p-Q8_0.gguf", "report.html", "report.json"];
    assert_eq!(names(&whole), finished);
    for wait_for in [".draft", "-Q4_K_M-"] {
        let out = place.path(&format!("killed{}", wait_for.len()));
        let arguments = arguments(&out);
        let mut child =
            command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        let is_there = || names(&out.join(".fsq-quantize")).iter().any(|it| it.contains(wait_for));
        let is_whole = || names(&out.join(".fsq-quantize")).iter().any(|it| it.ends_with(".json"));
        while !is_there() || (wait_for != ".draft" && !is_whole()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", names(&out.join(".fsq-quantize")));
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(names(&out), [".fsq-quantize"], "a killed run gave names");
        let errors = run(&out);
        assert_eq!(errors.contains("Q4_K_M: already encoded"), wait_for != ".draft", "{errors}");
        assert_eq!(names(&out), finished);
        for file in &finished[1..3] {
            assert!(std::fs::read(out.join(file)).unwrap() == std::fs::read(whole.join(file)).unwrap(), "{file}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_that_of_the_largest_matrix() {
    let place = Place::new(|it| *it = Policy::of(larger()));
    let (checkpoint, out) = (place.path("ck"), place.path("out"));
    let arguments = ["quantize", text(&checkpoint), "--to", "q8_0", "--out", text(&out)];
    let mut child = command(&arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kb = 0;
    while child.try_wait().unwrap().is_none() {
        let read = std::fs::read_to_string(&status).unwrap_or_default();
        let line = read.lines().find_map(|it| it.strip_prefix("VmHWM:"));
        let now = line.and_then(|it| it.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak_kb = now.map_or(peak_kb, |it| it.max(peak_kb));
        std::thread::sleep(Duration::from_millis(5));
    }
    let bytes = std::fs::metadata(checkpoint.join("model.safetensors")).unwrap().len();
    println!("a checkpoint of {bytes} bytes took {peak_kb} kB at most");
    assert!(out.join("ck-Q8_0.gguf").exists());
    assert!(peak_kb > 0 && peak_kb * 1024 < bytes / 2, "{peak_kb} kB for {bytes} bytes");
}

#[test]
fn the_same_inputs_give_the_same_bytes_and_a_card() {
    let place = Place::new(|_| {});
    let checkpoint = place.path("ck");
    let digests = ["1", "2"].map(|threads| {
        let out = place.path(threads);
        let arguments = ["--threads", threads, "quantize", text(&checkpoint), "--to", "q4_k_m,q8_0"];
        let report = run_json(&[&arguments[..], &["--out", text(&out), "--json"]].concat());
        let digest = |it: &Value| it["sha256"].as_str().unwrap().to_owned();
        report["files"].as_array().unwrap().iter().map(digest).collect::<Vec<_>>()
    });
    assert_eq!(digests[0], digests[1]);
    let card = std::fs::read_to_string(place.path("1/README.md")).unwrap();
    for part in
        ["## Files", "## Running", "Not judged", "## Conversion", "## Recipe", "## Origin", "fsq --threads 1 quantize"]
    {
        assert!(card.contains(part), "{part}: {card}");
    }
    assert!(digests[0].iter().all(|it| card.contains(it)));
    assert!(card.contains("rows that are not whole blocks"), "{card}");
    // A text that someone wrote stays.
    std::fs::write(place.path("1/README.md"), "mine").unwrap();
    run_json(&["quantize", text(&checkpoint), "--to", "q8_0", "--out", text(&place.path("1")), "--json"]);
    assert_eq!(std::fs::read_to_string(place.path("1/README.md")).unwrap(), "mine");
}
