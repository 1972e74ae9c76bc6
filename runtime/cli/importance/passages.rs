//! What is read to observe a policy: its episodes, or windows of a text; and how much each token counts.

use std::path::Path;

use anyhow::Context;
use fsq_model::{Special, TokenId};

use crate::failure::Refusal;
use crate::policy;

/// Tokens of a window of a text.
const WINDOW_TOKENS: usize = 512;
/// How much the token counts after which a stated probability begins.
const STATED_WEIGHT: f32 = 5.0;
/// How much tokens of imagined states count.
const IMAGINED_WEIGHT: f32 = 2.0;

/// Tokens read from the beginning.
pub(super) struct Passage {
    pub(super) tokens: Vec<TokenId>,
    /// How much what follows each token matters, `[tokens]`; 0 where the policy does not write it.
    pub(super) weights: Vec<f32>,
}

/// A text in windows; a rest that is shorter is left out unless it is all there is.
pub(super) fn windows(file: &Path, path: &Path) -> anyhow::Result<Vec<Passage>> {
    let gguf = policy::open(file)?;
    let tokenizer = policy::tokenizer(&gguf)?;
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut tokens: Vec<TokenId> = bos.into_iter().collect();
    tokens.extend(tokenizer.encode(&text, Special::Escape));
    let dimensions = fsq_model::read_dimensions(&gguf).with_context(|| file.display().to_string())?;
    let window = WINDOW_TOKENS.min(dimensions.context).min(tokens.len());
    if window < 2 {
        return Err(Refusal::new(format!("{}: expected a text, found {window} tokens", path.display())).into());
    }
    let passage = |tokens: &[TokenId]| {
        let mut tokens = tokens.to_vec();
        tokens[0] = bos.unwrap_or(tokens[0]);
        let mut weights = vec![1.0; tokens.len()];
        weights[tokens.len() - 1] = 0.0;
        Passage { tokens, weights }
    };
    Ok(tokens.chunks_exact(window).map(passage).collect())
}

/// Episodes to be played.
pub(super) struct Asked {
    pub(super) world: crate::evaluate::World,
    pub(super) episodes: usize,
    pub(super) seed: u64,
    pub(super) plain: bool,
}

/// A policy's greedy episodes on tasks that no gate sees.
pub(super) fn episodes(
    file: &Path,
    asked: Asked,
    threads: usize,
    progress: &crate::progress::Progress,
) -> anyhow::Result<Vec<Passage>> {
    use crate::evaluate::{Plan, play_file};
    use fsq_environments::Split;
    use fsq_episodes::Format;
    let plan = Plan {
        world: asked.world,
        split: Split::Calibration,
        episodes: asked.episodes,
        seed: asked.seed,
        temperature: 0.0,
        format: if asked.plain { Format::Plain } else { Format::Foresight },
        kv: policy::Kv::F16,
    };
    progress.stage(format!("episodes in {}", asked.world.name()), asked.episodes as u64);
    let (_, episodes) = play_file(file, &plan, threads, &mut |it| progress.set(it as u64))?;
    progress.finish();
    let tokenizer = policy::tokenizer(&policy::open(file)?)?;
    Ok(episodes.into_iter().map(|it| passage(&tokenizer, it)).filter(|it| it.tokens.len() > 1).collect())
}

fn passage(tokenizer: &fsq_model::Tokenizer, episode: fsq_episodes::Episode) -> Passage {
    let mut weights = vec![0.0; episode.tokens.len()];
    for step in &episode.steps {
        let mut text = Vec::new();
        for token in step.tokens.clone() {
            let imagines = has(&text, b"<imaginary>") && !has(&text, b"</imaginary>");
            // What a token is predicted from counts, not the token.
            if let Some(weight) = token.checked_sub(1).and_then(|it| weights.get_mut(it)) {
                *weight = if imagines { IMAGINED_WEIGHT } else { 1.0 };
            }
            text.extend_from_slice(tokenizer.token_bytes(episode.tokens[token]).unwrap_or_default());
        }
        if let Some(weight) = step.confidence_at.and_then(|it| weights.get_mut(it.checked_sub(1)?)) {
            *weight = STATED_WEIGHT;
        }
    }
    Passage { tokens: episode.tokens, weights }
}

fn has(text: &[u8], tag: &[u8]) -> bool {
    text.windows(tag.len()).any(|it| it == tag)
}
