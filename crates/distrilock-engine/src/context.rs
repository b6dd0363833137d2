//! [`Context`]: what every decision about a name is given.

use distrilock_protocol::ids::SessionId;
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::Mode;

use crate::claim::Claim;
use crate::message::{Answer, Asker, Effect, FileOp, HoldEnd, Past, Timer, WaitEnd};
use crate::waiters::Waiter;

/// The name that an input is about, the time, and the effects to which a decision appends.
#[derive(Debug)]
pub(crate) struct Context<'a, F> {
    pub(crate) name: &'a LockName,
    /// What the clock is known to show; copied into claims, and compared for the history alone.
    pub(crate) now_ms: u64,
    pub(crate) history_from_ms: u64,
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

    /// A session was granted the name.
    pub(crate) fn was_granted(&mut self, holder: &Claim) {
        let waited_ms = holder.waited_ms;
        if waited_ms >= self.history_from_ms {
            self.remember(holder.session, holder.mode(), Past::Granted { waited_ms });
        }
    }

    /// A session holds the name no longer. A grant in the history always gets an end, and so does a
    /// loss, however short.
    pub(crate) fn hold_ended(&mut self, holder: &Claim, end: HoldEnd) {
        let (held_ms, waited_ms) = (self.now_ms.saturating_sub(holder.since_ms), holder.waited_ms);
        let is_lost = matches!(end, HoldEnd::Lost(_)) && self.history_from_ms != u64::MAX;
        if is_lost || held_ms.max(waited_ms) >= self.history_from_ms {
            self.remember(holder.session, holder.mode(), Past::Ended { held_ms, waited_ms, end });
        }
    }

    /// A request waits no longer, without a grant.
    pub(crate) fn gave_up(&mut self, waiter: &Waiter, why: WaitEnd) {
        let waited_ms = self.now_ms.saturating_sub(waiter.since_ms);
        if waited_ms >= self.history_from_ms {
            self.remember(waiter.session, waiter.mode(), Past::GaveUp { waited_ms, why });
        }
    }

    fn remember(&mut self, session: SessionId, mode: Mode, past: Past) {
        self.effects.push(Effect::Past { name: self.name.clone(), session, mode, past });
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
