//! Where the daemons of a lock directory find each other: `.distrilock/` in it has a Unix stream socket of each. For local file
//! systems alone: a socket is of use on its own host only, and one of another host would look like one that a dead daemon left.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode as Permissions;
use nix::unistd::mkdir;

use distrilock_engine::fault::{Fault, Operation};

/// The folder of the sockets. Its name is none of a lock file.
const FOLDER: &str = ".distrilock";

/// What the name of a socket ends in that somebody listens on.
const SUFFIX: &str = ".sock";

/// So often another name is tried for the own socket.
const NAMES_MAX: u8 = 5;

/// The folder of the daemons' sockets, with one of this daemon.
#[derive(Debug)]
pub struct Meeting {
    folder: OwnedFd,
    own: String,
}

impl Meeting {
    /// Makes the folder, if there is none, and puts a socket of this daemon into it.
    ///
    /// # Errors
    /// If the folder or the socket cannot be made, or proc(5) is not mounted.
    pub fn enter(directory: &Path) -> Result<(Self, UnixListener), Fault> {
        let path = directory.join(FOLDER);
        let fault = |operation, errno: Errno| fault(operation, &path, errno);
        match mkdir(&path, Permissions::from_bits_truncate(0o775)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(fault(Operation::Create, errno)),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = open(&path, flags, Permissions::empty()).map_err(|errno| fault(Operation::Open, errno))?;
        let mut meeting = Self { folder, own: String::new() };
        let mut last = Ok(());
        for _ in 0..NAMES_MAX {
            let name = format!("{}-{:08x}", std::process::id(), RandomState::new().hash_one(0) >> 32);
            match meeting.listen(&name) {
                Ok(listener) => {
                    meeting.own = name + SUFFIX;
                    return Ok((meeting, listener));
                }
                Err(error) => {
                    last = Err(fault(Operation::ListenIn, Errno::from_raw(error.raw_os_error().unwrap_or(0))))
                }
            }
        }
        last.map(|()| unreachable!("an attempt without an error returns"))
    }

    /// A socket gets its name when somebody listens on it: one with a name that refuses connections has lost its daemon.
    fn listen(&self, name: &str) -> std::io::Result<UnixListener> {
        let new = self.path(&format!("{name}.new"));
        let listener = UnixListener::bind(&new)?;
        std::fs::rename(&new, self.path(&(name.to_owned() + SUFFIX))).inspect_err(|_| {
            // Somebody has removed it already, or nobody can.
            let _ = std::fs::remove_file(&new);
        })?;
        Ok(listener)
    }

    /// The names of the other daemons' sockets.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn others(&self) -> Result<Vec<String>, Fault> {
        let folder = self.path("");
        let failed = |error: &std::io::Error| {
            fault(Operation::Read, &folder, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        };
        let mut others = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(|error| failed(&error))? {
            let name = entry.map_err(|error| failed(&error))?.file_name();
            let other = name.to_str().filter(|name| name.ends_with(SUFFIX) && *name != self.own);
            others.extend(other.map(str::to_owned));
        }
        Ok(others)
    }

    /// A path to a socket that is short enough for a socket's address (unix(7): 108 bytes), wherever the directory is.
    #[must_use]
    pub fn path(&self, socket: &str) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()));
        path.push(OsStr::from_bytes(socket.as_bytes()));
        path
    }

    /// Removes a socket on which nobody listens any more. Another daemon may have been quicker.
    pub fn remove(&self, socket: &str) {
        let _ = std::fs::remove_file(self.path(socket));
    }

    /// Removes this daemon's socket: nobody new is to come.
    pub fn leave(&self) {
        self.remove(&self.own);
    }
}

fn fault(operation: Operation, path: &Path, errno: Errno) -> Fault {
    Fault::system(operation, path.to_string_lossy(), errno as i32)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Two daemons find each other, wherever the directory is, and who leaves is not found any more.
    #[test]
    fn they_meet_in_a_deep_directory() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&directory).unwrap();
        let (one, listener) = Meeting::enter(&directory).unwrap();
        let (two, _listener) = Meeting::enter(&directory).unwrap();
        assert_eq!(two.others().unwrap(), [&*one.own]);
        UnixStream::connect(two.path(&one.own)).unwrap();
        listener.accept().unwrap();
        one.leave();
        assert_eq!(two.others().unwrap(), [""; 0]);
    }

    /// A folder that is none, or a link to somewhere else, is a fault that names it.
    #[test]
    fn no_folder_to_meet_in() {
        let base = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", base.path().join(FOLDER)).unwrap();
        let fault = Meeting::enter(base.path()).unwrap_err();
        assert_eq!(fault.operation(), Operation::Open);
        assert!(fault.path.ends_with(FOLDER), "{fault}");
    }
}
