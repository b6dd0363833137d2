//! The steps of each file operation on NFSv4, without taking them: the counterpart of
//! [`local`](super::local) for a directory that several hosts mount. docs/safety.md has what was
//! measured, and what the steps protect from.
//!
//! A name is held when **byte 0 of its file** is locked. A holder locks [0, 2^61). Every process
//! that has the file open keeps an **anchor** on it, a shared lock on byte 2^61. The anchor keeps
//! the file from being deleted, and it keeps the server from dropping a lock that was just granted
//! (knfsd frees a lock owner late, and a fresh lock with it, if the owner had none left).
//!
//! Why a lock can be believed: a file is deleted only under an exclusive lock from byte 1 on, which
//! excludes every anchor, and only after it was marked dead. A process that has anchored a file and
//! *then* found it alive and linked has the file that the name means, for as long as the anchor
//! holds. The anchor holds as long as the lease does. Before each grant the steps ask whether the
//! lease can have run out in the meantime ([`Call::Recent`]); if so, a read past the caches proves
//! the lock ([`Call::Prove`]).
//!
//! Why a deletion can be believed: its request dies with the process that makes it (the daemon's
//! unlink helper), unless the file is open on this host, since the kernel then renames the file
//! instead, by a request that outlives the process. So the file is closed before the deletion, and
//! the **gate** keeps it closed. The gate is a file that is never deleted, with a byte for each
//! name. A process that opens the name's file locks the byte shared until it has anchored the file;
//! a process that deletes the file locks it exclusively. The gate also keeps two hosts from
//! deleting files of one name at once: the slower one would delete the file that was created
//! meanwhile. So a deletion continues only if the gate has certainly been locked all along
//! ([`Call::Gated`]).
//!
//! An operation goes through these phases; it can end in any of them but the deletions:
//!
//! ```text
//!   begin ──▶ Opening ──▶ Fresh ──▶ Working ◀── begin with an open file
//!               ▲ │         │          │
//!    start over │ └─────────┴──────────┴──▶ Leaving(then) ──▶ end
//!               └───────────────────────────┘ │   ▲
//!                                        bury ▼   │
//!   begin to retire ────────────────────▶ Deleting ──▶ DeletingDead ──▶ Leaving
//! ```

#[cfg(test)]
mod model;

use distrilock_protocol::want::Mode;

use super::call::{CallResult, Locks, stamped, with_fence};
use crate::fault::{Cause, Fault};
use crate::message::{FileOp, Outcome};

/// How often a try that met a dead or a lost file starts over; each time, somebody else has made
/// progress.
const REOPENS_MAX: u8 = if cfg!(test) { 2 } else { 20 };

/// How often a try checks again whether a deletion is over, before its outcome is
/// [`Outcome::Disturbed`].
const LOOKS_MAX: u8 = 1;

/// How often a deletion waits a moment for others that are about to close the file as well.
const PAUSES_MAX: u8 = if cfg!(test) { 1 } else { 10 };

/// How often a lock is proven again because the proof took too long to prove anything.
const PROOFS_MAX: u8 = 3;

/// The number of the error of a deletion that was not answered in time (errno(3)).
const ETIMEDOUT: i32 = 110;

/// Why sessions that hold slots through the file lose them.
const DROPPED: &str = "the server has dropped it";

/// One system call, or a few that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Lock the name's byte of the gate, or unlock it.
    Gate(Option<Mode>),
    /// Has the gate certainly been locked ever since this operation locked it?
    Gated,
    /// Open the name's file for reading and writing; create it if there is none. Again: past the
    /// caches.
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
    /// Have locks on this file certainly been held since they were last proven?
    Recent,
    /// Read through the descriptor, past the caches: does the server still know its locks?
    Prove,
    /// Does the name mean the open file, according to the directory?
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
    /// Of this many slots, lock this many that nobody has.
    LockSlots(u16, u16),
    /// From this slot on, unlock this many.
    UnlockSlots(u16, u16),
    /// In which mode, or with how many slots, do other processes have the file?
    Uses,
    /// Take a fence: the next number, safe on the disk, while the file is locked in this mode.
    Fence(Mode),
    /// Read the stamp of the name, or give it this age in milliseconds.
    Stamp(Option<u32>),
    /// Lock the file from byte 1 on, exclusively; the anchor is part of it.
    LockToDelete,
    /// Does the name mean the open file, as the server answers a process that wants to create it?
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

/// What comes next: a call, or the end.
pub type Next = super::call::Next<Call>;

/// What an operation begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// Whether the file is open, and anchored.
    pub open: bool,
    /// Whether it is locked, and how.
    pub locked: Option<Mode>,
    /// Whether its locks are known to be lost.
    pub lost: bool,
    /// Whether files may be deleted from here: they may not on NFS 4.0, where a delayed deletion
    /// cannot be ruled out.
    pub deletes: bool,
}

/// What comes when the file is closed and the gate is unlocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    /// The operation ends.
    End,
    /// The try, or the peek, starts over with the file that the name means now.
    StartOver,
    /// A dead file is deleted first.
    Bury,
}

/// How far an operation is; the diagram is at the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The gate is being locked, and the file opened and anchored.
    Opening,
    /// The file was opened just now: its lock is asked for a second time once it is granted.
    Fresh,
    /// The file is open and anchored, and its lock is believed as soon as it is granted and recent.
    Working,
    /// The file is being deleted.
    Deleting,
    /// The same; it was marked dead before, by a process that was killed while it deleted the file.
    DeletingDead,
    /// The file is being closed, and the gate unlocked, for what comes then.
    Leaving(Then),
}

impl Phase {
    fn leads_to(self, next: Self) -> bool {
        match next {
            Self::Opening => self == Self::Leaving(Then::StartOver),
            Self::Fresh => self == Self::Opening,
            Self::Working => self == Self::Fresh,
            Self::Deleting => self == Self::Leaving(Then::Bury),
            Self::DeletingDead => self == Self::Deleting,
            Self::Leaving(_) => !matches!(self, Self::Leaving(_)),
        }
    }
}

/// The name's byte of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Gate {
    Unlocked,
    Locked,
}

/// One file operation on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Steps {
    op: FileOp,
    /// Whether files may be deleted from here.
    deletes: bool,
    /// The call that was asked for last.
    asked: Call,
    phase: Phase,
    /// The locks on the file besides the anchor; `None`: it is closed.
    file: Option<Locks>,
    gate: Gate,
    /// What is known so far, for the end.
    end: Outcome,
    reopens: u8,
    looks: u8,
    proofs: u8,
}

impl Steps {
    /// Begins an operation, and returns its first call.
    #[must_use]
    pub fn begin(op: FileOp, start: Start) -> (Self, Next) {
        let phase = match op {
            FileOp::Retire if start.deletes && !start.lost => Phase::Deleting,
            _ if start.open => Phase::Working,
            _ => Phase::Opening,
        };
        let locks = if start.locked.is_some() { Locks::Some } else { Locks::Nothing };
        let mut steps = Self {
            op,
            deletes: start.deletes,
            asked: Call::Yield,
            phase,
            file: start.open.then_some(locks),
            gate: Gate::Unlocked,
            end: Outcome::Unlocked { file_gone: false },
            reopens: 0,
            looks: 0,
            proofs: 0,
        };
        let next = match op {
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. } if start.lost => {
                steps.start_over()
            }
            FileOp::Take { joins: false, .. } if steps.is_locked() => steps.ask(Call::Unlock),
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. } if start.open => {
                steps.opened()
            }
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) | FileOp::Take { .. } => {
                steps.ask(Call::Gate(Some(Mode::Shared)))
            }
            FileOp::Give { first, count, .. } => steps.ask(Call::UnlockSlots(first, count)),
            FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire if start.lost => steps.let_go(Then::End),
            FileOp::Unlock | FileOp::UnlockAndLook => steps.ask(Call::Unlock),
            FileOp::Retire if start.deletes => steps.ask(Call::Gate(Some(Mode::Exclusive))),
            FileOp::Retire => steps.let_go(Then::End),
            FileOp::Probe(mode) | FileOp::ProbeFence(mode) | FileOp::Stamp(mode, _) => steps.ask(Call::Lock(mode)),
            FileOp::Peek if start.open => steps.ask(Call::Recent),
            FileOp::Peek => steps.ask(Call::Gate(Some(Mode::Shared))),
        };
        (steps, next)
    }

    /// Takes the result of the last call, and returns what comes next.
    pub fn returned(&mut self, result: CallResult) -> Next {
        self.note(&result);
        match (self.phase, self.op) {
            // Whatever the result, there is no other way on.
            (Phase::Leaving(then), _) => self.gone(then),
            (Phase::Deleting | Phase::DeletingDead, _) => self.delete_step(&result),
            (Phase::Fresh | Phase::Working, FileOp::Take { .. }) => self.take_step(result),
            (_, FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode)) => self.try_step(mode, result),
            (_, FileOp::Take { of, .. }) => self.try_step(Mode::Slots(of), result),
            (_, FileOp::Give { .. }) => Next::End(match result {
                CallResult::Failed(fault) => Outcome::Failed(fault),
                _ => Outcome::Given,
            }),
            (_, FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Stamp(..)) => self.probe_step(result),
            (_, FileOp::Unlock | FileOp::UnlockAndLook) if result == CallResult::Yes => Next::End(self.end.clone()),
            // A lock that cannot be undone goes with its descriptor.
            (_, FileOp::Unlock | FileOp::UnlockAndLook) => self.let_go(Then::End),
            (_, FileOp::Peek) => self.peek_step(result),
            (phase, FileOp::Retire) => unreachable!("a deletion is never {phase:?}"),
        }
    }

    /// Notes what the last call has done to the file and the gate.
    fn note(&mut self, result: &CallResult) {
        match (self.asked, result) {
            (Call::Gate(mode), result) => {
                let locked = mode.is_some() && *result == CallResult::Yes;
                self.gate = if locked { Gate::Locked } else { Gate::Unlocked };
            }
            (Call::Open { .. } | Call::OpenOld | Call::OpenToRead, CallResult::Yes) => self.file = Some(Locks::Nothing),
            (Call::Close, _) => self.file = None,
            (Call::Unlock, CallResult::Yes) => *self.locks() = Locks::Nothing,
            (Call::LockTurn, CallResult::Yes) => *self.locks() = Locks::WithTurn,
            (Call::Lock(_) | Call::LockHeld, CallResult::Yes) => self.locks().locked(),
            _ => {}
        }
    }

    fn locks(&mut self) -> &mut Locks {
        self.file.as_mut().expect("only an open file is locked or unlocked")
    }

    fn is_locked(&self) -> bool {
        self.file > Some(Locks::Nothing)
    }

    fn enter(&mut self, phase: Phase) {
        assert!(self.phase.leads_to(phase), "{:?} does not lead to {phase:?}", self.phase);
        self.phase = phase;
    }

    fn ask(&mut self, call: Call) -> Next {
        self.asked = call;
        Next::Call(call)
    }

    fn finish(&mut self, end: Outcome) -> Next {
        self.end = end;
        self.let_go(Then::End)
    }

    /// This file is useless: closes it, and continues with the one that the name means now.
    fn start_over(&mut self) -> Next {
        self.let_go(Then::StartOver)
    }

    /// Closes the file, unlocks the gate, and continues with what comes then.
    fn let_go(&mut self, then: Then) -> Next {
        self.enter(Phase::Leaving(then));
        self.gone(then)
    }

    fn gone(&mut self, then: Then) -> Next {
        if self.file.is_some() {
            return self.ask(Call::Close);
        }
        if self.gate == Gate::Locked {
            return self.ask(Call::Gate(None));
        }
        match then {
            Then::End => Next::End(self.end.clone()),
            Then::Bury => {
                self.enter(Phase::Deleting);
                self.ask(Call::Gate(Some(Mode::Exclusive)))
            }
            Then::StartOver if self.reopens == REOPENS_MAX => Next::End(Outcome::Disturbed),
            Then::StartOver => {
                self.enter(Phase::Opening);
                self.reopens += 1;
                self.proofs = 0;
                self.end = Outcome::Disturbed;
                self.ask(Call::Gate(Some(Mode::Shared)))
            }
        }
    }

    /// The file is open and anchored: on to its lock.
    fn opened(&mut self) -> Next {
        match self.op {
            FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode) => self.ask(Call::Lock(mode)),
            _ => self.ask(Call::LockTurn),
        }
    }

    fn try_step(&mut self, mode: Mode, result: CallResult) -> Next {
        match (self.asked, result) {
            (Call::Gate(Some(_)), CallResult::Yes) => self.ask(Call::Open { again: self.reopens > 0 }),
            // Another process deletes the file.
            (Call::Gate(Some(_)), CallResult::No | CallResult::Gone) => Next::End(Outcome::Disturbed),
            (Call::Open { .. }, CallResult::Yes) => self.ask(Call::Anchor),
            (Call::Anchor, CallResult::Yes) => self.ask(Call::Alive),
            (Call::Anchor, CallResult::No) => self.ask(Call::Held(mode)),
            (Call::Alive, CallResult::Yes) => self.ask(Call::Gate(None)),
            (Call::Gate(None), _) => {
                self.enter(Phase::Fresh);
                self.opened()
            }
            (Call::Yield, _) => self.opened(),
            // The process that marked it dead is gone: it holds no lock any more.
            (Call::Alive, CallResult::No) if self.deletes => self.let_go(Then::Bury),
            (Call::Alive, CallResult::No) => {
                self.finish(Outcome::Failed(Fault { cause: Cause::DeadFile, path: "".into() }))
            }
            (Call::Lock(_), CallResult::Yes) if self.phase == Phase::Fresh => {
                self.enter(Phase::Working);
                self.ask(Call::Lock(mode))
            }
            (Call::Lock(_), CallResult::Yes) => {
                self.end = Outcome::Locked;
                self.ask(Call::Recent)
            }
            // A request that waits is tried again soon, and asks the server for nothing more.
            (Call::Lock(_), CallResult::No) if matches!(self.op, FileOp::Retry(_)) => self.refused(Outcome::Refused),
            (Call::Lock(_), CallResult::No) => {
                self.end = Outcome::Refused;
                self.ask(Call::Recent)
            }
            (Call::Recent, CallResult::Yes) if self.end == Outcome::Locked => match self.op {
                FileOp::TryFence(_) => self.ask(Call::Fence(mode)),
                _ => Next::End(Outcome::Locked),
            },
            (Call::Fence(_), result) => Next::End(with_fence(self.end.clone(), result)),
            (Call::Recent, CallResult::Yes) => self.ask(Call::Held(mode)),
            (Call::Recent, _) => self.prove(),
            (Call::Prove, CallResult::Yes) => self.ask(Call::Recent),
            // While the file is being opened, it is the anchor that was refused.
            (Call::Held(_), CallResult::Yes) if self.phase == Phase::Opening => self.finish(Outcome::Refused),
            (Call::Held(_), CallResult::Yes) => self.refused(Outcome::Refused),
            // Only slots keep shared holders out without holding byte 0 exclusively.
            (Call::Held(Mode::Shared), CallResult::No) if self.phase != Phase::Opening => self.ask(Call::Uses),
            (Call::Uses, CallResult::Uses(held)) if held.disagrees_with(mode) => self.refused(Outcome::Disagrees(held)),
            (Call::Uses, CallResult::Uses(_)) => self.refused(Outcome::Refused),
            // It was released a moment ago, or a program that is not a daemon locks a part of the
            // file.
            (Call::Held(_) | Call::Uses, CallResult::No) if self.phase != Phase::Opening && self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.ask(Call::Yield)
            }
            (Call::Held(_) | Call::Uses, CallResult::No) => self.leave_off(Outcome::Disturbed),
            (Call::Unlock, CallResult::Yes) => Next::End(self.end.clone()),
            (_, CallResult::No | CallResult::Gone) => self.start_over(),
            // A lock that cannot be undone goes with its descriptor.
            (Call::Unlock, CallResult::Failed(fault)) => self.finish(Outcome::Failed(fault)),
            (_, CallResult::Failed(fault)) => self.leave_off(Outcome::Failed(fault)),
            (call, result) => unreachable!("{result:?} is no result of {call:?} in a try"),
        }
    }

    /// The file stays open for the next try, but a lock that a refused conversion left is of no
    /// use.
    fn refused(&mut self, end: Outcome) -> Next {
        self.end = end;
        if self.is_locked() { self.ask(Call::Unlock) } else { Next::End(self.end.clone()) }
    }

    /// An anchored file stays open, so that it is deleted later: it may be new.
    fn leave_off(&mut self, end: Outcome) -> Next {
        match self.phase {
            Phase::Fresh | Phase::Working => self.refused(end),
            _ => self.finish(end),
        }
    }

    fn prove(&mut self) -> Next {
        self.proofs += 1;
        if self.proofs <= PROOFS_MAX {
            return self.ask(Call::Prove);
        }
        self.leave_off(Outcome::Failed(Fault { cause: Cause::ServerSlow, path: "".into() }))
    }
}

/// Taking slots, once the file is open and anchored. As on a local file system, one process at a
/// time takes them, so that a refusal is true. What was taken is believed if the lease has
/// certainly held since the file was proven.
impl Steps {
    fn take_step(&mut self, result: CallResult) -> Next {
        let FileOp::Take { of, take, joins, fence } = self.op else { unreachable!("only a take takes these steps") };
        match (self.asked, result) {
            (Call::Yield, _) => self.ask(Call::LockTurn),
            // This comes first, because the lock that the file had is useless.
            (Call::Unlock, CallResult::Yes) if self.end == (Outcome::Unlocked { file_gone: false }) => self.opened(),
            (Call::LockTurn, CallResult::Yes) => {
                self.end = Outcome::Locked;
                self.ask(if joins { Call::LockSlots(of, take) } else { Call::LockHeld })
            }
            (Call::LockTurn, CallResult::No) => {
                self.end = Outcome::Disturbed;
                self.ask(Call::Uses)
            }
            (Call::LockHeld, CallResult::Yes) => self.ask(Call::LockNumber(of)),
            (Call::LockNumber(_), CallResult::Yes) => self.ask(Call::LockSlots(of, take)),
            (Call::LockSlots(..), CallResult::Slots(slots)) => {
                self.end = Outcome::Taken { slots, fence: None };
                self.ask(Call::Recent)
            }
            (Call::Recent, CallResult::Yes) if fence => self.ask(Call::Fence(Mode::Slots(of))),
            (Call::Recent, CallResult::Yes) => self.ask(Call::UnlockTurn),
            (Call::Recent, _) => self.prove(),
            (Call::Prove, CallResult::Yes) => self.ask(Call::Recent),
            (Call::Fence(_), result) => {
                self.end = with_fence(self.end.clone(), result);
                self.ask(Call::UnlockTurn)
            }
            (Call::Uses, CallResult::Uses(Mode::Exclusive)) => Next::End(Outcome::Refused),
            (Call::Uses | Call::LockNumber(_), CallResult::Uses(mode)) if mode.disagrees_with(Mode::Slots(of)) => {
                self.turn_over(joins, Outcome::Disagrees(mode))
            }
            // Another process takes slots, or deletes the file.
            (Call::Uses, CallResult::No | CallResult::Uses(_)) if self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.ask(Call::Yield)
            }
            (Call::Uses, CallResult::No | CallResult::Uses(_)) => Next::End(Outcome::Disturbed),
            (Call::LockHeld | Call::LockNumber(_) | Call::LockSlots(..), CallResult::No) => {
                self.turn_over(joins, Outcome::Refused)
            }
            (Call::UnlockTurn | Call::Unlock, CallResult::Yes) => Next::End(self.end.clone()),
            // A lock that cannot be undone goes with its descriptor.
            (Call::Unlock, CallResult::Failed(fault)) => self.finish(Outcome::Failed(fault)),
            (_, CallResult::Failed(fault)) => self.turn_over(joins, Outcome::Failed(fault)),
            // The server has forgotten the file, or its locks: sessions that hold slots through it
            // have lost them.
            (_, CallResult::No | CallResult::Gone) if joins => Next::End(Outcome::Lost(DROPPED)),
            (_, CallResult::No | CallResult::Gone) => self.let_go(Then::StartOver),
            (call, result) => unreachable!("{result:?} is no result of {call:?} in a take"),
        }
    }

    /// Nothing was taken: gives the turn back and, if nobody holds slots here, every other lock.
    fn turn_over(&mut self, joins: bool, end: Outcome) -> Next {
        self.end = end;
        match joins {
            // A turn that cannot be given back is asked for only once.
            true if self.file == Some(Locks::WithTurn) => {
                self.file = Some(Locks::Some);
                self.ask(Call::UnlockTurn)
            }
            false if self.is_locked() => self.ask(Call::Unlock),
            _ => Next::End(self.end.clone()),
        }
    }
}

/// Deleting a file: one that retires, or a dead one that is in the way of a try.
impl Steps {
    fn delete_step(&mut self, result: &CallResult) -> Next {
        match (self.asked, result) {
            (Call::Gate(_), CallResult::Yes) if self.file.is_none() => self.ask(Call::OpenOld),
            (Call::Gate(_) | Call::OpenOld, CallResult::Yes) => self.ask(Call::LockToDelete),
            (Call::LockToDelete, CallResult::Yes) => self.ask(Call::Prove),
            // A daemon whose linger ends at the same time is refused at the gate, and closes the
            // file.
            (Call::LockToDelete, CallResult::No) if self.looks < PAUSES_MAX => {
                self.looks += 1;
                self.ask(Call::Pause)
            }
            (Call::Pause, _) => self.ask(Call::LockToDelete),
            // The proof shows whether the lease has run out since the gate was locked.
            (Call::Prove, CallResult::Yes) => self.ask(Call::Gated),
            (Call::Gated, CallResult::Yes) => self.ask(Call::Alive),
            // It was left by a process that was killed while it deleted the file.
            (Call::Alive, CallResult::No) => {
                self.enter(Phase::DeletingDead);
                self.ask(Call::Named)
            }
            (Call::Alive, CallResult::Yes) if self.op == FileOp::Retire => self.ask(Call::Named),
            (Call::Named, CallResult::Yes) if self.phase == Phase::Deleting => self.ask(Call::MarkDead),
            (Call::Named | Call::MarkDead, CallResult::Yes) => self.ask(Call::Close),
            (Call::Close, _) => self.ask(Call::Unlink),
            // It is the system that fails, not the server that is slow: the try says so.
            (Call::Unlink, CallResult::Failed(fault))
                if self.op != FileOp::Retire && fault.errno() != Some(ETIMEDOUT) =>
            {
                self.finish(Outcome::Failed(fault.clone()))
            }
            (Call::Unlink, CallResult::Failed(_)) | (Call::Gate(_) | Call::LockToDelete, _) => self.left(),
            // It is gone, or was not what it seemed.
            _ => self.let_go(if self.op == FileOp::Retire { Then::End } else { Then::StartOver }),
        }
    }

    /// The file stays: somebody else uses it, or the server did not answer in time.
    fn left(&mut self) -> Next {
        if self.op != FileOp::Retire {
            self.end = Outcome::Disturbed;
        }
        self.let_go(Then::End)
    }
}

/// Probes and peeks: what is true of a lock, without changing anything.
impl Steps {
    fn probe_step(&mut self, result: CallResult) -> Next {
        Next::End(match (self.asked, result) {
            (Call::Lock(_), CallResult::No) => Outcome::Lost("the server gave it to another host"),
            // For a lock that is gone, the result of locking it again means nothing.
            (Call::Lock(_), _) => return self.ask(Call::Prove),
            (Call::Prove, CallResult::Yes) => return self.ask(Call::Check),
            (Call::Prove, CallResult::No | CallResult::Gone) => Outcome::Lost(DROPPED),
            (Call::Check, CallResult::No) => Outcome::Lost("its lock file was replaced by another one"),
            (Call::Check, CallResult::Gone) => Outcome::Lost("its lock file was deleted"),
            (Call::Check, CallResult::Yes) => match self.op {
                FileOp::ProbeFence(mode) => return self.ask(Call::Fence(mode)),
                FileOp::Stamp(_, age_ms) => return self.ask(Call::Stamp(age_ms)),
                _ => Outcome::Real,
            },
            (Call::Fence(_), result) => with_fence(Outcome::Real, result),
            (Call::Stamp(_), result) => stamped(result),
            (_, CallResult::Failed(fault)) => Outcome::Failed(fault),
            (call, result) => unreachable!("{result:?} is no result of {call:?} in a probe"),
        })
    }

    fn peek_step(&mut self, result: CallResult) -> Next {
        match (self.asked, result) {
            (Call::Gate(Some(_)), CallResult::Yes) => self.ask(Call::OpenToRead),
            // A process that deletes the file holds nothing.
            (Call::Gate(Some(_)), CallResult::No | CallResult::Gone) => Next::End(Outcome::Peeked { locked: false }),
            (Call::OpenToRead | Call::Prove | Call::Recent, CallResult::Yes) => self.ask(Call::Held(Mode::Exclusive)),
            (Call::Recent, _) => self.ask(Call::Prove),
            (Call::Prove, CallResult::No | CallResult::Gone) => self.start_over(),
            (_, CallResult::Failed(fault)) => self.leave_off(Outcome::Failed(fault)),
            (Call::Held(_), result) => {
                self.end = Outcome::Peeked { locked: result == CallResult::Yes };
                // An anchored file stays open; one that was opened for the peek is closed.
                if self.phase == Phase::Opening { self.let_go(Then::End) } else { Next::End(self.end.clone()) }
            }
            _ => self.finish(Outcome::Peeked { locked: false }),
        }
    }
}
