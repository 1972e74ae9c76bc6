//! The stages that learn from text: mid-training (WM-AMT, or its control without blocks) and fine-tuning on traces.
//!
//! WM-AMT reads a stream of logged episodes in which most steps carry a world-model block; the control reads the same
//! kind of episodes without blocks, for as many tokens. FE-SFT reads a few traces in the tagged format, many times.

use std::collections::BTreeMap;

use fsq_checkpoint::Checkpoint;
use fsq_environments::{AnyWorld, Environment, Skill, Split, in_world};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::further::{Further, FurtherText, further, habits};
use super::run::{Report, StageRun, Watch};
use super::{Schedule, base};
use crate::text::{Logged, Piece, Told, Turns, encode, filler, named_plan, prose, told};
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
    /// The episodes of `blocks`, as many tokens of each, with blocks of which only this is told.
    Matched(Told),
    /// So many traces of each world in the tagged format: Countdown, DocHop.
    Tagged([usize; 2]),
    /// The same traces with a confidence that says nothing.
    TaggedStates([usize; 2]),
    /// The same traces with actions alone.
    Untagged([usize; 2]),
}

impl Material {
    /// The traces that a fixed set is made of; nothing for a stream of fresh episodes.
    fn traces(&self) -> Option<(Turns, [usize; 2])> {
        match self {
            Self::Blocks | Self::Plain | Self::Matched(_) => None,
            Self::Tagged(counts) => Some((Turns::Foresight, *counts)),
            Self::TaggedStates(counts) => Some((Turns::States, *counts)),
            Self::Untagged(counts) => Some((Turns::Plain, *counts)),
        }
    }
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
    /// What is taken of further worlds: `dagmath`, `slipgrid`, and `own` for the run's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub further: BTreeMap<String, FurtherText>,
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

/// Runs a text stage from a checkpoint to `run.merged()`, or returns at once if it is there. `own` is the run's own
/// world, if it has one.
///
/// # Errors
/// When data, graph or files fail; the saved state stays.
pub fn run(
    config: &TextConfig,
    from: &Checkpoint,
    run: &mut StageRun,
    own: Option<&AnyWorld>,
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
    let further = further("further", &config.further, own)?;
    let traces = traces(config, &further, &vocabulary, seed)?;
    if traces.is_empty() && config.material.traces().is_some() {
        let (field, expected) = ("material".into(), "at least one trace".into());
        return Err(TrainError::Config { field, expected, found: "none".into() });
    }
    for step in done..config.steps {
        let batch = match config.material.traces() {
            Some(_) => Ok(traces_batch(config, &traces, seed, step)),
            None => stream(config, &further, &vocabulary, seed, step).map(|it| Batch::of(&it)),
        };
        if matches!(batch, Err(TrainError::Environment(_))) {
            // What a user's program breaks off is not lost.
            run.save(&policy, &optimizer, true)?;
        }
        let batch = batch?;
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

/// Tokens of the fixed set that a stage reads again and again; 0 for a stream of fresh episodes.
///
/// # Errors
/// When the tokenizer refuses.
pub fn set_tokens(config: &TextConfig, from: &Checkpoint, seed: u64) -> Result<usize, TrainError> {
    let further = further("further", &config.further, None)?;
    let traces = traces(config, &further, &Vocabulary::from_json(&from.tokenizer_json)?, seed)?;
    Ok(traces.iter().map(|it| it.tokens.len()).sum())
}

/// A step of mid-training: fresh episodes, drawn by seed and step alone.
///
/// # Errors
/// When the tokenizer refuses, or a user's world cannot go on.
pub fn stream(
    config: &TextConfig,
    further: &[Further<'_, FurtherText>],
    vocabulary: &Vocabulary,
    seed: u64,
    step: usize,
) -> Result<Vec<Sequence>, TrainError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step as u64 + 1);
    let mut sequences = Vec::new();
    let shares = || config.mix.into_iter().chain(further.iter().map(|it| it.taken.share));
    let mut counted = vec![0usize; shares().count()];
    while counted.iter().sum::<usize>() < config.batch_tokens {
        let lag = |(share, counted): (f64, &usize)| share / (1.0 + to_f64(*counted));
        let lags = shares().zip(&counted).map(lag).enumerate();
        let (kind, _) = lags.fold((0, 0.0), |most, it| if it.1 > most.1 { it } else { most });
        let world = match kind {
            0 => &AnyWorld::Countdown,
            1 => &AnyWorld::DocHop,
            _ => further[kind - 2].world(),
        };
        let habits = habits(world);
        let mut made = in_world!(world, it => mid_episodes(it, habits, &config.material, vocabulary, &mut rng))?;
        counted[kind] += made.iter().map(|it| it.tokens.len()).sum::<usize>();
        sequences.append(&mut made);
    }
    Ok(sequences)
}

fn mid_episodes<E: Environment>(
    world: &E,
    (count, answer_weight): (usize, f32),
    material: &Material,
    vocabulary: &Vocabulary,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Sequence>, TrainError> {
    let tasks = training_tasks(world, rng.random(), count)?;
    let mut made = Vec::with_capacity(count);
    for task in tasks {
        let carries = material != &Material::Plain && rng.random_bool(BLOCK_EPISODES);
        let logged = Logged::play(world, task, E::LOGGING, carries, rng);
        let mut fault = None;
        let script = logged.script(world, |index| match (carries, rng.random_bool(BLOCK_STEPS)) {
            (true, true) => {
                let block = prose(&logged.imagined(world, index), &logged.steps[index].action, rng);
                match material {
                    Material::Matched(what) => told(block, *what, vocabulary, rng).unwrap_or_else(|error| {
                        fault = Some(error);
                        Vec::new()
                    }),
                    _ => block,
                }
            }
            (true, false) => filler(0.1, 24, rng),
            (false, _) => match rng.random_bool(PLAN_STEPS) {
                true => named_plan(&logged.actions(index), rng),
                false => filler(0.1, 24, rng),
            },
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
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
    world.check()?;
    Ok(made)
}

/// Tasks to train on; there must be some.
pub(super) fn training_tasks<E: Environment>(world: &E, seed: u64, count: usize) -> Result<Vec<E::Task>, TrainError> {
    let tasks = world.tasks(Split::Train, seed, count);
    world.check()?;
    if tasks.is_empty() && count > 0 {
        let field = format!("environment `{}`", world.name());
        return Err(TrainError::Config { field, expected: "tasks to train on".into(), found: "none".into() });
    }
    Ok(tasks)
}

/// The traces of fine-tuning: a fixed set.
fn traces(
    config: &TextConfig,
    further: &[Further<'_, FurtherText>],
    vocabulary: &Vocabulary,
    seed: u64,
) -> Result<Vec<Sequence>, TrainError> {
    let Some((turns, counts)) = config.material.traces() else { return Ok(Vec::new()) };
    let mut traces = Vec::new();
    let ours = [&AnyWorld::Countdown, &AnyWorld::DocHop].into_iter().zip(counts);
    for (world, count) in ours.chain(further.iter().map(|it| (it.world(), it.taken.traces))) {
        traces.append(&mut in_world!(world, it => traces_of(it, turns, count, vocabulary, seed))?);
    }
    Ok(traces)
}

/// Traces of one world, the same episodes whatever their turns say, with the loss on the policy's turns only.
pub(crate) fn traces_of<E: Environment>(
    world: &E,
    turns: Turns,
    count: usize,
    vocabulary: &Vocabulary,
    seed: u64,
) -> Result<Vec<Sequence>, TrainError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xfe);
    let tasks = training_tasks(world, rng.random(), count)?;
    let mut traces = Vec::with_capacity(count);
    for task in tasks {
        let logged = Logged::play(world, task, E::LOGGING, true, &mut rng);
        let own = skill_weight(logged.skill).max(0.1);
        traces.push(encode(&logged.trace(world, turns), vocabulary, |piece| match piece {
            Piece::Task | Piece::Answer => 0.0,
            Piece::WorldModel | Piece::State | Piece::Odds => 1.0,
            Piece::Settled => 2.0,
            Piece::Plan | Piece::Policy => own,
        })?);
    }
    world.check()?;
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

#[cfg(test)]
mod tests {
    use fsq_environments::Countdown;

    use super::*;

    fn config(material: Material) -> TextConfig {
        let schedule = Schedule { learning_rate: 1e-3, warmup: 0.0, decay: 0.0, course: super::super::Course::Linear };
        let lora = LoraConfig::new(4, 8.0);
        let further = BTreeMap::new();
        TextConfig { material, lora, steps: 1, batch_tokens: 1536, mix: [0.6, 0.4], further, schedule }
    }

    fn vocabulary() -> Vocabulary {
        Vocabulary::from_json(include_str!("../../../base/tokenizer.json")).unwrap()
    }

    /// Arms must differ in what their blocks tell, not in what data they see or how much of it.
    #[test]
    fn matched_material_is_the_same_episodes_and_the_same_tokens() {
        let vocabulary = vocabulary();
        let read = |material, step| stream(&config(material), &[], &vocabulary, 5, step).unwrap();
        for told in [Told::States, Told::NextState, Told::Actions] {
            let mut differ = 0;
            for step in 0..4 {
                let (blocks, matched) = (read(Material::Blocks, step), read(Material::Matched(told), step));
                assert_eq!(blocks.len(), matched.len());
                for (with, without) in blocks.iter().zip(&matched) {
                    assert_eq!(with.tokens.len(), without.tokens.len());
                    differ += usize::from(with.tokens != without.tokens);
                    // What the world said is the same, token for token, and at the same places.
                    let asked = |it: &Sequence| {
                        vocabulary
                            .decode(&it.tokens)
                            .unwrap()
                            .split("<|user|>")
                            .skip(1)
                            .map(|it| it.split("<|assistant|>").next().map(str::to_string))
                            .collect::<Vec<_>>()
                    };
                    assert_eq!(asked(with), asked(without));
                }
            }
            assert!(differ > 4, "{told:?}: {differ}");
        }
    }

    #[test]
    fn what_is_not_told_is_not_there() {
        let vocabulary = vocabulary();
        let text = |material| -> String {
            let read = stream(&config(material), &[], &vocabulary, 5, 0).unwrap();
            read.iter().map(|it| vocabulary.decode(&it.tokens).unwrap()).collect()
        };
        let odds =
            |text: &str| ["odds=", "chance=(", "success:"].iter().map(|it| text.matches(it).count()).sum::<usize>();
        let (blocks, states) = (text(Material::Blocks), text(Material::Matched(Told::States)));
        let (next, actions) = (text(Material::Matched(Told::NextState)), text(Material::Matched(Told::Actions)));
        assert!(odds(&blocks) > 4);
        assert_eq!([&states, &next, &actions].map(|it| odds(it)), [0; 3]);
        let seen = |text: &str| text.matches(" sees ").count();
        assert!(seen(&blocks) == seen(&states) && seen(&states) > seen(&next) && seen(&next) > 0, "{}", seen(&next));
        assert_eq!(seen(&actions), 0);
    }

    #[test]
    fn traces_of_every_kind_are_of_the_same_episodes() {
        let vocabulary = vocabulary();
        let texts = |turns| -> Vec<String> {
            let traces = traces_of(&Countdown, turns, 12, &vocabulary, 3).unwrap();
            traces.iter().map(|it| vocabulary.decode(&it.tokens).unwrap()).collect()
        };
        let actions = |text: &String| {
            text.split("<action>")
                .skip(1)
                .map(|it| it.split("</action>").next().map(str::to_string))
                .collect::<Vec<_>>()
        };
        let [foresight, states, plain] = [Turns::Foresight, Turns::States, Turns::Plain].map(texts);
        for (index, text) in foresight.iter().enumerate() {
            assert_eq!(actions(text), actions(&states[index]));
            assert_eq!(actions(text), actions(&plain[index]));
            assert!(!plain[index].contains("<confidence>"));
            let stated = states[index].split("<confidence>").skip(1).map(|it| it.starts_with("50</confidence>"));
            assert!(stated.clone().count() > 0 && stated.clone().all(|it| it));
        }
        assert!(foresight.iter().any(|it| !it.contains("<confidence>50")));
    }
}
