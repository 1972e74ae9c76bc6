//! A user's own environment, as a user meets it: the worked example, every way to break a promise, and what is left.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{BAD_INPUT, command, fsq, json, text};
use crate::tree::root;

fn example() -> PathBuf {
    root().join("docs/examples/jugs.toml")
}

/// A run file whose environment breaks its word in one way.
fn faulty(folder: &Path, fault: &str, note: Option<&Path>, settings: &str) -> PathBuf {
    let program = root().join("tests/fixtures/environments/faulty.py");
    let mut command = vec!["python3".to_string(), text(&program).into(), fault.into()];
    command.extend(note.map(|it| text(it).to_string()));
    let path = folder.join(format!("{fault}.toml"));
    std::fs::write(&path, format!("seed = 1\n[environment]\ncommand = {command:?}\n{settings}\n")).unwrap();
    path
}

/// The shipped base as a file, made once.
fn base() -> &'static Path {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, file) = FILE.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let base = root().join("finetune/base");
        json(&["quantize", text(&base), "--to", "f16", "--name", "base", "--out", text(folder.path()), "--json"]);
        let file = folder.path().join("base-F16.gguf");
        (folder, file)
    });
    file
}

/// Ends with 4 and one error, which says what is expected, and a hint.
#[track_caller]
fn assert_error(output: &std::process::Output, expected: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), BAD_INPUT, "{errors}");
    let error = errors.lines().filter(|it| it.starts_with("error: ")).collect::<Vec<_>>();
    assert!(error.len() == 1 && error[0].contains(expected), "expected `{expected}` in: {errors}");
    assert!(errors.lines().any(|it| it.starts_with("hint: ")), "{errors}");
}

fn is_alive(process: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat"));
    // What has ended and was not asked after yet is no process any more.
    status.is_ok_and(|it| !it.contains(") Z "))
}

#[test]
fn the_worked_example_keeps_its_promises() {
    let found = json(&["environment", "check", text(&example()), "-n", "6", "--json"]);
    assert_eq!((&found["environment"], &found["episodes"]), (&"jugs".into(), &12.into()));
    let promises = found["promises"].as_array().unwrap();
    assert!(promises.iter().all(|it| it["fault"].is_null() && it["n"].as_u64().unwrap() > 0), "{found}");
    assert_eq!(found["repeated_starts"], 0);
    assert!(found["speed"]["median_ms"].as_f64().unwrap() > 0.0);
    let told = fsq(&["environment", "check", text(&example()), "-n", "2"]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.starts_with("jugs: 4 episodes of "), "{told}");
    assert_eq!(told.matches("kept").count(), promises.len(), "{told}");
}

#[test]
fn our_own_worlds_keep_theirs() {
    for name in ["countdown", "dagmath", "slipgrid"] {
        let found = json(&["environment", "check", name, "-n", "3", "--json"]);
        assert!(found["promises"].as_array().unwrap().iter().all(|it| it["fault"].is_null()), "{found}");
    }
}

#[test]
fn every_broken_promise_is_told_with_what_to_do_about_it() {
    let folder = tempfile::tempdir().unwrap();
    let quick = "timeout_s = 0.5\nstart_timeout_s = 10.0\nrestarts = 0";
    for (fault, settings, expected) in [
        ("none", "", ""),
        ("protocol", "", "`hello`: expected protocol 1, found 2"),
        ("silent-at-start", "start_timeout_s = 0.3", "`hello`: expected an answer within 0.3 s, found none"),
        ("hangs", quick, "environment `faulty`: `"),
        (
            "dies",
            "restarts = 0",
            "expected an answer, found the end of the program (exit status: 3), which said: out of luck",
        ),
        ("dies", "restarts = 2", "expected at most 2 restarts in a run, found one more to be needed"),
        ("long", "", "expected a line of at most 1048576 bytes, found a longer one"),
        ("garbage", "", "expected one JSON object, found `reached cell {"),
        ("latin", "", "expected UTF-8, found byte 0xE9 at byte 7 of the line"),
        ("twice", "", "field `id`: expected "),
        ("kinds", "", "`legal`: field `actions`: expected a list of texts, found 3"),
        (
            "lies",
            "",
            "`step stay`: expected an action to be taken that `legal` lists for the same state, found it refused",
        ),
        ("shuffles", "", "two questions about a state get one answer; found: `legal` listed"),
        ("random", "", "the same seed begins the same episode; found: "),
        ("remembers", "", "the same actions lead to the same states; found: "),
        ("endless", "", "episodes end in time; found: after 4 of at most 4 steps"),
        ("tags", "", "actions and rollouts are lines without tags; found: "),
    ] {
        let file = faulty(folder.path(), fault, None, settings);
        let output = fsq(&["environment", "check", text(&file), "-n", "4"]);
        match expected {
            "" => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
            _ => assert_error(&output, expected),
        }
    }
    let file = faulty(folder.path(), "hangs", None, quick);
    let output = fsq(&["environment", "check", text(&file), "-n", "4"]);
    assert_error(&output, "expected an answer within 0.5 s, found none");
}

#[test]
fn a_program_that_falls_once_is_started_again_and_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let plain = faulty(folder.path(), "none", None, "");
    let expected = json(&["environment", "check", text(&plain), "-n", "4", "--json"]);
    for fault in ["dies", "hangs"] {
        let note = folder.path().join(format!("{fault}.note"));
        let file = faulty(folder.path(), fault, Some(&note), "timeout_s = 2.0");
        let found = json(&["environment", "check", text(&file), "-n", "4", "--json"]);
        assert!(note.exists(), "it has fallen");
        assert_eq!(found["promises"], expected["promises"]);
        assert_eq!(found["steps"], expected["steps"]);
    }
}

#[test]
fn no_process_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("numbers");
    let told = || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            match std::fs::read_to_string(&note) {
                Ok(it) if it.contains(' ') => return it,
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        panic!("the program did not say its numbers");
    };
    let gone = |numbers: &str| {
        let begun = Instant::now();
        while numbers.split(' ').any(is_alive) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{numbers} are still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    // It hangs, and is ended with what it started.
    let file = faulty(folder.path(), "leaves-a-child", Some(&note), "timeout_s = 2.0\nrestarts = 0");
    let output = fsq(&["environment", "check", text(&file)]);
    assert_error(&output, "expected an answer within 2 s, found none");
    gone(&told());
    std::fs::remove_file(&note).unwrap();
    // It hangs, and the one that waits for it is killed.
    let file = faulty(folder.path(), "leaves-a-child", Some(&note), "timeout_s = 500");
    let arguments = ["environment", "check", text(&file)];
    let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let numbers = told();
    assert!(numbers.split(' ').all(is_alive), "{numbers}");
    child.kill().unwrap();
    child.wait().unwrap();
    gone(&numbers);
}

#[test]
fn a_policy_plays_in_it_and_what_was_finished_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let play = |file: &Path, more: &[&str]| {
        let fixed = ["eval", text(base()), "--environment", text(file), "--plain", "-n", "40", "--json"];
        fsq(&[&fixed[..], more].concat())
    };
    let output = play(&example(), &["--difficulty", "harder"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["environment"], &found["n"]), (&"jugs".into(), &40.into()));
    // 81 requests begin the episodes; the program falls for good while they go on.
    let source = std::fs::read_to_string(root().join("docs/examples/jugs.py")).unwrap();
    let source = source.replace("    request = json.loads(line)\n", "    request = json.loads(line)\n    fall()\n");
    let fall =
        "asked = 0\n\n\ndef fall():\n    global asked\n    asked += 1\n    if asked > 95:\n        sys.exit(3)\n\n\n";
    assert!(source.contains("    fall()\n"), "{source}");
    let source = source.replace("for line in sys.stdin:", &format!("{fall}for line in sys.stdin:"));
    std::fs::write(folder.path().join("falls.py"), source).unwrap();
    let file = folder.path().join("falls.toml");
    std::fs::write(&file, "[environment]\ncommand = [\"python3\", \"falls.py\"]\nrestarts = 0\n").unwrap();
    let output = play(&file, &[]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let n = found["n"].as_u64().unwrap();
    assert!(n > 0 && n < 40, "{found}");
    assert_error(&output, &format!("{n} of 40 episodes were finished and are counted: environment `jugs`: `"));
}

#[test]
fn stages_train_in_it_beside_other_worlds() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let lora = "lora = { rank = 4, alpha = 8.0 }\nschedule = { learning_rate = 1e-3 }\nsteps = 2\n";
    let run = format!(
        "seed = 1\ntensorboard = true\n[environment]\ncommand = [\"python3\", {jugs:?}]\n\
         [wm-amt]\nmaterial = \"blocks\"\nbatch_tokens = 1200\nmix = [0.1, 0.0]\n{lora}\
         further = {{ own = {{ share = 0.4 }}, dagmath = {{ share = 0.3 }}, slipgrid = {{ share = 0.2 }} }}\n\
         [fe-sft]\nmaterial = {{ tagged = [0, 0] }}\nbatch_tokens = 300\nmix = [0.0, 0.0]\n{lora}\
         further = {{ own = {{ traces = 1 }}, dagmath = {{ traces = 2 }}, slipgrid = {{ traces = 2 }} }}\n\
         [fc-rl]\ntasks = [0, 0]\ncalibration_tasks = [0, 0]\ngroup = 2\n{lora}context_tokens = 900\n\
         further = {{ slipgrid = {{ tasks = 2, calibration_tasks = 2 }} }}\n\
         confidence_weight = 1.0\nfidelity_weight = 0.5\nsignal_weight = 0.1\nformat_weight = 0.4\n\
         [fc-rl.limits]\nadherence_min = 0.0\nentropy_nats_min = 0.0\nlevel_mass_max = 1.0\n\
         stated_deviation_min = 0.0\nreward_deviation_ratio_min = 0.0\nsigned_gap_max = 1.0\nwindow_steps = 50\n\
         warmup_steps = 10\n",
        jugs = text(&root().join("docs/examples/jugs.py")),
    );
    let (file, out) = (folder.path().join("run.toml"), folder.path().join("out"));
    std::fs::write(&file, &run).unwrap();
    let from = root().join("finetune/base");
    let output = fsq(&["train", text(&file), "--from", text(&from), "--out", text(&out)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metrics = std::fs::read_to_string(out.join("fc-rl/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(last["success"].as_array().unwrap().len(), 3, "two lists and a further world");
    for stage in ["wm-amt", "fe-sft", "fc-rl"] {
        let events = std::fs::read(out.join(stage).join("events.out.tfevents.0.fsq")).unwrap();
        assert!(events.len() > 100, "{stage}: {} bytes", events.len());
    }
    // A world that there is none of.
    std::fs::write(&file, run.replace("[environment]\ncommand", "[fc-rl.none]\ncommand")).unwrap();
    assert_eq!(fsq(&["train", text(&file), "--from", text(&from), "--out", text(&out)]).status.code(), BAD_INPUT);
    let without = run.lines().filter(|it| !it.starts_with("[environment]") && !it.starts_with("command"));
    std::fs::write(&file, without.collect::<Vec<_>>().join("\n")).unwrap();
    let other = folder.path().join("other");
    let output = fsq(&["train", text(&file), "--from", text(&from), "--out", text(&other)]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("further.own: expected a table [environment] in the run file, found none"), "{errors}");
}

#[test]
fn a_folder_of_texts_is_an_environment() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("texts")).unwrap();
    let (mut texts, mut questions) = (String::new(), String::new());
    for number in 0..60 {
        texts += &format!("The lamp in room {number} was made by maker{number}.\n\n");
        questions += &format!("{{\"question\": \"Who made lamp {number}?\", \"answers\": [\"maker{number}\"]}}\n");
    }
    std::fs::write(folder.path().join("texts/lamps.txt"), texts).unwrap();
    std::fs::write(folder.path().join("questions.jsonl"), questions).unwrap();
    let file = folder.path().join("search.toml");
    let settings = "[environment.search]\nfolder = \"texts\"\nquestions = \"questions.jsonl\"\n";
    std::fs::write(&file, settings).unwrap();
    let found = json(&["environment", "check", text(&file), "-n", "5", "--json"]);
    assert!(found["promises"].as_array().unwrap().iter().all(|it| it["fault"].is_null()), "{found}");
    let played = json(&["eval", text(base()), "--environment", text(&file), "--plain", "-n", "8", "--json"]);
    assert_eq!((&played["environment"], &played["n"]), (&"search".into(), &8.into()));
    std::fs::write(&file, settings.replace("texts", "nowhere")).unwrap();
    let output = fsq(&["environment", "check", text(&file)]);
    assert_eq!(output.status.code(), BAD_INPUT);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere"));
}

#[test]
fn commands_that_judge_say_that_they_play_our_own_worlds_alone() {
    let own = text(&example()).to_string();
    let files = ["gate", text(base()), "--reference", text(base()), "--environment", &own];
    let output = fsq(&files);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), BAD_INPUT, "{errors}");
    assert!(errors.contains("expected one of countdown, dochop, dagmath, slipgrid, found"), "{errors}");
    assert!(
        errors.contains("a user's own environment is for `fsq eval`, `fsq train` and `fsq environment`"),
        "{errors}"
    );
}

#[test]
fn worlds_that_the_base_has_not_learnt_are_played_all_the_same() {
    for name in ["dagmath", "slipgrid"] {
        for difficulty in ["trained", "harder"] {
            let fixed = ["eval", text(base()), "--environment", name, "--plain", "-n", "12", "--json"];
            let found = json(&[&fixed[..], &["--difficulty", difficulty]].concat());
            assert_eq!((&found["environment"], &found["n"]), (&name.into(), &12.into()));
        }
    }
}
