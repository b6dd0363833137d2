//! The collector: deletes lock files that nobody uses, which daemons left that were killed or whose host was cut off. It takes the
//! same steps as a daemon that retires a name, so that it may run beside daemons and other collectors, and be killed anywhere.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::lstat;

use super::fence;
use super::node::servers_now;
use super::os::{Files, Hand};
use distrilock_engine::FileOp;
use distrilock_engine::fault::{Fault, Operation};
use distrilock_engine::steps::call::CallResult as Answer;
use distrilock_protocol::name::LockName;

/// What a collector did with one lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Nobody used it, and it is gone.
    Deleted,
    /// Nobody seems to use it; it was to be left.
    Idle,
    /// Somebody uses it, or has used it not long ago.
    Used,
}

impl Files {
    /// Deletes the lock files that nobody locks and that have nothing in them but a fence, as every daemon's are: those which
    /// daemons left that were killed. Tells how many went.
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

    /// Deletes the lock files that nobody has open and that were made at least `idle` ago, or only tells of them, on every kind of
    /// file system.
    ///
    /// # Errors
    /// If the directory cannot be read or written.
    pub fn sweep(
        &self,
        idle: Duration,
        dry_run: bool,
        mut tell: impl FnMut(&LockName, Collected),
    ) -> Result<(), Fault> {
        let now = servers_now(self.directory()).map_err(|error| self.failed(Operation::Write, &error))?;
        let latest = now.saturating_sub(i64::try_from(idle.as_secs()).unwrap_or(i64::MAX));
        self.each_file(|name, metadata| {
            let old = metadata.mtime().max(metadata.ctime()) <= latest;
            let ours = self.network().is_some() || self.is_ours(name, metadata);
            tell(
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
            // What has gone meanwhile is not there any more.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                see(&name, &metadata);
            }
        }
        Ok(())
    }

    /// Whether nothing is in it but what daemons write.
    fn is_ours(&self, name: &LockName, metadata: &fs::Metadata) -> bool {
        fence::is_ours(&self.path(name.as_str()), metadata.len())
    }

    fn collect_one(&self, name: &LockName) -> bool {
        let file = if self.network().is_some() {
            // The steps there open the file by themselves.
            None
        } else {
            let mut hand = Hand::new(self, name, None);
            if hand.open(OFlag::O_RDWR) != Answer::Yes {
                return false;
            }
            hand.into_file()
        };
        drop(self.perform(name, FileOp::Retire, file));
        lstat(&*self.c_path(name)).is_err()
    }

    fn failed(&self, operation: Operation, error: &io::Error) -> Fault {
        Fault::io(operation, path_text(self.directory()), error)
    }
}

fn path_text(path: &Path) -> Box<str> {
    path.to_string_lossy().into()
}
