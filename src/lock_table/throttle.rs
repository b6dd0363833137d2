//! [`Throttle`]: a budget of messages a minute, and a count of those beyond it.

use std::sync::Mutex;

use crate::clock::now_ms;
use crate::limits::LOG_PERIOD_MS;
use crate::sync::locked;

/// Lets a few messages a minute pass, and counts the others.
#[derive(Debug)]
pub(super) struct Throttle {
    /// How many pass in a period.
    budget: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the period began.
    began_ms: u64,
    passed: u32,
    held_back: u64,
}

impl Throttle {
    /// A throttle that lets this many messages a minute pass.
    pub(super) const fn new(budget: u32) -> Self {
        Self { budget, state: Mutex::new(State { began_ms: 0, passed: 0, held_back: 0 }) }
    }

    /// If a message may pass now: how many were held back since they were last counted.
    pub(super) fn pass(&self) -> Option<u64> {
        self.pass_at(now_ms())
    }

    /// If messages were held back in a period that is over: how many. They then count as reported.
    pub(super) fn summary(&self) -> Option<u64> {
        self.summary_at(now_ms())
    }

    fn pass_at(&self, now_ms: u64) -> Option<u64> {
        let mut state = locked(&self.state);
        if state.passed == 0 || now_ms >= state.began_ms + LOG_PERIOD_MS {
            (state.began_ms, state.passed) = (now_ms, 0);
        }
        if state.passed == self.budget {
            state.held_back += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held_back))
    }

    fn summary_at(&self, now_ms: u64) -> Option<u64> {
        let mut state = locked(&self.state);
        let due = state.held_back > 0 && now_ms >= state.began_ms + LOG_PERIOD_MS;
        due.then(|| {
            // The summary is the first message of the next period.
            (state.began_ms, state.passed) = (now_ms, 1);
            std::mem::take(&mut state.held_back)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flood of messages passes once a minute, and the next message reports how many were held
    /// back.
    #[test]
    fn once_a_minute() {
        let throttle = Throttle::new(1);
        assert_eq!(throttle.pass_at(1), Some(0));
        assert_eq!(throttle.pass_at(2), None);
        assert_eq!(throttle.pass_at(60_000), None);
        assert_eq!(throttle.pass_at(60_001), Some(2));
        assert_eq!(throttle.pass_at(60_002), None);
    }

    /// A few messages pass, the others are counted; once the flood is over, a summary has their
    /// number, once.
    #[test]
    fn a_summary_follows() {
        let throttle = Throttle::new(3);
        assert_eq!(throttle.summary_at(0), None);
        let passed = (0..100).filter(|now_ms| throttle.pass_at(*now_ms).is_some()).count();
        assert_eq!(passed, 3);
        assert_eq!(throttle.summary_at(59_999), None);
        assert_eq!(throttle.summary_at(60_000), Some(97));
        assert_eq!(throttle.summary_at(200_000), None);
        let passed = (200_000..200_100).filter(|now_ms| throttle.pass_at(*now_ms).is_some()).count();
        assert_eq!(passed, 3);
        assert_eq!(throttle.summary_at(270_000), Some(97));
    }
}
