//! The engine against a scripted decoder: seeded arrivals, cancels and full caches, checked at every step.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::pages::Pages;
use crate::{
    Decode, Engine, EngineEvent, EngineOptions, Finish, Logits, LogitsFor, ModelError, Request, RequestId, Sampling,
    SequenceId, Step, TokenId,
};

const VOCAB: usize = 50;
const CONTEXT: usize = 150;

/// Says what a sequence's tokens determine, keeps real pages and can be told to fail.
struct Scripted {
    pages: Pages,
    n_tokens_max: usize,
    fails_next: bool,
}

/// The token that follows a text: any change of the text changes it.
fn next_token(tokens: &[TokenId]) -> TokenId {
    tokens.iter().fold(7u32, |hash, it| hash.wrapping_mul(31).wrapping_add(it + 1)) % VOCAB as u32
}

impl Scripted {
    fn new(n_pages: usize) -> Self {
        Self { pages: Pages::new(n_pages), n_tokens_max: 0, fails_next: false }
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
        fsq_kernels::PAGE_TOKENS
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
        self.pages.commit(claim, steps.iter().map(|it| it.tokens));
        self.n_tokens_max = self.n_tokens_max.max(steps.iter().map(|it| it.tokens.len()).sum());
        let (mut values, mut rows) = (Vec::new(), Vec::new());
        for step in steps {
            let start = values.len() / VOCAB;
            if step.logits == LogitsFor::Last {
                let next = next_token(self.pages.tokens(step.sequence).unwrap());
                values.extend((0..VOCAB as u32).map(|it| if it == next { 20.0 } else { 0.0 }));
            }
            rows.push(start..values.len() / VOCAB);
        }
        Ok(Logits::new(VOCAB, values, rows))
    }
}

/// What a request must produce, worked out alone.
fn expected(request: &Request) -> (Vec<TokenId>, Finish) {
    let mut text = request.prompt.clone();
    loop {
        let token = next_token(&text);
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

fn random_request(random: &mut ChaCha8Rng) -> Request {
    let n = if random.random_bool(0.2) { random.random_range(60..CONTEXT) } else { random.random_range(1..20) };
    let prompt = (0..n).map(|_| random.random_range(0..VOCAB as u32)).collect();
    let mut request = Request::new(prompt, random.random_range(1..60), Sampling::greedy());
    request.stop = vec![random.random_range(0..VOCAB as u32)];
    request
}

#[test]
fn under_random_arrivals_and_cancels_nothing_is_lost_and_nothing_leaks() {
    for seed in 0..30 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let n_pages = random.random_range(5..20);
        let options = EngineOptions { running_max: random.random_range(1..8), batch_tokens_max: 24 };
        let mut engine = Engine::new(Scripted::new(n_pages), options);
        let mut open: BTreeMap<RequestId, (Request, Vec<TokenId>)> = BTreeMap::new();
        let mut n_finished = 0;
        for step in 0..1500 {
            if step < 1000 && random.random_bool(0.15) {
                let request = random_request(&mut random);
                open.insert(engine.submit(request.clone()).unwrap(), (request, Vec::new()));
            }
            if random.random_bool(0.02)
                && let Some(id) = open.keys().nth(random.random_range(0..open.len().max(1))).copied()
            {
                assert!(engine.cancel(id) && !engine.cancel(id));
                open.remove(&id);
            }
            for event in engine.step().unwrap() {
                let EngineEvent::Token { request, token, finish, logprob, .. } = event else {
                    panic!("no request is too large for this pool: {event:?}");
                };
                assert!((-0.01..=0.0).contains(&logprob));
                let (asked, tokens) = open.get_mut(&request).unwrap();
                tokens.push(token);
                if let Some(finish) = finish {
                    assert_eq!((tokens.clone(), finish), expected(asked));
                    open.remove(&request);
                    n_finished += 1;
                }
            }
            assert_eq!(engine.n_running() + engine.n_waiting(), open.len());
            assert!(engine.decoder().n_tokens_max <= 24);
        }
        while !engine.is_idle() {
            engine.step().unwrap();
        }
        assert!(n_finished > 20, "{n_finished} requests finished under seed {seed}");
        assert_eq!(engine.decoder().free_pages(), n_pages);
    }
}

#[test]
fn a_request_that_no_pool_can_hold_fails_alone() {
    let mut engine = Engine::new(Scripted::new(3), EngineOptions { running_max: 4, batch_tokens_max: 64 });
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
    let mut engine = Engine::new(Scripted::new(20), EngineOptions { running_max: 4, batch_tokens_max: 64 });
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
    let mut engine = Engine::new(Scripted::new(10), EngineOptions { running_max: 8, batch_tokens_max: 64 });
    let prompt: Vec<TokenId> = (0..40).collect();
    let stem = engine.decoder().open_sequence();
    let step = Step { sequence: stem, tokens: &prompt[..39], logits: LogitsFor::None, adapter: None };
    engine.decoder().forward(&[step]).unwrap();
    let forks: Vec<SequenceId> = (0..5).map(|_| engine.decoder().fork(stem).unwrap()).collect();
    for fork in &forks {
        let mut request = Request::new(prompt.clone(), 40, Sampling::greedy());
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
    let mut engine = Engine::new(Scripted::new(20), EngineOptions { running_max: 4, batch_tokens_max: 64 });
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
    let mut engine = Engine::new(Scripted::new(20), EngineOptions { running_max: 1, batch_tokens_max: 8 });
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
