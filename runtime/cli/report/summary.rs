//! A report in plain words: what was trained, what came of it, and whether the files pass. Claims no more than the
//! intervals show.

use serde::Serialize;

use super::record::{Arm, DemoReport, Measured, Row};
use crate::output::bytes_text;

/// What stands at the top of the page.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) headline: String,
    /// `pass`, `fail`, `inconclusive` or `none`.
    pub(super) verdict: &'static str,
    pub(super) tiles: Vec<Tile>,
    pub(super) findings: Vec<Findings>,
}

/// One number that a reader should take home.
#[derive(Debug, Serialize)]
pub(super) struct Tile {
    pub(super) label: String,
    pub(super) value: String,
    pub(super) detail: String,
}

/// What was found in one environment, a sentence each.
#[derive(Debug, Serialize)]
pub(super) struct Findings {
    pub(super) environment: String,
    pub(super) sentences: Vec<String>,
}

pub(super) fn summary(report: &DemoReport) -> Summary {
    let Some(arm) = report.main_arm() else {
        let headline = "Nothing was measured.".into();
        return Summary { headline, verdict: "none", tiles: Vec::new(), findings: Vec::new() };
    };
    let (headline, verdict) = headline(arm);
    let findings = arm.environments().into_iter().map(|environment| Findings {
        environment: environment.to_owned(),
        sentences: sentences(arm, report.other_arm(), environment),
    });
    Summary { headline, verdict, tiles: tiles(arm, report.other_arm()), findings: findings.collect() }
}

fn headline(arm: &Arm) -> (String, &'static str) {
    let of = |verdict: &str| {
        let gates = arm.gates.iter().filter(|it| it.verdict == verdict);
        gates.map(|it| format!("{} in {}", it.candidate, it.environment)).collect::<Vec<_>>()
    };
    let (failed, open) = (of("fail"), of("inconclusive"));
    if arm.gates.is_empty() {
        return ("No file was judged.".into(), "none");
    }
    if !failed.is_empty() {
        let verb = if failed.len() == 1 { "does" } else { "do" };
        return (format!("{} {verb} not pass: quantization cost more than its gates allow.", list(&failed)), "fail");
    }
    if !open.is_empty() {
        return (format!("Undecided for {}: too few tasks to tell.", list(&open)), "inconclusive");
    }
    let mut files: Vec<&str> = arm.gates.iter().map(|it| it.candidate.as_str()).collect();
    files.dedup();
    files.sort_unstable();
    files.dedup();
    let files: Vec<String> = files.into_iter().map(str::to_owned).collect();
    let verb = if files.len() == 1 { "passes" } else { "pass" };
    (format!("{} {verb}: the small files still see what the large policy sees.", list(&files)), "pass")
}

fn tiles(arm: &Arm, other: Option<&Arm>) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let environments = arm.environments();
    let Some(&environment) = environments.first() else { return tiles };
    let row = |policy: &str| arm.row(policy, environment);
    let last = |row: Option<&Row>| row.and_then(Row::fidelity_last);
    let without = other.and_then(|it| it.row("FE-SFT", environment));
    if let Some(with) = last(row("FE-SFT")) {
        let steps = row("FE-SFT").map_or(0, |it| it.fidelity.len());
        let value = match last(without) {
            Some(without) => format!("{} → {}", share(without.value), share(with.value)),
            None => share(with.value),
        };
        let detail = if without.is_some() { "without and with world-model training" } else { "after FE-SFT" };
        tiles.push(Tile { label: format!("true {} ahead", steps_text(steps)), value, detail: detail.into() });
    }
    if let (Some(before), Some(after)) = (row("FE-SFT"), row("FC-RL")) {
        if let (Some(before), Some(after)) = (before.brier_skill, best_skill(after)) {
            let value = format!("{:+.2} → {:+.2}", before.value, after.value);
            let detail = "Brier skill; 0 is always saying the base rate".into();
            tiles.push(Tile { label: "worth of its odds".into(), value, detail });
        }
        tiles.push(Tile {
            label: "tasks solved".into(),
            value: format!("{} → {}", share(before.success.value), share(after.success.value)),
            detail: "before and after FC-RL".into(),
        });
    }
    let files: Vec<&Row> = arm.rows_in(environment).filter(|it| it.is_file()).collect();
    let smallest = files.iter().filter_map(|it| it.file_bytes.map(|bytes| (bytes, &it.policy))).min();
    if let Some((bytes, policy)) = smallest {
        let detail = format!("the {policy} file that was judged, byte for byte");
        tiles.push(Tile { label: "smallest file".into(), value: bytes_text(bytes), detail });
    }
    tiles
}

/// Brier skill of the estimates where a map makes them, else of what was stated.
fn best_skill(row: &Row) -> Option<Measured> {
    row.estimate.as_ref().and_then(|it| it.brier_skill).or(row.brier_skill)
}

fn sentences(arm: &Arm, other: Option<&Arm>, environment: &str) -> Vec<String> {
    let row = |policy: &str| arm.row(policy, environment);
    let mut sentences = Vec::new();
    if let Some(with) = row("FE-SFT") {
        sentences.extend(rollouts(with, other.and_then(|it| it.row("FE-SFT", environment)), other));
    }
    if let (Some(before), Some(after)) = (row("FE-SFT"), row("FC-RL")) {
        sentences.extend(odds(before, after));
    }
    let solved: Vec<String> = ["base", "FE-SFT", "FC-RL"]
        .into_iter()
        .filter_map(|policy| row(policy).map(|it| format!("{} by {policy}", share(it.success.value))))
        .collect();
    if !solved.is_empty() {
        sentences.push(format!("Tasks solved: {}.", list(&solved)));
    }
    for gate in arm.gates.iter().filter(|it| it.environment == environment) {
        let verdict = match gate.verdict.as_str() {
            "pass" => "passes every gate against",
            "fail" => "fails against",
            _ => "is undecided against",
        };
        sentences.push(format!("{} {verdict} {}.", gate.candidate, gate.reference));
    }
    sentences
}

fn rollouts(with: &Row, without: Option<&Row>, other: Option<&Arm>) -> Option<String> {
    let last = with.fidelity_last()?;
    let ahead = steps_text(with.fidelity.len());
    let Some(without) = without.and_then(Row::fidelity_last) else {
        return Some(format!("{} of what it imagines {ahead} ahead comes true {}.", share(last.value), range(last)));
    };
    let arm = other.map_or("the other arm", |it| it.name.as_str());
    Some(format!(
        "{} of what it imagines {ahead} ahead comes true, {} in the arm {arm} ({}).",
        share(last.value),
        share(without.value),
        compared(last, without)
    ))
}

fn odds(before: &Row, after: &Row) -> Vec<String> {
    let mut sentences = Vec::new();
    if let (Some(from), Some(to)) = (before.brier, after.brier) {
        let constant = after
            .brier_constant
            .map_or_else(String::new, |it| format!("; always saying the base rate would score {it:.3}"));
        let mapped = |row: &Row| row.estimate.as_ref().and_then(|it| it.brier).map(|it| format!("{:.3}", it.value));
        sentences.push(format!(
            "FC-RL took the Brier score of its odds from {:.3}{} to {:.3}{} ({}{constant}).",
            from.value,
            after_map(mapped(before)),
            to.value,
            after_map(mapped(after)),
            compared(from, to)
        ));
    }
    if let (Some(from), Some(to)) = (before.signed_gap, after.signed_gap) {
        let mapped = |row: &Row| row.estimate.as_ref().and_then(|it| it.signed_gap).map(|it| points(it.value));
        sentences.push(format!(
            "Odds and outcomes differ by {} points{} before FC-RL and by {}{} after it ({}).",
            points(from.value),
            after_map(mapped(before)),
            points(to.value),
            after_map(mapped(after)),
            compared(from, to)
        ));
    }
    sentences
}

fn after_map(value: Option<String>) -> String {
    value.map_or_else(String::new, |it| format!(" (with a recalibration map {it})"))
}

/// What two intervals show.
fn compared(a: Measured, b: Measured) -> &'static str {
    if a.low > b.high || b.low > a.high { "intervals apart" } else { "intervals overlap, so not shown to differ" }
}

pub(super) fn share(value: f64) -> String {
    format!("{:.0} %", 100.0 * value)
}

/// A signed number of points; no minus before 0.
pub(super) fn points(value: f64) -> String {
    let rounded = (100.0 * value).round();
    if rounded == 0.0 { "0".into() } else { format!("{rounded:+.0}").replace('-', "−") }
}

fn range(measured: Measured) -> String {
    format!("[{:.0}, {:.0}]", 100.0 * measured.low, 100.0 * measured.high)
}

fn steps_text(n: usize) -> String {
    if n == 1 { "1 step".into() } else { format!("{n} steps") }
}

/// `a`, `a and b`, `a, b and c`.
fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn one_failing_file_is_the_headline() {
        let mut report = sample::report();
        assert_eq!(summary(&report).verdict, "pass");
        report.arms[0].gates[1].verdict = "fail".into();
        let told = summary(&report);
        assert_eq!((told.verdict, &told.headline[..34]), ("fail", "Q4_K_M in Countdown does not pass:"));
    }

    #[test]
    fn a_difference_is_claimed_only_where_intervals_are_apart() {
        let at = |low: f64, high: f64| Measured { value: (low + high) / 2.0, low, high };
        assert_eq!(compared(at(0.1, 0.2), at(0.3, 0.4)), "intervals apart");
        assert_eq!(compared(at(0.1, 0.31), at(0.3, 0.4)), "intervals overlap, so not shown to differ");
    }

    #[test]
    fn nothing_measured_is_said() {
        let mut report = sample::report();
        report.arms.clear();
        assert_eq!(summary(&report).headline, "Nothing was measured.");
    }
}
