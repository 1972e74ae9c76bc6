//! `fsq calibrate` as a user runs it: values or "not defined" for any outcomes, refusals that name the place, maps and
//! drift.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{BAD_INPUT, fsq, json, refused, text};

/// Every metric of the document, in order.
const METRICS: [&str; 18] = [
    "base_rate",
    "brier",
    "brier_constant",
    "brier_skill",
    "nll",
    "auroc",
    "signed_gap",
    "reliability",
    "resolution",
    "uncertainty",
    "within_level",
    "ece_equal_width_10",
    "ece_equal_mass_15",
    "selective_risk_at_50",
    "selective_risk_at_80",
    "aurc",
    "auprc_failure",
    "smooth_ece",
];

/// A folder with rows in it.
struct Rows {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Rows {
    fn of(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let lines: Vec<String> = lines.into_iter().map(|it| it.as_ref().to_owned() + "\n").collect();
        std::fs::write(&path, lines.concat()).unwrap();
        Self { folder, path }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn json(&self, more: &[&str]) -> Value {
        json(&[&["calibrate", text(&self.path), "--json"], more].concat())
    }

    #[track_caller]
    fn table(&self, more: &[&str]) -> String {
        let output = fsq(&[&["calibrate", text(&self.path)], more].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Arguments that do not parse end with 4, too.
#[track_caller]
fn misused(arguments: &[&str], expected: &str) {
    let output = fsq(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == BAD_INPUT && output.stdout.is_empty(), "{output:?}");
    assert!(errors.contains(expected), "expected `{expected}` in: {errors}");
}

fn row(stated: f64, outcome: u32) -> String {
    format!(r#"{{"stated": {stated}, "outcome": {outcome}}}"#)
}

#[test]
fn every_metric_is_printed_under_a_stable_name() {
    let line = |it: u32| {
        let (stated, outcome) = (f64::from(it % 21) / 20.0, it * 7 % 21 < it % 21);
        let step = it % 2;
        format!(
            r#"{{"stated": {stated}, "outcome": {outcome}, "environment": "a", "step": {step}, "fidelity": [1, null]}}"#
        )
    };
    let rows = Rows::of((0..840).map(line));
    let document = rows.json(&["--failures-max", "0.4"]);
    let keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    let others = "n_pending n_duplicates intervals if_calibrated reliability_curve reliability_curve_equal_mass \
        risk_coverage cells fidelity act_threshold";
    assert_eq!(keys, [&["n"], &METRICS[..], &others.split(' ').collect::<Vec<_>>()].concat());
    for metric in METRICS {
        assert!(document[metric].is_number() && document["intervals"][metric].is_object(), "{metric}");
    }
    assert_eq!((&document["cells"][0]["environment"], &document["cells"][0]["n"]), (&"a".into(), &420.into()));
    assert_eq!((&document["fidelity"][0]["n"], &document["fidelity"][1]), (&840.into(), &Value::Null));
    assert!(document["act_threshold"]["threshold"].is_number());
    let table = rows.table(&["--failures-max", "0.4"]);
    for name in METRICS.into_iter().chain(["stated", "a step 0", "horizon", "act if the estimate is at least"]) {
        assert_eq!(table.lines().filter(|it| it.starts_with(&format!("{name} "))).count(), 1, "{name}: {table}");
    }
    misused(&["calibrate", text(&rows.path), "--failures-max", "40"], "expected a number between 0 and 1");
}

/// Checks the values of some metrics, and that all others but these have none.
#[track_caller]
fn check(lines: &[String], n: u64, defined: &[(&str, f64)], undefined: &[&str]) {
    let rows = Rows::of(lines);
    let document = rows.json(&[]);
    assert_eq!(document["n"], n);
    for (metric, expected) in defined {
        let found = document[metric].as_f64().unwrap_or_else(|| panic!("{metric} is not defined"));
        assert!((found - expected).abs() < 1e-4, "{metric}: expected {expected}, found {found}");
    }
    let missing: Vec<&str> = METRICS.into_iter().filter(|it| document[it].is_null()).collect();
    assert_eq!(missing, undefined);
    let table = rows.table(&[]);
    assert!(!table.contains("NaN") && !table.contains("inf"), "{table}");
    for metric in METRICS {
        let line = table.lines().find(|it| it.split_whitespace().next() == Some(metric)).unwrap();
        let value = line[metric.len()..].trim_start();
        assert_eq!(value.starts_with("not defined"), undefined.contains(&metric), "{line}");
        assert!(value.starts_with("not defined") || value.starts_with(|it: char| it == '-' || it.is_ascii_digit()));
    }
}

#[test]
fn few_outcomes_have_values_or_none() {
    let murphy = ["reliability", "resolution", "uncertainty", "within_level"];
    let waiting = r#"{"stated": 0.5, "outcome": null}"#.to_owned();
    check(&[waiting], 0, &[], &METRICS);
    // Likelihoods are those of 0.99 at most.
    let certain = [("base_rate", 1.0), ("brier", 0.0), ("nll", 0.01005), ("signed_gap", 0.0), ("smooth_ece", 0.0)];
    let ranks = ["brier_skill", "auroc"];
    check(&[row(1.0, 1)], 1, &certain, &[&ranks, &murphy[..], &["auprc_failure"]].concat());
    let wrong = [("base_rate", 0.0), ("brier", 1.0), ("nll", 4.60517), ("signed_gap", 1.0), ("auprc_failure", 1.0)];
    check(&[row(1.0, 0)], 1, &wrong, &[&ranks, &murphy[..]].concat());
    let right = [("brier", 0.0), ("brier_skill", 1.0), ("auroc", 1.0), ("signed_gap", 0.0), ("uncertainty", 0.5)];
    check(&[row(0.0, 0), row(1.0, 1)], 2, &right, &[]);
    let upside_down = [("brier", 1.0), ("brier_skill", -3.0), ("auroc", 0.0), ("nll", 4.60517), ("aurc", 0.75)];
    check(&[row(0.0, 1), row(1.0, 0)], 2, &upside_down, &[]);
}

#[test]
fn one_class_only_and_equal_statements_have_values_or_none() {
    let lines: Vec<String> = (0..40).map(|it| row(f64::from(it % 3) / 2.0, 1)).collect();
    check(&lines, 40, &[("base_rate", 1.0), ("brier_constant", 0.0)], &["brier_skill", "auroc", "auprc_failure"]);
    let lines: Vec<String> = (0..40).map(|it| row(0.5, it % 2)).collect();
    check(&lines, 40, &[("brier", 0.25), ("brier_skill", 0.0), ("auroc", 0.5), ("reliability", -0.00641)], &[]);
    // Two failures do not show that there are none but failures.
    let gap = &Rows::of([row(0.5, 0), row(0.5, 0)]).json(&[])["intervals"]["signed_gap"];
    assert!(gap["low"].as_f64().unwrap() < 0.0 && gap["high"] == 0.5, "{gap}");
}

#[test]
fn what_comes_late_again_or_never_is_counted_once_and_told() {
    let rows = Rows::of([
        r#"{"stated": 0.9, "id": "a"}"#,
        r#"{"stated": 0.2, "id": "b", "outcome": null}"#,
        r#"{"stated": 0.4, "outcome": null}"#,
        "",
        r#"{"stated": 0.2, "id": "b", "outcome": 0}"#,
        r#"{"stated": 0.9, "id": "a", "outcome": 1}"#,
        r#"{"stated": 0.9, "id": "a", "outcome": 1}"#,
        r#"{"stated": 0.9, "outcome": 1}"#,
        r#"{"stated": 0.9, "outcome": 1}"#,
    ]);
    let found = rows.json(&[]);
    assert_eq!([&found["n"], &found["n_pending"], &found["n_duplicates"]], [4, 1, 1]);
    assert!((found["brier"].as_f64().unwrap() - (0.04 + 3.0 * 0.01) / 4.0).abs() < 1e-12);
    let table = rows.table(&[]);
    assert!(
        table.contains("without an outcome yet: 1;") && table.contains("told again and counted once: 1"),
        "{table}"
    );
    let replayed = rows.json(&["--replay"]);
    let counts = ["n", "n_rows", "n_pending", "n_duplicates"].map(|it| replayed[it].as_u64().unwrap());
    assert_eq!(counts, [4, 8, 1, 1]);
}

#[test]
fn bad_rows_are_refused_with_their_place() {
    let fine = row(0.5, 1);
    let told = r#"{"stated": 0.5, "outcome": 1, "id": 7}"#;
    let wrong = [
        (row(7.0, 1), "rows.jsonl, line 3: `stated`: expected a number from 0 to 1, found 7"),
        (row(-0.1, 1), "rows.jsonl, line 3: `stated`: expected a number from 0 to 1, found -0.1"),
        (row(0.5, 2), "line 3: `outcome`: expected 0, 1, or null where it is not known yet, found 2"),
        (r#"{"stated": "0.5", "outcome": 1}"#.into(), "line 3: `stated`: expected a number from 0 to 1, found \"0.5\""),
        (
            r#"{"stated": 0.5}"#.into(),
            "line 3: `outcome`: expected 0, 1, or null where it is not known yet, found nothing",
        ),
        (r#"{"stated": NaN, "outcome": 1}"#.into(), "line 3: expected a JSON object: "),
        ("not JSON".into(), "line 3: expected a JSON object: "),
        (
            told.replace("\"outcome\": 1", "\"outcome\": 0"),
            "line 3: `outcome`: expected 1 as on line 1, which has the same `id`, found 0",
        ),
        (told.replace("0.5", "0.6"), "line 3: `stated`: expected 0.5 as on line 1, which has the same `id`, found 0.6"),
    ];
    for (line, expected) in wrong {
        let rows = Rows::of([told, &fine, &line]);
        refused(&["calibrate", text(&rows.path)], expected);
        refused(&["calibrate", text(&rows.path), "--replay"], expected);
    }
    refused(&["calibrate", text(&Rows::of(["", " "]).path)], "rows.jsonl: expected outcomes, found none");
    refused(&["calibrate", text(Path::new("no/such.jsonl"))], "no/such.jsonl");
    let long = format!(r#"{{"stated": 0.5, "outcome": 1, "note": "{}"}}"#, "x".repeat(1 << 20));
    refused(&["calibrate", text(&Rows::of([long]).path)], "line 1: expected at most 1048576 bytes, found more");
}

/// Statements whose odds are `power` times as extreme as what they come to, as exactly as counts allow: of 20 with
/// each of 19 levels, so many succeed.
fn extreme(power: f64) -> Rows {
    let lines = (1..20u32).flat_map(|level| {
        let truth = f64::from(level) / 20.0;
        let odds = (truth / (1.0 - truth)).powf(power);
        (0..20u32).map(move |it| row(odds / (1.0 + odds), u32::from(it < level)))
    });
    Rows::of(lines)
}

#[test]
fn every_family_is_fitted_and_shown_on_outcomes_held_out() {
    let rows = extreme(3.0);
    let before = rows.json(&[])["brier"].as_f64().unwrap();
    let map = rows.beside("map.json");
    for family in ["identity", "shrinkage", "temperature", "platt", "beta", "isotonic", "venn-abers"] {
        let document = rows.json(&["--fit", text(&map), "--family", family]);
        let fitted = &document["map"];
        assert_eq!(fitted["metadata"]["fsq.recalibration.family"], family);
        assert_eq!(fitted["measured_on"], "parts_held_out");
        let rise = fitted["brier_rise"].as_f64().unwrap();
        let after = fitted["metrics"]["brier"].as_f64().unwrap();
        assert!((after - before - rise).abs() < 1e-12 && fitted["metrics"]["n"] == 380, "{family}");
        match family {
            "identity" => assert_eq!(rise, 0.0),
            // To draw everything to the base rate loses what statements tell.
            "shrinkage" => assert!(rise > 0.0, "{fitted}"),
            // Its fit to a few hundred outcomes errs too much for the gain to be shown.
            "venn-abers" => assert!(rise < 0.0, "{fitted}"),
            _ => assert!(fitted["brier_rise_interval"]["high"].as_f64().unwrap() < 0.0, "{family}: {fitted}"),
        }
        let written: Value = serde_json::from_slice(&std::fs::read(&map).unwrap()).unwrap();
        assert_eq!(written, fitted["metadata"]);
        let table = rows.table(&["--map", text(&map)]);
        assert!(table.contains("after the map") && table.contains("on the outcomes that it was fitted on"), "{table}");
    }
    misused(&["calibrate", text(&rows.path), "--fit", text(&map), "--family", "spline"], "expected one of identity, ");
    misused(&["calibrate", text(&rows.path), "--fit", text(&map), "--map", text(&map)], "cannot be used with");
}

#[test]
fn a_map_is_judged_on_other_outcomes() {
    let rows = extreme(3.0);
    let map = rows.beside("map.json");
    rows.json(&["--fit", text(&map), "--family", "temperature"]);
    // To take a third of log odds cures those three times too extreme, and spoils those that were right.
    for (other, measured_on, better) in [(&rows, "same_outcomes", true), (&extreme(1.0), "other_outcomes", false)] {
        let document = other.json(&["--map", text(&map), "--failures-max", "0.3"]);
        let found = &document["map"];
        assert_eq!(found["measured_on"], measured_on);
        assert_eq!(found["brier_rise"].as_f64().unwrap() < 0.0, better, "{found}");
        // A threshold is one of estimates, which the map draws towards one half.
        let threshold = document["act_threshold"]["threshold"].as_f64().unwrap();
        assert!(threshold < 0.95, "{threshold}");
    }
    std::fs::write(&map, "{}").unwrap();
    refused(&["calibrate", text(&rows.path), "--map", text(&map)], "expected a map that `--fit` wrote, found no map");
}

#[test]
fn a_file_carries_the_threshold_that_was_picked_for_its_map() {
    let folder = tempfile::tempdir().unwrap();
    crate::cli::write_files(folder.path(), "f32");
    let (policy, copy) = (folder.path().join("out/tiny-F32.gguf"), folder.path().join("carrying.gguf"));
    let rows = extreme(1.0);
    let pick = ["--failures-max", "0.3", "--policy", text(&policy), "--out", text(&copy)];
    let found = rows.json(&pick)["act_threshold"]["threshold"].as_f64().unwrap();
    let (before, after) = (fsq_gguf::Gguf::open(&policy).unwrap(), fsq_gguf::Gguf::open(&copy).unwrap());
    assert_eq!(before.data_sha256(), after.data_sha256(), "the policy itself is as it was");
    let value = |key: &str| after.metadata().str(&format!("fsq.threshold.{key}")).unwrap().parse::<f64>().unwrap();
    assert_eq!((value("estimate_min"), value("failures_max")), (found, 0.3));
    assert!(before.metadata().str("fsq.threshold.estimate_min").is_none());
    let [elsewhere, reason] = [["--environment", "chess"], ["expected outcomes of it", "found none"]];
    let arguments = [&["calibrate", text(&rows.path)], &pick[..], &elsewhere].concat();
    reason.iter().for_each(|it| refused(&arguments, it));
    misused(&["calibrate", text(&rows.path), "--policy", text(&policy)], "--failures-max");
}

#[test]
fn a_map_of_few_or_one_class_is_fitted_or_refused() {
    let rows = Rows::of([row(0.9, 1)]);
    let map = rows.beside("map.json");
    let found = rows.json(&["--fit", text(&map)]);
    assert_eq!(found["map"]["metadata"]["fsq.recalibration.family"], "shrinkage");
    assert!(found["map"]["metrics"].is_null());
    assert!(rows.table(&["--fit", text(&map)]).contains("too few outcomes to hold some out"));
    let arguments = ["calibrate", text(&rows.path), "--fit", text(&map), "--family", "beta"];
    refused(&arguments, "recalibration family `beta`: expected at least 10 outcomes, found 1");
    let rows = Rows::of((0..20).map(|it| row(f64::from(it) / 20.0, 0)));
    let arguments = ["calibrate", text(&rows.path), "--fit", text(&map), "--family", "platt"];
    refused(&arguments, "expected both successes and failures, found only failures");
}

#[test]
fn a_log_is_replayed() {
    let line = |it: u32| format!(r#"{{"stated": 0.8, "outcome": {}, "id": {it}}}"#, u8::from(it.is_multiple_of(5)));
    let log = Rows::of((0..900).map(line).chain(["{\"stated\": 0.8, \"outcome\": null}".into()]));
    let found = log.json(&["--replay"]);
    assert_eq!((&found["n"], &found["n_pending"], &found["audit"]["alarmed"]), (&900.into(), &1.into(), &true.into()));
    let events: Vec<&str> = found["events"].as_array().unwrap().iter().filter_map(|it| it["event"].as_str()).collect();
    assert_eq!(events, ["audit", "alarm", "refitted", "promoted"]);
    // With the map it ended with, the same log has nothing to alarm about.
    let map = log.beside("map.json");
    std::fs::write(&map, found["map"].to_string()).unwrap();
    let again = log.json(&["--replay", "--map", text(&map)]);
    assert_eq!((&again["events"], &again["alarmed"]), (&Value::Array(Vec::new()), &false.into()));
    std::fs::write(&map, "{}").unwrap();
    refused(&["calibrate", text(&log.path), "--replay", "--map", text(&map)], "expected a map that `--fit` wrote");
}

#[test]
fn a_log_of_nothing_or_of_one_class_is_replayed() {
    let found = Rows::of([r#"{"stated": 0.5, "outcome": null}"#]).json(&["--replay"]);
    assert_eq!((&found["n"], &found["alarmed"], &found["audit"]["p_value"]), (&0.into(), &false.into(), &1.0.into()));
    // What is certain and never happens: an alarm, and no map that could help.
    let log = Rows::of((0..3000).map(|_| row(1.0, 0)));
    let found = log.json(&["--replay"]);
    let events: Vec<&str> = found["events"].as_array().unwrap().iter().filter_map(|it| it["event"].as_str()).collect();
    assert_eq!((events, &found["alarmed"]), (vec!["audit", "alarm"], &true.into()));
    assert!(log.table(&["--replay"]).ends_with("an alarm stands\n"));
}
