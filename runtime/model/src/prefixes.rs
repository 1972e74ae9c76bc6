//! Which page holds which beginning of a text, so that no text is run twice. Counts and tokens, no contents.
//!
//! What a page holds follows from the tokens in it, all tokens before them and the lineage that ran them: the bare
//! policy or one generation of one adapter. So pages form a tree: a page is found under the page before it by its own
//! tokens, which are compared whole; a hash that two texts share does no harm. Pages that no sequence holds stay
//! until memory is needed, and the least recently used goes first. Whoever holds a page holds all before it and lets
//! go of the last one first, so what is taken never has anything behind it.

use std::collections::{BTreeMap, HashMap};

use fsq_kernels::PAGE_TOKENS;

use crate::TokenId;

/// What ran a text: 0 for the bare policy, and a number of its own for every adapter that was ever put in a place.
pub(crate) type Lineage = u64;

/// What a page is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Before {
    Nothing(Lineage),
    /// A number that no other content was ever given.
    Page(u64),
}

/// All that the content of a page follows from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Content {
    before: Before,
    tokens: [TokenId; PAGE_TOKENS],
}

/// One page that is kept for whoever has the same text.
#[derive(Debug)]
struct Kept {
    content: Content,
    number: u64,
    /// When the last sequence let go of it; `None` while one holds it.
    idle_since: Option<u64>,
}

/// The pages that are kept.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    pages: HashMap<Content, u32>,
    kept: HashMap<u32, Kept>,
    /// Pages that no sequence holds, least recently used first.
    idle: BTreeMap<u64, u32>,
    next_number: u64,
    /// Counts the times that a page became idle.
    now: u64,
}

impl Prefixes {
    /// Pages that no sequence holds.
    pub(crate) fn n_idle(&self) -> usize {
        self.idle.len()
    }

    pub(crate) fn is_kept(&self, page: u32) -> bool {
        self.kept.contains_key(&page)
    }

    /// The page of these tokens behind `before`, or at the beginning of a text.
    pub(crate) fn find(&self, lineage: Lineage, before: Option<u32>, tokens: &[TokenId]) -> Option<u32> {
        self.pages.get(&self.content(lineage, before, tokens)?).copied()
    }

    /// Keeps a page, which a sequence holds, under what is in it. The page before it is kept already.
    pub(crate) fn keep(&mut self, lineage: Lineage, before: Option<u32>, tokens: &[TokenId], page: u32) {
        let Some(content) = self.content(lineage, before, tokens) else { return };
        self.pages.insert(content.clone(), page);
        self.kept.insert(page, Kept { content, number: self.next_number, idle_since: None });
        self.next_number += 1;
    }

    fn content(&self, lineage: Lineage, before: Option<u32>, tokens: &[TokenId]) -> Option<Content> {
        let before = match before {
            Some(page) => Before::Page(self.kept.get(&page)?.number),
            None => Before::Nothing(lineage),
        };
        Some(Content { before, tokens: tokens.try_into().ok()? })
    }

    /// Notes that a sequence holds a page again.
    pub(crate) fn hold(&mut self, page: u32) {
        if let Some(since) = self.kept.get_mut(&page).and_then(|it| it.idle_since.take()) {
            self.idle.remove(&since);
        }
    }

    /// Notes that no sequence holds a page any more; false when it is not kept.
    pub(crate) fn let_go(&mut self, page: u32) -> bool {
        let Some(kept) = self.kept.get_mut(&page) else { return false };
        kept.idle_since = Some(self.now);
        self.idle.insert(self.now, page);
        self.now += 1;
        true
    }

    /// Forgets the page that was idle longest and hands it out.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        let kept = self.kept.remove(&page)?;
        self.pages.remove(&kept.content);
        Some(page)
    }

    /// Whether all tables agree and nothing is kept behind a page that is not.
    #[cfg(test)]
    pub(crate) fn is_consistent(&self) -> bool {
        let numbers: std::collections::HashSet<u64> = self.kept.values().map(|it| it.number).collect();
        let is_found = |(page, kept): (&u32, &Kept)| {
            let has_before = match kept.content.before {
                Before::Nothing(_) => true,
                Before::Page(number) => numbers.contains(&number),
            };
            let is_idle = kept.idle_since.is_none_or(|it| self.idle.get(&it) == Some(page));
            has_before && is_idle && self.pages.get(&kept.content) == Some(page)
        };
        let n_idle = self.kept.values().filter(|it| it.idle_since.is_some()).count();
        self.pages.len() == self.kept.len() && n_idle == self.idle.len() && self.kept.iter().all(is_found)
    }
}
