//! `distrilock doctor --peer`: whether this host and the daemon of another one exclude each other.
//! Two daemons stand for two hosts.

use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;

use super::support::{Daemon, command, ended, eventually, files};

/// Runs the doctor on this directory with a peer; returns its status and its finding about the
/// peer.
#[track_caller]
fn with_peer(directory: &Path, peer: &str) -> (i32, Value) {
    let run = ended(command("", &["doctor", directory.to_str().expect("a path"), "--peer", peer, "--json"]));
    let report: Value =
        serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {}{}", run.out, run.err));
    let findings = report["findings"].as_array().expect("findings");
    let of = |check: &str| findings.iter().find(|finding| finding["check"] == check).expect("it is looked at").clone();
    assert_eq!((&of("exclusion")["level"], &of("waking")["level"]), (&"ok".into(), &"ok".into()), "{report}");
    (run.code(), of("peer"))
}

/// Two daemons share a directory: on either side the doctor finds that it and the other side's
/// daemon exclude each other, and it leaves nothing behind.
#[test]
fn one_directory() {
    let first = Daemon::start();
    let second = Daemon::setup().directory(first.directory()).start();
    for daemon in [&first, &second] {
        for peer in [daemon.tcp(), format!("tcp://{}", daemon.tcp())] {
            let (code, found) = with_peer(first.directory(), &peer);
            assert_eq!(found["level"], "ok", "{found}");
            assert!(found["found"].as_str().expect("text").contains(&peer), "{found}");
            // A low descriptor limit on the machine that runs the test is a warning.
            assert!(code < 2, "{code}");
        }
    }
    eventually("no file of the doctor is left", || files(first.directory()).is_empty());
}

/// A peer on another directory grants a lock that this host holds: that is wrong, and the doctor
/// says what to compare.
#[test]
fn different_directories() {
    let (here, elsewhere) = (Daemon::start(), Daemon::start());
    let (code, found) = with_peer(here.directory(), &elsewhere.tcp());
    assert_eq!((code, &found["level"]), (2, &"wrong".into()), "{found}");
    assert!(found["found"].as_str().expect("text").contains("was granted a lock that this host holds"), "{found}");
    assert!(found["remedy"].as_str().expect("text").contains("compare the directories"), "{found}");
    for daemon in [&here, &elsewhere] {
        eventually("no file of the doctor is left", || files(daemon.directory()).is_empty());
    }
}

/// If no daemon listens at the peer's address, nothing is proved, which is wrong as well.
#[test]
fn no_peer() {
    let here = Daemon::start();
    let nowhere =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").to_string();
    let (code, found) = with_peer(here.directory(), &nowhere);
    assert_eq!((code, &found["level"]), (2, &"wrong".into()), "{found}");
    assert!(found["found"].as_str().expect("text").contains(&format!("{nowhere} cannot be asked")), "{found}");
}
