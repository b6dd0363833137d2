//! A session in each dialect on each kind of socket, all with the same verbs.

use std::fmt;
use std::io::{ErrorKind, Read};

use serde_json::{Value, json};
use tungstenite::Message;

use crate::guest::{TCP, UNIX, WS};
use crate::support::{GOB_REPLY_TYPES, GOB_REQUEST_TYPE, Gob, V1, Ws, gob_request};

/// A dialect and its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    GobTcp,
    GobUnix,
    GobWs,
    OldJsonTcp,
    OldJsonWs,
    JsonTcp,
    JsonUnix,
    JsonWs,
}

impl Dialect {
    pub(crate) const ALL: [Self; 8] = [
        Self::JsonTcp,
        Self::JsonUnix,
        Self::JsonWs,
        Self::GobTcp,
        Self::GobUnix,
        Self::GobWs,
        Self::OldJsonTcp,
        Self::OldJsonWs,
    ];

    /// Whether requests can wait, and fences and slots can be requested.
    pub(crate) fn is_new(self) -> bool {
        matches!(self, Self::JsonTcp | Self::JsonUnix | Self::JsonWs)
    }

    #[track_caller]
    pub(crate) fn session(self) -> Session {
        let wire = match self {
            Self::GobTcp => Wire::Gob(Gob::connect(TCP)),
            Self::GobUnix => Wire::Gob(Gob::connect(UNIX)),
            Self::OldJsonTcp | Self::JsonTcp => Wire::Lines(V1::connect(TCP)),
            Self::JsonUnix => Wire::Lines(V1::connect(UNIX)),
            Self::GobWs | Self::OldJsonWs | Self::JsonWs => Wire::WebSocket(Box::new(Ws::connect(WS))),
        };
        Session { dialect: self, wire, last_id: 0 }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GobTcp => "v0.1 gob, TCP",
            Self::GobUnix => "v0.1 gob, Unix",
            Self::GobWs => "v0.1 gob, WebSocket",
            Self::OldJsonTcp => "v0.1 JSON, TCP",
            Self::OldJsonWs => "v0.1 JSON, WebSocket",
            Self::JsonTcp => "v1 JSON, TCP",
            Self::JsonUnix => "v1 JSON, Unix",
            Self::JsonWs => "v1 JSON, WebSocket",
        })
    }
}

enum Wire {
    Gob(Gob),
    Lines(V1),
    WebSocket(Box<Ws>),
}

/// The commands of version 0.1, by the names of version 1.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verb {
    Acquire = 2,
    Release = 3,
    Verify = 4,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Release => "release",
            Self::Verify => "verify",
        }
    }
}

/// A session. It panics on anything but the expected reply.
pub(crate) struct Session {
    pub(crate) dialect: Dialect,
    wire: Wire,
    last_id: u64,
}

impl Session {
    /// Whether the request is granted, or done.
    #[track_caller]
    pub(crate) fn does(&mut self, verb: Verb, lock: &str) -> bool {
        let bytes = self.bytes(verb, lock);
        self.send_bytes(&bytes);
        self.outcome(verb, lock)
    }

    /// Waits for the lock; only version 1 can.
    #[track_caller]
    pub(crate) fn waits(&mut self, lock: &str, wait_ms: u64) -> bool {
        let request = json!({"op": "acquire", "lock": lock, "wait_ms": wait_ms});
        let reply = match &mut self.wire {
            Wire::Lines(client) => client.request(request),
            Wire::WebSocket(client) => client.request(request),
            Wire::Gob(_) => panic!("version 0.1 does not wait"),
        };
        assert!(reply["ok"] == true || reply["error"] == "timeout", "{reply}");
        reply["ok"] == true
    }

    /// The bytes of a request, including its framing.
    pub(crate) fn bytes(&mut self, verb: Verb, lock: &str) -> Vec<u8> {
        let gob = || gob_request(verb as u8, lock);
        let old = || json!({"VersionMinor": 1, "Command": verb as u8, "LockName": lock}).to_string();
        self.last_id += 1;
        let new = json!({"id": self.last_id, "op": verb.word(), "lock": lock}).to_string();
        let line = |text: String| format!("{text}\n").into_bytes();
        match self.dialect {
            Dialect::GobTcp | Dialect::GobUnix if self.last_id == 1 => [GOB_REQUEST_TYPE, &gob()].concat(),
            Dialect::GobTcp | Dialect::GobUnix => gob(),
            Dialect::GobWs => frame(0x82, &[GOB_REQUEST_TYPE, &gob()].concat()),
            Dialect::OldJsonTcp => line(old()),
            Dialect::OldJsonWs => frame(0x81, old().as_bytes()),
            Dialect::JsonTcp | Dialect::JsonUnix => line(new),
            Dialect::JsonWs => frame(0x81, new.as_bytes()),
        }
    }

    #[track_caller]
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        match &mut self.wire {
            Wire::Gob(client) => client.bytes().send_bytes(bytes),
            Wire::Lines(client) => client.send_bytes(bytes),
            Wire::WebSocket(client) => client.send_bytes(bytes),
        }
    }

    /// Whether the daemon's side of the connection ends without anything more than a close frame.
    pub(crate) fn ends(&mut self) -> bool {
        let mut bytes = Vec::new();
        let end = match &mut self.wire {
            Wire::Gob(client) => client.bytes().stream().read_to_end(&mut bytes),
            Wire::Lines(client) => client.stream().read_to_end(&mut bytes),
            Wire::WebSocket(client) => client.stream().read_to_end(&mut bytes),
        };
        match end {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    /// Receives the reply to the last request, and nothing else.
    #[track_caller]
    pub(crate) fn outcome(&mut self, verb: Verb, lock: &str) -> bool {
        let (dialect, id) = (self.dialect, self.last_id);
        match &mut self.wire {
            Wire::Gob(client) => {
                let bytes = client.bytes();
                if id == 1 {
                    bytes.receive_bytes(GOB_REPLY_TYPES);
                }
                let length = bytes.receive_bytes(1)[0];
                gob_outcome(&bytes.receive_bytes(length.into()), lock)
            }
            Wire::WebSocket(client) if dialect == Dialect::GobWs => match client.receive() {
                Message::Binary(bytes) => gob_outcome(&bytes[GOB_REPLY_TYPES + 1..], lock),
                other => panic!("not a binary message: {other}"),
            },
            Wire::WebSocket(client) => json_outcome(dialect, id, verb, lock, &client.receive_object()),
            Wire::Lines(client) => json_outcome(dialect, id, verb, lock, &client.receive()),
        }
    }
}

fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    crate::support::frame(head, true, payload)
}

/// The value message of a reply without its length.
#[track_caller]
fn gob_outcome(value: &[u8], lock: &str) -> bool {
    assert!(value.windows(lock.len()).any(|part| part == lock.as_bytes()), "not about {lock}: {value:02x?}");
    value.ends_with(&[0, 1, 2, 0])
}

#[track_caller]
fn json_outcome(dialect: Dialect, id: u64, verb: Verb, lock: &str, reply: &Value) -> bool {
    if dialect.is_new() {
        assert_eq!(reply["id"], id, "not the reply that is due: {reply}");
        assert!(reply["ok"] == true || reply["error"].is_string(), "{reply}");
        return reply["ok"] == true;
    }
    assert_eq!(reply["LockName"], lock, "not the reply that is due: {reply}");
    assert_eq!(reply["Command"], verb as u8, "not the reply that is due: {reply}");
    reply["Result"] == 2
}
