//! What a judgement rests on and what it leaves open, in words: the part of a report that says how far to trust it.
//!
//! The fields read are those of `fsq_calibrate::gates::Report` as it serialises; what is missing is left out.

use serde::Serialize;
use serde_json::Value;

use super::record::GateRun;

/// What was tested, on how much, and what was not.
#[derive(Debug, Serialize)]
pub(super) struct Scope {
    pub(super) tested: Vec<String>,
    pub(super) not_covered: Vec<String>,
}

/// Of these judgements; `None` where nothing was judged.
pub(super) fn scope(runs: &[&GateRun]) -> Option<Scope> {
    let mut environments: Vec<&str> = Vec::new();
    for run in runs {
        if !environments.contains(&run.environment.as_str()) {
            environments.push(&run.environment);
        }
    }
    let mut tested: Vec<String> = environments.iter().flat_map(|it| of_environment(it, runs)).collect();
    // One profile judges in every environment.
    tested.extend(runs.iter().find_map(|it| limits(&it.report)));
    (!runs.is_empty()).then(|| Scope { tested, not_covered: not_covered(&environments.join(" and ")) })
}

fn of_environment(environment: &str, runs: &[&GateRun]) -> Vec<String> {
    let here: Vec<&&GateRun> = runs.iter().filter(|it| it.environment == environment).collect();
    let mut sentences = Vec::new();
    if let Some(first) = here.first() {
        let files: Vec<&str> = here.iter().map(|it| it.candidate.as_str()).collect();
        let n = first.report.get("n").and_then(Value::as_u64).unwrap_or(0);
        let reference = &first.reference;
        sentences
            .push(format!("{environment}: {n} held-out tasks, each played by {reference} and {}.", files.join(", ")));
    }
    let unusable = |it: &&&&GateRun| it.report.get("confidence").and_then(Value::as_str) == Some("unusable");
    let unusable: Vec<&str> = here.iter().filter(unusable).map(|it| it.candidate.as_str()).collect();
    if !unusable.is_empty() {
        sentences.push(format!(
            "In {environment} the odds of {} tell too little to choose plans by, whatever the verdict.",
            unusable.join(", ")
        ));
    }
    sentences
}

/// The limits that a reader knows without the method: what may be lost before a gate fails.
fn limits(report: &Value) -> Option<String> {
    let limit = |id: &str| {
        let gates = report.get("gates")?.as_array()?;
        gates.iter().find(|it| it.get("id").and_then(Value::as_str) == Some(id))?.get("limit")?.as_f64()
    };
    let profile = report.get("profile").and_then(Value::as_str)?;
    let points = |id: &str| limit(id).map(|it| format!("{:.1}", 100.0 * it));
    Some(format!(
        "A file may lose at most: {} points of success, {} points of imagined states that come true one step ahead, \
         and {:.3} of the Brier score of its odds (profile {profile}).",
        points("G1")?,
        points("G5")?,
        limit("G2")?
    ))
}

fn not_covered(environments: &str) -> Vec<String> {
    vec![
        format!("Other tasks. Nothing was played but {environments}, at the difficulty of training."),
        "Harm below the limits. A pass rules out more, at 95 % for each gate; it does not say that nothing changed."
            .into(),
        "Whether the policy was good. Files are compared with the policy that they were made from; its errors are \
         theirs, too."
            .into(),
        "Other ways to run it. Episodes were played greedily, with keys and values in 16 bits, on the machine below."
            .into(),
        "Security, fairness and the content of texts. None of it is measured here.".into(),
        "The time after release. Where tasks change, odds stop meaning what they did: report outcomes to the server \
         and watch its alarm, or replay a log with `fsq calibrate --replay`."
            .into(),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

    use super::*;
    use crate::report::sample;

    #[test]
    fn a_judgement_says_on_how_much_it_rests() {
        let report = sample::report();
        let runs: Vec<&GateRun> = report.arms[0].gates.iter().collect();
        let told = scope(&runs).unwrap();
        let n = runs[0].report["n"].as_u64().unwrap();
        assert!(told.tested[0].starts_with(&format!("{}: {n} held-out tasks", runs[0].environment)), "{told:?}");
        assert_eq!(told.tested.iter().filter(|it| it.contains("points of success")).count(), 1, "{told:?}");
        assert!(told.not_covered[0].contains(&runs[0].environment), "{told:?}");
        assert!(scope(&[]).is_none());
    }

    #[test]
    fn odds_that_tell_too_little_are_named() {
        let mut report = sample::report();
        report.arms[0].gates[0].report["confidence"] = "unusable".into();
        let runs: Vec<&GateRun> = report.arms[0].gates.iter().take(1).collect();
        assert!(scope(&runs).unwrap().tested.iter().any(|it| it.contains("tell too little to choose plans by")));
        report.arms[0].gates[0].report = Value::Null;
        let runs: Vec<&GateRun> = report.arms[0].gates.iter().take(1).collect();
        assert_eq!(scope(&runs).unwrap().tested.len(), 1);
    }
}
