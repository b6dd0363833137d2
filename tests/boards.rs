//! Who holds a lock through another daemon of the directory: every daemon can say it, for as long
//! as the lock is held and, if the holder's daemon was killed, afterwards. Nothing that lies among
//! the daemons' files changes that.

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc::F_WRLCK;
use serde_json::{Value, json};
use support::{Daemon, V1, command, ended, eventually, lock_file};

/// A session that has introduced itself and holds a lock.
fn holder(daemon: &Daemon, lock: &str) -> V1 {
    let mut session = V1::connect(&daemon.tcp());
    session.request(json!({"op": "hello", "version": 1, "name": "backup@db1", "pid": 4711, "command": "pg_dump all",
        "note": "nightly \u{202e}run", "user": "postgres"}));
    session.acquire(lock);
    session
}

fn two() -> (Daemon, Daemon) {
    let one = Daemon::start();
    let other = Daemon::setup().directory(one.directory()).start();
    (one, other)
}

/// The daemons' boards.
fn boards(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory.join(".distrilock")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("board-"))).collect()
}

fn says(daemon: &Daemon, arguments: &[&str]) -> (i32, String) {
    let run = ended(command(&daemon.tcp(), arguments));
    (run.code(), run.out + &run.err)
}

/// Waits until the command says this.
#[track_caller]
fn will_say(daemon: &Daemon, arguments: &[&str], part: &str) -> String {
    let mut last = String::new();
    eventually(&format!("{arguments:?} says {part}"), || {
        last = says(daemon, arguments).1;
        last.contains(part)
    });
    last
}

fn peek(session: &mut V1, lock: &str, all: bool) -> Value {
    let mut request = json!({"op": "peek", "lock": lock});
    if all {
        request["all"] = json!(true);
    }
    session.request(request)
}

/// The holder is named by who, peek, ls, a refused try and a refused request, at the other daemon.
/// Those who ask as before get the answer that they got before.
#[test]
fn the_holder_is_named_elsewhere() {
    let (one, other) = two();
    let mut holder = holder(&one, "nightly");
    let mut waiter = V1::connect(&one.tcp());
    waiter.send(&json!({"id": 1, "op": "acquire", "lock": "nightly", "wait_ms": null}));
    waiter.ping();
    let (code, said) = says(&other, &["who", "nightly"]);
    assert_eq!(code, 1, "{said}");
    let name = "nightly is held by backup@db1 (pid 4711, pg_dump all, nightly \\u{202e}run) for ";
    assert!(said.contains(name) && said.contains(&format!("(pid {})", one.pid())), "{said}");
    assert!(said.contains("exclusive") && said.contains("user postgres"), "{said}");
    will_say(&other, &["who", "nightly"], "1 session waits for it");
    assert!(says(&other, &["peek", "nightly"]).1.contains(name));
    assert!(
        says(&other, &["run", "-n", "--verbose", "nightly", "true"]).1.contains("backup@db1 (pid 4711, pg_dump all")
    );
    let table = says(&other, &["ls"]).1;
    assert!(table.contains("backup@db1") && table.contains("4711") && table.contains("waits"), "{table}");
    let table = says(&other, &["ls", "--here"]).1;
    assert!(!table.contains("backup@db1"), "{table}");
    let json: Value = serde_json::from_str(&says(&other, &["ls", "--json"]).1).unwrap();
    assert!(json["holders"][0]["node"].is_string() && json["waiters"][0]["node"].is_string(), "{json}");

    let mut asks = V1::connect(&other.tcp());
    let refused = asks.request(json!({"op": "acquire", "lock": "nightly"}));
    let message = refused["message"].as_str().unwrap();
    assert!(refused["error"] == "busy" && message.starts_with("held by backup@db1 (session s-"), "{refused}");
    let peeked = peek(&mut asks, "nightly", false);
    assert_eq!(
        peeked,
        json!({"id": peeked["id"], "ok": true, "lock": "nightly", "locked": true, "holders": [],
        "waiters": 0, "contender": true})
    );
    let peeked = peek(&mut asks, "nightly", true);
    assert!(peeked["holders"][0]["since_ms"].as_u64().is_some_and(|since_ms| since_ms >= 1000), "{peeked}");
    // The daemon that is asked has nothing to say about itself, except in the usual way.
    let peeked = peek(&mut waiter, "nightly", true);
    assert!(peeked["holders"][0]["node"].is_null() && peeked["holders"].as_array().unwrap().len() == 1, "{peeked}");

    drop(waiter);
    holder.release("nightly");
    eventually("it is free", || says(&other, &["who", "nightly"]) == (0, "nightly is free\n".to_owned()));
    eventually("it is in no list", || !says(&other, &["ls"]).1.contains("backup@db1"));
}

/// After a kill the holder is what was last known of it; after a stop nothing is.
#[test]
fn what_was_last_known() {
    let (mut one, mut other) = two();
    let third = Daemon::setup().directory(one.directory()).start();
    let _held = [holder(&one, "nightly"), holder(&other, "weekly")];
    will_say(&third, &["peek", "nightly"], "backup@db1");
    will_say(&third, &["peek", "weekly"], "backup@db1");
    one.kill();
    let said = will_say(&third, &["who", "nightly"], "nightly was held by backup@db1 (pid 4711");
    assert!(said.starts_with("nightly is free") && said.contains("does not run any more"), "{said}");
    assert!(says(&third, &["peek", "nightly"]).1.contains("was held by backup@db1"));
    assert!(says(&third, &["ls"]).1.contains("last known, "));
    let mut next = V1::connect(&third.tcp());
    next.acquire("nightly");
    let peeked = peek(&mut next, "nightly", true);
    assert!(peeked["holders"].as_array().unwrap().len() == 1 && peeked["holders"][0]["node"].is_null(), "{peeked}");
    assert!(peeked["last_known"][0]["seen_ms"].is_u64(), "{peeked}");

    assert!(other.terminate().success());
    eventually("a stop leaves nothing", || says(&third, &["who", "weekly"]).1 == "weekly is free\n");
}

/// Both hold it at the same time, shared or in slots: each names the other.
#[test]
fn shared_holders() {
    let (one, other) = two();
    let mut sessions = [&one, &other].map(|daemon| V1::connect(&daemon.tcp()));
    for (session, name) in sessions.iter_mut().zip(["first", "second"]) {
        session.request(json!({"op": "hello", "version": 1, "name": name}));
        assert_eq!(session.request(json!({"op": "acquire", "lock": "s", "mode": "shared"}))["ok"], true);
        assert_eq!(session.request(json!({"op": "acquire", "lock": "g", "slots": 3}))["ok"], true);
    }
    for lock in ["s", "g"] {
        let said = will_say(&one, &["who", lock], "second");
        assert!(said.contains("first"), "{said}");
    }
    assert!(says(&one, &["who", "g"]).1.contains("slot 1 of 3"));
}

/// A program that is no daemon holds the lock, and a daemon that shows nothing.
#[test]
fn holders_that_nobody_names() {
    let one = Daemon::setup().flag("--no-board", "--linger=2").start();
    let other = Daemon::setup().directory(one.directory()).start();
    let file = File::create(other.file("program")).unwrap();
    assert!(lock_file(&file, F_WRLCK));
    let _held = holder(&one, "secret");
    for lock in ["program", "secret"] {
        let (code, said) = says(&other, &["who", lock]);
        assert!(
            code == 1 && said.contains("a program that locks its file and is no daemon") && said.contains("--no-board"),
            "{said}"
        );
    }
    assert!(boards(one.directory()).is_empty());
    // It reads what others show.
    let _held = holder(&other, "open");
    will_say(&one, &["peek", "open"], "backup@db1");
}

/// Holds of less than a second leave nothing in the directory.
#[test]
fn short_holds_are_not_shown() {
    let daemon = Daemon::start();
    let mut session = V1::connect(&daemon.tcp());
    let mut slowest = Duration::ZERO;
    for n in 0..1000 {
        let began = Instant::now();
        session.acquire(&format!("n{}", n % 7));
        session.release(&format!("n{}", n % 7));
        slowest = slowest.max(began.elapsed());
    }
    assert!(boards(daemon.directory()).is_empty() || slowest > Duration::from_secs(1));
    session.acquire("long");
    eventually("it is shown", || !boards(daemon.directory()).is_empty());
    let board = boards(daemon.directory()).remove(0);
    let text = || fs::read_to_string(&board).unwrap();
    eventually("it has the lock", || text().contains("\"long\""));
    fs::remove_file(&board).unwrap();
    session.release("long");
    session.acquire("longer");
    eventually("a board that was deleted is written again", || {
        boards(daemon.directory()).first().is_some_and(|board| fs::read_to_string(board).unwrap().contains("longer"))
    });
}

/// Whatever lies among the boards, the one of a daemon is found, soon, and nothing of it is
/// touched.
#[test]
fn garbage_among_the_boards() {
    let (one, other) = two();
    let _held = holder(&one, "nightly");
    will_say(&other, &["peek", "nightly"], "backup@db1");
    let board = boards(one.directory()).remove(0);
    let text = fs::read(&board).unwrap();
    let place = |name: &str| one.directory().join(format!(".distrilock/board-{name}"));
    fs::write(place("torn"), &text[..text.len() / 2]).unwrap();
    fs::write(place("version"), String::from_utf8_lossy(&text).replacen("board 1", "board 9", 1)).unwrap();
    fs::write(place("foreign"), "my notes").unwrap();
    File::create(place("huge")).unwrap().set_len(1 << 30).unwrap();
    let outside = one.directory().join("outside");
    fs::write(&outside, &text).unwrap();
    std::os::unix::fs::symlink(&outside, place("link")).unwrap();
    nix::unistd::mkfifo(&place("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(place("directory")).unwrap();
    for n in 0..100 {
        fs::write(place(&format!("empty-{n}")), "").unwrap();
    }
    let before = boards(one.directory()).len();
    let said = will_say(&other, &["who", "nightly"], "backup@db1");
    assert!(!said.contains("was held"), "{said}");
    assert_eq!(boards(one.directory()).len(), before);
    assert_eq!(fs::read(&outside).unwrap(), text);
}

/// Questions that wait for the boards are answered before the session's end, in full.
#[test]
fn questions_are_answered() {
    let (one, other) = two();
    let _held: Vec<V1> = (0..3).map(|n| holder(&one, &format!("n{n}"))).collect();
    will_say(&other, &["peek", "n2"], "backup@db1");
    let third = Daemon::setup().directory(one.directory()).start();
    let mut asks = V1::connect(&third.tcp());
    for id in 0..40 {
        asks.send(&json!({"id": id, "op": "list", "all": true, "after": "n0"}));
    }
    asks.send(&json!({"id": "bye", "op": "bye"}));
    let mut seen: Vec<Value> = (0..41).map(|_| asks.receive()).collect();
    assert_eq!(seen.pop().unwrap()["id"], "bye");
    assert!(seen.iter().all(|reply| reply["ok"] == true), "{seen:?}");
    let mut asks = V1::connect(&third.tcp());
    let listed = asks.request(json!({"op": "list", "all": true, "after": "n0"}));
    let names: Vec<&str> =
        listed["locks"].as_array().unwrap().iter().map(|lock| lock["lock"].as_str().unwrap()).collect();
    assert_eq!(names, ["n1", "n2"], "{listed}");
    let refused = asks.request(json!({"op": "verify", "lock": "n0", "all": true}));
    assert_eq!(refused["error"], "bad_request", "{refused}");
}
