//! [`Turns`]: the stall meter. It measures how long the tasks of connections keep their thread,
//! since everybody else on that thread waits meanwhile.
//!
//! A turn is one poll of a connection's task. It begins where the previous one on the thread ended,
//! or when the thread woke, so that a turn costs one look at the clock. What the runtime does
//! between two tasks counts for the second one.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    /// When this thread's turn began.
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The longest turns of all session threads.
#[derive(Debug)]
pub struct Turns(Box<[ThreadTurns]>);

/// The longest turns of one session thread. Only this thread makes them longer.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ThreadTurns {
    longest_us: AtomicU64,
    lately_us: AtomicU64,
}

impl Turns {
    /// For this many threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| ThreadTurns::default()).collect())
    }

    /// Each thread's turns.
    #[must_use]
    pub fn threads(&self) -> &[ThreadTurns] {
        &self.0
    }

    /// The longest turn since the daemon started.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.0.iter().map(ThreadTurns::longest).max().unwrap_or_default()
    }

    /// The thread that has had the longest turn since this was last called, and the turn.
    #[must_use]
    pub fn take_lately(&self) -> Option<(usize, Duration)> {
        self.0.iter().map(ThreadTurns::take_lately).enumerate().max_by_key(|(_, lately)| *lately)
    }
}

impl ThreadTurns {
    /// A turn of this thread ends, and the next one begins.
    pub fn next(&self) {
        let now = Instant::now();
        if let Some(begun) = BEGUN.replace(Some(now)) {
            self.took(now - begun);
        }
    }

    fn took(&self, turn: Duration) {
        let us = u64::try_from(turn.as_micros()).unwrap_or(u64::MAX);
        if us > self.lately_us.load(Ordering::Relaxed) {
            self.lately_us.fetch_max(us, Ordering::Relaxed);
            self.longest_us.fetch_max(us, Ordering::Relaxed);
        }
    }

    /// The longest turn since the daemon started.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    /// The longest turn since this was last called.
    fn take_lately(&self) -> Duration {
        Duration::from_micros(self.lately_us.swap(0, Ordering::Relaxed))
    }
}

/// A session thread wakes: its turn begins now, not when the previous one ended.
pub fn begin() {
    BEGUN.set(Some(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A turn lasts from the thread's waking to the turn's end. The longest one stays, and the
    /// longest one of each period is taken once.
    #[test]
    fn the_longest_turn_stays() {
        let turns = Turns::new(2);
        let [quick, slow] = turns.threads() else { panic!("two") };
        slow.next();
        assert_eq!(turns.longest(), Duration::ZERO, "its beginning is not known");
        begin();
        std::thread::sleep(Duration::from_millis(3));
        slow.next();
        let longest = turns.longest();
        assert!(longest >= Duration::from_millis(3));
        quick.took(Duration::from_micros(5));
        assert_eq!(turns.take_lately(), Some((1, longest)));
        slow.took(Duration::from_micros(7));
        assert_eq!(turns.take_lately(), Some((1, Duration::from_micros(7))));
        assert_eq!(turns.take_lately().map(|(_, lately)| lately), Some(Duration::ZERO));
        assert_eq!(turns.longest(), longest);
    }
}
