//! [`Mark`]: a number for the whole lock directory, `.distrilock/fence`, above which the fences of
//! names without one start. A fence that would exceed the mark is granted only once a higher mark
//! is on the disk. Whatever happens to a lock file, the mark is therefore never below a fence that
//! was granted, and deleting a lock file takes no further care.
//!
//! The mark is in its file twice, and the lower copy is the one that is replaced, so that a torn
//! text spoils only what did not count.
//!
//! A mark that vanished, or is lower than it was, must not make fences start over. So fences are
//! refused (docs/safety.md, docs/decisions/0021) when
//!
//! - the file is missing or empty, although a witness says that it had a number: a note in
//!   `.distrilock/`, or a lock file that has a fence;
//! - it is another file than the one this process has used, or has a lower number;
//! - a lock file has a higher number.
//!
//! The threads of a process that need a higher mark at the same time share one write:
//!
//! ```text
//!   collecting ──▶ running ──▶ done       while one runs, the next one collects
//! ```

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{fstat, lstat};
use rustix::fs::OFlags;

use super::fence_text::{Content, TEXT_BYTES, content, content_of, text};
use super::file_id::FileId;
use super::ranges::ALL;
use super::{daemon_folder, ofd_lock};
use crate::limits::MARK_WAIT_MS_MAX;
use crate::sync::locked;
use distrilock_engine::Mode;
use distrilock_engine::fault::{Cause, Fault, Operation};
use distrilock_engine::fence::following;

/// Where the second copy of the mark is: in another sector of the disk.
const SECOND_COPY: u64 = 4096;

/// What the note says that fences were granted.
const NOTE: &str = "Fences were granted in this lock directory. Without the file \"fence\" beside this one, the daemons refuse \
                    to grant any: they could start over, below the fences that are remembered elsewhere.\n";

/// The mark of a lock directory.
#[derive(Debug)]
pub(super) struct Mark {
    directory: PathBuf,
    /// How the names of lock files end.
    suffix: &'static str,
    /// What files are opened with on a network file system.
    network: Option<OFlag>,
    /// A lower bound of the mark, which only increases.
    known: AtomicU64,
    raises: Mutex<Raises>,
    /// A raise is done.
    raised: Condvar,
    used: Mutex<Option<Used>>,
}

/// The raises of this process, one after the other.
#[derive(Debug, Default)]
struct Raises {
    /// The one that has not begun.
    collecting: Arc<Raise>,
    /// The last fences of the names for which it is made: as many as threads take fences.
    lasts: Vec<Option<u64>>,
    is_running: bool,
}

/// What the mark was, once it has been raised as far as is needed.
type Raise = OnceLock<Result<u64, Fault>>;

/// The file of the mark as this process has used it.
#[derive(Debug)]
struct Used {
    id: FileId,
    /// Stays open, so that its inode is not used for another file; but not on a network file
    /// system, which forgets open files, and whose server does not keep what another host deletes.
    file: Option<Arc<File>>,
}

/// Why there is no mark: about its own file, or about a lock file.
struct Refusal {
    cause: Cause,
    lock_file: Option<PathBuf>,
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        Self { cause, lock_file: None }
    }
}

/// A file that is locked until this is dropped, even if it stays open.
struct LockedFile(Arc<File>);

impl Drop for LockedFile {
    fn drop(&mut self) {
        // If that fails, the lock ends with the descriptor.
        let _ = ofd_lock::set(&*self.0, None, ALL);
    }
}

impl Mark {
    pub(super) fn new(directory: &Path, suffix: &'static str, network: Option<OFlag>) -> Self {
        Self {
            directory: directory.to_owned(),
            suffix,
            network,
            known: AtomicU64::new(0),
            raises: Mutex::default(),
            raised: Condvar::new(),
            used: Mutex::default(),
        }
    }

    /// Returns the fence that follows the last one of a name, which is in its lock file, once the
    /// mark is not below it.
    ///
    /// # Errors
    /// If the mark cannot be raised or trusted, or the last fence is above it.
    pub(super) fn next(&self, last: Option<u64>, lock_file: &CStr) -> Result<u64, Fault> {
        let known = self.known.load(Ordering::SeqCst);
        let mark = match last {
            Some(last) if last < known => known,
            last => self.raised_for(last)?,
        };
        let fence = following(last, mark).map(|(fence, _)| fence);
        fence.map_err(|cause| match cause {
            Cause::FenceAboveMark => Fault { cause, path: lock_file.to_string_lossy().into() },
            cause => self.fault(cause.into()),
        })
    }

    /// Whether there is a mark that has a number.
    pub(super) fn exists(&self) -> bool {
        lstat(&self.path()).is_ok_and(|stat| stat.st_size > 0)
    }

    fn path(&self) -> PathBuf {
        daemon_folder::path(&self.directory).join(daemon_folder::FENCE_MARK)
    }

    fn fault(&self, refusal: Refusal) -> Fault {
        let Refusal { cause, lock_file } = refusal;
        Fault { cause, path: lock_file.unwrap_or_else(|| self.path()).to_string_lossy().into() }
    }

    /// Takes part in a raise that has not begun: the mark that it finds is not below any fence that
    /// the name had. Returns that mark, once there is one that is high enough for the next fence.
    fn raised_for(&self, last: Option<u64>) -> Result<u64, Fault> {
        let mut raises = locked(&self.raises);
        raises.lasts.push(last);
        let raise = Arc::clone(&raises.collecting);
        loop {
            if let Some(done) = raise.get() {
                return done.clone();
            }
            if raises.is_running {
                raises = self.raised.wait(raises).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            raises.is_running = true;
            raises.collecting = Arc::default();
            let lasts = std::mem::take(&mut raises.lasts);
            drop(raises);
            let done = self.raise(&lasts).map_err(|refusal| self.fault(refusal));
            raises = locked(&self.raises);
            raises.is_running = false;
            raise.set(done).expect("a raise is made once");
            self.raised.notify_all();
        }
    }

    /// Raises the mark as far as the next fences of names with these last ones need. Returns what
    /// it was.
    fn raise(&self, lasts: &[Option<u64>]) -> Result<u64, Refusal> {
        let path = self.path();
        let mut used = locked(&self.used);
        let LockedFile(file) = &self.lock(used.as_ref())?;
        let id = FileId::from(&fstat(&**file).map_err(system(Operation::Stat))?);
        match lstat(&path) {
            Ok(stat) if FileId::from(&stat) == id => {}
            Ok(_) => return Err(Cause::MarkReplaced.into()),
            Err(Errno::ENOENT) => return Err(Cause::MarkMissing.into()),
            Err(errno) => return Err(system(Operation::Stat)(errno).into()),
        }
        if used.as_ref().is_some_and(|used| used.id != id) {
            return Err(Cause::MarkReplaced.into());
        }
        let read = |place| read_copy(file, place).map_err(failed(Operation::Read));
        let copies = [read(0)?, read(SECOND_COPY)?];
        let is_new = file.metadata().map_err(failed(Operation::Stat))?.len() == 0;
        let mark = match copies.iter().filter_map(|copy| *copy).max() {
            Some(mark) => mark,
            None if is_new => self.start()?,
            None => return Err(Cause::ForeignMark.into()),
        };
        if mark < self.known.load(Ordering::SeqCst) {
            return Err(if is_new { Cause::MarkMissing } else { Cause::MarkReplaced }.into());
        }
        if is_new {
            // A daemon that finds something in the file relies on it surviving a loss of power.
            self.keep(file).map_err(failed(Operation::Write))?;
        }
        let needs = |last: &Option<u64>| following(*last, mark).ok().map(|(_, needed)| needed);
        let needed = lasts.iter().filter_map(needs).max().unwrap_or(mark);
        if needed > mark {
            let place = if copies[0] < copies[1] { 0 } else { SECOND_COPY };
            file.write_all_at(text(needed).as_bytes(), place).map_err(failed(Operation::Write))?;
            file.sync_all().map_err(failed(Operation::Write))?;
        }
        // The note is there only if the mark has a number.
        if used.is_none() && needed > 0 {
            self.write_note()?;
            *used = Some(Used { id, file: self.network.is_none().then(|| Arc::clone(file)) });
        }
        self.known.fetch_max(needed, Ordering::SeqCst);
        Ok(mark)
    }

    /// The file of the mark, locked. Creates it if there never was one.
    fn lock(&self, used: Option<&Used>) -> Result<LockedFile, Refusal> {
        let file = match used {
            Some(Used { file: Some(file), .. }) => Arc::clone(file),
            _ => Arc::new(self.open(used)?),
        };
        let locked = waited(MARK_WAIT_MS_MAX, || match ofd_lock::set(&*file, Some(Mode::Exclusive), ALL) {
            Ok(false) => None,
            tried => Some(tried.map_err(system(Operation::Lock))),
        });
        locked.unwrap_or(Err(Cause::MarkBusy))?;
        Ok(LockedFile(file))
    }

    fn open(&self, used: Option<&Used>) -> Result<File, Refusal> {
        match self.open_file(daemon_folder::FENCE_MARK, OFlags::empty(), 0) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return Ok(opened.map_err(failed(Operation::Open))?),
        }
        if used.is_some() {
            return Err(Cause::MarkMissing.into());
        }
        self.start()?;
        let created = daemon_folder::create(&self.directory)
            .and_then(|_| self.open_file(daemon_folder::FENCE_MARK, OFlags::CREATE, self.file_mode()?));
        Ok(created.map_err(failed(Operation::Create))?)
    }

    fn open_file(&self, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
        daemon_folder::open_file(&self.directory, name, daemon_folder::with(self.open_flags()) | flags, mode)
    }

    fn open_flags(&self) -> OFlag {
        self.network.unwrap_or(OFlag::empty())
    }

    fn file_mode(&self) -> io::Result<u32> {
        Ok(daemon_folder::file_mode(fs::metadata(&self.directory)?.mode()))
    }

    /// What a mark without a number starts from, unless there is a witness that fences were
    /// granted.
    fn start(&self) -> Result<u64, Refusal> {
        let note = daemon_folder::path(&self.directory).join(daemon_folder::FENCE_NOTE);
        match lstat(&note) {
            Err(Errno::ENOENT) => {}
            Ok(_) => return Err(Cause::MarkMissing.into()),
            Err(errno) => return Err(system(Operation::Stat)(errno).into()),
        }
        for entry in fs::read_dir(&self.directory).map_err(failed(Operation::Read))? {
            let entry = entry.map_err(failed(Operation::Read))?;
            if !entry.file_name().as_bytes().ends_with(self.suffix.as_bytes()) {
                continue;
            }
            if let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                match content_of(&entry.path(), metadata.len(), self.open_flags()) {
                    Ok(Content::Fence(_)) => {
                        return Err(Refusal { cause: Cause::FenceAboveMark, lock_file: Some(entry.path()) });
                    }
                    // It was deleted meanwhile, or no daemon of this user could lock it.
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {}
                    content => drop(content.map_err(failed(Operation::Read))?),
                }
            }
        }
        Ok(0)
    }

    /// Makes sure that the file of the mark is still there after a loss of power.
    fn keep(&self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        let folder = daemon_folder::path(&self.directory);
        [&*folder, &*self.directory].into_iter().try_for_each(|folder| File::open(folder)?.sync_all())
    }

    /// Writes down, for later processes, that fences were granted.
    fn write_note(&self) -> Result<(), Cause> {
        let folder = daemon_folder::path(&self.directory);
        let written = || {
            let new = OFlags::CREATE | OFlags::EXCL;
            let file = match self.open_file(daemon_folder::FENCE_NOTE, new, self.file_mode()?) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
                file => file?,
            };
            file.write_all_at(NOTE.as_bytes(), 0)?;
            file.sync_all()?;
            File::open(&folder)?.sync_all()
        };
        written().map_err(failed(Operation::Create))
    }
}

fn failed(operation: Operation) -> impl Fn(io::Error) -> Cause {
    move |error| Cause::io(operation, &error)
}

fn system(operation: Operation) -> impl Fn(Errno) -> Cause {
    move |errno| Cause::System { operation, errno: errno as i32 }
}

/// A copy of the mark; none if the file ends before it, or its text is torn. A copy that cannot be
/// read is an error: it may be the higher one.
fn read_copy(file: &File, place: u64) -> io::Result<Option<u64>> {
    let mut bytes = [0; TEXT_BYTES];
    match file.read_exact_at(&mut bytes, place) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    Ok(match content(&bytes) {
        Content::Fence(mark) => Some(mark),
        Content::Nothing | Content::Foreign => None,
    })
}

/// Asks once a millisecond, at most this often.
pub(super) fn waited<T>(times: u64, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..times {
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

    const LOCK_FILE: &CStr = c"a.lck";

    struct Directory(tempfile::TempDir);

    impl Directory {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// As a process sees the mark that has just started.
        fn mark(&self) -> Mark {
            Mark::new(self.0.path(), ".lck", None)
        }

        fn path(&self) -> PathBuf {
            self.mark().path()
        }

        fn note(&self) -> PathBuf {
            self.path().with_file_name(daemon_folder::FENCE_NOTE)
        }

        /// Sets the mark in its file.
        fn set(&self, number: u64) {
            fs::create_dir_all(self.path().parent().unwrap()).unwrap();
            fs::write(self.path(), text(number)).unwrap();
        }
    }

    /// A copy that is not there is none; one that cannot be read may be the higher one.
    #[test]
    fn a_copy_that_cannot_be_read() {
        let directory = Directory::new();
        directory.set(7);
        let file = File::open(directory.path()).unwrap();
        assert_eq!(read_copy(&file, 0).unwrap(), Some(7));
        assert_eq!(read_copy(&file, SECOND_COPY).unwrap(), None);
        let unreadable = File::open(directory.0.path()).unwrap();
        assert_eq!(read_copy(&unreadable, 0).unwrap_err().raw_os_error(), Some(Errno::EISDIR as i32));
    }

    #[track_caller]
    fn refused(mark: &Mark, last: Option<u64>) -> Cause {
        let fault = mark.next(last, LOCK_FILE).unwrap_err();
        let file = if fault.cause == Cause::FenceAboveMark { "a.lck" } else { ".distrilock/fence" };
        assert!(fault.path.ends_with(file), "{fault}");
        fault.cause
    }

    /// Fences increase although lock files come and go, each daemon opens the mark again, and one
    /// of its copies is torn.
    #[test]
    fn the_mark_stays_above() {
        let directory = Directory::new();
        let mut highest = 0;
        for round in 0..200_u64 {
            let mark = directory.mark();
            let mut last = None;
            for _ in 0..round % 7 {
                let fence = mark.next(last, LOCK_FILE).unwrap();
                assert!(fence > highest, "{fence} after {highest}");
                (highest, last) = (fence, Some(fence));
            }
            if round == 100 {
                let file = File::options().write(true).open(directory.path()).unwrap();
                let copy = |place: &u64| read_copy(&File::open(directory.path()).unwrap(), *place).unwrap();
                let lower = [0, SECOND_COPY].into_iter().min_by_key(copy);
                file.write_all_at(b"torn", lower.unwrap()).unwrap();
            }
        }
        fs::write(directory.path(), "not ours").unwrap();
        assert_eq!(refused(&directory.mark(), None), Cause::ForeignMark);
    }

    /// At the highest numbers fences are refused, and nothing is written.
    #[test]
    fn the_end_of_the_numbers() {
        let directory = Directory::new();
        for number in [u64::MAX, u64::MAX - 1, u64::MAX - 63] {
            directory.set(number);
            for last in [None, Some(number), Some(number - 1), Some(7)] {
                assert_eq!(refused(&directory.mark(), last), Cause::MarkAtEnd, "{number} {last:?}");
            }
            assert_eq!(fs::read(directory.path()).unwrap(), text(number).as_bytes());
        }
        directory.set(u64::MAX - 64);
        assert_eq!(directory.mark().next(None, LOCK_FILE), Ok(u64::MAX - 63));
    }

    /// A lock file with a higher number than the mark is not believed, and does not raise it.
    #[test]
    fn a_fence_above_the_mark() {
        let directory = Directory::new();
        let mark = directory.mark();
        assert_eq!(mark.next(None, LOCK_FILE), Ok(1));
        for last in [2, 1 << 53, u64::MAX] {
            assert_eq!(refused(&mark, Some(last)), Cause::FenceAboveMark);
        }
        assert_eq!(mark.next(None, LOCK_FILE), Ok(2));
        assert_eq!(mark.next(Some(2), LOCK_FILE), Ok(3));
    }

    /// The mark is deleted, emptied, replaced or set back while a daemon runs: no fence is granted
    /// that needs it, and no new mark is made.
    #[test]
    fn damage_while_a_daemon_runs() {
        type Damage = fn(&Directory);
        let damages: [(Damage, Cause); 4] = [
            (|directory| fs::remove_file(directory.path()).unwrap(), Cause::MarkMissing),
            (|directory| fs::write(directory.path(), "").unwrap(), Cause::MarkMissing),
            (|directory| directory.set(3), Cause::MarkReplaced),
            (
                |directory| {
                    let other = directory.path().with_extension("new");
                    fs::write(&other, text(1 << 40)).unwrap();
                    fs::rename(other, directory.path()).unwrap();
                },
                Cause::MarkReplaced,
            ),
        ];
        for (damage, cause) in damages {
            let directory = Directory::new();
            let mark = directory.mark();
            for fence in 1..10 {
                assert_eq!(mark.next(None, LOCK_FILE), Ok(fence));
            }
            damage(&directory);
            assert_eq!(refused(&mark, None), cause);
            assert_eq!(refused(&mark, None), cause, "still");
            // A network file system is asked for the file each time.
            let mark = Mark::new(directory.0.path(), ".lck", Some(OFlag::empty()));
            if cause == Cause::MarkMissing {
                assert_eq!(refused(&mark, None), cause, "a witness is left");
            }
        }
    }

    /// The folder of the daemons is deleted with all that is in it, and made anew.
    #[test]
    fn the_folder_is_deleted_while_a_daemon_runs() {
        for network in [None, Some(OFlag::empty())] {
            let directory = Directory::new();
            let mark = Mark::new(directory.0.path(), ".lck", network);
            assert_eq!(mark.next(None, LOCK_FILE), Ok(1));
            fs::remove_dir_all(directory.path().parent().unwrap()).unwrap();
            assert_eq!(refused(&mark, None), Cause::MarkMissing);
            assert_eq!(refused(&mark, Some(1)), Cause::MarkMissing);
            assert!(!directory.path().exists());
        }
    }

    /// The mark is missing at start: the note, or a lock file with a fence, shows that there was
    /// one. Without any of them fences start at 1.
    #[test]
    fn witnesses() {
        let directory = Directory::new();
        assert_eq!(directory.mark().next(None, LOCK_FILE), Ok(1));
        fs::remove_file(directory.path()).unwrap();
        assert_eq!(refused(&directory.mark(), None), Cause::MarkMissing);
        assert!(!directory.mark().exists(), "no new mark is made");
        fs::remove_file(directory.note()).unwrap();
        let lock_file = directory.0.path().join("a.lck");
        fs::write(&lock_file, text(1)).unwrap();
        assert_eq!(refused(&directory.mark(), None), Cause::FenceAboveMark);
        // These have never had a fence, or are no lock files.
        fs::write(&lock_file, &text(1)[..30]).unwrap();
        fs::write(directory.0.path().join("b.lck"), "foreign").unwrap();
        fs::write(directory.0.path().join("fence"), text(9)).unwrap();
        assert_eq!(directory.mark().next(None, LOCK_FILE), Ok(1));
    }

    /// A directory in which an earlier version has granted fences gets its note.
    #[test]
    fn an_earlier_version_left_no_note() {
        let directory = Directory::new();
        directory.set(41);
        assert_eq!(directory.mark().next(None, LOCK_FILE), Ok(42));
        assert!(directory.note().exists());
        fs::remove_file(directory.path()).unwrap();
        assert_eq!(refused(&directory.mark(), None), Cause::MarkMissing);
    }

    /// Threads that need a higher mark while it cannot be locked wait together, not one after the
    /// other, and share a raise.
    #[test]
    fn a_raise_is_shared() {
        const THREADS: u64 = 40;
        let directory = Directory::new();
        let mark = directory.mark();
        assert_eq!(mark.next(None, LOCK_FILE), Ok(1));
        let together = |last| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| mark.next(last, LOCK_FILE))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            })
        };
        let file = File::options().write(true).open(directory.path()).unwrap();
        assert_eq!(ofd_lock::set(&file, Some(Mode::Exclusive), ALL), Ok(true));
        let begun = std::time::Instant::now();
        let fences = together(None);
        assert!(fences.iter().all(|fence| fence.as_ref().is_err_and(|fault| fault.cause == Cause::MarkBusy)));
        let alone = THREADS * MARK_WAIT_MS_MAX;
        assert!(begun.elapsed() < Duration::from_millis(alone), "each waited by itself: {:?}", begun.elapsed());
        drop(file);
        let fences = together(None);
        let highest = fences.iter().map(|fence| *fence.as_ref().unwrap()).max().unwrap();
        assert!((2..=1 + THREADS).contains(&highest), "{fences:?}");
        assert_eq!(mark.next(None, LOCK_FILE), Ok(highest + 1), "the mark was as high as that");
    }
}
