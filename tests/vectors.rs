//! Every test vector of docs/protocol.md, replayed against the real daemon: the document is the
//! specification, and this test holds the daemon to it. The top of the document explains the form
//! of a vector.

mod support;

use std::collections::HashMap;

use serde_json::Value;
use support::{Daemon, V1, Ws};
use tungstenite::Message;

const PROTOCOL: &str = include_str!("../docs/protocol.md");

/// One line of a vector.
#[derive(Debug, PartialEq)]
struct Step<'a> {
    session: char,
    websocket: bool,
    act: Act<'a>,
}

#[derive(Debug, PartialEq)]
enum Act<'a> {
    SendText(&'a str),
    SendBytes(Vec<u8>),
    ReceiveText(&'a str),
    ReceiveBytes(Vec<u8>),
    Closed,
}

/// The vectors of the document: the lines of each, and the number of the first one.
fn blocks(document: &str) -> Vec<(usize, Vec<&str>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, Vec<&str>)> = None;
    for (index, line) in document.lines().enumerate() {
        match &mut open {
            None if line == "```vectors" => open = Some((index + 2, Vec::new())),
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some((_, lines)) => lines.push(line),
            None => {}
        }
    }
    assert!(open.is_none(), "a vector does not end");
    blocks
}

fn step(line: &str) -> Step<'_> {
    parse(line).unwrap_or_else(|| panic!("not a step of a vector: {line}"))
}

fn parse(line: &str) -> Option<Step<'_>> {
    let session = line.chars().next().filter(char::is_ascii_uppercase)?;
    let (marks, content) = line[1..].split_once(' ').unwrap_or((&line[1..], ""));
    let (websocket, marks) = match marks.strip_prefix('w') {
        Some(rest) => (true, rest),
        None => (false, marks),
    };
    // On TCP the `x` follows the arrow; elsewhere in the document it precedes it.
    let act = match marks {
        ">" => Act::SendText(content),
        "<" => Act::ReceiveText(content),
        ">x" | "x>" => Act::SendBytes(bytes(content)?),
        "<x" | "x<" => Act::ReceiveBytes(bytes(content)?),
        "!" if content.is_empty() => Act::Closed,
        _ => return None,
    };
    Some(Step { session, websocket, act })
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits: Vec<char> = hexadecimal.chars().filter(|digit| *digit != ' ').collect();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).ok());
    if digits.len().is_multiple_of(2) { pairs.collect() } else { None }
}

/// Whether `received` equals `expected`, in which `"*"` stands for any value that is present.
fn matches(expected: &Value, received: &Value) -> bool {
    match (expected, received) {
        (Value::String(any), _) if any == "*" => true,
        (Value::Array(expected), Value::Array(received)) => {
            expected.len() == received.len() && expected.iter().zip(received).all(|(one, other)| matches(one, other))
        }
        (Value::Object(expected), Value::Object(received)) => {
            expected.len() == received.len()
                && expected.iter().all(|(name, value)| received.get(name).is_some_and(|other| matches(value, other)))
        }
        _ => expected == received,
    }
}

enum Session {
    Stream(V1),
    Ws(Ws),
}

/// The sessions of one vector. Each is opened at its first use.
struct Replay<'a> {
    daemon: &'a Daemon,
    sessions: HashMap<char, Session>,
}

impl Replay<'_> {
    fn play(&mut self, step: &Step) {
        let session = self.sessions.entry(step.session).or_insert_with(|| match step.websocket {
            true => Session::Ws(Ws::connect(&self.daemon.ws())),
            false => Session::Stream(V1::connect(&self.daemon.tcp())),
        });
        match session {
            Session::Stream(client) => {
                assert!(!step.websocket, "the session is not a WebSocket");
                stream_step(client, &step.act);
            }
            Session::Ws(client) => {
                assert!(step.websocket, "the session is a WebSocket");
                websocket_step(client, &step.act);
            }
        }
    }

    /// At the end nothing more can be read: extra messages of the daemon are errors too.
    fn end(self) {
        for (name, session) in self.sessions {
            match session {
                Session::Stream(mut client) => {
                    client.finish();
                    let rest = client.closed();
                    assert!(rest.is_empty(), "{name} got more: {}", String::from_utf8_lossy(&rest));
                }
                Session::Ws(mut client) => {
                    client.send(Message::Close(None));
                    let last = client.receive();
                    assert!(last.is_close(), "{name} got more: {last}");
                }
            }
        }
    }
}

fn stream_step(client: &mut V1, act: &Act) {
    match act {
        Act::SendText(text) => client.send_line(text),
        Act::SendBytes(bytes) => client.send_bytes(bytes),
        Act::ReceiveText(expected) => compare(expected, &client.receive()),
        Act::ReceiveBytes(expected) => {
            let received = client.receive_bytes(expected.len());
            assert_eq!(&received, expected, "received {received:02x?}");
        }
        Act::Closed => assert_eq!(client.closed(), b"", "nothing comes before the end"),
    }
}

fn websocket_step(client: &mut Ws, act: &Act) {
    match act {
        Act::SendText(text) => client.send_text(text),
        Act::SendBytes(bytes) => client.send(Message::binary(bytes.clone())),
        Act::ReceiveText(expected) => {
            let text = client.receive_text();
            let received = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            compare(expected, &received);
            if expected.contains("\"Result\"") {
                assert_eq!(text, format!("{expected}\n"), "version 0.1 replies are fixed to the byte");
            }
        }
        Act::ReceiveBytes(expected) => match client.receive() {
            Message::Binary(received) => assert_eq!(received, expected, "received {received:02x?}"),
            other => panic!("not a binary message: {other}"),
        },
        Act::Closed => assert!(client.receive().is_close(), "a close frame is due"),
    }
}

#[track_caller]
fn compare(expected: &str, received: &Value) {
    let expected: Value = serde_json::from_str(expected).expect("a vector expects JSON");
    assert!(matches(&expected, received), "expected {expected}\nreceived {received}");
}

/// Each vector runs on a fresh directory, and each of its lines does what it says. None is skipped.
#[test]
fn every_vector_of_the_document() {
    let (mut vectors, mut steps) = (0, 0);
    for (first_line, lines) in blocks(PROTOCOL) {
        let daemon = Daemon::start();
        let mut replay = Replay { daemon: &daemon, sessions: HashMap::new() };
        for (line, text) in (first_line..).zip(lines) {
            // In the captured output of a failed test, this names the line that failed.
            println!("docs/protocol.md:{line}: {text}");
            replay.play(&step(text));
            steps += 1;
        }
        replay.end();
        vectors += 1;
    }
    let fences = PROTOCOL.matches("\n```vectors\n").count();
    assert!(fences > 0, "the document has vectors");
    assert_eq!(vectors, fences, "every vector was replayed");
    let marked = PROTOCOL.lines().filter(|line| parse(line).is_some()).count();
    assert_eq!(steps, marked, "every line of a vector was replayed");
}

/// Tests the reader itself: it reads a step as the document says, and accepts nothing else.
#[test]
fn steps_are_read_as_the_document_says() {
    let sent = Act::SendText("{}");
    assert_eq!(step("A> {}"), Step { session: 'A', websocket: false, act: sent });
    let shown = Act::ReceiveBytes(vec![1, 0xff]);
    assert_eq!(step("Bwx< 01 ff"), Step { session: 'B', websocket: true, act: shown });
    assert_eq!(step("A>x 54ff").act, Act::SendBytes(vec![0x54, 0xff]));
    assert_eq!(step("A!"), Step { session: 'A', websocket: false, act: Act::Closed });
    for wrong in ["A>y {}", "A>x 5", "a> {}", "", "A"] {
        assert_eq!(parse(wrong), None, "{wrong:?}");
    }
}

/// The star stands for any value that is present, never for an absent one. Everything else must be
/// equal.
#[test]
fn the_star_needs_a_value() {
    let value = |text| -> Value { serde_json::from_str(text).expect("JSON") };
    let expected = value(r#"{"a":"*","b":[{"c":"*"}]}"#);
    assert!(matches(&expected, &value(r#"{"b":[{"c":1}],"a":null}"#)));
    for wrong in [r#"{"b":[{"c":1}]}"#, r#"{"a":1,"b":[]}"#, r#"{"a":1,"b":[{"c":1}],"d":1}"#] {
        assert!(!matches(&expected, &value(wrong)), "{wrong}");
    }
}
