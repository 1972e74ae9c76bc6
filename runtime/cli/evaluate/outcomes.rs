//! What was stated in episodes and how they ended, as rows that `fsq calibrate` reads.

use fsq_episodes::Episode;
use serde::Serialize;

use super::Played;
use crate::output::Draft;

/// One step that stated something.
#[derive(Serialize)]
struct Row<'a> {
    stated: f64,
    outcome: u8,
    /// The task.
    cluster: u64,
    environment: &'a str,
    /// From 0.
    step: usize,
    difficulty: &'a str,
    /// Of the first step's rollout, as the gates read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fidelity: Option<Vec<Option<u8>>>,
}

/// Writes a row for every step that stated something, episode by episode, and gives the file its name.
///
/// # Errors
/// Names the file. Nothing is left behind then.
pub(super) fn write(mut draft: Draft<'_>, played: &Played, episodes: &[Episode]) -> anyhow::Result<()> {
    for episode in episodes {
        for (index, step) in episode.steps.iter().enumerate() {
            let Some(stated) = step.stated() else { continue };
            let truths = || episode.fidelity(played.horizon).into_iter().map(|it| it.map(u8::from)).collect();
            let row = Row {
                stated: stated.value(),
                outcome: u8::from(episode.success),
                cluster: episode.task_id,
                environment: &played.environment,
                step: index,
                difficulty: &episode.difficulty,
                fidelity: (index == 0).then(truths),
            };
            draft.write((serde_json::to_string(&row)? + "\n").as_bytes())?;
        }
    }
    draft.publish()
}
