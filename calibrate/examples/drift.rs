//! How long drift goes unseen, and how long nothing is seen where there is none, in large.
//!
//! `cargo run --release -p fsq-calibrate --example drift` prints the tables of `docs/gates.md`; the argument is the
//! number of runs. The same number prints the same figures. With `log` before it, the number is that of rows of a log
//! for `fsq calibrate --replay`, whose second half is wrong.

use std::env;
use std::io::{self, BufWriter, Write};

#[path = "../tests/it/drifting.rs"]
mod drifting;

use drifting::{Fault, delays, false_alarms, median};
use fsq_calibrate::drift::MonitorLimits;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Thresholds of the detector that are compared.
const THRESHOLDS: [f64; 4] = [1e4, 2e4, MonitorLimits::DEFAULT.alarm, 1e5];
const EPISODES_MAX: u64 = 20_000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|it| it.parse().ok());
    if arguments.first().is_some_and(|it| it == "log") {
        log(number(1).unwrap_or(1_000_000)).expect("standard output can be written");
    } else {
        tables(number(0).unwrap_or(400));
    }
}

fn log(rows: u64) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut random = ChaCha8Rng::seed_from_u64(0);
    for row in 0..rows {
        let fault = if row < rows / 2 { Fault::None } else { Fault::Odds };
        let (stated, success) = fault.draw(&mut random);
        writeln!(out, r#"{{"id": "p_{row:08}", "stated": {stated}, "outcome": {}}}"#, u8::from(success))?;
    }
    out.flush()
}

fn tables(runs: u64) {
    show("| fault | threshold | audit, from the start | detector, from the start | audit, late | detector, late |");
    show("|---|---|---|---|---|---|");
    for fault in Fault::OVERCONFIDENT.into_iter().chain(Fault::UNDERCONFIDENT) {
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
