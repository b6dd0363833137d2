//! A daemon hangs, is killed or aborts: every lock is free at once, systemd starts another one, and
//! what was left in the store of descriptors does no harm.

use std::fs;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::dialects::{Dialect, Session, Verb};
use crate::guest::{self, SERVICE, events, installed, main_pid, property, sh, state};
use crate::leave;
use crate::outside::{eventually_free, is_free};
use crate::report::Report;
use crate::support::{V1, eventually};

/// systemd's own MESSAGE_ID: the main process of a unit has exited (sd-messages.h,
/// SD_MESSAGE_UNIT_PROCESS_EXIT).
const PROCESS_EXIT: &str = "98e322203f7a4ed290d09fe03c09fe15";

/// A session of each dialect, each with a lock.
fn holders(report: &Report) -> Vec<Session> {
    let mut sessions: Vec<_> = Dialect::ALL.iter().map(|dialect| dialect.session()).collect();
    let granted = sessions.iter_mut().enumerate().all(|(n, session)| session.does(Verb::Acquire, &format!("lock{n}")));
    report.check("a lock for each dialect", granted, sessions.len());
    sessions
}

/// Another process serves, the sessions of the dead one have ended, and its locks are free.
fn all_is_new(report: &Report, sessions: &mut [Session], dead: i32) {
    eventually("another process serves", || {
        let pid = main_pid(SERVICE);
        pid != 0 && pid != dead && state(SERVICE) == "active"
    });
    for session in sessions.iter_mut() {
        report.check(&format!("{}: the session has ended", session.dialect), session.ends(), "");
    }
    let mut session = V1::connect(guest::TCP);
    for number in 0..sessions.len() {
        let lock = format!("lock{number}");
        let reply = session.request(json!({"op": "acquire", "lock": lock, "wait_ms": 10_000}));
        report.check(&format!("{lock} is granted again"), reply["ok"] == true, &reply);
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it runs, and we are root");
}

/// A stopped daemon (SIGSTOP) does not ping, and is killed.
pub(crate) fn watchdog(report: &Report) {
    guest::install();
    report.check(
        "the service has a watchdog",
        property(SERVICE, "WatchdogUSec") != "0",
        property(SERVICE, "WatchdogUSec"),
    );
    let folder = "/etc/systemd/system/distrilock.service.d";
    sh(&format!("mkdir -p {folder} && printf '[Service]\\nWatchdogSec=3\\n' > {folder}/watchdog.conf"));
    sh("systemctl daemon-reload && systemctl start distrilock.socket");
    let mut sessions = holders(report);
    let pid = main_pid(SERVICE);
    // It pings for longer than the limit: a running daemon is not killed.
    let start = Instant::now();
    eventually("more than the watchdog's time has passed", || start.elapsed().as_secs() >= 4);
    report.check("a daemon that turns is left alone", main_pid(SERVICE) == pid, pid);
    signal(pid, Signal::SIGSTOP);
    let start = Instant::now();
    eventually("the locks come free", || (0..sessions.len()).all(|n| is_free(&format!("lock{n}"))));
    report.figure("from SIGSTOP to free locks, WatchdogSec=3", format!("{:?}", start.elapsed()));
    all_is_new(report, &mut sessions, pid);
    let results = events(&format!("-u {SERVICE} MESSAGE_ID={PROCESS_EXIT}"));
    let last = results.last().map(ToString::to_string).unwrap_or_default();
    report.check("the journal says how it ended", last.contains("ABRT") || last.contains("KILL"), last);
    report.check("systemd counts a restart", property(SERVICE, "NRestarts") == "1", property(SERVICE, "NRestarts"));
}

/// A daemon was killed in the middle of a hand-over, and the store contains unknown descriptors:
/// the next process closes all of them.
pub(crate) fn leftovers(report: &Report) {
    guest::install();
    let folder = "/etc/systemd/system/distrilock.service.d";
    let lines =
        "[Service]\nNotifyAccess=all\nFileDescriptorStoreMax=8\nExecPaths=/lab\nExecStartPost=/lab/payload leave\n";
    sh(&format!("mkdir -p {folder} && printf '{lines}' > {folder}/leave.conf"));
    sh("systemctl daemon-reload && systemctl start distrilock.socket");
    let mut sessions = holders(report);
    eventually("leftovers are in the store", || !is_free("stranger") && !is_free("cut"));
    let kept = property(SERVICE, "NFileDescriptorStore");
    report.check("leftovers are in the store, and keep their locks", kept.parse::<u32>().is_ok_and(|n| n >= 3), kept);
    let pid = main_pid(SERVICE);
    signal(pid, Signal::SIGKILL);
    all_is_new(report, &mut sessions, pid);
    for lock in ["stranger", "cut"] {
        eventually_free(lock);
        report.check("the next daemon has closed what was left", is_free(lock), lock);
    }
    let mut session = V1::connect(guest::TCP);
    session.acquire("kept");
    let pid = main_pid(SERVICE);
    sh(&format!("systemctl restart {SERVICE}"));
    eventually("another process serves", || main_pid(SERVICE) != pid && state(SERVICE) == "active");
    let reply = session.request(json!({"op": "verify", "lock": "kept"}));
    report.check("restarts keep sessions as before", reply["ok"] == true, &reply);
    let kept = property(SERVICE, "NFileDescriptorStore");
    report.check("the store has the daemon's pair alone", kept == "2", kept);
}

/// A hand-over ended in the middle, or has an unknown version: everything in it is closed, and the
/// journal says so.
pub(crate) fn garbled(report: &Report) {
    installed();
    let cut: &[(&[u8], Option<&str>)] = &[(b"begin", Some("first")), (b"more", Some("second"))];
    let unknown: &[(&[u8], Option<&str>)] = &[(b"begin", Some("first")), (b"more", Some("second")), (b"end", None)];
    let noise: &[(&[u8], Option<&str>)] = &[(b"noise", Some("first")), (b"", Some("second"))];
    let ended = "ended while it was handing over";
    let all = [("cut", cut, ended), ("unknown", unknown, "version 4000000000"), ("noise", noise, ended)];
    for (what, messages, word) in all {
        let mut sessions = holders(report);
        let pid = main_pid(SERVICE);
        // The first descriptor is a file that describes the others: JSON of the given length, and
        // the bytes that belong to it.
        let state = br#"{"version":4000000000,"new":["member"]}"#;
        let bytes = [&(state.len() as u64).to_le_bytes()[..], state, b"and bytes"].concat();
        fs::write(format!("{}/first.lck", guest::DIRECTORY), bytes).expect("we are root");
        leave::in_the_queue(pid, messages);
        report.check("the queue keeps the locks", !is_free("first") && !is_free("second"), what);
        signal(pid, Signal::SIGKILL);
        all_is_new(report, &mut sessions, pid);
        for lock in ["first", "second"] {
            eventually_free(lock);
            report.check("what was left is closed", is_free(lock), format!("{what}: {lock}"));
        }
        let new = main_pid(SERVICE);
        let said = events(&format!("_PID={new} PRIORITY=4 + _PID={new} PRIORITY=3"));
        let said: Vec<&str> = said.iter().filter_map(|event| event["MESSAGE"].as_str()).collect();
        let told = said.iter().any(|line| line.contains(word));
        report.check("the journal says so", told, format!("{what}: {}", said.join("; ")));
        sh(&format!("systemctl restart {SERVICE}"));
        let reply = V1::connect(guest::TCP).request(json!({"op": "ping"}));
        report.check("it continues", reply["ok"] == true, &reply);
        sh(&format!("systemctl stop {SERVICE}"));
    }
}

/// SIGKILL and SIGABRT free everything.
pub(crate) fn killed(report: &Report) {
    installed();
    for how in [Signal::SIGKILL, Signal::SIGABRT, Signal::SIGKILL] {
        let mut sessions = holders(report);
        let pid = main_pid(SERVICE);
        signal(pid, how);
        let start = Instant::now();
        (0..sessions.len()).for_each(|number| eventually_free(&format!("lock{number}")));
        report.figure("from the signal to free locks", format!("{how}: {:?}", start.elapsed()));
        all_is_new(report, &mut sessions, pid);
    }
    let files = || crate::outside::lock_files();
    eventually("files of dead daemons are deleted", || files().is_empty());
    report.check("no lock file is left", files().is_empty(), "");
}
