//! Names whose waiters wait for another process. They are tried again at a bounded rate; seldom, while another daemon has promised
//! word of its release; and at once when word comes. Word is never believed: all that it brings about is a try.

use std::collections::BTreeSet;

use super::Engine;
use super::message::{Effect, Timer};
use super::record::Record;
use crate::limits::{
    NETWORK_RETRY_MS_MAX, NETWORK_RETRY_MS_MIN, NETWORK_RETRY_US_PER_NAME, RECHECK_MS, RETRY_MS_MAX, RETRY_MS_MIN,
    RETRY_US_PER_NAME,
};
use distrilock_protocol::name::LockName;

/// The time between two tries for a name that another process holds: bounded for each name, and for all of a shard together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pace {
    /// The shortest, in milliseconds.
    pub min_ms: u64,
    /// What each such name of the shard adds, in microseconds.
    pub us_per_name: u64,
    /// The longest, in milliseconds.
    pub max_ms: u64,
}

impl Pace {
    /// On a local file system, where a try takes microseconds.
    pub const LOCAL: Self = Self { min_ms: RETRY_MS_MIN, us_per_name: RETRY_US_PER_NAME, max_ms: RETRY_MS_MAX };

    /// On a network file system, where a try is a question to the server.
    pub const NETWORK: Self =
        Self { min_ms: NETWORK_RETRY_MS_MIN, us_per_name: NETWORK_RETRY_US_PER_NAME, max_ms: NETWORK_RETRY_MS_MAX };
}

/// The contended names of a shard. Each is in one of the two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Contention {
    /// Those of which nobody promised anything.
    polled: BTreeSet<LockName>,
    retry_armed: bool,
    /// How many names the last sweep was for.
    swept: usize,
    /// Those that a daemon holds which is going to say when it lets go.
    promised: BTreeSet<LockName>,
    recheck_armed: bool,
}

impl Contention {
    /// A name is contended, as the last try has shown.
    pub(super) fn add<F>(&mut self, name: &LockName, record: &Record<F>, pace: Pace, effects: &mut Vec<Effect<F>>) {
        // Who deletes a file gives no word of it.
        if record.disturbed > 0 {
            self.promised.remove(name);
        }
        if self.promised.contains(name) || !self.polled.insert(name.clone()) {
            return;
        }
        if !self.retry_armed {
            self.retry_armed = true;
            // The first name of a sweep that is refused again arms the timer for all that were swept with it.
            let names = self.polled.len().max(std::mem::take(&mut self.swept));
            let Pace { min_ms, us_per_name, max_ms } = pace;
            let after_ms = (us_per_name * names as u64).div_ceil(1000).clamp(min_ms, max_ms);
            effects.push(Effect::Arm(Timer::Retry, after_ms));
        }
        if record.disturbed == 0 {
            effects.push(Effect::Contended(name.clone()));
        }
    }

    /// A name is not contended.
    pub(super) fn remove(&mut self, name: &LockName) {
        for list in [&mut self.polled, &mut self.promised] {
            if !list.is_empty() {
                list.remove(name);
            }
        }
    }

    /// Whether a timer is going to see to the name.
    pub(super) fn sees_to(&self, name: &LockName) -> bool {
        (self.retry_armed && self.polled.contains(name)) || (self.recheck_armed && self.promised.contains(name))
    }

    /// Every name, of either list.
    pub(super) fn names(&self) -> impl Iterator<Item = &LockName> {
        self.polled.iter().chain(&self.promised)
    }
}

impl<F> Engine<F> {
    /// Another try for the contended names of which nobody promised anything.
    pub(super) fn retry(&mut self, effects: &mut Vec<Effect<F>>) {
        self.contention.retry_armed = false;
        let names = std::mem::take(&mut self.contention.polled);
        self.sweep(names, effects);
    }

    /// Another try for the others: a promise holds until then, since who made it may hang.
    pub(super) fn recheck(&mut self, effects: &mut Vec<Effect<F>>) {
        self.contention.recheck_armed = false;
        self.promises_broken(effects);
    }

    /// Nothing that was promised is going to be kept.
    pub(super) fn promises_broken(&mut self, effects: &mut Vec<Effect<F>>) {
        let names = std::mem::take(&mut self.contention.promised);
        self.sweep(names, effects);
    }

    fn sweep(&mut self, names: BTreeSet<LockName>, effects: &mut Vec<Effect<F>>) {
        self.contention.swept = names.len();
        for name in names {
            if let Some(record) = self.records.get_mut(&name) {
                record.contended = false;
            }
            self.settle(&name, effects);
        }
    }

    /// Word came that the name is free: if somebody waits for that, a try finds out.
    pub(super) fn hint(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) {
        let Some(record) = self.records.get_mut(name) else { return };
        if record.contended && record.disturbed == 0 {
            record.contended = false;
            self.settle(name, effects);
        }
    }

    /// A daemon holds the name and is going to say when it lets go.
    pub(super) fn promised(&mut self, name: &LockName, effects: &mut Vec<Effect<F>>) {
        let disturbed = self.records.get(name).is_some_and(|record| record.disturbed > 0);
        if disturbed || !self.contention.polled.remove(name) {
            return;
        }
        self.contention.promised.insert(name.clone());
        if !self.contention.recheck_armed {
            self.contention.recheck_armed = true;
            effects.push(Effect::Arm(Timer::Recheck, RECHECK_MS));
        }
        self.check(name);
    }

    /// Whether sessions of this daemon hold the name.
    #[must_use]
    pub fn holds(&self, name: &LockName) -> bool {
        self.records.get(name).is_some_and(|record| !record.holders.is_empty())
    }
}
