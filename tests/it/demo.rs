//! `fsq demo --quick` as a newcomer and as an unkind machine run it: to the end, again, killed, and misused.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{BAD_INPUT, command, fsq, refused, text};
use crate::tree::root;

/// What differs from run to run: times, and what random names are made of.
const NOT_COMPARED: &[&str] =
    &["started", "command", "seconds_per_stage", "tokens_per_s", "prediction_id", "id", "created"];
const ENVIRONMENTS: [&str; 2] = ["countdown", "dochop"];
const POLICIES: [&str; 6] = ["base", "WM-AMT", "FE-SFT", "FC-RL", "Q8_0", "Q4_K_M"];

/// A finished run, shared by the tests that read it.
struct Finished {
    folder: tempfile::TempDir,
    code: Option<i32>,
    took: Duration,
}

impl Finished {
    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn finished() -> &'static Finished {
    static RUN: OnceLock<Finished> = OnceLock::new();
    RUN.get_or_init(|| {
        let folder = folder();
        let begun = Instant::now();
        let code = run(&folder.path().join("out"));
        Finished { folder, code, took: begun.elapsed() }
    })
}

/// Runs the demo; a judgement that fails or is inconclusive ends it as well as one that passes.
#[track_caller]
fn run(out: &Path) -> Option<i32> {
    let output = fsq(&["demo", "--quick", "--out", text(out)]);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 2 | 3)), "{code:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(!output.stdout.is_empty());
    code
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap()
}

/// A report without what may differ.
fn numbers(out: &Path) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|key, _| !NOT_COMPARED.contains(&key.as_str()));
                fields.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut report = report(out);
    strip(&mut report);
    report
}

/// The places at which two reports differ, as paths.
fn differences(left: &Value, right: &Value, path: &str, found: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            for (key, value) in a {
                differences(value, &b[key], &format!("{path}.{key}"), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &format!("{path}[{index}]"), found);
            }
        }
        _ if left == right => {}
        _ => found.push(format!("{path}: {left} and {right}")),
    }
}

#[track_caller]
fn assert_same_numbers(left: &Path, right: &Path) {
    let mut found = Vec::new();
    differences(&numbers(left), &numbers(right), "report", &mut found);
    found.truncate(20);
    assert!(found.is_empty(), "the numbers differ:\n  {}", found.join("\n  "));
}

#[test]
fn a_quick_demo_measures_every_policy_in_both_environments() {
    let run = finished();
    println!("fsq demo --quick took {:.0?} and ended with {:?}", run.took, run.code);
    let report = report(&run.out());
    assert_eq!(report["quick"], true);
    let arm = &report["arms"][0];
    assert_eq!(arm["name"], "wm-amt");
    let rows = arm["rows"].as_array().unwrap();
    for environment in ENVIRONMENTS {
        for policy in POLICIES {
            let row = rows.iter().find(|it| it["policy"] == policy && it["environment"] == environment);
            let row = row.unwrap_or_else(|| panic!("no row of {policy} in {environment}"));
            for measured in ["success", "adherence"] {
                let [low, value, high] = ["low", "value", "high"].map(|it| row[measured][it].as_f64().unwrap());
                assert!(0.0 <= low && low <= value && value <= high && high <= 1.0, "{policy}: {}", row[measured]);
            }
        }
    }
    assert_eq!(arm["gates"].as_array().unwrap().len(), 4, "two formats in two environments");
    let page = std::fs::read_to_string(run.out().join("report.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("src=\"http") && !page.contains("href=\"http"));
    // A file has its name only if it passed.
    let passed = |format: &str| {
        let gates = arm["gates"].as_array().unwrap().iter();
        gates.filter(|it| it["candidate"] == format).all(|it| it["verdict"] == "pass")
    };
    for format in ["Q8_0", "Q4_K_M"] {
        assert_eq!(run.out().join(format!("fsq-demo-{format}.gguf")).exists(), passed(format), "{format}");
    }
    assert_eq!(report["served"].is_null(), !passed("Q8_0") && !passed("Q4_K_M"));
}

#[test]
fn the_same_command_again_returns_at_once_with_the_same_numbers() {
    let run = finished();
    let folder = folder();
    let before = folder.path().join("before");
    std::fs::create_dir(&before).unwrap();
    std::fs::copy(run.out().join("report.json"), before.join("report.json")).unwrap();
    let begun = Instant::now();
    let code = self::run(&run.out());
    let took = begun.elapsed();
    println!("again: {took:.1?}");
    assert_eq!(code, run.code);
    assert!(took < run.took / 3, "first {:?}, again {took:?}", run.took);
    assert_same_numbers(&before, &run.out());
}

/// Killed while it trains and while it does what comes after, a run in another folder ends with the same numbers.
#[test]
fn a_killed_run_goes_on_to_the_same_numbers() {
    let folder = folder();
    let out = folder.path().join("out");
    kill_once(&out, || out.join("wm-amt/wm-amt").exists());
    assert!(!out.join("report.json").exists());
    kill_once(&out, || out.join("wm-amt/fe-sft").exists());
    assert!(!out.join("report.json").exists());
    assert_eq!(run(&out), finished().code);
    assert_same_numbers(&out, &finished().out());
}

/// Starts the demo and kills it three seconds after something is there.
fn kill_once(out: &Path, is_there: impl Fn() -> bool) {
    let mut demo = command(&["demo", "--quick", "--out", text(out)]);
    let mut child = demo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !is_there() {
        assert!(child.try_wait().unwrap().is_none(), "the demo ended before it was killed");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(3));
    // SIGKILL: nothing in the process hears of it.
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_folder_begun_with_another_seed_is_refused() {
    refused(&["demo", "--quick", "--seed", "99", "--out", text(&finished().out())], "demo.json: ");
}

/// A base that cannot play is not worth improving, and one that cannot read what it found teaches no stage anything.
#[test]
fn the_shipped_base_is_worth_improving() {
    let folder = tempfile::tempdir().unwrap();
    let base = root().join("finetune/base");
    let quantized = fsq(&["quantize", text(&base), "--to", "f16", "--out", text(folder.path())]);
    assert!(quantized.status.success(), "{quantized:?}");
    let file = folder.path().join("base-F16.gguf");
    let evaluated = |environment| {
        let arguments = ["eval", text(&file), "--environment", environment, "--plain", "-n", "1000", "--json"];
        let output = fsq(&arguments);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let (countdown, dochop) = (evaluated("countdown"), evaluated("dochop"));
    let value = |row: &Value, name: &str| row[name]["value"].as_f64().unwrap();
    assert!(value(&countdown, "success") >= 0.4, "{countdown}");
    assert!(countdown["success_when_found"].is_null(), "{countdown}");
    assert!(value(&dochop, "success") >= 0.5, "{dochop}");
    assert!(value(&dochop, "success_when_found") >= 0.9, "{dochop}");
}

#[test]
fn bad_input_gets_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("blocked");
    std::fs::write(&blocked, "a file, not a folder").unwrap();
    refused(&["demo", "--quick", "--out", text(&blocked.join("out"))], "blocked");

    let base = root().join("finetune/base");
    let quantized = fsq(&["quantize", text(&base), "--to", "q8_0", "--out", text(folder.path())]);
    assert!(quantized.status.success(), "{quantized:?}");
    let file = folder.path().join("base-Q8_0.gguf");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["serve", text(&file), "--listen", &address], &address);

    let unknown = fsq(&["eval", text(&file), "--environment", "chess"]);
    assert_eq!(unknown.status.code(), BAD_INPUT);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("countdown, dochop"), "{unknown:?}");
}

#[test]
fn a_truncated_base_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let base = root().join("finetune/base");
    for entry in std::fs::read_dir(&base).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = folder.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let out = folder.path().join("out");
    for length in [0, 7, 1000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&weights, &whole[..length]).unwrap();
        let arguments = ["quantize", text(folder.path()), "--to", "q8_0", "--out", text(&out)];
        refused(&arguments, "model.safetensors");
        assert!(!out.join("report.json").exists());
    }
}
