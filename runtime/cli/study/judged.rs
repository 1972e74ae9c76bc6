//! Plays a trained policy on the held-out instances and keeps what each episode showed.

use std::path::Path;

use anyhow::Context;
use fsq_checkpoint::Checkpoint;
use fsq_environments::{Countdown, DagMath, DocHop, Environment, SlipGrid, Split};
use fsq_episodes::{Episode, Format, PlayOptions, PlayedStep, Protocol, play, play_from};
use fsq_model::{LoadedPolicy, TokenId};
use fsq_quantizer::{Mix, Plan, Provenance, quantize};
use sha2::{Digest, Sha256};

use super::results::{After, Played, Row, marked};
use crate::evaluate::{BATCH, TURN_TOKENS_MAX, World, load};
use crate::output;
use crate::policy::Kv;

/// Seed of the held-out instances: the same for every arm and seed, so that all comparisons are paired.
const INSTANCES_SEED: u64 = 1;
/// DagMath's difficulties.
const OPERATIONS: [&str; 5] = ["2 operations", "3 operations", "4 operations", "5 operations", "6 operations"];
/// Stated probabilities are kept to so many parts.
const PARTS: f64 = 10_000.0;

/// What to play.
#[derive(Clone, Copy)]
pub(super) struct Judging {
    pub(super) world: World,
    pub(super) instances: usize,
    pub(super) format: Format,
    pub(super) after: After,
    /// Whether to play a second time on the imagined futures of other instances.
    pub(super) shuffles: bool,
}

/// A policy in 16 bits, in a file that is gone afterwards.
pub(super) fn loaded(merged: &Path, folder: &Path, threads: usize) -> anyhow::Result<LoadedPolicy> {
    let checkpoint = Checkpoint::open(merged)?;
    output::make_folder(folder)?;
    let work = tempfile::tempdir_in(folder).with_context(|| folder.display().to_string())?;
    let path = work.path().join("policy-F16.gguf");
    let provenance = Provenance::of(concat!("fsq ", env!("CARGO_PKG_VERSION")), &checkpoint, &[], None)?;
    let encoded = quantize(&checkpoint, &[], &Plan::new(Mix::F16), None, &provenance, &path, &mut |_, _| ())?;
    encoded.draft.publish()?;
    load(&path, threads, Kv::F16)
}

/// Plays; the second result is there where the episodes were also played on shuffled futures.
pub(super) fn judged(
    policy: &mut LoadedPolicy,
    judging: &Judging,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Played>> {
    match judging.world {
        World::Countdown => judged_in(&Countdown, &["several ways", "one way"], policy, judging, progress),
        World::Dochop => judged_in(&DocHop, &["1 hop", "2 hops"], policy, judging, progress),
        World::Dagmath => judged_in(&DagMath, &OPERATIONS, policy, judging, progress),
        World::Slipgrid => judged_in(&SlipGrid, &["slip 10", "slip 20", "slip 30"], policy, judging, progress),
    }
}

fn judged_in<E: Environment>(
    world: &E,
    difficulties: &[&str],
    policy: &mut LoadedPolicy,
    judging: &Judging,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Played>> {
    let tasks = world.tasks(Split::Test, INSTANCES_SEED, judging.instances);
    let options = PlayOptions {
        format: judging.format,
        temperature: 0.0,
        seed: INSTANCES_SEED,
        turn_tokens_max: TURN_TOKENS_MAX,
        batch: BATCH,
        adapter: None,
    };
    let LoadedPolicy { decoder, tokenizer, template } = policy;
    let protocol = Protocol::new(tokenizer, template);
    let episodes = play(world, &tasks, decoder, &protocol, &options, progress)?;
    let donors = donors(&episodes);
    let imagined: Vec<&[PlayedStep]> = episodes.iter().map(|it| &*it.steps).collect();
    let played = |after: After, episodes: &[Episode]| -> anyhow::Result<Played> {
        let mut rows = Vec::with_capacity(episodes.len());
        for (index, (task, episode)) in tasks.iter().zip(episodes).enumerate() {
            let donor = donors[index].and_then(|it| imagined.get(it)?.first());
            let mut row = row(world, task, episode, judging.format, difficulties)?;
            if after != After::Shuffled && judging.format == Format::Foresight {
                row.3 = marked(&shuffled_fidelity(world, task, episode, donor));
            }
            rows.push(row);
        }
        Ok(Played {
            after,
            environment: E::NAME.into(),
            horizon: E::HORIZON,
            difficulties: difficulties.iter().map(|it| (*it).to_string()).collect(),
            instances: digest_of(tasks.iter().map(|it| world.task_id(it))),
            n: rows.len(),
            rows,
        })
    };
    let mut results = vec![played(judging.after, &episodes)?];
    if judging.shuffles && judging.format == Format::Foresight {
        let openings = openings(&episodes, &donors);
        let forced = play_from(world, &tasks, &openings, decoder, &protocol, &options, progress)?;
        results.push(played(After::Shuffled, &forced)?);
    }
    Ok(results)
}

/// For each episode another one whose first turn imagines something: the next such one, half the list further on.
fn donors(episodes: &[Episode]) -> Vec<Option<usize>> {
    let n = episodes.len();
    let imagines = |index: &usize| episodes[*index].steps.first().is_some_and(|it| it.foresight.is_some());
    let far = |index: usize| (0..n).map(move |it| (index + n / 2 + it) % n).filter(move |it| *it != index);
    (0..n).map(|index| far(index).find(imagines)).collect()
}

/// The world-model spans of the donors' turns; where a donor had fewer turns, its last.
fn openings(episodes: &[Episode], donors: &[Option<usize>]) -> Vec<Vec<Vec<TokenId>>> {
    let turns_max = episodes.iter().map(|it| it.steps.len()).max().unwrap_or(0);
    let span = |episode: &Episode, step: &PlayedStep| -> Option<Vec<TokenId>> {
        // Behind the number stands its closing tag.
        let end = step.confidence_at.filter(|_| step.foresight.is_some())? + 2;
        Some(episode.tokens[step.tokens.start..end].to_vec())
    };
    let of = |donor: &Option<usize>| {
        let Some(donor) = donor.map(|it| &episodes[it]) else { return Vec::new() };
        let own: Vec<Vec<TokenId>> = donor.steps.iter().map_while(|it| span(donor, it)).collect();
        (0..turns_max).filter_map(|it| own.get(it).or(own.last()).cloned()).collect()
    };
    donors.iter().map(of).collect()
}

fn row<E: Environment>(
    world: &E,
    task: &E::Task,
    episode: &Episode,
    format: Format,
    difficulties: &[&str],
) -> anyhow::Result<Row> {
    let found = world.difficulty(task);
    let place = difficulties.iter().position(|it| *it == found);
    let place = place.with_context(|| format!("difficulty `{found}`: expected {difficulties:?}"))?;
    let stated = episode.steps.first().and_then(PlayedStep::stated);
    let record = episode.record(format, E::HORIZON);
    Ok(Row(
        u8::from(episode.success),
        stated.map(|it| (it.value() * PARTS).round() / PARTS),
        if format == Format::Foresight { marked(&episode.fidelity(E::HORIZON)) } else { String::new() },
        String::new(),
        record.steps,
        record.steps_parsed,
        record.tokens,
        u8::try_from(place)?,
    ))
}

/// What [`Episode::fidelity`] would be of another instance's rollout.
fn shuffled_fidelity<E: Environment>(
    world: &E,
    task: &E::Task,
    episode: &Episode,
    donor: Option<&PlayedStep>,
) -> Vec<Option<bool>> {
    let start = world.start(task);
    let (mut state, mut path) = (start.clone(), Vec::new());
    for action in episode.steps.iter().filter_map(|it| it.action.clone()) {
        let Ok(next) = world.step(task, &state, &action) else { break };
        state = next.clone();
        path.push((action, next));
    }
    let truth = world.lines(task, &start, &path);
    let imagined = donor.and_then(|it| it.foresight.as_ref()).map_or(&[][..], |it| &it.imaginary);
    let is_broken = episode.steps.iter().any(|it| it.fault.is_some());
    let at = |h: usize| match truth.get(h) {
        Some(line) => {
            let said = imagined.get(h).map_or("", |it| world.state_of_line(it));
            Some(said == world.state_of_line(line))
        }
        None => is_broken.then_some(false),
    };
    (0..E::HORIZON).map(at).collect()
}

fn digest_of(numbers: impl Iterator<Item = u64>) -> String {
    let mut hash = Sha256::new();
    numbers.for_each(|it| hash.update(it.to_le_bytes()));
    hash.finalize().iter().take(8).map(|it| format!("{it:02x}")).collect()
}
