//! Sessions that keep each other waiting for good: a request of each such cycle is refused, nothing
//! else is, and looking for them delays nobody, however entangled sessions are.

#[path = "support/manager.rs"]
mod manager;
mod support;

use std::time::Duration;

use manager::Manager;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use support::{Daemon, V1};

fn sessions<const N: usize>(address: &str) -> [V1; N] {
    std::array::from_fn(|_| V1::connect(address))
}

fn wish(lock: &str) -> Value {
    json!({"id": lock, "op": "acquire", "lock": lock, "wait_ms": null})
}

fn shared(lock: &str) -> Value {
    json!({"id": lock, "op": "acquire", "lock": lock, "wait_ms": null, "mode": "shared"})
}

/// Sends a request that waits. The daemon has handled it when this returns.
#[track_caller]
fn waits(client: &mut V1, request: &Value) {
    client.send(request);
    client.ping();
}

/// The refusal of the request for this lock; it is the client's next message.
#[track_caller]
fn is_refused(client: &mut V1, lock: &str) -> String {
    let reply = client.receive();
    assert!(reply["id"] == lock && reply["error"] == "deadlock", "{reply}");
    reply["message"].as_str().expect("a message").to_owned()
}

#[track_caller]
fn is_granted(client: &mut V1, lock: &str) {
    let reply = client.receive();
    assert!(reply["id"] == lock && reply["ok"] == true, "{reply}");
}

/// Nothing has come for this client.
#[track_caller]
fn still_waits(client: &mut V1) {
    // A reply that came before the ping's would be the next message.
    client.send(&json!({"id": "still", "op": "ping"}));
    let reply = client.receive();
    assert_eq!(reply["id"], "still", "{reply}");
}

/// Waits until the detector has seen all that is there: it finds a deadlock that is made now.
#[track_caller]
fn detector_has_looked(address: &str, name: &str) {
    let (one, two) = (format!("{name}.one"), format!("{name}.two"));
    let [mut a, mut b] = sessions(address);
    a.acquire(&one);
    b.acquire(&two);
    waits(&mut a, &wish(&two));
    waits(&mut b, &wish(&one));
    is_refused(&mut b, &one);
}

/// Three sessions wait for each other, each for what the next one holds: the youngest request is
/// refused and told who waits for whom, the others keep their places, and are granted.
#[test]
fn three_sessions() {
    let daemon = Daemon::start();
    let [mut a, mut b, mut c] = sessions(&daemon.tcp());
    a.request(json!({"op": "hello", "name": "backup@db1"}));
    for (client, lock) in [(&mut a, "x"), (&mut b, "y"), (&mut c, "z")] {
        client.acquire(lock);
    }
    waits(&mut a, &wish("y"));
    waits(&mut b, &wish("z"));
    detector_has_looked(&daemon.tcp(), "chain");
    still_waits(&mut a);
    still_waits(&mut b);
    waits(&mut c, &wish("x"));
    let message = is_refused(&mut c, "x");
    for part in ["it would wait for itself", "waits for x, which backup@db1", "waits for y", "waits for z"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    still_waits(&mut a);
    c.release("z");
    is_granted(&mut b, "z");
    b.release("y");
    is_granted(&mut a, "y");
}

/// More pairs of sessions wait for each other than one search refuses: exactly one of each pair is
/// refused.
#[test]
fn many_pairs() {
    const PAIRS: usize = 150;
    let daemon = Daemon::setup().flag("--threads", "2").start();
    let mut pairs: Vec<[V1; 2]> = (0..PAIRS).map(|_| sessions(&daemon.tcp())).collect();
    for (n, [a, b]) in pairs.iter_mut().enumerate() {
        a.acquire(&format!("a{n}"));
        b.acquire(&format!("b{n}"));
    }
    for (n, [a, b]) in pairs.iter_mut().enumerate() {
        a.send(&wish(&format!("b{n}")));
        b.send(&wish(&format!("a{n}")));
    }
    for (n, [a, b]) in pairs.iter_mut().enumerate() {
        // The requests of a pair are handled in any order. The one that waits on gets what the
        // refused one gives up.
        let (own, other) = (format!("a{n}"), format!("b{n}"));
        let reply = refused_one(a, b);
        if reply["id"] == *other {
            a.release(&own);
            is_granted(b, &own);
        } else {
            b.release(&other);
            is_granted(a, &other);
        }
    }
}

/// The reply to whichever of two sessions is refused first.
#[track_caller]
fn refused_one(a: &mut V1, b: &mut V1) -> Value {
    let mut reply = None;
    support::eventually("one of the two is refused", || {
        for client in [&mut *a, &mut *b] {
            client.send(&json!({"id": "look", "op": "ping"}));
            let first = client.receive();
            if first["id"] != "look" {
                assert_eq!(client.receive()["id"], "look");
                reply = Some(first);
                break;
            }
        }
        reply.is_some()
    });
    let reply = reply.expect("it was found");
    assert_eq!(reply["error"], "deadlock", "{reply}");
    reply
}

/// A session waits for two locks, one of which can become free: nobody is refused. Once it has that
/// one, all of its waits are part of a cycle.
#[test]
fn one_wait_of_two_can_end() {
    let daemon = Daemon::start();
    let [mut a, mut b, mut c] = sessions(&daemon.tcp());
    a.acquire("x");
    b.acquire("y");
    c.acquire("z");
    waits(&mut a, &wish("z"));
    waits(&mut a, &wish("y"));
    waits(&mut b, &wish("x"));
    detector_has_looked(&daemon.tcp(), "first");
    still_waits(&mut a);
    still_waits(&mut b);
    c.release("z");
    is_granted(&mut a, "z");
    is_refused(&mut b, "x");
    still_waits(&mut a);
    b.release("y");
    is_granted(&mut a, "y");
}

/// The same, but the wait that could have ended runs out of time.
#[test]
fn the_other_wait_times_out() {
    let daemon = Daemon::start();
    let [mut a, mut b, mut c] = sessions(&daemon.tcp());
    a.acquire("x");
    b.acquire("y");
    c.acquire("z");
    waits(&mut a, &json!({"id": "z", "op": "acquire", "lock": "z", "wait_ms": 300}));
    waits(&mut a, &wish("y"));
    waits(&mut b, &wish("x"));
    assert_eq!(a.receive()["error"], "timeout");
    is_refused(&mut b, "x");
    still_waits(&mut a);
}

/// A session that holds nothing can be part of a cycle, too, by its place in a queue: a reader is
/// behind it, and holds what the reader before it waits for. It is not part of the cycle as long as
/// it may be granted something else.
#[test]
fn a_place_in_a_queue() {
    let daemon = Daemon::start();
    let [mut other, mut writer, mut behind, mut reader] = sessions(&daemon.tcp());
    other.acquire("other");
    behind.acquire("own");
    reader.request(json!({"op": "acquire", "lock": "q", "mode": "shared"}));
    waits(&mut writer, &wish("q"));
    waits(&mut writer, &wish("other"));
    waits(&mut behind, &shared("q"));
    waits(&mut reader, &wish("own"));
    detector_has_looked(&daemon.tcp(), "first");
    for client in [&mut reader, &mut writer, &mut behind] {
        still_waits(client);
    }
    let cancelled = writer.request(json!({"op": "cancel", "request": "other"}));
    assert_eq!(cancelled["cancelled"], true);
    assert_eq!(writer.receive()["error"], "cancelled");
    let message = is_refused(&mut reader, "own");
    assert!(message.contains("waited for before"), "{message}");
    reader.release("q");
    is_granted(&mut writer, "q");
}

/// A request for several locks has gathered one of them, which another session waits for: it falls
/// apart, and names the lock at fault.
#[test]
fn a_request_for_several_locks() {
    let daemon = Daemon::start();
    let [mut a, mut b] = sessions(&daemon.tcp());
    a.acquire("y");
    b.send(&json!({"id": "several", "op": "acquire", "locks": ["x", "y"], "wait_ms": null}));
    b.ping();
    detector_has_looked(&daemon.tcp(), "first");
    still_waits(&mut b);
    waits(&mut a, &wish("x"));
    is_refused(&mut a, "x");
    a.release("y");
    let reply = b.receive();
    assert!(reply["id"] == "several" && reply["ok"] == true, "{reply}");
    b.request(json!({"op": "release", "locks": ["x", "y"]}));

    // Now the request for several locks is the youngest.
    let [mut c, mut d] = sessions(&daemon.tcp());
    c.acquire("x");
    d.acquire("z");
    waits(&mut c, &wish("z"));
    d.send(&json!({"id": "several", "op": "acquire", "locks": ["w", "x"], "wait_ms": null}));
    let reply = d.receive();
    assert!(reply["error"] == "deadlock" && reply["lock"] == "x", "{reply}");
    assert!(a.gets("w"), "it was given back");
}

/// The daemon restarts just when a cycle is closed: one of the two sessions is refused, by this
/// process or by the next.
#[test]
fn over_a_restart() {
    let mut manager = Manager::start();
    let [mut a, mut b] = sessions(&manager.address());
    a.acquire("x");
    b.acquire("y");
    waits(&mut a, &wish("y"));
    waits(&mut b, &wish("x"));
    manager.leave();
    manager.run("");
    is_refused(&mut b, "x");
    b.release("y");
    is_granted(&mut a, "y");
    manager.stop();
}

/// Many sessions wait for the same hundreds of locks, and one of them holds a lock of its own and
/// acquires another one. Nobody else waits for that, and it costs next to nothing; a deadlock
/// among them is found.
#[test]
fn entangled_queues() {
    const LOCKS: usize = 300;
    const SESSIONS: usize = 6;
    let daemon = Daemon::start();
    let mut holder = V1::connect(&daemon.tcp());
    for n in 0..LOCKS {
        holder.send(&json!({"op": "acquire", "lock": format!("n{n}")}));
        assert_eq!(holder.receive()["ok"], true);
    }
    let mut crowd: Vec<V1> = (0..SESSIONS).map(|_| V1::connect(&daemon.tcp())).collect();
    let before = daemon.cpu();
    for client in &mut crowd {
        (0..LOCKS).for_each(|n| client.send(&wish(&format!("n{n}"))));
        client.ping();
    }
    let waiting = daemon.cpu() - before;
    let (last, mut other) = (crowd.last_mut().expect("there are some"), V1::connect(&daemon.tcp()));
    let before = daemon.cpu();
    for n in 0..20 {
        last.acquire(&format!("own{n}"));
        other.ping();
    }
    detector_has_looked(&daemon.tcp(), "entangled");
    let entangled = daemon.cpu() - before;
    assert!(entangled < 3 * waiting + Duration::from_secs(1), "{entangled:?}, {waiting:?} for the waits");
    waits(&mut holder, &wish("own0"));
    is_refused(&mut holder, "own0");
    still_waits(last);
}

/// Each of many sessions holds a lock of its own and waits for a common one. That costs little more
/// than without locks of their own.
#[test]
fn a_common_lock() {
    const SESSIONS: usize = 2500;
    // Each takes one descriptor here, and two in the daemon.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    let count = usize::try_from(hard / 3).map_or(SESSIONS, |most| most.min(SESSIONS));
    let run = |own: bool| {
        let daemon = Daemon::start();
        let mut holder = V1::connect(&daemon.tcp());
        holder.acquire("common");
        let mut crowd: Vec<V1> = (0..count).map(|_| V1::connect(&daemon.tcp())).collect();
        for (n, client) in crowd.iter_mut().enumerate().filter(|_| own) {
            client.acquire(&format!("own{n}"));
        }
        let before = daemon.cpu();
        for client in &mut crowd {
            waits(client, &wish("common"));
        }
        detector_has_looked(&daemon.tcp(), "crowd");
        daemon.cpu() - before
    };
    let (without, with) = (run(false), run(true));
    assert!(with < 3 * without + Duration::from_millis(300), "{with:?} with own locks, {without:?} without");
}
