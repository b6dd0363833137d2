//! One connection: its task reads, passes message after message to the session, and writes the
//! replies.
//!
//! A silent connection takes next to no memory: bytes are read into the thread's buffer, and the
//! connection keeps only the rest of an incomplete message, or a short reply.

use std::cell::RefCell;
use std::fmt::Display;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::hand_over::{Frozen, Parts};
use super::stream::{Stream, farewell};
use super::write_batch::{self, Wait};
use crate::limits::{BUFFER_BYTES_ALWAYS, HANG_UP_CHECK_MS, OUTBOX_BYTES_PAUSE, READ_BYTES_MAX, REQUESTS_PER_TURN_MAX};
use crate::lock_table::budget::Budget;
use crate::lock_table::mailbox::{Mailbox, OpenedMailbox};
use crate::lock_table::{LockTable, Offender};
use crate::session::{End, Session};
use crate::settings::Audit;
use crate::slice::TimeSlice;
use distrilock_protocol::Codec;

thread_local! {
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES_MAX]);
}

/// Room for most replies, so that one does not grow piece by piece.
const REPLY_BYTES: usize = 128;

pub(super) struct Connection {
    stream: Stream,
    session: Session,
    mailbox: Arc<Mailbox>,
    /// The peer, for logs.
    peer: Arc<str>,
    /// Bytes that have arrived and are not a whole message yet, or may not be handled yet.
    input: Vec<u8>,
    /// Bytes that the socket has not taken yet.
    output: Vec<u8>,
    outbox_bytes_max: usize,
    /// Some of the output has not been offered to the socket yet.
    unsent: bool,
    /// The input may have a whole message: it was its turn's last, or the client has to read first.
    held_back: bool,
    /// The replies of a turn are written when the batch has ended.
    batch: Wait,
    /// Runs until the first of the session's waits is over.
    timer: Option<Pin<Box<Sleep>>>,
    /// What it has of the daemon's buffers, in bytes.
    charged: u32,
}

/// Why the connection's task wakes.
enum Wake {
    Readable,
    Writable,
    Notices,
    Deadline,
    /// Requests that were read before may be handled now.
    HeldBack,
    /// The session goes on with what it could not do in one turn.
    Work,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The session has ended it.
    Session,
    /// The peer sent FIN.
    Finished,
    /// The socket failed: RST, or a dead peer.
    Failed(io::Error),
    /// The next process of the daemon continues it.
    HandedOver,
}

/// The end of a connection whose session is over.
pub(super) type Farewell = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that has become a session.
pub(super) struct Opened {
    pub(super) stream: Stream,
    /// The peer, for logs.
    pub(super) peer: String,
    pub(super) codec: Codec,
    /// What was read of it already.
    pub(super) first: Vec<u8>,
    pub(super) mailbox: OpenedMailbox,
}

impl Connection {
    /// A connection that has become a session.
    pub(super) fn open(table: Arc<LockTable>, opened: Opened) -> Self {
        let Opened { stream, peer, codec, first, mailbox: OpenedMailbox { id, mailbox } } = opened;
        tracing::debug!(SESSION = %id, PEER = peer, "session {id} from {peer}");
        let outbox_bytes_max = table.settings.outbox_bytes;
        let session = Session::new(id, table, Arc::clone(&mailbox), codec);
        Self::new(stream, peer, session, mailbox, first, Vec::new(), outbox_bytes_max)
    }

    /// Continues a connection of the previous process. Returns `None` if its socket cannot be
    /// watched.
    pub(super) async fn resume(table: Arc<LockTable>, parts: Parts) -> Option<Self> {
        let Parts { accepted, peer, mut session, mailbox, input, output } = parts;
        match Stream::new(accepted, table.settings.dead_after) {
            Ok(stream) => Some(Self::new(stream, peer, session, mailbox, input, output, table.settings.outbox_bytes)),
            Err(error) => {
                tracing::debug!(PEER = peer, "session {} of {peer} ended: {error}", session.id());
                while !session.leave(&mut TimeSlice::begin()) {
                    write_batch::ended().await;
                }
                None
            }
        }
    }

    fn new(
        stream: Stream,
        peer: String,
        session: Session,
        mailbox: Arc<Mailbox>,
        input: Vec<u8>,
        output: Vec<u8>,
        outbox_bytes_max: usize,
    ) -> Self {
        let peer: Arc<str> = peer.into();
        mailbox.connected_from(Arc::clone(&peer));
        Self {
            stream,
            session,
            mailbox,
            peer,
            unsent: !output.is_empty(),
            // What arrived with the handshake may be a request.
            held_back: !input.is_empty(),
            input,
            output,
            outbox_bytes_max,
            batch: Wait::Over,
            timer: None,
            charged: 0,
        }
    }

    /// Serves the connection until it ends.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            // Even with nothing to write: no connection continues for ever before the others have
            // had their turn.
            ready!(self.batch.poll(cx));
            if self.unsent
                && let Some(ended) = self.write()
            {
                return Poll::Ready(ended);
            }
            let ended = match ready!(self.poll(cx)) {
                Ok(Wake::Readable) => self.read(),
                Ok(Wake::Writable) => self.write(),
                Ok(Wake::Notices) => self.turn(|connection, slice, out| {
                    connection.session.read_notices(slice, out);
                    connection.handle_input(&[], slice, out);
                }),
                Ok(Wake::HeldBack) => self.turn(|connection, slice, out| connection.handle_input(&[], slice, out)),
                Ok(Wake::Work) => self.turn(|connection, slice, out| connection.session.work(slice, out)),
                Ok(Wake::Deadline) if self.is_held_up() && self.stream.hung_up() => Some(Ended::Finished),
                Ok(Wake::Deadline) => self.turn(|connection, slice, out| {
                    connection.timer = None;
                    connection.session.expire(Instant::now(), slice, out);
                    connection.handle_input(&[], slice, out);
                }),
                Err(error) => Some(Ended::Failed(error)),
            };
            if let Some(ended) = ended {
                return Poll::Ready(ended);
            }
            self.batch = Wait::Due;
        }
    }

    /// Releases what the session of a connection that has ended holds and wants, with pauses.
    pub(super) fn poll_leave(&mut self, cx: &Context<'_>) -> Poll<()> {
        loop {
            ready!(self.batch.poll(cx));
            if self.session.leave(&mut TimeSlice::begin()) {
                return Poll::Ready(());
            }
            self.batch = Wait::Due;
        }
    }

    /// Takes leave of a connection whose session has left. Returns the last bytes on their way, if
    /// there are any.
    pub(super) fn part(mut self, ended: &Ended) -> Option<Farewell> {
        self.log(ended);
        self.input = Vec::new();
        let says_farewell = matches!(ended, Ended::Session);
        if !says_farewell {
            self.output = Vec::new();
        }
        self.charge();
        says_farewell.then(|| -> Farewell {
            Box::pin(async move {
                farewell(&self.stream, &self.output).await;
                self.output = Vec::new();
                self.charge();
            })
        })
    }

    /// For the next process.
    pub(super) fn freeze(self) -> Option<Frozen> {
        let Self { stream, session, mailbox, input, output, .. } = self;
        let table = Arc::clone(session.table());
        // A socket that cannot be taken from the runtime is closed with its session when this
        // process ends.
        let frozen = Frozen::new(stream, session, mailbox, input, output);
        frozen.inspect_err(|error| table.log.not_handed_over(error)).ok()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Wake>> {
        if self.mailbox.poll(cx).is_ready() {
            return Poll::Ready(Ok(Wake::Notices));
        }
        // Before the socket, so that a client that sends without pause does not delay its own
        // deadlines.
        self.set_timer();
        if let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Ok(Wake::Deadline));
        }
        if !self.output.is_empty()
            && let Poll::Ready(ready) = self.stream.poll_writable(cx)
        {
            return Poll::Ready(ready.map(|()| Wake::Writable));
        }
        if self.session.has_work() || self.session.has_answers() && !self.stuck() {
            return Poll::Ready(Ok(Wake::Work));
        }
        if self.reads() && self.held_back {
            return Poll::Ready(Ok(Wake::HeldBack));
        }
        if self.reads()
            && self.room() > 0
            && let Poll::Ready(ready) = self.stream.poll_readable(cx)
        {
            return Poll::Ready(ready.map(|()| Wake::Readable));
        }
        Poll::Pending
    }

    /// Whether the session may receive more: the requests of a client that does not read its
    /// replies have to wait.
    fn reads(&self) -> bool {
        self.session.can_receive() && !self.stuck()
    }

    /// Whether the connection waits for its client to read.
    fn stuck(&self) -> bool {
        self.output.len() >= OUTBOX_BYTES_PAUSE
    }

    /// Whether it cannot read although its session would: it waits for its client to read, or for
    /// room.
    fn is_held_up(&self) -> bool {
        self.stuck() || self.room() == 0
    }

    /// How many bytes it may read now. What does not fit stays in the kernel's buffer until all
    /// connections together keep less.
    fn room(&self) -> usize {
        let always = BUFFER_BYTES_ALWAYS.saturating_sub(self.kept());
        (always + self.buffers().room(self.charged as usize)).min(READ_BYTES_MAX)
    }

    fn kept(&self) -> usize {
        self.input.len() + self.output.len()
    }

    /// What there is for all connections.
    fn buffers(&self) -> &Budget {
        &self.session.table().budgets.bytes
    }

    /// Brings its part of the daemon's buffers up to date.
    fn charge(&mut self) {
        let beyond = self.kept().saturating_sub(BUFFER_BYTES_ALWAYS);
        let charged = u32::try_from(beyond).unwrap_or(u32::MAX);
        if charged != self.charged {
            self.buffers().change(self.charged as usize, charged as usize);
            self.charged = charged;
        }
    }

    /// Sets the timer to the earliest deadline. A connection that waits for its client to read, or
    /// for room, checks from time to time whether the client is gone.
    fn set_timer(&mut self) {
        let check = self.is_held_up().then(|| Instant::now() + Duration::from_millis(HANG_UP_CHECK_MS));
        let deadline = match (self.session.deadline(), check) {
            (None, None) => {
                self.timer = None;
                return;
            }
            (deadline, None) => deadline,
            (_, Some(check)) => {
                if self.timer.as_ref().is_some_and(|timer| timer.deadline().into_std() <= check) {
                    return;
                }
                Some(check)
            }
        };
        let Some(deadline) = deadline.map(tokio::time::Instant::from_std) else { return };
        if self.timer.as_ref().is_none_or(|timer| timer.deadline() != deadline) {
            self.timer = Some(Box::pin(tokio::time::sleep_until(deadline)));
        }
    }

    fn read(&mut self) -> Option<Ended> {
        let room = self.room();
        READ.with_borrow_mut(|buffer| match self.stream.try_read(&mut buffer[..room]) {
            Ok(0) => Some(Ended::Finished),
            Ok(count) => self.turn(|connection, slice, out| connection.handle_input(&buffer[..count], slice, out)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Ended::Failed(error)),
        })
    }

    /// Runs one turn of the session, which may append replies. They are written at the end of the
    /// batch.
    fn turn(&mut self, run: impl FnOnce(&mut Self, &mut TimeSlice, &mut Vec<u8>)) -> Option<Ended> {
        let mut out = std::mem::take(&mut self.output);
        let before = out.len();
        if out.capacity() == 0 {
            out.reserve_exact(REPLY_BYTES);
        }
        run(self, &mut TimeSlice::begin(), &mut out);
        self.unsent |= out.len() > before;
        self.output = out;
        self.charge();
        if self.session.hands_over() {
            return Some(Ended::HandedOver);
        }
        self.session.ended().is_some().then_some(Ended::Session)
    }

    /// Writes what the socket takes, and keeps the rest.
    fn write(&mut self) -> Option<Ended> {
        self.unsent = false;
        match self.stream.write_some(&self.output) {
            Ok(written) if written == self.output.len() => {
                self.output.clear();
                self.output.shrink_to(REPLY_BYTES);
            }
            Ok(written) => drop(self.output.drain(..written)),
            Err(error) => return Some(Ended::Failed(error)),
        }
        self.charge();
        // Its part is what it may have, or less than what is left for others.
        let has_room = self.charged == 0 || self.buffers().admits(self.charged as usize, 0);
        let most = if has_room { self.outbox_bytes_max } else { BUFFER_BYTES_ALWAYS };
        if self.output.len() > most {
            self.session.give_up(self.output.len(), most);
            self.output = Vec::new();
            self.charge();
        }
        self.session.ended().is_some().then_some(Ended::Session)
    }

    /// Passes the session every whole message of the earlier input and of `bytes`, unless it has to
    /// wait.
    fn handle_input(&mut self, bytes: &[u8], slice: &mut TimeSlice, out: &mut Vec<u8>) {
        let kept = std::mem::take(&mut self.input);
        if kept.is_empty() {
            let handled = self.handle_messages(bytes, slice, out);
            self.input = bytes[handled..].to_vec();
        } else {
            let mut kept = kept;
            kept.extend_from_slice(bytes);
            let handled = self.handle_messages(&kept, slice, out);
            if handled > 0 {
                kept.drain(..handled);
                kept.shrink_to_fit();
            }
            self.input = kept;
        }
    }

    /// Returns how many of the bytes were handled.
    fn handle_messages(&mut self, bytes: &[u8], slice: &mut TimeSlice, out: &mut Vec<u8>) -> usize {
        let (mut handled, mut requests) = (0, 0);
        self.held_back = false;
        while self.session.can_receive() && handled < bytes.len() {
            let enough = requests == REQUESTS_PER_TURN_MAX || out.len() >= OUTBOX_BYTES_PAUSE;
            if enough || (requests > 0 && slice.is_over()) {
                self.held_back = true;
                break;
            }
            let Some(count) = self.session.receive(&bytes[handled..], out) else { break };
            handled += count;
            requests += 1;
        }
        handled
    }

    fn log(&self, ended: &Ended) {
        let (peer, id, dialect) = (&*self.peer, self.session.id(), self.session.codec().dialect().word());
        match (ended, self.session.ended()) {
            (_, Some(End::Violation(violation))) => {
                self.session.table().log.violation(Offender { session: id, peer, dialect }, violation);
            }
            (Ended::Failed(error), _) => tracing::debug!(
                SESSION = %id, PEER = peer, DIALECT = dialect, "session {id} of {peer} ended: {error}"
            ),
            _ => tracing::debug!(SESSION = %id, PEER = peer, DIALECT = dialect, "session {id} of {peer} ended"),
        }
        let table = self.session.table();
        if table.settings.audit == Audit::All {
            let why: &dyn Display = match (ended, self.session.ended()) {
                (_, Some(End::Violation(violation))) => violation,
                (_, Some(End::LockLost)) => &"its lock was lost",
                (_, Some(End::Stop)) => &"the daemon stops",
                (Ended::Failed(error), _) => error,
                _ => &"the client ended it",
            };
            table.history.session_ended(id, &self.mailbox.identity(), dialect, why);
        }
    }
}
