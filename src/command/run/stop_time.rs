//! How long it takes to end CMD once the lock is lost: `--kill-after`, and a margin. The client
//! gives the lock up by so much earlier than others can get it.

use std::time::Duration;

use crate::command::options::{RunOptions, STOP_MARGIN};
use distrilock_client::Builder;

/// `--kill-after` if it is not given and nothing requires less.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// Tells the client how long it takes. A given time has to fit the daemon's times; the default is
/// made to fit them.
pub(super) fn tell(builder: Builder, options: &RunOptions) -> Builder {
    match options.kill_after {
        Some(time) => builder.stop_within(time.saturating_add(STOP_MARGIN)),
        None => builder.stop_within_between(STOP_MARGIN, KILL_AFTER + STOP_MARGIN),
    }
}

/// The time from the first signal to SIGKILL. `stop_within` is what the client has agreed on with
/// the daemon, if there is a lock.
pub(super) fn kill_after(options: &RunOptions, stop_within: Option<Duration>) -> Duration {
    let fitted = || stop_within.map_or(KILL_AFTER, |time| time.saturating_sub(STOP_MARGIN));
    options.kill_after.unwrap_or_else(fitted)
}
