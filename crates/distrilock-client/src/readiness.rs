//! Waiting for kinds of descriptors that tokio has no type for: here, timers.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

/// Lets the runtime watch a descriptor, which must not change until the value is dropped.
///
/// # Errors
/// Those of epoll_ctl(2).
pub(crate) fn watched<T: AsRawFd>(value: T) -> io::Result<AsyncFd<T>> {
    #[expect(
        deprecated,
        reason = "its replacement is unsafe, because of values whose descriptor changes; no caller has one"
    )]
    AsyncFd::new(value)
}
