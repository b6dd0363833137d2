//! One session: what it holds and asks, and the rules between a client's requests and the engine. It takes decoded messages and
//! letters, and appends replies to a buffer; it knows no socket.

mod hand_over;
mod several;
mod v0;
mod v1;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::files::OpenFile;
use crate::server::Core;
use crate::server::mailbox::{Letter, Mailbox};
use distrilock_engine::{Answer, Asked, Input, RequestId, SessionId, Withdrawal};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Event, Id, Rejected};
use distrilock_protocol::{Codec, Dialect, Form, Incoming, Violation};
pub use hand_over::HandedSession;
use several::{Releasing, Several};

type LockInput = Input<OpenFile>;

thread_local! {
    /// Where a thread keeps a session's letters while it reads them: empty in between.
    static LETTERS: RefCell<Vec<Letter>> = const { RefCell::new(Vec::new()) };
}

/// A session and what is on its way between its client and the engine.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    core: Arc<Core>,
    mailbox: Arc<Mailbox>,
    codec: Codec,
    held: BTreeSet<LockName>,
    /// Requests that the engine has not answered.
    pending: Vec<Pending>,
    several: Vec<Several>,
    releasing: Vec<Releasing>,
    next_request: u64,
    /// The cycle that a wait would have closed which is about to be refused.
    cycle: Option<String>,
    /// The last request whose wait was cancelled.
    last_cancelled: Option<RequestId>,
    end: Option<End>,
    /// The id of a bye whose releases are under way.
    bye: Option<Option<Id>>,
    /// The next process of the daemon is to go on with it.
    hands_over: bool,
}

/// A request that the engine has not answered.
#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    request: RequestId,
    name: LockName,
    kind: Kind,
    to: To,
    /// When an acquire has waited for long enough.
    #[serde(with = "hand_over::deadline")]
    deadline: Option<Instant>,
    /// Whether it is noted among those who wait for others.
    noted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Try,
    Wait,
    Release,
    Verify,
    Peek,
}

/// How the answer is written.
#[derive(Debug, Serialize, Deserialize)]
enum To {
    V0(Form, u8),
    V1(Option<Id>),
    /// To nobody: the session says goodbye, or gives back what a request for several locks had.
    Nobody,
    /// It is part of a request for several locks.
    Part(RequestId),
    /// It is part of a release of several locks.
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
    pub fn new(id: SessionId, core: Arc<Core>, mailbox: Arc<Mailbox>, codec: Codec) -> Self {
        let (held, pending, several, releasing) = (BTreeSet::new(), Vec::new(), Vec::new(), Vec::new());
        let (next_request, cycle, last_cancelled, end, bye) = (0, None, None, None, None);
        Self {
            id,
            core,
            mailbox,
            codec,
            held,
            pending,
            several,
            releasing,
            next_request,
            cycle,
            last_cancelled,
            end,
            bye,
            hands_over: false,
        }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Its connection's framing and dialect.
    #[must_use]
    pub fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Why it ends, if it does: nothing more is to be read.
    #[must_use]
    pub fn ended(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Whether its next message may be taken: requests of version 0.1 are answered one after the other.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        let goes_on = self.end.is_none() && self.bye.is_none() && !self.hands_over;
        goes_on && !self.pending.iter().any(|pending| matches!(pending.to, To::V0(..)))
    }

    /// When the next of its waits is over.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.pending.iter().filter_map(|pending| pending.deadline).min()
    }

    /// Takes the first message of `input`, if it is there as a whole; tells how many bytes it had.
    pub fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Option<usize> {
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

    /// The client does not read: what it would be told goes, and it with it.
    pub fn give_up(&mut self, bytes: usize) {
        let bytes_max = self.core.settings.outbox_bytes;
        self.end = Some(End::Violation(Violation::SlowReader { bytes, bytes_max }));
    }

    /// The peer broke the protocol.
    fn violate(&mut self, violation: Violation, out: &mut Vec<u8>) {
        self.codec.violated(&violation, out);
        self.end = Some(End::Violation(violation));
    }

    /// Takes what has come by mail.
    pub fn read_mail(&mut self, out: &mut Vec<u8>) {
        let mut letters = LETTERS.take();
        self.mailbox.take(&mut letters);
        for letter in letters.drain(..) {
            self.letter(letter, out);
        }
        LETTERS.set(letters);
    }

    /// Ends the waits whose time is over.
    pub fn expire(&mut self, now: Instant, out: &mut Vec<u8>) {
        let over: Vec<Asked> = self
            .pending
            .iter_mut()
            .filter(|pending| pending.deadline.is_some_and(|deadline| deadline <= now))
            .map(|pending| {
                pending.deadline = None;
                Asked { name: pending.name.clone(), session: self.id, request: pending.request }
            })
            .collect();
        for asked in over {
            self.submit(&asked.name.clone(), Input::Withdraw { asked, why: Withdrawal::TimedOut }, out);
        }
    }

    /// Gives everything back, unanswered. The session is not used after that.
    pub fn leave(&mut self) {
        let gathered = self.drop_several();
        for pending in self.pending.iter().filter(|pending| pending.noted) {
            self.core.wait_ends(self.id, &pending.name);
        }
        let asked = self.pending.drain(..).map(|pending| pending.name);
        let names: BTreeSet<LockName> =
            std::mem::take(&mut self.held).into_iter().chain(asked).chain(gathered).collect();
        for name in names {
            let input = Input::Leave { name: name.clone(), session: self.id };
            self.core.submit(&name, input, (self.id, &self.mailbox));
        }
        self.core.mailboxes.close(self.id);
    }

    fn letter(&mut self, letter: Letter, out: &mut Vec<u8>) {
        match letter {
            Letter::Answer { name, request, answer } => {
                if let Some(place) = self.pending.iter().position(|pending| pending.request == request) {
                    let pending = self.pending.swap_remove(place);
                    if pending.noted {
                        self.core.wait_ends(self.id, &name);
                    }
                    self.note(&pending, &name, &answer);
                    let granted = matches!(answer, Answer::Granted { already: false, .. });
                    if self.bye.is_some() && self.held.contains(&name) {
                        // It was granted while the session said goodbye.
                        self.ask(&name, Kind::Release, To::Nobody, out, Input::Release);
                    }
                    match &pending.to {
                        To::V0(form, command) => self.reply_v0(*form, *command, &name, answer, out),
                        To::V1(id) => self.reply_v1(id.as_ref(), &name, answer, out),
                        To::Part(number) => self.part(*number, &name, answer, out),
                        To::Released(number) => self.released(*number, out),
                        To::Nobody => {}
                    }
                    if granted && self.pending.iter().any(|pending| pending.noted) {
                        self.look_for_cycles(None, out);
                    }
                }
            }
            Letter::Lost { name, reason } => {
                self.held.remove(&name);
                let gathered = self.gathers(&name);
                self.lost_part(&name, reason, out);
                if gathered {
                    // The session was never told that it holds it: the refusal says it all.
                } else if self.codec.dialect() == Dialect::JsonV1 {
                    self.codec.send_v1(&Event::Lost { lock: name.as_str().into(), reason: Some(reason.into()) }, out);
                } else {
                    self.finish(End::LockLost, CloseCode::Error, &format!("the lock {name} is lost: {reason}"), out);
                }
            }
            // Version 0.1 has no word for it.
            Letter::Doubt { name, valid_ms } if self.codec.dialect() == Dialect::JsonV1 => {
                let lock = name.as_str().into();
                let event = match valid_ms {
                    Some(valid_ms) => Event::Suspect { lock, valid_ms },
                    None => Event::Held { lock },
                };
                self.codec.send_v1(&event, out);
            }
            Letter::Doubt { .. } => {}
            Letter::HandOver => self.hands_over = true,
            // Who waits has been told by the engine; the session's locks go when it leaves.
            Letter::Stop => self.finish(End::Stop, CloseCode::Away, "the daemon stops", out),
        }
        if self.pending.is_empty() {
            // An idle session keeps room for one request.
            self.pending.shrink_to(1);
            self.say_bye(out);
        }
    }

    /// Keeps the session's own list of what it holds.
    fn note(&mut self, pending: &Pending, name: &LockName, answer: &Answer) {
        match (pending.kind, answer) {
            (Kind::Try | Kind::Wait, Answer::Granted { .. }) if matches!(pending.to, To::Part(_)) => {}
            (Kind::Try | Kind::Wait, Answer::Granted { already: false, .. }) => drop(self.held.insert(name.clone())),
            (Kind::Release, _) | (_, Answer::Lost(_)) => drop(self.held.remove(name)),
            (_, Answer::Cancelled) => self.last_cancelled = Some(pending.request),
            _ => {}
        }
    }

    fn submit(&mut self, name: &LockName, input: LockInput, out: &mut Vec<u8>) {
        self.core.submit(name, input, (self.id, &self.mailbox));
        // Read all of it: what others have posted before comes first, in the engine's order.
        self.read_mail(out);
    }

    /// Asks the engine, and remembers how to answer.
    fn ask(&mut self, name: &LockName, kind: Kind, to: To, out: &mut Vec<u8>, input: impl FnOnce(Asked) -> LockInput) {
        let asked = self.pend(name, kind, to, None);
        self.submit(name, input(asked), out);
    }

    fn pend(&mut self, name: &LockName, kind: Kind, to: To, deadline: Option<Instant>) -> Asked {
        let request = self.number();
        if self.pending.capacity() == 0 {
            self.pending.reserve_exact(1);
        }
        self.pending.push(Pending { request, name: name.clone(), kind, to, deadline, noted: false });
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
