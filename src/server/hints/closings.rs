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

use super::portions::Portions;
use crate::engine::Input;
use crate::files::Files;
use crate::limits::CLOSINGS_WATCHED_MS;
use crate::readiness::watched;
use crate::server::Core;

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
            if let Some(name) = closed {
                portions.take().await;
                tracing::trace!(LOCK = %name, "the file of {name} was closed");
                core.bring(&name, Input::Hint(name.clone()));
            }
        }
    }
}
