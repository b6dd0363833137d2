//! The deadlock detector: a thread that looks for sessions which keep each other waiting for good,
//! and refuses a request of each such cycle (docs/decisions/0020).
//!
//! No request waits for it. A session that may have closed a cycle only says so
//! ([`Deadlocks::look`]). The detector then lets others join in, reads all queues, each shard in
//! pieces, and runs the search of [`distrilock_engine::deadlock`]. A deadlock does not change: what
//! looks like one is read a second time, and a session that has changed meanwhile is not stuck.
//! Afterwards the detector rests for a multiple of the time that it took.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{LockTable, Source};
use crate::limits::{CYCLE_SHOWN_MAX, DEADLOCK_BATCH_MS, DEADLOCK_REST_FACTOR, DEADLOCKS_PER_SWEEP_MAX};
use distrilock_engine::deadlock::{Deadlock, Edge, changed, deadlocks, only, stuck};
use distrilock_engine::{Input, SessionId, Withdrawal};

/// What sessions and the detector know of each other.
#[derive(Debug, Default)]
pub struct Deadlocks {
    /// A session may have closed a cycle since the detector last began to read.
    wanted: AtomicBool,
    /// The daemon ends.
    ended: AtomicBool,
    detector: OnceLock<Thread>,
}

impl Deadlocks {
    /// A session may have closed a cycle.
    ///
    /// The detector reads the flag before it locks the shards, and a session has locked its shard
    /// before it looks at the flag. So a session that finds the flag set is seen by the detector.
    pub fn look(&self) {
        if !self.wanted.load(Ordering::Relaxed) && !self.wanted.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// No request is refused any more: the daemon ends.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Some(detector) = self.detector.get() {
            detector.unpark();
        }
    }
}

/// Starts the detector, before there are sessions.
///
/// # Errors
/// If the system refuses a thread.
pub(crate) fn start(table: &Arc<LockTable>) -> io::Result<()> {
    let own = Arc::clone(table);
    let detector = thread::Builder::new().name("deadlocks".into()).spawn(move || watch(&own))?;
    table.deadlocks.detector.set(detector.thread().clone()).expect("the daemon starts only once");
    Ok(())
}

fn watch(table: &Arc<LockTable>) {
    let Deadlocks { wanted, ended, .. } = &table.deadlocks;
    while !ended.load(Ordering::SeqCst) {
        if !wanted.load(Ordering::SeqCst) {
            thread::park();
            continue;
        }
        thread::sleep(Duration::from_millis(DEADLOCK_BATCH_MS));
        wanted.store(false, Ordering::SeqCst);
        let begun = Instant::now();
        if table.refuse_deadlocks() {
            table.deadlocks.look();
        }
        thread::sleep(begun.elapsed() * DEADLOCK_REST_FACTOR);
    }
}

impl LockTable {
    /// Looks for deadlocks once, and refuses a request of each. Returns whether there may be more.
    fn refuse_deadlocks(self: &Arc<Self>) -> bool {
        let mut before = self.shards.queues(|_| {});
        let suspects = stuck(&before);
        if suspects.is_empty() {
            return false;
        }
        only(&mut before, &suspects);
        let after = self.shards.queues(|queues| only(queues, &suspects));
        let moving = changed(&before, &after);
        let found = deadlocks(&before, &moving, DEADLOCKS_PER_SWEEP_MAX);
        let more = !moving.is_empty() || found.len() == DEADLOCKS_PER_SWEEP_MAX;
        for Deadlock { victim, cycle } in found {
            if self.deadlocks.ended.load(Ordering::SeqCst) {
                return false;
            }
            let why = Withdrawal::Deadlock(self.describe(&cycle).into());
            self.submit(&victim.name.clone(), Input::Withdraw { asked: victim, why }, Source::Daemon);
        }
        more
    }

    fn describe(&self, cycle: &[Edge]) -> String {
        let edges: Vec<String> = cycle.iter().take(CYCLE_SHOWN_MAX).map(|edge| self.describe_edge(edge)).collect();
        let more = if cycle.len() > edges.len() { "; and so on" } else { "" };
        format!("it would wait for itself: {}{more}", edges.join("; "))
    }

    fn describe_edge(&self, edge: &Edge) -> String {
        let called = |session: SessionId| match self.mailboxes.introduction(session).name {
            Some(name) => format!("{name} (session {session})"),
            None => format!("session {session}"),
        };
        let (waits, other) = (called(edge.waits), called(edge.because_of));
        let how = if edge.holds { "holds" } else { "waited for before" };
        format!("{waits} waits for {}, which {other} {how}", edge.name)
    }
}
