//! The times on which exclusion over NFS rests, and the inequalities that they have to satisfy (docs/safety.md, "Timing").

use std::time::Duration;

/// How much the rates of two hosts' clocks may differ: a thousandth, ten times what quartz clocks do.
const RATE_ERROR: f64 = 0.001;

/// How long a message to a holder may take, from the decision that its lock is lost.
const PUSH: Duration = Duration::from_secs(1);

/// After how much silence a client of ours gives up by itself, unless it was told otherwise.
const CLIENT_SILENCE: Duration = Duration::from_secs(20);

/// The times of one daemon on one mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// T_L: after so much silence of a host the server may give its locks away.
    pub lease: Duration,
    /// T_s: after so much silence of the server the daemon counts its locks as lost.
    pub silence: Duration,
    /// How often the daemon makes sure that it hears the server.
    pub probe_every: Duration,
    /// T_k: how long a holder may take to stop its work when it is told to.
    pub stop: Duration,
    /// T_d: after so much silence of a peer its session ends.
    pub dead_after: Duration,
}

/// Times with which two holders could overlap.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "unsafe timing: {what} may add up to {} s, and {limit} is {} s; {remedy}",
    sum.as_secs_f64(), bound.as_secs_f64()
)]
pub struct Unsafe {
    what: &'static str,
    sum: Duration,
    limit: &'static str,
    bound: Duration,
    remedy: &'static str,
}

impl Timing {
    /// The times for a lease: two thirds of it for silence, a sixth, 10 s at most, to stop, and a ninth between two probes, unless
    /// others are given.
    #[must_use]
    pub fn of(lease: Duration, silence: Option<Duration>, stop: Option<Duration>, dead_after: Duration) -> Self {
        let silence = silence.unwrap_or(lease * 2 / 3);
        let stop = stop.unwrap_or((lease / 6).min(Duration::from_secs(10)));
        Self { lease, silence, probe_every: silence / 6, stop, dead_after }
    }

    /// Whether so much silence of the server is more than that between two probes.
    #[must_use]
    pub fn is_silence(&self, silent: Duration) -> bool {
        silent > 2 * self.probe_every
    }

    /// Whether holders stop before their locks can be given away: when the server is not heard (B), and when a client and its
    /// daemon do not hear each other (A).
    ///
    /// # Errors
    /// Tells which sum is too large, and what to change.
    pub fn check(&self) -> Result<(), Unsafe> {
        let fits = |sum: Duration, bound: Duration| {
            sum.as_secs_f64() * (1.0 + RATE_ERROR) < bound.as_secs_f64() * (1.0 - RATE_ERROR)
        };
        let server = self.silence + PUSH + self.stop;
        if !fits(server, self.lease) {
            return Err(Unsafe {
                what: "--storage-silence, 1 s for the message and --stop-time",
                sum: server,
                limit: "the server's lease time",
                bound: self.lease,
                remedy: "lower them, or raise the lease time of the server (nfsd: rpc.nfsd -L, 90 s by default)",
            });
        }
        let client = self.client_silence() + self.stop;
        if !fits(client, self.dead_after) {
            return Err(Unsafe {
                what: "the silence after which clients give up and --stop-time",
                sum: client,
                limit: "--dead-after",
                bound: self.dead_after,
                remedy: "raise --dead-after, or lower --stop-time",
            });
        }
        Ok(())
    }

    /// T_c: what clients of ours take for themselves. A shorter `--dead-after` makes them more careful.
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

    /// The defaults hold for every lease that servers have, and for the shortest that a laboratory has.
    #[test]
    fn defaults_are_safe() {
        for lease in [8, 10, 15, 30, 45, 60, 90, 120, 300] {
            Timing::of(s(lease), None, None, s(45)).check().unwrap();
        }
        let timing = Timing::of(s(90), None, None, s(45));
        assert_eq!((timing.silence, timing.probe_every, timing.stop), (s(60), s(10), s(10)));
    }

    /// What is no silence for a hand-over is told to no session either, and leaves half of the time to be told.
    #[test]
    fn silence_before_doubt() {
        let timing = Timing::of(s(90), None, None, s(45));
        assert!(!timing.is_silence(s(20)) && timing.is_silence(s(21)));
        assert!(timing.is_silence(timing.silence / 2));
    }

    /// Times with which a holder may still work when the server gives its lock away are refused, and the message tells which.
    #[test]
    fn unsafe_times_are_told() {
        let message = |timing: Timing| timing.check().unwrap_err().to_string();
        let slow = message(Timing::of(s(90), Some(s(85)), None, s(45)));
        assert!(slow.contains("96 s") && slow.contains("lease time is 90 s"), "{slow}");
        let short = message(Timing::of(s(5), None, None, s(45)));
        assert!(short.contains("raise the lease time"), "{short}");
        let peer = message(Timing::of(s(90), None, Some(s(10)), s(12)));
        assert!(peer.contains("--dead-after"), "{peer}");
    }
}
