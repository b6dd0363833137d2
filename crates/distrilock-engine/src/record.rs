//! What the engine knows of one name, and what follows from it for the name alone.

use std::collections::VecDeque;

use super::message::{Answer, Asked, Effect, FileOp, Outcome, RequestId, SessionId, Timer};
use super::seen::ViewedSession;
use crate::fault::Fault;
use crate::limits::{TURN_MS, YIELD_MS};
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::Mode;

/// One name: its file, who holds it, who waits, who asks. Each fact stands here once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Record<F> {
    pub(super) file: File<F>,
    pub(super) holders: Vec<ViewedSession>,
    /// Slots that no holder has and whose bytes are still locked.
    pub(super) freed: Vec<u16>,
    pub(super) waiters: VecDeque<Waiter>,
    pub(super) queries: Vec<Query>,
    /// Releases that the next completed operation answers.
    pub(super) releases: Vec<(SessionId, RequestId)>,
    /// Whether one of them wants to be told if the file was deleted.
    pub(super) look: bool,
    /// Whether the lock is to be probed although nobody asks.
    pub(super) probe: bool,
    /// The last try was refused, and the waiters wait for the retry timer.
    pub(super) contended: bool,
    /// How often in a row a try met a process that deletes the file, not one that holds the lock.
    pub(super) disturbed: u8,
    pub(super) turn: Turn,
    /// Ticks of the linger timer since the file was last used.
    pub(super) age: u8,
    /// Whether the name stands in the linger queue.
    pub(super) lingers: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum File<F> {
    Closed,
    Idle(F),
    Locked(F, Mode),
    /// The file is with whoever carries out the operation; these queries are what it is to answer.
    InFlight {
        op: FileOp,
        queries: Vec<Query>,
    },
}

impl<F> File<F> {
    fn take(&mut self) -> Option<F> {
        match std::mem::replace(self, Self::Closed) {
            Self::Idle(file) | Self::Locked(file, _) => Some(file),
            Self::Closed | Self::InFlight { .. } => None,
        }
    }

    pub(super) fn idle(file: Option<F>) -> Self {
        file.map_or(Self::Closed, Self::Idle)
    }

    pub(super) fn locked(file: Option<F>, mode: Mode) -> Self {
        Self::Locked(file.expect("a locked file is open (I2)"), mode)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub(super) seen: ViewedSession,
    pub(super) request: RequestId,
    /// Whether it queues; else it is refused as soon as it cannot enter.
    pub(super) waits: bool,
    /// Whether it was there when the try in flight, or the last one, began: only then a refusal speaks of its time.
    pub(super) tried: bool,
    /// Whether the grant is to carry a fence.
    pub(super) fence: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Query {
    pub(super) session: SessionId,
    pub(super) request: RequestId,
    pub(super) question: Question,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// Is the lock that I hold real?
    Verify,
    /// I acquire what I hold: is it real? And may I have a fence?
    Already { fence: bool },
    /// Who holds it?
    Peek,
}

/// The daemon's turn with a name that it passes on among its own sessions, so that other daemons are not kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Turn {
    /// No timer is armed.
    Rested,
    /// The lock is being passed on; the timer is armed.
    Running,
    /// The file was unlocked since; the timer is armed.
    Broken,
    /// The time is up: at the next release the file is unlocked although there are waiters.
    Over,
    /// Waiters leave the file alone until the timer, which is armed, runs out.
    Yielding,
}

impl<F> Default for Record<F> {
    fn default() -> Self {
        Self {
            file: File::Closed,
            holders: Vec::new(),
            freed: Vec::new(),
            waiters: VecDeque::new(),
            queries: Vec::new(),
            releases: Vec::new(),
            look: false,
            probe: false,
            contended: false,
            disturbed: 0,
            turn: Turn::Rested,
            age: 0,
            lingers: false,
        }
    }
}

impl<F> Record<F> {
    pub(super) fn held_by(&self, session: SessionId) -> Option<&ViewedSession> {
        self.holders.iter().find(|holder| holder.session == session)
    }

    pub(super) fn remove_holder(&mut self, session: SessionId) -> bool {
        let place = self.holders.iter().position(|holder| holder.session == session);
        let removed = place.map(|place| self.holders.remove(place));
        self.freed.extend(removed.iter().flat_map(|holder| &holder.slots));
        removed.is_some()
    }

    /// A session gives the lock back before its questions about it are answered: it did hold it when it asked, and what a probe
    /// finds out later is not about its lock.
    pub(super) fn answer_before_release(&mut self, releasing: &Asked, effects: &mut Vec<Effect<F>>) {
        let Some(held) = self.held_by(releasing.session).cloned() else { return };
        let mut answer = |query: &Query| {
            let answer = match query.question {
                Question::Already { fence } if !fence || held.fence.is_some() => held.granted(true),
                Question::Already { .. } | Question::Verify => Answer::NotHeld { by_another: false },
                Question::Peek => return true,
            };
            if query.session == releasing.session {
                effects.push(query.asked(&releasing.name).answer(answer));
            }
            query.session != releasing.session
        };
        self.queries.retain(&mut answer);
        if let File::InFlight { queries, .. } = &mut self.file {
            queries.retain(&mut answer);
        }
    }

    /// Nobody holds it, waits for it or asks about it, and nothing is under way.
    pub(super) fn at_rest(&self) -> bool {
        self.holders.is_empty() && self.waiters.is_empty() && self.queries.is_empty() && self.releases.is_empty()
    }

    /// The file is open, and nobody wants it.
    pub(super) fn idles(&self) -> bool {
        matches!(self.file, File::Idle(_)) && self.at_rest()
    }

    /// The lock is free, or the try that was to pass it on is complete (I9).
    pub(super) fn answer_releases(&mut self, name: &LockName, file_gone: bool, effects: &mut Vec<Effect<F>>) {
        self.look = false;
        for (session, request) in self.releases.drain(..) {
            let asked = Asked { name: name.clone(), session, request };
            effects.push(asked.answer(Answer::Released { file_gone }));
        }
    }

    /// The file has been unlocked: if the daemon's turn was over, its waiters leave the file alone for a while.
    pub(super) fn end_turn(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) {
        self.turn = match self.turn {
            Turn::Over if !self.waiters.is_empty() => {
                effects.push(Effect::Arm(Timer::Turn(name.clone()), YIELD_MS));
                Turn::Yielding
            }
            Turn::Running => Turn::Broken,
            Turn::Over => Turn::Rested,
            turn => turn,
        };
    }

    /// Answers what the facts answer, and tells the file operation that has to come next, if any.
    pub(super) fn next(&mut self, name: &LockName, linger: bool, effects: &mut Vec<Effect<F>>) -> Option<FileOp> {
        self.answer_queries(name, effects);
        match self.file {
            File::InFlight { .. } => None,
            File::Locked(..) if self.holders.is_empty() => Some(self.next_when_free(name, linger, effects)),
            File::Locked(_, mode) => self.next_when_held(name, mode, effects),
            File::Idle(_) | File::Closed => self.next_when_unlocked(name, linger, effects),
        }
    }

    /// Somebody holds the lock: a shared one in front may join, once a probe has shown that the lock is real (I3).
    fn next_when_held(&mut self, name: &LockName, mode: Mode, effects: &mut Vec<Effect<F>>) -> Option<FileOp> {
        if mode != Mode::Exclusive {
            self.refuse_disagreeing(name, mode, |_| true, effects);
        }
        if let Mode::Slots(of) = mode {
            return self.next_with_slots(name, of, effects);
        }
        if !self.head_joins(mode) {
            let holder = self.holders.first().cloned();
            self.refuse_tries(name, |_| true, &Answer::BusyHere(holder), effects);
        }
        let joins = self.head_joins(mode).then(|| self.waiters[0].fence);
        self.next_probe(mode, joins)
    }

    fn head_joins(&self, mode: Mode) -> bool {
        mode == Mode::Shared && self.waiters.front().is_some_and(|head| head.seen.mode == Mode::Shared)
    }

    /// Nobody holds the lock, but the file is still locked: pass it on or let it go.
    fn next_when_free(&mut self, name: &LockName, linger: bool, effects: &mut Vec<Effect<F>>) -> FileOp {
        // Whatever comes next lets go of them.
        self.freed.clear();
        let Some(head) = self.waiters.front() else {
            return match (linger, self.look) {
                (true, true) => FileOp::UnlockAndLook,
                (true, false) => FileOp::Unlock,
                (false, _) => FileOp::Retire,
            };
        };
        match self.turn {
            Turn::Over => return FileOp::Unlock,
            Turn::Rested => {
                self.turn = Turn::Running;
                effects.push(Effect::Arm(Timer::Turn(name.clone()), TURN_MS));
            }
            Turn::Running | Turn::Broken | Turn::Yielding => {}
        }
        head.first_try(false)
    }

    fn next_when_unlocked(&mut self, name: &LockName, linger: bool, effects: &mut Vec<Effect<F>>) -> Option<FileOp> {
        if self.turn == Turn::Yielding {
            self.refuse_tries(name, |_| true, &Answer::BusyHere(None), effects);
        }
        if let Some(head) = self.waiters.front()
            && self.turn != Turn::Yielding
        {
            if let Mode::Slots(_) = head.seen.mode {
                return self.next_for_slots(name, effects);
            }
            let again = self.waiters.iter().all(|waiter| waiter.waits && waiter.tried);
            if !self.contended || self.waiters.iter().any(|waiter| !waiter.waits && !waiter.tried) {
                return Some(if again { FileOp::Retry(head.seen.mode) } else { head.first_try(false) });
            }
        }
        if !self.queries.is_empty() {
            return Some(FileOp::Peek);
        }
        let unwanted = self.waiters.is_empty() && matches!(self.file, File::Idle(_));
        (unwanted && !linger).then_some(FileOp::Retire)
    }

    /// Begins a file operation: the file leaves with the effect.
    pub(super) fn begin(&mut self, name: &LockName, op: FileOp, effects: &mut Vec<Effect<F>>) {
        let file = self.file.take();
        let mut queries = Vec::new();
        match op {
            FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Peek => queries = std::mem::take(&mut self.queries),
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) => {
                self.waiters.iter_mut().for_each(|waiter| waiter.tried = true);
            }
            // Slots are for the first one alone: should it go meanwhile, the outcome says nothing to those behind it.
            FileOp::Take { .. } => {
                let places = (0..).zip(&mut self.waiters);
                places.for_each(|(place, waiter)| waiter.tried = place == 0);
            }
            FileOp::Give { .. } | FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire => {}
        }
        self.file = File::InFlight { op, queries };
        effects.push(Effect::File { name: name.clone(), op, file });
    }

    /// Refuses the requests that do not wait, among those that `these` picks.
    pub(super) fn refuse_tries(
        &mut self,
        name: &LockName,
        these: impl Fn(&Waiter) -> bool,
        answer: &Answer,
        effects: &mut Vec<Effect<F>>,
    ) {
        self.refuse(name, |waiter| !waiter.waits && these(waiter), answer, effects);
    }

    pub(super) fn refuse(
        &mut self,
        name: &LockName,
        these: impl Fn(&Waiter) -> bool,
        answer: &Answer,
        effects: &mut Vec<Effect<F>>,
    ) {
        self.waiters.retain(|waiter| {
            let refused = these(waiter);
            if refused {
                effects.push(waiter.asked(name).answer(answer.clone()));
            }
            !refused
        });
    }

    /// A try failed: whoever it was made for is told.
    pub(super) fn refuse_all(&mut self, name: &LockName, fault: &Fault, effects: &mut Vec<Effect<F>>) {
        self.refuse(name, |waiter| waiter.tried, &Answer::Storage(fault.clone()), effects);
    }

    /// A probe of a held lock is complete.
    pub(super) fn probed(
        &mut self,
        name: &LockName,
        outcome: &Outcome,
        queries: Vec<Query>,
        now_ms: u64,
        effects: &mut Vec<Effect<F>>,
    ) {
        let File::Locked(_, mode) = self.file else { unreachable!("a probed file is locked (I2)") };
        let fence = self.answer_probe(name, outcome, queries, effects);
        match outcome {
            Outcome::Lost(reason) => self.lose(name, reason, effects),
            Outcome::Failed(fault) => {
                while self.waiters.front().is_some_and(|head| head.seen.mode == Mode::Shared) {
                    let head = self.waiters.pop_front().expect("there is a first waiter");
                    effects.push(head.asked(name).answer(Answer::Storage(fault.clone())));
                }
            }
            _ if mode == Mode::Shared && !self.holders.is_empty() => match fence {
                Some(fence) => self.enter_with_fence(name, mode, &fence, now_ms, effects),
                None => self.enter(name, mode, None, now_ms, effects),
            },
            _ => {}
        }
    }

    /// A peek at a file that this daemon does not lock is complete.
    pub(super) fn peeked(&self, name: &LockName, outcome: &Outcome, queries: Vec<Query>, effects: &mut Vec<Effect<F>>) {
        for query in queries {
            let answer = match outcome {
                Outcome::Failed(fault) => Answer::Storage(fault.clone()),
                outcome => Answer::Peeked(self.view(*outcome == Outcome::Peeked { locked: true })),
            };
            effects.push(query.asked(name).answer(answer));
        }
    }

    /// Answers the queries that need no file operation: peeks at a name that is held here, and questions about a lock that the
    /// asking session has given back or lost meanwhile.
    fn answer_queries(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) {
        if self.queries.is_empty() {
            return;
        }
        let held = !self.holders.is_empty();
        for query in std::mem::take(&mut self.queries) {
            let answer = match query.question {
                Question::Peek if held => Answer::Peeked(self.view(false)),
                Question::Verify | Question::Already { .. } if self.held_by(query.session).is_none() => {
                    Answer::NotHeld { by_another: held }
                }
                _ => {
                    self.queries.push(query);
                    continue;
                }
            };
            effects.push(query.asked(name).answer(answer));
        }
    }
}

impl Waiter {
    pub(super) fn asked(&self, name: &LockName) -> Asked {
        Asked { name: name.clone(), session: self.seen.session, request: self.request }
    }
}

impl Query {
    pub(super) fn new(asked: &Asked, question: Question) -> Self {
        Self { session: asked.session, request: asked.request, question }
    }

    pub(super) fn asked(&self, name: &LockName) -> Asked {
        Asked { name: name.clone(), session: self.session, request: self.request }
    }
}
