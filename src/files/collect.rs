//! The collector: deletes unused lock files that daemons left behind because they were killed or
//! their host was cut off. It takes the same steps as a daemon that retires a name, so it may run
//! beside daemons and other collectors, and may be killed at any point.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::lstat;

use super::daemon_folder::server_time;
use super::fence_text::{Content, content_of};
use super::local::LocalExecutor;
use super::lock_directory::Files;
use distrilock_engine::FileOp;
use distrilock_engine::fault::{Fault, Operation};
use distrilock_engine::steps::call::CallResult;
use distrilock_protocol::name::LockName;

/// What a collector did with one lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Nobody used it, and it is gone.
    Deleted,
    /// Nobody seems to use it, but the collector was told to delete nothing.
    Idle,
    /// Somebody uses it, or used it recently.
    Used,
}

impl Files {
    /// Deletes the lock files that nobody locks and that contain nothing but a fence, as the files
    /// of daemons do: daemons that were killed left them. Returns how many were deleted. A fence
    /// stays if the mark is missing, as it shows that there was one (`fence_mark`).
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn collect(&self) -> Result<usize, Fault> {
        let mut collected = 0;
        self.each_file(|name, metadata| {
            if self.is_ours(name, metadata) && self.collect_one(name) {
                collected += 1;
            }
        })?;
        Ok(collected)
    }

    /// Deletes the lock files that nobody has open and that were created at least `idle` ago, on
    /// every kind of file system. With `dry_run` it deletes nothing. Reports what became of each
    /// file.
    ///
    /// # Errors
    /// If the directory cannot be read or written.
    pub fn sweep(
        &self,
        idle: Duration,
        dry_run: bool,
        mut report: impl FnMut(&LockName, Collected),
    ) -> Result<(), Fault> {
        let now = server_time(self.directory()).map_err(|error| self.failed(Operation::Write, &error))?;
        let latest = now.saturating_sub(i64::try_from(idle.as_secs()).unwrap_or(i64::MAX));
        self.each_file(|name, metadata| {
            let old = metadata.mtime().max(metadata.ctime()) <= latest;
            let ours = self.network().is_some() || self.is_ours(name, metadata);
            report(
                name,
                match (old && ours, dry_run) {
                    (false, _) => Collected::Used,
                    (true, true) => Collected::Idle,
                    (true, false) if self.collect_one(name) => Collected::Deleted,
                    (true, false) => Collected::Used,
                },
            );
        })
    }

    fn each_file(&self, mut see: impl FnMut(&LockName, &fs::Metadata)) -> Result<(), Fault> {
        for entry in fs::read_dir(self.directory()).map_err(|error| self.failed(Operation::Read, &error))? {
            let entry = entry.map_err(|error| self.failed(Operation::Read, &error))?;
            let file = entry.file_name();
            let Some(name) = Self::name_of(file.as_bytes()) else { continue };
            // The file may have been deleted meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                see(&name, &metadata);
            }
        }
        Ok(())
    }

    /// Whether the file contains nothing but what daemons write, and nothing that is still needed.
    fn is_ours(&self, name: &LockName, metadata: &fs::Metadata) -> bool {
        match content_of(&self.path(name.as_str()), metadata.len(), OFlag::empty()) {
            Ok(Content::Nothing) => true,
            Ok(Content::Fence(_)) => self.mark.exists(),
            Ok(Content::Foreign) | Err(_) => false,
        }
    }

    fn collect_one(&self, name: &LockName) -> bool {
        let file = if self.network().is_some() {
            // The steps open the file themselves there.
            None
        } else {
            let mut executor = LocalExecutor::new(self, name, None);
            if executor.open(OFlag::O_RDWR) != CallResult::Yes {
                return false;
            }
            executor.into_file()
        };
        drop(self.perform(name, FileOp::Retire, file));
        lstat(&*self.c_path(name)) == Err(Errno::ENOENT)
    }

    fn failed(&self, operation: Operation, error: &io::Error) -> Fault {
        Fault::io(operation, path_text(self.directory()), error)
    }
}

fn path_text(path: &Path) -> Box<str> {
    path.to_string_lossy().into()
}
