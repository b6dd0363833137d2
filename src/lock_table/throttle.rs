//! [`Throttle`]: lets one message a minute pass, and counts the others.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::now_ms;

const PERIOD_MS: u64 = 60_000;

/// Lets one message a minute pass.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// When the last one passed, plus one; 0: never.
    passed_ms: AtomicU64,
    held_back: AtomicU64,
}

impl Throttle {
    /// If a message may pass now: how many were held back since the last one.
    pub(super) fn pass(&self) -> Option<u64> {
        self.pass_at(now_ms() + 1)
    }

    fn pass_at(&self, now_ms: u64) -> Option<u64> {
        let last_ms = self.passed_ms.load(Ordering::Relaxed);
        let due = last_ms == 0 || now_ms >= last_ms + PERIOD_MS;
        let ours = || self.passed_ms.compare_exchange(last_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if due && ours() {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flood of messages passes once a minute, and the next message reports how many were held
    /// back.
    #[test]
    fn once_a_minute() {
        let throttle = Throttle::default();
        assert_eq!(throttle.pass_at(1), Some(0));
        assert_eq!(throttle.pass_at(2), None);
        assert_eq!(throttle.pass_at(60_000), None);
        assert_eq!(throttle.pass_at(60_001), Some(2));
        assert_eq!(throttle.pass_at(60_002), None);
    }
}
