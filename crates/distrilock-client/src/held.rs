//! Held locks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::boottime::BootTime;
use crate::error::{AcquireError, DisconnectedError, LostError, RequestError};
use crate::grant::{GrantGuard, HeldLock};
use crate::session::Standing;
use crate::shared::Handle;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Op, RequestObject, Stamped};

/// One or more locks that were acquired together. Dropping it releases them in the background.
///
/// Whether they are still held does not depend on the daemon's word alone:
/// [`is_lost`](Self::is_lost) and [`valid_until`](Self::valid_until) use this host's own clock.
/// Work that stops when they say so has stopped before anybody else can get the lock, even if the
/// daemon or the network dies silently. The connection has to be driven meanwhile: a runtime whose
/// threads are all blocked sends no heartbeats.
///
/// ```
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// # async fn work() {}
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("nightly").wait().acquire().await?;
/// tokio::select! {
///     () = work() => println!("done"),
///     lost = held.lost() => println!("stopped: {lost}"),
/// }
/// held.release().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Held {
    standing: watch::Receiver<Standing>,
    /// Dropped before the handle, the last one of which closes the connection.
    grant: GrantGuard,
    handle: Arc<Handle>,
}

impl Held {
    pub(crate) fn new(grant: GrantGuard, handle: Arc<Handle>) -> Result<Self, AcquireError> {
        let standing = handle.shared.with(|session, _| session.watch(grant.key));
        let dropped = AcquireError::Disconnected(DisconnectedError::Dropped);
        let standing = standing.ok_or(dropped)?;
        if let Standing::Lost(lost) = &*standing.borrow() {
            return Err(AcquireError::Lost(lost.clone()));
        }
        Ok(Self { standing, grant, handle })
    }

    /// What is held, in the order requested. See [`HeldLock`] for an example.
    #[must_use]
    pub fn locks(&self) -> &[HeldLock] {
        &self.grant.locks
    }

    /// The names, in the order requested.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scripted = distrilock_testing::scripted(r#"{"id":2,"ok":true,"locks":[{"lock":"b"},{"lock":"a"}]}"#);
    /// # let servers = scripted.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.locks(["b", "a"]).acquire().await?;
    /// assert!(held.names().map(|name| name.as_str()).eq(["b", "a"]));
    /// # Ok(()) }
    /// ```
    pub fn names(&self) -> impl Iterator<Item = &LockName> {
        self.locks().iter().map(|lock| &lock.name)
    }

    /// The first slot of the first lock, if slots were asked for; see
    /// [`Acquire::slots`](crate::Acquire::slots).
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scripted = distrilock_testing::scripted(r#"{"id":2,"ok":true,"lock":"gpu","slot":0}"#);
    /// # let servers = scripted.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("gpu").slots(4).acquire().await?;
    /// assert_eq!(held.slot(), Some(0));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn slot(&self) -> Option<u16> {
        self.slots().first().copied()
    }

    /// All slots of the first lock; see [`Acquire::slots`](crate::Acquire::slots) for an example.
    #[must_use]
    pub fn slots(&self) -> &[u16] {
        self.locks().first().map_or(&[], |lock| &lock.slots)
    }

    /// The fence of the first lock, if one was asked for; see
    /// [`Acquire::fence`](crate::Acquire::fence) for an example.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        self.locks().first().and_then(|lock| lock.fence)
    }

    /// Whether any of the locks is lost, by the daemon's word or by this host's clock. A lost lock
    /// stays lost.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").acquire().await?;
    /// assert!(!held.is_lost());
    /// client.bye().await?;
    /// assert!(held.is_lost());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.standing(), Standing::Lost(_))
    }

    /// The present standing of the locks. See [`Standing`] for an example.
    #[must_use]
    pub fn standing(&self) -> Standing {
        // This ends what is over.
        self.handle.shared.with(|_, _| ());
        self.standing.borrow().clone()
    }

    /// Waits until the standing of the locks is no longer `from`, and returns it: held, suspect, or
    /// lost.
    ///
    /// # Cancel safety
    /// Nothing is missed when the future is dropped.
    ///
    /// ```
    /// use distrilock_client::{Client, Standing};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scripted = distrilock_testing::scripted(concat!(
    /// #     r#"{"id":2,"ok":true,"lock":"a"}"#, "\n", r#"{"event":"suspect","lock":"a","valid_ms":20000}"#));
    /// # let servers = scripted.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("a").acquire().await?;
    /// match held.changed(&Standing::Held).await {
    ///     Standing::Suspect(until) => println!("lost at {until:?}, unless the storage comes back"),
    ///     standing => panic!("{standing:?}"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn changed(&self, from: &Standing) -> Standing {
        let mut standing = self.standing.clone();
        let now = standing.wait_for(|now| now != from).await.map(|now| now.clone());
        now.unwrap_or_else(|_| self.standing())
    }

    /// Waits until any of the locks is lost, and returns the reason. Stop the work that they guard.
    ///
    /// # Cancel safety
    /// Nothing is missed when the future is dropped.
    ///
    /// See [`Held`] for an example.
    pub async fn lost(&self) -> LostError {
        let mut standing = self.standing.clone();
        let lost = standing.wait_for(|standing| matches!(standing, Standing::Lost(_))).await.map(|now| now.clone());
        match lost {
            Ok(Standing::Lost(lost)) => lost,
            _ => unreachable!("the session keeps what is held, and its sender, until the grant is dropped"),
        }
    }

    /// Whether the daemon doubts that the storage still keeps the locks.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").acquire().await?;
    /// assert!(!held.is_suspected());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn is_suspected(&self) -> bool {
        matches!(self.standing(), Standing::Suspect(_))
    }

    /// Until when the locks are certain to be held if nothing more is heard. Each answered
    /// heartbeat makes it later. None if they are lost.
    ///
    /// ```
    /// use distrilock_client::{BootTime, Client};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").acquire().await?;
    /// assert!(held.valid_until().is_some_and(|until| until > BootTime::now()));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn valid_until(&self) -> Option<BootTime> {
        self.handle.shared.with(|session, _| session.valid_until(self.grant.key))
    }

    /// For how long the locks are certain to be held if nothing more is heard. Zero if they are
    /// lost.
    ///
    /// ```
    /// use std::time::Duration;
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").acquire().await?;
    /// assert!(held.valid_for() > Duration::from_secs(10));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        self.valid_until().map_or(Duration::ZERO, |until| until.saturating_since(BootTime::now()))
    }

    /// Asks the daemon, which asks the storage, whether all the locks are still real.
    ///
    /// # Errors
    /// [`RequestError::Lost`] if they are not; other errors if the daemon cannot say.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").acquire().await?;
    /// held.verify().await?;
    /// # Ok(()) }
    /// ```
    pub async fn verify(&self) -> Result<(), RequestError> {
        let answers = self.handle.shared.with(|session, now| session.verify(now, self.grant.key))?;
        for answer in answers {
            answer.await.map_err(|_| DisconnectedError::Dropped)??;
        }
        // They may have been lost after an answer that said yes.
        match self.standing() {
            Standing::Lost(lost) => Err(lost.into()),
            Standing::Held | Standing::Suspect(_) => Ok(()),
        }
    }

    /// How long ago the last run began that was recorded under any of the names; `None` if there
    /// was none. See [`record_run`](Self::record_run).
    ///
    /// # Errors
    /// If the daemon refuses: the lock is lost, the lock directory fails, or the daemon is older
    /// and knows no stamps (`unknown_op`). If the connection has ended.
    pub async fn last_run(&self) -> Result<Option<Duration>, RequestError> {
        let ages = self.stamp(None).await?;
        Ok(ages.into_iter().flatten().min())
    }

    /// Records under each of the names that a run began this long ago, for whoever holds the lock
    /// next, at any daemon of the lock directory. The record stays after the lock is released.
    ///
    /// # Errors
    /// Those of [`last_run`](Self::last_run).
    ///
    /// ```
    /// use std::time::Duration;
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").acquire().await?;
    /// if held.last_run().await?.is_none_or(|age| age > Duration::from_secs(80_000)) {
    ///     held.record_run(Duration::ZERO).await?;
    ///     println!("it is time");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn record_run(&self, began_ago: Duration) -> Result<(), RequestError> {
        let age_ms = u32::try_from(began_ago.as_millis()).unwrap_or(u32::MAX);
        self.stamp(Some(age_ms)).await.map(drop)
    }

    /// Asks for the stamp of each name, or writes it.
    async fn stamp(&self, age_ms: Option<u32>) -> Result<Vec<Option<Duration>>, RequestError> {
        let mut ages = Vec::new();
        for name in self.names() {
            let op = Op::Stamp { lock: name.clone(), age_ms };
            let answer = self.handle.shared.with(|session, now| session.ask(now, &RequestObject::from(&op)));
            let text = answer.await.map_err(|_| DisconnectedError::Dropped)??;
            let stamped: Stamped<'_> = serde_json::from_slice(&text).map_err(|error| {
                let why = DisconnectedError::Garbage { what: error.to_string() };
                self.handle.shared.with(|session, _| session.end(&why));
                why
            })?;
            ages.push(stamped.age_ms.map(Duration::from_millis));
        }
        Ok(ages)
    }

    /// Releases the locks, and waits until the daemon has done so.
    ///
    /// # Errors
    /// [`RequestError::Lost`] if they were lost before; other errors if the daemon cannot say. In
    /// any case, they are no longer held.
    ///
    /// # Cancel safety
    /// The first poll of the future sends the release. Dropping the future after that only gives up
    /// the answer.
    ///
    /// See [`Held`] for an example.
    pub async fn release(self) -> Result<(), RequestError> {
        let (to, answer) = oneshot::channel();
        self.handle.shared.with(|session, now| session.release(now, self.grant.key, Some(to)));
        answer.await.map_err(|_| DisconnectedError::Dropped)??;
        Ok(())
    }
}
