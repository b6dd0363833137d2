//! A server in the test's own process that plays a script: for what the real daemon says seldom, or must never say.

#![allow(dead_code, reason = "each test binary uses a part of this module")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use distrilock_client::Server;
use serde_json::{Value, json};

use crate::support::PATIENCE;

/// The far end of a client's connection.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    requests: BufReader<TcpStream>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let requests = BufReader::new(stream.try_clone().expect("a second handle"));
        Self { stream, requests }
    }

    /// The next request, or None at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.requests.read_line(&mut line) {
            Ok(1..) => Some(serde_json::from_str(&line).expect("a client sends JSON")),
            _ => None,
        }
    }

    /// The next request that asks for `op`; heartbeats that come before it are answered.
    pub(crate) fn expect(&mut self, op: &str) -> Value {
        loop {
            let request = self.next().unwrap_or_else(|| panic!("the connection ends before {op}"));
            if request["op"] == op {
                return request;
            }
            assert_eq!(request["op"], "ping", "{request}");
            self.yes(&request, &json!({}));
        }
    }

    pub(crate) fn send(&mut self, object: &Value) {
        self.send_text(&object.to_string());
    }

    pub(crate) fn send_text(&mut self, text: &str) {
        // The client may be gone already, which is for the test to judge.
        let _ = writeln!(self.stream, "{text}");
    }

    /// Answers a request with yes and more.
    pub(crate) fn yes(&mut self, request: &Value, more: &Value) {
        self.answer(request, true, more);
    }

    pub(crate) fn no(&mut self, request: &Value, more: &Value) {
        self.answer(request, false, more);
    }

    /// As the daemon does, with the id first and `ok` second.
    fn answer(&mut self, request: &Value, ok: bool, more: &Value) {
        let more = more.to_string();
        let comma = if more == "{}" { "" } else { "," };
        self.send_text(&format!("{{\"id\":{},\"ok\":{ok}{comma}{}", request["id"], &more[1..]));
    }

    /// Answers hello, as a daemon over this kind of directory.
    pub(crate) fn welcome(&mut self, directory: &str) {
        let hello = self.expect("hello");
        assert_eq!(hello["version"], 1);
        let node = "test";
        self.yes(&hello, &json!({"version":1,"session":"s-1","node":node,"directory":directory,"dead_after_ms":45000}));
    }

    /// Answers whatever else comes with yes, until the end.
    pub(crate) fn rest(mut self) -> Vec<Value> {
        let mut requests = Vec::new();
        while let Some(request) = self.next() {
            self.yes(&request, &json!({}));
            requests.push(request);
        }
        requests
    }
}

/// Accepts one connection and plays `script` on it. The script's result comes through the handle, and its panic, too.
pub(crate) fn play<T: Send + 'static>(script: impl FnOnce(Peer) -> T + Send + 'static) -> (Server, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let server = Server::Tcp(listener.local_addr().expect("an address").to_string());
    let thread = thread::spawn(move || script(Peer::new(listener.accept().expect("a client").0)));
    (server, thread)
}
