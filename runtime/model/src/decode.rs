//! What decoding is, whoever does it: steps of sequences in, rows of logits out. Knows no weights.

use std::ops::Range;

use crate::ModelError;

/// One entry of the vocabulary.
pub type TokenId = u32;

/// One open sequence of a decoder. An identifier is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A place that an adapter was put in with [`crate::Decoder::set_adapter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u32);

/// After which of a step's tokens the next-token logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// After none: the step only extends the sequence.
    None,
    /// After the last one.
    Last,
    /// After every one.
    All,
}

/// Tokens that extend one sequence in one forward pass: a whole prompt, a piece of it, or one decoded token.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The sequence; at most one step of a batch names it.
    pub sequence: SequenceId,
    /// Appended to the sequence.
    pub tokens: &'a [TokenId],
    /// Which logits come back.
    pub logits: LogitsFor,
    /// The adapter that these tokens run under.
    pub adapter: Option<AdapterId>,
}

/// The logits of one forward pass, by step.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    vocab: usize,
    /// `[rows, vocab]`
    values: Vec<f32>,
    /// The rows of each step.
    steps: Vec<Range<usize>>,
}

impl Logits {
    /// Joins rows `[rows, vocab]` and which of them belong to each step.
    ///
    /// # Panics
    /// When a step's rows are not there.
    #[must_use]
    pub fn new(vocab: usize, values: Vec<f32>, steps: Vec<Range<usize>>) -> Self {
        assert!(steps.iter().all(|it| it.end * vocab <= values.len()), "rows of logits");
        Self { vocab, values, steps }
    }

    /// Entries of one row.
    #[must_use]
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// How many rows a step has: none, one, or one for each of its tokens.
    #[must_use]
    pub fn n_rows(&self, step: usize) -> usize {
        self.steps[step].len()
    }

    /// Row `row` of step `step`: `[vocab]`, the logits of what follows that step's token `row`
    /// (its only row when it asked for the last one).
    ///
    /// # Panics
    /// When the step did not ask for that row.
    #[must_use]
    pub fn row(&self, step: usize, row: usize) -> &[f32] {
        assert!(row < self.n_rows(step), "step {step} has {} rows of logits", self.n_rows(step));
        let start = (self.steps[step].start + row) * self.vocab;
        &self.values[start..start + self.vocab]
    }

    /// The logits after a step's last token: `[vocab]`.
    ///
    /// # Panics
    /// When the step asked for none.
    #[must_use]
    pub fn last(&self, step: usize) -> &[f32] {
        self.row(step, self.n_rows(step).wrapping_sub(1))
    }

    /// All rows of a step: `[n_rows, vocab]`.
    #[must_use]
    pub fn rows(&self, step: usize) -> &[f32] {
        let rows = &self.steps[step];
        &self.values[rows.start * self.vocab..rows.end * self.vocab]
    }
}

/// A decoder as generation, scoring and the engine see it; tests put a scripted one in its place.
pub trait Decode {
    /// Entries of the vocabulary.
    fn vocab(&self) -> usize;
    /// Longest sequence, in tokens.
    fn context_tokens(&self) -> usize;
    /// Sequences that fit beside each other at full length.
    fn max_sequences(&self) -> usize;
    /// Tokens of one KV page, the unit in which memory is handed out.
    fn page_tokens(&self) -> usize;
    /// Pages that no sequence holds; what is kept in them gives way to whoever needs one.
    fn free_pages(&self) -> usize;
    /// Pages that a sequence takes from the free ones when it grows by so many tokens.
    fn pages_to_grow(&self, sequence: SequenceId, n_tokens: usize) -> usize {
        let held = self.tokens(sequence).map_or(0, <[_]>::len);
        (held + n_tokens).div_ceil(self.page_tokens()) - held.div_ceil(self.page_tokens())
    }
    /// Opens an empty sequence.
    fn open_sequence(&mut self) -> SequenceId;
    /// Opens a sequence with the same tokens. Pages are shared until one of the sequences writes into one.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`].
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, ModelError>;
    /// Makes an open sequence hold the first `len` tokens of another, whatever it held before. Pages are shared as
    /// after a fork.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`] for either of them.
    fn share(&mut self, from: SequenceId, to: SequenceId, len: usize) -> Result<(), ModelError>;
    /// Whether what one sequence ran may serve another. False while every token counts, as where it is observed.
    fn reuses(&self) -> bool {
        true
    }
    /// Keeps the whole pages of a sequence for those whose text begins with the same tokens and runs under the same
    /// adapter, until memory is needed.
    fn keep(&mut self, _sequence: SequenceId) {}
    /// Extends a sequence by pages that are kept for a text which begins as the sequence does, at most by all but the
    /// text's last token. Returns how many tokens the sequence holds then.
    fn adopt(&mut self, sequence: SequenceId, _text: &[TokenId], _adapter: Option<AdapterId>) -> usize {
        self.tokens(sequence).map_or(0, <[_]>::len)
    }
    /// Closes a sequence and frees its pages; closing it again does nothing.
    fn close(&mut self, sequence: SequenceId);
    /// Forgets all tokens after the first `len`.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`]; a `len` beyond the end changes nothing.
    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<(), ModelError>;
    /// The tokens of a sequence; `None` when it is not open.
    fn tokens(&self, sequence: SequenceId) -> Option<&[TokenId]>;
    /// Extends every named sequence by its step, all in one pass. On an error no sequence has changed.
    ///
    /// # Errors
    /// [`ModelError::UnknownSequence`], [`ModelError::ContextFull`], [`ModelError::OutOfPages`],
    /// [`ModelError::UnknownToken`], [`ModelError::UnknownAdapter`], [`ModelError::SequenceTwice`],
    /// [`ModelError::EmptyStep`], [`ModelError::Device`].
    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Logits, ModelError>;
}

impl<D: Decode> Decode for &mut D {
    fn vocab(&self) -> usize {
        (**self).vocab()
    }
    fn context_tokens(&self) -> usize {
        (**self).context_tokens()
    }
    fn max_sequences(&self) -> usize {
        (**self).max_sequences()
    }
    fn page_tokens(&self) -> usize {
        (**self).page_tokens()
    }
    fn free_pages(&self) -> usize {
        (**self).free_pages()
    }
    fn pages_to_grow(&self, sequence: SequenceId, n_tokens: usize) -> usize {
        (**self).pages_to_grow(sequence, n_tokens)
    }
    fn open_sequence(&mut self) -> SequenceId {
        (**self).open_sequence()
    }
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, ModelError> {
        (**self).fork(sequence)
    }
    fn share(&mut self, from: SequenceId, to: SequenceId, len: usize) -> Result<(), ModelError> {
        (**self).share(from, to, len)
    }
    fn reuses(&self) -> bool {
        (**self).reuses()
    }
    fn keep(&mut self, sequence: SequenceId) {
        (**self).keep(sequence);
    }
    fn adopt(&mut self, sequence: SequenceId, text: &[TokenId], adapter: Option<AdapterId>) -> usize {
        (**self).adopt(sequence, text, adapter)
    }
    fn close(&mut self, sequence: SequenceId) {
        (**self).close(sequence);
    }
    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<(), ModelError> {
        (**self).truncate(sequence, len)
    }
    fn tokens(&self, sequence: SequenceId) -> Option<&[TokenId]> {
        (**self).tokens(sequence)
    }
    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Logits, ModelError> {
        (**self).forward(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_step() {
        let logits = Logits::new(2, (0..8).map(|it| it as f32).collect(), vec![0..1, 0..0, 1..4]);
        assert_eq!(logits.last(0), [0.0, 1.0]);
        assert_eq!(logits.n_rows(1), 0);
        assert_eq!(logits.row(2, 0), [2.0, 3.0]);
        assert_eq!(logits.last(2), [6.0, 7.0]);
        assert_eq!(logits.rows(2), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }
}
