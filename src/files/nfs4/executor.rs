//! Makes the system calls for which the steps in [`distrilock_engine::steps::nfs4`] ask.

use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode as Permissions, lstat};
use nix::sys::uio::pread;
use nix::unistd::ftruncate;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use distrilock_engine::fault::Operation;
use distrilock_engine::steps::call::CallResult;
use distrilock_engine::steps::nfs4::{Call, Next, Start, Steps};
use distrilock_engine::{FileOp, Outcome};

use super::unlink_helper;
use crate::clock::now_ms;
use crate::files::file_id::FileId;
use crate::files::lock_directory::Files;
use crate::files::lock_file::{HeldBefore, OpenFile, Performed, failed};
use crate::files::network::Network;
use crate::files::ranges::{ALL, DELETION, FENCE, HELD, Range, TURN};
use distrilock_engine::Mode;
use distrilock_protocol::name::LockName;

/// Where the anchor is. The main lock ends before it.
const ANCHOR: i64 = 1 << 61;

/// How long a deletion waits for others each time.
const PAUSE: Duration = Duration::from_millis(10);

/// What a holder locks.
const MAIN: Range = (0, ANCHOR);

/// What shared holders lock as well, so that nobody takes slots beside them.
const BESIDE: Range = (TURN.0, FENCE.0 - TURN.0);

/// Everything that is locked for slots lies here.
const BEYOND_ANCHOR: Range = (ANCHOR + 1, 0);

/// The size of a file that is marked dead. No daemon writes that much into a lock file, and another
/// program is unlikely to write exactly this much.
const DEAD_BYTES: i64 = 57_005;

/// Makes the calls of one operation.
pub(in crate::files) struct Nfs4Executor<'a> {
    files: &'a Files,
    network: &'a Network,
    name: &'a LockName,
    file: Option<OpenFile>,
    before: HeldBefore,
    /// When the last call was sent that the server could only answer because it knows our locks. A
    /// deletion has to be over soon after.
    proven_ms: u64,
    /// The lease's epoch when the gate was about to be locked: a deletion relies on the gate as
    /// well.
    gated_in: u64,
    /// Whether the operation takes slots, so that more than [0, 2^61) may be locked.
    takes: bool,
}

impl<'a> Nfs4Executor<'a> {
    pub(in crate::files) fn new(
        files: &'a Files,
        network: &'a Network,
        name: &'a LockName,
        file: Option<OpenFile>,
    ) -> Self {
        let before = HeldBefore::of(file.as_ref());
        Self { files, network, name, file, before, proven_ms: 0, gated_in: 0, takes: false }
    }

    pub(in crate::files) fn perform(mut self, op: FileOp) -> Performed {
        let start = Start {
            open: self.file.is_some(),
            locked: self.file.as_ref().and_then(|file| file.locked),
            lost: self.file.as_ref().is_some_and(|file| file.lost),
            deletes: self.network.deletes(),
        };
        let (mut steps, mut next) = Steps::begin(op, start);
        loop {
            match next {
                Next::Call(call) => next = steps.returned(self.make(call)),
                Next::End(outcome) => {
                    if let (Some(file), Outcome::Lost(_)) = (&mut self.file, &outcome) {
                        file.lost = true;
                    }
                    return self.before.end(self.file, outcome);
                }
            }
        }
    }

    fn make(&mut self, call: Call) -> CallResult {
        match call {
            Call::Gate(mode) => {
                self.gated_in = self.network.epoch();
                self.network.gate(self.files.directory(), self.name, mode)
            }
            Call::Gated => self.unbroken_since(self.gated_in),
            Call::Open { again } => self.open(again),
            Call::OpenOld => {
                self.refresh();
                match self.open_with(OFlag::O_RDWR) {
                    CallResult::Failed(fault) if fault.errno() == Some(Errno::ENOENT as i32) => CallResult::Gone,
                    answer => answer,
                }
            }
            Call::OpenToRead => {
                self.refresh();
                self.open_with(OFlag::O_RDONLY)
            }
            Call::Anchor => self.set(Some(Mode::Shared), (ANCHOR, 1)),
            Call::Alive => self.alive(),
            Call::Lock(mode) => self.lock(mode),
            Call::Recent => {
                let epoch = self.file().epoch;
                self.unbroken_since(epoch)
            }
            Call::Prove => self.proving(Self::prove),
            Call::Check => self.check(),
            Call::Held(mode) => self.held(mode),
            Call::Yield => {
                std::thread::yield_now();
                CallResult::Yes
            }
            Call::Pause => {
                std::thread::sleep(PAUSE);
                CallResult::Yes
            }
            Call::LockToDelete => self.proving(|executor| executor.set(Some(Mode::Exclusive), DELETION)),
            Call::Named => self.named(),
            Call::MarkDead => self.proving(Self::mark_dead),
            Call::Unlink => {
                unlink_helper::unlink(&self.files.c_path(self.name), self.proven_ms + self.network.unlink_ms())
            }
            Call::Unlock => self.unlock(),
            Call::Uses => stale_is_gone(self.file().uses()),
            Call::Fence(mode) => {
                let mark = &self.files.mark;
                self.file().take_fence(mode, mark)
            }
            Call::Stamp(age_ms) => self.files.stamp(self.name, age_ms),
            Call::LockTurn => stale_is_gone(self.taking().lock_turn()),
            Call::UnlockTurn => stale_is_gone(self.taking().unlock_turn()),
            Call::LockHeld => stale_is_gone(self.taking().lock_held()),
            Call::LockNumber(of) => stale_is_gone(self.taking().lock_number(of)),
            Call::LockSlots(of, take) => stale_is_gone(self.taking().lock_slots(of, take)),
            Call::UnlockSlots(first, count) => stale_is_gone(self.taking().unlock_slots(first, count)),
            Call::Close => self.close(),
        }
    }

    /// The file, for a call that takes slots or gives them back.
    fn taking(&mut self) -> &mut OpenFile {
        self.takes = true;
        self.file()
    }

    /// Makes a call that the server grants only to a client whose locks it knows.
    fn proving(&mut self, call: impl FnOnce(&mut Self) -> CallResult) -> CallResult {
        let sent_ms = now_ms();
        let answer = call(self);
        if answer == CallResult::Yes {
            self.proven_ms = sent_ms;
        }
        answer
    }

    fn file(&mut self) -> &mut OpenFile {
        self.file.as_mut().expect("the steps use a file only while it is open")
    }

    /// Asks the server for the directory's state, so that the kernel drops what it has cached of
    /// it.
    fn refresh(&self) {
        // If it fails, the next call fails as well.
        let _ = statx(CWD, self.files.directory(), AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    }

    fn open(&mut self, again: bool) -> CallResult {
        if again {
            self.refresh();
        }
        self.open_with(OFlag::O_RDWR | OFlag::O_CREAT)
    }

    fn open_with(&mut self, flags: OFlag) -> CallResult {
        let flags = flags | self.network.open_flags();
        let (file, answer) = OpenFile::open(self.files.c_path(self.name), flags, self.network.permissions());
        self.file = file;
        if let Some(file) = &mut self.file {
            file.epoch = self.network.epoch();
        }
        stale_is_gone(answer)
    }

    /// Locks or unlocks a range.
    fn set(&mut self, mode: Option<Mode>, range: Range) -> CallResult {
        stale_is_gone(self.file().set(mode, range))
    }

    fn lock(&mut self, mode: Mode) -> CallResult {
        let before = self.file().locked;
        match self.set(Some(mode), MAIN) {
            CallResult::Yes => {}
            answer => return answer,
        }
        // This keeps shared holders and holders of slots apart.
        let beside = match (before, mode) {
            (Some(Mode::Shared), Mode::Shared) => CallResult::Yes,
            (_, Mode::Shared) => self.set(Some(Mode::Shared), BESIDE),
            (Some(Mode::Shared), _) => self.set(None, BESIDE),
            _ => CallResult::Yes,
        };
        if beside == CallResult::Yes {
            self.file().locked = Some(mode);
        } else if before.is_none() {
            self.set(None, MAIN);
        }
        beside
    }

    fn unlock(&mut self) -> CallResult {
        let exclusive = matches!(self.file().locked, Some(Mode::Exclusive)) && !self.takes;
        let beyond = if exclusive { CallResult::Yes } else { self.set(None, BEYOND_ANCHOR) };
        let main = self.set(None, MAIN);
        if main == CallResult::Yes {
            self.before.given_up();
            let file = self.file();
            file.locked = None;
            file.slots.clear();
        }
        if main == CallResult::Yes { beyond } else { main }
    }

    fn alive(&mut self) -> CallResult {
        let file = self.file();
        match statx(&file.descriptor, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
            Ok(stat) if stat.stx_nlink == 0 => CallResult::Gone,
            Ok(stat) if i64::try_from(stat.stx_size) == Ok(DEAD_BYTES) => CallResult::No,
            Ok(_) => CallResult::Yes,
            Err(rustix::io::Errno::STALE) => CallResult::Gone,
            Err(errno) => failed(Operation::Stat, &file.path, Errno::from_raw(errno.raw_os_error())),
        }
    }

    /// Whether what was locked in that epoch has certainly been locked ever since.
    fn unbroken_since(&self, epoch: u64) -> CallResult {
        if self.network.is_unbroken_since(epoch) { CallResult::Yes } else { CallResult::No }
    }

    fn prove(&mut self) -> CallResult {
        let network = self.network;
        let file = self.file();
        if !network.proves() {
            return CallResult::Yes;
        }
        // If the lease breaks between here and the answer, the read proves nothing, even if it was
        // answered before.
        let (epoch, sent_ms) = (network.epoch(), now_ms());
        match pread(&file.descriptor, &mut [0; 8], 0) {
            Ok(_) => {
                network.heard(sent_ms);
                file.epoch = epoch;
                CallResult::Yes
            }
            Err(Errno::EIO | Errno::ESTALE | Errno::EBADF) => {
                network.broken();
                CallResult::No
            }
            Err(errno) => failed(Operation::Read, &file.path, errno),
        }
    }

    fn check(&mut self) -> CallResult {
        self.refresh();
        let file = self.file();
        let found = match lstat(&*file.path) {
            Ok(stat) if FileId::from(&stat) == file.id => CallResult::Yes,
            Ok(_) => CallResult::No,
            Err(Errno::ENOENT | Errno::ESTALE) => CallResult::Gone,
            Err(errno) => failed(Operation::Stat, &file.path, errno),
        };
        self.before.looked(&found);
        found
    }

    fn named(&mut self) -> CallResult {
        self.refresh();
        let permissions = Permissions::from_bits_truncate(self.network.permissions());
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        // The file may be new, and a delegation on it would outlive this descriptor.
        let flags = flags | self.network.open_flags();
        let file = self.file();
        match open(&*file.path, flags, permissions) {
            // There was none: this is a new file, for the next process that opens it.
            Ok(_) => CallResult::Gone,
            Err(Errno::EEXIST) => self.check(),
            Err(errno) => failed(Operation::Open, &file.path, errno),
        }
    }

    fn mark_dead(&mut self) -> CallResult {
        let file = self.file();
        match ftruncate(&file.descriptor, DEAD_BYTES) {
            Ok(()) => CallResult::Yes,
            Err(Errno::EBADF | Errno::EIO | Errno::ESTALE) => CallResult::No,
            Err(errno) => failed(Operation::Truncate, &file.path, errno),
        }
    }

    fn held(&mut self, mode: Mode) -> CallResult {
        match self.file().ask(mode, HELD) {
            Ok(None) => CallResult::No,
            Ok(Some(_)) => CallResult::Yes,
            Err(answer) => stale_is_gone(answer),
        }
    }

    fn close(&mut self) -> CallResult {
        self.before.given_up();
        if let Some(file) = self.file.take() {
            // A descriptor whose locks were lost refuses everything until it is unlocked; closing
            // it would drop the locks as well.
            file.set(None, ALL);
        }
        CallResult::Yes
    }
}

/// These errnos mean that the server has forgotten the file, or this descriptor's locks.
fn stale_is_gone(answer: CallResult) -> CallResult {
    let stale = |errno: Option<i32>| {
        errno.is_some_and(|errno| [Errno::ESTALE, Errno::EIO, Errno::EBADF].contains(&Errno::from_raw(errno)))
    };
    match answer {
        CallResult::Failed(fault) if stale(fault.errno()) => CallResult::Gone,
        answer => answer,
    }
}
