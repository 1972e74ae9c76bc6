//! Counters and gauges in Prometheus' text format. Labels are bounded: routes of the table, statuses, one policy.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fsq_model::Drafts;

use crate::drift::Seen;
use crate::options::PolicyFacts;
use crate::store::Counts;

/// Upper ends of the buckets for the time to a request's first token, in seconds: vLLM's, so that its dashboards fit.
const FIRST_TOKEN_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// The same for the time between two tokens of an answer.
const NEXT_TOKEN_BUCKETS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

/// Times, counted by size.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last is for what is beyond them. Then the sum of all times, in seconds.
    counted: Mutex<(Vec<u64>, f64)>,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counted: Mutex::new((vec![0; bounds.len() + 1], 0.0)) }
    }

    fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = self.bounds.partition_point(|it| *it < seconds);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.0[bucket] += 1;
        counted.1 += seconds;
    }

    fn render(&self, page: &mut String, name: &str, label: &str, help: &str) {
        let (counts, sum) = self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} histogram");
        let separator = if label.is_empty() { "" } else { "," };
        let mut n = 0;
        for (bound, count) in self.bounds.iter().zip(&counts) {
            n += count;
            let _ = writeln!(page, "{name}_bucket{{{label}{separator}le=\"{bound}\"}} {n}");
        }
        n += counts.last().copied().unwrap_or_default();
        let _ = writeln!(page, "{name}_bucket{{{label}{separator}le=\"+Inf\"}} {n}");
        let braces = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        let _ = writeln!(page, "{name}_sum{braces} {sum}\n{name}_count{braces} {n}");
    }
}

/// What the server counts, from its start.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    prompt_tokens: AtomicU64,
    /// Of those, what answers did not have to run because others had.
    reused_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    /// Tokens that drafts held, and those of them that came true.
    drafts: (AtomicU64, AtomicU64),
    waiting: AtomicUsize,
    running: AtomicUsize,
    /// Pages of keys and values in use, and all there are.
    pages: (AtomicUsize, AtomicUsize),
    first_token: Histogram,
    next_token: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            prompt_tokens: AtomicU64::default(),
            reused_tokens: AtomicU64::default(),
            generated_tokens: AtomicU64::default(),
            drafts: Default::default(),
            waiting: AtomicUsize::default(),
            running: AtomicUsize::default(),
            pages: Default::default(),
            first_token: Histogram::new(FIRST_TOKEN_BUCKETS),
            next_token: Histogram::new(NEXT_TOKEN_BUCKETS),
        }
    }
}

impl Metrics {
    pub(crate) fn add_request(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }

    pub(crate) fn add_prompt_tokens(&self, n: usize) {
        self.prompt_tokens.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Tokens of an answer's prompt that had been run for others.
    pub(crate) fn add_reused_tokens(&self, n: usize) {
        self.reused_tokens.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_generated_token(&self) {
        self.generated_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// From a request to the first token of any of its answers.
    pub(crate) fn add_first_token(&self, time: Duration) {
        self.first_token.add(time);
    }

    /// From one token of an answer to its next.
    pub(crate) fn add_next_token(&self, time: Duration) {
        self.next_token.add(time);
    }

    /// Pages of keys and values in use, of all there are.
    pub(crate) fn set_pages(&self, used: usize, all: usize) {
        self.pages.0.store(used, Ordering::Relaxed);
        self.pages.1.store(all, Ordering::Relaxed);
    }

    /// How drafts of what may come next did.
    pub(crate) fn set_drafts(&self, drafts: Drafts) {
        self.drafts.0.store(drafts.n_drafted, Ordering::Relaxed);
        self.drafts.1.store(drafts.n_true, Ordering::Relaxed);
    }

    /// Answers that wait for room and answers in the batch.
    pub(crate) fn set_engine(&self, waiting: usize, running: usize) {
        self.waiting.store(waiting, Ordering::Relaxed);
        self.running.store(running, Ordering::Relaxed);
    }

    /// The whole page, but for what other parts add. What dashboards and balancers made for vLLM look for is there
    /// under its names, too.
    pub(crate) fn render(&self, facts: &PolicyFacts, counts: Counts, is_ready: bool) -> String {
        let mut page = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        let waiting = self.waiting.load(Ordering::Relaxed) as u64;
        let running = self.running.load(Ordering::Relaxed) as u64;
        let prompt = self.prompt_tokens.load(Ordering::Relaxed);
        let generated = self.generated_tokens.load(Ordering::Relaxed);
        metric("fsq_prompt_tokens_total", "counter", "Prompt tokens taken in.", prompt);
        let reused = self.reused_tokens.load(Ordering::Relaxed);
        let help = "Prompt tokens that an answer did not run because others had, counted for each answer.";
        metric("fsq_reused_tokens_total", "counter", help, reused);
        let drafts = (self.drafts.0.load(Ordering::Relaxed), self.drafts.1.load(Ordering::Relaxed));
        metric("fsq_drafted_tokens_total", "counter", "Tokens run ahead because they might come next.", drafts.0);
        metric("fsq_draft_tokens_true_total", "counter", "Of those, tokens that did come next.", drafts.1);
        metric("fsq_generated_tokens_total", "counter", "Tokens generated.", generated);
        metric("fsq_answers_waiting", "gauge", "Answers that wait for room in the batch.", waiting);
        metric("fsq_answers_running", "gauge", "Answers in the batch.", running);
        metric("fsq_predictions", "gauge", "Predictions on record.", counts.n_predictions as u64);
        metric("fsq_outcomes", "gauge", "Predictions with an outcome on record.", counts.n_outcomes as u64);
        metric("fsq_ready", "gauge", "1 while requests are taken.", u64::from(is_ready));
        let _ = writeln!(page, "# HELP fsq_requests_total Requests answered.\n# TYPE fsq_requests_total counter");
        for ((route, status), n) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(page, "fsq_requests_total{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
        self.render_engine(&mut page, &escaped(&facts.name), waiting, running);
        let verdict = facts.gate.as_ref().map_or("none", |it| it.verdict.as_str());
        let _ = writeln!(
            page,
            "# HELP fsq_policy_info The policy that is served.\n# TYPE fsq_policy_info gauge\n\
             fsq_policy_info{{model=\"{}\",digest=\"{}\",gate=\"{}\"}} 1",
            escaped(&facts.name),
            escaped(&facts.digest),
            escaped(verdict),
        );
        page
    }

    /// Gauges and times of the engine, each also under the name that vLLM has for it.
    fn render_engine(&self, page: &mut String, model: &str, waiting: u64, running: u64) {
        let label = format!("model_name=\"{model}\"");
        let (used, all) = (self.pages.0.load(Ordering::Relaxed), self.pages.1.load(Ordering::Relaxed));
        let usage = used as f64 / all.max(1) as f64;
        let _ = writeln!(
            page,
            "# HELP fsq_kv_usage Share of the memory for keys and values that is in use.\n\
             # TYPE fsq_kv_usage gauge\nfsq_kv_usage {usage}"
        );
        for (name, value) in [
            ("num_requests_waiting", waiting as f64),
            ("num_requests_running", running as f64),
            ("kv_cache_usage_perc", usage),
            ("gpu_cache_usage_perc", usage),
        ] {
            let _ = writeln!(page, "# TYPE vllm:{name} gauge\nvllm:{name}{{{label}}} {value}");
        }
        let first = "Seconds from a request to its first token.";
        self.first_token.render(page, "fsq_first_token_seconds", "", first);
        self.first_token.render(page, "vllm:time_to_first_token_seconds", &label, first);
        let next = "Seconds between two tokens of an answer.";
        self.next_token.render(page, "fsq_next_token_seconds", "", next);
        self.next_token.render(page, "vllm:inter_token_latency_seconds", &label, next);
    }
}

/// What was seen of drift, by environment: only those that the gates judged, and `all` for what names none.
pub(crate) fn drift_page(seen: &[(String, Seen)]) -> String {
    type Row = (&'static str, &'static str, fn(&Seen) -> f64);
    let rows: [Row; 5] = [
        ("fsq_drift_episodes", "Episodes with an outcome that were watched.", |it| it.n_episodes as f64),
        ("fsq_drift_alarmed", "1 while nothing should be chosen by estimates.", |it| f64::from(it.is_alarmed)),
        ("fsq_drift_evidence", "Evidence that estimates are wrong now; an alarm at 50000.", |it| it.evidence),
        ("fsq_drift_audit_alarmed", "1 once estimates were ever wrong.", |it| f64::from(it.is_audit_alarmed)),
        ("fsq_drift_maps_promoted", "Maps that took the place of the file's.", |it| it.n_promoted as f64),
    ];
    let mut page = String::new();
    for (name, help, value) in rows {
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (environment, it) in seen {
            let _ = writeln!(page, "{name}{{environment=\"{}\"}} {}", escaped(environment), value(it));
        }
    }
    page
}

/// A label's value: backslash, quote and line end escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
