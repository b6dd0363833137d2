//! The command with a lease so short that little time is left to stop what it runs.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::hosts::{Host, Node, Server, lock_files, timing};
use crate::machine::COMMAND;
use crate::report::Report;

/// The exit statuses of a command whose lock was lost, and of one that was refused.
const LOST: Option<i32> = Some(74);
const REFUSED: Option<i32> = Some(65);

/// How often the machine is measured while a command runs.
const BEAT: Duration = Duration::from_millis(50);

/// A machine on which everything takes longer than this is too slow to be judged. The lease leaves
/// six times as much for the answer to a heartbeat.
const LATE: Duration = Duration::from_millis(250);

/// How many times a command is run because the machine was too slow.
const ATTEMPTS_MAX: u32 = 10;

/// What does not fit the lease is refused, and nothing is acquired or run. A command that runs for
/// several heartbeats keeps its lock, with the default time to stop it and with the longest that
/// fits.
pub(crate) fn short_lease(server: &Server, report: &Report) {
    if COMMAND.is_none() {
        return report.check("there is no command", true, "");
    }
    let [host] = server.hosts("command", ["cm"]);
    let node = host.daemon(report, &[]);
    // The server may have started just now, and its grace period delays the daemon.
    node.session().ping();
    let (status, said) = run(&host, &node, &["--kill-after", "5s", "refused", "--", "touch", "/tmp/ran"]);
    let refused = status == REFUSED && said.contains("lease time") && !host.path("/tmp/ran").exists();
    report.check("a time to stop that does not fit is refused", refused, format!("{status:?} {said}"));
    let files = lock_files("command");
    report.check("and nothing was acquired before", files.is_empty(), format!("{files:?}"));
    keeps(&host, &node, report, "the default time to stop", &[]);
    let fitting = said.rsplit_once("--kill-after ").and_then(|(_, rest)| rest.split_once(" fits"));
    match fitting {
        Some((longest, _)) => keeps(&host, &node, report, "the longest time that fits", &["--kill-after", longest]),
        None => report.check("the refusal says what fits", false, said),
    }
}

/// A command keeps its lock for longer than an answer makes it certain. On a machine that is too
/// slow to renew it in time, the lock is lost as it should be; that says nothing, so the command is
/// run again.
fn keeps(host: &Host, node: &Node, report: &Report, what: &str, options: &[&str]) {
    for _ in 0..ATTEMPTS_MAX {
        let (pace, (status, said)) =
            measured(node, || run(host, node, &[options, &["kept", "--", "sleep", "6"]].concat()));
        if status == Some(0) || status != LOST || pace.is_healthy() {
            let detail = format!("{options:?}: {status:?} {said}; {pace}");
            return report.check(&format!("a command keeps its lock with {what}"), status == Some(0), detail);
        }
        report.figure(&format!("too slow to keep a lock with {what}"), format!("{pace}; {}", said.trim()));
    }
    report.figure(&format!("not judged with {what}"), format!("the machine was too slow {ATTEMPTS_MAX} times"));
}

fn run(host: &Host, node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    host.distrilock(&[&["--server", &node.address, "run"], arguments].concat())
}

/// How fast the machine was: what another session of the daemon saw.
struct Pace {
    /// The longest time from a beat to the answer of its heartbeat.
    latest: Duration,
    /// The shortest time for which an answer made locks certain. The daemon makes it shorter when
    /// it hears the file server late.
    valid_min: Duration,
}

impl Pace {
    fn is_healthy(&self) -> bool {
        self.latest < LATE && self.valid_min >= timing().valid_min()
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "heartbeats answered within {:.0?}, locks certain for {:.1?}", self.latest, self.valid_min)
    }
}

/// Measures the machine while something runs.
fn measured<T>(node: &Node, work: impl FnOnce() -> T) -> (Pace, T) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            let mut session = node.session();
            let mut pace = Pace { latest: Duration::ZERO, valid_min: Duration::MAX };
            while !done.load(Ordering::Relaxed) {
                let beat = Instant::now();
                thread::sleep(BEAT);
                let reply = session.request(json!({"op": "ping"}));
                let valid_ms = reply["valid_ms"].as_u64().expect("a daemon on NFSv4 says how long locks are certain");
                pace.latest = pace.latest.max(beat.elapsed() - BEAT);
                pace.valid_min = pace.valid_min.min(Duration::from_millis(valid_ms));
            }
            pace
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (measuring.join().expect("the daemon answers"), result)
    })
}
