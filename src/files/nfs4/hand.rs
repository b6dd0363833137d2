//! The system calls behind [`nfs4`](super).

use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode as Permissions, lstat};
use nix::sys::uio::pread;
use nix::unistd::ftruncate;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use distrilock_engine::fault::Operation;
use distrilock_engine::steps::call::CallResult as Answer;
use distrilock_engine::steps::nfs4::{Call, Next, Start, Steps};
use distrilock_engine::{FileOp, Outcome};

use super::mortal;
use crate::clock::now_ms;
use crate::files::network::Network;
use crate::files::os::{Files, OpenFile, failed, identity};
use crate::files::ranges::{ALL, DELETION, FENCE, HELD, Range, TURN};
use distrilock_engine::Mode;
use distrilock_protocol::name::LockName;

/// Where the anchor is; the lock itself ends before it.
const ANCHOR: i64 = 1 << 61;

/// How long a deletion waits for others, at a time.
const PAUSE: Duration = Duration::from_millis(10);

/// What a holder locks.
const MAIN: Range = (0, ANCHOR);

/// What shared holders lock as well, so that nobody takes slots beside them.
const BESIDE: Range = (TURN.0, FENCE.0 - TURN.0);

/// Where all that lies which is locked for slots.
const BEYOND_ANCHOR: Range = (ANCHOR + 1, 0);

/// The size of a dead file: no daemon writes so much into a lock file, and hardly anybody else just this.
const DEAD_BYTES: i64 = 57_005;

/// Makes the calls of one operation.
pub(in crate::files) struct Hand<'a> {
    files: &'a Files,
    network: &'a Network,
    name: &'a LockName,
    file: Option<OpenFile>,
    /// When a call was sent that showed that the server knows our locks: a deletion has to be over soon after.
    proven_ms: u64,
    /// In which epoch the gate was locked: a deletion relies on it as well.
    gated_in: u64,
    /// Whether slots are being taken, so that more than [0, 2^61) may be locked.
    takes: bool,
}

impl<'a> Hand<'a> {
    pub(in crate::files) fn new(
        files: &'a Files,
        network: &'a Network,
        name: &'a LockName,
        file: Option<OpenFile>,
    ) -> Self {
        Self { files, network, name, file, proven_ms: 0, gated_in: 0, takes: false }
    }

    pub(in crate::files) fn perform(mut self, op: FileOp) -> (Option<OpenFile>, Outcome) {
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
                    return (self.file, outcome);
                }
            }
        }
    }

    fn make(&mut self, call: Call) -> Answer {
        match call {
            Call::Gate(mode) => {
                self.gated_in = self.network.epoch();
                self.network.gate(self.files.directory(), self.name, mode)
            }
            Call::Open { again } => self.open(again),
            Call::OpenOld => {
                self.refresh();
                match self.open_with(OFlag::O_RDWR) {
                    Answer::Failed(fault) if fault.errno() == Some(Errno::ENOENT as i32) => Answer::Gone,
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
            Call::Recent => self.recent(),
            Call::Prove => self.proving(Self::prove),
            Call::Check => self.check(),
            Call::Held(mode) => self.held(mode),
            Call::Yield => {
                std::thread::yield_now();
                Answer::Yes
            }
            Call::Pause => {
                std::thread::sleep(PAUSE);
                Answer::Yes
            }
            Call::LockToDelete => self.proving(|hand| hand.set(Some(Mode::Exclusive), DELETION)),
            Call::Named => self.named(),
            Call::MarkDead => self.proving(Self::mark_dead),
            Call::Unlink => mortal::unlink(&self.files.c_path(self.name), self.proven_ms + self.network.unlink_ms()),
            Call::Unlock => self.unlock(),
            Call::Uses => stale_is_gone(self.file().uses()),
            Call::Fence(mode) => {
                let mark = &self.files.mark;
                self.file().take_fence(mode, mark)
            }
            Call::LockTurn
            | Call::UnlockTurn
            | Call::LockHeld
            | Call::LockNumber(_)
            | Call::LockSlots(..)
            | Call::UnlockSlots(..) => self.slots(call),
            Call::Close => self.close(),
        }
    }

    /// Makes a call that takes slots or gives them back.
    fn slots(&mut self, call: Call) -> Answer {
        self.takes = true;
        let file = self.file();
        stale_is_gone(match call {
            Call::LockTurn => file.lock_turn(),
            Call::UnlockTurn => file.unlock_turn(),
            Call::LockHeld => file.lock_held(),
            Call::LockNumber(of) => file.lock_number(of),
            Call::LockSlots(of, take) => file.lock_slots(of, take),
            Call::UnlockSlots(first, count) => file.unlock_slots(first, count),
            call => unreachable!("{call:?} has nothing to do with slots"),
        })
    }

    /// Makes a call that the server grants only to who has its locks.
    fn proving(&mut self, call: impl FnOnce(&mut Self) -> Answer) -> Answer {
        let sent_ms = now_ms();
        let answer = call(self);
        if answer == Answer::Yes {
            self.proven_ms = sent_ms;
        }
        answer
    }

    fn file(&mut self) -> &mut OpenFile {
        self.file.as_mut().expect("the steps use a file only while it is open")
    }

    /// Asks the server for the directory's state: what is cached of it does not count afterwards.
    fn refresh(&self) {
        // Whether it succeeds shows at the call that follows.
        let _ = statx(CWD, self.files.directory(), AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    }

    fn open(&mut self, again: bool) -> Answer {
        if again {
            self.refresh();
        }
        self.open_with(OFlag::O_RDWR | OFlag::O_CREAT)
    }

    fn open_with(&mut self, flags: OFlag) -> Answer {
        let flags = flags | self.network.direct();
        let (file, answer) = OpenFile::open(self.files.c_path(self.name), flags, self.network.permissions());
        self.file = file;
        if let Some(file) = &mut self.file {
            file.epoch = self.network.epoch();
        }
        stale_is_gone(answer)
    }

    /// Locks or unlocks a range.
    fn set(&mut self, mode: Option<Mode>, range: Range) -> Answer {
        stale_is_gone(self.file().set(mode, range))
    }

    fn lock(&mut self, mode: Mode) -> Answer {
        let before = self.file().locked;
        match self.set(Some(mode), MAIN) {
            Answer::Yes => {}
            answer => return answer,
        }
        // What keeps shared holders and holders of slots apart.
        let beside = match (before, mode) {
            (Some(Mode::Shared), Mode::Shared) => Answer::Yes,
            (_, Mode::Shared) => self.set(Some(Mode::Shared), BESIDE),
            (Some(Mode::Shared), _) => self.set(None, BESIDE),
            _ => Answer::Yes,
        };
        if beside == Answer::Yes {
            self.file().locked = Some(mode);
        } else if before.is_none() {
            self.set(None, MAIN);
        }
        beside
    }

    fn unlock(&mut self) -> Answer {
        let exclusive = matches!(self.file().locked, Some(Mode::Exclusive)) && !self.takes;
        let beyond = if exclusive { Answer::Yes } else { self.set(None, BEYOND_ANCHOR) };
        let main = self.set(None, MAIN);
        if main == Answer::Yes {
            let file = self.file();
            file.locked = None;
            file.slots.clear();
        }
        if main == Answer::Yes { beyond } else { main }
    }

    fn alive(&mut self) -> Answer {
        let file = self.file();
        match statx(&file.descriptor, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
            Ok(stat) if stat.stx_nlink == 0 => Answer::Gone,
            Ok(stat) if i64::try_from(stat.stx_size) == Ok(DEAD_BYTES) => Answer::No,
            Ok(_) => Answer::Yes,
            Err(rustix::io::Errno::STALE) => Answer::Gone,
            Err(errno) => failed(Operation::Stat, &file.path, Errno::from_raw(errno.raw_os_error())),
        }
    }

    fn recent(&mut self) -> Answer {
        let epoch = self.file().epoch;
        if self.network.is_unbroken_since(epoch) { Answer::Yes } else { Answer::No }
    }

    fn prove(&mut self) -> Answer {
        let network = self.network;
        let file = self.file();
        if !network.proves() {
            return Answer::Yes;
        }
        let sent_ms = now_ms();
        match pread(&file.descriptor, &mut [0; 8], 0) {
            Ok(_) => {
                file.epoch = network.heard(sent_ms);
                Answer::Yes
            }
            Err(Errno::EIO | Errno::ESTALE | Errno::EBADF) => {
                network.broken();
                Answer::No
            }
            Err(errno) => failed(Operation::Read, &file.path, errno),
        }
    }

    fn check(&mut self) -> Answer {
        self.refresh();
        let file = self.file();
        match lstat(&*file.path) {
            Ok(stat) if identity(&stat) == file.identity => Answer::Yes,
            Ok(_) => Answer::No,
            Err(Errno::ENOENT | Errno::ESTALE) => Answer::Gone,
            Err(errno) => failed(Operation::Stat, &file.path, errno),
        }
    }

    fn named(&mut self) -> Answer {
        self.refresh();
        let permissions = Permissions::from_bits_truncate(self.network.permissions());
        let file = self.file();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match open(&*file.path, flags, permissions) {
            // There was none: this is a new file, for whoever comes next.
            Ok(_) => Answer::Gone,
            Err(Errno::EEXIST) => self.check(),
            Err(errno) => failed(Operation::Open, &file.path, errno),
        }
    }

    fn mark_dead(&mut self) -> Answer {
        let file = self.file();
        match ftruncate(&file.descriptor, DEAD_BYTES) {
            Ok(()) => Answer::Yes,
            Err(Errno::EBADF | Errno::EIO | Errno::ESTALE) => Answer::No,
            Err(errno) => failed(Operation::Truncate, &file.path, errno),
        }
    }

    fn held(&mut self, mode: Mode) -> Answer {
        match self.file().ask(mode, HELD) {
            Ok(None) => Answer::No,
            Ok(Some(_)) => Answer::Yes,
            Err(answer) => stale_is_gone(answer),
        }
    }

    fn close(&mut self) -> Answer {
        if let Some(file) = self.file.take() {
            // A descriptor whose locks were lost refuses everything until it is unlocked; close would drop them as well.
            file.set(None, ALL);
        }
        Answer::Yes
    }
}

/// The server has forgotten the file, or this descriptor's locks.
fn stale_is_gone(answer: Answer) -> Answer {
    let stale = |errno: Option<i32>| {
        errno.is_some_and(|errno| [Errno::ESTALE, Errno::EIO, Errno::EBADF].contains(&Errno::from_raw(errno)))
    };
    match answer {
        Answer::Failed(fault) if stale(fault.errno()) => Answer::Gone,
        answer => answer,
    }
}
