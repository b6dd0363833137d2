//! [`ThrottledLog`]: messages that clients, other daemons or whoever writes into the lock directory
//! can cause as often as they like. Each cause has a budget of lines a minute; the others are
//! counted, and a later line has their number. One cause never uses up the budget of another.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use super::mailbox::TooManySessions;
use super::throttle::Throttle;
use crate::limits::{LINES_PER_MINUTE_MAX, LOSSES_PER_MINUTE_MAX};
use crate::sync::locked;
use crate::systemd::ids;
use distrilock_engine::SessionId;
use distrilock_engine::fault::{Cause, Fault};
use distrilock_protocol::Violation;
use distrilock_protocol::name::LockName;

/// Logs a few messages of each cause a minute, with the number of those that were held back.
#[derive(Debug)]
pub struct ThrottledLog {
    /// By cause: a client that asks for a lock file which is a directory must not hide that the
    /// disk is full. There are as many causes as the system has error numbers, at most.
    faults: Mutex<HashMap<Cause, Throttle>>,
    exhausted: Throttle,
    accept_failed: Throttle,
    too_many: Throttle,
    long_turns: Throttle,
    mount_unknown: Throttle,
    too_long: Throttle,
    gob: Throttle,
    websocket: Throttle,
    not_json: Throttle,
    slow_reader: Throttle,
    lost: Throttle,
    deleted: Throttle,
    clashes: Throttle,
    not_handed_over: Throttle,
}

impl Default for ThrottledLog {
    fn default() -> Self {
        let few = || Throttle::new(LINES_PER_MINUTE_MAX);
        Self {
            faults: Mutex::default(),
            exhausted: Throttle::new(1),
            accept_failed: Throttle::new(1),
            too_many: Throttle::new(1),
            long_turns: Throttle::new(1),
            mount_unknown: Throttle::new(1),
            too_long: few(),
            gob: few(),
            websocket: few(),
            not_json: few(),
            slow_reader: few(),
            lost: Throttle::new(LOSSES_PER_MINUTE_MAX),
            deleted: Throttle::new(LOSSES_PER_MINUTE_MAX),
            clashes: few(),
            not_handed_over: few(),
        }
    }
}

/// How many messages were held back, at the end of the next one.
struct More(u64);

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            more => write!(f, " ({more} more since this was last logged)"),
        }
    }
}

/// Who broke the protocol, or did not read.
#[derive(Clone, Copy, Debug)]
pub struct Offender<'a> {
    /// Its session.
    pub session: SessionId,
    /// Where it connected from.
    pub peer: &'a str,
    /// The protocol that it spoke.
    pub dialect: &'static str,
}

impl ThrottledLog {
    pub(super) fn fault(&self, name: &LockName, fault: &Fault) {
        let passed = locked(&self.faults).entry(fault.cause).or_insert_with(|| Throttle::new(1)).pass();
        if let Some(more) = passed {
            tracing::error!(
                MESSAGE_ID = ids::STORAGE_FAULT, LOCK = %name,
                "{fault}: {} ({more} more failures since this was last logged)", fault.remedy()
            );
        }
    }

    /// New connections have to wait: what is left of the descriptors is kept for lock files, or
    /// there is none.
    pub fn exhausted(&self, why: &dyn fmt::Display) {
        if let Some(more) = self.exhausted.pass() {
            tracing::error!(
                MESSAGE_ID = ids::DESCRIPTORS_EXHAUSTED,
                "out of file descriptors, new connections wait: {why}; raise LimitNOFILE= of the service, or ulimit -n \
                 ({more} more attempts since this was last logged)"
            );
        }
    }

    /// A connection was turned away.
    pub fn too_many(&self, too_many: TooManySessions) {
        if let Some(more) = self.too_many.pass() {
            tracing::warn!(
                MESSAGE_ID = ids::SESSION_LIMIT,
                LIMIT = too_many.sessions_max,
                "a connection was turned away: {too_many} ({more} more since this was last logged)"
            );
        }
    }

    /// A session kept its thread for long.
    pub fn long_turn(&self, thread: usize, turn: Duration) {
        if let Some(more) = self.long_turns.pass() {
            let ms = turn.as_millis();
            tracing::warn!(
                MESSAGE_ID = ids::LONG_TURN, LONGEST_MS = %ms,
                "the thread sessions-{thread} was busy with one session for {ms} ms, and the others waited; if the host \
                 is not short of processor time, please report it ({more} more seconds with such turns since this was \
                 last logged)"
            );
        }
    }

    /// A listener fails.
    pub fn accept_failed(&self, error: &std::io::Error) {
        if let Some(more) = self.accept_failed.pass() {
            tracing::error!(
                "a listening socket fails: {error}; restart its unit ({more} more since this was last logged)"
            );
        }
    }

    /// What is mounted under the lock directory cannot be found out just now.
    pub(crate) fn mount_unknown(&self, error: &dyn fmt::Display) {
        if let Some(more) = self.mount_unknown.pass() {
            tracing::warn!(
                MESSAGE_ID = ids::STORAGE_FAULT,
                "cannot find out whether another file system lies under the lock directory: {error}; trying again{}",
                More(more)
            );
        }
    }

    /// A session ends because its client broke the protocol, or does not read.
    pub fn violation(&self, Offender { session, peer, dialect }: Offender<'_>, violation: &Violation) {
        let Some(more) = self.throttle_of(violation).pass().map(More) else { return };
        match violation {
            Violation::SlowReader { .. } => tracing::warn!(
                MESSAGE_ID = ids::SLOW_READER, SESSION = %session, PEER = peer, DIALECT = dialect,
                "session {session} of {peer} closed: {violation}{more}"
            ),
            violation => tracing::info!(
                MESSAGE_ID = ids::SESSION_VIOLATION, SESSION = %session, PEER = peer, DIALECT = dialect,
                "session {session} of {peer} closed: {violation}{more}"
            ),
        }
    }

    fn throttle_of(&self, violation: &Violation) -> &Throttle {
        match violation {
            Violation::TooLong { .. } => &self.too_long,
            Violation::Gob(_) => &self.gob,
            Violation::WebSocket(_) => &self.websocket,
            Violation::NotJson | Violation::ByteOrderMark => &self.not_json,
            Violation::SlowReader { .. } => &self.slow_reader,
        }
    }

    /// A session has lost a lock.
    pub(super) fn lost(&self, session: SessionId, name: &LockName, reason: &str) {
        if let Some(more) = self.lost.pass().map(More) {
            tracing::warn!(
                MESSAGE_ID = ids::LOCK_LOST, LOCK = %name, SESSION = %session,
                "session {session} lost the lock {name}: {reason}{more}"
            );
        }
    }

    /// A lock was released, or passed on, whose file had been deleted meanwhile.
    pub(super) fn deleted(&self, name: &LockName) {
        if let Some(more) = self.deleted.pass().map(More) {
            tracing::warn!(
                MESSAGE_ID = ids::LOCK_LOST, LOCK = %name,
                "the file of the lock {name} was deleted while it was held: another daemon may have granted it{more}"
            );
        }
    }

    /// Another daemon says that its host introduces itself to the file server as this one does.
    pub(super) fn clash(&self, node: &str, process: u32, client: &str) {
        if let Some(more) = self.clashes.pass().map(More) {
            tracing::error!(
                MESSAGE_ID = ids::CLIENT_CLASH,
                "the host of another daemon, {node} (process {process}), introduces itself to the NFS server as {client:?}, \
                 as this one does: each wipes the other's locks; give the hosts different names, or set nfs4_unique_id \
                 (nfs(5)){more}"
            );
        }
    }

    /// A connection cannot go to the next process of the daemon.
    pub fn not_handed_over(&self, error: &std::io::Error) {
        if let Some(more) = self.not_handed_over.pass().map(More) {
            tracing::error!(MESSAGE_ID = ids::HAND_OVER_FAILED, "a session cannot be handed over: {error}{more}");
        }
    }

    /// Logs how many messages were held back in minutes that are over. Called from time to time:
    /// after a flood there may be no next message to have their number.
    pub(crate) fn summarise(&self) {
        let faults: u64 = locked(&self.faults).values().filter_map(Throttle::summary).sum();
        if faults > 0 {
            tracing::error!(
                MESSAGE_ID = ids::STORAGE_FAULT,
                "{faults} more failures in the lock directory were not logged"
            );
        }
        for (throttle, what) in [
            (&self.exhausted, "attempts to accept a connection without a descriptor"),
            (&self.accept_failed, "failures of listening sockets"),
            (&self.too_many, "connections that were turned away"),
            (&self.mount_unknown, "attempts to find out what is mounted"),
            (&self.too_long, "sessions closed after a message that was too long"),
            (&self.gob, "sessions closed after a malformed gob stream"),
            (&self.websocket, "sessions closed after a violation of WebSocket"),
            (&self.not_json, "sessions closed after a first line that was no JSON object"),
            (&self.slow_reader, "sessions closed because their clients did not read"),
            (&self.lost, "lost locks"),
            (&self.deleted, "files deleted while they were held"),
            (&self.clashes, "daemons whose hosts clash with this one"),
            (&self.not_handed_over, "sessions that could not be handed over"),
        ] {
            if let Some(count) = throttle.summary() {
                tracing::warn!("not logged one by one in the last minute or more: {count} {what}");
            }
        }
    }
}
