//! Grants: how they are read, and the guard that releases what nobody wants any more.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::error::shown;
use crate::wanted::{Asked, Wanted};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{self, Grants, ModeWord};

/// A lock that is held, and what its grant says.
///
/// ```
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("nightly").acquire().await?;
/// assert_eq!(held.locks()[0].name.as_str(), "nightly");
/// assert!(held.locks()[0].slots.is_empty());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldLock {
    /// Its name.
    pub name: LockName,
    /// The slots that are held, counted from 0. None unless slots were asked for.
    pub slots: Vec<u16>,
    /// The fence, if one was asked for: a number that only increases for its name (a fencing
    /// token).
    pub fence: Option<u64>,
}

/// Reads the grant of what was asked for, and nothing less: a program that asked for a lock of its
/// own must not go on with a shared one, nor without the fence that it is going to use.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(text: &[u8], asked: &Asked) -> Result<Vec<HeldLock>, String> {
    let wanted = asked.locks();
    let grants = if let [_] = wanted {
        serde_json::from_slice::<v1::Grant<'_>>(text).map(|grant| vec![grant])
    } else {
        serde_json::from_slice::<Grants<'_>>(text).map(|several| several.locks)
    };
    let grants = grants.map_err(|error| format!("a grant: {error}"))?;
    if grants.len() != wanted.len() {
        return Err(format!("a grant of {} locks, not of the {} that were asked for", grants.len(), wanted.len()));
    }
    let lock = |(grant, (name, wanted)): (_, &(LockName, Wanted))| held_lock(grant, name, wanted, asked.fence());
    grants.into_iter().zip(wanted).map(lock).collect()
}

fn held_lock(grant: v1::Grant<'_>, name: &LockName, wanted: &Wanted, fence: bool) -> Result<HeldLock, String> {
    if grant.lock != name.as_str() {
        return Err(format!("a grant of another lock than {name}"));
    }
    let taken = grant.taken.unwrap_or_default();
    let slots = if taken.is_empty() { grant.slot.into_iter().collect() } else { taken.into_owned() };
    if slots.iter().collect::<HashSet<_>>().len() != slots.len() {
        return Err(format!("a grant of {name} that names a slot twice"));
    }
    let mode = grant.mode.unwrap_or(if wanted.slots.is_some() { ModeWord::Slots } else { ModeWord::Exclusive });
    let asked = if wanted.slots.is_some() {
        ModeWord::Slots
    } else if wanted.shared {
        ModeWord::Shared
    } else {
        ModeWord::Exclusive
    };
    if mode != asked {
        return Err(format!("a grant of {name} in another mode than was asked for: {}", shown(mode.as_str())));
    }
    let count = if wanted.slots.is_some() { usize::from(wanted.take.unwrap_or(1)) } else { 0 };
    if slots.len() != count {
        return Err(format!("a grant of {} slots of {name}, not of the {count} that were asked for", slots.len()));
    }
    if let Some(slot) = slots.iter().find(|slot| wanted.slots.is_none_or(|of| **slot >= of)) {
        return Err(format!("a grant of slot {slot} of {name}, which has no such slot"));
    }
    if fence && grant.fence.is_none() {
        return Err(format!("a grant of {name} without the fence that was asked for"));
    }
    Ok(HeldLock { name: name.clone(), slots, fence: grant.fence })
}

/// What can release a grant.
pub(crate) trait Release: fmt::Debug + Send + Sync {
    /// Releases what was granted under `key`.
    fn release(self: Arc<Self>, key: u64);
}

/// A grant that releases itself when it is dropped.
#[derive(Debug)]
pub(crate) struct GrantGuard {
    releaser: Arc<dyn Release>,
    /// The session's number for it.
    pub(crate) key: u64,
    pub(crate) locks: Vec<HeldLock>,
}

impl GrantGuard {
    pub(crate) fn new(releaser: Arc<dyn Release>, key: u64, locks: Vec<HeldLock>) -> Self {
        Self { releaser, key, locks }
    }
}

impl Drop for GrantGuard {
    fn drop(&mut self) {
        Arc::clone(&self.releaser).release(self.key);
    }
}
