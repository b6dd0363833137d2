//! Locks of an open file description (OFD, fcntl_locking(2)). Such a lock belongs to the open file,
//! not to the process: it goes where the descriptor goes, and ends when the last descriptor is
//! closed.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, flock};

use super::ranges::Range;
use distrilock_engine::Mode;

/// Locks a range, converts its lock, or unlocks it (`None`). Returns false if another open file's
/// lock is in the way.
///
/// # Errors
/// Any errno but those of a lock in the way.
pub(super) fn set(file: impl AsFd, mode: Option<Mode>, range: Range) -> Result<bool, Errno> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&request(mode, range))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Locks a range, and waits until no other open file's lock is in the way.
///
/// # Errors
/// Any errno of fcntl(2).
pub(super) fn set_waiting(file: impl AsFd, mode: Mode, range: Range) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLKW(&request(Some(mode), range))).map(drop)
}

/// Returns a lock that would keep this range from being locked, if there is one.
///
/// # Errors
/// Any errno of fcntl(2).
pub(super) fn in_the_way(file: impl AsFd, mode: Mode, range: Range) -> Result<Option<flock>, Errno> {
    let mut found = request(Some(mode), range);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok((i32::from(found.l_type) != F_UNLCK).then_some(found))
}

/// The argument for fcntl(2). `l_pid` has to be 0.
fn request(mode: Option<Mode>, (start, length): Range) -> flock {
    let kind = match mode {
        Some(Mode::Exclusive) => F_WRLCK,
        Some(Mode::Shared | Mode::Slots(_)) => F_RDLCK,
        None => F_UNLCK,
    };
    flock {
        l_type: i16::try_from(kind).expect("lock types are small"),
        l_whence: i16::try_from(SEEK_SET).expect("SEEK_SET is 0"),
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}
