//! Time that continues while the host sleeps: CLOCK_BOOTTIME (clock_gettime(2)). All deadlines of a
//! client use it.

use std::io;
use std::ops::Add;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

use crate::readiness::watched;

/// A moment on CLOCK_BOOTTIME. Unlike the clock of [`Instant`](std::time::Instant), it continues
/// while the host is suspended.
///
/// ```
/// use std::time::Duration;
/// use distrilock_client::BootTime;
///
/// let now = BootTime::now();
/// let deadline = now + Duration::from_secs(20);
/// assert_eq!(deadline.saturating_since(now), Duration::from_secs(20));
/// assert_eq!(now.saturating_since(deadline), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(Duration);

impl BootTime {
    /// The present moment.
    ///
    /// ```
    /// use distrilock_client::BootTime;
    ///
    /// assert!(BootTime::now() <= BootTime::now());
    /// ```
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
        Self(now.into())
    }

    /// The time since the host started. This is the form to pass to other programs and to
    /// timerfd_settime(2).
    ///
    /// ```
    /// use distrilock_client::BootTime;
    ///
    /// assert!(BootTime::now().since_boot().as_nanos() > 0);
    /// ```
    #[must_use]
    pub fn since_boot(self) -> Duration {
        self.0
    }

    /// The time since `earlier`; zero if this moment is not after it.
    ///
    /// ```
    /// use distrilock_client::BootTime;
    ///
    /// let then = BootTime::now();
    /// let passed = BootTime::now().saturating_since(then);
    /// assert!(passed.as_secs() < 60);
    /// ```
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
impl BootTime {
    pub(crate) fn at(since_boot: Duration) -> Self {
        Self(since_boot)
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

/// An alarm on the clock of [`BootTime`]. The runtime's own timers stop while the host is
/// suspended.
#[derive(Debug)]
pub(crate) struct Alarm(AsyncFd<Timer>);

#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(timerfd::ClockId::CLOCK_BOOTTIME, flags)?;
        Ok(Self(watched(Timer(timer))?))
    }

    /// Waits until `at`, or forever if there is none.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: the next call sets the alarm again.
    pub(crate) async fn wait_until(&self, at: Option<BootTime>) -> io::Result<()> {
        let Some(at) = at else { return std::future::pending().await };
        // A time of zero would disarm it (timerfd_settime(2)). The upper limit is too far away to
        // matter.
        let at = at.0.clamp(Duration::from_nanos(1), Duration::from_secs(u32::MAX.into()));
        let timer = &self.0.get_ref().0;
        timer.set(Expiration::OneShot(TimeSpec::from_duration(at)), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().0.wait() {
                Ok(()) => return Ok(()),
                // The previous alarm made it readable.
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
