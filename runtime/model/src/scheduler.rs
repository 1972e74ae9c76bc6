//! Decides what the next forward pass holds: a pure state machine without clock, threads, weights or tokens' values.
//!
//! Decoding sequences go first, one token each, so a long prompt never stalls them; what is left of the pass is
//! filled with prompts, in pieces if need be. A request is admitted only when the pages of its longest possible
//! outcome are free, so an admitted request always runs to its end.

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
    /// How many of its outstanding tokens run.
    pub(crate) n_tokens: usize,
    /// Whether a token is sampled after them.
    pub(crate) samples: bool,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    request: RequestId,
    /// Tokens known but not yet run: the rest of the prompt, or the one sampled last.
    n_outstanding: usize,
}

/// Waiting and running requests, in order of arrival.
#[derive(Debug)]
pub(crate) struct Scheduler {
    options: EngineOptions,
    waiting: VecDeque<(RequestId, Demand)>,
    running: Vec<Running>,
}

impl Scheduler {
    pub(crate) fn new(options: EngineOptions) -> Self {
        Self { options, waiting: VecDeque::new(), running: Vec::new() }
    }

    pub(crate) fn submit(&mut self, request: RequestId, demand: Demand) {
        assert!(demand.n_prompt > 0, "a request has a prompt");
        self.waiting.push_back((request, demand));
    }

    pub(crate) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn n_running(&self) -> usize {
        self.running.len()
    }

    /// The request that has waited longest.
    pub(crate) fn first_waiting(&self) -> Option<RequestId> {
        self.waiting.front().map(|it| it.0)
    }

    /// Admits waiting requests in order while there is room for the first of them.
    ///
    /// `unpromised_pages` are those that are free and that no running request may still claim. The ids of the
    /// admitted come back; the first that does not fit keeps its place, so that nothing small starves it.
    pub(crate) fn admit(&mut self, mut unpromised_pages: usize) -> Vec<RequestId> {
        let mut admitted = Vec::new();
        while let Some((request, demand)) = self.waiting.front().copied() {
            if self.running.len() >= self.options.running_max || demand.n_pages > unpromised_pages {
                break;
            }
            unpromised_pages -= demand.n_pages;
            self.waiting.pop_front();
            self.running.push(Running { request, n_outstanding: demand.n_prompt });
            admitted.push(request);
        }
        admitted
    }

    /// The next pass: one token of every decoding request, then prompts in order of arrival.
    pub(crate) fn next_batch(&self) -> Vec<Planned> {
        let mut room = self.options.batch_tokens_max.max(self.options.running_max + 1);
        let mut batch = Vec::new();
        let decoding = self.running.iter().filter(|it| it.n_outstanding == 1);
        let prompts = self.running.iter().filter(|it| it.n_outstanding > 1);
        for running in decoding.chain(prompts) {
            let n_tokens = running.n_outstanding.min(room);
            if n_tokens == 0 {
                break;
            }
            room -= n_tokens;
            batch.push(Planned { request: running.request, n_tokens, samples: n_tokens == running.n_outstanding });
        }
        batch
    }

    /// Records that a planned part has run. A request that sampled waits with its new token; one that ended is
    /// taken out with [`Scheduler::remove`].
    pub(crate) fn advance(&mut self, batch: &[Planned]) {
        for planned in batch {
            if let Some(at) = self.running.iter().position(|it| it.request == planned.request) {
                let running = &mut self.running[at];
                running.n_outstanding = if planned.samples { 1 } else { running.n_outstanding - planned.n_tokens };
            }
        }
    }

    /// Takes a request out, waiting or running; false when it is neither.
    pub(crate) fn remove(&mut self, request: RequestId) -> bool {
        let before = self.waiting.len() + self.running.len();
        self.waiting.retain(|it| it.0 != request);
        self.running.retain(|it| it.request != request);
        before != self.waiting.len() + self.running.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: EngineOptions = EngineOptions { running_max: 3, batch_tokens_max: 8 };

    fn planned(request: u64, n_tokens: usize, samples: bool) -> Planned {
        Planned { request: RequestId(request), n_tokens, samples }
    }

    #[test]
    fn decoding_goes_first_and_a_long_prompt_runs_in_pieces() {
        let mut scheduler = Scheduler::new(OPTIONS);
        scheduler.submit(RequestId(0), Demand { n_prompt: 2, n_pages: 1 });
        scheduler.submit(RequestId(1), Demand { n_prompt: 10, n_pages: 1 });
        assert_eq!(scheduler.admit(2), [RequestId(0), RequestId(1)]);
        let batch = scheduler.next_batch();
        assert_eq!(batch, [planned(0, 2, true), planned(1, 6, false)]);
        scheduler.advance(&batch);
        let batch = scheduler.next_batch();
        assert_eq!(batch, [planned(0, 1, true), planned(1, 4, true)]);
        scheduler.advance(&batch);
        assert_eq!(scheduler.next_batch(), [planned(0, 1, true), planned(1, 1, true)]);
    }

    #[test]
    fn nothing_overtakes_a_request_that_waits_for_pages() {
        let mut scheduler = Scheduler::new(OPTIONS);
        scheduler.submit(RequestId(0), Demand { n_prompt: 1, n_pages: 5 });
        scheduler.submit(RequestId(1), Demand { n_prompt: 1, n_pages: 1 });
        assert_eq!(scheduler.admit(4), []);
        assert_eq!(scheduler.admit(5), [RequestId(0)]);
        assert!(scheduler.remove(RequestId(0)) && !scheduler.remove(RequestId(0)));
        assert_eq!(scheduler.admit(1), [RequestId(1)]);
        assert_eq!((scheduler.n_waiting(), scheduler.n_running()), (0, 1));
    }
}
