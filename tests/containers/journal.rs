//! The journal: events are found by field and by MESSAGE_ID, the catalog explains them, and a
//! journald that does not read delays nobody.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::guest::{self, SERVICE, attempt, events, installed, main_pid, sh};
use crate::report::Report;
use crate::support::{V1, eventually};
use distrilock::systemd::ids;

/// Sessions whose beginnings and ends are logged at debug level: more than there is room for while
/// journald is stopped, in its socket's queue of datagrams (net.unix.max_dgram_qlen) and in the
/// daemon's own queue.
const SESSIONS: usize = 4000;

/// The source file that logs how many events the daemon's queue had no room for.
const QUEUE: &str = "src/systemd/journal/queue.rs";

fn field<'a>(event: &'a Value, name: &str) -> &'a str {
    event[name].as_str().unwrap_or_default()
}

fn violation() {
    let mut client = V1::connect(guest::TCP);
    client.send_line(r#"{"op":"hello","version":1}"#);
    client.receive();
    client.send_bytes(&[b'x'; 70_000]);
    client.closed();
}

/// What an operator may look for.
pub(crate) fn explains(report: &Report) {
    installed();
    let mut holder = V1::connect(guest::TCP);
    holder.acquire("precious");
    found(report, "the daemon serves", ids::DAEMON_READY, &[("DIRECTORY", guest::DIRECTORY)]);
    sh(&format!("rm {}/precious.lck", guest::DIRECTORY));
    let reply = holder.request(json!({"op": "verify", "lock": "precious"}));
    report.check("a lock whose file is gone is lost", reply["error"] == "lost", &reply);
    found(report, "a lock was lost", ids::LOCK_LOST, &[("LOCK", "precious"), ("SESSION", "")]);
    history(report);
    violation();
    let told = [("SESSION", ""), ("PEER", "127.0.0.1:"), ("DIALECT", "")];
    found(report, "a peer broke the protocol", ids::SESSION_VIOLATION, &told);
    sh(&format!("systemctl restart {SERVICE}"));
    found(report, "sessions are left to the next process", ids::HAND_OVER, &[]);
    found(report, "sessions are taken over", ids::TAKE_OVER, &[]);
    let stops = events(&format!("MESSAGE_ID={}", ids::DAEMON_STOPPING));
    report.check("a restart is not told as a stop", stops.is_empty(), stops.len());
    sh(&format!("systemctl stop {SERVICE}"));
    found(report, "the daemon stops", ids::DAEMON_STOPPING, &[]);
    let by_field = events("LOCK=precious");
    report.check("found by LOCK=", !by_field.is_empty(), by_field.len());
    let of_unit = by_field.iter().all(|event| field(event, "_SYSTEMD_UNIT") == SERVICE);
    report.check("it is the unit's", of_unit, SERVICE);
}

/// Who held a lock, and who waited for it in vain: events, and what `distrilock history` makes of
/// them.
fn history(report: &Report) {
    let mut holder = V1::connect(guest::TCP);
    assert_eq!(holder.request(json!({"op": "hello", "name": "backup@db1"}))["ok"], true);
    holder.acquire("remembered");
    let refused = V1::connect(guest::TCP).request(json!({"op": "acquire", "lock": "remembered", "wait_ms": 1200}));
    report.check("a wait runs out", refused["error"] == "timeout", &refused);
    holder.release("remembered");
    let told = [("LOCK", "remembered"), ("SESSION", ""), ("HOLDER", "127.0.0.1:"), ("ENDED", "timed out")];
    found(report, "a wait has ended", ids::WAIT_ENDED, &told);
    let told = [("LOCK", "remembered"), ("HOLDER", "backup@db1"), ("HELD_MS", "1"), ("ENDED", "released")];
    found(report, "a lock was held", ids::LOCK_ENDED, &told);
    let (_, text) = attempt("distrilock history --since=-1h 'remember*'");
    let has = |parts: &[&str]| text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    report.check("history has the hold", has(&["remembered", "backup@db1", "released"]), &text);
    report.check("history has the wait", has(&["remembered", "not granted: timed out"]), &text);
}

/// Waits for an event in the journal, checks its fields, and checks the catalog's text.
fn found(report: &Report, what: &str, id: &str, fields: &[(&str, &str)]) {
    let mut event = Value::Null;
    eventually(&format!("{what}: an event in the journal"), || {
        event = events(&format!("MESSAGE_ID={id}")).pop().unwrap_or_default();
        !event.is_null()
    });
    report.check(&format!("{what}: found by MESSAGE_ID="), true, field(&event, "MESSAGE"));
    for (name, beginning) in fields {
        let value = field(&event, name);
        report.check(&format!("{what}: {name}="), !value.is_empty() && value.starts_with(beginning), value);
    }
    let (_, text) = attempt(&format!("journalctl -b -q --no-pager -x MESSAGE_ID={id}"));
    let subject = subject(id);
    report.check(&format!("{what}: journalctl -x explains it"), text.contains(&subject), &subject);
    let lock = fields.iter().find(|(name, _)| *name == "LOCK");
    if let Some((_, lock)) = lock {
        report.check(&format!("{what}: the text has the fields"), text.contains(&format!("the lock \"{lock}\"")), lock);
    }
}

/// The catalog's subject of an event.
fn subject(id: &str) -> String {
    let catalog = include_str!("../../systemd/distrilock.catalog");
    let entry = catalog.split("\n-- ").find_map(|entry| entry.strip_prefix(id)).expect("every id is explained");
    let subject = entry.lines().find_map(|line| line.strip_prefix("Subject: "));
    subject.expect("every entry has a subject").to_owned()
}

/// A journald that is stopped stops nobody.
pub(crate) fn stopped(report: &Report) {
    installed();
    sh("echo 'DISTRILOCKD_OPTIONS=\"--log debug\"' > /etc/default/distrilock && systemctl restart distrilock.service");
    let mut session = V1::connect(guest::TCP);
    session.acquire("before");
    let journald = Pid::from_raw(main_pid("systemd-journald.service"));
    kill(journald, Signal::SIGSTOP).expect("it runs");
    let one = || V1::connect(guest::TCP).ping();
    (0..SESSIONS).for_each(|_| one());
    session.acquire("meanwhile");
    session.release("meanwhile");
    kill(journald, Signal::SIGCONT).expect("it is there");
    report.check("sessions continue while journald is stopped", true, format!("{SESSIONS} sessions"));
    // Each session is logged when it begins and when it ends.
    let count = || events(&format!("_SYSTEMD_UNIT={} PRIORITY=7", SERVICE)).len();
    let dropped = || -> usize {
        let reports = events(&format!("CODE_FILE={QUEUE}"));
        reports.iter().filter_map(|report| field(report, "DROPPED").parse::<usize>().ok()).sum()
    };
    eventually("each event is logged or counted", || dropped() > 0 && count() + dropped() >= 2 * SESSIONS);
    let before = count();
    report.figure("events that there was room for", before);
    report.check("it really was full", before < 2 * SESSIONS, before);
    one();
    eventually("new events come", || count() > before);
    report.check("a journald that reads again has new events", true, "");
}
