//! Waits for descriptors of kinds that tokio has no type for: signals, timers, events of a
//! directory. Not part of the library's interface; the programs of the same repository share it.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

/// Registers a value's descriptor with the runtime. The descriptor must not change until the value
/// is dropped.
///
/// # Errors
/// Those of epoll_ctl(2).
pub fn watched<T: AsRawFd>(value: T) -> io::Result<AsyncFd<T>> {
    #[expect(deprecated, reason = "its replacement is unsafe, for values whose descriptor changes; no caller has one")]
    AsyncFd::new(value)
}
