//! One session acquires and releases one name as fast as it can: Linux's server can drop a lock
//! that it has just granted if the same client unlocks and locks quickly. Its lock table is read a
//! moment after every grant, because that is when the lock disappears.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::hosts::{Node, Server, Version};
use crate::report::Report;
use crate::witness::{spin, try_lock, unlock};

/// How long after a grant the table is read.
const LATER: Duration = Duration::from_millis(1);

/// Warm names, then names whose file is opened anew for each grant; and how often the defect occurs
/// without an anchor.
pub(crate) fn tight(server: &Server, report: &Report) {
    // Without sessions (4.0) nothing is freed late. 4.1 and 4.2 lock in the same way, and a cycle
    // takes time, so only one of them runs 10,000 cycles. With sessions, the end of each fresh file
    // needs a process of its own.
    let (warm, fresh) = match server.version {
        Version::V40 => (1000, 300),
        Version::V41 => (2000, 200),
        Version::V42 => (10_000, 200),
    };
    let [host] = server.hosts("relock", ["ra"]);
    let node = host.daemon(report, &[]);
    cycles(server, report, &node, "warm", warm);
    drop(node);
    let node = host.daemon(report, &["--linger", "0"]);
    cycles(server, report, &node, "fresh", fresh);
    without_anchor(server, report, &host.path("/mnt/bare.lck"), warm / 5);
}

fn cycles(server: &Server, report: &Report, node: &Node, lock: &str, count: u32) {
    let mut session = node.session();
    let start = Instant::now();
    let mut lost = VecDeque::new();
    for n in 0..count {
        session.acquire(lock);
        spin(LATER);
        if !server.has_lock("relock", lock) {
            lost.push_back(n);
        }
        session.release(lock);
    }
    let seconds = start.elapsed().as_secs_f64();
    let detail = format!("{} of {count} grants are not in the server's table, {seconds:.1} s {lost:.200?}", lost.len());
    report.check(&format!("no lock is dropped ({lock})"), lost.is_empty(), detail);
}

/// The same without an anchor and without a daemon: shows whether this kernel has the defect at
/// all.
fn without_anchor(server: &Server, report: &Report, path: &std::path::Path, count: u32) {
    let file = crate::witness::open(path).expect("a fresh file");
    let inode = fs::metadata("/export/relock/bare.lck").expect("the same file").ino();
    let mut lost = 0;
    for _ in 0..count {
        assert!(try_lock(&file, 0, 0).expect("the server answers"), "nobody else wants it");
        spin(LATER);
        lost += u32::from(server.locks(inode).is_empty());
        unlock(&file, 0, 0).expect("the server answers");
    }
    report.figure("without an anchor the server drops", format!("{lost} of {count}"));
}
