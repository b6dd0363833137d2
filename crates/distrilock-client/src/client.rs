//! A connection to a daemon, and what can be asked of it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::acquire::Acquire;
use crate::address::Server;
use crate::error::{DisconnectedError, RequestError};
use crate::shared::{Handle, Shared};
use crate::wanted::Wanted;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{
    Done, ErrorWord, Introduction, Listed, Listing, Op, Peeked, RequestObject, Text, Welcome,
};

/// How large a list may become: hundreds of thousands of locks. A server that invents names without
/// end must not fill this program's memory.
const LIST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A connection to a daemon: one session. Cheap to clone; the clones share it. It is closed when
/// the last clone and the last [`Held`](crate::Held) are dropped.
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
/// let other = client.clone();
/// tokio::spawn(async move { other.ping().await }).await??;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    handle: Arc<Handle>,
    about: Arc<About>,
}

/// The server, and what it said first.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) server: Server,
    pub(crate) welcome: Welcome,
}

impl Client {
    pub(crate) fn new(handle: Arc<Handle>, about: About) -> Self {
        Self { handle, about: Arc::new(about) }
    }

    /// The connection itself, for a program that passes it on: the daemon keeps the locks as long
    /// as any process has it open. Reading from it or writing to it breaks the client.
    ///
    /// ```
    /// use std::os::fd::AsRawFd;
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// assert!(client.connection().as_raw_fd() > 2);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.handle.connection.as_fd()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// The server that answered.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
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

    /// What the daemon said of itself and of this session.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// assert_eq!(client.welcome().version, 1);
    /// assert_eq!(client.welcome().directory, "local");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.about.welcome
    }

    /// How long this program may take to stop its work once a lock is lost: what the program asked
    /// for, or what was fitted to the daemon. See
    /// [`Builder::stop_within_between`](crate::Builder::stop_within_between) for an example.
    #[must_use]
    pub fn stop_within(&self) -> Duration {
        self.shared().with(|session, _| session.stop_within())
    }

    /// Why the connection has ended; None if it has not.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// assert_eq!(client.ended(), None);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn ended(&self) -> Option<DisconnectedError> {
        self.shared().with(|session, _| session.ended().cloned())
    }

    /// Begins to acquire a lock; see [`Acquire`].
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
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, name: impl Into<String>) -> Acquire {
        Acquire::new(Arc::clone(&self.handle), vec![Wanted::new(name)])
    }

    /// Begins to acquire several locks, all or none. They are acquired in the order of their names,
    /// so that clients that want the same locks never deadlock.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
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
        Acquire::new(Arc::clone(&self.handle), locks.into_iter().map(Into::into).collect())
    }

    async fn ask<T: DeserializeOwned>(&self, request: &RequestObject<'_>) -> Result<T, RequestError> {
        let reply = self.shared().with(|session, now| session.ask(now, request));
        let text = reply.await.map_err(|_| DisconnectedError::Dropped)??;
        serde_json::from_slice(&text).map_err(|error| self.garbage(error.to_string()))
    }

    /// Ends the connection: after one message that makes no sense, none can be relied on.
    fn garbage(&self, what: String) -> RequestError {
        let why = DisconnectedError::Garbage { what };
        self.shared().with(|session, _| session.end(&why));
        why.into()
    }

    /// Asks who holds a lock, through any daemon.
    ///
    /// # Errors
    /// If the daemon refuses, or the connection has ended.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::builder().name("backup@db1").connect(&servers).await?;
    /// assert!(!client.peek("nightly").await?.locked);
    /// let held = client.lock("nightly").acquire().await?;
    /// let peeked = client.peek("nightly").await?;
    /// assert!(peeked.locked && !peeked.contender);
    /// let holder = &peeked.holders[0];
    /// assert_eq!(holder.session, client.welcome().session);
    /// assert_eq!(holder.introduction.name.as_deref(), Some("backup@db1"));
    /// assert_eq!(holder.mode, "exclusive");
    /// # Ok(()) }
    /// ```
    pub async fn peek(&self, name: &str) -> Result<Peeked, RequestError> {
        let lock = LockName::parse(name.as_bytes())?;
        self.ask(&RequestObject::from(&Op::Peek { lock, all: false })).await
    }

    /// Asks who holds a lock, and looks at what the other daemons of the lock directory show:
    /// holders there have a [`node`](distrilock_protocol::v1::SessionInfo::node). This can take as
    /// long as the daemon reads that, about a second at most. A daemon that is too old for that is
    /// asked like [`peek`](Self::peek).
    ///
    /// # Errors
    /// If the daemon refuses, or the connection has ended.
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
    /// let peeked = client.peek_everywhere("nightly").await?;
    /// assert_eq!(peeked.holders[0].node, None, "it is held through the daemon that was asked");
    /// # Ok(()) }
    /// ```
    pub async fn peek_everywhere(&self, name: &str) -> Result<Peeked, RequestError> {
        let lock = LockName::parse(name.as_bytes())?;
        match self.ask(&RequestObject::from(&Op::Peek { lock, all: true })).await {
            Err(RequestError::Refused { word: ErrorWord::BadRequest, .. }) => self.peek(name).await,
            peeked => peeked,
        }
    }

    /// Asks whether this session holds a lock and the lock is still real. With a
    /// [`Held`](crate::Held), use [`Held::verify`](crate::Held::verify).
    ///
    /// # Errors
    /// [`RequestError::Refused`] with the word `not_held` or `lost` if it does not; see
    /// [`RequestError`] for an example.
    pub async fn verify(&self, name: &str) -> Result<(), RequestError> {
        let lock = LockName::parse(name.as_bytes())?;
        let Done {} = self.ask(&RequestObject::from(&Op::Verify(lock))).await?;
        Ok(())
    }

    /// Lists all locks that are held or waited for at this daemon, in the order of their names.
    ///
    /// # Errors
    /// If the daemon refuses, the connection has ended, or the list takes more than 64 MiB.
    ///
    /// ```
    /// use distrilock_client::{Client, ModeWord};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").shared().acquire().await?;
    /// let listed = client.list().await?;
    /// assert_eq!(listed[0].lock, "nightly");
    /// assert_eq!(listed[0].mode, Some(ModeWord::Shared));
    /// # Ok(()) }
    /// ```
    pub async fn list(&self) -> Result<Vec<Listed>, RequestError> {
        self.list_all_of(None).await
    }

    /// Lists the locks of all daemons of the lock directory, in the order of their names: those of
    /// this daemon, and those that others show, whose sessions have a
    /// [`node`](distrilock_protocol::v1::SessionInfo::node). A daemon that is too old for that
    /// lists its own.
    ///
    /// # Errors
    /// If the daemon refuses, the connection has ended, or the list takes more than 64 MiB.
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
    /// assert_eq!(client.list_everywhere().await?[0].lock, "nightly");
    /// # Ok(()) }
    /// ```
    pub async fn list_everywhere(&self) -> Result<Vec<Listed>, RequestError> {
        match self.list_all_of(Some(true)).await {
            Err(RequestError::Refused { word: ErrorWord::BadRequest, .. }) => self.list().await,
            listed => listed,
        }
    }

    async fn list_all_of(&self, all: Option<bool>) -> Result<Vec<Listed>, RequestError> {
        let mut locks: Vec<Listed> = Vec::new();
        let mut bytes = 0;
        loop {
            let after = locks.last().map(|last| last.lock.as_str());
            let request = RequestObject { after: after.map(Text::from), all, ..RequestObject::new("list") };
            let page: Listing = self.ask(&request).await?;
            // With a page that makes no progress, this would never end.
            let names = after.into_iter().chain(page.locks.iter().map(|lock| lock.lock.as_str()));
            if !names.is_sorted_by(|before, name| before < name) || page.more && page.locks.is_empty() {
                return Err(self.garbage("a page of the list of locks that does not continue the page before".into()));
            }
            bytes += page.locks.iter().map(Listed::bytes).sum::<usize>();
            locks.extend(page.locks);
            if !page.more {
                return Ok(locks);
            }
            if bytes > LIST_BYTES_MAX {
                return Err(RequestError::EndlessList { locks: locks.len() });
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
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// Client::connect(&servers).await?.ping().await?;
    /// # Ok(()) }
    /// ```
    pub async fn ping(&self) -> Result<(), RequestError> {
        let Done {} = self.ask(&RequestObject::from(&Op::Ping)).await?;
        Ok(())
    }

    /// Introduces the session again: replaces what others see of it in [`peek`](Self::peek) and
    /// [`list`](Self::list).
    ///
    /// # Errors
    /// If the daemon refuses it: see the limits in docs/protocol.md, chapter 7.
    ///
    /// ```
    /// use distrilock_client::{Client, Introduction};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let introduction = Introduction { note: Some("second half".into()), ..Default::default() };
    /// client.hello(&introduction).await?;
    /// # Ok(()) }
    /// ```
    pub async fn hello(&self, introduction: &Introduction) -> Result<Welcome, RequestError> {
        self.ask(&RequestObject::hello(introduction)).await
    }

    /// Releases everything, waits until that is done, and closes the connection. Every
    /// [`Held`](crate::Held) of it counts as lost as soon as this is called; see
    /// [`LostError`](crate::LostError) for an example.
    ///
    /// # Errors
    /// If the connection ends before the daemon has confirmed it. The daemon releases everything
    /// even then.
    pub async fn bye(&self) -> Result<(), RequestError> {
        let reply = self.shared().with(|session, now| session.bye(now));
        reply.await.map_err(|_| DisconnectedError::Dropped)??;
        Ok(())
    }
}
