//! `fsq eval`: a file's episodes in an environment, and the numbers that they give.

mod outcomes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};
use fsq_calibrate::gates::EpisodeRecord;
use fsq_calibrate::intervals::{Interval, wilson};
use fsq_calibrate::metrics::{Bootstrap, MetricIntervals, Metrics, Outcome as Forecast, intervals, reliability_curve};
use fsq_calibrate::recalibration::{RecalibrationMap, RecalibrationMaps};
use fsq_checkpoint::Adapter;
use fsq_environments::{AnyWorld, Environment, Harder, ProcessError, Split, in_world};
use fsq_episodes::{Episode, EpisodeError, Format, PlayOptions, Protocol, play, records};
use fsq_gguf::{Gguf, Value};
use fsq_model::{AdapterId, ColumnSums, DecoderOptions, LoadedPolicy, Observing};
use fsq_quantizer::{Importance, InputSquares};
use serde::{Deserialize, Serialize};

use crate::failure::{Outcome, Refusal};
use crate::policy::{ADAPTER, Kv};
use crate::progress::Progress;
use crate::report::record::{EstimateMetrics, Measured, ReliabilityPoint, Row, StepFormat};
use crate::{Globals, environment, output};

/// Episodes in one batch: enough to keep every kernel busy, few enough for a small machine's caches.
pub(crate) const BATCH: usize = 96;
/// Longest turn.
pub(crate) const TURN_TOKENS_MAX: usize = 96;
/// Longest conversation.
const CONTEXT_TOKENS: usize = 512;
/// Bins of a reliability curve.
const BINS: usize = 10;
/// Confidence of every interval.
const CONFIDENCE: f64 = 0.95;

/// Arguments of `fsq eval`.
#[derive(Args)]
pub(crate) struct EvalArguments {
    /// A GGUF file
    file: PathBuf,
    /// The environment: countdown, dochop, dagmath, slipgrid, or a run file with a table [environment]
    #[arg(long, value_name = "NAME|FILE.toml")]
    environment: environment::Place,
    /// Episodes
    #[arg(long, short = 'n', default_value_t = 400)]
    episodes: usize,
    /// The tasks' split
    #[arg(long, value_enum, default_value_t = Tasks::Test)]
    split: Tasks,
    /// How hard the tasks are
    #[arg(long, value_enum, default_value_t = Difficulty::Trained)]
    difficulty: Difficulty,
    /// Seed of the tasks
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// The policy writes plain actions, without foresight
    #[arg(long)]
    plain: bool,
    /// Tokens of the longest conversation
    #[arg(long, value_name = "N", default_value_t = CONTEXT_TOKENS)]
    context: usize,
    /// Tokens of the longest turn
    #[arg(long, value_name = "N", default_value_t = TURN_TOKENS_MAX)]
    turn_tokens: usize,
    /// Print so many episodes
    #[arg(long, default_value_t = 0)]
    show: usize,
    /// Write what was stated at each step and how its episode ended to this file, as `fsq calibrate` reads it
    #[arg(long, value_name = "FILE", conflicts_with = "plain")]
    outcomes: Option<PathBuf>,
    /// How keys and values are stored
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    kv: Kv,
}

/// How hard tasks are by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Difficulty {
    /// As in training
    Trained,
    /// Harder than any in training: larger numbers, longer chains
    Harder,
}

/// Our environments by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum World {
    /// Join three numbers until the goal is left
    Countdown,
    /// Follow relations through a corpus that only answers searches
    Dochop,
    /// Work out a quantity that others define; the shipped base has not learnt it
    Dagmath,
    /// Fetch a key and reach a door on slippery ground; the shipped base has not learnt it
    Slipgrid,
}

/// The splits by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tasks {
    Train,
    Calibration,
    Test,
}

impl World {
    /// Those that the shipped base has learnt, in the order of reports.
    pub(crate) const ALL: [Self; 2] = [Self::Countdown, Self::Dochop];

    /// As commands and reports name it.
    pub(crate) fn name(self) -> &'static str {
        let [countdown, dochop, dagmath, slipgrid] = AnyWorld::NAMES;
        match self {
            Self::Countdown => countdown,
            Self::Dochop => dochop,
            Self::Dagmath => dagmath,
            Self::Slipgrid => slipgrid,
        }
    }

    /// The world itself.
    pub(crate) fn any(self) -> AnyWorld {
        match self {
            Self::Countdown => AnyWorld::Countdown,
            Self::Dochop => AnyWorld::DocHop,
            Self::Dagmath => AnyWorld::DagMath,
            Self::Slipgrid => AnyWorld::SlipGrid,
        }
    }
}

/// What to play.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) world: World,
    pub(crate) split: Split,
    pub(crate) episodes: usize,
    pub(crate) seed: u64,
    pub(crate) temperature: f32,
    pub(crate) format: Format,
    pub(crate) kv: Kv,
}

/// How to play in a world.
struct How {
    split: Split,
    episodes: usize,
    seed: u64,
    temperature: f32,
    format: Format,
    turn_tokens_max: usize,
}

impl From<&Plan> for How {
    fn from(plan: &Plan) -> Self {
        let Plan { split, episodes, seed, temperature, format, .. } = *plan;
        Self { split, episodes, seed, temperature, format, turn_tokens_max: TURN_TOKENS_MAX }
    }
}

/// What was played, and why not all of it.
struct Part {
    played: Played,
    episodes: Vec<Episode>,
    error: Option<ProcessError>,
}

/// What was played, as the gates read it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Played {
    pub(crate) environment: String,
    pub(crate) plain: bool,
    pub(crate) horizon: usize,
    pub(crate) records: Vec<EpisodeRecord>,
    pub(crate) tokens_per_s: f64,
}

/// What the command prints.
#[derive(Serialize)]
struct Evaluated {
    #[serde(flatten)]
    row: Row,
    /// Success of those episodes in which the policy was shown all that it needs; nothing where there are none.
    success_when_found: Option<Measured>,
}

/// Runs the command.
pub(crate) fn execute(globals: &Globals, arguments: &EvalArguments) -> anyhow::Result<Outcome> {
    let split = match arguments.split {
        Tasks::Train => Split::Train,
        Tasks::Calibration => Split::Calibration,
        Tasks::Test => Split::Test,
    };
    // Before minutes of play, not after: a user's own world starts, and the outcomes have a place.
    let world = arguments.environment.open()?;
    let draft = arguments.outcomes.as_deref().map(output::Draft::new).transpose()?;
    let how = How {
        split,
        episodes: arguments.episodes,
        seed: arguments.seed,
        temperature: arguments.temperature,
        format: if arguments.plain { Format::Plain } else { Format::Foresight },
        turn_tokens_max: arguments.turn_tokens,
    };
    let progress = Progress::new();
    progress.stage(format!("episodes in {}", world.name()), how.episodes as u64);
    let mut policy = load_for(&arguments.file, globals.threads(), arguments.kv, arguments.context)?;
    let mut watch = |it| progress.set(it as u64);
    let part = match arguments.difficulty {
        Difficulty::Trained => in_world!(&world, it => play_in(it, &mut policy, None, &how, 0, &mut watch)),
        Difficulty::Harder => in_world!(&world, it => play_in(&Harder(it), &mut policy, None, &how, 0, &mut watch)),
    }?;
    progress.finish();
    let Part { played, episodes, error } = part;
    if let Some(draft) = draft {
        outcomes::write(draft, &played, &episodes)?;
    }
    for episode in episodes.iter().take(arguments.show) {
        show(episode);
    }
    if !episodes.is_empty() {
        tell(globals, &arguments.file, &played, &episodes)?;
    }
    match error {
        None => Ok(Outcome::Done),
        Some(error) => {
            let finished = format!("{} of {} episodes were finished and are counted", episodes.len(), how.episodes);
            Err(anyhow::Error::from(error).context(finished))
        }
    }
}

fn tell(globals: &Globals, file: &Path, played: &Played, episodes: &[Episode]) -> anyhow::Result<()> {
    let name = file.file_stem().map_or_else(String::new, |it| it.to_string_lossy().into_owned());
    let maps = maps_of(&Gguf::open(file)?)?;
    let map = maps.as_ref().map(|it| it.of(Some(&played.environment)));
    let row = row(&name, played, map, std::fs::metadata(file).ok().map(|it| it.len()));
    let found: Vec<&Episode> = episodes.iter().filter(|it| it.found_all).collect();
    let right = found.iter().filter(|it| it.success).count();
    let evaluated = Evaluated { row, success_when_found: share(right as u64, found.len() as u64) };
    if globals.json { output::print_json(&evaluated) } else { output::print(&text(&evaluated)) }
}

fn show(episode: &Episode) {
    for step in &episode.steps {
        let stated = step.stated().map_or(String::new(), |it| format!("   [states {:.3}]", it.value()));
        eprintln!("> {}\n{}{stated}", step.observation, step.text);
        if let Some(fault) = &step.fault {
            eprintln!("! {fault}");
        }
    }
    eprintln!("> {}   [{}]\n", episode.last_observation, if episode.success { "success" } else { "failure" });
}

/// The recalibration maps in a file.
pub(crate) fn maps_of(gguf: &Gguf) -> anyhow::Result<Option<RecalibrationMaps>> {
    let pairs = gguf.metadata().iter().filter_map(|(key, value)| match value {
        Value::String(text) => Some((key, text.as_str())),
        _ => None,
    });
    Ok(RecalibrationMaps::from_pairs(pairs)?)
}

/// Plays a file's policy.
pub(crate) fn play_file(
    file: &Path,
    plan: &Plan,
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<(Played, Vec<Episode>)> {
    play_adapted(file, None, plan, threads, progress)
}

/// Plays a file's policy under an adapter, if there is one.
pub(crate) fn play_adapted(
    file: &Path,
    adapter: Option<&Adapter>,
    plan: &Plan,
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<(Played, Vec<Episode>)> {
    let mut policy = load(file, threads, plan.kv)?;
    policy.decoder.set_adapter(ADAPTER, adapter)?;
    play_policy(&mut policy, adapter.map(|_| ADAPTER), plan, 0, progress)
}

/// Plays what is left of a plan of which the first `n_played` episodes were played before. Greedily, as the draws of
/// a temperature depend on which episode is the first.
pub(crate) fn play_rest(
    file: &Path,
    plan: &Plan,
    n_played: usize,
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Played> {
    let plan = Plan { temperature: 0.0, ..*plan };
    Ok(play_policy(&mut load(file, threads, plan.kv)?, None, &plan, n_played, progress)?.0)
}

/// Plays a file's policy and says what its matrices read meanwhile.
pub(crate) fn observe_file(
    file: &Path,
    plans: &[Plan],
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Importance> {
    let mut policy = load(file, threads, Kv::F16)?;
    policy.decoder.observe(Observing::default());
    let mut done = 0;
    for plan in plans {
        play_policy(&mut policy, None, plan, 0, &mut |it| progress(done + it))?;
        done += plan.episodes;
    }
    Ok(importance_of(&policy.decoder.observed()))
}

/// The squares of what was observed.
#[expect(clippy::cast_possible_truncation, reason = "files hold 32-bit floats")]
pub(crate) fn importance_of(sums: &BTreeMap<String, ColumnSums>) -> Importance {
    let floats = |it: &[f64]| it.iter().map(|it| *it as f32).collect();
    let squares = |it: &ColumnSums| InputSquares { sums: floats(&it.squares), counts: floats(&it.n_rows) };
    let tensors = sums.iter().map(|(name, it)| (name.clone(), squares(it))).collect();
    Importance { tensors, ..Importance::default() }
}

/// How many different tasks a plan has: a world may have fewer than there are episodes, and repeats them then.
pub(crate) fn n_distinct_tasks(plan: &Plan) -> usize {
    fn of_world<E: Environment>(world: &E, plan: &Plan) -> usize {
        let tasks = world.tasks(plan.split, plan.seed, plan.episodes);
        tasks.iter().map(|it| world.task_id(it)).collect::<BTreeSet<u64>>().len()
    }
    in_world!(&plan.world.any(), it => of_world(it, plan))
}

/// Loads a file's policy to be played in batches, with conversations of the usual length.
pub(crate) fn load(file: &Path, threads: usize, kv: Kv) -> anyhow::Result<LoadedPolicy> {
    load_for(file, threads, kv, CONTEXT_TOKENS)
}

fn load_for(file: &Path, threads: usize, kv: Kv, context_tokens: usize) -> anyhow::Result<LoadedPolicy> {
    let gguf = Gguf::open(file)?;
    let options = DecoderOptions { threads, context_tokens, kv: kv.into(), max_sequences: 2 * BATCH };
    LoadedPolicy::load(&gguf, options).with_context(|| file.display().to_string())
}

fn play_policy(
    policy: &mut LoadedPolicy,
    adapter: Option<AdapterId>,
    plan: &Plan,
    n_played: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<(Played, Vec<Episode>)> {
    let part = in_world!(&plan.world.any(), it => play_in(it, policy, adapter, &plan.into(), n_played, progress))?;
    Ok((part.played, part.episodes))
}

/// Plays in a world. One that cannot go on leaves what was finished.
fn play_in<E: Environment>(
    world: &E,
    policy: &mut LoadedPolicy,
    adapter: Option<AdapterId>,
    how: &How,
    n_played: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Part> {
    let mut tasks = world.tasks(how.split, how.seed, how.episodes);
    world.check()?;
    if tasks.is_empty() && how.episodes > 0 {
        let split = format!("{:?}", how.split).to_lowercase();
        return Err(Refusal::new(format!("environment `{}`: expected tasks, found none for {split}", world.name()))
            .hint("other splits and difficulties may have some: --split, --difficulty")
            .into());
    }
    let tasks = tasks.split_off(n_played.min(tasks.len()));
    let options = PlayOptions {
        format: how.format,
        temperature: how.temperature,
        seed: how.seed,
        turn_tokens_max: how.turn_tokens_max,
        batch: BATCH,
        adapter,
    };
    let LoadedPolicy { decoder, tokenizer, template } = policy;
    let protocol = Protocol::new(tokenizer, template);
    let begun = Instant::now();
    let (episodes, error) = match play(world, &tasks, decoder, &protocol, &options, progress) {
        Ok(episodes) => (episodes, None),
        Err(EpisodeError::Environment(it)) => (it.finished, Some(it.error)),
        Err(error) => return Err(error.into()),
    };
    let tokens: usize = episodes.iter().flat_map(|it| &it.steps).map(|it| it.tokens.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a rate to three digits")]
    let tokens_per_s = tokens as f64 / begun.elapsed().as_secs_f64();
    let played = Played {
        environment: world.name().to_string(),
        plain: how.format == Format::Plain,
        horizon: world.horizon(),
        records: records(&episodes, how.format, world.horizon()),
        tokens_per_s,
    };
    Ok(Part { played, episodes, error })
}

/// The forecasts of some records: what was stated, or its estimate under a map.
pub(crate) fn forecasts(records: &[EpisodeRecord], map: Option<&RecalibrationMap>) -> Vec<Forecast> {
    let forecast = |it: &EpisodeRecord| {
        let stated = it.stated?;
        Some(match map {
            Some(map) => Forecast::of_estimate(map.apply(stated), it.success, it.task),
            None => Forecast::of_stated(stated, it.success, it.task),
        })
    };
    records.iter().filter_map(forecast).collect()
}

/// One row of a report.
pub(crate) fn row(policy: &str, played: &Played, map: Option<&RecalibrationMap>, file_bytes: Option<u64>) -> Row {
    let records = &played.records;
    let stated = forecasts(records, None);
    let (metrics, around) = (Metrics::of(&stated), intervals(&stated, &Bootstrap::REPORT));
    let sum = |of: fn(&EpisodeRecord) -> u32| records.iter().map(|it| u64::from(of(it))).sum::<u64>();
    let curve = reliability_curve(&stated, BINS).into_iter().map(|it| ReliabilityPoint {
        stated_mean: it.probability_mean,
        observed: it.observed,
        low: it.band.map_or(0.0, |it| it.low),
        high: it.band.map_or(1.0, |it| it.high),
        n: it.n,
    });
    let successes = records.iter().filter(|it| it.success).count();
    let share = |k, n| share(k, n).unwrap_or(Measured { value: 0.0, low: 0.0, high: 1.0 });
    Row {
        policy: policy.into(),
        environment: played.environment.clone(),
        n: records.len(),
        format: if played.plain { StepFormat::Plain } else { StepFormat::Foresight },
        adherence: self::share(sum(|it| it.steps_parsed), sum(|it| it.steps)),
        fidelity: (0..played.horizon).map(|it| fidelity(played, it)).collect(),
        success: share(successes as u64, records.len() as u64),
        base_rate: metrics.base_rate.unwrap_or(0.0),
        brier: measured(metrics.brier, around.brier),
        brier_constant: metrics.brier_constant,
        brier_skill: measured(metrics.brier_skill, around.brier_skill),
        auroc: measured(metrics.auroc, around.auroc),
        signed_gap: measured(metrics.signed_gap, around.signed_gap),
        estimate: map.map(|it| estimate(records, it)),
        reliability: curve.collect(),
        tokens_per_s: played.tokens_per_s,
        file_bytes,
    }
}

fn estimate(records: &[EpisodeRecord], map: &RecalibrationMap) -> EstimateMetrics {
    let estimates = forecasts(records, Some(map));
    let metrics = Metrics::of(&estimates);
    let around: MetricIntervals = intervals(&estimates, &Bootstrap::REPORT);
    EstimateMetrics {
        brier: measured(metrics.brier, around.brier),
        brier_skill: measured(metrics.brier_skill, around.brier_skill),
        auroc: measured(metrics.auroc, around.auroc),
        signed_gap: measured(metrics.signed_gap, around.signed_gap),
    }
}

/// Share of first rollouts whose state at a horizon came true; nothing where the policy does not imagine.
fn fidelity(played: &Played, horizon: usize) -> Option<Measured> {
    if played.plain {
        return None;
    }
    let truths: Vec<f64> = played.records.iter().filter_map(|it| it.fidelity.get(horizon).copied().flatten()).collect();
    share(truths.iter().filter(|it| **it > 0.5).count() as u64, truths.len() as u64)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn share(k: u64, n: u64) -> Option<Measured> {
    let around = wilson(k, n, CONFIDENCE)?;
    Some(Measured { value: k as f64 / n as f64, low: around.low, high: around.high })
}

fn measured(value: Option<f64>, around: Option<Interval>) -> Option<Measured> {
    let (value, around) = (value?, around?);
    Some(Measured { value, low: around.low, high: around.high })
}

fn text(evaluated: &Evaluated) -> String {
    let row = &evaluated.row;
    let shown = |name: &str, it: &Option<Measured>| match it {
        Some(it) => format!("{name:<22} {:>7.3}  [{:.3}, {:.3}]\n", it.value, it.low, it.high),
        None => format!("{name:<22} not defined\n"),
    };
    let mut text =
        format!("{} in {}, {} episodes, {:.0} tokens/s\n", row.policy, row.environment, row.n, row.tokens_per_s);
    text += &shown("success", &Some(row.success));
    if evaluated.success_when_found.is_some() {
        text += &shown("success when all found", &evaluated.success_when_found);
    }
    text += &shown("format adherence", &row.adherence);
    for (index, it) in row.fidelity.iter().enumerate() {
        text += &shown(&format!("fidelity at {}", index + 1), it);
    }
    text += &shown("Brier", &row.brier);
    text += &match row.brier_constant {
        Some(it) => format!("{:<22} {it:>7.3}\n", "Brier of base rate"),
        None => format!("{:<22} not defined\n", "Brier of base rate"),
    };
    text += &shown("Brier skill", &row.brier_skill);
    text += &shown("AUROC", &row.auroc);
    text += &shown("signed gap", &row.signed_gap);
    if let Some(estimate) = &row.estimate {
        text += "after the file's recalibration map:\n";
        text += &shown("Brier", &estimate.brier);
        text += &shown("Brier skill", &estimate.brier_skill);
        text += &shown("signed gap", &estimate.signed_gap);
    }
    text
}
