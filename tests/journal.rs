//! The log of a process whose stderr is connected to a journald that reads nothing.
//!
//! `tracing-journald` knows only one path, so the test makes its journald in a mount namespace of
//! its own, user_namespaces(7), in which it runs itself again.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use distrilock::systemd::{ids, journal};

/// Set in the process that runs inside.
const INSIDE: &str = "DISTRILOCK_TEST_INSIDE";

/// More events than the queues of the kernel and of the daemon can hold.
const MANY: u64 = 50_000;

/// `$1` is appended to JOURNAL_STREAM; `$0` is the test.
const SCRIPT: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
    export JOURNAL_STREAM=\"$(stat -Lc %d:%i /proc/self/fd/2)$1\" && \
    exec \"$0\" --exact --nocapture --test-threads=1 \"$2\"";

/// Runs the test `name` again in a namespace, and returns its result and stderr.
fn run_inside(name: &str, suffix: &str) -> (bool, String) {
    let output = Command::new("timeout")
        .args(["60", "unshare", "-rm", "sh", "-c", SCRIPT])
        .arg(std::env::current_exe().unwrap())
        .args([suffix, name])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    (stdout.contains("1 passed"), stderr)
}

/// Splits a datagram of the native protocol into its fields.
fn fields(mut datagram: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some(end) = datagram.iter().position(|b| *b == b'\n') {
        let name = String::from_utf8(datagram[..end].to_vec()).unwrap();
        datagram = &datagram[end + 1..];
        if let Some((name, value)) = name.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
            continue;
        }
        let (len, rest) = datagram.split_first_chunk().unwrap();
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap();
        fields.insert(name, String::from_utf8(rest[..len].to_vec()).unwrap());
        assert_eq!(rest[len], b'\n');
        datagram = &rest[len + 1..];
    }
    fields
}

#[test]
fn a_stopped_journald_stops_nobody() {
    // journald reads nothing while many events are logged, and then reads again.
    if std::env::var_os(INSIDE).is_none() {
        let (passed, stderr) = run_inside("a_stopped_journald_stops_nobody", "");
        assert!(passed);
        assert!(!stderr.contains("hello"), "{stderr}");
        return;
    }
    let journald = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    journald.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let log = journal::start(tracing::Level::DEBUG).unwrap();
    let forged = "a\nPRIORITY=0\n";
    tracing::info!(LOCK = %"x", PEER = forged, MESSAGE_ID = ids::SLOW_READER, "hello {forged}");
    tracing::debug!("second");
    tracing::trace!("not of this level");
    for number in 0..MANY {
        tracing::warn!(number, "many");
    }
    assert!(journal::start(tracing::Level::INFO).is_err(), "a second log");
    // The process could end here.
    drop(log);

    let mut bytes = vec![0; 1 << 16];
    let mut next = || {
        loop {
            let len = journald.recv(&mut bytes).unwrap();
            // An empty datagram only checks whether journald is there.
            if len > 0 {
                return fields(&bytes[..len]);
            }
        }
    };
    let first = next();
    assert_eq!(first["PRIORITY"], "6");
    assert_eq!(first["SYSLOG_IDENTIFIER"], "distrilockd");
    assert_eq!(first["MESSAGE"], format!("hello {forged}"));
    assert_eq!(first["PEER"], forged);
    assert_eq!(first["LOCK"], "x");
    assert_eq!(first["MESSAGE_ID"], ids::SLOW_READER);
    assert!(first["CODE_FILE"].ends_with("journal.rs"));
    assert_eq!(next()["PRIORITY"], "7");
    let (mut numbers, mut dropped) = (Vec::new(), 0);
    // When there is room again, the log continues.
    let mut read = |until: fn(&BTreeMap<String, String>) -> bool| {
        loop {
            let event = next();
            if let Some(number) = event.get("NUMBER") {
                assert_eq!(event["PRIORITY"], "4");
                numbers.push(number.parse::<u64>().unwrap());
            }
            if let Some(count) = event.get("DROPPED") {
                assert_eq!(event["PRIORITY"], "4");
                dropped += count.parse::<u64>().unwrap();
            }
            if until(&event) {
                return;
            }
        }
    };
    read(|event| event.contains_key("DROPPED"));
    tracing::error!("room");
    read(|event| event["PRIORITY"] == "3");
    assert!(numbers.is_sorted());
    assert!(!numbers.is_empty() && dropped > 0, "the queue was never full");
    assert_eq!(u64::try_from(numbers.len()).unwrap() + dropped, MANY, "each is logged or counted");
}

#[test]
fn a_journald_that_is_full_at_start_stops_nobody() {
    // journald was stopped long ago, and others filled its queue before the log starts.
    if std::env::var_os(INSIDE).is_none() {
        let (passed, stderr) = run_inside("a_journald_that_is_full_at_start_stops_nobody", "");
        assert!(passed);
        assert!(stderr.contains("<4> WARN journald cannot be used directly"), "{stderr}");
        assert!(stderr.contains("<6> INFO said to stderr LOCK=x\n"), "{stderr}");
        return;
    }
    let _journald = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to(b"A=1\n", "/run/systemd/journal/socket").is_ok() {}
    let _log = journal::start(tracing::Level::INFO).unwrap();
    tracing::info!(LOCK = "x", MESSAGE_ID = ids::LOCK_LOST, "said to stderr");
}

#[test]
fn a_journal_that_is_not_there_leaves_stderr() {
    // JOURNAL_STREAM names stderr, but journald's socket is missing.
    if std::env::var_os(INSIDE).is_none() {
        let (passed, stderr) = run_inside("a_journal_that_is_not_there_leaves_stderr", "");
        assert!(passed);
        assert!(stderr.contains("/run/systemd/journal/socket: No such file"), "{stderr}");
        assert!(stderr.contains("<6> INFO said to stderr\n"), "{stderr}");
        return;
    }
    let _log = journal::start(tracing::Level::INFO).unwrap();
    tracing::info!("said to stderr");
}

#[test]
fn a_stream_that_is_not_ours_leaves_stderr() {
    // The environment was inherited from a service, but stderr has been redirected.
    if std::env::var_os(INSIDE).is_none() {
        let (passed, stderr) = run_inside("a_stream_that_is_not_ours_leaves_stderr", "0");
        assert!(passed);
        assert!(stderr.contains(" INFO said to stderr\n"), "{stderr}");
        assert!(!stderr.contains("<6>"), "{stderr}");
        return;
    }
    let journald = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    journald.set_nonblocking(true).unwrap();
    let _log = journal::start(tracing::Level::INFO).unwrap();
    tracing::info!("said to stderr");
    assert!(journald.recv(&mut [0; 64]).is_err());
}
