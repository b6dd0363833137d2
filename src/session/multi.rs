//! Requests for several locks. They are acquired one after the other in the order of their names,
//! so that two such requests never wait for each other, and granted together or not at all. The
//! engine counts the locks that a request has gathered as held, but the session does not yet: they
//! cannot be released or verified, and are released if the rest cannot be acquired.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Kind, ReplyTo, Session};
use distrilock_engine::{Answer, Input, Mode, RequestId, Want, Withdrawal};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{ErrorWord, Grant, Grants, Id, ModeWord, Refusal, Reply, Wait};

/// An acquire of several locks that is not granted yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MultiAcquire {
    number: RequestId,
    id: Option<Id>,
    /// In the order of their names.
    parts: Vec<Part>,
    /// How many of them have been granted.
    granted: usize,
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
    /// The locks that it has, except those that the session held before.
    fn gathered(&self) -> impl Iterator<Item = &LockName> {
        self.parts[..self.granted].iter().filter(|part| !part.already).map(|part| &part.lock)
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
        let new = wants.iter().filter(|(lock, _)| !self.held.contains(lock)).count();
        let refusal = wants.iter().find_map(|(lock, _)| self.refusal_of_acquire(lock, new, wait));
        if let Some((error, message)) = refusal {
            return self.refuse(id.as_ref(), error, &message, out);
        }
        let part = |(place, (lock, want))| {
            let (already, slots, fence) = (false, Box::default(), None);
            Part { lock, want, place, already, slots, fence }
        };
        let mut parts: Vec<Part> = wants.into_iter().enumerate().map(part).collect();
        parts.sort_unstable_by(|one, other| one.lock.cmp(&other.lock));
        let number = self.number();
        let (waits, deadline) = (wait != Wait::No, super::v1::deadline(wait));
        self.acquires.push(MultiAcquire { number, id, parts, granted: 0, waits, deadline });
        self.advance(number, out);
    }

    /// Asks for the next lock of a request, or grants all of them.
    fn advance(&mut self, number: RequestId, out: &mut Vec<u8>) {
        let Some(place) = self.acquires.iter().position(|acquire| acquire.number == number) else { return };
        let acquire = &self.acquires[place];
        if let Some(Part { lock, want, .. }) = acquire.parts.get(acquire.granted) {
            let (lock, want, waits, deadline) = (lock.clone(), *want, acquire.waits, acquire.deadline);
            let asked = self.pend(&lock, if waits { Kind::Wait } else { Kind::Try }, ReplyTo::Part(number), deadline);
            self.submit(&lock, Input::Acquire { asked, want, wait: waits }, out);
            return;
        }
        let acquire = self.acquires.swap_remove(place);
        self.held.extend(acquire.gathered().cloned());
        self.codec.send_v1(&Reply::yes(acquire.id.as_ref(), acquire.grants()), out);
    }

    /// The engine has answered for one lock of a request.
    pub(super) fn part(&mut self, number: RequestId, name: &LockName, answer: Answer, out: &mut Vec<u8>) {
        let Some(acquire) = self.acquires.iter_mut().find(|acquire| acquire.number == number) else {
            // The request was refused meanwhile, since it lost another lock.
            if let Answer::Granted { already: false, .. } = answer {
                self.ask(name, Kind::Release, ReplyTo::Nobody, out, Input::Release);
            }
            return;
        };
        let Answer::Granted { already, slots, fence, .. } = answer else {
            return self.fall_apart(number, name, &answer, out);
        };
        let part = &mut acquire.parts[acquire.granted];
        (part.already, part.slots, part.fence) = (already, slots, fence);
        acquire.granted += 1;
        if self.bye.is_some() {
            return self.fall_apart(number, name, &Answer::Cancelled, out);
        }
        self.advance(number, out);
    }

    /// Refuses a request that cannot have all of its locks, and releases those that it has.
    fn fall_apart(&mut self, number: RequestId, name: &LockName, answer: &Answer, out: &mut Vec<u8>) {
        let Some(place) = self.acquires.iter().position(|acquire| acquire.number == number) else { return };
        let acquire = self.acquires.swap_remove(place);
        for lock in acquire.gathered() {
            self.ask(lock, Kind::Release, ReplyTo::Nobody, out, Input::Release);
        }
        let (error, message) = self.refusal(name, answer);
        let refusal = Refusal { lock: Some(name.as_str().into()), ..Refusal::new(error, message) };
        self.codec.send_v1(&Reply::no(acquire.id.as_ref(), refusal), out);
    }

    /// Refuses the requests that had gathered a lock which is lost now.
    pub(super) fn lost_part(&mut self, name: &LockName, reason: &'static str, out: &mut Vec<u8>) {
        let has = |acquire: &&MultiAcquire| acquire.parts[..acquire.granted].iter().any(|part| part.lock == *name);
        while let Some(number) = self.acquires.iter().find(has).map(|acquire| acquire.number) {
            let waits = self.pending.iter().find(|pending| matches!(pending.to, ReplyTo::Part(part) if part == number));
            let asked = waits.map(|pending| self.asked(pending));
            self.fall_apart(number, name, &Answer::Lost(reason), out);
            if let Some(asked) = asked {
                self.submit(&asked.name.clone(), Input::Withdraw { asked, why: Withdrawal::Cancelled }, out);
            }
        }
    }

    /// Whether a request of the session has gathered this lock, and waits for others.
    pub(super) fn gathers(&self, lock: &LockName) -> bool {
        self.acquires.iter().any(|acquire| acquire.gathered().any(|gathered| gathered == lock))
    }

    /// Whether others may wait for this session.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty() || self.acquires.iter().any(|acquire| acquire.gathered().next().is_some())
    }

    /// Whether a request for several locks wants this one.
    pub(super) fn is_part(&self, lock: &LockName) -> bool {
        self.acquires.iter().any(|acquire| acquire.parts.iter().any(|part| part.lock == *lock))
    }

    /// How many locks that the session does not hold are parts of requests for several.
    pub(super) fn parts(&self) -> usize {
        let new = |acquire: &MultiAcquire| acquire.parts.iter().filter(|part| !self.held.contains(&part.lock)).count();
        self.acquires.iter().map(new).sum()
    }

    /// The id of the request for several locks of this number.
    pub(super) fn id_of_acquire(&self, number: RequestId) -> Option<&Id> {
        self.acquires.iter().find(|acquire| acquire.number == number)?.id.as_ref()
    }

    /// Drops the requests for several locks of a session that ends. Returns the locks that they
    /// have gathered.
    pub(super) fn drop_acquires(&mut self) -> Vec<LockName> {
        let gathered: Vec<LockName> = self.acquires.iter().flat_map(MultiAcquire::gathered).cloned().collect();
        self.acquires.clear();
        gathered
    }

    /// Releases several locks, all of which the session has to hold.
    pub(super) fn release_all(&mut self, id: Option<Id>, locks: Vec<LockName>, out: &mut Vec<u8>) {
        if let Some(lock) = locks.iter().find(|lock| !self.held.contains(*lock)) {
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
        let Some(place) = self.releases.iter().position(|release| release.number == number) else { return };
        self.releases[place].left -= 1;
        if self.releases[place].left == 0 {
            let release = self.releases.swap_remove(place);
            let locks = release.locks.iter().map(Grant::of).collect();
            self.codec.send_v1(&Reply::yes(release.id.as_ref(), Grants { locks }), out);
        }
    }
}
