//! Messages that are on their way when the daemon is restarted: half a request, and unread replies
//! and events.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use crate::dialects::{Dialect, Session, Verb};
use crate::guest::{self, DIRECTORY, TCP, UNIX, WS, sh};
use crate::report::Report;
use crate::support::{GOB_REPLY_TYPES, GOB_REQUEST_TYPE, Gob, V1, Ws, eventually, frame, gob_request};

/// The minimum of requests in a clogged connection: the daemon must have stopped reading.
const CLOGGED_MIN: u64 = 1000;

/// The maximum: more than this would only fill the kernel's buffers.
const CLOGGED_MAX: u64 = 6000;

fn restart() {
    sh("systemctl restart distrilock.service");
}

/// Waits until the daemon has read everything that was sent.
fn all_is_read() {
    // By the daemon's ends of TCP connections; by pings for Unix sockets, because their table does
    // not show queues of this direction.
    eventually("the daemon has read everything", || {
        let table = sh("ss -Htn state established '( sport = :40800 or sport = :40801 )'");
        table.lines().all(|line| line.split_whitespace().next() == Some("0"))
    });
    V1::connect(UNIX).ping();
}

/// Requests of each dialect, cut at several places: the first one of a session, and a later one.
pub(crate) fn requests(report: &Report) {
    guest::installed();
    for replacement in
        ["systemctl restart distrilock.service", "systemctl kill --kill-whom=main -s USR2 distrilock.service"]
    {
        let mut sessions = Vec::new();
        for dialect in Dialect::ALL {
            for later in [false, true] {
                let length = dialect.session().bytes(Verb::Acquire, "half").len();
                for cut in [1, length / 3, length / 2, length * 3 / 4, length - 1] {
                    sessions.push(cut_session(dialect, later, cut, sessions.len()));
                }
            }
        }
        all_is_read();
        sh(replacement);
        for (mut session, lock, rest) in sessions {
            session.send_bytes(&rest);
            let granted = session.outcome(Verb::Acquire, &lock);
            report.check(
                "half before, half after",
                granted,
                format!("{}: {} bytes after", session.dialect, rest.len()),
            );
            assert!(session.does(Verb::Release, &lock), "{}: {lock} is not released", session.dialect);
        }
    }
    fragments(report);
    upgrades(report);
}

/// A session that has sent the first part of a request; the lock, and the rest.
fn cut_session(dialect: Dialect, later: bool, cut: usize, number: usize) -> (Session, String, Vec<u8>) {
    let mut session = dialect.session();
    // As long as the name for which the places of the cuts are computed.
    let lock = format!("h{number:03}");
    if later {
        assert!(session.does(Verb::Acquire, "other") && session.does(Verb::Release, "other"), "a first request");
    }
    let bytes = session.bytes(Verb::Acquire, &lock);
    // A later request of a gob stream is shorter.
    let cut = cut.min(bytes.len() - 1);
    session.send_bytes(&bytes[..cut]);
    (session, lock, bytes[cut..].to_vec())
}

/// A WebSocket message in fragments (RFC 6455, section 5.4), a ping between them.
fn fragments(report: &Report) {
    let mut session = Ws::connect(WS);
    let text = br#"{"id":1,"op":"acquire","lock":"fragments"}"#;
    session.send_bytes(&frame(0x01, true, &text[..10]));
    all_is_read();
    restart();
    session.send_bytes(&frame(0x89, true, b"alive?"));
    session.send_bytes(&frame(0x00, true, &text[10..20]));
    all_is_read();
    restart();
    session.send_bytes(&frame(0x80, true, &text[20..]));
    let reply = session.receive_object();
    report.check("a message in fragments", reply["ok"] == true && reply["id"] == 1, &reply);
}

/// Half an HTTP head is not a session yet: it continues, or is closed so that the client tries
/// again.
fn upgrades(report: &Report) {
    let head = "GET /distrilock HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut client = V1::connect(WS);
    client.send_bytes(&head.as_bytes()[..60]);
    all_is_read();
    restart();
    let _ = client.stream().write_all(&head.as_bytes()[60..]);
    let _ = client.stream().shutdown(std::net::Shutdown::Write);
    let said = String::from_utf8_lossy(&client.closed()).into_owned();
    let fits = said.is_empty() || said.starts_with("HTTP/1.1 101");
    report.check("half an upgrade continues or is closed", fits, said.lines().next().unwrap_or("closed"));
}

/// Writes requests until the connection takes no more or many have been written; returns their
/// number, and the rest of the last one.
fn clog(stream: &TcpStream, mut request: impl FnMut(u64) -> Vec<u8>) -> (u64, Vec<u8>) {
    stream.set_nonblocking(true).expect("it is a socket");
    let mut stream = stream;
    let mut clogged = (CLOGGED_MAX, Vec::new());
    for number in 1..=CLOGGED_MAX {
        let bytes = request(number);
        let mut rest = &bytes[..];
        // The daemon may be about to read: only a write that fails for a while has failed.
        for _ in 0..200 {
            match stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(std::time::Duration::from_millis(1))
                }
                Err(error) => panic!("request {number}: {error}"),
            }
            if rest.is_empty() {
                break;
            }
        }
        if !rest.is_empty() {
            clogged = (number, rest.to_vec());
            break;
        }
    }
    stream.set_nonblocking(false).expect("it is a socket");
    clogged
}

/// The rest of the last request is sent while replies are read, with room for many.
fn flush(stream: &TcpStream, rest: Vec<u8>) -> thread::JoinHandle<()> {
    setsockopt(stream, sockopt::RcvBuf, &(1 << 20)).expect("SO_RCVBUF");
    let mut stream = stream.try_clone().expect("a descriptor");
    thread::spawn(move || stream.write_all(&rest).expect("the daemon reads again"))
}

/// The kernel buffers little, so the daemon must keep the rest.
fn narrow(stream: &TcpStream) {
    setsockopt(stream, sockopt::RcvBuf, &4096).expect("SO_RCVBUF");
    setsockopt(stream, sockopt::SndBuf, &(64 << 10)).expect("SO_SNDBUF");
}

/// Unread replies and events are there after a restart, each once and in order.
pub(crate) fn replies(report: &Report) {
    guest::installed();
    lines(report, "v1 JSON, TCP", TCP);
    lines(report, "v1 JSON, Unix", UNIX);
    websocket(report);
    gob(report);
}

fn ping(number: u64) -> String {
    json!({"id": id(number), "op": "ping"}).to_string()
}

/// The maximum length of an id.
fn id(number: u64) -> String {
    format!("{number:064}")
}

fn lines(report: &Report, what: &str, address: &str) {
    let mut session = V1::connect(address);
    narrow(session.stream());
    session.acquire("gone");
    sh(&format!("rm {DIRECTORY}/gone.lck"));
    // This notices that the lock is lost: an event and a reply, neither of which is read.
    session.send(&json!({"id": "verify", "op": "verify", "lock": "gone"}));
    let (count, rest) = clog(session.stream(), |number| format!("{}\n", ping(number)).into_bytes());
    restart();
    restart();
    let writer = flush(session.stream(), rest);
    let mut first: Vec<Value> = vec![session.receive(), session.receive()];
    first.sort_by_key(|message| message["event"].is_string());
    let told = first[0]["error"] == "lost" && first[1]["event"] == "lost" && first[1]["lock"] == "gone";
    report.check(&format!("{what}: an event and a reply from before"), told, format!("{first:?}"));
    for number in 1..=count {
        let reply = session.receive();
        assert!(reply["id"] == *id(number) && reply["ok"] == true, "{what}: {number} is due: {reply}");
    }
    writer.join().expect("it is written");
    session.ping();
    report.check(&format!("{what}: every reply, once and in order"), count > CLOGGED_MIN, count);
}

fn websocket(report: &Report) {
    let mut session = Ws::connect(WS);
    narrow(session.stream());
    let (count, rest) = clog(session.stream(), |number| frame(0x81, true, ping(number).as_bytes()));
    restart();
    restart();
    let writer = flush(session.stream(), rest);
    for number in 1..=count {
        let reply = session.receive_object();
        assert!(reply["id"] == *id(number) && reply["ok"] == true, "{number} is due: {reply}");
    }
    writer.join().expect("it is written");
    session.ping();
    report.check("v1 JSON, WebSocket: every reply, once and in order", count > CLOGGED_MIN, count);
}

fn gob(report: &Report) {
    let mut session = Gob::connect(TCP);
    let bytes = session.bytes();
    narrow(bytes.stream());
    bytes.send_bytes(GOB_REQUEST_TYPE);
    let name = |number: u64| format!("{number:0100}");
    let (count, rest) = clog(bytes.stream(), |number| gob_request(1, &name(number)));
    restart();
    restart();
    let writer = flush(bytes.stream(), rest);
    bytes.receive_bytes(GOB_REPLY_TYPES);
    for number in 1..=count {
        let length = bytes.receive_bytes(1)[0];
        let reply = bytes.receive_bytes(length.into());
        let name = name(number);
        let named = reply.windows(name.len()).any(|part| part == name.as_bytes());
        assert!(named, "{name} is due: {}", String::from_utf8_lossy(&reply));
    }
    writer.join().expect("it is written");
    report.check("v0.1 gob, TCP: every reply, once and in order", count > CLOGGED_MIN, count);
}
