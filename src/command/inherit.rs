//! Descriptors that the next program gets: every one that we open ourselves is closed at execve(2) unless it is made to stay.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// Leaves a descriptor open for the programs that this process starts or becomes.
pub(super) fn leave_open(descriptor: impl AsFd) -> Result<(), Errno> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)
}

/// Lets reads and writes wait again, as the next program expects of a descriptor; a runtime's own do not.
pub(super) fn let_wait(descriptor: impl AsFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_truncate(fcntl(&descriptor, FcntlArg::F_GETFL)?);
    fcntl(&descriptor, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK))).map(drop)
}
