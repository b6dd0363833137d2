//! One session: what it holds and asks, and the rules between a client's requests and the engine.
//! It takes decoded messages and notices, and appends replies to a buffer; it knows no socket.
//!
//! Every answer of the engine is a [`Notice`] in the session's mailbox, and `read_notices` is the
//! one loop that handles them, in the order in which the engine decided. What a notice makes the
//! session ask is answered by a later notice.

mod asking;
mod boards;
mod budgets;
mod bye;
mod hand_over;
mod held;
mod multi;
#[cfg(test)]
mod tests;
mod v0;
mod v1;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::limits::NOTICES_AT_ONCE;
use crate::lock_table::mailbox::{Mailbox, Notice};
use crate::lock_table::{LockInput, LockTable, Source};
use crate::slice::TimeSlice;
use asking::Asking;
use boards::Question;
use budgets::Charged;
use bye::{Bye, Leaving};
use distrilock_engine::{Answer, Asked, Input, RequestId, SessionId, Withdrawal};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Event, Id, Rejected};
use distrilock_protocol::{Codec, Dialect, Form, Incoming, Violation};
pub use hand_over::HandedSession;
use held::Held;
use multi::MultiRelease;

thread_local! {
    /// The thread's buffer for a session's notices while it handles them: empty in between.
    static NOTICES: RefCell<Vec<Notice>> = const { RefCell::new(Vec::new()) };
}

/// A session and what is on its way between its client and the engine.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    table: Arc<LockTable>,
    mailbox: Arc<Mailbox>,
    codec: Codec,
    held: Held,
    asking: Asking,
    releases: Vec<MultiRelease>,
    next_request: u64,
    /// Since it last handled notices, it may have closed a cycle of sessions that wait for each
    /// other, if it waits.
    entangled: bool,
    /// The last request whose wait was cancelled.
    last_cancelled: Option<RequestId>,
    end: Option<End>,
    /// A bye whose releases are under way.
    bye: Option<Box<Bye>>,
    /// What is left to release of a session that is over.
    leaving: Option<Box<Leaving>>,
    /// The next process of the daemon will continue it.
    hands_over: bool,
    reading: Reading,
    /// Notices are left in the mailbox, since handling those before them took long.
    unread: bool,
    /// What it has of the daemon's budgets.
    charged: Charged,
    /// What it is asked and cannot answer before the boards of other daemons are read.
    questions: VecDeque<Question>,
    /// So many of the first ones can be answered now.
    answerable: usize,
}

/// Whether the session handles its notices right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// It does not.
    Idle,
    /// It handles those that it has taken out of its mailbox.
    Taken,
    /// It does, and has submitted something since: there may be more in the mailbox.
    More,
}

/// A request that the engine has not answered.
#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    request: RequestId,
    name: LockName,
    kind: Kind,
    to: ReplyTo,
    /// When an acquire stops waiting.
    #[serde(with = "hand_over::deadline")]
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Try,
    Wait,
    Release,
    Verify,
    Peek,
    PeekAll,
    Stamp,
}

/// Where the answer goes, and how it is written.
#[derive(Debug, Serialize, Deserialize)]
enum ReplyTo {
    V0(Form, u8),
    V1(Option<Id>),
    /// To nobody: the session says goodbye, or releases what a request for several locks had.
    Nobody,
    /// To a request for several locks, of which it is a part.
    Part(RequestId),
    /// To a release of several locks, of which it is a part.
    Released(RequestId),
}

/// Why a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed, or said bye.
    Goodbye,
    /// The peer broke the protocol.
    Violation(Violation),
    /// A lock is lost, and the peer's protocol has no other way to say so.
    LockLost,
    /// The daemon stops.
    Stop,
}

impl Session {
    /// A session that has just connected.
    #[must_use]
    pub fn new(id: SessionId, table: Arc<LockTable>, mailbox: Arc<Mailbox>, codec: Codec) -> Self {
        Self {
            id,
            table,
            mailbox,
            codec,
            held: Held::default(),
            asking: Asking::default(),
            releases: Vec::new(),
            next_request: 0,
            entangled: false,
            last_cancelled: None,
            end: None,
            bye: None,
            leaving: None,
            hands_over: false,
            reading: Reading::Idle,
            unread: false,
            charged: Charged::default(),
            questions: VecDeque::new(),
            answerable: 0,
        }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// What it shares with all sessions.
    #[must_use]
    pub fn table(&self) -> &Arc<LockTable> {
        &self.table
    }

    /// Its connection's framing and dialect.
    #[must_use]
    pub fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Why it ends, if it does: nothing more may be read.
    #[must_use]
    pub fn ended(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Whether it may receive its next message: requests of version 0.1 are answered one after the
    /// other.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        let is_live = self.end.is_none() && self.bye.is_none() && !self.hands_over;
        is_live && !self.unread && !self.asking.any_of_v0() && !self.asks_too_much()
    }

    /// Whether it has something to do for which no message, notice or deadline has to come.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.end.is_none() && self.bye.as_ref().is_some_and(|bye| !bye.is_done())
    }

    /// Whether it can answer questions about other daemons, which may take as much room as lists.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        self.end.is_none() && self.answerable > 0
    }

    /// The earliest deadline of its waits.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.asking.deadline()
    }

    /// Handles the first message of `input`, if all of it is there. Returns how many bytes it had.
    pub fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        match self.codec.next(input, out) {
            Ok(None) => None,
            Ok(Some((bytes, incoming))) => {
                match incoming {
                    Incoming::Nothing => {}
                    Incoming::Closed => self.end = Some(End::Goodbye),
                    Incoming::V0(request, form) => self.request_v0(&request, form, out),
                    Incoming::V1(Ok(request)) => self.request_v1(request, out),
                    Incoming::V1(Err(Rejected { id, error, message })) => {
                        self.refuse(id.as_ref(), error, &message, out)
                    }
                }
                Some(bytes)
            }
            Err(violation) => {
                self.violate(violation, out);
                None
            }
        }
    }

    /// Ends a session whose client does not read its replies.
    pub fn give_up(&mut self, bytes: usize, bytes_max: usize) {
        self.end = Some(End::Violation(Violation::SlowReader { bytes, bytes_max }));
    }

    /// The peer broke the protocol.
    fn violate(&mut self, violation: Violation, out: &mut Vec<u8>) {
        self.codec.violated(&violation, out);
        self.end = Some(End::Violation(violation));
    }

    /// Handles the notices in the mailbox, and those that follow from what they make the session
    /// ask, until none is left or the time is over.
    pub fn read_notices(&mut self, slice: &mut TimeSlice, out: &mut Vec<u8>) {
        assert_eq!(
            self.reading,
            Reading::Idle,
            "a notice never makes the session read the next ones before it is handled"
        );
        let mut notices = NOTICES.take();
        self.unread = loop {
            self.reading = Reading::Taken;
            let more = self.mailbox.drain_into(&mut notices, NOTICES_AT_ONCE);
            for notice in notices.drain(..) {
                self.handle(notice, out);
            }
            if !more && self.reading == Reading::Taken {
                break false;
            }
            if slice.is_over() {
                break !self.mailbox.is_empty();
            }
        };
        self.reading = Reading::Idle;
        NOTICES.set(notices);
        self.charge();
        // All answers are in: a request that is still pending waits.
        if !self.unread && std::mem::take(&mut self.entangled) && self.asking.waits() > 0 {
            self.table.deadlocks.look();
        }
    }

    /// Goes on with what it could not do in one turn.
    pub fn work(&mut self, slice: &mut TimeSlice, out: &mut Vec<u8>) {
        self.go_on_with_bye(slice, out);
        self.answer_questions(slice, out);
    }

    /// Ends the waits whose time is over, as many as this turn has time for.
    pub fn expire(&mut self, now: Instant, slice: &mut TimeSlice, out: &mut Vec<u8>) {
        while let Some(pending) = self.asking.take_overdue(now) {
            let asked = Asked { name: pending.name.clone(), session: self.id, request: pending.request };
            self.withdraw(asked, Withdrawal::TimedOut, out);
            if slice.is_over() {
                break;
            }
        }
    }

    fn withdraw(&mut self, asked: Asked, why: Withdrawal, out: &mut Vec<u8>) {
        self.submit(&asked.name.clone(), Input::Withdraw { asked, why }, out);
    }

    fn handle(&mut self, notice: Notice, out: &mut Vec<u8>) {
        match notice {
            Notice::Answer { name, request, answer } => self.answered(&name, request, answer, out),
            Notice::Lost { name, reason } => {
                self.forget(&name);
                let gathered = self.asking.gathers(&name);
                self.part_gone(&name, &Answer::Lost(reason), out);
                if gathered {
                    // The client was never told that it holds the lock: the refusal is enough.
                } else if self.codec.dialect() == Dialect::JsonV1 {
                    self.codec.send_v1(&Event::Lost { lock: name.as_str().into(), reason: Some(reason.into()) }, out);
                } else {
                    self.finish(End::LockLost, CloseCode::Error, &format!("the lock {name} is lost: {reason}"), out);
                }
            }
            // Version 0.1 has no message for it.
            Notice::Doubt { name, valid_ms } if self.codec.dialect() == Dialect::JsonV1 => {
                let lock = name.as_str().into();
                let event = match valid_ms {
                    Some(valid_ms) => Event::Suspect { lock, valid_ms },
                    None => Event::Held { lock },
                };
                self.codec.send_v1(&event, out);
            }
            Notice::Doubt { .. } => {}
            Notice::BoardsRead => self.answerable = self.questions.len(),
            Notice::HandOver => {
                self.hands_over = true;
                self.answer_all_questions(out);
            }
            // The engine has refused the waiting requests; the session's locks are released when it
            // leaves.
            Notice::Stop => self.finish(End::Stop, CloseCode::Away, "the daemon stops", out),
        }
        self.say_bye(out);
    }

    /// The engine has answered a request.
    fn answered(&mut self, name: &LockName, request: RequestId, answer: Answer, out: &mut Vec<u8>) {
        let Some(pending) = self.asking.remove(request) else { return };
        self.note(&pending, name, &answer);
        // The session holds more than before, for which others may wait; or one wait less of it can
        // end.
        self.entangled |= pending.kind == Kind::Wait || matches!(answer, Answer::Granted { already: false, .. });
        if self.bye.is_some() && self.held.contains(name) {
            // It was granted while the session said goodbye.
            self.ask(name, Kind::Release, ReplyTo::Nobody, out, Input::Release);
        }
        match &pending.to {
            ReplyTo::V0(form, command) => self.reply_v0(*form, *command, name, answer, out),
            ReplyTo::V1(id) => match answer {
                Answer::Peeked(view) if pending.kind == Kind::PeekAll => {
                    self.look_everywhere(Question::Peek { id: id.clone(), lock: name.clone(), view }, out);
                }
                answer => self.reply_v1(id.as_ref(), name, answer, out),
            },
            ReplyTo::Part(number) => self.part(*number, name, answer, out),
            ReplyTo::Released(number) => self.released(*number, out),
            ReplyTo::Nobody => {}
        }
        if pending.kind == Kind::Release {
            // A request for several locks had it, since the session held it before.
            self.part_gone(name, &Answer::Cancelled, out);
        }
    }

    /// Keeps the session's own list of what it holds.
    fn note(&mut self, pending: &Pending, name: &LockName, answer: &Answer) {
        match (pending.kind, answer) {
            (Kind::Try | Kind::Wait, Answer::Granted { .. }) if matches!(pending.to, ReplyTo::Part(_)) => {}
            (Kind::Try | Kind::Wait, Answer::Granted { already: false, .. }) => self.keep(name),
            (Kind::Release, _) | (_, Answer::Lost(_)) => self.forget(name),
            (_, Answer::Cancelled) => self.last_cancelled = Some(pending.request),
            _ => {}
        }
    }

    /// The session holds a lock.
    fn keep(&mut self, name: &LockName) {
        if !self.held.contains(name) {
            self.asking.held_changed(name, true);
            self.held.insert(name.clone());
        }
    }

    /// The session does not hold a lock any more.
    fn forget(&mut self, name: &LockName) {
        if self.held.contains(name) {
            self.asking.held_changed(name, false);
            self.held.remove(name);
        }
    }

    fn submit(&mut self, name: &LockName, input: LockInput, out: &mut Vec<u8>) {
        self.table.submit(name, input, Source::Session(self.id, &self.mailbox));
        match self.reading {
            // All notices are read: those that others have posted before come first, in the
            // engine's order.
            Reading::Idle => self.read_notices(&mut TimeSlice::begin(), out),
            Reading::Taken | Reading::More => self.reading = Reading::More,
        }
    }

    /// Asks the engine, and remembers how to answer.
    fn ask(
        &mut self,
        name: &LockName,
        kind: Kind,
        to: ReplyTo,
        out: &mut Vec<u8>,
        input: impl FnOnce(Asked) -> LockInput,
    ) {
        let asked = self.pend(name, kind, to, None);
        self.submit(name, input(asked), out);
    }

    fn pend(&mut self, name: &LockName, kind: Kind, to: ReplyTo, deadline: Option<Instant>) -> Asked {
        let request = self.number();
        // Others may wait for what the session has.
        self.entangled |= kind == Kind::Wait && self.holds_any();
        self.asking.add(Pending { request, name: name.clone(), kind, to, deadline });
        Asked { name: name.clone(), session: self.id, request }
    }

    fn number(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request - 1)
    }

    fn asked(&self, pending: &Pending) -> Asked {
        Asked { name: pending.name.clone(), session: self.id, request: pending.request }
    }

    fn finish(&mut self, end: End, code: CloseCode, reason: &str, out: &mut Vec<u8>) {
        if self.end.is_none() {
            self.codec.end(code, reason, out);
            self.end = Some(end);
        }
    }
}
