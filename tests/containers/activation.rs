//! Sockets: the first connection starts the daemon, the sockets outlive a stop, each can be masked,
//! and a drop-in opens one to the network.

use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

use crate::dialects::{Dialect, Verb};
use crate::guest::{self, SERVICE, SOCKETS, TCP, UNIX, WS, attempt, eventually_in, installed, main_pid, sh, state};
use crate::outside::{eventually_free, is_free, lock_files};
use crate::report::Report;
use crate::support::{V1, Ws, eventually};

/// Each socket starts the daemon by itself, and outlives it.
pub(crate) fn by_the_first_connection(report: &Report) {
    installed();
    let speakers = [(Dialect::JsonTcp, SOCKETS[0]), (Dialect::JsonWs, SOCKETS[1]), (Dialect::JsonUnix, SOCKETS[2])];
    for (dialect, socket) in speakers {
        report.check("the daemon does not run yet", state(SERVICE) == "inactive", socket);
        let start = Instant::now();
        let mut session = dialect.session();
        let granted = session.does(Verb::Acquire, "first");
        report.check(&format!("{dialect}: the first connection is served"), granted, socket);
        report.figure("from the first connection to a lock", format!("{dialect}: {:?}", start.elapsed()));
        report.check("the service runs", state(SERVICE) == "active", state(SERVICE));
        report.check("the lock is real", !is_free("first"), "F_OFD_GETLK");
        sh(&format!("systemctl stop {SERVICE}"));
        eventually_free("first");
        report.check("a stop frees it", is_free("first"), "F_OFD_GETLK");
        let active = SOCKETS.iter().all(|socket| state(socket) == "active");
        report.check("a stop of the service leaves the sockets", active, SOCKETS.join(" "));
    }
    // The other address of the loopback.
    let mut session = V1::connect("[::1]:40800");
    session.acquire("six");
    report.check("IPv6 as well", !is_free("six"), "[::1]:40800");
    status(report);
}

/// STATUS= is what people see.
fn status(report: &Report) {
    let mut session = V1::connect(TCP);
    session.acquire("status");
    let mut said = String::new();
    let mut shown = || {
        said = guest::property(SERVICE, "StatusText");
        said.contains("2 sessions") && said.contains("2 locks")
    };
    eventually("STATUS= shows sessions and locks", &mut shown);
    let (_, text) = attempt(&format!("systemctl status --no-pager {SERVICE}"));
    report.check("systemctl status shows it", text.contains(&format!("Status: \"{said}\"")), &said);
}

/// A stop of the service ends sessions of every dialect and frees their locks.
pub(crate) fn stop(report: &Report) {
    installed();
    let mut sessions: Vec<_> = Dialect::ALL.iter().map(|dialect| dialect.session()).collect();
    for (number, session) in sessions.iter_mut().enumerate() {
        let granted = session.does(Verb::Acquire, &format!("lock{number}"));
        report.check(&format!("{}: granted", session.dialect), granted, number);
    }
    let mut waiter = V1::connect(TCP);
    waiter.send(&json!({"id": 1, "op": "acquire", "lock": "lock0", "wait_ms": null}));
    waiter.ping();
    sh(&format!("systemctl stop {SERVICE}"));
    report.check("the service is stopped", state(SERVICE) == "inactive", state(SERVICE));
    (0..sessions.len()).for_each(|number| eventually_free(&format!("lock{number}")));
    let free = (0..sessions.len()).all(|number| is_free(&format!("lock{number}")));
    report.check("every lock is free", free, lock_files().join(" "));
    for session in &mut sessions {
        report.check(&format!("{}: the session has ended", session.dialect), session.ends(), "");
    }
    let end = waiter.closed();
    let end = String::from_utf8_lossy(&end).into_owned();
    report.check("who waits is not granted", !end.contains("\"ok\":true"), end);
    // No session is left for the next process.
    sh(&format!("systemctl start {SERVICE}"));
    let mut session = V1::connect(TCP);
    let granted = (0..sessions.len()).all(|number| session.gets(&format!("lock{number}")));
    report.check("the next daemon grants all of them", granted, sessions.len());
    sh("systemctl stop distrilock.socket distrilock.service");
    let stopped = SOCKETS.iter().all(|socket| state(socket) == "inactive");
    report.check("a stop of the socket stops all three", stopped, SOCKETS.join(" "));
}

/// Each socket can be masked, and the others work on.
pub(crate) fn masks(report: &Report) {
    guest::install();
    let connects = |socket: &str| match socket {
        "distrilock.socket" => V1::try_connect(TCP).is_ok(),
        "distrilock-ws.socket" => TcpStream::connect(WS).is_ok(),
        _ => V1::try_connect(UNIX).is_ok(),
    };
    for masked in SOCKETS {
        sh(&format!("systemctl stop {} {SERVICE}", SOCKETS.join(" ")));
        sh(&format!("systemctl mask {masked}"));
        // Without the first one, the others are started by name.
        let started = if masked == SOCKETS[0] { SOCKETS[1..].join(" ") } else { SOCKETS[0].to_owned() };
        sh(&format!("systemctl start {started}"));
        for socket in SOCKETS {
            let wanted = socket != masked;
            report.check(&format!("{masked} masked: {socket}"), connects(socket) == wanted, state(socket));
        }
        match masked {
            "distrilock.socket" => Ws::connect(WS).ping(),
            _ => V1::connect(TCP).ping(),
        }
        report.check("the daemon serves the others", state(SERVICE) == "active", masked);
        sh(&format!("systemctl unmask {masked}"));
    }
}

/// The documented drop-in opens TCP to the network.
pub(crate) fn network(report: &Report) {
    const ADDRESS: &str = "192.0.2.1";
    installed();
    sh(&format!("ip addr add {ADDRESS}/32 dev lo"));
    let outside = format!("{ADDRESS}:40800");
    V1::connect(TCP).ping();
    report.check("closed as it comes", V1::try_connect(&outside).is_err(), &outside);
    let example = "/usr/share/doc/distrilock/examples/network.conf";
    let drop_in = "/etc/systemd/system/distrilock.socket.d/network.conf";
    sh(&format!("mkdir -p $(dirname {drop_in}) && cp {example} {drop_in}"));
    // The line that the example says to run.
    let text = sh(&format!("cat {example}"));
    let line = text.lines().find_map(|line| line.strip_prefix("# systemctl ")).expect("it says what to run");
    sh(&format!("systemctl {line}"));
    let mut session = V1::connect(&outside);
    session.acquire("open");
    report.check("open with the drop-in", !is_free("open"), &outside);
    for _ in 0..20 {
        V1::connect(TCP).ping();
        // Only a test does this so often that systemd refuses.
        sh("systemctl reset-failed 'distrilock*' && systemctl restart distrilock.socket");
    }
    report.check("a restart of the sockets always finds their addresses free", true, "20 restarts");
    report.check("WebSocket stays closed", TcpStream::connect((ADDRESS, 40801)).is_err(), "");
    report.check("the service still has its hardening", guest::property(SERVICE, "PrivateNetwork") == "yes", "");
}

/// A silent connection does not slow the daemon down; a daemon that fails tries again.
pub(crate) fn trouble(report: &Report) {
    installed();
    let _silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(TCP).expect("systemd listens")).collect();
    V1::connect(TCP).ping();
    report.check("served beside silent connections", true, "50");
    // The lock directory is unusable for a while: connections arrive, the daemon fails, and the
    // socket must survive.
    sh(&format!("systemctl stop {SERVICE} && mv {d} {d}.away && touch {d}", d = guest::DIRECTORY));
    let waiting = TcpStream::connect(TCP).expect("systemd listens");
    eventually("the daemon has failed some times", || {
        guest::property(SERVICE, "NRestarts").parse::<u32>().is_ok_and(|restarts| restarts >= 12)
    });
    let active = SOCKETS.iter().all(|socket| state(socket) == "active");
    report.check("the sockets live on", active, SOCKETS.join(" "));
    sh(&format!("rm {d} && mv {d}.away {d}", d = guest::DIRECTORY));
    eventually_in(SERVICE, "active");
    drop(waiting);
    V1::connect(TCP).ping();
    report.check("it serves when the directory is back", main_pid(SERVICE) > 0, "");
}
