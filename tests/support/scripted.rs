//! A daemon that answers as a test wants it to: for what no real one says, or does not say yet.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

type Answer = dyn Fn(&Value) -> Value + Send + Sync;

/// See the module. It goes with the test.
pub(crate) struct Scripted {
    address: String,
    requests: Arc<Mutex<Vec<Value>>>,
    after_grant: Arc<Mutex<Option<Value>>>,
}

impl Scripted {
    /// Answers hello, ping and release by itself, and all else by what is given, which need not
    /// care for `id`.
    pub(crate) fn start(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (requests, answer): (Arc<Mutex<Vec<Value>>>, Arc<Answer>) = (Arc::default(), Arc::new(answer));
        let (heard, after_grant) = (Arc::clone(&requests), Arc::default());
        let event = Arc::clone(&after_grant);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (heard, answer, event) = (Arc::clone(&heard), Arc::clone(&answer), Arc::clone(&event));
                thread::spawn(move || serve(stream, &heard, &*answer, &event));
            }
        });
        Self { address, requests, after_grant }
    }

    /// Sends this a while after each grant: when the client has confirmed it by a ping.
    pub(crate) fn after_grant(self, event: Value) -> Self {
        *self.after_grant.lock().expect("no session panics") = Some(event);
        self
    }

    pub(crate) fn server(&self) -> &str {
        &self.address
    }

    /// The requests of this kind that have come, in their order.
    pub(crate) fn heard(&self, op: &str) -> Vec<Value> {
        let requests = self.requests.lock().expect("no session panics");
        requests.iter().filter(|request| request["op"] == op).cloned().collect()
    }
}

fn serve(stream: TcpStream, heard: &Mutex<Vec<Value>>, answer: &Answer, event: &Mutex<Option<Value>>) {
    let mut granted = false;
    let mut output = stream.try_clone().expect("a descriptor");
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let Ok(request) = serde_json::from_str::<Value>(&line) else { return };
        heard.lock().expect("no session panics").push(request.clone());
        let mut reply = match request["op"].as_str() {
            Some("hello") => json!({
                "ok": true, "version": 1, "session": "s-1", "node": "db1", "directory": "local", "dead_after_ms": 45_000
            }),
            Some("ping" | "release" | "bye") => json!({"ok": true}),
            _ => answer(&request),
        };
        if !request["id"].is_null() {
            reply["id"] = request["id"].clone();
        }
        if output.write_all(format!("{reply}\n").as_bytes()).is_err() {
            return;
        }
        granted |= request["op"] == "acquire";
        let event = event.lock().expect("no session panics").clone();
        if let Some(event) = event.filter(|_| granted && request["op"] == "ping") {
            granted = false;
            if output.write_all(format!("{event}\n").as_bytes()).is_err() {
                return;
            }
        }
    }
}
