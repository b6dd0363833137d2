//! [`PeerSockets`]: how the daemons of a local lock directory find each other. Each has a Unix
//! stream socket in `.distrilock/`. This is for local file systems only: a socket works on its own
//! host only, and another host's socket would look like one that a dead daemon left.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode as Permissions, SFlag, fstat};
use nix::unistd::{getegid, geteuid};

use super::daemon_folder::{self, NEW_SOCKET_SUFFIX, SOCKET_SUFFIX};
use crate::limits::{FOLDER_ENTRIES_MAX, PEERS_MAX};
use distrilock_engine::fault::{Fault, Operation};

/// How many names are tried for this daemon's socket.
const NAMES_MAX: u8 = 5;

/// How many sockets of other daemons are looked at: more than a daemon connects to, since some
/// may be of daemons that are gone.
const SOCKETS_MAX: usize = 4 * PEERS_MAX;

/// A socket, open by its path only.
#[derive(Debug)]
pub struct OpenedSocket(OwnedFd);

impl OpenedSocket {
    /// A path to it, whatever becomes of its name.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// The folder of the daemons' sockets, with one of this daemon.
#[derive(Debug)]
pub struct PeerSockets {
    folder: OwnedFd,
    own: String,
}

impl PeerSockets {
    /// Creates a socket of this daemon, and the folder if there is none.
    ///
    /// # Errors
    /// If the folder or the socket cannot be created, or proc(5) is not mounted.
    pub fn join(directory: &Path) -> Result<(Self, UnixListener), Fault> {
        let path = daemon_folder::path(directory);
        let fault = |operation, errno: Errno| fault(operation, &path, errno);
        daemon_folder::create(directory).map_err(|error| fault(Operation::Create, errno_of(&error)))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = open(&path, flags, Permissions::empty()).map_err(|errno| fault(Operation::Open, errno))?;
        let mut sockets = Self { folder, own: String::new() };
        let mut last = Ok(());
        for _ in 0..NAMES_MAX {
            let name = format!("{}-{:08x}", std::process::id(), RandomState::new().hash_one(0) >> 32);
            match sockets.listen(&name) {
                Ok(listener) => {
                    sockets.own = name + SOCKET_SUFFIX;
                    return Ok((sockets, listener));
                }
                Err(error) => {
                    last = Err(fault(Operation::ListenIn, Errno::from_raw(error.raw_os_error().unwrap_or(0))))
                }
            }
        }
        last.map(|()| unreachable!("an attempt without an error returns"))
    }

    /// A socket gets its final name once somebody listens on it. So a socket with such a name that
    /// refuses connections has lost its daemon.
    fn listen(&self, name: &str) -> io::Result<UnixListener> {
        let new = self.path(&(name.to_owned() + NEW_SOCKET_SUFFIX));
        let listener = UnixListener::bind(&new)?;
        std::fs::rename(&new, self.path(&(name.to_owned() + SOCKET_SUFFIX))).inspect_err(|_| {
            // Either somebody has removed it already, or nobody can.
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
        let failed = |error: &io::Error| fault(Operation::Read, &folder, errno_of(error));
        let mut others = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(|error| failed(&error))?.take(FOLDER_ENTRIES_MAX) {
            let name = entry.map_err(|error| failed(&error))?.file_name();
            let other = name.to_str().filter(|name| name.ends_with(SOCKET_SUFFIX) && *name != self.own);
            others.extend(other.map(str::to_owned));
            if others.len() == SOCKETS_MAX {
                break;
            }
        }
        Ok(others)
    }

    /// Opens another daemon's socket, for connect(2) by [`OpenedSocket::path`]. Anyone who can
    /// write the folder can put anything there, and connect(2) would follow a symbolic link to a
    /// socket elsewhere.
    ///
    /// # Errors
    /// If it is not a socket of this folder, by that name alone, of this daemon's user or group, or
    /// of root or the folder's group.
    pub fn open(&self, socket: &str) -> io::Result<OpenedSocket> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(&self.folder, socket, flags, Permissions::empty())?;
        let stat = fstat(&opened)?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFSOCK.bits() || stat.st_nlink != 1 {
            return Err(Errno::ENOTSOCK.into());
        }
        let known = stat.st_uid == 0
            || stat.st_uid == geteuid().as_raw()
            || stat.st_gid == getegid().as_raw()
            || stat.st_gid == fstat(&self.folder)?.st_gid;
        if known { Ok(OpenedSocket(opened)) } else { Err(Errno::EPERM.into()) }
    }

    /// A path to a socket that fits into a socket's address (unix(7): 108 bytes), however deep the
    /// directory is.
    #[must_use]
    pub fn path(&self, socket: &str) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()));
        path.push(OsStr::from_bytes(socket.as_bytes()));
        path
    }

    /// Removes a socket on which nobody listens any more. Another daemon may have removed it first.
    pub fn remove(&self, socket: &str) {
        let _ = std::fs::remove_file(self.path(socket));
    }

    /// Removes this daemon's socket, so that no further daemon connects.
    pub fn leave(&self) {
        self.remove(&self.own);
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn fault(operation: Operation, path: &Path, errno: Errno) -> Fault {
    Fault::system(operation, path.to_string_lossy(), errno as i32)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Two daemons find each other however deep the directory is, and one that leaves is no longer
    /// found.
    #[test]
    fn they_meet_in_a_deep_directory() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&directory).unwrap();
        let (one, listener) = PeerSockets::join(&directory).unwrap();
        let (two, _listener) = PeerSockets::join(&directory).unwrap();
        assert_eq!(two.others().unwrap(), [&*one.own]);
        UnixStream::connect(two.open(&one.own).unwrap().path()).unwrap();
        listener.accept().unwrap();
        one.leave();
        assert_eq!(two.others().unwrap(), [""; 0]);
    }

    /// A symbolic link to a socket elsewhere, another name of such a socket, a FIFO and a file are
    /// no sockets of daemons, and nothing outside is connected to.
    #[test]
    fn nothing_leads_out_of_the_folder() {
        let base = tempfile::tempdir().unwrap();
        let (one, _listener) = PeerSockets::join(base.path()).unwrap();
        let folder = daemon_folder::path(base.path());
        let outside = base.path().join("outside");
        let victim = UnixListener::bind(&outside).unwrap();
        victim.set_nonblocking(true).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("link.sock")).unwrap();
        std::fs::hard_link(&outside, folder.join("hard.sock")).unwrap();
        std::fs::write(folder.join("file.sock"), "").unwrap();
        nix::unistd::mkfifo(&folder.join("fifo.sock"), Permissions::S_IRWXU).unwrap();
        let others = one.others().unwrap();
        assert_eq!(others.len(), 4, "{others:?}");
        for other in others {
            one.open(&other).expect_err(&other);
        }
        assert_eq!(victim.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// If something else is where the folder should be, or a link to somewhere else, the fault
    /// names it.
    #[test]
    fn no_folder_to_meet_in() {
        let base = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", base.path().join(daemon_folder::NAME)).unwrap();
        let fault = PeerSockets::join(base.path()).unwrap_err();
        assert_eq!(fault.operation(), Operation::Open);
        assert!(fault.path.ends_with(daemon_folder::NAME), "{fault}");
    }
}
