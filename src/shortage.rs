//! Errors that say nothing about what was asked for, but that the system has no resources for it
//! just now.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

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

/// What to do about an error that is a shortage, at the end of a message; nothing if it is none.
#[must_use]
pub fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE) => "; raise LimitNOFILE= of the service, or ulimit -n",
        Some(Errno::EAGAIN) => "; raise TasksMax= and LimitNPROC= of the service, or ulimit -u",
        Some(Errno::ENOMEM | Errno::ENOBUFS) => "; raise MemoryMax= of the service, or free memory",
        _ => "",
    }
}

/// Checks that this process can open this many descriptors at once. Parts of the runtime panic
/// where they get none, so it is better to know before.
///
/// # Errors
/// If there are fewer.
pub fn check_descriptors(count: usize) -> io::Result<()> {
    // The standard library opens the first three if the caller has closed them.
    let all: io::Result<Vec<OwnedFd>> = (0..count).map(|_| io::stdin().as_fd().try_clone_to_owned()).collect();
    all.map(drop)
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
