//! Clients that send much before they read, or read nothing: every request gets its reply, the
//! daemon notices FIN, and other sessions are not delayed.

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Daemon, V1, Ws, eventually};

/// More replies than the daemon keeps for a client that does not read: when the client finally
/// reads, it gets all of them, in order, without sending another byte.
#[test]
fn every_request_gets_its_reply() {
    let daemon = Daemon::start();
    for round in 0..3 {
        let mut client = V1::connect(&daemon.tcp());
        let requests: Vec<String> =
            (0..1500).map(|id| format!(r#"{{"id":{id},"op":"hello","note":"{round}"}}"#)).collect();
        client.send_bytes(format!("{}\n", requests.join("\n")).as_bytes());
        for id in 0..1500 {
            assert_eq!(client.receive()["id"], id);
        }
    }
    let mut websocket = Ws::connect(&daemon.ws());
    for id in 0..1500 {
        websocket.send_text(&format!(r#"{{"id":{id},"op":"hello"}}"#));
    }
    for id in 0..1500 {
        assert_eq!(websocket.receive_object()["id"], id);
    }
}

/// A client does not read its replies and closes its side: the daemon notices, although it has
/// stopped reading from it.
#[test]
fn fin_behind_a_pause() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    for number in 0..100 {
        client.acquire(&format!("{number:0>251}"));
    }
    // A long wait of its own does not keep the daemon from looking.
    let mut other = V1::connect(&daemon.tcp());
    other.acquire("busy");
    client.send(&json!({"op": "acquire", "lock": "busy", "wait_ms": 3_600_000}));
    // About 30 bytes each; their replies fill every buffer on the way.
    client.send_bytes("{\"op\":\"list\"}\n".repeat(600).as_bytes());
    client.stream().shutdown(Shutdown::Write).expect("the connection lives");
    eventually("its locks are free", || other.gets(&"0".repeat(251)));
}

/// The reply to `cancel` says whether the request was cancelled, even if the lock is granted at the
/// same moment.
#[test]
fn cancel_tells_the_truth() {
    let daemon = Daemon::setup().flag("--threads", "2").start();
    let (mut holder, mut waiter) = (V1::connect(&daemon.tcp()), V1::connect(&daemon.tcp()));
    let (mut granted, mut cancelled) = (0, 0);
    for _ in 0..2000 {
        holder.acquire("x");
        waiter.send(&json!({"id": 1, "op": "acquire", "lock": "x", "wait_ms": null}));
        waiter.ping();
        holder.send(&json!({"op": "release", "lock": "x"}));
        waiter.send(&json!({"id": 2, "op": "cancel", "request": 1}));
        let (mut acquire, mut cancel) = (waiter.receive(), waiter.receive());
        if acquire["id"] == 2 {
            std::mem::swap(&mut acquire, &mut cancel);
        }
        assert_ne!(acquire["ok"], cancel["cancelled"], "{acquire} {cancel}");
        holder.receive();
        if acquire["ok"] == true {
            granted += 1;
            waiter.release("x");
        } else {
            cancelled += 1;
        }
    }
    println!("{granted} granted, {cancelled} cancelled");
}

/// Clients send requests that need no reply, without pause, on the only thread: others are served
/// all the while.
#[test]
fn a_flood_without_replies() {
    let daemon = Daemon::setup().flag("--threads", "1").start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            let mut flood = V1::connect(&daemon.tcp()).into_stream();
            flood.set_write_timeout(Some(Duration::from_millis(100))).expect("a time-out");
            scope.spawn({
                let over = &over;
                move || {
                    let spaces = format!("{{\"op\":\"ping\"}}\n{}", " \n".repeat(30_000));
                    while !over.load(Ordering::Relaxed) {
                        // Requests that do not fit are left out.
                        let _ = flood.write(spaces.as_bytes());
                    }
                }
            });
        }
        let mut client = V1::connect(&daemon.tcp());
        let start = Instant::now();
        for _ in 0..200 {
            client.ping();
        }
        println!("200 pings in {:?}", start.elapsed());
        over.store(true, Ordering::Relaxed);
        assert!(start.elapsed() < Duration::from_secs(30), "kept waiting: {:?}", start.elapsed());
    });
}
