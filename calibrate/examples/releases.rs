//! Simulated releases in large: how often gates pass a candidate that is no worse, and one that is.
//!
//! `cargo run --release -p fsq-calibrate --example releases` prints the tables of `docs/gates.md`; the arguments are
//! the number of simulations, to print one table only `same`, `limit` or `looks`, and the number of the first
//! simulation, to do some now and the rest another time. The same arguments print the same figures.

use std::env;
use std::ops::Range;

use fsq_calibrate::gates::GateProfile;

#[path = "../tests/it/simulated.rs"]
mod simulated;

use simulated::{Harm, Rates, losses_at_the_limit, rates};

/// A shipped profile and the share of flips it is made for.
const PROFILES: [(&str, f64); 2] =
    [(include_str!("../../profiles/8-bit.toml"), 0.02), (include_str!("../../profiles/4-bit.toml"), 0.05)];
/// Shares of tasks whose outcome flips without meaning.
const FLIPS: [f64; 4] = [0.01, 0.02, 0.05, 0.10];

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|it| it.parse().ok());
    let first = number(2).unwrap_or(0);
    let simulations = first..first + number(0).unwrap_or(1000);
    let wanted = |name: &str| arguments.get(1).is_none_or(|it| it == name);
    let profiles = PROFILES.map(|(text, flips)| {
        let profile: GateProfile = toml::from_str(text).expect("a shipped profile parses");
        (GateProfile { resamples: 500, ..profile }, flips)
    });
    if wanted("same") {
        same(&simulations, &profiles);
    }
    if wanted("limit") {
        limit(&simulations, &profiles);
    }
    if wanted("looks") {
        looks(&simulations, &profiles);
    }
}

/// Luck is drawn anew so often that this share of outcomes flips.
fn flipping(flips: f64) -> Harm {
    Harm { redrawn: 3.0 * flips, ..Harm::default() }
}

fn same(simulations: &Range<u64>, profiles: &[(GateProfile, f64)]) {
    row(&["profile", "tasks", "flips", "all pass", "fail", "G1", "G2", "G3", "G4", "G5 first", "G5 last", "G6", "G7"]);
    row(&["---"; 13]);
    for (profile, made_for) in profiles {
        let as_wanted = FLIPS.map(|it| (it, profile.episodes_min));
        // More flips than the profile is made for, and twice the tasks.
        let more = FLIPS.into_iter().find(|it| *it > *made_for).map(|it| (it, 2 * profile.episodes_min));
        let cases: Vec<(f64, u64)> = as_wanted.into_iter().chain(more).collect();
        let work: Vec<_> = cases.iter().map(|(flips, tasks)| (profile, *tasks, false, flipping(*flips))).collect();
        for ((flips, tasks), rates) in cases.iter().zip(parallel(simulations, &work)) {
            let gates = [0, 1, 3, 4, 5, 6, 7, 8].map(|it| percent(rates.gates[it]));
            let mut cells = vec![profile.name.clone(), tasks.to_string(), percent(*flips)];
            cells.extend([percent(rates.passed), percent(rates.failed)]);
            cells.extend(gates);
            row(&cells);
        }
    }
    show("");
}

fn limit(simulations: &Range<u64>, profiles: &[(GateProfile, f64)]) {
    row(&["profile", "true loss at the limit of", "this gate passes", "all pass", "fail"]);
    row(&["---"; 5]);
    for (profile, _) in profiles {
        let losses = losses_at_the_limit(profile);
        // The last four share a release.
        let work: Vec<_> = losses[..5].iter().map(|it| (profile, profile.episodes_min, false, it.2)).collect();
        let found = parallel(simulations, &work);
        for (index, (gate, name, _)) in losses.iter().enumerate() {
            let rates = &found[index.min(4)];
            let cells = [rates.gates[*gate], rates.passed, rates.failed].map(percent);
            row(&[&[profile.name.clone(), (*name).to_owned()], &cells[..]].concat());
        }
    }
    show("");
}

fn looks(simulations: &Range<u64>, profiles: &[(GateProfile, f64)]) {
    row(&["profile", "tasks at most", "candidate", "pass", "fail", "tasks on average"]);
    row(&["---"; 6]);
    for (profile, flips) in profiles {
        let tasks = 2 * profile.episodes_min;
        let usual = flipping(*flips);
        let margin = profile.success_loss_max;
        let candidates = [
            ("no change, 1 % flip", flipping(0.01)),
            ("no change, flips as expected", usual),
            ("success lost at the limit", Harm { lost: margin, ..usual }),
            ("success lost at three times the limit", Harm { lost: 3.0 * margin, ..usual }),
        ];
        let work: Vec<_> = candidates.iter().map(|it| (profile, tasks, true, it.1)).collect();
        for ((name, _), rates) in candidates.iter().zip(parallel(simulations, &work)) {
            let cells = [percent(rates.passed), percent(rates.failed), format!("{:.0}", rates.tasks)];
            row(&[&[profile.name.clone(), tasks.to_string(), (*name).to_owned()], &cells[..]].concat());
        }
    }
    show("");
}

/// Every piece of work on a thread of its own.
fn parallel(simulations: &Range<u64>, work: &[(&GateProfile, u64, bool, Harm)]) -> Vec<Rates> {
    std::thread::scope(|scope| {
        let run = |(profile, tasks, sequential, harm): &(&GateProfile, u64, bool, Harm)| {
            let (profile, tasks, sequential, harm) = ((*profile).clone(), *tasks, *sequential, *harm);
            let simulations = simulations.clone();
            scope.spawn(move || rates(simulations, tasks, sequential, &harm, &profile))
        };
        let running: Vec<_> = work.iter().map(run).collect();
        running.into_iter().map(|it| it.join().expect("a simulation does not panic")).collect()
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn row(cells: &[impl AsRef<str>]) {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    show(&format!("| {} |", cells.join(" | ")));
}

#[expect(clippy::print_stdout, reason = "an example's output is its point")]
fn show(line: &str) {
    println!("{line}");
}
