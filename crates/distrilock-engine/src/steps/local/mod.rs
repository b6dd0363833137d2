//! The steps of each file operation on a local file system, without taking them: [`Steps`] asks for
//! one system call after another ([`Call`]) and is given its result ([`CallResult`]). The engine's
//! model interleaves these steps with those of other processes; the daemon's `files` takes them one
//! after another.
//!
//! A name is held when **byte 0 of the file that the name means** is locked. A holder locks the
//! whole file, so that it excludes programs that do the same (daemons of the original among them).
//! A process that deletes an unheld file locks it from byte 1 on. That keeps holders out while the
//! file goes, and lets a refused try tell the two apart: a name is not called held because its file
//! is being deleted.
//!
//! Why a lock can be believed: a file is deleted only under a lock that excludes every holder, by a
//! process that has checked, under that lock, that the name means this file. So when a lock is
//! granted and the name *then* means the locked file, nobody else holds the name, and the file
//! stays until the lock goes. When the name does not mean it, the file was deleted before the lock
//! was granted, and the try starts over. An inode number is not reused while the file is open, so
//! that comparing it is enough.

#[cfg(test)]
mod tests;

use distrilock_protocol::want::Mode;

use super::call::{CallResult, Locks, stamped, with_fence};
use crate::fault::{Cause, Fault};
use crate::message::{FileOp, Outcome};

/// How often a try starts over because its file was deleted under it; each time, somebody else has
/// made progress.
const REOPENS_MAX: u16 = if cfg!(test) { 1 } else { 1000 };

/// How often a try checks again, at once, whether a deletion is over, before its outcome is
/// [`Outcome::Disturbed`]. (Fewer times in tests, so that a model has fewer states.)
const LOOKS_MAX: u8 = if cfg!(test) { 1 } else { 20 };

/// One system call, or two that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Open the name's file for reading and writing; create it if there is none.
    Open,
    /// Open the name's file for reading.
    OpenToRead,
    /// Lock the whole file, or convert the lock that it has.
    Lock(Mode),
    /// Lock the byte of the process that takes slots.
    LockTurn,
    /// Unlock it.
    UnlockTurn,
    /// Lock, for reading, the bytes that say that somebody holds the name.
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
    /// Lock the file from byte 1 on, exclusively.
    LockToDelete,
    /// Does the name mean the open file?
    Check,
    /// Does any name mean the open file? (Cheaper than [`Call::Check`].)
    Linked,
    /// Does a lock of another process keep byte 0 from being locked in this mode?
    Held(Mode),
    /// Let another process run.
    Yield,
    /// Delete the name.
    Unlink,
    /// Release all locks on the file.
    Unlock,
    /// Close the file.
    Close,
}

/// What comes next: a call, or the end.
pub type Next = super::call::Next<Call>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum After {
    /// The operation ends, and the file stays open.
    Keep,
    /// The file is closed, and the operation ends.
    Close,
    /// The file is closed, and the one that the name means now is opened.
    Reopen,
}

/// One file operation on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Steps {
    op: FileOp,
    /// The call that was asked for last.
    asked: Call,
    locks: Locks,
    /// What is known so far, for the end.
    end: Outcome,
    /// What comes once the file is unlocked.
    after: After,
    reopens: u16,
    looks: u8,
}

impl Steps {
    /// Begins an operation on a file that may be `open`, and may be `locked` in a mode. Returns its
    /// first call.
    #[must_use]
    pub fn begin(op: FileOp, open: bool, locked: Option<Mode>) -> (Self, Next) {
        let end = Outcome::Unlocked { file_gone: false };
        let locks = if locked.is_some() { Locks::Some } else { Locks::Nothing };
        let mut steps = Self { op, asked: Call::Yield, locks, end, after: After::Keep, reopens: 0, looks: 0 };
        let first = match op {
            FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode) if open => Call::Lock(mode),
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) => Call::Open,
            FileOp::Take { joins, .. } => Self::begin_take(joins, open, locked.is_some()),
            FileOp::Give { first, count, .. } => Call::UnlockSlots(first, count),
            FileOp::Retire if locked != Some(Mode::Exclusive) => Call::LockToDelete,
            FileOp::Peek if !open => Call::OpenToRead,
            FileOp::Unlock => Call::Unlock,
            FileOp::UnlockAndLook => Call::Linked,
            FileOp::Peek | FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Stamp(..) | FileOp::Retire => Call::Check,
        };
        let next = steps.ask(first);
        (steps, next)
    }

    /// Takes the result of the last call, and returns what comes next.
    pub fn returned(&mut self, result: CallResult) -> Next {
        match (self.asked, &result) {
            (Call::Unlock, CallResult::Yes) | (Call::Close, _) => self.locks = Locks::Nothing,
            (Call::LockTurn, CallResult::Yes) => self.locks = Locks::WithTurn,
            (Call::Lock(_) | Call::LockToDelete | Call::LockHeld, CallResult::Yes) => self.locks.locked(),
            _ => {}
        }
        match self.op {
            FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode) => self.try_step(mode, result),
            FileOp::Take { .. } => self.take_step(result),
            FileOp::Give { .. } => Next::End(match result {
                CallResult::Failed(fault) => Outcome::Failed(fault),
                _ => Outcome::Given,
            }),
            FileOp::ProbeFence(mode) if self.asked == Call::Check && result == CallResult::Yes => {
                self.ask(Call::Fence(mode))
            }
            FileOp::ProbeFence(_) if self.asked != Call::Check => {
                self.fenced(result);
                Next::End(self.end.clone())
            }
            FileOp::Stamp(_, age_ms) if self.asked == Call::Check && result == CallResult::Yes => {
                self.ask(Call::Stamp(age_ms))
            }
            FileOp::Stamp(..) if self.asked != Call::Check => Next::End(stamped(result)),
            FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Stamp(..) => Next::End(match result {
                CallResult::Yes => Outcome::Real,
                CallResult::No => Outcome::Lost("its lock file was replaced by another one"),
                CallResult::Gone => Outcome::Lost("its lock file was deleted"),
                CallResult::Failed(fault) => Outcome::Failed(fault),
                result => unreachable!("{result:?} is no result of a check"),
            }),
            FileOp::Unlock | FileOp::UnlockAndLook => self.unlock_step(&result),
            FileOp::Retire => self.retire_step(&result),
            FileOp::Peek => self.peek_step(result),
        }
    }

    fn ask(&mut self, call: Call) -> Next {
        self.asked = call;
        Next::Call(call)
    }

    fn try_step(&mut self, mode: Mode, result: CallResult) -> Next {
        match (self.asked, result) {
            (Call::Open | Call::Yield, CallResult::Yes) => self.ask(Call::Lock(mode)),
            (Call::Open, CallResult::Failed(fault)) => Next::End(Outcome::Failed(fault)),
            (Call::Lock(_), CallResult::Yes) => {
                self.end = Outcome::Locked;
                self.ask(Call::Check)
            }
            (Call::Lock(_), CallResult::No) => {
                self.end = Outcome::Refused;
                // A request that waits is tried again soon: if the file was deleted, it can be
                // locked then, and is left.
                if matches!(self.op, FileOp::Retry(_)) { self.refused() } else { self.ask(Call::Check) }
            }
            (Call::Check, CallResult::Yes) if self.end == Outcome::Locked => match self.op {
                FileOp::TryFence(_) => self.ask(Call::Fence(mode)),
                _ => Next::End(Outcome::Locked),
            },
            (Call::Fence(_), result) => {
                self.fenced(result);
                Next::End(self.end.clone())
            }
            (Call::Check, CallResult::Yes) => self.ask(Call::Held(mode)),
            // The file was deleted: close it, and go on with the one that the name means now.
            (Call::Check, CallResult::No | CallResult::Gone) => self.let_go(After::Reopen),
            (Call::Held(_), CallResult::Yes) => self.refused(),
            // Only slots keep shared holders out without holding byte 0 exclusively.
            (Call::Held(Mode::Shared), CallResult::No) => self.ask(Call::Uses),
            (Call::Uses, CallResult::Uses(held)) if held.disagrees_with(mode) => {
                self.end = Outcome::Disagrees(held);
                self.refused()
            }
            (Call::Uses, CallResult::Uses(_)) => self.refused(),
            (Call::Held(_) | Call::Uses, CallResult::No) if self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.ask(Call::Yield)
            }
            (Call::Held(_) | Call::Uses, CallResult::No) => {
                self.end = Outcome::Disturbed;
                self.refused()
            }
            // A lock that cannot be undone goes with its descriptor.
            (Call::Unlock, CallResult::Failed(_)) if self.after == After::Keep => self.ask(Call::Close),
            (Call::Unlock | Call::Close, _) => self.gone(Call::Open),
            // The file stays open, so that it is deleted later: it may be new.
            (_, CallResult::Failed(fault)) => {
                self.end = Outcome::Failed(fault);
                self.let_go(After::Keep)
            }
            (call, result) => unreachable!("{result:?} is no result of {call:?} in a try"),
        }
    }

    fn is_locked(&self) -> bool {
        self.locks > Locks::Nothing
    }

    /// Notes the fence, or why there is none.
    fn fenced(&mut self, result: CallResult) {
        self.end = with_fence(self.end.clone(), result);
    }

    /// The file stays open for the next try, but a lock that a refused conversion left is of no
    /// use.
    fn refused(&mut self) -> Next {
        if self.is_locked() { self.let_go(After::Keep) } else { Next::End(self.end.clone()) }
    }

    /// Unlocks the file, if it is locked, and continues with what comes `after` that.
    fn let_go(&mut self, after: After) -> Next {
        self.after = after;
        if self.is_locked() { self.ask(Call::Unlock) } else { self.gone(Call::Open) }
    }

    /// The file is unlocked, and perhaps closed as well.
    fn gone(&mut self, reopen: Call) -> Next {
        match (self.asked, self.after) {
            (Call::Close, After::Reopen) if self.reopens < REOPENS_MAX => {
                self.reopens += 1;
                self.ask(reopen)
            }
            // A process that deletes it again and again does not hold it.
            (Call::Close, After::Reopen) if self.op != FileOp::Peek => Next::End(Outcome::Disturbed),
            (Call::Close, After::Reopen) => {
                Next::End(Outcome::Failed(Fault { cause: Cause::Replaced, path: "".into() }))
            }
            (Call::Close, _) | (_, After::Keep) => Next::End(self.end.clone()),
            _ => self.ask(Call::Close),
        }
    }

    fn unlock_step(&mut self, result: &CallResult) -> Next {
        match self.asked {
            // Deleted; or was another one put into its place?
            Call::Linked if *result == CallResult::No => self.ask(Call::Check),
            Call::Linked => self.ask(Call::Unlock),
            Call::Check => {
                self.end = Outcome::Unlocked { file_gone: *result == CallResult::Gone };
                self.ask(Call::Unlock)
            }
            // A lock that cannot be undone goes with its descriptor.
            Call::Unlock if *result != CallResult::Yes => self.ask(Call::Close),
            _ => Next::End(self.end.clone()),
        }
    }

    fn retire_step(&mut self, result: &CallResult) -> Next {
        match (self.asked, result) {
            (Call::LockToDelete, CallResult::Yes) => self.ask(Call::Check),
            (Call::Check, CallResult::Yes) => self.ask(Call::Unlink),
            (Call::Check | Call::Unlink, result) => {
                self.end = Outcome::Unlocked { file_gone: *result == CallResult::Gone };
                self.after = After::Close;
                self.ask(Call::Unlock)
            }
            // Another process locks the file. If it shares it, and is about to delete it as well,
            // the two are in each other's way: each has to ask again without a lock of its own.
            (Call::LockToDelete, _) if self.is_locked() => self.ask(Call::Unlock),
            (Call::Unlock, CallResult::Yes) if self.after == After::Keep => self.ask(Call::LockToDelete),
            // Another process locks the file, and has yet to ask without a lock of its own: it will
            // delete the file.
            (Call::LockToDelete | Call::Unlock, _) => self.ask(Call::Close),
            _ => Next::End(self.end.clone()),
        }
    }

    fn peek_step(&mut self, result: CallResult) -> Next {
        match (self.asked, result) {
            (Call::OpenToRead, CallResult::Yes) => {
                self.after = After::Close;
                self.ask(Call::Held(Mode::Exclusive))
            }
            (Call::OpenToRead, CallResult::Failed(fault)) => Next::End(Outcome::Failed(fault)),
            (Call::OpenToRead, _) => self.peeked(false),
            (Call::Held(_), CallResult::Yes) => {
                self.end = Outcome::Peeked { locked: true };
                self.ask(Call::Check)
            }
            (Call::Held(_), CallResult::No | CallResult::Gone) => self.peeked(false),
            (Call::Check, CallResult::Yes) if self.end == (Outcome::Peeked { locked: true }) => self.peeked(true),
            (Call::Check, CallResult::Yes) => self.ask(Call::Held(Mode::Exclusive)),
            (Call::Check | Call::Held(_), CallResult::Failed(fault)) => {
                self.end = Outcome::Failed(fault);
                self.let_go(self.after)
            }
            // The file was deleted: a lock on it means nothing.
            (Call::Check, _) => {
                self.end = Outcome::Peeked { locked: false };
                self.let_go(After::Reopen)
            }
            _ => self.gone(Call::OpenToRead),
        }
    }

    /// A file that was opened for the peek is closed; one that lingers stays open.
    fn peeked(&mut self, locked: bool) -> Next {
        self.end = Outcome::Peeked { locked };
        let open = self.asked != Call::OpenToRead;
        if open && self.after == After::Close { self.ask(Call::Close) } else { Next::End(self.end.clone()) }
    }
}

/// Taking slots. One process at a time takes them ([`Call::LockTurn`]), so that a refusal is true:
/// when it found too few free slots, that is how it was when its turn began, since others can only
/// have given slots back in the meantime.
impl Steps {
    /// The first call of a take.
    fn begin_take(joins: bool, open: bool, locked: bool) -> Call {
        match (open, locked && !joins) {
            (false, _) => Call::Open,
            (true, true) => Call::Unlock,
            (true, false) => Call::LockTurn,
        }
    }

    fn take_step(&mut self, result: CallResult) -> Next {
        let FileOp::Take { of, take, joins, fence } = self.op else { unreachable!("only a take takes these steps") };
        match (self.asked, result) {
            (Call::Open | Call::Yield, CallResult::Yes) => self.ask(Call::LockTurn),
            (Call::Open, CallResult::Failed(fault)) => Next::End(Outcome::Failed(fault)),
            // This comes first, because the lock that the file had is useless.
            (Call::Unlock, CallResult::Yes) if self.end == (Outcome::Unlocked { file_gone: false }) => {
                self.ask(Call::LockTurn)
            }
            (Call::Unlock, CallResult::Failed(fault)) if self.end == (Outcome::Unlocked { file_gone: false }) => {
                self.end = Outcome::Failed(fault);
                self.ask(Call::Close)
            }
            (Call::LockTurn, CallResult::Yes) => {
                self.end = Outcome::Locked;
                self.ask(if joins { Call::Check } else { Call::LockHeld })
            }
            (Call::LockTurn, CallResult::No) => {
                self.end = Outcome::Disturbed;
                self.ask(Call::Check)
            }
            (Call::LockHeld, CallResult::Yes) => self.ask(Call::Check),
            (Call::Check, CallResult::Yes) if self.end == Outcome::Disturbed => self.ask(Call::Uses),
            (Call::Check, CallResult::Yes) if joins => self.ask(Call::LockSlots(of, take)),
            (Call::Check, CallResult::Yes) => self.ask(Call::LockNumber(of)),
            (Call::Check, CallResult::No | CallResult::Gone) if joins => {
                self.end = Outcome::Lost("its lock file was deleted, or replaced by another one");
                self.turn_over(joins)
            }
            (Call::Check, CallResult::No | CallResult::Gone) => self.let_go(After::Reopen),
            (Call::LockNumber(_), CallResult::Yes) => self.ask(Call::LockSlots(of, take)),
            (Call::LockSlots(..), CallResult::Slots(slots)) => {
                self.end = Outcome::Taken { slots, fence: None };
                if fence { self.ask(Call::Fence(Mode::Slots(of))) } else { self.ask(Call::UnlockTurn) }
            }
            (Call::Fence(_), result) => {
                self.fenced(result);
                self.ask(Call::UnlockTurn)
            }
            (Call::Uses, CallResult::Uses(Mode::Exclusive)) => Next::End(Outcome::Refused),
            (Call::Uses | Call::LockNumber(_), CallResult::Uses(mode)) if mode.disagrees_with(Mode::Slots(of)) => {
                self.end = Outcome::Disagrees(mode);
                self.turn_over(joins)
            }
            // Another process takes slots, or deletes the file.
            (Call::Uses, CallResult::No | CallResult::Uses(_)) if self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.ask(Call::Yield)
            }
            (Call::Uses, CallResult::No | CallResult::Uses(_)) => Next::End(Outcome::Disturbed),
            (Call::LockHeld | Call::LockNumber(_) | Call::LockSlots(..), CallResult::No) => {
                self.end = Outcome::Refused;
                self.turn_over(joins)
            }
            (Call::UnlockTurn, CallResult::Yes) => Next::End(self.end.clone()),
            (Call::UnlockTurn, CallResult::Failed(fault)) if joins => Next::End(Outcome::Failed(fault)),
            // A lock that cannot be undone goes with its descriptor.
            (Call::Unlock, CallResult::Failed(_)) if self.after == After::Keep => self.ask(Call::Close),
            (Call::Unlock | Call::Close, _) => self.gone(Call::Open),
            (_, CallResult::Failed(fault)) => {
                self.end = Outcome::Failed(fault);
                if joins { self.turn_over(joins) } else { self.let_go(After::Keep) }
            }
            (call, result) => unreachable!("{result:?} is no result of {call:?} in a take"),
        }
    }

    /// Nothing was taken: gives the turn back and, if nobody holds slots here, every other lock.
    fn turn_over(&mut self, joins: bool) -> Next {
        match joins {
            true if self.locks == Locks::WithTurn => self.ask(Call::UnlockTurn),
            true => Next::End(self.end.clone()),
            false if self.is_locked() => self.let_go(After::Keep),
            false => Next::End(self.end.clone()),
        }
    }
}
