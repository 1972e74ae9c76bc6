//! Keys at the door: which route asks for which scope, and what a key without it is told.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Client, serve};
use super::scripted::{Numbers, ScriptedDecoder, script};
use crate::routes::{Access, ROUTES};
use crate::{KeyFile, Limits, Options, Scope};

/// A server with one key for each scope, one for all of them, and one that may ask twice.
struct Guarded {
    client: Client,
    keys: Vec<(BTreeSet<Scope>, String)>,
    hurried: String,
    _folder: tempfile::TempDir,
}

fn guarded() -> Guarded {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let mut file = KeyFile::open_or_new(&path).unwrap();
    let sets = Scope::ALL.map(|it| BTreeSet::from([it])).into_iter().chain([Scope::ALL.into()]);
    let mut add = |(index, scopes): (usize, BTreeSet<Scope>)| {
        let key = file.add(&format!("key-{index}"), scopes.clone(), None).unwrap();
        (scopes, key)
    };
    let keys = sets.enumerate().map(&mut add).collect();
    let hurried = file.add("hurried", [Scope::Infer].into(), Some(2)).unwrap();
    file.save().unwrap();
    let options = Options { keys: Some(path), ..Options::loopback(0) };
    let client = serve(ScriptedDecoder::new(Numbers::OneToken, script()), options);
    Guarded { client, keys, hurried, _folder: folder }
}

/// Status and code of a GET with an `authorization` header or without.
fn get(client: &Client, path: &str, authorization: Option<&str>) -> (u16, Value) {
    let header = authorization.map_or_else(String::new, |it| format!("authorization: {it}\r\n"));
    let request = format!("GET {path} HTTP/1.1\r\nhost: elsewhere.example\r\n{header}connection: close\r\n\r\n");
    let (status, rest) = client.send_raw(&request);
    let status = status.split(' ').nth(1).unwrap().parse().unwrap();
    let body = rest.split_once("\r\n\r\n").map_or("", |it| it.1);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn every_route_has_a_scope_and_opens_to_no_other() {
    let Guarded { client, keys, .. } = guarded();
    let open: Vec<&str> = ROUTES.iter().filter(|it| it.access == Access::Open).map(|it| it.path).collect();
    assert_eq!(open, ["/live", "/ready", "/", "/page.js"], "what anyone may ask is decided here");
    for route in ROUTES {
        let path = route.path.replace("{model}", "scripted");
        let (status, answer) = get(&client, &path, None);
        let Access::Needs(scope) = route.access else {
            // There is no page unless it is asked for.
            assert!(matches!(status, 200 | 404), "{path}");
            continue;
        };
        assert_eq!((status, &answer["error"]["code"]), (401, &json!("missing_key")), "{path}");
        for (scopes, key) in &keys {
            let (status, answer) = get(&client, &path, Some(&format!("Bearer {key}")));
            let code = &answer["error"]["code"];
            match scopes.contains(&scope) {
                // Half of the routes are not for GET, which is told after the key has been seen.
                true => assert!(matches!(status, 200 | 405), "{path}: {status} {answer}"),
                false => assert_eq!((status, code), (403, &json!("missing_scope")), "{path}"),
            }
        }
    }
    let key = &keys[0].1;
    assert_eq!(get(&client, "/nothing", None).0, 401);
    assert_eq!(get(&client, "/nothing", Some(&format!("bearer  {key}"))).0, 404);
    client.stop();
}

#[test]
fn what_is_not_a_key_opens_nothing() {
    let Guarded { client, keys, hurried, .. } = guarded();
    let key = &keys[0].1;
    let (rest, last) = key.split_at(key.len() - 1);
    let other = if last == "0" { "1" } else { "0" };
    let wrong = [
        (format!("Bearer {rest}"), "invalid_key"),
        (format!("Bearer {rest}{other}"), "invalid_key"),
        (format!("Bearer {key}0"), "invalid_key"),
        ("Bearer fsq_".to_string(), "invalid_key"),
        (format!("Basic {key}"), "missing_key"),
        (key.clone(), "missing_key"),
        ("Bearer".to_string(), "missing_key"),
        (String::new(), "missing_key"),
    ];
    for (authorization, code) in wrong {
        let (status, answer) = get(&client, "/v1/models", Some(&authorization));
        assert_eq!((status, &answer["error"]["code"]), (401, &json!(code)), "{authorization}");
        assert!(!answer.to_string().contains(&key[4..20]), "an answer repeats a key");
    }
    let hurried = format!("Bearer {hurried}");
    assert_eq!(get(&client, "/v1/models", Some(&hurried)).0, 200);
    assert_eq!(get(&client, "/v1/models", Some(&hurried)).0, 200);
    let (status, answer) = get(&client, "/v1/models", Some(&hurried));
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(get(&client, "/v1/models", Some(&format!("Bearer {key}"))).0, 200, "the others are served");
    client.stop();
}

#[test]
fn who_did_what_is_on_record_and_what_was_said_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (path, log) = (folder.path().join("keys.json"), folder.path().join("audit.jsonl"));
    let mut file = KeyFile::open_or_new(&path).unwrap();
    let key = file.add("agent", [Scope::Infer].into(), None).unwrap();
    file.save().unwrap();
    let options = Options { keys: Some(path), audit: Some(log.clone()), ..Options::loopback(0) };
    let client = serve(ScriptedDecoder::new(Numbers::OneToken, script()), options);
    let bearer = format!("Bearer {key}");
    assert_eq!(get(&client, "/v1/models", Some(&bearer)).0, 200);
    assert_eq!(get(&client, "/metrics", Some(&bearer)).0, 403);
    assert_eq!(get(&client, "/v1/models?secret=prompt", Some("Bearer fsq_1")).0, 401);
    assert_eq!(get(&client, "/live", None).0, 200);
    client.stop();
    let text = std::fs::read_to_string(&log).unwrap();
    let rows: Vec<Value> = text.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let shown: Vec<_> = rows.iter().map(|it| json!([it["event"], it["route"], it["status"], it["key"]])).collect();
    let expected = [
        json!(["start", null, null, null]),
        json!(["request", "/v1/models", 200, "agent"]),
        json!(["request", "/metrics", 403, "agent"]),
        json!(["request", "/v1/models", 401, null]),
        json!(["stop", null, null, null]),
    ];
    assert_eq!(shown, expected);
    assert_eq!((&rows[0]["digest"], &rows[0]["keys"]), (&json!("0123"), &json!(["agent"])));
    assert!(!text.contains("fsq_") && !text.contains("secret"), "{text}");
    assert_eq!(crate::verify_audit(&log).unwrap().n_lines, 5);
}

#[test]
fn connections_that_say_nothing_are_closed_while_others_are_served() {
    let limits = Limits { header_time_max: Duration::from_millis(200), connections_max: 4, ..Limits::default() };
    let options = Options { limits, ..Options::loopback(0) };
    let client = serve(ScriptedDecoder::new(Numbers::OneToken, script()), options);
    let mut silent: Vec<_> = (0..4).map(|_| client.connect()).collect();
    silent[0].write_all(b"GET /live HT").unwrap();
    // Waits until one of the four has been closed.
    assert_eq!(client.get("/live").0, 200);
    for stream in &mut silent {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!String::from_utf8_lossy(&rest).contains("200"));
    }
    client.stop();
}
