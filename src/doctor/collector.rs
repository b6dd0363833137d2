//! The collector as a program: which lock files it deletes, told for people.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use crate::files::Collected;
use crate::files::mount::Mount;
use crate::server::directory::{Directory, DirectoryFault};
use crate::settings::Settings;
use distrilock_engine::fault::Fault;

/// Why nothing was collected, or not all. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CollectFault {
    #[error(transparent)]
    Directory(#[from] DirectoryFault),
    #[error(
        "{} is mounted as NFS 4.0, where deleting a lock file is not safe from here: run this on the file server, or mount it \
         with vers=4.2", directory.display()
    )]
    OldMount { directory: PathBuf },
    #[error("{}: its mode cannot be read: {error}", directory.display())]
    Mode { directory: PathBuf, error: std::io::Error },
    #[error("{fault}: {}", .fault.remedy())]
    Storage { fault: Fault },
}

/// Deletes the lock files in a directory that nobody uses and that were made at least `idle` ago, or only tells of them; gives what
/// is to be printed.
///
/// # Errors
/// If the directory cannot be used, or read to its end.
pub fn collect(directory: PathBuf, idle: Duration, dry_run: bool) -> Result<String, CollectFault> {
    let directory = Directory::find(&Settings::for_directory(Some(directory)))?;
    if let Mount::Nfs4(nfs) = &directory.mount
        && nfs.minor == 0
    {
        return Err(CollectFault::OldMount { directory: directory.path });
    }
    let files = directory.files().map_err(|error| CollectFault::Mode { directory: directory.path.clone(), error })?;
    if files.network().is_some() {
        // What is made there has to open for the daemons of every host.
        umask(Mode::empty());
    }
    let (mut deleted, mut would, mut used) = (0_u64, 0_u64, 0_u64);
    let mut told = String::new();
    let swept = files.sweep(idle, dry_run, |name, collected| match collected {
        Collected::Deleted => deleted += 1,
        Collected::Idle => {
            would += 1;
            // Writing into a text cannot fail.
            let _ = writeln!(told, "{}", files.path(name.as_str()).display());
        }
        Collected::Used => used += 1,
    });
    swept.map_err(|fault| CollectFault::Storage { fault })?;
    Ok(if dry_run {
        format!("{told}{would} idle, {used} in use or young\n")
    } else {
        format!("{deleted} deleted, {used} in use or young\n")
    })
}
