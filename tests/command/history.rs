//! The history: what a daemon logs of who held what, and what `distrilock history` makes of the
//! journal. journalctl is a script here, since these tests have no journal; `containers/journal.rs`
//! reads a real one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{DISTRILOCK, Daemon, V1, command, ended, eventually};

/// What the command's own tests read as well.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/command/history.json");

/// The daemon's lines of the history.
fn told(daemon: &Daemon) -> Vec<String> {
    daemon.log().into_iter().filter(|line| line.contains("SESSION=") && line.contains("HOLDER=")).collect()
}

/// A lock is held for more than a second, and a wait for it times out; another one is held briefly,
/// a hundred times; a third one is lost. The log has who, for how long and how it ended, with
/// times, whatever its level, and nothing of what was brief.
#[test]
fn what_the_daemon_logs() {
    let daemon = Daemon::setup().flag("--log", "error").start();
    let (mut holder, mut other) = (V1::connect(&daemon.tcp()), V1::connect(&daemon.tcp()));
    let said = json!({"op": "hello", "name": "backup\u{202e}@db1", "pid": 4711, "note": "a \"b\""});
    assert_eq!(holder.request(said)["ok"], true);
    holder.acquire("nightly");
    for _ in 0..100 {
        other.acquire("hot");
        other.release("hot");
    }
    let refused = other.request(json!({"op": "acquire", "lock": "nightly", "wait_ms": 1200}));
    assert_eq!(refused["error"], "timeout");
    holder.release("nightly");
    holder.acquire("precious");
    fs::remove_file(daemon.file("precious")).expect("the test may");
    assert_eq!(holder.request(json!({"op": "verify", "lock": "precious"}))["error"], "lost");
    eventually("the log has them", || told(&daemon).len() >= 3);
    let lines = told(&daemon);
    assert_eq!(lines.len(), 3, "{lines:#?}");
    let [waited, held, lost] = &lines[..] else { unreachable!() };
    let ms = |line: &str, field: &str| -> u64 {
        let (_, rest) = line.split_once(&format!(" {field}=")).unwrap_or_else(|| panic!("{field}: {line}"));
        rest.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{field}: {line}"))
    };
    assert!(waited.contains("LOCK=nightly") && waited.contains("ENDED=\"timed out\""), "{waited}");
    assert!(waited.contains("HOLDER=127.0.0.1:") && waited.contains("PEER=127.0.0.1:"), "{waited}");
    assert!(ms(waited, "WAITED_MS") >= 1190 && ms(held, "HELD_MS") >= 1190, "{lines:#?}");
    assert!(held.contains("LOCK=nightly") && held.contains("ENDED=released"), "{held}");
    assert!(held.contains(r#"HOLDER="backup\u{202e}@db1, pid 4711, a \"b\"""#), "{held}");
    assert!(held.contains("MODE=exclusive") && ms(held, "WAITED_MS") == 0, "{held}");
    assert!(lost.contains("LOCK=precious") && lost.contains("ENDED=\"lost: "), "{lost}");
    for line in &lines {
        let time = line.trim_start().strip_prefix("INFO ").and_then(|rest| rest.split(' ').next()).expect("a time");
        assert!(time.len() == 24 && time.ends_with('Z') && &time[10..11] == "T", "{line}");
    }
}

/// A wait of more than a second that is granted is told when it is, and its end as well, however
/// short the hold was.
#[test]
fn a_grant_after_a_wait() {
    let daemon = Daemon::start();
    let (mut holder, mut second, mut third) =
        (V1::connect(&daemon.tcp()), V1::connect(&daemon.tcp()), V1::connect(&daemon.tcp()));
    holder.acquire("a");
    second.send(&json!({"op": "acquire", "lock": "a", "wait_ms": null}));
    eventually("it waits", || holder.request(json!({"op": "peek", "lock": "a"}))["waiters"] == 1);
    let refused = third.request(json!({"op": "acquire", "lock": "a", "wait_ms": 1100}));
    assert_eq!(refused["error"], "timeout");
    holder.release("a");
    assert_eq!(second.receive()["ok"], true);
    drop(second);
    let has = |part: &str| told(&daemon).iter().any(|line| line.contains(part));
    eventually("the log has the grant", || has("was granted the lock a after 1"));
    eventually("the log has its end", || has("ENDED=\"session ended\""));
}

/// All grants and releases, and the ends of sessions; or nothing.
#[test]
fn all_or_nothing() {
    for (audit, parts) in
        [("all", &["was granted the lock a after 0 ms", "ENDED=released", "the client ended it"][..]), ("off", &[])]
    {
        let mut daemon = Daemon::setup().flag("--audit", audit).start();
        let mut client = V1::connect(&daemon.tcp());
        client.acquire("a");
        client.release("a");
        drop(client);
        for part in parts {
            eventually(part, || told(&daemon).iter().any(|line| line.contains(part)));
        }
        daemon.terminate();
        assert_eq!(told(&daemon).len(), parts.len(), "{:#?}", told(&daemon));
    }
}

/// A folder with a journalctl that keeps its arguments in `args` and then does this.
fn journalctl(script: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journalctl");
    let arguments = folder.path().join("args");
    let text = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\n{script}\n", arguments.display());
    fs::write(&path, text).expect("a script can be written");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it is ours");
    folder
}

fn history(folder: &Path, arguments: &[&str]) -> Command {
    let mut run = command("", &[&["history"], arguments].concat());
    run.env("PATH", format!("{}:/usr/bin:/bin", folder.display())).env("TZ", "UTC");
    run
}

/// The journal is read with the options of journalctl, without a shell; a table, and JSON of the
/// names that were asked for; and a word on what is missing.
#[test]
fn the_journal_is_read() {
    let folder = journalctl(&format!("cat {RECORDED}"));
    let run = ended(history(folder.path(), &["--since", "-2h; touch x", "-U", "now", "-M", "box", "--file", "/x*"]));
    assert_eq!(run.code(), 0, "{}", run.err);
    assert_eq!(run.out.lines().count(), 5, "{}", run.out);
    assert!(run.out.starts_with("LOCK ") && run.out.contains("2026-11-28 03:00:00"), "{}", run.out);
    assert!(run.err.contains("7 events are missing") && run.err.contains("session-3.scope"), "{}", run.err);
    let arguments = fs::read_to_string(folder.path().join("args")).expect("it was run");
    for argument in ["--output=json", "--since=-2h; touch x", "--until=now", "--machine=box", "--file", "/x*"] {
        assert!(arguments.lines().any(|line| line == argument), "{argument}: {arguments}");
    }
    assert_eq!(arguments.lines().filter(|line| line.starts_with("MESSAGE_ID=")).count(), 4);
    let run = ended(history(folder.path(), &["--json", "g?u*"]));
    let row: Value = serde_json::from_str(&run.out).expect("one line");
    assert_eq!(
        (&row["lock"], &row["ended"], &row["from"]),
        (&json!("gpu"), &json!(null), &json!("2026-11-28T03:13:00.000Z"))
    );
    let run = ended(history(folder.path(), &["--json", "-u", "session-3.scope"]));
    let row: Value = serde_json::from_str(&run.out).expect("one line");
    assert_eq!(row["lock"], "forged");
}

/// There is no journalctl, or it fails, or prints a line without an end; or the reader goes.
#[test]
fn no_journal() {
    let empty = tempfile::tempdir().expect("a folder");
    let mut run = history(empty.path(), &[]);
    run.env("PATH", empty.path());
    let run = ended(run);
    assert_eq!((run.code(), run.out.as_str()), (69, ""));
    assert!(run.err.contains("cannot run journalctl") && run.err.contains("standard error"), "{}", run.err);
    let folder = journalctl("echo 'no such time' >&2; exit 1");
    let run = ended(history(folder.path(), &["--since", "x"]));
    assert_eq!(run.code(), 71);
    assert!(run.err.contains("no such time") && run.err.contains("journalctl failed"), "{}", run.err);
    let folder = journalctl("head -c 5000000 /dev/zero");
    let run = ended(history(folder.path(), &[]));
    assert_eq!((run.code(), run.out.lines().count(), run.err.as_str()), (0, 1, ""));
    let folder = journalctl(&format!("for n in $(seq 2000); do cat {RECORDED}; done"));
    let mut shell = Command::new("bash");
    shell.args(["-c", "$D history -u distrilock | head -n 1; echo ${PIPESTATUS[0]}"]).env("D", DISTRILOCK);
    shell.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()));
    let run = ended(shell);
    assert!(run.out.starts_with("LOCK ") && run.out.ends_with("\n0\n") && run.err.is_empty(), "{}{}", run.out, run.err);
}
