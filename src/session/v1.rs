//! Requests of version 1 and their replies (docs/protocol.md, chapters 3 to 5).

use std::time::{Duration, Instant};

use super::boards::Question;
use super::{Kind, ReplyTo, Session};
use crate::clock::now_ms;
use crate::limits::LIST_BYTES_ENOUGH;
use crate::lock_table::boards::listed;
use crate::slice::TimeSlice;
use distrilock_engine::limits::{QUERIES_MAX, QUEUE_MAX};
use distrilock_engine::{Answer, Claim, Input, Mode, View, Want, Withdrawal};
use distrilock_protocol::limits::LIST_LOCKS_MAX;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{
    Cancelled, ErrorWord, Grant, Id, Introduction, Listed, Listing, ModeWord, Op, Peeked, Pong, Refusal, Reply,
    Request, SessionInfo, Stamped, VERSION, Wait, Welcome,
};

impl Session {
    pub(super) fn request_v1(&mut self, request: Request, out: &mut Vec<u8>) {
        let Request { id, op } = request;
        if let Some(used) = id.as_ref().filter(|id| self.asking.with_id(id).is_some()) {
            let message = "a request with this id is still unanswered; give each request its own id";
            return self.refuse(Some(used), ErrorWord::BadRequest, message, out);
        }
        match op {
            Op::Hello(introduction) => self.hello(id.as_ref(), introduction, out),
            Op::Acquire { lock, want, wait } => self.acquire(id, &lock, want, wait, out),
            Op::AcquireAll { wants, wait } => self.acquire_all(id, wants, wait, out),
            Op::ReleaseAll(locks) => self.release_all(id, locks, out),
            // The engine may grant it at any moment to a request for several locks: even then the
            // session does not hold it yet.
            Op::Release(lock) | Op::Verify(lock) | Op::Stamp { lock, .. } if self.only_gathers(&lock) => {
                self.reply_v1(id.as_ref(), &lock, Answer::NotHeld { by_another: false }, out);
            }
            Op::Stamp { lock, age_ms } => self.stamp(id, &lock, age_ms, out),
            Op::Release(lock) => self.ask(&lock, Kind::Release, ReplyTo::V1(id), out, Input::Release),
            Op::Verify(lock) => self.ask(&lock, Kind::Verify, ReplyTo::V1(id), out, Input::Verify),
            Op::Peek { lock, all } => {
                let kind = if all { Kind::PeekAll } else { Kind::Peek };
                self.ask(&lock, kind, ReplyTo::V1(id), out, Input::Peek);
            }
            Op::Cancel(request) => self.cancel(id.as_ref(), &request, out),
            Op::List { after, all: true } => self.look_everywhere(Question::List { id, after }, out),
            Op::List { after, all: false } => self.list(id.as_ref(), after.as_ref(), out),
            Op::Ping => {
                let valid_ms = self.table.storage.valid_ms();
                self.codec.send_v1(&Reply::yes(id.as_ref(), Pong { valid_ms }), out);
            }
            Op::Bye => {
                self.answerable = self.questions.len();
                self.bye(id, out);
            }
        }
    }

    fn hello(&mut self, id: Option<&Id>, introduction: Box<Introduction>, out: &mut Vec<u8>) {
        self.mailbox.introduce(introduction);
        let welcome = Welcome {
            version: VERSION,
            session: self.id.to_string(),
            node: self.table.node.to_string(),
            directory: self.table.storage.kind().to_owned(),
            dead_after_ms: u64::try_from(self.table.settings.dead_after.as_millis()).unwrap_or(u64::MAX),
            stop_ms: self.table.storage.stop_ms(),
            valid_ms_min: self.table.storage.valid_ms_min(),
        };
        self.codec.send_v1(&Reply::yes(id, welcome), out);
    }

    fn acquire(&mut self, id: Option<Id>, lock: &LockName, want: Want, wait: Wait, out: &mut Vec<u8>) {
        if let Some((error, message)) = self.refusal_of_acquire([lock], wait) {
            return self.refuse(id.as_ref(), error, &message, out);
        }
        let kind = if wait == Wait::No { Kind::Try } else { Kind::Wait };
        let asked = self.pend(lock, kind, ReplyTo::V1(id), deadline(wait));
        let request = asked.request;
        self.submit(lock, Input::Acquire { asked, want, wait: kind == Kind::Wait }, out);
        if kind == Kind::Wait {
            self.asking.share_name(request, |name| self.table.shards.own_name(name));
        }
    }

    /// Stamps are read and written one by one, so that those of a session must not pile up.
    fn stamp(&mut self, id: Option<Id>, lock: &LockName, age_ms: Option<u32>, out: &mut Vec<u8>) {
        if self.asking.asks_for_stamp(lock) {
            let message = format!("a request of this session already asks for the stamp of the lock {lock}");
            return self.refuse(id.as_ref(), ErrorWord::BadRequest, &message, out);
        }
        self.ask(lock, Kind::Stamp, ReplyTo::V1(id), out, |asked| Input::Stamp { asked, age_ms });
    }

    fn cancel(&mut self, id: Option<&Id>, request: &Id, out: &mut Vec<u8>) {
        let waiting = self.asking.with_id(request).filter(|it| it.kind == Kind::Wait);
        let asked = waiting.map(|pending| self.asked(pending));
        let number = asked.as_ref().map(|asked| asked.request);
        if let Some(asked) = asked {
            if self.cancel_part(&asked, out) {
                return self.codec.send_v1(&Reply::yes(id, Cancelled { cancelled: true }), out);
            }
            self.withdraw(asked, Withdrawal::Cancelled, out);
            // Its answer is the last one in the mailbox.
            while self.unread {
                self.read_notices(&mut TimeSlice::endless(), out);
            }
        }
        // A request that the engine granted a moment before has been answered as well, but it was
        // not cancelled.
        let cancelled = number.is_some() && self.last_cancelled == number;
        self.codec.send_v1(&Reply::yes(id, Cancelled { cancelled }), out);
    }

    fn list(&mut self, id: Option<&Id>, after: Option<&LockName>, out: &mut Vec<u8>) {
        let names = self.table.shards.names(after, LIST_LOCKS_MAX + 1);
        let (mut locks, mut bytes) = (Vec::new(), 0);
        let mut rest = names.iter();
        while locks.len() < LIST_LOCKS_MAX && bytes < LIST_BYTES_ENOUGH {
            let Some(name) = rest.next() else { break };
            // A lock that was released meanwhile is not listed.
            if let Some(view) = self.table.shards.view(name) {
                let listed = self.listed(name, &view);
                bytes += listed.bytes();
                locks.push(listed);
            }
        }
        let more = rest.next().is_some();
        self.codec.send_v1(&Reply::yes(id, Listing { locks, more, unlisted: 0 }), out);
    }

    pub(super) fn listed(&self, name: &LockName, view: &View) -> Listed {
        let seen = |sessions: &[Claim]| sessions.iter().map(|session| self.seen(session)).collect::<Vec<_>>();
        listed(name, view, seen(&view.holders), seen(&view.waiters))
    }

    fn seen(&self, session: &Claim) -> SessionInfo {
        self.table.seen(session, now_ms().saturating_sub(session.since_ms))
    }

    pub(super) fn reply_v1(&mut self, id: Option<&Id>, name: &LockName, answer: Answer, out: &mut Vec<u8>) {
        match answer {
            Answer::Granted { mode, already, slots, fence } => {
                let valid_ms = self.table.storage.valid_ms();
                let is_plain = mode == Mode::Exclusive && !already && fence.is_none() && valid_ms.is_none();
                if is_plain {
                    return self.codec.send_yes(id, name, out);
                }
                let mode = (mode == Mode::Shared).then_some(ModeWord::Shared);
                let already = already.then_some(true);
                let grant = Grant { mode, already, fence, valid_ms, ..Grant::of(name) }.with_slots(&slots);
                self.codec.send_v1(&Reply::yes(id, grant), out);
            }
            Answer::Released { .. } | Answer::Real => self.codec.send_yes(id, name, out),
            Answer::RealWith { slots, fence } => {
                let grant = Grant { fence, ..Grant::of(name) }.with_slots(&slots);
                self.codec.send_v1(&Reply::yes(id, grant), out);
            }
            Answer::Stamped(age_ms) => {
                self.codec.send_v1(&Reply::yes(id, Stamped { lock: name.as_str().into(), age_ms }), out);
            }
            Answer::Peeked(view) => self.codec.send_v1(&Reply::yes(id, self.peeked(name, &view)), out),
            answer => {
                let (error, message) = self.refusal(name, &answer);
                self.refuse(id, error, &message, out);
            }
        }
    }

    /// The error word and the message of a refusal.
    pub(super) fn refusal(&self, name: &LockName, answer: &Answer) -> (ErrorWord, String) {
        match answer {
            Answer::Granted { .. }
            | Answer::Released { .. }
            | Answer::Real
            | Answer::RealWith { .. }
            | Answer::Stamped(_)
            | Answer::Peeked(_) => {
                unreachable!("{answer:?} is no refusal")
            }
            Answer::BusyHere(holder) => (ErrorWord::Busy, self.busy(holder.as_ref())),
            Answer::BusyElsewhere => (ErrorWord::Busy, self.busy_elsewhere(name)),
            Answer::QueueFull => (
                ErrorWord::Limit,
                format!(
                    "{QUEUE_MAX} requests wait for the lock {name}, or {QUERIES_MAX} questions about it, which is the \
                     limit for one lock; try again later"
                ),
            ),
            Answer::Mismatch => (
                ErrorWord::Mismatch,
                "this session holds the lock in another mode, or other slots of it; release it first".into(),
            ),
            Answer::Disagrees { held, asked } => (ErrorWord::Mismatch, disagreement(*held, *asked)),
            Answer::Deadlock(cycle) => (ErrorWord::Deadlock, cycle.to_string()),
            Answer::Cancelled => (ErrorWord::Cancelled, "the wait was cancelled".into()),
            Answer::TimedOut => (ErrorWord::Timeout, "the lock did not become free in time".into()),
            Answer::Closing => (ErrorWord::Closing, "the daemon stops; connect again".into()),
            Answer::NotHeld { .. } => (ErrorWord::NotHeld, format!("this session does not hold the lock {name}")),
            Answer::Lost(reason) => (ErrorWord::Lost, format!("the lock {name} is lost: {reason}")),
            Answer::Storage(fault) => (ErrorWord::Storage, format!("{fault}: {}", fault.remedy())),
        }
    }

    fn busy(&self, holder: Option<&Claim>) -> String {
        let Some(holder) = holder else { return "others wait for the lock".into() };
        let SessionInfo { session, introduction, since_ms, .. } = self.seen(holder);
        match introduction.name {
            Some(name) => format!("held by {name} (session {session}) for {since_ms} ms"),
            None => format!("held by session {session} for {since_ms} ms"),
        }
    }

    pub(super) fn peeked(&self, name: &LockName, view: &View) -> Peeked {
        let holders: Vec<SessionInfo> = view.holders.iter().map(|holder| self.seen(holder)).collect();
        Peeked {
            lock: name.to_string(),
            locked: view.contender || view.holders_total > 0,
            holders_total: (view.holders_total > holders.len()).then_some(view.holders_total),
            holders,
            waiters: view.waiters_total,
            waiters_elsewhere: 0,
            contender: view.contender,
            last_known: Vec::new(),
        }
    }

    pub(super) fn refuse(&mut self, id: Option<&Id>, error: ErrorWord, message: &str, out: &mut Vec<u8>) {
        self.codec.send_v1(&Reply::no(id, Refusal::new(error, message)), out);
    }
}

/// When a request stops waiting.
pub(super) fn deadline(wait: Wait) -> Option<Instant> {
    match wait {
        Wait::No | Wait::NoLimit => None,
        // A time beyond the clock's range is as good as no limit.
        Wait::Millis(millis) => Instant::now().checked_add(Duration::from_millis(millis)),
    }
}

/// Names both sides of a mismatch.
fn disagreement(held: Mode, asked: Mode) -> String {
    let wanted = match asked {
        Mode::Slots(of) => format!("as one with {of} slots"),
        mode => format!("in {} mode", ModeWord::from(mode)),
    };
    match held {
        Mode::Slots(of) => format!("the lock is held with {of} slots, and this request wants it {wanted}"),
        mode => format!("the lock is held in {} mode, and this request wants it {wanted}", ModeWord::from(mode)),
    }
}
