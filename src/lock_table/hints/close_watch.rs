//! The side of the daemon whose sessions wait for programs that are no daemon: they give no word, but they close lock files, or the
//! kernel does when they end. inotify(7) tells of that, which brings about a try; a release without a close is found by polling.

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

use super::rate_limit::Portions;
use crate::files::Files;
use crate::limits::CLOSINGS_WATCHED_MS;
use crate::lock_table::Core;
use crate::readiness::watched;
use distrilock_engine::Input;

/// The kernel tells of a close before it drops an open file description's lock: a try that came at once could be refused. Closings
/// within this time are taken together.
const AFTER_A_CLOSE: Duration = Duration::from_millis(1);

/// Room for a dozen events with the longest names: a header of 16 bytes and up to 256 of a name (NAME_MAX and NUL).
const EVENTS_BYTES: usize = 12 * (16 + 256);

/// Whether anybody wants to hear of closings.
#[derive(Debug, Default)]
pub(super) struct Closings {
    wanted: AtomicBool,
    first: Notify,
}

impl Closings {
    /// Sessions wait for a name that another process holds.
    pub(super) fn want(&self) {
        if !self.wanted.swap(true, Ordering::Relaxed) {
            self.first.notify_one();
        }
    }
}

/// Watches the lock directory while names are waited for, until the daemon ends.
pub(super) async fn watch(core: Arc<Core>) {
    let closings = &core.hints.closings;
    loop {
        closings.first.notified().await;
        let opened = open(&core);
        while closings.wanted.swap(false, Ordering::Relaxed) {
            let period = Duration::from_millis(CLOSINGS_WATCHED_MS);
            match &opened {
                Ok(events) => {
                    tracing::trace!("closed lock files are watched");
                    if let Ok(Err(error)) = timeout(period, follow(&core, events)).await {
                        tracing::debug!("no word of closed lock files: {error}");
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

fn open(core: &Core) -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let closings = WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE | WatchFlags::ONLYDIR;
    inotify::add_watch(&events, core.files.directory(), closings)?;
    watched(events)
}

/// Has each name tried whose file was closed. What overflows the kernel's queue is lost, and found by polling.
async fn follow(core: &Arc<Core>, events: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); EVENTS_BYTES];
    let mut reader = Reader::new(events.get_ref(), &mut room);
    let mut portions = Portions::new();
    loop {
        let mut ready = events.readable().await?;
        sleep(AFTER_A_CLOSE).await;
        loop {
            let closed = match reader.next() {
                Ok(event) => event.file_name().and_then(|name| Files::name_of(name.to_bytes())),
                Err(Errno::WOULDBLOCK) => break ready.clear_ready(),
                Err(error) => return Err(error.into()),
            };
            // Also of what is no lock file, the directory itself for example: whoever may read that can open and close it.
            portions.take().await;
            if let Some(name) = closed {
                tracing::trace!(LOCK = %name, "the file of {name} was closed");
                core.bring(&name, Input::Hint(name.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir};
    use std::time::Instant;

    use super::*;
    use crate::limits::{WORDS_PER_PERIOD_MAX, WORDS_PERIOD_MS};
    use crate::settings::Settings;

    /// Somebody looks at the directory and at one in it, again and again: that is taken no faster than what concerns locks.
    #[test]
    fn a_flood_is_slowed_down() {
        const ROUNDS: usize = 2000;
        let directory = tempfile::tempdir().unwrap();
        let other = directory.path().join("other");
        create_dir(&other).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let settings = Settings::for_directory(Some(directory.path().into()));
        let files = (Files::new(directory.path().into()), "local", None);
        let core = Arc::new(Core::new(settings, files, String::new(), 1000, runtime.handle().clone()));
        runtime.block_on(async {
            let events = open(&core).unwrap();
            for _ in 0..ROUNDS {
                // The kernel makes one event of several that are the same.
                File::open(directory.path()).and_then(|_| File::open(&other)).unwrap();
            }
            let begun = Instant::now();
            let _ = timeout(Duration::from_millis(2 * WORDS_PERIOD_MS), follow(&core, &events)).await;
            let periods = begun.elapsed().as_millis() / u128::from(WORDS_PERIOD_MS) + 2;
            let mut room = [MaybeUninit::uninit(); EVENTS_BYTES];
            let mut reader = Reader::new(events.get_ref(), &mut room);
            let left = std::iter::from_fn(|| reader.next().is_ok().then_some(())).count();
            let (taken, buffered) = (2 * ROUNDS - left, EVENTS_BYTES / 16);
            let most = periods * u128::from(WORDS_PER_PERIOD_MAX) + buffered as u128;
            assert!(taken as u128 <= most, "{taken} in {periods} periods");
        });
    }
}
