//! Conversations to compare two policies on: episodes that the reference plays in an environment.

use std::path::Path;

use fsq_environments::Split;
use fsq_episodes::{Episode, Format};

use super::passages::Passage;
use crate::evaluate::{Plan, World, play_file};
use crate::policy::Kv;
use crate::progress::Progress;

/// Episodes to be played.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) world: World,
    pub(super) episodes: usize,
    pub(super) seed: u64,
    /// Without foresight.
    pub(super) plain: bool,
}

/// The reference's greedy episodes on held-out tasks. What it wrote is judged, and where it states a probability both
/// will be asked for theirs.
pub(super) fn passages(
    reference: &Path,
    asked: Asked,
    threads: usize,
    progress: &Progress,
) -> anyhow::Result<Vec<Passage>> {
    let Asked { world, episodes, seed, plain } = asked;
    let format = if plain { Format::Plain } else { Format::Foresight };
    let plan = Plan { world, split: Split::Test, episodes, seed, temperature: 0.0, format, kv: Kv::F16 };
    progress.stage(format!("the reference's episodes in {}", world.name()), episodes as u64);
    let (_, episodes) = play_file(reference, &plan, threads, &mut |it| progress.set(it as u64))?;
    progress.finish();
    Ok(episodes.into_iter().map(passage).filter(|it| !it.judged.is_empty()).collect())
}

fn passage(episode: Episode) -> Passage {
    let written = episode.steps.iter().flat_map(|it| it.tokens.clone());
    Passage {
        judged: written.map(|token| token - 1).collect(),
        stated_at: episode.steps.iter().filter_map(|it| it.confidence_at).collect(),
        task: episode.task_id,
        tokens: episode.tokens,
    }
}
