//! The times on which exclusion over NFS rests, and the inequalities that they have to satisfy
//! (docs/safety.md, "Timing").

use std::time::Duration;

/// How much the rates of two hosts' clocks may differ: a thousandth, ten times as much as those of
/// quartz clocks.
const RATE_ERROR: f64 = 0.001;

/// How long it may take to notify a holder once its lock counts as lost.
const PUSH: Duration = Duration::from_secs(1);

/// After how much silence our clients give up by themselves, unless configured otherwise.
const CLIENT_SILENCE: Duration = Duration::from_secs(20);

/// The times of one daemon on one mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// T_L: after this much silence of a host, the server may give its locks away.
    pub lease: Duration,
    /// T_s: after this much silence of the server, the daemon counts its locks as lost.
    pub silence: Duration,
    /// How often the daemon checks that it hears the server.
    pub probe_every: Duration,
    /// T_k: how long a holder may take to stop its work when notified.
    pub stop: Duration,
    /// T_d: after this much silence of a peer, its session ends.
    pub dead_after: Duration,
}

/// Times with which two holders could overlap.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "unsafe timing: {what} may add up to {} s, and {limit} is {} s; {remedy}",
    sum.as_secs_f64(), bound.as_secs_f64()
)]
pub struct TimingError {
    what: &'static str,
    sum: Duration,
    limit: &'static str,
    bound: Duration,
    remedy: &'static str,
}

impl Timing {
    /// The times for a lease. Unless others are given, two thirds of it are for silence, and a
    /// sixth, but at most 10 s, is to stop. Probes are a sixth of the silence apart.
    #[must_use]
    pub fn of(lease: Duration, silence: Option<Duration>, stop: Option<Duration>, dead_after: Duration) -> Self {
        let silence = silence.unwrap_or(lease * 2 / 3);
        let stop = stop.unwrap_or((lease / 6).min(Duration::from_secs(10)));
        Self { lease, silence, probe_every: silence / 6, stop, dead_after }
    }

    /// Whether this is more silence of the server than there is between two probes.
    #[must_use]
    pub fn is_silence(&self, silent: Duration) -> bool {
        silent > 2 * self.probe_every
    }

    /// Checks that holders stop before their locks can be given away: when the server is not heard
    /// (B), and when a client and its daemon do not hear each other (A).
    ///
    /// # Errors
    /// If a sum is too large. The error says which one, and what to change.
    pub fn check(&self) -> Result<(), TimingError> {
        let fits = |sum: Duration, bound: Duration| {
            sum.as_secs_f64() * (1.0 + RATE_ERROR) < bound.as_secs_f64() * (1.0 - RATE_ERROR)
        };
        let server = self.silence + PUSH + self.stop;
        if !fits(server, self.lease) {
            return Err(TimingError {
                what: "--storage-silence, 1 s for the message and --stop-time",
                sum: server,
                limit: "the server's lease time",
                bound: self.lease,
                remedy: "lower them, or raise the lease time of the server (nfsd: rpc.nfsd -L, 90 s by default)",
            });
        }
        let client = self.client_silence() + self.stop;
        if !fits(client, self.dead_after) {
            return Err(TimingError {
                what: "the silence after which clients give up and --stop-time",
                sum: client,
                limit: "--dead-after",
                bound: self.dead_after,
                remedy: "raise --dead-after, or lower --stop-time",
            });
        }
        Ok(())
    }

    /// T_c: the silence after which our clients give up. A short `--dead-after` makes it shorter.
    fn client_silence(&self) -> Duration {
        CLIENT_SILENCE.min(self.dead_after * 4 / 9)
    }
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |time: Duration| (time.as_secs_f64() * 10.0).round() / 10.0;
        write!(
            f,
            "lease {} s, silence {} s, probe every {} s, stop {} s, dead after {} s",
            seconds(self.lease),
            seconds(self.silence),
            seconds(self.probe_every),
            seconds(self.stop),
            seconds(self.dead_after)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The defaults are safe for every lease that servers have, down to the shortest one in a lab.
    #[test]
    fn defaults_are_safe() {
        for lease in [8, 10, 15, 30, 45, 60, 90, 120, 300] {
            Timing::of(s(lease), None, None, s(45)).check().unwrap();
        }
        let timing = Timing::of(s(90), None, None, s(45));
        assert_eq!((timing.silence, timing.probe_every, timing.stop), (s(60), s(10), s(10)));
    }

    /// What does not count as silence for a hand-over is not reported to sessions either, and
    /// leaves half of the tolerated time.
    #[test]
    fn silence_before_doubt() {
        let timing = Timing::of(s(90), None, None, s(45));
        assert!(!timing.is_silence(s(20)) && timing.is_silence(s(21)));
        assert!(timing.is_silence(timing.silence / 2));
    }

    /// Times with which a holder may still work when the server gives its lock away are refused,
    /// and the message says which.
    #[test]
    fn unsafe_times_are_refused() {
        let message = |timing: Timing| timing.check().unwrap_err().to_string();
        let slow = message(Timing::of(s(90), Some(s(85)), None, s(45)));
        assert!(slow.contains("96 s") && slow.contains("lease time is 90 s"), "{slow}");
        let short = message(Timing::of(s(5), None, None, s(45)));
        assert!(short.contains("raise the lease time"), "{short}");
        let peer = message(Timing::of(s(90), None, Some(s(10)), s(12)));
        assert!(peer.contains("--dead-after"), "{peer}");
    }
}
