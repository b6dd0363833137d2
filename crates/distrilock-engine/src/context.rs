//! [`Context`]: what every decision about a name is given.

use distrilock_protocol::ids::SessionId;
use distrilock_protocol::name::LockName;

use crate::message::{Answer, Asker, Effect, FileOp, Timer};

/// The name that an input is about, the time, and the effects to which a decision appends.
#[derive(Debug)]
pub(crate) struct Context<'a, F> {
    pub(crate) name: &'a LockName,
    /// What the clock is known to show; copied into claims, never compared.
    pub(crate) now_ms: u64,
    pub(crate) effects: &'a mut Vec<Effect<F>>,
}

impl<F> Context<'_, F> {
    /// Answers a request about the name.
    pub(crate) fn answer(&mut self, asker: Asker, answer: Answer) {
        let Asker { session, request } = asker;
        self.effects.push(Effect::Answer { name: self.name.clone(), session, request, answer });
    }

    /// Sends an operation on the name's file on its way.
    pub(crate) fn operate(&mut self, op: FileOp, file: Option<F>) {
        self.effects.push(Effect::File { name: self.name.clone(), op, file });
    }

    pub(crate) fn lost(&mut self, session: SessionId, reason: &'static str) {
        self.effects.push(Effect::Lost { name: self.name.clone(), session, reason });
    }

    pub(crate) fn doubt(&mut self, session: SessionId, valid_ms: Option<u64>) {
        self.effects.push(Effect::Doubt { name: self.name.clone(), session, valid_ms });
    }

    pub(crate) fn contended(&mut self) {
        self.effects.push(Effect::Contended(self.name.clone()));
    }

    pub(crate) fn arm(&mut self, timer: Timer, after_ms: u64) {
        self.effects.push(Effect::Arm(timer, after_ms));
    }

    /// Arms the timer of the daemon's turn with the name.
    pub(crate) fn arm_turn(&mut self, after_ms: u64) {
        self.arm(Timer::Turn(self.name.clone()), after_ms);
    }
}
