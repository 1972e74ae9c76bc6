//! The scheduler alone, simulated: seeded arrivals, cancels, early ends and full pools, millions of steps, each of them
//! checked against what must always hold.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scheduler::{Demand, EngineOptions, Planned, RequestId, Scheduler};

const PAGE_TOKENS: usize = 16;
const SEEDS: u64 = 100;
const STEPS: u64 = 20_000;

/// One request as a client would know it: what it asked for and what has happened to it.
#[derive(Clone, Copy, Debug)]
struct Simulated {
    n_prompt: usize,
    /// Tokens that it will generate, which the scheduler is not told.
    n_to_generate: usize,
    n_pages: usize,
    n_run: usize,
    n_generated: usize,
    is_admitted: bool,
    /// By this step it must have ended: see [`Simulation::work`].
    deadline: u64,
}

impl Simulated {
    /// Tokens that have yet to run; the last one generated never does.
    fn n_left(&self) -> usize {
        self.n_prompt + self.n_to_generate - 1 - self.n_run
    }

    fn is_decoding(&self) -> bool {
        self.n_generated > 0
    }
}

struct Simulation {
    random: ChaCha8Rng,
    options: EngineOptions,
    scheduler: Scheduler,
    n_pages: usize,
    open: BTreeMap<RequestId, Simulated>,
    next: u64,
    step: u64,
    n_finished: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Small pools and batches, so that every limit is met all the time.
        let running_max = random.random_range(1..=12);
        let options = EngineOptions { running_max, batch_tokens_max: random.random_range(1..=64) };
        let (scheduler, n_pages) = (Scheduler::new(options), random.random_range(20..60));
        let open = BTreeMap::new();
        Self { random, options, scheduler, n_pages, open, next: 0, step: 0, n_finished: 0 }
    }

    fn arrive(&mut self) {
        let n_prompt: usize = if self.random.random_bool(0.1) { 200 } else { self.random.random_range(1..30) };
        // Clients allow for more tokens than they come to need.
        let n_max = self.random.random_range(1..100);
        let n_to_generate = self.random.random_range(1..=n_max);
        let n_pages = (n_prompt + n_max - 1).div_ceil(PAGE_TOKENS);
        let id = RequestId(self.next);
        self.next += 1;
        self.scheduler.submit(id, Demand { n_prompt, n_pages });
        let (n_run, n_generated, is_admitted) = (0, 0, false);
        let mut made = Simulated { n_prompt, n_to_generate, n_pages, n_run, n_generated, is_admitted, deadline: 0 };
        // Whatever comes later, every step runs a token of this request or of one before it.
        let ahead: usize = self.open.values().map(Simulated::n_left).sum();
        made.deadline = self.step + (ahead + made.n_left()) as u64;
        self.open.insert(id, made);
    }

    fn cancel(&mut self) {
        let chosen = self.random.random_range(0..self.open.len().max(1));
        if let Some(id) = self.open.keys().nth(chosen).copied() {
            assert!(self.scheduler.remove(id) && !self.scheduler.remove(id));
            self.open.remove(&id);
        }
    }

    fn promised_pages(&self) -> usize {
        self.open.values().filter(|it| it.is_admitted).map(|it| it.n_pages).sum()
    }

    /// Admits in order of arrival, and all that fit.
    fn admit(&mut self) {
        let unpromised = self.n_pages - self.promised_pages();
        let first_waiting = self.open.iter().filter(|it| !it.1.is_admitted).map(|it| *it.0);
        let expected: Vec<RequestId> = first_waiting.collect();
        let admitted = self.scheduler.admit(unpromised);
        assert_eq!(admitted, expected[..admitted.len()], "nobody overtakes");
        for id in &admitted {
            self.open.entry(*id).and_modify(|it| it.is_admitted = true);
        }
        assert!(self.promised_pages() <= self.n_pages, "more is promised than there is");
        let n_running = self.open.values().filter(|it| it.is_admitted).count();
        assert_eq!((self.scheduler.n_running(), self.scheduler.n_waiting()), (n_running, self.open.len() - n_running));
        assert!(n_running <= self.options.running_max);
        if let Some(id) = self.scheduler.first_waiting() {
            let fits = self.open[&id].n_pages + self.promised_pages() <= self.n_pages;
            assert!(!fits || n_running == self.options.running_max, "what fits is not kept waiting");
        }
    }

    fn check(&self, batch: &[Planned]) {
        let n_tokens: usize = batch.iter().map(|it| it.n_tokens).sum();
        assert!(n_tokens <= self.options.batch_tokens_max.max(self.options.running_max + 1));
        let mut planned = BTreeMap::new();
        for part in batch {
            let it = self.open[&part.request];
            let n_outstanding = if it.is_decoding() { 1 } else { it.n_prompt - it.n_run };
            assert!(it.is_admitted && (1..=n_outstanding).contains(&part.n_tokens), "{part:?} of {it:?}");
            assert_eq!(part.samples, part.n_tokens == n_outstanding, "a token is sampled after the last one known");
            assert_eq!(planned.insert(part.request, part.n_tokens), None, "twice in one pass");
        }
        let running = || self.open.iter().filter(|it| it.1.is_admitted);
        assert!(running().filter(|it| it.1.is_decoding()).all(|it| planned.contains_key(it.0)), "a decoder is stalled");
        let first_prompt = running().find(|it| !it.1.is_decoding());
        assert!(first_prompt.is_none_or(|it| planned.contains_key(it.0)), "the oldest prompt is stalled");
    }

    fn run(&mut self, batch: &[Planned]) {
        self.scheduler.advance(batch);
        for part in batch {
            let Some(it) = self.open.get_mut(&part.request) else { continue };
            it.n_run += part.n_tokens;
            it.n_generated += usize::from(part.samples);
            assert!(it.n_run.div_ceil(PAGE_TOKENS) <= it.n_pages, "more pages than were asked for");
            if it.n_generated == it.n_to_generate {
                assert_eq!(it.n_run, it.n_prompt + it.n_to_generate - 1, "every token ran once");
                assert!(self.step <= it.deadline, "starved: {it:?} at step {}", self.step);
                self.open.remove(&part.request);
                assert!(self.scheduler.remove(part.request));
                self.n_finished += 1;
            }
        }
    }

    fn step(&mut self) {
        self.admit();
        let batch = self.scheduler.next_batch();
        assert_eq!(batch.is_empty(), self.open.is_empty(), "there is work and none is done");
        self.check(&batch);
        self.step += 1;
        self.run(&batch);
    }
}

#[test]
fn over_millions_of_steps_no_token_is_lost_no_page_leaks_and_nobody_starves() {
    let mut n_steps = 0;
    for seed in 0..SEEDS {
        let mut simulation = Simulation::new(seed);
        while simulation.step < STEPS {
            // Arrivals come in waves, so that pools run full and empty.
            let rate = if (simulation.step / 1000).is_multiple_of(2) { 0.3 } else { 0.02 };
            if simulation.random.random_bool(rate) && simulation.open.len() < 64 {
                simulation.arrive();
            }
            if simulation.random.random_bool(0.01) {
                simulation.cancel();
            }
            if simulation.open.is_empty() {
                simulation.arrive();
            }
            simulation.step();
        }
        while !simulation.open.is_empty() {
            simulation.step();
        }
        assert!(simulation.n_finished > 100, "only {} requests ended", simulation.n_finished);
        assert_eq!((simulation.promised_pages(), simulation.scheduler.n_running()), (0, 0));
        n_steps += simulation.step;
    }
    assert!(n_steps >= 2_000_000, "{n_steps} steps");
}
