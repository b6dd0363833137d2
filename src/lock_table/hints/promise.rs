//! The side of the daemon that holds: it remembers who asked for word of which name, and sends it when it lets go.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::peer_message::{self as words, Word};
use crate::limits::{PEERS_MAX, PROMISES_MAX, WORDS_UNSENT_MAX};
use crate::lock_table::Core;
use distrilock_protocol::name::LockName;

/// A question that is not asked again within so many ticks is forgotten: nobody waits any more.
const TICKS_MAX: u8 = 3;

/// After an error of accept, the next one comes no sooner: it would be the same.
const BACK_OFF: Duration = Duration::from_secs(1);

/// So many words are written at once.
const BATCH_MAX: usize = 256;

/// Who is told of what.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// How many names there are: none, as a rule, and then a release has nothing more to do.
    names: AtomicUsize,
    asked: Mutex<HashMap<LockName, Vec<Asker>>>,
}

#[derive(Debug)]
struct Asker {
    words: mpsc::Sender<Word>,
    ticks: u8,
}

impl Promises {
    fn asked(&self) -> MutexGuard<'_, HashMap<LockName, Vec<Asker>>> {
        self.asked.lock().expect("a panic aborts the daemon, so that no mutex is ever poisoned")
    }

    /// Takes a question. It is remembered before `held` tells whether the name is held: so a release in between is told of. And
    /// the answer is on its way before that word can be, which would be overtaken otherwise.
    fn give(&self, name: LockName, words: &mpsc::Sender<Word>, held: impl FnOnce(&LockName) -> bool) {
        let mut asked = self.asked();
        if asked.len() >= PROMISES_MAX && !asked.contains_key(&name) {
            return;
        }
        let askers = asked.entry(name.clone()).or_default();
        match askers.iter_mut().find(|asker| asker.words.same_channel(words)) {
            Some(asker) => asker.ticks = 0,
            None => askers.push(Asker { words: words.clone(), ticks: 0 }),
        }
        self.names.store(asked.len(), Ordering::Relaxed);
        if held(&name) {
            // Who does not read hears nothing.
            let _ = words.try_send(Word::Held(name));
        }
    }

    /// Sends word of a name to those who asked.
    pub(super) fn keep(&self, name: &LockName) {
        // Whoever asked before the engine was told of the release has set this before: the engine's mutex orders the two.
        if self.names.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut asked = self.asked();
        let askers = asked.remove(name).unwrap_or_default();
        self.names.store(asked.len(), Ordering::Relaxed);
        for asker in askers {
            let _ = asker.words.try_send(Word::Free(name.clone()));
        }
    }

    /// Time passes: old questions go, and those of daemons that are gone.
    pub(super) fn age(&self) {
        if self.names.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut asked = self.asked();
        asked.retain(|_, askers| {
            askers.iter_mut().for_each(|asker| asker.ticks += 1);
            askers.retain(|asker| asker.ticks <= TICKS_MAX && !asker.words.is_closed());
            !askers.is_empty()
        });
        self.names.store(asked.len(), Ordering::Relaxed);
    }
}

/// Takes the other daemons' connections, until the daemon ends.
pub(super) async fn listen(core: Arc<Core>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(PEERS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
        match listener.accept().await {
            Ok((stream, _)) => {
                let core = Arc::clone(&core);
                tokio::spawn(async move {
                    serve(&core, stream).await;
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

async fn serve(core: &Arc<Core>, stream: UnixStream) {
    let (words, due) = mpsc::channel(WORDS_UNSENT_MAX);
    let asked = words::read(&stream, |word| {
        if let Word::Want(name) = word {
            core.hints.promises.give(name, &words, |name| core.holds(name));
        }
    });
    let ended = tokio::select! {
        ended = asked => ended,
        ended = speak(&stream, due) => ended,
    };
    tracing::debug!("a daemon that asked has gone: {ended:?}");
}

async fn speak(stream: &UnixStream, mut due: mpsc::Receiver<Word>) -> io::Result<()> {
    let mut batch = Vec::new();
    while due.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut lines = String::new();
        batch.drain(..).for_each(|word| word.append_to(&mut lines));
        words::write(stream, &lines).await?;
    }
    Ok(())
}
