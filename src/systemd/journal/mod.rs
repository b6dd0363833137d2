//! Where the daemon's log goes: to journald with its fields, or to stderr for people.
//!
//! Two rules hold for both: the log never stops, blocks or kills the daemon, and a peer whose words
//! are logged cannot forge a line. `queue` hands events to `tracing-journald` on a thread of its
//! own, so that only this thread waits for a journald that does not read (decision 18). journald's
//! protocol gives each value a length, so a value may hold anything; `stderr` escapes what is not
//! printable.

mod history_target;
mod queue;
mod stderr;

use std::io;
use std::os::unix::net::UnixDatagram;

use libsystemd::logging::{SD_JOURNAL_SOCK_PATH, connected_to_journal};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

pub use history_target::HISTORY_TARGET;
use queue::Queue;
use stderr::Lines;

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A process has one log, and it exists already.
    #[error("the log was started twice")]
    Started(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Why journald is not used although stderr is connected to it.
#[derive(Debug, thiserror::Error)]
enum JournaldError {
    #[error("{SD_JOURNAL_SOCK_PATH}: {0}")]
    Connect(#[source] io::Error),
    #[error("cannot start a thread for the journal: {0}")]
    Thread(#[source] io::Error),
}

/// The log of this process. Dropping it waits a moment for the events that are still queued.
#[derive(Debug)]
#[must_use = "events that are queued when the process exits are lost unless this is dropped before"]
pub struct Log {
    _flush: Option<queue::Flush>,
}

/// Starts the log of this process, for events of `level` and above, and for the history.
///
/// If stderr is connected to journald, events go to journald, with their fields as journal fields;
/// otherwise, or if journald cannot be reached, they go to stderr. Names of journal fields are in
/// capitals: `LOCK`, `SESSION`, `PEER`, `DIALECT`, and `MESSAGE_ID` from [`ids`](super::ids). Call
/// this after [`sockets::take`](super::sockets::take), because it opens descriptors and may start a
/// thread.
///
/// # Errors
///
/// If the log was started before.
pub fn start(level: Level) -> Result<Log, LogError> {
    let level = LevelFilter::from_level(level);
    let filter = Targets::new().with_default(level).with_target(HISTORY_TARGET, LevelFilter::INFO);
    // JOURNAL_STREAM names the device and inode that systemd connected to journald
    // (systemd.exec(5)); the variable alone proves nothing, because it is inherited.
    if !connected_to_journal() {
        set(tracing_subscriber::registry().with(filter).with(Lines { prefix: false }))?;
        return Ok(Log { _flush: None });
    }
    match journald(&filter) {
        Ok((queue, flush)) => {
            set(tracing_subscriber::registry().with(filter).with(queue))?;
            Ok(Log { _flush: Some(flush) })
        }
        Err(error) => {
            set(tracing_subscriber::registry().with(filter).with(Lines { prefix: true }))?;
            tracing::warn!(%error, "journald cannot be used directly, logging to stderr");
            Ok(Log { _flush: None })
        }
    }
}

fn set(subscriber: impl Subscriber + Send + Sync) -> Result<(), LogError> {
    Ok(tracing::subscriber::set_global_default(subscriber)?)
}

/// Starts the thread that talks to journald, if journald is there and has room for a message.
fn journald(filter: &Targets) -> Result<(Queue, queue::Flush), JournaldError> {
    let first = UnixDatagram::unbound().map_err(JournaldError::Connect)?;
    // journald discards an empty datagram.
    let sent = first.set_nonblocking(true).and_then(|()| first.send_to(&[], SD_JOURNAL_SOCK_PATH));
    sent.map_err(JournaldError::Connect)?;
    queue::start(filter.clone()).map_err(JournaldError::Thread)
}
