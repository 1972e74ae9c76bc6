//! Clients of a server under test: one that speaks HTTP properly, and one that writes raw bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::scripted::{Numbers, ScriptedDecoder, Watch, policy, script};
use crate::{Options, Server};

/// A server under test with a client for it.
pub(super) struct Client {
    server: Server,
    agent: ureq::Agent,
    pub(super) watch: Arc<Watch>,
}

/// A server of the script with the usual limits.
pub(super) fn client() -> Client {
    serve(ScriptedDecoder::new(Numbers::OneToken, script()), Options::loopback(0))
}

pub(super) fn serve(decoder: ScriptedDecoder, options: Options) -> Client {
    let watch = Arc::clone(&decoder.watch);
    Client::new(Server::start(policy(decoder), options).unwrap(), watch)
}

impl Client {
    pub(super) fn new(server: Server, watch: Arc<Watch>) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(Duration::from_secs(20))).build().into();
        Self { server, agent, watch }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_text(path, &body.to_string())
    }

    pub(super) fn post_text(&self, path: &str, body: &str) -> (u16, Value) {
        let mut response = self.agent.post(self.url(path)).content_type("application/json").send(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    /// Asks for something that must be granted.
    pub(super) fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The chunks of a stream, without `[DONE]`, which must be the last.
    pub(super) fn stream(&self, body: &Value) -> Vec<Value> {
        self.stream_from("/v1/chat/completions", body)
    }

    pub(super) fn stream_from(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut response = self.agent.post(self.url(path)).send(body.to_string()).unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.body_mut().read_to_string().unwrap();
        let mut data: Vec<&str> = text.lines().filter_map(|it| it.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|it| serde_json::from_str(it).unwrap()).collect()
    }

    /// The answer to a request as it comes.
    pub(super) fn text_of(&self, path: &str, body: &Value) -> String {
        let mut response = self.agent.post(self.url(path)).send(body.to_string()).unwrap();
        response.body_mut().read_to_string().unwrap()
    }

    pub(super) fn get(&self, path: &str) -> (u16, String) {
        let mut response = self.agent.get(self.url(path)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub(super) fn get_json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).1).unwrap()
    }

    /// The listener for administration, as a client of its own sees it.
    pub(super) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.admin_address().unwrap())
    }

    /// Status and body of a request with a key to any address.
    pub(super) fn with_key(&self, url: &str, key: &str, body: Option<&Value>) -> (u16, String) {
        let header = format!("Bearer {key}");
        let answer = match body {
            Some(body) => self.agent.post(url).header("authorization", header).send(body.to_string()),
            None => self.agent.get(url).header("authorization", header).call(),
        };
        let mut answer = answer.unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends a request and leaves the answer to be read, or not.
    pub(super) fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let (mut stream, body) = (self.connect(), body.to_string());
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    }

    /// The status of the answer to raw bytes, and its body as far as it comes.
    pub(super) fn send_raw(&self, bytes: &str) -> (String, String) {
        let mut stream = self.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let (mut status, mut rest) = (String::new(), Vec::new());
        reader.read_line(&mut status).unwrap();
        // The server closes only if the request said so.
        let _ = reader.take(4096).read_to_end(&mut rest);
        (status, String::from_utf8_lossy(&rest).into_owned())
    }

    pub(super) fn stop(self) {
        self.server.stop().unwrap();
    }

    pub(super) fn server(self) -> Server {
        self.server
    }
}

/// Waits for something that other threads do.
pub(super) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never happened: {what}");
}
