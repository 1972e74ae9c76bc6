//! The engine against a scripted decoder: seeded arrivals, shared beginnings, adapters and their generations, cancels
//! and full caches, checked at every step. What the decoder says depends on what lies in its pages, so that a page
//! which is written twice, handed to a wrong text or left over from another adapter shows in the answers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use fsq_kernels::PAGE_TOKENS;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::pages::{Pages, slot};
use crate::prefixes::Lineage;
use crate::{
    AdapterId, Decode, Drafts, Engine, EngineEvent, EngineOptions, Finish, Logits, LogitsFor, ModelError, Request,
    RequestId, Sampling, SequenceId, Step, TokenId,
};

const VOCAB: usize = 50;
const CONTEXT: usize = 150;

/// Says what the pages of a sequence hold, keeps real tables of them and can be told to fail.
struct Scripted {
    pages: Pages,
    /// Of each page: what stands for the keys and values of its tokens.
    memory: Vec<[(TokenId, Lineage); PAGE_TOKENS]>,
    lineages: BTreeMap<AdapterId, Lineage>,
    n_tokens_max: usize,
    n_run: usize,
    fails_next: bool,
}

/// The token that follows a text: any change of the text, or of what ran a part of it, changes it.
fn next_token(text: impl Iterator<Item = (TokenId, Lineage)>) -> TokenId {
    let add = |hash: u32, it: u32| hash.wrapping_mul(31).wrapping_add(it + 1);
    let text: Vec<_> = text.collect();
    let hash = text.iter().fold(7u32, |hash, (token, lineage)| add(add(hash, *token), *lineage as u32));
    // Mostly it repeats itself, so that drafts come true.
    match text.len().checked_sub(9) {
        Some(at) if !(hash >> 8).is_multiple_of(8) => text[at].0,
        _ => hash % VOCAB as u32,
    }
}

impl Scripted {
    fn new(n_pages: usize) -> Self {
        let (pages, memory) = (Pages::new(n_pages), vec![[(0, 0); PAGE_TOKENS]; n_pages]);
        Self { pages, memory, lineages: BTreeMap::new(), n_tokens_max: 0, n_run: 0, fails_next: false }
    }

    /// Puts another adapter into a place.
    fn reload(&mut self, place: AdapterId) {
        let newest = self.lineages.values().copied().max().unwrap_or(0);
        self.lineages.insert(place, newest + 1);
    }

    fn lineage(&self, adapter: Option<AdapterId>) -> Lineage {
        adapter.map_or(0, |it| self.lineages[&it])
    }
}

impl Decode for Scripted {
    fn vocab(&self) -> usize {
        VOCAB
    }
    fn context_tokens(&self) -> usize {
        CONTEXT
    }
    fn max_sequences(&self) -> usize {
        4
    }
    fn page_tokens(&self) -> usize {
        PAGE_TOKENS
    }
    fn free_pages(&self) -> usize {
        self.pages.n_free()
    }
    fn pages_to_grow(&self, sequence: SequenceId, n_tokens: usize) -> usize {
        self.pages.needed(sequence, n_tokens).unwrap()
    }
    fn open_sequence(&mut self) -> SequenceId {
        self.pages.open()
    }
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, ModelError> {
        self.pages.fork(sequence)
    }
    fn share(&mut self, from: SequenceId, to: SequenceId, len: usize) -> Result<(), ModelError> {
        self.pages.share(from, to, len)
    }
    fn keep(&mut self, sequence: SequenceId) {
        self.pages.keep(sequence);
    }
    fn adopt(&mut self, sequence: SequenceId, text: &[TokenId], adapter: Option<AdapterId>) -> usize {
        self.pages.adopt(sequence, text, self.lineage(adapter))
    }
    fn close(&mut self, sequence: SequenceId) {
        self.pages.close(sequence);
    }
    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<(), ModelError> {
        self.pages.truncate(sequence, len)
    }
    fn tokens(&self, sequence: SequenceId) -> Option<&[TokenId]> {
        self.pages.tokens(sequence)
    }
    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Logits, ModelError> {
        if std::mem::take(&mut self.fails_next) {
            return Err(ModelError::OutOfPages { needed: 1, free: 0 });
        }
        let growth: Vec<_> = steps.iter().map(|it| (it.sequence, it.tokens.len())).collect();
        let claim = self.pages.claim(&growth)?;
        for (from, to) in &claim.copies {
            self.memory[*to as usize] = self.memory[*from as usize];
        }
        let (mut values, mut rows, mut ran) = (Vec::new(), Vec::new(), Vec::new());
        for (index, step) in steps.iter().enumerate() {
            let (table, lineage) = (claim.table(index), self.lineage(step.adapter));
            let (start, n_held) = (values.len() / VOCAB, self.pages.tokens(step.sequence).unwrap().len());
            for (position, token) in (n_held..).zip(step.tokens) {
                let place = slot(table, position);
                self.memory[place.page as usize][place.offset as usize] = (*token, lineage);
                let is_last = position + 1 == n_held + step.tokens.len();
                if step.logits == LogitsFor::All || (step.logits == LogitsFor::Last && is_last) {
                    let places = (0..=position).map(|it| slot(table, it));
                    let next = next_token(places.map(|it| self.memory[it.page as usize][it.offset as usize]));
                    values.extend((0..VOCAB as u32).map(|it| if it == next { 20.0 } else { 0.0 }));
                }
            }
            rows.push(start..values.len() / VOCAB);
            ran.push((step.tokens, lineage));
        }
        let n_tokens = steps.iter().map(|it| it.tokens.len()).sum();
        self.n_tokens_max = self.n_tokens_max.max(n_tokens);
        self.n_run += n_tokens;
        self.pages.commit(claim, ran.into_iter());
        Ok(Logits::new(VOCAB, values, rows))
    }
}

/// What a request must produce, worked out alone.
fn expected(request: &Request, lineage: Lineage) -> (Vec<TokenId>, Finish) {
    let mut text = request.prompt.clone();
    loop {
        let token = next_token(text.iter().map(|it| (*it, lineage)));
        text.push(token);
        let n_generated = text.len() - request.prompt.len();
        let finish = if request.stop.contains(&token) {
            Finish::Stop
        } else if n_generated == request.max_tokens {
            Finish::Length
        } else if text.len() == CONTEXT {
            Finish::Context
        } else {
            continue;
        };
        return (text[request.prompt.len()..].to_vec(), finish);
    }
}

/// One request as its client knows it.
struct Asked {
    request: Request,
    tokens: Vec<TokenId>,
    expected: (Vec<TokenId>, Finish),
    /// By this step it must have ended: every step runs a token of it or of one before it.
    deadline: u64,
}

impl Asked {
    fn n_left(&self) -> usize {
        self.request.prompt.len() + self.expected.0.len() - self.tokens.len()
    }
}

struct Simulation {
    random: ChaCha8Rng,
    engine: Engine<Scripted>,
    open: BTreeMap<RequestId, Asked>,
    n_pages: usize,
    step: u64,
    n_finished: usize,
    n_reused: usize,
    n_prompt: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let n_pages = random.random_range(5..20);
        let running_max = random.random_range(1..8);
        let (prompt_tokens_max, draft_rows_max) = (random.random_range(1..24), random.random_range(0..16));
        let options = EngineOptions { running_max, batch_tokens_max: 24, prompt_tokens_max, draft_rows_max };
        let mut decoder = Scripted::new(n_pages);
        decoder.reload(AdapterId(0));
        decoder.reload(AdapterId(1));
        let engine = Engine::new(decoder, options);
        Self { random, engine, open: BTreeMap::new(), n_pages, step: 0, n_finished: 0, n_reused: 0, n_prompt: 0 }
    }

    /// Most prompts begin as others do; some are asked for several times at once, or continue as several.
    fn arrive(&mut self) {
        let random = &mut self.random;
        let mut of_stem = ChaCha8Rng::seed_from_u64(random.random_range(0..3));
        let n_stem = if random.random_bool(0.3) { random.random_range(60..110) } else { random.random_range(0..70) };
        let stem: Vec<TokenId> = (0..n_stem).map(|_| of_stem.random_range(0..VOCAB as u32)).collect();
        let adapter = [None, None, Some(AdapterId(0)), Some(AdapterId(1))][random.random_range(0..4usize)];
        let (n_forks, are_same) = (random.random_range(1..=3), random.random_bool(0.5));
        let n_more = random.random_range(1..20);
        let mut more: Vec<TokenId> = (0..n_more).map(|_| random.random_range(0..VOCAB as u32)).collect();
        for _ in 0..n_forks {
            if !are_same {
                more[n_more / 2] = self.random.random_range(0..VOCAB as u32);
            }
            let prompt = [stem.as_slice(), &more].concat();
            let mut request = Request::new(prompt, self.random.random_range(1..60), Sampling::greedy());
            request.stop = vec![self.random.random_range(0..VOCAB as u32)];
            request.adapter = adapter;
            if self.random.random_bool(0.3) {
                request.sequence = Some(self.engine.decoder().open_sequence());
            }
            let expected = expected(&request, self.engine.decoder().lineage(adapter));
            let mut asked = Asked { request: request.clone(), tokens: Vec::new(), expected, deadline: 0 };
            let ahead: usize = self.open.values().map(Asked::n_left).sum();
            asked.deadline = self.step + (ahead + asked.n_left()) as u64;
            self.open.insert(self.engine.submit(request).unwrap(), asked);
        }
    }

    fn cancel(&mut self) {
        let chosen = self.random.random_range(0..self.open.len().max(1));
        if let Some(id) = self.open.keys().nth(chosen).copied() {
            assert!(self.engine.cancel(id) && !self.engine.cancel(id));
            self.forget(id);
        }
    }

    /// Another generation of an adapter that nobody runs under.
    fn reload(&mut self) {
        let place = AdapterId(self.random.random_range(0..2));
        if self.open.values().all(|it| it.request.adapter != Some(place)) {
            self.engine.decoder().reload(place);
        }
    }

    fn forget(&mut self, id: RequestId) -> Option<Asked> {
        let asked = self.open.remove(&id)?;
        if let Some(sequence) = asked.request.sequence {
            self.engine.decoder().close(sequence);
        }
        Some(asked)
    }

    fn step(&mut self) {
        for event in self.engine.step().unwrap() {
            let EngineEvent::Token { request, token, finish, logprob, n_reused, .. } = event else {
                panic!("no request is too large for this pool: {event:?}");
            };
            assert!((-0.01..=0.0).contains(&logprob));
            let asked = self.open.get_mut(&request).unwrap();
            if asked.tokens.is_empty() {
                (self.n_reused, self.n_prompt) = (self.n_reused + n_reused, self.n_prompt + asked.request.prompt.len());
            }
            asked.tokens.push(token);
            if let Some(finish) = finish {
                let asked = self.forget(request).unwrap();
                assert_eq!((asked.tokens, finish), asked.expected);
                assert!(self.step <= asked.deadline, "starved at step {}", self.step);
                self.n_finished += 1;
            }
        }
        self.step += 1;
        assert_eq!(self.engine.n_running() + self.engine.n_waiting(), self.open.len());
        let decoder = self.engine.decoder();
        assert!(decoder.n_tokens_max <= 24 && decoder.pages.is_consistent());
    }
}

#[test]
fn over_millions_of_steps_no_page_leaks_or_is_taken_for_another_and_nobody_starves() {
    let (mut n_steps, mut n_reused, mut n_prompt, mut drafts) = (0, 0, 0, Drafts::default());
    for seed in 0..200 {
        let mut simulation = Simulation::new(seed);
        while simulation.step < 10_000 {
            let rate = if (simulation.step / 500).is_multiple_of(2) { 0.15 } else { 0.02 };
            if simulation.open.is_empty() || (simulation.random.random_bool(rate) && simulation.open.len() < 24) {
                simulation.arrive();
            }
            if simulation.random.random_bool(0.02) {
                simulation.cancel();
            }
            if simulation.random.random_bool(0.01) {
                simulation.reload();
            }
            simulation.step();
        }
        while !simulation.engine.is_idle() {
            simulation.step();
        }
        assert!(simulation.n_finished > 100, "{} requests finished under seed {seed}", simulation.n_finished);
        assert_eq!(simulation.engine.decoder().free_pages(), simulation.n_pages);
        n_steps += simulation.step;
        drafts.n_drafted += simulation.engine.drafts().n_drafted;
        drafts.n_true += simulation.engine.drafts().n_true;
        (n_reused, n_prompt) = (n_reused + simulation.n_reused, n_prompt + simulation.n_prompt);
    }
    assert!(drafts.n_true > 1_000_000 && drafts.n_drafted > drafts.n_true + 100_000, "{drafts:?}");
    assert!(n_steps >= 2_000_000 && n_reused * 3 > n_prompt, "{n_steps} steps, {n_reused} of {n_prompt} tokens reused");
}

#[test]
fn draws_of_one_prompt_run_it_once_and_sample_from_the_same_logits() {
    let mut engine = Engine::new(Scripted::new(40), EngineOptions::new(8));
    let prompt: Vec<TokenId> = (0..45).collect();
    for _ in 0..8 {
        engine.submit(Request::new(prompt.clone(), 5, Sampling::greedy())).unwrap();
    }
    let events = engine.step().unwrap();
    assert_eq!((events.len(), engine.decoder().n_run), (8, 45), "all have their first token after one pass");
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    assert_eq!((engine.decoder().n_run, engine.decoder().free_pages()), (45 + 8 * 4, 40));
    // Whoever comes later finds the whole page that is left of it.
    engine.submit(Request::new(prompt, 1, Sampling::greedy())).unwrap();
    let events = engine.step().unwrap();
    assert!(matches!(events[..], [EngineEvent::Token { n_reused: PAGE_TOKENS, .. }]), "{events:?}");
}

#[test]
fn plans_that_begin_differently_run_what_they_share_once() {
    let mut engine = Engine::new(Scripted::new(40), EngineOptions::new(8));
    let begun = |it: TokenId| Request::new((0..40).chain([it, it, it]).collect(), 1, Sampling::greedy());
    for index in 0..4 {
        engine.submit(begun(index)).unwrap();
    }
    let leader = engine.step().unwrap();
    assert!(matches!(leader[..], [EngineEvent::Token { n_reused: 0, finish: Some(_), .. }]), "{leader:?}");
    let others = engine.step().unwrap();
    assert_eq!((others.len(), engine.decoder().n_run), (3, 43 + 3 * 3));
    // When the one that is waited for leaves, the next of them runs it.
    let options = EngineOptions { running_max: 4, batch_tokens_max: 16, prompt_tokens_max: 16, draft_rows_max: 0 };
    let mut engine = Engine::new(Scripted::new(40), options);
    let ids = [0, 1, 2].map(|it| engine.submit(begun(it)).unwrap());
    assert!(engine.step().unwrap().is_empty() && engine.cancel(ids[0]));
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    assert_eq!((engine.decoder().n_run, engine.decoder().free_pages()), (16 + 43 + 3, 40));
}

#[test]
fn a_request_that_no_pool_can_hold_fails_alone() {
    let mut engine = Engine::new(Scripted::new(3), EngineOptions::new(4));
    let small = engine.submit(Request::new(vec![1, 2], 3, Sampling::greedy())).unwrap();
    let large = engine.submit(Request::new(vec![1; 100], 40, Sampling::greedy())).unwrap();
    let (mut finished, mut failed) = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                EngineEvent::Token { request, finish: Some(_), .. } => finished.push(request),
                EngineEvent::Token { .. } => {}
                EngineEvent::Failed { request, .. } => failed.push(request),
            }
        }
    }
    assert_eq!((finished, failed), (vec![small], vec![large]));
    assert_eq!(engine.decoder().free_pages(), 3);
}

#[test]
fn when_pages_are_taken_away_the_youngest_gives_way() {
    let mut engine = Engine::new(Scripted::new(20), EngineOptions::new(4));
    let requests = [0, 1].map(|it| engine.submit(Request::new(vec![it], 5, Sampling::greedy())).unwrap());
    engine.decoder().fails_next = true;
    let events = engine.step().unwrap();
    assert!(matches!(events[..], [EngineEvent::Failed { request, .. }] if request == requests[1]));
    let mut n_tokens = 0;
    while !engine.is_idle() {
        n_tokens += engine.step().unwrap().len();
    }
    assert_eq!((n_tokens, engine.decoder().free_pages()), (5, 20));
}

#[test]
fn forks_of_one_prompt_fill_the_pool_to_the_last_page() {
    // Two pages of prompt are shared; each fork copies the second one and takes a third: 2 + 4 · 2 pages.
    let mut engine = Engine::new(Scripted::new(10), EngineOptions::new(8));
    let prompt: Vec<TokenId> = (0..40).collect();
    let stem = engine.decoder().open_sequence();
    let step = Step { sequence: stem, tokens: &prompt[..39], logits: LogitsFor::None, adapter: None };
    engine.decoder().forward(&[step]).unwrap();
    let forks: Vec<SequenceId> = (0..5).map(|_| engine.decoder().fork(stem).unwrap()).collect();
    for (fork, last) in forks.iter().zip(0..) {
        let text = [&prompt[..39], &[last]].concat();
        let mut request = Request::new(text, 40, Sampling::greedy());
        request.sequence = Some(*fork);
        engine.submit(request).unwrap();
    }
    let (mut n_tokens, mut n_failed) = (0, 0);
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                EngineEvent::Token { .. } => n_tokens += 1,
                EngineEvent::Failed { .. } => n_failed += 1,
            }
        }
    }
    // The owner keeps its forks open, so the fifth finds no page.
    assert_eq!((n_tokens, n_failed, engine.decoder().free_pages()), (160, 1, 0));
    forks.into_iter().chain([stem]).for_each(|it| engine.decoder().close(it));
    assert_eq!(engine.decoder().free_pages(), 10);
}

#[test]
fn what_cannot_be_served_is_refused_at_the_door() {
    let mut engine = Engine::new(Scripted::new(20), EngineOptions::new(4));
    let mut submit =
        |prompt: Vec<TokenId>, max_tokens| engine.submit(Request::new(prompt, max_tokens, Sampling::greedy()));
    assert!(matches!(submit(vec![], 1), Err(ModelError::EmptyStep)));
    assert!(matches!(submit(vec![1], 0), Err(ModelError::NothingToGenerate)));
    assert!(matches!(submit(vec![1; CONTEXT], 1), Err(ModelError::ContextFull { .. })));
    assert!(matches!(submit(vec![1, 50], 1), Err(ModelError::UnknownToken { token: 50, vocab: VOCAB })));
    let mut request = Request::new(vec![1], 1, Sampling::greedy());
    request.sequence = Some(SequenceId(5));
    assert!(matches!(engine.submit(request), Err(ModelError::UnknownSequence { .. })));
    assert!(engine.is_idle());
}

#[test]
fn the_most_probable_tokens_come_beside_the_chosen_one() {
    let mut engine = Engine::new(Scripted::new(20), EngineOptions::new(1));
    let mut request = Request::new(vec![3], 1, Sampling::greedy());
    request.top_logprobs = 3;
    engine.submit(request).unwrap();
    let events = engine.step().unwrap();
    let [EngineEvent::Token { token, logprob, top_logprobs, finish, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(top_logprobs.len(), 3);
    assert_eq!(top_logprobs[0], (*token, *logprob));
    assert!(top_logprobs[1].1 == top_logprobs[2].1 && top_logprobs[1].0 < top_logprobs[2].0);
    assert_eq!(*finish, Some(Finish::Length));
}
