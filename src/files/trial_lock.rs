//! Locks with which the doctor tries out a file system: no names, no checks.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

use super::mount::{Mount, MountError};
use super::ofd_lock;
use super::ranges::ALL;
use crate::shortage::is_shortage;
use distrilock_engine::Mode;

/// Locks a file, and creates it if there is none; dropping the returned file unlocks it. Returns
/// `None` if another process has locked it.
///
/// # Errors
/// If the file cannot be opened or locked.
pub fn lock(path: &Path, wait: bool) -> io::Result<Option<File>> {
    // Otherwise the lock might stay on this host, and prove nothing of the server.
    let mount = match path.parent().map(Mount::under) {
        Some(Err(MountError::Unreadable(error))) if is_shortage(&error) => return Err(error),
        // What is wrong with the mount is another finding.
        mount => mount.and_then(Result::ok),
    };
    let flags = mount.map_or(OFlag::empty(), |mount| mount.open_flags());
    let flags = (flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)?;
    let locked = if wait {
        ofd_lock::set_waiting(&file, Mode::Exclusive, ALL).map(|()| true)
    } else {
        ofd_lock::set(&file, Some(Mode::Exclusive), ALL)
    };
    Ok(locked?.then_some(file))
}

/// Opens a lock file as daemons do, and closes it.
///
/// # Errors
/// If it cannot be opened to read and write.
pub fn open(path: &Path, mount: &Mount) -> io::Result<()> {
    // A delegation would outlive this descriptor, and cover the daemon's locks.
    let flags = (mount.open_flags() | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    File::options().read(true).write(true).custom_flags(flags).open(path).map(drop)
}

/// Removes the file of such a lock. Nobody uses its name again.
pub fn remove(path: &Path) {
    // It may not have been created.
    let _ = std::fs::remove_file(path);
}
