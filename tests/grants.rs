//! What a grant can be other than an exclusive lock: slots of a name, a fence, several names at
//! once; between two daemons, and beside programs that lock whole files.

mod support;

use std::fs::{self, File};
use std::path::Path;

use nix::libc::{F_UNLCK, F_WRLCK};
use serde_json::{Value, json};
use support::{Daemon, V1, eventually, lock_file};
use tempfile::TempDir;

/// Two daemons over one directory.
fn two(linger: &str) -> (TempDir, [Daemon; 2]) {
    let directory = TempDir::new().expect("a lock directory");
    let daemons = [0, 1].map(|_| daemon(directory.path(), linger));
    (directory, daemons)
}

fn daemon(directory: &Path, linger: &str) -> Daemon {
    Daemon::setup().directory(directory).tcp("127.0.0.1:0").flag("--linger", linger).start()
}

fn slot(client: &mut V1, of: u64, more: &Value) -> Value {
    let mut request = json!({"op": "acquire", "lock": "gpu", "slots": of});
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    client.request(request)
}

#[track_caller]
fn refused(reply: &Value, error: &str) -> String {
    assert!(reply["ok"] == false && reply["error"] == error, "{reply}");
    reply["message"].as_str().expect("a message").to_owned()
}

fn waits(client: &mut V1, request: &Value) {
    client.send(request);
    client.ping();
}

/// Three slots between two daemons: each is granted once, the fourth session is refused, and a
/// waiter gets the slot that a session of the other daemon releases.
#[test]
fn slots_between_daemons() {
    let (_directory, daemons) = two("2");
    let mut clients = [0, 1, 0, 1].map(|side: usize| V1::connect(&daemons[side].tcp()));
    let mut slots: Vec<Value> = Vec::new();
    for client in &mut clients[..3] {
        let reply = slot(client, 3, &json!({}));
        assert_eq!(reply["ok"], true, "{reply}");
        slots.push(reply["slot"].clone());
    }
    assert_eq!(slots, [0, 1, 2]);
    let message = refused(&slot(&mut clients[3], 3, &json!({})), "busy");
    assert!(message.contains("another daemon"), "{message}");
    clients[3].send(&json!({"id": 1, "op": "acquire", "lock": "gpu", "slots": 3, "wait_ms": null}));
    clients[3].ping();
    clients[0].release("gpu");
    let reply = clients[3].receive();
    assert!(reply["ok"] == true && reply["slot"] == 0, "{reply}");
    // A session of the same daemon disappears.
    let reply = slot(&mut clients[0], 3, &json!({}));
    refused(&reply, "busy");
    let [mut first, _, third, _] = clients;
    drop(third);
    eventually("the slot is free", || slot(&mut first, 3, &json!({}))["slot"] == 2);
}

/// Several slots at once, or none: two sessions of two daemons want two of three each.
#[test]
fn several_slots_at_once() {
    let (_directory, daemons) = two("0");
    let [mut a, mut b] = [0, 1].map(|side: usize| V1::connect(&daemons[side].tcp()));
    let reply = slot(&mut a, 3, &json!({"take": 2}));
    assert!(reply["slot"] == 0 && reply["taken"] == json!([0, 1]), "{reply}");
    refused(&slot(&mut b, 3, &json!({"take": 2})), "busy");
    let reply = slot(&mut b, 3, &json!({"take": 1}));
    assert!(reply["slot"] == 2 && reply["taken"].is_null(), "{reply}");
    refused(&slot(&mut b, 3, &json!({"take": 2})), "mismatch");
    assert_eq!(slot(&mut b, 3, &json!({}))["already"], true);
    a.release("gpu");
    b.release("gpu");
    assert_eq!(slot(&mut b, 3, &json!({"take": 3}))["taken"], json!([0, 1, 2]));
}

/// The number of slots belongs to the name: another number is refused, by the same daemon and by
/// the other one, and the message has both; a shared request is refused too. When nobody holds the
/// name any longer, it can have another number.
#[test]
fn numbers_agree_between_daemons() {
    let (_directory, daemons) = two("2");
    let mut a = V1::connect(&daemons[0].tcp());
    let mut others = [0, 1].map(|side: usize| V1::connect(&daemons[side].tcp()));
    assert_eq!(slot(&mut a, 4, &json!({}))["ok"], true);
    for other in &mut others {
        for wait in [json!({}), json!({"wait_ms": null})] {
            let message = refused(&slot(other, 5, &wait), "mismatch");
            assert!(message.contains("4 slots") && message.contains("5 slots"), "{message}");
        }
        let message = refused(&other.request(json!({"op": "acquire", "lock": "gpu", "mode": "shared"})), "mismatch");
        assert!(message.contains("4 slots") && message.contains("shared"), "{message}");
        refused(&other.request(json!({"op": "acquire", "lock": "gpu"})), "busy");
    }
    a.release("gpu");
    assert_eq!(a.request(json!({"op": "acquire", "lock": "gpu", "mode": "shared"}))["ok"], true);
    for other in &mut others {
        let message = refused(&slot(other, 5, &json!({})), "mismatch");
        assert!(message.contains("shared") && message.contains("5 slots"), "{message}");
    }
    a.release("gpu");
    a.acquire("gpu");
    for other in &mut others {
        refused(&slot(other, 5, &json!({})), "busy");
    }
    a.release("gpu");
    assert_eq!(slot(&mut others[1], 5, &json!({}))["slot"], 0);
}

/// A program that locks the whole file, as daemons of the original do, excludes slots, and slots
/// exclude it.
#[test]
fn whole_file_locks_and_slots() {
    let (directory, daemons) = two("60");
    let mut a = V1::connect(&daemons[0].tcp());
    assert_eq!(slot(&mut a, 2, &json!({}))["slot"], 0);
    let path = directory.path().join("gpu.lck");
    let file = File::options().read(true).write(true).open(&path).expect("the lock file");
    let set = |kind: i32| lock_file(&file, kind);
    assert!(!set(F_WRLCK), "a slot is held");
    a.release("gpu");
    assert!(set(F_WRLCK), "nobody holds it");
    refused(&slot(&mut a, 2, &json!({})), "busy");
    waits(&mut a, &json!({"id": 1, "op": "acquire", "lock": "gpu", "slots": 2, "wait_ms": null}));
    assert!(set(F_UNLCK));
    assert_eq!(a.receive()["slot"], 0);
}

/// The holders of slots and the waiters, with their numbers, are visible to others; a client of
/// version 0.1 sees a held lock.
#[test]
fn slots_are_shown() {
    let daemon = Daemon::start();
    let [mut a, mut b] = [0, 1].map(|_| V1::connect(&daemon.tcp()));
    slot(&mut a, 2, &json!({"take": 2, "fence": true}));
    waits(&mut b, &json!({"id": 1, "op": "acquire", "lock": "gpu", "slots": 2, "wait_ms": null}));
    let peek = a.request(json!({"op": "peek", "lock": "gpu"}));
    let holder = &peek["holders"][0];
    assert!(holder["mode"] == "slots" && holder["slots"] == 2 && holder["taken"] == json!([0, 1]), "{peek}");
    assert_eq!(holder["fence"], 1, "{peek}");
    let list = a.request(json!({"op": "list"}));
    let waiter = &list["locks"][0]["waiters"][0];
    assert!(list["locks"][0]["mode"] == "slots" && waiter["slots"] == 2 && waiter["take"] == 1, "{list}");
    a.send(&json!({"VersionMajor": 0, "VersionMinor": 1, "Command": 1, "LockName": "gpu"}));
    assert_eq!(a.receive()["IsLocked"], true);
}

fn fence(client: &mut V1, request: Value) -> u64 {
    let reply = client.request(request);
    reply["fence"].as_u64().unwrap_or_else(|| panic!("no fence: {reply}"))
}

/// Fences increase from grant to grant, from daemon to daemon, across deletions by the daemons and
/// by hand, and across kills.
#[test]
fn fences_rise() {
    let exclusive = || json!({"op": "acquire", "lock": "f", "fence": true});
    let shared = || json!({"op": "acquire", "lock": "f", "fence": true, "mode": "shared"});
    let slots = || json!({"op": "acquire", "lock": "f", "fence": true, "slots": 3});
    for linger in ["0", "60"] {
        let (directory, mut daemons) = two(linger);
        let mut last = 0;
        let mut above = |fence: u64| assert!(std::mem::replace(&mut last, fence) < fence, "{fence}");
        for round in 0..40 {
            let mut clients = [0, 1].map(|side: usize| V1::connect(&daemons[side].tcp()));
            for client in &mut clients {
                above(fence(client, exclusive()));
                client.release("f");
            }
            for request in [shared, slots] {
                for client in &mut clients {
                    above(fence(client, request()));
                }
                clients.iter_mut().for_each(|client| client.release("f"));
            }
            if round % 10 == 3 {
                daemons[round / 10 % 2].kill();
                daemons[round / 10 % 2] = daemon(directory.path(), linger);
            }
            if round % 10 == 7 {
                // It may have been deleted already.
                let _ = fs::remove_file(directory.path().join("f.lck"));
            }
        }
    }
}

/// A lock file contains somebody else's text: a lock is granted anyway, a fence is not, and the
/// text stays unchanged.
#[test]
fn a_foreign_text_is_left_alone() {
    let daemon = Daemon::setup().flag("--linger", "60").start();
    fs::write(daemon.file("f"), "my notes").expect("the lock directory can be written");
    let mut client = V1::connect(&daemon.tcp());
    let message = refused(&client.request(json!({"op": "acquire", "lock": "f", "fence": true})), "storage");
    assert!(message.contains("f.lck") && message.contains("move it away"), "{message}");
    client.acquire("f");
    assert_eq!(fs::read_to_string(daemon.file("f")).expect("it is there"), "my notes");
}

/// A session holds a lock without a fence and asks for one: it gets one, and the same one when it
/// asks again.
#[test]
fn a_fence_for_what_is_held() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("f");
    let request = json!({"op": "acquire", "lock": "f", "fence": true});
    let first = fence(&mut client, request.clone());
    assert_eq!(fence(&mut client, request), first);
}

/// Several names are granted together, in the order of the request, or none of them is held.
#[test]
fn all_or_none() {
    let daemon = Daemon::start();
    let [mut a, mut b] = [0, 1].map(|_| V1::connect(&daemon.tcp()));
    let reply = a.request(json!({"op": "acquire", "locks": ["c", {"lock": "a", "slots": 2}, "b"], "fence": true}));
    let locks: Vec<_> = reply["locks"].as_array().expect("locks").iter().map(|lock| lock["lock"].clone()).collect();
    assert_eq!(locks, ["c", "a", "b"], "{reply}");
    assert!(reply["locks"][1]["slot"] == 0 && reply["locks"][2]["fence"].is_u64(), "{reply}");
    b.acquire("0");
    let reply = b.request(json!({"op": "acquire", "locks": ["b", "1", "0"]}));
    assert!(refused(&reply, "busy").contains("held by") && reply["lock"] == "b", "{reply}");
    let list = a.request(json!({"op": "list"}));
    let held: Vec<_> = list["locks"].as_array().expect("locks").iter().map(|lock| lock["lock"].clone()).collect();
    assert_eq!(held, ["0", "a", "b", "c"], "what was held before stays, what was gathered is free");
    let reply = a.request(json!({"op": "release", "locks": ["c", "x"]}));
    assert!(refused(&reply, "not_held").contains('x') && reply["lock"] == "x", "{reply}");
    let reply = a.request(json!({"op": "release", "locks": ["c", "b"]}));
    assert_eq!(reply["locks"], json!([{"lock": "c"}, {"lock": "b"}]), "{reply}");
    assert!(b.gets("c") && b.gets("b"));
}

/// A request for several names waits with some of them locked, which its session does not hold yet.
/// It is cancelled, times out, or its client dies, and they are free.
#[test]
fn what_was_gathered_goes_back() {
    let daemon = Daemon::start();
    let [mut a, mut b, mut c] = [0, 1, 2].map(|_| V1::connect(&daemon.tcp()));
    a.acquire("b");
    let request = |wait: Value| json!({"id": 1, "op": "acquire", "locks": ["b", "a"], "wait_ms": wait});
    waits(&mut b, &request(Value::Null));
    assert!(!c.gets("a"), "it is gathered");
    refused(&b.request(json!({"op": "release", "lock": "a"})), "not_held");
    refused(&b.request(json!({"op": "verify", "lock": "a"})), "not_held");
    refused(&b.request(json!({"op": "acquire", "lock": "a"})), "bad_request");
    assert_eq!(b.request(json!({"id": 2, "op": "cancel", "request": 1}))["cancelled"], true);
    refused(&b.receive(), "cancelled");
    assert!(c.gets("a"), "it was given back");
    c.release("a");
    b.send(&request(json!(30)));
    let reply = b.receive();
    assert!(refused(&reply, "timeout").contains("in time") && reply["lock"] == "b", "{reply}");
    waits(&mut b, &request(Value::Null));
    drop(b);
    eventually("what a dead client gathered is free", || c.gets("a"));
    c.release("a");
    waits(&mut c, &request(Value::Null));
    a.release("b");
    assert_eq!(c.receive()["locks"], json!([{"lock": "b"}, {"lock": "a"}]));
}

/// A lock that a request has gathered is lost while it waits for the rest: the request is refused,
/// and nothing is held.
#[test]
fn a_gathered_lock_is_lost() {
    let daemon = Daemon::start();
    let [mut a, mut b, mut c] = [0, 1, 2].map(|_| V1::connect(&daemon.tcp()));
    a.acquire("b");
    waits(&mut b, &json!({"id": 1, "op": "acquire", "locks": [{"lock": "a", "mode": "shared"}, "b"], "wait_ms": null}));
    fs::remove_file(daemon.file("a")).expect("it is there");
    // A session that joins notices the loss.
    assert_eq!(c.request(json!({"op": "acquire", "lock": "a", "mode": "shared"}))["ok"], true);
    let reply = b.receive();
    assert!(refused(&reply, "lost").contains("deleted") && reply["lock"] == "a", "{reply}");
    a.release("b");
    assert!(c.gets("b"));
}

/// Sessions wait for each other: the one whose request closes the cycle is refused and learns who
/// waits for whom; the other one gets its lock when the first gives up what it holds.
#[test]
fn a_cycle_is_refused() {
    let daemon = Daemon::start();
    let [mut a, mut b, mut c] = [0, 1, 2].map(|_| V1::connect(&daemon.tcp()));
    a.request(json!({"op": "hello", "name": "backup@db1"}));
    let wait = |lock: &str| json!({"id": 1, "op": "acquire", "lock": lock, "wait_ms": null});
    a.acquire("x");
    b.acquire("y");
    c.acquire("z");
    waits(&mut a, &wait("y"));
    waits(&mut b, &wait("z"));
    let message = refused(&c.request(wait("x")), "deadlock");
    for part in ["backup@db1", "waits for x", "waits for y", "waits for z"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    refused(&c.request(json!({"op": "acquire", "lock": "x"})), "busy");
    c.send(&json!({"id": 2, "op": "acquire", "locks": ["w", "x"], "wait_ms": 60_000}));
    let reply = c.receive();
    assert!(refused(&reply, "deadlock").contains("waits for x") && reply["lock"] == "x", "{reply}");
    assert!(a.gets("w"), "it was given back");
    c.release("z");
    assert_eq!(b.receive()["ok"], true);
    b.release("y");
    assert_eq!(a.receive()["ok"], true);
}

/// Many sessions take two of four locks each, one after the other in any order, and wait without a
/// limit: each request is granted or refused as a deadlock, and all of them finish.
#[test]
fn no_cycle_is_missed() {
    const ROUNDS: u64 = 150;
    let daemon = Daemon::setup().flag("--threads", "4").start();
    let fight = |seed: u64| {
        let mut client = V1::connect(&daemon.tcp());
        let mut dice = support::Dice::new(seed);
        let mut refusals = 0;
        for _ in 0..ROUNDS {
            let mut held = Vec::new();
            for _ in 0..2 {
                let lock = format!("l{}", dice.below(4));
                let reply = client.request(json!({"op": "acquire", "lock": lock, "wait_ms": null}));
                match reply["ok"] == true {
                    true => held.push(lock),
                    false => {
                        refused(&reply, "deadlock");
                        refusals += 1;
                    }
                }
            }
            held.sort();
            held.dedup();
            held.iter().for_each(|lock| client.release(lock));
        }
        refusals
    };
    let refusals: u64 = std::thread::scope(|scope| {
        let fighters: Vec<_> = (0..8).map(|seed| scope.spawn(move || fight(seed))).collect();
        fighters.into_iter().map(|fighter| fighter.join().expect("no fighter panics")).sum()
    });
    assert!(refusals > 0, "nobody was ever in a cycle");
}

/// The same sessions ask for both locks at once, in any order, through two daemons: none is
/// refused, and none waits forever.
#[test]
fn several_names_never_deadlock() {
    let (_directory, daemons) = two("2");
    let fight = |seed: u64| {
        let mut client = V1::connect(&daemons[usize::from(seed % 2 == 1)].tcp());
        let mut dice = support::Dice::new(seed);
        for _ in 0..60 {
            let first = dice.below(4);
            let locks = [first, (first + 1 + dice.below(3)) % 4].map(|number| format!("l{number}"));
            let reply = client.request(json!({"op": "acquire", "locks": locks, "wait_ms": null}));
            assert_eq!(reply["ok"], true, "{reply}");
            client.request(json!({"op": "release", "locks": locks}));
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..6 {
            scope.spawn(move || fight(seed));
        }
    });
}
