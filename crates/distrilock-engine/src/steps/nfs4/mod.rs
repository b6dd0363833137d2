//! The steps of each file operation on NFSv4, without making them: the counterpart of [`local`](super::local) for a directory
//! that several hosts mount. What was measured, and what this protects from, is in docs/safety.md.
//!
//! A name is held when **byte 0 of its file** is locked. A holder locks [0, 2^61). Everybody who has the file open keeps an
//! **anchor** on it, a shared lock on byte 2^61: it keeps the file from being deleted, and it keeps the server from dropping a lock
//! that was just granted (knfsd frees a lock owner late, and takes a fresh lock with it, if the owner had none left).
//!
//! Why a lock may be believed: a file is deleted only under an exclusive lock from byte 1 on, which excludes every anchor, and
//! only after it was marked dead. Who has anchored a file and *then* found it alive and linked has the file that the name means,
//! for as long as the anchor holds. The anchor holds as long as the lease does; whether the lease can have run out since is asked
//! before each grant ([`Call::Recent`]), and if so, a read past the caches proves the lock ([`Call::Prove`]).
//!
//! Why a deletion may be believed: its request dies with the process that makes it (`mortal`), unless the file is open on this
//! host, since the kernel then renames it instead, by a request that outlives the process. So the file is closed before, and the
//! **gate** keeps it so: a byte for each name in a file that is never deleted, locked shared by who opens the name's file, until
//! it has anchored it, and exclusively by who deletes it.

mod delete;
mod look;
#[cfg(test)]
mod model;
mod slots;

pub use super::local::Answer;
use super::local::with_fence;
use crate::fault::Fault;
use crate::{FileOp, Mode, Outcome};

/// A try that met a dead or a lost file starts again so often; each time somebody else made progress.
const REOPENS_MAX: u8 = if cfg!(test) { 2 } else { 20 };

/// So often a try looks again whether a deletion is over, before it says [`Outcome::Disturbed`].
const LOOKS_MAX: u8 = 1;

/// So often a deletion waits a moment for others who are about to close the file as well.
const PAUSES_MAX: u8 = if cfg!(test) { 1 } else { 10 };

/// So often a lock is proven anew because the proof took too long to prove anything.
const PROOFS_MAX: u8 = 3;

/// One system call, or a few that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Lock the name's byte of the gate, or unlock it.
    Gate(Option<Mode>),
    /// Open the name's file for reading and writing; create it if there is none. Again: past the caches.
    Open {
        /// Whether a file of this name was found dead or lost just before.
        again: bool,
    },
    /// Open the name's file for reading and writing, if there is one.
    OpenOld,
    /// Open the name's file for reading.
    OpenToRead,
    /// Lock byte 2^61, shared.
    Anchor,
    /// Is the open file alive (yes), marked dead (no), or not linked any more (gone)?
    Alive,
    /// Lock [0, 2^61), or convert the lock that it has.
    Lock(Mode),
    /// Have locks on this file surely been held since they were last proven?
    Recent,
    /// Read through the descriptor, past the caches: does the server still know its locks?
    Prove,
    /// Does the name mean the open file, as far as the directory tells?
    Check,
    /// Does a lock of another process keep byte 0 from being locked in this mode?
    Held(Mode),
    /// Let another process run.
    Yield,
    /// Let some milliseconds pass.
    Pause,
    /// Lock the byte of the process that takes slots.
    LockTurn,
    /// Unlock it.
    UnlockTurn,
    /// Lock [0, 2^61) for reading, which says that somebody holds the name.
    LockHeld,
    /// Lock the byte of a number of slots for reading, unless another process has another number.
    LockNumber(u16),
    /// Of so many slots lock so many that nobody has.
    LockSlots(u16, u16),
    /// Unlock so many slots from the first one on.
    UnlockSlots(u16, u16),
    /// In which mode, or with how many slots, do other processes have the file?
    Uses,
    /// Take a fence: the next number, safe on the disk, while the file is locked in this mode.
    Fence(Mode),
    /// Lock the file from byte 1 on, exclusively; the anchor is part of it.
    LockToDelete,
    /// Does the name mean the open file, as the server tells to who wants to create it?
    Named,
    /// Mark the file dead; the server refuses that when the lock is gone.
    MarkDead,
    /// Delete the name, from a process that is killed before the lease can run out.
    Unlink,
    /// Unlock everything but the anchor.
    Unlock,
    /// Unlock everything, and close the file.
    Close,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// Make this call.
    Call(Call),
    /// The operation is complete.
    End(Outcome),
}

/// What an operation begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// Whether the file is open, and anchored.
    pub open: bool,
    /// Whether it is locked, and how.
    pub locked: Option<Mode>,
    /// Whether its locks are known to be lost.
    pub lost: bool,
    /// Whether files may be deleted from here: not on NFS 4.0, where a delayed deletion cannot be ruled out.
    pub deletes: bool,
}

/// What comes when the file is closed and the gate open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    /// The operation ends.
    End,
    /// The try, or the peek, starts over with the file that the name means now.
    StartOver,
    /// A dead file is deleted first.
    Bury,
}

/// One file operation on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Steps {
    op: FileOp,
    deletes: bool,
    asked: Call,
    open: bool,
    /// Whether anything but the anchor is locked.
    locked: bool,
    /// Whether other processes cannot take slots.
    has_turn: bool,
    /// Whether the name's byte of the gate is.
    gated: bool,
    /// Whether the lock on a fresh file has been asked for a second time.
    settled: bool,
    /// Whether the file is about to be deleted.
    deleting: bool,
    /// Whether the file is being closed, and the gate opened, for what comes [`Then`].
    leaving: bool,
    /// Whether it was found dead.
    dead: bool,
    /// What is known so far, for the end.
    end: Outcome,
    then: Then,
    reopens: u8,
    looks: u8,
    proofs: u8,
}

impl Steps {
    /// Begins an operation; tells the first call.
    #[must_use]
    pub fn begin(op: FileOp, start: Start) -> (Self, Next) {
        let mut steps = Self {
            op,
            deletes: start.deletes,
            asked: Call::Yield,
            open: start.open,
            locked: start.locked.is_some(),
            has_turn: false,
            gated: false,
            settled: start.open,
            deleting: false,
            leaving: false,
            dead: false,
            end: Outcome::Unlocked { file_gone: false },
            then: Then::End,
            reopens: 0,
            looks: 0,
            proofs: 0,
        };
        let next = match op {
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. } if start.lost => {
                steps.start_over()
            }
            FileOp::Take { joins: false, .. } if start.open && steps.locked => steps.ask(Call::Unlock),
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. } if start.open => {
                steps.opened()
            }
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. } => {
                steps.ask(Call::Gate(Some(Mode::Shared)))
            }
            FileOp::Give { first, count, .. } => steps.ask(Call::UnlockSlots(first, count)),
            FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire if start.lost => steps.let_go(Then::End),
            FileOp::Unlock | FileOp::UnlockAndLook => steps.ask(Call::Unlock),
            FileOp::Retire if start.deletes => steps.delete(),
            FileOp::Retire => steps.let_go(Then::End),
            FileOp::Probe(mode) | FileOp::ProbeFence(mode) => steps.ask(Call::Lock(mode)),
            FileOp::Peek if start.open => steps.ask(Call::Recent),
            FileOp::Peek => steps.ask(Call::Gate(Some(Mode::Shared))),
        };
        (steps, next)
    }

    /// Takes the answer to the last call; tells the next one.
    pub fn answered(&mut self, answer: Answer) -> Next {
        match (self.asked, &answer) {
            (Call::Unlock, Answer::Yes) => (self.locked, self.has_turn) = (false, false),
            (Call::LockTurn, Answer::Yes) => (self.locked, self.has_turn) = (true, true),
            (Call::Lock(_) | Call::LockHeld, Answer::Yes) => self.locked = true,
            (Call::Open { .. } | Call::OpenOld | Call::OpenToRead, Answer::Yes) => self.open = true,
            (Call::Close, _) => (self.open, self.locked, self.has_turn) = (false, false, false),
            (Call::Gate(mode), answer) => self.gated = mode.is_some() && *answer == Answer::Yes,
            _ => {}
        }
        match (self.asked, self.op) {
            // Whatever came of it, there is no other way on.
            _ if self.leaving => self.gone(),
            _ if self.deleting => self.delete_step(&answer),
            (_, FileOp::Take { .. }) if !self.opens() => self.take_step(answer),
            (_, FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode)) => self.try_step(mode, answer),
            (_, FileOp::Take { of, .. }) => self.try_step(Mode::Slots(of), answer),
            (_, FileOp::Give { .. }) => Next::End(match answer {
                Answer::Failed(fault) => Outcome::Failed(fault),
                _ => Outcome::Given,
            }),
            (_, FileOp::Probe(_) | FileOp::ProbeFence(_)) => self.probe_step(answer),
            (_, FileOp::Unlock | FileOp::UnlockAndLook) if answer == Answer::Yes => Next::End(self.end.clone()),
            // A lock that cannot be undone goes with its descriptor.
            (_, FileOp::Unlock | FileOp::UnlockAndLook) => self.let_go(Then::End),
            (_, FileOp::Peek) => self.peek_step(answer),
            (call, FileOp::Retire) => unreachable!("{call:?} is no step of a deletion"),
        }
    }

    fn ask(&mut self, call: Call) -> Next {
        self.asked = call;
        Next::Call(call)
    }

    fn finish(&mut self, end: Outcome) -> Next {
        self.end = end;
        self.let_go(Then::End)
    }

    /// This file is of no use: away with it, and on with the one that the name means now.
    fn start_over(&mut self) -> Next {
        self.let_go(Then::StartOver)
    }

    /// Closes the file, opens the gate, and goes on to what comes then.
    fn let_go(&mut self, then: Then) -> Next {
        self.then = then;
        (self.deleting, self.leaving) = (false, true);
        self.gone()
    }

    fn gone(&mut self) -> Next {
        if self.open {
            return self.ask(Call::Close);
        }
        if self.gated {
            return self.ask(Call::Gate(None));
        }
        self.leaving = false;
        match self.then {
            Then::End => Next::End(self.end.clone()),
            Then::Bury => self.delete(),
            Then::StartOver if self.reopens == REOPENS_MAX => Next::End(Outcome::Disturbed),
            Then::StartOver => {
                self.reopens += 1;
                (self.settled, self.dead, self.proofs) = (false, false, 0);
                self.end = Outcome::Disturbed;
                self.ask(Call::Gate(Some(Mode::Shared)))
            }
        }
    }

    /// Whether the file is being opened, or what is in the way of that is being looked at.
    fn opens(&self) -> bool {
        self.gated || matches!(self.asked, Call::Gate(_))
    }

    /// The file is open and anchored: on to its lock.
    fn opened(&mut self) -> Next {
        match self.op {
            FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode) => self.ask(Call::Lock(mode)),
            _ => self.ask(Call::LockTurn),
        }
    }

    fn try_step(&mut self, mode: Mode, answer: Answer) -> Next {
        match (self.asked, answer) {
            (Call::Gate(Some(_)), Answer::Yes) => self.ask(Call::Open { again: self.reopens > 0 }),
            // Somebody deletes the file.
            (Call::Gate(Some(_)), Answer::No | Answer::Gone) => Next::End(Outcome::Disturbed),
            (Call::Open { .. }, Answer::Yes) => self.ask(Call::Anchor),
            (Call::Anchor, Answer::Yes) => self.ask(Call::Alive),
            (Call::Anchor, Answer::No) => self.ask(Call::Held(mode)),
            (Call::Alive, Answer::Yes) => self.ask(Call::Gate(None)),
            (Call::Gate(None) | Call::Yield, _) => self.opened(),
            // Who marked it dead is gone: it holds no lock any more.
            (Call::Alive, Answer::No) if self.deletes => self.let_go(Then::Bury),
            (Call::Alive, Answer::No) => self.finish(Outcome::Failed(left_dead())),
            (Call::Lock(_), Answer::Yes) if !self.settled => {
                self.settled = true;
                self.ask(Call::Lock(mode))
            }
            (Call::Lock(_), Answer::Yes) => {
                self.end = Outcome::Locked;
                self.ask(Call::Recent)
            }
            // Who only waits tries again soon, and asks the server for nothing more.
            (Call::Lock(_), Answer::No) if matches!(self.op, FileOp::Retry(_)) => self.refused(Outcome::Refused),
            (Call::Lock(_), Answer::No) => {
                self.end = Outcome::Refused;
                self.ask(Call::Recent)
            }
            (Call::Recent, Answer::Yes) if self.end == Outcome::Locked => match self.op {
                FileOp::TryFence(_) => self.ask(Call::Fence(mode)),
                _ => Next::End(Outcome::Locked),
            },
            (Call::Fence(_), answer) => Next::End(with_fence(self.end.clone(), answer)),
            (Call::Recent, Answer::Yes) => self.ask(Call::Held(mode)),
            (Call::Recent, _) => self.prove(),
            (Call::Prove, Answer::Yes) => self.ask(Call::Recent),
            // Before the gate is open, it is the anchor that was refused.
            (Call::Held(_), Answer::Yes) if self.gated => self.finish(Outcome::Refused),
            (Call::Held(_), Answer::Yes) => self.refused(Outcome::Refused),
            // What keeps shared holders out without holding byte 0 alone are slots.
            (Call::Held(Mode::Shared), Answer::No) if !self.gated => self.ask(Call::Uses),
            (Call::Uses, Answer::Uses(held)) if held.disagrees_with(mode) => self.refused(Outcome::Disagrees(held)),
            (Call::Uses, Answer::Uses(_)) => self.refused(Outcome::Refused),
            // It was released a moment ago, or something that is no daemon locks a part of the file.
            (Call::Held(_) | Call::Uses, Answer::No) if !self.gated && self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.ask(Call::Yield)
            }
            (Call::Held(_) | Call::Uses, Answer::No) => self.finish(Outcome::Disturbed),
            (Call::Unlock, Answer::Yes) => Next::End(self.end.clone()),
            (_, Answer::No | Answer::Gone) => self.start_over(),
            (_, Answer::Failed(fault)) => self.finish(Outcome::Failed(fault)),
            (call, answer) => unreachable!("{answer:?} is no answer to {call:?} in a try"),
        }
    }

    /// The file stays open for the next try, but a lock that a refused conversion left is of no use.
    fn refused(&mut self, end: Outcome) -> Next {
        self.end = end;
        if self.locked { self.ask(Call::Unlock) } else { Next::End(self.end.clone()) }
    }

    fn prove(&mut self) -> Next {
        self.proofs += 1;
        if self.proofs <= PROOFS_MAX { self.ask(Call::Prove) } else { self.finish(Outcome::Failed(too_slow())) }
    }
}

/// The server answers, but each answer takes longer than a lease may be relied on.
fn too_slow() -> Fault {
    Fault { operation: "prove", path: "".into(), errno: nix::libc::ETIMEDOUT }
}

/// Nothing deletes a dead file from a client of NFS 4.0.
fn left_dead() -> Fault {
    Fault { operation: "lock", path: "".into(), errno: nix::libc::EUCLEAN }
}
