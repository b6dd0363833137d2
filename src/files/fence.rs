//! Fences: numbers that only rise for their name. The last one stands in the name's lock file, and is written there under the
//! lock. A lock file can vanish: it is deleted when nobody uses it, by hand, or by a loss of power before its folder was written.
//! So there is a mark for the whole lock directory, `.distrilock/fence`, that is on the disk before any fence is granted which is
//! not below it, and above which a name without a fence begins. Whatever happens to a lock file then, the mark is not below what
//! was granted, and nothing has to be done when a file is deleted.
//!
//! Both hold text with a checksum. What is torn is as good as nothing, since the mark is above it; the mark itself stands in
//! its file twice, and the lower one is replaced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{F_WRLCK, SEEK_SET, flock};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::fdatasync;

use super::os::OpenFile;
use super::ranges::FENCE;
use crate::limits::FENCE_WAIT_MS_MAX;
use distrilock_engine::Mode;
use distrilock_engine::fault::{Cause, Fault, Operation};
use distrilock_engine::fence::following;
use distrilock_engine::steps::call::CallResult as Answer;

/// What every text of ours begins with.
const MAGIC: &str = "distrilock fence ";

/// MAGIC, twenty digits, a space, eight digits of the checksum, a line feed.
const TEXT_BYTES: usize = MAGIC.len() + 20 + 1 + 8 + 1;

/// Where the second copy of the mark stands: in another sector of the disk.
const SECOND_COPY: u64 = 4096;

/// What a lock file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// No fence, or one that was not written to its end.
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
    // Blocks that were given to a file and never written read as zeros.
    let begun =
        bytes.len() <= TEXT_BYTES && (bytes.starts_with(MAGIC.as_bytes()) || bytes.iter().all(|byte| *byte == 0));
    if begun { Content::Nothing } else { Content::Foreign }
}

/// Whether a lock file of so many bytes has nothing in it but what daemons write.
pub(super) fn is_ours(path: &Path, bytes: u64) -> bool {
    bytes == 0
        || usize::try_from(bytes).is_ok_and(|bytes| bytes <= TEXT_BYTES)
            && fs::read(path).is_ok_and(|bytes| content(&bytes) != Content::Foreign)
}

impl OpenFile {
    /// Takes the next fence. Beside an exclusive holder there is nobody; others keep each other out for the moment.
    pub(super) fn take_fence(&self, mode: Mode, mark: &Mark) -> Answer {
        if mode == Mode::Exclusive {
            return self.fence(mark);
        }
        let answer = waited(|| match self.set(Some(Mode::Exclusive), FENCE) {
            Answer::No => None,
            answer => Some(answer),
        });
        match answer {
            Some(Answer::Yes) => {
                let fence = self.fence(mark);
                // What cannot be unlocked goes with the lock; until then others wait, and are told so.
                self.set(None, FENCE);
                fence
            }
            Some(answer) => answer,
            None => self.failed_for(Cause::FenceBusy),
        }
    }

    fn failed_for(&self, cause: Cause) -> Answer {
        Answer::Failed(Fault { cause, path: self.path.to_string_lossy().into() })
    }

    fn fence(&self, mark: &Mark) -> Answer {
        let mut bytes = [0; TEXT_BYTES + 1];
        let last = match pread(self.descriptor(), &mut bytes, 0).map(|count| content(&bytes[..count])) {
            Ok(Content::Nothing) => None,
            Ok(Content::Fence(number)) => Some(number),
            Ok(Content::Foreign) => return self.failed_for(Cause::ForeignContent),
            Err(errno) => return self.failed(Operation::Read, errno),
        };
        let fence = match mark.next(last) {
            Ok(fence) => fence,
            Err(fault) => return Answer::Failed(fault),
        };
        let text = text(fence);
        let written = pwrite(self.descriptor(), text.as_bytes(), 0).and_then(|count| match count {
            TEXT_BYTES => fdatasync(self.descriptor()),
            _ => Err(Errno::ENOSPC),
        });
        match written {
            Ok(()) => Answer::Fence(fence),
            Err(errno) => self.failed(Operation::Write, errno),
        }
    }
}

/// The mark above which names without a fence begin.
#[derive(Debug)]
pub(super) struct Mark {
    folder: PathBuf,
    /// It is this at least: it only rises.
    known: AtomicU64,
}

impl Mark {
    pub(super) fn new(directory: &Path) -> Self {
        Self { folder: directory.join(".distrilock"), known: AtomicU64::new(0) }
    }

    /// The fence that follows the last one of a name, once the mark is not below it.
    fn next(&self, last: Option<u64>) -> Result<u64, Fault> {
        let known = self.known.load(Ordering::SeqCst);
        match last {
            Some(last) if last < known => Ok(following(Some(last), known).0),
            last => self.raise(last),
        }
    }

    fn raise(&self, last: Option<u64>) -> Result<u64, Fault> {
        let path = self.folder.join("fence");
        let failed = |operation| move |error: io::Error| Cause::io(operation, &error);
        let raised = || {
            let file = self.open(&path).map_err(failed(Operation::Open))?;
            locked(&file)?;
            let copies = [0, SECOND_COPY].map(|place| read_copy(&file, place));
            let empty = file.metadata().map_err(failed(Operation::Stat))?.len() == 0;
            let mark = match copies.iter().filter_map(|copy| *copy).max() {
                Some(mark) => mark,
                None if empty => 0,
                None => return Err(Cause::ForeignMark),
            };
            if empty {
                // Whoever finds something in it may rely on its place.
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

    /// Opens the file of the mark, or makes it.
    fn open(&self, path: &Path) -> io::Result<File> {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o664).custom_flags(flags);
        match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match DirBuilder::new().mode(0o775).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        options.create(true).open(path)
    }

    /// Makes sure that the file of the mark is there after a loss of power.
    fn keep(&self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        let above = self.folder.parent().expect("it lies in the lock directory");
        [&*self.folder, above].into_iter().try_for_each(|folder| File::open(folder)?.sync_all())
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
fn locked(file: &File) -> Result<(), Cause> {
    let small = |number: i32| i16::try_from(number).expect("the numbers of fcntl are small");
    let all = flock { l_type: small(F_WRLCK), l_whence: small(SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 };
    let tried = waited(|| match fcntl(file, FcntlArg::F_OFD_SETLK(&all)) {
        Err(Errno::EAGAIN | Errno::EACCES) => None,
        tried => {
            Some(tried.map(drop).map_err(|errno| Cause::System { operation: Operation::Lock, errno: errno as i32 }))
        }
    });
    tried.unwrap_or(Err(Cause::MarkBusy))
}

/// Asks each millisecond, for as long as a fence may wait.
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

    /// A text is read as it was written; one that was torn is nothing; one of somebody else stays theirs.
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

    /// Lock files come and go, the mark is opened anew by each daemon and torn in one of its copies: fences rise.
    #[test]
    fn the_mark_stays_above() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".distrilock/fence");
        let mut highest = 0;
        for round in 0..200_u64 {
            let mark = Mark::new(directory.path());
            let mut last = None;
            for _ in 0..round % 7 {
                let fence = mark.next(last).unwrap();
                assert!(fence > highest, "{fence} after {highest}");
                (highest, last) = (fence, Some(fence));
            }
            if round == 100 {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                let lower =
                    [0, SECOND_COPY].into_iter().min_by_key(|place| read_copy(&File::open(&path).unwrap(), *place));
                file.write_all_at(b"torn", lower.unwrap()).unwrap();
            }
        }
        fs::write(&path, "not ours").unwrap();
        let fault = Mark::new(directory.path()).next(None).unwrap_err();
        assert_eq!(fault.cause, Cause::ForeignMark, "{fault}");
    }
}
