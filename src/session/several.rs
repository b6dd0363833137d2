//! Requests for several locks: acquired one after the other in the order of their names, so that two such requests never wait
//! for each other, and granted together or not at all. What a request has so far is held, but not by the session yet: it cannot
//! be released or verified, and goes back if the rest does not come.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Kind, Session, To};
use distrilock_engine::{Answer, Input, Mode, RequestId, Want, Withdrawal};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Error, Grant, Id, Reply, Wait, slots, word};

/// An acquire of several locks that is not granted yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Several {
    number: RequestId,
    id: Option<Id>,
    /// In the order of their names.
    parts: Vec<Part>,
    /// How many of them were granted.
    granted: usize,
    waits: bool,
    #[serde(with = "super::hand_over::deadline")]
    deadline: Option<Instant>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    lock: LockName,
    want: Want,
    /// Its place in the order asked.
    place: usize,
    /// Whether the session held it before.
    already: bool,
    slots: Box<[u16]>,
    fence: Option<u64>,
}

/// A release of several locks.
#[derive(Debug)]
pub(super) struct Releasing {
    number: RequestId,
    id: Option<Id>,
    locks: Vec<LockName>,
    left: usize,
}

impl Several {
    /// The parts that it has, other than what the session held before.
    fn gathered(&self) -> impl Iterator<Item = &LockName> {
        self.parts[..self.granted].iter().filter(|part| !part.already).map(|part| &part.lock)
    }

    fn reply(&self) -> Vec<Grant<'_>> {
        let mut parts: Vec<&Part> = self.parts.iter().collect();
        parts.sort_unstable_by_key(|part| part.place);
        parts.into_iter().map(Part::grant).collect()
    }
}

impl Part {
    fn grant(&self) -> Grant<'_> {
        let mode = (self.want.mode() == Mode::Shared).then(|| word(Mode::Shared));
        let (already, (slot, taken)) = (self.already.then_some(true), slots(&self.slots));
        Grant { lock: self.lock.as_str(), mode, already, slot, taken, fence: self.fence }
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
        self.several.push(Several { number, id, parts, granted: 0, waits, deadline });
        self.advance(number, out);
    }

    /// Asks for the next lock of a request, or grants all of them.
    fn advance(&mut self, number: RequestId, out: &mut Vec<u8>) {
        let Some(place) = self.several.iter().position(|several| several.number == number) else { return };
        let several = &self.several[place];
        if let Some(Part { lock, want, .. }) = several.parts.get(several.granted) {
            let (lock, want, waits, deadline) = (lock.clone(), *want, several.waits, several.deadline);
            let asked = self.pend(&lock, if waits { Kind::Wait } else { Kind::Try }, To::Part(number), deadline);
            self.submit_acquire(Input::Acquire { asked: asked.clone(), want, wait: waits }, &asked, out);
            return;
        }
        let several = self.several.swap_remove(place);
        self.held.extend(several.gathered().cloned());
        let (id, locks) = (several.id.as_ref(), Some(several.reply()));
        self.codec.send_v1(&Reply { id, ok: true, locks, ..Reply::default() }, out);
    }

    /// The engine answers for one lock of a request.
    pub(super) fn part(&mut self, number: RequestId, name: &LockName, answer: Answer, out: &mut Vec<u8>) {
        let Some(several) = self.several.iter_mut().find(|several| several.number == number) else {
            // The request was refused meanwhile, since it lost another one.
            if let Answer::Granted { already: false, .. } = answer {
                self.ask(name, Kind::Release, To::Nobody, out, Input::Release);
            }
            return;
        };
        let Answer::Granted { already, slots, fence, .. } = answer else {
            return self.fall_apart(number, name, &answer, out);
        };
        let part = &mut several.parts[several.granted];
        (part.already, part.slots, part.fence) = (already, slots, fence);
        several.granted += 1;
        if self.bye.is_some() {
            return self.fall_apart(number, name, &Answer::Cancelled, out);
        }
        self.advance(number, out);
    }

    /// A request does not get all of its locks: those that it has go back, and it is refused.
    fn fall_apart(&mut self, number: RequestId, name: &LockName, answer: &Answer, out: &mut Vec<u8>) {
        let Some(place) = self.several.iter().position(|several| several.number == number) else { return };
        let several = self.several.swap_remove(place);
        for lock in several.gathered() {
            self.ask(lock, Kind::Release, To::Nobody, out, Input::Release);
        }
        let (error, message) = self.refusal(name, answer);
        let (id, lock) = (several.id.as_ref(), Some(name.as_str()));
        let (error, message) = (Some(error), Some(&*message));
        self.codec.send_v1(&Reply { id, ok: false, error, message, lock, ..Reply::default() }, out);
    }

    /// A lock is lost that requests have while they wait for the rest.
    pub(super) fn lost_part(&mut self, name: &LockName, reason: &'static str, out: &mut Vec<u8>) {
        let has = |several: &&Several| several.parts[..several.granted].iter().any(|part| part.lock == *name);
        while let Some(number) = self.several.iter().find(has).map(|several| several.number) {
            let waits = self.pending.iter().find(|pending| matches!(pending.to, To::Part(part) if part == number));
            let asked = waits.map(|pending| self.asked(pending));
            self.fall_apart(number, name, &Answer::Lost(reason), out);
            if let Some(asked) = asked {
                self.submit(&asked.name.clone(), Input::Withdraw { asked, why: Withdrawal::Cancelled }, out);
            }
        }
    }

    /// Whether a request of the session has this lock, and waits for others.
    pub(super) fn gathers(&self, lock: &LockName) -> bool {
        self.several.iter().any(|several| several.gathered().any(|gathered| gathered == lock))
    }

    /// Whether others may wait for this session.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty() || self.several.iter().any(|several| several.gathered().next().is_some())
    }

    /// Whether a request for several locks wants this one.
    pub(super) fn is_part(&self, lock: &LockName) -> bool {
        self.several.iter().any(|several| several.parts.iter().any(|part| part.lock == *lock))
    }

    /// How many locks requests for several have or want that the session does not hold.
    pub(super) fn parts(&self) -> usize {
        let new = |several: &Several| several.parts.iter().filter(|part| !self.held.contains(&part.lock)).count();
        self.several.iter().map(new).sum()
    }

    /// The id of the request for several locks of this number.
    pub(super) fn id_of_several(&self, number: RequestId) -> Option<&Id> {
        self.several.iter().find(|several| several.number == number)?.id.as_ref()
    }

    /// All locks that requests for several have, to be given back when the session ends.
    pub(super) fn drop_several(&mut self) -> Vec<LockName> {
        let gathered: Vec<LockName> = self.several.iter().flat_map(Several::gathered).cloned().collect();
        self.several.clear();
        gathered
    }

    /// Gives several locks back, all of which the session has to hold.
    pub(super) fn release_all(&mut self, id: Option<Id>, locks: Vec<LockName>, out: &mut Vec<u8>) {
        if let Some(lock) = locks.iter().find(|lock| !self.held.contains(*lock)) {
            let message = format!("this session does not hold the lock {lock}; none was released");
            let (error, message, lock) = (Some(Error::NotHeld), Some(&*message), Some(lock.as_str()));
            return self
                .codec
                .send_v1(&Reply { id: id.as_ref(), ok: false, error, message, lock, ..Reply::default() }, out);
        }
        let number = self.number();
        self.releasing.push(Releasing { number, id, locks: locks.clone(), left: locks.len() });
        for lock in locks {
            self.ask(&lock, Kind::Release, To::Released(number), out, Input::Release);
        }
    }

    /// The engine has released one of several locks, or it was lost before.
    pub(super) fn released(&mut self, number: RequestId, out: &mut Vec<u8>) {
        let Some(place) = self.releasing.iter().position(|releasing| releasing.number == number) else { return };
        self.releasing[place].left -= 1;
        if self.releasing[place].left == 0 {
            let releasing = self.releasing.swap_remove(place);
            let locks = releasing.locks.iter().map(|lock| Grant { lock: lock.as_str(), ..Grant::default() }).collect();
            let id = releasing.id.as_ref();
            self.codec.send_v1(&Reply { id, ok: true, locks: Some(locks), ..Reply::default() }, out);
        }
    }
}
