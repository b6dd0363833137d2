//! `--once-per` and `--once-per-success`: whether CMD is due, and the record of its run, which the
//! daemon keeps in the lock directory (docs/decisions/0023). Both happen while the lock is held, so
//! that of all hosts only one runs CMD.

use std::time::Duration;

use tokio::time::timeout;

use crate::command::acquire::AcquiredLock;
use crate::command::error::CommandError;
use crate::command::options::Once;
use crate::command::output::duration;
use distrilock_client::{BootTime, RequestError, Server};

/// How long a daemon may take to read a record or to write one.
const RECORD_TIME_MAX: Duration = Duration::from_secs(10);

/// How long giving the lock back may take, before the end of the connection has to do.
const RELEASE_TIME_MAX: Duration = Duration::from_secs(2);

/// What follows if the daemon does not say whether CMD is due.
const NOT_RUN: &str = "CMD is not run";

impl Once {
    fn period(self) -> Duration {
        match self {
            Self::PerStart(period) | Self::PerSuccess(period) => period,
        }
    }

    /// How old the last run has to be. Schedules are not exact: hosts start a job at slightly
    /// different times, and when summer time begins, a daily job starts after 23 hours. So a tenth
    /// less than the period is enough.
    fn due_after(self) -> Duration {
        self.period() - self.period() / 10
    }
}

/// Gives the lock on if CMD is due, after recording its start if that is what counts. Otherwise
/// releases it.
///
/// What counts is when this process `began`, not when it came to the lock: `--jitter`, a slow start
/// and a slow daemon move the start of CMD, but not the schedule.
pub(super) async fn check(
    lock: AcquiredLock,
    once: Option<Once>,
    began: BootTime,
) -> Result<AcquiredLock, CommandError> {
    let Some(once) = once else { return Ok(lock) };
    let Err(error) = is_due(&lock, once, began).await else { return Ok(lock) };
    // The client stays until then, since its end is the connection's.
    let AcquiredLock { client: _client, held } = lock;
    let _ = timeout(RELEASE_TIME_MAX, held.release()).await;
    Err(error)
}

async fn is_due(AcquiredLock { client, held }: &AcquiredLock, once: Once, began: BootTime) -> Result<(), CommandError> {
    let server = client.server();
    let last = bounded(server, NOT_RUN, held.last_run()).await?;
    let ago = |age: &Duration| age.saturating_sub(BootTime::now().saturating_since(began));
    if let Some(age) = last.filter(|age| ago(age) < once.due_after()) {
        let names: Vec<&str> = held.names().map(|name| name.as_str()).collect();
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        return Err(CommandError::NotDue { names: names.join(","), ago: duration(age_ms) });
    }
    match once {
        Once::PerStart(_) => bounded(server, NOT_RUN, held.record_run(BootTime::now().saturating_since(began))).await,
        Once::PerSuccess(_) => Ok(()),
    }
}

/// Records that CMD, for which this process `began`, ended with status 0.
pub(super) async fn record_success(lock: &AcquiredLock, began: BootTime) -> Result<(), CommandError> {
    bounded(
        lock.client.server(),
        "the run may not be recorded",
        lock.held.record_run(BootTime::now().saturating_since(began)),
    )
    .await
}

async fn bounded<T>(
    server: &Server,
    so: &'static str,
    request: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, CommandError> {
    let server = server.clone();
    match timeout(RECORD_TIME_MAX, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(RequestError::Refused { word, .. })) if word == "unknown_op" => Err(CommandError::NoRecord { server }),
        Ok(Err(error)) => Err(CommandError::Request { server, error }),
        Err(_) => Err(CommandError::NoAnswer { server, after: RECORD_TIME_MAX, so }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daily job is due again after 23 hours, when summer time begins, and a few seconds early;
    /// but not when another host starts it late.
    #[test]
    fn due() {
        let hour = Duration::from_secs(3600);
        let due = |period: Duration, age: Duration| age >= Once::PerStart(period).due_after();
        assert!(due(24 * hour, 23 * hour) && due(24 * hour, 23 * hour - hour / 60));
        assert!(!due(24 * hour, 12 * hour) && !due(hour, 5 * hour / 60));
        assert!(due(hour, hour - Duration::from_secs(5)) && due(Duration::ZERO, Duration::ZERO));
    }
}
