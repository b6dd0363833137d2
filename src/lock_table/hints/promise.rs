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
use crate::lock_table::budget::Budget;
use crate::sync::locked;
use distrilock_protocol::name::LockName;

/// A question that is not repeated within this number of ticks is forgotten: nobody waits any more.
const TICKS_MAX: u8 = 3;

/// The pause after an error of accept(2): an earlier attempt would fail the same way.
const BACK_OFF: Duration = Duration::from_secs(1);

/// How many messages are written at once.
const BATCH_MAX: usize = 256;

/// Which daemons are to be woken for which names.
#[derive(Debug)]
pub(super) struct Promises {
    /// How many names there are: usually none, and then a release has nothing more to do.
    names: AtomicUsize,
    asked: Mutex<HashMap<LockName, Vec<Asker>>>,
    budgets: Arc<Budgets>,
}

/// What there is for all daemons that ask.
#[derive(Debug)]
struct Budgets {
    unsent: Budget,
    promises: Budget,
}

/// A daemon that asks, and what is kept for it.
#[derive(Debug)]
struct Peer {
    outbox: mpsc::Sender<PeerMessage>,
    /// Messages that it has not read.
    unsent: AtomicUsize,
    promises: AtomicUsize,
    budgets: Arc<Budgets>,
}

impl Peer {
    /// Queues a message. A daemon that does not read learns nothing.
    fn send(&self, message: PeerMessage) {
        let unsent = self.unsent.load(Ordering::Relaxed);
        if self.budgets.unsent.admits(unsent, 1) {
            self.unsent.fetch_add(1, Ordering::Relaxed);
            self.budgets.unsent.change(0, 1);
            if self.outbox.try_send(message).is_err() {
                self.sent(1);
            }
        }
    }

    /// Messages have left the queue.
    fn sent(&self, count: usize) {
        self.unsent.fetch_sub(count, Ordering::Relaxed);
        self.budgets.unsent.change(count, 0);
    }
}

/// Nobody refers to it any more: what it has not read never will be.
impl Drop for Peer {
    fn drop(&mut self) {
        self.budgets.unsent.change(*self.unsent.get_mut(), 0);
    }
}

/// A promise to a daemon.
#[derive(Debug)]
struct Asker {
    peer: Arc<Peer>,
    ticks: u8,
}

impl Asker {
    /// `None`: too much is promised already, and the daemon has to poll.
    fn new(peer: &Arc<Peer>) -> Option<Self> {
        if !peer.budgets.promises.admits(peer.promises.load(Ordering::Relaxed), 1) {
            return None;
        }
        peer.promises.fetch_add(1, Ordering::Relaxed);
        peer.budgets.promises.change(0, 1);
        Some(Self { peer: Arc::clone(peer), ticks: 0 })
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.peer.promises.fetch_sub(1, Ordering::Relaxed);
        self.peer.budgets.promises.change(1, 0);
    }
}

impl Default for Promises {
    fn default() -> Self {
        let budgets = Budgets { unsent: Budget::new(MESSAGES_UNSENT_MAX), promises: Budget::new(PROMISES_MAX) };
        Self { names: AtomicUsize::default(), asked: Mutex::default(), budgets: Arc::new(budgets) }
    }
}

impl Promises {
    fn asked(&self) -> MutexGuard<'_, HashMap<LockName, Vec<Asker>>> {
        locked(&self.asked)
    }

    /// A daemon that may ask, and what is going to be said to it.
    fn peer(&self) -> (Arc<Peer>, mpsc::Receiver<PeerMessage>) {
        let (outbox, due) = mpsc::channel(MESSAGES_UNSENT_MAX);
        let (unsent, promises, budgets) = (AtomicUsize::default(), AtomicUsize::default(), Arc::clone(&self.budgets));
        (Arc::new(Peer { outbox, unsent, promises, budgets }), due)
    }

    /// Remembers a question, and promises an answer if the name is held. The question is remembered
    /// before `held` is asked, so that a release in between sends a wake-up; and the promise is
    /// queued before that wake-up can be, so that it comes first.
    fn give(&self, name: LockName, peer: &Arc<Peer>, held: impl FnOnce(&LockName) -> bool) {
        let mut asked = self.asked();
        match asked.get_mut(&name).and_then(|askers| askers.iter_mut().find(|asker| Arc::ptr_eq(&asker.peer, peer))) {
            Some(asker) => asker.ticks = 0,
            None => {
                let Some(asker) = Asker::new(peer) else { return };
                asked.entry(name.clone()).or_default().push(asker);
            }
        }
        self.names.store(asked.len(), Ordering::Relaxed);
        if held(&name) {
            peer.send(PeerMessage::Held(name));
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
            asker.peer.send(PeerMessage::Free(name.clone()));
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
            askers.retain(|asker| asker.ticks <= TICKS_MAX && !asker.peer.outbox.is_closed());
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
    let promises = &table.hints.promises;
    let (peer, due) = promises.peer();
    let asked = peer_message::read(&stream, &table.hints.rate, |message| {
        if let PeerMessage::Want(name) = message {
            promises.give(name, &peer, |name| table.shards.holds(name));
        }
    });
    let ended = tokio::select! {
        ended = asked => ended,
        ended = speak(&stream, &peer, due) => ended,
    };
    tracing::debug!("a daemon that asked is gone: {ended:?}");
}

async fn speak(stream: &UnixStream, peer: &Peer, mut due: mpsc::Receiver<PeerMessage>) -> io::Result<()> {
    let mut batch = Vec::new();
    while due.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut lines = String::new();
        let count = batch.len();
        batch.drain(..).for_each(|message| message.append_to(&mut lines));
        peer_message::write(stream, &lines).await?;
        peer.sent(count);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> LockName {
        LockName::parse(number.to_string().as_bytes()).unwrap()
    }

    /// A daemon that does not read gets half of what there is at most, and the next one still gets
    /// something. What it does not read is given back once it is gone, and forgotten.
    #[test]
    fn unread_messages_are_bounded_in_all() {
        let promises = Promises::default();
        let (deaf, unread) = promises.peer();
        for number in 0..MESSAGES_UNSENT_MAX {
            promises.give(name(number), &deaf, |_| true);
        }
        assert_eq!(unread.len(), MESSAGES_UNSENT_MAX / 2);
        let (other, mut read) = promises.peer();
        promises.give(name(7), &other, |_| true);
        assert_eq!(read.try_recv(), Ok(PeerMessage::Held(name(7))));
        other.sent(1);
        // The deaf one is told nothing, and the other one is woken.
        promises.keep(&name(7));
        assert_eq!(read.try_recv(), Ok(PeerMessage::Free(name(7))));
        other.sent(1);
        drop((unread, deaf));
        promises.age();
        assert_eq!((promises.budgets.unsent.taken(), promises.budgets.promises.taken()), (0, 0));
        assert_eq!(promises.names.load(Ordering::Relaxed), 0);
    }

    /// The same for promises: a daemon that asks about everything gets no promise beyond its part.
    #[test]
    fn promises_are_bounded_in_all() {
        let promises = Promises::default();
        let ((greedy, _unread), (other, _read)) = (promises.peer(), promises.peer());
        for number in 0..PROMISES_MAX {
            promises.give(name(number), &greedy, |_| false);
            // A repeated question counts once.
            promises.give(name(number), &greedy, |_| false);
        }
        assert_eq!(promises.asked().len(), PROMISES_MAX / 2);
        promises.give(name(PROMISES_MAX), &other, |_| false);
        assert_eq!(promises.budgets.promises.taken(), PROMISES_MAX / 2 + 1);
        promises.keep(&name(0));
        assert_eq!(promises.budgets.promises.taken(), PROMISES_MAX / 2);
    }
}
