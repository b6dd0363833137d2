//! [`Fault`]: a file operation that the system refused.

use std::fmt;

use nix::libc;

/// The system failed a file operation: which, on what, and its errno. It reaches a peer only as a refusal that says so.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The operation's name, as in `open`.
    pub operation: &'static str,
    /// The path it was about; empty if it was about a descriptor.
    pub path: Box<str>,
    /// The error number, errno(3).
    pub errno: i32,
}

impl Fault {
    /// The system's sentence for the error number, in lower case as it stands within a line.
    #[must_use]
    pub fn reason(&self) -> String {
        let text = std::io::Error::from_raw_os_error(self.errno).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let mut letters = text.chars();
        let first = letters.next().map(|first| first.to_ascii_lowercase());
        first.into_iter().chain(letters).collect()
    }

    /// What to do about it, for a log line or a refusal.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self.errno {
            libc::ENOENT => "the lock directory is gone: make it again, or restart the daemon with the right one",
            libc::EACCES | libc::EPERM => {
                "let the daemon's user read and write the lock directory and its files; on NFS user numbers must agree between \
                 hosts, or the export squash them (docs/nfs.md)"
            }
            libc::EROFS => "mount the lock directory's file system read-write",
            libc::ENOSPC | libc::EDQUOT => "make room, or inodes, on the lock directory's file system",
            libc::EMFILE | libc::ENFILE => "raise the limit of open files (LimitNOFILE= of the service)",
            libc::EISDIR => "remove the directory that stands where the lock file has to be",
            libc::ELOOP => "remove the symbolic link: lock files are not followed out of the directory",
            libc::EINVAL => "remove what stands where the lock file has to be: it is no regular file",
            libc::ENOLCK => "the file system has no locks left, or does not support them",
            libc::EBUSY => "find the process that began to delete the lock file and was stopped (lslocks)",
            libc::ETIMEDOUT => {
                "the file server does not answer: look at the network and at the server; the daemon goes on by itself"
            }
            libc::EUCLEAN => {
                "a collector was killed there: run distrilock gc on the file server, or mount with vers=4.1 or 4.2"
            }
            libc::EBADMSG => {
                "its content is not what daemons write: move it away if it is a lock file, restore it if it is .distrilock/fence"
            }
            libc::ESTALE => {
                "its inode numbers change: move the lock directory to another file system, and look for who replaces files"
            }
            _ => "look at the file system under the lock directory, and at the kernel's log",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}: {}", self.operation, self.reason())
        } else {
            write!(f, "{} {}: {}", self.operation, self.path, self.reason())
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sentence is the one that clients of the original know: `OPERATION PATH: REASON`, in lower case.
    #[test]
    fn reads_as_the_original_wrote_it() {
        let fault = Fault { operation: "open", path: "/dir/adir.lck".into(), errno: libc::EISDIR };
        assert_eq!(fault.to_string(), "open /dir/adir.lck: is a directory");
    }
}
