//! Decides what the next forward pass holds: a pure state machine without clock, threads, weights or tokens' values.
//!
//! What always holds, and is checked in simulation over millions of steps (`scheduler_tests.rs`, and with pages,
//! texts and adapters `engine_tests.rs`):
//!
//! - Every known token of a request runs once, in order; after the last known one a token is sampled.
//! - Every request that decodes has its token in every pass, so no prompt stalls it. While any does, prompts get at
//!   most `prompt_tokens_max` of a pass, so that the pass stays short; a longer prompt runs in pieces.
//! - The oldest prompt gets at least one token in every pass. Prompts run in order of arrival, but for those that
//!   wait behind an older one which runs a beginning that they share. So everybody's end comes nearer in every pass.
//! - Drafts, which may come to nothing, only fill passes in which no prompt is due, and only up to `draft_rows_max`
//!   rows: beyond that a row costs time of its own.
//! - A request waits only behind an older one that is running its prompt, and no longer than that one has the
//!   shared part outstanding. When the older one samples or ends, nobody waits behind it any more.
//! - Requests are admitted in order of arrival, and one only when the pages of its longest possible outcome are free
//!   and promised to nobody. So an admitted request runs to its end, and nothing small starves something large.
//! - No pass has more tokens, and no batch more requests, than the options say.
//! - A request can be taken out between any two passes, and nothing of it is left.

use std::collections::VecDeque;

/// Names a request for as long as its engine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Limits of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Requests that run beside each other.
    pub running_max: usize,
    /// Tokens of one forward pass; above it, prompts are split. Taken as at least `running_max + 1`, so that
    /// prompts move on even when everything else decodes.
    pub batch_tokens_max: usize,
    /// Tokens of prompts in a pass in which others decode, and wait for it to end.
    pub prompt_tokens_max: usize,
    /// Rows up to which a pass without prompts is filled with drafts of tokens that may come next; 0 for none.
    /// What comes out is the same with and without them.
    pub draft_rows_max: usize,
}

impl EngineOptions {
    /// So many requests beside each other, in passes of the usual size.
    #[must_use]
    pub fn new(running_max: usize) -> Self {
        Self { running_max, batch_tokens_max: 512, prompt_tokens_max: 128, draft_rows_max: 0 }
    }
}

/// What a request needs, in tokens and pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Tokens to run before the first one is sampled; at least one.
    pub(crate) n_prompt: usize,
    /// Pages that the sequence may come to hold on top of those that it holds already.
    pub(crate) n_pages: usize,
}

/// One request's part of the next forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) request: RequestId,
    /// How many of its outstanding tokens run, and behind them of its draft.
    pub(crate) n_tokens: usize,
    /// Whether a token is sampled after them.
    pub(crate) samples: bool,
}

/// Whom a request waits behind.
#[derive(Clone, Copy, Debug)]
struct Behind {
    leader: RequestId,
    /// It waits while the leader has more outstanding than these.
    n_outstanding_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    request: RequestId,
    /// Tokens known but not yet run: the rest of the prompt, or the one sampled last.
    n_outstanding: usize,
    /// Whether it has sampled.
    is_decoding: bool,
    /// Tokens that may come next, if it decodes.
    n_drafted: usize,
    behind: Option<Behind>,
}

/// Waiting and running requests, in order of arrival.
#[derive(Debug)]
pub(crate) struct Scheduler {
    options: EngineOptions,
    waiting: VecDeque<RequestId>,
    running: Vec<Running>,
}

impl Scheduler {
    pub(crate) fn new(options: EngineOptions) -> Self {
        Self { options, waiting: VecDeque::new(), running: Vec::new() }
    }

    pub(crate) fn submit(&mut self, request: RequestId) {
        self.waiting.push_back(request);
    }

    pub(crate) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn n_running(&self) -> usize {
        self.running.len()
    }

    /// The request that is admitted next: the one that has waited longest, if the batch has a place.
    pub(crate) fn next_to_admit(&self) -> Option<RequestId> {
        self.waiting.front().copied().filter(|_| self.running.len() < self.options.running_max)
    }

    /// Admits the next request if its demand can be met. What it needs may have become less while it waited, so it
    /// is said now.
    ///
    /// `unpromised_pages` are those that are free and that no running request may still claim. A request that does
    /// not fit keeps its place, so that nothing small starves it.
    pub(crate) fn admit(&mut self, demand: Demand, unpromised_pages: usize) -> bool {
        assert!(demand.n_prompt > 0, "a request has a prompt");
        let fits = demand.n_pages <= unpromised_pages;
        let Some(request) = self.next_to_admit().filter(|_| fits) else { return false };
        self.waiting.pop_front();
        let n_outstanding = demand.n_prompt;
        self.running.push(Running { request, n_outstanding, is_decoding: false, n_drafted: 0, behind: None });
        true
    }

    /// Lets a request whose prompt has not begun wait until a leader, an older one, has no more than so many tokens
    /// of its prompt outstanding.
    pub(crate) fn wait_behind(&mut self, request: RequestId, leader: RequestId, n_outstanding_max: usize) {
        assert!(leader < request, "nobody waits for who comes later");
        let behind = Some(Behind { leader, n_outstanding_max });
        self.running.iter_mut().filter(|it| it.request == request).for_each(|it| it.behind = behind);
    }

    /// Records that the next tokens of a request's prompt have run for others, all but one at most.
    pub(crate) fn skip(&mut self, request: RequestId, n_tokens: usize) {
        for running in self.running.iter_mut().filter(|it| it.request == request) {
            assert!(n_tokens < running.n_outstanding, "a token is left to run");
            running.n_outstanding -= n_tokens;
        }
    }

    /// Offers so many drafted tokens of a decoding request for the next pass.
    pub(crate) fn offer(&mut self, request: RequestId, n_drafted: usize) {
        self.running.iter_mut().filter(|it| it.request == request).for_each(|it| it.n_drafted = n_drafted);
    }

    /// The next pass: one token of every decoding request, then prompts in order of arrival, or else drafts.
    pub(crate) fn next_batch(&self) -> Vec<Planned> {
        let n_decoding = self.running.iter().filter(|it| it.is_decoding).count();
        let has_prompt = self.running.iter().any(|it| !it.is_decoding && !self.is_waiting(it));
        let mut draft_room = if has_prompt { 0 } else { self.options.draft_rows_max.saturating_sub(n_decoding) };
        let decoding = |running: &Running| {
            let n_drafted = running.n_drafted.min(draft_room);
            draft_room -= n_drafted;
            Planned { request: running.request, n_tokens: 1 + n_drafted, samples: true }
        };
        let mut batch: Vec<Planned> = self.running.iter().filter(|it| it.is_decoding).map(decoding).collect();
        let mut room = self.options.batch_tokens_max.max(self.options.running_max + 1) - n_decoding;
        if !batch.is_empty() {
            room = room.min(self.options.prompt_tokens_max.max(1));
        }
        for running in self.running.iter().filter(|it| !it.is_decoding && !self.is_waiting(it)) {
            let n_tokens = running.n_outstanding.min(room);
            if n_tokens == 0 {
                break;
            }
            room -= n_tokens;
            batch.push(Planned { request: running.request, n_tokens, samples: n_tokens == running.n_outstanding });
        }
        batch
    }

    fn is_waiting(&self, running: &Running) -> bool {
        let is_ahead = |it: &Behind| {
            let leader = self.running.iter().find(|other| other.request == it.leader);
            leader.is_some_and(|leader| leader.n_outstanding > it.n_outstanding_max)
        };
        running.behind.as_ref().is_some_and(is_ahead)
    }

    /// Records that a planned part has run. A request that sampled waits with its new token; one that ended is
    /// taken out with [`Scheduler::remove`].
    pub(crate) fn advance(&mut self, batch: &[Planned]) {
        for planned in batch {
            for running in self.running.iter_mut().filter(|it| it.request == planned.request) {
                running.n_outstanding = if planned.samples { 1 } else { running.n_outstanding - planned.n_tokens };
                running.is_decoding |= planned.samples;
                running.n_drafted = 0;
                running.behind = None;
            }
            if planned.samples {
                self.let_go(planned.request);
            }
        }
    }

    /// Takes a request out, waiting or running; false when it is neither.
    pub(crate) fn remove(&mut self, request: RequestId) -> bool {
        let before = self.waiting.len() + self.running.len();
        self.waiting.retain(|it| *it != request);
        self.running.retain(|it| it.request != request);
        self.let_go(request);
        before != self.waiting.len() + self.running.len()
    }

    /// Nobody waits behind a request any more.
    fn let_go(&mut self, leader: RequestId) {
        self.running.iter_mut().filter(|it| it.behind.is_some_and(|it| it.leader == leader)).for_each(|it| {
            it.behind = None;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: EngineOptions =
        EngineOptions { running_max: 3, batch_tokens_max: 8, prompt_tokens_max: 6, draft_rows_max: 5 };

    fn planned(request: u64, n_tokens: usize, samples: bool) -> Planned {
        Planned { request: RequestId(request), n_tokens, samples }
    }

    /// Requests with prompts of these lengths, all running.
    fn running(prompts: &[usize]) -> Scheduler {
        let mut scheduler = Scheduler::new(OPTIONS);
        for (id, n_prompt) in (0..).zip(prompts) {
            scheduler.submit(RequestId(id));
            assert!(scheduler.admit(Demand { n_prompt: *n_prompt, n_pages: 1 }, 1));
        }
        scheduler
    }

    #[test]
    fn decoding_goes_first_and_a_long_prompt_runs_in_pieces() {
        let mut scheduler = running(&[2, 17]);
        for expected in [
            [planned(0, 2, true), planned(1, 6, false)],
            [planned(0, 1, true), planned(1, 6, false)],
            [planned(0, 1, true), planned(1, 5, true)],
            [planned(0, 1, true), planned(1, 1, true)],
        ] {
            let batch = scheduler.next_batch();
            assert_eq!(batch, expected);
            scheduler.advance(&batch);
        }
    }

    #[test]
    fn nothing_overtakes_a_request_that_waits_for_pages() {
        let mut scheduler = Scheduler::new(OPTIONS);
        scheduler.submit(RequestId(0));
        scheduler.submit(RequestId(1));
        assert!(!scheduler.admit(Demand { n_prompt: 1, n_pages: 5 }, 4));
        assert!(scheduler.admit(Demand { n_prompt: 1, n_pages: 5 }, 5));
        assert!(scheduler.remove(RequestId(0)) && !scheduler.remove(RequestId(0)));
        assert_eq!(scheduler.next_to_admit(), Some(RequestId(1)));
        assert!(scheduler.admit(Demand { n_prompt: 1, n_pages: 1 }, 1));
        assert_eq!((scheduler.n_waiting(), scheduler.n_running()), (0, 1));
    }

    #[test]
    fn drafts_fill_what_is_left_where_no_prompt_is_due() {
        let mut scheduler = running(&[1, 1, 9]);
        scheduler.advance(&scheduler.next_batch());
        scheduler.offer(RequestId(0), 2);
        scheduler.offer(RequestId(1), 2);
        assert_eq!(scheduler.next_batch(), [planned(0, 1, true), planned(1, 1, true), planned(2, 3, true)]);
        scheduler.remove(RequestId(2));
        let batch = scheduler.next_batch();
        assert_eq!(batch, [planned(0, 3, true), planned(1, 2, true)]);
        scheduler.advance(&batch);
        assert_eq!(scheduler.next_batch(), [planned(0, 1, true), planned(1, 1, true)]);
    }

    #[test]
    fn who_shares_a_beginning_waits_until_it_has_run() {
        let mut scheduler = running(&[12, 9, 3]);
        scheduler.wait_behind(RequestId(1), RequestId(0), 4);
        let batch = scheduler.next_batch();
        assert_eq!(batch, [planned(0, 8, false)]);
        scheduler.advance(&batch);
        scheduler.skip(RequestId(1), 8);
        assert_eq!(scheduler.next_batch(), [planned(0, 4, true), planned(1, 1, true), planned(2, 3, true)]);
        // Whoever is waited for may leave, or be done with its prompt.
        for leaves in [true, false] {
            let mut scheduler = running(&[12, 9, 3]);
            scheduler.wait_behind(RequestId(1), RequestId(0), 0);
            if leaves {
                scheduler.remove(RequestId(0));
            } else {
                scheduler.advance(&[planned(0, 12, true)]);
            }
            assert!(scheduler.next_batch().iter().any(|it| it.request == RequestId(1)));
        }
    }
}
