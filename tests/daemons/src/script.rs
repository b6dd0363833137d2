//! A daemon that follows a script, for what the real one says rarely, must never say, or does not
//! say yet.
//!
//! [`Peer`] is its end of one connection. Requests are read as JSON values, so that a test can
//! check all of their members, even those that the real daemon would refuse. What it says is made
//! of the protocol's types, or of values where a script departs from the protocol.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use distrilock_client::Server;
use distrilock_protocol::v1::{Done, Id, Reply, VERSION, Welcome};
use serde::Serialize;
use serde_json::Value;

/// How long a script waits for the next request. It is generous, since a loaded machine must not
/// fail a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// The daemon's end of a client's connection.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    requests: BufReader<TcpStream>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        let requests = BufReader::new(stream.try_clone().expect("a second descriptor"));
        Self { stream, requests }
    }

    /// The next request, or None at the end of the connection.
    pub fn request(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.requests.read_line(&mut line) {
            Ok(1..) => Some(serde_json::from_str(&line).expect("a client sends JSON")),
            _ => None,
        }
    }

    /// The next request that asks for `op`. Heartbeats that come before it are answered.
    ///
    /// # Panics
    /// If something else comes before it.
    pub fn expect(&mut self, op: &str) -> Value {
        loop {
            let request = self.request().unwrap_or_else(|| panic!("the connection ends before {op}"));
            if request["op"] == op {
                return request;
            }
            assert_eq!(request["op"], "ping", "{request}");
            self.yes(&request, &Done {});
        }
    }

    /// Sends any object.
    pub fn send(&mut self, object: &impl Serialize) {
        self.send_text(&serde_json::to_string(object).expect("it is an object"));
    }

    /// Sends a line, whatever it is.
    pub fn send_text(&mut self, text: &str) {
        // The client may be gone already: the test judges that.
        let _ = self.stream.write_all(format!("{text}\n").as_bytes());
    }

    /// Answers a request with yes, and this body.
    pub fn yes(&mut self, request: &Value, body: &impl Serialize) {
        self.reply(request, true, body);
    }

    /// Answers a request with no, and this body.
    pub fn no(&mut self, request: &Value, body: &impl Serialize) {
        self.reply(request, false, body);
    }

    fn reply(&mut self, request: &Value, ok: bool, body: &impl Serialize) {
        let id: Option<Id> = serde_json::from_value(request["id"].clone()).expect("an id or none");
        self.send(&Reply { id: id.as_ref(), ok, body });
    }

    /// Answers hello like a daemon over this kind of directory.
    ///
    /// # Panics
    /// If something else comes before the hello, or another version.
    pub fn welcome(&mut self, directory: &str) {
        let hello = self.expect("hello");
        assert_eq!(hello["version"], VERSION);
        self.yes(&hello, &welcome(directory));
    }

    /// Answers whatever else comes with yes, until the end.
    pub fn rest(mut self) -> Vec<Value> {
        let mut requests = Vec::new();
        while let Some(request) = self.request() {
            self.yes(&request, &Done {});
            requests.push(request);
        }
        requests
    }
}

fn welcome(directory: &str) -> Welcome {
    Welcome {
        version: VERSION,
        session: "s-1".into(),
        node: "db1".into(),
        directory: directory.into(),
        dead_after_ms: 45_000,
        stop_ms: None,
        valid_ms_min: None,
    }
}

fn listen() -> (TcpListener, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port of the loopback");
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, Server::Tcp(address.to_string()))
}

/// Accepts one connection and plays `script` on it. The handle returns the script's result, or its
/// panic.
pub fn play<T: Send + 'static>(script: impl FnOnce(Peer) -> T + Send + 'static) -> (Server, JoinHandle<T>) {
    let (listener, server) = listen();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        script(Peer::new(stream))
    });
    (server, thread)
}

/// Where [`scripted`] listens.
#[derive(Debug)]
pub struct Script(Server);

impl Script {
    /// Where it listens.
    #[must_use]
    pub fn servers(&self) -> Vec<Server> {
        vec![self.0.clone()]
    }
}

/// For one connection: answers the hello, answers the second request with `lines`, and all others
/// with yes.
#[must_use]
pub fn scripted(lines: &str) -> Script {
    let lines = lines.to_owned();
    let (server, _) = play(move |mut peer| {
        peer.welcome("local");
        if peer.request().is_some() {
            peer.send_text(&lines);
            peer.rest();
        }
    });
    Script(server)
}

type Answer = dyn Fn(&Value) -> Value + Send + Sync;

/// A scripted daemon for any number of connections, in the background.
#[derive(Debug)]
pub struct Scripted {
    address: String,
    life: Arc<Life>,
}

#[derive(Debug, Default)]
struct Life {
    requests: Mutex<Vec<Value>>,
    after_grant: Mutex<Option<Value>>,
}

impl Scripted {
    /// Answers hello, ping, release and bye by itself, and everything else with the object that
    /// `answer` returns for it. The id is added.
    #[must_use]
    pub fn start(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let (listener, server) = listen();
        let (life, answer): (Arc<Life>, Arc<Answer>) = (Arc::default(), Arc::new(answer));
        let shared = Arc::clone(&life);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (life, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                thread::spawn(move || life.serve(Peer::new(stream), &*answer));
            }
        });
        let Server::Tcp(address) = server else { unreachable!("it listens on TCP") };
        Self { address, life }
    }

    /// Sends this a while after each grant: once the client has confirmed the grant by a ping.
    #[must_use]
    pub fn after_grant(self, event: Value) -> Self {
        *self.life.after_grant.lock().expect("no connection panics") = Some(event);
        self
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.address
    }

    /// The requests of this kind that have come, in their order.
    #[must_use]
    pub fn heard(&self, op: &str) -> Vec<Value> {
        let requests = self.life.requests.lock().expect("no connection panics");
        requests.iter().filter(|request| request["op"] == op).cloned().collect()
    }
}

impl Life {
    fn serve(&self, mut peer: Peer, answer: &Answer) {
        let mut granted = false;
        while let Some(request) = peer.request() {
            self.requests.lock().expect("no connection panics").push(request.clone());
            match request["op"].as_str() {
                Some("hello") => peer.yes(&request, &welcome("local")),
                Some("ping" | "release" | "bye") => peer.yes(&request, &Done {}),
                _ => {
                    let mut body = answer(&request);
                    let ok = body.as_object_mut().and_then(|body| body.remove("ok"));
                    peer.reply(&request, ok.is_some_and(|ok| ok == true), &body);
                }
            }
            granted |= request["op"] == "acquire";
            let event = self.after_grant.lock().expect("no connection panics").clone();
            if let Some(event) = event.filter(|_| granted && request["op"] == "ping") {
                granted = false;
                peer.send(&event);
            }
        }
    }
}
