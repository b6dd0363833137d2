//! [`Engine`]: takes inputs, changes the facts that they are about, and settles the name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use distrilock_protocol::ids::SessionId;
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::Want;

use crate::check;
use crate::claim::View;
use crate::contention::{ContendedNames, Pace};
use crate::context::Context;
use crate::deadlock::{Holder, Queue};
use crate::fault::Fault;
use crate::limits::{LINGER_TICKS, QUEUE_MAX};
use crate::message::{Answer, Asker, Effect, FileOp, HoldEnd, Input, Outcome, Timer, WaitEnd, Withdrawal};
use crate::record::{File, Question, Record, Release};
use crate::state::Contention;
use crate::waiters::Waiter;

/// What an engine is told once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How long a released file is kept open for the next acquire, in milliseconds; 0: not at all.
    pub linger_ms: u64,
    /// How many released files are kept at most.
    pub linger_files_max: usize,
    /// If as many are kept: whether one more takes the place of the oldest, or goes at once. Where
    /// opening a file again is cheap, going through the queue would cost more than it saves.
    pub linger_evicts: bool,
    /// How often a name is tried that another process holds.
    pub pace: Pace,
    /// How long a lock has to be held or waited for to be in the history ([`Effect::Past`]), in
    /// milliseconds; 0: always; `u64::MAX`: never.
    pub history_from_ms: u64,
}

/// One shard of the lock engine. `F` is an open lock file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Engine<F> {
    pub(crate) config: Config,
    /// Boxed: on average, half of the places in a tree's nodes are empty.
    pub(crate) records: BTreeMap<LockName, Box<Record<F>>>,
    lists: Lists,
    /// What the clock is known to show; copied into claims for those who look, and compared for the
    /// history alone.
    now_ms: u64,
    /// The daemon stops.
    closing: bool,
}

/// What names stand in, besides the records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Lists {
    /// Names whose file was idle at some time since they joined the queue, oldest first. A name
    /// leaves it when it retires, or when its turn comes and it is not idle.
    lingering: VecDeque<LockName>,
    linger_armed: bool,
    contended: ContendedNames,
}

/// What is left to do for a name that has come to rest.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Done,
    /// The record says nothing any more.
    Drop,
    /// Too many files linger.
    Shed,
}

impl<F> Engine<F> {
    /// An engine without any name.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, records: BTreeMap::new(), lists: Lists::default(), now_ms: 0, closing: false }
    }

    /// Takes one input and appends its effects, to be carried out in their order.
    pub fn input(&mut self, input: Input<F>, effects: &mut Vec<Effect<F>>) {
        match input {
            Input::Acquire { asked, want, wait } => {
                self.acquire(&mut self.about(&asked.name, effects), asked.asker(), want, wait);
            }
            Input::Release(asked) => self.release(&mut self.about(&asked.name, effects), asked.asker(), false),
            Input::ReleaseAndLook(asked) => self.release(&mut self.about(&asked.name, effects), asked.asker(), true),
            Input::Verify(asked) => {
                self.question(&mut self.about(&asked.name, effects), asked.asker(), Question::Verify);
            }
            Input::Stamp { asked, age_ms } => {
                self.question(&mut self.about(&asked.name, effects), asked.asker(), Question::Stamp(age_ms));
            }
            Input::Peek(asked) => self.peek(&mut self.about(&asked.name, effects), asked.asker()),
            Input::Withdraw { asked, why } => {
                self.withdraw(&mut self.about(&asked.name, effects), asked.asker(), why);
            }
            Input::Leave { name, session } => self.leave(&mut self.about(&name, effects), session),
            Input::Done { name, file, outcome } => self.done(&mut self.about(&name, effects), file, &outcome),
            Input::Stalled { name, fault } => self.stalled(&mut self.about(&name, effects), &fault),
            Input::Probe(name) => self.probe(&mut self.about(&name, effects)),
            Input::Suspect(valid_ms) => self.doubt(Some(valid_ms), effects),
            Input::Trust => self.doubt(None, effects),
            Input::Silence(reason) => self.silence(reason, effects),
            Input::Elapsed(timer) => self.elapsed(&timer, effects),
            Input::Hint(name) => self.hint(&mut self.about(&name, effects)),
            Input::Promised(name) => self.promised(&mut self.about(&name, effects)),
            Input::PromisesBroken => {
                let names = self.lists.contended.break_promises();
                self.sweep(names, effects);
            }
            Input::Now(now_ms) => self.now_ms = now_ms,
            Input::Shed => self.retire_oldest(effects),
            Input::Drain => self.drain(effects),
        }
    }

    /// What a decision about a name is given.
    pub(crate) fn about<'a>(&self, name: &'a LockName, effects: &'a mut Vec<Effect<F>>) -> Context<'a, F> {
        let history_from_ms = self.config.history_from_ms;
        Context { name, now_ms: self.now_ms, history_from_ms, effects }
    }

    fn record(&mut self, name: &LockName) -> &mut Record<F> {
        self.records.entry(name.clone()).or_default()
    }
}

/// Requests of sessions, and completions.
impl<F> Engine<F> {
    fn acquire(&mut self, cx: &mut Context<'_, F>, asker: Asker, want: Want, waits: bool) {
        if self.closing {
            return cx.answer(asker, Answer::Closing);
        }
        let record = self.records.entry(cx.name.clone()).or_default();
        match record.held_by(asker.session).map(|holder| holder.extent) {
            Some(held) if held == want.extent => {
                record.ask(cx, asker, Question::Already { fence: want.fence });
            }
            Some(held) if held.mode().disagrees_with(want.mode()) => {
                cx.answer(asker, Answer::Disagrees { held: held.mode(), asked: want.mode() });
            }
            Some(_) => cx.answer(asker, Answer::Mismatch),
            None if record.waiters.len() >= QUEUE_MAX => cx.answer(asker, Answer::QueueFull),
            None => record.waiters.push_back(Waiter {
                session: asker.session,
                request: asker.request,
                since_ms: cx.now_ms,
                extent: want.extent,
                fence: want.fence,
                waits,
            }),
        }
        let rest = self.lists.settle(&self.config, cx, record, None);
        self.follow(cx, rest);
    }

    fn release(&mut self, cx: &mut Context<'_, F>, asker: Asker, looks: bool) {
        let Some(record) = self.records.get_mut(cx.name) else {
            return cx.answer(asker, Answer::NotHeld { by_another: false });
        };
        record.answer_before_release(cx, asker.session);
        if !record.remove_holder(cx, asker.session, HoldEnd::Released) {
            let by_another = !record.holders.is_empty();
            return cx.answer(asker, Answer::NotHeld { by_another });
        }
        if record.holders.is_empty() || !record.freed.is_empty() {
            let looks = looks && record.holders.is_empty();
            record.releases.push(Release { asker, looks });
        } else {
            cx.answer(asker, Answer::Released { file_gone: false });
        }
        let rest = self.lists.settle(&self.config, cx, record, None);
        self.follow(cx, rest);
    }

    /// A question of a holder about its lock.
    fn question(&mut self, cx: &mut Context<'_, F>, asker: Asker, question: Question) {
        let Some(record) = self.records.get_mut(cx.name) else {
            return cx.answer(asker, Answer::NotHeld { by_another: false });
        };
        record.ask(cx, asker, question);
        self.settle(cx);
    }

    fn peek(&mut self, cx: &mut Context<'_, F>, asker: Asker) {
        self.records.entry(cx.name.clone()).or_default().ask(cx, asker, Question::Peek);
        self.settle(cx);
    }

    fn withdraw(&mut self, cx: &mut Context<'_, F>, asker: Asker, why: Withdrawal) {
        let Some(record) = self.records.get_mut(cx.name) else { return };
        let Some(waiter) = record.waiters.remove(asker) else { return };
        cx.gave_up(&waiter, WaitEnd::from(&why));
        cx.answer(asker, why.into());
        self.settle(cx);
    }

    pub(crate) fn leave(&mut self, cx: &mut Context<'_, F>, session: SessionId) {
        let Some(record) = self.records.get_mut(cx.name) else { return };
        record.leave(cx, session);
        self.settle(cx);
    }

    fn done(&mut self, cx: &mut Context<'_, F>, file: Option<F>, outcome: &Outcome) {
        let record = self.records.get_mut(cx.name).expect("a name with an operation in flight has a record (I10)");
        record.done(cx, file, outcome);
        let rest = self.lists.settle(&self.config, cx, record, None);
        self.follow(cx, rest);
    }
}

/// What a network file system adds: calls that do not come back, and locks that are in doubt or
/// lost although nobody released them.
impl<F> Engine<F> {
    fn stalled(&mut self, cx: &mut Context<'_, F>, fault: &Fault) {
        let Some(record) = self.records.get_mut(cx.name) else { return };
        record.stalled(cx, fault);
        self.settle(cx);
    }

    fn probe(&mut self, cx: &mut Context<'_, F>) {
        let Some(record) = self.records.get(cx.name) else { return };
        if let File::Locked(_, mode) = record.file
            && !record.holders.is_empty()
        {
            self.settle_or(cx, Some(FileOp::Probe(mode)));
        }
    }

    /// Tells every holder whether its lock is in doubt.
    fn doubt(&self, valid_ms: Option<u64>, effects: &mut Vec<Effect<F>>) {
        for (name, record) in &self.records {
            let mut cx = self.about(name, effects);
            record.holders.iter().for_each(|holder| cx.doubt(holder.session, valid_ms));
        }
    }

    fn silence(&mut self, reason: &'static str, effects: &mut Vec<Effect<F>>) {
        let names: Vec<LockName> = self.held(None).cloned().collect();
        for name in names {
            let cx = &mut self.about(&name, effects);
            self.record(&name).lose(cx, reason);
            self.settle(cx);
        }
    }
}

/// Timers, and names that other processes hold.
impl<F> Engine<F> {
    fn elapsed(&mut self, timer: &Timer, effects: &mut Vec<Effect<F>>) {
        match timer {
            Timer::Retry => {
                let names = self.lists.contended.retry();
                self.sweep(names, effects);
            }
            Timer::Recheck => {
                let names = self.lists.contended.recheck();
                self.sweep(names, effects);
            }
            Timer::Linger => self.linger(effects),
            Timer::Turn(name) => {
                let Some(record) = self.records.get_mut(name) else { return };
                record.turn.elapsed();
                self.settle(&mut self.about(name, effects));
            }
        }
    }

    /// Another try for these contended names.
    fn sweep(&mut self, names: BTreeSet<LockName>, effects: &mut Vec<Effect<F>>) {
        for name in names {
            if let Some(record) = self.records.get_mut(&name) {
                record.contention.due();
            }
            self.settle(&mut self.about(&name, effects));
        }
    }

    /// Word came that the name is free: if somebody waits for that, a try finds out.
    fn hint(&mut self, cx: &mut Context<'_, F>) {
        let Some(record) = self.records.get_mut(cx.name) else { return };
        if record.contention == Contention::Refused {
            record.contention.due();
            self.settle(cx);
        }
    }

    /// A daemon holds the name and promises a wake-up on release.
    fn promised(&mut self, cx: &mut Context<'_, F>) {
        if !self.records.get(cx.name).is_some_and(|record| record.contention.is_disturbed()) {
            self.lists.contended.promise(cx);
            self.check(cx.name);
        }
    }

    /// Idle files grow a tick older; those that are past the linger retire.
    fn linger(&mut self, effects: &mut Vec<Effect<F>>) {
        self.lists.linger_armed = false;
        for _ in 0..self.lists.lingering.len() {
            let name = self.lists.lingering.pop_front().expect("as many as were counted");
            let Some(record) = self.records.get_mut(&name) else { continue };
            if record.linger.tick() && record.idles() {
                self.lists.lingering.push_back(name);
                continue;
            }
            self.retire(&mut self.about(&name, effects));
        }
        self.lists.arm_linger(&self.config, effects);
    }

    /// Retires the file that has been idle longest.
    fn retire_oldest(&mut self, effects: &mut Vec<Effect<F>>) {
        while let Some(name) = self.lists.lingering.pop_front() {
            if self.records.contains_key(&name) && self.retire(&mut self.about(&name, effects)) {
                return;
            }
        }
    }

    /// A name has left the linger queue. Retires its file, unless it is in use again; returns
    /// whether it does.
    fn retire(&mut self, cx: &mut Context<'_, F>) -> bool {
        let record = self.records.get_mut(cx.name).expect("a name in the linger queue has a record");
        record.linger.unlist();
        let idles = record.idles();
        if idles {
            record.begin(cx, FileOp::Retire);
        }
        let rest = self.lists.rest(&self.config, cx, record);
        self.follow(cx, rest);
        idles
    }

    /// Nothing is granted any more, and no file is kept.
    fn drain(&mut self, effects: &mut Vec<Effect<F>>) {
        self.closing = true;
        self.config.linger_ms = 0;
        for name in std::mem::take(&mut self.lists.lingering) {
            if let Some(record) = self.records.get_mut(&name) {
                record.linger.unlist();
            }
        }
        let names: Vec<LockName> = self.records.keys().cloned().collect();
        for name in names {
            let cx = &mut self.about(&name, effects);
            self.record(&name).refuse(cx, usize::MAX, |_, _| true, &Answer::Closing);
            self.settle(cx);
        }
    }
}

/// Rest.
impl<F> Engine<F> {
    /// Brings one name to rest: answers what can be answered and begins the next file operation, if
    /// there is one. Every input ends here, and nothing else begins an operation on a name that
    /// somebody wants.
    pub(crate) fn settle(&mut self, cx: &mut Context<'_, F>) {
        self.settle_or(cx, None);
    }

    /// The same, and begins the given operation if there is no other.
    fn settle_or(&mut self, cx: &mut Context<'_, F>, otherwise: Option<FileOp>) {
        let Some(record) = self.records.get_mut(cx.name) else { return };
        let rest = self.lists.settle(&self.config, cx, record, otherwise);
        self.follow(cx, rest);
    }

    /// Does what is left to do for a name that has come to rest.
    fn follow(&mut self, cx: &mut Context<'_, F>, rest: Rest) {
        match rest {
            Rest::Done => {}
            Rest::Drop => drop(self.records.remove(cx.name)),
            Rest::Shed => self.retire_oldest(cx.effects),
        }
        self.check(cx.name);
    }

    /// Checks the invariants of one name, in debug builds.
    fn check(&self, name: &LockName) {
        if cfg!(debug_assertions)
            && let Some(record) = self.records.get(name)
        {
            check::record(name, record, self.lists.contended.will_try(name));
        }
    }

    /// Checks the invariants of every name.
    ///
    /// # Panics
    /// If one does not hold; the message has its number.
    pub fn check_all(&self) {
        for (name, record) in &self.records {
            check::record(name, record, self.lists.contended.will_try(name));
        }
        for name in self.lists.contended.names() {
            let contended = self.records.get(name).is_some_and(|record| record.contention.is_contended());
            assert!(contended, "I7: {name} in a contended list");
        }
    }
}

impl Lists {
    /// Settles a name that has this record: the record is looked up only once for each input.
    fn settle<F>(
        &mut self,
        config: &Config,
        cx: &mut Context<'_, F>,
        record: &mut Record<F>,
        otherwise: Option<FileOp>,
    ) -> Rest {
        let has_place =
            config.linger_evicts || record.linger.is_listed() || self.lingering.len() < config.linger_files_max;
        if let Some(op) = record.next(cx, config.linger_ms > 0 && has_place).or(otherwise) {
            record.begin(cx, op);
        }
        self.rest(config, cx, record)
    }

    /// Keeps the lists of contended and of idle names, and their timers.
    fn rest<F>(&mut self, config: &Config, cx: &mut Context<'_, F>, record: &mut Record<F>) -> Rest {
        if record.waiters.is_empty() {
            record.contention.due();
        }
        if record.contention.is_contended() {
            self.contended.add(cx, record.contention.is_disturbed(), config.pace);
        } else {
            self.contended.remove(cx.name);
        }
        if record.idles() && !record.linger.is_listed() {
            record.linger.list();
            self.lingering.push_back(cx.name.clone());
            self.arm_linger(config, cx.effects);
            if self.lingering.len() > config.linger_files_max { Rest::Shed } else { Rest::Done }
        } else if record.is_void() {
            Rest::Drop
        } else {
            Rest::Done
        }
    }

    fn arm_linger<F>(&mut self, config: &Config, effects: &mut Vec<Effect<F>>) {
        if !self.linger_armed && !self.lingering.is_empty() && config.linger_ms > 0 {
            self.linger_armed = true;
            effects.push(Effect::Arm(Timer::Linger, config.linger_ms.div_ceil(LINGER_TICKS.into())));
        }
    }
}

/// What is known of names, for those who look: the file system is not asked.
impl<F> Engine<F> {
    /// How many locks sessions hold, and how many requests wait, of the first names after `after`,
    /// at most `most`; and the name after which to go on, if there may be more.
    #[must_use]
    pub fn count(&self, after: Option<&LockName>, most: usize) -> ((usize, usize), Option<LockName>) {
        let (mut held, mut waiting, mut counted) = (0, 0, 0);
        for (name, record) in self.after(after) {
            held += record.holders.len();
            waiting += record.waiters.len();
            counted += 1;
            if counted == most {
                return ((held, waiting), Some(name.clone()));
            }
        }
        ((held, waiting), None)
    }

    /// What the clock showed at the last input: nothing has changed since.
    #[must_use]
    pub fn changed_ms(&self) -> u64 {
        self.now_ms
    }

    /// Whether sessions of this daemon hold the name.
    #[must_use]
    pub fn holds(&self, name: &LockName) -> bool {
        self.records.get(name).is_some_and(|record| !record.holders.is_empty())
    }

    /// Names after `after`, in order, that are held or waited for.
    pub fn names(&self, after: Option<&LockName>) -> impl Iterator<Item = &LockName> {
        self.after(after).filter(|(_, record)| !record.holders.is_empty() || !record.waiters.is_empty()).map(first)
    }

    /// Names after `after`, in order, that are held.
    pub fn held(&self, after: Option<&LockName>) -> impl Iterator<Item = &LockName> {
        self.after(after).filter(|(_, record)| !record.holders.is_empty()).map(first)
    }

    fn after(&self, after: Option<&LockName>) -> impl Iterator<Item = (&LockName, &Record<F>)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.records.range::<LockName, _>((start, Bound::Unbounded)).map(|(name, record)| (name, &**record))
    }

    /// The queues of names after `after` that requests wait for, in order, and the name after which
    /// to go on. Ends once it has looked at `count` names, holders and waiters: a queue is not
    /// divided.
    #[must_use]
    pub fn queues(&self, after: Option<&LockName>, count: usize) -> (Vec<Queue>, Option<LockName>) {
        let (mut queues, mut seen) = (Vec::new(), 0);
        for (name, record) in self.after(after) {
            seen += 1;
            // Their number is known: a long queue is copied in one go.
            let mut waiters = Vec::with_capacity(record.waiters.len());
            waiters.extend(record.waiters.iter().filter_map(Waiter::waiting));
            if !waiters.is_empty() {
                let holders: Vec<Holder> = record.holders.iter().map(Holder::of).collect();
                seen += holders.len() + waiters.len();
                queues.push(Queue { name: name.clone(), holders, waiters });
            }
            if seen >= count {
                return (queues, Some(name.clone()));
            }
        }
        (queues, None)
    }

    /// The name as the engine has it, if anything is known of it.
    #[must_use]
    pub fn own_name(&self, name: &LockName) -> Option<&LockName> {
        self.records.get_key_value(name).map(|(name, _)| name)
    }

    /// What is known of a name.
    #[must_use]
    pub fn view(&self, name: &LockName) -> Option<View> {
        self.records.get(name).map(|record| record.view(record.contention.is_contended()))
    }
}

fn first<'a, F>((name, _): (&'a LockName, &'a Record<F>)) -> &'a LockName {
    name
}
