//! The scheduler alone, simulated: seeded arrivals, shared beginnings, cancels, early ends and full pools, millions of
//! steps, each of them checked against what must always hold.

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
    /// An older request that runs a beginning which it shares, and the length of that.
    behind: Option<(RequestId, usize)>,
    /// Tokens of a draft.
    n_offered: usize,
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
        let (batch_tokens_max, prompt_tokens_max) = (random.random_range(1..=64), random.random_range(1..=64));
        let draft_rows_max = random.random_range(0..20);
        let options = EngineOptions { running_max, batch_tokens_max, prompt_tokens_max, draft_rows_max };
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
        self.scheduler.submit(id);
        let (n_run, n_generated, is_admitted, behind, n_offered, deadline) = (0, 0, false, None, 0, 0);
        let mut made = Simulated {
            n_prompt,
            n_to_generate,
            n_pages,
            n_run,
            n_generated,
            is_admitted,
            behind,
            n_offered,
            deadline,
        };
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
        loop {
            let first_waiting = self.open.iter().find(|it| !it.1.is_admitted).map(|it| (*it.0, *it.1));
            let n_running = self.open.values().filter(|it| it.is_admitted).count();
            assert!(n_running <= self.options.running_max && self.promised_pages() <= self.n_pages);
            let n_open = (self.scheduler.n_running(), self.scheduler.n_waiting());
            assert_eq!(n_open, (n_running, self.open.len() - n_running));
            let next = first_waiting.filter(|_| n_running < self.options.running_max);
            assert_eq!(self.scheduler.next_to_admit(), next.map(|it| it.0), "nobody overtakes");
            let Some((id, it)) = next else { return };
            let unpromised = self.n_pages - self.promised_pages();
            let demand = Demand { n_prompt: it.n_prompt, n_pages: it.n_pages };
            let is_admitted = self.scheduler.admit(demand, unpromised);
            assert_eq!(is_admitted, it.n_pages <= unpromised, "what fits is not kept waiting, and only that is not");
            if !is_admitted {
                return;
            }
            self.open.entry(id).and_modify(|it| it.is_admitted = true);
            self.follow(id);
        }
    }

    /// Some prompts begin as one that is running.
    fn follow(&mut self, id: RequestId) {
        let is_leader = |it: &(&RequestId, &Simulated)| *it.0 < id && it.1.is_admitted && !it.1.is_decoding();
        let leaders: Vec<_> = self.open.iter().filter(is_leader).map(|it| (*it.0, it.1.n_prompt)).collect();
        if leaders.is_empty() || self.random.random_bool(0.5) {
            return;
        }
        let (leader, n_leader) = leaders[self.random.random_range(0..leaders.len())];
        let n_common = self.random.random_range(1..=n_leader.min(self.open[&id].n_prompt));
        self.scheduler.wait_behind(id, leader, n_leader - n_common);
        self.open.entry(id).and_modify(|it| it.behind = Some((leader, n_common)));
    }

    /// Whether a request waits for what a leader runs; never for one that is done with its prompt, or gone.
    fn is_behind(&self, it: &Simulated) -> bool {
        let leader = |(id, n_common): (RequestId, usize)| self.open.get(&id).map(|it| (*it, n_common));
        it.behind.and_then(leader).is_some_and(|(it, n_common)| !it.is_decoding() && it.n_run < n_common)
    }

    /// Those who waited for what a leader has run by now go on from there.
    fn hand_on(&mut self) {
        for id in self.open.keys().copied().collect::<Vec<_>>() {
            let behind = self.open[&id].behind;
            let Some((leader, n_common)) = behind.filter(|it| self.open.contains_key(&it.0)) else { continue };
            if self.open[&leader].n_run >= n_common {
                self.share(id);
            }
        }
    }

    /// Drafts of some that decode, never of more than they may still generate.
    fn offer(&mut self) {
        for (id, it) in self.open.iter_mut().filter(|it| it.1.is_decoding()) {
            let room = it.n_to_generate - it.n_generated - 1;
            it.n_offered = if self.random.random_bool(0.3) { self.random.random_range(0..=room.min(8)) } else { 0 };
            self.scheduler.offer(*id, it.n_offered);
        }
    }

    fn share(&mut self, id: RequestId) {
        let Some(it) = self.open.get_mut(&id) else { return };
        let n_common = it.behind.take().map_or(0, |it| it.1);
        let n_new = n_common.min(it.n_prompt - 1).saturating_sub(it.n_run);
        it.n_run += n_new;
        self.scheduler.skip(id, n_new);
    }

    /// Those who waited for a prompt that has run go on from it, or sample with it where theirs is the same.
    fn end_waiting(&mut self, leader: RequestId) {
        let n_prompt = self.open[&leader].n_prompt;
        let waits = |it: &Simulated| it.behind.is_some_and(|it| it.0 == leader);
        let followers: Vec<_> = self.open.iter().filter(|it| waits(it.1)).map(|it| (*it.0, *it.1)).collect();
        for (request, it) in followers {
            if it.behind == Some((leader, n_prompt)) && it.n_prompt == n_prompt {
                self.open.entry(request).and_modify(|it| it.behind = None);
                self.run(&[Planned { request, n_tokens: n_prompt - it.n_run, samples: true }]);
            } else {
                self.share(request);
            }
        }
    }

    fn check(&self, batch: &[Planned]) {
        // Whose drafts are checked runs more than the one token that is known.
        let n_drafted: usize =
            batch.iter().filter(|it| self.open[&it.request].is_decoding()).map(|it| it.n_tokens - 1).sum();
        let n_tokens = batch.iter().map(|it| it.n_tokens).sum::<usize>() - n_drafted;
        assert!(n_drafted == 0 || n_drafted + batch.len() <= self.options.draft_rows_max);
        assert!(n_tokens <= self.options.batch_tokens_max.max(self.options.running_max + 1));
        let mut planned = BTreeMap::new();
        for part in batch {
            let it = self.open[&part.request];
            let n_outstanding = if it.is_decoding() { 1 + it.n_offered } else { it.n_prompt - it.n_run };
            assert!(it.is_admitted && (1..=n_outstanding).contains(&part.n_tokens), "{part:?} of {it:?}");
            let is_known = it.is_decoding() || part.n_tokens == n_outstanding;
            assert_eq!(part.samples, is_known, "a token is sampled after the last one known");
            assert_eq!(planned.insert(part.request, part.n_tokens), None, "twice in one pass");
        }
        let running = || self.open.iter().filter(|it| it.1.is_admitted);
        assert!(running().filter(|it| it.1.is_decoding()).all(|it| planned.contains_key(it.0)), "a decoder is stalled");
        let is_ready = |it: &Simulated| !it.is_decoding() && !self.is_behind(it);
        let first_prompt = running().find(|it| !it.1.is_decoding());
        assert!(first_prompt.is_none_or(|it| is_ready(it.1)), "the oldest prompt waits for nobody");
        let ready: Vec<_> = running().filter(|it| is_ready(it.1)).map(|it| *it.0).collect();
        let n_begun = ready.iter().take_while(|it| planned.contains_key(it)).count();
        let is_planned = |it: &&RequestId| planned.contains_key(*it) && !self.open[*it].is_decoding();
        assert_eq!(n_begun, self.open.keys().filter(is_planned).count(), "prompts run in order, and none that waits");
        assert!(n_begun > 0 || ready.is_empty(), "the oldest prompt is stalled");
        assert!(n_drafted == 0 || ready.is_empty(), "drafts delay a prompt");
        let n_of_prompts = n_tokens - running().filter(|it| it.1.is_decoding()).count();
        assert!(n_of_prompts == n_tokens || n_of_prompts <= self.options.prompt_tokens_max, "a pass is too long");
    }

    fn run(&mut self, batch: &[Planned]) {
        self.scheduler.advance(batch);
        for part in batch {
            let Some(it) = self.open.get_mut(&part.request) else { continue };
            let was_decoding = it.is_decoding();
            // Of a draft some comes true, and what does not is taken back.
            let n_untrue = if was_decoding { self.random.random_range(0..part.n_tokens) } else { 0 };
            it.n_run += part.n_tokens - n_untrue;
            it.n_generated += if was_decoding { part.n_tokens - n_untrue } else { usize::from(part.samples) };
            it.n_offered = 0;
            assert!(it.n_run.div_ceil(PAGE_TOKENS) <= it.n_pages, "more pages than were asked for");
            if !was_decoding && part.samples {
                self.end_waiting(part.request);
            }
            let it = self.open[&part.request];
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
        self.hand_on();
        self.offer();
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
