//! The system calls behind [`nfs4`](super).

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc::F_UNLCK;
use nix::sys::stat::{Mode as Permissions, lstat};
use nix::sys::uio::pread;
use nix::unistd::ftruncate;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::{Answer, Call, FileOp, Next, Outcome, Start, Steps, mortal};
use crate::clock::now_ms;
use crate::engine::Mode;
use crate::files::network::Network;
use crate::files::os::{Files, OpenFile, failed, identity, range};
use crate::name::LockName;

/// Where the anchor is; the lock itself ends before it.
pub(crate) const ANCHOR: i64 = 1 << 61;

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
}

impl<'a> Hand<'a> {
    pub(in crate::files) fn new(
        files: &'a Files,
        network: &'a Network,
        name: &'a LockName,
        file: Option<OpenFile>,
    ) -> Self {
        Self { files, network, name, file, proven_ms: 0, gated_in: 0 }
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
                Next::Call(call) => next = steps.answered(self.make(call)),
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
                    Answer::Failed(fault) if fault.errno == Errno::ENOENT as i32 => Answer::Gone,
                    answer => answer,
                }
            }
            Call::OpenToRead => {
                self.refresh();
                self.open_with(OFlag::O_RDONLY)
            }
            Call::Anchor => self.lock(Some(Mode::Shared), ANCHOR, 1),
            Call::Alive => self.alive(),
            Call::Lock(mode) => self.lock(Some(mode), 0, ANCHOR),
            Call::Recent => self.recent(),
            Call::Prove => self.proving(Self::prove),
            Call::Check => self.check(),
            Call::Held(mode) => self.held(mode),
            Call::Yield => {
                std::thread::yield_now();
                Answer::Yes
            }
            Call::LockToDelete => self.proving(|hand| hand.lock(Some(Mode::Exclusive), 1, 0)),
            Call::Named => self.named(),
            Call::MarkDead => self.proving(Self::mark_dead),
            Call::Unlink => mortal::unlink(&self.files.c_path(self.name), self.proven_ms + self.network.unlink_ms()),
            Call::Unlock => self.lock(None, 0, ANCHOR),
            Call::Close => self.close(),
        }
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

    fn lock(&mut self, mode: Option<Mode>, start: i64, length: i64) -> Answer {
        let file = self.file();
        match fcntl(file.descriptor.as_fd(), FcntlArg::F_OFD_SETLK(&range(mode, start, length))) {
            Ok(_) => {
                if start == 0 {
                    file.locked = mode;
                }
                Answer::Yes
            }
            Err(Errno::EAGAIN | Errno::EACCES) => Answer::No,
            // The server has forgotten the file, or this descriptor's locks.
            Err(Errno::ESTALE | Errno::EIO | Errno::EBADF) => Answer::Gone,
            Err(errno) => failed("lock", &file.path, errno),
        }
    }

    fn alive(&mut self) -> Answer {
        let file = self.file();
        match statx(&file.descriptor, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
            Ok(stat) if stat.stx_nlink == 0 => Answer::Gone,
            Ok(stat) if i64::try_from(stat.stx_size) == Ok(DEAD_BYTES) => Answer::No,
            Ok(_) => Answer::Yes,
            Err(rustix::io::Errno::STALE) => Answer::Gone,
            Err(errno) => failed("stat", &file.path, Errno::from_raw(errno.raw_os_error())),
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
            Err(errno) => failed("read", &file.path, errno),
        }
    }

    fn check(&mut self) -> Answer {
        self.refresh();
        let file = self.file();
        match lstat(&*file.path) {
            Ok(stat) if identity(&stat) == file.identity => Answer::Yes,
            Ok(_) => Answer::No,
            Err(Errno::ENOENT | Errno::ESTALE) => Answer::Gone,
            Err(errno) => failed("stat", &file.path, errno),
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
            Err(errno) => failed("open", &file.path, errno),
        }
    }

    fn mark_dead(&mut self) -> Answer {
        let file = self.file();
        match ftruncate(&file.descriptor, DEAD_BYTES) {
            Ok(()) => Answer::Yes,
            Err(Errno::EBADF | Errno::EIO | Errno::ESTALE) => Answer::No,
            Err(errno) => failed("truncate", &file.path, errno),
        }
    }

    fn held(&mut self, mode: Mode) -> Answer {
        let file = self.file();
        let mut byte = range(Some(mode), 0, 1);
        match fcntl(file.descriptor.as_fd(), FcntlArg::F_OFD_GETLK(&mut byte)) {
            Ok(_) if i32::from(byte.l_type) == F_UNLCK => Answer::No,
            Ok(_) => Answer::Yes,
            Err(Errno::ESTALE | Errno::EIO | Errno::EBADF) => Answer::Gone,
            Err(errno) => failed("lock", &file.path, errno),
        }
    }

    fn close(&mut self) -> Answer {
        if let Some(file) = self.file.take() {
            // A descriptor whose locks were lost refuses everything until it is unlocked; close would drop them as well.
            let _ = fcntl(file.descriptor.as_fd(), FcntlArg::F_OFD_SETLK(&range(None, 0, 0)));
        }
        Answer::Yes
    }
}

/// A file that the caches still know, and the server does not.
fn stale_is_gone(answer: Answer) -> Answer {
    match answer {
        Answer::Failed(fault) if fault.errno == Errno::ESTALE as i32 => Answer::Gone,
        answer => answer,
    }
}
