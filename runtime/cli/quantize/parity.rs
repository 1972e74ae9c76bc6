//! Greedy texts of the 16-bit file against a second forward pass, over the checkpoint itself.
//!
//! The file is run by the serving runtime, the checkpoint with its adapters unmerged by the trainable forward, which
//! reads Hugging Face's names and layout. What conversion and merging got wrong shows here, before it can be taken for
//! a loss of quantization.

use std::path::Path;

use fsq_checkpoint::{Adapter, Checkpoint, LoraPair, modules};
use fsq_environments::{Countdown, DocHop, Environment, Split};
use fsq_episodes::Protocol;
use fsq_gguf::Gguf;
use fsq_model::{Decoder, DecoderOptions, KvFormat, LoadedPolicy, LogitsFor, SequenceId, Step, TokenId, log_softmax};
use fsq_trainer::{Batch, TrainError, TrainablePolicy};

use super::checks::Check;
use crate::failure::Refusal;

/// Prompts of each environment.
const PROMPTS: usize = 16;
/// Tokens after each.
const TOKENS: usize = 16;
/// Longest prompt and its text.
const CONTEXT_TOKENS: usize = 512;
/// Where log-probabilities part by more than this, it is not rounding to 16 bits that parts them.
const DISTANCE_MAX: f32 = 0.1;

/// One greedy text.
struct Written {
    tokens: Vec<TokenId>,
    /// Where it begins behind its prompt.
    start: usize,
    /// Of each token written: its log-probability, the runner-up, and the runner-up's.
    chosen: Vec<(f32, TokenId, f32)>,
}

/// Compares the two.
///
/// # Errors
/// Where they write other tokens, or give them other probabilities.
pub(super) fn check(
    checkpoint: &Checkpoint,
    adapters: &[Adapter],
    file: &Path,
    threads: usize,
) -> anyhow::Result<Check> {
    let told = |told: String| Check { name: "greedy parity", told };
    let whole = whole_adapter(checkpoint, adapters);
    let policy = match TrainablePolicy::resumed(checkpoint, &whole, threads) {
        Ok(policy) => policy,
        Err(error @ TrainError::Architecture { .. }) => return Ok(told(format!("not compared: {error}"))),
        Err(error) => return Err(error.into()),
    };
    let texts = write(file, threads)?;
    let (mut batch, mut asked) = (Batch::default(), Vec::new());
    for text in &texts {
        let row = batch.tokens.len() + text.start - 1;
        batch.push(&text.tokens, Vec::new());
        for (place, (_, second, _)) in text.chosen.iter().enumerate() {
            asked.extend([(row + place, text.tokens[text.start + place]), (row + place, *second)]);
        }
    }
    let expected = policy.log_probabilities(&batch, &asked)?;
    let mut distance = 0.0f32;
    let chosen = texts.iter().flat_map(|it| &it.chosen);
    for (place, ((first, _, second), expected)) in chosen.zip(expected.chunks_exact(2)).enumerate() {
        // A runner-up far behind says nothing about rounding.
        let near = if *second > first - 5.0 { (second - expected[1]).abs() } else { 0.0 };
        distance = distance.max((first - expected[0]).abs()).max(near);
        if expected[1] - expected[0] > DISTANCE_MAX || distance > DISTANCE_MAX || !distance.is_finite() {
            let path = checkpoint.path.display();
            let refusal = Refusal::new(format!(
                "{path}: greedy parity: token {place} of the 16-bit file's greedy texts: expected log-probabilities \
                 {:.3} and {:.3} as the checkpoint has them, found {first:.3} and {second:.3}",
                expected[0], expected[1]
            ));
            return Err(refusal.hint("the conversion is at fault, not a format: nothing was written").into());
        }
    }
    Ok(told(format!(
        "{} greedy texts of {TOKENS} tokens are the checkpoint's own; log-probabilities differ by at most \
         {distance:.1e}",
        texts.len()
    )))
}

/// All adapters as one, on every module that the trainable forward adapts.
fn whole_adapter(checkpoint: &Checkpoint, adapters: &[Adapter]) -> Adapter {
    let sizes = &checkpoint.dimensions;
    let none = Adapter { rank: 1, alpha: 1.0, rslora: false, pairs: Default::default() };
    let mut whole = Adapter::joined(adapters).unwrap_or(none);
    for module in (0..sizes.n_layers).flat_map(|layer| modules(sizes, layer)) {
        let ([outputs, inputs], rank) = (module.shape, whole.rank);
        let silent = || LoraPair { a: vec![0.0; rank * inputs], b: vec![0.0; outputs * rank], rank, inputs, outputs };
        whole.pairs.entry(module.hf).or_insert_with(silent);
    }
    whole
}

/// What the file writes to tasks that no gate sees, all at once.
fn write(file: &Path, threads: usize) -> anyhow::Result<Vec<Written>> {
    let gguf = Gguf::open(file)?;
    let max_sequences = 2 * PROMPTS;
    let options = DecoderOptions { threads, context_tokens: CONTEXT_TOKENS, kv: KvFormat::F16, max_sequences };
    let LoadedPolicy { mut decoder, tokenizer, template } = LoadedPolicy::load(&gguf, options)?;
    let protocol = Protocol::new(&tokenizer, &template);
    let mut texts = Vec::with_capacity(max_sequences);
    for prompt in prompts(&Countdown).into_iter().chain(prompts(&DocHop)) {
        let tokens = protocol.first(&prompt)?;
        texts.push(Written { start: tokens.len(), tokens, chosen: Vec::with_capacity(TOKENS) });
    }
    let sequences: Vec<SequenceId> = texts.iter().map(|_| decoder.open_sequence()).collect();
    for _ in 0..TOKENS {
        extend(&mut decoder, &sequences, &mut texts)?;
    }
    Ok(texts)
}

fn prompts<E: Environment>(world: &E) -> Vec<String> {
    let tasks = world.tasks(Split::Calibration, 0, PROMPTS);
    tasks.iter().map(|it| world.observe(it, &world.start(it))).collect()
}

/// One more token of every text.
fn extend(
    decoder: &mut Decoder<fsq_kernels::Cpu>,
    sequences: &[SequenceId],
    texts: &mut [Written],
) -> anyhow::Result<()> {
    let unread: Vec<usize> = sequences.iter().map(|it| decoder.tokens(*it).map_or(0, <[_]>::len)).collect();
    let steps = sequences.iter().zip(texts.iter()).zip(unread).map(|((sequence, text), unread)| Step {
        sequence: *sequence,
        tokens: &text.tokens[unread..],
        logits: LogitsFor::Last,
        adapter: None,
    });
    let logits = decoder.forward(&steps.collect::<Vec<_>>())?;
    for (index, text) in texts.iter_mut().enumerate() {
        let row = log_softmax(logits.last(index));
        let best = |without: Option<usize>| {
            let others = row.iter().enumerate().filter(|it| Some(it.0) != without);
            others.fold((0, f32::NEG_INFINITY), |best, it| if *it.1 > best.1 { (it.0, *it.1) } else { best })
        };
        let first = best(None);
        let second = best(Some(first.0));
        text.tokens.push(u32::try_from(first.0)?);
        text.chosen.push((first.1, u32::try_from(second.0)?, second.1));
    }
    Ok(())
}
