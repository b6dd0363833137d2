//! Random numbers. They need not be secret: the standard library seeds its hash maps from the
//! kernel's random numbers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// A random number.
pub(super) fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Waits for a random time of at most this.
pub(super) async fn jitter(time_max: Option<Duration>) {
    // The runtime counts in milliseconds, and would wait for one even with nothing to wait for.
    if let Some(time_max) = time_max {
        tokio::time::sleep(part_of(time_max)).await;
    }
}

fn part_of(whole: Duration) -> Duration {
    const PARTS: u32 = 1 << 20;
    let roll = number() % u64::from(PARTS);
    whole.mul_f64(f64::from(u32::try_from(roll).expect("it is below 2^20")) / f64::from(PARTS))
}
