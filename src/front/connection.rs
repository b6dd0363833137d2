//! One connection: its task reads, lets the session take message after message, and writes what there is to say.
//!
//! A connection that is silent keeps next to no room: bytes are read into the thread's own, and only what is left of a message, or
//! a short reply, has some with the connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::hand_over::{Frozen, Parts};
use super::stream::{Stream, farewell};
use super::write_batch;
use crate::limits::{HANG_UP_CHECK_MS, OUTBOX_BYTES_PAUSE, READ_BYTES_MAX, REQUESTS_PER_TURN_MAX};
use crate::lock_table::Core;
use crate::lock_table::mailbox::Mailbox;
use crate::session::{End, Session};
use crate::systemd::ids;
use distrilock_engine::SessionId;
use distrilock_protocol::{Codec, Violation};

thread_local! {
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES_MAX]);
}

/// Room for most replies, so that one does not grow piece by piece.
const REPLY_BYTES: usize = 128;

struct Connection {
    stream: Stream,
    session: Session,
    mailbox: Arc<Mailbox>,
    /// Bytes that have come and are not yet a whole message, or may not be taken yet.
    input: Vec<u8>,
    /// Bytes that the socket has not taken yet.
    output: Vec<u8>,
    outbox_bytes_max: usize,
    /// There is output that was not yet offered to the socket.
    unsent: bool,
    /// The input may have a whole message: it was left because of its number, or because the client has to read first.
    held_back: bool,
    /// Runs until the first of the session's waits is over.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Why the connection's task wakes.
enum Wake {
    Readable,
    Writable,
    Mail,
    Deadline,
    /// Requests that have been read already may be served now.
    HeldBack,
}

/// How a connection ended.
#[derive(Debug)]
enum Ended {
    /// The session said so.
    Session,
    /// The peer sent FIN.
    Finished,
    /// The socket failed: RST, or a dead peer.
    Failed(io::Error),
    /// The next process of the daemon goes on with it.
    HandedOver,
}

/// Serves a connection until it ends. `first` is what was read of it already.
pub(super) async fn serve(
    core: Arc<Core>,
    stream: Stream,
    peer: String,
    codec: Codec,
    first: Vec<u8>,
    open: (SessionId, Arc<Mailbox>),
) {
    let (id, mailbox) = open;
    let outbox_bytes_max = core.settings.outbox_bytes;
    let session = Session::new(id, core, Arc::clone(&mailbox), codec);
    tracing::debug!(SESSION = %id, PEER = peer, "session {id} from {peer}");
    let connection = Connection {
        stream,
        session,
        mailbox,
        input: first,
        output: Vec::new(),
        outbox_bytes_max,
        unsent: false,
        held_back: false,
        timer: None,
    };
    connection.serve(&peer).await;
}

/// Goes on with a connection of the process before.
pub(super) async fn resume(core: Arc<Core>, parts: Parts) {
    let Parts { accepted, peer, mut session, mailbox, input, output } = parts;
    let stream = match Stream::new(accepted, core.settings.dead_after) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(PEER = peer, "session {} of {peer} ended: {error}", session.id());
            return session.leave();
        }
    };
    let (outbox_bytes_max, unsent) = (core.settings.outbox_bytes, !output.is_empty());
    let (held_back, timer) = (false, None);
    let connection = Connection { stream, session, mailbox, input, output, outbox_bytes_max, unsent, held_back, timer };
    connection.serve(&peer).await;
}

impl Connection {
    async fn serve(mut self, peer: &str) {
        let ended = self.run().await;
        if matches!(ended, Ended::HandedOver) {
            return self.freeze();
        }
        self.session.leave();
        self.log(peer, &ended);
        if matches!(ended, Ended::Session) {
            farewell(&self.stream, &self.output).await;
        }
    }

    fn freeze(self) {
        let Self { stream, session, mailbox, input, output, .. } = self;
        let core = Arc::clone(session.core());
        // A socket that cannot be taken from the runtime goes with its session when this process ends.
        match Frozen::new(stream, session, mailbox, input, output) {
            Ok(frozen) => core.freeze(frozen),
            Err(error) => {
                tracing::error!(MESSAGE_ID = ids::HAND_OVER_FAILED, "a session cannot be handed over: {error}")
            }
        }
    }

    async fn run(&mut self) -> Ended {
        // What came with the handshake may be a request.
        self.held_back = !self.input.is_empty();
        loop {
            let wake = poll_fn(|cx| self.poll(cx)).await;
            let ended = match wake {
                Ok(Wake::Readable) => self.read(),
                Ok(Wake::Writable) => self.write(),
                Ok(Wake::Mail) => self.turn(|connection, out| {
                    connection.session.read_mail(out);
                    connection.take_all(&[], out);
                }),
                Ok(Wake::HeldBack) => self.turn(|connection, out| connection.take_all(&[], out)),
                Ok(Wake::Deadline) if self.stuck() && self.stream.hung_up() => Some(Ended::Finished),
                Ok(Wake::Deadline) => self.turn(|connection, out| {
                    connection.timer = None;
                    connection.session.expire(Instant::now(), out);
                    connection.take_all(&[], out);
                }),
                Err(error) => Some(Ended::Failed(error)),
            };
            if let Some(ended) = ended {
                return ended;
            }
            // Also without anything to write: no connection goes on for ever before others have had their turn.
            write_batch::end().await;
            if self.unsent
                && let Some(ended) = self.write()
            {
                return ended;
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Wake>> {
        if self.mailbox.poll(cx).is_ready() {
            return Poll::Ready(Ok(Wake::Mail));
        }
        // Before the socket: a client that sends without pause does not put its own deadlines off.
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
        if self.reads() && self.held_back {
            return Poll::Ready(Ok(Wake::HeldBack));
        }
        if self.reads()
            && let Poll::Ready(ready) = self.stream.poll_readable(cx)
        {
            return Poll::Ready(ready.map(|()| Wake::Readable));
        }
        Poll::Pending
    }

    /// Whether the session may be given more: a client that does not read its replies has to wait with its requests.
    fn reads(&self) -> bool {
        self.session.takes_more() && !self.stuck()
    }

    /// Whether the connection waits for its client to read.
    fn stuck(&self) -> bool {
        self.output.len() >= OUTBOX_BYTES_PAUSE
    }

    /// The timer is made for the earliest deadline, and again when an earlier one has come; a connection that waits for its client
    /// looks from time to time whether the client has gone.
    fn set_timer(&mut self) {
        let check = self.stuck().then(|| Instant::now() + Duration::from_millis(HANG_UP_CHECK_MS));
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
        READ.with_borrow_mut(|buffer| match self.stream.try_read(buffer) {
            Ok(0) => Some(Ended::Finished),
            Ok(count) => self.turn(|connection, out| connection.take_all(&buffer[..count], out)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Ended::Failed(error)),
        })
    }

    /// Lets `work` say something, which is written at the end of the burst.
    fn turn(&mut self, work: impl FnOnce(&mut Self, &mut Vec<u8>)) -> Option<Ended> {
        let mut out = std::mem::take(&mut self.output);
        let before = out.len();
        if out.capacity() == 0 {
            out.reserve_exact(REPLY_BYTES);
        }
        work(self, &mut out);
        self.unsent |= out.len() > before;
        self.output = out;
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
        if self.output.len() > self.outbox_bytes_max {
            self.session.give_up(self.output.len());
            self.output = Vec::new();
        }
        self.session.ended().is_some().then_some(Ended::Session)
    }

    /// Lets the session take every whole message of what has come before and of `bytes`, unless it has to wait.
    fn take_all(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let kept = std::mem::take(&mut self.input);
        if kept.is_empty() {
            let taken = self.take_from(bytes, out);
            self.input = bytes[taken..].to_vec();
        } else {
            let mut kept = kept;
            kept.extend_from_slice(bytes);
            let taken = self.take_from(&kept, out);
            if taken > 0 {
                kept.drain(..taken);
                kept.shrink_to_fit();
            }
            self.input = kept;
        }
    }

    fn take_from(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let (mut taken, mut requests) = (0, 0);
        self.held_back = false;
        while self.session.takes_more() {
            if requests == REQUESTS_PER_TURN_MAX || out.len() >= OUTBOX_BYTES_PAUSE {
                self.held_back = taken < bytes.len();
                break;
            }
            let Some(count) = self.session.take(&bytes[taken..], out) else { break };
            taken += count;
            requests += 1;
        }
        taken
    }

    fn log(&self, peer: &str, ended: &Ended) {
        let (id, dialect) = (self.session.id(), self.session.codec().dialect().word());
        match (ended, self.session.ended()) {
            (_, Some(End::Violation(violation @ Violation::SlowReader { .. }))) => tracing::warn!(
                MESSAGE_ID = ids::SLOW_READER, SESSION = %id, PEER = peer, DIALECT = dialect,
                "session {id} of {peer} closed: {violation}"
            ),
            (_, Some(End::Violation(violation))) => tracing::info!(
                MESSAGE_ID = ids::SESSION_VIOLATION, SESSION = %id, PEER = peer, DIALECT = dialect,
                "session {id} of {peer} closed: {violation}"
            ),
            (Ended::Failed(error), _) => tracing::debug!(
                SESSION = %id, PEER = peer, DIALECT = dialect, "session {id} of {peer} ended: {error}"
            ),
            _ => tracing::debug!(SESSION = %id, PEER = peer, DIALECT = dialect, "session {id} of {peer} ended"),
        }
    }
}
