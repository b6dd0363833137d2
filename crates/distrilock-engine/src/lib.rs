//! The lock engine: it decides who holds a name. It has no I/O, no clock, no random numbers and no locks of its own; it takes
//! an [`Input`], queues [`Effect`]s, and is `Clone + Eq + Hash`, so that a model checker can walk it (`model`).
//!
//! One [`Engine`] is a shard: the names that hash to it, each with one `Record`. Every input updates facts and then calls
//! `settle`, the only place that starts a file operation. A file operation is a request with a completion
//! ([`Input::Done`]); the open file `F` travels with it, so that a second operation on the same name cannot even be written.
//!
//! The invariants, cited by number here and in `check`:
//!
//! - **I1** A name has one exclusive holder, or any number of shared ones, or holders of different slots of one number, or none.
//! - **I2** Who holds, holds through a locked file: a name with holders has its file locked in their mode, or a probe in flight.
//! - **I3** A grant directly follows a completed try or probe: nobody is granted on the strength of an old answer.
//! - **I4** At most one file operation of a name is in flight.
//! - **I5** First come, first served: no waiter is granted while an earlier one is not, except that neighbouring shared ones
//!   enter together.
//! - **I6** Every request is answered exactly once, unless its session left.
//! - **I7** Nobody waits for nothing: a name at rest with waiters has holders in their way, or is contended and a timer for its
//!   next try is armed, or yields and its turn timer is armed.
//! - **I8** A session has at most one waiting request a name (the session layer refuses a second one).
//! - **I9** A release is answered when the lock is free or has passed to the next holder, never before.
//! - **I10** A name without file, holders, waiters and open questions has no record; an idle file is in the linger queue.

mod check;
mod contention;
pub mod fault;
pub mod fence;
mod grants;
mod hand_over;
pub mod limits;
mod message;
#[cfg(test)]
pub(crate) mod model;
mod record;
mod seen;
mod slots;
pub mod steps;
mod storage;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, VecDeque};

pub use hand_over::{Handed, HandedWaiter};
pub use message::{Answer, Asked, Effect, FileOp, Input, Outcome, RequestId, SessionId, Timer, Withdrawal};
pub use seen::{View, ViewedSession};

use crate::fault::Fault;
use contention::Contention;
pub use contention::Pace;
use distrilock_protocol::name::LockName;
pub use distrilock_protocol::want::{Mode, Want};
use record::{File, Query, Question, Record, Turn, Waiter};

/// A linger lasts this many ticks, and up to one more.
const LINGER_TICKS: u8 = if cfg!(test) { 1 } else { 4 };

/// A try that found nobody holding the lock, but a process that is deleting its file, is made again so often, at
/// [`RETRY_MS_MIN`](crate::limits::RETRY_MS_MIN) each, before the request is refused: as a failure of the storage, since to call the name held would be a lie.
const DISTURBED_MAX: u8 = if cfg!(test) { 1 } else { 50 };

/// What an engine is told once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How long a released file is kept open for the next acquire, in milliseconds; 0: not at all.
    pub linger_ms: u64,
    /// How many released files are kept at most.
    pub linger_files_max: usize,
    /// How often a name is tried that another process holds.
    pub pace: Pace,
}

/// One shard of the lock engine. `F` is an open lock file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Engine<F> {
    config: Config,
    records: BTreeMap<LockName, Record<F>>,
    /// Names whose file was idle at some time since they were put here, oldest first. A name leaves it when it retires or when
    /// its turn comes and it is not idle.
    lingering: VecDeque<LockName>,
    linger_armed: bool,
    /// Names whose waiters wait for another process.
    contention: Contention,
    /// What the clock was said to show; copied into holders and waiters for those who look, never compared.
    now_ms: u64,
    /// The daemon stops.
    closing: bool,
}

/// A process began to delete a lock file and does not go on: it is stopped, or hangs.
fn stalled(name: &LockName) -> Fault {
    Fault { operation: "wait for the deletion of", path: name.as_str().into(), errno: nix::libc::EBUSY }
}

impl<F> Engine<F> {
    /// An engine without any name.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            records: BTreeMap::new(),
            lingering: VecDeque::new(),
            linger_armed: false,
            contention: Contention::default(),
            now_ms: 0,
            closing: false,
        }
    }

    /// Takes one input and appends its effects, to be carried out in their order.
    pub fn input(&mut self, input: Input<F>, effects: &mut Vec<Effect<F>>) {
        match input {
            Input::Acquire { asked, want, wait } => self.acquire(&asked, want, wait, effects),
            Input::Release(asked) => self.release(&asked, false, effects),
            Input::ReleaseAndLook(asked) => self.release(&asked, true, effects),
            Input::Verify(asked) => self.verify(asked, effects),
            Input::Peek(asked) => self.peek(&asked, effects),
            Input::Withdraw { asked, why } => self.withdraw(&asked, why, effects),
            Input::Leave { name, session } => self.leave(&name, session, effects),
            Input::Done { name, file, outcome } => self.done(&name, file, &outcome, effects),
            Input::Stalled { name, fault } => self.stalled(&name, &fault, effects),
            Input::Probe(name) => self.probe(&name, effects),
            Input::Suspect(valid_ms) => self.doubt(Some(valid_ms), effects),
            Input::Trust => self.doubt(None, effects),
            Input::Silence(reason) => self.silence(reason, effects),
            Input::Elapsed(timer) => self.elapsed(timer, effects),
            Input::Hint(name) => self.hint(&name, effects),
            Input::Promised(name) => self.promised(&name, effects),
            Input::PromisesBroken => self.promises_broken(effects),
            Input::Now(now_ms) => self.now_ms = now_ms,
            Input::Shed => self.retire_oldest(effects),
            Input::Drain => self.drain(effects),
        }
    }

    fn acquire(&mut self, asked: &Asked, want: Want, waits: bool, effects: &mut Vec<Effect<F>>) {
        if self.closing {
            effects.push(asked.clone().answer(Answer::Closing));
            return;
        }
        let since_ms = self.now_ms;
        let record = self.record(&asked.name);
        match record.held_by(asked.session).map(|holder| (holder.mode, holder.take)) {
            Some(held) if held == (want.mode, want.take) => {
                record.queries.push(Query::new(asked, Question::Already { fence: want.fence }));
            }
            Some((held, _)) if held.disagrees_with(want.mode) => {
                effects.push(asked.clone().answer(Answer::Disagrees { held, asked: want.mode }));
            }
            Some(_) => effects.push(asked.clone().answer(Answer::Mismatch)),
            None => record.waiters.push_back(Waiter {
                seen: ViewedSession::new(asked.session, want, since_ms),
                request: asked.request,
                waits,
                tried: false,
                fence: want.fence,
            }),
        }
        self.settle(&asked.name, effects);
    }

    fn release(&mut self, asked: &Asked, look: bool, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(&asked.name) else {
            effects.push(asked.clone().answer(Answer::NotHeld { by_another: false }));
            return;
        };
        record.answer_before_release(asked, effects);
        if !record.remove_holder(asked.session) {
            let by_another = !record.holders.is_empty();
            effects.push(asked.clone().answer(Answer::NotHeld { by_another }));
            return;
        }
        if record.holders.is_empty() || !record.freed.is_empty() {
            record.releases.push((asked.session, asked.request));
            record.look = look && record.holders.is_empty();
        } else {
            effects.push(asked.clone().answer(Answer::Released { file_gone: false }));
        }
        self.settle(&asked.name, effects);
    }

    fn verify(&mut self, asked: Asked, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(&asked.name) else {
            effects.push(asked.answer(Answer::NotHeld { by_another: false }));
            return;
        };
        record.queries.push(Query::new(&asked, Question::Verify));
        self.settle(&asked.name, effects);
    }

    fn peek(&mut self, asked: &Asked, effects: &mut Vec<Effect<F>>) {
        self.record(&asked.name).queries.push(Query::new(asked, Question::Peek));
        self.settle(&asked.name, effects);
    }

    fn withdraw(&mut self, asked: &Asked, why: Withdrawal, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(&asked.name) else { return };
        let found = |waiter: &Waiter| (waiter.seen.session, waiter.request) == (asked.session, asked.request);
        let Some(place) = record.waiters.iter().position(found) else { return };
        record.waiters.remove(place);
        effects.push(asked.clone().answer(why.into()));
        self.settle(&asked.name, effects);
    }

    fn leave(&mut self, name: &LockName, session: SessionId, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(name) else { return };
        record.remove_holder(session);
        record.waiters.retain(|waiter| waiter.seen.session != session);
        record.queries.retain(|query| query.session != session);
        record.releases.retain(|(releasing, _)| *releasing != session);
        if let File::InFlight { queries, .. } = &mut record.file {
            queries.retain(|query| query.session != session);
        }
        self.settle(name, effects);
    }

    fn done(&mut self, name: &LockName, file: Option<F>, outcome: &Outcome, effects: &mut Vec<Effect<F>>) {
        let now_ms = self.now_ms;
        let record = self.records.get_mut(name).expect("a name with an operation in flight has a record (I10)");
        let File::InFlight { op, queries } = std::mem::replace(&mut record.file, File::Closed) else {
            panic!("{name}: {outcome:?} completes no operation (I4)");
        };
        match (op, outcome) {
            (FileOp::Try(mode) | FileOp::Retry(mode), Outcome::Locked) => {
                record.file = File::locked(file, mode);
                record.answer_releases(name, false, effects);
                record.enter(name, mode, None, now_ms, effects);
            }
            (FileOp::TryFence(mode), Outcome::Fenced(fence)) => {
                record.file = File::locked(file, mode);
                record.answer_releases(name, false, effects);
                record.enter_with_fence(name, mode, fence, now_ms, effects);
            }
            (FileOp::Take { of, joins, .. }, outcome) => record.took(name, file, (of, joins), outcome, now_ms, effects),
            (FileOp::Give { of, .. }, Outcome::Given | Outcome::Failed(_)) => record.gave(name, file, of, effects),
            (FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_), Outcome::Disagrees(held)) => {
                record.file = File::idle(file);
                record.answer_releases(name, false, effects);
                record.contended = false;
                record.refuse_disagreeing(name, *held, |waiter| waiter.tried, effects);
            }
            (FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_), Outcome::Refused) => {
                record.file = File::idle(file);
                record.answer_releases(name, false, effects);
                record.refuse_tries(name, |waiter| waiter.tried, &Answer::BusyElsewhere, effects);
                record.contended = true;
            }
            (FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_), Outcome::Disturbed) => {
                record.file = File::idle(file);
                record.answer_releases(name, false, effects);
                record.met_disturbance(name, effects);
            }
            (FileOp::Try(_) | FileOp::Retry(_) | FileOp::TryFence(_), Outcome::Failed(fault)) => {
                record.file = File::idle(file);
                record.answer_releases(name, false, effects);
                record.refuse_all(name, fault, effects);
            }
            (FileOp::Probe(mode), Outcome::Real | Outcome::Lost(_) | Outcome::Failed(_))
            | (FileOp::ProbeFence(mode), Outcome::Fenced(_) | Outcome::Lost(_) | Outcome::Failed(_)) => {
                record.file = File::locked(file, mode);
                record.probed(name, outcome, queries, now_ms, effects);
            }
            (FileOp::Peek, Outcome::Peeked { .. } | Outcome::Failed(_)) => {
                record.file = File::idle(file);
                record.peeked(name, outcome, queries, effects);
            }
            (FileOp::Unlock | FileOp::UnlockAndLook | FileOp::Retire, Outcome::Unlocked { file_gone }) => {
                record.file = File::idle(file);
                record.answer_releases(name, *file_gone, effects);
                record.end_turn(name, effects);
            }
            (op, outcome) => panic!("{name}: {outcome:?} is no outcome of {op:?}"),
        }
        // A peek does not use the file; neither it nor a probe says anything of a deletion that tries have met.
        if op != FileOp::Peek {
            record.age = 0;
        }
        if !matches!(op, FileOp::Peek | FileOp::Probe(_) | FileOp::ProbeFence(_)) {
            record.disturbed = if *outcome == Outcome::Disturbed { record.disturbed } else { 0 };
        }
        self.settle(name, effects);
    }

    fn elapsed(&mut self, timer: Timer, effects: &mut Vec<Effect<F>>) {
        match timer {
            Timer::Retry => self.retry(effects),
            Timer::Recheck => self.recheck(effects),
            Timer::Linger => self.linger(effects),
            Timer::Turn(name) => {
                let Some(record) = self.records.get_mut(&name) else { return };
                record.turn = match record.turn {
                    Turn::Running | Turn::Over => Turn::Over,
                    Turn::Rested | Turn::Broken | Turn::Yielding => Turn::Rested,
                };
                self.settle(&name, effects);
            }
        }
    }

    /// Idle files grow a tick older; those that are past the linger retire.
    fn linger(&mut self, effects: &mut Vec<Effect<F>>) {
        self.linger_armed = false;
        for _ in 0..self.lingering.len() {
            let name = self.lingering.pop_front().expect("as many as were counted");
            let Some(record) = self.records.get_mut(&name) else { continue };
            record.age = record.age.saturating_add(1);
            if record.idles() && record.age <= LINGER_TICKS {
                self.lingering.push_back(name);
                continue;
            }
            record.lingers = false;
            if record.idles() {
                record.begin(&name, FileOp::Retire, effects);
            }
            self.rest(&name, effects);
        }
        self.arm_linger(effects);
    }

    /// Retires the file that has been idle longest.
    fn retire_oldest(&mut self, effects: &mut Vec<Effect<F>>) {
        while let Some(name) = self.lingering.pop_front() {
            let Some(record) = self.records.get_mut(&name) else { continue };
            record.lingers = false;
            if record.idles() {
                record.begin(&name, FileOp::Retire, effects);
                return;
            }
            self.rest(&name, effects);
        }
    }

    /// Nobody is granted anything any more, and nothing is kept.
    fn drain(&mut self, effects: &mut Vec<Effect<F>>) {
        self.closing = true;
        self.config.linger_ms = 0;
        self.lingering.clear();
        let names: Vec<LockName> = self.records.keys().cloned().collect();
        for name in names {
            let record = self.record(&name);
            record.lingers = false;
            record.refuse(&name, |_| true, &Answer::Closing, effects);
            self.settle(&name, effects);
        }
    }

    fn record(&mut self, name: &LockName) -> &mut Record<F> {
        self.records.entry(name.clone()).or_default()
    }

    /// Brings one name to rest: answers what can be answered and begins the next file operation, if there is one. Every input
    /// ends here, and nothing else begins an operation on a name that somebody wants.
    fn settle(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(name) else { return };
        let linger = self.config.linger_ms > 0;
        if let Some(op) = record.next(name, linger, effects) {
            record.begin(name, op, effects);
        }
        self.rest(name, effects);
        self.check(name);
    }

    /// Keeps the lists of contended and of idle names, and their timers, and drops a record that says nothing.
    fn rest(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(name) else { return };
        record.contended &= !record.waiters.is_empty();
        if record.contended {
            self.contention.add(name, record, self.config.pace, effects);
        } else {
            self.contention.remove(name);
        }
        if record.idles() && !record.lingers {
            record.lingers = true;
            self.lingering.push_back(name.clone());
            self.arm_linger(effects);
            if self.lingering.len() > self.config.linger_files_max {
                self.retire_oldest(effects);
            }
        } else if matches!(record.file, File::Closed) && record.at_rest() && !record.lingers {
            self.records.remove(name);
        }
    }

    fn arm_linger(&mut self, effects: &mut Vec<Effect<F>>) {
        if !self.linger_armed && !self.lingering.is_empty() && self.config.linger_ms > 0 {
            self.linger_armed = true;
            effects.push(Effect::Arm(Timer::Linger, self.config.linger_ms.div_ceil(LINGER_TICKS.into())));
        }
    }
}
