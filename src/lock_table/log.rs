//! What the daemon logs while it serves; what may happen a thousand times a second is logged once a minute.

use super::Core;
use super::mailbox::TooMany;
use crate::systemd::ids;
use distrilock_engine::fault::Fault;
use distrilock_protocol::name::LockName;

impl Core {
    pub(crate) fn log_fault(&self, name: &LockName, fault: &Fault) {
        if let Some(more) = self.faults.pass() {
            tracing::error!(
                MESSAGE_ID = ids::STORAGE_FAULT, LOCK = %name,
                "{fault}: {} ({more} more failures since this was last said)", fault.remedy()
            );
        }
    }

    /// Says that a connection has to wait for a descriptor.
    pub fn log_exhausted(&self, error: &std::io::Error) {
        if let Some(more) = self.exhausted.pass() {
            tracing::error!(
                MESSAGE_ID = ids::DESCRIPTORS_EXHAUSTED,
                "out of file descriptors, new connections wait: {error}; raise LimitNOFILE= of the service, or ulimit -n \
                 ({more} more attempts since this was last said)"
            );
        }
    }

    /// Says that a connection was turned away.
    pub fn log_too_many(&self, too_many: TooMany) {
        if let Some(more) = self.too_many.pass() {
            tracing::warn!(
                MESSAGE_ID = ids::SESSION_LIMIT,
                LIMIT = too_many.sessions_max,
                "a connection was turned away: {too_many} ({more} more since this was last said)"
            );
        }
    }

    /// Says that a listener fails.
    pub fn log_accept(&self, error: &std::io::Error) {
        if let Some(more) = self.exhausted.pass() {
            tracing::error!(
                "a listening socket fails: {error}; restart its unit ({more} more since this was last said)"
            );
        }
    }
}

pub(crate) fn log_deleted(name: &LockName) {
    tracing::warn!(
        MESSAGE_ID = ids::LOCK_LOST, LOCK = %name,
        "the file of the lock {name} was deleted while it was held: another daemon may have granted it"
    );
}
