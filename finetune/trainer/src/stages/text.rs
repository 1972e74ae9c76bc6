//! The stages that learn from text: mid-training (WM-AMT, or its control without blocks) and FE-SFT.
//!
//! WM-AMT reads a stream of logged episodes in which most steps carry a world-model block; the control reads the same
//! kind of episodes without blocks, for as many tokens. FE-SFT reads a few traces in the tagged format, many times.

use fsq_checkpoint::Checkpoint;
use fsq_environments::{Countdown, DocHop, Environment, Skill, Split};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::run::{Report, StageRun, Watch};
use super::{Schedule, base};
use crate::text::{Logged, Piece, encode, filler, named_plan, prose};
use crate::{Batch, LoraConfig, Sequence, TrainError, TrainablePolicy, Vocabulary};

/// Share of mid-training episodes that carry blocks; the others keep the plain skill alive.
const BLOCK_EPISODES: f64 = 0.65;
/// Share of their steps that do.
const BLOCK_STEPS: f64 = 0.9;
/// Share of the other episodes' steps that name a whole plan, so that both arms learn to act by the first of several.
const PLAN_STEPS: f64 = 0.6;

/// What a text stage reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Material {
    /// Logged episodes with world-model blocks in free text.
    Blocks,
    /// Logged episodes without.
    Plain,
    /// So many traces of each world in the tagged format: Countdown, DocHop.
    Tagged([usize; 2]),
}

/// A text stage's recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// What it reads.
    pub material: Material,
    /// The adapter.
    pub lora: LoraConfig,
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens that a step reads, at least.
    pub batch_tokens: usize,
    /// Shares of the tokens: Countdown, DocHop.
    pub mix: [f64; 2],
    /// Learning rate.
    pub schedule: Schedule,
}

/// One step of a text stage, for the metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TextStep {
    /// Steps done.
    pub step: usize,
    /// Mean loss.
    pub loss: f32,
    /// Tokens read.
    pub tokens: usize,
}

/// How much a policy learns to *make* a move, by who made it. What follows from a move is learnt from everyone.
pub(super) fn skill_weight(skill: Skill) -> f32 {
    match skill.epsilon {
        it if it <= 0.1 => 1.0,
        it if it <= 0.3 => 0.3,
        _ => 0.05,
    }
}

/// Runs a text stage from a checkpoint to `run.merged()`, or returns at once if it is there.
///
/// # Errors
/// When data, graph or files fail; the saved state stays.
pub fn run(
    config: &TextConfig,
    from: &Checkpoint,
    run: &mut StageRun,
    seed: u64,
    threads: usize,
    watch: &mut Watch<'_>,
) -> Result<(), TrainError> {
    if run.is_done() {
        return Ok(());
    }
    let vocabulary = Vocabulary::from_json(&from.tokenizer_json)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let policy = TrainablePolicy::adapted(from, &config.lora, &mut rng, threads)?;
    let mut optimizer = base::optimizer();
    let done = run.resume(&policy, &mut optimizer)?;
    let traces = traces(config, &vocabulary, seed)?;
    for step in done..config.steps {
        let batch = match &config.material {
            Material::Tagged(_) => traces_batch(config, &traces, seed, step),
            material => stream_batch(config, material == &Material::Blocks, &vocabulary, seed, step)?,
        };
        #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^24")]
        let rate = config.schedule.rate((step + 1) as f32 / config.steps as f32);
        let loss = base::step(&policy, &mut optimizer, &batch, step, rate)?;
        run.log(&TextStep { step: step + 1, loss, tokens: batch.tokens.len() })?;
        run.save(&policy, &optimizer, false)?;
        watch(&Report { step: step + 1, steps: config.steps, text: format!("loss {loss:.3}") });
    }
    let adapter = policy.adapter()?.ok_or_else(|| TrainError::MissingModule("adapter".into()))?;
    run.finish(from, &adapter)
}

/// A step of mid-training: fresh episodes, drawn by seed and step alone.
fn stream_batch(
    config: &TextConfig,
    blocks: bool,
    vocabulary: &Vocabulary,
    seed: u64,
    step: usize,
) -> Result<Batch, TrainError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step as u64 + 1);
    let mut sequences = Vec::new();
    let mut counted = [0usize; 2];
    while counted.iter().sum::<usize>() < config.batch_tokens {
        let lag = |it: usize| config.mix[it] / (1.0 + to_f64(counted[it]));
        let kind = usize::from(lag(1) > lag(0));
        let mut made = match kind {
            0 => mid_episodes(&Countdown, 1, 1.0, blocks, vocabulary, &mut rng)?,
            // What a search returns is mostly chance.
            _ => mid_episodes(&DocHop, 6, 0.3, blocks, vocabulary, &mut rng)?,
        };
        counted[kind] += made.iter().map(|it| it.tokens.len()).sum::<usize>();
        sequences.append(&mut made);
    }
    Ok(Batch::of(&sequences))
}

fn mid_episodes<E: Environment>(
    world: &E,
    count: usize,
    answer_weight: f32,
    blocks: bool,
    vocabulary: &Vocabulary,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Sequence>, TrainError> {
    let tasks = world.tasks(Split::Train, rng.random(), count);
    let mut made = Vec::with_capacity(count);
    for task in tasks {
        let carries = blocks && rng.random_bool(BLOCK_EPISODES);
        let logged = Logged::play(world, task, E::LOGGING, carries, rng);
        let script = logged.script(world, |index| match (carries, rng.random_bool(BLOCK_STEPS)) {
            (true, true) => prose(&logged.imagined(world, index), &logged.steps[index].action, rng),
            (true, false) => filler(0.1, 24, rng),
            (false, _) => match rng.random_bool(PLAN_STEPS) {
                true => named_plan(&logged.actions(index), rng),
                false => filler(0.1, 24, rng),
            },
        });
        let own = skill_weight(logged.skill);
        made.push(encode(&script, vocabulary, |piece| match piece {
            Piece::Task => 0.02,
            Piece::Answer => answer_weight,
            // Phrasings are drawn at random: only what they say is worth learning.
            Piece::WorldModel => 0.15,
            Piece::State => 1.5,
            // One token that says what the whole block comes to.
            Piece::Odds => 4.0,
            // A few tokens of a turn decide whether the policy does what it planned.
            Piece::Settled => 4.0,
            Piece::Plan | Piece::Policy => own,
        })?);
    }
    Ok(made)
}

/// The traces of FE-SFT: a fixed set.
fn traces(config: &TextConfig, vocabulary: &Vocabulary, seed: u64) -> Result<Vec<Sequence>, TrainError> {
    let Material::Tagged(counts) = &config.material else { return Ok(Vec::new()) };
    let mut traces = tagged_traces(&Countdown, counts[0], vocabulary, seed)?;
    traces.append(&mut tagged_traces(&DocHop, counts[1], vocabulary, seed)?);
    Ok(traces)
}

/// Traces in the tagged format, loss on the policy's own two spans only.
pub(crate) fn tagged_traces<E: Environment>(
    world: &E,
    count: usize,
    vocabulary: &Vocabulary,
    seed: u64,
) -> Result<Vec<Sequence>, TrainError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xfe);
    let tasks = world.tasks(Split::Train, rng.random(), count);
    let mut traces = Vec::with_capacity(count);
    for task in tasks {
        let logged = Logged::play(world, task, E::LOGGING, true, &mut rng);
        let own = skill_weight(logged.skill).max(0.1);
        traces.push(encode(&logged.tagged_script(world), vocabulary, |piece| match piece {
            Piece::Task | Piece::Answer => 0.0,
            Piece::WorldModel | Piece::State | Piece::Odds => 1.0,
            Piece::Settled => 2.0,
            Piece::Plan | Piece::Policy => own,
        })?);
    }
    Ok(traces)
}

/// A step of FE-SFT: the next traces of a pass in its own order.
fn traces_batch(config: &TextConfig, traces: &[Sequence], seed: u64, step: usize) -> Batch {
    // Traces differ in length, so a step takes a fixed number of them: as many as fill the batch on average.
    let tokens: usize = traces.iter().map(|it| it.tokens.len()).sum();
    let count = (config.batch_tokens * traces.len()).div_ceil(tokens.max(1)).clamp(1, traces.len());
    let picked = (step * count..(step + 1) * count).map(|place| {
        let (pass, index) = (place / traces.len(), place % traces.len());
        let mut order: Vec<usize> = (0..traces.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed ^ (pass as u64 + 1)));
        traces[order[index]].clone()
    });
    Batch::of(&picked.collect::<Vec<_>>())
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn to_f64(count: usize) -> f64 {
    count as f64
}
