//! What comes next for a name at rest: the requests that can be answered now, and the file
//! operation that follows, if any.

use distrilock_protocol::want::{Extent, Mode};

use crate::context::Context;
use crate::message::{Answer, FileOp};
use crate::record::{File, ProbeTurn, Query, Question, Record};
use crate::state::Turn;
use crate::waiters::Waiter;

impl Waiter {
    /// The operation that may give it the lock.
    fn first_try(&self, joins: bool) -> FileOp {
        match self.extent {
            Extent::Slots { of, take } => FileOp::Take { of, take, joins, fence: self.fence },
            extent if self.fence => FileOp::TryFence(extent.mode()),
            extent => FileOp::Try(extent.mode()),
        }
    }
}

impl<F> Record<F> {
    /// Answers what the facts answer, and returns the file operation that has to come next, if any.
    pub(crate) fn next(&mut self, cx: &mut Context<'_, F>, lingers: bool) -> Option<FileOp> {
        self.answer_queries(cx);
        match self.file {
            File::InFlight { .. } => None,
            File::Locked(..) if self.holders.is_empty() => Some(self.next_when_free(cx, lingers)),
            File::Locked(_, mode) => self.next_when_held(cx, mode),
            File::Idle(_) | File::Closed => self.next_when_unlocked(cx, lingers),
        }
    }

    /// Answers the queries that need no file operation: peeks at a name that is held here, and
    /// questions about a lock that the asking session has released or lost in the meantime.
    fn answer_queries(&mut self, cx: &mut Context<'_, F>) {
        if self.queries.is_empty() {
            return;
        }
        let held = !self.holders.is_empty();
        for query in std::mem::take(&mut self.queries) {
            let answer = match query.question {
                Question::Peek if held => Answer::Peeked(self.view(false)),
                Question::Verify | Question::Already { .. } | Question::Stamp(_)
                    if self.held_by(query.asker.session).is_none() =>
                {
                    Answer::NotHeld { by_another: held }
                }
                _ => {
                    self.queries.push(query);
                    continue;
                }
            };
            cx.answer(query.asker, answer);
        }
    }

    /// Somebody holds the lock: a shared request in front may join, once a probe has shown that the
    /// lock is real (I3).
    fn next_when_held(&mut self, cx: &mut Context<'_, F>, mode: Mode) -> Option<FileOp> {
        if mode != Mode::Exclusive {
            self.refuse_disagreeing(cx, mode, |_, _| true);
        }
        if let Mode::Slots(of) = mode {
            return self.next_with_slots(cx, of);
        }
        if !self.head_joins(mode) {
            self.refuse_tries_here(cx);
        }
        let joins = self.waiters.front().filter(|_| self.head_joins(mode)).map(|head| head.fence);
        self.next_probe(mode, joins)
    }

    /// Whether there are requests that do not wait.
    fn has_tries(&self) -> bool {
        self.waiters.has(|class| !class.waits)
    }

    /// Refuses the requests that do not wait, since sessions of this daemon hold the name.
    fn refuse_tries_here(&mut self, cx: &mut Context<'_, F>) {
        if self.has_tries() {
            let holder = self.holders.front().cloned();
            self.refuse_tries(cx, |_, _| true, &Answer::BusyHere(holder));
        }
    }

    fn head_joins(&self, mode: Mode) -> bool {
        mode == Mode::Shared && self.waiters.front().is_some_and(|head| head.extent == Extent::Shared)
    }

    /// The probe that has to come next, if any: for queries, and for a waiter that `joins`, with a
    /// fence or without.
    fn next_probe(&self, mode: Mode, joins: Option<bool>) -> Option<FileOp> {
        let without = |query: &Query| self.held_by(query.asker.session).is_some_and(|holder| holder.fence.is_none());
        let asks = |query: &Query| query.question == Question::Already { fence: true } && without(query);
        // One after the other, in the order of their arrival.
        let stamp = self.queries.iter().find_map(|query| match query.question {
            Question::Stamp(age_ms) => Some(FileOp::Stamp(mode, age_ms)),
            _ => None,
        });
        if stamp.is_some() && self.probe_turn == ProbeTurn::Stamp {
            return stamp;
        }
        if joins == Some(true) || self.queries.iter().any(asks) {
            return Some(FileOp::ProbeFence(mode));
        }
        if joins.is_some() || self.queries.iter().any(|query| !query.is_about_stamp()) {
            return Some(FileOp::Probe(mode));
        }
        stamp
    }

    /// Nobody holds the lock, but the file is still locked: pass it on or let it go.
    fn next_when_free(&mut self, cx: &mut Context<'_, F>, lingers: bool) -> FileOp {
        // Any operation that can follow gives them back.
        self.freed.clear();
        let Some(head) = self.waiters.front() else {
            let looks = self.releases.iter().any(|release| release.looks);
            return match (lingers, looks) {
                (true, true) => FileOp::UnlockAndLook,
                (true, false) => FileOp::Unlock,
                (false, _) => FileOp::Retire,
            };
        };
        if self.turn == Turn::Over {
            return FileOp::Unlock;
        }
        let op = head.first_try(false);
        self.begin_turn(cx);
        op
    }

    fn next_when_unlocked(&mut self, cx: &mut Context<'_, F>, lingers: bool) -> Option<FileOp> {
        if self.turn == Turn::Yielding {
            self.refuse_tries(cx, |_, _| true, &Answer::BusyHere(None));
        }
        if let Some(head) = self.waiters.front()
            && self.turn != Turn::Yielding
        {
            if let Extent::Slots { of, .. } = head.extent {
                return self.next_for_slots(cx, of);
            }
            let again = self.waiters.are_all_tried() && !self.waiters.has(|class| !class.waits);
            if !self.contention.is_contended() || self.waiters.has_new_try() {
                return Some(if again { FileOp::Retry(head.mode()) } else { head.first_try(false) });
            }
        }
        if !self.queries.is_empty() {
            return Some(FileOp::Peek);
        }
        let unwanted = self.waiters.is_empty() && matches!(self.file, File::Idle(_));
        (unwanted && !lingers).then_some(FileOp::Retire)
    }
}

/// Names with slots. Several sessions hold such a name, each with slots of its own, whose bytes the
/// daemon locks one by one: each grant needs a file operation, and so does a release while others
/// go on holding.
impl<F> Record<F> {
    /// Sessions hold slots: give back what was released, then take more for the first waiter.
    fn next_with_slots(&mut self, cx: &mut Context<'_, F>, of: u16) -> Option<FileOp> {
        if !self.freed.is_empty() {
            return Some(self.give(cx, of));
        }
        let free = usize::from(of).saturating_sub(self.slots_held());
        while let Some(head) = self.waiters.front() {
            if head.mode() != Mode::Slots(of) || usize::from(head.extent.slots()) > free {
                if head.waits {
                    break;
                }
                self.refuse_head(cx, Answer::BusyHere(self.holders.front().cloned()));
                continue;
            }
            if self.turn == Turn::Yielding && head.waits
                || self.contention.is_contended() && self.waiters.is_first_tried()
            {
                break;
            }
            return Some(head.first_try(true));
        }
        if self.has_tries() {
            let holder = self.holders.front().cloned();
            self.refuse_tries_behind(cx, of, &Answer::BusyHere(holder));
        }
        self.next_probe(Mode::Slots(of), None)
    }

    /// Nobody holds the name here, and the first waiter wants slots.
    fn next_for_slots(&mut self, cx: &mut Context<'_, F>, of: u16) -> Option<FileOp> {
        let head = self.waiters.front().expect("there is a first waiter");
        if !self.contention.is_contended() || !self.waiters.is_first_tried() {
            return Some(head.first_try(false));
        }
        self.refuse_tries_behind(cx, of, &Answer::BusyHere(None));
        (!self.queries.is_empty()).then_some(FileOp::Peek)
    }

    /// Refuses the requests that do not wait, except a first one that is going to be tried again.
    fn refuse_tries_behind(&mut self, cx: &mut Context<'_, F>, of: u16, answer: &Answer) {
        let waits = self.contention.is_contended() && self.waiters.is_first_tried();
        let again = |head: &&Waiter| head.mode() == Mode::Slots(of) && waits;
        let kept = self.waiters.front().filter(again).map(Waiter::asker);
        self.refuse_tries(cx, |waiter, _| Some(waiter.asker()) != kept, answer);
    }

    /// Gives back the first of the freed slots, and those that follow it without a gap.
    fn give(&mut self, cx: &mut Context<'_, F>, of: u16) -> FileOp {
        self.freed.sort_unstable();
        let first = self.freed[0];
        let next_to = |(n, slot): &(u16, &u16)| first + n == **slot;
        let count = (0..).zip(&self.freed).take_while(next_to).count();
        self.freed.drain(..count);
        if !self.waiters.is_empty() {
            self.begin_turn(cx);
        }
        FileOp::Give { of, first, count: u16::try_from(count).expect("there are not more slots than that") }
    }
}
