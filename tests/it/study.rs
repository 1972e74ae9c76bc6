//! `fsq study gap` on its smallest budget: to the end, killed and resumed, partial, and misused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fsq_environments::{Countdown, Environment, Split};
use fsq_episodes::{Episode, Format, PlayOptions, Protocol, play, play_from};
use fsq_gguf::Gguf;
use fsq_model::{DecoderOptions, KvFormat, LoadedPolicy, Special};
use serde_json::Value;

use crate::program::{BAD_INPUT, command, fsq, json, refused, text};
use crate::tree::root;

const BUDGET: [&str; 2] = ["--budget", "smoke"];

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn gap<'a>(out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["study", "gap", "--out", text(out)][..], &BUDGET, more].concat()
}

/// The cells of a study by file name.
fn cells(out: &Path) -> BTreeMap<PathBuf, String> {
    let read = std::fs::read_dir(out.join("cells")).unwrap().map(|it| it.unwrap().path());
    read.map(|it| (PathBuf::from(it.file_name().unwrap()), std::fs::read_to_string(&it).unwrap())).collect()
}

fn verdict(report: &Value, name: &str, environment: &str) -> String {
    let rows = report["predictions"].as_array().unwrap();
    let row = rows.iter().find(|it| it["name"] == name && it["environment"] == environment).unwrap();
    row["verdict"].as_str().unwrap().to_string()
}

/// Killed in mid-training, then among the cells, a study ends with the bytes of one that was left alone; what is
/// there in between makes a report that says it is partial.
#[test]
fn a_killed_study_goes_on_to_the_same_cells() {
    let folder = folder();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let arms = ["--arms", "A,B,E,I", "--seeds", "2", "--tasks", "16"];
    let report = json(&gap(&whole, &[&arms[..], &["--json"]].concat()));
    assert_eq!(report["data"]["is_matched"], true, "{}", report["data"]);
    assert_eq!(report["cells"].as_array().unwrap().len(), 4);

    kill_once(&gap(&killed, &arms), || metrics_lines(&killed) >= 3);
    assert!(!killed.join("cells").exists());
    kill_once(&gap(&killed, &arms), || killed.join("cells/A-2.jsonl").exists());
    let partial = json(&["study", "gap", "--results", text(&killed), "--report", "--json"]);
    assert!((1..4).contains(&partial["cells"].as_array().unwrap().len()));
    assert_eq!(verdict(&partial, "P11", "dochop"), "not-run");
    let page = std::fs::read_to_string(killed.join("report.md")).unwrap();
    assert!(page.contains("**Partial and provisional**") && page.contains("shipped base"), "{page}");

    let status = json(&gap(&killed, &[&arms[..], &["--status", "--json"]].concat()));
    assert_eq!(status["cells"], 4);
    assert!(status["cells_done"].as_u64().unwrap() < 4 && status["cells_done"].as_u64().unwrap() >= 1);

    let done = fsq(&gap(&killed, &arms));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(cells(&killed), cells(&whole));
    let again = json(&["study", "gap", "--results", text(&killed), "--report", "--json"]);
    assert_eq!(again["predictions"], report["predictions"]);
    assert!(["confirmed", "refuted", "undecided"].contains(&&*verdict(&again, "P11", "dochop")));
    for name in ["countdown-fidelity.svg", "dochop-success.svg", "countdown-gap-index.svg"] {
        assert!(std::fs::read_to_string(killed.join(name)).unwrap().starts_with("<svg xmlns="), "{name}");
    }
}

/// Lines of metrics in any stage of a study.
fn metrics_lines(out: &Path) -> usize {
    let Ok(stages) = std::fs::read_dir(out.join("stages")) else { return 0 };
    let metrics = stages.filter_map(|it| std::fs::read_to_string(it.ok()?.path().join("metrics.jsonl")).ok());
    metrics.map(|it| it.lines().count()).max().unwrap_or(0)
}

fn kill_once(arguments: &[&str], is_there: impl Fn() -> bool) {
    let mut child = command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !is_there() {
        assert!(child.try_wait().unwrap().is_none(), "the study ended before it was killed");
        std::thread::sleep(Duration::from_millis(10));
    }
    // SIGKILL: nothing in the process hears of it.
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Every arm of the table can be run, in one environment as in both, and arms share what they have in common.
#[test]
fn every_arm_runs() {
    let folder = folder();
    let out = folder.path().join("out");
    let arms = ["--arms", "C,D,F,G,H,J", "--seeds", "1", "--tasks", "8", "--environments", "countdown", "--json"];
    let report = json(&gap(&out, &arms));
    let rows = report["rows"].as_array().unwrap();
    for arm in ["C", "D", "F", "G", "H", "J"] {
        for after in ["sft", "rl"] {
            let is_own = |it: &&Value| it["arm"] == arm && it["after"] == after && it["environment"] == "countdown";
            let row = rows.iter().find(is_own).unwrap_or_else(|| panic!("{arm} after {after}"));
            assert!(row["success"]["value"].as_f64().is_some_and(|it| (0.0..=1.0).contains(&it)), "{row}");
        }
    }
    assert!(rows.iter().all(|it| it["environment"] == "countdown"));
    let stages = std::fs::read_dir(out.join("stages")).unwrap().count();
    // WM-AMT and FE-SFT after it once; states and next state; plain, state and two tagged tunings; six ends.
    assert_eq!(stages, 3 + 4 + 6, "stages are shared");
    // A state-only arm states what says nothing.
    let f = rows.iter().find(|it| it["arm"] == "F" && it["after"] == "sft").unwrap();
    assert!(f["fidelity"].as_array().is_some_and(|it| it.len() == 2), "{f}");
    // Arms and seeds may be added, but nothing else may change.
    refused(
        &gap(&out, &["--arms", "D", "--seeds", "1", "--tasks", "9", "--environments", "countdown"]),
        "study.json: instances: expected 9, found 8",
    );
}

#[test]
fn what_cannot_be_studied_is_refused() {
    let folder = folder();
    let out = folder.path().join("out");
    refused(&gap(&out, &["--arms", "A,Z"]), "--arms Z: expected arms among A, B,");
    refused(&gap(&out, &["--seeds", "5..1"]), "--seeds 5..1");
    refused(&gap(&out, &["--tasks", "1"]), "--tasks 1: expected 2 to 1000");
    refused(
        &["study", "gap", "--out", text(&out), "--budget", "enormous"],
        "--budget enormous: expected smoke, t1-lite",
    );
    refused(&["study", "gap", "--results", text(&out), "--report"], "study.json");
    let run_file = folder.path().join("run.toml");
    std::fs::write(&run_file, "seed = 1\n").unwrap();
    refused(&["study", "gap", "--out", text(&out), "--budget", text(&run_file)], "expected a table [wm-amt]");
    assert_eq!(fsq(&["study", "gap", "--status", "--report"]).status.code(), BAD_INPUT);
    assert_eq!(fsq(&["study", "nothing"]).status.code(), BAD_INPUT);
}

/// The causal test rests on this: what a policy is made to begin with is part of its turn, and it goes on from there.
#[test]
fn a_turn_that_is_begun_for_a_policy_is_its_own() {
    let folder = folder();
    let base = root().join("finetune/base");
    let quantized = fsq(&["quantize", text(&base), "--to", "f16", "--out", text(folder.path())]);
    assert!(quantized.status.success(), "{quantized:?}");
    let gguf = Gguf::open(&folder.path().join("base-F16.gguf")).unwrap();
    let options = DecoderOptions { threads: 2, context_tokens: 512, kv: KvFormat::F16, max_sequences: 16 };
    let LoadedPolicy { mut decoder, tokenizer, template } = LoadedPolicy::load(&gguf, options).unwrap();
    let protocol = Protocol::new(&tokenizer, &template);
    let tasks = Countdown.tasks(Split::Test, 1, 12);
    let options =
        PlayOptions { format: Format::Plain, temperature: 0.0, seed: 1, turn_tokens_max: 64, batch: 8, adapter: None };
    let free = play(&Countdown, &tasks, &mut decoder, &protocol, &options, &mut |_| ()).unwrap();
    // The last legal move of each instance, whatever the policy would have done; its second move is left to it.
    let last = |task| Countdown.legal_actions(task, &Countdown.start(task)).pop().unwrap();
    let begun = |task| vec![tokenizer.encode(&format!("<action>{}", last(task)), Special::Parse)];
    let openings: Vec<_> = tasks.iter().map(begun).collect();
    let forced = play_from(&Countdown, &tasks, &openings, &mut decoder, &protocol, &options, &mut |_| ()).unwrap();
    let first = |it: &Episode| it.steps[0].action.clone();
    for ((task, episode), opening) in tasks.iter().zip(&forced).zip(&openings) {
        assert_eq!(first(episode), Some(last(task)), "{}", episode.steps[0].text);
        assert!(episode.tokens[episode.steps[0].tokens.clone()].starts_with(&opening[0]));
        assert!(episode.steps.len() == 2 && episode.steps[1].action.is_some(), "{:?}", episode.steps);
    }
    assert!(free.iter().zip(&forced).any(|(a, b)| first(a) != first(b)));
    // Made to begin as they did by themselves, they end as they did.
    let own = |it: &Episode| it.steps.iter().map(|step| it.tokens[step.tokens.clone()][..3].to_vec()).collect();
    let openings: Vec<Vec<Vec<u32>>> = free.iter().map(own).collect();
    let again = play_from(&Countdown, &tasks, &openings, &mut decoder, &protocol, &options, &mut |_| ()).unwrap();
    for (before, after) in free.iter().zip(&again) {
        assert_eq!(before.tokens, after.tokens);
        assert_eq!(before.success, after.success);
    }
}
