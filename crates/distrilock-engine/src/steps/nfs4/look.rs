//! The steps of a probe and of a peek: what is true of a lock, without changing anything.

use super::{Answer, Call, FileOp, Mode, Next, Outcome, Steps, Then, with_fence};

impl Steps {
    pub(super) fn probe_step(&mut self, answer: Answer) -> Next {
        Next::End(match (self.asked, answer) {
            (Call::Lock(_), Answer::No) => Outcome::Lost("the server gave it to another host"),
            // What a lock that is gone says to being locked again means nothing.
            (Call::Lock(_), _) => return self.ask(Call::Prove),
            (Call::Prove, Answer::Yes) => return self.ask(Call::Check),
            (Call::Prove, Answer::No | Answer::Gone) => Outcome::Lost("the server has dropped it"),
            (Call::Check, Answer::No) => Outcome::Lost("its lock file was replaced by another one"),
            (Call::Check, Answer::Gone) => Outcome::Lost("its lock file was deleted"),
            (Call::Check, Answer::Yes) if let FileOp::ProbeFence(mode) = self.op => return self.ask(Call::Fence(mode)),
            (Call::Fence(_), answer) => with_fence(Outcome::Real, answer),
            (_, Answer::Failed(fault)) => Outcome::Failed(fault),
            (_, Answer::Yes) => Outcome::Real,
            (call, answer) => unreachable!("{answer:?} is no answer to {call:?} in a probe"),
        })
    }

    pub(super) fn peek_step(&mut self, answer: Answer) -> Next {
        match (self.asked, answer) {
            (Call::Gate(Some(_)), Answer::Yes) => self.ask(Call::OpenToRead),
            // Who deletes it holds nothing.
            (Call::Gate(Some(_)), Answer::No | Answer::Gone) => Next::End(Outcome::Peeked { locked: false }),
            (Call::OpenToRead | Call::Prove | Call::Recent, Answer::Yes) => self.ask(Call::Held(Mode::Exclusive)),
            (Call::Recent, _) => self.ask(Call::Prove),
            (Call::Prove, Answer::No | Answer::Gone) => self.start_over(),
            (_, Answer::Failed(fault)) => self.finish(Outcome::Failed(fault)),
            (Call::Held(_), answer) => {
                self.end = Outcome::Peeked { locked: answer == Answer::Yes };
                // An anchored file stays; one that was opened to be looked at is closed.
                if self.gated { self.let_go(Then::End) } else { Next::End(self.end.clone()) }
            }
            _ => self.finish(Outcome::Peeked { locked: false }),
        }
    }
}
