//! `distrilock fence`: records the highest fence seen for a guarded file, so that a holder that
//! comes too late is refused.
//!
//! The record is `FILE.fence`: two lines of 30 bytes, each with a number and its checksum; the
//! higher number counts. A new number overwrites the lower line and is forced to the disk, so that
//! a crash in between spoils only the line that did not count. Every reader and writer locks the
//! record with flock(2).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use super::error::CommandError;
use super::exec::{become_program, make_inheritable, report_not_run};
use super::given_signals::GivenSignals;
use super::options::FenceOptions;
use super::paths::{ResolveError, resolve};
use super::{output, status};
use crate::checksum::fnv1a;

/// A line has 20 digits, a space, 8 hexadecimal digits and LF.
const LINE_BYTES: usize = 30;

/// Checks the number, records it, and becomes the command if there is one.
pub(super) fn main(options: &FenceOptions) -> Result<u8, CommandError> {
    let no_file = |error: ResolveError| CommandError::File {
        what: "find",
        path: options.file.display().to_string(),
        error: io::Error::new(io::ErrorKind::NotFound, error.to_string()),
    };
    let path = record_path(&resolve(&options.file).map_err(no_file)?);
    let failed =
        |error| CommandError::File { what: "record the highest fence in", path: path.display().to_string(), error };
    let record = FenceRecord::lock(&path).map_err(failed)?;
    let seen = record.highest().map_err(failed)?;
    let earlier = highest_beside_link(&options.file, &path).map_err(failed)?;
    let highest = seen.map(|seen| seen.number).max(earlier).unwrap_or_default();
    if highest > options.number {
        output::message(&format!(
            "fence {} is too old for {}: {highest} was seen, so somebody else has had the lock since",
            options.number,
            output::escaped(&options.file.display().to_string())
        ));
        return Ok(options.conflict_exit_code);
    }
    if seen.is_none_or(|seen| seen.number < options.number) {
        record.put(options.number, seen).map_err(failed)?;
    }
    let Some((program, arguments)) = options.command.split_first() else { return Ok(status::DONE) };
    // The command inherits the lock on the record, so that no other fence is checked before it
    // ends.
    make_inheritable(&*record.0).map_err(CommandError::system("pass on the lock of the record"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(report_not_run(program, &become_program(&mut command, GivenSignals::of_this_process())))
}

/// The highest fence that an earlier version recorded beside a link to the file.
fn highest_beside_link(file: &Path, path: &Path) -> io::Result<Option<u64>> {
    let beside_link = record_path(file);
    if !beside_link.is_file() || beside_link.canonicalize()? == path.canonicalize()? {
        return Ok(None);
    }
    Ok(FenceRecord::lock(&beside_link)?.highest()?.map(|seen| seen.number))
}

fn record_path(file: &Path) -> PathBuf {
    let mut path = OsString::from(file);
    path.push(".fence");
    path.into()
}

/// A number in the record, and its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RecordedFence {
    number: u64,
    line: u8,
}

/// The record, locked.
struct FenceRecord(Flock<File>);

impl FenceRecord {
    fn lock(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let is_new = file.metadata()?.len() == 0;
        let locked = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        if is_new {
            // The name has to survive a crash, not only the content.
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()?;
        }
        Ok(Self(locked))
    }

    fn highest(&self) -> io::Result<Option<RecordedFence>> {
        let mut bytes = [0; 2 * LINE_BYTES];
        let mut count = 0;
        while count < bytes.len() {
            match self.0.read_at(&mut bytes[count..], u64::try_from(count).expect("it is at most 60"))? {
                0 => break,
                more => count += more,
            }
        }
        let lines = bytes[..count]
            .chunks(LINE_BYTES)
            .zip(0..)
            .filter_map(|(text, line)| Some(RecordedFence { number: number_of(text)?, line }));
        let highest = lines.max_by_key(|seen| seen.number);
        // Somebody else's file must neither be overwritten nor mistaken for an empty record.
        if highest.is_none() && count >= LINE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not a record of fences; move it away if you do not need it",
            ));
        }
        Ok(highest)
    }

    fn put(&self, number: u64, seen: Option<RecordedFence>) -> io::Result<()> {
        let line = seen.map_or(0, |seen| 1 - seen.line);
        self.0
            .write_all_at(text_of(number).as_bytes(), u64::from(line) * u64::try_from(LINE_BYTES).expect("it is 30"))?;
        self.0.sync_data()
    }
}

fn text_of(number: u64) -> String {
    let digits = format!("{number:020}");
    format!("{digits} {:08x}\n", fnv1a(digits.as_bytes()))
}

fn number_of(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    let number = text.get(..20)?.parse().ok()?;
    (text == text_of(number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn highest(path: &Path) -> Option<u64> {
        FenceRecord::lock(path).unwrap().highest().unwrap().map(|seen| seen.number)
    }

    fn put(path: &Path, number: u64) {
        let record = FenceRecord::lock(path).unwrap();
        let seen = record.highest().unwrap();
        record.put(number, seen).unwrap();
    }

    /// Numbers increase, and a line that a crash has torn is always the one that did not count.
    #[test]
    fn a_torn_line_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.fence");
        assert_eq!(highest(&path), None);
        put(&path, 7);
        put(&path, 9);
        assert_eq!(highest(&path), Some(9));
        let whole = fs::read(&path).unwrap();
        put(&path, u64::MAX);
        let after = fs::read(&path).unwrap();
        // However much of the new line has reached the disk, the highest number is the old or the
        // new one.
        for torn in 0..LINE_BYTES {
            let bytes = [&after[..torn], &whole[torn..]].concat();
            fs::write(&path, bytes).unwrap();
            let seen = highest(&path);
            assert!(seen == Some(9) || seen == Some(u64::MAX), "{torn}: {seen:?}");
        }
    }

    /// A file that serves another purpose is left alone.
    #[test]
    fn another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.fence");
        fs::write(&path, "something that somebody needs, and that is no record").unwrap();
        assert!(FenceRecord::lock(&path).unwrap().highest().is_err());
    }
}
