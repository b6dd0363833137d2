//! Listeners: the task of each accepts connections and hands them to the session threads.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::admission::Admission;
use super::connection::{Connection, Opened};
use super::hand_over::Frozen;
use super::stream::{Accepted, Listening, Stream, farewell};
use super::threads::SessionThreads;
use super::upgrade::{refuse, upgrade};
use crate::lock_table::LockTable;
use crate::lock_table::mailbox::TooManySessions;
use distrilock_protocol::{Codec, v1};
use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};

/// What the connections of a listener speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Bytes, over TCP or a Unix socket.
    Stream,
    /// HTTP, upgraded to WebSocket.
    WebSocket,
}

/// The shortest pause when a connection cannot be accepted for lack of descriptors or memory. Each
/// next one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Accepts connections for ever.
pub async fn accept(table: Arc<LockTable>, threads: Arc<SessionThreads>, listening: Listening, transport: Transport) {
    let admission = Arc::new(Admission::new(&table.settings));
    let mut pause = PAUSE_MIN;
    loop {
        match listening.accept().await {
            Ok((accepted, peer)) => {
                if table.in_reserve(accepted.as_fd()) {
                    await_room(&table, &accepted).await;
                }
                pause = PAUSE_MIN;
                let (table, admission) = (Arc::clone(&table), Arc::clone(&admission));
                threads.spawn(async move {
                    let served = establish(Arc::clone(&table), admission, accepted, peer.clone(), transport).await;
                    served.unwrap_or_else(|error| {
                        if exhausted(&error) {
                            table.log.exhausted(&error);
                        }
                        tracing::debug!(PEER = peer, "connection of {peer} ended before it was a session: {error}");
                        None
                    })
                });
            }
            // Released lock files are closed before a session has to wait.
            Err(error) if exhausted(&error) && table.shed() => {}
            // The connection was gone before it was accepted (accept(2)).
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if exhausted(&error) {
                    table.log.exhausted(&error)
                } else {
                    table.log.accept_failed(&error)
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Waits until a connection no longer takes a descriptor of the reserve. Released lock files are
/// closed first. Further connections stay in the kernel's queue meanwhile.
async fn await_room(table: &Arc<LockTable>, accepted: &Accepted) {
    let mut pause = PAUSE_MIN;
    loop {
        // A copy gets the lowest number that is free now.
        match accepted.as_fd().try_clone_to_owned() {
            Ok(copy) if !table.in_reserve(copy.as_fd()) => return,
            _ if table.shed() => {}
            _ => {
                table.log.exhausted(&"what is left is kept for lock files");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

fn exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

/// Continues a connection of the previous process.
pub fn resume(table: &Arc<LockTable>, threads: &Arc<SessionThreads>, frozen: Frozen) {
    threads.spawn(Connection::resume(Arc::clone(table), frozen.into()));
}

/// Makes a session of a connection, if it may be one.
async fn establish(
    table: Arc<LockTable>,
    admission: Arc<Admission>,
    accepted: Accepted,
    peer: String,
    transport: Transport,
) -> io::Result<Option<Connection>> {
    let stream = Stream::new(accepted, table.settings.dead_after)?;
    let room = table.mailboxes.check_room().inspect_err(|too_many| table.log.too_many(*too_many));
    match (transport, room) {
        (Transport::Stream, Ok(())) => match table.mailboxes.open() {
            Ok(mailbox) => {
                let opened = Opened { stream, peer, codec: Codec::stream(), first: Vec::new(), mailbox };
                return Ok(Some(Connection::open(table, opened)));
            }
            Err(too_many) => turn_away(stream, too_many).await,
        },
        (Transport::Stream, Err(too_many)) => turn_away(stream, too_many).await,
        (Transport::WebSocket, Ok(())) => {
            let shaken = shake_hands(stream, &admission).await?;
            // If the last place has been taken meanwhile, the connection is closed.
            if let Some((stream, first)) = shaken
                && let Ok(mailbox) = table.mailboxes.open()
            {
                let opened = Opened { stream, peer, codec: Codec::websocket(), first, mailbox };
                return Ok(Some(Connection::open(table, opened)));
            }
        }
        (Transport::WebSocket, Err(too_many)) => match stream {
            Stream::Tcp(stream) => refuse(stream, &too_many.to_string()).await?,
            Stream::Unix(stream) => refuse(stream, &too_many.to_string()).await?,
        },
    }
    Ok(None)
}

async fn shake_hands(stream: Stream, admission: &Admission) -> io::Result<Option<(Stream, Vec<u8>)>> {
    // A copy of what was read, which is little or nothing: hyper's buffer has 8 KiB, and would last
    // until the session's first message.
    Ok(match stream {
        Stream::Tcp(stream) => {
            upgrade(stream, admission).await?.map(|(stream, first)| (Stream::Tcp(stream), first.to_vec()))
        }
        Stream::Unix(stream) => {
            upgrade(stream, admission).await?.map(|(stream, first)| (Stream::Unix(stream), first.to_vec()))
        }
    })
}

/// Answers a connection that may not become a session.
async fn turn_away(stream: Stream, too_many: TooManySessions) {
    let message = too_many.to_string();
    let reply = v1::Reply::no(None, v1::Refusal::new(v1::ErrorWord::Limit, &*message));
    let mut line = Vec::new();
    Codec::stream().send_v1(&reply, &mut line);
    farewell(&stream, &line).await;
}
