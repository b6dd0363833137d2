//! What is known of names, for those who look: no file system is asked.

use std::ops::Bound;

use super::Engine;
use super::record::Record;
use super::seen::{View, ViewedSession};
use distrilock_protocol::limits::LIST_SESSIONS_MAX;
use distrilock_protocol::name::LockName;

impl<F> Engine<F> {
    /// How many locks sessions hold, and how many requests wait.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let add = |(held, waiting), record: &Record<F>| (held + record.holders.len(), waiting + record.waiters.len());
        self.records.values().fold((0, 0), add)
    }

    /// Names after `after`, in order, that are held or waited for.
    pub fn names(&self, after: Option<&LockName>) -> impl Iterator<Item = &LockName> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.records.range::<LockName, _>((start, Bound::Unbounded));
        names.filter(|(_, record)| !record.holders.is_empty() || !record.waiters.is_empty()).map(|(name, _)| name)
    }

    /// Names after `after`, in order, that are held.
    pub fn held(&self, after: Option<&LockName>) -> impl Iterator<Item = &LockName> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.records.range::<LockName, _>((start, Bound::Unbounded));
        names.filter(|(_, record)| !record.holders.is_empty()).map(|(name, _)| name)
    }

    /// Who holds a name, and whose requests wait for it, all of them.
    #[must_use]
    pub fn queue(&self, name: &LockName) -> (Vec<ViewedSession>, Vec<ViewedSession>) {
        let Some(record) = self.records.get(name) else { return Default::default() };
        let waiters = record.waiters.iter().filter(|waiter| waiter.waits).map(|waiter| waiter.seen.clone());
        (record.holders.clone(), waiters.collect())
    }

    /// What is known of a name without asking the file system.
    #[must_use]
    pub fn view(&self, name: &LockName) -> Option<View> {
        self.records.get(name).map(|record| record.view(record.contended))
    }
}

impl<F> Record<F> {
    pub(super) fn view(&self, contender: bool) -> View {
        View {
            holders: self.holders.iter().take(LIST_SESSIONS_MAX).cloned().collect(),
            holders_total: self.holders.len(),
            waiters: self.waiters.iter().take(LIST_SESSIONS_MAX).map(|waiter| waiter.seen.clone()).collect(),
            waiters_total: self.waiters.len(),
            contender,
        }
    }
}
