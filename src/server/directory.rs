//! The lock directory: where it is, and what its file system asks for.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use crate::files::Files;
use crate::files::mount::{Mount, Unfit};
use crate::files::network::Network;
use crate::settings::Settings;
use crate::systemd::ids;
use crate::timing::{Timing, Unsafe};

/// Why a directory cannot be used. Each names what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DirectoryFault {
    #[error("the lock directory {} {what}: {error}; {remedy}", path.display())]
    Unusable { path: PathBuf, what: &'static str, error: io::Error, remedy: &'static str },
    #[error(
        "no lock directory: set -d DIR, since neither $STATE_DIRECTORY, $XDG_STATE_HOME nor $HOME says where it is"
    )]
    Unknown,
    #[error("the lock directory {} cannot be trusted: {unfit}", path.display())]
    Unfit { path: PathBuf, unfit: Box<Unfit> },
    #[error(
        "the lock directory {} is on NFS, and the kernel does not tell the lease time: /proc/self/mountstats has to be \
         readable", path.display()
    )]
    NoLease { path: PathBuf },
    #[error("the lock directory {}: {fault}", path.display())]
    Timing { path: PathBuf, fault: Unsafe },
}

/// The lock directory and what was found out about it.
#[derive(Debug)]
pub struct Directory {
    /// Where it is, without symbolic links.
    pub path: PathBuf,
    /// What is mounted there.
    pub mount: Mount,
    /// The times that a network file system asks for.
    pub timing: Option<Timing>,
}

impl Directory {
    /// Finds the directory that the settings mean, and makes the default one.
    ///
    /// # Errors
    /// If it is not there, cannot be written, or locks in it could not be trusted.
    pub fn find(settings: &Settings) -> Result<Self, DirectoryFault> {
        let path = usable(settings)?;
        let mount =
            Mount::under(&path).map_err(|unfit| DirectoryFault::Unfit { path: path.clone(), unfit: unfit.into() })?;
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

    /// Says at start what an administrator should know about the file system.
    pub fn tell(&self) {
        match &self.mount {
            Mount::Local => {}
            Mount::Unknown { kind } => tracing::warn!(
                MESSAGE_ID = ids::STORAGE_UNPROVEN,
                "the lock directory is on {kind}: nobody has measured whether locks hold there when a host is cut off, and \
                 lost locks are not noticed; use NFSv4 or a local file system if you can"
            ),
            Mount::Nfs4(nfs) => {
                if let Some(timing) = self.timing {
                    tracing::info!("{} (NFS 4.{}): {timing}", nfs.source, nfs.minor);
                }
                if nfs.minor == 0 {
                    tracing::warn!(
                        MESSAGE_ID = ids::STORAGE_UNPROVEN,
                        "the lock directory is on NFS 4.0: waiting is slow there, and lock files stay until distrilock gc \
                         runs on the server; mount it with vers=4.2"
                    );
                }
            }
        }
    }
}

fn timing(settings: &Settings, path: &Path, mount: &Mount) -> Result<Option<Timing>, DirectoryFault> {
    let Mount::Nfs4(nfs) = mount else { return Ok(None) };
    let lease = nfs.lease_seconds.ok_or_else(|| DirectoryFault::NoLease { path: path.to_owned() })?;
    let (silence, stop) = (settings.storage_silence, settings.stop_time);
    let timing = Timing::of(Duration::from_secs(lease), silence, stop, settings.dead_after);
    timing.check().map_err(|fault| DirectoryFault::Timing { path: path.to_owned(), fault })?;
    Ok(Some(timing))
}

fn usable(settings: &Settings) -> Result<PathBuf, DirectoryFault> {
    let fault =
        |path: &Path, what, error, remedy| DirectoryFault::Unusable { path: path.to_owned(), what, error, remedy };
    let path = match (&settings.directory, std::env::var_os("STATE_DIRECTORY")) {
        (Some(path), _) => path.clone(),
        // systemd.exec(5): several directories are separated by colons.
        (None, Some(paths)) => std::env::split_paths(&paths).next().ok_or(DirectoryFault::Unknown)?,
        (None, None) => {
            let path = state_folder().ok_or(DirectoryFault::Unknown)?.join("distrilock");
            std::fs::create_dir_all(&path)
                .map_err(|error| fault(&path, "cannot be created", error, "set another one with -d"))?;
            path
        }
    };
    let resolved = path
        .canonicalize()
        .map_err(|error| fault(&path, "cannot be found", error, "create it, as in: install -d -m 0755 DIR"))?;
    if !resolved.is_dir() {
        let error = io::ErrorKind::NotADirectory.into();
        return Err(fault(&resolved, "is no directory", error, "name the directory with -d"));
    }
    access(&resolved, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
        let remedy = "the daemon's user has to read and write it: mend its owner or mode, or mount it read-write";
        fault(&resolved, "cannot be written", errno.into(), remedy)
    })?;
    Ok(resolved)
}

fn state_folder() -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(absolute);
    state.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")).filter(absolute))
}
