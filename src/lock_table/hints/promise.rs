//! The daemon that holds names: it remembers which daemon asked about which name, and sends a
//! wake-up when it releases the name.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::peer_message::{self, PeerMessage};
use crate::limits::{MESSAGES_UNSENT_MAX, PEERS_MAX, PROMISES_MAX};
use crate::lock_table::LockTable;
use crate::sync::locked;
use distrilock_protocol::name::LockName;

/// A question that is not repeated within this number of ticks is forgotten: nobody waits any more.
const TICKS_MAX: u8 = 3;

/// The pause after an error of accept(2): an earlier attempt would fail the same way.
const BACK_OFF: Duration = Duration::from_secs(1);

/// How many messages are written at once.
const BATCH_MAX: usize = 256;

/// Which daemons are to be woken for which names.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// How many names there are: usually none, and then a release has nothing more to do.
    names: AtomicUsize,
    asked: Mutex<HashMap<LockName, Vec<Asker>>>,
}

#[derive(Debug)]
struct Asker {
    outbox: mpsc::Sender<PeerMessage>,
    ticks: u8,
}

impl Promises {
    fn asked(&self) -> MutexGuard<'_, HashMap<LockName, Vec<Asker>>> {
        locked(&self.asked)
    }

    /// Remembers a question, and promises an answer if the name is held. The question is remembered
    /// before `held` is asked, so that a release in between sends a wake-up; and the promise is
    /// queued before that wake-up can be, so that it comes first.
    fn give(&self, name: LockName, outbox: &mpsc::Sender<PeerMessage>, held: impl FnOnce(&LockName) -> bool) {
        let mut asked = self.asked();
        if asked.len() >= PROMISES_MAX && !asked.contains_key(&name) {
            return;
        }
        let askers = asked.entry(name.clone()).or_default();
        match askers.iter_mut().find(|asker| asker.outbox.same_channel(outbox)) {
            Some(asker) => asker.ticks = 0,
            None => askers.push(Asker { outbox: outbox.clone(), ticks: 0 }),
        }
        self.names.store(asked.len(), Ordering::Relaxed);
        if held(&name) {
            // A daemon that does not read learns nothing.
            let _ = outbox.try_send(PeerMessage::Held(name));
        }
    }

    /// Wakes the daemons that asked about a name.
    pub(super) fn keep(&self, name: &LockName) {
        // A question asked before the engine saw the release has set this before: the engine's
        // mutex orders the two.
        if self.names.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut asked = self.asked();
        let askers = asked.remove(name).unwrap_or_default();
        self.names.store(asked.len(), Ordering::Relaxed);
        for asker in askers {
            let _ = asker.outbox.try_send(PeerMessage::Free(name.clone()));
        }
    }

    /// Time passes: old questions are forgotten, and those of daemons that are gone.
    pub(super) fn age(&self) {
        if self.names.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut asked = self.asked();
        asked.retain(|_, askers| {
            askers.iter_mut().for_each(|asker| asker.ticks += 1);
            askers.retain(|asker| asker.ticks <= TICKS_MAX && !asker.outbox.is_closed());
            !askers.is_empty()
        });
        self.names.store(asked.len(), Ordering::Relaxed);
    }
}

/// Accepts the other daemons' connections, until the daemon ends.
pub(super) async fn listen(table: Arc<LockTable>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(PEERS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
        match listener.accept().await {
            Ok((stream, _)) => {
                let table = Arc::clone(&table);
                tokio::spawn(async move {
                    serve(&table, stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!("another daemon cannot connect: {error}");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

async fn serve(table: &Arc<LockTable>, stream: UnixStream) {
    let (outbox, due) = mpsc::channel(MESSAGES_UNSENT_MAX);
    let asked = peer_message::read(&stream, |message| {
        if let PeerMessage::Want(name) = message {
            table.hints.promises.give(name, &outbox, |name| table.shards.holds(name));
        }
    });
    let ended = tokio::select! {
        ended = asked => ended,
        ended = speak(&stream, due) => ended,
    };
    tracing::debug!("a daemon that asked is gone: {ended:?}");
}

async fn speak(stream: &UnixStream, mut due: mpsc::Receiver<PeerMessage>) -> io::Result<()> {
    let mut batch = Vec::new();
    while due.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut lines = String::new();
        batch.drain(..).for_each(|message| message.append_to(&mut lines));
        peer_message::write(stream, &lines).await?;
    }
    Ok(())
}
