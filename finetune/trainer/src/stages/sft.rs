//! SFT: fine-tuning on a user's own records.
//!
//! What a step reads depends on the data, the seed and the step alone, so a run resumes from its weights and a number.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fsq_checkpoint::{Checkpoint, StoredType};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::run::{Report, SAVE_EVERY, StageRun, Watch};
use crate::data::{DataSet, Encoder, EncoderConfig, Example, Reject};
use crate::grid::Grid;
use crate::optimizer::GradientSums;
use crate::stages::Schedule;
use crate::{AdamW, AdamWConfig, Batch, LoraConfig, Sequence, TrainError, TrainablePolicy};

/// SFT's recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftConfig {
    /// Files of one JSON record a line.
    pub data: Vec<PathBuf>,
    /// Whether lines that cannot be used are left out; else the stage does not start while there are any.
    #[serde(default)]
    pub skip_rejects: bool,
    /// Times that every record is read; this, or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Optimizer steps; this, or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Tokens that one forward pass reads, at most: so many sequences as fit, each attending to itself alone.
    pub batch_tokens: usize,
    /// Forward passes of one step.
    #[serde(default = "SftConfig::one")]
    pub accumulate: usize,
    /// Largest global norm of the gradient.
    #[serde(default = "SftConfig::clip")]
    pub clip_norm: f32,
    /// Decoupled weight decay.
    #[serde(default = "SftConfig::decay")]
    pub weight_decay: f32,
    /// Whether activations are computed again in the backward instead of kept.
    #[serde(default)]
    pub recompute: bool,
    /// Seconds between two checkpoints: what a kill may cost.
    #[serde(default = "SftConfig::save_every")]
    pub save_every_s: u64,
    /// A quantized file of the checkpoint whose weights are trained over instead of its own; the adapter is for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<PathBuf>,
    /// The adapter.
    pub lora: LoraConfig,
    /// How records become sequences.
    pub records: EncoderConfig,
    /// Learning rate over the run.
    pub schedule: Schedule,
}

impl SftConfig {
    fn one() -> usize {
        1
    }

    fn save_every() -> u64 {
        SAVE_EVERY.as_secs()
    }

    fn clip() -> f32 {
        AdamWConfig::LLAMA.clip_norm
    }

    fn decay() -> f32 {
        AdamWConfig::LLAMA.weight_decay
    }
}

/// One step, for the metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SftStep {
    /// Steps done.
    pub step: usize,
    /// Mean loss.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f32,
    /// Learning rate.
    pub learning_rate: f32,
    /// Tokens read.
    pub tokens: usize,
    /// Tokens learnt.
    pub learnt: usize,
    /// How long it took.
    pub seconds: f64,
}

/// Runs SFT from a checkpoint to `run.merged()`, or returns at once if it is there.
///
/// # Errors
/// When data, graph or files fail; the saved state stays.
pub fn run(
    config: &SftConfig,
    from: &Checkpoint,
    run: &mut StageRun,
    seed: u64,
    threads: usize,
    watch: &mut Watch<'_>,
) -> Result<(), TrainError> {
    if run.is_done() {
        return Ok(());
    }
    run.save_every(Duration::from_secs(config.save_every_s));
    let examples = examples(config, from, run)?;
    let mut order = Order::new(&examples, config.batch_tokens, seed)?;
    let passes = order.passes(config)?;
    let steps = passes.div_ceil(config.accumulate);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let grid = config.grid.as_ref().map(|it| Grid::open(it, from)).transpose()?;
    let policy = TrainablePolicy::adapted_over(from, grid.as_ref(), &config.lora, &mut rng, threads)?;
    let policy = policy.recomputing(config.recompute);
    let (clip_norm, weight_decay) = (config.clip_norm, config.weight_decay);
    let mut optimizer = AdamW::new(AdamWConfig { clip_norm, weight_decay, ..AdamWConfig::LLAMA });
    run.keep_identity(&identity(config, seed, from, grid.as_ref(), &examples)?)?;
    let done = run.resume(&policy, &mut optimizer)?;
    for step in done..steps {
        let began = Instant::now();
        let batches = (step * config.accumulate..passes.min((step + 1) * config.accumulate)).map(|pass| {
            Batch::of(&order.pass(pass).iter().map(|it| examples[*it].sequence.clone()).collect::<Vec<Sequence>>())
        });
        let batches: Vec<Batch> = batches.collect();
        #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^24")]
        let learning_rate = config.schedule.rate((step + 1) as f32 / steps as f32);
        let (loss, gradient_norm) = take_step(&policy, &mut optimizer, &batches, step, learning_rate)?;
        let count = |of: fn(&Batch) -> usize| batches.iter().map(of).sum();
        let (tokens, learnt) = (count(|it| it.tokens.len()), count(|it| it.losses.len()));
        let seconds = began.elapsed().as_secs_f64();
        run.log(&SftStep { step: step + 1, loss, gradient_norm, learning_rate, tokens, learnt, seconds })?;
        run.save(&policy, &optimizer, false)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate is told in whole tokens")]
        let text = format!("loss {loss:.3}, {:.0} tokens/s", tokens as f64 / seconds);
        watch(&Report { step: step + 1, steps, text });
    }
    run.save(&policy, &optimizer, true)?;
    let adapter = policy.adapter()?.ok_or_else(|| TrainError::MissingModule("adapter".into()))?;
    // Its weights are read again, one by one.
    drop(policy);
    run.finish_as(from, &adapter, stored_type(from))
}

/// The sequences to learn from. What cannot be used is written to `rejects.jsonl` in the stage's folder.
fn examples(config: &SftConfig, from: &Checkpoint, run: &StageRun) -> Result<Vec<Example>, TrainError> {
    let encoder = Encoder::new(from, config.records)?;
    let set = DataSet::read(&config.data, &encoder)?;
    let path = run.folder().join("rejects.jsonl");
    write_rejects(&path, &set.rejects)?;
    match set.rejects.first() {
        Some(first) if !config.skip_rejects => {
            Err(TrainError::Rejects { first: first.to_string(), n: set.rejects.len(), path })
        }
        _ if set.examples.is_empty() => Err(TrainError::Config {
            field: "sft.data".into(),
            expected: "at least one record that can be learnt from".into(),
            found: format!("{} rejects", set.rejects.len()),
        }),
        _ => Ok(set.examples),
    }
}

/// Writes rejects, one a line; an empty file says that there were none.
///
/// # Errors
/// When the file cannot be written.
pub fn write_rejects(path: &Path, rejects: &[Reject]) -> Result<(), TrainError> {
    let fault = |source| TrainError::Io { path: path.to_path_buf(), source };
    let mut text = String::new();
    for reject in rejects {
        text += &serde_json::to_string(reject).map_err(|it| fault(it.into()))?;
        text.push('\n');
    }
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, path)).map_err(fault)
}

/// One optimizer step over several forward passes: mean loss and norm of the gradient.
fn take_step(
    policy: &TrainablePolicy,
    optimizer: &mut AdamW,
    batches: &[Batch],
    step: usize,
    learning_rate: f32,
) -> Result<(f32, f32), TrainError> {
    let weight: f32 = batches.iter().map(Batch::total_weight).sum();
    let (mut sums, mut total) = (GradientSums::default(), 0.0f32);
    for batch in batches {
        let loss = policy.loss(batch)?;
        total += loss.to_vec1::<f32>()?.first().copied().unwrap_or(f32::NAN);
        sums.add(policy.trained(), &loss.backward()?)?;
    }
    let loss = total / weight;
    if !loss.is_finite() {
        return Err(TrainError::NotFinite { step, loss });
    }
    Ok((loss, optimizer.step_summed(policy.trained(), &sums, 1.0 / weight, learning_rate)?))
}

/// What a saved state belongs to: the recipe, the base with the grid over it, and every token.
fn identity(
    config: &SftConfig,
    seed: u64,
    from: &Checkpoint,
    grid: Option<&Grid>,
    examples: &[Example],
) -> Result<String, TrainError> {
    let mut hash = Sha256::new();
    let written = serde_json::to_string(config).map_err(|it| TrainError::Tokenizer(it.to_string()))?;
    hash.update(format!("{seed} {written} {} {:?}", from.config, from.dimensions));
    hash.update(grid.map(Grid::data_sha256).unwrap_or_default());
    for Example { sequence, .. } in examples {
        sequence.tokens.iter().for_each(|it| hash.update(it.to_le_bytes()));
        sequence.weights.iter().for_each(|it| hash.update(it.to_le_bytes()));
        hash.update([0xff; 4]);
    }
    Ok(hash.finalize().iter().map(|it| format!("{it:02x}")).collect())
}

/// How the merged policy is stored: as its base, but that f16 is not believed to hold whatever was learnt.
fn stored_type(from: &Checkpoint) -> StoredType {
    match from.stored("model.embed_tokens.weight") {
        Some(StoredType::BF16) => StoredType::BF16,
        _ => StoredType::F32,
    }
}

/// Which sequences each forward pass reads.
struct Order {
    lengths: Vec<usize>,
    batch_tokens: usize,
    seed: u64,
    /// The passes of each epoch that was needed so far, as ranges of its own order.
    epochs: Vec<Epoch>,
}

/// One time through the data.
struct Epoch {
    order: Vec<usize>,
    passes: Vec<Range<usize>>,
}

impl Order {
    fn new(examples: &[Example], batch_tokens: usize, seed: u64) -> Result<Self, TrainError> {
        let lengths: Vec<usize> = examples.iter().map(|it| it.sequence.tokens.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest > batch_tokens {
            let expected = format!("at least {longest}, the longest sequence");
            let (field, found) = ("sft.batch_tokens".into(), batch_tokens.to_string());
            return Err(TrainError::Config { field, expected, found });
        }
        Ok(Self { lengths, batch_tokens, seed, epochs: Vec::new() })
    }

    /// Forward passes in all.
    fn passes(&mut self, config: &SftConfig) -> Result<usize, TrainError> {
        let refuse = |field: &str, expected: &str, found: &str| {
            Err(TrainError::Config { field: field.into(), expected: expected.into(), found: found.into() })
        };
        if config.accumulate == 0 {
            return refuse("sft.accumulate", "at least 1", "0");
        }
        match (config.epochs, config.steps) {
            (Some(epochs), None) => Ok((0..epochs).map(|it| self.epoch(it).passes.len()).sum()),
            (None, Some(steps)) => Ok(steps * config.accumulate),
            (Some(_), Some(_)) => refuse("sft.steps", "`epochs` or `steps`", "both"),
            (None, None) => refuse("sft.steps", "`epochs` or `steps`", "neither"),
        }
    }

    /// The sequences of a pass.
    fn pass(&mut self, index: usize) -> &[usize] {
        let (mut rest, mut number) = (index, 0);
        while rest >= self.epoch(number).passes.len() {
            rest -= self.epoch(number).passes.len();
            number += 1;
        }
        let epoch = &self.epochs[number];
        &epoch.order[epoch.passes[rest].clone()]
    }

    /// An epoch's order is its own; a pass takes the next sequences as long as they fit.
    fn epoch(&mut self, number: usize) -> &Epoch {
        for number in self.epochs.len()..=number {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(number as u64 + 1);
            let mut order: Vec<usize> = (0..self.lengths.len()).collect();
            order.shuffle(&mut rng);
            let (mut passes, mut start, mut tokens) = (Vec::new(), 0, 0);
            for (place, index) in order.iter().enumerate() {
                if tokens + self.lengths[*index] > self.batch_tokens && place > start {
                    passes.push(start..place);
                    (start, tokens) = (place, 0);
                }
                tokens += self.lengths[*index];
            }
            passes.push(start..order.len());
            self.epochs.push(Epoch { order, passes });
        }
        &self.epochs[number]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(lengths: &[usize]) -> Order {
        Order { lengths: lengths.to_vec(), batch_tokens: 10, seed: 3, epochs: Vec::new() }
    }

    #[test]
    fn an_epoch_reads_everything_once_and_no_pass_is_too_long() {
        let lengths = [3, 9, 4, 4, 1, 10, 2, 5];
        let mut order = order(&lengths);
        let mut orders = Vec::new();
        for number in 0..3 {
            let before: usize = (0..number).map(|it| order.epoch(it).passes.len()).sum();
            let n = order.epoch(number).passes.len();
            let mut seen: Vec<usize> = Vec::new();
            for pass in before..before + n {
                let read = order.pass(pass).to_vec();
                assert!(!read.is_empty() && read.iter().map(|it| lengths[*it]).sum::<usize>() <= 10);
                seen.extend(read);
            }
            orders.push(seen.clone());
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn a_pass_is_the_same_whatever_was_asked_before() {
        let lengths = [3, 9, 4, 4, 1, 10, 2, 5];
        let (mut asked, mut fresh) = (order(&lengths), order(&lengths));
        let all: Vec<Vec<usize>> = (0..20).map(|it| asked.pass(it).to_vec()).collect();
        assert_eq!(fresh.pass(17), all[17]);
        assert_eq!(fresh.pass(2), all[2]);
    }
}
