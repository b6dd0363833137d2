//! [`Network`]: what all lock files of a directory on a network file system have in common.

use std::path::Path;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::contact::Contact;
use super::gate::{Gate, gate_failed};
use super::mount::Mount;
use super::os::lock;
use crate::clock::now_ms;
use crate::limits::UNLINK_MS_MAX;
use distrilock_engine::Mode;
use distrilock_engine::steps::call::CallResult as Answer;
use distrilock_protocol::name::LockName;

/// A network file system, as far as lock files are concerned.
#[derive(Debug)]
pub struct Network {
    /// When the server was last heard; `None` where a read through a locked descriptor would prove nothing (docs/safety.md).
    contact: Option<Contact>,
    deletes: bool,
    unlink_ms: u64,
    permissions: u32,
    gate: Mutex<Gate>,
}

impl Network {
    /// The file system that was recognised, of which `directory_mode` is the lock directory's mode; `silence_ms` is for how long
    /// the lease is relied on after the server was last heard.
    #[must_use]
    pub fn new(mount: &Mount, directory_mode: u32, silence_ms: Option<u64>) -> Self {
        let nfs4 = matches!(mount, Mount::Nfs4(_));
        let deletes = matches!(mount, Mount::Nfs4(nfs) if nfs.minor > 0);
        let silence_ms = silence_ms.filter(|_| nfs4);
        // Well below what is left of the lease when silence is at its longest.
        let unlink_ms = silence_ms.map_or(UNLINK_MS_MAX, |silence_ms| UNLINK_MS_MAX.min(silence_ms / 3));
        Self {
            contact: silence_ms.map(|silence_ms| Contact::new(now_ms(), silence_ms)),
            deletes: deletes && silence_ms.is_some(),
            unlink_ms,
            permissions: 0o600 | (directory_mode & 0o066),
            gate: Mutex::default(),
        }
    }

    /// Locks a name's byte of the gate, or unlocks it.
    pub(super) fn gate(&self, directory: &Path, name: &LockName, mode: Option<Mode>) -> Answer {
        let gate = || self.gate.lock().expect("nothing panics while it is held");
        let mut forgotten = false;
        loop {
            let (file, place) = match gate().enter(directory, self, name, mode) {
                Ok(Some(entered)) => entered,
                Ok(None) => return Answer::No,
                Err(error) => return gate_failed(directory, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
            };
            // Not under the mutex: the call may take as long as the server does not answer.
            let Err(errno) = fcntl(&*file, FcntlArg::F_OFD_SETLK(&lock(mode, (place, 1)))) else { return Answer::Yes };
            let again = !forgotten && matches!(errno, Errno::EIO | Errno::EBADF | Errno::ESTALE);
            gate().refused(place, again);
            match errno {
                Errno::EAGAIN | Errno::EACCES => return Answer::No,
                _ if again => forgotten = true,
                errno => return gate_failed(directory, errno),
            }
        }
    }

    /// When the server was last heard, where that can be known.
    #[must_use]
    pub fn contact(&self) -> Option<&Contact> {
        self.contact.as_ref()
    }

    /// Whether lock files may be deleted from this host.
    pub(super) fn deletes(&self) -> bool {
        self.deletes
    }

    /// How long after the server has last shown that it knows a lock a deletion under it may last, in milliseconds, before the
    /// process that makes it is killed.
    pub(super) fn unlink_ms(&self) -> u64 {
        self.unlink_ms
    }

    /// The mode of a new lock file: who may write the directory may write the files, whatever the umask, since daemons on other
    /// hosts, as other users, have to open them.
    pub(super) fn permissions(&self) -> u32 {
        self.permissions
    }

    /// The flag that lets reads go past the caches, where they prove something.
    pub(super) fn direct(&self) -> OFlag {
        if self.proves() { OFlag::O_DIRECT } else { OFlag::empty() }
    }

    pub(super) fn proves(&self) -> bool {
        self.contact.is_some()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.contact.as_ref().map_or(0, Contact::epoch)
    }

    pub(super) fn is_unbroken_since(&self, epoch: u64) -> bool {
        self.contact.as_ref().is_none_or(|contact| contact.is_unbroken_since(epoch, now_ms()))
    }

    /// A read that was sent at that time has come back; tells the epoch in which it proves something.
    pub(super) fn heard(&self, sent_ms: u64) -> u64 {
        let Some(contact) = &self.contact else { return 0 };
        contact.heard(sent_ms);
        contact.epoch()
    }

    pub(super) fn broken(&self) {
        if let Some(contact) = &self.contact {
            contact.broken();
        }
    }
}
