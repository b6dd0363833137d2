//! Stamps: when the last run began under a name, if the run asked to be remembered. A holder reads
//! the stamp of its name and writes it, so that the lock keeps others from doing so meanwhile. It
//! outlives the run, the session and the daemon.
//!
//! A stamp is `.distrilock/stamps/NAME.run`: one line with a time on the clock that stamps files,
//! which is the file server's where hosts share the directory. So all hosts compare times of one
//! clock; the daemon gives clients only the age. docs/decisions/0023 has the reasons.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{Dir, OFlags};

use super::daemon_folder::{self, STAMPS, open_file_in, server_time_ms};
use super::lock_directory::Files;
use crate::limits::STAMPS_MAX;
use distrilock_engine::fault::{Cause, Fault, Operation};
use distrilock_engine::steps::call::CallResult;
use distrilock_protocol::name::LockName;

/// How a stamp begins.
const MAGIC: &str = "distrilock run ";

/// MAGIC, twenty digits, a line feed.
const TEXT_BYTES: usize = MAGIC.len() + 20 + 1;

/// The suffix of a stamp: no longer than that of a lock file, so that the longest name fits.
const SUFFIX: &str = ".run";

/// What is in the file of a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Nothing, or a time that was not written completely before a loss of power.
    Nothing,
    TimeMs(i64),
    /// Somebody else's text.
    Foreign,
}

fn text(time_ms: i64) -> String {
    format!("{MAGIC}{:020}\n", time_ms.max(0))
}

fn content(bytes: &[u8]) -> Content {
    let digits = bytes.strip_prefix(MAGIC.as_bytes()).and_then(|rest| std::str::from_utf8(rest.get(..20)?).ok());
    if let Some(time_ms) = digits.and_then(|digits| digits.parse().ok())
        && text(time_ms).as_bytes() == bytes
    {
        return Content::TimeMs(time_ms);
    }
    let torn = match bytes.strip_prefix(MAGIC.as_bytes()) {
        Some(digits) => digits.len() <= 20 && digits.iter().all(u8::is_ascii_digit),
        None => MAGIC.as_bytes().starts_with(bytes),
    };
    // Blocks that were allocated to a file and never written read as zeros.
    let blank = bytes.len() <= TEXT_BYTES && bytes.iter().all(|byte| *byte == 0);
    if torn || blank { Content::Nothing } else { Content::Foreign }
}

impl Files {
    /// Gives the stamp of a name this age, or only reads it. Returns its age now. The caller holds
    /// the name's lock.
    pub(super) fn stamp(&self, name: &LockName, age_ms: Option<u32>) -> CallResult {
        let stamp = Stamp { files: self, file: format!("{name}{SUFFIX}") };
        let done = match age_ms {
            None => stamp.read(),
            Some(age_ms) => stamp.write(age_ms),
        };
        match done {
            Ok(age_ms) => CallResult::Stamp(age_ms),
            Err(cause) => CallResult::Failed(Fault { cause, path: stamp.path().to_string_lossy().into() }),
        }
    }
}

struct Stamp<'a> {
    files: &'a Files,
    /// The name of its file in the folder.
    file: String,
}

impl Stamp<'_> {
    fn path(&self) -> PathBuf {
        daemon_folder::path(self.files.directory()).join(STAMPS).join(&self.file)
    }

    fn read(&self) -> Result<Option<u64>, Cause> {
        let failed = |error: io::Error| Cause::io(Operation::ReadStamp, &error);
        let file = match self.open() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        match content_of(&file).map_err(failed)? {
            Content::Nothing => Ok(None),
            // A clock that was set back may be behind the stamp. That counts as the same distance,
            // so that no stamp lasts forever.
            Content::TimeMs(time_ms) => Ok(Some(self.now_ms().map_err(failed)?.abs_diff(time_ms))),
            Content::Foreign => Err(Cause::ForeignStamp),
        }
    }

    fn write(&self, age_ms: u32) -> Result<Option<u64>, Cause> {
        let failed = |error: io::Error| Cause::io(Operation::WriteStamp, &error);
        let file = match self.open() {
            Err(error) if error.kind() == ErrorKind::NotFound => self.create()?,
            opened => opened.map_err(failed)?,
        };
        if content_of(&file).map_err(failed)? == Content::Foreign {
            return Err(Cause::ForeignStamp);
        }
        let began_ms = self.now_ms().map_err(failed)?.saturating_sub(age_ms.into());
        file.write_all_at(text(began_ms).as_bytes(), 0).map_err(failed)?;
        // On a network file system the next holder may be on another host.
        if self.files.network().is_some() {
            file.sync_all().map_err(failed)?;
        }
        Ok(Some(age_ms.into()))
    }

    fn now_ms(&self) -> io::Result<i64> {
        server_time_ms(self.files.directory())
    }

    fn open(&self) -> io::Result<File> {
        open_file_in(&self.folder()?, &self.file, self.flags(), 0)
    }

    fn folder(&self) -> io::Result<OwnedFd> {
        daemon_folder::open_folder(self.files.directory(), STAMPS)
    }

    fn flags(&self) -> OFlags {
        self.files.network().map_or(OFlags::empty(), |network| daemon_folder::with(network.open_flags()))
    }

    fn create(&self) -> Result<File, Cause> {
        let failed = |error: io::Error| Cause::io(Operation::WriteStamp, &error);
        let directory = self.files.directory();
        let made = daemon_folder::create(directory)
            .and_then(|folder| daemon_folder::create_like(directory, folder.join(STAMPS)));
        let folder = made.and_then(|_| self.folder()).map_err(failed)?;
        let entries = Dir::read_from(&folder).map_err(|errno| failed(errno.into()))?;
        // The list begins with the folder itself and the one above it.
        if entries.take(STAMPS_MAX + 2).count() == STAMPS_MAX + 2 {
            return Err(Cause::StampsFull);
        }
        let mode = daemon_folder::file_mode(fs::metadata(directory).map_err(failed)?.mode());
        open_file_in(&folder, &self.file, self.flags() | OFlags::CREATE, mode).map_err(failed)
    }
}

fn content_of(file: &File) -> io::Result<Content> {
    let mut bytes = [0; TEXT_BYTES + 1];
    let count = file.read_at(&mut bytes, 0)?;
    Ok(content(&bytes[..count]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(files: &Files, age_ms: Option<u32>) -> CallResult {
        files.stamp(&LockName::parse(b"n").unwrap(), age_ms)
    }

    /// A stamp has the age that it was given, and grows older from there. Another daemon of the
    /// directory finds it.
    #[test]
    fn a_stamp_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().to_owned());
        assert_eq!(stamp(&files, None), CallResult::Stamp(None));
        assert_eq!(stamp(&files, Some(60_000)), CallResult::Stamp(Some(60_000)));
        let other = Files::new(directory.path().to_owned());
        let CallResult::Stamp(Some(age_ms)) = stamp(&other, None) else { panic!("no stamp") };
        assert!((60_000..120_000).contains(&age_ms), "{age_ms}");
        assert_eq!(stamp(&other, Some(0)), CallResult::Stamp(Some(0)));
        let CallResult::Stamp(Some(age_ms)) = stamp(&files, None) else { panic!("no stamp") };
        assert!(age_ms < 60_000, "{age_ms}");
    }

    /// A stamp of the future, left by a clock that was set back, is as old as it is far away. A
    /// torn one counts as none, and the next write completes it.
    #[test]
    fn stamps_of_the_future_and_torn_ones() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().to_owned());
        stamp(&files, Some(0));
        let path = directory.path().join(".distrilock/stamps/n.run");
        let ahead = server_time_ms(directory.path()).unwrap() + 3_600_000;
        fs::write(&path, text(ahead)).unwrap();
        let CallResult::Stamp(Some(age_ms)) = stamp(&files, None) else { panic!("no stamp") };
        assert!((3_000_000..=3_600_000).contains(&age_ms), "{age_ms}");
        for length in 0..TEXT_BYTES {
            let blank = vec![0; length];
            for torn in [&text(ahead).as_bytes()[..length], &blank] {
                fs::write(&path, torn).unwrap();
                assert_eq!(stamp(&files, None), CallResult::Stamp(None), "{length}");
                assert_eq!(stamp(&files, Some(7)), CallResult::Stamp(Some(7)), "{length}");
                assert_eq!(fs::read(&path).unwrap().len(), TEXT_BYTES, "{length}");
            }
        }
        fs::write(&path, text(i64::MAX)).unwrap();
        assert!(matches!(stamp(&files, None), CallResult::Stamp(Some(_))), "the end of time is far away");
    }

    /// What is not a stamp is refused at once, and neither it nor anything outside of the folder is
    /// touched: another program's text, a huge file, a second name of a file that lies elsewhere, a
    /// link, a FIFO that nobody reads, a directory; and a link in the place of the folder.
    #[test]
    fn what_is_no_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().to_owned());
        stamp(&files, Some(0));
        let path = directory.path().join(".distrilock/stamps/n.run");
        let outside = directory.path().join("outside");
        fs::write(&outside, text(0)).unwrap();
        let refused = |what: &str| {
            let causes = [None, Some(0)].map(|age_ms| match stamp(&files, age_ms) {
                CallResult::Failed(fault) => fault.cause,
                result => panic!("{what}: {result:?}"),
            });
            assert_eq!(fs::read(&outside).unwrap(), text(0).as_bytes(), "{what}");
            causes
        };
        let huge = format!("{}{}", text(0), "x".repeat(1 << 20));
        for foreign in ["my notes", &huge] {
            fs::write(&path, foreign).unwrap();
            assert_eq!(refused(foreign), [Cause::ForeignStamp, Cause::ForeignStamp]);
            assert_eq!(fs::read(&path).unwrap(), foreign.as_bytes());
        }
        fs::remove_file(&path).unwrap();
        fs::hard_link(&outside, &path).unwrap();
        refused("a second name");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        refused("a link");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("a FIFO");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused("a directory");
        let elsewhere = tempfile::tempdir().unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), path.parent().unwrap()).unwrap();
        refused("a link in the place of the folder");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    /// The number of stamps has a limit; those that exist can still be renewed.
    #[test]
    fn stamps_have_a_limit() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().to_owned());
        stamp(&files, Some(0));
        for n in 1..STAMPS_MAX {
            File::create(directory.path().join(format!(".distrilock/stamps/x{n}.run"))).unwrap();
        }
        assert_eq!(stamp(&files, Some(0)), CallResult::Stamp(Some(0)));
        let CallResult::Failed(fault) = files.stamp(&LockName::parse(b"m").unwrap(), Some(0)) else {
            panic!("too many")
        };
        assert_eq!(fault.cause, Cause::StampsFull);
    }
}
