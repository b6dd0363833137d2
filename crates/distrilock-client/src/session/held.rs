//! What a session knows about the locks that were granted to it.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::boottime::BootTime;
use crate::error::LostError;
use distrilock_protocol::name::LockName;

/// Whether a lock is held.
///
/// ```
/// use distrilock_client::{Client, Standing};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("nightly").acquire().await?;
/// assert_eq!(held.standing(), Standing::Held);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is held.
    Held,
    /// It is still held, but the daemon cannot reach the storage: unless that changes, it is lost
    /// at this moment.
    Suspect(BootTime),
    /// It is lost.
    Lost(LostError),
}

/// Locks that were granted together and have not been released.
#[derive(Debug)]
pub(super) struct HeldGrant {
    /// The ones that the daemon still keeps for the session.
    pub(super) names: Vec<LockName>,
    /// Until when the storage is certain to keep them, if that is known.
    pub(super) proven_until: Option<BootTime>,
    /// Names that the daemon doubts, and until when they are certain to be held.
    pub(super) suspects: BTreeMap<LockName, BootTime>,
    pub(super) standing: watch::Sender<Standing>,
}

impl HeldGrant {
    pub(super) fn until(&self) -> Option<BootTime> {
        self.proven_until.into_iter().chain(self.suspects.values().copied()).min()
    }

    pub(super) fn lose(&self, lost: LostError) {
        self.standing.send_if_modified(|standing| {
            let holds = !matches!(standing, Standing::Lost(_));
            if holds {
                *standing = Standing::Lost(lost);
            }
            holds
        });
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(*self.standing.borrow(), Standing::Lost(_))
    }

    /// Updates the standing after a change of the suspects.
    pub(super) fn update_standing(&self) {
        let now = self.suspects.values().min().map_or(Standing::Held, |until| Standing::Suspect(*until));
        self.standing.send_if_modified(|standing| {
            let changes = !matches!(standing, Standing::Lost(_)) && *standing != now;
            if changes {
                *standing = now;
            }
            changes
        });
    }
}
