//! What a completed file operation changes: who is granted the lock, who is refused, and in which
//! state the file is.

use distrilock_protocol::want::{Extent, Mode};

use crate::claim::Claim;
use crate::context::Context;
use crate::fault::{Cause, Fault};
use crate::limits::{GRANTS_MAX, REFUSALS_MAX};
use crate::message::{Answer, FileOp, Outcome};
use crate::record::{File, Query, Question, Record};
use crate::state::Contention;
use crate::waiters::Waiter;

impl<F> Record<F> {
    /// The operation in flight is complete.
    pub(crate) fn done(&mut self, cx: &mut Context<'_, F>, file: Option<F>, outcome: &Outcome) {
        let name = cx.name;
        let (op, queries) =
            self.file.end().unwrap_or_else(|| panic!("{name}: {outcome:?} completes no operation (I4)"));
        match op {
            FileOp::Try(mode) | FileOp::Retry(mode) | FileOp::TryFence(mode) => {
                self.tried(cx, file, op, mode, outcome);
            }
            FileOp::Take { of, joins, .. } => self.took(cx, file, of, joins, outcome),
            FileOp::Give { of, .. } => self.gave(cx, file, of, outcome),
            FileOp::Probe(mode) | FileOp::ProbeFence(mode) | FileOp::Stamp(mode, _) => {
                self.file = File::locked(file, mode);
                self.probed(cx, op, mode, outcome, queries);
            }
            FileOp::Peek => {
                self.file = File::idle(file);
                self.peeked(cx, outcome, queries);
            }
            FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire => self.unlocked(cx, file, outcome),
        }
        // A peek does not use the file; neither a peek nor a probe says anything of a deletion that
        // tries have met.
        if op != FileOp::Peek {
            self.linger.used();
        }
        let only_looks = matches!(op, FileOp::Peek | FileOp::Probe(_) | FileOp::ProbeFence(_) | FileOp::Stamp(..));
        if !only_looks && *outcome != Outcome::Disturbed {
            self.contention.undisturbed();
        }
    }

    fn tried(&mut self, cx: &mut Context<'_, F>, file: Option<F>, op: FileOp, mode: Mode, outcome: &Outcome) {
        let fenced = matches!(op, FileOp::TryFence(_));
        let locked = matches!(outcome, Outcome::Locked | Outcome::Fenced(_));
        self.file = if locked { File::locked(file, mode) } else { File::idle(file) };
        self.answer_releases(cx, false);
        match outcome {
            Outcome::Locked if !fenced => self.enter(cx, mode, None),
            Outcome::Fenced(fence) if fenced => self.enter_with_fence(cx, mode, fence),
            Outcome::Disagrees(held) => {
                self.contention = Contention::Clear;
                self.refuse_disagreeing(cx, *held, |_, tried| tried);
            }
            Outcome::Refused => {
                self.contention = Contention::Refused;
                self.refuse_tries(cx, |_, tried| tried, &Answer::BusyElsewhere);
            }
            Outcome::Disturbed => self.disturbed(cx),
            Outcome::Failed(fault) => self.refuse_tried(cx, fault),
            outcome => panic!("{}: {outcome:?} is no outcome of {op:?}", cx.name),
        }
    }

    /// A try met a process that does something brief with the file, and holds nothing.
    fn disturbed(&mut self, cx: &mut Context<'_, F>) {
        if self.contention.disturbed(cx.now_ms) {
            let stalled = Fault { cause: Cause::StalledDeletion, path: cx.name.as_str().into() };
            self.refuse_tries(cx, |_, tried| tried, &Answer::Storage(stalled));
        }
    }

    /// The file is locked in this mode, as was just shown (I3): grants to the first waiter and to
    /// its shared neighbours, up to one that wants a fence when there is none (any more). Of a
    /// crowd, only the first ones enter: the others join them after a probe, as late ones do, and
    /// each step stays short.
    fn enter(&mut self, cx: &mut Context<'_, F>, mode: Mode, mut fence: Option<u64>) {
        let mut left = GRANTS_MAX;
        while let Some(head) = self.waiters.front()
            && left > 0
            && head.mode() == mode
            && (mode == Mode::Shared || self.holders.is_empty())
            && (!head.fence || fence.is_some())
        {
            left -= 1;
            let fence = if head.fence { fence.take() } else { None };
            self.grant(cx, Box::default(), fence);
        }
    }

    /// The file is locked in this mode, as was just shown (I3), and a fence was taken, or could not
    /// be. Only those who wanted a fence hear of a failure.
    fn enter_with_fence(&mut self, cx: &mut Context<'_, F>, mode: Mode, fence: &Result<u64, Fault>) {
        if let Err(fault) = fence {
            self.refuse_fenced(cx, fault);
        }
        self.enter(cx, mode, fence.as_ref().ok().copied());
    }

    /// Grants to the first waiter.
    fn grant(&mut self, cx: &mut Context<'_, F>, slots: Box<[u16]>, fence: Option<u64>) {
        let head = self.waiters.pop_front().expect("there is a first waiter");
        let asker = head.asker();
        let waited_ms = cx.now_ms.saturating_sub(head.since_ms);
        let holder = Claim { since_ms: cx.now_ms, waited_ms, slots, fence, ..head.claim() };
        cx.answer(asker, Answer::granted(&holder, false));
        cx.was_granted(&holder);
        self.holders.push_back(holder);
    }

    fn unlocked(&mut self, cx: &mut Context<'_, F>, file: Option<F>, outcome: &Outcome) {
        let Outcome::Unlocked { file_gone } = outcome else { panic!("{}: {outcome:?} unlocks nothing", cx.name) };
        self.file = File::idle(file);
        self.answer_releases(cx, *file_gone);
        if !self.give_way(cx) {
            self.turn.unlocked();
        }
    }
}

/// Slots.
impl<F> Record<F> {
    /// A take is complete, which was for the first waiter alone.
    fn took(&mut self, cx: &mut Context<'_, F>, file: Option<F>, of: u16, joins: bool, outcome: &Outcome) {
        let mode = Mode::Slots(of);
        let locked = joins || matches!(outcome, Outcome::Taken { .. });
        self.file = if locked { File::locked(file, mode) } else { File::idle(file) };
        if !joins {
            self.answer_releases(cx, false);
        }
        if *outcome == Outcome::Disturbed {
            return self.disturbed(cx);
        }
        self.contention = Contention::Clear;
        let head = self.waiters.front().filter(|_| self.waiters.is_first_tried());
        let refused = match outcome {
            Outcome::Taken { slots, fence } => return self.took_slots(cx, of, slots, fence.as_ref()),
            Outcome::Lost(reason) if joins => return self.lose(cx, reason),
            Outcome::Refused => {
                if head.is_some_and(|head| head.waits) {
                    self.contention = Contention::Refused;
                }
                head.filter(|head| !head.waits).map(|_| Answer::BusyElsewhere)
            }
            Outcome::Disagrees(held) => {
                head.filter(|head| head.mode() == mode).map(|_| Answer::Disagrees { held: *held, asked: mode })
            }
            Outcome::Failed(fault) => head.map(|_| Answer::Storage(fault.clone())),
            outcome => panic!("{}: {outcome:?} is no outcome of a take", cx.name),
        };
        if let Some(answer) = refused {
            self.refuse_head(cx, answer);
        }
    }

    fn took_slots(&mut self, cx: &mut Context<'_, F>, of: u16, slots: &[u16], fence: Option<&Result<u64, Fault>>) {
        let fits = |head: &&Waiter| match head.extent {
            Extent::Slots { of: wanted, take } => wanted == of && usize::from(take) == slots.len(),
            Extent::Shared | Extent::Exclusive => false,
        };
        match (self.waiters.front().filter(fits).map(|head| head.fence), fence) {
            (Some(false), _) => self.grant(cx, slots.into(), None),
            (Some(true), Some(Ok(fence))) => self.grant(cx, slots.into(), Some(*fence)),
            (Some(true), Some(Err(fault))) => {
                self.freed.extend(slots);
                self.refuse_head(cx, Answer::Storage(fault.clone()));
            }
            // The waiter they were for has left, or another one is first now.
            (Some(true), None) | (None, _) => self.freed.extend(slots),
        }
    }

    /// Slots are free: the releases are answered (I9), and waiters try at once, unless it is the
    /// turn of other daemons.
    fn gave(&mut self, cx: &mut Context<'_, F>, file: Option<F>, of: u16, outcome: &Outcome) {
        let given = matches!(outcome, Outcome::Given | Outcome::Failed(_));
        assert!(given, "{}: {outcome:?} is no outcome of a give", cx.name);
        self.file = File::locked(file, Mode::Slots(of));
        self.contention = Contention::Clear;
        if self.freed.is_empty() {
            self.answer_releases(cx, false);
        }
        self.give_way(cx);
    }
}

/// Probes, which may obtain a fence or a stamp, and peeks.
impl<F> Record<F> {
    /// A probe of a held lock is complete.
    fn probed(&mut self, cx: &mut Context<'_, F>, op: FileOp, mode: Mode, outcome: &Outcome, queries: Vec<Query>) {
        let fits = match outcome {
            Outcome::Real => matches!(op, FileOp::Probe(_)),
            Outcome::Fenced(_) => matches!(op, FileOp::ProbeFence(_)),
            Outcome::Stamped(_) => matches!(op, FileOp::Stamp(..)),
            outcome => matches!(outcome, Outcome::Lost(_) | Outcome::Failed(_)),
        };
        assert!(fits, "{}: {outcome:?} is no outcome of {op:?}", cx.name);
        let fence = self.answer_probe(cx, outcome, queries);
        match outcome {
            Outcome::Lost(reason) => self.lose(cx, reason),
            Outcome::Failed(fault) => {
                // Those behind the first ones ask for another probe.
                let mut left = REFUSALS_MAX;
                while left > 0 && self.waiters.front().is_some_and(|head| head.extent == Extent::Shared) {
                    left -= 1;
                    self.refuse_head(cx, Answer::Storage(fault.clone()));
                }
            }
            _ if mode == Mode::Shared && !self.holders.is_empty() => match fence {
                Some(fence) => self.enter_with_fence(cx, mode, &fence),
                None => self.enter(cx, mode, None),
            },
            _ => {}
        }
    }

    /// Answers those who asked for a probe. Returns the fence that the probe obtained, unless one
    /// of them has it now.
    fn answer_probe(
        &mut self,
        cx: &mut Context<'_, F>,
        outcome: &Outcome,
        queries: Vec<Query>,
    ) -> Option<Result<u64, Fault>> {
        let mut obtained = match outcome {
            Outcome::Fenced(fence) => Some(fence.clone()),
            _ => None,
        };
        for query in queries {
            let session = query.asker.session;
            let answer = match (outcome, query.question) {
                (_, Question::Peek) => Answer::Peeked(self.view(false)),
                (Outcome::Lost(reason), _) => Answer::Lost(reason),
                (Outcome::Failed(fault), _) => Answer::Storage(fault.clone()),
                (Outcome::Stamped(Ok(age_ms)), Question::Stamp(_)) => Answer::Stamped(*age_ms),
                (Outcome::Stamped(Err(fault)), Question::Stamp(_)) => Answer::Storage(fault.clone()),
                (outcome, Question::Stamp(_)) => panic!("{}: {outcome:?} answers no question about a stamp", cx.name),
                (_, Question::Verify) => self.held_by(session).map_or(Answer::Real, Answer::real),
                (_, Question::Already { fence }) => {
                    let holder = self.holders.of_mut(session);
                    let holder = holder.expect("a release answers the questions of its session");
                    match &obtained {
                        _ if !fence || holder.fence.is_some() => Answer::granted(holder, true),
                        Some(Ok(number)) => {
                            holder.fence = Some(*number);
                            obtained = None;
                            Answer::granted(holder, true)
                        }
                        Some(Err(fault)) => Answer::Storage(fault.clone()),
                        // Another session has the fence: the next probe obtains another one.
                        None => {
                            self.queries.push(query);
                            continue;
                        }
                    }
                }
            };
            cx.answer(query.asker, answer);
        }
        obtained
    }

    /// A peek at a file that this daemon does not lock is complete.
    fn peeked(&self, cx: &mut Context<'_, F>, outcome: &Outcome, queries: Vec<Query>) {
        let locked = match outcome {
            Outcome::Peeked { locked } => Ok(*locked),
            Outcome::Failed(fault) => Err(fault),
            outcome => panic!("{}: {outcome:?} is no outcome of a peek", cx.name),
        };
        for query in queries {
            cx.answer(
                query.asker,
                match locked {
                    Ok(locked) => Answer::Peeked(self.view(locked)),
                    Err(fault) => Answer::Storage(fault.clone()),
                },
            );
        }
    }
}
