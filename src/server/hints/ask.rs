//! The side of the daemon whose sessions wait: it asks the others for word, and takes theirs to the engine.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};

use super::words::{self, Word};
use crate::files::peer_sockets::PeerSockets;
use crate::limits::{PEERS_MAX, QUESTIONS_MAX};
use crate::server::Core;
use distrilock_engine::Input;
use distrilock_protocol::name::LockName;

/// So many batches of questions wait for a daemon that does not read them; the oldest go first, and are asked again later.
const BATCHES_MAX: usize = 64;

/// What this daemon wants to know.
#[derive(Debug)]
pub(super) struct Questions {
    open: Mutex<Open>,
    /// Whether the meeting place has to be looked at before the next question. Time sets it and nothing else: a daemon that cuts
    /// every connection off is met again only then.
    look: AtomicBool,
    new: Notify,
    /// To all daemons with whom there is a connection.
    lines: broadcast::Sender<Arc<str>>,
    /// Their sockets.
    peers: Mutex<HashSet<String>>,
}

#[derive(Debug, Default)]
struct Open {
    /// Names of which nobody has said anything yet since they were asked for.
    names: HashSet<LockName>,
    /// Those among them that are still to be asked for.
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
        self.open.lock().expect("a panic aborts the daemon, so that no mutex is ever poisoned")
    }

    fn peers(&self) -> MutexGuard<'_, HashSet<String>> {
        self.peers.lock().expect("a panic aborts the daemon, so that no mutex is ever poisoned")
    }

    /// Asks for word of a name, unless that was done a moment ago.
    pub(super) fn want(&self, name: LockName) {
        let mut open = self.open();
        if open.names.len() < QUESTIONS_MAX && open.names.insert(name.clone()) {
            open.new.push(name);
            drop(open);
            self.new.notify_one();
        }
    }

    /// Somebody has said something of a name: the next question is a new one.
    fn answered(&self, name: &LockName) {
        self.open().names.remove(name);
    }

    /// Time passes: others may have come, and may be asked.
    pub(super) fn look_again(&self) {
        self.look.store(true, Ordering::Relaxed);
        self.ask_again();
    }

    /// What was asked is asked again when the engine says that the name is still contended.
    fn ask_again(&self) {
        let Open { names, new } = &mut *self.open();
        names.clear();
        names.extend(new.iter().cloned());
    }
}

/// Asks whatever there is to ask, until the daemon ends.
pub(super) async fn ask(core: Arc<Core>) {
    let questions = &core.hints.questions;
    loop {
        if questions.look.swap(false, Ordering::Relaxed) {
            look_around(&core).await;
        }
        let names = std::mem::take(&mut questions.open().new);
        if !names.is_empty() {
            let mut lines = String::new();
            names.into_iter().for_each(|name| Word::Want(name).append_to(&mut lines));
            // Nobody is there: who comes later is asked later.
            let _ = questions.lines.send(lines.into());
            // It is written before the next batch is made up, or a burst would be more than the others' queues take.
            tokio::task::yield_now().await;
        }
        questions.new.notified().await;
    }
}

/// Connects to the daemons that have come since, and clears away after those that were killed.
async fn look_around(core: &Arc<Core>) {
    let Some(meeting) = core.hints.meeting.get() else { return };
    let others = match meeting.others() {
        Ok(others) => others,
        Err(fault) => return tracing::debug!("no other daemon is found: {fault}"),
    };
    for socket in others {
        let known = core.hints.questions.peers().len();
        if known >= PEERS_MAX || core.hints.questions.peers().contains(&socket) {
            continue;
        }
        match connect(meeting, &socket).await {
            Ok(stream) => {
                let asked = core.hints.questions.lines.subscribe();
                core.hints.questions.peers().insert(socket.clone());
                core.hints.questions.ask_again();
                tokio::spawn(follow(Arc::clone(core), socket, stream, asked));
            }
            Err(error) => tracing::debug!("{socket}: {error}"),
        }
    }
}

async fn connect(meeting: &PeerSockets, socket: &str) -> io::Result<UnixStream> {
    UnixStream::connect(meeting.path(socket)).await.inspect_err(|error| {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            meeting.remove(socket);
        }
    })
}

/// One connection to a daemon: questions go out, and word comes in, until it ends.
async fn follow(core: Arc<Core>, socket: String, stream: UnixStream, asked: broadcast::Receiver<Arc<str>>) {
    tracing::debug!("{socket}: connected");
    let heard = words::read(&stream, |word| hear(&core, word));
    let ended = tokio::select! {
        ended = speak(&stream, asked) => ended,
        ended = heard => ended,
    };
    tracing::debug!("{socket}: ended: {ended:?}");
    core.hints.questions.peers().remove(&socket);
    core.hints.questions.ask_again();
    core.promises_broken();
}

async fn speak(stream: &UnixStream, mut asked: broadcast::Receiver<Arc<str>>) -> io::Result<()> {
    loop {
        match asked.recv().await {
            Ok(lines) => words::write(stream, &lines).await?,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

fn hear(core: &Arc<Core>, word: Word) {
    match word {
        Word::Free(name) => {
            tracing::trace!(LOCK = %name, "word that {name} is free");
            core.hints.questions.answered(&name);
            core.bring(&name, Input::Hint(name.clone()));
        }
        Word::Held(name) => {
            tracing::trace!(LOCK = %name, "promised word of {name}");
            core.hints.questions.answered(&name);
            core.bring(&name, Input::Promised(name.clone()));
        }
        // A question, from somebody who was not asked to ask.
        Word::Want(_) => {}
    }
}
