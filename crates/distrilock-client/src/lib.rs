//! The client library: connect to a daemon, acquire locks, and know for how long they are held.
//!
//! A [`Client`] is one connection, which is one session of the daemon. [`Client::lock`] acquires a lock and gives a [`Held`];
//! dropping it releases the lock, and [`Held::lost`] tells if it is lost before. [`blocking`] is the same without `async`.
//!
//! ```
//! use distrilock_client::Client;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let daemon = distrilock_testing::Daemon::start();
//! # let servers = daemon.servers();
//! // Or those that the environment names: `Server::defaults()?`.
//! let client = Client::connect(&servers).await?;
//! let held = client.lock("backup").wait().acquire().await?;
//! // Work that nobody else is to do now.
//! held.release().await?;
//! # Ok(()) }
//! ```
//!
//! Three things are certain:
//!
//! - A lock is never called held after it may have been given to somebody else. The client sends heartbeats, and gives its locks
//!   up by its own clock when they are not answered, sooner than the daemon gives the client up. The program then has
//!   [`stop_within`](Builder::stop_within) to stop its work.
//! - Dropping the future of an acquire never leaves a lock behind.
//! - Nothing is connected anew in silence: a new connection is a new session, and holds nothing.

mod acquire;
mod address;
pub mod blocking;
mod boot;
mod connect;
mod drive;
mod error;
mod held;
mod link;
mod message;
mod park;
mod readiness;
mod session;
mod shared;
mod timing;
mod view;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

pub use acquire::{Acquire, Wanted};
pub use address::{BadServer, Server};
pub use boot::BootTime;
pub use connect::{Builder, Introduction};
pub use error::{AcquireError, Attempt, ConnectError, Disconnected, Failure, Lost, RequestError};
pub use held::Held;
pub use message::HeldLock;
pub use session::Standing;
pub use view::{Listed, Peeked, Seen, Welcome};

use distrilock_protocol::name::LockName;
use message::{Body, Page, Request};
use shared::{Handle, Shared};

const MODE_SHARED: &str = "shared";

/// A connection to a daemon: one session. Cheap to clone; the clones share it. It is closed when the last clone and the last
/// [`Held`] are dropped.
///
/// ```
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("nightly").acquire().await?;
/// let other = client.clone();
/// tokio::spawn(async move { other.ping().await }).await??;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    handle: Arc<Handle>,
    about: Arc<About>,
}

/// What the first reply told.
#[derive(Debug)]
struct About {
    server: Server,
    welcome: Welcome,
}

impl Client {
    /// Connects to the first of the servers that answers, with everything at its default. Runs within a tokio runtime, which has
    /// to have I/O and time enabled.
    ///
    /// # Errors
    /// Names each server that was tried, and why it does not serve.
    ///
    /// See [`Client`] for an example.
    pub async fn connect(servers: &[Server]) -> Result<Self, ConnectError> {
        Self::builder().connect(servers).await
    }

    /// Connects otherwise: with an introduction, or other times.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::builder().name("backup@db1").note("nightly").connect(&servers).await?;
    /// # Ok(()) }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The connection itself, for a program that hands it on: the daemon keeps the locks as long as any process has it open.
    /// Whoever reads from it or writes to it breaks the client.
    ///
    /// ```
    /// use std::os::fd::AsRawFd;
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// assert!(client.connection().as_raw_fd() > 2);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.handle.1.as_fd()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    /// The server that answered.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// assert_eq!(client.server(), &servers[0]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.about.server
    }

    /// What the daemon said of itself and of this session; see [`Welcome`] for an example.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.about.welcome
    }

    /// Why the connection has ended, if it has.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// assert_eq!(client.ended(), None);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn ended(&self) -> Option<Disconnected> {
        self.shared().with(|session, _| session.ended().cloned())
    }

    /// Begins to acquire a lock; see [`Acquire`].
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").acquire().await?;
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, name: impl Into<String>) -> Acquire {
        Acquire::new(self.clone(), vec![Wanted::new(name)])
    }

    /// Begins to acquire several locks, all or none. They are acquired in the order of their names, so that clients which want
    /// the same ones never wait for each other in a circle.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scripted = distrilock_testing::scripted(r#"{"id":2,"ok":true,"locks":[{"lock":"a"},{"lock":"b"}]}"#);
    /// # let servers = scripted.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.locks(["a", "b"]).wait().acquire().await?;
    /// assert_eq!(held.names().count(), 2);
    /// # Ok(()) }
    /// ```
    pub fn locks<I>(&self, locks: I) -> Acquire
    where
        I: IntoIterator,
        I::Item: Into<Wanted>,
    {
        Acquire::new(self.clone(), locks.into_iter().map(Into::into).collect())
    }

    async fn ask<T: Body>(&self, request: Request<'_>) -> Result<T, RequestError> {
        let answer = self.shared().with(|session, now| session.ask(now, request));
        let text = answer.await.map_err(|_| Disconnected::Dropped)?.map_err(RequestError::from)?;
        T::read(&text).map_err(|error| {
            let why = Disconnected::Garbage { what: error.to_string() };
            self.shared().with(|session, _| session.end(&why));
            why.into()
        })
    }

    /// Asks who holds a lock; see [`Peeked`] for an example.
    ///
    /// # Errors
    /// If it cannot be told.
    pub async fn peek(&self, name: &str) -> Result<Peeked, RequestError> {
        let lock = LockName::parse(name.as_bytes())?;
        self.ask(Request { op: "peek", lock: Some(lock.as_str()), ..Request::default() }).await
    }

    /// Asks whether this session holds a lock and the lock is still real. Who has a [`Held`] uses [`Held::verify`].
    ///
    /// # Errors
    /// [`RequestError::Refused`] with the word `not_held` or `lost` if it does not; see [`RequestError`] for an example.
    pub async fn verify(&self, name: &str) -> Result<(), RequestError> {
        let lock = LockName::parse(name.as_bytes())?;
        self.ask(Request { op: "verify", lock: Some(lock.as_str()), ..Request::default() }).await
    }

    /// All locks that are held or waited for at this daemon, in the order of their names; see [`Listed`] for an example.
    ///
    /// # Errors
    /// If they cannot be told.
    pub async fn list(&self) -> Result<Vec<Listed>, RequestError> {
        let mut locks: Vec<Listed> = Vec::new();
        loop {
            let after = locks.last().map(|last| last.lock.as_str());
            let page: Page = self.ask(Request { op: "list", after, ..Request::default() }).await?;
            // A page that does not go on would never end.
            let goes_on = page.locks.first().is_some_and(|first| after.is_none_or(|after| *first.lock > *after));
            locks.extend(page.locks);
            if !page.more || !goes_on {
                return Ok(locks);
            }
        }
    }

    /// Asks whether the daemon answers.
    ///
    /// # Errors
    /// If it does not.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// Client::connect(&servers).await?.ping().await?;
    /// # Ok(()) }
    /// ```
    pub async fn ping(&self) -> Result<(), RequestError> {
        self.ask(Request { op: "ping", ..Request::default() }).await
    }

    /// Introduces the session anew: what others see of it in [`peek`](Self::peek) and [`list`](Self::list).
    ///
    /// # Errors
    /// If the daemon does not take it: see the limits in docs/protocol.md, chapter 7.
    ///
    /// ```
    /// use distrilock_client::{Client, Introduction};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let introduction = Introduction { note: Some("second half".into()), ..Introduction::default() };
    /// client.hello(&introduction).await?;
    /// # Ok(()) }
    /// ```
    pub async fn hello(&self, introduction: &Introduction) -> Result<Welcome, RequestError> {
        self.ask(introduction.request()).await
    }

    /// Releases everything, waits until that is done, and closes the connection. Every [`Held`] of it counts as lost as soon as
    /// this is called; see [`Lost`] for an example.
    ///
    /// # Errors
    /// If the connection ends before the daemon has confirmed it. It then releases everything all the same.
    pub async fn bye(&self) -> Result<(), RequestError> {
        let answer = self.shared().with(|session, now| session.bye(now));
        answer.await.map_err(|_| Disconnected::Dropped)?.map_err(RequestError::from)?;
        Ok(())
    }
}
