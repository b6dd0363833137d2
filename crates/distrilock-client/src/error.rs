//! The errors of a client. Messages name the cause and, if there is one, the remedy.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::address::Server;
use crate::timing::TooSlow;
use distrilock_protocol::name::{LockName, NameError};
use distrilock_protocol::v1::{ErrorWord, Refusal, VERSION};

/// Why no daemon could be reached.
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
    /// None of the servers that were tried serves this client.
    #[error("{}", attempts(.0))]
    Unreachable(Vec<AttemptError>),
    /// There was no server to try.
    #[error("no server was named; name one, as in tcp://HOST:PORT")]
    NoServer,
    /// The hello is longer than a request may be.
    #[error("what the hello says is too long: {bytes} bytes")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The system refused something that the client needs.
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
    /// The server.
    pub server: Server,
    /// Why it does not serve this client.
    pub failure: ServerError,
}

/// Why a server does not serve this client; see [`AttemptError`] for an example.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The system could not connect.
    #[error("{0}")]
    Io(io::Error),
    /// There was no answer in time.
    #[error("no answer within {} ms", .after.as_millis())]
    TimedOut {
        /// How long the client waited.
        after: Duration,
    },
    /// This program cannot speak WebSocket.
    #[error("this program is built without WebSocket (the feature `websocket` of distrilock-client)")]
    NoWebSocket,
    /// What listens there is not a distrilock daemon, or does not speak this protocol.
    #[error("what listens there does not speak the protocol of distrilock: {what}")]
    Stranger {
        /// What it sent.
        what: String,
    },
    /// The server speaks another version of the protocol.
    #[error("it speaks version {version} of the protocol, and this program version {VERSION}; upgrade the older one")]
    Version {
        /// The version in its reply to hello.
        version: u64,
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
    /// The daemon gives a silent client up before this client can be certain to have stopped its
    /// work.
    #[error(
        "the daemon gives up a silent client after {} ms, and this one needs {} ms to stop its work (`stop_within`); that \
         leaves no time to notice; raise --dead-after of the daemon, or lower the stop time",
        .dead_after.as_millis(), .stop_within.as_millis()
    )]
    NoTime {
        /// The daemon's limit.
        dead_after: Duration,
        /// How long this client takes to stop.
        stop_within: Duration,
    },
}

fn remedy(server: &Server, failure: &ServerError) -> &'static str {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    let error = match failure {
        ServerError::Io(error) => error.kind(),
        ServerError::TimedOut { .. } => return "; look at that daemon (systemctl status distrilock) and at the network",
        ServerError::Stranger { .. } => {
            return "; check the address: distrilockd has port 40800 for tcp:// and 40801 for ws://";
        }
        _ => return "",
    };
    match (error, matches!(server, Server::Unix(_))) {
        (ConnectionRefused | NotFound, true) => "; start the daemon: systemctl start distrilock.socket",
        (ConnectionRefused, false) => {
            "; nothing listens there: start the daemon on that host (systemctl start distrilock.socket), or check the address"
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
        /// The kind of error.
        kind: io::ErrorKind,
        /// The system's message.
        message: String,
    },
    /// No heartbeat was answered in time: the daemon is dead, stopped, or unreachable.
    #[error("the daemon answered nothing for {} ms", .silence.as_millis())]
    Silent {
        /// How long it was silent.
        silence: Duration,
    },
    /// The daemon sent something that is not part of the protocol.
    #[error("what the daemon sent is not of the protocol: {what}")]
    Garbage {
        /// What is wrong with it.
        what: String,
    },
    /// This client said [`bye`](crate::Client::bye).
    #[error("this client said bye")]
    Bye,
    /// The last [`Client`](crate::Client) and [`Held`](crate::Held) of the connection were dropped,
    /// or the runtime that drove it has ended.
    #[error("the connection is not driven any more")]
    Dropped,
}

/// Why a lock is no longer held, although nobody released it. Stop the work that it guards.
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
        /// The lock.
        lock: LockName,
        /// The daemon's explanation.
        reason: String,
    },
    /// The connection has ended, and with it all locks of the session.
    #[error("all locks of the connection are lost: {0}")]
    Disconnected(DisconnectedError),
    /// The daemon could not prove in time that the storage still keeps the lock.
    #[error("the storage did not confirm the lock in time")]
    Unproven,
}

/// Why a request other than an acquire failed.
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
    /// The name is not a lock name.
    #[error(transparent)]
    BadName(#[from] NameError),
    /// The daemon refuses.
    #[error("{message} ({word})")]
    Refused {
        /// The word for programs (docs/protocol.md, chapter 5). A newer daemon may have more of
        /// them.
        word: ErrorWord,
        /// The sentence for people.
        message: String,
    },
    /// The lock is lost.
    #[error(transparent)]
    Lost(#[from] LostError),
    /// The request is longer than a request may be.
    #[error("the request has {bytes} bytes, more than a daemon takes")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The daemon's list of locks does not end.
    #[error("the server's list of locks does not end: gave up after {locks}; is it a distrilock daemon?")]
    EndlessList {
        /// How many it has listed.
        locks: usize,
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

/// Why a lock was not acquired. If the daemon refused, `message` is its sentence for people, and
/// `lock` is the one of several names that it is about.
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
#[expect(missing_docs, reason = "the fields are described above")]
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
    /// Waiting would close a cycle of sessions that wait for each other.
    #[error("{message}")]
    Deadlock { message: String, lock: Option<LockName> },
    /// The request exceeds a limit of the daemon.
    #[error("{message}")]
    Limit { message: String, lock: Option<LockName> },
    /// The request is not valid for this daemon: the daemon is older, or the request is a mistake.
    #[error("{message}")]
    BadRequest { message: String, lock: Option<LockName> },
    /// The lock directory failed.
    #[error("{message}")]
    Storage { message: String, lock: Option<LockName> },
    /// The daemon does not allow it.
    #[error("{message}")]
    Denied { message: String, lock: Option<LockName> },
    /// The daemon is stopping.
    #[error("{message}")]
    Closing { message: String, lock: Option<LockName> },
    /// Refused with a word that this version does not expect.
    #[error("{message} ({word})")]
    Unexpected { word: ErrorWord, message: String, lock: Option<LockName> },
    /// The name is not a lock name.
    #[error(transparent)]
    BadName(#[from] NameError),
    /// This client holds the lock already, or is acquiring it. A session holds a lock at most once.
    /// For tasks of one program to exclude each other through the daemon, give each its own client.
    #[error("this client holds the lock {lock} already, or is acquiring it; connect another client for another holder")]
    AlreadyHeld { lock: LockName },
    /// This program needs longer to stop its work than the file server's lease allows: the lock
    /// could be given away before.
    #[error(
        "this program needs {} ms to stop its work (`stop_within`), and the file server's lease allows {} ms at most; \
         lower the stop time, or raise the lease time of the server (nfsd: lease-time= in /etc/nfs.conf)",
        .stop_within.as_millis(), .stop_within_max.as_millis()
    )]
    TooSlow {
        /// This program's time to stop.
        stop_within: Duration,
        /// The longest that fits the lease.
        stop_within_max: Duration,
    },
    /// It was granted, but lost before the caller got it.
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

    /// The one of several names that the error is about, if the daemon says.
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

/// A peer's text, made fit to be shown: shortened, and without control characters.
pub(crate) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 1000;
    text.chars().take(CHARS_MAX).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl From<io::Error> for DisconnectedError {
    fn from(error: io::Error) -> Self {
        Self::Broken { kind: error.kind(), message: error.to_string() }
    }
}

/// A peer's bytes, for a message about them.
pub(crate) struct Excerpt<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BYTES_MAX: usize = 60;
        let part = &self.0[..self.0.len().min(BYTES_MAX)];
        write!(f, "\"{}\"", part.escape_ascii())?;
        if part.len() < self.0.len() { write!(f, " and {} bytes more", self.0.len() - part.len()) } else { Ok(()) }
    }
}
