//! How long a client relies on its locks without hearing from the daemon.

use std::time::Duration;

/// By how much the rates of two hosts' clocks may differ: one part in this many.
const CLOCK_RATE: u32 = 1000;

/// A shorter silence cannot be told from a busy machine.
pub(crate) const SILENCE_MIN: Duration = Duration::from_millis(100);

/// More frequent heartbeats cost more than they are worth.
pub(crate) const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// The shortest time between heartbeats that a short lease leads to.
const HEARTBEAT_SHORT_MIN: Duration = Duration::from_millis(100);

/// An answer makes locks on a file server certain for some time, of which a program that stops
/// slowly uses up a part. At least this has to be left, or half of the time if that is less: enough
/// for a heartbeat and a slow answer.
const CERTAIN_MIN: Duration = Duration::from_secs(2);

/// This many heartbeats fit into the time for which locks are certain, and into the longest
/// tolerated silence.
const HEARTBEATS: u32 = 4;

/// How long the program needs to stop its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopTime {
    /// This long.
    Exactly(Duration),
    /// The longest time in this range that fits the daemon.
    Between(Duration, Duration),
}

/// The times that a daemon reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DaemonTimes {
    /// After how long it gives a silent client up.
    pub(crate) dead_after: Duration,
    /// How long it assumes that a program takes to stop, where a file server may give locks away.
    pub(crate) stop: Option<Duration>,
    /// For how long an answered request makes locks certain there, at least.
    pub(crate) valid_min: Option<Duration>,
}

/// The program stops more slowly than a file server's lease allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooSlow {
    pub(crate) stop_within: Duration,
    pub(crate) stop_within_max: Duration,
}

/// The times of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// The longest silence the client tolerates, counted from when the last answered request was
    /// sent. Then it gives its locks up.
    pub(crate) silence_max: Duration,
    /// How long the program needs to stop its work after that.
    pub(crate) stop: StopTime,
    /// How often a heartbeat is sent, at least.
    pub(crate) heartbeat: Duration,
    /// How much longer the program takes to stop than the daemon assumes. Its locks count as held
    /// for that much less.
    pub(crate) slower: Duration,
    /// Set if that leaves too little time to hold locks at all.
    pub(crate) too_slow: Option<TooSlow>,
}

impl Default for Timing {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self {
            silence_max: 20 * second,
            stop: StopTime::Between(Duration::ZERO, 10 * second),
            heartbeat: 5 * second,
            slower: Duration::ZERO,
            too_slow: None,
        }
    }
}

impl Timing {
    /// How long the program may take to stop. Before the daemon's times are known, this is the
    /// longest time that it may turn out to be.
    pub(crate) fn stop_within(&self) -> Duration {
        match self.stop {
            StopTime::Exactly(time) | StopTime::Between(_, time) => time,
        }
    }

    /// Fits the times to those of a daemon. With rho for the difference in clock rates,
    /// (silence_max + stop_within)(1 + rho) < dead_after (1 - rho). At least three heartbeats fit
    /// into the silence. None if there is no time left to notice anything.
    pub(crate) fn fit(self, daemon: DaemonTimes) -> Option<Self> {
        let stop_and_certain = daemon.stop.zip(daemon.valid_min);
        let stop_within = match (self.stop, stop_and_certain) {
            // A time that nobody has asked for leaves half of what is certain.
            (StopTime::Between(least, most), Some((stop, valid_min))) => most.min(stop + valid_min / 2).max(least),
            _ => self.stop_within(),
        };
        let stop_within_max =
            stop_and_certain.map(|(stop, valid_min)| stop + valid_min - CERTAIN_MIN.min(valid_min / 2));
        let too_slow = stop_within_max
            .filter(|most| stop_within > *most)
            .map(|stop_within_max| TooSlow { stop_within, stop_within_max });
        let usable = daemon.dead_after.saturating_mul(CLOCK_RATE - 1) / (CLOCK_RATE + 1);
        let silence_max = usable.checked_sub(stop_within + Duration::from_millis(1))?.min(self.silence_max);
        let heartbeat = self.heartbeat.min(silence_max / HEARTBEATS);
        let slower = daemon.stop.map_or(Duration::ZERO, |stop| stop_within.saturating_sub(stop));
        let stop = StopTime::Exactly(stop_within);
        (silence_max >= SILENCE_MIN).then_some(Self { silence_max, stop, heartbeat, slower, too_slow })
    }

    /// For how long a lock counts as held, if the daemon says that it is for `valid_ms`.
    pub(crate) fn valid(&self, valid_ms: u64) -> Duration {
        Duration::from_millis(valid_ms).saturating_sub(self.slower)
    }

    /// How long after an answer the next heartbeat is sent if it made locks certain for `valid`:
    /// they are confirmed again before that is over.
    pub(crate) fn heartbeat_within(&self, valid: Duration) -> Duration {
        self.heartbeat.min((valid / HEARTBEATS).max(HEARTBEAT_SHORT_MIN))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn daemon(dead_after: Duration, stop: Option<Duration>) -> DaemonTimes {
        DaemonTimes { dead_after, stop, valid_min: None }
    }

    /// What a daemon derives from a lease (docs/safety.md, "Timing"): the longest silence of the
    /// server that it tolerates, and the times that it reports.
    fn on_lease(lease: Duration) -> (Duration, DaemonTimes) {
        let silence = lease * 2 / 3;
        let stop = (lease / 6).min(Duration::from_secs(10));
        let times = DaemonTimes {
            dead_after: Duration::from_secs(45),
            stop: Some(stop),
            valid_min: Some(silence - silence / 6 * 2),
        };
        (silence, times)
    }

    /// The inequality holds for every daemon, the defaults need no fitting, and None is returned
    /// where nothing fits.
    #[test]
    fn the_silence_fits_the_daemon() {
        let second = Duration::from_secs(1);
        let timing = Timing::default();
        let fitted = Timing { stop: StopTime::Exactly(10 * second), ..timing };
        assert_eq!(timing.fit(daemon(45 * second, None)), Some(fitted));
        assert_eq!(timing.fit(daemon(10 * second, None)), None);
        for dead_after in (1..3600).map(|tenths| Duration::from_millis(100) * tenths) {
            for stop_within in [0, 1, 10, 60].map(Duration::from_secs) {
                let exactly = Timing { stop: StopTime::Exactly(stop_within), ..timing };
                let Some(fit) = exactly.fit(daemon(dead_after, None)) else {
                    assert!(dead_after < stop_within + 2 * SILENCE_MIN + stop_within / 400);
                    continue;
                };
                let here = (fit.silence_max + fit.stop_within()) * 1001;
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
        let timing = |stop| Timing::default().fit(daemon(45 * second, stop)).unwrap();
        assert_eq!(timing(None).valid(20_000), 20 * second);
        assert_eq!(timing(Some(15 * second)).valid(20_000), 20 * second);
        assert_eq!(timing(Some(4 * second)).valid(20_000), 14 * second);
        assert_eq!(timing(Some(4 * second)).valid(5000), Duration::ZERO);
    }

    proptest! {
        /// For every lease from 10 s to 120 s and every time to stop: heartbeats are so frequent
        /// that even a slow answer comes while locks are certain, whenever between two probes the
        /// daemon sent the previous one. Otherwise the client is too slow; it knows that before it
        /// requests anything, and knows a time that fits.
        #[test]
        fn heartbeats_fit_every_lease(
            lease_ms in 10_000_u64..=120_000,
            stop_ms in 0_u64..=60_000,
            bounds in any::<bool>(),
            age in 0.0..=2.0_f64,
        ) {
            let ms = Duration::from_millis;
            let (silence, times) = on_lease(ms(lease_ms));
            let asked = if bounds { StopTime::Between(ms(stop_ms).min(ms(1000)), ms(stop_ms)) } else { StopTime::Exactly(ms(stop_ms)) };
            let Some(timing) = (Timing { stop: asked, ..Timing::default() }).fit(times) else {
                prop_assert!(ms(stop_ms) > ms(44_000), "{stop_ms} ms leave enough of 45 s");
                return Ok(());
            };
            let told = silence - (silence / 6).mul_f64(age);
            let valid = timing.valid(u64::try_from(told.as_millis()).unwrap());
            match timing.too_slow {
                None => {
                    let answer = valid.checked_sub(timing.heartbeat_within(valid)).unwrap_or_default();
                    prop_assert!(answer >= ms(1400), "{answer:?} for an answer: {timing:?}");
                    // The work has stopped before the server may give the lock away (B).
                    let over = valid + timing.stop_within() + (silence - told);
                    prop_assert!(over <= silence + times.stop.unwrap().max(timing.stop_within() - timing.slower));
                }
                Some(slow) => {
                    prop_assert!(!bounds, "what may be less is made to fit: {timing:?}");
                    prop_assert!(slow.stop_within_max < ms(stop_ms));
                    let fits = Timing { stop: StopTime::Exactly(slow.stop_within_max), ..Timing::default() };
                    prop_assert!(fits.fit(times).is_some_and(|fits| fits.too_slow.is_none()), "{slow:?}");
                }
            }
        }
    }

    /// The usual lease needs no fitting: the defaults and the heartbeats stay as they are.
    #[test]
    fn the_usual_lease_needs_no_fitting() {
        let second = Duration::from_secs(1);
        let (silence, times) = on_lease(90 * second);
        let fitted = Timing::default().fit(times).unwrap();
        assert_eq!(fitted.stop_within(), 10 * second);
        assert_eq!((fitted.slower, fitted.too_slow), (Duration::ZERO, None));
        assert_eq!(fitted.heartbeat_within(silence / 2), 5 * second);
        // While the server is silent, heartbeats do not become arbitrarily frequent.
        assert_eq!(fitted.heartbeat_within(Duration::ZERO), HEARTBEAT_SHORT_MIN);
    }
}
