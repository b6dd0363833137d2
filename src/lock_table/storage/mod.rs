//! [`Storage`]: the lock directory, and what is known of the file system under it.

mod clash_watch;
pub(super) mod threads;
pub(crate) mod watch;

use std::time::Duration;

use crate::clock::now_ms;
use crate::files::Files;
use crate::files::lease::Lease;
use crate::files::network::Network;
use crate::settings::{OnSilence, Settings};
use crate::timing::Timing;
use distrilock_engine::FileOp;
use threads::StorageThreads;

/// The lock directory.
#[derive(Debug)]
pub struct Storage {
    pub(crate) files: Files,
    /// The kind of file system, as the protocol calls it.
    kind: &'static str,
    /// The times on a file server that grants leases.
    timing: Option<Timing>,
    on_silence: OnSilence,
    /// Threads for the file calls that may take long.
    pub(super) threads: StorageThreads,
}

impl Storage {
    /// `kind` is the protocol's word for the file system. `timing` is that of a file server which
    /// may give locks away.
    pub(crate) fn new(files: Files, kind: &'static str, timing: Option<Timing>, settings: &Settings) -> Self {
        let threads = StorageThreads::default();
        Self { files, kind, timing, on_silence: settings.on_storage_silence, threads }
    }

    /// Whether an operation may wait for anything: for a file server, for a fence, or for the disk.
    /// Otherwise it takes microseconds.
    pub(super) fn may_wait(&self, op: FileOp) -> bool {
        self.files.network().is_some() || op.may_wait()
    }

    /// The kind of file system under the lock directory, as the protocol calls it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// How long a holder may take to stop when its lock is lost, in milliseconds; `None` where
    /// silence loses no locks.
    #[must_use]
    pub fn stop_ms(&self) -> Option<u64> {
        self.timing.map(|timing| millis(timing.stop))
    }

    /// The least that [`valid_ms`](Self::valid_ms) is while the file server answers; `None` where
    /// that is `None`.
    #[must_use]
    pub fn valid_ms_min(&self) -> Option<u64> {
        let timing = self.timing.filter(|_| self.on_silence == OnSilence::Fence)?;
        Some(millis(timing.valid_min()))
    }

    /// For how many milliseconds from now all locks are certain to be held, unless a session is
    /// told otherwise; `None`: as long as the daemon lives, or nothing is known.
    #[must_use]
    pub fn valid_ms(&self) -> Option<u64> {
        let contact = self.contact()?;
        (self.on_silence == OnSilence::Fence).then(|| contact.valid_ms(now_ms()))
    }

    /// The path of a name's lock file, for messages.
    #[must_use]
    pub fn lock_path(&self, name: &str) -> String {
        self.files.path(name).to_string_lossy().into_owned()
    }

    /// What is known of the server's lease, if the directory is on a server that grants leases.
    pub(crate) fn contact(&self) -> Option<&Lease> {
        self.files.network().and_then(Network::lease)
    }

    /// Waits until no file call is under way, for `within` at most. Returns whether that came
    /// about.
    pub(crate) fn rest(&self, within: Duration) -> bool {
        self.threads.rest(within)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
