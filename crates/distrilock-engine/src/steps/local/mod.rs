//! The steps of each file operation on a local file system, without making them: [`Steps`] asks for one system call after the
//! other ([`Call`]) and is told what came of it ([`Answer`]). The engine's model interleaves these steps with those of other
//! processes; `os` takes them one after the other.
//!
//! A name is held when **byte 0 of the file that the name means** is locked. A holder locks the whole file, so that it excludes
//! programs that do the same (daemons of the original among them). Who deletes a file that nobody holds locks it from byte 1 on:
//! that keeps holders out while the file goes, and a try that is refused can tell the two apart, so that a name is not called
//! held because its file is being deleted.
//!
//! Why a lock may be believed: a file is deleted only under a lock that excludes every holder, by who has checked, under that
//! lock, that the name means this file. So when a lock is granted and the name *then* means the locked file, nobody else holds
//! the name, and the file stays until the lock goes. When it does not, the file was deleted before the lock was granted, and the
//! try starts again. A file's inode number is not used again while it is open, so that comparing it is enough.

mod slots;

pub(super) use slots::with_fence;

use crate::fault::Fault;
use crate::{FileOp, Mode, Outcome};

/// A try that met a file which was deleted under it starts again so often; each time somebody else made progress.
const REOPENS_MAX: u16 = if cfg!(test) { 1 } else { 1000 };

/// So often a try looks again, at once, whether a deletion is over, before it says [`Outcome::Disturbed`]. (Fewer in tests, so
/// that a model has fewer states.)
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
    /// Lock what says that somebody holds the name, for reading.
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
    /// Let go of all locks on the file.
    Unlock,
    /// Close the file.
    Close,
}

/// What came of a [`Call`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is done; to a question: yes.
    Yes,
    /// Lock: another process is in the way; to a question: no.
    No,
    /// Check: the name means no file; open to read: there is none.
    Gone,
    /// Uses, lock number: another process has the file in this mode, which does not go with what was asked.
    Uses(Mode),
    /// Lock slots: these.
    Slots(Box<[u16]>),
    /// Fence: the number.
    Fence(u64),
    /// The system refused.
    Failed(Fault),
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// Make this call.
    Call(Call),
    /// The operation is complete.
    End(Outcome),
}

/// The name means another file each time that one is looked at: nothing can be said of it.
fn replaced() -> Fault {
    Fault { operation: "stat", path: "".into(), errno: nix::libc::ESTALE }
}

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
    /// Whether the file has a lock, of whichever mode.
    locked: bool,
    /// Whether other processes cannot take slots.
    has_turn: bool,
    /// What is known so far, for the end.
    end: Outcome,
    /// What comes after the file was let go of.
    after: After,
    reopens: u16,
    looks: u8,
}

impl Steps {
    /// Begins an operation on a file that is `open` or not, and `locked` in a mode or not; tells the first call.
    #[must_use]
    pub fn begin(op: FileOp, open: bool, locked: Option<Mode>) -> (Self, Next) {
        let end = Outcome::Unlocked { file_gone: false };
        let (asked, after, locks) = (Call::Yield, After::Keep, locked.is_some());
        let mut steps = Self { op, asked, locked: locks, has_turn: false, end, after, reopens: 0, looks: 0 };
        let first = match op {
            FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode) if open => Call::Lock(mode),
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) => Call::Open,
            FileOp::Take { joins, .. } => Self::begin_take(joins, open, locks),
            FileOp::Give { first, count, .. } => Call::UnlockSlots(first, count),
            FileOp::Retire if locked != Some(Mode::Exclusive) => Call::LockToDelete,
            FileOp::Peek if !open => Call::OpenToRead,
            FileOp::Unlock => Call::Unlock,
            FileOp::UnlockAndLook => Call::Linked,
            FileOp::Peek | FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Retire => Call::Check,
        };
        let next = steps.ask(first);
        (steps, next)
    }

    /// Takes the answer to the last call; tells the next one.
    pub fn answered(&mut self, answer: Answer) -> Next {
        match (self.asked, &answer) {
            (Call::Unlock, Answer::Yes) | (Call::Close, _) => (self.locked, self.has_turn) = (false, false),
            (Call::LockTurn, Answer::Yes) => (self.locked, self.has_turn) = (true, true),
            (Call::Lock(_) | Call::LockToDelete | Call::LockHeld, Answer::Yes) => self.locked = true,
            _ => {}
        }
        match self.op {
            FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode) => self.try_step(mode, answer),
            FileOp::Take { .. } => self.take_step(answer),
            FileOp::Give { .. } => Next::End(match answer {
                Answer::Failed(fault) => Outcome::Failed(fault),
                _ => Outcome::Given,
            }),
            FileOp::ProbeFence(mode) if self.asked == Call::Check && answer == Answer::Yes => {
                self.ask(Call::Fence(mode))
            }
            FileOp::ProbeFence(_) if self.asked != Call::Check => {
                self.fenced(answer);
                Next::End(self.end.clone())
            }
            FileOp::Probe(_) | FileOp::ProbeFence(_) => Next::End(match answer {
                Answer::Yes => Outcome::Real,
                Answer::No => Outcome::Lost("its lock file was replaced by another one"),
                Answer::Gone => Outcome::Lost("its lock file was deleted"),
                Answer::Failed(fault) => Outcome::Failed(fault),
                answer => unreachable!("{answer:?} is no answer to a check"),
            }),
            FileOp::Unlock | FileOp::UnlockAndLook => self.unlock_step(&answer),
            FileOp::Retire => self.retire_step(&answer),
            FileOp::Peek => self.peek_step(answer),
        }
    }

    fn ask(&mut self, call: Call) -> Next {
        self.asked = call;
        Next::Call(call)
    }

    fn try_step(&mut self, mode: Mode, answer: Answer) -> Next {
        match (self.asked, answer) {
            (Call::Open | Call::Yield, Answer::Yes) => self.ask(Call::Lock(mode)),
            (Call::Open, Answer::Failed(fault)) => Next::End(Outcome::Failed(fault)),
            (Call::Lock(_), Answer::Yes) => {
                self.end = Outcome::Locked;
                self.ask(Call::Check)
            }
            (Call::Lock(_), Answer::No) => {
                self.end = Outcome::Refused;
                // Who only waits tries again soon: a file that was deleted can be locked then, and is left.
                if matches!(self.op, FileOp::Retry(_)) { self.refused() } else { self.ask(Call::Check) }
            }
            (Call::Check, Answer::Yes) if self.end == Outcome::Locked => match self.op {
                FileOp::TryFence(_) => self.ask(Call::Fence(mode)),
                _ => Next::End(Outcome::Locked),
            },
            (Call::Fence(_), answer) => {
                self.fenced(answer);
                Next::End(self.end.clone())
            }
            (Call::Check, Answer::Yes) => self.ask(Call::Held(mode)),
            // The file was deleted: away with it, and on with the one that the name means now.
            (Call::Check, Answer::No | Answer::Gone) => self.let_go(After::Reopen),
            (Call::Held(_), Answer::Yes) => self.refused(),
            // What keeps shared holders out without holding byte 0 alone are slots.
            (Call::Held(Mode::Shared), Answer::No) => self.ask(Call::Uses),
            (Call::Uses, Answer::Uses(held)) if held.disagrees_with(mode) => {
                self.end = Outcome::Disagrees(held);
                self.refused()
            }
            (Call::Uses, Answer::Uses(_)) => self.refused(),
            (Call::Held(_) | Call::Uses, Answer::No) if self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.ask(Call::Yield)
            }
            (Call::Held(_) | Call::Uses, Answer::No) => {
                self.end = Outcome::Disturbed;
                self.refused()
            }
            // A lock that cannot be undone goes with its descriptor.
            (Call::Unlock, Answer::Failed(_)) if self.after == After::Keep => self.ask(Call::Close),
            (Call::Unlock | Call::Close, _) => self.gone(Call::Open),
            (_, Answer::Failed(fault)) => {
                self.end = Outcome::Failed(fault);
                self.let_go(After::Close)
            }
            (call, answer) => unreachable!("{answer:?} is no answer to {call:?} in a try"),
        }
    }

    /// The file stays open for the next try, but a lock that a refused conversion left is of no use.
    fn refused(&mut self) -> Next {
        if self.locked { self.let_go(After::Keep) } else { Next::End(self.end.clone()) }
    }

    /// Unlocks the file, if it is locked, and goes on to what comes after that.
    fn let_go(&mut self, after: After) -> Next {
        self.after = after;
        if self.locked { self.ask(Call::Unlock) } else { self.gone(Call::Open) }
    }

    /// The file is unlocked, or closed as well.
    fn gone(&mut self, reopen: Call) -> Next {
        match (self.asked, self.after) {
            (Call::Close, After::Reopen) if self.reopens < REOPENS_MAX => {
                self.reopens += 1;
                self.ask(reopen)
            }
            // Whoever deletes it again and again, it is nobody who holds it.
            (Call::Close, After::Reopen) if self.op != FileOp::Peek => Next::End(Outcome::Disturbed),
            (Call::Close, After::Reopen) => Next::End(Outcome::Failed(replaced())),
            (Call::Close, _) | (_, After::Keep) => Next::End(self.end.clone()),
            _ => self.ask(Call::Close),
        }
    }

    fn unlock_step(&mut self, answer: &Answer) -> Next {
        match self.asked {
            // Deleted; or was another one put into its place?
            Call::Linked if *answer == Answer::No => self.ask(Call::Check),
            Call::Linked => self.ask(Call::Unlock),
            Call::Check => {
                self.end = Outcome::Unlocked { file_gone: *answer == Answer::Gone };
                self.ask(Call::Unlock)
            }
            // A lock that cannot be undone goes with its descriptor.
            Call::Unlock if *answer != Answer::Yes => self.ask(Call::Close),
            _ => Next::End(self.end.clone()),
        }
    }

    fn retire_step(&mut self, answer: &Answer) -> Next {
        match (self.asked, answer) {
            (Call::LockToDelete, Answer::Yes) => self.ask(Call::Check),
            (Call::Check, Answer::Yes) => self.ask(Call::Unlink),
            (Call::Check | Call::Unlink, answer) => {
                self.end = Outcome::Unlocked { file_gone: *answer == Answer::Gone };
                self.ask(Call::Unlock)
            }
            // Somebody else locks it: the file is theirs to delete.
            (Call::LockToDelete, _) if self.locked => self.ask(Call::Unlock),
            (Call::LockToDelete | Call::Unlock, _) => self.ask(Call::Close),
            _ => Next::End(self.end.clone()),
        }
    }

    fn peek_step(&mut self, answer: Answer) -> Next {
        match (self.asked, answer) {
            (Call::OpenToRead, Answer::Yes) => {
                self.after = After::Close;
                self.ask(Call::Held(Mode::Exclusive))
            }
            (Call::OpenToRead, Answer::Failed(fault)) => Next::End(Outcome::Failed(fault)),
            (Call::OpenToRead, _) => self.peeked(false),
            (Call::Held(_), Answer::Yes) => {
                self.end = Outcome::Peeked { locked: true };
                self.ask(Call::Check)
            }
            (Call::Held(_), Answer::No | Answer::Gone) => self.peeked(false),
            (Call::Check, Answer::Yes) if self.end == (Outcome::Peeked { locked: true }) => self.peeked(true),
            (Call::Check, Answer::Yes) => self.ask(Call::Held(Mode::Exclusive)),
            (Call::Check | Call::Held(_), Answer::Failed(fault)) => {
                self.end = Outcome::Failed(fault);
                self.let_go(After::Close)
            }
            // The file was deleted: who locks it holds nothing.
            (Call::Check, _) => {
                self.end = Outcome::Peeked { locked: false };
                self.let_go(After::Reopen)
            }
            _ => self.gone(Call::OpenToRead),
        }
    }

    /// A file that was opened for the peek alone is closed; one that lingers stays.
    fn peeked(&mut self, locked: bool) -> Next {
        self.end = Outcome::Peeked { locked };
        let open = self.asked != Call::OpenToRead;
        if open && self.after == After::Close { self.ask(Call::Close) } else { Next::End(self.end.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: FileOp, open: bool, locked: Option<Mode>, script: &[(Call, Answer)]) -> Outcome {
        let (mut steps, mut next) = Steps::begin(op, open, locked);
        for (call, answer) in script {
            assert_eq!(next, Next::Call(*call), "{script:?}");
            next = steps.answered(answer.clone());
        }
        match next {
            Next::End(outcome) => outcome,
            Next::Call(call) => panic!("{call:?} was not expected"),
        }
    }

    /// A try whose file was deleted before the lock came lets go of it and starts over with the new one.
    #[test]
    fn a_deleted_file_is_left() {
        let mode = Mode::Exclusive;
        let script = [
            (Call::Lock(mode), Answer::Yes),
            (Call::Check, Answer::Gone),
            (Call::Unlock, Answer::Yes),
            (Call::Close, Answer::Yes),
            (Call::Open, Answer::Yes),
            (Call::Lock(mode), Answer::Yes),
            (Call::Check, Answer::Yes),
        ];
        assert_eq!(run(FileOp::Try(mode), true, None, &script), Outcome::Locked);
    }

    /// A refusal counts only if the name still means the file that was locked, and only if its byte 0 is.
    #[test]
    fn a_refusal_is_looked_at_twice() {
        let mode = Mode::Exclusive;
        let mut script = vec![(Call::Lock(mode), Answer::No), (Call::Check, Answer::No), (Call::Close, Answer::Yes)];
        script.extend([(Call::Open, Answer::Yes), (Call::Lock(mode), Answer::No), (Call::Check, Answer::Yes)]);
        let mut held = script.clone();
        held.push((Call::Held(mode), Answer::Yes));
        assert_eq!(run(FileOp::Try(mode), true, None, &held), Outcome::Refused);
        for _ in 0..LOOKS_MAX {
            script.extend([(Call::Held(mode), Answer::No), (Call::Yield, Answer::Yes)]);
            script.extend([(Call::Lock(mode), Answer::No), (Call::Check, Answer::Yes)]);
        }
        script.push((Call::Held(mode), Answer::No));
        assert_eq!(run(FileOp::Try(mode), true, None, &script), Outcome::Disturbed);
    }

    /// Slots are taken in the process's turn, under a lock that says so, of a file that the name means; another number leaves
    /// nothing behind.
    #[test]
    fn slots_are_taken_in_turn() {
        let op = FileOp::Take { of: 4, take: 2, joins: false, fence: true };
        let mut script = vec![
            (Call::Unlock, Answer::Yes),
            (Call::LockTurn, Answer::Yes),
            (Call::LockHeld, Answer::Yes),
            (Call::Check, Answer::Yes),
        ];
        let mut other = script.clone();
        let taken = Box::from([1, 2]);
        script.extend([
            (Call::LockNumber(4), Answer::Yes),
            (Call::LockSlots(4, 2), Answer::Slots(taken)),
            (Call::Fence(Mode::Slots(4)), Answer::Fence(91)),
            (Call::UnlockTurn, Answer::Yes),
        ]);
        let outcome = run(op, true, Some(Mode::Exclusive), &script);
        assert_eq!(outcome, Outcome::Taken { slots: [1, 2].into(), fence: Some(Ok(91)) });
        other.push((Call::LockNumber(4), Answer::Uses(Mode::Slots(5))));
        other.push((Call::Unlock, Answer::Yes));
        assert_eq!(run(op, true, Some(Mode::Exclusive), &other), Outcome::Disagrees(Mode::Slots(5)));
    }

    /// Who has slots and takes more keeps what it has, whatever comes of it.
    #[test]
    fn a_take_that_joins_keeps_the_rest() {
        let op = FileOp::Take { of: 4, take: 2, joins: true, fence: false };
        let mut script = vec![(Call::LockTurn, Answer::No), (Call::Check, Answer::Yes), (Call::Uses, Answer::No)];
        script.push((Call::Yield, Answer::Yes));
        script.extend([(Call::LockTurn, Answer::Yes), (Call::Check, Answer::Yes)]);
        script.extend([(Call::LockSlots(4, 2), Answer::No), (Call::UnlockTurn, Answer::Yes)]);
        assert_eq!(run(op, true, Some(Mode::Slots(4)), &script), Outcome::Refused);
        let script = [(Call::LockTurn, Answer::Yes), (Call::Check, Answer::Gone), (Call::UnlockTurn, Answer::Yes)];
        assert!(matches!(run(op, true, Some(Mode::Slots(4)), &script), Outcome::Lost(_)));
    }

    fn is_refusal(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Refused | Outcome::Disturbed | Outcome::Failed(_))
    }

    /// Whatever the answers, an operation ends, and a try that ends without a lock leaves none behind.
    #[test]
    fn every_path_ends() {
        let fault = Fault { operation: "test", path: "".into(), errno: 5 };
        let answers = [Answer::Yes, Answer::No, Answer::Gone, Answer::Failed(fault)];
        let shared = Mode::Shared;
        let take = |joins, fence| FileOp::Take { of: 4, take: 2, joins, fence };
        let ops = [
            FileOp::Try(shared),
            FileOp::TryFence(shared),
            take(false, false),
            take(true, true),
            FileOp::Give { of: 4, first: 1, count: 2 },
            FileOp::Probe(shared),
            FileOp::ProbeFence(shared),
            FileOp::Unlock,
            FileOp::Retire,
            FileOp::Peek,
        ];
        for (op, seed) in ops.into_iter().flat_map(|op| (0..5000_u64).map(move |seed| (op, seed))) {
            let joins = matches!(op, FileOp::Take { joins: true, .. } | FileOp::Give { .. });
            let takes = matches!(op, FileOp::Try(_) | FileOp::TryFence(_) | FileOp::Take { .. });
            let fresh = seed % 3 == 0 && !joins && (takes || op == FileOp::Peek);
            let locked = (joins || !fresh && seed % 3 == 1 && op != FileOp::Peek).then_some(Mode::Shared);
            let (mut steps, mut next) = Steps::begin(op, !fresh, locked);
            let mut random = seed;
            for _ in 0..100_000 {
                let Next::Call(call) = &next else { break };
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let answer = &answers[usize::try_from(random >> 62).unwrap()];
                let possible = match call {
                    Call::Fence(_) if *answer != answers[3] => &Answer::Fence(7),
                    Call::LockSlots(..) if *answer == Answer::Yes => &Answer::Slots([1, 3].into()),
                    Call::LockNumber(_) | Call::Uses if *answer == Answer::Gone => &Answer::Uses(Mode::Slots(3)),
                    Call::Uses if *answer == Answer::Yes => &Answer::Uses(Mode::Exclusive),
                    Call::LockTurn | Call::LockHeld | Call::LockSlots(..) if *answer == Answer::Gone => &Answer::No,
                    Call::UnlockTurn | Call::UnlockSlots(..) if *answer != answers[3] => &Answer::Yes,
                    Call::Yield | Call::Close => &Answer::Yes,
                    Call::Unlock if *answer != Answer::Yes => &answers[3],
                    Call::Open if matches!(answer, Answer::No | Answer::Gone) => &Answer::Yes,
                    Call::Lock(_) | Call::LockToDelete | Call::Held(_) if *answer == Answer::Gone => &Answer::No,
                    _ => answer,
                };
                next = steps.answered(possible.clone());
            }
            let Next::End(outcome) = next else { panic!("{op:?} {seed} did not end") };
            let fits = match op {
                FileOp::Try(_) | FileOp::Retry(_) => {
                    matches!(outcome, Outcome::Locked | Outcome::Disagrees(_)) || is_refusal(&outcome)
                }
                FileOp::TryFence(_) => {
                    matches!(outcome, Outcome::Fenced(_) | Outcome::Disagrees(_)) || is_refusal(&outcome)
                }
                FileOp::Take { joins, .. } => {
                    let taken = matches!(outcome, Outcome::Taken { .. } | Outcome::Disagrees(_));
                    taken || is_refusal(&outcome) || (joins && matches!(outcome, Outcome::Lost(_)))
                }
                FileOp::Give { .. } => matches!(outcome, Outcome::Given | Outcome::Failed(_)),
                FileOp::ProbeFence(_) => {
                    matches!(outcome, Outcome::Fenced(_) | Outcome::Lost(_) | Outcome::Failed(_))
                }
                FileOp::Probe(_) => matches!(outcome, Outcome::Real | Outcome::Lost(_) | Outcome::Failed(_)),
                FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire => {
                    matches!(outcome, Outcome::Unlocked { .. })
                }
                FileOp::Peek => matches!(outcome, Outcome::Peeked { .. } | Outcome::Failed(_)),
            };
            assert!(fits, "{op:?} {seed} ended as {outcome:?}");
            if takes && !joins {
                let locks = matches!(outcome, Outcome::Locked | Outcome::Fenced(_) | Outcome::Taken { .. });
                assert_eq!(steps.locked, locks, "{op:?} {seed} {outcome:?}");
            }
        }
    }
}
