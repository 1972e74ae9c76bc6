//! The gates on purpose-made files: a copy passes, damage fails where it was done, too little evidence decides nothing.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fsq_blocks::Format;
use fsq_calibrate::recalibration::RecalibrationMap;
use fsq_gguf::{Draft, Gguf, TensorSpec, rewrite_metadata};
use serde_json::Value;

use crate::program::{GATE_FAILED, INCONCLUSIVE, fsq, json, refused, text};
use crate::tree::root;

/// A small foresight policy: enough of the tagged format that nearly every step parses, little skill.
const RECIPE: &str = r"
seed = 1
[fe-sft]
material = { tagged = [400, 200] }
lora = { rank = 32, alpha = 64.0 }
steps = 240
batch_tokens = 512
mix = [0.55, 0.45]
schedule = { learning_rate = 2e-3, warmup = 0.05, decay = 0.5 }
";
/// What the profile `demo` wants at least.
const EPISODES: &str = "800";
/// The first layer's keys find what came before; rough keys there leave nothing of any behaviour.
const DAMAGED: &str = "blk.0.attn_k.weight";
/// How far estimates are shifted.
const SHIFT: f64 = 0.2;

/// A foresight policy, trained once for all tests: its checkpoint, and its file in f16.
fn trained() -> &'static (tempfile::TempDir, [PathBuf; 2]) {
    static FILE: OnceLock<(tempfile::TempDir, [PathBuf; 2])> = OnceLock::new();
    FILE.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (recipe, out) = (folder.path().join("gates.toml"), folder.path().join("out"));
        std::fs::write(&recipe, RECIPE).unwrap();
        let base = root().join("finetune/base");
        succeeds(&["train", text(&recipe), "--from", text(&base), "--out", text(&out)]);
        let merged = out.join("fe-sft/merged");
        succeeds(&["quantize", text(&merged), "--to", "f16", "--name", "policy", "--out", text(folder.path())]);
        let file = folder.path().join("policy-F16.gguf");
        (folder, [merged, file])
    })
}

/// Its checkpoint.
pub(crate) fn checkpoint() -> &'static Path {
    &trained().1[0]
}

fn policy() -> &'static Path {
    &trained().1[1]
}

fn succeeds(arguments: &[&str]) {
    let output = fsq(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Exit code, and what each gate said by its short name.
fn gate(candidate: &Path, reference: &Path, episodes: &str) -> (Option<i32>, Vec<(String, Value)>) {
    let (code, report) = report(candidate, reference, &["-n", episodes]);
    let gates = report["gates"].as_array().unwrap();
    let named = |it: &Value| (it["id"].as_str().unwrap().to_owned(), it["verdict"]["answer"].clone());
    (code, gates.iter().map(named).collect())
}

/// Exit code and report.
fn report(candidate: &Path, reference: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let files = ["gate", text(candidate), "--reference", text(reference)];
    let output = fsq(&[&files[..], &["--environment", "countdown", "--json"], more].concat());
    let runs: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let report = &runs[0]["report"];
    for gate in report["gates"].as_array().unwrap() {
        println!("{}", gate["sentence"].as_str().unwrap());
    }
    (output.status.code(), report.clone())
}

#[track_caller]
fn assert_answer(gates: &[(String, Value)], id: &str, answer: &str) {
    let found: Vec<&Value> = gates.iter().filter(|it| it.0 == id).map(|it| &it.1).collect();
    assert!(!found.is_empty() && found.iter().all(|it| *it == answer), "{id}: expected {answer}, found {found:?}");
}

#[test]
fn calibrate_reads_what_eval_writes_down() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    for difficulty in ["trained", "harder"] {
        let play = ["eval", text(policy()), "--environment", "countdown", "-n", "64", "--json"];
        let row = json(&[&play[..], &["--difficulty", difficulty, "--outcomes", text(&rows)]].concat());
        let found = json(&["calibrate", text(&rows), "--json"]);
        let written = std::fs::read_to_string(&rows).unwrap();
        let steps: Vec<Value> = written.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        assert_eq!(found["n"], steps.len());
        // What eval and the gates judge is what was stated first.
        let first: Vec<&Value> = steps.iter().filter(|it| it["step"] == 0).collect();
        let error = |it: &&Value| (it["stated"].as_f64().unwrap() - it["outcome"].as_f64().unwrap()).powi(2);
        let brier = first.iter().map(error).sum::<f64>() / first.len() as f64;
        assert!((brier - row["brier"]["value"].as_f64().unwrap()).abs() < 1e-9, "{difficulty}: {brier} {row}");
        let right = found["fidelity"][0]["fidelity"].as_f64().unwrap();
        assert!(first.len() > 32 && right <= 1.0, "{difficulty}: {found}");
    }
    refused(&["eval", text(policy()), "--environment", "countdown", "--outcomes", "no/such.jsonl"], "no/such.jsonl");
}

#[test]
fn an_identical_copy_passes() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.gguf");
    std::fs::copy(policy(), &copy).unwrap();
    let (code, gates) = gate(&copy, policy(), EPISODES);
    assert_eq!(code, Some(0));
    assert!(gates.iter().all(|it| it.1 == "pass"), "{gates:?}");
}

#[test]
fn too_few_episodes_decide_nothing() {
    let (code, gates) = gate(policy(), policy(), "32");
    assert_eq!(code, INCONCLUSIVE);
    assert_answer(&gates, "G1", "inconclusive");
    assert!(gates.iter().all(|it| it.1 != "fail"), "{gates:?}");
    let arguments = ["gate", text(policy()), "--reference", text(policy()), "--environment", "countdown", "-n", "32"];
    for more in [&[][..], &["--sequential"]] {
        let output = fsq(&[&arguments[..], more].concat());
        assert_eq!(output.status.code(), INCONCLUSIVE);
        let told = String::from_utf8_lossy(&output.stdout);
        let expected = "countdown: inconclusive on 32 tasks under profile demo; about 768 more episodes would decide\n";
        assert!(told.starts_with(expected), "{told}");
    }
}

#[test]
fn a_clear_verdict_needs_no_more_episodes() {
    let (code, found) = report(policy(), policy(), &["--sequential", "-n", "1200"]);
    assert_eq!((code, &found["verdict"]["answer"]), (Some(0), &"pass".into()));
    assert_eq!((&found["n"], &found["look"]["number"], &found["look"]["of"]), (&300.into(), &1.into(), &4.into()));
    assert!(found["look"]["level"].as_f64().unwrap() < 0.05);
    // What was played in parts is what would have been played at once.
    let (_, at_once) = report(policy(), policy(), &["-n", "300"]);
    assert_eq!(found["reference"], at_once["reference"]);
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.gguf");
    write_damaged(&Gguf::open(policy()).unwrap(), &damaged);
    let (code, found) = report(&damaged, policy(), &["--sequential", "-n", "1200"]);
    assert_eq!((code, &found["verdict"]["answer"]), (GATE_FAILED, &"fail".into()));
    assert!(found["n"].as_u64().unwrap() < 1200, "{}", found["look"]);
    // Once one environment fails, the others need not be played.
    let arguments = ["gate", text(&damaged), "--reference", text(policy()), "--sequential"];
    let output = fsq(&arguments);
    assert_eq!(output.status.code(), GATE_FAILED);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        told.contains(", look 1 of 4") && told.ends_with("dochop: not played, as the verdict is clear\n"),
        "{told}"
    );
}

#[test]
fn no_task_is_counted_twice() {
    // Fewer different tasks than this profile wants: too few for a verdict, and no repetition is taken for evidence.
    let files = ["gate", text(policy()), "--reference", text(policy()), "--environment", "countdown"];
    let output = fsq(&[&files[..], &["--profile", "4-bit", "--json"]].concat());
    assert_eq!(output.status.code(), INCONCLUSIVE);
    let runs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = &runs[0]["report"];
    let n = report["n"].as_u64().unwrap();
    assert!(n < 1600 && report["episodes_missing"] == 1600 - n, "{report}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains(&format!("countdown has {n} tasks to judge by, not 1600")), "{told}");
}

#[test]
fn what_cannot_be_judged_is_bad_input() {
    let files = ["gate", text(policy()), "--reference", text(policy())];
    refused(
        &[&files[..], &["--profile", "2-bit"]].concat(),
        "gate profile `2-bit`: expected one of 8-bit, 4-bit, demo",
    );
    refused(&["gate", text(policy()), "--reference", "no-such.gguf", "--sequential"], "no-such.gguf");
}

#[test]
fn one_attention_tensor_at_two_bits_fails() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.gguf");
    write_damaged(&Gguf::open(policy()).unwrap(), &damaged);
    let (code, gates) = gate(&damaged, policy(), EPISODES);
    assert_eq!(code, GATE_FAILED);
    // Which of these it breaks first depends on the policy; calibration alone is not among them.
    let broken = |it: &&(String, Value)| it.1 == "fail" && ["G1", "G5", "G6"].contains(&it.0.as_str());
    assert!(gates.iter().any(|it| broken(&it)), "{gates:?}");
}

/// Rounds one tensor to four levels, all with one scale, and copies everything else.
fn write_damaged(source: &Gguf, path: &Path) {
    let spec =
        |it: &fsq_gguf::TensorInfo| TensorSpec { name: it.name.clone(), format: it.format, shape: it.shape.clone() };
    let specs: Vec<TensorSpec> = source.tensors().iter().map(spec).collect();
    let mut draft = Draft::create(path, source.metadata(), &specs).unwrap();
    for view in source.views() {
        if view.name != DAMAGED {
            draft.write(view.name, view.bytes).unwrap();
            continue;
        }
        assert_eq!(view.format, Format::F16);
        let mut weights = view.to_f32();
        let largest = weights.iter().fold(0.0f32, |largest, it| largest.max(it.abs()));
        for weight in &mut weights {
            // -1, -1/3, 1/3 and 1 times the largest.
            let level = (1.5 * (*weight / largest + 1.0)).round();
            *weight = (level / 1.5 - 1.0) * largest;
        }
        let mut bytes = vec![0; view.bytes.len()];
        Format::F16.encode(&weights, None, &mut bytes);
        draft.write(view.name, &bytes).unwrap();
    }
    draft.finish().unwrap().publish().unwrap();
}

#[test]
fn estimates_shifted_by_twenty_points_fail_the_gap() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["eval", text(policy()), "--environment", "countdown", "-n", EPISODES, "--json"];
    let row = json(&arguments);
    let success = row["base_rate"].as_f64().unwrap();
    let stated = success + row["signed_gap"]["value"].as_f64().unwrap();
    // A map that pulls nine tenths of the way to a centre, so that estimates agree with outcomes on average.
    let centre = (success - 0.1 * stated) / 0.9;
    let shift = if success < 0.5 { SHIFT } else { -SHIFT };
    let [right, shifted] = [("right", centre), ("shifted", centre + shift / 0.9)].map(|(name, centre)| {
        let path = folder.path().join(name).with_extension("gguf");
        write_with_map(policy(), &path, centre);
        path
    });
    let (code, gates) = gate(&right, &right, EPISODES);
    assert_eq!(code, Some(0), "{gates:?}");
    let (code, gates) = gate(&shifted, &right, EPISODES);
    assert_eq!(code, GATE_FAILED);
    assert_answer(&gates, "G3", "fail");
    for untouched in ["G1", "G2", "G4", "G5", "G6", "G7"] {
        assert_answer(&gates, untouched, "pass");
    }
}

/// The same tensors with a recalibration map.
fn write_with_map(source: &Path, path: &Path, centre: f64) {
    let source = Gguf::open(source).unwrap();
    let mut metadata = source.metadata().clone();
    let parameters = format!("0.9,{}", centre.clamp(0.0, 1.0));
    let digest = "0".repeat(64);
    let pairs = [("family", "shrinkage"), ("parameters", &parameters), ("n", "800"), ("digest", &digest)];
    for (key, value) in pairs {
        metadata.insert(format!("fsq.recalibration.{key}"), value);
    }
    let texts = metadata.iter().filter_map(|(key, value)| match value {
        fsq_gguf::Value::String(text) => Some((key, text.as_str())),
        _ => None,
    });
    assert!(RecalibrationMap::from_pairs(texts).unwrap().is_some());
    rewrite_metadata(&source, &metadata, path).unwrap().publish().unwrap();
}
