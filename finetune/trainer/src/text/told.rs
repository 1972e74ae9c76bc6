//! World-model blocks of which some is left out, at the same length: what a study's arms read in place of a block.
//!
//! Arms that differ in what their blocks say must read the same episodes for the same number of tokens, or their
//! difference is one of data. What is left out is replaced by filler words, a token each.

use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{FILLER, Piece, Script};
use crate::{TrainError, Vocabulary};

/// What is told of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// All but the odds.
    States,
    /// The plan's actions, and the state after the first of them.
    NextState,
    /// The plan's actions alone.
    Actions,
}

/// A block cut down to what is told, with as many filler words as make up for the rest.
///
/// The words are drawn from a stream beside that of `rng`, so that every cut leaves the same draws to what follows.
///
/// # Errors
/// When the tokenizer refuses, or knows no filler word as one token.
pub fn told(block: Script, told: Told, vocabulary: &Vocabulary, rng: &ChaCha8Rng) -> Result<Script, TrainError> {
    let length = |script: &Script| -> Result<usize, TrainError> {
        script.iter().map(|it| Ok(vocabulary.encode(&it.1)?.len())).sum()
    };
    let whole = length(&block)?;
    let odds = block.iter().position(|it| it.0 == Piece::Odds);
    let first_state = block.iter().position(|it| it.0 == Piece::State);
    let is_told = |index: usize, piece: Piece| match told {
        // The odds stand between their words.
        Told::States => odds.is_none_or(|at| index.abs_diff(at) > 1),
        Told::NextState | Told::Actions if matches!(piece, Piece::Plan | Piece::Settled) => true,
        Told::NextState => first_state.is_some_and(|at| index <= at),
        Told::Actions => false,
    };
    let mut kept: Script =
        block.into_iter().enumerate().filter(|(index, it)| is_told(*index, it.0)).map(|it| it.1).collect();
    let missing = whole - length(&kept)?;
    if missing > 0 {
        let settled = kept.iter().rposition(|it| it.0 == Piece::Settled).unwrap_or(kept.len());
        kept.insert(settled, (Piece::WorldModel, silence(missing, vocabulary, rng)?));
    }
    Ok(kept)
}

/// So many tokens that say nothing; the last is a blank.
fn silence(tokens: usize, vocabulary: &Vocabulary, rng: &ChaCha8Rng) -> Result<String, TrainError> {
    let mut words = Vec::with_capacity(FILLER.len());
    for word in FILLER {
        if vocabulary.encode(&format!(" {word}"))?.len() == 1 {
            words.push(word);
        }
    }
    let mut aside = rng.clone();
    aside.set_stream(u64::MAX);
    let mut text = String::new();
    for _ in 1..tokens {
        let word =
            words.choose(&mut aside).ok_or_else(|| TrainError::Tokenizer("no filler word is one token".into()))?;
        text += &format!(" {word}");
    }
    Ok(text + " ")
}
