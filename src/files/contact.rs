//! [`Contact`]: when the file server was last heard for certain, and whether its lease can have run out since.
//!
//! A server may give an NFSv4 lock away once its client has been silent for the lease time, and the kernel tells nobody
//! (RFC 8881, section 8.3). What proves that the lease has not run out is a read, past every cache, through a descriptor that has
//! a lock: the server refuses it when the lock is gone. Time counts from when such a read was *sent*.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is known of the lease under one lock directory.
#[derive(Debug)]
pub struct Contact {
    /// When the last read that came back was sent, on the clock of [`crate::clock`].
    heard_ms: AtomicU64,
    /// Rises whenever the lease may have run out: what was proven before means nothing then.
    epoch: AtomicU64,
    /// After so many milliseconds of silence the lease is not relied on.
    silence_ms: u64,
}

impl Contact {
    /// The server has just been heard. `silence_ms` has to be less than its lease time, by a margin that docs/safety.md tells.
    #[must_use]
    pub fn new(now_ms: u64, silence_ms: u64) -> Self {
        Self { heard_ms: AtomicU64::new(now_ms), epoch: AtomicU64::new(0), silence_ms }
    }

    /// Goes on where the process before has stopped: if the lease can have run out in between, the next read shows that.
    pub fn take_over(&self, (heard_ms, epoch): (u64, u64)) {
        self.heard_ms.store(heard_ms, Ordering::SeqCst);
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    /// When the server was last heard, and in which epoch.
    #[must_use]
    pub fn hand_over(&self) -> (u64, u64) {
        (self.heard_ms.load(Ordering::SeqCst), self.epoch())
    }

    /// A read through a locked descriptor, sent at `sent_ms`, has come back.
    pub fn heard(&self, sent_ms: u64) {
        let last_ms = self.heard_ms.fetch_max(sent_ms, Ordering::SeqCst);
        if sent_ms.saturating_sub(last_ms) > self.silence_ms {
            self.broken();
        }
    }

    /// A lock turned out to be gone: whatever was locked before is in doubt.
    pub fn broken(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// The number of the current stretch of unbroken contact.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// For how many milliseconds nothing was heard.
    #[must_use]
    pub fn silent_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.heard_ms.load(Ordering::SeqCst))
    }

    /// For how many milliseconds from now locks that were proven in this epoch are surely held.
    #[must_use]
    pub fn valid_ms(&self, now_ms: u64) -> u64 {
        self.silence_ms.saturating_sub(self.silent_ms(now_ms))
    }

    /// Whether a lock that was proven in that epoch is surely still held now.
    #[must_use]
    pub fn is_unbroken_since(&self, epoch: u64, now_ms: u64) -> bool {
        // In this order: a break that comes in between is seen.
        self.valid_ms(now_ms) > 0 && self.epoch() == epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Silence breaks what was proven before, also when the server is heard again afterwards.
    #[test]
    fn silence_breaks() {
        let contact = Contact::new(1000, 100);
        let epoch = contact.epoch();
        assert!(contact.is_unbroken_since(epoch, 1099));
        assert!(!contact.is_unbroken_since(epoch, 1100));
        contact.heard(1080);
        assert!(contact.is_unbroken_since(epoch, 1170));
        assert_eq!(contact.valid_ms(1170), 10);
        contact.heard(1181);
        assert!(!contact.is_unbroken_since(epoch, 1182), "101 ms lie between the two reads");
        assert!(contact.is_unbroken_since(contact.epoch(), 1182));
    }

    /// An answer that was long on its way proves only what was true when it was sent; an old one does not turn time back.
    #[test]
    fn counts_from_the_sending() {
        let contact = Contact::new(1000, 100);
        contact.heard(1050);
        contact.heard(1020);
        assert_eq!(contact.silent_ms(1100), 50);
        contact.broken();
        assert!(!contact.is_unbroken_since(0, 1100));
    }
}
