//! What can go wrong for a client, as types. Sentences name the cause and, where there is one, the remedy.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::address::Server;
use crate::timing::TooSlow;
use distrilock_protocol::name::{LockName, NameError};
use distrilock_protocol::v1::{ErrorWord, Refusal};

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
    Unreachable(Vec<AttemptError>),
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

fn attempts(attempts: &[AttemptError]) -> String {
    let lines: Vec<String> = attempts.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// A server that was tried, and why it does not serve this client.
///
/// ```
/// use distrilock_client::{Client, ConnectError, ServerError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let nobody = "unix:/nonexistent/distrilock.sock".parse().expect("a server");
/// let Err(ConnectError::Unreachable(attempts)) = Client::connect(&[nobody]).await else { panic!("nobody is there") };
/// assert_eq!(attempts[0].server.to_string(), "unix:/nonexistent/distrilock.sock");
/// assert!(matches!(attempts[0].failure, ServerError::Io(_)));
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{server}: {failure}{}", remedy(server, failure))]
pub struct AttemptError {
    /// Which.
    pub server: Server,
    /// Why.
    pub failure: ServerError,
}

/// Why a server does not serve this client; see [`AttemptError`] for an example.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The system could not connect.
    #[error("{0}")]
    Io(io::Error),
    /// Nothing came of it in time.
    #[error("no answer within {} ms", .after.as_millis())]
    TimedOut {
        /// How long that was.
        after: Duration,
    },
    /// This program cannot speak WebSocket.
    #[error("this program is built without WebSocket (the feature `websocket` of distrilock-client)")]
    NoWebSocket,
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
        word: ErrorWord,
        /// The sentence for people.
        message: String,
    },
    /// The connection ended before the daemon's first reply.
    #[error("{0}")]
    Ended(DisconnectedError),
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

fn remedy(server: &Server, failure: &ServerError) -> &'static str {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    let error = match failure {
        ServerError::Io(error) => error.kind(),
        ServerError::TimedOut { .. } => return "; look at that daemon (systemctl status distrilock) and at the network",
        ServerError::Stranger { .. } => {
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
/// use distrilock_client::{Client, DisconnectedError, RequestError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// client.bye().await?;
/// assert!(matches!(client.ping().await, Err(RequestError::Disconnected(DisconnectedError::Bye))));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectedError {
    /// The daemon closed the connection.
    #[error("the daemon closed the connection")]
    Closed,
    /// The daemon closed the connection and said why.
    #[error("the daemon closed the connection: {message} ({word})")]
    Told {
        /// The word for programs.
        word: ErrorWord,
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
    /// This client said [`bye`](crate::Client::bye).
    #[error("this client said bye")]
    Bye,
    /// The last [`Client`](crate::Client) and [`Held`](crate::Held) of the connection were dropped, or the runtime that drove it
    /// ended.
    #[error("the connection is not driven any more")]
    Dropped,
}

/// Why a lock is not held any more, though nobody released it. Stop the work that it guards.
///
/// ```
/// use distrilock_client::{Client, DisconnectedError, LostError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("nightly").acquire().await?;
/// client.bye().await?;
/// assert_eq!(held.lost().await, LostError::Disconnected(DisconnectedError::Bye));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LostError {
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
    Disconnected(DisconnectedError),
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
    BadName(#[from] NameError),
    /// The daemon refuses.
    #[error("{message} ({word})")]
    Refused {
        /// The word for programs (docs/protocol.md, chapter 5). A newer daemon may have more of them.
        word: ErrorWord,
        /// The sentence for people.
        message: String,
    },
    /// The lock is lost.
    #[error(transparent)]
    Lost(#[from] LostError),
    /// The request is longer than one may be.
    #[error("the request has {bytes} bytes, more than a daemon takes")]
    TooLong {
        /// How long it would be.
        bytes: usize,
    },
    /// The connection has ended.
    #[error("{0}; connect again")]
    Disconnected(#[from] DisconnectedError),
}

impl From<Refused> for RequestError {
    fn from(Refused { word, message, .. }: Refused) -> Self {
        Self::Refused { word, message }
    }
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
    Unexpected { word: ErrorWord, message: String, lock: Option<LockName> },
    /// The name is no lock name.
    #[error(transparent)]
    BadName(#[from] NameError),
    /// This client holds the lock already, or is acquiring it. A session holds a lock once: who wants tasks of one program to
    /// exclude each other through the daemon gives each a client of its own.
    #[error("this client holds the lock {lock} already, or is acquiring it; connect another client for another holder")]
    AlreadyHeld { lock: LockName },
    /// This program needs longer to stop its work than the file server's lease allows: the lock could be given away before.
    #[error(
        "this program needs {} ms to stop its work (`stop_within`), and the file server's lease allows {} ms at most; lower the \
         stop time, or raise the lease time of the server (nfsd: lease-time= in /etc/nfs.conf)",
        .stop_within.as_millis(), .stop_within_max.as_millis()
    )]
    TooSlow {
        /// This program's time to stop.
        stop_within: Duration,
        /// The longest that it may be here.
        stop_within_max: Duration,
    },
    /// It was granted, and lost before it could be handed over.
    #[error(transparent)]
    Lost(LostError),
    /// The connection has ended.
    #[error("{0}; connect again")]
    Disconnected(DisconnectedError),
}

impl AcquireError {
    /// Which error a daemon's refusal is.
    pub(crate) fn refused(Refused { word, message, lock }: Refused) -> Self {
        match word {
            ErrorWord::Busy => Self::Busy { message, lock },
            ErrorWord::Timeout => Self::Timeout { message, lock },
            ErrorWord::Cancelled => Self::Cancelled { message, lock },
            ErrorWord::Mismatch => Self::Mismatch { message, lock },
            ErrorWord::Deadlock => Self::Deadlock { message, lock },
            ErrorWord::Limit => Self::Limit { message, lock },
            ErrorWord::BadRequest | ErrorWord::BadName | ErrorWord::UnknownOp => Self::BadRequest { message, lock },
            ErrorWord::Storage => Self::Storage { message, lock },
            ErrorWord::Denied => Self::Denied { message, lock },
            ErrorWord::Closing => Self::Closing { message, lock },
            word @ (ErrorWord::NotHeld | ErrorWord::Lost | ErrorWord::Other(_)) => {
                Self::Unexpected { word, message, lock }
            }
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
            Self::AlreadyHeld { lock } | Self::Lost(LostError::Told { lock, .. }) => Some(lock),
            Self::BadName(_) | Self::TooSlow { .. } | Self::Lost(_) | Self::Disconnected(_) => None,
        }
    }
}

impl From<TooSlow> for AcquireError {
    fn from(TooSlow { stop_within, stop_within_max }: TooSlow) -> Self {
        Self::TooSlow { stop_within, stop_within_max }
    }
}

/// A daemon's refusal, fit to be shown.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) word: ErrorWord,
    pub(crate) message: String,
    pub(crate) lock: Option<LockName>,
}

impl From<Refusal<'_>> for Refused {
    fn from(refusal: Refusal<'_>) -> Self {
        let word = match refusal.error {
            ErrorWord::Other(word) => ErrorWord::Other(shown(&word).into()),
            known => known,
        };
        let message = match &*refusal.message {
            "" => format!("the daemon refuses: {word}"),
            message => shown(message),
        };
        let lock = refusal.lock.and_then(|lock| LockName::parse(lock.as_bytes()).ok());
        Self { word, message, lock }
    }
}

/// A text of a peer, fit to be shown: shortened, and without control characters.
pub(crate) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 1000;
    text.chars().take(CHARS_MAX).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl From<io::Error> for DisconnectedError {
    fn from(error: io::Error) -> Self {
        Self::Broken { kind: error.kind(), message: error.to_string() }
    }
}

/// Bytes of a peer, for a message about them.
pub(crate) struct Excerpt<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BYTES_MAX: usize = 60;
        let part = &self.0[..self.0.len().min(BYTES_MAX)];
        write!(f, "\"{}\"", part.escape_ascii())?;
        if part.len() < self.0.len() { write!(f, " and {} bytes more", self.0.len() - part.len()) } else { Ok(()) }
    }
}
