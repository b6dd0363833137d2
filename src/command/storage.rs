//! What looks at a lock directory instead of a daemon: the doctor and the collector.

use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

use super::options::{Doctor, Gc};
use super::trouble::Trouble;
use super::{say, status};
use crate::doctor;
use crate::files::Collected;
use crate::files::mount::Mount;
use crate::server::directory::Directory;
use crate::settings::Settings;

/// Examines a lock directory.
pub(super) fn doctor(options: &Doctor) -> Result<u8, Trouble> {
    let settings = Settings::for_directory(options.directory.clone());
    let findings = doctor::examine(&settings, options.peer.as_deref());
    let mut report = Vec::new();
    let directory = options.directory.as_deref();
    let found =
        doctor::tell(directory, &findings, options.json, &mut report).map_err(Trouble::system("write a report"))?;
    say::out(&String::from_utf8_lossy(&report)).map_err(Trouble::system("write to stdout"))?;
    Ok(found)
}

/// Deletes lock files that nobody uses.
pub(super) fn gc(options: &Gc) -> Result<u8, Trouble> {
    let settings = Settings::for_directory(Some(options.directory.clone()));
    let directory = Directory::find(&settings).map_err(Trouble::Directory)?;
    if let Mount::Nfs4(nfs) = &directory.mount
        && nfs.minor == 0
    {
        return Err(Trouble::OldMount { directory: directory.path });
    }
    let files = directory.files().map_err(Trouble::system("read the directory's mode"))?;
    if files.network().is_some() {
        // What is made there has to open for the daemons of every host.
        umask(Mode::empty());
    }
    let (mut deleted, mut idle, mut used) = (0_u64, 0_u64, 0_u64);
    let mut lines = String::new();
    let swept = files.sweep(options.idle, options.dry_run, |name, collected| match collected {
        Collected::Deleted => deleted += 1,
        Collected::Idle => {
            idle += 1;
            lines.push_str(&format!("{}\n", file(&directory.path, name.as_str()).display()));
        }
        Collected::Used => used += 1,
    });
    swept.map_err(|fault| Trouble::Storage { fault })?;
    let summary = if options.dry_run {
        format!("{idle} idle, {used} in use or young\n")
    } else {
        format!("{deleted} deleted, {used} left\n")
    };
    say::out(&(lines + &summary)).map_err(Trouble::system("write to stdout"))?;
    Ok(status::DONE)
}

fn file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.lck"))
}
