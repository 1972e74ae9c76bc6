//! Drafts of what comes next, looked up in what was written: free guesses, of which one pass checks several.
//!
//! A policy that says what will happen repeats the state that it was told, again and again. Where the last few tokens
//! stood before, what followed them then may follow now (Saxena 2023, prompt lookup decoding). Knows no weights.

use crate::engine::{Engine, EngineEvent};
use crate::scheduler::Planned;
use crate::{Decode, Logits, RequestId, TokenId};

/// Tokens that must have stood somewhere before, for what followed them there to be a draft; more tell more.
const RUNS: [usize; 3] = [4, 3, 2];
/// Tokens of a draft at most.
const LONGEST: usize = 12;
/// Passes without a draft at most, after drafts of which nothing came true.
const REST_MAX: u32 = 16;

/// How far one request's drafts are trusted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drafting {
    n_max: usize,
    /// Passes without a draft, and how many of them are left.
    rest: (u32, u32),
}

impl Drafting {
    pub(super) fn new() -> Self {
        Self { n_max: 4, rest: (0, 0) }
    }

    /// What may follow a text: at most so many tokens.
    pub(super) fn draft<'a>(&mut self, text: &'a [TokenId], room: usize) -> &'a [TokenId] {
        if self.rest.1 > 0 {
            self.rest.1 -= 1;
            return &[];
        }
        let found = RUNS.into_iter().find_map(|it| follower(text, it)).unwrap_or_default();
        &found[..found.len().min(self.n_max).min(room)]
    }

    /// Notes how many tokens of a draft came true.
    pub(super) fn note(&mut self, n_drafted: usize, n_true: usize) {
        match n_true {
            0 => {
                let rest = (self.rest.0 * 2).clamp(1, REST_MAX);
                (self.rest, self.n_max) = ((rest, rest), 2);
            }
            _ if n_true == n_drafted => (self.rest.0, self.n_max) = (0, (self.n_max * 2).min(LONGEST)),
            _ => (self.rest.0, self.n_max) = (0, n_true + 1),
        }
    }
}

/// What followed the last `n` tokens of a text where they stood last before that.
fn follower(text: &[TokenId], n: usize) -> Option<&[TokenId]> {
    let last = text.get(text.len().checked_sub(n)?..)?;
    let earlier = &text[..text.len() - 1];
    let start = earlier.windows(n).rposition(|it| it == last)?;
    Some(&text[start + n..])
}

impl<D: Decode> Engine<D> {
    /// Looks up what may come next in requests that decode, as far as they may go on.
    pub(super) fn offer_drafts(&mut self) {
        if self.draft_rows_max < 2 {
            return;
        }
        let context_tokens = self.decoder.context_tokens();
        for (id, live) in self.live.iter_mut().filter(|it| it.1.n_generated > 0) {
            // The last token that it may generate never runs.
            let room = live.longest(context_tokens).saturating_sub(live.tokens.len());
            let draft = live.drafting.draft(&live.tokens, room.min(self.draft_rows_max - 1)).to_vec();
            live.n_drafted = draft.len();
            live.tokens.extend(draft);
            self.scheduler.offer(*id, live.n_drafted);
        }
    }

    /// Takes back what is not in the batch of the drafts that were offered.
    pub(super) fn cut_drafts(&mut self, batch: &[Planned]) {
        for (id, live) in self.live.iter_mut().filter(|it| it.1.n_drafted > 0) {
            let planned = batch.iter().find(|it| it.request == *id);
            let n_kept = planned.map_or(0, |it| it.n_tokens - 1);
            live.tokens.truncate(live.tokens.len() - (live.n_drafted - n_kept));
            live.n_drafted = n_kept;
        }
    }

    /// Samples after the last known token, and after each token of a draft that was sampled before it. So each token
    /// is sampled from the logits, and with the random number, that it would have been sampled from without a draft.
    pub(super) fn sample_all(&mut self, id: RequestId, logits: &Logits, step: usize, events: &mut Vec<EngineEvent>) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let draft = live.tokens.split_off(live.tokens.len() - std::mem::take(&mut live.n_drafted));
        let (mut n_true, mut is_over) = (0, false);
        for row in 0..=draft.len() {
            let Some(event) = self.sample(id, logits.row(step, row)) else { return };
            let EngineEvent::Token { token, finish, .. } = &event else { return };
            let is_true = draft.get(row) == Some(token);
            (n_true, is_over) = (n_true + usize::from(is_true), finish.is_some());
            events.push(event);
            if is_over || !is_true {
                break;
            }
        }
        if !draft.is_empty() {
            self.forget_untrue(id, draft.len(), n_true);
        }
        if is_over {
            self.end(id);
        }
    }

    /// Takes what was drafted and not sampled out of the sequence.
    fn forget_untrue(&mut self, id: RequestId, n_drafted: usize, n_true: usize) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.drafting.note(n_drafted, n_true);
        self.drafts.n_drafted += n_drafted as u64;
        self.drafts.n_true += n_true as u64;
        live.n_run = live.tokens.len() - 1;
        let Some(sequence) = live.sequence else { return };
        let cut = self.decoder.truncate(sequence, live.n_run);
        debug_assert!(cut.is_ok(), "it is open");
        self.decoder.keep(sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_longest_run_last_is_the_draft() {
        let text = [1, 2, 3, 4, 9, 2, 3, 5, 7, 1, 2, 3];
        assert_eq!(Drafting::new().draft(&text, 8), [4, 9, 2, 3], "behind 1 2 3, not behind the later 2 3");
        assert_eq!(Drafting::new().draft(&text[1..], 2), [5, 7]);
        assert_eq!(Drafting::new().draft(&[1, 1, 1], 8), [1], "a run may reach into itself");
        assert!(Drafting::new().draft(&[1, 2], 8).is_empty() && Drafting::new().draft(&[], 8).is_empty());
    }

    #[test]
    fn drafts_that_come_true_grow_and_others_rest() {
        let text: Vec<TokenId> = (0..40).chain(0..4).collect();
        let mut drafting = Drafting::new();
        for n in [4, 8, 12, 12] {
            assert_eq!(drafting.draft(&text, 99).len(), n);
            drafting.note(n, n);
        }
        drafting.note(12, 3);
        assert_eq!(drafting.draft(&text, 99).len(), 4);
        let mut waits = Vec::new();
        for _ in 0..6 {
            drafting.note(2, 0);
            waits.push((0..).take_while(|_| drafting.draft(&text, 99).is_empty()).count());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 16]);
        assert_eq!(drafting.draft(&text, 99).len(), 2);
    }
}
