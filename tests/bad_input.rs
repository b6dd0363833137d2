//! Bad bytes, hostile clients and broken lock directories, against the real daemon. Whatever one
//! client does, it gets an answer or is closed with a reason, no other session notices, memory
//! stays bounded, and nothing panics.

mod support;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use serde_json::{Value, json};
use support::{
    Daemon, Dice, GOB_REPLY_TYPES, GOB_REQUEST_TYPE, Gob, V1, Ws, connect, eventually, files, frame, gob_request, http,
    reset,
};
use tungstenite::Message;

const MIB: u64 = 1024 * 1024;

/// How much the daemon may grow, whatever the clients of a test send.
const GROWTH_MAX: u64 = 16 * MIB;

/// A well-behaved session, which must not notice anything that others do.
struct Bystander {
    client: V1,
    websocket: Ws,
    rss_bytes: u64,
}

impl Bystander {
    /// Joins on both fronts and takes a lock on each. The daemon's memory is measured here, when
    /// all of its code has run once.
    fn join(daemon: &Daemon) -> Self {
        let mut client = V1::connect(&daemon.tcp());
        client.acquire("bystander-tcp");
        let mut websocket = Ws::connect(&daemon.ws());
        websocket.acquire("bystander-ws");
        let mut gob = Gob::connect(&daemon.tcp());
        assert!(gob.gets("bystander-gob"), "a lock of its own");
        Self { client, websocket, rss_bytes: daemon.rss_bytes() }
    }

    /// It still has its locks and is served, and the daemon's memory has not grown much.
    #[track_caller]
    fn unharmed(&mut self, daemon: &mut Daemon) {
        daemon.assert_alive();
        let reply = self.client.request(json!({"op": "verify", "lock": "bystander-tcp"}));
        assert_eq!(reply["ok"], true, "{reply}");
        let reply = self.websocket.request(json!({"op": "verify", "lock": "bystander-ws"}));
        assert_eq!(reply["ok"], true, "{reply}");
        let grown = daemon.rss_bytes().saturating_sub(self.rss_bytes);
        assert!(grown < GROWTH_MAX, "grown by {} KiB", grown / 1024);
    }
}

/// Sends bytes that the daemon may refuse to read to the end.
fn pour(mut stream: &TcpStream, bytes: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a time-out");
    let _ = stream.write_all(bytes);
}

/// The request is refused with this error, and the session continues.
#[track_caller]
fn refused(client: &mut V1, request: &str, error: &str) {
    client.send_line(request);
    let reply = client.receive();
    assert_eq!((&reply["ok"], &reply["error"]), (&json!(false), &json!(error)), "{request}: {reply}");
    assert!(reply["message"].as_str().is_some_and(|message| !message.is_empty()), "{reply}");
}

/// The lock becomes free without further action: its session has ended.
#[track_caller]
fn comes_free(daemon: &Daemon, lock: &str) {
    let mut other = V1::connect(&daemon.tcp());
    let reply = other.request(json!({"op": "acquire", "lock": lock, "wait_ms": 20000}));
    assert_eq!(reply["ok"], true, "{lock} did not come free: {reply}");
}

/// Sends a version 0.1 request as a line of JSON, and returns its reply.
#[track_caller]
fn version_0_1(client: &mut V1, command: u8, lock: &str) -> Value {
    client.send(&json!({"VersionMajor": 0, "VersionMinor": 1, "Command": command, "LockName": lock}));
    client.receive()
}

/// A hundred connections send random bytes, on both fronts and inside WebSocket connections.
#[test]
fn random_bytes_on_a_hundred_connections() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    let mut dice = Dice::new(1);
    let mut connections: Vec<TcpStream> = (0..50).map(|_| connect(&daemon.tcp())).collect();
    connections.extend((0..25).map(|_| connect(&daemon.ws())));
    connections.extend((0..25).map(|_| Ws::connect(&daemon.ws()).into_stream()));
    for _ in 0..4 {
        for connection in &connections {
            let length = 1 + dice.below(40_000);
            pour(connection, &dice.bytes(usize::try_from(length).expect("it is small")));
        }
        bystander.unharmed(&mut daemon);
    }
    drop(connections);
    daemon.becomes_idle();
    bystander.unharmed(&mut daemon);
}

/// Random bytes that begin like a dialect get past the choice of the dialect.
#[test]
fn random_bytes_behind_a_good_beginning() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    let mut dice = Dice::new(2);
    let gob_value = [GOB_REQUEST_TYPE, b"\x30\xff\x82"].concat();
    let definition = GOB_REQUEST_TYPE[..12].to_vec();
    for beginning in [&gob_value[..], &definition, b"{\"op\":\"", b"{\"op\":\"acquire\",\"lock\":\"", b"\n"] {
        for _ in 0..20 {
            let client = connect(&daemon.tcp());
            pour(&client, &[beginning, &dice.bytes(300), b"\n"].concat());
        }
    }
    for head in [0x81, 0x82, 0x01, 0x02, 0x89, 0x88] {
        for _ in 0..10 {
            let payload = dice.bytes(100);
            pour(&Ws::connect(&daemon.ws()).into_stream(), &frame(head, true, &payload));
        }
    }
    daemon.becomes_idle();
    bystander.unharmed(&mut daemon);
}

/// Lengths of gigabytes hit limits and are not allocated: the session ends, and the memory does not
/// grow.
#[test]
fn announced_gigabytes_in_gob() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    let eight_gigabytes = b"\xfb\x02\x00\x00\x00\x00";
    let all_ones = b"\xf8\xff\xff\xff\xff\xff\xff\xff\xff";
    for length in [&eight_gigabytes[..], all_ones] {
        let mut client = V1::connect(&daemon.tcp());
        client.send_bytes(length);
        client.send_bytes(&[0; 100]);
        client.closed();
        let mut later = V1::connect(&daemon.tcp());
        later.send_bytes(&[GOB_REQUEST_TYPE, length, &[0; 100]].concat());
        later.closed();
        // Inside a message of an honest length: the length of the name, and the number of fields of
        // a definition.
        let value = [b"\xff\x82\x02\x01\x01\x02\x01", length, b"ab\x00"].concat();
        let definition = [b"\xff\x83\x03\x01\x01\x01A\x01\xff\x84\x00\x01", length, b"\x00"].concat();
        for message in [value, definition] {
            let length = u8::try_from(message.len()).expect("a short message");
            let client = connect(&daemon.tcp());
            pour(&client, &[GOB_REQUEST_TYPE, &[length], &message].concat());
        }
    }
    bystander.unharmed(&mut daemon);
}

/// A WebSocket frame that announces gigabytes is closed as too big (1009) before any of them
/// arrive.
#[test]
fn announced_gigabytes_in_websocket_frames() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    for head in [0x81, 0x82, 0x01] {
        for length in [1_u64 << 33, (1 << 63) - 1] {
            let mut client = Ws::connect(&daemon.ws());
            client.send_bytes(&[&[head, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat());
            assert_eq!(client.close_code(), 1009);
        }
    }
    bystander.unharmed(&mut daemon);
}

/// An HTTP body of gigabytes is neither awaited nor stored.
#[test]
fn announced_gigabytes_in_http() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    for request in ["GET /distrilock", "POST /distrilock", "PUT /"] {
        let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8589934592\r\n\r\n");
        let reply = http(&daemon.ws(), &head);
        assert!(reply.starts_with("HTTP/1.1 4"), "{request}: {reply}");
    }
    bystander.unharmed(&mut daemon);
}

/// A name of 10 MB exceeds the frame limit of every dialect: the session ends.
#[test]
fn names_of_ten_megabytes() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    let name = "n".repeat(10_000_000);
    let v1 = json!({"op": "acquire", "lock": name}).to_string();
    let v0 = json!({"VersionMinor": 1, "Command": 2, "LockName": name}).to_string();
    for line in [&v1, &v0] {
        let mut client = V1::connect(&daemon.tcp());
        pour(client.stream(), format!("{line}\n").as_bytes());
        client.closed();
        let mut websocket = Ws::connect(&daemon.ws());
        pour(websocket.stream(), &frame(0x81, true, line.as_bytes()));
        assert_eq!(websocket.close_code(), 1009);
    }
    let length = [&[0xfc][..], &10_000_000_u32.to_be_bytes()].concat();
    let mut value = [b"\xff\x82\x02\x01\x01\x02\x01", &length[..], name.as_bytes(), b"\x00"].concat();
    let total = u32::try_from(value.len()).expect("ten megabytes");
    value.splice(0..0, [&[0xfc][..], &total.to_be_bytes()].concat());
    let message = [GOB_REQUEST_TYPE, &value].concat();
    let mut gob = V1::connect(&daemon.tcp());
    pour(gob.stream(), &message);
    gob.closed();
    let mut websocket = Ws::connect(&daemon.ws());
    pour(websocket.stream(), &frame(0x82, true, &message));
    assert_eq!(websocket.close_code(), 1009);
    bystander.unharmed(&mut daemon);
}

/// A line that is too long is answered once, and the session ends with its locks.
#[test]
fn a_line_that_is_too_long() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("long");
    pour(client.stream(), &[b'x'; 70_000]);
    let reply = client.receive();
    assert_eq!((reply["ok"].as_bool(), reply.get("id")), (Some(false), None), "{reply}");
    assert_eq!(client.closed(), b"");
    comes_free(&daemon, "long");
    let mut full = V1::connect(&daemon.tcp());
    let padded = format!("{:<65500}", r#"{"id":1,"op":"ping"}"#);
    full.send_line(&padded);
    assert_eq!(full.receive(), json!({"id": 1, "ok": true}), "a long line that is allowed");
}

/// Anything that is not a lock name is refused as such in both versions, and no such file appears.
#[test]
fn wrong_names() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    let mut gob = Gob::connect(&daemon.tcp());
    for name in ["", "a/b", "/", "../up", "a\0b", "\0", "a\nb", "a\n", "a b", "ä", "a%2fb"] {
        for op in ["acquire", "release", "verify", "peek"] {
            let reply = client.request(json!({"op": op, "lock": name}));
            assert_eq!(reply["error"], "bad_name", "{op} {name:?}: {reply}");
        }
        let reply = version_0_1(&mut client, 2, name);
        assert_eq!((&reply["Result"], &reply["Reason"]), (&json!(3), &json!("invalid lock name")));
        assert_eq!(reply["LockName"], name);
        if !name.is_empty() {
            let reply = gob.request(2, name);
            assert!(reply.ends_with(b"\x01\x03\x01\x11invalid lock name\x00"), "{reply:02x?}");
        }
    }
    assert_eq!(files(daemon.directory()), [""; 0]);
}

/// `.` and `..` are ordinary lock names: the file is `NAME.lck`, inside the directory.
#[test]
fn names_of_dots() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire(".");
    client.acquire("..");
    client.acquire("-");
    assert_eq!(files(daemon.directory()), ["-.lck", "...lck", "..lck"]);
}

/// The longest name has 251 bytes, because NAME.lck must fit into 255 bytes.
#[test]
fn names_of_252_bytes() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire(&"a".repeat(251));
    let too_long = "a".repeat(252);
    let reply = client.request(json!({"op": "acquire", "lock": too_long}));
    assert_eq!(reply["error"], "bad_name", "{reply}");
    let reply = version_0_1(&mut client, 2, &too_long);
    let reason = format!("open {}: file name too long", daemon.file(&too_long).display());
    assert_eq!((&reply["Result"], &reply["Reason"]), (&json!(4), &json!(reason)));
}

/// Text that is not UTF-8 is refused on a line, and closes a WebSocket with 1007 (RFC 6455, section
/// 8.1).
#[test]
fn invalid_utf8() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    client.send_bytes(b"{\"op\":\"acquire\",\"lock\":\"\xff\xfe\"}\n");
    let reply = client.receive();
    assert_eq!(reply["error"], "bad_request", "{reply}");
    client.ping();
    // Overlong, a surrogate, above U+10FFFF, truncated.
    for wrong in [&b"\xff"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"] {
        let mut websocket = Ws::connect(&daemon.ws());
        websocket.send_bytes(&frame(0x81, true, &[b"{\"op\":\"", wrong].concat()));
        assert_eq!(websocket.close_code(), 1007, "{wrong:02x?}");
    }
    let mut fragments = Ws::connect(&daemon.ws());
    let (head, tail) = "{\"op\":\"p\u{e4}".as_bytes().split_at(9);
    fragments.send_bytes(&frame(0x01, true, head));
    fragments.send_bytes(&frame(0x80, true, &[tail, b"\"}"].concat()));
    assert_eq!(fragments.receive_object()["error"], "unknown_op", "cut within a character");
}

/// Endless nesting neither overflows the stack nor ends the session.
#[test]
fn deep_json() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    let mut websocket = Ws::connect(&daemon.ws());
    websocket.ping();
    // The first line of a connection must be an object.
    client.ping();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let opened = open.repeat(60_000 / open.len());
        let whole = format!("{}1{}", open.repeat(9_000), close.repeat(9_000));
        let member = format!("{{\"op\":\"ping\",\"x\":{whole}}}");
        for text in [&opened, &whole, &member] {
            refused(&mut client, text, "bad_request");
            websocket.send_text(text);
            assert_eq!(websocket.receive_object()["error"], "bad_request");
        }
    }
    client.ping();
}

/// Members with a wrong type, out of range, twice, missing or unknown are refused, and the session
/// continues.
#[test]
fn wrong_types() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    let long_id = format!(r#"{{"id":"{}","op":"ping"}}"#, "i".repeat(65));
    let long_name = format!(r#"{{"op":"hello","name":"{}"}}"#, "n".repeat(129));
    let long_note = format!(r#"{{"op":"hello","note":"{}"}}"#, "n".repeat(257));
    for request in [
        r#"{"op":1}"#,
        r#"{"op":null}"#,
        r#"{"op":"ping","op":"ping"}"#,
        r#"{"op":"acquire"}"#,
        r#"{"op":"acquire","lock":5}"#,
        r#"{"op":"acquire","lock":["a"]}"#,
        r#"{"op":"acquire","lock":null}"#,
        r#"{"op":"acquire","lock":"a","lock":"b"}"#,
        r#"{"op":"acquire","lock":"a","mode":"any"}"#,
        r#"{"op":"acquire","lock":"a","mode":1}"#,
        r#"{"op":"acquire","lock":"a","wait_ms":"1"}"#,
        r#"{"op":"acquire","lock":"a","wait_ms":1.5}"#,
        r#"{"op":"acquire","lock":"a","wait_ms":1e400}"#,
        r#"{"op":"acquire","lock":"a","wait_ms":-1}"#,
        r#"{"op":"release","lock":"a","wait_ms":1}"#,
        r#"{"op":"ping","lock":"a"}"#,
        r#"{"op":"cancel"}"#,
        r#"{"op":"cancel","request":{}}"#,
        r#"{"op":"list","after":7}"#,
        r#"{"op":"hello","version":"1"}"#,
        r#"{"op":"hello","name":1}"#,
        r#"{"id":1.5,"op":"ping"}"#,
        r#"{"id":-1,"op":"ping"}"#,
        r#"{"id":true,"op":"ping"}"#,
        r#"{"id":9007199254740992,"op":"ping"}"#,
        r#"{"op":"ping"} {"op":"ping"}"#,
        r#"{"op":"ping""#,
        r#""ping""#,
        "17",
        "null",
        &long_id,
        &long_name,
        &long_note,
    ] {
        refused(&mut client, request, "bad_request");
    }
    client.send_line(r#"{"id":9007199254740991,"op":"ping"}"#);
    assert_eq!(client.receive(), json!({"id": 9_007_199_254_740_991_u64, "ok": true}));
    client.send_bytes(b"\n\r\n{\"op\":\"ping\"}\r\n");
    assert_eq!(client.receive(), json!({"ok": true}), "empty lines and CR LF");
}

/// An unknown operation is refused: as unknown in version 1, and as an unknown command in version
/// 0.1.
#[test]
fn unknown_operations() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    for op in ["", "Acquire", "steal", "acquire\\u0000"] {
        refused(&mut client, &format!(r#"{{"op":"{op}","lock":"a"}}"#), "unknown_op");
    }
    for command in [0, 5, 255] {
        let reply = version_0_1(&mut client, command, "a");
        assert_eq!((&reply["Result"], &reply["Reason"]), (&json!(3), &json!("unknown command")));
    }
}

/// The id of a waiting request cannot be used again until it is answered; the waiting request is
/// not affected.
#[test]
fn the_id_of_a_waiting_request() {
    let daemon = Daemon::start();
    let mut holder = V1::connect(&daemon.tcp());
    holder.acquire("twice");
    let mut client = V1::connect(&daemon.tcp());
    client.send(&json!({"id": 1, "op": "acquire", "lock": "twice", "wait_ms": null}));
    refused(&mut client, r#"{"id":1,"op":"acquire","lock":"other","wait_ms":null}"#, "bad_request");
    refused(&mut client, r#"{"id":1,"op":"acquire","lock":"twice"}"#, "bad_request");
    holder.release("twice");
    assert_eq!(client.receive(), json!({"id": 1, "ok": true, "lock": "twice"}));
    client.send(&json!({"id": 1, "op": "ping"}));
    assert_eq!(client.receive(), json!({"id": 1, "ok": true}), "the id is free again");
}

/// The limits of a session: one request too many is refused with the limit's name, and the session
/// continues.
#[test]
fn limits_of_a_session() {
    let setup = Daemon::setup().flag("--locks-per-session", "3").flag("--waits-per-session", "2");
    let daemon = setup.flag("--sessions", "3").start();
    let mut holder = V1::connect(&daemon.tcp());
    let mut client = V1::connect(&daemon.tcp());
    for lock in ["a", "b", "c"] {
        holder.acquire(lock);
    }
    refused(&mut holder, r#"{"id":1,"op":"acquire","lock":"d"}"#, "limit");
    holder.release("a");
    holder.acquire("d");
    for (id, lock) in ["b", "c"].iter().enumerate() {
        client.send(&json!({"id": id, "op": "acquire", "lock": lock, "wait_ms": null}));
    }
    refused(&mut client, r#"{"id":9,"op":"acquire","lock":"d","wait_ms":null}"#, "limit");
    client.ping();

    let mut third = V1::connect(&daemon.tcp());
    third.ping();
    let mut fourth = V1::connect(&daemon.tcp());
    assert_eq!(fourth.receive()["error"], "limit", "one session too many on TCP");
    fourth.closed();
    assert_eq!(Ws::with_headers(&daemon.ws(), &[]).err(), Some(503), "one too many on WebSocket");
    drop(third);
    eventually("a session that ended makes room", || {
        let mut next = V1::connect(&daemon.tcp());
        next.try_request(json!({"op": "ping"})).is_ok_and(|reply| reply["ok"] == true)
    });
}

/// The limits of all sessions together, locks: 16 are always every session's own. Of eight more,
/// the first session gets half, the second half of the rest, and whoever gives some back makes
/// room. Each refusal names the limit.
#[test]
fn locks_of_all_sessions() {
    let daemon = Daemon::setup().flag("--locks", "8").start();
    let (mut first, mut second) = (V1::connect(&daemon.tcp()), V1::connect(&daemon.tcp()));
    for (client, name, count) in [(&mut first, "a", 20), (&mut second, "b", 18)] {
        for number in 0..count {
            client.acquire(&format!("{name}{number}"));
        }
        refused_for(client, &json!({"op": "acquire", "lock": "one-more"}), "--locks");
        refused_for(client, &json!({"op": "acquire", "locks": ["one-more", "two-more"]}), "--locks");
    }
    let mut original = Gob::connect(&daemon.tcp());
    for number in 0..17 {
        assert!(original.gets(&format!("c{number}")), "one of eight is left for those who come next");
    }
    assert!(!original.gets("c17"));
    first.release("a0");
    first.release("a1");
    second.acquire("one-more");
    drop((original, first));
    eventually("sessions that ended make room", || {
        let mut next = V1::connect(&daemon.tcp());
        (0..18).all(|number| next.request(json!({"op": "acquire", "lock": format!("d{number}")}))["ok"] == true)
    });
}

/// The same for requests that wait.
#[test]
fn waits_of_all_sessions() {
    let daemon = Daemon::setup().flag("--waits", "8").start();
    let mut holder = V1::connect(&daemon.tcp());
    let wait = |number| json!({"id": number, "op": "acquire", "lock": format!("w{number}"), "wait_ms": null});
    (0..21).for_each(|number| holder.acquire(&format!("w{number}")));
    let (mut first, mut second) = (V1::connect(&daemon.tcp()), V1::connect(&daemon.tcp()));
    for (client, count) in [(&mut first, 20), (&mut second, 18)] {
        (0..count).for_each(|number| client.send(&wait(number)));
        refused_for(client, &wait(20), "--waits");
    }
    for number in 0..2 {
        first.send(&json!({"op": "cancel", "request": number}));
        assert_eq!(first.receive()["error"], "cancelled");
        assert_eq!(first.receive()["cancelled"], true);
    }
    second.send(&wait(20));
    refused_for(&mut second, &wait(19), "--waits");
    holder.release("w20");
    assert_eq!(second.receive()["lock"], "w20", "it waited");
}

/// The same for bytes: a hundred clients begin long messages and do not end them. The daemon keeps
/// what it may and reads no further, a client with a short message is served, and once the others
/// are gone, one of them can end its message.
#[test]
fn bytes_of_all_sessions() {
    let daemon = Daemon::setup().flag("--buffer-bytes", "200000").start();
    let mut bystander = V1::connect(&daemon.tcp());
    bystander.ping();
    let before = daemon.rss_bytes();
    let note = "n".repeat(60_000);
    let mut clients: Vec<V1> = (0..100).map(|_| V1::connect(&daemon.tcp())).collect();
    for client in &mut clients {
        client.send_bytes(format!(r#"{{"op":"ping","unknown":"{note}"#).as_bytes());
    }
    for number in 0..10 {
        bystander.acquire(&format!("lock{number}"));
    }
    let grown = daemon.rss_bytes().saturating_sub(before);
    assert!(grown < 3 * MIB, "grown by {} KiB, not by 6 MB", grown / 1024);
    let mut last = clients.pop().expect("there are a hundred");
    drop(clients);
    last.send_bytes(b"\"}\n");
    assert_eq!(last.receive()["error"], "bad_request", "no request has such a member");
}

#[track_caller]
fn refused_for(client: &mut V1, request: &Value, flag: &str) {
    let reply = client.request(request.clone());
    assert_eq!(reply["error"], "limit", "{reply}");
    let message = reply["message"].as_str().unwrap_or_default();
    assert!(message.contains(flag) && message.contains("try again later"), "{reply}");
}

/// A message ends in the middle, with FIN: the session ends, and its locks are free.
#[test]
fn half_messages_then_fin() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    let mut line = V1::connect(&daemon.tcp());
    line.acquire("half-line");
    line.send_bytes(b"{\"op\":\"acquire\",\"lo");
    line.finish();
    line.closed();
    comes_free(&daemon, "half-line");

    let mut gob = Gob::connect(&daemon.tcp());
    assert!(gob.gets("half-gob"), "a free name");
    gob.bytes().send_bytes(&gob_request(2, "other")[..7]);
    gob.bytes().finish();
    gob.bytes().closed();
    comes_free(&daemon, "half-gob");

    let mut websocket = Ws::connect(&daemon.ws());
    websocket.acquire("half-frame");
    websocket.send_bytes(&frame(0x81, true, b"{\"op\":\"ping\"}")[..9]);
    websocket.stream().shutdown(std::net::Shutdown::Write).expect("a connected socket");
    comes_free(&daemon, "half-frame");

    let mut first_byte = V1::connect(&daemon.tcp());
    first_byte.send_bytes(b"{");
    first_byte.finish();
    first_byte.closed();
    bystander.unharmed(&mut daemon);
}

/// A connection is reset in mid-frame: its locks are free at once, on each front and in each
/// dialect.
#[test]
fn resets_in_mid_frame() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    let mut line = V1::connect(&daemon.tcp());
    line.acquire("reset-line");
    line.send_bytes(b"{\"op\":\"release\",\"lock\":\"reset-l");
    reset(line.into_stream());
    comes_free(&daemon, "reset-line");

    let mut gob = Gob::connect(&daemon.tcp());
    assert!(gob.gets("reset-gob"), "a free name");
    gob.bytes().send_bytes(&gob_request(3, "reset-gob")[..9]);
    reset(gob.into_stream());
    comes_free(&daemon, "reset-gob");

    let mut websocket = Ws::connect(&daemon.ws());
    websocket.acquire("reset-frame");
    websocket.send_bytes(&frame(0x01, true, b"{\"op\":\"release\",")[..8]);
    reset(websocket.into_stream());
    comes_free(&daemon, "reset-frame");

    let handshake = connect(&daemon.ws());
    pour(&handshake, b"GET /distrilock HTTP/1.1\r\nHo");
    reset(handshake);
    bystander.unharmed(&mut daemon);
}

/// A waiting session is reset and leaves the queue: the next one gets the lock.
#[test]
fn a_reset_waiter_is_passed_over() {
    let daemon = Daemon::start();
    let mut holder = V1::connect(&daemon.tcp());
    holder.acquire("queue");
    let mut gone = V1::connect(&daemon.tcp());
    gone.send(&json!({"id": 1, "op": "acquire", "lock": "queue", "wait_ms": null}));
    gone.ping();
    let mut next = V1::connect(&daemon.tcp());
    next.send(&json!({"id": 1, "op": "acquire", "lock": "queue", "wait_ms": null}));
    next.ping();
    reset(gone.into_stream());
    holder.release("queue");
    assert_eq!(next.receive(), json!({"id": 1, "ok": true, "lock": "queue"}));
}

/// A violation of RFC 6455 closes the connection with the right code, and frees the session's lock.
#[test]
fn forbidden_websocket_frames() {
    let daemon = Daemon::start();
    let ping = b"{\"op\":\"ping\"}";
    let text = |masked| frame(0x81, masked, ping);
    let cases: [(&str, Vec<u8>, u16); 15] = [
        ("an unmasked frame", text(false), 1002),
        ("an unmasked ping", frame(0x89, false, b""), 1002),
        ("a reserved bit", frame(0xc1, true, ping), 1002),
        ("a reserved opcode", frame(0x83, true, b""), 1002),
        ("a reserved control opcode", frame(0x8b, true, b""), 1002),
        ("a fragmented ping", frame(0x09, true, b""), 1002),
        ("a fragmented close", frame(0x08, true, &1000_u16.to_be_bytes()), 1002),
        ("a ping of 126 bytes", frame(0x89, true, &[0; 126]), 1002),
        ("a continuation of nothing", frame(0x80, true, ping), 1002),
        ("a message within a message", [frame(0x01, true, b"{"), text(true)].concat(), 1002),
        ("half a close code", frame(0x88, true, b"\x03"), 1002),
        ("a forbidden close code", frame(0x88, true, &1005_u16.to_be_bytes()), 1002),
        ("text that is not UTF-8", frame(0x81, true, b"\xff"), 1007),
        ("a message that is too big", frame(0x81, true, &[b' '; 70_000]), 1009),
        ("fragments that are too big", fragments_of_70_000_bytes(), 1009),
    ];
    for (what, bytes, code) in cases {
        let mut client = Ws::connect(&daemon.ws());
        client.acquire("frames");
        pour(client.stream(), &bytes);
        assert_eq!(client.close_code(), code, "{what}");
        comes_free(&daemon, "frames");
    }
}

fn fragments_of_70_000_bytes() -> Vec<u8> {
    let mut bytes = frame(0x01, true, &[b' '; 35_000]);
    bytes.extend(frame(0x80, true, &[b' '; 35_000]));
    bytes
}

/// RFC 6455 allows this, but few clients do it: fragments with a ping in between, an empty
/// fragment, pings with a payload, a masking key, close with a code that is echoed.
#[test]
fn uncommon_websocket_frames() {
    let daemon = Daemon::start();
    let mut client = Ws::connect(&daemon.ws());
    client.send_bytes(&frame(0x01, true, b"{\"id\":1,\"op\":"));
    client.send_bytes(&frame(0x89, true, b"here?"));
    client.send_bytes(&frame(0x00, true, b""));
    client.send_bytes(&frame(0x80, true, b"\"ping\"}"));
    let mut pong = [0; 7];
    client.stream().read_exact(&mut pong).expect("a pong");
    assert_eq!(&pong, b"\x8a\x05here?");
    assert_eq!(client.receive_object(), json!({"id": 1, "ok": true}));
    client.send(Message::Ping(vec![7; 125].into()));
    client.ping();
    client.send_bytes(&frame(0x88, true, &4000_u16.to_be_bytes()));
    assert_eq!(client.close_code(), 4000);
}

/// Sends a line again and again and reads nothing, until the daemon has read nothing for a second,
/// or closes the connection.
fn send_until_stopped(client: &V1, line: &str) -> ErrorKind {
    let mut stream = client.stream();
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a time-out");
    let lines = line.repeat(4_000);
    let mut rest = &lines[..];
    let mut sent = 0;
    loop {
        match stream.write(rest.as_bytes()) {
            Ok(count) => {
                sent += count;
                rest = if count < rest.len() { &rest[count..] } else { &lines };
            }
            Err(error) => return error.kind(),
        }
        assert!(sent < 200_000_000, "the daemon reads and reads");
    }
}

/// A client sends and never reads: the daemon stops reading from it, buffers little for it, and
/// serves the others.
#[test]
fn a_client_that_never_reads() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    let mut never = V1::connect(&daemon.tcp());
    let stopped = send_until_stopped(&never, "{\"op\":\"ping\"}\n");
    bystander.unharmed(&mut daemon);
    if matches!(stopped, ErrorKind::WouldBlock | ErrorKind::TimedOut) {
        // The client was throttled, not closed: when it reads at last, it is served.
        assert_eq!(never.receive(), json!({"ok": true}));
    }
    drop(never);
    daemon.becomes_idle();
    bystander.unharmed(&mut daemon);
}

/// A client never reads and has requested more than the outbox can hold: it is closed, and its lock
/// is free.
#[test]
fn a_client_with_a_full_outbox() {
    let daemon = Daemon::setup().flag("--outbox-bytes", "16384").start();
    let mut holder = V1::connect(&daemon.tcp());
    for number in 0..300 {
        holder.acquire(&format!("one-of-many-locks-with-a-long-name-{number}"));
    }
    let mut never = V1::connect(&daemon.tcp());
    never.acquire("never");
    eventually("the client is closed", || {
        let stopped = send_until_stopped(&never, "{\"op\":\"list\"}\n");
        !matches!(stopped, ErrorKind::WouldBlock | ErrorKind::TimedOut)
    });
    comes_free(&daemon, "never");
    holder.ping();
}

/// The WebSocket port speaks HTTP to clients that do not upgrade.
#[test]
fn plain_http() {
    let daemon = Daemon::start();
    let ws = daemon.ws();
    let get = |path: &str, headers: &str| http(&ws, &format!("GET {path} HTTP/1.1\r\nHost: {ws}\r\n{headers}\r\n"));
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let whole = format!("{upgrade}{key}Sec-WebSocket-Version: 13\r\n");
    for (path, headers, status) in [
        ("/", "", "404"),
        ("/", &whole[..], "404"),
        ("/distrilock/", &whole, "404"),
        ("/distrilock", "", "400"),
        ("/distrilock", &format!("{upgrade}Sec-WebSocket-Version: 13\r\n"), "400"),
        ("/distrilock", &whole, "101"),
    ] {
        let reply = get(path, headers);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {headers:?}: {reply}");
    }
    let reply = get("/distrilock", &whole).to_ascii_lowercase();
    // The key and its answer are the example in RFC 6455, section 1.3.
    assert!(reply.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{reply}");
    assert!(!reply.contains("sec-websocket-extensions"), "no extension was asked for: {reply}");
    let reply = get("/distrilock", &format!("{upgrade}{key}Sec-WebSocket-Version: 8\r\n"));
    assert!(reply.starts_with("HTTP/1.1 4"), "a version that nobody speaks any more: {reply}");
    let reply = http(&ws, "\x16\x03\x01 this is not HTTP\r\n\r\n");
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 400"), "{reply}");
}

/// A page of another site cannot connect from a browser unless the operator allows its origin.
#[test]
fn origins() {
    let daemon = Daemon::start();
    let ws = daemon.ws();
    let status = |daemon: &Daemon, origin: &str| match Ws::with_headers(&daemon.ws(), &[("Origin", origin)]) {
        Ok(mut client) => {
            client.ping();
            101
        }
        Err(status) => status,
    };
    assert_eq!(status(&daemon, &format!("http://{ws}")), 101, "the daemon's own");
    for wrong in ["http://evil.example", "null", "", "http://127.0.0.1:1", &format!("http://{ws}.evil.example")] {
        assert_eq!(status(&daemon, wrong), 403, "{wrong}");
    }
    let allowing = Daemon::setup().flag("--allow-origin", "https://locks.example").start();
    assert_eq!(status(&allowing, "https://locks.example"), 101);
    assert_eq!(status(&allowing, "https://other.example"), 403);
}

/// A request head of more than 8 KiB is refused or its connection closed, and memory does not grow
/// with it.
#[test]
fn a_huge_head() {
    let mut daemon = Daemon::start();
    let mut bystander = Bystander::join(&daemon);
    let one_header = format!("GET /distrilock HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(4 << 20));
    let many_headers = "GET /distrilock HTTP/1.1\r\n".to_owned() + &"A: b\r\n".repeat(100_000);
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(100_000));
    for head in [one_header, many_headers, long_path] {
        let reply = http(&daemon.ws(), &head);
        let refused = ["HTTP/1.1 431", "HTTP/1.1 414", "HTTP/1.1 400"];
        let fine = reply.is_empty() || refused.iter().any(|status| reply.starts_with(status));
        assert!(fine, "{reply}");
    }
    bystander.unharmed(&mut daemon);
}

/// A head that arrives byte by byte, or not at all, does not keep its connection open beyond the
/// limit.
#[test]
fn a_head_that_never_ends() {
    let daemon = Daemon::start();
    let mut silent = V1::connect(&daemon.ws());
    let mut trickling = connect(&daemon.ws());
    trickling.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
    trickling.write_all(b"GET /distrilock HTTP/1.1\r\nX: ").expect("the daemon reads");
    eventually("the trickling connection is closed", || {
        if trickling.write_all(b"x").is_err() {
            return true;
        }
        match trickling.read(&mut [0; 512]) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    });
    silent.closed();
}

/// The daemon does not start without its directory; it says which directory is missing and what to
/// do.
#[test]
fn a_directory_that_is_missing() {
    let parent = tempfile::tempdir().expect("a directory");
    let missing = parent.path().join("no-such-place");
    let said = Daemon::setup().directory(&missing).start_refused();
    assert!(said.contains(&*missing.to_string_lossy()), "it is not named: {said}");
    let remedies = ["mkdir", "create", "install -d"];
    assert!(remedies.iter().any(|remedy| said.contains(remedy)), "no remedy: {said}");
    assert!(!missing.exists(), "it was not asked to make one");

    let file = parent.path().join("file");
    File::create(&file).expect("a file");
    let said = Daemon::setup().directory(&file).start_refused();
    assert!(said.contains(&*file.to_string_lossy()), "it is not named: {said}");
}

/// A refusal by the file system: `storage` with operation, path and reason in version 1,
/// InternalError in 0.1.
#[track_caller]
fn storage_fails(daemon: &Daemon, lock: &str, reason: &str) {
    let mut client = V1::connect(&daemon.tcp());
    let reply = client.request(json!({"op": "acquire", "lock": lock}));
    assert_eq!(reply["error"], "storage", "{reply}");
    let message = reply["message"].as_str().expect("a message").to_lowercase();
    let path = daemon.file(lock).to_string_lossy().to_lowercase();
    assert!(message.contains(&path) && message.contains(reason), "{message}");
    let reply = version_0_1(&mut client, 2, lock);
    let expected = format!("open {}: {reason}", daemon.file(lock).display());
    assert_eq!((&reply["Result"], &reply["Reason"]), (&json!(4), &json!(expected)));
    client.acquire("another-name");
    let reply = client.request(json!({"op": "release", "lock": lock}));
    assert_eq!(reply["error"], "not_held", "{reply}");
}

/// A directory is in the place of the lock file.
#[test]
fn a_lock_file_that_is_a_directory() {
    let daemon = Daemon::start();
    fs::create_dir(daemon.file("adir")).expect("a directory");
    storage_fails(&daemon, "adir", "is a directory");
    let mut client = V1::connect(&daemon.tcp());
    let reply = version_0_1(&mut client, 1, "adir");
    assert_eq!((&reply["Result"], &reply["IsLocked"]), (&json!(2), &json!(false)), "a peek");
    assert!(daemon.file("adir").is_dir(), "it is still there");
}

/// A symbolic link is never followed: neither an existing target nor one that it would create is
/// touched.
#[test]
fn a_lock_file_that_is_a_symlink() {
    let elsewhere = tempfile::tempdir().expect("a directory");
    let target = elsewhere.path().join("target");
    fs::write(&target, "precious").expect("a file");
    let before = fs::metadata(&target).expect("it is there").modified().expect("a time");
    let daemon = Daemon::setup().flag("--linger", "0").start();
    symlink(&target, daemon.file("link")).expect("a link");
    symlink(elsewhere.path().join("new"), daemon.file("dangling")).expect("a link");
    storage_fails(&daemon, "link", "too many levels of symbolic links");
    storage_fails(&daemon, "dangling", "too many levels of symbolic links");
    assert_eq!(fs::read_to_string(&target).expect("it is there"), "precious");
    assert_eq!(fs::metadata(&target).expect("it is there").modified().expect("a time"), before);
    assert!(!elsewhere.path().join("new").exists(), "nothing was created through the link");
    assert!(daemon.file("link").is_symlink(), "the link is still there");
}

/// A FIFO in the place of a lock file does not block the daemon, and is not locked.
#[test]
fn a_lock_file_that_is_a_fifo() {
    let daemon = Daemon::start();
    let path = CString::new(daemon.file("fifo").to_string_lossy().as_bytes()).expect("a path");
    nix::unistd::mkfifo(&*path, Mode::from_bits_truncate(0o600)).expect("a FIFO");
    let mut client = V1::connect(&daemon.tcp());
    let reply = client.request(json!({"op": "acquire", "lock": "fifo"}));
    assert_eq!(reply["error"], "storage", "{reply}");
    let reply = client.request(json!({"op": "peek", "lock": "fifo"}));
    assert!(reply["locked"] != true, "{reply}");
    client.acquire("another-name");
}

/// The daemon loses permission to write its directory: it refuses until it is allowed again, and
/// nothing else changes.
#[test]
fn a_directory_without_permission() {
    let daemon = Daemon::setup().unprivileged().start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("before");
    let permit = |mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(daemon.directory(), permissions).expect("our own directory");
    };
    permit(0o555);
    storage_fails_once(&daemon, &mut client, "during");
    let reply = client.request(json!({"op": "verify", "lock": "before"}));
    assert_eq!(reply["ok"], true, "{reply}");
    permit(0o755);
    client.acquire("during");
}

#[track_caller]
fn storage_fails_once(daemon: &Daemon, client: &mut V1, lock: &str) {
    let reply = client.request(json!({"op": "acquire", "lock": lock}));
    assert_eq!(reply["error"], "storage", "{reply}");
    let message = reply["message"].as_str().expect("a message").to_lowercase();
    assert!(message.contains("permission denied"), "{message}");
    assert!(message.contains(&*daemon.file(lock).to_string_lossy().to_lowercase()), "{message}");
}

/// The lock file belongs to another user, without permission for anybody else. (If the tests run as
/// root, root owns the file and the daemon runs as nobody; otherwise the file has no permissions at
/// all, which is the same to open(2).)
#[test]
fn a_lock_file_of_another_user() {
    let daemon = Daemon::setup().unprivileged().start();
    File::create(daemon.file("theirs")).expect("a file");
    fs::set_permissions(daemon.file("theirs"), fs::Permissions::from_mode(0o000)).expect("our file");
    let mut client = V1::connect(&daemon.tcp());
    storage_fails_once(&daemon, &mut client, "theirs");
    client.acquire("ours");
}

/// The lock file is deleted by hand while the lock is held: verify and an event report it, and the
/// name is free.
#[test]
fn a_lock_file_that_is_deleted() {
    let daemon = Daemon::start();
    lost(&daemon, |path| fs::remove_file(path).expect("the lock file is there"));
}

/// The lock file is replaced by hand, which looks right to anybody who checks only the name.
#[test]
fn a_lock_file_that_is_replaced() {
    let daemon = Daemon::start();
    lost(&daemon, |path| {
        let new = path.with_extension("new");
        File::create(&new).expect("a new file");
        fs::rename(&new, path).expect("the lock file is replaced");
    });
}

fn lost(daemon: &Daemon, tamper: impl FnOnce(&Path)) {
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("gone");
    client.acquire("kept");
    tamper(&daemon.file("gone"));
    let reply = client.request(json!({"op": "verify", "lock": "gone"}));
    assert_eq!(reply["error"], "lost", "{reply}");
    let event = client.receive();
    assert_eq!((&event["event"], &event["lock"]), (&json!("lost"), &json!("gone")), "{event}");
    assert!(event["reason"].is_string(), "{event}");
    let reply = client.request(json!({"op": "release", "lock": "gone"}));
    assert_eq!(reply["error"], "not_held", "{reply}");
    comes_free(daemon, "gone");
    let reply = client.request(json!({"op": "verify", "lock": "kept"}));
    assert_eq!(reply["ok"], true, "the other lock: {reply}");
}

/// Version 0.1 reports at the Release that the lock file was removed, in the original's words, and
/// releases the lock.
#[test]
fn a_release_after_the_file_was_deleted() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    assert_eq!(version_0_1(&mut client, 2, "gone")["Result"], 2);
    fs::remove_file(daemon.file("gone")).expect("the lock file is there");
    let reply = version_0_1(&mut client, 3, "gone");
    let reason = format!("remove {}: no such file or directory", daemon.file("gone").display());
    assert_eq!((&reply["Result"], &reply["Reason"]), (&json!(4), &json!(reason)));
    let reply = version_0_1(&mut client, 3, "gone");
    assert_eq!(reply["Reason"], "lock not found", "it was released nevertheless");
    comes_free(&daemon, "gone");
}

/// A file that a crash left is simply locked, whatever it contains, and deleted when it is no
/// longer wanted.
#[test]
fn a_stale_file_with_content() {
    let daemon = Daemon::setup().flag("--linger", "0").start();
    fs::write(daemon.file("stale"), "left by somebody").expect("a file");
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("stale");
    let content = fs::read_to_string(daemon.file("stale")).expect("the lock file");
    assert_eq!(content, "left by somebody", "a lock file is never written");
    client.release("stale");
    eventually("the file is deleted", || files(daemon.directory()).is_empty());
}

/// The descriptors run out: existing sessions go on, the log says so once, and closing some
/// sessions makes room.
#[test]
fn descriptors_running_out() {
    let mut daemon = Daemon::setup().script("ulimit -n 64").start();
    let mut bystander = Bystander::join(&daemon);
    let started = Instant::now();
    let before = daemon.log().len();
    let speaks_of_descriptors = |line: &&String| {
        let line = line.to_lowercase();
        line.contains("descriptor") || line.contains("open files")
    };
    let crowd: Vec<TcpStream> = (0..200).map(|_| connect(&daemon.tcp())).collect();
    bystander.unharmed(&mut daemon);
    eventually("the log speaks of descriptors", || {
        daemon.log()[before..].iter().any(|line| speaks_of_descriptors(&line))
    });
    for stream in &crowd {
        pour(stream, b"{\"op\":\"ping\"}\n");
    }
    bystander.unharmed(&mut daemon);
    let lines = daemon.log()[before..].iter().filter(speaks_of_descriptors).count();
    let minutes = usize::try_from(started.elapsed().as_secs() / 60).expect("not long");
    assert!(lines <= 1 + minutes, "{lines} lines in {minutes} minutes\n{}", daemon.said());
    daemon.becomes_idle();
    drop(crowd);
    eventually("there is room again", || {
        let mut client = V1::connect(&daemon.tcp());
        client.try_request(json!({"op": "ping"})).is_ok_and(|reply| reply["ok"] == true)
    });
    bystander.unharmed(&mut daemon);
}

/// Descriptors of recently released names are closed before a session or a lock is refused for lack
/// of one.
#[test]
fn lingering_descriptors_give_way() {
    let daemon = Daemon::setup().script("ulimit -n 64").flag("--linger", "60").start();
    let mut client = V1::connect(&daemon.tcp());
    for number in 0..300 {
        let lock = format!("n{number}");
        client.acquire(&lock);
        client.release(&lock);
    }
    let mut others: Vec<V1> = (0..8).map(|_| V1::connect(&daemon.tcp())).collect();
    for (number, other) in others.iter_mut().enumerate() {
        other.acquire(&format!("held{number}"));
    }
}

/// A gob session that violates the framing is closed, and its lock is free; a message that does not
/// decode only gets no answer.
#[test]
fn gob_violations_and_refusals() {
    let daemon = Daemon::start();
    let mut gob = Gob::connect(&daemon.tcp());
    assert!(gob.gets("gob"), "a free name");
    // Version major 1, then a name as bytes of an undefined type: the first gets no answer, the
    // second ends the session.
    gob.bytes().send_bytes(b"\x0c\xff\x82\x01\x01\x01\x01\x01\x01\x01\x01a\x00");
    let reply = gob.request(4, "gob");
    assert!(reply.ends_with(&[0, 1, 2, 0]), "the next request is answered: {reply:02x?}");
    gob.bytes().send_bytes(b"\xf0\x00\x00");
    assert_eq!(gob.bytes().closed(), b"");
    comes_free(&daemon, "gob");

    let mut defined = V1::connect(&daemon.tcp());
    defined.send_bytes(&[GOB_REQUEST_TYPE, &gob_request(2, "two")].concat());
    defined.receive_bytes(GOB_REPLY_TYPES + 17);
    defined.send_bytes(&[0x01, 0x80]);
    defined.finish();
    defined.closed();
    comes_free(&daemon, "two");
}
