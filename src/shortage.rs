//! Errors that say nothing about what was asked for, but that the system has no resources for it
//! just now.

use std::io;

use nix::errno::Errno;

/// Whether the system has no resources just now, or a signal came in between: trying again later
/// may succeed. Such an error is never mistaken for a fact about a file, a mount or a peer.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| {
        use Errno::{EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM};
        [EMFILE, ENFILE, ENOMEM, ENOBUFS, EINTR, EAGAIN].contains(&Errno::from_raw(errno))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that is full is a shortage; a file that is not there, or must not be read, is a
    /// fact.
    #[test]
    fn facts_are_no_shortage() {
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EINTR] {
            assert!(is_shortage(&errno.into()), "{errno}");
        }
        for errno in [Errno::ENOENT, Errno::EACCES, Errno::ESTALE, Errno::EIO, Errno::EFBIG, Errno::ENOSPC] {
            assert!(!is_shortage(&errno.into()), "{errno}");
        }
        assert!(!is_shortage(&io::ErrorKind::InvalidData.into()));
    }
}
