//! [`Fault`]: a file operation that failed, and what to do about it.

use std::fmt;
use std::io::{self, ErrorKind};

/// A file operation failed: on which file, and why. It reaches a peer only as a refusal that says
/// so.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Why.
    pub cause: Cause,
    /// The path it was about; empty if it was about a descriptor.
    pub path: Box<str>,
}

/// Why a file operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The system refused a call.
    System {
        /// What the call was for.
        operation: Operation,
        /// The error number, errno(3).
        errno: i32,
    },
    /// A process began to delete the lock file, and does not finish.
    StalledDeletion,
    /// Another process kept the fence of the lock file locked for too long.
    FenceBusy,
    /// Another process kept the mark of the fences, `.distrilock/fence`, locked for too long.
    MarkBusy,
    /// The lock file contains something that no daemon writes.
    ForeignContent,
    /// The mark of the fences contains something that no daemon writes.
    ForeignMark,
    /// The lock file's fence is above the mark, which is never below a fence that was granted.
    FenceAboveMark,
    /// The mark is so high that no number is left for further fences.
    MarkAtEnd,
    /// There is no mark, or an empty one, although fences were granted.
    MarkMissing,
    /// The mark is another file than before, or is lower.
    MarkReplaced,
    /// A call on a local file system does not come back.
    DiskSilent,
    /// The stamp of the name contains something that no daemon writes.
    ForeignStamp,
    /// The lock directory has as many stamps as it may have.
    StampsFull,
    /// The file server does not answer.
    ServerSilent,
    /// The file server answers, but each answer takes longer than a lease can be relied on.
    ServerSlow,
    /// The lock file is marked dead, and nothing may delete it from a client of NFS 4.0.
    DeadFile,
    /// The name means another file each time it is looked at, so that nothing can be said about it.
    Replaced,
}

/// What was being done when a file operation failed, in the words of a fault's sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is named like the call, or described by the cause that implies it")]
pub enum Operation {
    Create,
    ListenIn,
    Lock,
    Open,
    Prove,
    Read,
    ReadFence,
    ReadStamp,
    Remove,
    Stat,
    Truncate,
    WaitFor,
    WaitForDeletion,
    WaitForFence,
    Write,
    WriteStamp,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::ListenIn => "listen in",
            Self::Lock => "lock",
            Self::Open => "open",
            Self::Prove => "prove",
            Self::Read => "read",
            Self::ReadFence => "read the fence of",
            Self::ReadStamp => "read the stamp",
            Self::Remove => "remove",
            Self::Stat => "stat",
            Self::Truncate => "truncate",
            Self::WaitFor => "wait for",
            Self::WaitForDeletion => "wait for the deletion of",
            Self::WaitForFence => "wait for the fence of",
            Self::Write => "write",
            Self::WriteStamp => "write the stamp",
        })
    }
}

/// The number of "input/output error" (errno(3)), used for an error without a number.
const EIO: i32 = 5;

// Numbers for which std has no stable kind, as Linux on x86, Arm, RISC-V, POWER and z has them
// (errno(3)).
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOLCK: i32 = 37;
const ELOOP: i32 = 40;

impl Cause {
    /// The system refused a call, as std reports it.
    #[must_use]
    pub fn io(operation: Operation, error: &io::Error) -> Self {
        Self::System { operation, errno: error.raw_os_error().unwrap_or(EIO) }
    }
}

impl Fault {
    /// The system refused a call.
    #[must_use]
    pub fn system(operation: Operation, path: impl Into<Box<str>>, errno: i32) -> Self {
        Self { cause: Cause::System { operation, errno }, path: path.into() }
    }

    /// The same, as std reports it.
    #[must_use]
    pub fn io(operation: Operation, path: impl Into<Box<str>>, error: &io::Error) -> Self {
        Self { cause: Cause::io(operation, error), path: path.into() }
    }

    /// The error number, if the system refused a call.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self.cause {
            Cause::System { errno, .. } => Some(errno),
            _ => None,
        }
    }

    /// What was being done.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self.cause {
            Cause::System { operation, .. } => operation,
            Cause::StalledDeletion => Operation::WaitForDeletion,
            Cause::FenceBusy => Operation::WaitForFence,
            Cause::MarkBusy | Cause::DeadFile => Operation::Lock,
            Cause::ForeignContent | Cause::FenceAboveMark => Operation::ReadFence,
            Cause::ForeignMark | Cause::MarkAtEnd | Cause::MarkMissing | Cause::MarkReplaced => Operation::Read,
            Cause::ForeignStamp => Operation::ReadStamp,
            Cause::StampsFull => Operation::WriteStamp,
            Cause::DiskSilent | Cause::ServerSilent => Operation::WaitFor,
            Cause::ServerSlow => Operation::Prove,
            Cause::Replaced => Operation::Stat,
        }
    }

    /// The reason, for use within a line. Clients of version 0.1 read it, so our own causes keep
    /// the texts of the errors that once represented them: EBUSY, EBADMSG, ETIMEDOUT, EUCLEAN,
    /// ESTALE.
    #[must_use]
    pub fn reason(&self) -> String {
        let words = match self.cause {
            Cause::System { errno, .. } => return system_reason(errno),
            Cause::StalledDeletion | Cause::FenceBusy | Cause::MarkBusy => "device or resource busy",
            Cause::ForeignContent | Cause::ForeignMark | Cause::ForeignStamp => "bad message",
            Cause::FenceAboveMark => "it is above the mark of the lock directory (.distrilock/fence)",
            Cause::MarkAtEnd => "no number is left above it",
            Cause::MarkMissing => "it is missing or empty, although fences were granted here",
            Cause::MarkReplaced => "it was replaced or set back",
            Cause::StampsFull => "there are as many stamps as a lock directory may have",
            Cause::DiskSilent | Cause::ServerSilent | Cause::ServerSlow => "connection timed out",
            Cause::DeadFile => "structure needs cleaning",
            Cause::Replaced => "stale file handle",
        };
        words.into()
    }

    /// What to do about it, for a log line or a refusal.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self.cause {
            Cause::System { errno, .. } => system_remedy(errno),
            Cause::StalledDeletion => "find the process that began to delete the lock file and was stopped (lslocks)",
            Cause::FenceBusy => "try again; if it stays so, find the process that keeps the lock file locked (lslocks)",
            Cause::MarkBusy => {
                "try again; if it stays so, find the process that keeps .distrilock/fence locked (lslocks)"
            }
            Cause::ForeignContent | Cause::ForeignStamp => "its content is not what daemons write: move it away",
            Cause::StampsFull => "delete stamps in that folder that are no longer needed",
            Cause::ForeignMark => "its content is not what daemons write: restore it",
            Cause::FenceAboveMark => {
                "if .distrilock/fence was lost, or replaced by an older copy, restore the newest one; if no daemon wrote the \
                 lock file, move it away"
            }
            Cause::MarkAtEnd => "it was forged or damaged: restore it from a backup, and restart the daemons",
            Cause::MarkMissing => {
                "restore it, and restart the daemons; or, if nothing remembers a fence of this lock directory, stop all its \
                 daemons and delete .distrilock and the lock files"
            }
            Cause::MarkReplaced => {
                "restore what was there; or, if it is not below any fence that was granted, restart the daemons"
            }
            Cause::DiskSilent => {
                "the disk under the lock directory does not answer: check it, and the kernel's log; the daemon goes on by \
                 itself once it answers"
            }
            Cause::ServerSilent => SILENT,
            Cause::ServerSlow => {
                "the file server answers too slowly for its lease: check the network and the server's load"
            }
            Cause::DeadFile => {
                "a collector was killed there: run distrilock gc on the file server, or mount with vers=4.1 or 4.2"
            }
            Cause::Replaced => {
                "its inode number keeps changing: move the lock directory to another file system, or find out what \
                 replaces files there"
            }
        }
    }
}

const SILENT: &str =
    "the file server does not answer: check the network and the server; the daemon continues by itself once it answers";

/// The system's sentence for an error number, in lower case.
fn system_reason(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(characters).collect()
}

fn system_remedy(errno: i32) -> &'static str {
    match (io::Error::from_raw_os_error(errno).kind(), errno) {
        (ErrorKind::NotFound, _) => {
            "the lock directory is gone: create it again, or restart the daemon with the right one"
        }
        (ErrorKind::PermissionDenied, _) => {
            "let the daemon's user read and write the lock directory and its files; on NFS, user numbers must agree between \
             hosts, or the export must squash them (docs/nfs.md)"
        }
        (ErrorKind::ReadOnlyFilesystem, _) => "mount the lock directory's file system read-write",
        (ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _) => {
            "free space, or inodes, on the lock directory's file system"
        }
        (ErrorKind::FileTooLarge, _) => "raise the limit of file sizes (LimitFSIZE= of the service, or ulimit -f)",
        (_, EMFILE | ENFILE) => "raise the limit of open files (LimitNOFILE= of the service)",
        (ErrorKind::IsADirectory, _) => "remove the directory that is where the lock file should be",
        (_, ELOOP) => "remove the symbolic link: the daemon does not follow lock files out of the directory",
        (ErrorKind::InvalidInput, _) => "remove what is where the lock file should be: it is not a regular file",
        (_, ENOLCK) => "the file system has no locks left, or does not support them",
        (ErrorKind::TimedOut, _) => SILENT,
        _ => "check the file system under the lock directory, and the kernel's log",
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation())?;
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        write!(f, ": {}", self.reason())
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

    const EISDIR: i32 = 21;

    /// Clients of the original know this sentence: `OPERATION PATH: REASON`, in lower case.
    #[test]
    fn reads_as_the_original_wrote_it() {
        let fault = Fault::system(Operation::Open, "/dir/adir.lck", EISDIR);
        assert_eq!(fault.to_string(), "open /dir/adir.lck: is a directory");
    }

    /// Causes of our own keep the sentences that they had when errno stood for them, and have
    /// remedies of their own.
    #[test]
    fn our_own_causes() {
        const EBUSY: i32 = 16;
        for (cause, sentence, errno) in [
            (Cause::StalledDeletion, "wait for the deletion of n: device or resource busy", EBUSY),
            (Cause::FenceBusy, "wait for the fence of n: device or resource busy", EBUSY),
            (Cause::MarkBusy, "lock n: device or resource busy", EBUSY),
            (Cause::ForeignContent, "read the fence of n: bad message", 74),
            (Cause::ForeignMark, "read n: bad message", 74),
            (Cause::ServerSilent, "wait for n: connection timed out", 110),
            (Cause::ServerSlow, "prove n: connection timed out", 110),
            (Cause::DeadFile, "lock n: structure needs cleaning", 117),
            (Cause::Replaced, "stat n: stale file handle", 116),
        ] {
            let fault = Fault { cause, path: "n".into() };
            assert_eq!(fault.to_string(), sentence);
            assert_eq!(fault.reason(), system_reason(errno), "{cause:?}");
            assert!(cause == Cause::ServerSilent || fault.remedy() != system_remedy(errno), "{cause:?}");
        }
        for cause in [Cause::FenceAboveMark, Cause::MarkAtEnd, Cause::MarkMissing, Cause::MarkReplaced] {
            let fault = Fault { cause, path: "n".into() };
            assert!(fault.to_string().contains(" n: "), "{fault}");
            assert!(fault.remedy().contains("restore"), "a fence that cannot be trusted is refused until it can be");
        }
        let waited = Fault { cause: Cause::FenceBusy, path: "n".into() };
        assert!(!waited.remedy().contains("delete"), "a fence that waited has nothing to do with a deletion");
    }
}
