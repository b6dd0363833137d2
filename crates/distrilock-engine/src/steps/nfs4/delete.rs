//! The steps of a deletion: of a file that retires, or of a dead one that is in the way of a try.

use super::{Answer, Call, FileOp, Mode, Next, Outcome, PAUSES_MAX, Steps, Then};

impl Steps {
    /// Begins to delete the file: one that retires, or a dead one that is in the way of a try.
    pub(super) fn delete(&mut self) -> Next {
        self.deleting = true;
        self.ask(Call::Gate(Some(Mode::Exclusive)))
    }

    pub(super) fn delete_step(&mut self, answer: &Answer) -> Next {
        match (self.asked, answer) {
            (Call::Gate(_), Answer::Yes) if !self.open => self.ask(Call::OpenOld),
            (Call::Gate(_) | Call::OpenOld, Answer::Yes) => self.ask(Call::LockToDelete),
            (Call::LockToDelete, Answer::Yes) => self.ask(Call::Prove),
            // Whose linger ends at the same time is refused at the gate, and closes the file.
            (Call::LockToDelete, Answer::No) if self.looks < PAUSES_MAX => {
                self.looks += 1;
                self.ask(Call::Pause)
            }
            (Call::Pause, _) => self.ask(Call::LockToDelete),
            (Call::Prove, Answer::Yes) => self.ask(Call::Alive),
            // Left by a process that was killed on this way.
            (Call::Alive, Answer::No) => {
                self.dead = true;
                self.ask(Call::Named)
            }
            (Call::Alive, Answer::Yes) if self.op == FileOp::Retire => self.ask(Call::Named),
            (Call::Named, Answer::Yes) if !self.dead => self.ask(Call::MarkDead),
            (Call::Named | Call::MarkDead, Answer::Yes) => self.ask(Call::Close),
            (Call::Close, _) => self.ask(Call::Unlink),
            (Call::Unlink, Answer::Failed(_)) | (Call::Gate(_) | Call::LockToDelete, _) => self.left(),
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
