//! `fsq quantize --gate`: what passes gets its name, what fails climbs, and what cannot be helped is given up.

use std::path::{Path, PathBuf};

use fsq_gguf::Gguf;
use serde_json::Value;

use crate::gates::checkpoint;
use crate::program::{BAD_INPUT, GATE_FAILED, INCONCLUSIVE, fsq, text};

/// What the profile `demo` wants at least.
const EPISODES: &str = "800";

struct Run {
    folder: tempfile::TempDir,
    code: Option<i32>,
    report: Value,
    errors: String,
}

impl Run {
    /// Judges files of the trained policy in one environment.
    fn of(formats: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let fixed = ["quantize", text(checkpoint()), "--to", formats, "--name", "p", "--out", text(folder.path())];
        let output = fsq(&[&fixed[..], &["--environment", "countdown", "--json"], more].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
        println!("{errors}");
        Self { folder, code: output.status.code(), report, errors }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn verdicts(&self) -> Vec<&str> {
        let rounds = self.report["files"][0]["rounds"].as_array().unwrap();
        rounds.iter().map(|it| it["verdict"].as_str().unwrap()).collect()
    }

    /// Whatever came of it, no work is left.
    fn assert_clean(&self) {
        assert!(!self.path(".fsq-quantize").exists());
    }
}

fn key<'a>(file: &'a Gguf, key: &str) -> &'a str {
    file.metadata().str(key).unwrap_or_else(|| panic!("no {key}"))
}

fn is_sound(file: &Path) {
    let inspected = fsq(&["inspect", "--strict", text(file)]);
    assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stderr));
}

#[test]
fn what_passes_gets_its_name_with_the_verdict_inside() {
    let run = Run::of("q8_0", &["--gate", "demo", "-n", EPISODES]);
    assert_eq!((run.code, run.verdicts()), (Some(0), vec!["pass"]), "{}", run.errors);
    let file = Gguf::open(&run.path("p-Q8_0.gguf")).unwrap();
    assert_eq!(key(&file, "fsq.gate.verdict"), "pass");
    assert_eq!(key(&file, "fsq.gate.profile"), "demo");
    assert_eq!(key(&file, "fsq.gate.environments"), "countdown");
    assert_eq!(key(&file, "fsq.gate.identity").len(), 64);
    is_sound(&run.path("p-Q8_0.gguf"));
    let checks = run.report["files"][0]["checks"].as_array().unwrap();
    let parity = checks.iter().find(|it| it["name"] == "greedy parity").unwrap();
    assert!(parity["told"].as_str().unwrap().starts_with("32 greedy texts of 16 tokens"), "{parity}");
    let card = std::fs::read_to_string(run.path("README.md")).unwrap();
    assert!(card.contains("G1 task success") && card.contains("fsq serve p-Q8_0.gguf"), "{card}");
    run.assert_clean();
}

#[test]
fn too_little_evidence_gives_no_name_and_a_reason_gives_one() {
    let open = Run::of("q8_0", &["--gate", "demo", "-n", "32"]);
    assert_eq!((open.code, open.verdicts()), (INCONCLUSIVE, vec!["inconclusive"]));
    assert!(!open.path("p-Q8_0.gguf").exists());
    assert_eq!(open.report["files"][0]["published"], false);
    open.assert_clean();
    let reason = "for the test bench only";
    let forced = Run::of("q8_0", &["--gate", "demo", "-n", "32", "--override", reason]);
    assert_eq!(forced.code, Some(0));
    let file = Gguf::open(&forced.path("p-Q8_0.gguf")).unwrap();
    assert_eq!(key(&file, "fsq.gate.verdict"), "inconclusive");
    assert_eq!(key(&file, "fsq.gate.override_reason"), reason);
    assert_eq!(forced.report["files"][0]["override_reason"], reason);
    let card = std::fs::read_to_string(forced.path("README.md")).unwrap();
    assert!(card.contains(&format!("inconclusive, overridden: {reason}")), "{card}");
}
