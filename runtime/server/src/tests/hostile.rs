//! Requests that are wrong, by accident or on purpose: a typed error each, and the others are served on.

use serde_json::{Value, json};

use super::client::{Client, client, serve};
use super::scripted::{Numbers, ScriptedDecoder, script};
use crate::{Limits, Options};

const CHAT: &str = "/v1/chat/completions";

fn check(client: &Client, path: &str, body: &Value, status: u16, code: &str, param: Option<&str>) {
    let (found, answer) = client.post(path, body);
    let error = &answer["error"];
    assert_eq!((found, &error["code"], &error["param"]), (status, &json!(code), &json!(param)), "{body}: {answer}");
    assert!(error["message"].is_string() && error["type"].is_string());
}

#[test]
fn wrong_fields_are_named() {
    let client = client();
    let user = json!([{"role": "user", "content": "hello"}]);
    let cases = [
        (json!({"mesages": user}), "invalid_value", "messages"),
        (json!({"messages": user, "temprature": 1}), "unknown_field", "temprature"),
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"messages": "hello"}), "invalid_value", "messages"),
        (json!({"messages": ["hello"]}), "invalid_value", "messages[0]"),
        (json!({"messages": [{"role": "judge", "content": ""}]}), "invalid_value", "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "invalid_value", "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "invalid_value", "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "", "x": 1}]}), "unknown_field", "messages[0].x"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "unsupported_value",
            "messages[0].content[0].type",
        ),
        (json!({"messages": vec![json!({"role": "user", "content": ""}); 513]}), "too_many_entries", "messages"),
        (json!({"messages": user, "max_tokens": -1}), "invalid_value", "max_tokens"),
        (json!({"messages": user, "max_tokens": 1e99}), "invalid_value", "max_tokens"),
        (json!({"messages": user, "max_tokens": 0}), "invalid_value", "max_tokens"),
        (json!({"messages": user, "max_tokens": "5"}), "invalid_value", "max_tokens"),
        (json!({"messages": user, "temperature": 2.5}), "invalid_value", "temperature"),
        (json!({"messages": user, "seed": 0.5}), "invalid_value", "seed"),
        (json!({"messages": user, "n": 17}), "invalid_value", "n"),
        (json!({"messages": user, "stop": ["x".repeat(257)]}), "invalid_value", "stop"),
        (json!({"messages": user, "stop": ""}), "invalid_value", "stop"),
        (json!({"messages": user, "stream": "yes"}), "invalid_value", "stream"),
        (json!({"messages": user, "stream_options": {}}), "conflicting_fields", "stream_options"),
        (json!({"messages": user, "top_logprobs": 3}), "conflicting_fields", "top_logprobs"),
        (json!({"messages": user, "tools": [{}]}), "invalid_value", "tools[0].function"),
        (json!({"messages": user, "presence_penalty": 2.5}), "invalid_value", "presence_penalty"),
        (json!({"messages": user, "logit_bias": {"-1": 5}}), "invalid_value", "logit_bias"),
        (json!({"messages": user, "logit_bias": {"5": 101}}), "invalid_value", "logit_bias"),
        (json!({"messages": user, "logit_bias": {"1000000": 1}}), "invalid_value", "logit_bias"),
    ];
    for (body, code, param) in cases {
        check(&client, CHAT, &body, 400, code, Some(param));
    }
    let harmless =
        json!({"messages": user, "user": "me", "tools": [], "presence_penalty": 0, "seed": -1, "stop": null});
    let cases = [
        (json!({}), "invalid_value", "prompt"),
        (json!({"prompt": ""}), "invalid_value", "prompt"),
        (json!({"prompt": []}), "invalid_value", "prompt"),
        (json!({"prompt": [1, "a"]}), "invalid_value", "prompt"),
        (json!({"prompt": [1, -1]}), "invalid_value", "prompt"),
        (json!({"prompt": ["a", [4_000_000_000_u64]]}), "invalid_value", "prompt[1]"),
        (json!({"prompt": vec!["a"; 17]}), "invalid_value", "prompt"),
        (json!({"prompt": "a", "best_of": 2}), "unsupported_value", "best_of"),
        (json!({"prompt": "a", "suffix": "b"}), "unsupported_value", "suffix"),
        (json!({"prompt": "a", "logprobs": 6}), "invalid_value", "logprobs"),
        (json!({"prompt": "a", "logprobs": 1, "echo": true}), "unsupported_value", "echo"),
    ];
    for (body, code, param) in cases {
        check(&client, "/v1/completions", &body, 400, code, Some(param));
    }
    check(&client, "/tokenize", &json!({}), 400, "missing_field", Some("prompt"));
    check(&client, "/detokenize", &json!({"tokens": [1e9]}), 400, "invalid_value", Some("tokens"));
    client.ask(CHAT, &harmless);
    client.stop();
}

#[test]
fn requests_that_cannot_be_met_say_why() {
    let client = client();
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(700)}]});
    check(&client, CHAT, &long, 400, "context_length_exceeded", None);
    let other = json!({"model": "gpt", "messages": [{"role": "user", "content": "x"}]});
    check(&client, CHAT, &other, 404, "model_not_found", Some("model"));
    let path = "/v1/foresight";
    check(&client, path, &json!({}), 400, "missing_field", Some("state"));
    check(&client, path, &json!({"state": "x", "plans": 17}), 400, "invalid_value", Some("plans"));
    check(
        &client,
        path,
        &json!({"state": "x", "plans": 1, "candidates": ["x"]}),
        400,
        "conflicting_fields",
        Some("candidates"),
    );
    check(&client, path, &json!({"state": "x", "candidates": []}), 400, "invalid_value", Some("candidates"));
    let own_odds = json!({"state": "x", "candidates": ["<imaginary>a<confidence>100"]});
    check(&client, path, &own_odds, 400, "invalid_value", Some("candidates[0]"));
    check(&client, "/v1/outcomes", &json!({"prediction_id": "p"}), 400, "invalid_value", Some("outcome"));
    check(&client, "/v1/nothing", &json!({}), 404, "unknown_path", None);
    check(&client, "/v1/models", &json!({}), 405, "wrong_method", None);
    client.stop();
}

#[test]
fn broken_and_giant_bodies_are_refused_while_others_are_served() {
    let limits = Limits { body_bytes_max: 10_000, ..Limits::default() };
    let options = Options { limits, ..Options::loopback(0) };
    let client = serve(ScriptedDecoder::new(Numbers::OneToken, script()), options);
    let deep = format!("{{\"messages\": {}", "[".repeat(5_000));
    let broken = ["", "{", "[]", "5", "{\"messages\": \u{fffd}}", "{\"a\": 1}{", "{\"a\": \"\\\"}"];
    let broken = broken.map(|it| (it, "invalid_json"));
    for (body, code) in broken.into_iter().chain([(&*deep, "json_too_deep")]) {
        let (status, answer) = client.post_text(CHAT, body);
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{answer}");
    }
    let (status, answer) = client.post_text(CHAT, &" ".repeat(3_000_000));
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("body_too_large")));
    let close = "connection: close\r\ncontent-length: 0";
    let (status, _) = client
        .send_raw(&format!("GET /live HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n{close}\r\n\r\n", "x".repeat(20_000)));
    assert!(status.contains("431"), "{status}");
    for foreign in ["host: evil.example", "host: localhost\r\norigin: https://evil.example"] {
        let (status, body) = client.send_raw(&format!("GET /live HTTP/1.1\r\n{foreign}\r\n{close}\r\n\r\n"));
        assert!(status.contains("403") && body.contains("foreign_origin"), "{status}{body}");
    }
    let (status, _) = client.send_raw("GET /live\r\n\r\n");
    assert!(status.contains("400"), "{status}");
    assert_eq!(client.get("/live").0, 200);
    assert!(client.get("/metrics").1.contains("fsq_requests_total{route=\"/v1/chat/completions\",status=\"413\"} 1"));
    client.stop();
}
