//! How often intervals hold the truth at a nominal 95 %, in large.
//!
//! `cargo run --release -p fsq-calibrate --example coverage` prints the table of `docs/gates.md`; the argument
//! is the number of samples. The same number prints the same figures.

use std::env;

#[path = "../tests/it/known.rs"]
mod known;

use known::{PAIRED, WORLDS, World, plain_coverage};

fn main() {
    let samples = env::args().nth(1).and_then(|it| it.parse().ok()).unwrap_or(2000);
    show(&format!("| metric | {} |", WORLDS.map(|it| it.name).join(" | ")));
    show(&format!("|---{}|", "|---".repeat(WORLDS.len())));
    let columns = parallel(|world| world.coverage(samples, 500));
    for (index, (name, _, _)) in columns[0].iter().enumerate() {
        let cells: Vec<String> = columns.iter().map(|it| percent(it[index].1)).collect();
        show(&format!("| {name} | {} |", cells.join(" | ")));
    }
    let smooth = parallel(|world| world.smooth_coverage(samples / 4, 200));
    show(&format!("| smooth_ece | {} |", smooth.map(percent).join(" | ")));
    show("");
    show("| pairs | both | gained | lost | Tango | Newcombe |");
    show("|---|---|---|---|---|---|");
    for it in PAIRED {
        let [tango, newcombe] = it.coverage(10 * samples).map(percent);
        let [both, gained, lost] = [it.both, it.gained, it.lost].map(percent);
        show(&format!("| {} | {both} | {gained} | {lost} | {tango} | {newcombe} |", it.n));
    }
    let [wilson, student] = plain_coverage(10 * samples).map(percent);
    show(&format!("\nWilson, 30 % of 200: {wilson}; Student's t over 60 clusters of 5: {student}"));
}

/// Every world on a thread of its own.
fn parallel<T: Send>(of: impl Fn(World) -> T + Sync) -> [T; WORLDS.len()] {
    std::thread::scope(|scope| {
        let running = WORLDS.map(|world| {
            let of = &of;
            scope.spawn(move || of(world))
        });
        running.map(|it| it.join().expect("a simulation does not panic"))
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[expect(clippy::print_stdout, reason = "an example's output is its point")]
fn show(line: &str) {
    println!("{line}");
}
