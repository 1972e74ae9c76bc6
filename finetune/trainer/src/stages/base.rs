//! The base: a small policy from scratch, trained on plain episodes and copy drills.
//!
//! The data of a step depends on the seed and the step alone, so a run resumes from its weights and a number.

use std::borrow::Cow;
use std::collections::BTreeMap;

use fsq_checkpoint::{Architecture, Checkpoint, CheckpointFiles, Dimensions, Options, StoredType};
use fsq_environments::{AnyWorld, Countdown, DocHop, Environment, Skill, Split, in_world};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::further::{self, Further, FurtherText, habits};
use super::run::{Report, StageRun, Watch};
use super::text::{TextStep, skill_weight, training_tasks};
use crate::stages::Schedule;
use crate::text::{Logged, Piece, drill, encode, filler, named, recall, word_list};
use crate::vocabulary::{BOS, CHAT_TEMPLATE, END};
use crate::{AdamW, AdamWConfig, Batch, Sequence, TrainError, TrainablePolicy, Vocabulary};

/// Skills that the base learns from: better than the logging mix, since it shall be worth improving.
const COUNTDOWN_SKILLS: [(Skill, f64); 3] =
    [(Skill { epsilon: 0.05 }, 0.6), (Skill { epsilon: 0.3 }, 0.25), (Skill { epsilon: 1.0 }, 0.15)];
const DOCHOP_SKILLS: [(Skill, f64); 3] =
    [(Skill { epsilon: 0.02 }, 0.6), (Skill { epsilon: 0.2 }, 0.25), (Skill { epsilon: 0.6 }, 0.15)];
const FURTHER_SKILLS: [(Skill, f64); 3] =
    [(Skill { epsilon: 0.05 }, 0.6), (Skill { epsilon: 0.2 }, 0.25), (Skill { epsilon: 0.6 }, 0.15)];
/// Share of the episodes that stand in the corpus as bare logs. A base that has seen what follows a move only behind
/// turn marks does not find it again inside a turn of its own.
const LOG_EPISODES: f64 = 0.4;
/// Share of the conversations in which the action is named before it is taken. A base that cannot take up its own
/// words acts against its plans, and no later stage has the tokens to teach it that.
const ALOUD_EPISODES: f64 = 0.5;
/// Share of their turns in which it is.
const ALOUD_TURNS: f64 = 0.8;
/// DocHop universes are dear to make, so a step asks several questions of each.
const DOCHOP_TASKS: usize = 6;

/// Sizes and recipe of a base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseConfig {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream; a multiple of 256 lets every k-quant be used.
    pub hidden: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens that a step reads, at least.
    pub batch_tokens: usize,
    /// Shares of the batch's tokens: Countdown, DocHop, drills.
    pub mix: [f64; 3],
    /// What is taken of further worlds, in all steps: `dagmath`, `slipgrid`, and `own` for the run's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub further: BTreeMap<String, FurtherText>,
    /// From this step on, many a conversation names its action before it takes it.
    pub aloud_from: usize,
    /// Learning rate.
    pub schedule: Schedule,
    /// Largest vocabulary; the worlds' words may need less.
    pub vocabulary: usize,
    /// Seed of the episodes; the run's own seed draws the weights.
    pub data_seed: u64,
    /// What follows those steps.
    pub recall: RecallConfig,
}

/// The end of a base's training, in which it also learns to take up what stands in its own turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecallConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Shares of the batch's tokens: Countdown, DocHop, copy drills, recall drills.
    pub mix: [f64; 4],
    /// Learning rate over these steps.
    pub schedule: Schedule,
}

impl BaseConfig {
    /// The learning rate of a step.
    fn rate(&self, step: usize) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^24")]
        let progress = |step: usize, steps: usize| step as f32 / steps as f32;
        match step.checked_sub(self.steps) {
            None => self.schedule.rate(progress(step, self.steps)),
            Some(step) => self.recall.schedule.rate(progress(step + 1, self.recall.steps)),
        }
    }

    /// Shares of a step's tokens: Countdown, DocHop, copy drills, recall drills, further worlds.
    fn shares(&self, step: usize, further: &[Further<'_, FurtherText>]) -> Vec<f64> {
        let [countdown, dochop, drills] = self.mix;
        let own = if step < self.steps { [countdown, dochop, drills, 0.0] } else { self.recall.mix };
        own.into_iter().chain(further.iter().map(|it| it.taken.share)).collect()
    }

    /// The sizes with a vocabulary.
    #[must_use]
    pub fn dimensions(&self, vocab: usize) -> Dimensions {
        Dimensions {
            architecture: Architecture::Llama,
            n_layers: self.layers,
            hidden: self.hidden,
            intermediate: self.intermediate,
            n_heads: self.heads,
            n_kv_heads: self.kv_heads,
            head_dim: self.hidden / self.heads,
            vocab,
            context: 1024,
            rms_eps: 1e-5,
            rope_theta: 10_000.0,
            tied: true,
            options: Options::PLAIN,
        }
    }
}

/// Trains a base, or goes on with one, and writes it to `run.merged()` in 16 bits. `own` is the run's own world, if it
/// has one.
///
/// # Errors
/// When data, graph or files fail; the saved state stays.
pub fn run(
    config: &BaseConfig,
    run: &mut StageRun,
    own: Option<&AnyWorld>,
    seed: u64,
    threads: usize,
    watch: &mut Watch<'_>,
) -> Result<(), TrainError> {
    if run.is_done() {
        return Ok(());
    }
    if config.recall.mix[3] > 0.0 && config.mix[0] + config.mix[1] <= 0.0 {
        let (field, expected) = ("base.recall.mix".into(), "no recall drills without Countdown or DocHop".into());
        return Err(TrainError::Config { field, expected, found: config.recall.mix[3].to_string() });
    }
    let further = further::further("base.further", &config.further, own)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (words, corpus) = words_and_corpus(&further, &mut rng)?;
    let vocabulary = Vocabulary::learn(&corpus, config.vocabulary)?;
    let dimensions = config.dimensions(vocabulary.size());
    let policy = TrainablePolicy::fresh(dimensions.clone(), &mut rng, threads)?;
    let mut optimizer = optimizer();
    let done = run.resume(&policy, &mut optimizer)?;
    let steps = config.steps + config.recall.steps;
    for step in done..steps {
        let batch = batch(config, &further, (&vocabulary, &words), step);
        if matches!(batch, Err(TrainError::Environment(_))) {
            run.save(&policy, &optimizer, true)?;
        }
        let batch = batch?;
        let rate = config.rate(step);
        let loss = self::step(&policy, &mut optimizer, &batch, step, rate)?;
        run.log(&TextStep { step: step + 1, loss, tokens: batch.tokens.len() })?;
        run.save(&policy, &optimizer, false)?;
        watch(&Report { step: step + 1, steps, text: format!("loss {loss:.3}") });
    }
    run.save(&policy, &optimizer, true)?;
    let like = CheckpointFiles {
        config: "".into(),
        weights: Cow::Borrowed(&[]),
        tokenizer: vocabulary.to_json()?.into(),
        chat_template: Some(CHAT_TEMPLATE.into()),
    };
    let special = (vocabulary.id(BOS)?, vocabulary.id(END)?);
    Checkpoint::write(&run.merged(), &like, &dimensions, special, StoredType::F16, &policy.tensors()?)?;
    Ok(())
}

/// Every word of every stage, and the text that the vocabulary is learnt from: these words, and some episodes.
fn words_and_corpus(
    further: &[Further<'_, FurtherText>],
    rng: &mut ChaCha8Rng,
) -> Result<(Vec<String>, Vec<String>), TrainError> {
    let mut words = word_list();
    let mut beyond = Vec::new();
    for it in further {
        // From a stream of its own: what the two first worlds give does not depend on others.
        let mut episodes = Vec::new();
        let mut rng = ChaCha8Rng::seed_from_u64(beyond.len() as u64);
        in_world!(it.world(), it => add_episodes(it, 300, &mut episodes, &mut rng));
        words.append(&mut further::words(it.world(), &episodes)?);
        beyond.append(&mut episodes);
    }
    let mut corpus = Vec::new();
    for word in &words {
        corpus.extend(std::iter::repeat_n(format!("{word} {word}"), 20));
    }
    for percent in (0..=20).map(|it| 5 * it) {
        corpus.extend(std::iter::repeat_n(format!("={percent}% ({percent}) :{percent}%"), 50));
    }
    add_episodes(&Countdown, 800, &mut corpus, rng);
    add_episodes(&DocHop, 600, &mut corpus, rng);
    corpus.append(&mut beyond);
    Ok((words, corpus))
}

fn add_episodes<E: Environment>(world: &E, count: usize, corpus: &mut Vec<String>, rng: &mut ChaCha8Rng) {
    for task in world.tasks(Split::Train, 1, count) {
        let logged = Logged::play(world, task, E::LOGGING, false, rng);
        corpus.extend(logged.script(world, |_| Vec::new()).into_iter().map(|it| it.1));
    }
}

/// One step's data.
///
/// # Errors
/// When the tokenizer refuses, or a user's world cannot go on.
fn batch(
    config: &BaseConfig,
    further: &[Further<'_, FurtherText>],
    (vocabulary, words): (&Vocabulary, &[String]),
    step: usize,
) -> Result<Batch, TrainError> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.data_seed);
    rng.set_stream(step as u64 + 1);
    let aloud = if step < config.aloud_from { 0.0 } else { ALOUD_EPISODES };
    let mut sequences: Vec<Sequence> = Vec::new();
    let shares = config.shares(step, further);
    let mut counted = vec![0usize; shares.len()];
    while counted.iter().sum::<usize>() < config.batch_tokens {
        // Whichever kind lags its share most comes next.
        let lag = |it: &usize| shares[*it] / (1.0 + to_f64(counted[*it]));
        let kind = (0..shares.len()).max_by(|a, b| lag(a).total_cmp(&lag(b))).unwrap_or(0);
        let mut made = match kind {
            0 => episodes(&Countdown, &COUNTDOWN_SKILLS, 1, (0.3, aloud), vocabulary, &mut rng)?,
            1 => episodes(&DocHop, &DOCHOP_SKILLS, DOCHOP_TASKS, (0.1, aloud), vocabulary, &mut rng)?,
            2 => vec![encode(&drill(words, &mut rng), vocabulary, weight_of(0.0, 1.0))?],
            4.. => {
                let world = further[kind - 4].world();
                let (count, answer_weight) = habits(world);
                let weights = (answer_weight, aloud);
                in_world!(world, it => episodes(it, &FURTHER_SKILLS, count, weights, vocabulary, &mut rng))?
            }
            3 => match rng.random_bool(config.mix[0] / (config.mix[0] + config.mix[1])) {
                true => recalls(&Countdown, &COUNTDOWN_SKILLS, 1, vocabulary, &mut rng)?,
                false => recalls(&DocHop, &DOCHOP_SKILLS, DOCHOP_TASKS, vocabulary, &mut rng)?,
            },
        };
        counted[kind] += made.iter().map(|it| it.tokens.len()).sum::<usize>();
        sequences.append(&mut made);
    }
    Ok(Batch::of(&sequences))
}

/// Plain episodes: conversations, some of them with filler between what is read and what is done, and bare logs.
fn episodes<E: Environment>(
    world: &E,
    skills: &[(Skill, f64)],
    count: usize,
    (answer_weight, aloud): (f32, f64),
    vocabulary: &Vocabulary,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Sequence>, TrainError> {
    let tasks = training_tasks(world, rng.random(), count)?;
    let mut made = Vec::with_capacity(count);
    for task in tasks {
        let logged = Logged::play(world, task, skills, false, rng);
        let script = if rng.random_bool(LOG_EPISODES) {
            logged.log_script(world)
        } else if aloud > 0.0 && rng.random_bool(aloud) {
            logged.script(world, |index| match rng.random_bool(ALOUD_TURNS) {
                true => named(&logged.steps[index].action, rng),
                false => filler(0.3, 24, rng),
            })
        } else {
            let wordy = if rng.random_bool(0.3) { 0.7 } else { 0.0 };
            logged.script(world, |_| filler(wordy, 24, rng))
        };
        let own = skill_weight(logged.skill);
        made.push(encode(&script, vocabulary, weight_of(answer_weight, own))?);
    }
    world.check()?;
    Ok(made)
}

/// Recall drills: the log of one episode stands in the turn of another.
fn recalls<E: Environment>(
    world: &E,
    skills: &[(Skill, f64)],
    count: usize,
    vocabulary: &Vocabulary,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Sequence>, TrainError> {
    let tasks = world.tasks(Split::Train, rng.random(), count + 1);
    let logged: Vec<_> = tasks.into_iter().map(|it| Logged::play(world, it, skills, false, rng)).collect();
    let pairs = logged.iter().zip(&logged[1..]);
    pairs.map(|(told, asked)| encode(&recall(world, told, asked, rng), vocabulary, weight_of(0.0, 1.0))).collect()
}

fn weight_of(answer: f32, own: f32) -> impl Fn(Piece) -> f32 {
    move |piece| match piece {
        Piece::Task => 0.02,
        Piece::Answer => answer,
        Piece::Settled => 1.0,
        _ => own,
    }
}

/// One optimizer step; returns the mean loss.
///
/// # Errors
/// When the graph refuses, or the loss is no number any more.
pub fn step(
    policy: &TrainablePolicy,
    optimizer: &mut AdamW,
    batch: &Batch,
    step: usize,
    learning_rate: f32,
) -> Result<f32, TrainError> {
    let scale = 1.0 / batch.total_weight();
    let loss = policy.loss(batch)?;
    let value = loss.to_vec1::<f32>()?.first().copied().unwrap_or(f32::NAN) * scale;
    if !value.is_finite() {
        return Err(TrainError::NotFinite { step, loss: value });
    }
    optimizer.step(policy.trained(), &loss.backward()?, scale, learning_rate)?;
    Ok(value)
}

/// The optimizer of every stage that learns from text.
#[must_use]
pub fn optimizer() -> AdamW {
    AdamW::new(AdamWConfig::LLAMA)
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn to_f64(count: usize) -> f64 {
    count as f64
}
