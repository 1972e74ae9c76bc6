//! The trainable forward, its gradients and its optimizer against a recorded run of PyTorch, transformers and PEFT.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fsq_checkpoint::{Adapter, Checkpoint};
use fsq_trainer::{AdamW, AdamWConfig, Batch, Sequence, TrainablePolicy};
use serde_json::Value;

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

fn json(path: &str) -> Value {
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

fn batches() -> Vec<Batch> {
    let recorded = json("peft/batches.json");
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
    let named = |(path, pair): (String, fsq_checkpoint::LoraPair)| {
        let name = |side: &str| format!("base_model.model.{path}.lora_{side}.weight");
        [(name("A"), pair.a), (name("B"), pair.b)]
    };
    adapter.pairs.into_iter().flat_map(named).collect()
}

/// Panics unless both hold the same matrices, each within a relative distance; returns the largest distance.
#[track_caller]
fn assert_close(found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>, limit: f64) -> f64 {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert_eq!(found.len(), 2 * 2 * 7, "A and B of seven linears in two blocks");
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
    let (policy, batch) = (policy("initial"), &batches()[0]);
    let grads = policy.loss(batch).unwrap().backward().unwrap();
    let mut found = matrices(policy.adapter_gradients(&grads).unwrap().unwrap());
    // The graph sums the losses; the recorded run divides by the weights.
    let total = batch.total_weight();
    found.values_mut().flatten().for_each(|it| *it /= total);
    let expected = tensors(&fixture("peft/gradients.safetensors"));
    let largest = assert_close(&found, &expected, GRADIENT);
    println!("largest relative distance of a gradient {largest:.1e}");
    let norms = &json("peft/recorded.json")["first_step_gradient_norms"];
    for (name, found) in &found {
        let norm = found.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt();
        let expected = norms[name].as_f64().unwrap();
        assert!((norm - expected).abs() <= GRADIENT * expected, "{name}: norm {norm}, expected {expected}");
    }
}

#[test]
fn twenty_steps_of_torch_and_peft_are_reproduced() {
    let recorded = json("peft/recorded.json");
    let learning_rate = f32_of(&recorded["optimizer"]["learning_rate"]);
    let (policy, mut optimizer, batches) = (policy("initial"), optimizer(&recorded["optimizer"]), batches());
    assert_eq!(batches.len(), 20);
    let (mut largest_loss, mut largest_norm) = (0.0f32, 0.0f32);
    for (step, batch) in batches.iter().enumerate() {
        let loss = policy.loss(batch).unwrap();
        let scale = 1.0 / batch.total_weight();
        let found = scale * loss.to_vec1::<f32>().unwrap()[0];
        let expected = f32_of(&recorded["losses"][step]);
        let difference = (found - expected).abs();
        assert!(difference <= LOSS, "step {step}: loss {found}, expected {expected}");
        let norm = optimizer.step(policy.trained(), &loss.backward().unwrap(), scale, learning_rate).unwrap();
        let expected = f32_of(&recorded["gradient_norms"][step]);
        let relative = (norm - expected).abs() / expected;
        assert!(f64::from(relative) <= GRADIENT, "step {step}: gradient norm {norm}, expected {expected}");
        (largest_loss, largest_norm) = (largest_loss.max(difference), largest_norm.max(relative));
    }
    println!("largest difference of a loss {largest_loss:.1e}, of a gradient's norm, relative, {largest_norm:.1e}");
    let found = matrices(policy.adapter().unwrap().unwrap());
    let expected = matrices(Adapter::open(Path::new(&fixture("peft/final"))).unwrap());
    let largest = assert_close(&found, &expected, TRAINED);
    println!("largest relative distance of a trained matrix {largest:.1e}");
}
