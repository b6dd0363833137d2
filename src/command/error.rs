//! Why the command ends before its work is done, and the exit status for each reason.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use super::options::STOP_MARGIN;
use super::status;
use super::usage_error::UsageError;
use super::verify_error::{AskGuardError, NotHeldError};
use crate::doctor::CollectError;
use distrilock_client::{
    AcquireError, Client, ConnectError, DisconnectedError, LostError, ParseServerError, RequestError, Server,
    ServerError,
};

/// Why the command ends without having done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("{0}; see distrilock --help")]
    Usage(#[from] UsageError),
    #[error("$DISTRILOCK_SERVER: {0}")]
    Servers(#[from] ParseServerError),
    #[error("{error}{}", connect_remedy(.error))]
    Connect { error: ConnectError },
    #[error("{server}: {error}{}", acquire_remedy(.error))]
    Acquire { server: Server, error: AcquireError },
    #[error("{server}: the daemon did not answer within {} ms, so {so}; look at that daemon (systemctl status distrilock)", .after.as_millis())]
    NoAnswer { server: Server, after: Duration, so: &'static str },
    #[error("doing nothing: the last run under {names} began {ago} ago")]
    NotDue { names: String, ago: String },
    #[error(
        "{server}: the daemon is older than this command and keeps no record of runs: upgrade distrilockd, or do without --once-per and --once-per-success"
    )]
    NoRecord { server: Server },
    #[error("nobody reads the output any more")]
    ReaderGone,
    #[error("{server}: {error}")]
    Request { server: Server, error: RequestError },
    #[error("{server}: {lost}; stop the work that it guards")]
    Lost { server: Server, lost: LostError },
    #[error(transparent)]
    NotHeld(#[from] NotHeldError),
    #[error(transparent)]
    AskGuard(#[from] AskGuardError),
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error(
        "cannot have {count} more files open: {error}; raise the limit, for example with ulimit -n 1024 or LimitNOFILE="
    )]
    Descriptors { count: usize, error: io::Error },
    #[error(
        "/proc does not show this process, so what CMD starts could not be ended; mount it (mount -t proc proc /proc), or run with -F"
    )]
    NoProc,
    #[error(
        "cannot run journalctl: {0}; the history is in the journal of systemd; without it, the daemon writes it to its \
         standard error"
    )]
    NoJournal(#[source] io::Error),
    #[error("journalctl failed ({0}), so the history is not complete; see its message")]
    Journal(std::process::ExitStatus),
    #[error("cannot {what}: {error}")]
    System { what: &'static str, error: io::Error },
    #[error("cannot {what} {path}: {error}")]
    File { what: &'static str, path: String, error: io::Error },
}

impl CommandError {
    /// Wraps an error of the system, for `map_err`.
    pub(super) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, error: error.into() }
    }

    /// Wraps the failure of a request to this client's server, for `map_err`.
    pub(super) fn request(client: &Client) -> impl Fn(RequestError) -> Self {
        let server = client.server().clone();
        move |error| Self::Request { server: server.clone(), error }
    }

    /// The exit status. `busy` is the status for a lock that cannot be acquired.
    pub(super) fn status(&self, busy: u8) -> u8 {
        match self {
            Self::Usage(_) | Self::Servers(_) => status::USAGE,
            Self::Connect { error } => status_of_connect(error),
            Self::Acquire { error, .. } => status_of_acquire(error, busy),
            Self::Request { error, .. } => status_of_request(error),
            Self::NoAnswer { .. } => status::UNREACHABLE,
            Self::NotDue { .. } => busy,
            Self::NoRecord { .. } => status::PROTOCOL,
            Self::ReaderGone => status::DONE,
            Self::Lost { .. } => status::LOST,
            Self::NoJournal(_) => status::NOT_RUN,
            Self::NotHeld(_) => status::BUSY,
            Self::AskGuard(_) => status::UNREACHABLE,
            Self::Collect(CollectError::OldMount { .. }) => status::REFUSED,
            Self::Collect(_)
            | Self::Descriptors { .. }
            | Self::NoProc
            | Self::Journal(_)
            | Self::System { .. }
            | Self::File { .. } => status::SYSTEM,
        }
    }

    /// Whether others hold the lock, or nothing is due, which is no failure.
    pub(super) fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::NotDue { .. } | Self::Acquire { error: AcquireError::Busy { .. } | AcquireError::Timeout { .. }, .. }
        )
    }
}

fn status_of_connect(error: &ConnectError) -> u8 {
    match error {
        ConnectError::Unreachable(attempts) => {
            // The most specific failure says more than "unreachable". The last server is the last
            // resort, so it wins a tie.
            let statuses = attempts.iter().map(|attempt| status_of_failure(&attempt.failure));
            statuses.max_by_key(|status| *status != status::UNREACHABLE).unwrap_or(status::UNREACHABLE)
        }
        ConnectError::NoServer | ConnectError::TooLong { .. } => status::USAGE,
        _ => status::SYSTEM,
    }
}

fn status_of_failure(failure: &ServerError) -> u8 {
    match failure {
        ServerError::Stranger { .. } | ServerError::Version { .. } => status::PROTOCOL,
        ServerError::Refused { word, .. } => status_of_word(word.as_str()),
        ServerError::NoTime { .. } => status::REFUSED,
        _ => status::UNREACHABLE,
    }
}

/// The status for an error word (docs/protocol.md, chapter 5) that a good request should not meet.
fn status_of_word(word: &str) -> u8 {
    match word {
        "limit" | "denied" => status::DENIED,
        "storage" => status::SYSTEM,
        "closing" => status::UNREACHABLE,
        "bad_request" | "unknown_op" => status::PROTOCOL,
        "lost" => status::LOST,
        _ => status::REFUSED,
    }
}

fn status_of_acquire(error: &AcquireError, busy: u8) -> u8 {
    match error {
        AcquireError::Busy { .. } | AcquireError::Timeout { .. } => busy,
        AcquireError::Limit { .. } | AcquireError::Denied { .. } => status::DENIED,
        AcquireError::BadRequest { .. } => status::PROTOCOL,
        AcquireError::Storage { .. } => status::SYSTEM,
        AcquireError::Closing { .. } => status::UNREACHABLE,
        AcquireError::Disconnected(ended) => status_of_disconnect(ended),
        AcquireError::Lost(_) => status::LOST,
        AcquireError::BadName(_) => status::USAGE,
        _ => status::REFUSED,
    }
}

fn status_of_request(error: &RequestError) -> u8 {
    match error {
        RequestError::Refused { word, .. } => status_of_word(word.as_str()),
        RequestError::Disconnected(ended) => status_of_disconnect(ended),
        RequestError::Lost(_) => status::LOST,
        RequestError::EndlessList { .. } => status::PROTOCOL,
        _ => status::USAGE,
    }
}

fn status_of_disconnect(ended: &DisconnectedError) -> u8 {
    match ended {
        DisconnectedError::Garbage { .. } => status::PROTOCOL,
        DisconnectedError::Told { word, .. } => status_of_word(word.as_str()),
        _ => status::UNREACHABLE,
    }
}

fn connect_remedy(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Unreachable(attempts)
            if attempts.iter().any(|one| matches!(one.failure, ServerError::NoTime { .. })) =>
        {
            "\nstopping takes up to --kill-after plus two seconds: lower --kill-after"
        }
        _ => "",
    }
}

/// What to do about a refusal, where the message does not say it.
fn acquire_remedy(error: &AcquireError) -> Cow<'static, str> {
    let remedy = match error {
        AcquireError::TooSlow { stop_within_max, .. } => return too_slow_remedy(*stop_within_max).into(),
        AcquireError::Busy { .. } => "; wait for it with -w TIME, or see who holds it: distrilock peek NAME",
        AcquireError::Timeout { .. } => "; see who holds it: distrilock peek NAME",
        AcquireError::Mismatch { .. } => "; use the same number of slots as the others",
        AcquireError::Deadlock { .. } => "; take all names with one distrilock run, or always in the same order",
        AcquireError::Limit { .. } => "; chapter 7 of docs/protocol.md lists the daemon's limits",
        AcquireError::BadRequest { .. } => "; is the daemon older than this command?",
        AcquireError::Storage { .. } => "; see the daemon's log",
        AcquireError::Closing { .. } => "; the daemon is stopping: try again when it is running",
        _ => "",
    };
    remedy.into()
}

fn too_slow_remedy(stop_within_max: Duration) -> String {
    const WHY: &str = "\nstopping takes up to --kill-after plus two seconds";
    match stop_within_max.checked_sub(STOP_MARGIN) {
        Some(kill_after) => {
            format!("{WHY}: here, --kill-after {}ms fits, and so does the default", kill_after.as_millis())
        }
        None => format!("{WHY}: here, no --kill-after fits"),
    }
}
