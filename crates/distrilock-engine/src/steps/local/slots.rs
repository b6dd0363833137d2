//! The steps of taking slots. One process at a time takes them ([`Call::LockTurn`]), so that a refusal is true: when it found too
//! few free slots, that is how it was when its turn began, since others can only have given some back meanwhile.

use super::{After, Answer, Call, LOOKS_MAX, Next, Steps};
use crate::{FileOp, Mode, Outcome};

impl Steps {
    /// The first call of a take.
    pub(super) fn begin_take(joins: bool, open: bool, locked: bool) -> Call {
        match (open, locked && !joins) {
            (false, _) => Call::Open,
            (true, true) => Call::Unlock,
            (true, false) => Call::LockTurn,
        }
    }

    pub(super) fn take_step(&mut self, answer: Answer) -> Next {
        let FileOp::Take { of, take, joins, fence } = self.op else { unreachable!("only a take takes these steps") };
        match (self.asked, answer) {
            (Call::Open | Call::Yield, Answer::Yes) => self.ask(Call::LockTurn),
            (Call::Open, Answer::Failed(fault)) => Next::End(Outcome::Failed(fault)),
            // Before anything else: what the file had is of no use.
            (Call::Unlock, Answer::Yes) if self.end == (Outcome::Unlocked { file_gone: false }) => {
                self.ask(Call::LockTurn)
            }
            (Call::Unlock, Answer::Failed(fault)) if self.end == (Outcome::Unlocked { file_gone: false }) => {
                self.end = Outcome::Failed(fault);
                self.ask(Call::Close)
            }
            (Call::LockTurn, Answer::Yes) => {
                self.end = Outcome::Locked;
                self.ask(if joins { Call::Check } else { Call::LockHeld })
            }
            (Call::LockTurn, Answer::No) => {
                self.end = Outcome::Disturbed;
                self.ask(Call::Check)
            }
            (Call::LockHeld, Answer::Yes) => self.ask(Call::Check),
            (Call::Check, Answer::Yes) if self.end == Outcome::Disturbed => self.ask(Call::Uses),
            (Call::Check, Answer::Yes) if joins => self.ask(Call::LockSlots(of, take)),
            (Call::Check, Answer::Yes) => self.ask(Call::LockNumber(of)),
            (Call::Check, Answer::No | Answer::Gone) if joins => {
                self.end = Outcome::Lost("its lock file was deleted, or replaced by another one");
                self.turn_over(joins)
            }
            (Call::Check, Answer::No | Answer::Gone) => self.let_go(After::Reopen),
            (Call::LockNumber(_), Answer::Yes) => self.ask(Call::LockSlots(of, take)),
            (Call::LockSlots(..), Answer::Slots(slots)) => {
                self.end = Outcome::Taken { slots, fence: None };
                if fence { self.ask(Call::Fence(Mode::Slots(of))) } else { self.ask(Call::UnlockTurn) }
            }
            (Call::Fence(_), answer) => {
                self.fenced(answer);
                self.ask(Call::UnlockTurn)
            }
            (Call::Uses, Answer::Uses(Mode::Exclusive)) => Next::End(Outcome::Refused),
            (Call::Uses | Call::LockNumber(_), Answer::Uses(mode)) if mode.disagrees_with(Mode::Slots(of)) => {
                self.end = Outcome::Disagrees(mode);
                self.turn_over(joins)
            }
            // Another process takes slots, or deletes the file.
            (Call::Uses, Answer::No | Answer::Uses(_)) if self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.ask(Call::Yield)
            }
            (Call::Uses, Answer::No | Answer::Uses(_)) => Next::End(Outcome::Disturbed),
            (Call::LockHeld | Call::LockNumber(_) | Call::LockSlots(..), Answer::No) => {
                self.end = Outcome::Refused;
                self.turn_over(joins)
            }
            (Call::UnlockTurn, Answer::Yes) => Next::End(self.end.clone()),
            (Call::UnlockTurn, Answer::Failed(fault)) if joins => Next::End(Outcome::Failed(fault)),
            // A lock that cannot be undone goes with its descriptor.
            (Call::Unlock, Answer::Failed(_)) if self.after == After::Keep => self.ask(Call::Close),
            (Call::Unlock | Call::Close, _) => self.gone(Call::Open),
            (_, Answer::Failed(fault)) => {
                self.end = Outcome::Failed(fault);
                if joins { self.turn_over(joins) } else { self.let_go(After::Close) }
            }
            (call, answer) => unreachable!("{answer:?} is no answer to {call:?} in a take"),
        }
    }

    /// Nothing was taken: the turn goes, and, if nobody holds slots here, all else.
    fn turn_over(&mut self, joins: bool) -> Next {
        match joins {
            true if self.has_turn => self.ask(Call::UnlockTurn),
            true => Next::End(self.end.clone()),
            false if self.locked => self.let_go(After::Keep),
            false => Next::End(self.end.clone()),
        }
    }

    /// Notes the fence, or why there is none.
    pub(super) fn fenced(&mut self, answer: Answer) {
        self.end = with_fence(self.end.clone(), answer);
    }
}

/// What came of an operation, with the fence that it brought, or why there is none.
pub(crate) fn with_fence(end: Outcome, answer: Answer) -> Outcome {
    let brought = match answer {
        Answer::Fence(number) => Ok(number),
        Answer::Failed(fault) => Err(fault),
        answer => unreachable!("{answer:?} is no fence"),
    };
    match end {
        Outcome::Taken { slots, .. } => Outcome::Taken { slots, fence: Some(brought) },
        _ => Outcome::Fenced(brought),
    }
}
