//! The daemon whose sessions wait: it asks the other daemons for wake-ups, and passes theirs to the
//! engine.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};

use super::peer_message::{self, PeerMessage};
use crate::files::peer_sockets::PeerSockets;
use crate::limits::{PEERS_MAX, QUESTIONS_AT_ONCE, QUESTIONS_MAX};
use crate::lock_table::{LockTable, Source};
use crate::sync::locked;
use distrilock_engine::Input;
use distrilock_protocol::name::LockName;

/// How many batches of questions wait for a daemon that does not read them. The oldest are dropped
/// first, and asked again later.
const BATCHES_MAX: usize = 64;

/// What this daemon wants to know.
#[derive(Debug)]
pub(super) struct Questions {
    open: Mutex<Open>,
    /// Whether to look for new daemons before the next question. Only time sets it, so that a
    /// daemon that cuts off every connection is not connected to more often.
    look: AtomicBool,
    new: Notify,
    /// To all connected daemons.
    lines: broadcast::Sender<Arc<str>>,
    /// Their sockets.
    peers: Mutex<HashSet<String>>,
}

#[derive(Debug, Default)]
struct Open {
    /// Names that were asked about, with no answer yet.
    names: HashSet<LockName>,
    /// Those that have not been sent yet.
    new: Vec<LockName>,
}

impl Default for Questions {
    fn default() -> Self {
        let (lines, _) = broadcast::channel(BATCHES_MAX);
        Self { open: Mutex::default(), look: AtomicBool::new(true), new: Notify::new(), lines, peers: Mutex::default() }
    }
}

impl Questions {
    fn open(&self) -> MutexGuard<'_, Open> {
        locked(&self.open)
    }

    fn peers(&self) -> MutexGuard<'_, HashSet<String>> {
        locked(&self.peers)
    }

    /// Asks for a wake-up when a name is released, unless that was done a moment ago.
    pub(super) fn want(&self, name: LockName) {
        let mut open = self.open();
        if open.names.len() < QUESTIONS_MAX && open.names.insert(name.clone()) {
            open.new.push(name);
            drop(open);
            self.new.notify_one();
        }
    }

    /// Another daemon has said something about a name: it may be asked again.
    fn answered(&self, name: &LockName) {
        self.open().names.remove(name);
    }

    /// Time passes: new daemons may be there to ask.
    pub(super) fn look_again(&self) {
        self.look.store(true, Ordering::Relaxed);
        self.ask_again();
    }

    /// Names are asked about again once the engine says that they are still contended.
    fn ask_again(&self) {
        let Open { names, new } = &mut *self.open();
        names.clear();
        names.extend(new.iter().cloned());
    }
}

/// Sends the questions, until the daemon ends.
pub(super) async fn ask(table: Arc<LockTable>) {
    let questions = &table.hints.questions;
    loop {
        if questions.look.swap(false, Ordering::Relaxed) {
            connect_to_others(&table).await;
        }
        let names = std::mem::take(&mut questions.open().new);
        for names in names.chunks(QUESTIONS_AT_ONCE) {
            let mut lines = String::new();
            names.iter().for_each(|name| PeerMessage::Want(name.clone()).append_to(&mut lines));
            // An error means that no daemon is there; later ones are asked later.
            let _ = questions.lines.send(lines.into());
            // This lets the batch be written before the next one is collected. Otherwise a burst
            // would overflow the queues.
            tokio::task::yield_now().await;
        }
        questions.new.notified().await;
    }
}

/// Connects to new daemons, and removes the sockets of killed ones.
async fn connect_to_others(table: &Arc<LockTable>) {
    let Some(meeting) = table.hints.meeting.get() else { return };
    let others = match meeting.others() {
        Ok(others) => others,
        Err(fault) => return tracing::debug!("cannot look for other daemons: {fault}"),
    };
    for socket in others {
        let known = table.hints.questions.peers().len();
        if known >= PEERS_MAX || table.hints.questions.peers().contains(&socket) {
            continue;
        }
        match connect(meeting, &socket).await {
            Ok(stream) => {
                let asked = table.hints.questions.lines.subscribe();
                table.hints.questions.peers().insert(socket.clone());
                table.hints.questions.ask_again();
                tokio::spawn(follow(Arc::clone(table), socket, stream, asked));
            }
            Err(error) => tracing::debug!("{socket}: {error}"),
        }
    }
}

async fn connect(meeting: &PeerSockets, socket: &str) -> io::Result<UnixStream> {
    let opened = meeting.open(socket)?;
    UnixStream::connect(opened.path()).await.inspect_err(|error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            meeting.remove(socket);
        }
    })
}

/// Serves one connection to a daemon until it ends: questions go out, and messages come in.
async fn follow(table: Arc<LockTable>, socket: String, stream: UnixStream, asked: broadcast::Receiver<Arc<str>>) {
    tracing::debug!("{socket}: connected");
    let heard = peer_message::read(&stream, &table.hints.rate, |message| hear(&table, message));
    let ended = tokio::select! {
        ended = speak(&stream, asked) => ended,
        ended = heard => ended,
    };
    tracing::debug!("{socket}: ended: {ended:?}");
    table.hints.questions.peers().remove(&socket);
    table.hints.questions.ask_again();
    // Nothing that it promised will come.
    table.submit_to_all(|| Input::PromisesBroken);
}

async fn speak(stream: &UnixStream, mut asked: broadcast::Receiver<Arc<str>>) -> io::Result<()> {
    loop {
        match asked.recv().await {
            Ok(lines) => peer_message::write(stream, &lines).await?,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

fn hear(table: &Arc<LockTable>, message: PeerMessage) {
    match message {
        PeerMessage::Free(name) => {
            tracing::trace!(LOCK = %name, "word that {name} is free");
            table.hints.questions.answered(&name);
            table.submit(&name, Input::Hint(name.clone()), Source::Daemon);
        }
        PeerMessage::Held(name) => {
            tracing::trace!(LOCK = %name, "promised a wake-up for {name}");
            table.hints.questions.answered(&name);
            table.submit(&name, Input::Promised(name.clone()), Source::Daemon);
        }
        // Questions belong on the connections that other daemons open.
        PeerMessage::Want(_) => {}
    }
}
