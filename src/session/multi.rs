//! Requests for several locks. They are acquired one after the other in the order of their names,
//! so that two such requests never wait for each other, and granted together or not at all. The
//! engine counts the locks that a request has gathered as held, but the session does not yet: they
//! cannot be released or verified, and are released if the rest cannot be acquired.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Kind, Pending, ReplyTo, Session};
use distrilock_engine::{Answer, Asked, Input, Mode, RequestId, Want, Withdrawal};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{ErrorWord, Grant, Grants, Id, ModeWord, Refusal, Reply, Wait};

/// An acquire of several locks that is not granted yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MultiAcquire {
    pub(super) number: RequestId,
    pub(super) id: Option<Id>,
    /// In the order of their names.
    parts: Vec<Part>,
    /// How many of them have been granted.
    granted: usize,
    /// The request to the engine for the next one.
    #[serde(skip)]
    pub(super) asked: Option<RequestId>,
    waits: bool,
    #[serde(with = "super::hand_over::deadline")]
    deadline: Option<Instant>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    lock: LockName,
    want: Want,
    /// Its place in the request.
    place: usize,
    /// Whether the session held it before.
    already: bool,
    slots: Box<[u16]>,
    fence: Option<u64>,
}

/// A release of several locks.
#[derive(Debug)]
pub(super) struct MultiRelease {
    number: RequestId,
    id: Option<Id>,
    locks: Vec<LockName>,
    left: usize,
}

impl MultiAcquire {
    /// All of its locks, in order.
    pub(super) fn locks(&self) -> impl Iterator<Item = &LockName> {
        self.parts.iter().map(|part| &part.lock)
    }

    fn granted(&self) -> &[Part] {
        &self.parts[..self.granted]
    }

    fn granted_part(&self, lock: &LockName) -> Option<&Part> {
        let place = self.granted().binary_search_by(|part| part.lock.cmp(lock)).ok()?;
        Some(&self.granted()[place])
    }

    /// Whether it has this lock.
    pub(super) fn has(&self, lock: &LockName) -> bool {
        self.granted_part(lock).is_some()
    }

    /// Whether it has this lock, and the session did not hold it before.
    pub(super) fn has_gathered(&self, lock: &LockName) -> bool {
        self.granted_part(lock).is_some_and(|part| !part.already)
    }

    /// Its next lock is granted.
    pub(super) fn next_granted(&mut self, already: bool, slots: Box<[u16]>, fence: Option<u64>) {
        let part = &mut self.parts[self.granted];
        (part.already, part.slots, part.fence) = (already, slots, fence);
        self.granted += 1;
    }

    /// The locks that it has, except those that the session held before.
    pub(super) fn gathered(&self) -> impl Iterator<Item = &LockName> {
        self.granted().iter().filter(|part| !part.already).map(|part| &part.lock)
    }

    fn grants(&self) -> Grants<'_> {
        let mut parts: Vec<&Part> = self.parts.iter().collect();
        parts.sort_unstable_by_key(|part| part.place);
        Grants { locks: parts.into_iter().map(Part::grant).collect() }
    }
}

impl Part {
    fn grant(&self) -> Grant<'_> {
        let mode = (self.want.mode() == Mode::Shared).then_some(ModeWord::Shared);
        let already = self.already.then_some(true);
        Grant { mode, already, fence: self.fence, ..Grant::of(&self.lock) }.with_slots(&self.slots)
    }
}

impl Session {
    pub(super) fn acquire_all(&mut self, id: Option<Id>, wants: Vec<(LockName, Want)>, wait: Wait, out: &mut Vec<u8>) {
        if let Some((error, message)) = self.refusal_of_acquire(wants.iter().map(|(lock, _)| lock), wait) {
            return self.refuse(id.as_ref(), error, &message, out);
        }
        let part = |(place, (lock, want))| {
            let (already, slots, fence) = (false, Box::default(), None);
            Part { lock, want, place, already, slots, fence }
        };
        let mut parts: Vec<Part> = wants.into_iter().enumerate().map(part).collect();
        parts.sort_unstable_by(|one, other| one.lock.cmp(&other.lock));
        let number = self.number();
        let (waits, deadline, asked) = (wait != Wait::No, super::v1::deadline(wait), None);
        let acquire = MultiAcquire { number, id, parts, granted: 0, asked, waits, deadline };
        self.asking.add_acquire(acquire, |lock| self.held.contains(lock));
        self.advance(number, out);
    }

    /// Asks for the next lock of a request, or grants all of them.
    fn advance(&mut self, number: RequestId, out: &mut Vec<u8>) {
        let Some(acquire) = self.asking.acquire(number) else { return };
        if let Some(Part { lock, want, .. }) = acquire.parts.get(acquire.granted) {
            let (lock, want, waits, deadline) = (lock.clone(), *want, acquire.waits, acquire.deadline);
            let asked = self.pend(&lock, if waits { Kind::Wait } else { Kind::Try }, ReplyTo::Part(number), deadline);
            self.submit(&lock, Input::Acquire { asked, want, wait: waits }, out);
            return;
        }
        let Some(acquire) = self.take_acquire(number) else { return };
        self.held.extend(acquire.gathered().cloned());
        self.codec.send_v1(&Reply::yes(acquire.id.as_ref(), acquire.grants()), out);
    }

    fn take_acquire(&mut self, number: RequestId) -> Option<MultiAcquire> {
        self.asking.take_acquire(number, |lock| self.held.contains(lock))
    }

    /// The engine has answered for one lock of a request.
    pub(super) fn part(&mut self, number: RequestId, name: &LockName, answer: Answer, out: &mut Vec<u8>) {
        if self.asking.acquire(number).is_none() {
            // The request was refused meanwhile, since it lost another lock.
            if let Answer::Granted { already: false, .. } = answer {
                self.ask(name, Kind::Release, ReplyTo::Nobody, out, Input::Release);
            }
            return;
        }
        let Answer::Granted { already, slots, fence, .. } = answer else {
            return self.fall_apart(number, name, &answer, out);
        };
        self.asking.part_granted(number, already, slots, fence);
        if self.bye.is_some() {
            return self.fall_apart(number, name, &Answer::Cancelled, out);
        }
        self.advance(number, out);
    }

    /// Refuses a request that cannot have all of its locks, and releases those that it has.
    fn fall_apart(&mut self, number: RequestId, name: &LockName, answer: &Answer, out: &mut Vec<u8>) {
        let Some(acquire) = self.take_acquire(number) else { return };
        for lock in acquire.gathered() {
            self.ask(lock, Kind::Release, ReplyTo::Nobody, out, Input::Release);
        }
        let (error, message) = self.refusal(name, answer);
        let refusal = Refusal { lock: Some(name.as_str().into()), ..Refusal::new(error, message) };
        self.codec.send_v1(&Reply::no(acquire.id.as_ref(), refusal), out);
    }

    /// Refuses the request that has been granted a lock which is lost now, or released.
    pub(super) fn part_gone(&mut self, name: &LockName, why: &Answer, out: &mut Vec<u8>) {
        if let Some(number) = self.asking.granted_to(name) {
            self.break_off(number, name, why, out);
        }
    }

    /// Refuses a request although the engine may be about to answer for its next lock.
    fn break_off(&mut self, number: RequestId, name: &LockName, why: &Answer, out: &mut Vec<u8>) {
        let asks = self.asking.acquire(number).and_then(|acquire| self.asking.get(acquire.asked?));
        let asked = asks.map(|pending| self.asked(pending));
        self.fall_apart(number, name, why, out);
        if let Some(asked) = asked {
            self.withdraw(asked, Withdrawal::Cancelled, out);
        }
    }

    /// Cancels a request for several locks, whatever the engine is about to answer for the next
    /// one. Returns whether this request to the engine was a part of one.
    pub(super) fn cancel_part(&mut self, asked: &Asked, out: &mut Vec<u8>) -> bool {
        let Some(&Pending { to: ReplyTo::Part(number), .. }) = self.asking.get(asked.request) else { return false };
        self.break_off(number, &asked.name, &Answer::Cancelled, out);
        true
    }

    /// Whether the session does not hold the lock, but a request for several locks wants it, and
    /// may have it already. The session cannot release it meanwhile.
    pub(super) fn only_gathers(&self, lock: &LockName) -> bool {
        self.asking.is_part(lock) && !self.held.contains(lock)
    }

    /// Whether others may wait for this session.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty() || self.asking.gathers_any()
    }

    /// Releases several locks, all of which the session has to hold.
    pub(super) fn release_all(&mut self, id: Option<Id>, locks: Vec<LockName>, out: &mut Vec<u8>) {
        if let Some(lock) = locks.iter().find(|lock| !self.held.contains(lock)) {
            let message = format!("this session does not hold the lock {lock}; none was released");
            let refusal = Refusal { lock: Some(lock.as_str().into()), ..Refusal::new(ErrorWord::NotHeld, message) };
            return self.codec.send_v1(&Reply::no(id.as_ref(), refusal), out);
        }
        let number = self.number();
        self.releases.push(MultiRelease { number, id, locks: locks.clone(), left: locks.len() });
        for lock in locks {
            self.ask(&lock, Kind::Release, ReplyTo::Released(number), out, Input::Release);
        }
    }

    /// The engine has released one of several locks, or it was lost before.
    pub(super) fn released(&mut self, number: RequestId, out: &mut Vec<u8>) {
        let Ok(place) = self.releases.binary_search_by_key(&number, |release| release.number) else { return };
        self.releases[place].left -= 1;
        if self.releases[place].left == 0 {
            let release = self.releases.remove(place);
            let locks = release.locks.iter().map(Grant::of).collect();
            self.codec.send_v1(&Reply::yes(release.id.as_ref(), Grants { locks }), out);
        }
    }
}
