//! The requests that reach a daemon, and what the command does with the replies, against a scripted
//! daemon: slots, several names, fences, events.

use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::support::{command, ended};
use distrilock_client::Server;
use distrilock_testing::{Peer, Scripted, play};

const SHOW: &str = "echo \"$DISTRILOCK_LOCK|$DISTRILOCK_SLOT|$DISTRILOCK_FENCE|$DISTRILOCK_TOKEN|$DISTRILOCK_SESSION\"";

/// The request for a slot and a fence follows the protocol, and both reach CMD.
#[test]
fn a_slot_with_a_fence() {
    let daemon = Scripted::start(|request| json!({"ok": true, "lock": request["lock"], "slot": 2, "fence": 91}));
    let run = ended(command(daemon.server(), &["run", "-n", "-N", "4", "--fence", "gpu", "-c", SHOW]));
    assert_eq!((run.code(), run.out.as_str()), (0, "gpu|2|91|91|s-1\n"), "{}", run.err);
    let asked = &daemon.heard("acquire")[0];
    assert_eq!((&asked["lock"], &asked["slots"], &asked["fence"]), (&json!("gpu"), &json!(4), &json!(true)), "{asked}");
    assert!(asked.get("take").is_none() && asked.get("wait_ms").is_none(), "{asked}");
}

/// Several names and leases go into one request.
#[test]
fn several_names() {
    let daemon = Scripted::start(
        |_| json!({"ok": true, "locks": [{"lock": "b", "fence": 3}, {"lock": "a", "fence": 4}, {"lock": "cpu", "slot": 1, "taken": [1, 3], "fence": 5}]}),
    );
    let run = ended(command(daemon.server(), &["run", "--fence", "--lease", "cpu=2:8", "b,a", "-c", SHOW]));
    assert_eq!((run.code(), run.out.as_str()), (0, "b,a,cpu|1,3|3,4,5|3,4,5|s-1\n"), "{}", run.err);
    let asked = &daemon.heard("acquire")[0];
    assert_eq!(asked["locks"], json!(["b", "a", {"lock": "cpu", "slots": 8, "take": 2}]), "{asked}");
    assert_eq!(asked["wait_ms"], json!(null));
    let released = &daemon.heard("release")[0];
    assert_eq!(released["locks"], json!(["b", "a", "cpu"]), "{released}");
}

/// The hello says who we are and what we run, unless `--no-argv` keeps that secret.
#[test]
fn the_hello() {
    let daemon = Scripted::start(|request| json!({"ok": true, "lock": request["lock"]}));
    for options in [&["--note", "nightly"][..], &["--no-argv"]] {
        let run = ended(command(daemon.server(), &[&["run"], options, &["x", "echo", "a secret"]].concat()));
        assert_eq!(run.code(), 0, "{}", run.err);
    }
    let hello = daemon.heard("hello");
    assert_eq!((&hello[0]["note"], &hello[0]["command"]), (&json!("nightly"), &json!("echo a secret")));
    assert!(hello[0]["pid"].is_u64() && hello[0]["host"].is_string(), "{}", hello[0]);
    assert!(hello[1].get("command").is_none(), "{}", hello[1]);
}

/// What others say about themselves cannot control our terminal.
#[test]
fn nothing_reaches_the_terminal() {
    let evil = "\u{1b}[2J\u{202e}evil\n";
    let seen = json!({"session": "s-2", "name": evil, "note": evil, "mode": "exclusive", "since_ms": 61_000});
    let daemon = Scripted::start(move |request| match request["op"].as_str() {
        Some("list") => json!({"ok": true, "more": false, "locks":
            [{"lock": "x", "mode": "exclusive", "holders": [seen.clone()], "waiters": []}]}),
        Some("peek") => json!({"ok": true, "lock": "x", "locked": true, "holders": [seen.clone()], "waiters": 2}),
        _ => json!({"ok": false, "error": "busy", "message": evil}),
    });
    for (arguments, code) in [
        (&["ls"][..], 0),
        (&["peek", "x"], 1),
        (&["run", "--verbose", "x", "true"], 1),
        (&["lock", "--verbose", "x"], 1),
    ] {
        let run = ended(command(daemon.server(), arguments));
        let said = run.out + &run.err;
        assert_eq!(run.status.code(), Some(code), "{said}");
        assert!(said.contains("evil"), "{said}");
        assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said:?}");
    }
}

/// The daemon says that the lock is lost.
#[test]
fn the_daemon_says_lost() {
    let daemon = Scripted::start(|request| json!({"ok": true, "lock": request["lock"]}))
        .after_grant(json!({"event": "lost", "lock": "x", "reason": "somebody deleted its file"}));
    let run = ended(command(
        daemon.server(),
        &["run", "x", "-c", "trap '' TERM; setsid sleep 1001 & sleep 1002", "--kill-after", "0.2"],
    ));
    assert_eq!(run.code(), 74, "{}", run.err);
    assert!(run.err.contains("somebody deleted its file"), "{}", run.err);
    let mut lock = command(daemon.server(), &["lock", "x"]);
    lock.stdin(std::fs::File::open("/dev/zero").unwrap());
    let lock = ended(lock);
    assert_eq!(lock.code(), 74, "{}", lock.err);
    assert!(lock.out.contains("\"event\":\"lost\""), "{}", lock.out);
}

/// A daemon on a file server with a lease of ten seconds, which grants a lock. `answered` learns
/// the number of each heartbeat that was answered. The handle returns how many there were, and the
/// other requests.
fn short_lease(answered: impl FnMut(usize) + Send + 'static) -> (Server, JoinHandle<(usize, Vec<Value>)>) {
    let mut answered = answered;
    play(move |mut peer: Peer| {
        let hello = peer.expect("hello");
        let welcome = json!({
            "version": 1, "session": "s-1", "node": "db1", "directory": "nfs4",
            "dead_after_ms": 45_000, "stop_ms": 1666, "valid_ms_min": 4444,
        });
        peer.yes(&hello, &welcome);
        let (mut heartbeats, mut others) = (0, Vec::new());
        while let Some(request) = peer.request() {
            peer.yes(&request, &json!({"lock": "x", "valid_ms": 5000}));
            if request["op"] == "ping" {
                heartbeats += 1;
                answered(heartbeats);
            } else {
                others.push(request);
            }
        }
        (heartbeats, others)
    })
}

/// A lease so short that five seconds until SIGKILL do not fit: the default is shorter there, and
/// heartbeats keep the lock. A longer time is refused before anything is acquired.
#[test]
fn a_short_lease() {
    let folder = tempfile::tempdir().unwrap();
    let enough = folder.path().join("enough");
    let script = format!("until [ -e {} ]; do sleep 0.05; done", enough.display());
    // This many take longer than the time for which one heartbeat proves the lock.
    let (server, daemon) = short_lease(move |heartbeats| {
        if heartbeats == 8 {
            std::fs::write(&enough, "").unwrap();
        }
    });
    let run = ended(command(&server.to_string(), &["run", "x", "-c", &script]));
    assert_eq!(run.code(), 0, "{}", run.err);
    let (heartbeats, others) = daemon.join().unwrap();
    assert!(heartbeats >= 8 && others[0]["op"] == "acquire", "{heartbeats} {others:?}");

    let (server, daemon) = short_lease(|_| ());
    let run = ended(command(&server.to_string(), &["run", "--kill-after", "5s", "x", "true"]));
    assert_eq!(run.code(), 65, "{}", run.err);
    for part in ["7000 ms", "raise the lease time", "--kill-after 2110ms fits"] {
        assert!(run.err.contains(part), "{part}: {}", run.err);
    }
    let (_, others) = daemon.join().unwrap();
    assert!(others.iter().all(|request| request["op"] != "acquire"), "{others:?}");
}
