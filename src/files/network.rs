//! [`Network`]: what all lock files of a directory on a network file system have in common.

use std::path::Path;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::daemon_folder::file_mode;
use super::lease::Lease;
use super::mount::Mount;
use super::ofd_lock;
use super::open_gate::{OpenGate, gate_failed};
use crate::clock::now_ms;
use crate::limits::UNLINK_MS_MAX;
use crate::sync::locked;
use distrilock_engine::Mode;
use distrilock_engine::steps::call::CallResult;
use distrilock_protocol::name::LockName;

/// A network file system, as far as lock files are concerned.
#[derive(Debug)]
pub struct Network {
    /// `None` where a read through a locked descriptor would prove nothing (docs/safety.md).
    lease: Option<Lease>,
    deletes: bool,
    open_flags: OFlag,
    unlink_ms: u64,
    permissions: u32,
    gate: Mutex<OpenGate>,
}

impl Network {
    /// The file system `mount`. `directory_mode` is the lock directory's mode; `silence_ms` is for
    /// how long the lease is relied on after the server was last heard.
    #[must_use]
    pub fn new(mount: &Mount, directory_mode: u32, silence_ms: Option<u64>) -> Self {
        let nfs4 = matches!(mount, Mount::Nfs4(_));
        let deletes = matches!(mount, Mount::Nfs4(nfs) if nfs.minor > 0);
        let silence_ms = silence_ms.filter(|_| nfs4);
        // Well below what is left of the lease when the tolerated silence ends.
        let unlink_ms = silence_ms.map_or(UNLINK_MS_MAX, |silence_ms| UNLINK_MS_MAX.min(silence_ms / 3));
        let permissions = file_mode(directory_mode);
        Self {
            lease: silence_ms.map(|silence_ms| Lease::new(now_ms(), silence_ms)),
            deletes: deletes && silence_ms.is_some(),
            open_flags: mount.open_flags(),
            unlink_ms,
            permissions,
            gate: Mutex::new(OpenGate::new(permissions, mount.open_flags())),
        }
    }

    /// Locks a name's byte of the gate, or unlocks it.
    pub(super) fn gate(&self, directory: &Path, name: &LockName, mode: Option<Mode>) -> CallResult {
        let mut reopened = false;
        loop {
            let entered = locked(&self.gate).enter(directory, self.epoch(), name, mode);
            let (file, place) = match entered {
                Ok(Some(entered)) => entered,
                Ok(None) => return CallResult::No,
                Err(error) => return gate_failed(directory, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
            };
            // Not under the mutex: the call may take as long as the server does not answer.
            let set = ofd_lock::set(&*file, mode, (place, 1));
            if set == Ok(true) {
                return CallResult::Yes;
            }
            let reopen = !reopened && matches!(set, Err(Errno::EIO | Errno::EBADF | Errno::ESTALE));
            locked(&self.gate).refused(place, reopen);
            match set {
                Ok(_) => return CallResult::No,
                Err(_) if reopen => reopened = true,
                Err(errno) => return gate_failed(directory, errno),
            }
        }
    }

    /// This host's lease on the server, where it can be watched.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Whether lock files may be deleted from this host.
    pub(super) fn deletes(&self) -> bool {
        self.deletes
    }

    /// How long a deletion may last, in milliseconds, from the last proof that the server knows the
    /// lock under which it deletes. Then the process that makes the deletion is killed.
    pub(super) fn unlink_ms(&self) -> u64 {
        self.unlink_ms
    }

    /// The mode of a new lock file, whatever the umask: daemons on other hosts have to open it,
    /// possibly as other users.
    pub(super) fn permissions(&self) -> u32 {
        self.permissions
    }

    /// The flag with which files are opened: it keeps delegations away, and makes reads bypass the
    /// caches.
    #[must_use]
    pub fn open_flags(&self) -> OFlag {
        self.open_flags
    }

    /// Whether a read through a locked descriptor proves the lock.
    pub(super) fn proves(&self) -> bool {
        self.lease.is_some()
    }

    /// The lease's current [epoch](Lease::epoch).
    pub(super) fn epoch(&self) -> u64 {
        self.lease.as_ref().map_or(0, Lease::epoch)
    }

    /// Whether a lock that was proven in that epoch is certainly still held now.
    pub(super) fn is_unbroken_since(&self, epoch: u64) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.is_unbroken_since(epoch, now_ms()))
    }

    /// A read that was sent at `sent_ms` has been answered.
    pub(super) fn heard(&self, sent_ms: u64) {
        if let Some(lease) = &self.lease {
            lease.heard(sent_ms);
        }
    }

    /// A lock turned out to be gone.
    pub(super) fn broken(&self) {
        if let Some(lease) = &self.lease {
            lease.broken();
        }
    }
}
