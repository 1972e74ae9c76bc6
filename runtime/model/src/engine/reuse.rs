//! What requests need not run because others have: pages that are kept, and prompts that begin alike at the same time.

use crate::engine::{Engine, Live};
use crate::scheduler::Planned;
use crate::{Decode, RequestId};

impl<D: Decode> Engine<D> {
    /// Lets those go on that wait for a leader which has run what they share, oldest first: they may lead others.
    pub(super) fn hand_on(&mut self) {
        let mut followers: Vec<_> = self.live.iter().filter(|it| it.1.leader.is_some()).map(|it| *it.0).collect();
        followers.sort_unstable();
        for id in followers {
            let Some((leader, n_common)) = self.live.get(&id).and_then(|it| it.leader) else { continue };
            if self.live.get(&leader).is_some_and(|it| it.n_run >= n_common) {
                let n_shared = self.share(leader, id, n_common.min(self.live[&id].request.prompt.len() - 1));
                self.scheduler.skip(id, n_shared);
            }
        }
    }

    /// Ends the waiting for a leader that has run its whole prompt. The ids of those come back whose whole prompt that
    /// was: they sample from the leader's logits.
    pub(super) fn twins(&mut self, leader: RequestId) -> Vec<RequestId> {
        let is_prompt = |live: &&Live| live.n_run == live.request.prompt.len();
        let Some(n_prompt) = self.live.get(&leader).filter(is_prompt).map(|it| it.n_run) else { return Vec::new() };
        let waits = |live: &Live| live.leader.is_some_and(|it| it.0 == leader);
        let mut followers: Vec<_> = self.live.iter().filter(|it| waits(it.1)).map(|it| *it.0).collect();
        followers.sort_unstable();
        let mut twins = Vec::new();
        for id in followers {
            let live = &self.live[&id];
            let n_common = live.leader.map_or(0, |it| it.1);
            if n_common == n_prompt && live.request.prompt.len() == n_prompt {
                let n_tokens = self.share(leader, id, n_prompt);
                self.scheduler.advance(&[Planned { request: id, n_tokens, samples: true }]);
                twins.push(id);
                twins.extend(self.twins(id));
            } else {
                let n_shared = self.share(leader, id, n_common.min(live.request.prompt.len() - 1));
                self.scheduler.skip(id, n_shared);
            }
        }
        twins
    }

    /// Ends a request's waiting for a leader, and gives it the first tokens that the leader has run; returns how many
    /// of them are new to it.
    fn share(&mut self, leader: RequestId, id: RequestId, n_tokens: usize) -> usize {
        let from = self.live.get(&leader).and_then(|it| it.sequence);
        let Some(live) = self.live.get_mut(&id) else { return 0 };
        live.leader = None;
        let n_new = n_tokens.saturating_sub(live.n_run);
        let (Some(from), Some(to)) = (from, live.sequence.filter(|_| n_new > 0)) else { return 0 };
        let shared = self.decoder.share(from, to, n_tokens);
        debug_assert!(shared.is_ok(), "both are open");
        (live.n_run, live.n_reused) = (n_tokens, live.n_reused + n_new);
        n_new
    }

    /// Lets prompts go on from pages that have been kept since they were admitted.
    pub(super) fn adopt(&mut self) {
        for (id, live) in self.live.iter_mut().filter(|it| it.1.is_in_prompt()) {
            let n_new = adopt_for(&mut self.decoder, live);
            if n_new > 0 {
                self.scheduler.skip(*id, n_new);
            }
        }
    }

    /// Lets a request wait for an older one that is running a beginning which they share, where that saves a page or
    /// one of the two prompts is all that they share.
    pub(super) fn follow(&mut self, id: RequestId) {
        let Some(live) = self.live.get(&id).filter(|_| self.decoder.reuses()) else { return };
        let older = self.live.iter().filter(|(other, it)| **other < id && it.is_in_prompt());
        let shared = older.map(|(other, it)| (it.n_common(live), std::cmp::Reverse(*other), it.request.prompt.len()));
        let Some((n_common, leader, n_leader)) = shared.max() else { return };
        let saves_page = n_common >= live.n_run + self.decoder.page_tokens();
        let is_all = n_common == n_leader.min(live.request.prompt.len());
        if n_common > live.n_run && (saves_page || is_all) {
            let (leader, n_outstanding_max) = (leader.0, n_leader - n_common);
            self.scheduler.wait_behind(id, leader, n_outstanding_max);
            self.live.entry(id).and_modify(|it| it.leader = Some((leader, n_common)));
        }
    }
}

/// Extends a request's sequence by pages that are kept for its prompt; returns by how many tokens.
pub(super) fn adopt_for<D: Decode>(decoder: &mut D, live: &mut Live) -> usize {
    let Some(sequence) = live.sequence.filter(|_| decoder.reuses()) else { return 0 };
    let n_new = decoder.adopt(sequence, &live.request.prompt, live.request.adapter).saturating_sub(live.n_run);
    (live.n_run, live.n_reused) = (live.n_run + n_new, live.n_reused + n_new);
    n_new
}
