//! `.distrilock/` in a lock directory, which the daemons keep for themselves: what its files are
//! called, and how it is created.
//!
//! - [`FENCE_MARK`]: the number above which the fences of new lock files start (`fence`). The first
//!   daemon that grants a fence creates it, and with it a note, [`FENCE_NOTE`], that it is needed.
//! - [`GATE`]: has a byte for each name, which keeps the name's file closed while it is deleted
//!   (`open_gate`). On a network file system the first daemon that opens a lock file creates it.
//! - [`PRESENCE_PREFIX`]`UUID`: who a daemon is, locked while the daemon runs (`presence`). Each
//!   daemon on NFSv4 has one.
//! - [`BOARD_PREFIX`]`UUID`: what a daemon shows the others of its locks, locked while the daemon
//!   runs (`board`). A daemon creates it when a lock has been held for a while.
//! - [`STAMPS`]`/NAME.run`: when a run began that asked to be remembered (`stamp`). The first
//!   daemon that writes a stamp creates the folder.
//! - [`CLOCK_PREFIX`]`UUID`: exists for a moment, to read the file server's clock
//!   ([`server_time`]).
//! - `PID-NUMBER`[`SOCKET_SUFFIX`]: where a daemon listens for the others of its host
//!   (`peer_sockets`). Each daemon on a local file system has one.
//!
//! The folder has the mode of the lock directory, and shared files in it are readable and writable
//! for those who may read and write the lock directory. So nobody can do more in the folder than
//! with the lock files themselves, and every daemon that can use the lock files can use the folder.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

/// The folder's name, which no lock file can have.
pub(super) const NAME: &str = ".distrilock";

/// The file of the fence mark.
pub(super) const FENCE_MARK: &str = "fence";

/// The note that fences were granted.
pub(super) const FENCE_NOTE: &str = "fence-note";

/// The file of the open gate.
pub(super) const GATE: &str = "gate";

/// The folder of the stamps.
pub(super) const STAMPS: &str = "stamps";

/// How the names of presence files begin.
pub(super) const PRESENCE_PREFIX: &str = "node-";

/// How the names of boards begin.
pub(super) const BOARD_PREFIX: &str = "board-";

/// How the names of files begin that are created only to read the file server's clock.
const CLOCK_PREFIX: &str = "clock-";

/// How the name of a socket ends once a daemon listens on it.
pub(super) const SOCKET_SUFFIX: &str = ".sock";

/// How the name of a socket ends before that.
pub(super) const NEW_SOCKET_SUFFIX: &str = ".new";

/// The permission bits of the lock directory that its folder takes over, apart from the
/// set-group-ID bit.
const MODE_BITS: u32 = 0o1777;

/// The set-group-ID bit: new files get the directory's group.
const SET_GROUP_ID: u32 = 0o2000;

/// The folder of a lock directory.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// Creates the folder if there is none, with the mode of the lock directory.
///
/// # Errors
/// If it cannot be created, or cannot get its mode.
pub(super) fn create(directory: &Path) -> io::Result<PathBuf> {
    create_like(directory, path(directory))
}

/// Creates a folder if there is none, with the mode of the lock directory.
pub(super) fn create_like(directory: &Path, folder: PathBuf) -> io::Result<PathBuf> {
    let mode = fs::metadata(directory)?.mode() & (MODE_BITS | SET_GROUP_ID);
    // The kernel makes the folder inherit the set-group-ID bit; a unit with RestrictSUIDSGID= may
    // not ask for it.
    match DirBuilder::new().mode(mode & MODE_BITS).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(folder),
        Err(error) => return Err(error),
    }
    let created = fs::metadata(&folder)?.mode() & (MODE_BITS | SET_GROUP_ID);
    if created != mode {
        match fs::set_permissions(&folder, Permissions::from_mode(mode)) {
            // Such a unit cannot undo its umask where the folder has the set-group-ID bit. The
            // umask then narrows the folder as it narrows the lock files.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && (created ^ mode) & SET_GROUP_ID == 0 => {}
            set => set?,
        }
    }
    Ok(folder)
}

/// Opens the folder, to use what is in it whatever becomes of its name. It must not be a symbolic
/// link: that would lead out of the lock directory.
///
/// # Errors
/// Those of open(2); ENOTDIR if it is not a directory.
pub(super) fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path(directory), flags, Mode::empty())?)
}

/// Opens a folder in the folder, to use and to list what is in it. It must not be a symbolic link
/// either.
///
/// # Errors
/// Those of open(2); ENOTDIR if it is not a directory.
pub(super) fn open_folder(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(open(directory)?, name, flags, Mode::empty())?)
}

/// Flags of open(2) in the form of [`open_file`].
pub(super) fn with(flags: OFlag) -> OFlags {
    OFlags::from_bits_retain(flags.bits().cast_unsigned())
}

/// Opens a file in the folder for reading and writing, with these additional flags. Anyone who can
/// write the folder can put anything there: a symbolic link is not followed, and a FIFO, a
/// directory, a device, or a second name of a file that lies elsewhere is refused.
///
/// # Errors
/// Those of open(2); EINVAL for what is not a file of the folder alone.
pub(super) fn open_file(directory: &Path, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
    open_file_in(&open(directory)?, name, flags, mode)
}

/// The same in a folder that is open already.
pub(super) fn open_file_in(folder: &OwnedFd, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
    let safe = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(openat(folder, name, safe | flags, Mode::from_raw_mode(mode))?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() > 1 {
        return Err(Errno::INVAL.into());
    }
    Ok(file)
}

/// The mode of a file that the daemons of several hosts and users share, for a lock directory of
/// this mode: anyone who may read or write the directory may read or write the file.
pub(super) fn file_mode(directory_mode: u32) -> u32 {
    0o600 | (directory_mode & 0o066)
}

/// A name that nobody else uses.
pub(super) fn unique_name(prefix: &str) -> io::Result<String> {
    let unique = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(format!("{prefix}{}", unique.trim()))
}

/// The time in seconds since 1970 on the clock that stamps files. A file server's clock may differ
/// from this host's.
pub(super) fn server_time(directory: &Path) -> io::Result<i64> {
    server_time_ms(directory).map(|time_ms| time_ms.div_euclid(1000))
}

/// The same in milliseconds.
pub(super) fn server_time_ms(directory: &Path) -> io::Result<i64> {
    create(directory)?;
    let (folder, name) = (open(directory)?, unique_name(CLOCK_PREFIX)?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let stamped = File::from(openat(&folder, &name, flags, Mode::from_raw_mode(0o666))?).metadata();
    // Nobody else knows the name, so it does not matter when the deletion takes effect.
    let _ = fs::remove_file(path(directory).join(name));
    let stamped = stamped?;
    Ok(stamped.mtime().saturating_mul(1000).saturating_add(stamped.mtime_nsec() / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder takes the directory's mode. Where that includes the set-group-ID bit the folder
    /// inherits it: a unit with RestrictSUIDSGID= may not set it.
    #[test]
    fn the_folder_is_like_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o2770, 0o2750, 0o1777] {
            fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
            let created = create(directory.path()).unwrap();
            assert_eq!(fs::metadata(&created).unwrap().mode() & 0o7777, mode);
            fs::remove_dir(created).unwrap();
        }
    }

    /// A folder that exists keeps its mode, whatever the directory's is.
    #[test]
    fn an_existing_folder_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(path(directory.path())).unwrap();
        fs::set_permissions(path(directory.path()), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o2770)).unwrap();
        let folder = create(directory.path()).unwrap();
        assert_eq!(fs::metadata(folder).unwrap().mode() & 0o7777, 0o755);
    }

    /// Anything other than a regular file of the folder is refused at once, and nothing outside the
    /// folder is opened.
    #[test]
    fn only_files_of_the_folder_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::write(&outside, "kept").unwrap();
        let folder = create(directory.path()).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("link")).unwrap();
        fs::hard_link(&outside, folder.join("second-name")).unwrap();
        fs::create_dir(folder.join("directory")).unwrap();
        nix::unistd::mkfifo(&folder.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["link", "second-name", "directory", "fifo"] {
            for flags in [OFlags::empty(), OFlags::CREATE] {
                open_file(directory.path(), name, flags, 0o600).expect_err(name);
            }
        }
        open_file(directory.path(), "new", OFlags::CREATE, 0o600).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(folder, path(elsewhere.path())).unwrap();
        open_file(elsewhere.path(), "new", OFlags::empty(), 0o600).expect_err("the folder is a link");
    }

    /// Files that daemons share are for the same users as the directory, and never executable.
    #[test]
    fn shared_files_are_for_the_users_of_the_directory() {
        for (directory, file) in [(0o700, 0o600), (0o750, 0o640), (0o755, 0o644), (0o2770, 0o660), (0o1777, 0o666)] {
            assert_eq!(file_mode(directory), file, "{directory:o}");
        }
    }
}
