//! The collector as a program: deletes lock files and reports for people what it did.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use crate::directory::{Directory, DirectoryError};
use crate::files::Collected;
use crate::files::mount::Mount;
use crate::settings::Settings;
use distrilock_engine::fault::Fault;

/// Why nothing was collected, or not everything. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CollectError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(
        "{} is mounted as NFS 4.0, where deleting a lock file from this host is not safe: run this on the file server, or \
         mount the directory with vers=4.2", directory.display()
    )]
    OldMount { directory: PathBuf },
    #[error("{}: its mode cannot be read: {error}", directory.display())]
    Mode { directory: PathBuf, error: std::io::Error },
    #[error("{fault}: {}", .fault.remedy())]
    Storage { fault: Fault },
}

/// Deletes the lock files in a directory that nobody uses and that were created at least `idle`
/// ago. With `dry_run` it deletes nothing. Returns the text to print.
///
/// # Errors
/// If the directory cannot be used, or not be read to its end.
pub fn collect(directory: PathBuf, idle: Duration, dry_run: bool) -> Result<String, CollectError> {
    let directory = Directory::find(&Settings::for_directory(Some(directory)))?;
    if let Mount::Nfs4(nfs) = &directory.mount
        && nfs.minor == 0
    {
        return Err(CollectError::OldMount { directory: directory.path });
    }
    let files = directory.files().map_err(|error| CollectError::Mode { directory: directory.path.clone(), error })?;
    if files.network().is_some() {
        // The daemons of every host have to be able to open what is created there.
        umask(Mode::empty());
    }
    let (mut deleted, mut would, mut used) = (0_u64, 0_u64, 0_u64);
    let mut report = String::new();
    let swept = files.sweep(idle, dry_run, |name, collected| match collected {
        Collected::Deleted => deleted += 1,
        Collected::Idle => {
            would += 1;
            // Writing into a text cannot fail.
            let _ = writeln!(report, "{}", files.path(name.as_str()).display());
        }
        Collected::Used => used += 1,
    });
    swept.map_err(|fault| CollectError::Storage { fault })?;
    Ok(if dry_run {
        format!("{report}{would} idle, {used} in use or young\n")
    } else {
        format!("{deleted} deleted, {used} in use or young\n")
    })
}
