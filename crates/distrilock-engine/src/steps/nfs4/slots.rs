//! The steps of taking slots on NFSv4, once the file is open and anchored. As on a local file system one process at a time takes
//! them, so that a refusal is true; what was taken is believed if the lease has surely held since the file was proven.

use super::{Answer, Call, FileOp, LOOKS_MAX, Mode, Next, Outcome, Steps, Then, with_fence};

/// Why those who hold slots through the file lose them.
const DROPPED: &str = "the server has dropped it";

impl Steps {
    pub(super) fn take_step(&mut self, answer: Answer) -> Next {
        let FileOp::Take { of, take, joins, fence } = self.op else { unreachable!("only a take takes these steps") };
        match (self.asked, answer) {
            (Call::Yield, _) => self.ask(Call::LockTurn),
            // Before anything else: what the file had is of no use.
            (Call::Unlock, Answer::Yes) if self.end == (Outcome::Unlocked { file_gone: false }) => self.opened(),
            (Call::LockTurn, Answer::Yes) => {
                self.end = Outcome::Locked;
                self.ask(if joins { Call::LockSlots(of, take) } else { Call::LockHeld })
            }
            (Call::LockTurn, Answer::No) => {
                self.end = Outcome::Disturbed;
                self.ask(Call::Uses)
            }
            (Call::LockHeld, Answer::Yes) => self.ask(Call::LockNumber(of)),
            (Call::LockNumber(_), Answer::Yes) => self.ask(Call::LockSlots(of, take)),
            (Call::LockSlots(..), Answer::Slots(slots)) => {
                self.end = Outcome::Taken { slots, fence: None };
                self.ask(Call::Recent)
            }
            (Call::Recent, Answer::Yes) if fence => self.ask(Call::Fence(Mode::Slots(of))),
            (Call::Recent, Answer::Yes) => self.ask(Call::UnlockTurn),
            (Call::Recent, _) => self.prove(),
            (Call::Prove, Answer::Yes) => self.ask(Call::Recent),
            (Call::Fence(_), answer) => {
                self.end = with_fence(self.end.clone(), answer);
                self.ask(Call::UnlockTurn)
            }
            (Call::Uses, Answer::Uses(Mode::Exclusive)) => Next::End(Outcome::Refused),
            (Call::Uses | Call::LockNumber(_), Answer::Uses(mode)) if mode.disagrees_with(Mode::Slots(of)) => {
                self.turn_over(joins, Outcome::Disagrees(mode))
            }
            // Another process takes slots, or deletes the file.
            (Call::Uses, Answer::No | Answer::Uses(_)) if self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.ask(Call::Yield)
            }
            (Call::Uses, Answer::No | Answer::Uses(_)) => Next::End(Outcome::Disturbed),
            (Call::LockHeld | Call::LockNumber(_) | Call::LockSlots(..), Answer::No) => {
                self.turn_over(joins, Outcome::Refused)
            }
            (Call::UnlockTurn | Call::Unlock, Answer::Yes) => Next::End(self.end.clone()),
            (_, Answer::Failed(fault)) if joins => self.turn_over(joins, Outcome::Failed(fault)),
            (_, Answer::Failed(fault)) => self.finish(Outcome::Failed(fault)),
            // The server has forgotten the file, or its locks: so have those who hold slots through it lost them.
            (_, Answer::No | Answer::Gone) if joins => Next::End(Outcome::Lost(DROPPED)),
            (_, Answer::No | Answer::Gone) => self.let_go(Then::StartOver),
            (call, answer) => unreachable!("{answer:?} is no answer to {call:?} in a take"),
        }
    }

    /// Nothing was taken: the turn goes, and, if nobody holds slots here, all else.
    fn turn_over(&mut self, joins: bool, end: Outcome) -> Next {
        self.end = end;
        match joins {
            // A turn that cannot be given back is asked for once.
            true if std::mem::take(&mut self.has_turn) => self.ask(Call::UnlockTurn),
            false if self.locked => self.ask(Call::Unlock),
            _ => Next::End(self.end.clone()),
        }
    }
}
