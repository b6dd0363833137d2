//! [`Asking`]: what a session has asked and has no answer to yet. A few requests are a plain list;
//! of more it keeps counts and indexes, so that no step depends on how many they are.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::time::Instant;

use super::multi::MultiAcquire;
use super::{Kind, Pending, ReplyTo};
use crate::limits::FEW_REQUESTS_MAX;
use distrilock_engine::RequestId;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::Id;

/// Requests without an answer, in the order in which they came. Those for several locks ask the
/// engine for one lock after the other.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// All of them, if none is for several locks and they are few.
    few: Vec<Pending>,
    /// All of them otherwise.
    many: Option<Box<Many>>,
}

#[derive(Debug, Default)]
struct Many {
    pending: BTreeMap<RequestId, Pending>,
    acquires: BTreeMap<RequestId, MultiAcquire>,
    counts: Counts,
    /// The names that are being acquired, with the request of each: one to the engine, or an
    /// acquire of several locks.
    names: BTreeMap<LockName, RequestId>,
    /// The clients' ids, by their hashes, with such requests.
    ids: BTreeSet<(u64, RequestId)>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    /// The names of which the stamp is asked for.
    stamps: BTreeSet<LockName>,
    hash: RandomState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Requests that wait.
    waits: usize,
    /// Acquires of one lock.
    alone: usize,
    /// Requests of version 0.1.
    of_v0: usize,
    /// Parts of acquires of several locks that the session does not hold.
    new_parts: usize,
    /// Parts that their acquire has, and the session did not hold before.
    gathered: usize,
}

impl Pending {
    /// Whether it acquires one lock, and not several one after the other.
    fn acquires_alone(&self) -> bool {
        matches!(self.kind, Kind::Try | Kind::Wait) && !matches!(self.to, ReplyTo::Part(_))
    }

    fn is_of_v0(&self) -> bool {
        matches!(self.to, ReplyTo::V0(..))
    }

    fn waits(&self) -> bool {
        self.kind == Kind::Wait
    }

    fn is_about_stamp(&self) -> bool {
        self.kind == Kind::Stamp
    }

    fn id(&self) -> Option<&Id> {
        match &self.to {
            ReplyTo::V1(id) => id.as_ref(),
            _ => None,
        }
    }
}

/// What is asked.
impl Asking {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many requests to the engine have no answer.
    pub(super) fn len(&self) -> usize {
        self.few.len() + self.many.as_ref().map_or(0, |many| many.pending.len())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.few.iter().chain(self.many.iter().flat_map(|many| many.pending.values()))
    }

    pub(super) fn get(&self, request: RequestId) -> Option<&Pending> {
        match &self.many {
            Some(many) => many.pending.get(&request),
            None => self.few.iter().find(|pending| pending.request == request),
        }
    }

    fn count(&self, which: fn(&Pending) -> bool, counted: fn(&Counts) -> usize) -> usize {
        match &self.many {
            Some(many) => counted(&many.counts),
            None => self.few.iter().filter(|pending| which(pending)).count(),
        }
    }

    /// How many requests wait.
    pub(super) fn waits(&self) -> usize {
        self.count(Pending::waits, |counts| counts.waits)
    }

    /// How many locks are being acquired. Those that the session holds count as well if they are
    /// acquired alone.
    pub(super) fn acquiring(&self) -> usize {
        self.count(Pending::acquires_alone, |counts| counts.alone + counts.new_parts)
    }

    pub(super) fn any_of_v0(&self) -> bool {
        self.count(Pending::is_of_v0, |counts| counts.of_v0) > 0
    }

    /// Whether an acquire of several locks has gathered one that the session did not hold before.
    pub(super) fn gathers_any(&self) -> bool {
        self.many.as_ref().is_some_and(|many| many.counts.gathered > 0)
    }

    /// The next request that waits after the one with this number.
    pub(super) fn next_wait(&self, after: Option<RequestId>) -> Option<&Pending> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        match &self.many {
            Some(many) if many.counts.waits == 0 => None,
            Some(many) => {
                many.pending.range((start, Bound::Unbounded)).map(|(_, pending)| pending).find(|it| it.waits())
            }
            None => self.few.iter().find(|pending| Some(pending.request) > after && pending.waits()),
        }
    }

    /// Whether the lock is being acquired.
    pub(super) fn acquires(&self, lock: &LockName) -> bool {
        match &self.many {
            Some(many) => many.names.contains_key(lock),
            None => self.few.iter().any(|pending| pending.acquires_alone() && pending.name == *lock),
        }
    }

    /// Whether the stamp of the lock is asked for.
    pub(super) fn asks_for_stamp(&self, lock: &LockName) -> bool {
        match &self.many {
            Some(many) => many.stamps.contains(lock),
            None => self.few.iter().any(|pending| pending.is_about_stamp() && pending.name == *lock),
        }
    }

    /// The acquire of several locks that wants this one.
    fn acquire_of(&self, lock: &LockName) -> Option<&MultiAcquire> {
        let many = self.many.as_ref()?;
        many.acquires.get(many.names.get(lock)?)
    }

    /// Whether an acquire of several locks wants this one.
    pub(super) fn is_part(&self, lock: &LockName) -> bool {
        self.acquire_of(lock).is_some()
    }

    /// Whether an acquire of several locks has this one, which the session did not hold before, and
    /// waits for others.
    pub(super) fn gathers(&self, lock: &LockName) -> bool {
        self.acquire_of(lock).is_some_and(|acquire| acquire.has_gathered(lock))
    }

    /// The number of the acquire of several locks that has been granted this one.
    pub(super) fn granted_to(&self, lock: &LockName) -> Option<RequestId> {
        self.acquire_of(lock).filter(|acquire| acquire.has(lock)).map(|acquire| acquire.number)
    }

    pub(super) fn acquire(&self, number: RequestId) -> Option<&MultiAcquire> {
        self.many.as_ref()?.acquires.get(&number)
    }

    /// The request to the engine that a client's id means.
    pub(super) fn with_id(&self, id: &Id) -> Option<&Pending> {
        match &self.many {
            Some(many) => many.with_id(id),
            None => self.few.iter().find(|pending| pending.id() == Some(id)),
        }
    }

    /// The earliest deadline.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.many {
            Some(many) => many.deadlines.first().map(|(deadline, _)| *deadline),
            None => self.few.iter().filter_map(|pending| pending.deadline).min(),
        }
    }
}

/// Changes.
impl Asking {
    pub(super) fn add(&mut self, pending: Pending) {
        if self.few.len() == FEW_REQUESTS_MAX {
            self.become_many();
        }
        match &mut self.many {
            Some(many) => many.add(pending),
            None => {
                // An idle session keeps room for one request.
                if self.few.capacity() == 0 {
                    self.few.reserve_exact(1);
                }
                self.few.push(pending);
            }
        }
    }

    pub(super) fn remove(&mut self, request: RequestId) -> Option<Pending> {
        let Some(many) = &mut self.many else {
            let place = self.few.iter().position(|pending| pending.request == request)?;
            let pending = self.few.remove(place);
            if self.few.is_empty() {
                self.few.shrink_to(1);
            }
            return Some(pending);
        };
        let pending = many.remove(request);
        self.become_few();
        pending
    }

    /// Adds an acquire of several locks. `held`: which of them the session holds.
    pub(super) fn add_acquire(&mut self, acquire: MultiAcquire, held: impl Fn(&LockName) -> bool) {
        self.become_many().add_acquire(acquire, held);
    }

    /// Takes out an acquire of several locks. `held` as above.
    pub(super) fn take_acquire(&mut self, number: RequestId, held: impl Fn(&LockName) -> bool) -> Option<MultiAcquire> {
        let acquire = self.many.as_mut()?.take_acquire(number, held);
        self.become_few();
        acquire
    }

    /// The next part of an acquire of several locks is granted.
    pub(super) fn part_granted(&mut self, number: RequestId, already: bool, slots: Box<[u16]>, fence: Option<u64>) {
        let Some(many) = &mut self.many else { return };
        let Some(acquire) = many.acquires.get_mut(&number) else { return };
        acquire.next_granted(already, slots, fence);
        many.counts.gathered += usize::from(!already);
    }

    /// The session holds a lock from now on, or no longer.
    pub(super) fn held_changed(&mut self, lock: &LockName, holds: bool) {
        if self.is_part(lock)
            && let Some(many) = &mut self.many
        {
            if holds { many.counts.new_parts -= 1 } else { many.counts.new_parts += 1 }
        }
    }

    /// One of many requests begins to wait: its name shares its memory with `own`, which is equal.
    pub(super) fn share_name(&mut self, request: RequestId, own: impl FnOnce(&LockName) -> Option<LockName>) {
        let Some(many) = &mut self.many else { return };
        let Some(pending) = many.pending.get_mut(&request) else { return };
        let Some(own) = own(&pending.name) else { return };
        pending.name = own.clone();
        if pending.acquires_alone() {
            many.names.remove(&own);
            many.names.insert(own, request);
        }
    }

    /// The first request whose deadline is over: it has none any more.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Option<&Pending> {
        let is_over = |deadline: &Instant| *deadline <= now;
        let pending = match &mut self.many {
            Some(many) => {
                let (_, request) = many.deadlines.first().filter(|(deadline, _)| is_over(deadline)).copied()?;
                many.deadlines.pop_first();
                many.pending.get_mut(&request)?
            }
            None => self.few.iter_mut().find(|pending| pending.deadline.as_ref().is_some_and(is_over))?,
        };
        pending.deadline = None;
        Some(pending)
    }

    /// What goes to the next process of the daemon.
    pub(super) fn into_parts(self) -> (Vec<Pending>, Vec<MultiAcquire>) {
        match self.many {
            Some(many) => (many.pending.into_values().collect(), many.acquires.into_values().collect()),
            None => (self.few, Vec::new()),
        }
    }

    /// The same, in the next process.
    pub(super) fn of_parts(
        mut pending: Vec<Pending>,
        acquires: Vec<MultiAcquire>,
        held: impl Fn(&LockName) -> bool,
    ) -> Self {
        pending.sort_unstable_by_key(|pending| pending.request);
        let mut asking = Self::default();
        acquires.into_iter().for_each(|acquire| asking.add_acquire(acquire, &held));
        pending.into_iter().for_each(|pending| asking.add(pending));
        asking
    }

    fn become_many(&mut self) -> &mut Many {
        self.many.get_or_insert_with(|| {
            let mut many = Box::<Many>::default();
            std::mem::take(&mut self.few).into_iter().for_each(|pending| many.add(pending));
            many
        })
    }

    fn become_few(&mut self) {
        let are_few = |many: &mut Box<Many>| many.acquires.is_empty() && many.pending.len() <= FEW_REQUESTS_MAX / 2;
        if let Some(many) = self.many.take_if(are_few) {
            // At least room for one, as above.
            self.few.reserve_exact(many.pending.len().max(1));
            self.few.extend(many.pending.into_values());
        }
    }

    /// Checks that counts and indexes say what the requests say. `held` as above.
    #[cfg(test)]
    pub(super) fn check(&self, held: impl Fn(&LockName) -> bool) {
        if let Some(many) = &self.many {
            many.check(held);
        }
    }
}

impl Many {
    fn add(&mut self, pending: Pending) {
        self.count(&pending, |count| *count += 1);
        if pending.acquires_alone() {
            self.names.insert(pending.name.clone(), pending.request);
        }
        if pending.is_about_stamp() {
            self.stamps.insert(pending.name.clone());
        }
        self.deadlines.extend(pending.deadline.map(|deadline| (deadline, pending.request)));
        self.ids.extend(pending.id().map(|id| (self.hash.hash_one(id), pending.request)));
        self.part_asked(&pending, Some(pending.request));
        self.pending.insert(pending.request, pending);
    }

    fn remove(&mut self, request: RequestId) -> Option<Pending> {
        let pending = self.pending.remove(&request)?;
        self.count(&pending, |count| *count -= 1);
        if pending.acquires_alone() {
            self.names.remove(&pending.name);
        }
        if pending.is_about_stamp() {
            self.stamps.remove(&pending.name);
        }
        if let Some(deadline) = pending.deadline {
            self.deadlines.remove(&(deadline, request));
        }
        if let Some(id) = pending.id() {
            self.ids.remove(&(self.hash.hash_one(id), request));
        }
        self.part_asked(&pending, None);
        Some(pending)
    }

    fn count(&mut self, pending: &Pending, change: fn(&mut usize)) {
        let Counts { waits, alone, of_v0, .. } = &mut self.counts;
        for (count, counts) in
            [(waits, pending.waits()), (alone, pending.acquires_alone()), (of_v0, pending.is_of_v0())]
        {
            if counts {
                change(count);
            }
        }
    }

    /// The acquire of several locks to which a request belongs, if it does, has asked for a part,
    /// or has an answer.
    fn part_asked(&mut self, pending: &Pending, asked: Option<RequestId>) {
        if let ReplyTo::Part(number) = pending.to
            && let Some(acquire) = self.acquires.get_mut(&number)
        {
            acquire.asked = asked;
        }
    }

    fn add_acquire(&mut self, acquire: MultiAcquire, held: impl Fn(&LockName) -> bool) {
        self.counts.new_parts += acquire.locks().filter(|lock| !held(lock)).count();
        self.counts.gathered += acquire.gathered().count();
        self.names.extend(acquire.locks().map(|lock| (lock.clone(), acquire.number)));
        self.ids.extend(acquire.id.as_ref().map(|id| (self.hash.hash_one(id), acquire.number)));
        self.acquires.insert(acquire.number, acquire);
    }

    fn take_acquire(&mut self, number: RequestId, held: impl Fn(&LockName) -> bool) -> Option<MultiAcquire> {
        let acquire = self.acquires.remove(&number)?;
        self.counts.new_parts -= acquire.locks().filter(|lock| !held(lock)).count();
        self.counts.gathered -= acquire.gathered().count();
        for lock in acquire.locks() {
            self.names.remove(lock);
        }
        if let Some(id) = &acquire.id {
            self.ids.remove(&(self.hash.hash_one(id), number));
        }
        Some(acquire)
    }

    fn with_id(&self, id: &Id) -> Option<&Pending> {
        let hash = self.hash.hash_one(id);
        let mut found = self.ids.range((hash, RequestId(0))..=(hash, RequestId(u64::MAX)));
        found.find_map(|(_, number)| match self.acquires.get(number) {
            Some(acquire) if acquire.id.as_ref() == Some(id) => self.pending.get(&acquire.asked?),
            Some(_) => None,
            None => self.pending.get(number).filter(|pending| pending.id() == Some(id)),
        })
    }

    #[cfg(test)]
    fn check(&self, held: impl Fn(&LockName) -> bool) {
        let count = |which: fn(&Pending) -> bool| self.pending.values().filter(|pending| which(pending)).count();
        let parts = || self.acquires.values().flat_map(MultiAcquire::locks);
        let counts = Counts {
            waits: count(Pending::waits),
            alone: count(Pending::acquires_alone),
            of_v0: count(Pending::is_of_v0),
            new_parts: parts().filter(|lock| !held(lock)).count(),
            gathered: self.acquires.values().flat_map(MultiAcquire::gathered).count(),
        };
        assert_eq!(self.counts, counts, "the counts of a session's requests");
        let alone = self.pending.values().filter(|pending| pending.acquires_alone()).map(|it| (&it.name, it.request));
        let of_several = self.acquires.values().flat_map(|acquire| acquire.locks().map(|lock| (lock, acquire.number)));
        let names: BTreeMap<&LockName, RequestId> = alone.chain(of_several).collect();
        assert!(self.names.iter().eq(names.iter().map(|(name, number)| (*name, number))), "the index of names");
        let of_pending = self.pending.values().filter_map(|pending| Some((pending.id()?, pending.request)));
        let of_acquires = self.acquires.values().filter_map(|acquire| Some((acquire.id.as_ref()?, acquire.number)));
        let ids: BTreeSet<(u64, RequestId)> =
            of_pending.chain(of_acquires).map(|(id, number)| (self.hash.hash_one(id), number)).collect();
        assert_eq!(self.ids, ids, "the index of a session's ids");
        let deadlines: BTreeSet<(Instant, RequestId)> =
            self.pending.values().filter_map(|pending| Some((pending.deadline?, pending.request))).collect();
        assert_eq!(self.deadlines, deadlines, "the index of a session's deadlines");
        let stamps = self.pending.values().filter(|pending| pending.is_about_stamp()).map(|pending| &pending.name);
        assert!(self.stamps.iter().eq(stamps.collect::<BTreeSet<_>>()), "the index of stamps");
        for acquire in self.acquires.values() {
            let of_it = |pending: &&Pending| matches!(pending.to, ReplyTo::Part(number) if number == acquire.number);
            assert_eq!(
                acquire.asked,
                self.pending.values().find(of_it).map(|pending| pending.request),
                "what is asked"
            );
        }
    }
}
