//! The steps of one forward pass as rows of one matrix. Knows no weights.

use std::ops::Range;

use fsq_kernels::{Slot, Span};

use crate::pages::{Claim, Pages, slot};
use crate::{AdapterId, LogitsFor, Step, TokenId};

/// The rows of a batch and which of them run under which adapter.
pub(crate) struct Rows {
    pub(crate) n: usize,
    pub(crate) adapters: Vec<(AdapterId, Range<usize>)>,
}

/// Steps in the order in which they run: those of one adapter beside each other.
pub(crate) struct Batch<'a> {
    pub(crate) steps: Vec<Step<'a>>,
    /// Of each step: its place in the caller's list, its first row, and its sequence's length before it.
    places: Vec<(usize, usize, usize)>,
    /// `[rows]`
    pub(crate) tokens: Vec<TokenId>,
    /// Rows after which logits are wanted.
    pub(crate) logit_rows: Vec<usize>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(steps: &[Step<'a>], pages: &Pages) -> Self {
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|it| steps[*it].adapter);
        let mut batch = Self { steps: Vec::new(), places: Vec::new(), tokens: Vec::new(), logit_rows: Vec::new() };
        for index in order {
            let step = steps[index];
            let first = batch.tokens.len();
            batch.tokens.extend_from_slice(step.tokens);
            let wanted = match step.logits {
                LogitsFor::None => first..first,
                LogitsFor::Last => batch.tokens.len() - 1..batch.tokens.len(),
                LogitsFor::All => first..batch.tokens.len(),
            };
            batch.logit_rows.extend(wanted);
            batch.places.push((index, first, pages.tokens(step.sequence).map_or(0, <[_]>::len)));
            batch.steps.push(step);
        }
        batch
    }

    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        let of_step = |(step, place): (&Step<'_>, &(usize, usize, usize))| place.2..place.2 + step.tokens.len();
        self.steps.iter().zip(&self.places).flat_map(of_step)
    }

    pub(crate) fn spans<'c>(&self, claim: &'c Claim) -> Vec<Span<'c>> {
        let span = |(index, (_, first_token, position)): (usize, &(usize, usize, usize))| Span {
            first_token: *first_token,
            n_tokens: self.steps[index].tokens.len(),
            position: *position,
            pages: claim.table(index),
        };
        self.places.iter().enumerate().map(span).collect()
    }

    pub(crate) fn slots(&self, claim: &Claim) -> Vec<Slot> {
        let of_step = |(index, place): (usize, &(usize, usize, usize))| {
            let positions = place.2..place.2 + self.steps[index].tokens.len();
            positions.map(move |it| slot(claim.table(index), it)).collect::<Vec<_>>()
        };
        self.places.iter().enumerate().flat_map(of_step).collect()
    }

    /// All rows.
    pub(crate) fn rows(&self) -> Rows {
        let sizes = self.steps.iter().map(|it| (it.adapter, it.tokens.len()));
        Rows { n: self.tokens.len(), adapters: adapter_ranges(sizes) }
    }

    /// The rows with logits, once only those are left.
    pub(crate) fn kept_rows(&self) -> Rows {
        let sizes = self.steps.iter().map(|it| (it.adapter, n_logits(it)));
        Rows { n: self.logit_rows.len(), adapters: adapter_ranges(sizes) }
    }

    /// The rows of logits of each step, in the caller's order.
    pub(crate) fn logit_rows_by_input(&self) -> Vec<Range<usize>> {
        let mut rows = vec![0..0; self.steps.len()];
        let mut start = 0;
        for (step, place) in self.steps.iter().zip(&self.places) {
            rows[place.0] = start..start + n_logits(step);
            start += n_logits(step);
        }
        rows
    }
}

fn n_logits(step: &Step<'_>) -> usize {
    match step.logits {
        LogitsFor::None => 0,
        LogitsFor::Last => 1,
        LogitsFor::All => step.tokens.len(),
    }
}

/// Joins neighbouring rows of one adapter; rows without one are left out.
fn adapter_ranges(sizes: impl Iterator<Item = (Option<AdapterId>, usize)>) -> Vec<(AdapterId, Range<usize>)> {
    let mut ranges: Vec<(AdapterId, Range<usize>)> = Vec::new();
    let mut start = 0;
    for (adapter, n) in sizes {
        let rows = start..start + n;
        start = rows.end;
        match (adapter, ranges.last_mut()) {
            (Some(adapter), Some((last, range))) if *last == adapter && range.end == rows.start => range.end = rows.end,
            (Some(adapter), _) if n > 0 => ranges.push((adapter, rows)),
            _ => {}
        }
    }
    ranges
}
