//! Connections on their way to the next process of the daemon.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use serde::{Deserialize, Serialize};

use super::stream::{Accepted, Stream, peer_of};
use crate::lock_table::LockTable;
use crate::lock_table::mailbox::Mailbox;
use crate::session::{HandedSession, Session};
use crate::slice::TimeSlice;
use distrilock_engine::SessionId;

/// A connection that is no longer served. Its socket belongs to no runtime.
#[derive(Debug)]
pub struct Frozen {
    /// Its session.
    pub session: Session,
    mailbox: Arc<Mailbox>,
    socket: OwnedFd,
    /// Bytes that have arrived and were not handled yet.
    input: Vec<u8>,
    /// Bytes that the socket has not taken yet.
    output: Vec<u8>,
}

/// The state of a connection, apart from its descriptor and its bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedConnection {
    session: HandedSession,
    /// How many bytes of input, and then of output, it has among the bytes of all connections.
    input: usize,
    output: usize,
}

impl Frozen {
    pub(super) fn new(
        stream: Stream,
        session: Session,
        mailbox: Arc<Mailbox>,
        input: Vec<u8>,
        output: Vec<u8>,
    ) -> std::io::Result<Self> {
        Ok(Self { socket: stream.into_socket()?, session, mailbox, input, output })
    }

    /// Handles the notices in the mailbox. Returns whether there were any.
    pub fn read_notices(&mut self) -> bool {
        let any = !self.mailbox.is_empty() || self.session.has_work();
        if any {
            // Nobody is served meanwhile.
            let mut all = TimeSlice::endless();
            self.session.read_notices(&mut all, &mut self.output);
            self.session.work(&mut all, &mut self.output);
        }
        any
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Its state and its socket for the next process. Its bytes are appended to those of the other
    /// connections.
    #[must_use]
    pub fn hand_over(self, bytes: &mut Vec<u8>) -> (HandedConnection, OwnedFd) {
        let Self { session, mailbox: _, socket, input, output } = self;
        bytes.extend_from_slice(&input);
        bytes.extend_from_slice(&output);
        let handed = HandedConnection { session: session.hand_over(), input: input.len(), output: output.len() };
        (handed, socket)
    }

    /// Ends it: its client learns why if that can be written at once, and its locks are released.
    pub fn end(mut self, reason: &str) {
        self.session.end(reason, &mut self.output);
        self.session.leave(&mut TimeSlice::endless());
        // The socket does not block: a client that does not read misses the reason.
        let _ = match is_unix(&self.socket) {
            true => UnixStream::from(self.socket).write(&self.output),
            false => TcpStream::from(self.socket).write(&self.output),
        };
    }
}

#[cfg(test)]
impl Frozen {
    /// A connection whose client is gone.
    pub fn of(session: Session, mailbox: Arc<Mailbox>, output: Vec<u8>) -> Self {
        let (socket, _) = UnixStream::pair().unwrap();
        Self { session, mailbox, socket: socket.into(), input: Vec::new(), output }
    }

    /// What will be sent to its client.
    pub fn output(&self) -> &str {
        std::str::from_utf8(&self.output).unwrap()
    }
}

impl HandedConnection {
    /// Its session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session.id()
    }

    /// How many bytes it has among those of all connections.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.input.saturating_add(self.output)
    }

    /// Opens the session's mailbox, so that notices find it.
    #[must_use]
    pub fn open(&mut self, table: &LockTable) -> Arc<Mailbox> {
        let introduction = self.session.introduction();
        table.mailboxes.reopen(self.session.id(), introduction)
    }

    /// Makes the connection again. Its bytes are taken from the front of `bytes`, which must have
    /// enough of them.
    #[must_use]
    pub fn revive(self, table: &Arc<LockTable>, mailbox: Arc<Mailbox>, socket: OwnedFd, bytes: &mut &[u8]) -> Frozen {
        let mut take = |count: usize| {
            let (taken, rest) = bytes.split_at(count);
            *bytes = rest;
            taken.to_vec()
        };
        let (input, output) = (take(self.input), take(self.output));
        let session = Session::taken_over(self.session, Arc::clone(table), Arc::clone(&mailbox));
        Frozen { session, mailbox, socket, input, output }
    }
}

/// The parts of which a connection is made again.
pub(super) struct Parts {
    pub(super) accepted: Accepted,
    pub(super) peer: String,
    pub(super) session: Session,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
}

impl From<Frozen> for Parts {
    fn from(frozen: Frozen) -> Self {
        let Frozen { session, mailbox, socket, input, output } = frozen;
        let accepted = match is_unix(&socket) {
            true => Accepted::Unix(socket.into()),
            false => Accepted::Tcp(socket.into()),
        };
        Self { peer: peer_of(&accepted), accepted, session, mailbox, input, output }
    }
}

fn is_unix(socket: &OwnedFd) -> bool {
    let address = getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()));
    address.is_ok_and(|address| address.family() == Some(AddressFamily::Unix))
}
