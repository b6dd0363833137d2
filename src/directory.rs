//! The lock directory: where it is, and whether its file system can be trusted with locks.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use crate::files::Files;
use crate::files::mount::{Mount, MountError};
use crate::files::network::Network;
use crate::settings::Settings;
use crate::systemd::ids;
use crate::timing::{Timing, TimingError};

/// Why a directory cannot be used. Each message says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DirectoryError {
    #[error("the lock directory {} {what}: {error}; {remedy}", path.display())]
    Unusable { path: PathBuf, what: &'static str, error: io::Error, remedy: &'static str },
    #[error("no lock directory: set -d DIR, since none of $STATE_DIRECTORY, $XDG_STATE_HOME and $HOME gives one")]
    Unknown,
    #[error("the lock directory {} cannot be trusted: {error}", path.display())]
    Mount { path: PathBuf, error: Box<MountError> },
    #[error(
        "the lock directory {} is on NFS, and the kernel does not report the lease time: /proc/self/mountstats has to \
         be readable", path.display()
    )]
    NoLease { path: PathBuf },
    #[error("the lock directory {}: {error}", path.display())]
    Timing { path: PathBuf, error: TimingError },
}

/// The lock directory, and what is known about it.
#[derive(Debug)]
pub struct Directory {
    /// Where it is, without symbolic links.
    pub path: PathBuf,
    /// The file system that it is on.
    pub mount: Mount,
    /// On NFSv4: the times on which its locks rest.
    pub timing: Option<Timing>,
}

impl Directory {
    /// Finds the directory that the settings mean. Creates the default one.
    ///
    /// # Errors
    /// If it does not exist, cannot be written, or locks in it cannot be trusted.
    pub fn find(settings: &Settings) -> Result<Self, DirectoryError> {
        let path = usable(settings)?;
        let mount =
            Mount::under(&path).map_err(|error| DirectoryError::Mount { path: path.clone(), error: error.into() })?;
        let timing = timing(settings, &path, &mount)?;
        Ok(Self { path, mount, timing })
    }

    /// Its lock files.
    ///
    /// # Errors
    /// If its mode cannot be read.
    pub fn files(&self) -> io::Result<Files> {
        if self.mount == Mount::Local {
            return Ok(Files::new(self.path.clone()));
        }
        let mode = std::fs::metadata(&self.path)?.mode();
        let silence_ms = self.timing.map(|timing| u64::try_from(timing.silence.as_millis()).unwrap_or(u64::MAX));
        Ok(Files::on_network(self.path.clone(), Network::new(&self.mount, mode, silence_ms)))
    }

    /// Logs what an administrator should know about the file system when the daemon starts.
    pub fn log(&self) {
        match &self.mount {
            Mount::Local => {}
            Mount::Unknown { kind } => tracing::warn!(
                MESSAGE_ID = ids::STORAGE_UNPROVEN,
                "the lock directory is on {kind}: nobody has tested whether locks hold there when a host is cut off, and \
                 lost locks are not noticed; use NFSv4 or a local file system if you can"
            ),
            Mount::Nfs4(nfs) => {
                if let Some(timing) = self.timing {
                    tracing::info!("{} (NFS 4.{}): {timing}", nfs.source, nfs.minor);
                }
                if nfs.minor == 0 {
                    tracing::warn!(
                        MESSAGE_ID = ids::STORAGE_UNPROVEN,
                        "the lock directory is on NFS 4.0: waiters are slow to notice a release there, and lock files \
                         stay until distrilock gc runs on the server; mount it with vers=4.2"
                    );
                }
            }
        }
    }
}

fn timing(settings: &Settings, path: &Path, mount: &Mount) -> Result<Option<Timing>, DirectoryError> {
    let Mount::Nfs4(nfs) = mount else { return Ok(None) };
    let lease = nfs.lease_seconds.ok_or_else(|| DirectoryError::NoLease { path: path.to_owned() })?;
    let (silence, stop) = (settings.storage_silence, settings.stop_time);
    let timing = Timing::of(Duration::from_secs(lease), silence, stop, settings.dead_after);
    timing.check().map_err(|error| DirectoryError::Timing { path: path.to_owned(), error })?;
    Ok(Some(timing))
}

fn usable(settings: &Settings) -> Result<PathBuf, DirectoryError> {
    let unusable =
        |path: &Path, what, error, remedy| DirectoryError::Unusable { path: path.to_owned(), what, error, remedy };
    let path = match (&settings.directory, std::env::var_os("STATE_DIRECTORY")) {
        (Some(path), _) => path.clone(),
        // systemd.exec(5): several directories are separated by colons.
        (None, Some(paths)) => std::env::split_paths(&paths).next().ok_or(DirectoryError::Unknown)?,
        (None, None) => {
            let path = state_folder().ok_or(DirectoryError::Unknown)?.join("distrilock");
            std::fs::create_dir_all(&path)
                .map_err(|error| unusable(&path, "cannot be created", error, "set another one with -d"))?;
            path
        }
    };
    let resolved = path
        .canonicalize()
        .map_err(|error| unusable(&path, "cannot be found", error, "create it, as in: install -d -m 0755 DIR"))?;
    if !resolved.is_dir() {
        let error = io::ErrorKind::NotADirectory.into();
        return Err(unusable(&resolved, "is not a directory", error, "set the directory with -d"));
    }
    access(&resolved, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
        let remedy = "the daemon's user has to read and write it: fix its owner or mode, or mount it read-write";
        unusable(&resolved, "cannot be written", errno.into(), remedy)
    })?;
    Ok(resolved)
}

fn state_folder() -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(absolute);
    state.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")).filter(absolute))
}
