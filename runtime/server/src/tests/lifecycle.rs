//! Starting, being left alone by clients, being too busy, and stopping.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Client, client, eventually, serve};
use super::scripted::{Numbers, ScriptedDecoder, policy, script};
use crate::{Limits, Options, Server, ServerError};

const CHAT: &str = "/v1/chat/completions";

fn slow(delay_ms: u64, limits: Limits) -> Client {
    let decoder = ScriptedDecoder::new(Numbers::OneToken, script()).with_delay(Duration::from_millis(delay_ms));
    serve(decoder, Options { limits, ..Options::loopback(0) })
}

/// Takes some 500 steps.
fn long_chat(is_streamed: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "x".repeat(280)}], "stream": is_streamed})
}

#[test]
fn addresses_that_cannot_be_served_are_refused_in_a_line() {
    let start = |address: SocketAddr| {
        let decoder = ScriptedDecoder::new(Numbers::OneToken, script());
        Server::start(policy(decoder), Options { address, ..Options::loopback(0) })
    };
    let error = start(([0, 0, 0, 0], 0).into()).unwrap_err();
    assert!(matches!(error, ServerError::NotLoopback { .. }) && error.to_string().contains("keys"), "{error}");
    let server = client().server();
    let error = start(server.address()).unwrap_err();
    assert!(error.to_string().contains(&server.address().to_string()), "{error}");
    assert!(matches!(error, ServerError::AddressInUse { .. }) && error.to_string().contains("hint: "), "{error}");
    server.stop().unwrap();
}

#[test]
fn a_client_that_leaves_frees_what_it_held() {
    let client = slow(5, Limits::default());
    for is_streamed in [false, true] {
        let connection = client.begin(CHAT, &long_chat(is_streamed));
        eventually("the request runs", || client.watch.n_open.load(Ordering::SeqCst) == 1);
        drop(connection);
        eventually("its sequence is closed", || client.watch.n_open.load(Ordering::SeqCst) == 0);
    }
    let plans = client.begin("/v1/foresight", &json!({"state": "babble", "plans": 16}));
    eventually("its plans run", || client.watch.n_open.load(Ordering::SeqCst) > 8);
    drop(plans);
    eventually("they are closed", || client.watch.n_open.load(Ordering::SeqCst) == 0);
    client.stop();
}

#[test]
fn too_many_requests_are_turned_away_and_slow_ones_end() {
    let limits = Limits { jobs_max: 2, request_time_max: Duration::from_millis(700), ..Limits::default() };
    let client = slow(5, limits);
    let mut kept: Vec<_> = (0..2).map(|_| client.begin(CHAT, &long_chat(false))).collect();
    eventually("both run", || client.watch.n_open.load(Ordering::SeqCst) == 2);
    let body = long_chat(false).to_string();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}", body.len());
    let (status, rest) = client.send_raw(&format!("{head}\r\n\r\n{body}"));
    assert!(status.contains("429") && rest.contains("retry-after: 1") && rest.contains("queue_full"), "{status}{rest}");
    let mut answer = [0; 12];
    kept[0].read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 504");
    client.stop();
}

#[test]
fn what_finds_no_place_in_time_is_told_to_come_back() {
    let limits = Limits { queue_time_max: Duration::from_millis(200), ..Limits::default() };
    let client = slow(2, limits);
    let running: Vec<_> = (0..8).map(|_| client.begin(CHAT, &long_chat(false))).collect();
    eventually("the batch is full", || client.watch.n_open.load(Ordering::SeqCst) == 8);
    let (status, answer) = client.post(CHAT, &json!({"messages": [{"role": "user", "content": "hello"}]}));
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("queue_time")), "{answer}");
    drop(running);
    eventually("those that left made room", || client.watch.n_open.load(Ordering::SeqCst) == 0);
    client.ask(CHAT, &json!({"messages": [{"role": "user", "content": "hello"}]}));
    client.stop();
}

#[test]
fn a_stop_lets_running_requests_end_and_cuts_them_off_after_the_drain_time() {
    for (drain_time_max, status) in [(Duration::from_secs(20), "200"), (Duration::from_millis(50), "503")] {
        let client = slow(2, Limits { drain_time_max, ..Limits::default() });
        let mut running = client.begin(CHAT, &json!({"messages": [{"role": "user", "content": "x".repeat(60)}]}));
        eventually("it runs", || client.watch.n_open.load(Ordering::SeqCst) == 1);
        let address = client.url("/live");
        client.stop();
        let mut answer = String::new();
        running.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(ureq::get(address).call().is_err());
    }
}

#[test]
fn a_shutdown_future_stops_the_server() {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let decoder = ScriptedDecoder::new(Numbers::OneToken, script());
    let shutdown = async {
        let _ = stopped.await;
    };
    let server = Server::start_until(policy(decoder), Options::loopback(0), shutdown).unwrap();
    stop.send(()).unwrap();
    server.wait().unwrap();
}

#[test]
fn reports_say_what_is_served() {
    let client = client();
    assert_eq!(client.get_json("/live"), json!({"status": "live"}));
    assert_eq!(client.get_json("/ready"), json!({"status": "ready", "drift": {}}));
    let models = client.get_json("/v1/models");
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("scripted")));
    assert_eq!(models["data"][0]["fsq"]["recalibration"], json!({"family": "identity", "n": 0}));
    client.ask(CHAT, &json!({"messages": [{"role": "user", "content": "hello"}]}));
    let page = client.get("/metrics").1;
    for line in [
        "fsq_prompt_tokens_total 8",
        "fsq_generated_tokens_total 27",
        "fsq_ready 1",
        "fsq_first_token_seconds_count 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"scripted\"} 26",
        "vllm:num_requests_waiting{model_name=\"scripted\"} 0",
        "fsq_policy_info{model=\"scripted\",digest=\"0123\",gate=\"none\"} 1",
        "fsq_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
    ] {
        assert!(page.lines().any(|it| it == line), "{line} is not in\n{page}");
    }
    client.stop();
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let decoder = || ScriptedDecoder::new(Numbers::OneToken, script());
    let client = serve(decoder(), Options { has_page: true, ..Options::loopback(0) });
    let (status, page) = client.get("/");
    assert!(status == 200 && page.contains("<script src=\"page.js\">"), "{page}");
    let script = client.get("/page.js").1;
    for text in [&page, &script] {
        assert!(!text.contains("://") && !text.contains("innerHTML"), "{text}");
    }
    let request = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let (_, head) = client.send_raw(request);
    assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{head}");
    client.stop();
    let client = serve(decoder(), Options::loopback(0));
    assert_eq!(client.get("/").0, 404);
    client.stop();
}
