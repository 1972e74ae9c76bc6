//! The two sides of a comparison: a policy that runs, or what was saved of one; and the walk over both.

use std::ops::Range;
use std::path::Path;

use anyhow::Context;
use fsq_calibrate::StatedDistribution;
use fsq_calibrate::divergence::TokenDivergence;
use fsq_calibrate::shift::StatedPair;
use fsq_gguf::Gguf;
use fsq_kernels::Cpu;
use fsq_model::{Decoder, DecoderOptions, KvFormat, LogitsFor, SequenceId, Step, Tokenizer};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::passages::Passage;
use crate::failure::Refusal;
use crate::output::hex;
use crate::policy;

/// Tokens of one forward pass where no logits are wanted.
const READ_TOKENS: usize = 512;
/// The passage, and room for the 21 grid answers that branch off it. Memory is taken as it is used.
const SEQUENCES: usize = 24;

/// Where the numbers of one side come from. The passages are walked in order, the pieces of each in order, and what
/// is stated is asked for last.
pub(super) trait Side {
    /// Entries of a row.
    fn vocab(&self) -> usize;
    /// Logits after the places of a piece of a passage: `[places, vocab]`.
    fn rows(&mut self, passage: &Passage, piece: &Range<usize>) -> anyhow::Result<Vec<f32>>;
    /// What is stated at the passage's places; ends the passage.
    fn stated(&mut self, passage: &Passage) -> anyhow::Result<Vec<Option<StatedDistribution>>>;
}

/// A policy on this machine.
pub(super) struct Running {
    decoder: Decoder<Cpu>,
    pub(super) tokenizer: Tokenizer,
    #[cfg(feature = "train")]
    answers: fsq_episodes::GridAnswers,
    sequence: Option<SequenceId>,
}

impl Running {
    /// Loads a file for texts of at most `context_tokens`.
    pub(super) fn load(file: &Path, threads: usize, context_tokens: usize) -> anyhow::Result<Self> {
        let gguf = policy::open(file)?;
        let options = DecoderOptions { threads, context_tokens, kv: KvFormat::F16, max_sequences: SEQUENCES };
        let decoder = Decoder::load(&gguf, options).with_context(|| file.display().to_string())?;
        let tokenizer = policy::tokenizer(&gguf)?;
        #[cfg(feature = "train")]
        let answers = fsq_episodes::GridAnswers::new(&tokenizer);
        Ok(Self {
            decoder,
            tokenizer,
            #[cfg(feature = "train")]
            answers,
            sequence: None,
        })
    }

    /// Extends the passage's sequence up to `end` tokens, with logits or without.
    fn read(&mut self, passage: &Passage, end: usize, logits: LogitsFor) -> anyhow::Result<fsq_model::Logits> {
        let sequence = self.sequence();
        let held = self.decoder.tokens(sequence).map_or(0, <[_]>::len);
        let tokens = passage.tokens.get(held..end).unwrap_or_default();
        Ok(self.decoder.forward(&[Step { sequence, tokens, logits, adapter: None }])?)
    }

    fn sequence(&mut self) -> SequenceId {
        *self.sequence.get_or_insert_with(|| self.decoder.open_sequence())
    }

    fn held(&mut self) -> usize {
        let sequence = self.sequence();
        self.decoder.tokens(sequence).map_or(0, <[_]>::len)
    }
}

impl Side for Running {
    fn vocab(&self) -> usize {
        self.decoder.config().vocab
    }

    fn rows(&mut self, passage: &Passage, piece: &Range<usize>) -> anyhow::Result<Vec<f32>> {
        let places = &passage.judged[piece.clone()];
        let (first, last) = (places[0], places[places.len() - 1]);
        while self.held() < first {
            let end = first.min(self.held() + READ_TOKENS);
            self.read(passage, end, LogitsFor::None)?;
        }
        let logits = self.read(passage, last + 1, LogitsFor::All)?;
        Ok(places.iter().flat_map(|it| logits.row(0, it - first)).copied().collect())
    }

    #[cfg(feature = "train")]
    fn stated(&mut self, passage: &Passage) -> anyhow::Result<Vec<Option<StatedDistribution>>> {
        let sequence = self.sequence();
        let places: Vec<(SequenceId, usize)> = passage.stated_at.iter().map(|it| (sequence, *it)).collect();
        let mut stated = Vec::with_capacity(places.len());
        for place in places {
            // One after the other: each takes a branch of the sequence.
            stated.extend(self.answers.read(&mut self.decoder, &[place], None)?);
        }
        self.decoder.close(sequence);
        self.sequence = None;
        Ok(stated)
    }

    #[cfg(not(feature = "train"))]
    fn stated(&mut self, passage: &Passage) -> anyhow::Result<Vec<Option<StatedDistribution>>> {
        let sequence = self.sequence();
        self.decoder.close(sequence);
        self.sequence = None;
        match passage.stated_at.is_empty() {
            true => Ok(Vec::new()),
            false => Err(Refusal::new("these logits are of an environment, which is not in this build").into()),
        }
    }
}

/// What a comparison is made of, place by place.
#[derive(Default)]
pub(super) struct Compared {
    pub(super) tokens: Vec<TokenDivergence>,
    pub(super) stated: Vec<StatedPair>,
}

/// Walks over the passages with both sides.
pub(super) fn compare(
    reference: &mut dyn Side,
    candidate: &mut dyn Side,
    passages: &[Passage],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Compared> {
    let mut compared = Compared::default();
    for passage in passages {
        for piece in passage.pieces() {
            let (p, q) = (reference.rows(passage, &piece)?, candidate.rows(passage, &piece)?);
            compared.tokens.extend(judge(&p, &q, &passage.following(&piece))?);
            progress(compared.tokens.len());
        }
        let both = reference.stated(passage)?.into_iter().zip(candidate.stated(passage)?);
        let pair = |(reference, candidate): (Option<_>, Option<_>)| {
            Some(StatedPair { cluster: passage.task, reference: reference?, candidate: candidate? })
        };
        compared.stated.extend(both.filter_map(pair));
    }
    Ok(compared)
}

/// Compares rows of both, `[tokens, vocab]` each.
fn judge(reference: &[f32], candidate: &[f32], following: &[usize]) -> anyhow::Result<Vec<TokenDivergence>> {
    let vocab = reference.len() / following.len().max(1);
    let rows = reference.par_chunks_exact(vocab).zip(candidate.par_chunks_exact(vocab)).zip(following);
    let judged: Option<Vec<_>> = rows.map(|((p, q), next)| TokenDivergence::of(p, q, *next)).collect();
    judged.ok_or_else(|| Refusal::new("a policy gives logits that are not finite: nothing can be compared").into())
}

/// SHA-256 over the bytes of every token, in order of their ids.
pub(super) fn vocabulary_sha256(tokenizer: &Tokenizer) -> String {
    let mut digest = Sha256::new();
    for token in (0..).take(tokenizer.vocab()) {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    }
    hex(&digest.finalize())
}

/// Refuses two vocabularies of which the same token would mean two things.
pub(super) fn check_vocabularies(reference: &Running, candidate: &Running) -> anyhow::Result<()> {
    let (left, right) = (&reference.tokenizer, &candidate.tokenizer);
    let sizes = [left.vocab(), right.vocab()];
    let found = if sizes[0] != sizes[1] {
        format!("{} tokens in one and {} in the other", sizes[0], sizes[1])
    } else if reference.vocab() != candidate.vocab() {
        format!("{} logits in one and {} in the other", reference.vocab(), candidate.vocab())
    } else {
        let differs = |it: &u32| left.token_bytes(*it) != right.token_bytes(*it);
        let Some(token) = (0..).take(sizes[0]).find(differs) else { return Ok(()) };
        let text = |it: &Tokenizer| String::from_utf8_lossy(it.token_bytes(token).unwrap_or_default()).into_owned();
        format!("token {token} is {:?} in one and {:?} in the other", text(left), text(right))
    };
    let refusal = Refusal::new(format!("the vocabularies differ: {found}"));
    Err(refusal.hint("policies can be compared where both come from the same base").into())
}

/// The longest text that a file's policy reads.
pub(super) fn context_of(gguf: &Gguf) -> anyhow::Result<usize> {
    let dimensions = fsq_model::read_dimensions(gguf).with_context(|| gguf.path().display().to_string())?;
    Ok(dimensions.context)
}
