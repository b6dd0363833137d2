//! The guest's side: queries to systemd, dpkg and the journal.

use std::any::Any;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{V1, eventually};

pub(crate) const TCP: &str = "127.0.0.1:40800";
pub(crate) const WS: &str = "127.0.0.1:40801";
pub(crate) const UNIX: &str = "unix:/run/distrilock/distrilock.sock";

pub(crate) const SERVICE: &str = "distrilock.service";
pub(crate) const SOCKETS: [&str; 3] = ["distrilock.socket", "distrilock-ws.socket", "distrilock-local.socket"];

/// The lock directory of the package.
pub(crate) const DIRECTORY: &str = "/var/lib/distrilock";

/// The scenario of this container.
pub(crate) fn scenario() -> String {
    fs::read_to_string("/out/scenario").expect("the host says it")
}

/// The text of a panic.
pub(crate) fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// A file with the journal.
pub(crate) fn journal() -> PathBuf {
    let path = PathBuf::from("/run/journal");
    let (_, text) = attempt("journalctl -b --no-pager -o short-monotonic | tail -n 60");
    fs::write(&path, text).expect("memory is left");
    path
}

/// Runs a line of shell; returns whether it succeeded, and its output.
pub(crate) fn attempt(line: &str) -> (bool, String) {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec 2>&1; {line}")]).stdin(Stdio::null()).env("DEBIAN_FRONTEND", "noninteractive");
    let output = command.output().expect("bash is there");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Runs a line of shell that must succeed.
#[track_caller]
pub(crate) fn sh(line: &str) -> String {
    let (success, said) = attempt(line);
    assert!(success, "{line}: {said}");
    said
}

/// Installs the package as an administrator does.
pub(crate) fn install() {
    sh("apt-get install -y -qq /lab/distrilock.deb");
}

/// Installs the package and starts its sockets.
pub(crate) fn installed() {
    install();
    sh("systemctl start distrilock.socket");
}

/// A property of a unit.
#[track_caller]
pub(crate) fn property(unit: &str, name: &str) -> String {
    sh(&format!("systemctl show -P {name} {unit}"))
}

/// The state of a unit: active, inactive, failed, or on its way.
#[track_caller]
pub(crate) fn state(unit: &str) -> String {
    property(unit, "ActiveState")
}

#[track_caller]
pub(crate) fn eventually_in(unit: &str, wanted: &str) {
    eventually(&format!("{unit} is {wanted}"), || state(unit) == wanted);
}

/// The process id of a service's main process; 0 if it has none.
#[track_caller]
pub(crate) fn main_pid(unit: &str) -> i32 {
    property(unit, "MainPID").parse().expect("systemd says a number")
}

/// The journal's entries that match, as JSON.
pub(crate) fn events(matches: &str) -> Vec<serde_json::Value> {
    let text = sh(&format!("journalctl -b -q --no-pager -o json {matches} || true"));
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A session with the daemon that follows a killed one: nobody answers until its sockets are there.
pub(crate) fn again() -> V1 {
    let mut session = None;
    eventually("the next daemon serves", || {
        let mut fresh = V1::try_connect(TCP).ok();
        let answers = fresh.as_mut().is_some_and(|fresh| fresh.try_request(json!({"op": "ping"})).is_ok());
        session = fresh.filter(|_| answers);
        session.is_some()
    });
    session.expect("it was found")
}
