//! The command as a user meets it: what it prints, what it says of bad input, and its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::tree::root;

const BAD_INPUT: Option<i32> = Some(4);

fn fsq(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fsq")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn fixture() -> PathBuf {
    root().join("tests/fixtures/llama")
}

fn file() -> String {
    fixture().join("tiny-f32.gguf").to_str().unwrap().to_owned()
}

fn json(arguments: &[&str]) -> Value {
    let output = fsq(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Bad input ends with 4, says nothing on standard output and one line beginning with `error: ` elsewhere.
#[track_caller]
fn refused(arguments: &[&str], expected: &str) {
    let output = fsq(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), BAD_INPUT, "{errors}");
    assert!(output.stdout.is_empty());
    let line = errors.lines().find(|it| it.starts_with("error: ")).unwrap_or_else(|| panic!("{errors}"));
    assert!(line.contains(expected), "expected `{expected}` in: {errors}");
    assert!(errors.lines().all(|it| it.starts_with("error: ") || it.starts_with("hint: ")), "{errors}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_command_explains_itself() {
    let help = fsq(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    for command in ["run", "logits", "inspect", "quantize", "calibrate", "serve", "devices", "report"] {
        assert!(help.contains(&format!("  {command}")), "{command}\n{help}");
        let own = fsq(&[command, "--help"]);
        assert!(own.status.success() && !own.stdout.is_empty(), "{command}");
    }
    assert!(fsq(&["--version"]).status.success());
}

#[test]
fn arguments_that_do_not_parse_are_bad_input() {
    for arguments in [&["nothing"][..], &["run"], &["run", "x.gguf", "--prompt", "a", "-n", "0"], &[]] {
        assert_eq!(fsq(arguments).status.code(), BAD_INPUT, "{arguments:?}");
    }
    let output = fsq(&["quantize", text(&fixture()), "--to", "q9_z", "--out", "unused"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), BAD_INPUT);
    assert!(errors.contains("unknown format; known are") && errors.contains("q4_k_m"), "{errors}");
}

#[test]
fn a_file_that_is_absent_or_damaged_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.gguf");
    refused(&["inspect", text(&absent)], "absent.gguf: ");
    let whole = std::fs::read(fixture().join("tiny-f32.gguf")).unwrap();
    for length in [0, 3, 24, 1000, whole.len() / 2, whole.len() - 1] {
        let cut = folder.path().join("cut.gguf");
        std::fs::write(&cut, &whole[..length]).unwrap();
        refused(&["run", text(&cut), "--prompt", "a"], "cut.gguf: ");
    }
    refused(&["inspect", text(&fixture().join("model.safetensors"))], "not a GGUF file");
    refused(&["inspect", text(folder.path())], text(folder.path()));
    refused(
        &["quantize", &file(), "--to", "q8_0", "--out", text(folder.path())],
        "expected a checkpoint, found a GGUF",
    );
    refused(&["quantize", text(folder.path()), "--to", "q8_0", "--out", text(folder.path())], "config.json: ");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("blocked");
    std::fs::write(&blocked, "a file, not a folder").unwrap();
    refused(&["quantize", text(&fixture()), "--to", "f16", "--out", text(&blocked.join("x"))], "blocked");
    refused(&["logits", &file(), "--tokens", "1", "--out", text(&blocked.join("l.safetensors"))], "blocked");
}

#[test]
fn what_this_build_lacks_is_said() {
    refused(&["--device", "cuda", "devices"], "--device cuda: not in this build");
    refused(
        &["quantize", text(&fixture()), "--to", "f16", "--out", "unused", "--gate", "2-bit"],
        "gate profile `2-bit`",
    );
}

#[test]
fn run_prints_the_promised_shape() {
    let file = file();
    let arguments = ["run", &file, "--prompt", "hello", "-n", "8", "--temperature", "0", "--ignore-eos", "--json"];
    let document = json(&arguments);
    let keys: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["text", "token_ids", "prompt_token_ids", "finish_reason"]);
    assert_eq!(document["token_ids"].as_array().unwrap().len(), 8);
    assert_eq!(document["finish_reason"], "length");
    assert_eq!(document, json(&arguments));
    let shown = fsq(&["run", &file, "--prompt", "hello", "-n", "8", "--ignore-eos"]);
    assert_eq!(String::from_utf8(shown.stdout).unwrap(), format!("{}\n", document["text"].as_str().unwrap()));
}

#[test]
fn run_repeats_what_other_programs_recorded() {
    let recorded: Value = serde_json::from_slice(&std::fs::read(fixture().join("greedy.json")).unwrap()).unwrap();
    for completion in recorded.as_array().unwrap() {
        let expected = &completion["token_ids"];
        let (n, file) = (expected.as_array().unwrap().len().to_string(), file());
        let prompt = completion["text"].as_str().unwrap();
        let found = json(&["run", &file, "--prompt", prompt, "--special", "-n", &n, "--ignore-eos", "--json"]);
        assert_eq!(found["prompt_token_ids"], completion["prompt_token_ids"], "{prompt}");
        assert_eq!(&found["token_ids"], expected, "{prompt}");
    }
}

#[test]
fn logits_have_the_promised_shape() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("l.safetensors");
    for (all, rows) in [(false, 1), (true, 3)] {
        let file = file();
        let mut arguments = vec!["logits", &file, "--tokens", "1,2,3", "--out", text(&out), "--json"];
        arguments.extend(all.then_some("--all"));
        let document = json(&arguments);
        let bytes = std::fs::read(&out).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        assert_eq!((&header["logits"]["dtype"], &header["logits"]["shape"]), (&"F32".into(), &document["shape"]));
        assert_eq!(document["shape"][0], rows);
    }
    refused(&["logits", &file(), "--tokens", "999999", "--out", text(&out)], "token 999999");
}

#[test]
fn quantize_writes_files_that_run_and_says_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments =
        ["quantize", text(&fixture()), "--to", "f16,q8_0,f16", "--out", text(&out), "--name", "tiny", "--json"];
    let report = json(&arguments);
    let names: Vec<&str> = report["files"].as_array().unwrap().iter().map(|it| it["file"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny-F16.gguf", "tiny-Q8_0.gguf"]);
    let mut found: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|it| text(&it.unwrap().path()).to_owned()).collect();
    found.sort();
    assert_eq!(found.len(), 4, "{found:?}");
    let written: Value = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(written, report);
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("not judged"));
    for (name, file) in names.iter().zip(report["files"].as_array().unwrap()) {
        let inspected = json(&["inspect", text(&out.join(name)), "--json"]);
        assert_eq!(inspected["sha256"], file["sha256"]);
        let again = json(&["run", text(&out.join(name)), "--prompt", "hello", "-n", "4", "--ignore-eos", "--json"]);
        assert_eq!(again["token_ids"].as_array().unwrap().len(), 4);
    }
}

#[test]
fn calibrate_measures_and_fits() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, map) = (folder.path().join("rows.jsonl"), folder.path().join("map.json"));
    let lines: Vec<String> = (0..120)
        .map(|it| format!(r#"{{"stated": {}, "outcome": {}}}"#, f64::from(it % 10) / 10.0, it % 3 / 2))
        .collect();
    std::fs::write(&rows, lines.join("\n")).unwrap();
    let document = json(&["calibrate", text(&rows), "--json", "--fit", text(&map)]);
    for key in ["n", "base_rate", "brier", "brier_skill", "nll", "auroc", "signed_gap", "ece_equal_width_10"] {
        assert!(document[key].is_number(), "{key}");
    }
    let map: Value = serde_json::from_slice(&std::fs::read(&map).unwrap()).unwrap();
    assert_eq!(map["fsq.recalibration.family"], "platt");
    std::fs::write(&rows, "{\"stated\": 0.5, \"outcome\": 1}\n{\"stated\": 7, \"outcome\": 1}\n").unwrap();
    refused(&["calibrate", text(&rows)], "rows.jsonl, line 2: `stated`: expected a number from 0 to 1, found 7");
    std::fs::write(&rows, "{\"stated\": 0.5, \"outcome\": 1}\n").unwrap();
    assert_eq!(json(&["calibrate", text(&rows), "--json"])["auroc"], Value::Null);
    std::fs::write(&rows, "\n").unwrap();
    refused(&["calibrate", text(&rows)], "expected outcomes, found none");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fsq"))
        .args(["inspect", "--all", &file()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn devices_and_report_answer() {
    let document = json(&["devices", "--json"]);
    assert!(document["memory"]["total_bytes"].as_u64().unwrap() > 0);
    assert!(!document["processor"]["path"].as_str().unwrap().is_empty());
    refused(&["report", text(&fixture().join("config.json"))], "expected the report.json of a demo");
}
