//! The end of a session, piece by piece, so that others have their turn in between. A client that
//! says goodbye gets an answer once every wait is cancelled and every lock released. A session that
//! is over for another reason leaves.

use std::collections::BTreeSet;

use tungstenite::protocol::frame::coding::CloseCode;

use super::multi::MultiAcquire;
use super::{End, Kind, ReplyTo, Session};
use crate::lock_table::Source;
use crate::slice::TimeSlice;
use distrilock_engine::{Input, RequestId, Withdrawal};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Done, Id, Reply};

/// A goodbye that has not been answered yet.
#[derive(Debug)]
pub(super) struct Bye {
    id: Option<Id>,
    stage: Stage,
}

/// How far it has come. Whatever the engine grants meanwhile is released as soon as it is.
#[derive(Debug)]
enum Stage {
    /// The waits up to this one are cancelled.
    Cancel(Option<RequestId>),
    /// Nothing waits any more, and the locks up to this one are being released.
    Release(Option<LockName>),
    /// The engine was asked for everything.
    Asked,
}

/// What a session that is over has left, in the order of its names: first what it waits for, so
/// that nothing more is granted to it, and then what it has.
#[derive(Debug)]
pub(super) struct Leaving {
    waits: std::vec::IntoIter<LockName>,
    has: std::vec::IntoIter<LockName>,
}

impl Bye {
    /// Whether the engine was asked for everything.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Asked)
    }
}

impl Session {
    pub(super) fn begin_bye(&mut self, id: Option<Id>) {
        self.bye = Some(Box::new(Bye { id, stage: Stage::Cancel(None) }));
    }

    pub(super) fn bye(&mut self, id: Option<Id>, out: &mut Vec<u8>) {
        self.begin_bye(id);
        self.go_on_with_bye(&mut TimeSlice::begin(), out);
    }

    /// Cancels and releases as much as the time allows.
    pub(super) fn go_on_with_bye(&mut self, slice: &mut TimeSlice, out: &mut Vec<u8>) {
        while let Some(stage) = self.bye.as_mut().filter(|bye| !bye.is_done()).map(|bye| &mut bye.stage) {
            match stage {
                Stage::Cancel(after) => match self.asking.next_wait(*after) {
                    Some(pending) => {
                        *after = Some(pending.request);
                        let asked = self.asked(pending);
                        self.withdraw(asked, Withdrawal::Cancelled, out);
                    }
                    None => *stage = Stage::Release(None),
                },
                Stage::Release(after) => match self.held.next(after.as_ref()).cloned() {
                    Some(name) => {
                        *after = Some(name.clone());
                        self.ask(&name, Kind::Release, ReplyTo::Nobody, out, Input::Release);
                    }
                    None => *stage = Stage::Asked,
                },
                Stage::Asked => {}
            }
            if slice.is_over() {
                break;
            }
        }
        self.say_bye(out);
    }

    /// Sends the last reply once everything is released.
    pub(super) fn say_bye(&mut self, out: &mut Vec<u8>) {
        if self.end.is_none()
            && self.asking.is_empty()
            && self.questions.is_empty()
            && let Some(bye) = self.bye.take_if(|bye| bye.is_done())
        {
            self.codec.send_v1(&Reply::yes(bye.id.as_ref(), Done {}), out);
            self.finish(End::Goodbye, CloseCode::Normal, "bye", out);
        }
    }

    /// Releases everything, unanswered, as much as the time allows. Returns whether that was all.
    /// The session is not used for anything else after that.
    pub fn leave(&mut self, slice: &mut TimeSlice) -> bool {
        let mut leaving = self.leaving.take().unwrap_or_else(|| Box::new(self.all_names()));
        while let Some(name) = leaving.waits.next().or_else(|| leaving.has.next()) {
            let input = Input::Leave { name: name.clone(), session: self.id };
            self.table.submit(&name, input, Source::Session(self.id, &self.mailbox));
            if slice.is_over() {
                self.leaving = Some(leaving);
                return false;
            }
        }
        self.discharge();
        self.table.mailboxes.close(self.id);
        true
    }

    /// The names that the session holds, wants or asks about, each once.
    fn all_names(&mut self) -> Leaving {
        let (pending, acquires) = std::mem::take(&mut self.asking).into_parts();
        let gathered = acquires.iter().flat_map(MultiAcquire::gathered).cloned();
        let mut has: BTreeSet<LockName> = std::mem::take(&mut self.held).into_set();
        has.extend(gathered);
        let (waiting, asking): (Vec<_>, Vec<_>) = pending.into_iter().partition(|pending| pending.kind == Kind::Wait);
        has.extend(asking.into_iter().map(|pending| pending.name));
        let waits: BTreeSet<LockName> =
            waiting.into_iter().map(|pending| pending.name).filter(|name| !has.contains(name)).collect();
        Leaving { waits: Vec::from_iter(waits).into_iter(), has: Vec::from_iter(has).into_iter() }
    }
}
