//! The lock directory and its open files, and the system calls behind [`local`](super::local).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, flock};
use nix::sys::stat::{FileStat, Mode as Permissions, SFlag, fstat, lstat};
use nix::unistd::unlink;

use super::fence::Mark;
use super::network::Network;
use super::ranges::{ALL, BEYOND_SHARED, DELETION, HELD, Range, SHARED};
use super::{FileOp, Outcome, nfs4};
use distrilock_engine::Mode;
use distrilock_engine::fault::{Fault, Operation};
use distrilock_engine::steps::call::CallResult as Answer;
use distrilock_engine::steps::local::{Call, Next, Steps};
use distrilock_protocol::name::LockName;

/// What is added to a lock's name to make its file's name.
pub(super) const SUFFIX: &str = ".lck";

/// The lock directory.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    /// What is known of the server, if the directory is on a network file system.
    network: Option<Network>,
    pub(super) mark: Mark,
}

/// An open lock file. Dropping it closes it, and the kernel drops its lock.
#[derive(Debug)]
pub struct OpenFile {
    pub(super) descriptor: OwnedFd,
    pub(super) path: CString,
    /// Device and inode: what the name has to mean for a lock on this file to count.
    pub(super) identity: (u64, u64),
    pub(super) locked: Option<Mode>,
    /// The slots whose bytes it has locked, in their order.
    pub(super) slots: Vec<u16>,
    /// On a network file system: when its locks were last proven, as [`Contact`](super::contact::Contact) counts.
    pub(super) epoch: u64,
    /// On a network file system: a probe has shown that its locks are gone.
    pub(super) lost: bool,
}

impl Files {
    /// The lock files in a directory, an absolute path. Paths are resolved anew at every call, so that a directory that was
    /// replaced, or a file system mounted over it, is noticed by the checks and not locked past.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        let mark = Mark::new(&directory);
        Self { directory, network: None, mark }
    }

    /// The lock files in a directory of a network file system.
    #[must_use]
    pub fn on_network(directory: PathBuf, network: Network) -> Self {
        let mark = Mark::new(&directory);
        Self { directory, network: Some(network), mark }
    }

    /// What is known of the server, if the directory is on a network file system: every call may take as long as the server
    /// does not answer.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The lock directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of a name's lock file.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        let mut file = String::with_capacity(name.len() + SUFFIX.len());
        file.push_str(name);
        file.push_str(SUFFIX);
        self.directory.join(file)
    }

    /// The lock of which a file of this name is the lock file, if it is one.
    #[must_use]
    pub fn name_of(file: &[u8]) -> Option<LockName> {
        LockName::parse(file.strip_suffix(SUFFIX.as_bytes())?).ok()
    }

    /// Carries out one operation: microseconds on a local file system.
    #[must_use]
    pub fn perform(&self, name: &LockName, op: FileOp, file: Option<OpenFile>) -> (Option<OpenFile>, Outcome) {
        if let Some(network) = &self.network {
            return nfs4::Hand::new(self, network, name, file).perform(op);
        }
        let mut hand = Hand::new(self, name, file);
        let locked = hand.file.as_ref().and_then(|file| file.locked);
        let (mut steps, mut next) = Steps::begin(op, hand.file.is_some(), locked);
        loop {
            match next {
                Next::Call(call) => next = steps.returned(hand.make(call)),
                Next::End(outcome) => return (hand.file, outcome),
            }
        }
    }

    pub(super) fn c_path(&self, name: &LockName) -> CString {
        CString::new(self.path(name.as_str()).into_os_string().into_encoded_bytes())
            .expect("neither a lock name nor a directory's path has a NUL byte")
    }
}

/// Makes the calls of one operation.
pub(super) struct Hand<'a> {
    files: &'a Files,
    name: &'a LockName,
    file: Option<OpenFile>,
}

impl<'a> Hand<'a> {
    pub(super) fn new(files: &'a Files, name: &'a LockName, file: Option<OpenFile>) -> Self {
        Self { files, name, file }
    }

    pub(super) fn into_file(self) -> Option<OpenFile> {
        self.file
    }

    fn make(&mut self, call: Call) -> Answer {
        match call {
            Call::Open => self.open(OFlag::O_RDWR | OFlag::O_CREAT),
            Call::OpenToRead => self.open(OFlag::O_RDONLY),
            Call::Lock(Mode::Shared) => self.lock_shared(),
            Call::Lock(mode) => self.lock(Some(mode), ALL),
            Call::LockToDelete => self.lock(Some(Mode::Exclusive), DELETION),
            Call::Unlock => self.lock(None, ALL),
            Call::LockTurn => self.open_file().lock_turn(),
            Call::UnlockTurn => self.open_file().unlock_turn(),
            Call::LockHeld => self.open_file().lock_held(),
            Call::LockNumber(of) => self.open_file().lock_number(of),
            Call::LockSlots(of, take) => self.open_file().lock_slots(of, take),
            Call::UnlockSlots(first, count) => self.open_file().unlock_slots(first, count),
            Call::Uses => self.open_file().uses(),
            Call::Fence(mode) => {
                let mark = &self.files.mark;
                self.open_file().take_fence(mode, mark)
            }
            Call::Check => self.check(),
            Call::Linked => self.linked(),
            Call::Held(mode) => self.held(mode),
            Call::Yield => {
                std::thread::yield_now();
                Answer::Yes
            }
            Call::Unlink => self.unlink(),
            Call::Close => {
                self.file = None;
                Answer::Yes
            }
        }
    }

    fn open_file(&mut self) -> &mut OpenFile {
        self.file.as_mut().expect("the steps use a file only while it is open")
    }

    pub(super) fn open(&mut self, flags: OFlag) -> Answer {
        let (file, answer) = OpenFile::open(self.files.c_path(self.name), flags, 0o664);
        self.file = file.or(self.file.take());
        answer
    }

    fn lock(&mut self, mode: Option<Mode>, range: Range) -> Answer {
        let file = self.open_file();
        let answer = file.set(mode, range);
        if answer == Answer::Yes {
            file.locked = mode;
            file.slots.clear();
        }
        answer
    }

    /// A shared lock leaves out what takes a fence, which an exclusive one may have had.
    fn lock_shared(&mut self) -> Answer {
        let exclusive = self.open_file().locked == Some(Mode::Exclusive);
        match self.lock(Some(Mode::Shared), SHARED) {
            Answer::Yes if exclusive => self.open_file().set(None, BEYOND_SHARED),
            answer => answer,
        }
    }

    fn check(&mut self) -> Answer {
        let file = self.open_file();
        match lstat(&*file.path) {
            Ok(stat) if identity(&stat) == file.identity => Answer::Yes,
            Ok(_) => Answer::No,
            Err(Errno::ENOENT) => Answer::Gone,
            Err(errno) => failed(Operation::Stat, &file.path, errno),
        }
    }

    fn linked(&mut self) -> Answer {
        let file = self.open_file();
        match fstat(&file.descriptor) {
            Ok(stat) if stat.st_nlink > 0 => Answer::Yes,
            Ok(_) => Answer::No,
            Err(errno) => failed(Operation::Stat, &file.path, errno),
        }
    }

    fn unlink(&mut self) -> Answer {
        let file = self.open_file();
        match unlink(&*file.path) {
            Ok(()) => Answer::Yes,
            Err(Errno::ENOENT) => Answer::Gone,
            Err(errno) => failed(Operation::Remove, &file.path, errno),
        }
    }

    fn held(&mut self, mode: Mode) -> Answer {
        match self.open_file().ask(mode, HELD) {
            Ok(None) => Answer::No,
            Ok(Some(_)) => Answer::Yes,
            Err(answer) => answer,
        }
    }
}

impl OpenFile {
    /// Opens a lock file, with these flags beside those that every one is opened with. To who only reads, what is no lock file is
    /// not there.
    pub(super) fn open(path: CString, flags: OFlag, permissions: u32) -> (Option<Self>, Answer) {
        // O_NOFOLLOW: no lock outside the directory; O_NONBLOCK: a FIFO or a device must not block us.
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let opened = open(&*path, flags, Permissions::from_bits_truncate(permissions));
        let opened = opened.and_then(|descriptor| Ok((fstat(&descriptor)?, descriptor)));
        let reading = !flags.contains(OFlag::O_RDWR);
        let (stat, descriptor) = match opened {
            Ok(opened) => opened,
            Err(Errno::ENOENT) if reading => return (None, Answer::Gone),
            Err(errno) => return (None, failed(Operation::Open, &path, errno)),
        };
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return (None, if reading { Answer::Gone } else { failed(Operation::Open, &path, Errno::EINVAL) });
        }
        let identity = identity(&stat);
        (Some(Self { descriptor, path, identity, locked: None, slots: Vec::new(), epoch: 0, lost: false }), Answer::Yes)
    }

    /// Its device and inode.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Its descriptor.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Locks or unlocks a range, if no other process is in the way.
    pub(super) fn set(&self, mode: Option<Mode>, range: Range) -> Answer {
        match fcntl(self.descriptor.as_fd(), FcntlArg::F_OFD_SETLK(&lock(mode, range))) {
            Ok(_) => Answer::Yes,
            Err(Errno::EAGAIN | Errno::EACCES) => Answer::No,
            Err(errno) => self.failed(Operation::Lock, errno),
        }
    }

    /// A lock of another process that would be in the way, if there is one.
    pub(super) fn ask(&self, mode: Mode, range: Range) -> Result<Option<flock>, Answer> {
        let mut found = lock(Some(mode), range);
        match fcntl(self.descriptor.as_fd(), FcntlArg::F_OFD_GETLK(&mut found)) {
            Ok(_) => Ok((i32::from(found.l_type) != F_UNLCK).then_some(found)),
            Err(errno) => Err(self.failed(Operation::Lock, errno)),
        }
    }

    pub(super) fn failed(&self, operation: Operation, errno: Errno) -> Answer {
        failed(operation, &self.path, errno)
    }

    /// Whether it has a lock, of whichever mode.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.locked.is_some()
    }

    /// The mode of its lock.
    #[must_use]
    pub fn locked(&self) -> Option<Mode> {
        self.locked
    }
}

pub(super) fn identity(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// A lock on a range for fcntl(2), `F_OFD_SETLK`: `l_pid` has to be 0.
pub(super) fn lock(mode: Option<Mode>, (start, length): Range) -> flock {
    let kind = match mode {
        Some(Mode::Exclusive) => F_WRLCK,
        Some(Mode::Shared | Mode::Slots(_)) => F_RDLCK,
        None => F_UNLCK,
    };
    flock {
        l_type: i16::try_from(kind).expect("lock types are small"),
        l_whence: i16::try_from(SEEK_SET).expect("SEEK_SET is 0"),
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

pub(super) fn failed(operation: Operation, path: &CStr, errno: Errno) -> Answer {
    Answer::Failed(Fault::system(operation, path.to_string_lossy(), errno as i32))
}
