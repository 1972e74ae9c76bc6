//! How long drift goes unseen, and how long nothing is seen where there is none, in large.
//!
//! `cargo run --release -p fsq-calibrate --example drift` prints the table of `docs/gates.md`; the argument is the
//! number of runs. The same number prints the same figures.

use std::env;

#[path = "../tests/it/drifting.rs"]
mod drifting;

use drifting::{Fault, delays, false_alarms, median};
use fsq_calibrate::drift::MonitorLimits;

/// Thresholds of the detector that are compared.
const THRESHOLDS: [f64; 4] = [MonitorLimits::DEFAULT.alarm, 2e4, 3e4, 1e5];
const EPISODES_MAX: u64 = 20_000;

fn main() {
    let runs = env::args().nth(1).and_then(|it| it.parse().ok()).unwrap_or(400);
    show("| fault | threshold | audit, from the start | detector, from the start | audit, late | detector, late |");
    show("|---|---|---|---|---|---|");
    for fault in Fault::ALL {
        for threshold in THRESHOLDS {
            let [early, late] = [0, 1000].map(|clean| delays(fault, clean, runs, threshold));
            let medians = [&early.audit, &early.detector, &late.audit, &late.detector].map(|it| median(it).to_string());
            show(&format!("| {fault:?} | {threshold:.0} | {} |", medians.join(" | ")));
        }
    }
    show("\n| threshold | silent for 5,000 episodes | median first false alarm | the audit ever alarms |");
    show("|---|---|---|---|");
    for threshold in THRESHOLDS {
        let [detector, audit] = false_alarms(runs, EPISODES_MAX, threshold);
        let share = |n: usize| format!("{:.1} %", 100.0 * n as f64 / runs as f64);
        let silent = detector.iter().filter(|it| it.is_none_or(|at| at > 5000)).count();
        let first: Vec<u64> = detector.iter().map(|it| it.unwrap_or(u64::MAX)).collect();
        let middle = match median(&first) {
            u64::MAX => format!("beyond {EPISODES_MAX}"),
            it => it.to_string(),
        };
        show(&format!("| {threshold:.0} | {} | {middle} | {} |", share(silent), share(audit.iter().flatten().count())));
    }
}

#[expect(clippy::print_stdout, reason = "an example's output is its point")]
fn show(line: &str) {
    println!("{line}");
}
