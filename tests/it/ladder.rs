//! `fsq quantize --gate`: what passes gets its name, what fails climbs, and what cannot be helped is given up.

use std::path::{Path, PathBuf};

use fsq_checkpoint::{Adapter, Checkpoint, LoraPair, modules};
use fsq_gguf::{Gguf, rewrite_metadata};
use serde_json::Value;

use crate::gates::checkpoint;
use crate::program::{GATE_FAILED, INCONCLUSIVE, fsq, refused, text};

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

    /// The one-sided levels at which rounds were judged.
    fn levels(&self) -> Vec<f64> {
        let rounds = self.report["files"][0]["rounds"].as_array().unwrap();
        rounds.iter().filter_map(|it| it["level"].as_f64()).collect()
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
    // Nothing comes after it, so it has all of the error to itself.
    assert_eq!((open.levels(), forced.levels()), (vec![0.025], vec![0.05]));
    let card = std::fs::read_to_string(forced.path("README.md")).unwrap();
    assert!(card.contains(&format!("inconclusive, overridden: {reason}")), "{card}");
}

#[test]
fn a_verdict_beside_an_adapter_is_about_both() {
    let sizes = Checkpoint::open(checkpoint()).unwrap().dimensions;
    let module = modules(&sizes, 0).remove(0);
    let [outputs, inputs] = module.shape;
    let adapter = |seed: usize| {
        let numbers = |n: usize| (0..n).map(|it| ((it * 7919 + seed) % 101) as f32 / 4e4).collect();
        let pair = LoraPair { a: numbers(2 * inputs), b: numbers(2 * outputs), rank: 2, inputs, outputs };
        Adapter { rank: 2, alpha: 4.0, rslora: false, pairs: [(module.hf.clone(), pair)].into() }
    };
    let folder = tempfile::tempdir().unwrap();
    let [own, other] = [1, 2].map(|it| folder.path().join(format!("{it}")));
    adapter(1).write(&own, "base").unwrap();
    adapter(2).write(&other, "base").unwrap();
    let judged = ["--gate", "demo", "-n", "32", "--override", "for the test bench only"];
    let run = Run::of("q8_0", &[&judged[..], &["--deploy", "native", "--adapter", text(&own)]].concat());
    assert_eq!(run.code, Some(0), "{}", run.errors);
    let [path, lora] = ["p-Q8_0.gguf", "p-LoRA.gguf"].map(|it| run.path(it));
    let file = Gguf::open(&path).unwrap();
    let made_of = file.metadata().str_array("fsq.provenance.adapters.sha256").unwrap();
    assert_eq!(made_of, [key(&file, "fsq.gate.adapter")]);
    assert_eq!(Gguf::open(&lora).unwrap().metadata().str_array("fsq.provenance.adapters.sha256").unwrap(), made_of);

    let runs = |adapter: &Path| {
        fsq(&["run", text(&path), "--prompt", "numbers 1 2 3 goal 6", "-n", "1", "--adapter", text(adapter)])
    };
    assert!(runs(&lora).status.success() && runs(&own).status.success());
    let prompt = ["--prompt", "numbers 1 2 3 goal 6", "--adapter", text(&other)];
    refused(&[&["run", text(&path)], &prompt[..]].concat(), "metadata `fsq.gate.adapter`: expected the adapter");
    refused(&["serve", text(&path)], "metadata `fsq.gate.adapter`: expected the adapter");

    // The digest of another adapter is not what the verdict is about.
    let mut metadata = file.metadata().clone();
    metadata.insert("fsq.gate.adapter", "0".repeat(64));
    let changed = run.path("changed.gguf");
    rewrite_metadata(&file, &metadata, &changed).unwrap().publish().unwrap();
    refused(&["serve", text(&changed)], "metadata `fsq.gate.identity`: expected");
    run.assert_clean();
}

#[test]
fn a_file_whose_first_layer_is_rough_is_rescued_by_bits_there() {
    let run = Run::of("q8_0", &["--gate", "demo", "-n", EPISODES, "--tensor-type", "blk.0.*=Q2_K"]);
    let verdicts = run.verdicts();
    assert_eq!((verdicts.first(), verdicts.last()), (Some(&"fail"), Some(&"pass")), "{}", run.errors);
    assert_eq!(run.code, Some(0));
    let rounds = run.report["files"][0]["rounds"].as_array().unwrap();
    let last = rounds.last().unwrap();
    assert!(last["remedy"].as_str().unwrap().starts_with("more bits for"), "{last}");
    assert!(last["n_bytes"].as_u64() > rounds[0]["n_bytes"].as_u64());
    let file = Gguf::open(&run.path("p-Q8_0.gguf")).unwrap();
    assert_eq!(key(&file, "fsq.gate.verdict"), "pass");
    is_sound(&run.path("p-Q8_0.gguf"));
    run.assert_clean();
}

#[test]
fn a_file_of_an_earlier_run_loses_its_name_and_nothing_else() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [name, aside] = ["p-Q8_0.gguf", "p-Q8_0.gguf.earlier"].map(|it| folder.path().join(it));
    std::fs::write(&name, "published once").unwrap();
    let fixed = ["quantize", text(checkpoint()), "--to", "q8_0", "--name", "p", "--out", text(folder.path())];
    let output = fsq(&[&fixed[..], &["--environment", "countdown", "--gate", "demo", "-n", "32"]].concat());
    assert_eq!(output.status.code(), INCONCLUSIVE, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!name.exists());
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "published once");
}

#[test]
fn a_file_that_is_rough_everywhere_is_given_up() {
    let run = Run::of("q8_0", &["--gate", "demo", "-n", EPISODES, "--tensor-type", "blk.*=Q2_K"]);
    assert_eq!(run.code, GATE_FAILED, "{}", run.errors);
    let verdicts = run.verdicts();
    // The file as asked for, and each remedy.
    assert_eq!(verdicts.len(), 4, "{verdicts:?}");
    assert!(!verdicts.contains(&"pass") && verdicts[0] == "fail");
    // Four files that all could have passed err no more often than one.
    let levels = run.levels();
    assert!(levels.len() > 1 && levels.iter().sum::<f64>() < 0.05 + 1e-9, "{levels:?}");
    let sentences = run.report["files"][0]["gates"][0]["report"]["gates"].to_string();
    assert!(sentences.contains("98.3 %"), "{sentences}");
    let mut names = std::fs::read_dir(run.folder.path()).unwrap().map(|it| it.unwrap().file_name());
    assert!(names.all(|it| !it.to_string_lossy().ends_with(".gguf")), "a file got a name");
    let file = &run.report["files"][0];
    assert_eq!((&file["published"], &file["verdict"]), (&false.into(), &"fail".into()));
    assert!(!file["rounds"][0]["sentences"].as_array().unwrap().is_empty(), "it does not say why");
    let card = std::fs::read_to_string(run.path("README.md")).unwrap();
    assert!(card.contains("No file passed its gates"), "{card}");
    assert!(card.contains("each is judged at a part of the 5 %"), "{card}");
    run.assert_clean();
}
