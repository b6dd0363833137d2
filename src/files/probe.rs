//! A lock on a file for its own sake, for the doctor: no name, no checks.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::os;
use distrilock_engine::Mode;

/// Makes the file, if there is none, and locks it; dropping what it returns unlocks it. `None`: somebody else locks it.
///
/// # Errors
/// If the file cannot be opened or locked.
pub fn lock(path: &Path, wait: bool) -> io::Result<Option<File>> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)?;
    let whole = os::lock(Some(Mode::Exclusive), (0, 0));
    let locked = fcntl(&file, if wait { FcntlArg::F_OFD_SETLKW(&whole) } else { FcntlArg::F_OFD_SETLK(&whole) });
    match locked {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes the file of such a lock, whose name nobody uses again.
pub fn remove(path: &Path) {
    // It may not have been made.
    let _ = std::fs::remove_file(path);
}
