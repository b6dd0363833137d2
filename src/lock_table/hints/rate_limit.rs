//! [`RateLimit`]: events from outside are admitted at a bounded rate, so that a flood of them is no
//! busy loop.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::limits::{MESSAGES_PER_PERIOD_MAX, MESSAGES_PERIOD_MS};

/// Admits a bounded number of events in each period.
pub(super) struct RateLimit {
    periods: Interval,
    left: u32,
}

impl RateLimit {
    pub(super) fn new() -> Self {
        let mut periods = interval(Duration::from_millis(MESSAGES_PERIOD_MS));
        periods.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { periods, left: 0 }
    }

    /// Waits until one more event may be handled.
    pub(super) async fn admit(&mut self) {
        if self.left == 0 {
            self.periods.tick().await;
            self.left = MESSAGES_PER_PERIOD_MAX;
        }
        self.left -= 1;
    }
}
