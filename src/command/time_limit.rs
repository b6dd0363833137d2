//! How long getting a lock may take in all, as `-n` and `-w` say: connecting, the wait, and a
//! daemon that does not answer. A cron job that hangs instead piles up with the next ones.

use std::time::Duration;

use tokio::time::Instant;

use super::options::{AcquireOptions, ServerOptions};

/// A daemon has at least this long to answer: a shorter limit would call one unreachable that is
/// merely far away, or that lost the first packet (a second until it is sent again, RFC 6298).
const ANSWER_TIME_MIN: Duration = Duration::from_secs(2);

/// How much later than at the end of the wait a daemon's answer may come: its own word that the
/// time is over is better than ours.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeLimit {
    began: Instant,
    time: Option<Duration>,
}

impl TimeLimit {
    /// No limit.
    pub(super) fn none() -> Self {
        Self { began: Instant::now(), time: None }
    }

    /// The limit that `-n` or `-w` sets, from now on.
    pub(super) fn new(options: &AcquireOptions, servers: &ServerOptions) -> Self {
        let time = match options.wait {
            _ if !options.waits() => Some(servers.connect_timeout.unwrap_or(ANSWER_TIME_MIN)),
            wait => wait,
        };
        Self::at_most(time)
    }

    /// This limit, from now on.
    pub(super) fn at_most(time: Option<Duration>) -> Self {
        Self { began: Instant::now(), time: time.map(|time| time.max(ANSWER_TIME_MIN)) }
    }

    /// How much time has passed.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// How much is left.
    pub(super) fn left(&self) -> Option<Duration> {
        self.time.map(|time| time.saturating_sub(self.elapsed()))
    }

    /// Does this work. `None` if it is not done when the limit, and the margin for the daemon's
    /// last answer, are over.
    pub(super) async fn bound<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match self.left() {
            Some(left) => tokio::time::timeout(left + ANSWER_MARGIN, work).await.ok(),
            None => Some(work.await),
        }
    }
}
