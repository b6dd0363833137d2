//! The one place that reads a clock for the engine and the logs.

use std::time::Instant;

/// Milliseconds since the daemon's start, on CLOCK_MONOTONIC.
#[derive(Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
