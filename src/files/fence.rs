//! Fences: per-name numbers that only increase (fencing tokens). A name's last fence is in its lock
//! file, written there under the lock. But a lock file can vanish: it is deleted when nobody uses
//! it, or by hand, or by a loss of power before its directory was written.
//!
//! So the whole lock directory has a mark, `.distrilock/fence`. The fences of a name whose file has
//! none start above the mark, and a fence that would exceed the mark is granted only once a higher
//! mark is on the disk. Whatever happens to a lock file, the mark is therefore never below a fence
//! that was granted, and deleting a file takes no further care.
//!
//! Both files hold text with a checksum. A torn text in a lock file is as good as none, since the
//! mark is above it. The mark is in its file twice, and the lower copy is the one that is replaced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::fdatasync;
use rustix::fs::OFlags;

use super::lock_file::OpenFile;
use super::ranges::{ALL, FENCE};
use super::{daemon_folder, ofd_lock};
use crate::limits::FENCE_WAIT_MS_MAX;
use distrilock_engine::Mode;
use distrilock_engine::fault::{Cause, Fault, Operation};
use distrilock_engine::fence::following;
use distrilock_engine::steps::call::CallResult;

/// How each of our texts begins.
const MAGIC: &str = "distrilock fence ";

/// MAGIC, twenty digits, a space, eight digits of the checksum, a line feed.
const TEXT_BYTES: usize = MAGIC.len() + 20 + 1 + 8 + 1;

/// Where the second copy of the mark is: in another sector of the disk.
const SECOND_COPY: u64 = 4096;

/// What is in a lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// No fence, or one that was not written completely.
    Nothing,
    Fence(u64),
    /// Somebody else's text.
    Foreign,
}

/// FNV-1a over the digits.
fn checksum(digits: &str) -> u32 {
    digits.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn text(number: u64) -> String {
    let digits = format!("{number:020}");
    let checksum = checksum(&digits);
    format!("{MAGIC}{digits} {checksum:08x}\n")
}

fn content(bytes: &[u8]) -> Content {
    let digits = bytes.strip_prefix(MAGIC.as_bytes()).and_then(|rest| std::str::from_utf8(rest.get(..20)?).ok());
    if let Some(number) = digits.and_then(|digits| digits.parse().ok())
        && text(number).as_bytes() == bytes
    {
        return Content::Fence(number);
    }
    // Blocks that were allocated to a file and never written read as zeros.
    let begun =
        bytes.len() <= TEXT_BYTES && (bytes.starts_with(MAGIC.as_bytes()) || bytes.iter().all(|byte| *byte == 0));
    if begun { Content::Nothing } else { Content::Foreign }
}

/// Whether a lock file of this size contains nothing but what daemons write.
pub(super) fn is_ours(path: &Path, bytes: u64) -> bool {
    bytes == 0
        || usize::try_from(bytes).is_ok_and(|bytes| bytes <= TEXT_BYTES)
            && fs::read(path).is_ok_and(|bytes| content(&bytes) != Content::Foreign)
}

impl OpenFile {
    /// Takes the next fence. An exclusive holder is alone; others exclude each other while they do
    /// it.
    pub(super) fn take_fence(&self, mode: Mode, mark: &Mark) -> CallResult {
        if mode == Mode::Exclusive {
            return self.fence(mark);
        }
        let answer = waited(|| match self.set(Some(Mode::Exclusive), FENCE) {
            CallResult::No => None,
            answer => Some(answer),
        });
        match answer {
            Some(CallResult::Yes) => {
                let fence = self.fence(mark);
                // If the unlock fails, the byte is unlocked together with the name. Until then
                // others wait, and are refused with that reason.
                self.set(None, FENCE);
                fence
            }
            Some(answer) => answer,
            None => self.failed_for(Cause::FenceBusy),
        }
    }

    fn failed_for(&self, cause: Cause) -> CallResult {
        CallResult::Failed(Fault { cause, path: self.path.to_string_lossy().into() })
    }

    fn fence(&self, mark: &Mark) -> CallResult {
        let mut bytes = [0; TEXT_BYTES + 1];
        let last = match pread(self.descriptor(), &mut bytes, 0).map(|count| content(&bytes[..count])) {
            Ok(Content::Nothing) => None,
            Ok(Content::Fence(number)) => Some(number),
            Ok(Content::Foreign) => return self.failed_for(Cause::ForeignContent),
            Err(errno) => return self.failed(Operation::Read, errno),
        };
        let fence = match mark.next(last) {
            Ok(fence) => fence,
            Err(fault) => return CallResult::Failed(fault),
        };
        let text = text(fence);
        let written = pwrite(self.descriptor(), text.as_bytes(), 0).and_then(|count| match count {
            TEXT_BYTES => fdatasync(self.descriptor()),
            _ => Err(Errno::ENOSPC),
        });
        match written {
            Ok(()) => CallResult::Fence(fence),
            Err(errno) => self.failed(Operation::Write, errno),
        }
    }
}

/// The mark above which the fences of names without one start.
#[derive(Debug)]
pub(super) struct Mark {
    directory: PathBuf,
    /// What its file is opened with.
    flags: OFlag,
    /// A lower bound of the mark, which only increases.
    known: AtomicU64,
}

impl Mark {
    pub(super) fn new(directory: &Path, flags: OFlag) -> Self {
        Self { directory: directory.to_owned(), flags, known: AtomicU64::new(0) }
    }

    /// Returns the fence that follows the last one of a name, once the mark is not below it.
    fn next(&self, last: Option<u64>) -> Result<u64, Fault> {
        let known = self.known.load(Ordering::SeqCst);
        match last {
            Some(last) if last < known => Ok(following(Some(last), known).0),
            last => self.raise(last),
        }
    }

    fn raise(&self, last: Option<u64>) -> Result<u64, Fault> {
        let path = daemon_folder::path(&self.directory).join(daemon_folder::FENCE_MARK);
        let failed = |operation| move |error: io::Error| Cause::io(operation, &error);
        let raised = || {
            let file = self.open().map_err(failed(Operation::Open))?;
            lock(&file)?;
            let copies = [0, SECOND_COPY].map(|place| read_copy(&file, place));
            let empty = file.metadata().map_err(failed(Operation::Stat))?.len() == 0;
            let mark = match copies.iter().filter_map(|copy| *copy).max() {
                Some(mark) => mark,
                None if empty => 0,
                None => return Err(Cause::ForeignMark),
            };
            if empty {
                // A daemon that finds something in the file relies on it surviving a loss of power.
                self.keep(&file).map_err(failed(Operation::Write))?;
            }
            let (fence, needed) = following(last, mark);
            if needed > mark {
                let place = if copies[0] < copies[1] { 0 } else { SECOND_COPY };
                file.write_all_at(text(needed).as_bytes(), place).map_err(failed(Operation::Write))?;
                file.sync_all().map_err(failed(Operation::Write))?;
            }
            self.known.fetch_max(needed.max(mark), Ordering::SeqCst);
            Ok(fence)
        };
        raised().map_err(|cause| Fault { cause, path: path.to_string_lossy().into() })
    }

    /// Opens the file of the mark, and creates it if there is none.
    fn open(&self) -> io::Result<File> {
        let direct = daemon_folder::with(self.flags);
        let open =
            |flags, mode| daemon_folder::open_file(&self.directory, daemon_folder::FENCE_MARK, direct | flags, mode);
        match open(OFlags::empty(), 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        daemon_folder::create(&self.directory)?;
        open(OFlags::CREATE, daemon_folder::file_mode(fs::metadata(&self.directory)?.mode()))
    }

    /// Makes sure that the file of the mark is still there after a loss of power.
    fn keep(&self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        let folder = daemon_folder::path(&self.directory);
        [&*folder, &*self.directory].into_iter().try_for_each(|folder| File::open(folder)?.sync_all())
    }
}

fn read_copy(file: &File, place: u64) -> Option<u64> {
    let mut bytes = [0; TEXT_BYTES];
    file.read_exact_at(&mut bytes, place).ok()?;
    match content(&bytes) {
        Content::Fence(mark) => Some(mark),
        Content::Nothing | Content::Foreign => None,
    }
}

/// Locks a file until it is closed.
fn lock(file: &File) -> Result<(), Cause> {
    let tried = waited(|| match ofd_lock::set(file, Some(Mode::Exclusive), ALL) {
        Ok(false) => None,
        tried => {
            Some(tried.map(drop).map_err(|errno| Cause::System { operation: Operation::Lock, errno: errno as i32 }))
        }
    });
    tried.unwrap_or(Err(Cause::MarkBusy))
}

/// Asks once a millisecond, for as long as a fence may wait.
fn waited<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..FENCE_WAIT_MS_MAX {
        let answer = ask();
        if answer.is_some() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text is read as it was written, a torn one counts as nothing, and another program's is
    /// foreign.
    #[test]
    fn texts() {
        for number in [0, 1, 91, u64::MAX] {
            let text = text(number);
            assert_eq!(text.len(), TEXT_BYTES);
            assert_eq!(content(text.as_bytes()), Content::Fence(number));
            for end in MAGIC.len()..TEXT_BYTES {
                assert_eq!(content(&text.as_bytes()[..end]), Content::Nothing, "torn after {end}");
            }
            let torn = [&text.as_bytes()[..30], &b"9".repeat(TEXT_BYTES - 30)].concat();
            assert_eq!(content(&torn), Content::Nothing);
        }
        assert_eq!(content(b""), Content::Nothing);
        assert_eq!(content(&[0; TEXT_BYTES]), Content::Nothing);
        for foreign in ["x", "my notes", "distrilock fence 00000000000000000091 and more than was ever written here"] {
            assert_eq!(content(foreign.as_bytes()), Content::Foreign, "{foreign}");
        }
    }

    /// Fences increase although lock files come and go, each daemon opens the mark again, and one
    /// of its copies is torn.
    #[test]
    fn the_mark_stays_above() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".distrilock/fence");
        let mut highest = 0;
        for round in 0..200_u64 {
            let mark = Mark::new(directory.path(), OFlag::empty());
            let mut last = None;
            for _ in 0..round % 7 {
                let fence = mark.next(last).unwrap();
                assert!(fence > highest, "{fence} after {highest}");
                (highest, last) = (fence, Some(fence));
            }
            if round == 100 {
                let file = File::options().write(true).open(&path).unwrap();
                let lower =
                    [0, SECOND_COPY].into_iter().min_by_key(|place| read_copy(&File::open(&path).unwrap(), *place));
                file.write_all_at(b"torn", lower.unwrap()).unwrap();
            }
        }
        fs::write(&path, "not ours").unwrap();
        let fault = Mark::new(directory.path(), OFlag::empty()).next(None).unwrap_err();
        assert_eq!(fault.cause, Cause::ForeignMark, "{fault}");
    }
}
