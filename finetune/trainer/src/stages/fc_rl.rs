//! FC-RL: on-policy groups of episodes, one advantage for each span, the stated probability calibrated by outcome.
//!
//! For rollout `i` at step `t`, with `I` the outcome, `q` the stated probability read as an expectation and `fid` the
//! share of imagined states that came true:
//!
//! ```text
//! R_WM  = I − (q − I)² + 0.5 · fid          −1 where the text is malformed
//! A_WM  = leave-one-out(R_WM at t)          world-model tokens, the confidence apart
//! A_E   = leave-one-out(I)                  a malformed or illegal step costs 0.1
//! A_S   = clip((q − mean q_t) / max(std q_t, 0.1), ±2)
//! A_pol = A_E + w · 0.5 · A_S               think and action tokens; w = 0 while AUROC(q, I) < 0.55
//! ```
//!
//! No advantage is divided by its group's deviation: with the deviation, forecasts become overconfident (arXiv
//! 2508.11800). Episodes are played by the serving runtime under the adapter as it stands.
//!
//! The confidence token itself gets the exact gradient of `(q − I)²`, in episodes of fresh tasks that are played as a
//! deployed policy plays them, greedily: sampled episodes succeed less often, and a policy calibrated to them would
//! be underconfident where it is used.
//!
//! Each of these choices is a switch of the recipe, so that a study can ask what it is worth: [`Advantages`],
//! [`Scale`], [`ConfidenceSignal`] and what the policy's turns say ([`Turns`]).

mod config;
mod rewards;

use std::sync::Arc;

use fsq_calibrate::alarms::{Alarm, BatchHealth, Health, Sample};
use fsq_calibrate::metrics::{Metrics, Outcome};
use fsq_checkpoint::Checkpoint;
use fsq_environments::{AnyWorld, Environment, in_world};
use fsq_episodes::{Episode, Format, GridAnswers, PlayOptions, Protocol, play};
use fsq_gguf::Gguf;
use fsq_model::{AdapterId, DecoderOptions, KvFormat, LoadedPolicy};
use fsq_quantizer::{Mix, Plan, Provenance};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::further::{FurtherTasks, further};
use super::run::{Report, StageRun, Watch};
use super::text::{traces_of, training_tasks};
use crate::{AdamW, AdamWConfig, Batch, Confidence, Sequence, TokenLoss, TrainError, TrainablePolicy, Vocabulary};

pub use config::{Advantages, ConfidenceSignal, RlConfig, Scale};
use rewards::Rewards;

/// Where the adapter in training stands in the runtime.
const ADAPTER: AdapterId = AdapterId(0);
/// What the surrogate is divided by, beside the number of episodes: a constant, so long texts earn nothing.
const SPAN_TOKENS: f32 = 24.0;
/// Clip range of the surrogate, as in DAPO.
const CLIP: (f32, f32) = (0.2, 0.28);
/// Below this AUROC the stated probability does not rank plans and must not steer them.
const AUROC_MIN: f64 = 0.55;
/// Traces of each world that hold the format.
const TRACES: usize = 64;
/// Steps in a row with an alarm after which the stage goes back to its last healthy adapter and stops.
const ALARMS_MAX: usize = 3;

/// One step, for the metrics.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RlStep {
    /// Steps done.
    pub step: usize,
    /// Success of the sampled episodes, by world: Countdown, DocHop, then further ones in the order of their names.
    pub success: Vec<f64>,
    /// Mean stated probability of the sampled episodes, by world.
    pub stated: Vec<f64>,
    /// Success of the greedy episodes, by world.
    pub greedy_success: Vec<f64>,
    /// Mean stated probability of the greedy episodes, by world.
    pub greedy_stated: Vec<f64>,
    /// Brier score of the greedy episodes.
    pub brier: f64,
    /// Share of well-formed turns.
    pub adherence: f64,
    /// Share of imagined states that came true.
    pub fidelity: f64,
    /// Mean entropy of what is stated, in nats.
    pub entropy: f64,
    /// AUROC of the sampled episodes, where defined.
    pub auroc: Option<f64>,
    /// Alarms, as sentences.
    pub alarms: Vec<String>,
    /// The stage stopped here and went back to this step's adapter.
    pub stopped_at: Option<usize>,
}

/// A group's episodes: `group` rollouts of one task.
type Group = Vec<Episode>;

/// A world and what a step plays of it.
#[derive(Clone, Copy)]
struct Played<'a> {
    world: &'a AnyWorld,
    tasks: usize,
    calibration_tasks: usize,
}

impl Played<'_> {
    /// Most episodes that are played at once.
    fn episodes_max(&self, group: usize) -> usize {
        (self.tasks * group).max(self.calibration_tasks)
    }
}

/// What a step played: the groups and the greedy episodes of each world.
type OfWorlds = Vec<(Vec<Group>, Group)>;

/// Runs FC-RL from a checkpoint to `run.merged()`, or returns at once if it is there. `own` is the run's own world, if
/// it has one.
///
/// # Errors
/// When the runtime, graph or files fail; the saved state stays.
pub fn run(
    config: &RlConfig,
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
    config.check()?;
    let further = further("fc-rl.further", &config.further, own)?;
    let ours = [&AnyWorld::Countdown, &AnyWorld::DocHop].into_iter().zip(config.tasks).zip(config.calibration_tasks);
    let ours = ours.map(|((world, tasks), calibration_tasks)| Played { world, tasks, calibration_tasks });
    let beyond = further.iter().map(|it| {
        let FurtherTasks { tasks, calibration_tasks } = it.taken;
        Played { world: it.world(), tasks, calibration_tasks }
    });
    let worlds: Vec<Played<'_>> = ours.chain(beyond).collect();
    let mut learner = Learner::new(config, &worlds, from, run, seed, threads)?;
    let done = run.resume(&learner.policy, &mut learner.optimizer)?;
    learner.replay_health(&run.metrics()?);
    for step in done..config.steps {
        let line = learner.step(step)?;
        let stop = line.stopped_at.is_some();
        run.log(&line)?;
        watch(&Report { step: step + 1, steps: config.steps, text: shown(&line) });
        if stop {
            break;
        }
        // Every step is dear, and health depends on the steps before: save each.
        run.save(&learner.policy, &learner.optimizer, true)?;
        learner.keep_if_healthy(run, line.alarms.is_empty())?;
    }
    if learner.is_ended() {
        learner.go_back(run)?;
    }
    let adapter = learner.policy.adapter()?.ok_or_else(|| TrainError::MissingModule("adapter".into()))?;
    run.finish(from, &adapter)
}

fn shown(line: &RlStep) -> String {
    let alarm = line.alarms.first().map_or(String::new(), |it| format!("  alarm: {it}"));
    let success: Vec<String> = line.success.iter().map(|it| format!("{it:.2}")).collect();
    let (success, brier, fidelity) = (success.join(" / "), line.brier, line.fidelity);
    format!("success {success}  Brier {brier:.3}  fidelity {fidelity:.2}{alarm}")
}

/// Everything that the steps share.
struct Learner<'a> {
    config: &'a RlConfig,
    worlds: &'a [Played<'a>],
    policy: TrainablePolicy,
    optimizer: AdamW,
    runtime: LoadedPolicy,
    levels: Arc<Vec<(u32, f32)>>,
    traces: Vec<Sequence>,
    health: Health,
    auroc: Option<f64>,
    n_alarmed: usize,
    seed: u64,
}

impl<'a> Learner<'a> {
    fn new(
        config: &'a RlConfig,
        worlds: &'a [Played<'a>],
        from: &Checkpoint,
        run: &StageRun,
        seed: u64,
        threads: usize,
    ) -> Result<Self, TrainError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let policy = TrainablePolicy::adapted(from, &config.lora, &mut rng, threads)?;
        let constants = AdamWConfig { weight_decay: 0.0, clip_norm: 0.5, ..AdamWConfig::LLAMA };
        let episodes = worlds.iter().map(|it| it.episodes_max(config.group)).max().unwrap_or(0);
        let runtime = sampling_runtime(from, run, threads, episodes, config.context_tokens)?;
        let vocabulary = Vocabulary::from_json(&from.tokenizer_json)?;
        // Of the worlds that are played alone: the others' format is none of this run's.
        let mut traces = Vec::new();
        for played in worlds.iter().filter(|it| it.tasks > 0) {
            let made = in_world!(played.world, it => traces_of(it, config.turns, TRACES, &vocabulary, seed));
            traces.append(&mut made?);
        }
        let answers = GridAnswers::new(&runtime.tokenizer);
        let single = answers.single_tokens().ok_or(TrainError::GridTokens)?;
        let levels = single.iter().enumerate().map(|(level, token)| (*token, to_f32(level) / 20.0));
        Ok(Self {
            config,
            worlds,
            policy,
            optimizer: AdamW::new(constants),
            runtime,
            levels: Arc::new(levels.collect()),
            traces,
            health: Health::new(config.limits),
            auroc: None,
            n_alarmed: 0,
            seed,
        })
    }

    /// Whether alarms have ended the stage.
    fn is_ended(&self) -> bool {
        self.config.alarms_end && self.n_alarmed >= ALARMS_MAX
    }

    /// Brings alarms and the gate on `w` to where a killed run had them.
    fn replay_health(&mut self, lines: &[RlStep]) {
        for line in lines {
            self.auroc = smoothed(self.auroc, line.auroc);
            self.n_alarmed = if line.alarms.is_empty() { 0 } else { self.n_alarmed + 1 };
        }
    }

    fn step(&mut self, step: usize) -> Result<RlStep, TrainError> {
        self.runtime.decoder.set_adapter(ADAPTER, self.policy.adapter()?.as_ref())?;
        let mut of_worlds = OfWorlds::new();
        for Played { world, tasks, calibration_tasks } in self.worlds.iter().copied() {
            let groups = in_world!(world, it => self.groups(it, tasks, step))?;
            let greedy = in_world!(world, it => self.greedy(it, calibration_tasks, step))?;
            of_worlds.push((groups, greedy));
        }
        let mut line = self.summary(step, &of_worlds);
        self.auroc = smoothed(self.auroc, line.auroc);
        self.n_alarmed = if line.alarms.is_empty() { 0 } else { self.n_alarmed + 1 };
        if self.is_ended() {
            line.stopped_at = Some((step + 1).saturating_sub(ALARMS_MAX));
            return Ok(line);
        }
        let n_groups: usize = of_worlds.iter().map(|it| it.0.len()).sum();
        let n_episodes = to_f32(n_groups * self.config.group);
        let mut batch = Batch::default();
        for group in of_worlds.iter().flat_map(|it| &it.0) {
            self.add_group(group, &mut batch);
        }
        let is_scored = self.config.confidence == ConfidenceSignal::Brier;
        let greedy: Group = of_worlds.into_iter().flat_map(|it| it.1).filter(|_| is_scored).collect();
        for episode in &greedy {
            self.add_confidence(episode, n_episodes / to_f32(greedy.len()), &mut batch);
        }
        self.add_traces(step, n_episodes, &mut batch);
        let loss = self.policy.loss(&batch)?;
        let value = loss.to_vec1::<f32>()?.first().copied().unwrap_or(f32::NAN);
        if !value.is_finite() {
            return Err(TrainError::NotFinite { step, loss: value });
        }
        let grads = loss.backward()?;
        let rate = self.config.schedule.rate(to_f32(step + 1) / to_f32(self.config.steps));
        self.optimizer.step(self.policy.trained(), &grads, 1.0 / n_episodes, rate)?;
        Ok(line)
    }

    fn groups<E: Environment>(&mut self, world: &E, count: usize, step: usize) -> Result<Vec<Group>, TrainError> {
        let seed = self.seed ^ ((step as u64 + 1) << 20);
        let tasks = training_tasks(world, seed, count)?;
        let group = self.config.group;
        let repeated: Vec<E::Task> = tasks.iter().flat_map(|it| std::iter::repeat_n(it.clone(), group)).collect();
        let mut episodes = self.play(world, &repeated, 1.0, seed)?.into_iter();
        Ok((0..count).map(|_| episodes.by_ref().take(group).collect()).collect())
    }

    /// One greedy episode for each of some tasks that no other step and no group sees.
    fn greedy<E: Environment>(&mut self, world: &E, count: usize, step: usize) -> Result<Group, TrainError> {
        let seed = self.seed ^ ((step as u64 + 1) << 20) ^ (1 << 40);
        let tasks = training_tasks(world, seed, count)?;
        self.play(world, &tasks, 0.0, seed)
    }

    fn play<E: Environment>(
        &mut self,
        world: &E,
        tasks: &[E::Task],
        temperature: f32,
        seed: u64,
    ) -> Result<Group, TrainError> {
        if tasks.is_empty() {
            return Ok(Group::new());
        }
        let options = PlayOptions {
            format: self.config.turns.format(),
            temperature,
            seed,
            turn_tokens_max: self.config.turn_tokens,
            batch: tasks.len(),
            adapter: Some(ADAPTER),
        };
        let LoadedPolicy { decoder, tokenizer, template } = &mut self.runtime;
        let protocol = Protocol::new(tokenizer, template);
        Ok(play(world, tasks, decoder, &protocol, &options, &mut |_| ())?)
    }

    fn summary(&mut self, step: usize, of_worlds: &OfWorlds) -> RlStep {
        let all = || of_worlds.iter().flat_map(|it| &it.0).flatten();
        let outcomes: Vec<Outcome> = all().filter_map(Episode::outcome).collect();
        let greedy_outcomes: Vec<Outcome> =
            of_worlds.iter().flat_map(|it| &it.1).filter_map(Episode::outcome).collect();
        let format = self.config.turns.format();
        let samples: Vec<Sample> = all().filter_map(|it| sample(it, format)).collect();
        let batch = BatchHealth::of(&samples);
        // The gap is what this stage is there to close, so it never stops it.
        let alarms = self.health.observe(&batch).into_iter().filter(|it| match it {
            Alarm::Gap { .. } => false,
            Alarm::NothingToRead => format == Format::Foresight,
            _ => true,
        });
        let success = |groups: &[Group]| mean(groups.iter().flatten().map(|it| f64::from(u8::from(it.success))));
        let stated = |groups: &[Group]| {
            mean(groups.iter().flatten().filter_map(|it| it.steps.first()?.stated()).map(|it| it.value()))
        };
        let sampled = |of: &dyn Fn(&[Group]) -> f64| of_worlds.iter().map(|it| of(&it.0)).collect();
        let greedy =
            |of: &dyn Fn(&[Group]) -> f64| of_worlds.iter().map(|it| of(std::slice::from_ref(&it.1))).collect();
        let states = all().flat_map(|it| it.fidelity(2)).flatten().map(|it| f64::from(u8::from(it)));
        RlStep {
            step: step + 1,
            success: sampled(&success),
            stated: sampled(&stated),
            greedy_success: greedy(&success),
            greedy_stated: greedy(&stated),
            brier: Metrics::of(&greedy_outcomes).brier.unwrap_or(f64::NAN).max(0.0),
            adherence: batch.adherence.unwrap_or(0.0),
            fidelity: mean(states),
            entropy: batch.entropy_nats.unwrap_or(0.0),
            auroc: Metrics::of(&outcomes).auroc,
            alarms: alarms.map(|it| it.to_string()).collect(),
            stopped_at: None,
        }
    }

    /// Adds a group's episodes with their losses.
    fn add_group(&self, group: &Group, batch: &mut Batch) {
        let rewards = Rewards::of(group, self.config);
        let steers = self.auroc.is_some_and(|it| it >= AUROC_MIN) && self.config.advantages == Advantages::Spans;
        let weight = if steers { self.config.signal_weight * rewards.signal_scale() } else { 0.0 };
        for (index, episode) in group.iter().enumerate() {
            let mut losses = Vec::new();
            for (t, step) in episode.steps.iter().enumerate() {
                let policy = rewards.outcome_advantage(index) + weight * rewards.signal(index, t);
                let confidence = step.confidence_at.filter(|_| step.distribution.is_some());
                let (world_model, policy_from) = match self.config.advantages {
                    // Without a confidence there is no policy span: the whole turn is the malformed world-model span.
                    Advantages::Spans => {
                        (rewards.world_model_advantage(index, t), confidence.map_or(step.tokens.end, |it| it + 2))
                    }
                    Advantages::Outcome => (policy, step.tokens.start),
                };
                let untouched = confidence.filter(|_| self.config.confidence == ConfidenceSignal::Brier);
                for (place, sampled) in step.tokens.clone().zip(&step.log_probabilities) {
                    let advantage = if place < policy_from { world_model } else { policy };
                    if advantage != 0.0 && Some(place) != untouched {
                        losses.push((
                            place - 1,
                            TokenLoss::Surrogate {
                                target: episode.tokens[place],
                                sampled_log_probability: *sampled,
                                advantage: advantage / SPAN_TOKENS,
                                clip: CLIP,
                            },
                        ));
                    }
                }
            }
            batch.push(&episode.tokens, losses);
        }
    }

    /// Adds an episode for what it states alone, which all of it together counts as `share` sampled episodes.
    fn add_confidence(&self, episode: &Episode, share: f32, batch: &mut Batch) {
        let places: Vec<usize> =
            episode.steps.iter().filter(|it| it.distribution.is_some()).filter_map(|it| it.confidence_at).collect();
        let Some(last) = places.last().copied() else { return };
        let loss = |place: usize| {
            let confidence = Confidence {
                levels: Arc::clone(&self.levels),
                outcome: f32::from(u8::from(episode.success)),
                weight: self.config.confidence_weight * share,
            };
            (place - 1, TokenLoss::Confidence(confidence))
        };
        batch.push(&episode.tokens[..last], places.into_iter().map(loss).collect());
    }

    /// Adds a few FE-SFT traces, weighed so that all of them together count as `format_weight` an episode.
    fn add_traces(&self, step: usize, n_episodes: f32, batch: &mut Batch) {
        const COUNT: usize = 6;
        if self.config.format_weight == 0.0 || self.traces.is_empty() {
            return;
        }
        let picked: Vec<&Sequence> =
            (0..COUNT).map(|it| &self.traces[(step * COUNT + it * 31) % self.traces.len()]).collect();
        let total: f32 = picked.iter().flat_map(|it| &it.weights).sum();
        for trace in picked {
            let weighed = trace.weights.iter().enumerate().skip(1).filter(|it| *it.1 > 0.0);
            let losses = weighed.map(|(place, weight)| {
                let weight = weight * self.config.format_weight * n_episodes / total;
                (place - 1, TokenLoss::Likelihood { target: trace.tokens[place], weight })
            });
            batch.push(&trace.tokens, losses.collect());
        }
    }

    fn keep_if_healthy(&self, run: &StageRun, healthy: bool) -> Result<(), TrainError> {
        if healthy {
            self.optimizer.save(&run.folder().join(HEALTHY), self.policy.trained())?;
        }
        Ok(())
    }

    fn go_back(&mut self, run: &StageRun) -> Result<(), TrainError> {
        let healthy = run.folder().join(HEALTHY);
        if healthy.exists() {
            self.optimizer.load(&healthy, self.policy.trained())?;
        }
        Ok(())
    }
}

/// The last state in which no alarm sounded.
const HEALTHY: &str = "healthy.safetensors";

/// The runtime that plays: the checkpoint as a 32-bit file, so that sampling and training see the same weights.
fn sampling_runtime(
    from: &Checkpoint,
    run: &StageRun,
    threads: usize,
    episodes: usize,
    context_tokens: usize,
) -> Result<LoadedPolicy, TrainError> {
    let path = run.folder().join("sampling-F32.gguf");
    let provenance = Provenance::of("fsq", from, &[], None)?;
    let encoded = fsq_quantizer::quantize(from, &[], &Plan::new(Mix::F32), None, &provenance, &path, &mut |_, _| ())?;
    encoded.draft.publish()?;
    let options = DecoderOptions {
        threads,
        context_tokens,
        kv: KvFormat::F16,
        // Reading what is stated forks each sequence.
        max_sequences: 2 * episodes,
    };
    Ok(LoadedPolicy::load(&Gguf::open(&path)?, options)?)
}

fn sample(episode: &Episode, format: Format) -> Option<Sample> {
    let first = episode.steps.first()?;
    let stated = first.stated().map_or(0.0, |it| it.value());
    let outcome = f64::from(u8::from(episode.success));
    Some(Sample {
        well_formed: episode.steps.iter().all(|it| it.well_formed(format)),
        distribution: first.distribution.clone(),
        reward: outcome - (stated - outcome).powi(2),
        success: episode.success,
    })
}

/// An average that forgets: one batch alone is too small to judge ranking by.
fn smoothed(before: Option<f64>, now: Option<f64>) -> Option<f64> {
    match (before, now) {
        (Some(before), Some(now)) => Some(0.8 * before + 0.2 * now),
        (before, now) => before.or(now),
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), it| (sum + it, n + 1.0));
    if n > 0.0 { sum / n } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^24")]
fn to_f32(count: usize) -> f32 {
    count as f32
}
