//! Waiting for descriptors of a kind that tokio has no type for: signals, timers, events of a directory.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

/// Has the runtime watch a descriptor. It has to be the same one until the value is dropped.
///
/// # Errors
/// Those of epoll_ctl(2).
pub(crate) fn watched<T: AsRawFd>(value: T) -> io::Result<AsyncFd<T>> {
    #[expect(deprecated, reason = "what replaces it is unsafe, for values whose descriptor changes; no caller has one")]
    AsyncFd::new(value)
}
