//! Names whose waiting sessions wait for another process. They are tried again at a bounded rate;
//! rarely, while another daemon has promised a wake-up on its release; and at once when a wake-up
//! arrives. A wake-up is never believed: it only causes a try.

use std::collections::BTreeSet;

use distrilock_protocol::name::LockName;

use crate::context::Context;
use crate::limits::{
    NETWORK_RETRY_MS_MAX, NETWORK_RETRY_MS_MIN, NETWORK_RETRY_US_PER_NAME, RECHECK_MS, RETRY_MS_MAX, RETRY_MS_MIN,
    RETRY_US_PER_NAME,
};
use crate::message::Timer;

/// The time between two tries for a name that another process holds: bounded for each name, and for
/// all of a shard together.
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

    /// On a network file system, where a try is a request to the server.
    pub const NETWORK: Self =
        Self { min_ms: NETWORK_RETRY_MS_MIN, us_per_name: NETWORK_RETRY_US_PER_NAME, max_ms: NETWORK_RETRY_MS_MAX };

    /// When to try this many names again.
    fn after_ms(self, names: usize) -> u64 {
        (self.us_per_name * names as u64).div_ceil(1000).clamp(self.min_ms, self.max_ms)
    }
}

/// The contended names of a shard. Each is in one of the two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ContendedNames {
    /// Names for which nobody promised anything.
    polled: BTreeSet<LockName>,
    retry_armed: bool,
    /// How many names the last sweep was for.
    swept: usize,
    /// Names whose holder, a daemon, has promised a wake-up on release.
    promised: BTreeSet<LockName>,
    recheck_armed: bool,
}

impl ContendedNames {
    /// A name is contended, as the last try has shown: another process holds it, or is `disturbed`
    /// by one that deletes its file.
    pub(crate) fn add<F>(&mut self, cx: &mut Context<'_, F>, disturbed: bool, pace: Pace) {
        // A process that deletes a file sends no wake-up.
        if disturbed {
            self.promised.remove(cx.name);
        }
        if self.promised.contains(cx.name) || !self.polled.insert(cx.name.clone()) {
            return;
        }
        if !self.retry_armed {
            self.retry_armed = true;
            // The first name of a sweep that is refused again arms the timer for all that were
            // swept with it.
            let names = self.polled.len().max(std::mem::take(&mut self.swept));
            cx.arm(Timer::Retry, pace.after_ms(names));
        }
        if !disturbed {
            cx.contended();
        }
    }

    /// A name is not contended.
    pub(crate) fn remove(&mut self, name: &LockName) {
        for list in [&mut self.polled, &mut self.promised] {
            if !list.is_empty() {
                list.remove(name);
            }
        }
    }

    /// A daemon holds a name and promises a wake-up on release. This has no effect on a name that
    /// is not polled.
    pub(crate) fn promise<F>(&mut self, cx: &mut Context<'_, F>) {
        if !self.polled.remove(cx.name) {
            return;
        }
        self.promised.insert(cx.name.clone());
        if !self.recheck_armed {
            self.recheck_armed = true;
            cx.arm(Timer::Recheck, RECHECK_MS);
        }
    }

    /// The retry timer has run out: returns the names to try.
    pub(crate) fn retry(&mut self) -> BTreeSet<LockName> {
        self.retry_armed = false;
        let names = std::mem::take(&mut self.polled);
        self.swept = names.len();
        names
    }

    /// The recheck timer has run out: returns the names to try. A promise holds only until then,
    /// since the daemon that made it may hang.
    pub(crate) fn recheck(&mut self) -> BTreeSet<LockName> {
        self.recheck_armed = false;
        self.break_promises()
    }

    /// No promise is going to be kept: returns the names to try.
    pub(crate) fn break_promises(&mut self) -> BTreeSet<LockName> {
        let names = std::mem::take(&mut self.promised);
        self.swept = names.len();
        names
    }

    /// Whether a timer is going to try the name.
    pub(crate) fn will_try(&self, name: &LockName) -> bool {
        (self.retry_armed && self.polled.contains(name)) || (self.recheck_armed && self.promised.contains(name))
    }

    /// Every name, of either list.
    pub(crate) fn names(&self) -> impl Iterator<Item = &LockName> {
        self.polled.iter().chain(&self.promised)
    }
}
