//! The board: a file in `.distrilock/` in which a daemon shows the other daemons of the directory
//! what it holds, so that each of them can say who holds a lock (docs/decisions/0024). Nothing is
//! granted or refused because of it.
//!
//! A board is locked for as long as its daemon lives, and the kernel, or the file server, drops
//! that lock with the process: a board that nobody has locked says what was last known. It is
//! written in place as a whole: a line with the version, the length and a checksum, and a JSON
//! object. So a reader can tell a torn board, and anything that is no board of its version. What
//! the object means is not known here.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::daemon_folder::{self, BOARD_PREFIX};
use super::lock_directory::Files;
use super::ofd_lock;
use super::ranges::ALL;
use crate::checksum::fnv1a;
use crate::limits::{
    BOARD_BYTES_MAX, BOARDS_BYTES_MAX, BOARDS_KEPT_MAX, BOARDS_KEPT_MS, BOARDS_MAX, FOLDER_ENTRIES_MAX,
};
use distrilock_engine::Mode;

/// How every board begins. A version follows.
const MAGIC: &str = "distrilock board ";

/// What this version begins with.
const HEAD: &str = "distrilock board 1 ";

/// HEAD, ten digits of the length, a space, eight digits of the checksum, a line feed.
const HEAD_BYTES: usize = HEAD.len() + 10 + 1 + 8 + 1;

/// What a daemon shows on its board.
pub trait BoardContent: Sized {
    /// Reads what others have written, who may have written anything.
    fn read(json: &[u8]) -> Option<Self>;

    /// Whether it shows nothing.
    fn is_empty(&self) -> bool;
}

/// This daemon's own board, locked.
#[derive(Debug)]
pub struct OwnBoard {
    name: String,
    path: PathBuf,
    file: File,
    /// When it was locked: a lease that is broken later has taken the lock away.
    epoch: u64,
}

/// Another daemon's board.
#[derive(Clone, Debug)]
pub struct FoundBoard<C> {
    /// What it shows.
    pub board: Arc<C>,
    /// Whether its daemon runs.
    pub runs: bool,
    /// How long ago it was written, in milliseconds.
    pub age_ms: u64,
}

/// Boards that were read before, by the names of their files.
#[derive(Debug)]
pub struct ReadBoards<C>(HashMap<String, ReadBoard<C>>);

impl<C> Default for ReadBoards<C> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[derive(Debug)]
struct ReadBoard<C> {
    written: (i64, i64),
    board: Arc<C>,
}

/// What was found in a file.
struct Found<C> {
    file: File,
    name: String,
    bytes: usize,
    written: (i64, i64),
    runs: bool,
    /// `None` if the file is no board, or was read while it was written.
    board: Option<Arc<C>>,
    /// Whether it is one of ours, whatever is left of it.
    is_ours: bool,
    /// There was no room for what it shows.
    is_left_out: bool,
}

impl<C> Found<C> {
    fn written_ms(&self) -> i64 {
        self.written.0.saturating_mul(1000).saturating_add(self.written.1 / 1_000_000)
    }
}

/// A board's text.
fn text(content: &[u8]) -> Vec<u8> {
    let mut text = format!("{HEAD}{:010} {:08x}\n", content.len(), fnv1a(content)).into_bytes();
    text.extend(content);
    text
}

/// The content of a whole board of this version.
fn content_of(text: &[u8]) -> Option<&[u8]> {
    let head = std::str::from_utf8(text.strip_prefix(HEAD.as_bytes())?.get(..HEAD_BYTES - HEAD.len())?).ok()?;
    let (length, sum) = head.strip_suffix('\n')?.split_once(' ')?;
    let content = text.get(HEAD_BYTES..)?.get(..length.parse().ok()?)?;
    (u32::from_str_radix(sum, 16) == Ok(fnv1a(content))).then_some(content)
}

impl OwnBoard {
    /// Replaces what it shows: at most [`BOARD_BYTES_MAX`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, content: &[u8]) -> io::Result<()> {
        self.file.write_all_at(&text(content), 0)
    }

    /// Whether others still find it, and see that this daemon lives.
    #[must_use]
    pub fn is_valid(&self, files: &Files) -> bool {
        files.epoch() == self.epoch && self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes this daemon's board.
pub fn leave(board: &Path) {
    let _ = fs::remove_file(board);
}

impl Files {
    fn epoch(&self) -> u64 {
        self.network().map_or(0, super::network::Network::epoch)
    }

    fn board_flags(&self) -> OFlags {
        self.network().map_or(OFlags::empty(), |network| daemon_folder::with(network.open_flags()))
    }

    /// Creates a board of this daemon, and locks it while it is empty: nobody takes an empty board
    /// for one that was left.
    ///
    /// # Errors
    /// If it cannot be created or locked.
    pub fn create_board(&self) -> io::Result<OwnBoard> {
        let directory = self.directory();
        let epoch = self.epoch();
        let folder = daemon_folder::create(directory)?;
        let name = daemon_folder::unique_name(BOARD_PREFIX)?;
        let mode = daemon_folder::file_mode(fs::metadata(directory)?.mode());
        let flags = self.board_flags() | OFlags::CREATE | OFlags::EXCL;
        let file = daemon_folder::open_file(directory, &name, flags, mode)?;
        let path = folder.join(&name);
        if !ofd_lock::set(&file, Some(Mode::Exclusive), ALL)? {
            leave(&path);
            return Err(io::Error::other("another process has locked this daemon's new file"));
        }
        Ok(OwnBoard { name, path, file, epoch })
    }

    /// The boards of other daemons: first of those that run, then of those that do not, which are
    /// kept for a while. `now_ms` is the time on the clock that stamps files; `read` has the boards
    /// that were read before.
    #[must_use]
    pub fn boards<C: BoardContent>(
        &self,
        own: Option<&OwnBoard>,
        now_ms: i64,
        read: &mut ReadBoards<C>,
    ) -> Vec<FoundBoard<C>> {
        let mut found: Vec<Found<C>> =
            self.board_names(own).into_iter().filter_map(|name| self.open_board(name)).collect();
        found.sort_by_key(|found| (!found.runs, Reverse(found.written)));
        let mut bytes_left = BOARDS_BYTES_MAX;
        found.retain_mut(|found| found.read(&mut bytes_left, read).is_ok());
        read.0.retain(|name, _| found.iter().any(|found| found.name == *name && !found.is_left_out));
        let mut kept = 0;
        let mut boards = Vec::new();
        for found in found {
            let age_ms = u64::try_from(now_ms.saturating_sub(found.written_ms())).unwrap_or(0);
            let Found { file, name, runs, board, is_ours, is_left_out, .. } = found;
            let counts = board.is_some() || is_ours && is_left_out;
            let is_old = age_ms > BOARDS_KEPT_MS || counts && kept >= BOARDS_KEPT_MAX;
            let says_nothing = board.as_ref().is_some_and(|board| board.is_empty());
            if !runs && is_ours && (is_old || says_nothing) {
                // Nobody else is removing it right now, and its daemon is gone.
                if ofd_lock::set(&file, Some(Mode::Exclusive), ALL) == Ok(true) {
                    leave(&daemon_folder::path(self.directory()).join(&name));
                }
                continue;
            }
            kept += usize::from(!runs && counts);
            boards.extend(board.map(|board| FoundBoard { board, runs, age_ms }));
        }
        boards
    }

    /// The time in milliseconds since 1970 on the clock that stamps files.
    ///
    /// # Errors
    /// If no file can be created.
    pub fn time_ms(&self) -> io::Result<i64> {
        daemon_folder::server_time_ms(self.directory())
    }

    fn board_names(&self, own: Option<&OwnBoard>) -> Vec<String> {
        let Ok(entries) = fs::read_dir(daemon_folder::path(self.directory())) else { return Vec::new() };
        let names = entries.take(FOLDER_ENTRIES_MAX).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let others = names.filter(|name| name.starts_with(BOARD_PREFIX) && own.is_none_or(|own| own.name != *name));
        others.take(BOARDS_MAX).collect()
    }

    fn open_board<C>(&self, name: String) -> Option<Found<C>> {
        let file = daemon_folder::open_file(self.directory(), &name, self.board_flags(), 0).ok()?;
        let metadata = file.metadata().ok()?;
        let bytes = usize::try_from(metadata.size()).ok().filter(|bytes| *bytes <= BOARD_BYTES_MAX + HEAD_BYTES)?;
        let written = (metadata.mtime(), metadata.mtime_nsec());
        // Asked before it is read: a daemon that ends in between has written what is read.
        let runs = ofd_lock::in_the_way(&file, Mode::Exclusive, ALL).ok()?.is_some();
        Some(Found { file, name, bytes, written, runs, board: None, is_ours: bytes == 0, is_left_out: false })
    }
}

impl<C: BoardContent> Found<C> {
    /// Reads what it shows, unless that is known, or there is no room for it: what is known takes
    /// room as well.
    fn read(&mut self, bytes_left: &mut usize, read: &mut ReadBoards<C>) -> io::Result<()> {
        self.is_left_out = self.bytes > *bytes_left;
        let known = read.0.get(&self.name);
        if let Some(known) = known.filter(|known| known.written == self.written && !self.is_left_out) {
            *bytes_left -= self.bytes;
            (self.board, self.is_ours) = (Some(Arc::clone(&known.board)), true);
            return Ok(());
        }
        let mut content = vec![0; if self.is_left_out { MAGIC.len() } else { self.bytes }];
        let count = read_up_to(&self.file, &mut content)?;
        content.truncate(count);
        self.is_ours |= content.starts_with(MAGIC.as_bytes());
        if self.is_left_out || self.bytes == 0 {
            return Ok(());
        }
        *bytes_left -= self.bytes;
        match content_of(&content).and_then(C::read) {
            Some(new) => {
                let new = Arc::new(new);
                let board = Arc::clone(&new);
                read.0.insert(self.name.clone(), ReadBoard { written: self.written, board });
                self.board = Some(new);
            }
            // It is being written: what it said a moment ago will do.
            None => self.board = known.filter(|_| self.is_ours).map(|known| Arc::clone(&known.board)),
        }
        Ok(())
    }
}

fn read_up_to(file: &File, into: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < into.len() {
        match file.read_at(&mut into[count..], count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl BoardContent for String {
        fn read(json: &[u8]) -> Option<Self> {
            Self::from_utf8(json.to_vec()).ok()
        }

        fn is_empty(&self) -> bool {
            self.as_str() == "{}"
        }
    }

    fn files(directory: &Path) -> Files {
        Files::new(directory.to_owned())
    }

    fn now_ms(directory: &Path) -> i64 {
        daemon_folder::server_time_ms(directory).unwrap()
    }

    fn look(files: &Files, read: &mut ReadBoards<String>) -> Vec<FoundBoard<String>> {
        files.boards(None, now_ms(files.directory()), read)
    }

    /// A board is read by others while its daemon lives and afterwards, and it is known which of
    /// both it is. Its own daemon does not read it.
    #[test]
    fn a_board_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let (own, mut read) = (files.create_board().unwrap(), ReadBoards::default());
        assert!(look(&files, &mut read).is_empty(), "an empty board says nothing");
        own.write(b"one").unwrap();
        let found = look(&files, &mut read);
        let [FoundBoard { board, runs: true, age_ms }] = &found[..] else { panic!("{found:?}") };
        assert!(*age_ms < 60_000 && **board == "one", "{found:?}");
        assert!(files.boards(Some(&own), 0, &mut read).is_empty());
        own.write(b"2").unwrap();
        // The clock of the file system may not have moved on.
        let found = look(&files, &mut ReadBoards::default());
        assert!(*found[0].board == "2" && own.is_valid(&files));
        drop(own);
        let found = look(&files, &mut ReadBoards::default());
        assert!(matches!(&found[..], [FoundBoard { runs: false, .. }]), "{found:?}");
    }

    /// A board whose daemon is gone is removed after a day, or if there are too many, or if it says
    /// nothing. A board of a daemon that runs never is.
    #[test]
    fn boards_do_not_pile_up() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let count = || fs::read_dir(daemon_folder::path(directory.path())).unwrap().count();
        let own = files.create_board().unwrap();
        own.write(b"a").unwrap();
        for _ in 0..BOARDS_KEPT_MAX + 3 {
            files.create_board().unwrap().write(b"a").unwrap();
        }
        files.create_board().unwrap().write(b"{}").unwrap();
        let mut read = ReadBoards::default();
        assert_eq!(look(&files, &mut read).len(), 1 + BOARDS_KEPT_MAX);
        assert_eq!(count(), 1 + BOARDS_KEPT_MAX);
        let later = now_ms(directory.path()) + i64::try_from(BOARDS_KEPT_MS).unwrap() + 60_000;
        assert_eq!(files.boards(None, later, &mut read).len(), 1);
        assert_eq!(count(), 1);
        fs::remove_file(own.path()).unwrap();
        assert!(!own.is_valid(&files));
    }

    /// There is room for so many bytes of boards, those that were read before included. Boards of
    /// daemons that run come first, and those for which there is no room are removed like others.
    #[test]
    fn there_is_room_for_so_much() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let content = vec![b'x'; BOARD_BYTES_MAX];
        let fit = BOARDS_BYTES_MAX / text(&content).len();
        for _ in 0..fit + 2 {
            files.create_board().unwrap().write(&content).unwrap();
        }
        let mut read = ReadBoards::default();
        for _ in 0..3 {
            assert_eq!(look(&files, &mut read).len(), fit);
            assert_eq!(read.0.len(), fit);
        }
        let own = files.create_board().unwrap();
        own.write(&content).unwrap();
        let found = look(&files, &mut read);
        assert_eq!((found.len(), found[0].runs, read.0.len()), (fit, true, fit));
        let later = now_ms(directory.path()) + i64::try_from(BOARDS_KEPT_MS).unwrap() + 60_000;
        assert_eq!(files.boards(None, later, &mut read).len(), 1);
        assert_eq!(fs::read_dir(daemon_folder::path(directory.path())).unwrap().count(), 1);
    }

    /// What is no board of this version is passed over, at once, and left alone: torn, foreign and
    /// huge files, another version's, links, FIFOs, directories. A board beside them is found.
    #[test]
    fn what_is_no_board() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let own = files.create_board().unwrap();
        own.write(br#"{"locks":[]}"#).unwrap();
        let text = fs::read(own.path()).unwrap();
        let folder = daemon_folder::path(directory.path());
        let put = |name: &str, bytes: &[u8]| fs::write(folder.join(format!("board-{name}")), bytes).unwrap();
        for length in 0..text.len() {
            assert_eq!(content_of(&text[..length]), None, "{length}");
        }
        let mut forged = text.clone();
        *forged.last_mut().unwrap() ^= 1;
        for (name, bytes) in [
            ("torn", &text[..text.len() - 1]),
            ("forged", &forged),
            ("empty", b""),
            ("zeros", &[0; 100]),
            ("foreign", b"my notes"),
            ("length", format!("{HEAD}{:010} 00000000\n{{}}", u32::MAX).as_bytes()),
            ("version", String::from_utf8(text.clone()).unwrap().replace("board 1", "board 2").as_bytes()),
        ] {
            put(name, bytes);
        }
        File::create(folder.join("board-huge")).unwrap().set_len(1 << 30).unwrap();
        let outside = directory.path().join("outside");
        fs::write(&outside, &text).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("board-link")).unwrap();
        fs::hard_link(&outside, folder.join("board-second-name")).unwrap();
        fs::create_dir(folder.join("board-directory")).unwrap();
        nix::unistd::mkfifo(&folder.join("board-fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let before = fs::read_dir(&folder).unwrap().count();
        let found = look(&files, &mut ReadBoards::default());
        assert!(matches!(&found[..], [FoundBoard { runs: true, .. }]), "{found:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), before);
        assert_eq!(fs::read(&outside).unwrap(), text);
    }
}
