//! Counters and gauges in Prometheus' text format. Labels are bounded: routes of the table, statuses, one policy.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::server::PolicyFacts;
use crate::store::Counts;

/// What the server counts, from its start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    waiting: AtomicUsize,
    running: AtomicUsize,
}

impl Metrics {
    pub(crate) fn add_request(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }

    pub(crate) fn add_prompt_tokens(&self, n: usize) {
        self.prompt_tokens.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_generated_token(&self) {
        self.generated_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Answers that wait for room and answers in the batch.
    pub(crate) fn set_engine(&self, waiting: usize, running: usize) {
        self.waiting.store(waiting, Ordering::Relaxed);
        self.running.store(running, Ordering::Relaxed);
    }

    /// The whole page. Queue gauges also carry the names that dashboards made for vLLM look for.
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
        metric("fsq_generated_tokens_total", "counter", "Tokens generated.", generated);
        metric("fsq_answers_waiting", "gauge", "Answers that wait for room in the batch.", waiting);
        metric("fsq_answers_running", "gauge", "Answers in the batch.", running);
        metric("vllm:num_requests_waiting", "gauge", "As fsq_answers_waiting.", waiting);
        metric("vllm:num_requests_running", "gauge", "As fsq_answers_running.", running);
        metric("fsq_predictions", "gauge", "Predictions on record.", counts.n_predictions as u64);
        metric("fsq_outcomes", "gauge", "Predictions with an outcome on record.", counts.n_outcomes as u64);
        metric("fsq_ready", "gauge", "1 while requests are taken.", u64::from(is_ready));
        let _ = writeln!(page, "# HELP fsq_requests_total Requests answered.\n# TYPE fsq_requests_total counter");
        for ((route, status), n) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(page, "fsq_requests_total{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
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
}

/// A label's value: backslash, quote and line end escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
