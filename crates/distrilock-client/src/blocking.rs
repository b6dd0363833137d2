//! The same client without `async`: each call blocks its thread. Each connection has a thread of
//! its own that sends the heartbeats, so that a program that computes for minutes keeps its locks.
//!
//! ```
//! use distrilock_client::blocking::Client;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let daemon = distrilock_testing::Daemon::start();
//! # let servers = daemon.servers();
//! let client = Client::connect(&servers)?;
//! let held = client.lock("backup").wait().acquire()?;
//! // Work that nobody else may do meanwhile; from time to time:
//! if held.is_lost() {
//!     return Err("the lock is lost".into());
//! }
//! held.release()?;
//! # Ok(()) }
//! ```

use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::oneshot;

use crate::address::Server;
use crate::block_on::{block_on, block_on_until};
use crate::boottime::BootTime;
use crate::connect::Builder;
use crate::error::{AcquireError, ConnectError, DisconnectedError, LostError, RequestError};
use crate::grant::HeldLock;
use crate::session::Standing;
use crate::wanted::Wanted;
use crate::{acquire, client, held};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Introduction, Listed, Peeked, Welcome};

/// A connection to a daemon: one session. The blocking twin of [`crate::Client`]. Cheap to clone;
/// the clones share it.
///
/// ```
/// use distrilock_client::Introduction;
/// use distrilock_client::blocking::Client;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers)?;
/// client.ping()?;
/// assert_eq!((client.server(), client.welcome().version), (&servers[0], 1));
/// client.hello(&Introduction { note: Some("weekly".into()), ..Introduction::default() })?;
/// assert!(client.list()?.is_empty() && !client.peek("nightly")?.locked);
/// let held = client.locks(["nightly", "weekly"]).acquire()?;
/// client.verify("nightly")?;
/// client.bye()?;
/// assert!(held.is_lost() && client.ended().is_some());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client(client::Client);

impl Builder {
    /// Connects as [`connect`](Self::connect) does, without `async`.
    ///
    /// # Errors
    /// Each server that was tried, and why it does not serve this client.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::builder().name("backup@db1").connect_blocking(&servers)?;
    /// # Ok(()) }
    /// ```
    pub fn connect_blocking(self, servers: &[Server]) -> Result<Client, ConnectError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (to, opened) = oneshot::channel();
        let servers = servers.to_vec();
        let life = async move {
            match self.open(&servers).await {
                Ok((client, driver)) => {
                    // The caller is still there. If it were gone, dropping the client would end the
                    // connection.
                    drop(to.send(Ok(client)));
                    driver.await;
                }
                Err(error) => drop(to.send(Err(error))),
            }
        };
        thread::Builder::new().name("distrilock".into()).spawn(move || runtime.block_on(life))?;
        block_on(opened).expect("the thread sends before it ends").map(Client)
    }
}

impl Client {
    /// Connects to the first of the servers that answers, with the default settings; see [`Client`]
    /// for an example.
    ///
    /// # Errors
    /// Each server that was tried, and why it does not serve this client.
    pub fn connect(servers: &[Server]) -> Result<Self, ConnectError> {
        Self::builder().connect_blocking(servers)
    }

    /// Connects with other settings; see [`Builder::connect_blocking`] for an example.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The server that answered; see [`Client`] for an example.
    #[must_use]
    pub fn server(&self) -> &Server {
        self.0.server()
    }

    /// What the daemon said of itself and of this session; see [`Client`] for an example.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        self.0.welcome()
    }

    /// How long this program may take to stop its work once a lock is lost; see
    /// [`Builder::stop_within_between`] for an example.
    #[must_use]
    pub fn stop_within(&self) -> Duration {
        self.0.stop_within()
    }

    /// Why the connection has ended; None if it has not. See [`Client`] for an example.
    #[must_use]
    pub fn ended(&self) -> Option<DisconnectedError> {
        self.0.ended()
    }

    /// Begins to acquire a lock; see [`Acquire`] for an example.
    pub fn lock(&self, name: impl Into<String>) -> Acquire {
        Acquire(self.0.lock(name))
    }

    /// Begins to acquire several locks, all or none; see [`Client`] for an example.
    pub fn locks<I>(&self, locks: I) -> Acquire
    where
        I: IntoIterator,
        I::Item: Into<Wanted>,
    {
        Acquire(self.0.locks(locks))
    }

    /// Asks who holds a lock; see [`Client`] for an example.
    ///
    /// # Errors
    /// If the daemon refuses, or the connection has ended.
    pub fn peek(&self, name: &str) -> Result<Peeked, RequestError> {
        block_on(self.0.peek(name))
    }

    /// Asks who holds a lock, through any daemon of the lock directory; see
    /// [`Client::peek_everywhere`](crate::Client::peek_everywhere).
    ///
    /// # Errors
    /// If the daemon refuses, or the connection has ended.
    pub fn peek_everywhere(&self, name: &str) -> Result<Peeked, RequestError> {
        block_on(self.0.peek_everywhere(name))
    }

    /// Asks whether this session holds a lock and the lock is still real; see [`Client`] for an
    /// example.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with the word `not_held` or `lost` if it does not.
    pub fn verify(&self, name: &str) -> Result<(), RequestError> {
        block_on(self.0.verify(name))
    }

    /// Lists all locks that are held or waited for at this daemon; see [`Client`] for an example.
    ///
    /// # Errors
    /// If the daemon refuses, or the connection has ended.
    pub fn list(&self) -> Result<Vec<Listed>, RequestError> {
        block_on(self.0.list())
    }

    /// Lists the locks of all daemons of the lock directory; see
    /// [`Client::list_everywhere`](crate::Client::list_everywhere).
    ///
    /// # Errors
    /// If the daemon refuses, or the connection has ended.
    pub fn list_everywhere(&self) -> Result<Vec<Listed>, RequestError> {
        block_on(self.0.list_everywhere())
    }

    /// Asks whether the daemon answers; see [`Client`] for an example.
    ///
    /// # Errors
    /// If it does not.
    pub fn ping(&self) -> Result<(), RequestError> {
        block_on(self.0.ping())
    }

    /// Introduces the session again; see [`Client`] for an example.
    ///
    /// # Errors
    /// If the daemon refuses it.
    pub fn hello(&self, introduction: &Introduction) -> Result<Welcome, RequestError> {
        block_on(self.0.hello(introduction))
    }

    /// Releases everything, waits until that is done, and closes the connection; see [`Client`] for
    /// an example.
    ///
    /// # Errors
    /// If the connection ends before the daemon has confirmed it.
    pub fn bye(&self) -> Result<(), RequestError> {
        block_on(self.0.bye())
    }
}

/// The builder of an acquire: the blocking twin of [`crate::Acquire`].
///
/// ```
/// use std::time::Duration;
/// use distrilock_client::blocking::Client;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers)?;
/// let held = client.lock("config").shared().wait_at_most(Duration::from_secs(60)).acquire()?;
/// let gpus = client.lock("gpu").slots(4).take(2).fence().wait().acquire()?;
/// assert_eq!((gpus.slot(), gpus.slots()), (Some(0), &[0, 1][..]));
/// assert!(gpus.fence().is_some());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is requested before `acquire`"]
pub struct Acquire(acquire::Acquire);

impl Acquire {
    /// Shares the lock with other shared holders; see [`Acquire`] for an example.
    pub fn shared(self) -> Self {
        Self(self.0.shared())
    }

    /// Waits without limit until the lock is granted; see [`Acquire`] for an example.
    pub fn wait(self) -> Self {
        Self(self.0.wait())
    }

    /// Waits at most this long; see [`Acquire`] for an example.
    pub fn wait_at_most(self, time: Duration) -> Self {
        Self(self.0.wait_at_most(time))
    }

    /// Acquires one slot of a lock that has this many; see [`Acquire`] for an example.
    pub fn slots(self, slots: u16) -> Self {
        Self(self.0.slots(slots))
    }

    /// Acquires this many of the slots; see [`Acquire`] for an example.
    pub fn take(self, take: u16) -> Self {
        Self(self.0.take(take))
    }

    /// Asks for a fence with the grant; see [`Acquire`] for an example.
    pub fn fence(self) -> Self {
        Self(self.0.fence())
    }

    /// Acquires the locks, all or none; see [`Acquire`] for an example.
    ///
    /// # Errors
    /// Why the locks were not acquired.
    pub fn acquire(self) -> Result<Held, AcquireError> {
        block_on(self.0.acquire()).map(Held)
    }
}

/// One or more locks that were acquired together: the blocking twin of [`crate::Held`]. Dropping it
/// releases them in the background.
///
/// ```
/// use std::time::Duration;
/// use distrilock_client::Standing;
/// use distrilock_client::blocking::Client;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers)?;
/// let held = client.locks(["nightly", "weekly"]).acquire()?;
/// assert!(held.names().eq(held.locks().iter().map(|lock| &lock.name)));
/// assert!(held.standing() == Standing::Held && !held.is_suspected() && held.valid_until().is_some());
/// held.verify()?;
/// assert!(!held.is_lost() && held.valid_for() > Duration::from_secs(10));
/// assert_eq!(held.lost_within(Duration::from_millis(1)), None);
/// held.release()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Held(held::Held);

impl Held {
    /// What is held, in the order requested; see [`Held`] for an example.
    #[must_use]
    pub fn locks(&self) -> &[HeldLock] {
        self.0.locks()
    }

    /// The names; see [`Held`] for an example.
    pub fn names(&self) -> impl Iterator<Item = &LockName> {
        self.0.names()
    }

    /// The first slot of the first lock; see [`Acquire`] for an example.
    #[must_use]
    pub fn slot(&self) -> Option<u16> {
        self.0.slot()
    }

    /// All slots of the first lock; see [`Acquire`] for an example.
    #[must_use]
    pub fn slots(&self) -> &[u16] {
        self.0.slots()
    }

    /// The fence of the first lock; see [`Acquire`] for an example.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        self.0.fence()
    }

    /// Whether any of the locks is lost; see [`Held`] for an example.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    /// The present standing of the locks; see [`Held`] for an example.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.0.standing()
    }

    /// Whether the daemon doubts that the storage still keeps the locks; see [`Held`] for an
    /// example.
    #[must_use]
    pub fn is_suspected(&self) -> bool {
        self.0.is_suspected()
    }

    /// Waits until any of the locks is lost, and returns the reason: best in a thread of its own.
    ///
    /// ```
    /// use distrilock_client::blocking::Client;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers)?;
    /// let held = client.lock("nightly").acquire()?;
    /// std::thread::scope(|scope| {
    ///     let watch = scope.spawn(|| println!("{}", held.lost()));
    ///     client.bye()?;
    ///     watch.join().expect("the watch does not panic");
    ///     Ok(())
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn lost(&self) -> LostError {
        block_on(self.0.lost())
    }

    /// Waits at most `time` until any of the locks is lost. None if they are still held then. See
    /// [`Held`] for an example.
    #[must_use]
    pub fn lost_within(&self, time: Duration) -> Option<LostError> {
        // A time beyond the clock's range is as good as no limit.
        block_on_until(self.0.lost(), Instant::now().checked_add(time))
    }

    /// Until when the locks are certain to be held if nothing more is heard; see [`Held`] for an
    /// example.
    #[must_use]
    pub fn valid_until(&self) -> Option<BootTime> {
        self.0.valid_until()
    }

    /// For how long the locks are certain to be held if nothing more is heard; see [`Held`] for an
    /// example.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        self.0.valid_for()
    }

    /// Asks whether all the locks are still real; see [`Held`] for an example.
    ///
    /// # Errors
    /// [`RequestError::Lost`] if they are not; other errors if the daemon cannot say.
    pub fn verify(&self) -> Result<(), RequestError> {
        block_on(self.0.verify())
    }

    /// As [`Held::last_run`](crate::Held::last_run): how long ago the last recorded run began.
    ///
    /// # Errors
    /// The same.
    pub fn last_run(&self) -> Result<Option<Duration>, RequestError> {
        block_on(self.0.last_run())
    }

    /// As [`Held::record_run`](crate::Held::record_run): records that a run began this long ago.
    ///
    /// # Errors
    /// The same.
    pub fn record_run(&self, began_ago: Duration) -> Result<(), RequestError> {
        block_on(self.0.record_run(began_ago))
    }

    /// Releases the locks, and waits until the daemon has done so; see [`Held`] for an example.
    ///
    /// # Errors
    /// [`RequestError::Lost`] if they were lost before; other errors if the daemon cannot say. In
    /// any case, they are no longer held.
    pub fn release(self) -> Result<(), RequestError> {
        block_on(self.0.release())
    }
}
