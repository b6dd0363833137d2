//! [`OpenFile`]: an open lock file, and the system calls on it that are the same on every kind of
//! file system.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::flock;
use nix::sys::stat::{Mode as Permissions, SFlag, fstat};

use super::file_id::FileId;
use super::ofd_lock;
use super::ranges::Range;
use crate::clock::now_ms;
use crate::limits::LOOK_AFTER_MS;
use distrilock_engine::fault::{Fault, Operation};
use distrilock_engine::steps::call::CallResult;
use distrilock_engine::{Mode, Outcome};

/// An open lock file. Dropping it closes it, and the kernel drops its lock.
#[derive(Debug)]
pub struct OpenFile {
    pub(super) descriptor: OwnedFd,
    pub(super) path: CString,
    /// The name has to mean this file for a lock on it to count.
    pub(super) id: FileId,
    pub(super) locked: Option<Mode>,
    /// The slots whose bytes it has locked, in ascending order.
    pub(super) slots: Vec<u16>,
    /// On a network file system: the lease's [epoch](super::lease::Lease::epoch) in which its locks
    /// were last proven.
    pub(super) epoch: u64,
    /// On a network file system: a probe has shown that its locks are gone.
    pub(super) lost: bool,
    /// On a local file system: since when it has been locked, by the clock of [`crate::clock`]; 0
    /// if the previous process of the daemon locked it.
    pub(super) locked_ms: u64,
}

/// What became of an operation on a lock file.
#[derive(Debug)]
pub struct Performed {
    /// The file, if it is open afterwards.
    pub file: Option<OpenFile>,
    /// What the engine learns.
    pub outcome: Outcome,
    /// The file was locked when the operation began, in a way that keeps every daemon from deleting
    /// it, and turned out to be deleted or replaced before it was unlocked.
    pub gone_while_held: bool,
}

/// Whether the lock that a file had when an operation began protected nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldBefore {
    holds: bool,
    gone: bool,
}

impl HeldBefore {
    /// At the beginning of an operation.
    pub(super) fn of(file: Option<&OpenFile>) -> Self {
        Self { holds: file.is_some_and(|file| file.is_locked() && !file.lost), gone: false }
    }

    /// A look at the open file has found this.
    pub(super) fn looked(&mut self, found: &CallResult) {
        self.gone |= self.holds && matches!(found, CallResult::No | CallResult::Gone);
    }

    /// The lock has been given up: from now on anybody may delete the file.
    pub(super) fn given_up(&mut self) {
        self.holds = false;
    }

    /// The end of the operation.
    pub(super) fn end(self, file: Option<OpenFile>, outcome: Outcome) -> Performed {
        // A loss is reported to the holders and logged.
        let told = matches!(outcome, Outcome::Lost(_));
        Performed { file, outcome, gone_while_held: self.gone && !told }
    }
}

impl OpenFile {
    /// Opens a lock file, with these flags in addition to those for every lock file.
    /// Without `O_RDWR`, anything but a regular file counts as absent.
    pub(super) fn open(path: CString, flags: OFlag, permissions: u32) -> (Option<Self>, CallResult) {
        // O_NOFOLLOW: no lock outside the directory; O_NONBLOCK: a FIFO or a device must not block
        // us.
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let opened = open(&*path, flags, Permissions::from_bits_truncate(permissions));
        let opened = opened.and_then(|descriptor| Ok((fstat(&descriptor)?, descriptor)));
        let reading = !flags.contains(OFlag::O_RDWR);
        let (stat, descriptor) = match opened {
            Ok(opened) => opened,
            Err(Errno::ENOENT) if reading => return (None, CallResult::Gone),
            Err(errno) => return (None, failed(Operation::Open, &path, errno)),
        };
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return (None, if reading { CallResult::Gone } else { failed(Operation::Open, &path, Errno::EINVAL) });
        }
        let id = FileId::from(&stat);
        (
            Some(Self { descriptor, path, id, locked: None, slots: Vec::new(), epoch: 0, lost: false, locked_ms: 0 }),
            CallResult::Yes,
        )
    }

    /// Which file it is.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Its descriptor.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Locks or unlocks a range, if no other process is in the way.
    pub(super) fn set(&self, mode: Option<Mode>, range: Range) -> CallResult {
        match ofd_lock::set(&self.descriptor, mode, range) {
            Ok(true) => CallResult::Yes,
            Ok(false) => CallResult::No,
            Err(errno) => self.failed(Operation::Lock, errno),
        }
    }

    /// Returns a lock of another process that would be in the way, if there is one.
    pub(super) fn ask(&self, mode: Mode, range: Range) -> Result<Option<flock>, CallResult> {
        ofd_lock::in_the_way(&self.descriptor, mode, range).map_err(|errno| self.failed(Operation::Lock, errno))
    }

    pub(super) fn failed(&self, operation: Operation, errno: Errno) -> CallResult {
        failed(operation, &self.path, errno)
    }

    /// Whether it has a lock, in whichever mode.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.locked.is_some()
    }

    /// Whether it has been locked for so long that the release looks whether its file is still
    /// there. Somebody who deletes lock files by hand is slow, and the call would be felt where
    /// locks come and go ten thousand times a second.
    pub(super) fn was_locked_for_long(&self) -> bool {
        self.is_locked() && now_ms().saturating_sub(self.locked_ms) >= LOOK_AFTER_MS
    }

    /// The mode of its lock.
    #[must_use]
    pub fn locked(&self) -> Option<Mode> {
        self.locked
    }
}

pub(super) fn failed(operation: Operation, path: &CStr, errno: Errno) -> CallResult {
    CallResult::Failed(Fault::system(operation, path.to_string_lossy(), errno as i32))
}
