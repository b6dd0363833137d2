//! [`Storage`]: the lock directory, and what is known of the file system under it.

pub(super) mod threads;
pub(crate) mod watch;

use crate::clock::now_ms;
use crate::files::Files;
use crate::files::lease::Lease;
use crate::files::network::Network;
use crate::settings::{OnSilence, Settings};
use threads::StorageThreads;

/// The lock directory.
#[derive(Debug)]
pub struct Storage {
    pub(crate) files: Files,
    /// The kind of file system, as the protocol calls it.
    kind: &'static str,
    stop_ms: Option<u64>,
    on_silence: OnSilence,
    /// Threads for the file calls, where these may take long.
    pub(super) threads: Option<StorageThreads>,
}

impl Storage {
    /// `kind` is the protocol's word for the file system. `stop_ms` is how long a holder may take
    /// to stop, where a file server may give its lock away.
    pub(crate) fn new(files: Files, kind: &'static str, stop_ms: Option<u64>, settings: &Settings) -> Self {
        let threads = files.network().map(|_| StorageThreads::default());
        Self { files, kind, stop_ms, on_silence: settings.on_storage_silence, threads }
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
        self.stop_ms
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
    pub(crate) fn rest(&self, within: std::time::Duration) -> bool {
        self.threads.as_ref().is_none_or(|threads| threads.rest(within))
    }
}
