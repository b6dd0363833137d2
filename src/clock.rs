//! The one place that reads a clock for locks and logs.
//!
//! It reads CLOCK_BOOTTIME (clock_gettime(2)), which continues while the host sleeps, as the leases
//! of an NFS server do, and which nobody sets. Wall clocks are never used.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the host started.
#[must_use]
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had CLOCK_BOOTTIME since 2.6.39");
    let (seconds, nanos) = (now.tv_sec(), now.tv_nsec());
    u64::try_from(seconds * 1000 + nanos / 1_000_000).expect("the time since a start is not negative")
}
