//! How much each matrix matters: the divergence of the policy in which it alone is rounded.

use anyhow::Context;
use fsq_blocks::Format;
use fsq_calibrate::divergence::{Divergence, TokenDivergence};
use fsq_gguf::{Gguf, TensorView};
use fsq_kernels::Cpu;
use fsq_model::{Decoder, DecoderOptions, LogitsFor, Step};
use fsq_quantizer::{Importance, probe};
use rayon::prelude::*;
use serde::Serialize;

use super::passages::Passage;
use crate::failure::Refusal;
use crate::progress::Progress;

/// Tokens judged for each matrix: their mean divergence is known to some percent.
const JUDGED_TOKENS: usize = 6000;

/// What was measured of one matrix.
#[derive(Serialize)]
pub(super) struct Measured {
    pub(super) tensor: String,
    /// The format that it alone was rounded to.
    format: &'static str,
    /// The share of its outputs' mean square that is off then.
    error: f64,
    /// The mean divergence of the policy, in nats a token, by the tokens' weights.
    divergence: f64,
    /// Nats for a share of one.
    pub(super) weight: f64,
}

/// Rounds one matrix after another in a copy of the file's bytes.
pub(super) fn measure(
    gguf: &Gguf,
    importance: &Importance,
    passages: &[Passage],
    options: DecoderOptions,
    progress: &Progress,
) -> anyhow::Result<Vec<Measured>> {
    let [part] = gguf.parts() else {
        return Err(Refusal::new(format!("{}: expected one file, found a split one", gguf.path().display())).into());
    };
    let path = gguf.path().display().to_string();
    let passages = some(passages);
    let mut reference = Decoder::load(gguf, options).with_context(|| path.clone())?;
    let expected = logits(&mut reference, &passages)?;
    drop(reference);
    let tensors: Vec<TensorView<'_>> = gguf.views().filter(|it| it.shape.len() == 2 && rounds(it)).collect();
    progress.stage("matrices", tensors.len() as u64);
    let data_start = part.bytes().len() - part.data().len();
    let mut bytes = part.bytes().to_vec();
    let mut measured = Vec::with_capacity(tensors.len());
    for (index, view) in tensors.iter().enumerate() {
        progress.set(index as u64);
        let format = if view.cols().is_multiple_of(256) { Format::Q3_K } else { Format::Q4_0 };
        let probed = probe(view.name, view.cols(), &view.to_f32(), format, importance)?;
        let offset = gguf.tensors().iter().find(|it| it.name == view.name).map_or(0, |it| it.offset);
        let place = data_start + offset..data_start + offset + view.bytes.len();
        view.format.encode(&probed.decoded, None, &mut bytes[place.clone()]);
        let mut rounded = Decoder::load(&Gguf::from_named_bytes(&path, &bytes)?, options)?;
        bytes[place].copy_from_slice(view.bytes);
        let divergence = divergence(&expected, &logits(&mut rounded, &passages)?, &passages)?;
        let weight = if probed.error > 0.0 { divergence / probed.error } else { 0.0 };
        let (tensor, format) = (view.name.to_owned(), format.name());
        measured.push(Measured { tensor, format, error: probed.error, divergence, weight });
    }
    progress.finish();
    Ok(measured)
}

/// Whether a matrix is one that can be rounded, and was not yet.
fn rounds(view: &TensorView<'_>) -> bool {
    view.format.block_weights() == 1 && view.cols().is_multiple_of(32) && !view.name.ends_with("ffn_gate_inp.weight")
}

/// Passages, evenly spread, in which enough tokens are judged.
fn some(passages: &[Passage]) -> Vec<&Passage> {
    let judged = |it: &Passage| it.weights.iter().filter(|it| **it > 0.0).count();
    let all: usize = passages.iter().map(judged).sum();
    let every = all.div_ceil(JUDGED_TOKENS).max(1);
    passages.iter().step_by(every).collect()
}

/// Logits after every token of every passage, `[tokens, vocabulary]` each.
fn logits(decoder: &mut Decoder<Cpu>, passages: &[&Passage]) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut all = Vec::with_capacity(passages.len());
    for passage in passages {
        let sequence = decoder.open_sequence();
        let step = Step { sequence, tokens: &passage.tokens, logits: LogitsFor::All, adapter: None };
        all.push(decoder.forward(&[step])?.rows(0).to_vec());
        decoder.close(sequence);
    }
    Ok(all)
}

/// The mean divergence by the tokens' weights.
fn divergence(expected: &[Vec<f32>], found: &[Vec<f32>], passages: &[&Passage]) -> anyhow::Result<f64> {
    let of_passage = |((expected, found), passage): ((&Vec<f32>, &Vec<f32>), &&Passage)| -> Option<(f64, f64)> {
        let vocab = expected.len() / passage.tokens.len();
        let mut sums = (0.0, 0.0);
        for (place, weight) in passage.weights.iter().enumerate().filter(|it| *it.1 > 0.0) {
            let row = |it: &[f32]| it[place * vocab..(place + 1) * vocab].to_vec();
            let next = *passage.tokens.get(place + 1)? as usize;
            let token = TokenDivergence::of(&row(expected), &row(found), next)?;
            let nats = Divergence::of(&[token])?.kl_mean;
            sums = (sums.0 + f64::from(*weight) * nats, sums.1 + f64::from(*weight));
        }
        Some(sums)
    };
    let pairs = expected.par_iter().zip(found).zip(passages);
    let sums: Option<Vec<(f64, f64)>> = pairs.map(of_passage).collect();
    let sums = sums.ok_or_else(|| Refusal::new("the policy gives logits that are not finite"))?;
    let (nats, weights) = sums.iter().fold((0.0, 0.0), |all, it| (all.0 + it.0, all.1 + it.1));
    Ok(if weights > 0.0 { nats / weights } else { 0.0 })
}
