//! [`ThrottledLog`]: messages that could come a thousand times a second. Each kind is logged once a
//! minute.

use std::time::Duration;

use super::mailbox::TooManySessions;
use super::throttle::Throttle;
use crate::systemd::ids;
use distrilock_engine::fault::Fault;
use distrilock_protocol::name::LockName;

/// Logs each kind of message once a minute, with the number of those that were held back.
#[derive(Debug, Default)]
pub struct ThrottledLog {
    faults: Throttle,
    accepts: Throttle,
    too_many: Throttle,
    long_turns: Throttle,
}

impl ThrottledLog {
    pub(super) fn fault(&self, name: &LockName, fault: &Fault) {
        if let Some(more) = self.faults.pass() {
            tracing::error!(
                MESSAGE_ID = ids::STORAGE_FAULT, LOCK = %name,
                "{fault}: {} ({more} more failures since this was last logged)", fault.remedy()
            );
        }
    }

    /// A connection has to wait for a descriptor.
    pub fn exhausted(&self, error: &std::io::Error) {
        if let Some(more) = self.accepts.pass() {
            tracing::error!(
                MESSAGE_ID = ids::DESCRIPTORS_EXHAUSTED,
                "out of file descriptors, new connections wait: {error}; raise LimitNOFILE= of the service, or ulimit -n \
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
        if let Some(more) = self.accepts.pass() {
            tracing::error!(
                "a listening socket fails: {error}; restart its unit ({more} more since this was last logged)"
            );
        }
    }
}

pub(super) fn log_deleted(name: &LockName) {
    tracing::warn!(
        MESSAGE_ID = ids::LOCK_LOST, LOCK = %name,
        "the file of the lock {name} was deleted while it was held: another daemon may have granted it"
    );
}
