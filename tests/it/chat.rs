//! `fsq chat` as a script types into it: one line, one message.

use std::io::{Read, Write};
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::cli::write_files;
use crate::program::{BAD_INPUT, command, fsq, refused, text};
use crate::tree::root;

/// A random policy's file, which hardly ever ends an answer.
fn policy() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), "f32");
    let file = text(&folder.path().join("out/tiny-F32.gguf")).to_owned();
    (folder, file)
}

fn chat(arguments: &[&str], input: &str) -> Output {
    let mut command = command(&[&["chat"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn turns(arguments: &[&str], input: &str) -> (Vec<Value>, String) {
    let output = chat(&[arguments, &["--json"]].concat(), input);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    (serde_json::from_slice(&output.stdout).unwrap(), errors)
}

fn number(turn: &Value, name: &str) -> u64 {
    turn[name].as_u64().unwrap()
}

#[test]
fn only_what_is_new_is_read_and_reset_forgets() {
    let (_folder, file) = policy();
    let (turns, errors) = turns(&[&file, "-n", "12"], "hello\n\nand again\n/reset\nhello\n/exit\nnever read\n");
    assert_eq!(turns.len(), 3, "{turns:?}");
    assert_eq!(turns[1]["message"], "and again");
    let [first, second] = [&turns[0], &turns[1]];
    assert_eq!(number(first, "n_read"), number(first, "n_prompt"));
    if first["finish_reason"] == "length" {
        // All of the first answer but its last token has run.
        let known = number(first, "n_prompt") + number(first, "n_generated") - 1;
        assert_eq!(number(second, "n_read"), number(second, "n_prompt") - known);
        assert!(errors.contains("[cut off after 12 tokens]"), "{errors}");
    }
    assert!(number(second, "n_prompt") > number(first, "n_prompt") + number(first, "n_generated"));
    assert_eq!((&turns[2]["answer"], &turns[2]["n_prompt"]), (&first["answer"], &first["n_prompt"]));
    assert_eq!(first["foresight"], Value::Null);
}

#[test]
fn answers_are_printed_as_they_come() {
    let (_folder, file) = policy();
    let arguments = [file.as_str(), "-n", "12"];
    let (turns, _) = turns(&arguments, "hello\nand again");
    let output = chat(&arguments, "hello\nand again");
    let expected: String = turns.iter().map(|it| it["answer"].as_str().unwrap().to_owned() + "\n").collect();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn a_system_prompt_comes_first_and_sampling_follows_its_seed() {
    let (_folder, file) = policy();
    let prompt =
        |arguments: &[&str], input: &str| number(&turns(&[&[&*file], arguments].concat(), input).0[0], "n_prompt");
    let plain = prompt(&["-n", "1"], "hello\n");
    let with = prompt(&["-n", "1", "--system", "be brief"], "hello\n");
    assert!(with > plain + 8);
    assert_eq!(prompt(&["-n", "1"], "/system be brief\nhello\n"), with);
    assert_eq!(prompt(&["-n", "1", "--system", "be brief"], "/system\nhello\n"), plain);
    let sampled = |seed: &str| turns(&[&file, "-n", "16", "--temperature", "1", "--seed", seed], "hello\n").0;
    assert_eq!(sampled("3"), sampled("3"));
    assert_ne!(sampled("3"), sampled("4"));
}

#[test]
fn a_full_context_is_said() {
    let (_folder, file) = policy();
    let long = "a".repeat(100);
    let (turns, errors) = turns(&[&file, "--context", "64"], &format!("{long}\nhello\nmore\n"));
    assert!(errors.contains("[this message does not fit into the context of 64 tokens; /reset forgets"), "{errors}");
    assert_eq!(turns[0]["message"], "hello");
    if turns[0]["finish_reason"] == "context" {
        assert_eq!(number(&turns[0], "n_prompt") + number(&turns[0], "n_generated"), 64);
        assert!(errors.contains("[the context of 64 tokens is full; /reset forgets"), "{errors}");
        assert_eq!(turns.len(), 1);
    }
}

#[test]
fn orders_that_are_unknown_are_told_apart_from_messages() {
    let (_folder, file) = policy();
    let (turns, errors) = turns(&[&file], "/help me\n");
    assert_eq!(turns, Vec::<Value>::new());
    assert!(errors.contains("[unknown order /help: /reset forgets"), "{errors}");
    let fixture = root().join("tests/fixtures/llama/tiny-f32.gguf");
    assert_eq!(fsq(&["chat", text(&fixture), "--temperature=-1"]).status.code(), BAD_INPUT);
    refused(&["chat", text(&root().join("absent.gguf"))], "absent.gguf: ");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_and_the_chat_goes_on() {
    let (_folder, file) = policy();
    let mut command = command(&["chat", &file, "--threads", "1"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"hello\n").unwrap();
    let mut answers = child.stdout.take().unwrap();
    answers.read_exact(&mut [0]).unwrap();
    // A full pipe would stop the answer, too.
    let answers = std::thread::spawn(move || answers.read_to_end(&mut Vec::new()));
    let sent = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    let mut errors = child.stderr.take().unwrap();
    let mut said = [0; 9];
    errors.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"[stopped]");
    input.write_all(b"/nothing\n/exit\n").unwrap();
    assert!(child.wait().unwrap().success());
    answers.join().unwrap().unwrap();
    let mut rest = String::new();
    errors.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("[unknown order /nothing"), "{rest}");
}
