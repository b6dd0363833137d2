//! What a client's handles and the task that drives its connection share: the session in a mutex, and who waits for it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::boot::BootTime;
use super::error::Disconnected;
use super::held::Grant;
use super::session::{Effect, Session};
use super::timing::Timing;

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    session: Mutex<Session>,
    /// There is something to send, or the session has ended.
    pub(super) wake: Notify,
    /// A name has become free to be asked for, or the session has ended.
    pub(super) freed: Notify,
}

impl Shared {
    pub(super) fn new(timing: Timing) -> Self {
        let session = Mutex::new(Session::new(timing, BootTime::now()));
        Self { session, wake: Notify::new(), freed: Notify::new() }
    }

    /// Looks at the session or changes it: first what is over ends, last its effects are carried out, with nothing locked.
    pub(super) fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut Session, BootTime) -> T) -> T {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let was_ended = session.ended().is_some();
        // Read while the session is locked: its moments never go back.
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

    /// Whoever has gone away does not take what is sent; a grant that is not taken releases itself.
    fn carry_out(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::Granted { to, key, locks } => drop(to.send(Ok(Grant::new(Arc::clone(self), key, locks)))),
            Effect::NotGranted { to, error } => drop(to.send(Err(error))),
            Effect::Answered { to, answer } => drop(to.send(answer)),
            Effect::Freed => self.freed.notify_waiters(),
        }
    }
}

/// What keeps a connection open: every [`Client`](super::Client) and [`Held`](super::Held) has a share. The last one ends it.
///
/// The descriptor is a copy of the driver's. When the session has ended by this client's own clock, the driver closes its one, but
/// the program may still be busy to stop its work: the daemon must not see the connection end, and hand the locks on, before
/// the program has let go of them.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<Shared>, pub(super) OwnedFd);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.with(|session, _| session.end(&Disconnected::Dropped));
    }
}
