//! Why `distrilock verify` answers no, and why it cannot answer.

use std::io;

/// Why the lock is not held, known without asking anybody.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotHeldError {
    #[error("this process does not run under distrilock run: there is no lock to verify")]
    NoRun,
    #[error("this command runs without the lock, as --run-anyway allows")]
    RunAnyway,
    #[error("{name} is not held: the distrilock run around this command holds {held}")]
    OtherName { name: String, held: String },
}

/// Why the guard, the process that holds the lock, cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskGuardError {
    #[error(
        "under distrilock run -F only the daemon can be asked, over descriptor {0} ($DISTRILOCK_FD): write \
         {{\"op\":\"verify\",\"lock\":NAME}} and a newline to it, and read the reply"
    )]
    NoFork(String),
    #[error(
        "$DISTRILOCK_GUARD is not set; is the distrilock run around this command another version, or was it short of \
         descriptors?"
    )]
    Unset,
    #[error("$DISTRILOCK_GUARD is not the address of a guard: {0}")]
    BadAddress(String),
    #[error(
        "{address}: cannot reach the process that holds the lock: {error}; it has ended, and the lock with it, unless \
         this process is in another network namespace; stop the work"
    )]
    Unreachable { address: String, error: io::Error },
    #[error(
        "{address}: the process that answers belongs to user {uid}, so it is not the one that holds the lock; stop the work"
    )]
    WrongUser { address: String, uid: u32 },
    #[error(
        "{address}: the process that holds the lock does not answer: {error}; is it stopped? Whether the lock is held \
         is unknown"
    )]
    NoAnswer { address: String, error: io::Error },
}
