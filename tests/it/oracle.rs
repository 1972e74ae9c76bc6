//! Stock llama.cpp, run by its Python package, as the truth about files and greedy tokens.
//!
//! `tests/run` builds it and sets `FSQ_ORACLE_PYTHON`. Where that is not set these tests fail: an oracle that is
//! skipped proves nothing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::tree::root;

/// What llama.cpp wrote after one prompt.
pub(crate) struct Completion {
    pub(crate) prompt_token_ids: Vec<u32>,
    pub(crate) token_ids: Vec<u32>,
    /// Distance of the best logit to the second, at each token.
    pub(crate) margins: Vec<f64>,
}

/// `n` greedy tokens after each prompt: a text, tokenized by llama.cpp, or an array of token ids.
pub(crate) fn greedy(file: &Path, prompts: &[Value], n: usize) -> Vec<Completion> {
    greedy_with(file, prompts, n, &json!({}))
}

/// The same of a context that is set up otherwise; see [`last_rows_with`].
pub(crate) fn greedy_with(file: &Path, prompts: &[Value], n: usize, setup: &Value) -> Vec<Completion> {
    let mut request = setup.clone();
    (request["prompts"], request["n"], request["ignore_eos"]) = (json!(prompts), json!(n), json!(true));
    let script = root().join("tests/oracle/llama_greedy.py");
    let answer = python(&[script.to_str().unwrap(), file.to_str().unwrap()], &request.to_string());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let ids = |it: &Value| serde_json::from_value(it.clone()).unwrap();
    let completion = |it: &Value| Completion {
        prompt_token_ids: ids(&it["prompt_token_ids"]),
        token_ids: ids(&it["token_ids"]),
        margins: serde_json::from_value(it["margins"].clone()).unwrap(),
    };
    answer["completions"].as_array().unwrap().iter().map(completion).collect()
}

/// How llama.cpp reads texts with the vocabulary of a file.
pub(crate) struct Tokens {
    /// Of each text, with special tokens parsed.
    pub(crate) parsed: Vec<Vec<u32>>,
    /// Of each text, with special tokens as text.
    pub(crate) escaped: Vec<Vec<u32>>,
    /// The text of each of `parsed`.
    pub(crate) decoded: Vec<String>,
    /// Tokens that end a generation, by id.
    pub(crate) ends: Vec<u32>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) adds_bos: bool,
}

/// Tokens of texts; the file needs no weights.
pub(crate) fn tokens(file: &Path, texts: &[String]) -> Tokens {
    let script = root().join("tests/oracle/llama_tokenize.py");
    let arguments = [script.to_str().unwrap(), file.to_str().unwrap()];
    let answer: Value = serde_json::from_str(&python(&arguments, &json!({"texts": texts}).to_string())).unwrap();
    Tokens {
        parsed: serde_json::from_value(answer["parsed"].clone()).unwrap(),
        escaped: serde_json::from_value(answer["escaped"].clone()).unwrap(),
        decoded: serde_json::from_value(answer["decoded"].clone()).unwrap(),
        ends: serde_json::from_value(answer["ends"].clone()).unwrap(),
        bos: serde_json::from_value(answer["bos"].clone()).unwrap(),
        eos: serde_json::from_value(answer["eos"].clone()).unwrap(),
        adds_bos: answer["adds_bos"].as_bool().unwrap(),
    }
}

/// Logits after the last token of each text, read in one batch.
pub(crate) fn last_rows(file: &Path, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    last_rows_with(file, texts, &json!({}))
}

/// The same of a context that is set up otherwise: `kv`, `rotated` or `adapter`, as `llama_greedy.py` reads them.
pub(crate) fn last_rows_with(file: &Path, texts: &[Vec<u32>], setup: &Value) -> Vec<Vec<f32>> {
    let script = root().join("tests/oracle/llama_greedy.py");
    let arguments = [script.to_str().unwrap(), file.to_str().unwrap()];
    let mut request = setup.clone();
    request["rows"] = json!(texts);
    let answer: Value = serde_json::from_str(&python(&arguments, &request.to_string())).unwrap();
    serde_json::from_value(answer["rows"].clone()).unwrap()
}

#[test]
fn the_oracle_is_the_pinned_one() {
    let pins = std::fs::read_to_string(root().join("tests/requirements.txt")).unwrap();
    let pin = pins.lines().find_map(|it| it.strip_prefix("llama-cpp-python==")).unwrap();
    assert_eq!(python(&["-c", "import llama_cpp; print(llama_cpp.__version__)"], "").trim(), pin);
}

/// Two programs that know nothing of ours agree on the fixtures that ours is held to.
#[test]
fn the_oracle_agrees_with_transformers() {
    let folder = root().join("tests/fixtures/llama");
    let recorded: Value = serde_json::from_slice(&std::fs::read(folder.join("greedy.json")).unwrap()).unwrap();
    let recorded = recorded.as_array().unwrap();
    let prompts: Vec<Value> = recorded.iter().map(|it| it["text"].clone()).collect();
    let found = greedy(&folder.join("tiny-f32.gguf"), &prompts, 32);
    assert_eq!(found.len(), recorded.len());
    for (found, recorded) in found.iter().zip(recorded) {
        assert_eq!(json!(found.prompt_token_ids), recorded["prompt_token_ids"]);
        assert_eq!(json!(found.token_ids), recorded["token_ids"], "margins {:?}", found.margins);
    }
}

/// The folder of llama.cpp's vocabularies without weights, `ggml-vocab-*.gguf`, with its own texts and tokens beside.
#[expect(clippy::disallowed_methods, reason = "`tests/run` has no other way to reach a test")]
pub(crate) fn vocabularies() -> PathBuf {
    let folder = std::env::var_os("FSQ_VOCABULARIES")
        .expect("FSQ_VOCABULARIES is not set: run `tests/run`, which unpacks llama.cpp's vocabularies and sets it");
    let folder = PathBuf::from(folder);
    assert!(folder.is_dir(), "FSQ_VOCABULARIES={}: not a folder", folder.display());
    folder
}

/// Runs the oracle's Python, and panics with what it said where it fails.
#[expect(clippy::disallowed_methods, reason = "`tests/run` has no other way to reach a test")]
pub(crate) fn python(arguments: &[&str], input: &str) -> String {
    let program = std::env::var_os("FSQ_ORACLE_PYTHON")
        .expect("FSQ_ORACLE_PYTHON is not set: run `tests/run`, which builds llama-cpp-python and sets it");
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("FSQ_ORACLE_PYTHON={}: {error}", program.display()));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the oracle failed: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
