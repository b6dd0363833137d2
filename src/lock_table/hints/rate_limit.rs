//! [`Portions`]: what others say is taken at a bounded rate, so that a flood of it is no busy loop.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::limits::{WORDS_PER_PERIOD_MAX, WORDS_PERIOD_MS};

pub(super) struct Portions {
    periods: Interval,
    left: u32,
}

impl Portions {
    pub(super) fn new() -> Self {
        let mut periods = interval(Duration::from_millis(WORDS_PERIOD_MS));
        periods.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { periods, left: 0 }
    }

    /// Waits until one more may be taken.
    pub(super) async fn take(&mut self) {
        if self.left == 0 {
            self.periods.tick().await;
            self.left = WORDS_PER_PERIOD_MAX;
        }
        self.left -= 1;
    }
}
