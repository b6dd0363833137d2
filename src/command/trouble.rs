//! What ends the command before its work is done, with the exit status of each.

use std::io;

use super::contradiction::Contradiction;
use super::verify::{NoGuard, NotHeld};
use super::{say, status};
use crate::doctor::CollectError;
use distrilock_client::{
    AcquireError, ConnectError, DisconnectedError, LostError, ParseServerError, RequestError, Server, ServerError,
};

/// Why the command ends without having done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}; see distrilock --help")]
    Usage(#[from] Contradiction),
    #[error("$DISTRILOCK_SERVER: {0}")]
    Servers(#[from] ParseServerError),
    #[error("{error}{}", connect_advice(.error))]
    Connect { error: ConnectError },
    #[error("{server}: {error}{}", advice(.error))]
    Acquire { server: Server, error: AcquireError },
    #[error("{server}: {error}")]
    Request { server: Server, error: RequestError },
    #[error("{server}: {lost}; stop the work that it guards")]
    Lost { server: Server, lost: LostError },
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
    #[error(transparent)]
    NoGuard(#[from] NoGuard),
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error("cannot {what}: {error}")]
    System { what: &'static str, error: io::Error },
    #[error("cannot {what} {path}: {error}")]
    File { what: &'static str, path: String, error: io::Error },
}

impl Trouble {
    /// Makes a trouble of what the system said, for `map_err`.
    pub(super) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, error: error.into() }
    }

    /// The exit status; `busy` is the one for a lock that is not to be had.
    pub(super) fn status(&self, busy: u8) -> u8 {
        match self {
            Self::Usage(_) | Self::Servers(_) => status::USAGE,
            Self::Connect { error } => of_connect(error),
            Self::Acquire { error, .. } => of_acquire(error, busy),
            Self::Request { error, .. } => of_request(error),
            Self::Lost { .. } => status::LOST,
            Self::NotHeld(_) => status::BUSY,
            Self::NoGuard(_) => status::UNREACHABLE,
            Self::Collect(CollectError::OldMount { .. }) => status::REFUSED,
            Self::Collect(_) | Self::System { .. } | Self::File { .. } => status::SYSTEM,
        }
    }

    /// Whether the lock is held by others, which is no error.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Acquire { error: AcquireError::Busy { .. } | AcquireError::Timeout { .. }, .. })
    }

    /// Tells it on stderr, fit for a terminal, and gives the exit status.
    pub(super) fn tell(&self, busy: u8) -> u8 {
        for line in self.to_string().lines() {
            say::error(&say::shown(line));
        }
        self.status(busy)
    }
}

fn of_connect(error: &ConnectError) -> u8 {
    match error {
        ConnectError::Unreachable(attempts) => {
            // The last one is the one that was to be tried if all else failed; the best known failure says most.
            let known = attempts.iter().map(|attempt| of_failure(&attempt.failure));
            known.max_by_key(|known| *known != status::UNREACHABLE).unwrap_or(status::UNREACHABLE)
        }
        ConnectError::NoServer | ConnectError::TooLong { .. } => status::USAGE,
        _ => status::SYSTEM,
    }
}

fn of_failure(failure: &ServerError) -> u8 {
    match failure {
        ServerError::Stranger { .. } => status::PROTOCOL,
        ServerError::Refused { word, .. } => of_word(word.as_str()),
        ServerError::NoTime { .. } => status::REFUSED,
        _ => status::UNREACHABLE,
    }
}

/// The status for a word of docs/protocol.md, chapter 5, that is no answer to a good request.
fn of_word(word: &str) -> u8 {
    match word {
        "limit" | "denied" => status::DENIED,
        "storage" => status::SYSTEM,
        "closing" => status::UNREACHABLE,
        "bad_request" | "unknown_op" => status::PROTOCOL,
        "lost" => status::LOST,
        _ => status::REFUSED,
    }
}

fn of_acquire(error: &AcquireError, busy: u8) -> u8 {
    match error {
        AcquireError::Busy { .. } | AcquireError::Timeout { .. } => busy,
        AcquireError::Limit { .. } | AcquireError::Denied { .. } => status::DENIED,
        AcquireError::BadRequest { .. } => status::PROTOCOL,
        AcquireError::Storage { .. } => status::SYSTEM,
        AcquireError::Closing { .. } => status::UNREACHABLE,
        AcquireError::Disconnected(ended) => of_end(ended),
        AcquireError::Lost(_) => status::LOST,
        AcquireError::BadName(_) => status::USAGE,
        _ => status::REFUSED,
    }
}

fn of_request(error: &RequestError) -> u8 {
    match error {
        RequestError::Refused { word, .. } => of_word(word.as_str()),
        RequestError::Disconnected(ended) => of_end(ended),
        RequestError::Lost(_) => status::LOST,
        _ => status::USAGE,
    }
}

fn of_end(ended: &DisconnectedError) -> u8 {
    match ended {
        DisconnectedError::Garbage { .. } => status::PROTOCOL,
        DisconnectedError::Told { word, .. } => of_word(word.as_str()),
        _ => status::UNREACHABLE,
    }
}

fn connect_advice(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Unreachable(attempts)
            if attempts.iter().any(|one| matches!(one.failure, ServerError::NoTime { .. })) =>
        {
            "\nthe time to stop is that of --kill-after and two seconds: lower it"
        }
        _ => "",
    }
}

/// What to do about a refusal, where the daemon's sentence does not say it.
fn advice(error: &AcquireError) -> &'static str {
    match error {
        AcquireError::Busy { .. } => "; wait for it with -w TIME, or see who it is with: distrilock peek NAME",
        AcquireError::Timeout { .. } => "; see who holds it with: distrilock peek NAME",
        AcquireError::Mismatch { .. } => "; use the same number of slots as the others",
        AcquireError::Deadlock { .. } => "; take all names with one distrilock run, or always in the same order",
        AcquireError::Limit { .. } => "; see chapter 7 of docs/protocol.md for the daemon's limits",
        AcquireError::BadRequest { .. } => "; is the daemon older than this command?",
        AcquireError::Storage { .. } => "; see the daemon's log",
        AcquireError::Closing { .. } => "; the daemon stops: try again when it runs",
        _ => "",
    }
}
