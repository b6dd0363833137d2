//! [`RateLimit`]: messages from outside are admitted at a bounded rate, so that a flood of them is
//! no busy loop. The rate is that of all together, connections of other daemons and the watch over
//! closed files, and they take turns.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::limits::{MESSAGES_AT_ONCE, MESSAGES_PER_PERIOD_MAX, MESSAGES_PERIOD_MS};

/// Admits a bounded number of messages in each period.
#[derive(Debug, Default)]
pub(super) struct RateLimit(
    /// Tokio's mutex is fair: whoever asks first passes first, and waits with the mutex locked.
    Mutex<Period>,
);

#[derive(Debug, Default)]
struct Period {
    ends: Option<Instant>,
    left: u32,
}

impl RateLimit {
    /// Waits until some more messages may be handled, and returns how many.
    pub(super) async fn admit(&self) -> u32 {
        let mut period = self.0.lock().await;
        if period.left == 0
            && let Some(ends) = period.ends
        {
            sleep_until(ends).await;
        }
        if period.ends.is_none_or(|ends| ends <= Instant::now()) {
            let ends = Instant::now() + Duration::from_millis(MESSAGES_PERIOD_MS);
            *period = Period { ends: Some(ends), left: MESSAGES_PER_PERIOD_MAX };
        }
        let admitted = period.left.min(MESSAGES_AT_ONCE);
        period.left -= admitted;
        admitted
    }
}
