//! The trainable forward, its gradients and its optimizer against a recorded run of PyTorch, transformers and PEFT.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fsq_checkpoint::{Adapter, Checkpoint, Dimensions, LoraPair, modules};
use fsq_trainer::{AdamW, AdamWConfig, Batch, Sequence, TrainablePolicy};
use serde_json::{Value, json};

use crate::architectures::{Case, cases, numbers, write_checkpoint};
use crate::recorded::{Recorded, relative_distance, tensors};
use crate::tree::root;

/// Largest difference of a logit in f32.
const LOGIT: f32 = 1e-4;
/// Largest difference of a loss; every wrong setting of the optimizer moves one of them by more.
const LOSS: f32 = 1e-3;
/// Largest relative difference of a gradient's norm, and of a whole gradient matrix.
const GRADIENT: f64 = 1e-3;
/// Largest relative distance of a matrix after 20 steps: a wrong epsilon, which hardly moves a loss, is seen here.
const TRAINED: f64 = 1e-4;

fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

fn recorded_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(path)).unwrap()).unwrap()
}

#[expect(clippy::cast_possible_truncation, reason = "recorded by a program that computes in f32")]
fn f32_of(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn policy(adapter: &str) -> TrainablePolicy {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let adapter = Adapter::open(&fixture("peft").join(adapter)).unwrap();
    TrainablePolicy::resumed(&checkpoint, &adapter, 1).unwrap()
}

fn batches(path: &str) -> Vec<Batch> {
    let recorded = recorded_json(path);
    let step = |(tokens, weights): (&Value, &Value)| {
        let rows = tokens.as_array().unwrap().iter().zip(weights.as_array().unwrap());
        let sequences: Vec<Sequence> = rows
            .map(|(tokens, weights)| Sequence {
                tokens: serde_json::from_value(tokens.clone()).unwrap(),
                weights: serde_json::from_value(weights.clone()).unwrap(),
            })
            .collect();
        Batch::of(&sequences)
    };
    recorded["tokens"].as_array().unwrap().iter().zip(recorded["weights"].as_array().unwrap()).map(step).collect()
}

fn optimizer(settings: &Value) -> AdamW {
    assert_eq!(settings["name"], "adamw");
    AdamW::new(AdamWConfig {
        beta1: f32_of(&settings["betas"][0]),
        beta2: f32_of(&settings["betas"][1]),
        eps: f32_of(&settings["epsilon"]),
        weight_decay: f32_of(&settings["weight_decay"]),
        clip_norm: f32_of(&settings["gradient_norm_max"]),
    })
}

/// Every matrix of an adapter by PEFT's tensor name.
fn matrices(adapter: Adapter) -> BTreeMap<String, Vec<f32>> {
    let named = |(path, pair): (String, LoraPair)| {
        let name = |side: &str| format!("base_model.model.{path}.lora_{side}.weight");
        [(name("A"), pair.a), (name("B"), pair.b)]
    };
    adapter.pairs.into_iter().flat_map(named).collect()
}

/// Panics unless both hold the same matrices, each within a relative distance; returns the largest distance.
#[track_caller]
fn assert_close(found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>, limit: f64) -> f64 {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let mut largest = 0.0f64;
    for (name, expected) in expected {
        let distance = relative_distance(&found[name], expected);
        assert!(distance <= limit, "{name}: relative distance {distance:.1e}, allowed {limit:.0e}");
        largest = largest.max(distance);
    }
    largest
}

fn assert_logits(policy: &TrainablePolicy, path: &str) {
    let recorded = Recorded::open(&fixture(path));
    let mut batch = Batch::default();
    batch.push(&recorded.tokens, Vec::new());
    let found = policy.logits(&batch, (0..recorded.tokens.len()).collect()).unwrap();
    let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
    let largest = recorded.largest_difference(&found);
    println!("{path}: largest difference of a logit {largest:.1e}");
    assert!(largest <= LOGIT, "{path}: a logit differs by {largest}");
}

#[test]
fn logits_equal_those_of_transformers_and_peft() {
    assert_logits(&policy("initial"), "peft/initial_logits.safetensors");
    assert_logits(&policy("final"), "peft/final_logits.safetensors");
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let mut read = |name: &str| Ok(checkpoint.tensor_f32(name)?);
    let whole = TrainablePolicy::trained_whole(checkpoint.dimensions.clone(), &mut read, 1).unwrap();
    assert_logits(&whole, "llama/logits.safetensors");
}

#[test]
fn every_adapter_matrix_gets_the_gradient_that_torch_gives_it() {
    let (policy, batch) = (policy("initial"), &batches("peft/batches.json")[0]);
    let grads = policy.loss(batch).unwrap().backward().unwrap();
    let mut found = matrices(policy.adapter_gradients(&grads).unwrap().unwrap());
    assert_eq!(found.len(), 2 * 2 * 7, "A and B of seven linears in two blocks");
    // The graph sums the losses; the recorded run divides by the weights.
    let total = batch.total_weight();
    found.values_mut().flatten().for_each(|it| *it /= total);
    let expected = tensors(&fixture("peft/gradients.safetensors"));
    let largest = assert_close(&found, &expected, GRADIENT);
    println!("largest relative distance of a gradient {largest:.1e}");
    let norms = &recorded_json("peft/recorded.json")["first_step_gradient_norms"];
    for (name, found) in &found {
        let norm = found.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt();
        let expected = norms[name].as_f64().unwrap();
        assert!((norm - expected).abs() <= GRADIENT * expected, "{name}: norm {norm}, expected {expected}");
    }
}

#[test]
fn twenty_steps_of_torch_and_peft_are_reproduced() {
    let recorded = recorded_json("peft/recorded.json");
    let policy = policy("initial");
    let steps = batches("peft/batches.json");
    assert_eq!(steps.len(), 20);
    let (loss, norm) = farthest("llama", &policy, &recorded["optimizer"], &recorded, &steps);
    assert!(loss <= LOSS && f64::from(norm) <= GRADIENT, "a loss is {loss} away, a norm {norm}");
    let found = matrices(policy.adapter().unwrap().unwrap());
    let expected = matrices(Adapter::open(Path::new(&fixture("peft/final"))).unwrap());
    let largest = assert_close(&found, &expected, TRAINED);
    println!("largest relative distance of a trained matrix {largest:.1e}");
}

/// Trains on every batch: how far losses, and norms of gradients relative to their size, get from those recorded.
fn farthest(name: &str, policy: &TrainablePolicy, settings: &Value, recorded: &Value, batches: &[Batch]) -> (f32, f32) {
    let (mut optimizer, learning_rate) = (optimizer(settings), f32_of(&settings["learning_rate"]));
    let (mut largest_loss, mut largest_norm) = (0.0f32, 0.0f32);
    assert_eq!(recorded["losses"].as_array().unwrap().len(), batches.len());
    for (step, batch) in batches.iter().enumerate() {
        let loss = policy.loss(batch).unwrap();
        let scale = 1.0 / batch.total_weight();
        let found = scale * loss.to_vec1::<f32>().unwrap()[0];
        let difference = (found - f32_of(&recorded["losses"][step])).abs();
        let norm = optimizer.step(policy.trained(), &loss.backward().unwrap(), scale, learning_rate).unwrap();
        let expected = f32_of(&recorded["gradient_norms"][step]);
        let relative = (norm - expected).abs() / expected;
        (largest_loss, largest_norm) = (largest_loss.max(difference), largest_norm.max(relative));
    }
    println!("{name}: largest difference of a loss {largest_loss:.1e}, of a norm, relative, {largest_norm:.1e}");
    (largest_loss, largest_norm)
}

/// An adapter that `tests/fixtures/training/make.py` makes too: from the names of its matrices.
fn named_adapter(sizes: &Dimensions, options: &Value) -> Adapter {
    let rank: usize = options["r"].as_u64().unwrap().try_into().unwrap();
    let targets: Vec<String> = serde_json::from_value(options["target_modules"].clone()).unwrap();
    let mut pairs = BTreeMap::new();
    for module in (0..sizes.n_layers).flat_map(|it| modules(sizes, it)) {
        if targets.iter().any(|it| module.hf.ends_with(&format!(".{it}"))) {
            let made = |side: &str, n: usize, scale: f32| -> Vec<f32> {
                let name = format!("base_model.model.{}.lora_{side}.weight", module.hf);
                numbers(&name, n).into_iter().map(|it| it * scale).collect()
            };
            let [outputs, inputs] = module.shape;
            let (a, b) = (made("A", rank * inputs, 0.125), made("B", outputs * rank, 0.0625));
            pairs.insert(module.hf, LoraPair { a, b, rank, inputs, outputs });
        }
    }
    let rslora = options["use_rslora"].as_bool().unwrap_or(false);
    Adapter { rank, alpha: f32_of(&options["lora_alpha"]), rslora, pairs }
}

/// One policy of each shape over 50 steps; its adapters are then those of PEFT, and PEFT reads what is written.
#[test]
fn fifty_steps_of_torch_and_peft_are_reproduced_on_every_shape() {
    let recorded = recorded_json("training/recorded.json");
    let batches = batches("training/batches.json");
    assert_eq!(batches.len(), 50);
    let folder = tempfile::tempdir().unwrap();
    let architectures = cases();
    let (mut kept, mut wrong) = (0, Vec::new());
    for it in recorded["cases"].as_array().unwrap() {
        let name = it["name"].as_str().unwrap();
        let case: &Case = architectures.iter().find(|case| case.name == name).unwrap();
        let checkpoint = write_checkpoint(case, folder.path());
        let adapter = named_adapter(&checkpoint.dimensions, &it["lora"]);
        let policy = TrainablePolicy::resumed(&checkpoint, &adapter, 2).unwrap();
        let (loss, norm) = farthest(name, &policy, &recorded["optimizer"], it, &batches);
        // Random policies with tied embeddings begin with losses of dozens of nats, of which f32 holds as many digits.
        let scale = f32_of(&it["losses"][0]) / 10.0;
        if loss > LOSS * scale.max(1.0) || f64::from(norm) > GRADIENT * f64::from(scale.max(1.0)) {
            wrong.push(format!("{name}: a loss is {loss} away, a norm {norm}"));
        }
        if it["kept"] == json!(true) {
            assert_written(name, &policy, &folder.path().join("adapter"));
            kept += 1;
        }
    }
    assert_eq!(kept, 3, "a Llama, a Qwen 2, a Qwen 3");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The adapter is PEFT's, and so is what is written of it: file by file, but for fields that PEFT fills in itself.
fn assert_written(name: &str, policy: &TrainablePolicy, folder: &Path) {
    let adapter = policy.adapter().unwrap().unwrap();
    let theirs = fixture("training").join(name);
    let largest = assert_close(&matrices(adapter.clone()), &matrices(Adapter::open(&theirs).unwrap()), TRAINED);
    println!("{name}: largest relative distance of a trained matrix {largest:.1e}");
    adapter.write(folder, name).unwrap();
    // Where `make.py --read` has PEFT read it.
    adapter.write(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("adapters").join(name), name).unwrap();
    assert_eq!(Adapter::open(folder).unwrap(), adapter);
    let read = |folder: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
    };
    let (ours, theirs) = (read(folder), read(&theirs));
    for (field, value) in ours.as_object().unwrap() {
        if field != "base_model_name_or_path" {
            let same = *value == theirs[field] || value.as_f64().is_some_and(|it| theirs[field].as_f64() == Some(it));
            assert!(same, "{name}: `{field}`: {value}, PEFT writes {}", theirs[field]);
        }
    }
    // What PEFT computed with the adapters that this test wrote, when they were recorded.
    let read_by_peft = &recorded_json("training/read_by_peft.json")[name];
    let [from_theirs, from_base] = ["from_theirs", "from_base"].map(|it| read_by_peft[it].as_f64().unwrap());
    assert!(from_theirs <= TRAINED && from_base > 100.0 * TRAINED, "{name}: {read_by_peft}");
}
