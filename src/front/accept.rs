//! Listeners: each has a task that accepts connections and hands every one to the thread that has the fewest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::connection::{resume, serve};
use super::hand_over::Frozen;
use super::stream::{Accepted, Listening, Stream, farewell};
use super::upgrade::{refuse, upgrade};
use crate::server::Core;
use crate::server::mailbox::TooMany;
use distrilock_protocol::{Codec, v1};
use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};

/// What a listener's connections speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// Bytes.
    Tcp,
    /// HTTP, upgraded to WebSocket.
    WebSocket,
}

/// A thread that serves connections.
#[derive(Debug)]
pub struct Worker {
    /// Its runtime.
    pub handle: tokio::runtime::Handle,
    connections: AtomicUsize,
}

impl Worker {
    /// A thread without connections.
    #[must_use]
    pub fn new(handle: tokio::runtime::Handle) -> Self {
        Self { handle, connections: AtomicUsize::new(0) }
    }

    /// How many connections it serves, those too that are no session yet, or no more.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// The shortest and the longest pause when a connection cannot be accepted for want of descriptors or memory.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Accepts connections for ever.
pub async fn accept(core: Arc<Core>, workers: Arc<[Worker]>, listening: Listening, front: Front) {
    let mut pause = PAUSE.0;
    loop {
        match listening.accept().await {
            Ok((accepted, peer)) => {
                pause = PAUSE.0;
                hand_on(&core, &workers, accepted, peer, front);
            }
            // Released lock files give way before a session is refused.
            Err(error) if exhausted(&error) && core.shed() => {}
            // The connection was gone before it was accepted (accept(2)).
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if exhausted(&error) {
                    core.log_exhausted(&error)
                } else {
                    core.log_accept(&error)
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

fn exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

fn hand_on(core: &Arc<Core>, workers: &Arc<[Worker]>, accepted: Accepted, peer: String, front: Front) {
    let core = Arc::clone(core);
    to_fewest(workers, async move {
        if let Err(error) = begin(core, accepted, peer.clone(), front).await {
            tracing::debug!(PEER = peer, "connection of {peer} ended before it was a session: {error}");
        }
    });
}

/// Goes on with a connection of the process before.
pub fn go_on(core: &Arc<Core>, workers: &Arc<[Worker]>, frozen: Frozen) {
    to_fewest(workers, resume(Arc::clone(core), frozen.into()));
}

fn to_fewest(workers: &Arc<[Worker]>, connection: impl Future<Output = ()> + Send + 'static) {
    let fewest = (0..workers.len()).min_by_key(|worker| workers[*worker].connections.load(Ordering::Relaxed));
    let place = fewest.expect("there is at least one thread");
    workers[place].connections.fetch_add(1, Ordering::Relaxed);
    let others = Arc::clone(workers);
    workers[place].handle.spawn(async move {
        connection.await;
        others[place].connections.fetch_sub(1, Ordering::Relaxed);
    });
}

/// From a connection to a session.
async fn begin(core: Arc<Core>, accepted: Accepted, peer: String, front: Front) -> io::Result<()> {
    let stream = Stream::new(accepted, core.settings.dead_after)?;
    let room = core.mailboxes.room().inspect_err(|too_many| core.log_too_many(*too_many));
    match (front, room) {
        (Front::Tcp, Ok(())) => match core.mailboxes.open() {
            Ok(open) => Box::pin(serve(core, stream, peer, Codec::stream(), Vec::new(), open)).await,
            Err(too_many) => turn_away(stream, too_many).await,
        },
        (Front::Tcp, Err(too_many)) => turn_away(stream, too_many).await,
        (Front::WebSocket, Ok(())) => {
            // Boxed: the handshake's state is large, and a session lives much longer than it.
            let shaken = Box::pin(shake_hands(stream, &core.settings.allow_origin)).await?;
            // Without room after all, the connection is closed.
            if let Some((stream, first)) = shaken
                && let Ok(open) = core.mailboxes.open()
            {
                Box::pin(serve(core, stream, peer, Codec::websocket(), first, open)).await;
            }
        }
        (Front::WebSocket, Err(too_many)) => match stream {
            Stream::Tcp(stream) => refuse(stream, &too_many.to_string()).await?,
            Stream::Unix(stream) => refuse(stream, &too_many.to_string()).await?,
        },
    }
    Ok(())
}

async fn shake_hands(stream: Stream, allowed: &[String]) -> io::Result<Option<(Stream, Vec<u8>)>> {
    Ok(match stream {
        Stream::Tcp(stream) => {
            upgrade(stream, allowed).await?.map(|(stream, first)| (Stream::Tcp(stream), first.into()))
        }
        Stream::Unix(stream) => {
            upgrade(stream, allowed).await?.map(|(stream, first)| (Stream::Unix(stream), first.into()))
        }
    })
}

/// The answer when there is no room for a session.
async fn turn_away(stream: Stream, too_many: TooMany) {
    let message = too_many.to_string();
    let reply = v1::Reply::no(None, v1::Refusal::new(v1::ErrorWord::Limit, &*message));
    let mut line = Vec::new();
    Codec::stream().send_v1(&reply, &mut line);
    farewell(&stream, &line).await;
}
