//! Names with slots: what follows for such a name alone. Several sessions hold it, each with slots of its own, whose bytes the
//! daemon locks one by one; so each grant needs a file operation, and so does a release while others go on.

use super::message::{Answer, Effect, FileOp, Outcome, Timer};
use super::record::{File, Record, Turn, Waiter};
use super::{DISTURBED_MAX, stalled};
use crate::fault::Fault;
use crate::limits::{TURN_MS, YIELD_MS};
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::Mode;

impl Waiter {
    /// The operation that may give it the lock.
    pub(super) fn first_try(&self, joins: bool) -> FileOp {
        match self.seen.mode {
            Mode::Slots(of) => FileOp::Take { of, take: self.seen.take, joins, fence: self.fence },
            mode if self.fence => FileOp::TryFence(mode),
            mode => FileOp::Try(mode),
        }
    }
}

impl<F> Record<F> {
    /// How many slots the sessions of this daemon hold.
    pub(super) fn slots_held(&self) -> usize {
        self.holders.iter().map(|holder| holder.slots.len()).sum()
    }

    /// Refuses those among `these` that want the name in a mode, or with a number of slots, that does not go with how it is held.
    pub(super) fn refuse_disagreeing(
        &mut self,
        name: &LockName,
        held: Mode,
        these: impl Fn(&Waiter) -> bool,
        effects: &mut Vec<Effect<F>>,
    ) {
        self.waiters.retain(|waiter| {
            let asked = waiter.seen.mode;
            let refused = held.disagrees_with(asked) && these(waiter);
            if refused {
                effects.push(waiter.asked(name).answer(Answer::Disagrees { held, asked }));
            }
            !refused
        });
    }

    /// A try met a process that does something short with the file, and holds nothing.
    pub(super) fn met_disturbance(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) {
        self.disturbed = (self.disturbed + 1).min(DISTURBED_MAX + 1);
        if self.disturbed > DISTURBED_MAX {
            self.refuse_tries(name, |waiter| waiter.tried, &Answer::Storage(stalled(name)), effects);
        }
        self.contended = true;
    }

    /// Sessions hold slots: give back what was released, then take more for the first waiter.
    pub(super) fn next_with_slots(&mut self, name: &LockName, of: u16, effects: &mut Vec<Effect<F>>) -> Option<FileOp> {
        if !self.freed.is_empty() {
            return Some(self.give(name, of, effects));
        }
        let free = usize::from(of).saturating_sub(self.slots_held());
        while let Some(head) = self.waiters.front() {
            if head.seen.mode != Mode::Slots(of) || usize::from(head.seen.take) > free {
                if head.waits {
                    break;
                }
                self.refuse_head(name, Answer::BusyHere(self.holders.first().cloned()), effects);
                continue;
            }
            if self.turn == Turn::Yielding && head.waits || self.contended && head.tried {
                break;
            }
            return Some(head.first_try(true));
        }
        let holder = self.holders.first().cloned();
        self.refuse_tries_behind(name, of, &Answer::BusyHere(holder), effects);
        self.next_probe(Mode::Slots(of), None)
    }

    /// Nobody holds the name here, and the first waiter wants slots.
    pub(super) fn next_for_slots(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) -> Option<FileOp> {
        let head = self.waiters.front().expect("there is a first waiter");
        if !self.contended || !head.tried {
            return Some(head.first_try(false));
        }
        let Mode::Slots(of) = head.seen.mode else { unreachable!("the first waiter wants slots") };
        self.refuse_tries_behind(name, of, &Answer::BusyHere(None), effects);
        (!self.queries.is_empty()).then_some(FileOp::Peek)
    }

    /// Refuses the requests that do not wait, but for a first one whose try is to be made again.
    fn refuse_tries_behind(&mut self, name: &LockName, of: u16, answer: &Answer, effects: &mut Vec<Effect<F>>) {
        let again = |head: &&Waiter| head.seen.mode == Mode::Slots(of) && self.contended && head.tried;
        let kept = self.waiters.front().filter(again).map(|head| (head.seen.session, head.request));
        let is_kept = |waiter: &Waiter| Some((waiter.seen.session, waiter.request)) == kept;
        self.refuse_tries(name, |waiter| !is_kept(waiter), answer, effects);
    }

    fn refuse_head(&mut self, name: &LockName, answer: Answer, effects: &mut Vec<Effect<F>>) {
        let head = self.waiters.pop_front().expect("there is a first waiter");
        effects.push(head.asked(name).answer(answer));
    }

    /// Gives back the first of the freed slots, and those that follow it without a gap.
    fn give(&mut self, name: &LockName, of: u16, effects: &mut Vec<Effect<F>>) -> FileOp {
        self.freed.sort_unstable();
        let first = self.freed[0];
        let next_to = |(n, slot): &(u16, &u16)| first + n == **slot;
        let count = (0..).zip(&self.freed).take_while(next_to).count();
        self.freed.drain(..count);
        if self.turn == Turn::Rested && !self.waiters.is_empty() {
            self.turn = Turn::Running;
            effects.push(Effect::Arm(Timer::Turn(name.clone()), TURN_MS));
        }
        FileOp::Give { of, first, count: u16::try_from(count).expect("there are not more slots than that") }
    }

    /// Slots are free: the releases are answered (I9), and waiters try at once, unless it is the turn of other daemons.
    pub(super) fn gave(&mut self, name: &LockName, file: Option<F>, of: u16, effects: &mut Vec<Effect<F>>) {
        self.file = File::locked(file, Mode::Slots(of));
        self.contended = false;
        if self.freed.is_empty() {
            self.answer_releases(name, false, effects);
        }
        if self.turn == Turn::Over && !self.waiters.is_empty() {
            self.turn = Turn::Yielding;
            effects.push(Effect::Arm(Timer::Turn(name.clone()), YIELD_MS));
        }
    }

    /// A take is complete, which was for the first waiter alone.
    pub(super) fn took(
        &mut self,
        name: &LockName,
        file: Option<F>,
        (of, joins): (u16, bool),
        outcome: &Outcome,
        now_ms: u64,
        effects: &mut Vec<Effect<F>>,
    ) {
        let mode = Mode::Slots(of);
        let locked = joins || matches!(outcome, Outcome::Taken { .. });
        self.file = if locked { File::locked(file, mode) } else { File::idle(file) };
        if !joins {
            self.answer_releases(name, false, effects);
        }
        self.contended = false;
        let head = self.waiters.front().filter(|head| head.tried);
        let refused = match outcome {
            Outcome::Taken { slots, fence } => {
                return self.took_slots(name, mode, slots, fence.as_ref(), now_ms, effects);
            }
            Outcome::Lost(reason) if joins => return self.lose(name, reason, effects),
            Outcome::Disturbed => return self.met_disturbance(name, effects),
            Outcome::Refused => {
                self.contended = head.is_some_and(|head| head.waits);
                head.filter(|head| !head.waits).map(|_| Answer::BusyElsewhere)
            }
            Outcome::Disagrees(held) => {
                head.filter(|head| head.seen.mode == mode).map(|_| Answer::Disagrees { held: *held, asked: mode })
            }
            Outcome::Failed(fault) => head.map(|_| Answer::Storage(fault.clone())),
            outcome => panic!("{name}: {outcome:?} is no outcome of a take"),
        };
        if let Some(answer) = refused {
            self.refuse_head(name, answer, effects);
        }
    }

    fn took_slots(
        &mut self,
        name: &LockName,
        mode: Mode,
        slots: &[u16],
        fence: Option<&Result<u64, Fault>>,
        now_ms: u64,
        effects: &mut Vec<Effect<F>>,
    ) {
        let fits = |head: &&Waiter| head.seen.mode == mode && usize::from(head.seen.take) == slots.len();
        match (self.waiters.front().filter(fits).map(|head| head.fence), fence) {
            (Some(false), _) => self.grant(name, slots.into(), None, now_ms, effects),
            (Some(true), Some(Ok(fence))) => self.grant(name, slots.into(), Some(*fence), now_ms, effects),
            (Some(true), Some(Err(fault))) => {
                self.freed.extend(slots);
                self.refuse_head(name, Answer::Storage(fault.clone()), effects);
            }
            // Whoever they were for has gone, or another one stands in front now.
            (Some(true), None) | (None, _) => self.freed.extend(slots),
        }
    }
}
