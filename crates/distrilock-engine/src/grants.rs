//! Grants, which may carry a fence, and probes, which may bring one.

use super::message::{Answer, Effect, FileOp, Outcome};
use super::record::{File, Query, Question, Record};
use super::seen::ViewedSession;
use crate::fault::Fault;
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::Mode;

impl ViewedSession {
    /// The answer to an acquire of a session that holds the lock.
    pub(super) fn granted(&self, already: bool) -> Answer {
        Answer::Granted { mode: self.mode, already, slots: self.slots.clone(), fence: self.fence }
    }

    fn real(&self) -> Answer {
        match (&*self.slots, self.fence) {
            ([], None) => Answer::Real,
            (slots, fence) => Answer::RealWith { slots: slots.into(), fence },
        }
    }
}

impl<F> Record<F> {
    /// The file is locked in this mode, as was just shown (I3): grants to the first waiter, and to its shared neighbours, up to one
    /// that wants a fence when there is none (any more).
    pub(super) fn enter(
        &mut self,
        name: &LockName,
        mode: Mode,
        mut fence: Option<u64>,
        now_ms: u64,
        effects: &mut Vec<Effect<F>>,
    ) {
        while let Some(head) = self.waiters.front()
            && head.seen.mode == mode
            && (mode == Mode::Shared || self.holders.is_empty())
            && (!head.fence || fence.is_some())
        {
            let fence = if head.fence { fence.take() } else { None };
            self.grant(name, Box::default(), fence, now_ms, effects);
        }
    }

    /// Grants to the first waiter.
    pub(super) fn grant(
        &mut self,
        name: &LockName,
        slots: Box<[u16]>,
        fence: Option<u64>,
        now_ms: u64,
        effects: &mut Vec<Effect<F>>,
    ) {
        let head = self.waiters.pop_front().expect("there is a first waiter");
        let asked = head.asked(name);
        let holder = ViewedSession { since_ms: now_ms, slots, fence, ..head.seen };
        effects.push(asked.answer(holder.granted(false)));
        self.holders.push(holder);
    }

    /// The file is locked in this mode, as was just shown (I3), and a fence was taken, or could not be: that is told to those who
    /// wanted one, and nobody else is worse off for it.
    pub(super) fn enter_with_fence(
        &mut self,
        name: &LockName,
        mode: Mode,
        fence: &Result<u64, Fault>,
        now_ms: u64,
        effects: &mut Vec<Effect<F>>,
    ) {
        if let Err(fault) = fence {
            self.refuse(name, |waiter| waiter.fence, &Answer::Storage(fault.clone()), effects);
        }
        self.enter(name, mode, fence.as_ref().ok().copied(), now_ms, effects);
    }

    /// The probe that has to come next, if any: for those who ask, and for a waiter who `joins`, with a fence or without.
    pub(super) fn next_probe(&mut self, mode: Mode, joins: Option<bool>) -> Option<FileOp> {
        let without = |query: &Query| self.held_by(query.session).is_some_and(|holder| holder.fence.is_none());
        let asks = |query: &Query| query.question == Question::Already { fence: true } && without(query);
        if joins == Some(true) || self.queries.iter().any(asks) {
            return Some(FileOp::ProbeFence(mode));
        }
        let unasked = std::mem::take(&mut self.probe);
        (unasked || joins.is_some() || !self.queries.is_empty()).then_some(FileOp::Probe(mode))
    }

    /// Answers those who asked for a probe; tells the fence that it brought, if nobody among them has it now.
    pub(super) fn answer_probe(
        &mut self,
        name: &LockName,
        outcome: &Outcome,
        queries: Vec<Query>,
        effects: &mut Vec<Effect<F>>,
    ) -> Option<Result<u64, Fault>> {
        let mut brought = match outcome {
            Outcome::Fenced(fence) => Some(fence.clone()),
            _ => None,
        };
        for query in queries {
            let answer = match (outcome, query.question) {
                (_, Question::Peek) => Answer::Peeked(self.view(false)),
                (Outcome::Lost(reason), _) => Answer::Lost(reason),
                (Outcome::Failed(fault), _) => Answer::Storage(fault.clone()),
                (_, Question::Verify) => self.held_by(query.session).map_or(Answer::Real, ViewedSession::real),
                (_, Question::Already { fence }) => {
                    let holder = self.holders.iter_mut().find(|holder| holder.session == query.session);
                    let holder = holder.expect("a release answers the questions of its session");
                    match &brought {
                        _ if !fence || holder.fence.is_some() => holder.granted(true),
                        Some(Ok(number)) => {
                            holder.fence = Some(*number);
                            brought = None;
                            holder.granted(true)
                        }
                        Some(Err(fault)) => Answer::Storage(fault.clone()),
                        // Another one had the fence: there will be one more.
                        None => {
                            self.queries.push(query);
                            continue;
                        }
                    }
                }
            };
            effects.push(query.asked(name).answer(answer));
        }
        brought
    }

    /// The lock is gone: nobody holds it any more, and whoever asks about it is told.
    pub(super) fn lose(&mut self, name: &LockName, reason: &'static str, effects: &mut Vec<Effect<F>>) {
        let mut tell = |query: &Query| {
            if query.question != Question::Peek {
                effects.push(query.asked(name).answer(Answer::Lost(reason)));
            }
            query.question == Question::Peek
        };
        self.queries.retain(&mut tell);
        if let File::InFlight { queries, .. } = &mut self.file {
            queries.retain(&mut tell);
        }
        for holder in self.holders.drain(..) {
            // A take may be under way that joins them: what the file has of theirs is given back then.
            self.freed.extend(&holder.slots);
            let (name, session) = (name.clone(), holder.session);
            effects.push(Effect::Lost { name, session, reason });
        }
    }
}
