//! The limits of a session, and its part of what there is for all sessions.

use super::Session;
use crate::limits::{LOCKS_ALWAYS, UNANSWERED_ALWAYS, WAITS_ALWAYS};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{ErrorWord, Wait};

/// What a session has of the daemon's budgets: of each, only what goes beyond what every session
/// may always have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Charged {
    locks: u32,
    waits: u32,
    unanswered: u32,
}

/// Which limit of locks is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// That of the session.
    Session,
    /// That of all sessions together.
    Daemon,
}

impl Session {
    /// How many locks it holds or is acquiring.
    fn locks(&self) -> usize {
        self.held.len() + self.asking.acquiring()
    }

    /// Brings its part of the daemon's budgets up to date.
    pub(super) fn charge(&mut self) {
        let (locks, waits, asked) = (self.locks(), self.asking.waits(), self.asking.len());
        let beyond = |count: usize, always| u32::try_from(count.saturating_sub(always)).unwrap_or(u32::MAX);
        self.charge_as(Charged {
            locks: beyond(locks, LOCKS_ALWAYS),
            waits: beyond(waits, WAITS_ALWAYS),
            unanswered: beyond(asked - waits, UNANSWERED_ALWAYS),
        });
    }

    /// Gives everything back.
    pub(super) fn discharge(&mut self) {
        self.charge_as(Charged::default());
    }

    fn charge_as(&mut self, now: Charged) {
        let before = std::mem::replace(&mut self.charged, now);
        if now == before {
            return;
        }
        let budgets = &self.table.budgets;
        for (budget, before, now) in [
            (&budgets.locks, before.locks, now.locks),
            (&budgets.waits, before.waits, now.waits),
            (&budgets.unanswered, before.unanswered, now.unanswered),
        ] {
            budget.change(before as usize, now as usize);
        }
    }

    /// Whether so many of its requests have no answer yet that it may not receive more. They do not
    /// wait for other sessions, but for the storage, which answers or fails in time.
    pub(super) fn asks_too_much(&self) -> bool {
        self.charged.unanswered > 0 && !self.table.budgets.unanswered.admits(self.charged.unanswered as usize, 0)
    }

    /// Why it may not acquire `new` more locks, if it may not.
    pub(super) fn refusal_of_locks(&self, new: usize) -> Option<Full> {
        if new == 0 {
            return None;
        }
        let (locks, charged) = (self.locks() + new, self.charged.locks as usize);
        let more = locks.saturating_sub(LOCKS_ALWAYS).saturating_sub(charged);
        if locks > self.table.settings.locks_per_session {
            Some(Full::Session)
        } else if more > 0 && !self.table.budgets.locks.admits(charged, more) {
            Some(Full::Daemon)
        } else {
            None
        }
    }

    /// Why it may not wait for one more lock, if it may not.
    fn refusal_of_wait(&self) -> Option<String> {
        let waits = self.asking.waits();
        if waits >= self.table.settings.waits_per_session {
            Some(format!("{waits} requests of this session are waiting, which is the limit (--waits-per-session)"))
        } else if waits >= WAITS_ALWAYS && !self.table.budgets.waits.admits(self.charged.waits as usize, 1) {
            Some(format!(
                "{waits} requests of this session are waiting, and those of all sessions together are too many for one \
                 more; cancel some, try again later, or raise --waits"
            ))
        } else {
            None
        }
    }

    /// Why the session may not acquire these locks together, if it may not. The locks differ from
    /// each other.
    pub(super) fn refusal_of_acquire<'a>(
        &self,
        locks: impl IntoIterator<Item = &'a LockName> + Clone,
        wait: Wait,
    ) -> Option<(ErrorWord, String)> {
        let new = locks.clone().into_iter().filter(|lock| !self.held.contains(lock)).count();
        if let Some(full) = self.refusal_of_locks(new) {
            let locks_per_session = self.table.settings.locks_per_session;
            let message = match full {
                Full::Session => format!(
                    "this session cannot hold or acquire more than {locks_per_session} locks at once \
                     (--locks-per-session)"
                ),
                Full::Daemon => format!(
                    "this session holds or is acquiring {} locks, and all sessions together too many for {new} more; \
                     release some, try again later, or raise --locks",
                    self.locks()
                ),
            };
            Some((ErrorWord::Limit, message))
        } else if let Some(message) = self.refusal_of_wait().filter(|_| wait != Wait::No) {
            Some((ErrorWord::Limit, message))
        } else if let Some(lock) = locks.into_iter().find(|lock| self.asking.acquires(lock)) {
            let message = format!("a request of this session already waits for the lock {lock}");
            Some((ErrorWord::BadRequest, message))
        } else {
            None
        }
    }
}
