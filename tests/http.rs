//! What the WebSocket port answers to each kind of HTTP request: the hosts that it answers for, and
//! the rules of RFC 9112 and RFC 6455.

#![expect(clippy::expect_used, reason = "a test")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::{Daemon, PATIENCE};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
const UPGRADE: [&str; 4] = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", KEY];

/// Sends a request with these header lines. Returns the whole response, or its head if it is an
/// upgrade.
#[track_caller]
fn ask(daemon: &Daemon, first_line: &str, headers: &[&str]) -> String {
    let mut stream = TcpStream::connect(daemon.ws()).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let request = format!("{first_line}\r\n{}\r\n\r\n", headers.join("\r\n"));
    stream.write_all(request.as_bytes()).expect("the daemon reads");
    let (mut response, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).expect("an answer, and then the end") == 1 {
        response.push(byte[0]);
        if response.starts_with(b"HTTP/1.1 101 ") && response.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8(response).expect("text")
}

#[track_caller]
fn upgrade(daemon: &Daemon, headers: &[&str]) -> String {
    ask(daemon, "GET /distrilock HTTP/1.1", headers)
}

#[track_caller]
fn is(response: &str, status: u16, parts: &[&str]) {
    assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "expected {status}: {response}");
    for part in parts {
        assert!(response.to_lowercase().contains(&part.to_lowercase()), "no {part:?}: {response}");
    }
}

#[track_caller]
fn status_of(daemon: &Daemon, host: &str, origin: Option<&str>, status: u16, parts: &[&str]) {
    let mut headers = vec![format!("Host: {host}")];
    headers.extend(origin.map(|origin| format!("Origin: {origin}")));
    headers.extend(UPGRADE.map(str::to_owned));
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    is(&upgrade(daemon, &headers), status, parts);
}

/// A page whose host name has been pointed at the daemon's address sends an Origin and a Host that
/// agree.
#[test]
fn a_rebound_name_is_refused() {
    let daemon = Daemon::start();
    let evil = ["evil.example", "--allow-host evil.example"];
    for host in ["evil.example:40801", "evil.example", "evil.example.", "EVIL.example:1"] {
        status_of(&daemon, host, Some(&format!("http://{host}")), 403, &evil);
        status_of(&daemon, host, None, 403, &evil);
    }
    for near in ["localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost", "127.1", "0x7f000001", "2130706433"]
    {
        status_of(&daemon, near, Some(&format!("http://{near}")), 403, &["--allow-host"]);
    }
    // The target's host counts, whatever the header says.
    let target = "GET http://evil.example/distrilock HTTP/1.1";
    let headers = [&["Host: localhost"], &UPGRADE[..]].concat();
    is(&ask(&daemon, target, &headers), 403, &evil);
    // Neither is anything else shown to it.
    is(&ask(&daemon, "GET / HTTP/1.1", &["Host: evil.example"]), 403, &evil);
}

/// Addresses, localhost, this host's name, and what `--allow-host` names.
#[test]
fn hosts_that_are_meant() {
    let daemon = Daemon::setup().flag("--allow-host", "locks.example").flag("--allow-host", "other.example.").start();
    let own = nix::unistd::gethostname().expect("a name").into_string().expect("ASCII");
    for host in [
        "127.0.0.1:40801",
        "[::1]:40801",
        "[2001:db8::1]",
        "192.0.2.7",
        "localhost",
        "LocalHost:9",
        "localhost.",
        &own,
        &format!("{own}:40801"),
        "locks.example",
        "Locks.Example:443",
        "other.example",
    ] {
        status_of(&daemon, host, None, 101, &[]);
        status_of(&daemon, host, Some(&format!("http://{host}")), 101, &[]);
        status_of(&daemon, host, Some("http://evil.example"), 403, &["--allow-origin http://evil.example"]);
    }
    status_of(&daemon, "third.example", None, 403, &["--allow-host third.example"]);
    // A page of another address is a page of another site.
    status_of(&daemon, "127.0.0.1", Some("http://192.0.2.7"), 403, &["--allow-origin"]);
}

/// `--allow-origin` admits pages, not hosts.
#[test]
fn an_origin_is_no_host() {
    let daemon = Daemon::setup().flag("--allow-origin", "*").start();
    status_of(&daemon, "localhost", Some("http://evil.example"), 101, &[]);
    status_of(&daemon, "evil.example", Some("http://evil.example"), 403, &["--allow-host"]);
}

/// RFC 9112, section 3.2: exactly one Host, of the right form.
#[test]
fn the_host_must_be_one() {
    let daemon = Daemon::start();
    for hosts in [
        &[][..],
        &["Host: localhost", "Host: localhost"],
        &["Host: localhost", "Host: evil.example"],
        &["Host:"],
        &["Host: user@localhost"],
        &["Host: local host"],
        &["Host: localhost/x"],
        &["Host: http://localhost"],
        &["Host: localhost:port"],
    ] {
        let headers = [hosts, &UPGRADE[..]].concat();
        is(&upgrade(&daemon, &headers), 400, &["Host"]);
    }
}

/// RFC 6455, section 4.2.1: both headers are lists, which may be in several lines.
#[test]
fn lists_in_headers() {
    let daemon = Daemon::start();
    let rest = ["Host: localhost", "Sec-WebSocket-Version: 13", KEY];
    for fine in [
        &["Connection: keep-alive", "Connection: Upgrade", "Upgrade: websocket"][..],
        &["Connection: keep-alive, upgrade", "Upgrade: WebSocket"],
        &["Connection: Upgrade", "Upgrade: h2c, websocket"],
        &["Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"],
    ] {
        // The answer to the key is the example in RFC 6455, section 1.3.
        let parts = ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="];
        is(&upgrade(&daemon, &[fine, &rest].concat()), 101, &parts);
    }
    for wrong in [
        &["Connection: Upgrade"][..],
        &["Upgrade: websocket"],
        &["Connection: keep-alive", "Upgrade: websocket"],
        &["Connection: Upgrade", "Upgrade: h2c"],
        &["Connection: Upgrade", "Upgrade: websockets"],
    ] {
        is(&upgrade(&daemon, &[wrong, &rest].concat()), 400, &[]);
    }
}

/// RFC 6455, sections 4.2.1 and 4.4: the method, the key and the version.
#[test]
fn what_a_handshake_needs() {
    let daemon = Daemon::start();
    let base = ["Host: localhost", "Connection: Upgrade", "Upgrade: websocket"];
    let version = "Sec-WebSocket-Version: 13";
    for wrong in [
        &[version][..],
        &[version, KEY, KEY],
        &[version, KEY, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="],
        &[version, "Sec-WebSocket-Key: short"],
        &[version, "Sec-WebSocket-Key:"],
        &[version, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE="],
    ] {
        is(&upgrade(&daemon, &[&base[..], wrong].concat()), 400, &["Sec-WebSocket-Key"]);
    }
    for wrong in [&[KEY][..], &[KEY, "Sec-WebSocket-Version: 8"], &[KEY, "Sec-WebSocket-Version: 13, 8"]] {
        let parts = ["sec-websocket-version: 13\r\n", "upgrade: websocket\r\n"];
        is(&upgrade(&daemon, &[&base[..], wrong].concat()), 426, &parts);
    }
    let whole = [&["Host: localhost"], &UPGRADE[..]].concat();
    for method in ["POST", "PUT", "OPTIONS", "DELETE"] {
        is(&ask(&daemon, &format!("{method} /distrilock HTTP/1.1"), &whole), 405, &["allow: GET\r\n"]);
    }
    let old = ask(&daemon, "GET /distrilock HTTP/1.0", &whole);
    assert!(old.starts_with("HTTP/1.0 400 ") || old.starts_with("HTTP/1.1 400 "), "{old}");
}
