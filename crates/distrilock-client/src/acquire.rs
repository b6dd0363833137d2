//! Acquiring: the builder of an acquire, and the future that asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::{AcquireError, DisconnectedError};
use crate::held::Held;
use crate::session::StartError;
use crate::shared::{Handle, Shared};
use crate::wanted::{Asked, Wanted};
use distrilock_protocol::v1::Wait;

/// The builder of an acquire. [`Client::lock`](crate::Client::lock) begins one for a name,
/// [`Client::locks`](crate::Client::locks) one for several.
///
/// ```
/// use std::time::Duration;
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("config").shared().wait_at_most(Duration::from_secs(60)).acquire().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is requested before `acquire`"]
pub struct Acquire {
    handle: Arc<Handle>,
    wanted: Vec<Wanted>,
    wait: Wait,
    fence: bool,
}

impl Acquire {
    pub(crate) fn new(handle: Arc<Handle>, wanted: Vec<Wanted>) -> Self {
        Self { handle, wanted, wait: Wait::No, fence: false }
    }

    /// Shares the lock with other shared holders. See [`Acquire`] for an example.
    pub fn shared(mut self) -> Self {
        self.wanted.iter_mut().for_each(|wanted| wanted.shared = true);
        self
    }

    /// Waits without limit until the lock is granted. Without this or
    /// [`wait_at_most`](Self::wait_at_most), the lock is tried once.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").wait().acquire().await?;
    /// # Ok(()) }
    /// ```
    pub fn wait(mut self) -> Self {
        self.wait = Wait::NoLimit;
        self
    }

    /// Waits at most this long, then fails with [`AcquireError::Timeout`]. See [`Acquire`] for an
    /// example.
    pub fn wait_at_most(mut self, time: Duration) -> Self {
        // Rounded up, so that a fraction of a millisecond still is a wait.
        let millis = u64::try_from(time.as_nanos().div_ceil(1_000_000));
        self.wait = match millis {
            Ok(0) => Wait::No,
            Ok(millis) => Wait::Millis(millis),
            Err(_) => Wait::NoLimit,
        };
        self
    }

    /// Acquires one slot of a lock that has this many. All holders have to name the same number.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scripted = distrilock_testing::scripted(r#"{"id":2,"ok":true,"lock":"gpu","slot":2,"taken":[2,3]}"#);
    /// # let servers = scripted.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("gpu").slots(4).take(2).acquire().await?;
    /// assert_eq!(held.slots(), [2, 3]);
    /// # Ok(()) }
    /// ```
    pub fn slots(mut self, slots: u16) -> Self {
        self.wanted.iter_mut().for_each(|wanted| wanted.slots = Some(slots));
        self
    }

    /// Acquires this many of the slots. See [`slots`](Self::slots) for an example.
    pub fn take(mut self, take: u16) -> Self {
        self.wanted.iter_mut().for_each(|wanted| wanted.take = Some(take));
        self
    }

    /// Asks for a fence with the grant: a per-name number that only increases (a fencing token).
    /// The guarded resource can refuse lower ones.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scripted = distrilock_testing::scripted(r#"{"id":2,"ok":true,"lock":"ledger","fence":91}"#);
    /// # let servers = scripted.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("ledger").fence().acquire().await?;
    /// assert_eq!(held.fence(), Some(91));
    /// # Ok(()) }
    /// ```
    pub fn fence(mut self) -> Self {
        self.fence = true;
        self
    }

    /// Acquires the locks, all or none.
    ///
    /// # Errors
    /// Why the locks were not acquired. After [`AcquireError::Disconnected`], connect again: the
    /// client never does so on its own, since a new connection holds nothing.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait, and releases a grant that is on its way: no lock is left
    /// behind. Until the daemon has confirmed that, another acquire of the same name on this client
    /// waits for it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let (one, other) = (Client::connect(&servers).await?, Client::connect(&servers).await?);
    /// let held = one.lock("nightly").acquire().await?;
    /// tokio::select! {
    ///     held = other.lock("nightly").wait().acquire() => println!("held: {held:?}"),
    ///     () = tokio::time::sleep(Duration::from_millis(10)) => println!("something else came first"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn acquire(self) -> Result<Held, AcquireError> {
        let asked = Asked::new(&self.wanted, self.wait, self.fence)?;
        let shared = &self.handle.shared;
        loop {
            let freed = shared.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // From here on, no change is missed.
            freed.as_mut().enable();
            let (to, answer) = oneshot::channel();
            match shared.with(|session, now| session.acquire(now, &asked, to)) {
                Ok(id) => {
                    let _waiting = Waiting { shared: Arc::clone(shared), id };
                    let dropped = AcquireError::Disconnected(DisconnectedError::Dropped);
                    let grant = answer.await.unwrap_or(Err(dropped))?;
                    return Held::new(grant, Arc::clone(&self.handle));
                }
                Err(StartError::Refused(error)) => return Err(error),
                Err(StartError::Leaving) => freed.await,
            }
        }
    }
}

/// An acquire that waits for its reply. Dropping it abandons the acquire; after the reply, that
/// does nothing.
struct Waiting {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.with(|session, now| session.abandon(now, self.id));
    }
}
