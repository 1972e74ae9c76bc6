//! `fsq serve` as the operator of a server meets it: OpenAI's own client, keys, what hostile clients may cost, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::write_files;
use crate::program::{BAD_INPUT, command, fsq, json as json_of, refused, text};
use crate::tree::root;

/// How soon a hostile request has its answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// What all hostile requests together may add to the memory of a server.
const EXTRA_BYTES_MAX: u64 = 256 << 20;

/// A running server, killed when dropped.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(file: &str, arguments: &[&str]) -> Self {
        let arguments = [&["serve", file, "--listen", "127.0.0.1:0", "--json"], arguments].concat();
        let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("fsq serve does not start: {errors}");
        }
        let started: Value = serde_json::from_str(&line).unwrap();
        let address = started["url"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        Self { child, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends raw bytes and gives the status and the body of the answer.
    fn send(&self, bytes: &[u8]) -> (u16, String) {
        let mut stream = self.connect();
        // A server that has seen enough may close before all of it was sent.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map_or(String::new(), |it| it.1.to_owned()))
    }

    fn post(&self, path: &str, key: &str, body: &str) -> (u16, String) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), body.as_bytes()].concat())
    }

    fn get(&self, path: &str, key: &str) -> (u16, String) {
        let head = "host: localhost\r\nconnection: close";
        self.send(format!("GET {path} HTTP/1.1\r\n{head}\r\nauthorization: Bearer {key}\r\n\r\n").as_bytes())
    }

    #[cfg(unix)]
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The most memory that the process ever had.
    #[cfg(target_os = "linux")]
    fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A key of a file, made by the command.
fn key(file: &Path, name: &str, scopes: &[&str]) -> String {
    let scopes = scopes.iter().flat_map(|it| ["--scope", *it]);
    let arguments: Vec<&str> =
        ["serve", "keys", "add", text(file), "--name", name, "--json"].into_iter().chain(scopes).collect();
    json_of(&arguments)["key"].as_str().unwrap().to_owned()
}

fn tiny(folder: &Path) -> String {
    write_files(folder, "f32");
    text(&folder.join("out/tiny-F32.gguf")).to_owned()
}

#[test]
fn keys_are_made_listed_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let agent = key(&file, "agent", &["infer", "outcomes"]);
    assert!(agent.starts_with("fsq_") && agent.len() == 68);
    let printed = fsq(&["serve", "keys", "add", text(&file), "--name", "scrape", "--scope", "metrics"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.starts_with("fsq_") && printed.lines().count() == 1, "a script can read it: {printed}");
    let listed = json_of(&["serve", "keys", "list", text(&file), "--json"]);
    assert_eq!((&listed[0]["name"], &listed[0]["scopes"]), (&json!("agent"), &json!(["infer", "outcomes"])));
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&agent[4..]));
    refused(
        &["serve", "keys", "add", text(&file), "--name", "agent", "--scope", "infer"],
        "key `agent`: there already",
    );
    refused(&["serve", "keys", "revoke", text(&file), "--name", "nobody"], "no key `nobody`");
    assert!(fsq(&["serve", "keys", "revoke", text(&file), "--name", "agent"]).status.success());
    assert_eq!(json_of(&["serve", "keys", "list", text(&file), "--json"]).as_array().unwrap().len(), 1);
    let policy = tiny(folder.path());
    refused(&["serve", &policy, "--listen", "0.0.0.0:0"], "expected a loopback address");
    std::fs::write(&file, "{\"keys\": []}").unwrap();
    refused(&["serve", &policy, "--listen", "0.0.0.0:0", "--keys", text(&file)], "no key in it");
    assert_eq!(fsq(&["serve"]).status.code(), BAD_INPUT);
}

#[cfg(unix)]
#[test]
fn a_hangup_reads_keys_again_and_a_termination_drains() {
    let folder = tempfile::tempdir().unwrap();
    let (file, policy) = (folder.path().join("keys.json"), tiny(folder.path()));
    let first = key(&file, "first", &["infer"]);
    let mut serving = Serving::start(&policy, &["--keys", text(&file)]);
    assert_eq!(serving.get("/v1/models", &first).0, 200);
    assert!(fsq(&["serve", "keys", "revoke", text(&file), "--name", "first"]).status.success());
    let second = key(&file, "second", &["infer"]);
    assert_eq!((serving.get("/v1/models", &first).0, serving.get("/v1/models", &second).0), (200, 401));
    serving.signal("HUP");
    let begun = Instant::now();
    while serving.get("/v1/models", &second).0 != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the keys were never read again");
    }
    assert_eq!(serving.get("/v1/models", &first).0, 401);
    serving.signal("TERM");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

fn held_to(schema: Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "f", "schema": schema}})
}

/// Bodies that have brought other servers down, each with the code of its refusal.
fn hostile_bodies() -> Vec<(&'static str, String, u16, &'static str)> {
    let (chat, completions, foresight) = ("/v1/chat/completions", "/v1/completions", "/v1/foresight");
    let messages = json!([{"role": "user", "content": "x"}]);
    let with = |field: &str, value: Value| {
        let mut body = json!({"messages": messages});
        body[field] = value;
        body.to_string()
    };
    vec![
        (chat, with("max_tokens", json!(-1)), 400, "invalid_value"),
        (chat, with("max_tokens", json!(1e300)), 400, "invalid_value"),
        (chat, with("n", json!(-9_223_372_036_854_775_808_i64)), 400, "invalid_value"),
        (chat, with("n_discard", json!(-1)), 400, "unknown_field"),
        (chat, with("top_logprobs", json!(u64::MAX)), 400, "invalid_value"),
        (chat, with("logit_bias", json!({"-5": 1})), 400, "invalid_value"),
        (chat, with("stop", json!(vec!["x"; 10_000])), 400, "invalid_value"),
        (
            chat,
            with(
                "tools",
                json!([{"type": "function", "function": {"name": "f", "parameters": {"pattern": "(a+)+$"}}}]),
            ),
            400,
            "unsupported_value",
        ),
        (chat, with("response_format", json!({"type": "json_schema", "json_schema": {}})), 400, "invalid_value"),
        (chat, with("response_format", held_to(json!({"pattern": "(?=a)b"}))), 400, "invalid_grammar"),
        (chat, with("response_format", held_to(json!({"$ref": "#"}))), 400, "grammar_failed"),
        (chat, with("response_format", held_to(json!({"description": "x".repeat(70_000)}))), 400, "schema_too_large"),
        (chat, format!("{{\"messages\":{}", "[".repeat(1 << 20)), 400, "json_too_deep"),
        (chat, format!("{{\"messages\":[{}0]}}", "{\"\":0},".repeat(500_000)), 400, "json_too_many_values"),
        (chat, format!("{{\"messages\":[{}0]}}", "0,".repeat(250_000)), 400, "too_many_entries"),
        (chat, "{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}".into(), 400, "invalid_json"),
        (chat, " ".repeat((4 << 20) + 1), 413, "body_too_large"),
        (
            chat,
            json!({"messages": [{"role": "user", "content": "y".repeat(4_000_000)}]}).to_string(),
            400,
            "context_length_exceeded",
        ),
        (completions, json!({"prompt": [4_294_967_295_u64]}).to_string(), 400, "invalid_value"),
        (completions, json!({"prompt": [-1]}).to_string(), 400, "invalid_value"),
        (completions, json!({"prompt": vec![0; 200_000]}).to_string(), 400, "context_length_exceeded"),
        (foresight, json!({"state": "x", "plans": 1_000_000}).to_string(), 400, "invalid_value"),
        (
            "/v1/outcomes",
            json!({"prediction_id": "../../etc/passwd", "outcome": 1}).to_string(),
            404,
            "unknown_prediction",
        ),
        ("/v1/../admin", "{}".into(), 404, "unknown_path"),
    ]
}

#[cfg(target_os = "linux")]
#[test]
fn hostile_requests_are_refused_at_once_while_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let (file, policy) = (folder.path().join("keys.json"), tiny(folder.path()));
    let key = key(&file, "all", &["infer", "outcomes", "metrics"]);
    let serving = Serving::start(&policy, &["--keys", text(&file)]);
    let good = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}).to_string();
    assert_eq!(serving.post("/v1/chat/completions", &key, &good).0, 200);
    let peak_before = serving.peak_bytes();
    let (is_over, n_served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            // Bounded, so that a failure on the other side is seen.
            for _ in 0..10_000 {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                assert_eq!(serving.post("/v1/chat/completions", &key, &good).0, 200, "others are served on");
                n_served.fetch_add(1, Ordering::Relaxed);
            }
        });
        for (path, body, status, code) in hostile_bodies() {
            let begun = Instant::now();
            let (found, answer) = serving.post(path, &key, &body);
            let shown = &body[..body.len().min(80)];
            assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{shown}: {found} {answer}");
            assert_eq!(found, status, "{shown}: {answer}");
            assert!(begun.elapsed() < ANSWER_TIME_MAX, "{shown}: {:?}", begun.elapsed());
        }
        // What others match by going back is answered here.
        for pattern in ["(a+)+$", "((((a{1,9999}){1,9999}){1,9999}){1,9999})b"] {
            let form = held_to(json!({"type": "string", "pattern": pattern}));
            let body =
                json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "response_format": form});
            let begun = Instant::now();
            let (found, answer) = serving.post("/v1/chat/completions", &key, &body.to_string());
            assert_eq!(found, 200, "{pattern}: {answer}");
            assert!(begun.elapsed() < ANSWER_TIME_MAX, "{pattern}: {:?}", begun.elapsed());
        }
        let long = format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(40 << 10));
        assert_eq!(serving.send(long.as_bytes()).0, 431);
        assert_eq!(serving.get("/v1/models", &key[..67]).0, 401);
        is_over.store(true, Ordering::Relaxed);
        others.join().unwrap();
    });
    assert!(n_served.load(Ordering::Relaxed) > 0);
    let extra = serving.peak_bytes() - peak_before;
    println!("hostile requests took {} MiB more", extra >> 20);
    assert!(extra < EXTRA_BYTES_MAX, "{extra} bytes");
}

/// A text of a user is text, however much it looks like a template, a turn or a control token.
#[test]
fn what_a_user_writes_is_never_run() {
    let folder = tempfile::tempdir().unwrap();
    let serving = Serving::start(&tiny(folder.path()), &[]);
    for written in ["{{ 7 * 7 }}", "{% for i in range(1000000000) %}x{% endfor %}", "<|assistant|>", "<s>"] {
        let tokens = |body: Value| {
            let (status, answer) = serving.post("/tokenize", "", &body.to_string());
            assert_eq!(status, 200, "{answer}");
            serde_json::from_str::<Value>(&answer).unwrap()["tokens"].clone()
        };
        let chat = |text: &str| tokens(json!({"messages": [{"role": "user", "content": text}]}));
        let back = json!({"tokens": chat(written)}).to_string();
        let (_, spelled) = serving.post("/detokenize", "", &back);
        let spelled: Value = serde_json::from_str(&spelled).unwrap();
        assert!(spelled["prompt"].as_str().unwrap().contains(written), "{spelled}");
        assert!(chat(written).as_array().unwrap().len() > chat("").as_array().unwrap().len() + 1);
    }
}

/// Runs the Python of `tests/clients.txt`.
#[expect(clippy::disallowed_methods, reason = "`tests/run` has no other way to reach a test")]
fn client_python(arguments: &[&str]) -> String {
    let program = std::env::var_os("FSQ_CLIENTS_PYTHON")
        .expect("FSQ_CLIENTS_PYTHON is not set: run `tests/run`, which installs tests/clients.txt and sets it");
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a script with the packages of `tests/clients.json`.
#[expect(clippy::disallowed_methods, reason = "`tests/run` has no other way to reach a test")]
fn client_javascript(script: &str, arguments: &[&str]) -> String {
    let folder = std::env::var_os("FSQ_CLIENTS_JAVASCRIPT")
        .expect("FSQ_CLIENTS_JAVASCRIPT is not set: run `tests/run`, which installs tests/clients.json and sets it");
    let output = Command::new("node").arg(script).arg(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_clients_of_openai_find_what_they_expect() {
    let folder = tempfile::tempdir().unwrap();
    let base = root().join("finetune/base");
    let written = fsq(&["quantize", text(&base), "--to", "q8_0", "--out", text(folder.path())]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let file = folder.path().join("keys.json");
    let (agent, other) = (key(&file, "agent", &["infer"]), key(&file, "other", &["outcomes", "metrics"]));
    let serving = Serving::start(text(&folder.path().join("base-Q8_0.gguf")), &["--keys", text(&file)]);
    let script = root().join("tests/oracle/openai_client.py");
    let said = client_python(&[text(&script), &format!("http://{}", serving.address), &agent, &other]);
    println!("{said}");
    let pins = std::fs::read_to_string(root().join("tests/clients.txt")).unwrap();
    let pin = pins.lines().find_map(|it| it.strip_prefix("openai==")).unwrap();
    assert_eq!(said.trim(), format!("openai {pin}: all as expected"));
    let script = root().join("tests/oracle/openai_client.mjs");
    let said = client_javascript(text(&script), &[&format!("http://{}", serving.address), &agent, &other]);
    let pins: Value = serde_json::from_str(include_str!("../clients.json")).unwrap();
    let pin = pins["dependencies"]["openai"].as_str().unwrap();
    assert_eq!(said.trim(), format!("openai {pin}: all as expected"));
}
