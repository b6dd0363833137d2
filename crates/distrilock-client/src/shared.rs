//! What a client's handles and the task that drives its connection share: the session in a mutex,
//! and what wakes its users.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::boottime::BootTime;
use crate::error::DisconnectedError;
use crate::grant::{GrantGuard, Release};
use crate::session::{ClientSession, Effect};
use crate::timing::Timing;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    session: Mutex<ClientSession>,
    /// There is something to send, or the session has ended.
    pub(crate) wake: Notify,
    /// A name can be asked for again, or the session has ended.
    pub(crate) freed: Notify,
}

impl Shared {
    pub(crate) fn new(timing: Timing) -> Self {
        let session = Mutex::new(ClientSession::new(timing, BootTime::now()));
        Self { session, wake: Notify::new(), freed: Notify::new() }
    }

    /// Looks at the session or changes it. What is over ends first. The effects are carried out
    /// last, with nothing locked.
    pub(crate) fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut ClientSession, BootTime) -> T) -> T {
        let mut session = locked(&self.session);
        let was_ended = session.ended().is_some();
        // The clock is read while the session is locked: its moments never go back.
        let now = BootTime::now();
        session.check(now);
        let result = act(&mut session, now);
        let effects = std::mem::take(&mut session.effects);
        let wake = !session.outbox.is_empty() || (session.ended().is_some() && !was_ended);
        drop(session);
        if wake {
            self.wake.notify_one();
        }
        effects.into_iter().for_each(|effect| self.carry_out(effect));
        result
    }

    /// A receiver that has gone away does not take what is sent. A grant that is not taken releases
    /// itself.
    fn carry_out(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::Granted { to, key, locks } => {
                let releaser: Arc<Self> = Arc::clone(self);
                drop(to.send(Ok(GrantGuard::new(releaser, key, locks))));
            }
            Effect::NotGranted { to, error } => drop(to.send(Err(error))),
            Effect::Replied { to, reply } => drop(to.send(reply)),
            Effect::Freed => self.freed.notify_waiters(),
        }
    }
}

impl Release for Shared {
    fn release(self: Arc<Self>, key: u64) {
        self.with(|session, now| session.release(now, key, None));
    }
}

/// What keeps a connection open: every [`Client`](crate::Client) and [`Held`](crate::Held) has a
/// share. Dropping the last one ends it.
///
/// The descriptor duplicates the driver's. When the session has ended by this client's own clock,
/// the driver closes its own descriptor, but the program may still be stopping its work. The daemon
/// must not see the connection end, and grant the locks to others, before the program has stopped
/// relying on them.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connection: OwnedFd,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.with(|session, _| session.end(&DisconnectedError::Dropped));
    }
}

/// Locks a mutex, poisoned or not: a session is whole between any two of its methods.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
