//! How long a client relies on its locks without hearing from the daemon.

use std::time::Duration;

/// By how much the rates of two hosts' clocks may differ: one part in this many.
const CLOCK_RATE: u32 = 1000;

/// A shorter silence cannot be told from a busy machine.
pub(crate) const SILENCE_MIN: Duration = Duration::from_millis(100);

/// More frequent heartbeats cost more than they are worth.
pub(crate) const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// The times of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// The longest silence the client tolerates, counted from when the last answered request was
    /// sent. Then it gives its locks up.
    pub(crate) silence_max: Duration,
    /// How long the program needs to stop its work after that.
    pub(crate) stop_within: Duration,
    /// How often a heartbeat is sent.
    pub(crate) heartbeat: Duration,
    /// How much longer the program takes to stop than the daemon assumes. Its locks count as held
    /// for that much less.
    pub(crate) slower: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { silence_max: 20 * second, stop_within: 10 * second, heartbeat: 5 * second, slower: Duration::ZERO }
    }
}

impl Timing {
    /// Fits the times to a daemon that gives a silent client up after `dead_after`. With rho for
    /// the difference in clock rates, (silence_max + stop_within)(1 + rho) < dead_after (1 - rho).
    /// At least three heartbeats fit into the silence. `stop` is how long the daemon assumes that a
    /// program takes to stop, where a file server may give locks away. None if there is no time
    /// left to notice anything.
    pub(crate) fn fit(self, dead_after: Duration, stop: Option<Duration>) -> Option<Self> {
        let usable = dead_after.saturating_mul(CLOCK_RATE - 1) / (CLOCK_RATE + 1);
        let silence_max = usable.checked_sub(self.stop_within + Duration::from_millis(1))?.min(self.silence_max);
        let heartbeat = self.heartbeat.min(silence_max / 4);
        let slower = stop.map_or(Duration::ZERO, |stop| self.stop_within.saturating_sub(stop));
        (silence_max >= SILENCE_MIN).then_some(Self { silence_max, heartbeat, slower, ..self })
    }

    /// For how long a lock counts as held, if the daemon says that it is for `valid_ms`.
    pub(crate) fn valid(&self, valid_ms: u64) -> Duration {
        Duration::from_millis(valid_ms).saturating_sub(self.slower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The inequality holds for every daemon, the defaults need no fitting, and None is returned
    /// where nothing fits.
    #[test]
    fn the_silence_fits_the_daemon() {
        let second = Duration::from_secs(1);
        let timing = Timing::default();
        assert_eq!(timing.fit(45 * second, None), Some(timing));
        assert_eq!(timing.fit(10 * second, None), None);
        for dead_after in (1..3600).map(|tenths| Duration::from_millis(100) * tenths) {
            for stop_within in [0, 1, 10, 60].map(Duration::from_secs) {
                let Some(fit) = (Timing { stop_within, ..timing }).fit(dead_after, None) else {
                    assert!(dead_after < stop_within + 2 * SILENCE_MIN + stop_within / 400);
                    continue;
                };
                let here = (fit.silence_max + fit.stop_within) * 1001;
                assert!(here < dead_after * 999, "{fit:?} {dead_after:?}");
                assert!(fit.heartbeat * 3 < fit.silence_max && fit.silence_max <= timing.silence_max);
            }
        }
    }

    /// A program that takes longer to stop than the daemon assumes gives its locks up earlier by
    /// the difference.
    #[test]
    fn a_slow_program_stops_earlier() {
        let second = Duration::from_secs(1);
        let timing = |stop| Timing::default().fit(45 * second, stop).unwrap();
        assert_eq!(timing(None).valid(20_000), 20 * second);
        assert_eq!(timing(Some(15 * second)).valid(20_000), 20 * second);
        assert_eq!(timing(Some(4 * second)).valid(20_000), 14 * second);
        assert_eq!(timing(Some(4 * second)).valid(5000), Duration::ZERO);
    }
}
