//! [`Record`]: what the engine knows of one name. What follows from it stands in
//! [`next`](crate::next), and what a completed file operation changes in [`done`](crate::done).
//!
//! The file goes through these states; every transition goes through `InFlight`, so that one
//! operation is in flight at most (I4):
//!
//! ```text
//!   Closed ──┐                  ┌──▶ Closed        the file is closed, and may be deleted
//!   Idle ────┼──▶ InFlight(op) ─┼──▶ Idle          it is open, and not locked
//!   Locked ──┘                  └──▶ Locked(mode)  a try or a take got the lock, or the file kept it
//! ```

use distrilock_protocol::ids::SessionId;
use distrilock_protocol::limits::LIST_SESSIONS_MAX;
use distrilock_protocol::want::Mode;

use crate::claim::{Claim, View};
use crate::context::Context;
use crate::fault::Fault;
use crate::limits::{QUERIES_MAX, REFUSALS_MAX, TURN_MS, YIELD_MS};
use crate::line::{Entry, Line};
use crate::message::{Answer, Asker, FileOp, HoldEnd, WaitEnd};
use crate::state::{Contention, Linger, Turn};
use crate::waiters::{Waiter, Waiters};

/// One name: its file, who holds it, who waits, who asks. Each fact is stored once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record<F> {
    pub(crate) file: File<F>,
    pub(crate) holders: Line<Claim>,
    /// Slots that no holder has and whose bytes are still locked.
    pub(crate) freed: Vec<u16>,
    pub(crate) waiters: Waiters,
    pub(crate) queries: Vec<Query>,
    pub(crate) probe_turn: ProbeTurn,
    /// Releases that the next completed operation answers.
    pub(crate) releases: Vec<Release>,
    pub(crate) contention: Contention,
    pub(crate) turn: Turn,
    pub(crate) linger: Linger,
}

/// The file of a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum File<F> {
    Closed,
    /// Open, and not locked.
    Idle(F),
    Locked(F, Mode),
    /// The file is with the operation, which also answers these queries.
    InFlight {
        op: FileOp,
        queries: Vec<Query>,
    },
}

impl<F> File<F> {
    pub(crate) fn idle(file: Option<F>) -> Self {
        file.map_or(Self::Closed, Self::Idle)
    }

    pub(crate) fn locked(file: Option<F>, mode: Mode) -> Self {
        Self::Locked(file.expect("a locked file is open (I2)"), mode)
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        matches!(self, Self::InFlight { .. })
    }

    /// Begins an operation, and returns the file for it.
    fn begin(&mut self, op: FileOp, queries: Vec<Query>) -> Option<F> {
        match std::mem::replace(self, Self::InFlight { op, queries }) {
            Self::Idle(file) | Self::Locked(file, _) => Some(file),
            Self::Closed => None,
            Self::InFlight { op: before, .. } => panic!("{op:?} begins while {before:?} is in flight (I4)"),
        }
    }

    /// Ends an operation, and returns it with the queries that it answers. The caller puts the file
    /// back.
    pub(crate) fn end(&mut self) -> Option<(FileOp, Vec<Query>)> {
        match std::mem::replace(self, Self::Closed) {
            Self::InFlight { op, queries } => Some((op, queries)),
            _ => None,
        }
    }
}

/// Holders are looked for by their session alone.
impl Entry for Claim {
    type Class = ();

    fn session(&self) -> SessionId {
        self.session
    }

    fn class(&self) {}
}

/// A question about the name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Query {
    pub(crate) asker: Asker,
    pub(crate) question: Question,
}

impl Query {
    pub(crate) fn is_about_stamp(&self) -> bool {
        matches!(self.question, Question::Stamp(_))
    }
}

/// What goes first, if both a question about a stamp and others wait for a probe. They take turns,
/// so that none of them waits forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum ProbeTurn {
    #[default]
    Others,
    Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    /// Is the lock that I hold real?
    Verify,
    /// I acquire what I hold: is it real? And may I have a fence?
    Already { fence: bool },
    /// How old is the stamp of the name that I hold? Or: give it this age in milliseconds.
    Stamp(Option<u32>),
    /// Who holds it?
    Peek,
}

/// A release without an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Release {
    pub(crate) asker: Asker,
    /// Whether the answer should say if the file was deleted.
    pub(crate) looks: bool,
}

impl<F> Default for Record<F> {
    fn default() -> Self {
        Self {
            file: File::Closed,
            holders: Line::default(),
            freed: Vec::new(),
            waiters: Waiters::default(),
            queries: Vec::new(),
            probe_turn: ProbeTurn::default(),
            releases: Vec::new(),
            contention: Contention::default(),
            turn: Turn::default(),
            linger: Linger::default(),
        }
    }
}

/// What the record says.
impl<F> Record<F> {
    pub(crate) fn held_by(&self, session: SessionId) -> Option<&Claim> {
        self.holders.of(session)
    }

    /// How many slots the sessions of this daemon hold.
    pub(crate) fn slots_held(&self) -> usize {
        self.holders.iter().map(|holder| holder.slots.len()).sum()
    }

    /// Nobody holds the name, waits for it or asks about it.
    pub(crate) fn is_unused(&self) -> bool {
        self.holders.is_empty() && self.waiters.is_empty() && self.queries.is_empty() && self.releases.is_empty()
    }

    /// The file is open, and nobody wants it.
    pub(crate) fn idles(&self) -> bool {
        matches!(self.file, File::Idle(_)) && self.is_unused()
    }

    /// The record says nothing that an absent one would not (I10).
    pub(crate) fn is_void(&self) -> bool {
        matches!(self.file, File::Closed) && self.is_unused() && !self.linger.is_listed()
    }

    pub(crate) fn view(&self, contender: bool) -> View {
        View {
            holders: self.holders.iter().take(LIST_SESSIONS_MAX).cloned().collect(),
            holders_total: self.holders.len(),
            waiters: self.waiters.iter().take(LIST_SESSIONS_MAX).map(Waiter::claim).collect(),
            waiters_total: self.waiters.len(),
            contender,
        }
    }
}

/// What inputs, decisions and completions change alike.
impl<F> Record<F> {
    /// Adds a question, unless there are too many.
    pub(crate) fn ask(&mut self, cx: &mut Context<'_, F>, asker: Asker, question: Question) {
        if self.queries.len() >= QUERIES_MAX {
            return cx.answer(asker, Answer::QueueFull);
        }
        self.queries.push(Query { asker, question });
    }

    pub(crate) fn remove_holder(&mut self, cx: &mut Context<'_, F>, session: SessionId, end: HoldEnd) -> bool {
        let Some(removed) = self.holders.remove(session, |_| true) else { return false };
        self.freed.extend(&removed.slots);
        cx.hold_ended(&removed, end);
        true
    }

    /// A session has ended: nothing that it holds, wants or asks is left.
    pub(crate) fn leave(&mut self, cx: &mut Context<'_, F>, session: SessionId) {
        self.remove_holder(cx, session, HoldEnd::SessionEnded);
        self.waiters.leave(session, |waiter| cx.gave_up(&waiter, WaitEnd::SessionEnded));
        self.releases.retain(|release| release.asker.session != session);
        self.retain_queries(|query| query.asker.session != session);
    }

    /// A session gives the lock back before its questions about it are answered: it did hold the
    /// lock when it asked, and what a probe finds out later is not about its lock.
    pub(crate) fn answer_before_release(&mut self, cx: &mut Context<'_, F>, releasing: SessionId) {
        let Some(held) = self.held_by(releasing).cloned() else { return };
        self.retain_queries(|query| {
            let answer = match query.question {
                Question::Already { fence } if !fence || held.fence.is_some() => Answer::granted(&held, true),
                Question::Already { .. } | Question::Verify | Question::Stamp(_) => {
                    Answer::NotHeld { by_another: false }
                }
                Question::Peek => return true,
            };
            if query.asker.session == releasing {
                cx.answer(query.asker, answer);
            }
            query.asker.session != releasing
        });
    }

    /// Keeps the queries that `keep` picks, among those that an operation in flight answers, too.
    fn retain_queries(&mut self, mut keep: impl FnMut(&Query) -> bool) {
        self.queries.retain(&mut keep);
        if let File::InFlight { queries, .. } = &mut self.file {
            queries.retain(&mut keep);
        }
    }

    /// The lock is free, or the try that was to pass it on is complete (I9).
    pub(crate) fn answer_releases(&mut self, cx: &mut Context<'_, F>, file_gone: bool) {
        for release in self.releases.drain(..) {
            cx.answer(release.asker, Answer::Released { file_gone });
        }
    }

    /// The lock is passed on, or slots are given back that sessions wait for: the daemon's turn
    /// begins, unless it has begun.
    pub(crate) fn begin_turn(&mut self, cx: &mut Context<'_, F>) {
        if self.turn.pass_on() {
            cx.arm_turn(TURN_MS);
        }
    }

    /// Others can have the file, or slots: if the turn is over, waiting sessions leave it alone for
    /// a while. Returns whether they do.
    pub(crate) fn give_way(&mut self, cx: &mut Context<'_, F>) -> bool {
        let gives_way = self.turn == Turn::Over && !self.waiters.is_empty();
        if gives_way {
            self.turn.give_way();
            cx.arm_turn(YIELD_MS);
        }
        gives_way
    }

    /// Begins a file operation: the file leaves with the effect.
    pub(crate) fn begin(&mut self, cx: &mut Context<'_, F>, op: FileOp) {
        let mut queries = Vec::new();
        match op {
            FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Peek => {
                let stamps;
                (stamps, queries) = std::mem::take(&mut self.queries).into_iter().partition(Query::is_about_stamp);
                self.queries = stamps;
                self.probe_turn = if self.queries.is_empty() { ProbeTurn::Others } else { ProbeTurn::Stamp };
            }
            FileOp::Stamp(..) => {
                let place = self.queries.iter().position(Query::is_about_stamp);
                queries.push(self.queries.remove(place.expect("a question makes the engine look for a stamp")));
                self.probe_turn = ProbeTurn::Others;
            }
            FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_) => self.waiters.all_are_tried(),
            // Slots are for the first waiter alone: if it leaves in the meantime, the outcome says
            // nothing to those behind it.
            FileOp::Take { .. } => self.waiters.first_is_tried(),
            FileOp::Give { .. } | FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire => {}
        }
        let file = self.file.begin(op, queries);
        cx.operate(op, file);
    }

    /// The operation in flight does not come back: every request that waits for it is refused. A
    /// release is not answered as done (I9).
    pub(crate) fn stalled(&mut self, cx: &mut Context<'_, F>, fault: &Fault) {
        let File::InFlight { queries, .. } = &mut self.file else { return };
        for query in queries.drain(..).chain(self.queries.drain(..)) {
            cx.answer(query.asker, Answer::Storage(fault.clone()));
        }
        for release in self.releases.drain(..) {
            cx.answer(release.asker, Answer::Storage(fault.clone()));
        }
        // Behind holders, a request waits for them, not for the storage.
        if self.holders.is_empty() {
            self.refuse(cx, usize::MAX, |_, _| true, &Answer::Storage(fault.clone()));
        } else {
            self.refuse_tries(cx, |_, _| true, &Answer::Storage(fault.clone()));
        }
    }

    /// The lock is gone: nobody holds it any more, and everybody who asks about it is told.
    pub(crate) fn lose(&mut self, cx: &mut Context<'_, F>, reason: &'static str) {
        self.retain_queries(|query| {
            if query.question != Question::Peek {
                cx.answer(query.asker, Answer::Lost(reason));
            }
            query.question == Question::Peek
        });
        for holder in self.holders.take() {
            // A take that joins them may be under way: what the file has of theirs is given back
            // then.
            self.freed.extend(&holder.slots);
            cx.hold_ended(&holder, HoldEnd::Lost(reason));
            cx.lost(holder.session, reason);
        }
    }

    /// Refuses the first requests, at most `count`, that `these` picks by their values and by
    /// whether they have been tried.
    pub(crate) fn refuse(
        &mut self,
        cx: &mut Context<'_, F>,
        count: usize,
        these: impl Fn(&Waiter, bool) -> bool,
        answer: &Answer,
    ) {
        self.waiters.extract(count, |_| true, these, |waiter| cx.answer(waiter.asker(), answer.clone()));
    }

    /// Refuses requests whose tries failed because of the system. Of a crowd that waits,
    /// only the first ones are refused: the others get another try, and each step stays short.
    pub(crate) fn refuse_tried(&mut self, cx: &mut Context<'_, F>, fault: &Fault) {
        let answer = Answer::Storage(fault.clone());
        self.refuse_tries(cx, |_, tried| tried, &answer);
        self.refuse(cx, REFUSALS_MAX, |_, tried| tried, &answer);
    }

    /// The same for those that want a fence, since none could be taken.
    pub(crate) fn refuse_fenced(&mut self, cx: &mut Context<'_, F>, fault: &Fault) {
        let refuse = |waiter: Waiter| cx.answer(waiter.asker(), Answer::Storage(fault.clone()));
        self.waiters.extract(REFUSALS_MAX, |class| class.fence, |_, _| true, refuse);
    }

    /// Refuses the requests that do not wait, among those that `these` picks.
    pub(crate) fn refuse_tries(
        &mut self,
        cx: &mut Context<'_, F>,
        these: impl Fn(&Waiter, bool) -> bool,
        answer: &Answer,
    ) {
        let refuse = |waiter: Waiter| cx.answer(waiter.asker(), answer.clone());
        self.waiters.extract(usize::MAX, |class| !class.waits, these, refuse);
    }

    /// Refuses those among `these` that want the name in a mode, or with a number of slots, that
    /// does not go with how it is held.
    pub(crate) fn refuse_disagreeing(
        &mut self,
        cx: &mut Context<'_, F>,
        held: Mode,
        these: impl Fn(&Waiter, bool) -> bool,
    ) {
        let refuse = |waiter: Waiter| cx.answer(waiter.asker(), Answer::Disagrees { held, asked: waiter.mode() });
        self.waiters.extract(usize::MAX, |class| held.disagrees_with(class.mode), these, refuse);
    }

    /// Refuses the first waiter.
    pub(crate) fn refuse_head(&mut self, cx: &mut Context<'_, F>, answer: Answer) {
        let head = self.waiters.pop_front().expect("there is a first waiter");
        cx.answer(head.asker(), answer);
    }
}
