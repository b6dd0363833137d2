//! [`Lease`]: when the file server was last heard for certain, and whether this host's lease can
//! have run out since.
//!
//! A server may give an NFSv4 lock away once its client has been silent for the lease time, and the
//! kernel does not report that (RFC 8881, section 8.3). A read past every cache, through a
//! descriptor that has a lock, proves that the lease has not run out: the server refuses the read
//! if the lock is gone. Time counts from when such a read was *sent*.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// What is known of this host's lease on the file server of one lock directory.
#[derive(Debug)]
pub struct Lease {
    /// When the last read that was answered had been sent, on the clock of [`crate::clock`].
    heard_ms: AtomicU64,
    /// Increases whenever the lease may have run out: earlier proofs mean nothing then.
    epoch: AtomicU64,
    /// After this many milliseconds of silence the lease is no longer relied on.
    silence_ms: u64,
}

/// A [`Lease`] on its way to the next process. A hand-over writes it as an array of the two
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct HandedLease {
    /// When the server was last heard.
    pub heard_ms: u64,
    /// The epoch at that time.
    pub epoch: u64,
}

impl From<(u64, u64)> for HandedLease {
    fn from((heard_ms, epoch): (u64, u64)) -> Self {
        Self { heard_ms, epoch }
    }
}

impl From<HandedLease> for (u64, u64) {
    fn from(lease: HandedLease) -> Self {
        (lease.heard_ms, lease.epoch)
    }
}

impl Lease {
    /// Begins now: the server has just been heard. `silence_ms` has to be less than the server's
    /// lease time, by a margin that docs/safety.md gives.
    #[must_use]
    pub fn new(now_ms: u64, silence_ms: u64) -> Self {
        Self { heard_ms: AtomicU64::new(now_ms), epoch: AtomicU64::new(0), silence_ms }
    }

    /// Continues where the previous process stopped. If the lease can have run out in between, the
    /// next read shows it.
    pub fn take_over(&self, handed: HandedLease) {
        self.heard_ms.store(handed.heard_ms, Ordering::SeqCst);
        self.epoch.store(handed.epoch, Ordering::SeqCst);
    }

    /// What the next process has to know.
    #[must_use]
    pub fn hand_over(&self) -> HandedLease {
        HandedLease { heard_ms: self.heard_ms.load(Ordering::SeqCst), epoch: self.epoch() }
    }

    /// A read through a locked descriptor, sent at `sent_ms`, has been answered.
    pub fn heard(&self, sent_ms: u64) {
        // The break comes first: a thread that sees the end of a silence must also see that earlier
        // proofs mean nothing.
        if self.silent_ms(sent_ms) > self.silence_ms {
            self.broken();
        }
        self.heard_ms.fetch_max(sent_ms, Ordering::SeqCst);
    }

    /// A lock turned out to be gone: whatever was locked before is in doubt.
    pub fn broken(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// The number of the current stretch of time in which the lease did not run out.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// For how many milliseconds the server has not been heard.
    #[must_use]
    pub fn silent_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.heard_ms.load(Ordering::SeqCst))
    }

    /// For how many more milliseconds locks that were proven in this epoch are certainly held.
    #[must_use]
    pub fn valid_ms(&self, now_ms: u64) -> u64 {
        self.silence_ms.saturating_sub(self.silent_ms(now_ms))
    }

    /// Whether a lock that was proven in that epoch is certainly still held now.
    #[must_use]
    pub fn is_unbroken_since(&self, epoch: u64, now_ms: u64) -> bool {
        // In this order: a break between the two is seen, and so is one that a silence has caused.
        self.valid_ms(now_ms) > 0 && self.epoch() == epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Silence invalidates earlier proofs, even if the server is heard again afterwards.
    #[test]
    fn silence_breaks() {
        let lease = Lease::new(1000, 100);
        let epoch = lease.epoch();
        assert!(lease.is_unbroken_since(epoch, 1099));
        assert!(!lease.is_unbroken_since(epoch, 1100));
        lease.heard(1080);
        assert!(lease.is_unbroken_since(epoch, 1170));
        assert_eq!(lease.valid_ms(1170), 10);
        lease.heard(1181);
        assert!(!lease.is_unbroken_since(epoch, 1182), "101 ms lie between the two reads");
        assert!(lease.is_unbroken_since(lease.epoch(), 1182));
    }

    /// A thread that looks while the first read after a silence is noted sees the silence or the
    /// break.
    #[test]
    fn no_moment_hides_a_break() {
        for _ in 0..2000 {
            let lease = Lease::new(1000, 100);
            std::thread::scope(|scope| {
                let noted = scope.spawn(|| lease.heard(1200));
                while !noted.is_finished() {
                    assert!(!lease.is_unbroken_since(0, 1200), "a lock of before the silence counts as held");
                }
            });
        }
    }

    /// A slow answer proves only what was true when its read was sent, and a late one does not turn
    /// time back.
    #[test]
    fn counts_from_the_sending() {
        let lease = Lease::new(1000, 100);
        lease.heard(1050);
        lease.heard(1020);
        assert_eq!(lease.silent_ms(1100), 50);
        lease.broken();
        assert!(!lease.is_unbroken_since(0, 1100));
    }

    /// Daemons of older versions read what goes to the next process, and write it.
    #[test]
    fn is_handed_over_as_an_array() {
        let handed = Lease::new(1000, 100).hand_over();
        assert_eq!(serde_json::to_string(&handed).unwrap(), "[1000,0]");
        assert_eq!(serde_json::from_str::<HandedLease>("[7,3]").unwrap(), HandedLease { heard_ms: 7, epoch: 3 });
    }
}
