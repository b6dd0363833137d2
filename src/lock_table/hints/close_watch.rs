//! Sessions may wait for programs that are not daemons. These send no messages, but they close lock
//! files, or the kernel does when they end. inotify(7) reports that, and the daemon then tries the
//! lock. A release without a close is found by polling.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::files::Files;
use crate::limits::CLOSE_WATCH_MS;
use crate::lock_table::{LockTable, Source};
use crate::readiness::watched;
use distrilock_engine::Input;

/// The kernel reports a close before it drops the lock of the open file description, so that an
/// immediate try could be refused. Files closed within this time are handled together.
const AFTER_A_CLOSE: Duration = Duration::from_millis(1);

/// Room for a dozen events with the longest names: a header of 16 bytes and a name of up to 256
/// (NAME_MAX and NUL).
const EVENTS_BYTES: usize = 12 * (16 + 256);

/// Whether closed lock files matter to a session.
#[derive(Debug, Default)]
pub(super) struct CloseWatch {
    wanted: AtomicBool,
    first: Notify,
}

impl CloseWatch {
    /// Sessions wait for a name that another process holds.
    pub(super) fn want(&self) {
        if !self.wanted.swap(true, Ordering::Relaxed) {
            self.first.notify_one();
        }
    }
}

/// Watches the lock directory while names are waited for, until the daemon ends.
pub(super) async fn watch(table: Arc<LockTable>) {
    let close_watch = &table.hints.close_watch;
    loop {
        close_watch.first.notified().await;
        let opened = open(&table);
        while close_watch.wanted.swap(false, Ordering::Relaxed) {
            let period = Duration::from_millis(CLOSE_WATCH_MS);
            match &opened {
                Ok(events) => {
                    tracing::trace!("closed lock files are watched");
                    if let Ok(Err(error)) = timeout(period, follow(&table, events)).await {
                        tracing::debug!("closed lock files are no longer watched: {error}");
                    }
                }
                Err(error) => {
                    tracing::debug!("closed lock files are not watched: {error}");
                    sleep(period).await;
                }
            }
        }
    }
}

fn open(table: &LockTable) -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let any_close = WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE | WatchFlags::ONLYDIR;
    inotify::add_watch(&events, table.storage.files.directory(), any_close)?;
    watched(events)
}

/// Has each name tried whose file was closed. Events that overflow the kernel's queue are lost;
/// polling finds those releases.
async fn follow(table: &Arc<LockTable>, events: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); EVENTS_BYTES];
    let mut reader = Reader::new(events.get_ref(), &mut room);
    let mut admitted = 0;
    loop {
        let mut ready = events.readable().await?;
        sleep(AFTER_A_CLOSE).await;
        loop {
            let closed = match reader.next() {
                Ok(event) => event.file_name().and_then(|name| Files::name_of(name.to_bytes())),
                Err(Errno::WOULDBLOCK) => break ready.clear_ready(),
                Err(error) => return Err(error.into()),
            };
            // Other files count too, for example the directory itself: anyone who can read it can
            // open and close it.
            if admitted == 0 {
                admitted = table.hints.rate.admit().await;
            }
            admitted -= 1;
            if let Some(name) = closed {
                tracing::trace!(LOCK = %name, "the file of {name} was closed");
                table.submit(&name, Input::Hint(name.clone()), Source::Daemon);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir};
    use std::time::Instant;

    use super::*;
    use crate::limits::{MESSAGES_PER_PERIOD_MAX, MESSAGES_PERIOD_MS};

    /// A program opens the directory and a folder in it again and again: those events are handled
    /// no faster than events of locks.
    #[test]
    fn a_flood_is_slowed_down() {
        const ROUNDS: usize = 2000;
        let directory = tempfile::tempdir().unwrap();
        let other = directory.path().join("other");
        create_dir(&other).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let table = LockTable::of_directory(directory.path(), runtime.handle());
        runtime.block_on(async {
            let events = open(&table).unwrap();
            for _ in 0..ROUNDS {
                // The kernel makes one event of several that are the same.
                File::open(directory.path()).and_then(|_| File::open(&other)).unwrap();
            }
            let begun = Instant::now();
            let _ = timeout(Duration::from_millis(2 * MESSAGES_PERIOD_MS), follow(&table, &events)).await;
            let periods = begun.elapsed().as_millis() / u128::from(MESSAGES_PERIOD_MS) + 2;
            let mut room = [MaybeUninit::uninit(); EVENTS_BYTES];
            let mut reader = Reader::new(events.get_ref(), &mut room);
            let left = std::iter::from_fn(|| reader.next().is_ok().then_some(())).count();
            let (taken, buffered) = (2 * ROUNDS - left, EVENTS_BYTES / 16);
            let most = periods * u128::from(MESSAGES_PER_PERIOD_MAX) + buffered as u128;
            assert!(taken as u128 <= most, "{taken} in {periods} periods");
        });
    }
}
