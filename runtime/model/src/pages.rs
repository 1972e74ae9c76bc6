//! Which KV page belongs to which sequences: counts and block tables, no contents.
//!
//! Sequences share pages after a fork. A page that more than one of them holds is never written: the writer gets a
//! copy first. Memory for a batch is claimed as a whole or not at all.

use std::collections::HashMap;

use fsq_kernels::{PAGE_TOKENS, Slot};

use crate::{ModelError, SequenceId, TokenId};

/// One open sequence.
#[derive(Debug, Default)]
struct Sequence {
    tokens: Vec<TokenId>,
    pages: Vec<u32>,
}

/// All sequences and the pool of pages.
#[derive(Debug)]
pub(crate) struct Pages {
    sequences: HashMap<SequenceId, Sequence>,
    next_sequence: u64,
    free: Vec<u32>,
    /// How many sequences hold each page.
    holders: Vec<u32>,
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
        }
    }

    pub(crate) fn n_free(&self) -> usize {
        self.free.len()
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
        let from = self.sequence(id)?;
        let copy = Sequence { tokens: from.tokens.clone(), pages: from.pages.clone() };
        for page in &copy.pages {
            self.holders[*page as usize] += 1;
        }
        Ok(self.insert(copy))
    }

    pub(crate) fn close(&mut self, id: SequenceId) {
        for page in self.sequences.remove(&id).unwrap_or_default().pages {
            self.release(page);
        }
    }

    pub(crate) fn truncate(&mut self, id: SequenceId, len: usize) -> Result<(), ModelError> {
        let unknown = ModelError::UnknownSequence { sequence: id };
        let sequence = self.sequences.get_mut(&id).ok_or(unknown)?;
        sequence.tokens.truncate(len);
        let n_pages = sequence.tokens.len().div_ceil(PAGE_TOKENS);
        for page in sequence.pages.split_off(n_pages) {
            self.release(page);
        }
        Ok(())
    }

    pub(crate) fn tokens(&self, id: SequenceId) -> Option<&[TokenId]> {
        self.sequences.get(&id).map(|it| it.tokens.as_slice())
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence, ModelError> {
        self.sequences.get(&id).ok_or(ModelError::UnknownSequence { sequence: id })
    }

    fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }

    /// Free pages that a sequence takes to grow by so many tokens, a copy of a shared last page included.
    pub(crate) fn needed(&self, id: SequenceId, n_tokens: usize) -> Result<usize, ModelError> {
        let sequence = self.sequence(id)?;
        let n_pages = (sequence.tokens.len() + n_tokens).div_ceil(PAGE_TOKENS);
        Ok(n_pages - sequence.pages.len() + usize::from(n_tokens > 0 && self.is_tail_shared(sequence)))
    }

    /// Claims what the sequences need to grow by so many tokens each. Nothing has changed on an error.
    pub(crate) fn claim(&mut self, growth: &[(SequenceId, usize)]) -> Result<Claim, ModelError> {
        let mut needed = 0;
        for (id, n_tokens) in growth {
            needed += self.needed(*id, *n_tokens)?;
        }
        if needed > self.free.len() {
            return Err(ModelError::OutOfPages { needed, free: self.free.len() });
        }
        let mut claim = Claim::default();
        for (id, n_tokens) in growth {
            let sequence = self.sequence(*id)?;
            let (mut table, n_pages) =
                (sequence.pages.clone(), (sequence.tokens.len() + n_tokens).div_ceil(PAGE_TOKENS));
            if self.is_tail_shared(sequence)
                && let (Some(last), Some(page)) = (table.last_mut(), self.free.pop())
            {
                claim.copies.push((*last, page));
                claim.fresh.push(page);
                *last = page;
            }
            let fresh = self.free.split_off(self.free.len() - (n_pages - table.len()));
            claim.fresh.extend(&fresh);
            table.extend(fresh);
            claim.tables.push((*id, table));
        }
        Ok(claim)
    }

    /// Whether the next token would be written into a page that others hold too.
    fn is_tail_shared(&self, sequence: &Sequence) -> bool {
        let is_partial = !sequence.tokens.len().is_multiple_of(PAGE_TOKENS);
        is_partial && sequence.pages.last().is_some_and(|it| self.holders[*it as usize] > 1)
    }

    /// Makes a claim the state of its sequences, and appends their tokens.
    pub(crate) fn commit<'a>(&mut self, claim: Claim, tokens: impl Iterator<Item = &'a [TokenId]>) {
        for page in claim.fresh {
            self.holders[page as usize] = 1;
        }
        for (page, _) in claim.copies {
            self.release(page);
        }
        for ((id, table), tokens) in claim.tables.into_iter().zip(tokens) {
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.pages = table;
                sequence.tokens.extend_from_slice(tokens);
            }
        }
    }

    /// Returns what was claimed.
    pub(crate) fn give_back(&mut self, claim: Claim) {
        self.free.extend(claim.fresh);
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
        let claim = pages.claim(&[(id, n)]).unwrap();
        let copies = claim.copies.clone();
        pages.commit(claim, std::iter::once(vec![7; n].as_slice()));
        copies
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
}
