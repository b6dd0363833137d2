//! The environment of CMD: what it learns about the lock that it runs under.

use std::process::Command;

use super::guard_socket;
use distrilock_client::{Client, Held};

/// The variable that lists the names of the held locks.
pub(super) const LOCK: &str = "DISTRILOCK_LOCK";

/// The variable that is 1 if CMD runs under a lock, and 0 if it runs without one.
pub(super) const HELD: &str = "DISTRILOCK_HELD";

/// The variable that holds the number of the descriptor that is the connection, under `run -F`.
pub(super) const DESCRIPTOR: &str = "DISTRILOCK_FD";

const SLOT: &str = "DISTRILOCK_SLOT";
const FENCE: &str = "DISTRILOCK_FENCE";
const TOKEN: &str = "DISTRILOCK_TOKEN";
const SESSION: &str = "DISTRILOCK_SESSION";

/// All variables that describe a lock. Those of an outer `distrilock run` do not reach CMD.
const ALL: [&str; 8] = [LOCK, SLOT, FENCE, TOKEN, SESSION, HELD, guard_socket::VARIABLE, DESCRIPTOR];

/// Values for some of the variables; the others are unset.
pub(super) struct LockEnvironment(Vec<(&'static str, String)>);

impl LockEnvironment {
    /// Describes a held lock. Several locks are listed in the order in which they were asked for,
    /// separated by commas, and so are the slots of one; a lock without a slot, or without a fence,
    /// is left out of that list.
    pub(super) fn held(client: &Client, held: &Held) -> Self {
        let join = |parts: Vec<String>| if parts.is_empty() { None } else { Some(parts.join(",")) };
        let locks = held.locks();
        let names = join(locks.iter().map(|lock| lock.name.to_string()).collect());
        let slots = join(locks.iter().flat_map(|lock| lock.slots.iter().map(ToString::to_string)).collect());
        let fences = join(locks.iter().filter_map(|lock| Some(lock.fence?.to_string())).collect());
        let values = [
            (LOCK, names),
            (SLOT, slots),
            (FENCE, fences.clone()),
            (TOKEN, fences),
            (SESSION, Some(client.welcome().session.clone())),
            (HELD, Some("1".to_owned())),
        ];
        Self(values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }

    /// Says that there is no lock.
    pub(super) fn without_lock() -> Self {
        Self(vec![(HELD, "0".to_owned())])
    }

    /// Adds a variable.
    pub(super) fn with(mut self, name: &'static str, value: String) -> Self {
        self.0.push((name, value));
        self
    }

    /// Sets the variables for this command, and unsets the rest of them.
    pub(super) fn apply(&self, command: &mut Command) {
        for name in ALL {
            command.env_remove(name);
        }
        command.envs(self.0.iter().map(|(name, value)| (name, value)));
    }
}
