//! Carries out file operations on a local file system: makes the system calls for which the steps
//! in [`distrilock_engine::steps::local`] ask.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{fstat, lstat};
use nix::unistd::unlink;

use super::file_id::FileId;
use super::lock_directory::Files;
use super::lock_file::{HeldBefore, OpenFile, Performed, failed};
use super::ranges::{ALL, BEYOND_SHARED, DELETION, HELD, Range, SHARED};
use crate::clock::now_ms;
use distrilock_engine::fault::Operation;
use distrilock_engine::steps::call::CallResult;
use distrilock_engine::steps::local::{Call, Next, Steps};
use distrilock_engine::{FileOp, Mode};
use distrilock_protocol::name::LockName;

/// The mode of a new lock file, less the umask.
const PERMISSIONS: u32 = 0o664;

/// Makes the calls of one operation.
pub(super) struct LocalExecutor<'a> {
    files: &'a Files,
    name: &'a LockName,
    file: Option<OpenFile>,
    before: HeldBefore,
}

impl<'a> LocalExecutor<'a> {
    pub(super) fn new(files: &'a Files, name: &'a LockName, file: Option<OpenFile>) -> Self {
        let before = HeldBefore::of(file.as_ref());
        Self { files, name, file, before }
    }

    pub(super) fn perform(mut self, op: FileOp) -> Performed {
        if op == FileOp::Unlock && self.file.as_ref().is_some_and(OpenFile::was_locked_for_long) {
            self.linked();
        }
        let locked = self.file.as_ref().and_then(|file| file.locked);
        let (mut steps, mut next) = Steps::begin(op, self.file.is_some(), locked);
        loop {
            match next {
                Next::Call(call) => next = steps.returned(self.make(call)),
                Next::End(outcome) => return self.before.end(self.file, outcome),
            }
        }
    }

    pub(super) fn into_file(self) -> Option<OpenFile> {
        self.file
    }

    fn make(&mut self, call: Call) -> CallResult {
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
            Call::Stamp(age_ms) => self.files.stamp(self.name, age_ms),
            Call::Check => self.check(),
            Call::Linked => self.linked(),
            Call::Held(mode) => self.held(mode),
            Call::Yield => {
                std::thread::yield_now();
                CallResult::Yes
            }
            Call::Unlink => self.unlink(),
            Call::Close => {
                self.before.given_up();
                self.file = None;
                CallResult::Yes
            }
        }
    }

    fn open_file(&mut self) -> &mut OpenFile {
        self.file.as_mut().expect("the steps use a file only while it is open")
    }

    pub(super) fn open(&mut self, flags: OFlag) -> CallResult {
        let (file, answer) = OpenFile::open(self.files.c_path(self.name), flags, PERMISSIONS);
        self.file = file.or(self.file.take());
        answer
    }

    fn lock(&mut self, mode: Option<Mode>, range: Range) -> CallResult {
        let file = self.open_file();
        let answer = file.set(mode, range);
        if answer == CallResult::Yes {
            if file.locked.is_none() {
                file.locked_ms = now_ms();
            }
            file.locked = mode;
            file.slots.clear();
            if mode.is_none() {
                self.before.given_up();
            }
        }
        answer
    }

    /// A shared lock leaves out the bytes that are locked to take a fence. An exclusive lock, if
    /// the file had one, included them.
    fn lock_shared(&mut self) -> CallResult {
        let exclusive = self.open_file().locked == Some(Mode::Exclusive);
        match self.lock(Some(Mode::Shared), SHARED) {
            CallResult::Yes if exclusive => self.open_file().set(None, BEYOND_SHARED),
            answer => answer,
        }
    }

    fn check(&mut self) -> CallResult {
        let file = self.open_file();
        let found = match lstat(&*file.path) {
            Ok(stat) if FileId::from(&stat) == file.id => CallResult::Yes,
            Ok(_) => CallResult::No,
            Err(Errno::ENOENT) => CallResult::Gone,
            Err(errno) => failed(Operation::Stat, &file.path, errno),
        };
        self.before.looked(&found);
        found
    }

    fn linked(&mut self) -> CallResult {
        let file = self.open_file();
        let found = match fstat(&file.descriptor) {
            Ok(stat) if stat.st_nlink > 0 => CallResult::Yes,
            Ok(_) => CallResult::No,
            Err(errno) => failed(Operation::Stat, &file.path, errno),
        };
        self.before.looked(&found);
        found
    }

    fn unlink(&mut self) -> CallResult {
        let file = self.open_file();
        match unlink(&*file.path) {
            Ok(()) => CallResult::Yes,
            Err(Errno::ENOENT) => CallResult::Gone,
            Err(errno) => failed(Operation::Remove, &file.path, errno),
        }
    }

    fn held(&mut self, mode: Mode) -> CallResult {
        match self.open_file().ask(mode, HELD) {
            Ok(None) => CallResult::No,
            Ok(Some(_)) => CallResult::Yes,
            Err(answer) => answer,
        }
    }
}
