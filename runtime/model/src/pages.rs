//! Which KV page belongs to which sequences: counts and block tables, no contents.
//!
//! Sequences share pages after a fork, and whole pages where their texts begin alike. A page that is shared or kept
//! for others is never written: the writer gets a copy first, but for the last one that needs it. Memory for a batch
//! is claimed as a whole or not at all.

use std::collections::HashMap;

use fsq_kernels::{PAGE_TOKENS, Slot};

use crate::prefixes::{Lineage, Prefixes};
use crate::{ModelError, SequenceId, TokenId};

/// What ran the tokens of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ran {
    /// It has none.
    #[default]
    Nothing,
    By(Lineage),
    /// Several lineages: nobody else may have such pages.
    Mixed,
}

/// One open sequence.
#[derive(Clone, Debug, Default)]
struct Sequence {
    tokens: Vec<TokenId>,
    pages: Vec<u32>,
    ran: Ran,
    /// So many of its first pages are kept for others.
    n_kept: usize,
}

/// All sequences and the pool of pages.
#[derive(Debug)]
pub(crate) struct Pages {
    sequences: HashMap<SequenceId, Sequence>,
    next_sequence: u64,
    /// Pages that neither a sequence holds nor anybody may want again.
    free: Vec<u32>,
    /// How many sequences hold each page.
    holders: Vec<u32>,
    prefixes: Prefixes,
}

/// What a batch claimed: to be written, then committed, or given back.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    /// Each sequence with its block table to be.
    tables: Vec<(SequenceId, Vec<u32>)>,
    /// Pages to copy before anything is written: from, to.
    pub(crate) copies: Vec<(u32, u32)>,
    /// Pages that were free.
    fresh: Vec<u32>,
}

impl Claim {
    /// The block table of the batch's sequence `index`.
    pub(crate) fn table(&self, index: usize) -> &[u32] {
        &self.tables[index].1
    }
}

impl Pages {
    pub(crate) fn new(n_pages: usize) -> Self {
        let n_pages = u32::try_from(n_pages).unwrap_or(u32::MAX);
        Self {
            sequences: HashMap::new(),
            next_sequence: 0,
            free: (0..n_pages).rev().collect(),
            holders: vec![0; n_pages as usize],
            prefixes: Prefixes::default(),
        }
    }

    /// Pages that no sequence holds. What is kept in them gives way to whoever needs one.
    pub(crate) fn n_free(&self) -> usize {
        self.free.len() + self.prefixes.n_idle()
    }

    pub(crate) fn open(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.sequences.insert(id, sequence);
        id
    }

    pub(crate) fn fork(&mut self, id: SequenceId) -> Result<SequenceId, ModelError> {
        let copy = self.sequence(id)?.clone();
        copy.pages.iter().for_each(|page| self.hold(*page));
        Ok(self.insert(copy))
    }

    /// Makes a sequence hold the first `len` tokens of another, in the same pages, whatever it held before.
    pub(crate) fn share(&mut self, from: SequenceId, to: SequenceId, len: usize) -> Result<(), ModelError> {
        let mut copy = self.sequence(from)?.clone();
        self.sequence(to)?;
        copy.cut(len);
        copy.pages.iter().for_each(|page| self.hold(*page));
        let before = self.sequences.insert(to, copy).unwrap_or_default();
        self.release_all(before.pages);
        Ok(())
    }

    pub(crate) fn close(&mut self, id: SequenceId) {
        let pages = self.sequences.remove(&id).unwrap_or_default().pages;
        self.release_all(pages);
    }

    pub(crate) fn truncate(&mut self, id: SequenceId, len: usize) -> Result<(), ModelError> {
        let unknown = ModelError::UnknownSequence { sequence: id };
        let pages = self.sequences.get_mut(&id).ok_or(unknown)?.cut(len);
        self.release_all(pages);
        Ok(())
    }

    /// Keeps the whole pages of a sequence for all that begin with the same tokens. Where a page of the same content
    /// is kept already, the sequence takes that and gives its own back.
    pub(crate) fn keep(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Ran::By(lineage) = sequence.ran else { return };
        let (mut taken, mut given) = (Vec::new(), Vec::new());
        for index in sequence.n_kept..sequence.tokens.len() / PAGE_TOKENS {
            let before = index.checked_sub(1).map(|it| sequence.pages[it]);
            let tokens = &sequence.tokens[index * PAGE_TOKENS..(index + 1) * PAGE_TOKENS];
            match self.prefixes.find(lineage, before, tokens) {
                Some(page) => {
                    taken.push(page);
                    given.push(std::mem::replace(&mut sequence.pages[index], page));
                }
                None => self.prefixes.keep(lineage, before, tokens, sequence.pages[index]),
            }
            sequence.n_kept = index + 1;
        }
        taken.into_iter().for_each(|page| self.hold(page));
        self.release_all(given);
    }

    /// Extends a sequence by whole pages that are kept for the tokens of a text that begins as it does, all but the
    /// text's last token at most; returns how many tokens it holds then.
    pub(crate) fn adopt(&mut self, id: SequenceId, text: &[TokenId], lineage: Lineage) -> usize {
        let Some(sequence) = self.sequences.get_mut(&id) else { return 0 };
        let is_kept = sequence.n_kept * PAGE_TOKENS == sequence.tokens.len();
        let is_own = sequence.ran == Ran::Nothing || sequence.ran == Ran::By(lineage);
        let mut taken = Vec::new();
        if is_kept && is_own && text.starts_with(&sequence.tokens) {
            for tokens in text[sequence.tokens.len()..text.len().saturating_sub(1)].chunks_exact(PAGE_TOKENS) {
                let Some(page) = self.prefixes.find(lineage, sequence.pages.last().copied(), tokens) else { break };
                sequence.pages.push(page);
                sequence.tokens.extend_from_slice(tokens);
                (sequence.ran, sequence.n_kept) = (Ran::By(lineage), sequence.n_kept + 1);
                taken.push(page);
            }
        }
        let n_tokens = sequence.tokens.len();
        taken.into_iter().for_each(|page| self.hold(page));
        n_tokens
    }

    pub(crate) fn tokens(&self, id: SequenceId) -> Option<&[TokenId]> {
        self.sequences.get(&id).map(|it| it.tokens.as_slice())
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence, ModelError> {
        self.sequences.get(&id).ok_or(ModelError::UnknownSequence { sequence: id })
    }

    /// Whether all tables agree with each other.
    #[cfg(test)]
    pub(crate) fn is_consistent(&self) -> bool {
        let mut holders = vec![0; self.holders.len()];
        self.sequences.values().flat_map(|it| &it.pages).for_each(|it| holders[*it as usize] += 1);
        let n_unheld = holders.iter().filter(|it| **it == 0).count();
        holders == self.holders && n_unheld == self.n_free() && self.prefixes.is_consistent()
    }

    fn hold(&mut self, page: u32) {
        self.holders[page as usize] += 1;
        self.prefixes.hold(page);
    }

    fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 && !self.prefixes.let_go(page) {
            self.free.push(page);
        }
    }

    /// Lets go of a sequence's pages, the last one first: what is kept longest should be how texts begin.
    fn release_all(&mut self, pages: Vec<u32>) {
        pages.into_iter().rev().for_each(|page| self.release(page));
    }

    /// A page that no sequence holds.
    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| self.prefixes.evict())
    }

    /// Free pages that a sequence takes to grow by so many tokens, a copy of a shared last page included.
    pub(crate) fn needed(&self, id: SequenceId, n_tokens: usize) -> Result<usize, ModelError> {
        let sequence = self.sequence(id)?;
        let tail = sequence.tail();
        let copies = n_tokens > 0 && tail.is_some_and(|it| self.is_shared(it, 0));
        Ok(sequence.n_new_pages(n_tokens) + usize::from(copies))
    }

    /// Whether a page must be copied before it is written, `n_left` of its holders having left for copies.
    fn is_shared(&self, page: u32, n_left: u32) -> bool {
        self.prefixes.is_kept(page) || self.holders[page as usize] > n_left + 1
    }

    /// Claims what the sequences need to grow by so many tokens each. Nothing has changed on an error.
    pub(crate) fn claim(&mut self, growth: &[(SequenceId, usize)]) -> Result<Claim, ModelError> {
        let mut n_left: HashMap<u32, u32> = HashMap::new();
        let mut wanted = Vec::with_capacity(growth.len());
        for (id, n_tokens) in growth {
            let sequence = self.sequence(*id)?;
            let tail = sequence.tail().filter(|_| *n_tokens > 0);
            let copied = tail.filter(|it| self.is_shared(*it, n_left.get(it).copied().unwrap_or(0)));
            if let Some(page) = copied {
                *n_left.entry(page).or_default() += 1;
            }
            wanted.push((*id, sequence.n_new_pages(*n_tokens), copied));
        }
        let needed = wanted.iter().map(|it| it.1 + usize::from(it.2.is_some())).sum();
        if needed > self.n_free() {
            return Err(ModelError::OutOfPages { needed, free: self.n_free() });
        }
        let mut claim = Claim::default();
        for (id, n_new, copied) in wanted {
            let mut table = self.sequence(id)?.pages.clone();
            let fresh: Vec<u32> = (0..n_new + usize::from(copied.is_some())).filter_map(|_| self.take()).collect();
            claim.fresh.extend(&fresh);
            let mut fresh = fresh.into_iter();
            if let (Some(from), Some(last)) = (copied, table.last_mut()) {
                *last = fresh.next().unwrap_or(from);
                claim.copies.push((from, *last));
            }
            table.extend(fresh);
            claim.tables.push((id, table));
        }
        Ok(claim)
    }

    /// Makes a claim the state of its sequences, and appends their tokens, with what ran them.
    pub(crate) fn commit<'a>(&mut self, claim: Claim, ran: impl Iterator<Item = (&'a [TokenId], Lineage)>) {
        for page in claim.fresh {
            self.holders[page as usize] = 1;
        }
        for (page, _) in claim.copies {
            self.release(page);
        }
        for ((id, table), (tokens, lineage)) in claim.tables.into_iter().zip(ran) {
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.pages = table;
                sequence.ran = match sequence.ran {
                    Ran::Nothing => Ran::By(lineage),
                    Ran::By(before) if before == lineage => Ran::By(lineage),
                    _ => Ran::Mixed,
                };
                sequence.tokens.extend_from_slice(tokens);
            }
        }
    }

    /// Returns what was claimed.
    pub(crate) fn give_back(&mut self, claim: Claim) {
        self.free.extend(claim.fresh);
    }
}

impl Sequence {
    /// Forgets all tokens after the first `len`; the pages that only they were in come back.
    fn cut(&mut self, len: usize) -> Vec<u32> {
        self.tokens.truncate(len);
        self.n_kept = self.n_kept.min(self.tokens.len() / PAGE_TOKENS);
        if self.tokens.is_empty() {
            self.ran = Ran::Nothing;
        }
        self.pages.split_off(self.tokens.len().div_ceil(PAGE_TOKENS))
    }

    /// The page that the next token is written into, where that is not a new one.
    fn tail(&self) -> Option<u32> {
        self.pages.last().copied().filter(|_| !self.tokens.len().is_multiple_of(PAGE_TOKENS))
    }

    /// Pages on top of its own that it grows into with so many tokens.
    fn n_new_pages(&self, n_tokens: usize) -> usize {
        (self.tokens.len() + n_tokens).div_ceil(PAGE_TOKENS) - self.pages.len()
    }
}

/// Where a position's keys and values lie.
pub(crate) fn slot(table: &[u32], position: usize) -> Slot {
    Slot { page: table[position / PAGE_TOKENS], offset: (position % PAGE_TOKENS) as u32 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn grow(pages: &mut Pages, id: SequenceId, n: usize) -> Vec<(u32, u32)> {
        run(pages, id, &vec![7; n], 0)
    }

    fn run(pages: &mut Pages, id: SequenceId, tokens: &[TokenId], lineage: Lineage) -> Vec<(u32, u32)> {
        let claim = pages.claim(&[(id, tokens.len())]).unwrap();
        let copies = claim.copies.clone();
        pages.commit(claim, std::iter::once((tokens, lineage)));
        assert!(pages.is_consistent());
        copies
    }

    /// A text of its own for each seed.
    fn text(seed: TokenId, n: usize) -> Vec<TokenId> {
        (0..n as TokenId).map(|it| seed * 1000 + it).collect()
    }

    #[test]
    fn forks_share_pages_until_one_writes() {
        let mut pages = Pages::new(8);
        let first = pages.open();
        grow(&mut pages, first, PAGE_TOKENS + 5);
        assert_eq!(pages.n_free(), 6);
        let second = pages.fork(first).unwrap();
        assert_eq!(pages.n_free(), 6);
        assert_eq!(grow(&mut pages, second, 1).len(), 1, "the partial page is copied before it is written");
        assert_eq!(pages.n_free(), 5);
        assert!(grow(&mut pages, first, 1).is_empty(), "nobody else holds it any more");
        pages.close(first);
        assert_eq!(pages.n_free(), 6);
        pages.close(second);
        pages.close(second);
        assert_eq!(pages.n_free(), 8);
    }

    #[test]
    fn a_claim_is_all_or_nothing() {
        let mut pages = Pages::new(3);
        let (first, second) = (pages.open(), pages.open());
        let error = pages.claim(&[(first, 2 * PAGE_TOKENS), (second, PAGE_TOKENS + 1)]).unwrap_err();
        assert!(matches!(error, ModelError::OutOfPages { needed: 4, free: 3 }));
        let claim = pages.claim(&[(first, 2 * PAGE_TOKENS), (second, PAGE_TOKENS)]).unwrap();
        assert_eq!(pages.n_free(), 0);
        pages.give_back(claim);
        assert_eq!(pages.n_free(), 3);
        assert!(pages.claim(&[(SequenceId(99), 1)]).is_err());
    }

    #[test]
    fn truncation_frees_whole_pages_and_spares_shared_ones() {
        let mut pages = Pages::new(8);
        let first = pages.open();
        grow(&mut pages, first, 3 * PAGE_TOKENS);
        let second = pages.fork(first).unwrap();
        pages.truncate(second, PAGE_TOKENS + 1).unwrap();
        assert_eq!(pages.tokens(second).unwrap().len(), PAGE_TOKENS + 1);
        assert_eq!(pages.n_free(), 5);
        assert_eq!(grow(&mut pages, second, 1).len(), 1);
        pages.close(first);
        pages.close(second);
        assert_eq!(pages.n_free(), 8);
    }
    #[test]
    fn of_those_that_share_a_page_all_but_one_copy_it() {
        let mut pages = Pages::new(4);
        let first = pages.open();
        grow(&mut pages, first, 5);
        let forks = [pages.fork(first).unwrap(), pages.fork(first).unwrap()];
        let claim = pages.claim(&[(forks[0], 1), (first, 1), (forks[1], 1)]).unwrap();
        assert_eq!(claim.copies.len(), 2, "the last one writes where it is");
        pages.give_back(claim);
        assert_eq!(pages.n_free(), 3);
    }

    #[test]
    fn whole_pages_are_found_by_their_text_and_what_ran_it() {
        let mut pages = Pages::new(16);
        let first = pages.open();
        let said = text(1, 3 * PAGE_TOKENS);
        run(&mut pages, first, &said, 0);
        let second = pages.open();
        assert_eq!(pages.adopt(second, &said, 0), 0, "nothing is kept before somebody says so");
        pages.keep(first);
        assert_eq!(pages.adopt(second, &said, 0), 2 * PAGE_TOKENS, "a text's last token always runs");
        assert_eq!(pages.adopt(second, &said, 0), 2 * PAGE_TOKENS);
        assert_eq!((pages.n_free(), pages.tokens(second).unwrap()), (13, &said[..2 * PAGE_TOKENS]));
        let others = [pages.open(), pages.open(), pages.open()];
        assert_eq!(pages.adopt(others[0], &said, 1), 0, "an adapter's pages are its own");
        assert_eq!(pages.adopt(others[1], &said[1..], 0), 0, "so are another text's");
        let branch = [&said[..PAGE_TOKENS], &text(2, 9)].concat();
        assert_eq!(pages.adopt(others[2], &branch, 0), PAGE_TOKENS);
        // What was run under two lineages is nobody else's.
        run(&mut pages, others[2], &said[PAGE_TOKENS..2 * PAGE_TOKENS], 1);
        pages.keep(others[2]);
        run(&mut pages, others[0], &said[..PAGE_TOKENS], 1);
        pages.keep(others[0]);
        let last = pages.open();
        assert_eq!(pages.adopt(last, &said, 1), PAGE_TOKENS);
        for id in [first, second, last].into_iter().chain(others) {
            pages.close(id);
        }
        assert_eq!(pages.n_free(), 16);
    }

    #[test]
    fn what_two_ran_beside_each_other_is_kept_once() {
        let mut pages = Pages::new(8);
        let said = text(1, 2 * PAGE_TOKENS + 3);
        let both = [pages.open(), pages.open()];
        both.iter().for_each(|it| assert!(run(&mut pages, *it, &said, 0).is_empty()));
        assert_eq!(pages.n_free(), 2);
        both.iter().for_each(|it| pages.keep(*it));
        assert_eq!(pages.n_free(), 4);
        pages.close(both[0]);
        assert_eq!(pages.n_free(), 5);
        pages.close(both[1]);
        assert_eq!(pages.n_free(), 8);
    }

    #[test]
    fn what_was_not_used_for_longest_gives_way_and_ends_of_texts_before_beginnings() {
        let mut pages = Pages::new(4);
        let texts = [text(1, 2 * PAGE_TOKENS), text(2, 2 * PAGE_TOKENS)];
        for text in &texts {
            let id = pages.open();
            run(&mut pages, id, text, 0);
            pages.keep(id);
            pages.close(id);
        }
        assert_eq!(pages.n_free(), 4);
        let found = |pages: &mut Pages, text: &[TokenId]| {
            let id = pages.open();
            let n = pages.adopt(id, &[text, &[9]].concat(), 0);
            pages.close(id);
            n / PAGE_TOKENS
        };
        assert_eq!(found(&mut pages, &texts[0]), 2, "and the first is the last used now");
        let mut held = Vec::new();
        for expected in [(2, 1), (1, 1), (0, 1), (0, 0)] {
            held.push(pages.open());
            grow(&mut pages, held[held.len() - 1], 1);
            assert_eq!((found(&mut pages, &texts[0]), found(&mut pages, &texts[1])), expected);
        }
        held.into_iter().for_each(|it| pages.close(it));
        assert_eq!(pages.n_free(), 4);
    }

    #[test]
    fn a_page_that_is_kept_is_copied_before_it_is_written_again() {
        let mut pages = Pages::new(4);
        let said = text(1, PAGE_TOKENS + 1);
        let first = pages.open();
        run(&mut pages, first, &said, 0);
        pages.keep(first);
        pages.truncate(first, 5).unwrap();
        assert_eq!(pages.needed(first, 1).unwrap(), 1);
        assert_eq!(run(&mut pages, first, &[3], 0).len(), 1);
        let second = pages.open();
        assert_eq!(pages.adopt(second, &said, 0), PAGE_TOKENS, "what was kept is as it was");
        pages.share(first, second, 2).unwrap();
        assert_eq!(pages.tokens(second).unwrap(), &said[..2]);
        [first, second].into_iter().for_each(|it| pages.close(it));
        assert_eq!(pages.n_free(), 4);
    }
}
