//! What can go wrong for a client, as types. Sentences name the cause and, where there is one, the remedy.

use std::fmt;
use std::io;
use std::time::Duration;

use super::Server;
use distrilock_protocol::name::{BadName, LockName};

/// Why no daemon was reached.
///
/// ```
/// use distrilock_client::{Client, ConnectError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let nobody = "unix:/nonexistent/distrilock.sock".parse().expect("a server");
/// let error = Client::connect(&[nobody]).await.unwrap_err();
/// assert!(matches!(&error, ConnectError::Unreachable(attempts) if attempts.len() == 1));
/// assert!(error.to_string().contains("systemctl start distrilock.socket"));
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// None of the servers serves this client.
    #[error("{}", attempts(.0))]
    Unreachable(Vec<Attempt>),
    /// There was no server to try.
    #[error("no server was named; name one, as in tcp://HOST:PORT")]
    NoServer,
    /// What is to be told of this client is longer than a request may be.
    #[error("what the hello says is too long: {bytes} bytes")]
    TooLong {
        /// How long it would be.
        bytes: usize,
    },
    /// The host does not give the client what it needs.
    #[error("cannot start the client: {0}")]
    System(#[from] io::Error),
}

fn attempts(attempts: &[Attempt]) -> String {
    let lines: Vec<String> = attempts.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// A server that was tried, and why it does not serve this client.
///
/// ```
/// use distrilock_client::{Client, ConnectError, Failure};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let nobody = "unix:/nonexistent/distrilock.sock".parse().expect("a server");
/// let Err(ConnectError::Unreachable(attempts)) = Client::connect(&[nobody]).await else { panic!("nobody is there") };
/// assert_eq!(attempts[0].server.to_string(), "unix:/nonexistent/distrilock.sock");
/// assert!(matches!(attempts[0].failure, Failure::Io(_)));
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{server}: {failure}{}", remedy(server, failure))]
pub struct Attempt {
    /// Which.
    pub server: Server,
    /// Why.
    pub failure: Failure,
}

/// Why a server does not serve this client; see [`Attempt`] for an example.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The system could not connect.
    #[error("{0}")]
    Io(io::Error),
    /// Nothing came of it in time.
    #[error("no answer within {} ms", .after.as_millis())]
    TimedOut {
        /// How long that was.
        after: Duration,
    },
    /// What listens there is no distrilock daemon, or not of this protocol.
    #[error("what listens there does not speak the protocol of distrilock: {what}")]
    Stranger {
        /// How one can tell.
        what: String,
    },
    /// The daemon refuses.
    #[error("the daemon refuses: {message} ({word})")]
    Refused {
        /// The word for programs (docs/protocol.md, chapter 5).
        word: String,
        /// The sentence for people.
        message: String,
    },
    /// The connection ended before the daemon's first reply.
    #[error("{0}")]
    Ended(Disconnected),
    /// The daemon gives up a silent client sooner than this client can promise to have stopped its work.
    #[error(
        "the daemon gives up a silent client after {} ms, and this one needs {} ms to stop its work (`stop_within`); that \
         leaves no time to notice; raise --dead-after of the daemon, or lower the stop time",
        .dead_after.as_millis(), .stop_within.as_millis()
    )]
    NoTime {
        /// The daemon's time.
        dead_after: Duration,
        /// This client's time to stop.
        stop_within: Duration,
    },
}

fn remedy(server: &Server, failure: &Failure) -> &'static str {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    let error = match failure {
        Failure::Io(error) => error.kind(),
        Failure::TimedOut { .. } => return "; look at that daemon (systemctl status distrilock) and at the network",
        Failure::Stranger { .. } => {
            return "; mend the address: distrilockd has port 40800 for tcp:// and 40801 for ws://";
        }
        _ => return "",
    };
    match (error, matches!(server, Server::Unix(_))) {
        (ConnectionRefused | NotFound, true) => "; start the daemon: systemctl start distrilock.socket",
        (ConnectionRefused, false) => {
            "; nothing listens there: start the daemon on that host (systemctl start distrilock.socket), or mend the address"
        }
        (PermissionDenied, _) => "; use TCP, as in tcp://127.0.0.1:40800, or join the socket's group",
        _ => "",
    }
}

/// Why a connection ended. A new one is a new session, and holds nothing.
///
/// ```
/// use distrilock_client::{Client, Disconnected, RequestError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// client.bye().await?;
/// assert!(matches!(client.ping().await, Err(RequestError::Disconnected(Disconnected::Bye))));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Disconnected {
    /// The daemon closed the connection.
    #[error("the daemon closed the connection")]
    Closed,
    /// The daemon closed the connection and said why.
    #[error("the daemon closed the connection: {message} ({word})")]
    Told {
        /// The word for programs.
        word: String,
        /// The sentence for people.
        message: String,
    },
    /// The system ended the connection.
    #[error("the connection broke: {message}")]
    Broken {
        /// Which kind of error it was.
        kind: io::ErrorKind,
        /// The system's own words.
        message: String,
    },
    /// No heartbeat was answered in time: the daemon is dead, stopped, or cut off.
    #[error("the daemon answered nothing for {} ms", .silence.as_millis())]
    Silent {
        /// How long it had to be silent.
        silence: Duration,
    },
    /// What came is not of the protocol.
    #[error("what the daemon sent is not of the protocol: {what}")]
    Garbage {
        /// What is wrong with it.
        what: String,
    },
    /// This client said [`bye`](super::Client::bye).
    #[error("this client said bye")]
    Bye,
    /// The last [`Client`](super::Client) and [`Held`](super::Held) of the connection were dropped, or the runtime that drove it
    /// ended.
    #[error("the connection is not driven any more")]
    Dropped,
}

/// Why a lock is not held any more, though nobody released it. Stop the work that it guards.
///
/// ```
/// use distrilock_client::{Client, Disconnected, Lost};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("nightly").acquire().await?;
/// client.bye().await?;
/// assert_eq!(held.lost().await, Lost::Disconnected(Disconnected::Bye));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// The daemon says so.
    #[error("the lock {lock} is lost: {reason}")]
    Told {
        /// Which.
        lock: LockName,
        /// The daemon's sentence.
        reason: String,
    },
    /// The connection ended, and the session's locks with it.
    #[error("all locks of the connection are lost: {0}")]
    Disconnected(Disconnected),
    /// The daemon could not prove in time that the storage still keeps the lock.
    #[error("the storage did not confirm the lock in time")]
    Unproven,
}

/// Why a request other than an acquire came to nothing.
///
/// ```
/// use distrilock_client::{Client, RequestError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let error = client.verify("nightly").await.unwrap_err();
/// assert!(matches!(error, RequestError::Refused { word, .. } if word == "not_held"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The name is no lock name.
    #[error(transparent)]
    BadName(#[from] BadName),
    /// The daemon refuses.
    #[error("{message} ({word})")]
    Refused {
        /// The word for programs (docs/protocol.md, chapter 5). A newer daemon may have more of them.
        word: String,
        /// The sentence for people.
        message: String,
    },
    /// The lock is lost.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The request is longer than one may be.
    #[error("the request has {bytes} bytes, more than a daemon takes")]
    TooLong {
        /// How long it would be.
        bytes: usize,
    },
    /// The connection has ended.
    #[error("{0}; connect again")]
    Disconnected(#[from] Disconnected),
}

/// Why a lock was not acquired. Where the daemon refused, `message` is its sentence for people, and `lock` says about which of
/// several names.
///
/// ```
/// use distrilock_client::{AcquireError, Client};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let (one, other) = (Client::connect(&servers).await?, Client::connect(&servers).await?);
/// let held = one.lock("nightly").acquire().await?;
/// match other.lock("nightly").acquire().await {
///     Err(AcquireError::Busy { message, .. }) => println!("{message}"),
///     other => panic!("{other:?}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields of the refusals are told above")]
pub enum AcquireError {
    /// Somebody else holds it, or others wait for it.
    #[error("{message}")]
    Busy { message: String, lock: Option<LockName> },
    /// It did not become free in time.
    #[error("{message}")]
    Timeout { message: String, lock: Option<LockName> },
    /// The wait was cancelled.
    #[error("{message}")]
    Cancelled { message: String, lock: Option<LockName> },
    /// The mode or the number of slots is not that of the other holders.
    #[error("{message}")]
    Mismatch { message: String, lock: Option<LockName> },
    /// To wait would close a circle of sessions that wait for each other.
    #[error("{message}")]
    Deadlock { message: String, lock: Option<LockName> },
    /// A limit of the daemon.
    #[error("{message}")]
    Limit { message: String, lock: Option<LockName> },
    /// The request is none: an older daemon, or a mistake.
    #[error("{message}")]
    BadRequest { message: String, lock: Option<LockName> },
    /// The lock directory failed.
    #[error("{message}")]
    Storage { message: String, lock: Option<LockName> },
    /// The daemon does not allow it.
    #[error("{message}")]
    Denied { message: String, lock: Option<LockName> },
    /// The daemon stops.
    #[error("{message}")]
    Closing { message: String, lock: Option<LockName> },
    /// Refused with a word that this version does not know.
    #[error("{message} ({word})")]
    Unexpected { word: String, message: String, lock: Option<LockName> },
    /// The name is no lock name.
    #[error(transparent)]
    BadName(#[from] BadName),
    /// This client holds the lock already, or is acquiring it. A session holds a lock once: who wants tasks of one program to
    /// exclude each other through the daemon gives each a client of its own.
    #[error("this client holds the lock {lock} already, or is acquiring it; connect another client for another holder")]
    AlreadyHeld { lock: LockName },
    /// It was granted, and lost before it could be handed over.
    #[error(transparent)]
    Lost(Lost),
    /// The connection has ended.
    #[error("{0}; connect again")]
    Disconnected(Disconnected),
}

impl AcquireError {
    /// Makes an error of a daemon's refusal.
    pub(super) fn refused(word: String, message: String, lock: Option<LockName>) -> Self {
        match word.as_str() {
            "busy" => Self::Busy { message, lock },
            "timeout" => Self::Timeout { message, lock },
            "cancelled" => Self::Cancelled { message, lock },
            "mismatch" => Self::Mismatch { message, lock },
            "deadlock" => Self::Deadlock { message, lock },
            "limit" => Self::Limit { message, lock },
            "bad_request" | "bad_name" | "unknown_op" => Self::BadRequest { message, lock },
            "storage" => Self::Storage { message, lock },
            "denied" => Self::Denied { message, lock },
            "closing" => Self::Closing { message, lock },
            _ => Self::Unexpected { word, message, lock },
        }
    }

    /// About which of the names the daemon refused, if it says.
    ///
    /// ```
    /// use distrilock_client::AcquireError;
    ///
    /// let error = AcquireError::Busy { message: "held by somebody".into(), lock: None };
    /// assert!(error.lock().is_none());
    /// ```
    #[must_use]
    pub fn lock(&self) -> Option<&LockName> {
        match self {
            Self::Busy { lock, .. }
            | Self::Timeout { lock, .. }
            | Self::Cancelled { lock, .. }
            | Self::Mismatch { lock, .. }
            | Self::Deadlock { lock, .. }
            | Self::Limit { lock, .. }
            | Self::BadRequest { lock, .. }
            | Self::Storage { lock, .. }
            | Self::Denied { lock, .. }
            | Self::Closing { lock, .. }
            | Self::Unexpected { lock, .. } => lock.as_ref(),
            Self::AlreadyHeld { lock } | Self::Lost(Lost::Told { lock, .. }) => Some(lock),
            Self::BadName(_) | Self::Lost(_) | Self::Disconnected(_) => None,
        }
    }
}

/// A text of a peer, fit to be shown: shortened, and without control characters.
pub(super) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 1000;
    text.chars().take(CHARS_MAX).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl From<io::Error> for Disconnected {
    fn from(error: io::Error) -> Self {
        Self::Broken { kind: error.kind(), message: error.to_string() }
    }
}

/// Bytes of a peer, for a message about them.
pub(super) struct Excerpt<'a>(pub(super) &'a [u8]);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BYTES_MAX: usize = 60;
        let part = &self.0[..self.0.len().min(BYTES_MAX)];
        write!(f, "\"{}\"", part.escape_ascii())?;
        if part.len() < self.0.len() { write!(f, " and {} bytes more", self.0.len() - part.len()) } else { Ok(()) }
    }
}
